"""A toy ATLAS detector: from particles to one lepton, jets with b-tags, and missing transverse momentum.

Every function works on a whole batch of events at once. There is no pile-up, no fake lepton, no trigger, no tau
identification. Constants, with their sources (those quoted from memory are marked approximate):

* jets: anti-kt, R = 0.4 (arXiv:0802.1189); energy resolution N, S, C: arXiv:2007.02645 (approximate), 24 % at 20 GeV
  and 5 % at 300 GeV;
* b-tagging at the 60, 70, 77 and 85 % working points: ATL-PHYS-PUB-2016-012, table 2 (approximate); dependence on pt:
  the ATLAS card of Delphes, after ATL-PHYS-PUB-2015-022;
* electron identification: arXiv:1902.04655, muon identification: arXiv:1603.05598 (both approximate, flat);
* missing transverse momentum and its significance: ATLAS-CONF-2018-038 (approximate).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import vector

from hepx.kinematics import SOFT_RESOLUTION, jet_resolution, lepton_resolution, significance
from hepx.simulate.truth import HADRON, MUON_ETA, describe, label

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

JET_RADIUS = 0.4
JET_PT, JET_ETA = 30.0, 2.8
TAG_ETA = 2.5
MET_JET_PT = 20.0
SOFT_RESPONSE = 0.6

LEPTON_PT, VETO_PT = 25.0, 7.0
ELECTRON_ETA = 2.47
ELECTRON_TIGHT, MUON_MEDIUM, LEPTON_LOOSE = 0.78, 0.95, 0.95  # identification and isolation
MUON_MASS = 0.10566

# Efficiency of the working points 85, 77, 70, 60 % for each flavour at the pt where the b efficiency is nominal.
# Passing none is quantile 1, passing the first only is 2, ..., passing all is 5; 77 % means quantile >= 3.
TAG_EFFICIENCY = {
    5: np.array([0.85, 0.77, 0.70, 0.60]),
    4: 1 / np.array([3.1, 6.0, 12.0, 34.0]),
    15: 1 / np.array([8.2, 22.0, 55.0, 184.0]),
    0: 1 / np.array([33.0, 134.0, 381.0, 1538.0]),
}
TAG_QUANTILE = 3

# Efficiencies are not applied by throwing events away but by accepting with probability / maximum, which keeps more
# of the generated events and the same distributions. The maxima go into every event's mcWeight.
TAG_MAXIMUM, LEPTON_MAXIMUM = 0.66, 0.95
UNWEIGHTING = TAG_MAXIMUM * LEPTON_MAXIMUM


def reconstruct(records: Any, met_min: float, rng: np.random.Generator) -> tuple[ak.Array, Integers]:
    """Reconstruct a batch and select one lepton, 2-3 jets, exactly two b-tags (77 %), met > met_min.

    Args:
        records: particles `[B, var]` as yielded by `hepx.simulate.generator.generate`.
        met_min: cut on the missing transverse momentum (GeV).
        rng: source of every random number used.

    Returns:
        The selected events, one record each with the branches lep_*, jet_*, met*, truth_*, trig* (GeV, rad), and
        which of the batch they are. Their weight is UNWEIGHTING times that of the generated event.
    """
    particles = describe(records)
    particles, lepton, found = choose_lepton(particles, rng)
    jets = cluster(particles, rng)
    jets, isolated = remove_overlap(jets, lepton)
    met, met_sig = missing_momentum(particles, jets, lepton, rng)
    jets = jets[(jets.pt > JET_PT) & (abs(jets.eta) < JET_ETA)]
    num_jets = ak.num(jets)
    keep = ak.to_numpy((num_jets >= 2) & (num_jets <= 3) & (met.pt > met_min) & isolated)
    particles, jets, lepton, met, met_sig = (array[keep] for array in (particles, jets, lepton, met, met_sig))
    jets = label(jets, particles, JET_RADIUS)
    quantile = tag(jets.truthflav, jets.pt, jets.eta, rng)
    index = np.flatnonzero(found)[keep]
    keep = ak.to_numpy(ak.num(quantile) > 0)
    truth_met = total(particles[particles.invisible])
    selected = output(jets, quantile, lepton, met, met_sig, truth_met)[keep]
    # without the behaviours of vector, which cannot be sent between processes
    return ak.Array(selected.layout), index[keep]


def output(jets: Any, quantile: Any, lepton: Any, met: Any, met_sig: Any, truth_met: Any) -> ak.Array:
    """The branches of the reconstructed events, without normalisation."""
    one = {
        "lep_type": lepton.code,
        "lep_pt": lepton.pt,
        "lep_eta": lepton.eta,
        "lep_phi": lepton.phi,
        "lep_e": lepton.energy,
        "lep_charge": lepton.charge,
    }
    return ak.zip(
        {
            "trigE": lepton.code == 11,
            "trigM": lepton.code == 13,
            "trigMET": met.pt > 200.0,
            "met": met.pt,
            "met_phi": met.phi,
            "met_mpx": met.px,
            "met_mpy": met.py,
            "met_sig": met_sig,
            "truth_met": truth_met.pt,
            "truth_met_phi": truth_met.phi,
            **{name: values[:, np.newaxis] for name, values in one.items()},
            "jet_pt": jets.pt,
            "jet_eta": jets.eta,
            "jet_phi": jets.phi,
            "jet_e": jets.energy,
            "jet_btag_quantile": quantile,
            "jet_jvt": jets.pt > 0,
            "jet_truthflav": jets.truthflav,
            "jet_truth_parent": jets.truth_parent,
        },
        depth_limit=1,
    )


def total(momenta: Any) -> Any:
    """Transverse vector sum over the objects of each event, `[B]`."""
    return vector.zip({"px": ak.sum(momenta.px, axis=1), "py": ak.sum(momenta.py, axis=1)})


# --- leptons -----------------------------------------------------------------------------------------------------


def choose(weights: Floats, maximum: float, rng: np.random.Generator) -> Integers:
    """Draw one column per row with probability weights / maximum; -1 where none is drawn.

    Args:
        weights: `[B, n]`, not negative, each row sums to at most `maximum`.
        maximum: the largest possible sum of a row.
        rng: source of random numbers.
    """
    edges = np.cumsum(weights, axis=1) / maximum
    index = np.sum(rng.random((len(weights), 1)) >= edges, axis=1)
    return np.where(index < weights.shape[1], index, -1)


def choose_lepton(particles: Any, rng: np.random.Generator) -> tuple[Any, Any, npt.NDArray[np.bool_]]:
    """Events with exactly one identified lepton: particles `[B', var]`, the lepton `[B']`, and which they are `[B]`.

    Prompt electrons and muons, those of leptonic taus included. The lepton is identified (electron tight, muon
    medium, pt > 25 GeV) while every other one above 7 GeV fails the loose criteria.
    """
    code = abs(particles.code)
    prompt = particles.final & ((code == 11) | (code == 13)) & (particles.origin != HADRON)
    leptons = measure_leptons(particles[prompt], rng)
    inside = abs(leptons.eta) < ak.where(leptons.code == 11, ELECTRON_ETA, MUON_ETA)
    leptons = leptons[inside & (leptons.pt > VETO_PT)]
    efficiency = ak.where(leptons.code == 11, ELECTRON_TIGHT, MUON_MEDIUM) * (leptons.pt > LEPTON_PT)
    others_fail = (1 - LEPTON_LOOSE) ** (ak.num(leptons) - 1)
    index = choose(padded(efficiency * others_fail), LEPTON_MAXIMUM, rng)
    found = index >= 0
    chosen = leptons[found][ak.local_index(leptons[found]) == index[found]]
    return particles[found], ak.flatten(chosen), found


def measure_leptons(leptons: Any, rng: np.random.Generator) -> Any:
    """Leptons `[B, var]` with a smeared energy, `sigma` (GeV), charge and code (11 or 13)."""
    code = abs(leptons.code)
    relative = lepton_resolution(code, leptons.energy, leptons.pt)
    scale = 1 + relative * normal_like(relative, rng)
    pt = leptons.pt * scale
    mass = ak.where(code == 13, MUON_MASS, 0.0)
    return vector.zip(
        {"pt": pt, "eta": leptons.eta, "phi": leptons.phi, "mass": mass}
        | {"sigma": relative * pt, "code": code, "charge": ak.where(leptons.code > 0, -1, 1)}
        | {"true_px": leptons.px, "true_py": leptons.py}
    )


# --- jets --------------------------------------------------------------------------------------------------------


def cluster(particles: Any, rng: np.random.Generator) -> Any:
    """Anti-kt jets `[B, var]` of what the calorimeter sees, energy smeared, by falling pt, true pt > 10 GeV."""
    import fastjet

    silence_fastjet()
    seen = particles[particles.seen]
    inputs = ak.zip({"px": seen.px, "py": seen.py, "pz": seen.pz, "E": seen.energy})
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, JET_RADIUS)
    found = fastjet.ClusterSequence(inputs, definition).inclusive_jets(min_pt=10.0)
    jets = vector.zip({"px": found.px, "py": found.py, "pz": found.pz, "energy": found.E})
    relative = jet_resolution(jets.pt)
    # The lower bound only stops a jet from turning around; for the softest jets it is 2.2 sigma away.
    scale = np.maximum(1 + relative * normal_like(relative, rng), 0.1)
    smeared = vector.zip(
        {"pt": jets.pt * scale, "eta": jets.eta, "phi": jets.phi, "energy": jets.energy * scale}
        | {"sigma": jet_resolution(jets.pt * scale) * jets.pt * scale, "true_px": jets.px, "true_py": jets.py}
    )
    return smeared[ak.argsort(smeared.pt, ascending=False)]


def remove_overlap(jets: Any, lepton: Any) -> tuple[Any, Any]:
    """Jets that are not the electron, and whether the lepton `[B]` then is outside every jet.

    Jet within 0.2 of the electron; electron within 0.4 and muon within min(0.4, 0.04 + 10 GeV / pt) of a jet.
    """
    distance = jets.deltaR(lepton)
    electron = lepton.code == 11
    keep = ~electron | (distance > 0.2)
    jets, distance = jets[keep], distance[keep]
    radius = ak.where(electron, 0.4, np.minimum(0.4, 0.04 + 10.0 / lepton.pt))
    return jets, ~ak.any((distance < radius) & (jets.pt > MET_JET_PT), axis=1)


# --- b-tagging ---------------------------------------------------------------------------------------------------


def tag_shape(pt: Any) -> Any:
    """Efficiency at `pt` (GeV) relative to nominal: the 70 % working point of the ATLAS Delphes card, over 0.70."""
    return 0.80 * np.tanh(0.003 * pt) * 30 / (1 + 0.086 * pt) / 0.70


def tag_efficiency(flavour: Integers, pt: Floats, eta: Floats) -> Floats:
    """Efficiencies `[..., 4]` of the working points 85, 77, 70, 60 % for jets of any shape; 0 outside |eta| < 2.5."""
    nominal = np.zeros((*flavour.shape, 4))
    for code, values in TAG_EFFICIENCY.items():
        nominal[flavour == code] = values
    return nominal * (tag_shape(pt) * (np.abs(eta) < TAG_ETA))[..., np.newaxis]


def tag(flavour: Any, pt: Any, eta: Any, rng: np.random.Generator) -> Any:
    """Quantiles 1 to 5 of jets `[B, 2 or 3]` such that exactly two pass 77 %; no jets where the event is rejected.

    Args:
        flavour: 5, 4, 15 or 0, `[B, var]`.
        pt: GeV, `[B, var]`.
        eta: `[B, var]`.
        rng: source of random numbers.

    An event is accepted with its probability to have exactly two tags over TAG_MAXIMUM, and the tagged pair is drawn.
    """
    counts = ak.to_numpy(ak.num(pt))
    present = np.arange(3) < counts[:, np.newaxis]
    efficiency = tag_efficiency(*(padded(values, 3) for values in (flavour, pt, eta)))
    efficiency = efficiency * present[..., np.newaxis]
    untagged = choose(pair_probabilities(efficiency[..., 1]), TAG_MAXIMUM, rng)
    tagged = np.arange(3) != untagged[:, np.newaxis]
    quantile = draw_quantile(efficiency, tagged, rng)
    return ak.unflatten(quantile[present & (untagged >= 0)[:, np.newaxis]], np.where(untagged >= 0, counts, 0))


def pair_probabilities(efficiency: Floats) -> Floats:
    """`[B, 3]` -> `[B, 3]`: probability that every jet but jet k is tagged and jet k is not.

    >>> pair_probabilities(np.array([[0.5, 0.8, 0.0]])).tolist()
    [[0.0, 0.0, 0.4]]
    """
    return np.roll(efficiency, 1, axis=1) * np.roll(efficiency, 2, axis=1) * (1 - efficiency)


def draw_quantile(efficiency: Floats, tagged: npt.NDArray[np.bool_], rng: np.random.Generator) -> Integers:
    """Quantiles of jets with known 77 % decision: efficiencies `[..., 4]`, decisions `[...]`."""
    passing = efficiency[..., TAG_QUANTILE - 2]
    # A uniform number below the efficiency of a working point passes it: restrict it to the side already decided.
    uniform = rng.random(passing.shape)
    uniform = np.where(tagged, uniform * passing, passing + uniform * (1 - passing))
    return 1 + np.sum(uniform[..., np.newaxis] < efficiency, axis=-1)


# --- missing transverse momentum ---------------------------------------------------------------------------------


def missing_momentum(particles: Any, jets: Any, lepton: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Missing transverse momentum (vector, `[B]`, GeV) and its object-based significance `[B]`.

    Minus the sum of the jets above 20 GeV, the lepton, the muons of hadron decays, 0.6 of the true soft rest, and
    8.9 GeV of noise per axis.
    """
    hard = jets[jets.pt > MET_JET_PT]
    is_electron = lepton.code == 11  # a muon is not in the calorimeter
    true_electron = vector.zip({"px": lepton.true_px * is_electron, "py": lepton.true_py * is_electron})
    true_hard = vector.zip({"px": ak.sum(hard.true_px, axis=1), "py": ak.sum(hard.true_py, axis=1)})
    soft = total(particles[particles.seen]) - true_hard - true_electron
    noise = vector.zip({axis: SOFT_RESOLUTION * rng.standard_normal(len(hard)) for axis in ("px", "py")})
    muons = total(particles[particles.jet_muon])
    met = (total(hard) + lepton.to_Vector2D() + muons + soft.scale(SOFT_RESPONSE) + noise).scale(-1)
    objects = ak.concatenate([hard[["phi", "sigma"]], lepton[["phi", "sigma"]][:, np.newaxis]], axis=1)
    return met, significance(met.px, met.py, objects.phi, objects.sigma)


# --- helpers -----------------------------------------------------------------------------------------------------


def padded(values: Any, width: int | None = None) -> npt.NDArray[Any]:
    """A ragged array `[B, var]` as a dense one `[B, width]`, 0 where there is nothing."""
    width = int(ak.max(ak.num(values), initial=0)) if width is None else width
    return ak.to_numpy(ak.fill_none(ak.pad_none(values, width, clip=True), 0))


def normal_like(values: Any, rng: np.random.Generator) -> Any:
    """Standard normal numbers in the shape of a ragged array `[B, var]`."""
    counts = ak.num(values)
    return ak.unflatten(rng.standard_normal(int(ak.sum(counts))), counts)


@cache
def silence_fastjet() -> None:
    """Let FastJet write its banner where nobody reads it: the standard output belongs to the command line."""
    import fastjet

    with no_standard_output():
        fastjet._swig.ClusterSequence.print_banner()


@contextmanager
def no_standard_output() -> Iterator[None]:
    """Send what C++ code writes to the standard output to nowhere."""
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
