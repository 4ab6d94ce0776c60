"""Attention × gradient: what the score gains, to first order, from each attention weight, A · ∂score/∂A.

Barkan et al. (Grad-SAM, arXiv:2204.11073) and Chefer et al., arXiv:2012.09838. For an edge: the sum of its size over
layers and heads, both directions. Sizes do not add up to the score, so there is no completeness error.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hepx.attribution.base import (
    ROW_GROUP,
    Method,
    Subject,
    chunks_of,
    event_table,
    from_blocks,
    in_blocks,
    in_chunks,
)
from hepx.attribution.edges import attention_shape, both_present, symmetric
from hepx.attribution.gradients import repeated
from hepx.models import Model, log_odds
from hepx.results import Array, PairExplanation, Provenance


class GradientAttention(Method):
    """One gradient per event."""

    needs_gradients: ClassVar[bool] = True
    method: Literal["gradient_attention"] = "gradient_attention"
    events: int = Field(default=500, ge=1)

    def explain(self, subject: Subject, provenance: Provenance) -> PairExplanation:
        """Values [B, N, N] ≥ 0 and signed edges [B, L, H, N, N] in logits; the untrained model as null."""
        found, null = (self._products(model, subject) for model in (subject.model, subject.untrained))
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

    def _products(self, model: Model, subject: Subject) -> dict[str, Array]:
        shape, present = attention_shape(model, subject.graphs), both_present(subject)
        device = next(model.parameters()).device

        def compute(chosen: Tensor) -> dict[str, Tensor]:
            events = subject.graphs[chosen]
            x = in_blocks(events.x[:, None]).to(device)
            mask, kinds = repeated((events.mask.to(device), events.node_type.to(device)), len(x))
            gain = torch.ones(len(x), *shape, device=device, requires_grad=True)
            score = log_odds(model.eval()(x, mask, kinds, gain=gain).logits, subject.target)
            product = torch.autograd.grad(score.sum(), gain)[0]  # at gain 1 this is A · ∂score/∂A
            product = from_blocks(product, (len(chosen), 1))[:, 0].double().cpu() * present[chosen][:, None, None]
            score = from_blocks(score.detach(), (len(chosen), 1))[:, 0]
            size = symmetric(product.abs().sum((1, 2)))
            return {"values": size, "edges": symmetric(product), "score": score}

        parts = chunks_of(len(subject.graphs), 2 * ROW_GROUP)
        return in_chunks(len(subject.graphs), ((part, compute) for part in parts))
