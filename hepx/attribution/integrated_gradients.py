"""Integrated gradients of raw features (pt, η, φ, mass, …), averaged over replacements.

Sundararajan et al., arXiv:1703.01365; averaging over baselines as in expected gradients (Erion et al.,
arXiv:1906.10670). What bends along a path is known before the network is asked: two objects pass one another,
and the logarithm of their ΔR or mass dips. The nodes go slowly there (`Course`), 31 of them (Gauss–Legendre) on the
whole path; a piece whose attributions miss the change of the score along it is halved, again and again, so that more
nodes go where the score has a kink that is not known (the network's own, the softer object of a pair becomes the
harder). The middle node is the midpoint, so the change along the halves is known without further evaluations. The
expert choice of the explained event is replayed on the whole path (`routing: fixed`): through switches of a top-k
router the score jumps, and no quadrature makes the attributions complete.
"""

from __future__ import annotations

from dataclasses import dataclass
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

NODES, PIECE = 31, 15  # of a path and of its pieces; odd, and with one row to spare in the blocks of the score
SLOW = 0.1  # c of `Course`
ROUNDS = 4  # of Newton's method: to 10⁻⁸


class IntegratedGradients(GatedMethod):
    """Path integrals from `draws` replacements to the event; no piece is denser than `steps` nodes on the whole path.

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
        course = Course(*paths.narrow_places())
        while len(path):
            nodes = min(NODES if width == 1 else PIECE, self.steps)
            values, middle = piece_integral(paths, course, path, low, width, nodes)
            gap = (values.sum((1, 2)) - (last - first)).abs()
            open_ = (gap > allowed[path] * width**0.5) & (self.steps * width >= 2 * PIECE)
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


@dataclass(frozen=True)
class Course:
    """How the nodes go along each path: α is a function of t, both from 0 to 1, slow at the narrow places [R, M].

    dt/dα is proportional to 1 + c Σ ((α − place)² + width²)^−½: in t the dips of the logarithms are all about as wide.
    """

    places: Float[Tensor, "R M"]
    widths: Float[Tensor, "R M"]

    def __getitem__(self, paths: Int[Tensor, "r"]) -> Course:
        """Some of the paths."""
        return Course(self.places[paths], self.widths[paths])

    def done(self, alpha: Float[Tensor, "R k"]) -> Float[Tensor, "R k"]:
        """t up to a factor, 0 at α = 0."""
        places, widths = self.places[:, None], self.widths[:, None]
        ways = torch.asinh((alpha[..., None] - places) / widths) + torch.asinh(places / widths)
        return alpha + SLOW * ways.sum(-1)

    def speed(self, alpha: Float[Tensor, "R k"]) -> Float[Tensor, "R k"]:
        """The derivative of `done`."""
        places, widths = self.places[:, None], self.widths[:, None]
        return 1 + SLOW * ((alpha[..., None] - places) ** 2 + widths**2).rsqrt().sum(-1)

    def nodes(self, t: Float[Tensor, "R k"]) -> tuple[Float[Tensor, "R k"], Float[Tensor, "R k"]]:
        """α and dα/dt: Newton's method between two neighbours of a table, which lie dense around the narrow places."""
        even = torch.linspace(0, 1, 33, dtype=torch.float64).expand(len(t), -1)
        near = self.places[..., None] + self.widths[..., None] * torch.tensor([-30.0, -3.0, 3.0, 30.0])
        grid = torch.cat([even, near.flatten(1).clamp(0, 1)], 1).sort().values
        table = self.done(grid)
        wanted = t * table[:, -1:]
        after = torch.searchsorted(table, wanted).clamp(min=1)
        low, high = grid.gather(1, after - 1), grid.gather(1, after)
        first, last = table.gather(1, after - 1), table.gather(1, after)
        alpha = low + (high - low) * (wanted - first) / (last - first).clamp(min=1e-12)
        for _ in range(ROUNDS):
            alpha = (alpha - (self.done(alpha) - wanted) / self.speed(alpha)).clamp(low, high)
        return alpha, table[:, -1:] / self.speed(alpha)


def piece_integral(
    paths: Paths, course: Course, path: Int[Tensor, "r"], low: Float[Tensor, "r"], width: float, nodes: int
) -> tuple[Float[Tensor, "r N F"], Float[Tensor, "r"]]:
    """∫ ∂score/∂x dα · (x − x′) over [low, low + width] in t of some paths (event · K + draw), Gauss–Legendre, and the
    score at the middle node, which is the midpoint for an odd number; float64."""
    rule = np.polynomial.legendre.leggauss(nodes)
    places, weights = torch.from_numpy((rule[0] + 1) / 2), torch.from_numpy(rule[1] / 2)
    parts, middles = [], []
    for index in torch.arange(len(path)).split(max(1, ROWS // nodes)):
        event = path[index] // paths.draws
        start = paths.start.flatten(0, 1)[path[index]]
        difference = paths.x[event] - start
        alpha, speed = course[path[index]].nodes(low[index, None] + width * places)
        points = start[:, None] + alpha.to(start)[..., None, None] * difference[:, None]
        slope, score = paths.slopes(points, event)
        parts.append(((width * weights * speed)[..., None, None] * slope).sum(1) * difference.double().cpu())
        middles.append(score[:, nodes // 2])
    return torch.cat(parts), torch.cat(middles)


def path_integral(paths: Paths, path: Int[Tensor, "r"], nodes: int) -> Float[Tensor, "r N F"]:
    """The same over whole paths with as many evenly laid nodes on each: the plain rule."""
    even = torch.zeros(len(paths.start.flatten(0, 1)), 0, dtype=torch.float64)
    return piece_integral(paths, Course(even, even), path, torch.zeros(len(path), dtype=torch.float64), 1.0, nodes)[0]
