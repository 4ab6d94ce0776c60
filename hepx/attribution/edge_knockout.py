"""Edge knock-out: how much the score falls when two objects no longer receive anything from each other.

The attention weights in both directions are set to 0, the others are left as they are: in all layers and heads at once,
and in one head of one layer at a time (as in Amara et al., arXiv:2206.09677, for whole edges). An intervention inside
the network: it says which path is used, not which objects matter.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hepx.attribution.base import Method, Subject, chunks_of, event_table, in_chunks, scores
from hepx.attribution.edges import attention_shape, both_present
from hepx.models import Model
from hepx.results import Array, PairExplanation, Provenance


class EdgeKnockout(Method):
    """(L · H + 1) · N (N − 1) / 2 rows of the network per event."""

    method: Literal["edge_knockout"] = "edge_knockout"
    events: int = Field(default=500, ge=1)

    def explain(self, subject: Subject, provenance: Provenance) -> PairExplanation:
        """Values [B, N, N] (all layers and heads) and edges [B, L, H, N, N]; the untrained model as null."""
        found, null = (self._knock_out(model, subject) for model in (subject.model, subject.untrained))
        return PairExplanation(
            events=event_table(subject.graphs),
            values=found["values"],
            error=None,
            null=null["values"],
            edges=found["edges"],
            score=found["score"],
            unit="logit",
            provenance=provenance,
        )

    def _knock_out(self, model: Model, subject: Subject) -> dict[str, Array]:
        graphs = subject.graphs
        shape = attention_shape(model, graphs)
        gains, (first, second) = knock_outs(*shape[:3])
        present = both_present(subject)

        def compute(chosen: Tensor) -> dict[str, Tensor]:
            events = graphs[chosen]
            x = events.x[:, None].expand(-1, len(gains), -1, -1)
            gain = gains.expand(len(events), *gains.shape)
            score = scores(model, x, events.mask[:, None], events.node_type, subject.target, gain)
            falls = (score[:, :1] - score[:, 1:]).unflatten(1, (-1, len(first)))  # all heads, then head by head
            table = falls.new_zeros(*falls.shape[:2], *shape[2:])
            table[..., first, second] = table[..., second, first] = falls
            table = table * present[chosen][:, None]
            return {"values": table[:, 0], "edges": table[:, 1:].unflatten(1, shape[:2]), "score": score[:, 0]}

        parts = chunks_of(len(graphs), len(gains))
        return in_chunks(len(graphs), ((part, compute) for part in parts))


def knock_outs(layers: int, heads: int, nodes: int) -> tuple[Float[Tensor, "k L H N N"], Tensor]:
    """Factors of the attention: none changed, then every pair cut everywhere, then in each layer and head in turn; and
    the two nodes of each pair [2, pairs]."""
    pairs = torch.triu_indices(nodes, nodes, 1)
    first, second = pairs
    number = torch.arange(len(first))
    cut = torch.ones(len(first), nodes, nodes)
    cut[number, first, second] = cut[number, second, first] = 0.0
    everywhere = cut[:, None, None].expand(-1, layers, heads, -1, -1)
    each = torch.ones(layers, heads, len(first), layers, heads, nodes, nodes)
    for layer in range(layers):
        for head in range(heads):
            each[layer, head, :, layer, head] = cut
    return torch.cat([torch.ones_like(everywhere[:1]), everywhere, each.flatten(0, 2)]), pairs
