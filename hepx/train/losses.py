"""Losses of the router, functions of the Trace: Switch balance loss (arXiv:2101.03961 eq. 4), squared coefficient of
variation (arXiv:1701.06538 eq. 11), router z-loss (arXiv:2202.08906 eq. 5), and loss-free balancing (arXiv:2408.15664),
which moves a bias of the expert choice instead; and what enters the loss of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hepx.errors import DataError
from hepx.graph import GraphBatch
from hepx.models import Model, Trace
from hepx.models.layers import MixtureOfExperts

Weights = Literal["physics", "sign", "none"]
Total = Callable[[Tensor], Tensor]  # from a sum over this process's events to the sum over those of all processes


def training_weights(graphs: GraphBatch, mode: Weights = "physics") -> Float[Tensor, "B"]:
    """Weights of the loss: every class has the same total and the mean is 1; signs are kept. `none`: all are 1.

    Raises DataError if a class has no positive total.
    """
    return loss_weights(graphs, class_scale([graphs], mode), mode)


def class_scale(parts: Iterable[GraphBatch], mode: Weights = "physics") -> Float[Tensor, "C"]:
    """The factors of the classes in `training_weights`, for events that come part by part."""
    totals, num_events = torch.zeros(0, dtype=torch.float64), 0
    for graphs in parts:
        if num_events == 0:
            totals = torch.zeros(graphs.layout.num_classes, dtype=torch.float64)
        totals.index_add_(0, graphs.y, _weight(graphs, mode))
        num_events += len(graphs)
    if mode == "none":
        return torch.ones_like(totals)
    if (totals <= 0).any():
        label = int(torch.argmin(totals))
        raise DataError(
            f"class {label} has a total training weight of {float(totals[label]):g}; expected a positive number. "
            "Add events of this class, or use train.weights=sign."
        )
    return num_events / (len(totals) * totals)


def loss_weights(graphs: GraphBatch, scale: Float[Tensor, "C"], mode: Weights) -> Float[Tensor, "B"]:
    """Weights of some events in the loss, from the factors of their classes."""
    return _weight(graphs, mode) * scale[graphs.y]


def _weight(graphs: GraphBatch, mode: Weights) -> Float[Tensor, "B"]:
    if mode == "none":
        return torch.ones_like(graphs.weight)
    return graphs.weight if mode == "physics" else torch.sign(graphs.weight)


def _alone(value: Tensor) -> Tensor:
    return value


def balance_loss(trace: Trace, mask: Bool[Tensor, "B N"], total: Total = _alone) -> Float[Tensor, ""]:
    """Switch loss X·Σ_e f_e p_e, mean over layers: f_e share of the choices, p_e mean router probability; 1 is even."""
    node = mask[:, None, :, None].to(trace.gates.dtype)
    chosen = total(((trace.gates > 0).to(trace.gates.dtype) * node).sum((0, 2)))
    share = chosen / chosen.sum(-1, keepdim=True).clamp(min=1)
    probability = total((torch.softmax(trace.router_logits, -1) * node).sum((0, 2))) / total(node.sum()).clamp(min=1)
    return trace.gates.shape[-1] * (share * probability).sum(-1).mean()


def cv2_loss(trace: Trace, mask: Bool[Tensor, "B N"], total: Total = _alone) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the experts' loads, mean over layers; 0 is even, X is all on one expert.

    The load is the sum over nodes of the smooth load where the router has noise of its own, else of the gates.
    """
    used = trace.gates if trace.load is None else trace.load
    load = total((used * mask[:, None, :, None]).sum((0, 2)))
    if load.shape[-1] == 1:
        return load.new_zeros(())
    return (load.var(-1) / (load.mean(-1) ** 2).clamp(min=1e-12)).mean()


BALANCE_LOSSES = {"switch": balance_loss, "cv2": cv2_loss}


def z_loss(trace: Trace, mask: Bool[Tensor, "B N"], total: Total = _alone) -> Float[Tensor, ""]:
    """Mean squared log-sum-exp of the router logits: keeps them small and the gates smooth."""
    node = mask[:, None, :].expand(trace.router_logits.shape[:-1]).to(trace.router_logits.dtype)
    return total((torch.logsumexp(trace.router_logits, -1) ** 2 * node).sum()) / total(node.sum()).clamp(min=1)


@torch.no_grad()
def update_selection_bias(
    model: Model, trace: Trace, mask: Bool[Tensor, "B N"], rate: float, total: Total = _alone
) -> None:
    """Loss-free balancing: raise the bias of experts used less than average, lower the others'; frozen ones keep it."""
    load = total(((trace.gates > 0) & mask[:, None, :, None]).sum((0, 2)).float())
    step = rate * torch.sign(load.mean(-1, keepdim=True) - load)
    for layer, moe in enumerate(module for module in model.modules() if isinstance(module, MixtureOfExperts)):
        if moe.router.weight.requires_grad:
            moe.selection_bias += step[layer]


def hide_objects(mask: Bool[Tensor, "B N"], fraction: float, uniform: Float[Tensor, "B N+2"]) -> Bool[Tensor, "B N"]:
    """The mask with a random subset of the objects hidden in about `fraction` of the events: each object of such an
    event stays with one probability, drawn flat per event, so that every number of objects is equally likely.

    `uniform` are independent numbers from [0, 1).
    """
    affected, keep = uniform[:, :1] < fraction, uniform[:, 1:2]
    return mask & ~(affected & (uniform[:, 2:] > keep))
