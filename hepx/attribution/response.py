"""Response curve: the mean score when an observable is moved by changing one object, and nothing else is changed.

An individual-conditional-expectation curve (Goldstein et al., arXiv:1309.6392) along a physics direction. m_bb: b2
slides along the line through b1 and b2 in (η, φ), its pt and mass kept. m_T: the missing momentum turns about the beam,
away from or towards the lepton on the side where it is, its size kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from hepx.attribution.base import Method, Subject, chunks_of, in_chunks, scores
from hepx.errors import ConfigError
from hepx.graph import GraphBatch, Layout
from hepx.metrics import weighted_mean
from hepx.models.inputs import ETA, MASS, PHI, PT
from hepx.progress import track
from hepx.results import Provenance, ResponseCurve

Array = npt.NDArray[np.float64]
BISECTIONS = 40
FARTHEST = 12.0  # the largest distance b1–b2, in units of the original one
FEWEST = 5  # events in a bin below which a mean has no usable error
MAX_ETA = 2.8  # a b-jet cannot be moved out of the acceptance


class Response(Method):
    """Scan an observable from `low` to `high` GeV in `points` steps; without them, over the range of MOVES."""

    per_event: ClassVar[bool] = False
    method: Literal["response"] = "response"
    observable: Literal["mbb", "mt"] = "mbb"
    low: float | None = Field(default=None, ge=0)
    high: float | None = None
    points: int = Field(default=45, ge=2)
    events: int = Field(default=1000, ge=1)

    @model_validator(mode="after")
    def _range(self) -> Response:
        low, high = self._limits()
        if not low < high:
            raise ValueError(f"low must be below high, but {low:g} is not below {high:g} GeV")
        return self

    def _limits(self) -> tuple[float, float]:
        move = MOVES[self.observable]
        return move.low if self.low is None else self.low, move.high if self.high is None else self.high

    @property
    def name(self) -> str:
        """One file per observable."""
        return f"response_{self.observable}"

    def refuse_unknown(self, layout: Layout) -> None:
        """The objects that are moved must be nodes."""
        slots = MOVES[self.observable].slots
        if not set(slots) <= set(layout.slots):
            raise ConfigError(
                f"the response to {self.observable} needs the node slots {' and '.join(slots)}; add them to "
                "graph.nodes."
            )

    def explain(self, subject: Subject, provenance: Provenance) -> ResponseCurve:
        """Mean score per sample at each point, beside the untrained model and the unchanged events."""
        graphs, move = subject.graphs, MOVES[self.observable]
        self.refuse_unknown(graphs.layout)
        points = np.linspace(*self._limits(), self.points)

        def compute(chosen: Tensor) -> dict[str, Tensor]:
            events = graphs[chosen]
            moved = [move.function(events, float(point)) for point in points]
            x = torch.stack([*(x for x, _ in moved), events.x], 1)
            found = {"reached": torch.stack([ok for _, ok in moved], 1)}
            for name, model in (("trained", subject.model), ("untrained", subject.untrained)):
                found[name] = scores(model, x, events.mask[:, None], events.node_type, subject.target)
            return found

        parts = chunks_of(len(graphs), 2 * self.points)
        shown = track(parts, f"response to {self.observable}", len(parts))
        found = in_chunks(len(graphs), ((part, compute) for part in shown))
        reached = found["reached"] > 0
        observable = graphs.observable(self.observable).numpy()
        near = np.abs(observable[:, None] - points) < (points[1] - points[0]) / 2
        mean, error = self._means(graphs, found["trained"][:, :-1], reached)
        unchanged = np.repeat(found["trained"][:, -1:], len(points), 1)
        observed, observed_error = self._means(graphs, unchanged, near, FEWEST)
        return ResponseCurve(
            observable=self.observable,
            unit="GeV",
            moved=move.moved,
            points=points,
            mean=mean,
            error=error,
            reached=np.stack([reached[graphs.sample.numpy() == s].mean(0) for s in range(len(graphs.layout.samples))]),
            observed=observed,
            observed_error=observed_error,
            null=self._means(graphs, found["untrained"][:, :-1], reached)[0],
            sample_names=graphs.layout.samples,
            provenance=provenance,
        )

    @staticmethod
    def _means(graphs: GraphBatch, score: Array, keep: npt.NDArray[np.bool_], fewest: int = 1) -> tuple[Array, Array]:
        """Weighted mean and error per sample and point [P, Q] over the events to keep; NaN below `fewest` events."""
        weight, sample = graphs.weight.numpy(), graphs.sample.numpy()
        table = np.full((len(graphs.layout.samples), score.shape[1], 2), np.nan)
        for s, q in np.ndindex(table.shape[:2]):
            chosen = keep[:, q] & (sample == s)
            if chosen.sum() >= fewest:
                table[s, q] = weighted_mean(score[chosen, q], weight[chosen])
        return table[..., 0], table[..., 1]


def move_b2(graphs: GraphBatch, mass: float) -> tuple[Float[Tensor, "B N F"], Bool[Tensor, "B"]]:
    """Raw features with b2 moved so that m_bb is `mass` GeV, and where that is possible inside |η| < 2.8.

    Solved by bisection in the distance between the b-jets, in which m_bb rises while |Δφ| stays below π.
    """
    b1, b2 = graphs.layout.slots.index("b1"), graphs.layout.slots.index("b2")
    x = graphs.x.double()
    first, second = x[:, b1], x[:, b2]
    eta, phi = (
        second[:, ETA] - first[:, ETA],
        torch.remainder(second[:, PHI] - first[:, PHI] + torch.pi, 2 * torch.pi) - torch.pi,
    )
    farthest = torch.minimum(torch.pi / phi.abs().clamp(min=1e-9), torch.tensor(FARTHEST))
    low, high = torch.zeros_like(farthest), farthest
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = _mass(first, second, middle * eta, middle * phi) > mass
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    distance = (low + high) / 2
    new_eta = first[:, ETA] + distance * eta
    new_phi = torch.remainder(first[:, PHI] + distance * phi + torch.pi, 2 * torch.pi) - torch.pi
    same = graphs.object_index == graphs.object_index[:, b2, None]  # b2 and its aliases
    moved = graphs.x.clone()
    moved[..., ETA] = torch.where(same, new_eta.float()[:, None], moved[..., ETA])
    moved[..., PHI] = torch.where(same, new_phi.float()[:, None], moved[..., PHI])
    exact = (_mass(first, second, distance * eta, distance * phi) - mass).abs() < 0.1
    inside = new_eta.abs() < MAX_ETA
    return moved, exact & inside & graphs.mask[:, b1] & graphs.mask[:, b2]


def _mass(first: Tensor, second: Tensor, delta_eta: Tensor, delta_phi: Tensor) -> Tensor:
    """Invariant mass of two jets at a given distance, GeV."""
    eta2 = first[:, ETA] + delta_eta
    momentum = [
        (p[:, PT], p[:, PT] * torch.sinh(eta), p[:, MASS]) for p, eta in ((first, first[:, ETA]), (second, eta2))
    ]
    energy = [torch.sqrt(pt**2 + pz**2 + m**2) for pt, pz, m in momentum]
    pt2 = momentum[0][0] ** 2 + momentum[1][0] ** 2 + 2 * momentum[0][0] * momentum[1][0] * torch.cos(delta_phi)
    pz = momentum[0][1] + momentum[1][1]
    return torch.sqrt(((energy[0] + energy[1]) ** 2 - pt2 - pz**2).clamp(min=0))


def turn_met(graphs: GraphBatch, mass: float) -> tuple[Float[Tensor, "B N F"], Bool[Tensor, "B"]]:
    """Raw features with the missing momentum turned so that m_T is `mass` GeV, and where that is possible: up to
    2 √(pt MET), from m_T² = 2 pt MET (1 − cos Δφ)."""
    lepton, met = (graphs.layout.slots.index(name) for name in ("lepton", "met"))
    x = graphs.x.double()
    cosine = 1 - mass**2 / (2 * x[:, lepton, PT] * x[:, met, PT]).clamp(min=1e-9)
    delta = torch.remainder(x[:, met, PHI] - x[:, lepton, PHI] + torch.pi, 2 * torch.pi) - torch.pi
    side = torch.where(delta < 0, -1.0, 1.0)
    phi = x[:, lepton, PHI] + side * torch.acos(cosine.clamp(-1, 1))
    moved = graphs.x.clone()
    moved[:, met, PHI] = (torch.remainder(phi + torch.pi, 2 * torch.pi) - torch.pi).float()
    return moved, (cosine >= -1) & graphs.mask[:, lepton] & graphs.mask[:, met]


@dataclass(frozen=True)
class Move:
    """A way to set an observable: the slots it is made of, the one that moves, the usual range in GeV, and the raw
    features [B, N, F] with the value and where it can be reached [B] as a function of the events and the value."""

    slots: tuple[str, str]
    moved: str
    low: float
    high: float
    function: Callable[[GraphBatch, float], tuple[Tensor, Tensor]]


MOVES: dict[str, Move] = {
    "mbb": Move(("b1", "b2"), "b2", 40.0, 260.0, move_b2),
    "mt": Move(("lepton", "met"), "met", 0.0, 300.0, turn_met),
}
"""Observable -> how it is moved."""
