"""Response curve: the mean score when m_bb is moved by moving the second b-jet, and nothing else is changed.

An individual-conditional-expectation curve (Goldstein et al., arXiv:1309.6392) along a physics direction: b2 slides
along the line through b1 and b2 in (η, φ), its pt and mass kept, until m_bb has the wanted value.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from hepx.attribution.base import Method, Subject, scores
from hepx.errors import ConfigError
from hepx.graph import GraphBatch
from hepx.metrics import weighted_mean
from hepx.models import Model
from hepx.models.inputs import ETA, MASS, PHI, PT
from hepx.results import Provenance, ResponseCurve

Array = npt.NDArray[np.float64]
BISECTIONS = 40
FARTHEST = 12.0  # the largest distance b1–b2, in units of the original one
FEWEST = 5  # events in a bin below which a mean has no usable error
MAX_ETA = 2.8  # a b-jet cannot be moved out of the acceptance


class Response(Method):
    """Scan m_bb from `low` to `high` GeV in `points` steps."""

    per_event: ClassVar[bool] = False
    method: Literal["response"] = "response"
    observable: Literal["mbb"] = "mbb"
    low: float = Field(default=40.0, gt=0)
    high: float = 260.0
    points: int = Field(default=45, ge=2)
    events: int = Field(default=1000, ge=1)

    @property
    def name(self) -> str:
        """One file per observable."""
        return f"response_{self.observable}"

    def explain(self, subject: Subject, provenance: Provenance) -> ResponseCurve:
        """Mean score per sample at each point, beside the untrained model and the unchanged events."""
        graphs = subject.graphs
        if not {"b1", "b2"} <= set(graphs.layout.slots):
            raise ConfigError(
                "the response to m_bb needs the node slots b1 and b2; add {type: bjet, max: 2} to graph.nodes."
            )
        points = np.linspace(self.low, self.high, self.points)
        moved = [move_b2(graphs, float(point)) for point in points]
        reached = torch.stack([ok for _, ok in moved], 1).numpy()
        trained = np.stack([_scores(subject.model, graphs, x, subject.target) for x, _ in moved], 1)
        null = np.stack([_scores(subject.untrained, graphs, x, subject.target) for x, _ in moved], 1)
        score = _scores(subject.model, graphs, graphs.x, subject.target)
        mbb = graphs.observable("mbb").numpy()
        half = (points[1] - points[0]) / 2
        near = np.abs(mbb[:, None] - points) < half
        mean, error = self._means(graphs, trained, reached)
        observed, observed_error = self._means(graphs, np.repeat(score[:, None], len(points), 1), near, FEWEST)
        return ResponseCurve(
            observable=self.observable,
            unit="GeV",
            moved="b2",
            points=points,
            mean=mean,
            error=error,
            reached=np.stack([reached[graphs.sample.numpy() == s].mean(0) for s in range(len(graphs.layout.samples))]),
            observed=observed,
            observed_error=observed_error,
            null=self._means(graphs, null, reached)[0],
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


def _scores(model: Model, graphs: GraphBatch, x: Tensor, target: int) -> Array:
    model.eval()
    device = next(model.parameters()).device
    x, mask, node_type = (tensor.to(device) for tensor in (x, graphs.mask, graphs.node_type))
    return scores(model, x, mask, node_type, target).double().cpu().numpy()
