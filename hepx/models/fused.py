"""Kernels for inference on a CPU: attention among a few objects, gates, experts, norms and pooling; each in one pass.

PyTorch runs a chain of operations over all events, each through memory, and multiplies matrices of 7 × 8 slowly
(`bench_explain` prints what the kernels gain). They are written for numba (extra `fast`) with vectors of eight numbers:
eight events side by side in the attention, eight nodes in the gates, eight units in experts and norms. `layers.py` has
the plain formulas, and decides where a kernel takes their place. numba has no type for such a vector, so here is one,
its operations in LLVM's code.

What an event gets does not depend, bit by bit, on the other events of the call. Kernels take flat arrays and the place
of a number in them.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, register_model
from torch import Tensor

log = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])
WIDTH = 8
ROWS_PER_THREAD = 512  # fewer are not worth a thread
TOGETHER = 512  # nodes whose experts' lists are made at once: their states stay in the cache

# Vectors of eight numbers -----------------------------------------------------------------------------------------

_FLOATS, _INTS = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(ir.IntType(32), WIDTH)


class _VectorType(types.Type):  # type: ignore[misc]
    pass


_VECTOR = _VectorType("float32x8")


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


def _operation(result: types.Type) -> Callable[[Callable[..., Any]], Any]:
    """Make a function of numba of one that writes LLVM code: its arguments are a builder and the operands; an array
    comes as the pointer to its first number."""

    def decorate(generate: Callable[..., Any]) -> Any:
        def typing(context: Any, *kinds: Any) -> Any:
            def code(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
                plain = [
                    context.make_array(kind)(context, builder, operand).data
                    if isinstance(kind, types.Array)
                    else operand
                    for kind, operand in zip(signature.args, operands, strict=True)
                ]
                found = generate(builder, *plain)
                return context.get_dummy_value() if result == types.none else found

            return result(*(types.intp if isinstance(kind, types.Integer) else kind for kind in kinds)), code

        typing.__signature__ = inspect.signature(generate)  # type: ignore[attr-defined]
        return intrinsic(typing)

    return decorate


def _all(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [float(np.float32(value))] * WIDTH)


def _shuffle(b: Any, x: Any, y: Any, order: list[int]) -> Any:
    return b.shuffle_vector(x, y, ir.Constant(_INTS, order))


def _polynomial(b: Any, x: Any, *coefficients: float) -> Any:
    """Highest power first."""
    total = _all(coefficients[0])
    for coefficient in coefficients[1:]:
        total = _fma(b, x, total, _all(coefficient))
    return total


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return b.call(get_or_insert_function(b.module, kind, "llvm.fmuladd.v8f32"), [x, y, z])


def _above(b: Any, x: Any, y: Any, then: Any, otherwise: Any) -> Any:
    return b.select(b.fcmp_ordered(">", x, y), then, otherwise)


def _load(b: Any, array: Any, at: Any) -> Any:
    vector = b.load(b.bitcast(b.gep(array, [at]), _FLOATS.as_pointer()))
    vector.align = 4
    return vector


def _store(b: Any, vector: Any, array: Any, at: Any) -> None:
    b.store(vector, b.bitcast(b.gep(array, [at]), _FLOATS.as_pointer())).align = 4


def _places(b: Any, at: Any, step: Any) -> list[Any]:
    """Eight places, so far apart."""
    return [b.add(at, b.mul(step, ir.Constant(step.type, lane))) for lane in range(WIDTH)]


def _same(b: Any, number: Any) -> Any:
    first = b.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return _shuffle(b, first, first, [0] * WIDTH)


@_operation(_VECTOR)
def load(b: Any, array: Any, at: Any) -> Any:
    """Eight neighbours."""
    return _load(b, array, at)


@_operation(types.none)
def store(b: Any, vector: Any, array: Any, at: Any) -> None:
    """Eight neighbours."""
    _store(b, vector, array, at)


@_operation(_VECTOR)
def gather(b: Any, array: Any, at: Any, step: Any) -> Any:
    """Eight numbers, so many places apart."""
    vector = ir.Constant(_FLOATS, ir.Undefined)
    for lane, place in enumerate(_places(b, at, step)):
        vector = b.insert_element(vector, b.load(b.gep(array, [place])), ir.Constant(ir.IntType(32), lane))
    return vector


@_operation(_VECTOR)
def same(b: Any, number: Any) -> Any:
    """One number eight times."""
    return _same(b, number)


@_operation(_VECTOR)
def spread(b: Any, array: Any, at: Any) -> Any:
    """One of the numbers eight times."""
    return _same(b, b.load(b.gep(array, [at])))


@_operation(_VECTOR)
def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once where the processor can."""
    return _fma(b, x, y, z)


