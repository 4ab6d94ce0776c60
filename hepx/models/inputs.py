"""From raw quantities (GeV, rad) to what the network sees: node and pair features, standardised on training events.

Everything that depends on several objects (Δφ to the lepton, pair features) is computed here, inside the model, so it
follows when an explanation replaces an object. All functions are smooth, work on any leading shape and never give NaN
for an absent object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hepx.errors import ConfigError, closest
from hepx.graph import DEFINED, NODE_TYPES, RAW_FEATURES, GraphBatch, Layout

PT, ETA, PHI, MASS, BTAG, MET_SIGNIFICANCE = range(len(RAW_FEATURES))
_SMALL = 1e-6
_SOFT = 1e-4  # added to ΔR² in its logarithm
_LEAST = 1e-2  # of masses squared in their logarithms, GeV²
_TURNS = 2 * torch.pi * torch.arange(-2, 2, dtype=torch.float64)


@dataclass(frozen=True)
class NodeFeature:
    """A network input of one node: the raw features it needs, its function of x [..., N, F] and Δφ [..., N], and the
    node types that have it."""

    needs: tuple[str, ...]
    compute: Callable[[Tensor, Tensor], Tensor]
    types: tuple[str, ...] = NODE_TYPES


NODE_FEATURES: dict[str, NodeFeature] = {
    "log_pt": NodeFeature(("pt",), lambda x, _: torch.log(x[..., PT].clamp(min=1e-3))),
    "eta": NodeFeature(("eta",), lambda x, _: x[..., ETA]),
    "sin_dphi": NodeFeature(("phi",), lambda _, dphi: torch.sin(dphi)),
    "cos_dphi": NodeFeature(("phi",), lambda _, dphi: torch.cos(dphi)),
    "log_mass": NodeFeature(("mass",), lambda x, _: torch.log(x[..., MASS].clamp(min=0) + 1.0)),
    "btag": NodeFeature(("btag",), lambda x, _: x[..., BTAG]),
    "met_significance": NodeFeature(
        ("met_significance",), lambda x, _: torch.log(x[..., MET_SIGNIFICANCE].clamp(min=0) + 1.0)
    ),
    "sin_phi": NodeFeature(("phi",), lambda x, _: torch.sin(x[..., PHI])),
    "cos_phi": NodeFeature(("phi",), lambda x, _: torch.cos(x[..., PHI])),
    "pt": NodeFeature(("pt",), lambda x, _: x[..., PT]),
    "phi": NodeFeature(("phi",), lambda x, _: x[..., PHI]),
    "bjet_mass": NodeFeature(("mass",), lambda x, _: x[..., MASS], types=("bjet",)),
    "linear_met_significance": NodeFeature(("met_significance",), lambda x, _: x[..., MET_SIGNIFICANCE]),
}
"""Inputs a config can choose. Δφ is taken to the first lepton (to the missing momentum or the first object where there
is none), with its sign, so the inputs do not change under a rotation of the event about the beam. sin_phi and
cos_phi, the azimuth itself without its jump at ±π, do change; they are there to measure what that costs. The last four
are the columns of arXiv:2501.03432: heavy tails, and the azimuth with its jump."""


@dataclass(frozen=True)
class PairKinematics:
    """Quantities of all pairs [..., N, N] that the pair features are made of; transverse for pairs with E_T^miss."""

    delta_r2: Tensor
    min_pt: Tensor
    mass2: Tensor
    pt_product: Tensor
    cos_phi: Tensor

    @property
    def mt2(self) -> Tensor:
        """Transverse mass squared of massless objects, 2 pt pt (1 − cos Δφ), GeV²."""
        return 2 * self.pt_product * (1 - self.cos_phi)

    @property
    def mct2(self) -> Tensor:
        """Contransverse mass squared of massless objects, 2 pt pt (1 + cos Δφ), GeV² (arXiv:0802.2879)."""
        return 2 * self.pt_product * (1 + self.cos_phi)


def pair_kinematics(x: Float[Tensor, "... N F"], node_type: Int[Tensor, "... N"]) -> PairKinematics:
    """ΔR², min(pt) and m² of all pairs, GeV and GeV²; leptons and missing momentum are massless.

    For a pair with the missing momentum Δη is set to zero: ΔR is |Δφ| and m² is the transverse mass squared.
    """
    is_met = node_type == NODE_TYPES.index("met")
    transverse = (is_met[..., :, None] | is_met[..., None, :]).to(x.dtype)
    delta_eta2 = (x[..., :, None, ETA] - x[..., None, :, ETA]) ** 2 * (1 - transverse)
    delta_phi = x[..., :, None, PHI] - x[..., None, :, PHI]
    cos_phi = torch.cos(delta_phi)
    # Δφ wrapped to [−π, π); the difference is exact in the gradient because that of the shift is 0.
    delta_phi = delta_phi - 2 * torch.pi * torch.round(delta_phi / (2 * torch.pi))
    massive = torch.tensor(["mass" in DEFINED[kind] for kind in NODE_TYPES], device=x.device)[node_type]
    pt, mass2 = x[..., PT], x[..., MASS] ** 2 * massive
    pz = pt * torch.sinh(x[..., ETA])
    et, energy = torch.sqrt(pt**2 + mass2 + _SMALL), torch.sqrt(pt**2 + pz**2 + mass2 + _SMALL)
    energies, pt_product = torch.where(transverse > 0, _outer(et), _outer(energy)), _outer(pt)
    product = energies - pt_product * cos_phi - _outer(pz) * (1 - transverse)
    pair_mass2 = mass2[..., :, None] + mass2[..., None, :] + 2 * product
    min_pt = torch.minimum(pt[..., :, None], pt[..., None, :])
    return PairKinematics(delta_eta2 + delta_phi**2, min_pt, pair_mass2, pt_product, cos_phi)


def _outer(values: Tensor) -> Tensor:
    """v_i v_j of all pairs."""
    return values[..., :, None] * values[..., None, :]


PAIR_FEATURES: dict[str, Callable[[PairKinematics], Tensor]] = {
    "ln_delta_r": lambda pair: 0.5 * torch.log(pair.delta_r2 + _SOFT),
    "ln_kt": lambda pair: 0.5 * torch.log(pair.delta_r2 + _SOFT) + torch.log(pair.min_pt.clamp(min=1e-3)),
    "ln_m2": lambda pair: torch.log(pair.mass2.clamp(min=_LEAST)),
    "ln_mt2": lambda pair: torch.log(pair.mt2.clamp(min=_LEAST)),
    "ln_mct2": lambda pair: torch.log(pair.mct2.clamp(min=_LEAST)),
}
"""Pair inputs a config can choose: those of arXiv:2202.03772 (eq. 3), and the two transverse masses that searches for
Wh cut on."""


def narrow_places(
    pair_features: Sequence[str],
    start: Float[Tensor, "*B N F"],
    end: Float[Tensor, "*B N F"],
    mask: Bool[Tensor, "*B N"],
    node_type: Int[Tensor, "*B N"],
) -> tuple[Float[Tensor, "*B M"], Float[Tensor, "*B M"]]:
    """Where the logarithms of the pair features dip on the straight way start + α (end − start): α, and half widths.

    Two objects pass one another (ΔR, k_T, m²), are collinear (m_T²) or back to back (m_CT²) in the transverse plane.
    What the logarithm is taken of is there v² ((α − place)² + width²), v the speed of the pair in (η, φ). A pair whose
    objects are not both there, or do not move, has an infinite width. float64.
    """
    one, other = torch.triu_indices(mask.shape[-1], mask.shape[-1], 1, device=mask.device)
    start, end = start.double(), end.double()
    there, is_met = mask[..., one] & mask[..., other], node_type == NODE_TYPES.index("met")
    transverse = is_met[..., one] | is_met[..., other]

    def way(feature: int) -> tuple[Tensor, Tensor]:
        first, last = (x[..., one, feature] - x[..., other, feature] for x in (start, end))
        return first, last - first

    def dip(eta: Tensor, eta_speed: Tensor, angle: float, soft: Tensor) -> tuple[Tensor, Tensor]:
        phi, phi_speed = (tensor[..., None] for tensor in way(PHI))
        phi = phi - angle - _TURNS.to(phi)
        eta, eta_speed = eta[..., None], eta_speed[..., None]
        speed2 = eta_speed**2 + phi_speed**2
        place = -(eta * eta_speed + phi * phi_speed) / speed2
        nearest = place.clamp(0, 1)
        least = (eta + nearest * eta_speed) ** 2 + (phi + nearest * phi_speed) ** 2
        turn = least.argmin(-1, keepdim=True)  # of the turns of Δφ, the one that comes closest
        place, phi = place.gather(-1, turn), phi.gather(-1, turn)
        distance2 = (eta + place * eta_speed) ** 2 + (phi + place * phi_speed) ** 2
        width = ((distance2 + soft[..., None]) / speed2).sqrt()
        moves = there & (speed2[..., 0] > 0)
        return torch.where(moves, place[..., 0], 0.0), torch.where(moves, width[..., 0], torch.inf)

    eta, eta_speed = (torch.where(transverse, 0.0, tensor) for tensor in way(ETA))
    still, soft = torch.zeros_like(eta), torch.full_like(eta, _SOFT)
    pt_product = (start[..., one, PT] + end[..., one, PT]) * (start[..., other, PT] + end[..., other, PT]) / 4
    soft_mass = _LEAST / pt_product.clamp(min=_LEAST)
    found = [(eta[..., :0], eta[..., :0])]
    if not {"ln_delta_r", "ln_kt", "ln_m2"}.isdisjoint(pair_features):
        found.append(dip(eta, eta_speed, 0.0, soft))
    if "ln_mt2" in pair_features:
        found.append(dip(still, still, 0.0, soft_mass))
    if "ln_mct2" in pair_features:
        found.append(dip(still, still, torch.pi, soft_mass))
    places, widths = zip(*found, strict=True)
    return torch.cat(places, -1), torch.cat(widths, -1)


def turned(graphs: GraphBatch, angle: float) -> GraphBatch:
    """The same events rotated about the beam by an angle (rad): nothing physical changes."""
    x = graphs.x.clone()
    x[..., PHI] = torch.where(
        graphs.mask, torch.remainder(x[..., PHI] + angle + torch.pi, 2 * torch.pi) - torch.pi, 0.0
    )
    return replace(graphs, x=torch.where((x[..., PT] > 0)[..., None], x, graphs.x))


def reflect(x: Float[Tensor, "B N F"], uniform: Float[Tensor, "B 2"]) -> Float[Tensor, "B N F"]:
    """The events with the sign of all η, and that of all φ, changed in half of them each.

    `uniform` are independent numbers from [0, 1).
    """
    signs = torch.ones(len(x), x.shape[2], dtype=x.dtype, device=x.device)
    signs[:, [ETA, PHI]] = torch.where(uniform < 0.5, -1, 1).to(x.dtype)
    return x * signs[:, None]


class Inputs(nn.Module):
    """Computes and standardises the network's inputs. Mean and spread come from the training events (`fit`).

    `missing_flags` gives each feature a second column, 1 where the node type does not have it, and fills the feature
    with 0 before standardising, as the public code of arXiv:2501.03432 does; the flags amount to a code of the type.
    """

    num_features: int
    num_pair_features: int
    mean: Tensor
    std: Tensor
    pair_mean: Tensor
    pair_std: Tensor
    defined: Tensor

    def __init__(
        self, layout: Layout, features: Sequence[str], pair_features: Sequence[str], missing_flags: bool = False
    ) -> None:
        super().__init__()
        for name in features:
            if name not in NODE_FEATURES:
                raise ConfigError(f"unknown node feature '{name}'; {closest(name, NODE_FEATURES)}")
        for name in pair_features:
            if name not in PAIR_FEATURES:
                raise ConfigError(f"unknown pair feature '{name}'; {closest(name, PAIR_FEATURES)}")
        self.features, self.pair_features = tuple(features), tuple(pair_features)
        self.missing_flags = missing_flags
        self.num_features, self.num_pair_features = len(features) * (1 + missing_flags), len(pair_features)
        kinds = [layout.types.index(name) for name in ("lepton", "met") if name in layout.types]
        self._references = [*kinds, *(slot for slot in range(len(layout.types)) if slot not in kinds)]
        chosen = [NODE_FEATURES[name] for name in features]
        defined = [[t in f.types and set(f.needs) <= set(DEFINED[t]) for f in chosen] for t in NODE_TYPES]
        self.register_buffer("defined", torch.tensor(defined, dtype=torch.float32))
        self.register_buffer("mean", torch.zeros(self.num_features))
        self.register_buffer("std", torch.ones(self.num_features))
        self.register_buffer("pair_mean", torch.zeros(self.num_pair_features))
        self.register_buffer("pair_std", torch.ones(self.num_pair_features))

    def reference(self, mask: Bool[Tensor, "*B N"]) -> Int[Tensor, "*B"]:
        """The slot of the object that φ counts from: the lepton, else the missing momentum, else the first there is."""
        found = torch.full(mask.shape[:-1], self._references[-1], device=mask.device)
        for slot in reversed(self._references[:-1]):
            found = torch.where(mask[..., slot], slot, found)
        return found

    def raw_nodes(
        self, x: Float[Tensor, "*B N F"], mask: Bool[Tensor, "*B N"], node_type: Int[Tensor, "*B N"]
    ) -> Float[Tensor, "*B N F2"]:
        """Node features before standardisation."""
        phi = x[..., PHI]
        delta_phi = phi - phi.gather(-1, self.reference(mask)[..., None])
        values = torch.stack([NODE_FEATURES[name].compute(x, delta_phi) for name in self.features], dim=-1)
        if not self.missing_flags:
            return values
        defined = self.defined[node_type]
        return torch.stack([values * defined, 1 - defined], dim=-1).flatten(-2)

    def raw_pairs(self, x: Float[Tensor, "*B N F"], node_type: Int[Tensor, "*B N"]) -> Float[Tensor, "*B N N P"]:
        """Pair features before standardisation."""
        kinematics = pair_kinematics(x, node_type)
        return torch.stack([PAIR_FEATURES[name](kinematics) for name in self.pair_features], dim=-1)

    def nodes(
        self, x: Float[Tensor, "*B N F"], mask: Bool[Tensor, "*B N"], node_type: Int[Tensor, "*B N"]
    ) -> Float[Tensor, "*B N F2"]:
        """Standardised node features; exactly 0 where the object is absent or the feature undefined for its type (with
        missing flags: what 0 becomes)."""
        return (self.raw_nodes(x, mask, node_type) - self.mean) / self.std * self._valid(mask, node_type)

    def _valid(self, mask: Bool[Tensor, "*B N"], node_type: Int[Tensor, "*B N"]) -> Float[Tensor, "*B N F2"]:
        present = mask[..., None].to(self.defined.dtype)
        return present if self.missing_flags else self.defined[node_type] * present

    def pairs(
        self, x: Float[Tensor, "*B N F"], mask: Bool[Tensor, "*B N"], node_type: Int[Tensor, "*B N"]
    ) -> Float[Tensor, "*B N N P"]:
        """Standardised pair features; exactly 0 on the diagonal and where an object is absent."""
        valid = _pair_mask(mask)[..., None]
        return (self.raw_pairs(x, node_type) - self.pair_mean) / self.pair_std * valid

    def fit(self, graphs: GraphBatch, weight: Float[Tensor, "B"]) -> None:
        """Set mean and spread from training events, weighted with |weight|: a scale must not depend on signs."""
        self.fit_parts([(graphs, weight)])

    @torch.no_grad()
    def fit_parts(self, parts: Iterable[tuple[GraphBatch, Float[Tensor, "B"]]]) -> None:
        """`fit` for events that come part by part, each part with its weights."""
        nodes, pairs = _Moments(), _Moments()
        for graphs, weight in parts:
            weight = weight.abs().to(torch.float64)
            valid = self._valid(graphs.mask, graphs.node_type) * weight[:, None, None]
            nodes.add(self.raw_nodes(graphs.x, graphs.mask, graphs.node_type).to(torch.float64), valid, (0, 1))
            if self.num_pair_features:
                valid = (_pair_mask(graphs.mask) * weight[:, None, None])[..., None]
                pairs.add(self.raw_pairs(graphs.x, graphs.node_type).to(torch.float64), valid, (0, 1, 2))
        self.mean, self.std = nodes.result()
        if self.num_pair_features:
            self.pair_mean, self.pair_std = pairs.result()


def _pair_mask(mask: Bool[Tensor, "*B N"]) -> Float[Tensor, "*B N N"]:
    both = mask[..., :, None] & mask[..., None, :]
    off_diagonal = ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    return (both & off_diagonal).to(torch.float32)


class _Moments:
    """Weighted mean and spread of values that come part by part (Chan, Golub and LeVeque 1983, eq. 2.1)."""

    def __init__(self) -> None:
        self.total = self.mean = self.squares = torch.zeros(())

    def add(self, values: Tensor, weight: Tensor, axes: tuple[int, ...]) -> None:
        """Add a part; the sums run over `axes`."""
        total = weight.expand_as(values).sum(axes)
        mean = (values * weight).sum(axes) / total.clamp(min=1e-12)
        squares = ((values - mean) ** 2 * weight).sum(axes)
        if self.total.ndim == 0:
            self.total, self.mean, self.squares = total, mean, squares
            return
        share = total / (self.total + total).clamp(min=1e-12)
        difference = mean - self.mean
        self.squares = self.squares + squares + difference**2 * self.total * share
        self.mean = self.mean + difference * share
        self.total = self.total + total

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation; 1 for a constant input, which so stays as it is."""
        std = (self.squares / self.total.clamp(min=1e-12)).sqrt()
        return self.mean.float(), torch.where(std > 1e-6, std, torch.ones_like(std)).float()
