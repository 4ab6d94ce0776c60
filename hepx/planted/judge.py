"""What a method found, measured against the planted truth, and the criteria it must meet.

Mass and rank accuracy: Arras et al., arXiv:2003.07258; closure: correlation with the values of the same method
(or the Shapley values) on the Bayes-optimal score, with the same replacements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from hepx import metrics
from hepx.graph import DEFINED, RAW_FEATURES, GraphBatch
from hepx.planted.bayes import correlation
from hepx.planted.mechanisms import Mechanism
from hepx.results import Explanation, GroupExplanation, Importance, PairExplanation, ResponseCurve, Result

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
OF_PAIRS = ("edge_knockout", "gradient_attention", "gnn_explainer")  # judged by pairs where the truth is one
EXACT = ("shapley", "feature_groups", "owen")  # what has an exact reference on the Bayes-optimal score
WITHOUT_ERROR = ("exactness", "null", "shortcut")  # a maximum, a probability, a yes or no
REPLICAS = 200  # of the events, for errors of correlations and of the completeness


@dataclass(frozen=True)
class Measures:
    """None where a method or a mechanism has no such thing. Means over the explained events with signed weights; their
    standard errors over these events are kept in the same form (`measure`).

    mass: share of Σ|attribution| on the true objects; rank: share of the true objects among as many strongest;
    pointing: share of events whose strongest object is a true one; feature_mass: like mass, for features; pair_hit:
    share of events whose strongest pair is the true one; pair_mass: its share of Σ|pair|; closure, pair_closure:
    correlation with the reference; completeness: relative error; exactness: largest deviation from the closed form
    (logit); null: probability that the largest |mean attribution| of an object, in standard errors, is as large by
    chance (Bonferroni over the objects), where nothing is to be found; shortcut: 1 if the planted shortcut is the
    strongest feature; unused: share of Σ|attribution| on the features that the truth does not use.
    """

    mass: float | None = None
    rank: float | None = None
    pointing: float | None = None
    feature_mass: float | None = None
    pair_hit: float | None = None
    pair_mass: float | None = None
    closure: float | None = None
    pair_closure: float | None = None
    completeness: float | None = None
    exactness: float | None = None
    null: float | None = None
    shortcut: float | None = None
    unused: float | None = None


@dataclass(frozen=True)
class Criterion:
    """A bound on a measure; of the named methods only, or of all that have the measure."""

    bound: float
    at_least: bool = True
    methods: tuple[str, ...] = ()

    def met(self, value: float) -> bool:
        """Whether a value keeps to the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(frozen=True)
class Check:
    """A fact that must hold besides the table of the methods.

    level: of the planted truth; case: which mechanism, network or variation; analysis: what was asked; what: in words;
    value with its error (None where it has none, or is a sentence: text).
    """

    level: int
    case: str
    analysis: str
    what: str
    value: float | None
    error: float | None
    criterion: str
    passed: bool
    text: str = ""


CRITERIA: dict[str, Criterion] = {
    "mass": Criterion(0.85),
    "rank": Criterion(0.90),
    "pointing": Criterion(0.98),
    "feature_mass": Criterion(0.80),
    "pair_hit": Criterion(0.90),
    "pair_mass": Criterion(0.55),
    "closure": Criterion(0.97, methods=(*EXACT, "response")),
    "pair_closure": Criterion(0.95, methods=EXACT),
    "completeness": Criterion(0.05, at_least=False),
    "exactness": Criterion(1e-5, at_least=False),
    "null": Criterion(0.05, methods=("shapley", "owen")),
    "shortcut": Criterion(1.0),
    "unused": Criterion(0.03, at_least=False, methods=EXACT),
}
"""Measure -> what a method must reach on a network that passed the gate."""


