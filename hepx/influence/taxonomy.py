"""What may be odd about a training event, in terms of physics: by the truth where the sample has it, by rules else.

A category is a mask over the events and the events of which it can be said at all. An event can be in several, or in
none. None of them makes an event wrong: a leptonically decaying tau is a fact of nature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from hepx.config import Settings
from hepx.faithfulness import first_slots
from hepx.graph import DEFINED, RAW_FEATURES, GraphBatch
from hepx.influence.twins import Twins
from hepx.kinematics import Momentum, delta_r, transverse_mass

Array = npt.NDArray[Any]
HIGGS_WINDOW = (90.0, 150.0)
NEAREST = 0.2  # ΔR: no two jets (R = 0.4), and no jet and lepton after the usual overlap removal, are that close
MOST_ETA = {"jet": 4.5, "bjet": 2.5, "lepton": 2.7}  # calorimeters, tracker, muon chambers of ATLAS
CONTINUOUS = ("pt", "mass", "met_significance")  # features with tails; taken as logarithms


class TaxonomySettings(Settings):
    """Where the lines between ordinary and odd lie.

    w_edge (GeV): a W → ℓν alone gives no larger m_T, up to its width and the resolution. mismeasured (GeV): length of
    measured minus true missing momentum. imbalance (GeV): length of the sum of all transverse momenta of the graph,
    E_T^miss included, where the truth is not known; a graph that leaves out jets is not judged. extreme: interquartile
    ranges of ln(value) between a value and the quartiles of its process. huge: |weight| in medians of its process.
    overlap: log-odds with which trees on the observables, fitted on other training events, take an event for the other
    class. tolerance: see `find_twins`.
    """

    w_edge: float = Field(default=100.0, gt=0)
    mismeasured: float = Field(default=80.0, gt=0)
    imbalance: float = Field(default=150.0, gt=0)
    extreme: float = Field(default=3.0, gt=0)
    huge: float = Field(default=10.0, gt=1)
    overlap: float = Field(default=2.2, gt=0)
    tolerance: float = Field(default=1e-3, gt=0, lt=0.5)


@dataclass(frozen=True)
class TruthMet:
    """True missing transverse momentum: pt (GeV) and phi (rad) [B], NaN where it is not known."""

    pt: Array
    phi: Array


@dataclass(frozen=True)
class Category:
    """name and what it means; by: `truth`, `rule` (observables), or `both`, event by event; found [B]; known [B]: the
    events of which it can be said."""

    name: str
    what: str
    by: str
    found: Array
    known: Array


def categorize(
    graphs: GraphBatch, against: Array, twins: Twins, truth: TruthMet | None, settings: TaxonomySettings
) -> list[Category]:
    """All categories of some events. against [B]: log-odds of the other class by independent trees."""
    found = [
        _wrong_pair(graphs),
        _lost_lepton(graphs, truth, settings),
        _unbalanced(graphs, truth, settings),
        *_pathological(graphs, settings),
        _rule(
            "overlap",
            f"trees on the observables, fitted on other events, give the other class log-odds above {settings.overlap}",
            against > settings.overlap,
        ),
        _rule("duplicate", f"another training event agrees within {settings.tolerance:g}", twins.found),
        *_weights(graphs, settings),
    ]
    return [one for one in found if one.known.any()]


def _rule(name: str, what: str, found: Array, known: Array | None = None) -> Category:
    return Category(name, what, "rule", found, np.ones(len(found), dtype=bool) if known is None else known)


# With truth ---------------------------------------------------------------------------------------------------------


def _wrong_pair(graphs: GraphBatch) -> Category:
    """b-jets that are not the pair the process makes: by truth, its most frequent pair of parents (two of h → bb, one
    of each top quark); without truth, a signal event whose m_bb is far from the Higgs boson's mass."""
    mask, num_events = graphs.mask.numpy(), len(graphs)
    slots = [i for i, kind in enumerate(graphs.layout.types) if kind == "bjet"][:2]
    if len(slots) < 2:
        return Category("wrong_b_pair", "", "rule", np.zeros(num_events, bool), np.zeros(num_events, bool))
    both = mask[:, slots].all(1)
    parents = np.sort(np.abs(graphs.truth_parent.numpy()[:, slots].astype(np.int64)), axis=1)
    pair, weight, sample = parents[:, 0] * 10_000_000 + parents[:, 1], graphs.weight.numpy(), graphs.sample.numpy()
    expected, with_truth = np.zeros(num_events, dtype=np.int64), np.zeros(num_events, dtype=bool)
    for number in np.unique(sample[both & (pair > 0)]):
        own = both & (sample == number)
        values, index = np.unique(pair[own], return_inverse=True)
        expected[own] = values[np.argmax(np.bincount(index.reshape(-1), weight[own]))]
        with_truth |= own
    mbb = graphs.observable("mbb").numpy()
    outside = (mbb < HIGGS_WINDOW[0]) | (mbb > HIGGS_WINDOW[1])
    by_rule = both & ~with_truth & (graphs.y.numpy() == 1) & np.isfinite(mbb)
    what = (
        "the parents of the two b-jets are not the pair that is the most frequent in the process (truth); where there "
        f"is no truth, a signal event with m_bb outside {HIGGS_WINDOW[0]:g}–{HIGGS_WINDOW[1]:g} GeV"
    )
    found = np.where(with_truth, pair != expected, outside)
    return _both("wrong_b_pair", what, found, with_truth, by_rule)


