"""What really happened: from the event record of the generator to the truth labels of jets.

* `jet_truthflav`: 5, 4 or 15 if a b hadron, c hadron or tau with pt > 5 GeV lies within 0.3 of the jet, in this order,
  otherwise 0; after ATLAS' HadronConeExclTruthLabelID.
* `jet_truth_parent`: the PDG id of the resonance from which most of the transverse momentum within the radius of the
  jet descends, summed over the partons and taus after the showers: 25 Higgs, 6 top (its b quark), 24 W; 0 means
  radiation, or a quark of the hard process that comes from no resonance.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import vector

from hepx.simulate.generator import INVISIBLE

Integers = npt.NDArray[np.int64]

HADRON, TOP, W, HIGGS = 1, 6, 24, 25
LABEL_RADIUS, LABEL_PT = 0.3, 5.0
CALORIMETER_ETA, MUON_ETA = 4.9, 2.5


def describe(records: Any) -> Any:
    """Momenta `[B, var]` (GeV) with code (PDG id) and what is asked of every particle.

    The masks: `final`; `invisible`, final neutrinos and neutralinos; `seen`, final particles in the calorimeter
    (|eta| < 4.9, no muons); `jet_muon`, muons of hadron decays in the tracker; `last`, partons and taus after the
    showers. `origin`: see `nearest_ancestor`.
    """
    counts = ak.to_numpy(ak.num(records))
    code, status, mother, mother2 = (
        ak.to_numpy(ak.flatten(records[name])) for name in ("id", "status", "mother1", "mother2")
    )
    momentum = vector.array({axis: ak.to_numpy(ak.flatten(records.p[axis])) for axis in ("px", "py", "pz")})
    first = np.repeat(np.cumsum(counts) - counts, counts)
    final, invisible, muon = status > 0, np.isin(np.abs(code), INVISIBLE), np.abs(code) == 13
    abs_eta, mother = np.abs(momentum.eta), mother + first
    origin = nearest_ancestor(origin_labels(code, status, mother), mother)
    columns = {
        "code": code,
        "final": final,
        "invisible": final & invisible,
        "seen": final & ~invisible & ~muon & (abs_eta < CALORIMETER_ETA),
        "jet_muon": final & muon & (origin == HADRON) & (abs_eta < MUON_ETA),
        "last": is_last(code, mother, mother2 + first),
        "origin": origin,
    }
    p = records.p
    ragged = {name: ak.unflatten(values, counts) for name, values in columns.items()}
    return vector.zip({"px": p.px, "py": p.py, "pz": p.pz, "energy": p.e} | ragged)


def is_last(code: npt.NDArray[Any], mother: npt.NDArray[Any], mother2: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Mask of partons and taus that no other parton or tau descends from, all arrays `[particles]`."""
    parton = np.isin(np.abs(code), (1, 2, 3, 4, 5, 15, 21))
    splits = np.zeros(len(code), dtype=bool)
    splits[mother[parton]] = True
    splits[mother2[parton]] = True
    return parton & ~splits


def origin_labels(code: npt.NDArray[Any], status: npt.NDArray[Any], mother: npt.NDArray[Any]) -> Integers:
    """What a particle says about its descendants, all arrays `[particles]`: TOP, W, HIGGS, HADRON or 0 (ask on).

    A decay product of a resonance carries the PDG id of the resonance; a gluon or photon radiated by the resonance
    before it decays does not, nor does a copy of the resonance. Hadrons carry HADRON, the beams nothing.
    """
    absolute, parent = np.abs(code), np.abs(code[mother])
    product = np.isin(parent, (TOP, W, HIGGS)) & ~np.isin(absolute, (21, 22)) & (absolute != parent)
    hadron = (absolute > 100) & (absolute < 1_000_000) & (status != -12)
    return np.where(product, parent, np.where(hadron, HADRON, 0)).astype(np.int64)


def nearest_ancestor(labels: Integers, mother: Integers) -> Integers:
    """The first non-zero label on the way up, the particle included; 0 when there is none.

    Args:
        labels: `[particles]`, 0 = no label.
        mother: `[particles]`, index of the mother; the first entry of an event is its own mother.

    Each pass doubles the distance looked back, so a history of length n takes log2(n) passes.

    >>> nearest_ancestor(np.array([0, 6, 0, 24, 0]), np.array([0, 0, 1, 2, 3])).tolist()
    [0, 6, 6, 24, 24]
    """
    labels, ancestor = labels.copy(), mother
    while True:
        labels = np.where(labels == 0, labels[ancestor], labels)
        older = ancestor[ancestor]
        if np.array_equal(older, ancestor):
            return labels
        ancestor = older


def label(jets: Any, particles: Any, radius: float) -> Any:
    """Add truthflav and truth_parent to jets `[B, var]` of the given radius."""
    code = abs(particles.code)
    kinds = {15: code == 15, 4: holds(code, 4), 5: holds(code, 5)}  # the last one found wins
    flavour = ak.values_astype(ak.zeros_like(jets.pt), np.int64)
    for name, mask in kinds.items():
        near = (
            jets[:, :, np.newaxis].deltaR(particles[mask & (particles.pt > LABEL_PT)][:, np.newaxis, :]) < LABEL_RADIUS
        )
        flavour = ak.where(ak.any(near, axis=-1), name, flavour)
    return ak.with_field(
        ak.with_field(jets, flavour, "truthflav"), truth_parent(jets, particles, radius), "truth_parent"
    )


def truth_parent(jets: Any, particles: Any, radius: float) -> Any:
    """PDG id of the resonance, or 0, that gives most of the parton pt in each jet `[B, var]`."""
    partons = particles[particles.last]
    near = jets[:, :, np.newaxis].deltaR(partons[:, np.newaxis, :]) < radius
    best = parent = ak.values_astype(ak.zeros_like(jets.pt), np.int64)
    for name in (0, TOP, W, HIGGS):
        share = ak.sum((partons.pt * (partons.origin == name))[:, np.newaxis, :] * near, axis=-1)
        parent = ak.where(share > best, name, parent)
        best = np.maximum(share, best)
    return parent


def holds(code: Any, quark: int) -> Any:
    """Mask of hadrons whose heaviest quark, by their PDG id without sign, is `quark` (4 or 5)."""
    return (code > 100) & (code < 1_000_000) & (((code // 100) % 10 == quark) | ((code // 1000) % 10 == quark))
