"""What the gradient methods share: the gradient of the score, replayed routing, paths from replacements, spreads.

Replacements are turned so that their lepton points along the event's: the attribution of φ is that of Δφ to the lepton,
whose own φ gets none.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from hepx.attribution.base import ROWS_PER_PASS, Subject, from_blocks, in_blocks, mean_and_error
from hepx.attribution.baselines import Pattern, Referenced, replacements
from hepx.errors import ResultError
from hepx.graph import GraphBatch
from hepx.models import Model, log_odds
from hepx.models.inputs import PHI, narrow_places
from hepx.results import EventResult, Explanation

ROWS = ROWS_PER_PASS // 2  # rows per backward pass
PER_SPREAD = "logit per σ"  # unit of a gradient times the spread of the feature, see `spreads`
Score = Callable[..., Tensor]


class PathMethod(Referenced):
    """Base of the methods that compare an event with replacements through gradients.

    routing: `fixed` replays the experts that the explained event uses on all rows, `free` lets the router choose: then
    the score jumps where two experts are exchanged, and no gradient sees a jump.
    """

    needs_gradients: ClassVar[bool] = True
    baseline: Literal["background", "process", "conditional", "mean", "zero"] = "background"
    routing: Literal["fixed", "free"] = "fixed"
    events: int = Field(default=500, ge=1)


class GatedMethod(PathMethod):
    """Base of the methods whose values must add up to the change of the score.

    The result is refused when its relative completeness error exceeds `max_completeness_error`, unless `force` is set:
    then it carries a note.
    """

    max_completeness_error: float = Field(default=0.05, gt=0)
    force: bool = False

    def check(self, result: EventResult) -> EventResult:
        """The completeness gate."""
        assert isinstance(result, Explanation)
        found = result.relative_completeness_error
        assert found is not None
        if found <= self.max_completeness_error:
            return result
        name = str(self.model_dump()["method"]).replace("_", " ")
        what = (
            f"{name}: the attributions miss the score change by {found:.1%} (rms), more than the allowed "
            f"{self.max_completeness_error:.0%}"
        )
        why, remedy = self._reason()
        if not self.force:
            raise ResultError(f"{what}: {why}. {remedy}, or force: true to keep the result with a warning.")
        return replace(result, note=f"{what}: {why}. Kept because force is set.")

    @abstractmethod
    def _reason(self) -> tuple[str, str]:
        """Why the attributions are not complete, and what to do, as two half-sentences."""


class Paths:
    """Explained events x [b, N, F] beside their replacements start [b, K, N, F], on the device of the model.

    extra: the other arguments of the score, one row per event: mask, node types and, if it is fixed, the routing.
    """

    def __init__(self, method: PathMethod, subject: Subject, pattern: Pattern, events: GraphBatch) -> None:
        donors = replacements(method, pattern, events, subject.seed, aligned=True)
        model, device = subject.model.eval(), next(subject.model.parameters()).device
        self.draws = donors.shape[1]
        self.x, mask, kinds = (t.to(device) for t in (events.x, events.mask, events.node_type))
        routing = fixed_routing(model, self.x, mask, kinds) if method.routing == "fixed" else ()
        self.extra = (mask, kinds, *routing)
        self.start = nearest_phi(donors.to(device), self.x[:, None])
        self.score = score_function(model, subject.target)
        self.pair_features = model.inputs.pair_features

    def gradient(self, points: Float[Tensor, "b k N F"]) -> Float[Tensor, "b k N F"]:
        """∂score/∂x in float64 on the CPU at k points of each event."""
        return gradient(self.score, points, self.extra)

    def slopes(
        self, points: Float[Tensor, "r k N F"], event: Int[Tensor, "r"]
    ) -> tuple[Float[Tensor, "r k N F"], Float[Tensor, "r k"]]:
        """∂score/∂x and the score, float64 on the CPU, at k points each of some events."""
        return slopes(self.score, points, tuple(tensor[event] for tensor in self.extra))

    def narrow_places(self) -> tuple[Float[Tensor, "R M"], Float[Tensor, "R M"]]:
        """Where the pair features dip on each path, R = b · K, and how wide; float64 on the CPU."""
        x, mask, kinds = (one.repeat_interleave(self.draws, 0) for one in (self.x, *self.extra[:2]))
        places, widths = narrow_places(self.pair_features, self.start.flatten(0, 1), x, mask, kinds)
        return places.cpu(), widths.cpu()

    def ends(self) -> tuple[Float[Tensor, "b"], Float[Tensor, "b K"]]:
        """Score of the event and of each replacement, float64 on the CPU."""
        points = torch.cat([self.x[:, None], self.start], 1)
        rows = in_blocks(points)
        extra = repeated(self.extra, len(rows))
        with torch.no_grad():
            parts = [
                self.score(rows[i : i + ROWS], *(tensor[i : i + ROWS] for tensor in extra))
                for i in range(0, len(rows), ROWS)
            ]
        found = from_blocks(torch.cat(parts), points.shape).double().cpu()
        return found[:, 0], found[:, 1:]

    def summary(self, values: Float[Tensor, "b K N F"]) -> dict[str, Tensor]:
        """Mean values [b, N, F] and their error, scores, and how far the mean is from adding up to their difference."""
        mean, error = mean_and_error(values.double().cpu())
        end, starts = self.ends()
        start = starts.mean(1)
        gap = (mean.sum((1, 2)) - (end - start)).abs()
        return {"values": mean, "error": error, "score": end, "baseline_score": start, "completeness_error": gap}


def score_function(model: Model, target: int) -> Score:
    """Score [R] as a function of x and, if wanted, mask, node types and routing: what captum takes."""

    def score(x: Tensor, mask: Tensor, node_type: Tensor, *routing: Tensor) -> Tensor:
        return log_odds(model(x, mask, node_type, *routing).logits, target)

    return score


def fixed_routing(model: Model, x: Tensor, mask: Tensor, node_type: Tensor) -> tuple[Bool[Tensor, "b L N X"], ...]:
    """The experts the events use, for replay; empty for a model without experts."""
    rows = in_blocks(x[:, None])
    with torch.no_grad():
        gates = model(rows, *repeated((mask, node_type), len(rows))).trace.gates
    routing = from_blocks(gates > 0, (len(x), 1))[:, 0]
    return (routing,) if routing.shape[-1] else ()


def repeated(extra: tuple[Tensor, ...], num_rows: int) -> tuple[Tensor, ...]:
    """One row per event -> as many rows per event as are wanted in all."""
    return tuple(tensor.repeat_interleave(num_rows // len(tensor), 0) for tensor in extra)


def gradient(score: Score, points: Float[Tensor, "b k N F"], extra: tuple[Tensor, ...]) -> Float[Tensor, "b k N F"]:
    """∂score/∂x at k points of each event, float64 on the CPU, in passes of bounded size."""
    return slopes(score, points, extra)[0]


def slopes(
    score: Score, points: Float[Tensor, "b k N F"], extra: tuple[Tensor, ...]
) -> tuple[Float[Tensor, "b k N F"], Float[Tensor, "b k"]]:
    """The gradient, and the score itself, which comes with it."""
    rows = in_blocks(points)
    arguments, parts = repeated(extra, len(rows)), []
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        x = rows[part].detach().requires_grad_()
        value = score(x, *(tensor[part] for tensor in arguments))
        parts.append((torch.autograd.grad(value.sum(), x)[0].double().cpu(), value.detach().double().cpu()))
    found = (from_blocks(torch.cat(one), points.shape) for one in zip(*parts, strict=True))
    return next(found), next(found)


def nearest_phi(donors: Float[Tensor, "b K N F"], x: Float[Tensor, "b 1 N F"]) -> Float[Tensor, "b K N F"]:
    """Donors with φ moved by whole turns to within half a turn of the event's: the path takes the short way round."""
    turns = torch.round((x[..., PHI] - donors[..., PHI]) / (2 * torch.pi))
    donors = donors.clone()
    donors[..., PHI] = donors[..., PHI] + 2 * torch.pi * turns
    return donors


def spreads(graphs: GraphBatch) -> Float[Tensor, "N F"]:
    """Standard deviation of each feature in each slot where present, weighted with |w|; of φ, that of Δφ to 0: π/√3.

    It gives gradients a common unit and noise a size; 0 where a feature is undefined or constant.
    """
    weight = graphs.weight.abs()[:, None] * graphs.mask
    total = weight.sum(0).clamp(min=1e-12)[:, None]
    x = graphs.x.double()
    mean = (weight[..., None] * x).sum(0) / total
    spread = ((weight[..., None] * (x - mean) ** 2).sum(0) / total).sqrt()
    spread[:, PHI] = torch.pi / 3**0.5 * (weight.sum(0) > 0)
    return spread.to(graphs.x.dtype)