def missed(method: str, measures: Measures) -> list[str] | None:
    """Names of the measures that miss their criterion; None if nothing could be judged."""
    kind = method.partition(":")[0]
    values = {name: getattr(measures, name) for name in CRITERIA}
    if kind in OF_PAIRS and measures.pair_hit is not None:
        values = {name: values[name] for name in ("pair_hit", "pair_mass")}
    if measures.pair_hit is None:
        values["pair_closure"] = None  # interactions are asked for where the truth is a pair
    judged = {
        name: value
        for name, value in values.items()
        if value is not None and (not CRITERIA[name].methods or kind in CRITERIA[name].methods)
    }
    if not judged.keys() - {"completeness"}:
        return None
    return [name for name, value in judged.items() if not CRITERIA[name].met(value)]


@dataclass(frozen=True)
class Found:
    """The values of a result: objects [B, N], features [B, P] with the names of their cells, pairs [B, N, N]."""

    objects: Array | None = None
    features: Array | None = None
    names: tuple[frozenset[str], ...] = ()
    pairs: Array | None = None
    completeness: float | None = None


def found_in(result: Result, graphs: GraphBatch) -> Found:
    """What a result of any kind says of objects, features and pairs. An object of a feature result gets the sum of its
    features, one of a pair result the sum of its pairs."""
    none: tuple[frozenset[str], ...] = ()
    if isinstance(result, Explanation):
        features, names = None, none
        values = result.values
        if values.ndim == 3:
            slots = result.events.slots
            names = tuple(frozenset([f"{slot}.{feature}"]) for slot in slots for feature in RAW_FEATURES)
            features, values = values.reshape(len(values), -1), values.sum(2)
        return Found(values, features, names, result.interactions, result.relative_completeness_error)
    if isinstance(result, GroupExplanation):
        names = tuple(_cells(members, graphs) for members in result.members)
        return Found(features=result.values, names=names, completeness=result.relative_completeness_error)
    if isinstance(result, PairExplanation):
        return Found(objects=np.abs(result.values).sum(2), pairs=result.values)
    if isinstance(result, Importance):
        names = tuple(_cells(members, graphs) for members in result.members)
        return Found(features=result.delta_auc[None], names=names)
    return Found()


def _cells(members: str, graphs: GraphBatch) -> frozenset[str]:
    """slot.feature of everything a group of features names."""
    layout, cells = graphs.layout, set()
    for member in members.split():
        owner, _, feature = member.partition(".")
        for slot, kind in zip(layout.slots, layout.types, strict=True):
            if owner in (slot, kind):
                cells |= {f"{slot}.{name}" for name in ([feature] if feature else DEFINED[kind])}
    return frozenset(cells)


_Value = tuple[float | None, float | None]  # with its standard error


def measure(
    mechanism: Mechanism, graphs: GraphBatch, result: Result, reference: Result, exact: Result
) -> tuple[Measures, Measures]:
    """All measures of a result, and their standard errors over the events; no error where one number stands for all
    events (importance, response curves). reference: the Shapley values of the Bayes-optimal score for the same events;
    exact: the same method on the Bayes-optimal score where it has one, else the reference."""
    found, weight = found_in(result, graphs), graphs.weight.double().numpy()
    truth = mechanism.relevant(graphs).numpy()
    told = truth.any(1)
    values: dict[str, _Value] = {"completeness": (found.completeness, _completeness_error(result))}
    if found.objects is not None and told.any():
        values |= _localised(np.abs(found.objects), truth, weight)
    if found.features is not None and mechanism.features:
        values |= _features(mechanism, found, weight)
    if found.pairs is not None and mechanism.pair:
        values |= _pairs(np.abs(found.pairs), truth, weight)
    if not mechanism.slots:
        values["null"] = _by_chance(found, weight), None
    if mechanism.unique and mechanism.slots:
        values |= _closures(result, found, found_in(exact, graphs), found_in(reference, graphs), graphs, exact)
    means, errors = ({name: value[part] for name, value in values.items()} for part in (0, 1))
    return Measures(**means), Measures(**errors)


