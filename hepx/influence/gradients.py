"""The gradient of every event's margin with respect to all parameters, without a backward pass per event.

A backward pass over a batch already computes, at the output of every layer, what each event would send back alone:
events do not see each other. With the input of the layer that is the whole per-event gradient. For a linear map of the
N nodes of an event with inputs x_n and output gradients δ_n it is Σ_n δ_n x_nᵀ, a matrix of rank N, whose squared norm
is Σ_nn' (x_n·x_n')(δ_n·δ_n'): the exact self-influence needs no gradient to be written down (arXiv:1510.01799 for one
row per event). `tests/test_influence_gradients.py` compares every model with `torch.func.vmap(grad)`.

The margin of an event is the log-odds m of a class. For its own class the loss is log(1 + e^−m), so the gradient of the
loss is −(1 − p) times that of the margin, p the probability of the class: one gradient serves loss and score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn import functional

from hepx.graph import GraphBatch
from hepx.models import Model
from hepx.models.layers import MixtureOfExperts
from hepx.progress import Advance, silent
from hepx.train.snapshots import load_snapshot

EVENTS_PER_PASS = 256
Layers = Literal["all", "last"]


@dataclass(frozen=True)
class Outer:
    """Gradient Σ_r δ_r x_rᵀ [B, O, I] of the parameters `names` from inputs x [B, R, I], which have a column of ones
    where there is a bias, and output gradients delta [B, R, O]."""

    names: tuple[str, ...]
    x: Float[Tensor, "B R I"]
    delta: Float[Tensor, "B R O"]

    def full(self) -> Float[Tensor, "B OI"]:
        """The gradient, flat."""
        return (self.delta.transpose(1, 2) @ self.x).flatten(1)

    def squared_norm(self) -> Float[Tensor, "B"]:
        """Of the gradient of each event, by the cheaper of its two forms."""
        rows, inputs, outputs = self.x.shape[1], self.x.shape[2], self.delta.shape[2]
        if rows * (inputs + outputs) >= inputs * outputs:
            return self.full().square().sum(1)
        return ((self.x @ self.x.transpose(1, 2)) * (self.delta @ self.delta.transpose(1, 2))).sum((1, 2))


@dataclass(frozen=True)
class Plain:
    """Gradient [B, K] of the parameters `names` as it is."""

    names: tuple[str, ...]
    values: Float[Tensor, "B K"]

    def full(self) -> Float[Tensor, "B K"]:
        """The gradient."""
        return self.values

    def squared_norm(self) -> Float[Tensor, "B"]:
        """Of the gradient of each event."""
        return self.values.square().sum(1)


Part = Outer | Plain


def _joined(first: Part, second: Part) -> Part:
    """The gradient of parameters that were used in two calls."""
    if isinstance(first, Outer) and isinstance(second, Outer):
        return Outer(first.names, torch.cat([first.x, second.x], 1), torch.cat([first.delta, second.delta], 1))
    return Plain(first.names, first.full() + second.full())


class _Call(NamedTuple):
    """One forward call of a module: what went in and what came out (all of it, and the tensor that is hooked)."""

    x: Tensor
    result: Any
    output: Tensor


def _rows(values: Tensor) -> Float[Tensor, "B R D"]:
    return values.reshape(values.shape[0], -1, values.shape[-1])


def _with_ones(x: Float[Tensor, "B R I"], also: bool = True) -> Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1) if also else x


def _linear(name: str, module: nn.Linear, call: _Call, delta: Tensor) -> list[Part]:
    names = (f"{name}.weight", f"{name}.bias") if module.bias is not None else (f"{name}.weight",)
    return [Outer(names, _with_ones(_rows(call.x), module.bias is not None), _rows(delta))]


def _layer_norm(name: str, module: nn.LayerNorm, call: _Call, delta: Tensor) -> list[Part]:
    normed = functional.layer_norm(call.x, module.normalized_shape, eps=module.eps)
    values = torch.cat([_rows(delta * normed).sum(1), _rows(delta).sum(1)], -1)
    return [Plain((f"{name}.weight", f"{name}.bias"), values)]


def _embedding(name: str, module: nn.Embedding, call: _Call, delta: Tensor) -> list[Part]:
    chosen = functional.one_hot(call.x, module.num_embeddings).to(delta.dtype)
    return [Outer((f"{name}.weight",), _rows(chosen), _rows(delta))]


def _experts(name: str, module: MixtureOfExperts, call: _Call, delta: Tensor) -> list[Part]:
    """All experts as the two matrix products of `MixtureOfExperts`; the second one's input is hidden units × gates."""
    dim, distinct = call.x.shape[-1], len(module.w1)
    gates = call.result[2].detach()
    if distinct < module.num_experts:
        gates = gates.sum(-1, keepdim=True)
    raw = call.x @ module.w1.permute(1, 0, 2).reshape(dim, -1) + module.b1.reshape(-1)
    hidden, back = vjp(module.activation, raw)  # type: ignore[misc]
    spread = gates[..., None].expand(*gates.shape, module.expert_dim).flatten(-2)
    (delta_raw,) = back(delta @ module.w2.reshape(-1, dim).T * spread)
    return [
        Outer((f"{name}.w1", f"{name}.b1"), _with_ones(_rows(call.x)), _rows(delta_raw)),
        Outer((f"{name}.w2", f"{name}.b2"), _rows(torch.cat([hidden * spread, gates], -1)), _rows(delta)),
    ]