def _both(name: str, what: str, found: Array, by_truth: Array, by_rule: Array) -> Category:
    """A category known by truth for some events and by a rule for others."""
    known = by_truth | by_rule
    by = "truth" if not by_rule.any() else "rule" if not by_truth.any() else "both"
    return Category(name, what, by, found & known, known)


def _lost_lepton(graphs: GraphBatch, truth: TruthMet | None, settings: TaxonomySettings) -> Category:
    """Background with more invisible momentum than one W → ℓν has: a second lepton, or a tau, was lost."""
    lepton, met = _momentum(graphs, "lepton"), _momentum(graphs, "met")
    background = graphs.y.numpy() == 0
    mt = transverse_mass(lepton, met)
    with_truth = np.zeros(len(graphs), dtype=bool)
    if truth is not None:
        true_mt = transverse_mass(lepton, Momentum(truth.pt, 0.0, truth.phi, 0.0))
        with_truth = background & np.isfinite(true_mt)
        mt = np.where(with_truth, true_mt, mt)
    what = (
        f"a background event with m_T above {settings.w_edge:g} GeV, of the lepton and the true missing momentum "
        "(truth) or the measured one (rule): a second lepton or a tau was lost"
    )
    return _both("lost_lepton", what, mt > settings.w_edge, with_truth, background & np.isfinite(mt) & ~with_truth)


def _unbalanced(graphs: GraphBatch, truth: TruthMet | None, settings: TaxonomySettings) -> Category:
    """Missing momentum that is not what escaped; without truth, that does not balance the objects."""
    met, pt, phi = _momentum(graphs, "met"), *(_feature(graphs, name) for name in ("pt", "phi"))
    x, y = met.pt * np.cos(met.phi), met.pt * np.sin(met.phi)
    with_truth, off = np.zeros(len(graphs), dtype=bool), np.full(len(graphs), np.nan)
    if truth is not None:
        off = np.hypot(x - truth.pt * np.cos(truth.phi), y - truth.pt * np.sin(truth.phi))
        with_truth = np.isfinite(off)
    first = first_slots(graphs)
    total = np.hypot((first * pt * np.cos(phi)).sum(1), (first * pt * np.sin(phi)).sum(1))
    jets = [i for i, kind in enumerate(graphs.layout.types) if kind in ("jet", "bjet")]
    whole = first[:, jets].sum(1) >= graphs.observable("n_jet").numpy()
    found = np.where(with_truth, off > settings.mismeasured, total > settings.imbalance)
    what = (
        f"measured and true missing momentum differ by more than {settings.mismeasured:g} GeV (truth), or the "
        f"transverse momenta of all objects and E_T^miss add up to more than {settings.imbalance:g} GeV (rule)"
    )
    return _both("unbalanced_met", what, found, with_truth, ~with_truth & whole & np.isfinite(x))


