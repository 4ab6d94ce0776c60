"""Integrated gradients of raw features (pt, η, φ, mass, …), averaged over replacements.

Sundararajan et al., arXiv:1703.01365; averaging over baselines as in expected gradients (Erion et al.,
arXiv:1906.10670). The integral is taken with Gauss–Legendre nodes, 16 at first; only the paths on which the
attributions then miss the change of the score get four times as many, again and again. The expert choice of the
explained event is replayed on the whole path (`routing: fixed`): through switches of a top-k router the score jumps,
and no quadrature makes the attributions complete.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from hepx.attribution.base import Subject, event_table, mean_and_error
from hepx.attribution.baselines import Pattern, per_pattern
from hepx.attribution.gradients import ROWS, GatedMethod, Paths
from hepx.graph import GraphBatch
from hepx.results import Explanation, Provenance

FIRST_STEPS = 16


class IntegratedGradients(GatedMethod):
    """Path integrals from `draws` replacements to the event with at most `steps` Gauss–Legendre nodes.

    tolerance: a path is done when its attributions miss the change of the score by less than this share (of one logit
    for smaller changes). The result is refused when it does not add up (see GatedMethod).
    """

    method: Literal["integrated_gradients"] = "integrated_gradients"
    draws: int = Field(default=4, ge=2)
    steps: int = Field(default=256, ge=2)
    tolerance: float = Field(default=0.01, gt=0)

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N, F] with their standard error over the donors."""

        def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
            paths = Paths(self, subject, pattern, events)
            end, starts = paths.ends()
            change = end[:, None] - starts
            parts = self._integrate(paths, change.flatten())
            values, error = mean_and_error(parts)
            gap = (parts.sum((2, 3)) - change).abs().mean(1)
            found = {"values": values, "error": error, "score": end, "baseline_score": starts.mean(1)}
            return {**found, "completeness_error": gap}

        return Explanation(
            events=event_table(subject.graphs),
            **per_pattern(self, subject, lambda _: 4 * self.num_draws, compute),
            interactions=None,
            interactions_error=None,
            provenance=provenance,
        )

    def _integrate(self, paths: Paths, change: Float[Tensor, "R"]) -> Float[Tensor, "b K N F"]:
        """Attributions of every path; the number of nodes grows on those that are not complete."""
        attribution = torch.zeros(len(change), *paths.x.shape[1:], dtype=torch.float64)
        left, steps = torch.arange(len(change)), min(FIRST_STEPS, self.steps)
        while len(left):
            attribution[left] = path_integral(paths, left, steps)
            gap = (attribution[left].sum((1, 2)) - change[left]).abs()
            left = left[gap > self.tolerance * change[left].abs().clamp(min=1.0)]
            if steps >= self.steps:
                break
            steps = min(4 * steps, self.steps)
        return attribution.unflatten(0, (-1, paths.draws))

    def _reason(self) -> tuple[str, str]:
        if self.routing == "free":
            why = "the score jumps wherever a path crosses a change of experts, which no gradient sees (routing: free)"
            return why, "Use routing: fixed, or a model with gates: margin or soft"
        why = f"{self.steps} nodes do not resolve the score on every path"
        return why, f"Use more than {self.steps} steps (routing: free for a model with gates: margin)"


def path_integral(paths: Paths, chosen: Int[Tensor, "r"], steps: int) -> Float[Tensor, "r N F"]:
    """∫ ∂score/∂x dα · (x − x′) with Gauss–Legendre nodes on the chosen paths (event · K + draw), float64."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    alpha = torch.from_numpy((nodes + 1) / 2).to(paths.x)[:, None, None]
    weight = torch.from_numpy(weights / 2)[:, None, None]
    parts = []
    for part in chosen.split(max(1, ROWS // steps)):
        event = part // paths.draws
        start = paths.start.flatten(0, 1)[part]
        difference = paths.x[event] - start
        slope = paths.gradient(start[:, None] + alpha * difference[:, None], event)
        parts.append((weight * slope).sum(1) * difference.double().cpu())
    return torch.cat(parts)
