"""Saliency: the size of the gradient of the score, in logits per standard deviation of each feature.

Simonyan et al., arXiv:1312.6034, through captum. It has no sign and compares with nothing, so it adds up to nothing:
there is no completeness error; beside it stands the same for the untrained model.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hepx.attribution.base import ROW_GROUP, Method, Subject, chunks_of, event_table, from_blocks, in_blocks, in_chunks
from hepx.attribution.gradients import PER_SPREAD, ROWS, fixed_routing, repeated, score_function, spreads
from hepx.graph import GraphBatch
from hepx.models import Model
from hepx.results import Array, Explanation, Provenance


class Saliency(Method):
    """|∂score/∂feature| times the spread of the feature among the baseline events."""

    needs_gradients: ClassVar[bool] = True
    method: Literal["saliency"] = "saliency"
    events: int = Field(default=500, ge=1)

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N, F] ≥ 0, and the same of the untrained model as null."""
        unit = spreads(subject.baseline)

        def values(model: Model) -> dict[str, Array]:
            def compute(chosen: Tensor) -> dict[str, Tensor]:
                events = subject.graphs[chosen]
                slope, score = sensitivity(model, events.x[:, None], events, subject.target)
                return {"values": slope[:, 0] * unit, "score": score}

            parts = chunks_of(len(subject.graphs), 2 * ROW_GROUP)
            return in_chunks(len(subject.graphs), ((part, compute) for part in parts))

        found = values(subject.model)
        return Explanation(
            events=event_table(subject.graphs),
            values=found["values"],
            error=None,
            score=found["score"],
            baseline_score=None,
            completeness_error=None,
            interactions=None,
            interactions_error=None,
            unit=PER_SPREAD,
            provenance=provenance,
            null=values(subject.untrained)["values"],
        )


def sensitivity(
    model: Model, x: Float[Tensor, "b k N F"], events: GraphBatch, target: int
) -> tuple[Float[Tensor, "b k N F"], Float[Tensor, "b"]]:
    """|∂score/∂x| at k variants of each event, 0 where absent, and the score of the event.

    The routing of the event is replayed: the gradient does not see a change of experts anyway.
    """
    from captum.attr import Saliency as CaptumSaliency  # slow

    model.eval()
    device = next(model.parameters()).device
    plain, mask, kinds = (tensor.to(device) for tensor in (events.x, events.mask, events.node_type))
    score, rows = score_function(model, target), in_blocks(torch.cat([plain[:, None], x.to(device)], 1))
    extra = repeated((mask, kinds, *fixed_routing(model, plain, mask, kinds)), len(rows))
    slopes, values = [], []
    for start in range(0, len(rows), ROWS):
        inputs, *arguments = (tensor[start : start + ROWS] for tensor in (rows, *extra))
        slopes.append(
            CaptumSaliency(score).attribute(inputs.requires_grad_(), additional_forward_args=tuple(arguments))
        )
        with torch.no_grad():
            values.append(score(inputs, *arguments))
    shape = (len(x), 1 + x.shape[1])
    slope = from_blocks(torch.cat(slopes), shape)[:, 1:].detach().cpu()
    return slope * events.mask[:, None, :, None], from_blocks(torch.cat(values), shape)[:, 0].cpu()