# By rules -----------------------------------------------------------------------------------------------------------


def _pathological(graphs: GraphBatch, settings: TaxonomySettings) -> Iterator[Category]:
    """Reconstruction that cannot be right, or that is very rare."""
    mask, types = graphs.mask.numpy(), graphs.layout.types
    pt, eta = _feature(graphs, "pt"), np.abs(_feature(graphs, "eta"))
    most = np.array([MOST_ETA.get(kind, np.inf) for kind in types])
    broken = (~np.isfinite(graphs.x.numpy()).all(-1) | (pt <= 0) | (eta > most)) & mask
    limits = ", ".join(f"{kind} {value:g}" for kind, value in MOST_ETA.items())
    yield _rule("outside_detector", f"an object without a positive pt, or with |η| above: {limits}", broken.any(1))
    yield _rule("merged_objects", f"two objects within ΔR = {NEAREST:g} of each other", _close_objects(graphs))
    what = f"a pt, mass or significance more than {settings.extreme:g} interquartile ranges (of its logarithm) outside"
    yield _rule("extreme_value", f"{what} the quartiles of its process", _extreme(graphs, settings.extreme))


def _close_objects(graphs: GraphBatch) -> Array:
    """Mask [B]: two different objects other than E_T^miss are nearly in one direction."""
    first, close = first_slots(graphs), np.zeros(len(graphs), dtype=bool)
    seen = [i for i, kind in enumerate(graphs.layout.types) if kind != "met"]
    for one, other in combinations(seen, 2):
        near = delta_r(_slot(graphs, one), _slot(graphs, other)) < NEAREST
        close |= near & first[:, one] & first[:, other]
    return close


def _extreme(graphs: GraphBatch, most: float) -> Array:
    """Mask [B]: a feature lies far outside what its process has in this slot."""
    mask, sample, far = graphs.mask.numpy(), graphs.sample.numpy(), np.zeros(len(graphs), dtype=bool)
    for slot, kind in enumerate(graphs.layout.types):
        for name in (name for name in CONTINUOUS if name in DEFINED[kind]):
            value = _feature(graphs, name)[:, slot]
            for number in np.unique(sample):
                own = mask[:, slot] & (sample == number) & (value > 0)
                if own.sum() < 20:  # no quartiles to speak of
                    continue
                log = np.log(value[own])
                low, high = np.quantile(log, (0.25, 0.75))
                far[own] |= (log < low - most * (high - low)) | (log > high + most * (high - low))
    return far


def _weights(graphs: GraphBatch, settings: TaxonomySettings) -> Iterator[Category]:
    """Events that count much more than others of their process, or against it."""
    weight = graphs.weight.numpy()
    what = f"|weight| above {settings.huge:g} times the median of its process"
    yield _rule("huge_weight", what, relative_weight(graphs) > settings.huge)
    if (weight < 0).any():
        yield _rule("negative_weight", "the event weight is negative", weight < 0)


def relative_weight(graphs: GraphBatch) -> Array:
    """|weight| [B] in units of the median |weight| of the process."""
    size, sample = np.abs(graphs.weight.numpy()), graphs.sample.numpy()
    median = np.ones(len(graphs.layout.samples))
    for number in np.unique(sample):
        median[number] = np.median(size[sample == number]) or 1.0
    return size / median[sample]


def _feature(graphs: GraphBatch, name: str) -> Array:
    return graphs.x[..., list(RAW_FEATURES).index(name)].double().numpy()


def _slot(graphs: GraphBatch, slot: int) -> Momentum:
    return Momentum(*(_feature(graphs, name)[:, slot] for name in Momentum._fields))


def _momentum(graphs: GraphBatch, kind: str) -> Momentum:
    """The leading object of a type [B], NaN where there is none."""
    slots = [i for i, one in enumerate(graphs.layout.types) if one == kind]
    if not slots:
        return Momentum(*np.full((4, len(graphs)), np.nan))
    present = graphs.mask[:, slots[0]].numpy()
    return Momentum(*(np.where(present, value, np.nan) for value in _slot(graphs, slots[0])))
