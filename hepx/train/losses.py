"""Losses of the router, functions of the Trace: Switch balance loss (arXiv:2101.03961 eq. 4), squared coefficient of
variation (arXiv:1701.06538 eq. 11), router z-loss (arXiv:2202.08906 eq. 5), and loss-free balancing (arXiv:2408.15664),
which moves a bias of the expert choice instead; and what enters the loss of the task.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hepx.errors import DataError
from hepx.graph import GraphBatch
from hepx.models import Model, Trace
from hepx.models.layers import MixtureOfExperts


def training_weights(graphs: GraphBatch, mode: Literal["physics", "sign"] = "physics") -> Float[Tensor, "B"]:
    """Weights of the loss: every class has the same total and the mean is 1; signs are kept.

    Raises DataError if a class has no positive total.
    """
    weight = graphs.weight if mode == "physics" else torch.sign(graphs.weight)
    num_classes = graphs.layout.num_classes
    totals = torch.zeros(num_classes, dtype=weight.dtype).index_add(0, graphs.y, weight)
    if (totals <= 0).any():
        label = int(torch.argmin(totals))
        raise DataError(
            f"class {label} has a total training weight of {float(totals[label]):g}; expected a positive number. "
            "Add events of this class, or use train.weights=sign."
        )
    return weight * len(graphs) / (num_classes * totals[graphs.y])


def balance_loss(trace: Trace, mask: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Switch loss X·Σ_e f_e p_e, mean over layers: f_e share of the choices, p_e mean router probability; 1 is even."""
    node = mask[:, None, :, None].to(trace.gates.dtype)
    chosen = (trace.gates > 0).to(trace.gates.dtype) * node
    share = chosen.sum((0, 2)) / chosen.sum((0, 2, 3)).clamp(min=1)[:, None]
    probability = (torch.softmax(trace.router_logits, -1) * node).sum((0, 2)) / node.sum().clamp(min=1)
    return trace.gates.shape[-1] * (share * probability).sum(-1).mean()


def cv2_loss(trace: Trace, mask: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the experts' loads, mean over layers; 0 is even, X is all on one expert.

    The load is the sum over nodes of the smooth load where the router has noise of its own, else of the gates.
    """
    used = trace.gates if trace.load is None else trace.load
    load = (used * mask[:, None, :, None]).sum((0, 2))
    if load.shape[-1] == 1:
        return load.new_zeros(())
    return (load.var(-1) / (load.mean(-1) ** 2).clamp(min=1e-12)).mean()


BALANCE_LOSSES = {"switch": balance_loss, "cv2": cv2_loss}


def z_loss(trace: Trace, mask: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Mean squared log-sum-exp of the router logits: keeps them small and the gates smooth."""
    node = mask[:, None, :].expand(trace.router_logits.shape[:-1])
    return (torch.logsumexp(trace.router_logits, -1) ** 2 * node).sum() / node.sum().clamp(min=1)


@torch.no_grad()
def update_selection_bias(model: Model, trace: Trace, mask: Bool[Tensor, "B N"], rate: float) -> None:
    """Loss-free balancing: raise the bias of experts used less than average, lower the others'."""
    load = ((trace.gates > 0) & mask[:, None, :, None]).sum((0, 2)).float()
    step = rate * torch.sign(load.mean(-1, keepdim=True) - load)
    for layer, moe in enumerate(module for module in model.modules() if isinstance(module, MixtureOfExperts)):
        moe.selection_bias += step[layer]


def hide_objects(
    mask: Bool[Tensor, "B N"], fraction: float, generator: torch.Generator | None = None
) -> Bool[Tensor, "B N"]:
    """The mask with a random subset of the objects hidden in about `fraction` of the events: each object of such an
    event stays with one probability, drawn flat per event, so that every number of objects is equally likely."""
    affected = torch.rand(mask.shape[0], 1, generator=generator) < fraction
    keep = torch.rand(mask.shape[0], 1, generator=generator)
    hidden = affected & (torch.rand(mask.shape, generator=generator) > keep)
    return mask & ~hidden.to(mask.device)
