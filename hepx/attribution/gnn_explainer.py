"""GNNExplainer: a mask on the edges, learned per event, that keeps the prediction with as few edges as possible.

Ying et al., arXiv:1903.03894, with the loss and the coefficients of torch_geometric (tests compare the two), all events
and restarts at once. A baseline, not a recommendation: on a complete graph many masks keep the prediction equally well,
so it is started several times from random masks, and the spread of the results stands beside their mean. The mask has
no sign and is no share of the score: its unit is that of the mask, 0 to 1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hepx import random
from hepx.attribution.base import ROW_GROUP, Method, Subject, event_table, from_blocks, in_blocks, in_chunks
from hepx.attribution.edges import attention_shape, both_present, symmetric
from hepx.attribution.gradients import repeated
from hepx.graph import GraphBatch
from hepx.models import Model, log_odds
from hepx.results import PairExplanation, Provenance

EDGE_SIZE, EDGE_ENTROPY = 0.005, 1.0  # weights of the sum of the mask and of its mean entropy, of torch_geometric
SMALL = 1e-15
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam


class GNNExplainer(Method):
    """`restarts` masks per event, each found in `epochs` steps of Adam with step size `lr`."""

    needs_gradients: ClassVar[bool] = True
    method: Literal["gnn_explainer"] = "gnn_explainer"
    restarts: int = Field(default=16, ge=2)
    epochs: int = Field(default=100, ge=1)
    lr: float = Field(default=0.01, gt=0)
    events: int = Field(default=100, ge=1)

    def explain(self, subject: Subject, provenance: Provenance) -> PairExplanation:
        """Values [B, N, N], the mean mask of both directions; error: standard deviation over the restarts."""
        graphs, model = subject.graphs, subject.model.eval()
        present = both_present(subject)
        shape = attention_shape(model, graphs)
        size = max(1, 2048 // (-(-self.restarts // ROW_GROUP) * ROW_GROUP))

        def compute(chosen: Tensor) -> dict[str, Tensor]:
            events = graphs[chosen]
            start = starting_masks(events, self.restarts, subject.seed)
            mask, score = learn_masks(
                model, events, start, present[chosen], shape, subject.target, self.epochs, self.lr
            )
            both = symmetric(mask.double()) / 2
            return {"values": both.mean(1), "error": both.std(1), "score": score}

        found = in_chunks(len(graphs), ((part, compute) for part in torch.arange(len(graphs)).split(size)))
        return PairExplanation(
            events=event_table(graphs),
            **found,
            null=None,
            edges=None,
            unit="mask",
            provenance=provenance,
        )


def starting_masks(events: GraphBatch, restarts: int, seed: int) -> Float[Tensor, "b R N N"]:
    """Normal numbers of the width torch_geometric starts from, √2 · √(2 / (2 n)); they belong to event and slots."""
    slots, ids = events.layout.slots, events.event_id.numpy()
    rows = [[torch.from_numpy(random.uniform(seed, ids, f"mask {a} {b}", restarts)) for b in slots] for a in slots]
    inside = torch.stack([torch.stack(row, -1) for row in rows], -2) + 2.0**-54
    width = (2 / events.mask.sum(1).clamp(min=1)).sqrt()
    return (torch.special.ndtri(inside) * width[:, None, None, None]).float()


def learn_masks(
    model: Model,
    events: GraphBatch,
    start: Float[Tensor, "b R N N"],
    present: Tensor,
    shape: tuple[int, ...],
    target: int,
    epochs: int,
    lr: float,
) -> tuple[Float[Tensor, "b R N N"], Float[Tensor, "b"]]:
    """Masks after training, 0 where there is no edge, and the score of the events.

    Loss: −ln p of the class the model predicts + 0.005 Σ m + mean entropy of m, over the edges that the first gradient
    says are used. Every row has its own loss, so no row sees another.
    """
    device = next(model.parameters()).device
    rows, edges = in_blocks(start).to(device), present.to(device)
    extra = (events.x, events.mask, events.node_type)
    x, mask, kinds = repeated(tuple(tensor.to(device) for tensor in extra), len(rows))
    edge = repeated((edges,), len(rows))[0]
    with torch.no_grad():
        logits = model(x, mask, kinds).logits
    label, score = logits.argmax(-1), log_odds(logits, target)
    first, second = torch.zeros_like(rows), torch.zeros_like(rows)
    used = edge
    for step in range(1, epochs + 1):
        rows.requires_grad_()
        loss = _loss(model, (x, mask, kinds), rows, edge, used, label, shape, first_step=step == 1)
        slope = torch.autograd.grad(loss, rows)[0]
        if step == 1:
            used = edge & (slope != 0)
        first = BETAS[0] * first + (1 - BETAS[0]) * slope
        second = BETAS[1] * second + (1 - BETAS[1]) * slope**2
        width = (second / (1 - BETAS[1] ** step)).sqrt() + EPSILON
        rows = rows.detach() - lr * first / (1 - BETAS[0] ** step) / width
    found = rows.sigmoid() * used
    b = (len(start), start.shape[1])
    return from_blocks(found, b).cpu(), from_blocks(score, b)[:, 0].cpu()


def _loss(
    model: Model,
    inputs: tuple[Tensor, Tensor, Tensor],
    rows: Tensor,
    edge: Tensor,
    used: Tensor,
    label: Tensor,
    shape: tuple[int, ...],
    first_step: bool,
) -> Tensor:
    """Sum of the losses of the rows; self-loops are kept. In the first step there are no regularisers yet."""
    kept = torch.where(edge, rows.sigmoid(), torch.ones_like(rows))
    gain = kept[:, None, None].expand(-1, *shape)
    loss = torch.nn.functional.cross_entropy(model(*inputs, gain=gain).logits, label, reduction="sum")
    if first_step:
        return loss
    m, number = rows.sigmoid(), used.sum((1, 2)).clamp(min=1)
    entropy = -m * torch.log(m + SMALL) - (1 - m) * torch.log(1 - m + SMALL)
    return loss + (EDGE_SIZE * (m * used).sum((1, 2)) + EDGE_ENTROPY * (entropy * used).sum((1, 2)) / number).sum()
