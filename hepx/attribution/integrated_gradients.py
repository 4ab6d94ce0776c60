"""Integrated gradients of raw features (pt, η, φ, mass, …), averaged over replacements.

Sundararajan et al., arXiv:1703.01365; averaging over baselines as in expected gradients (Erion et al.,
arXiv:1906.10670). The integral is taken piece by piece: first the whole path with 15 Gauss–Legendre nodes; a
piece whose attributions miss the change of the score along it is halved, again and again, so that nodes go where the
score has a kink (objects that pass one another, expert activations). The middle node is the midpoint, so the change
along the halves is known without further evaluations. The expert choice of the explained event is replayed on the whole
path (`routing: fixed`): through switches of a top-k router the score jumps, and no quadrature makes the attributions
complete.
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

NODES = 15  # of a piece; odd, and with one row to spare in the blocks of the score


class IntegratedGradients(GatedMethod):
    """Path integrals from `draws` replacements to the event; pieces are never denser than `steps` nodes on the path.

    tolerance: a piece is done when its attributions miss the change of the score along it by less than this share of
    the change along the path (of one logit for smaller changes) times the root of its length. The result is refused
    when it does not add up (see GatedMethod).
    """

    method: Literal["integrated_gradients"] = "integrated_gradients"
    draws: int = Field(default=4, ge=2)
    steps: int = Field(default=1024, ge=2)
    tolerance: float = Field(default=0.01, gt=0)

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N, F] with their standard error over the donors."""

        def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
            paths = Paths(self, subject, pattern, events)
            end, starts = paths.ends()
            change = end[:, None] - starts
            parts = self._integrate(paths, starts.flatten(), end.repeat_interleave(paths.draws))
            values, error = mean_and_error(parts)
            gap = (parts.sum((2, 3)) - change).abs().mean(1)
            found = {"values": values, "error": error, "score": end, "baseline_score": starts.mean(1)}
            return {**found, "completeness_error": gap}

        return Explanation(
            events=event_table(subject.graphs),
            **per_pattern(self, subject, lambda _: 4 * self.num_draws, compute),
            interactions=None,
            interactions_error=None,
            unit="logit",
            provenance=provenance,
        )

    def _integrate(self, paths: Paths, first: Float[Tensor, "R"], last: Float[Tensor, "R"]) -> Float[Tensor, "b K N F"]:
        """Attributions of every path, given the scores at its ends; pieces that are not complete are halved."""
        total = torch.zeros(len(first), *paths.x.shape[1:], dtype=torch.float64)
        allowed = self.tolerance * (last - first).abs().clamp(min=1.0)
        path, width, low = torch.arange(len(first)), 1.0, torch.zeros_like(first)
        while len(path):
            values, middle = piece_integral(paths, path, low, width, min(NODES, self.steps))
            gap = (values.sum((1, 2)) - (last - first)).abs()
            open_ = (gap > allowed[path] * width**0.5) & (self.steps * width >= 2 * NODES)
            total.index_add_(0, path[~open_], values[~open_])
            path, low, first, middle, last = (v[open_] for v in (path, low, first, middle, last))
            width /= 2
            path, low = torch.cat([path, path]), torch.cat([low, low + width])
            first, last = torch.cat([first, middle]), torch.cat([middle, last])
        return total.unflatten(0, (-1, paths.draws))

    def _reason(self) -> tuple[str, str]:
        if self.routing == "free":
            why = "the score jumps wherever a path crosses a change of experts, which no gradient sees (routing: free)"
            return why, "Use routing: fixed, or a model with gates: margin or soft"
        why = f"{self.steps} nodes do not resolve the score on every path"
        return why, f"Use more than {self.steps} steps (routing: free for a model with gates: margin)"


def piece_integral(
    paths: Paths, path: Int[Tensor, "r"], low: Float[Tensor, "r"], width: float, nodes: int
) -> tuple[Float[Tensor, "r N F"], Float[Tensor, "r"]]:
    """∫ ∂score/∂x dα · (x − x′) over [low, low + width] of some paths (event · K + draw) with Gauss–Legendre nodes, and
    the score at the middle node, which is the midpoint for an odd number; float64."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    alpha = low[:, None] + width * torch.from_numpy((places + 1) / 2)
    weight = width * torch.from_numpy(weights / 2)[:, None, None]
    parts, middles = [], []
    for index in torch.arange(len(path)).split(max(1, ROWS // nodes)):
        event = path[index] // paths.draws
        start = paths.start.flatten(0, 1)[path[index]]
        difference = paths.x[event] - start
        points = start[:, None] + alpha[index].to(start)[..., None, None] * difference[:, None]
        slope, score = paths.slopes(points, event)
        parts.append((weight * slope).sum(1) * difference.double().cpu())
        middles.append(score[:, nodes // 2])
    return torch.cat(parts), torch.cat(middles)


def path_integral(paths: Paths, path: Int[Tensor, "r"], nodes: int) -> Float[Tensor, "r N F"]:
    """The same over whole paths with as many nodes on each: the plain rule."""
    return piece_integral(paths, path, torch.zeros(len(path), dtype=torch.float64), 1.0, nodes)[0]
