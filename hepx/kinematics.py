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
