"""Physics observables as pure functions of momenta; GeV and rad in and out.

A momentum is anything with the arrays pt, eta, phi and mass [B] (a `Momentum`, or one of `vector`), NaN where the
object is missing; an observable of it is then NaN too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import awkward as ak
import numpy as np
import numpy.typing as npt

from hepx.collection import Collection

Float64 = npt.NDArray[np.float64]


class Momentum(NamedTuple):
    """One object per event: pt, eta, phi, mass [B]."""

    pt: Any
    eta: Any
    phi: Any
    mass: Any


def wrap(phi: Any) -> Any:
    """The same angle in [−π, π).

    >>> wrap(np.array([0.5, 4.0])).round(4).tolist()
    [0.5, -2.2832]
    """
    turn = 2 * np.pi
    shifted = np.asarray(phi + np.pi)
    below, above = shifted < 0, shifted >= turn
    if below.any() or above.any():
        shifted = shifted + turn * below - turn * above  # the remainder is ten times slower
        if ((shifted < 0) | (shifted >= turn)).any():
            shifted = shifted % turn
    return shifted - np.pi


def delta_phi(one: Any, other: Any) -> Any:
    """Difference of the angles of two momenta in [−π, π), rad [B]."""
    return wrap(one.phi - other.phi)


def delta_r(one: Any, other: Any) -> Any:
    """ΔR = √(Δη² + Δφ²) of two momenta [B]."""
    return np.sqrt((one.eta - other.eta) ** 2 + delta_phi(one, other) ** 2)


class Along(NamedTuple):
    """What a momentum has along the beam, pz, and its energy, GeV [B]."""

    pz: Any
    energy: Any


def along(pt: Any, eta: Any, phi: Any, mass: Any) -> Along:
    """pz and energy of a momentum; a negative mass counts as a negative square of a mass, as in `vector`."""
    half = 0.5 * np.exp(eta)
    pz = pt * (half - 0.25 / half)  # sinh, but faster
    return Along(pz, np.sqrt(pt * pt + pz * pz + np.copysign(mass * mass, mass)))


def transverse_mass(lepton: Any, met: Any) -> Any:
    """m_T = √(2 pt met (1 − cos Δφ)) of a lepton and the missing momentum, GeV [B]."""
    return 2 * np.sqrt(lepton.pt * met.pt) * np.abs(np.sin(0.5 * (lepton.phi - met.phi)))


def contransverse_mass(b1: Any, b2: Any) -> Any:
    """m_CT = √(2 pt1 pt2 (1 + cos Δφ)), massless form (Tovey, arXiv:0802.2879), GeV [B].

    For a pair of top quarks m_CT of the b-jets ends near 135 GeV: (m_t² − m_W²) / m_t.
    """
    return 2 * np.sqrt(b1.pt * b2.pt) * np.abs(np.cos(0.5 * (b1.phi - b2.phi)))


def pair_pt(one: Any, other: Any, mct: Any) -> Any:
    """Transverse momentum of two momenta with the contransverse mass `mct`, GeV [B]: √((pt1 − pt2)² + m_CT²), a sum in
    which nothing cancels."""
    return np.sqrt((one.pt - other.pt) ** 2 + mct * mct)


def pair_mass(pt: Any, one: Along, other: Along) -> Any:
    """Invariant mass of two momenta with the transverse momentum `pt` together, GeV [B]; of a negative square it is
    minus the root."""
    pz, energy = one.pz + other.pz, one.energy + other.energy
    squared = energy * energy - pz * pz - pt * pt
    return np.copysign(np.sqrt(np.abs(squared)), squared)


def invariant_mass(one: Any, other: Any) -> Any:
    """Invariant mass of two momenta, GeV [B]."""
    return pair_mass(pair_pt(one, other, contransverse_mass(one, other)), along(*one), along(*other))


def nearest_mass(lepton: Any, bjets: Collection) -> Any:
    """Mass of the lepton [B] and the b-jet nearest in ΔR, GeV [B]; NaN where either is missing."""
    bjets = _with_along(bjets)
    eta, phi = (np.asarray(values)[bjets.event] for values in (lepton.eta, lepton.phi))
    nearest = bjets.least((bjets["eta"] - eta) ** 2 + wrap(bjets["phi"] - phi) ** 2)
    own = Momentum(*(np.asarray(getattr(lepton, name)) for name in Momentum._fields))
    other = _momentum(bjets, nearest)
    return pair_mass(pair_pt(own, other, contransverse_mass(own, other)), along(*own), _along(bjets, nearest))


def _with_along(objects: Collection) -> Collection:
    """The objects with `along` as further fields, computed once."""
    if "energy" in objects:
        return objects
    return objects.with_fields(**along(*(objects[name] for name in Momentum._fields))._asdict())


def jet_resolution(pt: Any) -> Any:
    """Relative jet energy resolution at `pt` GeV: noise 3.3 GeV, stochastic 0.74 √GeV, constant 0.03, in quadrature.

    Source: arXiv:2007.02645 (approximate).

    >>> round(float(jet_resolution(20.0)), 3), round(float(jet_resolution(300.0)), 3)
    (0.236, 0.053)
    """
    return np.sqrt((3.3 / pt) ** 2 + 0.74**2 / pt + 0.03**2)


def lepton_resolution(code: Any, energy: Any, pt: Any) -> Any:
    """Relative resolution: electrons (code 11) 10 %/√E ⊕ 1 %, muons 2 % ⊕ 0.01 % pt; E and pt in GeV."""
    return np.where(code == 13, np.hypot(0.02, 1e-4 * pt), np.hypot(0.10 / np.sqrt(energy), 0.01))


SOFT_RESOLUTION = 8.9  # GeV per axis


def met_significance(pt: Float64, phi: Float64, jets: Collection, leptons: Collection) -> Float64:
    """Object-based significance of the missing momentum, √(mᵀ V⁻¹ m) [B], where a file does not have it.

    V sums the covariances of the jets and leptons, each its pt resolution along its direction, and 8.9 GeV per axis
    for the soft term. Leptons without a `flavour` (11 or 13) count as electrons. Source: ATLAS-CONF-2018-038
    (approximate).
    """
    code = np.abs(leptons["flavour"]) if "flavour" in leptons else np.full(len(leptons["pt"]), 11)
    sigma = lepton_resolution(code, leptons["pt"] * np.cosh(leptons["eta"]), leptons["pt"]) * leptons["pt"]
    covariance = np.full((3, len(pt)), SOFT_RESOLUTION**2)
    covariance[2] = 0
    for objects, along in ((jets, jet_resolution(jets["pt"]) * jets["pt"]), (leptons, sigma)):
        x, y = along * np.cos(objects["phi"]), along * np.sin(objects["phi"])
        for entry, product in zip(covariance, (x * x, y * y, x * y), strict=True):
            entry += objects.total(product)
    return _significance(pt * np.cos(phi), pt * np.sin(phi), *covariance)


def significance(px: Any, py: Any, phi: Any, sigma: Any) -> Any:
    """S = √(mᵀ V⁻¹ m) [B], which is E_T^miss / √(V_L (1 − ρ_LT²)).

    px, py: components m of the missing momentum, GeV [B]; phi, sigma: directions of the objects, rad, and their
    resolutions along them, GeV, awkward [B, var]. V sums their covariances and that of the soft term.
    """
    vxx = ak.sum((sigma * np.cos(phi)) ** 2, axis=1) + SOFT_RESOLUTION**2
    vyy = ak.sum((sigma * np.sin(phi)) ** 2, axis=1) + SOFT_RESOLUTION**2
    return _significance(px, py, vxx, vyy, ak.sum(sigma**2 * np.sin(phi) * np.cos(phi), axis=1))


def _significance(px: Any, py: Any, vxx: Any, vyy: Any, vxy: Any) -> Any:
    return np.sqrt((px**2 * vyy - 2 * px * py * vxy + py**2 * vxx) / (vxx * vyy - vxy**2))


class Event:
    """The objects of the events as observables need them: collections, and the leading objects [B]."""

    def __init__(self, objects: Mapping[str, Collection]) -> None:
        self.jets, self.bjets, self.leptons = objects["jet"], _with_along(objects["bjet"]), objects["lepton"]
        first, second = (self.bjets.place(rank) for rank in (0, 1))
        self.b1, self.b2 = _momentum(self.bjets, first), _momentum(self.bjets, second)
        self.mct = contransverse_mass(self.b1, self.b2)
        self.pt_bb = pair_pt(self.b1, self.b2, self.mct)
        self.mbb = pair_mass(self.pt_bb, _along(self.bjets, first), _along(self.bjets, second))
        self.lepton = _momentum(self.leptons, self.leptons.place(0))
        self.met = Momentum(*(objects["met"][name] for name in Momentum._fields))
        self.met_significance = objects["met"]["significance"]


def _momentum(objects: Collection, place: npt.NDArray[np.int64]) -> Momentum:
    return Momentum(*objects.take(place, *Momentum._fields))


def _along(objects: Collection, place: npt.NDArray[np.int64]) -> Along:
    return Along(*objects.take(place, *Along._fields))


@dataclass(frozen=True)
class Observable:
    """A derived quantity of an event: its unit, its label on a plot, the node types it is made of, and how it is
    computed from the objects."""

    unit: str
    label: str
    types: tuple[str, ...]
    compute: Callable[[Event], Any]


OBSERVABLES: dict[str, Observable] = {
    "mbb": Observable("GeV", r"$m_{bb}$", ("bjet",), lambda e: e.mbb),
    "mt": Observable("GeV", r"$m_{T}$", ("lepton", "met"), lambda e: transverse_mass(e.lepton, e.met)),
    "mct": Observable("GeV", r"$m_{CT}$", ("bjet",), lambda e: e.mct),
    "met": Observable("GeV", r"$E_{T}^{miss}$", ("met",), lambda e: e.met.pt),
    "met_significance": Observable("", r"$E_{T}^{miss}$ significance", ("met",), lambda e: e.met_significance),
    "delta_r_bb": Observable("", r"$\Delta R(b,b)$", ("bjet",), lambda e: delta_r(e.b1, e.b2)),
    "delta_phi_bb": Observable("rad", r"$|\Delta\phi(b,b)|$", ("bjet",), lambda e: np.abs(delta_phi(e.b1, e.b2))),
    "pt_bb": Observable("GeV", r"$p_{T}^{bb}$", ("bjet",), lambda e: e.pt_bb),
    "mlb": Observable("GeV", r"$m_{\ell b}$", ("lepton", "bjet"), lambda e: nearest_mass(e.lepton, e.bjets)),
    "ht": Observable("GeV", r"$H_{T}$", ("bjet", "jet"), lambda e: e.jets.total(e.jets["pt"])),
    "n_jet": Observable("", r"$N_{jet}$", ("jet",), lambda e: e.jets.counts),
    "lepton_pt": Observable("GeV", r"$p_{T}^{\ell}$", ("lepton",), lambda e: e.lepton.pt),
    "b1_pt": Observable("GeV", r"$p_{T}^{b_1}$", ("bjet",), lambda e: e.b1.pt),
    "b2_pt": Observable("GeV", r"$p_{T}^{b_2}$", ("bjet",), lambda e: e.b2.pt),
    "delta_phi_lepton_met": Observable(
        "rad", r"$|\Delta\phi(\ell,E_{T}^{miss})|$", ("lepton", "met"), lambda e: np.abs(delta_phi(e.lepton, e.met))
    ),
    "n_bjet": Observable("", r"$N_{b-jet}$", ("bjet",), lambda e: e.bjets.counts),
    "n_lepton": Observable("", r"$N_{\ell}$", ("lepton",), lambda e: e.leptons.counts),
}
"""Every observable an event has."""
HIGH_LEVEL = tuple(name for name in OBSERVABLES if name not in ("n_bjet", "n_lepton"))
"""The fifteen that trees are given."""


def observables(objects: Mapping[str, Collection]) -> dict[str, Float64]:
    """All observables of the events, float64 [B]; NaN where an object is missing.

    `objects` maps jet, bjet, lepton to objects sorted by falling pt, and met to one per event with a `significance`.
    """
    event = Event(objects)
    return {name: np.asarray(each.compute(event), dtype=np.float64) for name, each in OBSERVABLES.items()}