RULES: dict[type[nn.Module], Callable[[str, Any, _Call, Tensor], list[Part]]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    MixtureOfExperts: _experts,
}
"""How the gradient of a module's own parameters follows from its input and its output gradient. Parameters of modules
without a rule are taken from `vmap(grad)`: right, but as slow as that."""


def _own(name: str, module: nn.Module) -> list[str]:
    """Names of a module's own parameters, not those of modules inside it."""
    return [f"{name}.{one}" for one, _ in module.named_parameters(recurse=False)]


class Tape:
    """Hooks in a model in evaluation mode that keep what each layer got and gave."""

    def __init__(self, model: Model, layers: Layers) -> None:
        self.model, self.layers = model, layers
        self.calls: dict[str, list[_Call]] | None = None
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        model.requires_grad_(False)
        self.modules = {
            name: module
            for name, module in model.named_modules()
            if type(module) in RULES
            and any(f"{name}.{one}" in trainable for one, _ in module.named_parameters("", False))
        }
        covered = {f"{name}.{one}" for name, m in self.modules.items() for one, _ in m.named_parameters("", False)}
        self.odd = sorted(trainable - covered)
        self.handles = [module.register_forward_hook(self._hook(name)) for name, module in self.modules.items()]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def keep(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
            del module
            if self.calls is not None:
                output = result[0] if isinstance(result, tuple) else result
                if not output.requires_grad:
                    output.requires_grad_()  # nothing before it has a gradient: here the backward pass ends
                self.calls.setdefault(name, []).append(_Call(arguments[0].detach(), result, output))

        return keep

    @torch.enable_grad()
    def run(self, events: GraphBatch, y: Int[Tensor, "B"]) -> tuple[list[Part], Float[Tensor, "B"]]:
        """The gradient of the margin of class y of each event, in parts, and the margins."""
        self.calls = {}
        logits = self.model(events.x, events.mask, events.node_type).logits
        calls, self.calls = self.calls, None
        if self.layers == "last":
            name = next(name for name, found in reversed(calls.items()) if isinstance(self.modules[name], nn.Linear))
            calls = {name: calls[name]}
        every = [(name, call) for name, found in calls.items() for call in found]
        margin = margins(logits, y)
        deltas = torch.autograd.grad(
            margin.sum(), [call.output for _, call in every], allow_unused=True, materialize_grads=True
        )
        parts: dict[tuple[str, ...], Part] = {}
        with torch.no_grad():
            for (name, call), delta in zip(every, deltas, strict=True):
                module = self.modules[name]
                for part in RULES[type(module)](name, module, call, delta):
                    parts[part.names] = _joined(parts[part.names], part) if part.names in parts else part
        odd = self._one_by_one(self.odd, events, y) if self.layers == "all" else []
        return [*parts.values(), *odd], margin.detach()

    def _one_by_one(self, names: Sequence[str], events: GraphBatch, y: Int[Tensor, "B"]) -> list[Part]:
        """The gradients of some parameters by `vmap(grad)`."""
        if not names:
            return []
        known = dict(self.model.named_parameters())

        def margin(chosen: dict[str, Tensor], x: Tensor, mask: Tensor, node_type: Tensor, label: Tensor) -> Tensor:
            logits = functional_call(self.model, chosen, (x[None], mask[None], node_type[None])).logits
            return margins(logits, label[None])[0]

        chosen = {name: known[name].detach() for name in names}
        found = vmap(grad(margin), in_dims=(None, 0, 0, 0, 0))(chosen, events.x, events.mask, events.node_type, y)
        return [Plain((name,), values.flatten(1)) for name, values in found.items()]

    def close(self) -> None:
        """Take the hooks out."""
        for handle in self.handles:
            handle.remove()


@contextmanager
def taped(model: Model, weights: Path | None, layers: Layers = "all") -> Iterator[Tape]:
    """A tape in a copy of the model, with the weights of a file."""
    copy = deepcopy(model).eval()
    if weights is not None:
        load_snapshot(copy, weights)
    tape = Tape(copy, layers)
    try:
        yield tape
    finally:
        tape.close()


def margins(logits: Float[Tensor, "B C"], y: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Log-odds of class y of each event: its logit minus the log-sum-exp of the others."""
    own = y[:, None] == torch.arange(logits.shape[-1], device=y.device)
    others = torch.logsumexp(logits.masked_fill(own, -torch.inf), -1)
    return (logits * own).sum(-1) - others


class Reduce(Protocol):
    """What is kept of the parts of a gradient: k numbers per event."""

    def __call__(self, parts: Sequence[Part]) -> Float[Tensor, "b k"]: ...


def nothing(parts: Sequence[Part]) -> Float[Tensor, "b k"]:
    """Keep nothing but margin and squared norm."""
    first = parts[0].full() if isinstance(parts[0], Plain) else parts[0].x
    return first.new_zeros(len(first), 0)


def full(parts: Sequence[Part]) -> Float[Tensor, "b P"]:
    """All parameters side by side."""
    return torch.cat([part.full() for part in parts], 1)


class Sketch:
    """Random projection to `dim` numbers that keeps scalar products right on average.

    Each parameter is added, with a random sign, to one of the numbers (Weinberger et al., arXiv:0902.2206): the product
    of two sketches has the mean g·g' and a variance of about |g|²|g'|²/dim. The signs of a matrix are products of one
    per row and one per column, anew for every group of rows that are added up; so a sum of outer products is folded by
    one matrix product, and the gradient is never written down. Where a parameter goes is fixed by the order of the
    parts and the seed: sketches of one seed may be compared whenever they were made.
    """

    def __init__(self, dim: int, seed: int) -> None:
        self.dim, self.seed = dim, seed
        self.drawn: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, parts: Sequence[Part]) -> Float[Tensor, "b k"]:
        """Sketch of all parts together."""
        found: Tensor | None = None
        start = 0
        for number, part in enumerate(parts):
            values = self._outer(number, part) if isinstance(part, Outer) else self._fold(number, part.values)
            found = values.new_zeros(len(values), self.dim) if found is None else found
            first = min(values.shape[1], self.dim - start)  # parts lie one behind the other, and begin again at the end
            found[:, start : start + first] += values[:, :first]
            found[:, : values.shape[1] - first] += values[:, first:]
            start = (start + values.shape[1]) % self.dim
        assert found is not None
        return found

    def _signs(self, what: int, number: int, rows: int, columns: int, like: Tensor) -> Float[Tensor, "R C"]:
        """Signs of the part of this number; `what` tells apart those of values (0), rows (1) and columns (2)."""
        key = (what, number, rows, columns)
        if key not in self.drawn:
            draw = np.random.default_rng([self.seed, self.dim, *key]).integers(0, 2, (rows, columns))
            self.drawn[key] = torch.from_numpy(2.0 * draw - 1).to(like.device, like.dtype)
        return self.drawn[key]

    def _fold(self, number: int, values: Float[Tensor, "*b K"]) -> Float[Tensor, "*b k"]:
        """Values with signs, in at most `dim` sums."""
        groups = math.ceil(values.shape[-1] / self.dim)
        size = math.ceil(values.shape[-1] / groups)
        padded = functional.pad(values, (0, groups * size - values.shape[-1]))
        return (padded.unflatten(-1, (groups, size)) * self._signs(0, number, groups, size, values)).sum(-2)

    def _outer(self, number: int, part: Outer) -> Float[Tensor, "b k"]:
        """The sums over groups g of rows of the matrix: Σ_g (s_g ∘ δ_g) (t_g ∘ x)ᵀ, one product over g and r."""
        x = part.x if part.x.shape[2] <= self.dim else self._fold(number, part.x)
        _, rows, inputs = x.shape
        groups = math.ceil(part.delta.shape[2] / (self.dim // inputs))
        size = math.ceil(part.delta.shape[2] / groups)
        delta = functional.pad(part.delta, (0, groups * size - part.delta.shape[2])).unflatten(2, (groups, size))
        left = (
            (delta * self._signs(1, number, groups, size, x)).permute(0, 3, 2, 1).reshape(len(x), size, groups * rows)
        )
        right = x[:, None] * self._signs(2, number, groups, inputs, x)[:, None]
        return (left @ right.reshape(len(x), groups * rows, inputs)).flatten(1)


class Gradients(NamedTuple):
    """Of b events: what was kept of their gradients [b, k], margin [b], and squared norm [b] of the whole gradient."""

    values: Float[Tensor, "b k"]
    margin: Float[Tensor, "b"]
    squared_norm: Float[Tensor, "b"]

    @property
    def residual(self) -> Float[Tensor, "b"]:
        """1 − p of the class of the margin: minus the derivative of the loss."""
        return torch.sigmoid(-self.margin)


def gradients(
    tape: Tape, events: GraphBatch, y: Int[Tensor, "B"], keep: Reduce, advance: Advance = silent
) -> Gradients:
    """The gradients of some events, in passes of bounded size; on the CPU, float32."""
    device, found = next(tape.model.parameters()).device, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of models that draw in evaluation too
        for start in range(0, len(events), EVENTS_PER_PASS):
            part = slice(start, start + EVENTS_PER_PASS)
            parts, margin = tape.run(events[part].to(device), y[part].to(device))
            norm = torch.stack([one.squared_norm() for one in parts]).sum(0)
            found.append(Gradients(*(one.cpu() for one in (keep(parts), margin, norm))))
            advance(len(margin))
    return Gradients(*(torch.cat(columns) for columns in zip(*found, strict=True)))
