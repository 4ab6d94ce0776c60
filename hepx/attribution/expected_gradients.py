"""Expected gradients: integrated gradients with the path and the replacement drawn together.

E over x′ and α of (x − x′) · ∂score/∂x at x′ + α (x − x′) (Erion et al., arXiv:1906.10670): one gradient per
replacement instead of a whole path each, so many replacements can be afforded. The points α of an event lie in equal
slices of the path, one in each, which makes the error smaller than the one quoted, that of independent draws.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hepx import random
from hepx.attribution.base import Subject, event_table
from hepx.attribution.baselines import Pattern, per_pattern
from hepx.attribution.gradients import PathMethod, Paths
from hepx.graph import GraphBatch
from hepx.results import Explanation, Provenance


class ExpectedGradients(PathMethod):
    """`draws` gradients per event; the completeness error is that of the finite number of them."""

    method: Literal["expected_gradients"] = "expected_gradients"
    draws: int = Field(default=64, ge=2)

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N, F] with their standard error over the draws and the measured completeness error."""

        def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
            paths = Paths(self, subject, pattern, events)
            inside = torch.from_numpy(random.uniform(subject.seed, events.event_id.numpy(), "alpha", paths.draws))
            alpha = ((torch.arange(paths.draws) + inside) / paths.draws).to(paths.x)[..., None, None]
            difference = paths.x[:, None] - paths.start
            return paths.summary(difference.cpu() * paths.gradient(paths.start + alpha * difference))

        return Explanation(
            events=event_table(subject.graphs),
            **per_pattern(self, subject, lambda _: 2 * self.num_draws, compute),
            interactions=None,
            interactions_error=None,
            unit="logit",
            provenance=provenance,
        )
