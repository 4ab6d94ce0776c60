"""GradientSHAP: expected gradients of an event with small random changes.

(x + noise − x′) · ∂score/∂x at x′ + α (x + noise − x′) with independent α, noise and replacement, as captum's
GradientShap (Lundberg & Lee, arXiv:1705.07874), but with random numbers that belong to the event (captum's come from a
global state, so that a result would depend on the batch).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hepx import random
from hepx.attribution.base import Subject, event_table
from hepx.attribution.baselines import Pattern, per_pattern
from hepx.attribution.gradients import PathMethod, Paths, spreads
from hepx.attribution.smooth_grad import noise
from hepx.graph import GraphBatch
from hepx.results import Explanation, Provenance


class GradientShap(PathMethod):
    """`draws` gradients per event; noise: in units of the spread of the feature among the baseline events."""

    method: Literal["gradient_shap"] = "gradient_shap"
    draws: int = Field(default=64, ge=2)
    noise: float = Field(default=0.1, ge=0)

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N, F] with their standard error over the draws and the measured completeness error."""
        unit = self.noise * spreads(subject.baseline)

        def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
            paths = Paths(self, subject, pattern, events)
            alpha = torch.from_numpy(random.uniform(subject.seed, events.event_id.numpy(), "alpha", paths.draws))
            changes = noise(events, paths.draws, subject.seed) * unit
            difference = (paths.x[:, None] + changes.to(paths.x) - paths.start) * paths.extra[0][:, None, :, None]
            slope = paths.gradient(paths.start + alpha.to(paths.x)[..., None, None] * difference)
            return paths.summary(difference.cpu() * slope)

        return Explanation(
            events=event_table(subject.graphs),
            **per_pattern(self, subject, lambda _: 2 * self.num_draws, compute),
            interactions=None,
            interactions_error=None,
            unit="logit",
            provenance=provenance,
        )
