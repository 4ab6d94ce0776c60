"""The rescale rule of DeepLIFT for any network of tensor operations: slopes between two inputs instead of at one.

Shrikumar et al., arXiv:1704.02685. Events and replacements go through the network side by side (first and second half
of every batch). Inside the block every operation keeps its value, but its gradient becomes the slope Δy / Δz between
the two halves: a nonlinear function its secant, a product the mean of both halves of the other factor, a quotient,
softmax and layer norm what follows from these. Gradients then multiply up to slopes of the whole network, and slope
times input difference adds up to the difference of the score. An operation that is neither linear nor named here keeps
its ordinary gradient; what this misses shows in the completeness error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SMALL = 1e-6  # a difference, relative to the value, below which a secant is rounding noise: the derivative is used


def swapped(values: Tensor) -> Tensor:
    """The two halves in each other's place."""
    return values.roll(len(values) // 2, 0)


def unary(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """function(z) with the secant between the halves as its gradient."""
    middle = ((z + swapped(z)) / 2).detach().requires_grad_()
    with torch.enable_grad():
        derivative = torch.autograd.grad(function(middle).sum(), middle)[0]
    with torch.no_grad():
        value = function(z)
        change = z - swapped(z)
        far = change.abs() > SMALL * (1 + z.abs() + swapped(z).abs())
        slope = torch.where(far, (value - swapped(value)) / torch.where(far, change, 1.0), derivative)
    return value + slope * torch.where(z.isfinite(), z - z.detach(), 0.0)  # exp of a score that is masked by −∞


def bilinear(function: Callable[[Tensor, Tensor], Tensor], a: Any, b: Any) -> Tensor:
    """function(a, b), linear in both, with each factor's gradient taken at the mean of the other's halves."""
    first, second = (isinstance(v, Tensor) and v.requires_grad for v in (a, b))
    if not (first and second):
        return function(a, b)
    mean_a, mean_b = ((v + swapped(v)).detach() / 2 for v in (a, b))
    value = function(a.detach(), b.detach())
    return value + function(a - a.detach(), mean_b) + function(mean_a, b - b.detach())


def multiply(a: Any, b: Any) -> Tensor:
    """Product of two tensors, or of a tensor and a number."""
    return bilinear(lambda u, v: u * v, a, b)


def divide(a: Any, b: Any) -> Tensor:
    """Quotient; a number or a constant below needs no rule."""
    if not (isinstance(b, Tensor) and b.requires_grad):
        return a / b
    return multiply(a, unary(torch.reciprocal, b))


def softmax(scores: Tensor, dim: int = -1, **_: Any) -> Tensor:
    """exp / Σ exp, shifted by the same constant in both halves."""
    shift = torch.maximum(scores, swapped(scores)).detach().amax(dim, keepdim=True)
    weight = unary(torch.exp, scores - shift)
    return divide(weight, weight.sum(dim, keepdim=True))


def logsumexp(values: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """ln Σ exp, shifted likewise; of a single value, the value."""
    if values.shape[dim] == 1:
        return values.sum(dim, keepdim=keepdim)
    shift = torch.maximum(values, swapped(values)).detach().amax(dim, keepdim=True)
    total = unary(torch.log, unary(torch.exp, values - shift).sum(dim, keepdim=True)) + shift
    return total if keepdim else total.squeeze(dim)


def layer_norm(
    z: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(z − mean) / √(variance + ε), then scale and shift."""
    axes = tuple(range(-len(normalized_shape), 0))
    centred = z - z.mean(axes, keepdim=True)
    variance = unary(torch.square, centred).mean(axes, keepdim=True)
    found = multiply(centred, unary(torch.rsqrt, variance + eps))
    found = found if weight is None else found * weight
    return found if bias is None else found + bias


def minimum(a: Tensor, b: Tensor) -> Tensor:
    """(a + b − |a − b|) / 2."""
    return (a + b - unary(torch.abs, a - b)) / 2


SPECIAL: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("mul", "__mul__", "__rmul__", "multiply"), multiply),
    **dict.fromkeys(("matmul", "__matmul__", "bmm", "mm"), lambda a, b: bilinear(torch.matmul, a, b)),
    **dict.fromkeys(("div", "__truediv__", "true_divide"), divide),
    "__rdiv__": lambda a, b: divide(b, a),
    "__rtruediv__": lambda a, b: divide(b, a),
    "reciprocal": lambda z: unary(torch.reciprocal, z),
    "softmax": softmax,
    "logsumexp": logsumexp,
    "layer_norm": lambda *arguments, **options: layer_norm(
        *arguments, **{k: v for k, v in options.items() if k != "cudnn_enable"}
    ),
    "minimum": minimum,
    "detach": lambda z: torch.maximum(z, swapped(z)).detach(),  # the shift of a softmax: one constant for both halves
}
"""Name of an operation -> its rule. A product's constant factor may stand on either side."""
UNARY = frozenset(
    (
        *("abs", "celu", "clamp", "cos", "cosh", "elu", "erf", "exp", "expm1", "gelu", "hardtanh", "leaky_relu", "log"),
        *("log1p", "mish", "pow", "__pow__", "relu", "rsqrt", "round", "selu", "sigmoid", "silu", "sin", "sinh"),
        *("softplus", "sqrt", "square", "tan", "tanh"),
    )
)
"""Names of operations on each number."""


class Rescale(TorchFunctionMode):
    """Inside this block gradients are slopes between the two halves of the batch."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace an operation on something that depends on the input by its rule."""
        del types
        options, name = kwargs or {}, getattr(func, "__name__", "")
        depends = any(isinstance(value, Tensor) and value.requires_grad for value in (*args, *options.values()))
        if not depends or not torch.is_grad_enabled():
            return func(*args, **options)
        if name in SPECIAL:
            return SPECIAL[name](*args, **options)
        if name in UNARY:
            return unary(lambda z: func(z, *args[1:], **options), args[0])
        return func(*args, **options)
