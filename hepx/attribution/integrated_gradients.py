"""Integrated gradients of raw features (pt, η, φ, mass, …), averaged over replacements.

Sundararajan et al., arXiv:1703.01365; averaging over baselines as in expected gradients (Erion et al.,
arXiv:1906.10670). What bends along a path is known before the network is asked: two objects pass one another,
and the logarithm of their ΔR or mass dips. The nodes go slowly there (`Course`), 16 of them (Clenshaw and Curtis,
Numer. Math. 2 (1960) 197) on the whole path. Where the attributions miss the change of the score, 15 more are put
between them; a piece that still misses it is halved, again and again, so that more nodes go where the score has a kink
that is not known (the network's own, the softer object of a pair becomes the harder). One node is the midpoint, so the
change along the halves is known without further evaluations. The expert choice of the explained event is replayed on
the whole path (`routing: fixed`): through switches of a top-k router the score jumps, and no quadrature makes the
attributions complete.
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

NODES = 16  # of a piece, twice as many less one where they do not do: both fill the blocks of the score
SLOW = 0.2  # c of `Course`
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
    tolerance: float = Field(default=0.003, gt=0)

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
        few, many = clenshaw_curtis(min(NODES, self.steps)), clenshaw_curtis(2 * NODES - 1)
        while len(path):
            slope, _ = samples(paths, course, path, low, width, few.places)
            values = few.sum(slope)
            open_ = (values.sum((1, 2)) - (last - first)).abs() > allowed[path] * width**0.5
            open_ &= self.steps * width >= 2 * NODES
            total.index_add_(0, path[~open_], values[~open_])
            path, low, first, last = (v[open_] for v in (path, low, first, last))
            if not len(path):
                break
            between, score = samples(paths, course, path, low, width, many.places[1::2])
            values, middle = many.sum(alternating(slope[open_], between)), score[:, NODES // 2 - 1]
            open_ = (values.sum((1, 2)) - (last - first)).abs() > allowed[path] * width**0.5
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


@dataclass(frozen=True)
class Rule:
    """Places in [0, 1] and weights [k] of a quadrature."""

    places: Float[Tensor, "k"]
    weights: Float[Tensor, "k"]

    def sum(self, values: Float[Tensor, "r k N F"]) -> Float[Tensor, "r N F"]:
        """The integral of what is known at the places."""
        return (self.weights[:, None, None] * values).sum(1)


def gauss_legendre(nodes: int) -> Rule:
    """Exact for polynomials of degree 2 · nodes − 1."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    return Rule(torch.from_numpy((places + 1) / 2), torch.from_numpy(weights / 2))


def clenshaw_curtis(nodes: int) -> Rule:
    """Exact for polynomials of degree nodes − 1; every second place of 2 · nodes − 1 is one of `nodes`, 2 at least."""
    places = -np.cos(np.pi * np.arange(nodes) / (nodes - 1))
    degree = np.arange(nodes)
    integrals = np.where(degree % 2 == 0, 2 / (1.0 - degree**2 + (degree == 1)), 0.0)  # of the Chebyshev polynomials
    weights = np.linalg.solve(np.polynomial.chebyshev.chebvander(places, nodes - 1).T, integrals)
    return Rule(torch.from_numpy((places + 1) / 2), torch.from_numpy(weights / 2))


def alternating(one: Float[Tensor, "r k N F"], between: Float[Tensor, "r m N F"]) -> Float[Tensor, "r n N F"]:
    """k values and the m = k − 1 between them, in order."""
    both = torch.stack([one[:, :-1], between], 2).flatten(1, 2)
    return torch.cat([both, one[:, -1:]], 1)


def samples(
    paths: Paths, course: Course, path: Int[Tensor, "r"], low: Float[Tensor, "r"], width: float, t: Float[Tensor, "k"]
) -> tuple[Float[Tensor, "r k N F"], Float[Tensor, "r k"]]:
    """∂score/∂x · (x − x′) dα/dt, to be integrated over t in [0, 1], and the score, where some paths (event · K + draw)
    have gone the share t of a piece [low, low + width]; float64."""
    slopes, scores = [], []
    for index in torch.arange(len(path)).split(max(1, ROWS // len(t))):
        event = path[index] // paths.draws
        start = paths.start.flatten(0, 1)[path[index]]
        difference = paths.x[event] - start
        alpha, speed = course[path[index]].nodes(low[index, None] + width * t)
        points = start[:, None] + alpha.to(start)[..., None, None] * difference[:, None]
        slope, score = paths.slopes(points, event)
        slopes.append((width * speed)[..., None, None] * slope * difference.double().cpu()[:, None])
        scores.append(score)
    return torch.cat(slopes), torch.cat(scores)


def path_integral(paths: Paths, path: Int[Tensor, "r"], nodes: int, pieces: int = 1) -> Float[Tensor, "r N F"]:
    """∫ ∂score/∂x dα · (x − x′) over whole paths, with as many evenly laid Gauss–Legendre nodes on each piece of each:
    the plain rule."""
    none = torch.zeros(len(paths.start.flatten(0, 1)), 0, dtype=torch.float64)
    rule, begin, total = gauss_legendre(nodes), torch.zeros(len(path), dtype=torch.float64), torch.zeros(())
    for piece in range(pieces):
        slope, _ = samples(paths, Course(none, none), path, begin + piece / pieces, 1 / pieces, rule.places)
        total = total + rule.sum(slope)
    return total