def _mean(values: Array, weight: Array, share: bool = False) -> _Value:
    """Weighted mean over the events where a value is defined, and its standard error.

    share: of values from 0 to 1 that may all be alike. The error is then that with one more event of 0 and one of 1
    (Laplace's rule): that no event of 25 failed does not say that none ever will.
    """
    known = np.isfinite(values)
    values, weight = values[known], weight[known]
    total = weight.sum()
    if total <= 0:
        return None, None
    mean, error = metrics.weighted_mean(values, weight)
    if share:
        one = (weight**2).sum() / total  # as many events of this weight have the same error
        _, error = metrics.weighted_mean(np.append(values, [0.0, 1.0]), np.append(weight, [one, one]))
    return mean, error if len(values) > 1 else None


def _bootstrap(terms: Array, function: Callable[[Array], Array]) -> float | None:
    """Spread of a function of sums over events, in bootstrap replicas of the events. terms: [B, S]; function: sums
    [S, R] -> values [R]."""
    if len(terms) < 2:
        return None
    counts = np.stack(list(metrics.poisson_counts(len(terms), REPLICAS, 0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return metrics.spread(function((counts @ terms).T))


def _correlation(a: Array, b: Array, weight: Array, mask: Bools) -> _Value:
    """Weighted correlation of the elements of all events where `mask`, all [B, ...] but weight [B]; events are the
    independent ones, so the error is from replicas of them."""
    spread = np.broadcast_to(weight.reshape(-1, *[1] * (mask.ndim - 1)), mask.shape)
    value = correlation(a[mask], b[mask], spread[mask])
    if value is None:
        return None, None
    a, b = (np.where(mask, v - v[mask].mean(), 0.0) for v in (a, b))
    terms = np.stack([mask * 1.0, a, b, a * a, b * b, a * b]) * spread

    def of_sums(sums: Array) -> Array:
        _, x, y, xx, yy, xy = sums / sums[0]
        return np.asarray((xy - x * y) / np.sqrt((xx - x**2) * (yy - y**2)))

    return value, _bootstrap(terms.reshape(*terms.shape[:2], -1).sum(2).T, of_sums)


def _completeness_error(result: Result) -> float | None:
    """Of the relative completeness error."""
    if not isinstance(result, Explanation | GroupExplanation):
        return None
    if result.completeness_error is None or result.baseline_score is None:
        return None
    terms = np.stack([result.completeness_error, result.score - result.baseline_score], 1) ** 2
    return _bootstrap(terms, lambda sums: np.sqrt(sums[0] / sums[1]))


def _share(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _localised(size: Array, truth: Bools, weight: Array) -> dict[str, _Value]:
    """Mass, rank and pointing for sizes [B, N]; a method that says nothing about an event has no mass there, and
    points nowhere."""
    place = np.argsort(np.argsort(-size, axis=1, kind="stable"), axis=1)
    number = truth.sum(1)
    silent = size.sum(1) == 0
    top = (place < number[:, None]) & truth
    first = (place == 0) & truth
    ranks = _share(top.sum(1).astype(float), number.astype(float))
    return {
        "mass": _mean(_share((size * truth).sum(1), size.sum(1)), weight),
        "rank": _mean(np.where(silent, 0.0, ranks), weight, share=True),
        "pointing": _mean(np.where(silent, 0.0, first.any(1).astype(float)), weight, share=True),
    }


def _features(mechanism: Mechanism, found: Found, weight: Array) -> dict[str, _Value]:
    assert found.features is not None
    size = np.abs(found.features)
    if len(size) != len(weight):
        weight = np.ones(len(size))
    is_true = np.array([bool(cells & set(mechanism.features)) for cells in found.names])
    values = {"feature_mass": _mean(_share(size[:, is_true].sum(1), size.sum(1)), weight)}
    if mechanism.shortcut:
        strongest = int((weight[:, None] * size).sum(0).argmax())
        values["shortcut"] = float(mechanism.shortcut in found.names[strongest]), None
    if mechanism.unused:
        is_unused = np.array([bool(cells) and cells <= set(mechanism.unused) for cells in found.names])
        values["unused"] = _mean(_share(size[:, is_unused].sum(1), size.sum(1)), weight)
    return values


def _pairs(size: Array, truth: Bools, weight: Array) -> dict[str, _Value]:
    """Hit rate and mass of the true pair for sizes [B, N, N], over the events whose truth is a pair."""
    first, second = np.triu_indices(size.shape[1], 1)
    flat, is_true = size[:, first, second], truth[:, first] & truth[:, second]
    paired = truth.sum(1) == 2
    flat, is_true, weight = flat[paired], is_true[paired], weight[paired]
    hit = np.take_along_axis(is_true, flat.argmax(1)[:, None], 1)[:, 0] & (flat.sum(1) > 0)
    return {
        "pair_hit": _mean(hit.astype(float), weight, share=True),
        "pair_mass": _mean(_share((flat * is_true).sum(1), flat.sum(1)), weight),
    }


def _by_chance(found: Found, weight: Array) -> float | None:
    """Probability that one of the mean attributions of the objects is as far from 0 by chance; None without objects.

    If events and replacements follow the same distribution, every Shapley value of any network has mean 0: swapping
    the two turns what an object adds to a coalition into minus what it adds to the rest.
    """
    if found.objects is None:
        return None
    mean = (weight[:, None] * found.objects).sum(0) / weight.sum()
    error = np.sqrt((weight[:, None] ** 2 * (found.objects - mean) ** 2).sum(0)) / abs(weight.sum())
    largest = float(_share(np.abs(mean), error)[error > 0].max(initial=0.0))
    independent = float(weight.sum() ** 2 / (weight**2).sum()) - 1
    return min(1.0, 2 * int((error > 0).sum()) * float(stdtr(independent, -largest)))


def _closures(
    result: Result, found: Found, exact: Found, reference: Found, graphs: GraphBatch, other: Result
) -> dict[str, _Value]:
    weight, mask = graphs.weight.double().numpy(), graphs.mask.numpy()
    closure: _Value = (None, None)
    pairs: _Value = (None, None)
    if isinstance(result, ResponseCurve) and isinstance(other, ResponseCurve):
        good = np.isfinite(result.mean[0]) & np.isfinite(other.mean[0])
        closure = correlation(other.mean[0][good], result.mean[0][good], np.ones(int(good.sum()))), None
    elif (found.objects is not None and found.pairs is None) or isinstance(result, Explanation):
        assert found.objects is not None
        base = exact.objects if exact.objects is not None else reference.objects
        if base is not None:
            closure = _correlation(base, found.objects, weight, mask)
    elif found.features is not None and exact.features is not None:
        w = weight if len(found.features) == len(weight) else np.ones(len(found.features))
        closure = _correlation(exact.features, found.features, w, np.ones(found.features.shape, dtype=bool))
    if found.pairs is not None and reference.pairs is not None:
        both = np.triu(mask[:, :, None] & mask[:, None, :], 1)
        pairs = _correlation(reference.pairs, found.pairs, weight, both)
    return {"closure": closure, "pair_closure": pairs}


def with_exactness(
    measures: Measures, mechanism: Mechanism, graphs: GraphBatch, found: Found, values: Array, pairs: Array
) -> Measures:
    """Level 0: the largest deviation from the closed form, for a method whose values are meant to add up."""
    if found.completeness is None:
        return measures
    if found.objects is not None:
        gap = float(np.abs(found.objects - values).max())
        if found.pairs is not None:
            gap = max(gap, float(np.abs(found.pairs - pairs).max()))
    else:
        assert found.features is not None
        slots = graphs.layout.slots
        owners = [
            [slots.index(cell.partition(".")[0]) for cell in mechanism.features if cell in c] for c in found.names
        ]
        expected = np.stack([values[:, owner].sum(1) for owner in owners], 1)
        gap = float(np.abs(found.features - expected).max())
    return replace(measures, exactness=gap)
