"""The planted truths. Adding one = one entry in MECHANISMS: which objects and features matter, and the exact log-odds.

Level 0: networks made by hand, whose Shapley values are known in closed form; 1: one feature (or none, a leak, a
suppressor, a copy); 2: a pair of objects, or four objects at once; 3: another pair in other events, which the events
show or hide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hepx import random
from hepx.graph import GraphBatch
from hepx.models.inputs import BTAG, ETA, MET_SIGNIFICANCE, PHI, PT, pair_kinematics

Slots = tuple[str, ...]
Score = Callable[[Tensor, Tensor, Slots], Tensor]
LEAK_SHARE, LEAK_VALUES = 0.3, (1.0, 5.0)  # share of the events whose b-tag tells the label; its value for 0 and 1
NUM_BTAG = 5  # values of the b-tag
CLASSES = ("class A", "class B")  # of a hidden mixture
SOON = 0.4  # effort for a strong single feature
LARGEST = 4.0  # of the log-odds of a mass or a distance: probabilities beyond 2 and 98 % need more events to be learned


@dataclass(frozen=True)
class Mechanism:
    """A planted truth.

    slots: the objects that matter; score: the Bayes-optimal log-odds [B] as a function of x [B, N, F], node types
    [B, N] and slot names. features: slot.feature that matter; the lepton's φ is none, it is the direction that φ counts
    from. unused: features of the same objects that do not. pair: the truth is a pair of objects, which a method for
    pairs must find. branch: which of several mechanisms is at work [B], each with its own `slots` in `branches`.
    hidden: the log-odds of two classes of events that look alike (`hidden_class`), each with its own mechanism; `score`
    is that of their mean probability.
    prepare: change of the events before labels are drawn; leak: change of the events afterwards, which `score` knows
    and `unleaked`, the log-odds the labels are drawn from, does not. shortcut: the feature that must rank first and be
    reported; suppressor: one that tells nothing of the label by itself, and must get weight nevertheless. unique: False
    if several networks that are equally right explain differently (a copied feature). exact: for level 0, Shapley
    values [b, N] and pair interactions [b, N, N] in closed form for x [b, N, F] and replacements [b, K, N, F].
    controls: also judge an untrained network, and one trained on shuffled labels. effort: share of the epochs that the
    network needs.
    """

    slots: Slots
    score: Score
    what: str = ""
    level: int = 2
    features: Slots = ()
    unused: Slots = ()
    pair: bool = False
    branch: Callable[[Tensor, Slots], Tensor] | None = None
    branches: tuple[Slots, ...] = ()
    hidden: tuple[Score, ...] = ()
    prepare: Callable[[GraphBatch], GraphBatch] | None = None
    leak: Callable[[GraphBatch, torch.Generator], GraphBatch] | None = None
    unleaked: Score | None = None
    shortcut: str = ""
    suppressor: str = ""
    unique: bool = True
    exact: Callable[[Tensor, Tensor, Slots], tuple[Tensor, Tensor]] | None = None
    controls: bool = False
    effort: float = 1.0

    def relevant(self, graphs: GraphBatch) -> Bool[Tensor, "B N"]:
        """The objects that explain the label of each event, where present."""
        slots = graphs.layout.slots
        parts = self.branches or (self.slots,)
        table = torch.tensor([[name in part for name in slots] for part in parts])
        chosen = torch.zeros(len(graphs), dtype=torch.int64)
        if self.branch is not None:
            chosen = self.branch(graphs.x, slots)
        return table[chosen] & graphs.mask

    def balanced(self, graphs: GraphBatch) -> Mechanism:
        """The same with a constant added to the score, so that half of the events are expected to be signal: events
        whose observable lies elsewhere than that of the toy events can be planted too."""
        if self.level == 0:
            return self
        if self.hidden:  # the class must not tell the label
            hidden = tuple(_shifted(score, _balance(score, graphs)) for score in self.hidden)
            return replace(self, score=_mean_probability(hidden), hidden=hidden)
        shift = _balance(self.unleaked or self.score, graphs)
        unleaked = None if self.unleaked is None else _shifted(self.unleaked, shift)
        return replace(self, score=_shifted(self.score, shift), unleaked=unleaked)

    def drawn(self, graphs: GraphBatch) -> Float[Tensor, "B"]:
        """The log-odds that labels are drawn from."""
        if not self.hidden:
            return _on(self.unleaked or self.score, graphs)
        first, second = (_on(score, graphs) for score in self.hidden)
        return torch.where(hidden_class(graphs) == 0, first, second)


def _on(score: Score, graphs: GraphBatch) -> Float[Tensor, "B"]:
    return score(graphs.x, graphs.node_type, graphs.layout.slots)


def _balance(score: Score, graphs: GraphBatch) -> float:
    """What must be added to log-odds so that half of the events are expected to be signal."""
    values = _on(score, graphs).double()
    low, high = (-values).min() - 1, (-values).max() + 1
    for _ in range(60):
        middle = (low + high) / 2
        if float((graphs.weight.abs() * (torch.sigmoid(values + middle) - 0.5)).sum()) > 0:
            high = middle
        else:
            low = middle
    return float(middle)


def _shifted(score: Score, shift: float) -> Score:
    return lambda x, types, slots: score(x, types, slots) + shift


def _mean_probability(scores: Sequence[Score]) -> Score:
    """Log-odds of the mean of the probabilities."""

    def score(x: Tensor, types: Tensor, slots: Slots) -> Tensor:
        return torch.logit(torch.stack([torch.sigmoid(one(x, types, slots)) for one in scores]).mean(0))

    return score


def hidden_class(graphs: GraphBatch) -> Int[Tensor, "B"]:
    """0 or 1 by a coin that belongs to the event and is written nowhere in it."""
    coin = random.uniform(0, graphs.event_id.numpy(), "hidden class", 1)[:, 0]
    return torch.from_numpy((coin < 0.5).astype(np.int64))


def pair_mass(
    x: Float[Tensor, "B N F"], node_type: Int[Tensor, "B N"], slots: tuple[str, ...], first: str, second: str
) -> Float[Tensor, "B"]:
    """Invariant mass of two slots, transverse if one is the missing momentum, GeV."""
    mass2 = pair_kinematics(x, node_type).mass2[:, slots.index(first), slots.index(second)]
    return mass2.clamp(min=0).sqrt()


def _of(x: Tensor, slots: Slots, slot: str, feature: int) -> Tensor:
    return x[..., slots.index(slot), feature]


def _pair(quantity: str, first: str, second: str) -> Callable[[Tensor, Tensor, Slots], Tensor]:
    """Root of a pair quantity of `PairKinematics`."""

    def value(x: Tensor, types: Tensor, slots: Slots) -> Tensor:
        squared: Tensor = getattr(pair_kinematics(x, types), quantity)
        return squared[:, slots.index(first), slots.index(second)].clamp(min=0).sqrt()

    return value


def _bounded(log_odds: Tensor) -> Tensor:
    """Nearly the same where small, never beyond ±LARGEST: in the tail of a mass the labels of a finite sample are all
    alike, so that no network could come near log-odds that go on growing there."""
    return LARGEST * torch.tanh(log_odds / LARGEST)


def _score_mbb(x: Tensor, types: Tensor, slots: Slots) -> Tensor:
    return _bounded(3.0 - ((pair_mass(x, types, slots, "b1", "b2") - 120) / 30).abs())


def _score_mt(x: Tensor, types: Tensor, slots: Slots) -> Tensor:
    return _bounded((pair_mass(x, types, slots, "lepton", "met") - 110) / 20)


def _score_xor(x: Tensor, types: Tensor, slots: Slots) -> Tensor:
    del types
    delta_phi = _of(x, slots, "met", PHI) - _of(x, slots, "lepton", PHI)
    delta_eta = _of(x, slots, "b1", ETA) - _of(x, slots, "b2", ETA)
    return 3.0 * torch.tanh(2 * torch.sin(delta_phi)) * torch.tanh(delta_eta)  # signs, as sharp as can be learned


def _has_third_jet(x: Tensor, slots: Slots) -> Tensor:
    return (_of(x, slots, "j3", PT) > 0).long()


def _score_mix(x: Tensor, types: Tensor, slots: Slots) -> Tensor:
    return torch.where(_has_third_jet(x, slots) == 1, _score_mt(x, types, slots), _score_mbb(x, types, slots))


def _with(graphs: GraphBatch, slot: str, feature: int, values: Tensor) -> GraphBatch:
    """The events with one number of one object changed."""
    x, place = graphs.x.clone(), graphs.layout.slots.index(slot)
    x[:, place, feature] = torch.where(graphs.mask[:, place], values.to(x.dtype), x[:, place, feature])
    return replace(graphs, x=x)


def _random_btag(graphs: GraphBatch) -> GraphBatch:
    """The b-tag of b1 drawn anew, flat and independent of everything: then the log-odds of a leak are exact."""
    drawn = torch.from_numpy(random.uniform(0, graphs.event_id.numpy(), "btag", 1)[:, 0])
    return _with(graphs, "b1", BTAG, torch.floor(NUM_BTAG * drawn) + 1)


def _leak(graphs: GraphBatch, generator: torch.Generator) -> GraphBatch:
    told = torch.rand(len(graphs), generator=generator) < LEAK_SHARE
    now = _of(graphs.x, graphs.layout.slots, "b1", BTAG)
    return _with(graphs, "b1", BTAG, torch.where(told, torch.tensor(LEAK_VALUES)[graphs.y], now))


def _score_leak(x: Tensor, types: Tensor, slots: Slots) -> Tensor:
    """log P(b | 1) / P(b | 0) with P(b | y) = (1 − share) / 5 + share · [b is the value of y], beside a weak signal."""
    btag, flat = _of(x, slots, "b1", BTAG), (1 - LEAK_SHARE) / NUM_BTAG
    given = [torch.log(flat + LEAK_SHARE * (btag == value)) for value in LEAK_VALUES]
    return given[1] - given[0] + _score_weak(x, types, slots)


def _score_weak(x: Tensor, types: Tensor, slots: Slots) -> Tensor:
    return _score_significance(x, types, slots) / 6


def _score_significance(x: Tensor, types: Tensor, slots: Slots) -> Tensor:
    del types
    return _bounded((_of(x, slots, "met", MET_SIGNIFICANCE) - 9) / 1.5)


def _pile_up(graphs: GraphBatch) -> GraphBatch:
    """The third jet's pt is added to the missing momentum: the jet tells nothing about the label, but how much of the
    missing momentum to leave out."""
    slots = graphs.layout.slots
    return _with(graphs, "met", PT, _of(graphs.x, slots, "met", PT) + _of(graphs.x, slots, "j3", PT))


def _score_suppressor(x: Tensor, types: Tensor, slots: Slots) -> Tensor:
    del types
    return _bounded((_of(x, slots, "met", PT) - _of(x, slots, "j3", PT) - 80) / 25)


def _copy(graphs: GraphBatch) -> GraphBatch:
    return _with(graphs, "lepton", PT, _of(graphs.x, graphs.layout.slots, "met", PT))


# Networks made by hand: the Shapley values of terms of one or two objects, averaged over the replacements ----------

_Term = Callable[[Tensor, Tensor], Tensor]


def _single(feature: int, slot: str, scale: float) -> Callable[[Tensor, Tensor, Slots], tuple[Tensor, Tensor]]:
    """a·v of one object: φ = a (v − mean v')."""

    def exact(x: Tensor, other: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
        values = torch.zeros(x.shape[:2], dtype=torch.float64)
        change = _of(x, slots, slot, feature)[:, None] - _of(other, slots, slot, feature)
        values[:, slots.index(slot)] = scale * change.double().mean(1)
        return values, torch.zeros(*x.shape[:2], x.shape[1], dtype=torch.float64)

    return exact


def _two(term: _Term) -> Callable[[Tensor, Tensor, Slots], tuple[Tensor, Tensor]]:
    """f(p, q) of the lepton's pt and the missing momentum: both orders of the two players, and their interaction."""

    def exact(x: Tensor, other: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
        p, q = (_of(x, slots, name, PT).double()[:, None] / 100 for name in ("lepton", "met"))
        p0, q0 = (_of(other, slots, name, PT).double() / 100 for name in ("lepton", "met"))
        both, first, second, none = term(p, q), term(p, q0), term(p0, q), term(p0, q0)
        values = torch.zeros(x.shape[:2], dtype=torch.float64)
        values[:, slots.index("lepton")] = ((first - none + both - second) / 2).mean(1)
        values[:, slots.index("met")] = ((second - none + both - first) / 2).mean(1)
        pairs = torch.zeros(*x.shape[:2], x.shape[1], dtype=torch.float64)
        i, j = slots.index("lepton"), slots.index("met")
        pairs[:, i, j] = pairs[:, j, i] = (both - first - second + none).mean(1)
        return values, pairs

    return exact


def _of_two(term: _Term) -> Score:
    def score(x: Tensor, types: Tensor, slots: Slots) -> Tensor:
        del types
        return term(_of(x, slots, "lepton", PT) / 100, _of(x, slots, "met", PT) / 100)

    return score


def _unit(what: str, term: _Term, **more: Any) -> Mechanism:
    features = ("lepton.pt", "met.pt")
    return Mechanism(("lepton", "met"), _of_two(term), what, 0, features, exact=_two(term), **more)


def _sum(p: Tensor, q: Tensor) -> Tensor:
    return 2 * p - 3 * q


def _product(p: Tensor, q: Tensor) -> Tensor:
    return p * q


_BB = ("b1.pt", "b1.eta", "b1.phi", "b2.pt", "b2.eta", "b2.phi")
_MT = ("lepton.pt", "met.pt", "met.phi")
_MBB = (*_BB, "b1.mass", "b2.mass")

MECHANISMS: dict[str, Mechanism] = {
    "unit_single": Mechanism(
        ("met",),
        lambda x, types, slots: 0.1 * _of(x, slots, "met", MET_SIGNIFICANCE),
        "hand-made network: 0.1 × MET significance",
        0,
        ("met.met_significance",),
        exact=_single(MET_SIGNIFICANCE, "met", 0.1),
    ),
    "unit_sum": _unit("hand-made network: 2 pt(ℓ) − 3 MET", _sum),
    "unit_product": _unit("hand-made network: pt(ℓ) × MET", _product, pair=True),
    "unit_max": _unit("hand-made network: max(pt(ℓ), MET)", torch.maximum, pair=True),
    "met_significance": Mechanism(
        ("met",), _score_significance, "MET significance", 1, ("met.met_significance",), controls=True, effort=SOON
    ),
    "null": Mechanism((), lambda x, types, slots: 0.0 * x[:, 0, PT], "nothing: labels are coin flips", 1, effort=SOON),
    "leak": Mechanism(
        ("met", "b1"),
        _score_leak,
        "weak MET significance; the b-tag of b1 tells the label in 30 % of the events",
        1,
        ("met.met_significance", "b1.btag"),
        prepare=_random_btag,
        leak=_leak,
        unleaked=_score_weak,
        shortcut="b1.btag",
    ),
    "suppressor": Mechanism(
        ("met", "j3"),
        _score_suppressor,
        "MET without pt(j3), which was added to it",
        1,
        ("met.pt", "j3.pt"),
        prepare=_pile_up,
        suppressor="j3.pt",
        effort=SOON,
    ),
    "duplicate": Mechanism(
        ("lepton", "met"),
        lambda x, types, slots: _bounded((_of(x, slots, "met", PT) - 80) / 25),
        "MET, of which pt(ℓ) is a copy",
        1,
        ("lepton.pt", "met.pt"),
        prepare=_copy,
        unique=False,
        effort=SOON,
    ),
    "mbb": Mechanism(("b1", "b2"), _score_mbb, "peak in m_bb", 2, _MBB, pair=True, controls=True),
    "mt": Mechanism(("lepton", "met"), _score_mt, "threshold in m_T", 2, _MT, pair=True, unused=("lepton.eta",)),
    "mct": Mechanism(
        ("b1", "b2"),
        lambda x, types, slots: _bounded((_pair("mct2", "b1", "b2")(x, types, slots) - 110) / 20),
        "threshold in m_CT",
        2,
        ("b1.pt", "b1.phi", "b2.pt", "b2.phi"),
        pair=True,
        unused=("b1.eta", "b2.eta"),
    ),
    "delta_r": Mechanism(
        ("b1", "b2"),
        lambda x, types, slots: _bounded((2 - _pair("delta_r2", "b1", "b2")(x, types, slots)) / 0.4),
        "threshold in ΔR(b1, b2)",
        2,
        ("b1.eta", "b1.phi", "b2.eta", "b2.phi"),
        pair=True,
    ),
    "xor": Mechanism(
        ("b1", "b2", "lepton", "met"),
        _score_xor,
        "sign Δφ(ℓ, MET) × sign Δη(b1, b2): four objects at once",
        2,
        ("b1.eta", "b2.eta", "met.phi"),
    ),
    "mix": Mechanism(
        ("b1", "b2", "lepton", "met"),
        _score_mix,
        "m_bb in 2-jet events, m_T in 3-jet events",
        3,
        (*_MBB, *_MT),
        pair=True,
        branch=_has_third_jet,
        branches=(("b1", "b2"), ("lepton", "met")),
    ),
    "two": Mechanism(
        ("b1", "b2", "lepton", "met"),
        _mean_probability((_score_mbb, _score_mt)),
        "m_bb in one half of the events, m_T in the other; nothing in an event tells in which half it is",
        3,
        (*_MBB, *_MT),
        hidden=(_score_mbb, _score_mt),
    ),
}
"""Name -> planted truth."""