@_operation(_VECTOR)
def add(b: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return b.fadd(x, y)


@_operation(_VECTOR)
def subtract(b: Any, x: Any, y: Any) -> Any:
    """x − y."""
    return b.fsub(x, y)


@_operation(_VECTOR)
def multiply(b: Any, x: Any, y: Any) -> Any:
    """x y."""
    return b.fmul(x, y)


@_operation(_VECTOR)
def divide(b: Any, x: Any, y: Any) -> Any:
    """x / y."""
    return b.fdiv(x, y)


@_operation(_VECTOR)
def above(b: Any, x: Any, y: Any, then: Any, otherwise: Any) -> Any:
    """`then` where x > y."""
    return _above(b, x, y, then, otherwise)


@_operation(types.float32)
def total(b: Any, x: Any) -> Any:
    """Sum of the eight."""
    for half in (4, 2, 1):
        x = b.fadd(x, _shuffle(b, x, x, [(lane + half) % WIDTH for lane in range(WIDTH)]))
    return b.extract_element(x, ir.Constant(ir.IntType(32), 0))


@_operation(_VECTOR)
def exp(b: Any, x: Any) -> Any:
    """e^x for x ≤ 0, to 1e-7 of itself; 0 below −87, where it is < 2e-38 (Cephes' expf: 2ⁿ times a polynomial)."""
    shifted = _fma(b, x, _all(math.log2(math.e)), _all(1.5 * 2**23))  # its last bits are n
    n = b.fsub(shifted, _all(1.5 * 2**23))
    rest = _fma(b, n, _all(2.12194440e-4), _fma(b, n, _all(-0.693359375), x))
    terms = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
    small = _polynomial(b, rest, *terms, 1.0, 1.0)
    exponent = b.shl(b.bitcast(shifted, _INTS), ir.Constant(_INTS, [23] * WIDTH))
    power = b.bitcast(b.add(b.bitcast(small, _INTS), exponent), _FLOATS)
    return _above(b, _all(-87.0), x, _all(0.0), power)


@_operation(_VECTOR)
def gelu(b: Any, x: Any) -> Any:
    """x Φ(x), with the rational form of erf of the library Eigen (3e-7)."""
    z = b.fmul(x, _all(math.sqrt(0.5)))
    z = _above(b, z, _all(4.0), _all(4.0), z)
    z = _above(b, _all(-4.0), z, _all(-4.0), z)
    s, half = b.fmul(z, z), b.fmul(x, _all(0.5))
    above = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05)
    above_too = (-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)
    below = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03)
    below_too = (-7.37332916720468e-03, -1.42647390514189e-02)
    erf = b.fdiv(b.fmul(z, _polynomial(b, s, *above, *above_too)), _polynomial(b, s, *below, *below_too))
    return _fma(b, half, erf, half)


@_operation(types.none)
def turn(b: Any, array: Any, at: Any, step: Any, out: Any, to: Any, out_step: Any) -> None:
    """A block of eight rows of eight numbers, its rows `step` apart, becomes columns: rows of `out`."""
    rows = [_load(b, array, place) for place in _places(b, at, step)]
    for distance in (1, 2, 4):  # swap the off-diagonal blocks of this size
        for i in (row for row in range(WIDTH) if not row & distance):
            x, y = rows[i], rows[i + distance]
            low = [lane - distance + WIDTH if lane & distance else lane for lane in range(WIDTH)]
            high = [lane + WIDTH if lane & distance else lane + distance for lane in range(WIDTH)]
            rows[i], rows[i + distance] = _shuffle(b, x, y, low), _shuffle(b, x, y, high)
    for vector, place in zip(rows, _places(b, to, out_step), strict=True):
        _store(b, vector, out, place)


