"""Physics observables as pure functions of momenta; GeV and rad in and out.

Momenta are `vector` arrays (numpy or awkward) of shape [B], or [B, var] for collections. A missing object is None in
an awkward array and gives NaN in `observables`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import vector

vector.register_awkward()

Momenta = Any  # a `vector` array; its classes are created at run time and cannot be named in a type
Objects = Mapping[str, Momenta]


def transverse_mass(lepton: Momenta, met: Momenta) -> Any:
    """m_T = √(2 pt met (1 − cos Δφ)) of a lepton and the missing momentum, GeV [B]."""
    return np.sqrt(2 * lepton.pt * met.pt * (1 - np.cos(lepton.deltaphi(met))))


def contransverse_mass(b1: Momenta, b2: Momenta) -> Any:
    """m_CT = √(2 pt1 pt2 (1 + cos Δφ)), massless form (Tovey, arXiv:0802.2879), GeV [B].

    For a pair of top quarks m_CT of the b-jets ends near 135 GeV: (m_t² − m_W²) / m_t.
    """
    return np.sqrt(2 * b1.pt * b2.pt * (1 + np.cos(b1.deltaphi(b2))))


def nearest_mass(lepton: Momenta, bjets: Momenta) -> Any:
    """Mass of the lepton [B] and the b-jet [B, var] nearest in ΔR, GeV [B]; None where there is no b-jet."""
    nearest = ak.argmin(lepton.deltaR(bjets), axis=1, keepdims=True)
    return (lepton + ak.firsts(bjets[nearest])).mass


def jet_resolution(pt: Any) -> Any:
    """Relative jet energy resolution at `pt` GeV: noise 3.3 GeV, stochastic 0.74 √GeV, constant 0.03, in quadrature.

    Source: arXiv:2007.02645 (approximate).

    >>> round(float(jet_resolution(20.0)), 3), round(float(jet_resolution(300.0)), 3)
    (0.236, 0.053)
    """
    return np.sqrt((3.3 / pt) ** 2 + 0.74**2 / pt + 0.03**2)


def lepton_resolution(code: Any, energy: Any, pt: Any) -> Any:
    """Relative resolution: electrons (code 11) 10 %/√E ⊕ 1 %, muons 2 % ⊕ 0.01 % pt; E and pt in GeV."""
    return ak.where(code == 13, np.hypot(0.02, 1e-4 * pt), np.hypot(0.10 / np.sqrt(energy), 0.01))


SOFT_RESOLUTION = 8.9  # GeV per axis


def met_significance(met: Momenta, jets: Momenta, leptons: Momenta) -> npt.NDArray[np.float64]:
    """Object-based significance of the missing momentum, √(mᵀ V⁻¹ m) [B], where a file does not have it.

    V sums the covariances of the jets and leptons, each its pt resolution along its direction, and 8.9 GeV per axis
    for the soft term. Leptons without a `flavour` (11 or 13) count as electrons. Source: ATLAS-CONF-2018-038
    (approximate).
    """
    code = leptons["flavour"] if "flavour" in leptons.fields else leptons.pt * 0 + 11
    jet_sigma = jet_resolution(jets.pt) * jets.pt
    lepton_sigma = lepton_resolution(abs(code), leptons.pt * np.cosh(leptons.eta), leptons.pt) * leptons.pt
    phi, sigma = (ak.concatenate(parts, axis=1) for parts in ((jets.phi, leptons.phi), (jet_sigma, lepton_sigma)))
    return _column(significance(met.pt * np.cos(met.phi), met.pt * np.sin(met.phi), phi, sigma))


def significance(px: Any, py: Any, phi: Any, sigma: Any) -> Any:
    """S = √(mᵀ V⁻¹ m) [B], which is E_T^miss / √(V_L (1 − ρ_LT²)).

    px, py: components m of the missing momentum, GeV [B]; phi, sigma: directions of the objects, rad [B, var], and
    their resolutions along them, GeV [B, var]. V sums their covariances and that of the soft term.
    """
    vxx = ak.sum((sigma * np.cos(phi)) ** 2, axis=1) + SOFT_RESOLUTION**2
    vyy = ak.sum((sigma * np.sin(phi)) ** 2, axis=1) + SOFT_RESOLUTION**2
    vxy = ak.sum(sigma**2 * np.sin(phi) * np.cos(phi), axis=1)
    return np.sqrt((px**2 * vyy - 2 * px * py * vxy + py**2 * vxx) / (vxx * vyy - vxy**2))


@dataclass(frozen=True)
class Observable:
    """A derived quantity of an event: its unit, its label on a plot, the node types it is made of, and how it is
    computed from the objects."""

    unit: str
    label: str
    types: tuple[str, ...]
    compute: Callable[[Objects], Any]


def _item(collection: str, index: int) -> Callable[[Objects], Momenta]:
    return lambda objects: ak.pad_none(objects[collection], index + 1, axis=1)[:, index]


_b1, _b2, _lepton = _item("bjet", 0), _item("bjet", 1), _item("lepton", 0)

OBSERVABLES: dict[str, Observable] = {
    "mbb": Observable("GeV", r"$m_{bb}$", ("bjet",), lambda o: (_b1(o) + _b2(o)).mass),
    "mt": Observable("GeV", r"$m_{T}$", ("lepton", "met"), lambda o: transverse_mass(_lepton(o), o["met"])),
    "mct": Observable("GeV", r"$m_{CT}$", ("bjet",), lambda o: contransverse_mass(_b1(o), _b2(o))),
    "met": Observable("GeV", r"$E_{T}^{miss}$", ("met",), lambda o: o["met"].pt),
    "met_significance": Observable("", r"$E_{T}^{miss}$ significance", ("met",), lambda o: o["met"]["significance"]),
    "delta_r_bb": Observable("", r"$\Delta R(b,b)$", ("bjet",), lambda o: _b1(o).deltaR(_b2(o))),
    "delta_phi_bb": Observable("rad", r"$|\Delta\phi(b,b)|$", ("bjet",), lambda o: np.abs(_b1(o).deltaphi(_b2(o)))),
    "pt_bb": Observable("GeV", r"$p_{T}^{bb}$", ("bjet",), lambda o: (_b1(o) + _b2(o)).pt),
    "mlb": Observable("GeV", r"$m_{\ell b}$", ("lepton", "bjet"), lambda o: nearest_mass(_lepton(o), o["bjet"])),
    "ht": Observable("GeV", r"$H_{T}$", ("bjet", "jet"), lambda o: ak.sum(o["jet"].pt, axis=1)),
    "n_jet": Observable("", r"$N_{jet}$", ("jet",), lambda o: ak.num(o["jet"])),
    "lepton_pt": Observable("GeV", r"$p_{T}^{\ell}$", ("lepton",), lambda o: _lepton(o).pt),
    "b1_pt": Observable("GeV", r"$p_{T}^{b_1}$", ("bjet",), lambda o: _b1(o).pt),
    "b2_pt": Observable("GeV", r"$p_{T}^{b_2}$", ("bjet",), lambda o: _b2(o).pt),
    "delta_phi_lepton_met": Observable(
        "rad", r"$|\Delta\phi(\ell,E_{T}^{miss})|$", ("lepton", "met"), lambda o: np.abs(_lepton(o).deltaphi(o["met"]))
    ),
    "n_bjet": Observable("", r"$N_{b-jet}$", ("bjet",), lambda o: ak.num(o["bjet"])),
    "n_lepton": Observable("", r"$N_{\ell}$", ("lepton",), lambda o: ak.num(o["lepton"])),
}
"""Every observable an event has; the first fifteen are the high-level inputs of the reference trees."""


def observables(objects: Objects) -> dict[str, npt.NDArray[np.float64]]:
    """All observables of the events, float64 [B]; NaN where an object is missing.

    `objects` maps jet, bjet, lepton to momenta [B, var] sorted by falling pt and met to momenta [B] with a
    `significance` field.
    """
    return {name: _column(observable.compute(objects)) for name, observable in OBSERVABLES.items()}


def _column(values: Any) -> npt.NDArray[np.float64]:
    return ak.to_numpy(ak.fill_none(ak.values_astype(values, np.float64), np.nan)).astype(np.float64)