# Kernels ----------------------------------------------------------------------------------------------------------


def _compiled(function: Function) -> Function:
    """Compiled at the first call, and kept beside this file or in the user's cache for the next processes."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        _say_not_kept()
        return njit(**options)(function)


@cache
def _say_not_kept() -> None:
    log.warning(
        "the compiled kernels are not kept, each process compiles them again (some seconds): neither %s nor the "
        "user's cache can be written to; set NUMBA_CACHE_DIR to a folder that can",
        Path(__file__).parent,
    )


@_compiled
@no_type_check
def _attend(
    begin: int, end: int, qkv: Any, key: int, bias: Any, steps: Any, allowed: Any, sizes: Any, mixed: Any, weights: Any
) -> None:
    """Events [begin, end), at least eight. `key`: 1, or 2 where values are taken for keys; steps: strides of `bias`."""
    nodes, dim, heads = sizes
    size, row, pairs = dim // heads, 3 * nodes * dim, nodes * nodes
    zero, one, lowest = same(np.float32(0)), same(np.float32(1)), same(np.float32(-3.4028235e38))
    scale = same(np.float32(1 / math.sqrt(size)))
    states = np.empty(3 * nodes * size * 8, np.float32)  # of a head: queries, keys, values; unit; event
    barred = np.empty(pairs * 8, np.float32)
    softmax, out = np.empty(pairs * 8, np.float32), np.empty(nodes * size * 8, np.float32)
    for first in range(begin, end, 8):
        event = min(first, end - 8)
        for pair in range(pairs):
            for lane in range(8):
                barred[8 * pair + lane] = 0 if allowed[(event + lane) * pairs + pair] else -np.inf
        for head in range(heads):
            for part in range(3):
                for node in range(nodes):
                    for unit in range(0, size, 8):
                        at = event * row + (3 * node + part) * dim + head * size + unit
                        turn(qkv, at, row, states, ((part * nodes + node) * size + unit) * 8, 8)
            for node in range(nodes):
                to, start = 8 * node * nodes, event * steps[0] + head * steps[1] + node * steps[2]
                for other in range(nodes):
                    store(zero, softmax, to + 8 * other)
                for unit in range(0, size, 8):
                    at = 8 * (node * size + unit)
                    q0, q1 = multiply(load(states, at), scale), multiply(load(states, at + 8), scale)
                    q2, q3 = multiply(load(states, at + 16), scale), multiply(load(states, at + 24), scale)
                    q4, q5 = multiply(load(states, at + 32), scale), multiply(load(states, at + 40), scale)
                    q6, q7 = multiply(load(states, at + 48), scale), multiply(load(states, at + 56), scale)
                    for other in range(nodes):
                        k = 8 * ((key * nodes + other) * size + unit)
                        score = fma(q0, load(states, k), load(softmax, to + 8 * other))
                        score = fma(q2, load(states, k + 16), fma(q1, load(states, k + 8), score))
                        score = fma(q4, load(states, k + 32), fma(q3, load(states, k + 24), score))
                        score = fma(q6, load(states, k + 48), fma(q5, load(states, k + 40), score))
                        store(fma(q7, load(states, k + 56), score), softmax, to + 8 * other)
                top, summed = lowest, zero
                for other in range(nodes):
                    at = to + 8 * other
                    score = add(
                        load(softmax, at), add(gather(bias, start + other * steps[3], steps[0]), load(barred, at))
                    )
                    store(score, softmax, at)
                    top = above(score, top, score, top)
                for other in range(nodes):
                    weight = exp(subtract(load(softmax, to + 8 * other), top))
                    store(weight, softmax, to + 8 * other)
                    summed = add(summed, weight)
                share = divide(one, above(summed, zero, summed, add(summed, one)))
                for other in range(nodes):
                    store(multiply(load(softmax, to + 8 * other), share), softmax, to + 8 * other)
                for unit in range(0, size, 8):
                    m0 = m1 = m2 = m3 = m4 = m5 = m6 = m7 = zero
                    for other in range(nodes):
                        v, weight = 8 * ((2 * nodes + other) * size + unit), load(softmax, to + 8 * other)
                        m0, m1 = fma(weight, load(states, v), m0), fma(weight, load(states, v + 8), m1)
                        m2, m3 = fma(weight, load(states, v + 16), m2), fma(weight, load(states, v + 24), m3)
                        m4, m5 = fma(weight, load(states, v + 32), m4), fma(weight, load(states, v + 40), m5)
                        m6, m7 = fma(weight, load(states, v + 48), m6), fma(weight, load(states, v + 56), m7)
                    at = 8 * (node * size + unit)
                    store(m0, out, at), store(m1, out, at + 8), store(m2, out, at + 16), store(m3, out, at + 24)
                    at += 32
                    store(m4, out, at), store(m5, out, at + 8), store(m6, out, at + 16), store(m7, out, at + 24)
            for pair in range(0, pairs, 8):
                at = min(pair, pairs - 8)
                turn(softmax, 8 * at, 8, weights, (event * heads + head) * pairs + at, heads * pairs)
            for node in range(nodes):
                for unit in range(0, size, 8):
                    to = (event * nodes + node) * dim + head * size + unit
                    turn(out, 8 * (node * size + unit), 8, mixed, to, nodes * dim)


@_compiled
@no_type_check
def _gate(begin: int, end: int, logits: Any, scores: Any, num_experts: int, top_k: int, gates: Any) -> None:
    """Nodes [begin, end), at least eight. An expert is chosen if fewer than K others have a larger score."""
    zero, one, lowest = same(np.float32(0)), same(np.float32(1)), same(np.float32(-3.4028235e38))
    enough = same(np.float32(top_k))
    chosen = np.empty(num_experts * 8, np.float32)
    for first in range(begin, end, 8):
        at = min(first, end - 8) * num_experts
        top, summed = lowest, zero
        for expert in range(num_experts):
            rank, score = zero, gather(scores, at + expert, num_experts)
            for other in range(num_experts):
                rival = gather(scores, at + other, num_experts)
                if other < expert:  # of two equal ones the first
                    rank = add(rank, above(score, rival, zero, one))
                elif other > expert:
                    rank = add(rank, above(rival, score, one, zero))
            logit = gather(logits, at + expert, num_experts)
            store(above(enough, rank, one, zero), chosen, 8 * expert)
            top = above(load(chosen, 8 * expert), zero, above(logit, top, logit, top), top)
        for expert in range(num_experts):
            weight = exp(subtract(gather(logits, at + expert, num_experts), top))
            weight = above(load(chosen, 8 * expert), zero, weight, zero)
            store(weight, chosen, 8 * expert)
            summed = add(summed, weight)
        for expert in range(num_experts):
            store(divide(load(chosen, 8 * expert), summed), chosen, 8 * expert)
            for lane in range(8):
                gates[at + lane * num_experts + expert] = chosen[8 * expert + lane]


@_compiled
@no_type_check
def _product(x: Any, rows: Any, weight: Any, bias: Any, at: Any, step: int, depth: int, out: Any, to: int) -> None:
    """Four rows of x, at `rows`, times sixteen columns of weight and plus bias, from the places `at`. Rows of weight
    and out are `step` apart."""
    r0, r1, r2, r3 = rows
    column, start = at
    x0 = x1 = x2 = x3 = load(bias, start)
    y0 = y1 = y2 = y3 = load(bias, start + 8)
    for unit in range(depth):
        left, right = load(weight, column + unit * step), load(weight, column + unit * step + 8)
        state = spread(x, r0 + unit)
        x0, y0 = fma(state, left, x0), fma(state, right, y0)
        state = spread(x, r1 + unit)
        x1, y1 = fma(state, left, x1), fma(state, right, y1)
        state = spread(x, r2 + unit)
        x2, y2 = fma(state, left, x2), fma(state, right, y2)
        state = spread(x, r3 + unit)
        x3, y3 = fma(state, left, x3), fma(state, right, y3)
    store(x0, out, to), store(y0, out, to + 8), store(x1, out, to + step), store(y1, out, to + step + 8)
    to += 2 * step
    store(x2, out, to), store(y2, out, to + 8), store(x3, out, to + step), store(y3, out, to + step + 8)


@_compiled
@no_type_check
def _mix(begin: int, end: int, h: Any, gates: Any, w1: Any, b1: Any, w2: Any, b2: Any, sizes: Any, out: Any) -> None:
    """Nodes [begin, end): each expert on the nodes that chose it, four at a time (the last one fills up)."""
    dim, width, num_experts = sizes
    zero = same(np.float32(0))
    nodes, counts = np.empty((num_experts, TOGETHER + 1), np.int64), np.empty(num_experts, np.int64)
    hidden, result = np.empty(4 * width, np.float32), np.empty(4 * dim, np.float32)
    for first in range(begin, end, TOGETHER):
        counts[:] = 0
        for node in range(first, min(first + TOGETHER, end)):
            for expert in range(num_experts):
                nodes[expert, counts[expert]] = node  # overwritten if it is none of them: no branch
                counts[expert] += gates[node * num_experts + expert] != 0
            for unit in range(0, dim, 8):
                store(zero, out, node * dim + unit)
        for expert in range(num_experts):
            mine, last, matrix = nodes[expert], counts[expert] - 1, expert * dim * width
            for start in range(0, last + 1, 4):
                second, third, fourth = min(start + 1, last), min(start + 2, last), min(start + 3, last)
                rows = (mine[start] * dim, mine[second] * dim, mine[third] * dim, mine[fourth] * dim)
                for unit in range(0, width, 16):
                    _product(h, rows, w1, b1, (matrix + unit, expert * width + unit), width, dim, hidden, unit)
                for unit in range(0, 4 * width, 8):
                    store(gelu(load(hidden, unit)), hidden, unit)
                rows = (0, width, 2 * width, 3 * width)
                for unit in range(0, dim, 16):
                    _product(hidden, rows, w2, b2, (matrix + unit, expert * dim + unit), dim, width, result, unit)
                for row in range(min(4, last + 1 - start)):
                    node = mine[start + row]
                    gate = spread(gates, node * num_experts + expert)
                    for unit in range(0, dim, 8):
                        at = node * dim + unit
                        store(fma(gate, load(result, row * dim + unit), load(out, at)), out, at)


@_compiled
@no_type_check
def _norm(begin: int, end: int, h: Any, weight: Any, bias: Any, dim: int, eps: float, out: Any) -> None:
    """Nodes [begin, end)."""
    for node in range(begin, end):
        summed = squares = same(np.float32(0))
        for unit in range(0, dim, 8):
            summed = add(summed, load(h, node * dim + unit))
        mean = same(total(summed) / np.float32(dim))
        for unit in range(0, dim, 8):
            rest = subtract(load(h, node * dim + unit), mean)
            squares = fma(rest, rest, squares)
        scale = same(np.float32(1) / np.sqrt(total(squares) / np.float32(dim) + np.float32(eps)))
        for unit in range(0, dim, 8):
            rest = multiply(subtract(load(h, node * dim + unit), mean), scale)
            store(fma(rest, load(weight, unit), load(bias, unit)), out, node * dim + unit)


@_compiled
@no_type_check
def _pool(begin: int, end: int, h: Any, groups: Any, sizes: Any, out: Any) -> None:
    """Events [begin, end). groups: where the mean of each node goes, −1 for nowhere."""
    nodes, dim, num_groups = sizes
    zero = same(np.float32(0))
    for event in range(begin, end):
        for group in range(num_groups):
            number, to = 0, (event * num_groups + group) * dim
            for node in range(nodes):
                number += groups[event * nodes + node] == group
            share = same(np.float32(1 / max(number, 1)))
            for unit in range(0, dim, 8):
                summed = zero
                for node in range(nodes):
                    if groups[event * nodes + node] == group:
                        summed = add(summed, load(h, (event * nodes + node) * dim + unit))
                store(multiply(summed, share), out, to + unit)


# Doors ------------------------------------------------------------------------------------------------------------


def _flat(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().view(-1).numpy()


def _run(kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
    """All rows, in as many threads as torch may use."""
    parts = max(1, min(torch.get_num_threads(), rows // ROWS_PER_THREAD))
    if parts == 1:
        return kernel(0, rows, *arguments)
    edges = [rows * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(lambda begin, end: kernel(begin, end, *arguments), edges[:-1], edges[1:]))
    return None


def attend(
    qkv: Float[Tensor, "B N E"],
    num_heads: int,
    bias: Float[Tensor, "B H N N"] | None,
    allowed: Bool[Tensor, "B N N"],
    score_of_values: bool,
) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H N N"]]:
    """Mixed values and attention weights of at least eight events; qkv: queries, keys and values, E = 3 D."""
    batch, nodes, width = qkv.shape
    mixed, weights = qkv.new_empty(batch, nodes, width // 3), qkv.new_empty(batch, num_heads, nodes, nodes)
    steps = (0, 0, 0, 0) if bias is None else bias.stride()
    span = 1 + sum(step * (size - 1) for step, size in zip(steps, weights.shape, strict=True))
    numbers = qkv.new_zeros(1) if bias is None else bias.as_strided((span,), (1,))
    arguments = (_flat(qkv), 1 + score_of_values, _flat(numbers), steps, _flat(allowed))
    _run(_attend, batch, *arguments, (nodes, width // 3, num_heads), _flat(mixed), _flat(weights))
    return mixed, weights


def gate(logits: Float[Tensor, "*B X"], scores: Float[Tensor, "*B X"], top_k: int) -> Float[Tensor, "*B X"]:
    """Softmax of the logits over the K experts with the largest scores, of at least eight nodes."""
    gates, num_experts = torch.empty_like(logits, memory_format=torch.contiguous_format), logits.shape[-1]
    _run(_gate, logits.numel() // num_experts, _flat(logits), _flat(scores), num_experts, top_k, _flat(gates))
    return gates


def mix(
    h: Float[Tensor, "*B D"],
    gates: Float[Tensor, "*B X"],
    w1: Float[Tensor, "X D h"],
    b1: Float[Tensor, "X h"],
    w2: Float[Tensor, "X h D"],
    b2: Float[Tensor, "X D"],
) -> Float[Tensor, "*B D"]:
    """Gated sum of the outputs of the experts whose gate is not 0."""
    out, (num_experts, dim, width) = torch.empty_like(h, memory_format=torch.contiguous_format), w1.shape
    arguments = [_flat(tensor) for tensor in (h, gates, w1, b1, w2, b2)]
    _run(_mix, h.numel() // dim, *arguments, (dim, width, num_experts), _flat(out))
    return out


def norm(h: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], bias: Float[Tensor, "D"], eps: float) -> Tensor:
    """Layer norm."""
    out, dim = torch.empty_like(h, memory_format=torch.contiguous_format), h.shape[-1]
    _run(_norm, h.numel() // dim, _flat(h), _flat(weight), _flat(bias), dim, eps, _flat(out))
    return out


def pool(h: Float[Tensor, "B N D"], groups: Int[Tensor, "B N"], num_groups: int) -> Float[Tensor, "B GD"]:
    """Mean of the nodes of each group, side by side; zeros for an empty one. Nodes of group −1 are left out."""
    batch, nodes, dim = h.shape
    out = h.new_empty(batch, num_groups * dim)
    _run(_pool, batch, _flat(h), _flat(groups), (nodes, dim, num_groups), _flat(out))
    return out
