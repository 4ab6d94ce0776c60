"""The numbers of the figures that no stage has saved: weighted means per process, curves, chosen events.

Every mean is weighted with the signed event weights; its error is the standard error over the events, which contains
the noise of the baseline draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hepx import metrics
from hepx.report.saved import Saved
from hepx.report.tables import Table, joined
from hepx.results import Array, EventTable, Explanation

PAIR_OBSERVABLES = {"mbb": ("b1", "b2"), "mt": ("lepton", "met")}
"""The mass each pair would carry if the classifier used it."""
NUM_BINS = 16
MIN_EVENTS = 5  # in a bin of a profile; with fewer the error itself is unknown
REPLICAS = 200


def efficiency(saved: Saved) -> Table:
    """The cut-flow with the share of the weight that is left after each step."""
    rows = []
    for sample, steps in saved.dataset["cutflow"].items():
        first = steps[0]["weighted"]
        for step in steps:
            share = step["weighted"] / first if first else None
            rows.append((sample, step["name"], step["events"], step["weighted"], step["error"], share))
    return Table(("sample", "step", "events", "weighted", "error", "efficiency"), tuple(rows))


# Performance ------------------------------------------------------------------------------------------------------


def classifiers(saved: Saved) -> dict[str, str]:
    """Name on the figure -> column of the scores: the model, then the references whose scores were saved."""
    found = {saved.metrics["model"].replace("_", " "): "score"}
    for reference in saved.metrics.get("references", []):
        if saved.scores is not None and reference["column"] in saved.scores:
            found[reference["name"]] = reference["column"]
    return found


def roc_curves(saved: Saved) -> Table:
    """Background rejection 1/ε_b and its error on a grid of signal efficiencies; None where no background is left."""
    assert saved.scores is not None
    grid = np.arange(0.02, 1.0001, 0.01).round(2)
    y, weight = (saved.scores["label"] == 1).astype(np.int64), saved.scores["weight"]
    rows = []
    for name, column in classifiers(saved).items():
        values, errors = rejection_curve(y, saved.scores[column], weight, grid)
        for point, value, error in zip(grid, values, errors, strict=True):
            known = bool(np.isfinite(value))
            rows.append((name, float(point), float(value) if known else None, float(error) if known else None))
    return Table(("classifier", "signal_efficiency", "rejection", "error"), tuple(rows))


def rejection_curve(y: Array, score: Array, weight: Array, efficiencies: Array) -> tuple[Array, Array]:
    """`hepx.metrics.rejection` at many efficiencies with one sort; inf where no background weight passes."""
    curve = metrics.roc(y, score, weight)
    reached = np.maximum.accumulate(curve.signal)  # negative weights may bend the curve back
    cut = curve.threshold[np.searchsorted(reached, efficiencies - 1e-12).clip(max=len(reached) - 1)]
    order = np.argsort(-score[y == 0], kind="stable")
    passing, w = -score[y == 0][order], weight[y == 0][order]
    count = np.searchsorted(passing, -cut, side="right")
    kept = np.concatenate([[0.0], np.cumsum(w)])[count]
    squares = np.concatenate([[0.0], np.cumsum(w**2)])[count]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(kept > 0, w.sum() / kept, np.inf)
        return value, np.where(kept > 0, value * np.sqrt(squares) / kept, np.inf)


def score_distributions(saved: Saved, num_bins: int = 32) -> Table:
    """Weighted histogram of the score per process, unit area, error √Σw²; the outer bins hold what lies beyond."""
    assert saved.scores is not None
    score, weight, sample = saved.scores["score"], saved.scores["weight"], saved.scores["sample"]
    low, high = (float(edge) for edge in np.quantile(score, [0.002, 0.998]))
    edges = np.linspace(low, high, num_bins + 1)
    clipped = np.clip(score, edges[0], edges[-1])
    rows = []
    for name in saved.samples:
        chosen = sample == name
        height = np.histogram(clipped[chosen], edges, weights=weight[chosen])[0]
        squares = np.histogram(clipped[chosen], edges, weights=weight[chosen] ** 2)[0]
        area = height.sum() * (edges[1] - edges[0])
        if area > 0:
            columns = (edges[:-1], edges[1:], height / area, np.sqrt(squares) / area)
            rows += [(name, *map(float, values)) for values in zip(*columns, strict=True)]
    return Table(("sample", "low", "high", "density", "error"), tuple(rows))


# Objects and features ---------------------------------------------------------------------------------------------


def waterfall(explanation: Explanation) -> Table:
    """From the mean baseline score over the mean attribution of every object to the mean score, per process.

    `start` and `end` are where the bar of a step begins and ends; `residual` is what completeness leaves over.
    """
    rows: list[tuple[Any, ...]] = []
    assert explanation.baseline_score is not None
    for name, events in samples_with_events(explanation.events):
        weight = explanation.events.weight[events]
        start, error = metrics.weighted_mean(explanation.baseline_score[events], weight)
        rows.append((name, "baseline", start, error, 0.0, start))
        for slot, label in enumerate(explanation.events.slots):
            value, error = metrics.weighted_mean(explanation.values[events, slot], weight)
            rows.append((name, label, value, error, start, start + value))
            start += value
        score, error = metrics.weighted_mean(explanation.score[events], weight)
        rows.append((name, "residual", score - start, None, start, score))
        rows.append((name, "score", score, error, 0.0, score))
    return Table(("sample", "step", "mean", "error", "start", "end"), tuple(rows))


def object_means(explanation: Explanation) -> Table:
    """Mean attribution and mean |attribution| of every object per process, over the events that have the object."""
    columns = ("sample", "object", "mean", "error", "mean_abs", "error_abs", "share_present", "events")
    rows = []
    for name, events in samples_with_events(explanation.events):
        total = explanation.events.weight[events].sum()
        for slot, label in enumerate(explanation.events.slots):
            chosen = events & explanation.events.mask[:, slot]
            weight, values = explanation.events.weight[chosen], explanation.values[chosen, slot]
            share = float(weight.sum() / total) if total else None
            rows.append((name, label, *_mean_and_abs(values, weight), share, int(chosen.sum())))
    return Table(columns, tuple(rows))


def feature_means(explanation: Explanation) -> Table:
    """The same for every feature of every object; features an object does not have (always 0) are left out."""
    columns = ("sample", "object", "feature", "mean", "error", "mean_abs", "error_abs")
    table, rows = explanation.events, []
    used = (explanation.values != 0).any(0) | (table.x != 0).any(0)
    for name, events in samples_with_events(table):
        for slot, feature in zip(*np.nonzero(used), strict=True):
            chosen = events & table.mask[:, slot]
            numbers = _mean_and_abs(explanation.values[chosen, slot, feature], table.weight[chosen])
            rows.append((name, table.slots[slot], table.features[feature], *numbers))
    return Table(columns, tuple(rows))


def completeness(saved: Saved) -> Table:
    """How far the attributions of each method are from summing to score − baseline score; None where not meant to."""
    rows = []
    for name, e in (saved.explanations | saved.group_values).items():
        largest = None if e.completeness_error is None else float(e.completeness_error.max())
        rows.append((name, len(e.events), e.relative_completeness_error, largest, e.note))
    return Table(("method", "events", "relative", "largest", "note"), tuple(rows))


def samples_with_events(table: EventTable) -> Iterator[tuple[str, Array]]:
    """Name and event mask of every sample that has events."""
    for name in table.sample_names:
        events = table.of_sample(name)
        if events.any():
            yield name, events


def _mean_and_abs(values: Array, weight: Array) -> tuple[float, float, float, float]:
    return (*metrics.weighted_mean(values, weight), *metrics.weighted_mean(np.abs(values), weight))


# Pairs ------------------------------------------------------------------------------------------------------------


def pair_means(explanation: Explanation) -> Table:
    """Mean interaction and mean |interaction| of every pair per process, over the events that have both objects."""
    assert explanation.interactions is not None
    table, rows = explanation.events, []
    for name, events in samples_with_events(table):
        for i, j in zip(*np.triu_indices(len(table.slots), 1), strict=True):
            chosen = events & table.mask[:, i] & table.mask[:, j]
            numbers = _mean_and_abs(explanation.interactions[chosen, i, j], table.weight[chosen])
            rows.append((name, table.slots[i], table.slots[j], *numbers, int(chosen.sum())))
    columns = ("sample", "object_1", "object_2", "mean", "error", "mean_abs", "error_abs", "events")
    return Table(columns, tuple(rows))


def square(table: Table, slots: tuple[str, ...], column: str) -> Array:
    """A column of `pair_means` of one process as a matrix: below the diagonal, NaN elsewhere."""
    matrix = np.full((len(slots), len(slots)), np.nan)
    for row in table.dicts():
        matrix[slots.index(row["object_2"]), slots.index(row["object_1"])] = row[column]
    return matrix


def pair_observables(explanation: Explanation) -> dict[str, tuple[int, int]]:
    """Observable -> slots of its pair, for those this run has."""
    table = explanation.events
    return {
        name: (table.slots.index(pair[0]), table.slots.index(pair[1]))
        for name, pair in PAIR_OBSERVABLES.items()
        if name in table.observable_names and set(pair) <= set(table.slots)
    }


def pair_profiles(explanation: Explanation) -> Table:
    """Mean interaction of a pair in bins of its observable, per process."""
    columns = ("observable", "sample", "low", "high", "mean", "error", "events")
    tables = [
        Table(columns, tuple(_profile(explanation, name, pair))) for name, pair in pair_observables(explanation).items()
    ]
    return joined(tables) if tables else Table(columns, ())


def _profile(explanation: Explanation, name: str, pair: tuple[int, int]) -> Iterator[tuple[object, ...]]:
    assert explanation.interactions is not None
    table, values = explanation.events, explanation.interactions[:, *pair]
    present = table.mask[:, list(pair)].all(1) & np.isfinite(table.observable(name))
    if not present.any():
        return
    edges = nice_edges(table.observable(name)[present])
    for sample, events in samples_with_events(table):
        for low, high in pairwise(edges):
            inside = events & present & (table.observable(name) >= low) & (table.observable(name) < high)
            if inside.sum() >= MIN_EVENTS:
                mean, error = metrics.weighted_mean(values[inside], table.weight[inside])
                yield name, sample, float(low), float(high), mean, error, int(inside.sum())


def nice_edges(values: Array) -> Array:
    """Equal bins with round edges over the central 96 % of the values.

    >>> nice_edges(np.linspace(0, 800, 8001))[:3].tolist()
    [0.0, 50.0, 100.0]
    """
    low, high = np.quantile(values, [0.02, 0.98])
    wanted = max((high - low) / NUM_BINS, 1e-9)
    power = 10.0 ** np.floor(np.log10(wanted))
    step = power * min((1.0, 2.0, 2.5, 5.0, 10.0), key=lambda s: abs(np.log(s * power / wanted)))
    return np.arange(np.floor(low / step), np.ceil(high / step) + 1) * step


def rank_correlations(explanation: Explanation) -> Table:
    """Weighted rank correlation of a pair's interaction with its observable, inside the pair slot and one process."""
    assert explanation.interactions is not None
    table, rows = explanation.events, []
    for name, pair in pair_observables(explanation).items():
        values = explanation.interactions[:, *pair]
        for sample, events in samples_with_events(table):
            chosen = events & table.mask[:, list(pair)].all(1) & np.isfinite(table.observable(name))
            result = rank_correlation(table.observable(name)[chosen], values[chosen], table.weight[chosen])
            rows.append((name, *(table.slots[i] for i in pair), sample, *result, int(chosen.sum())))
    return Table(("observable", "object_1", "object_2", "sample", "correlation", "error", "events"), tuple(rows))


def rank_correlation(a: Array, b: Array, weight: Array, seed: int = 0) -> tuple[float, float]:
    """Correlation of the ranks weighted with signed weights, and its Poisson-bootstrap error; NaN below five events."""
    if len(a) < MIN_EVENTS:
        return float("nan"), float("nan")
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    rng = np.random.default_rng(seed)
    drawn = weight * rng.poisson(1.0, (REPLICAS, len(a)))
    value = _correlation(ranks_a, ranks_b, weight[None])[0]
    return float(value), float(np.nanstd(_correlation(ranks_a, ranks_b, drawn)))


def _ranks(values: Array) -> Array:
    """Ranks; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _correlation(a: Array, b: Array, weight: Array) -> Array:
    """Weighted Pearson correlation for each row of weights [R, B]; NaN where a variance is not positive."""
    total = weight.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_a, mean_b = weight @ a / total, weight @ b / total
        covariance = weight @ (a * b) / total - mean_a * mean_b
        variance = (weight @ a**2 / total - mean_a**2) * (weight @ b**2 / total - mean_b**2)
        return covariance / np.sqrt(np.where(variance > 0, variance, np.nan))


# Event displays ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """An event on display, its sample, and why it was chosen."""

    key: str
    title: str
    reason: str
    index: int
    sample: str


_SIGNAL = ("signal", "Highest-score signal", "the explained signal event of highest score")
_MISTAKEN = (
    "mistaken",
    "Highest-score background",
    "the explained background event of highest score; what made it look like signal?",
)
_TYPICAL = ("typical", "Median background", "the explained background event at the weighted median score")


def choices(explanation: Explanation, labels: dict[str, int]) -> tuple[Choice, ...]:
    """A high-score signal event, a high-score background event and a background event at the median score."""
    table = explanation.events
    signal = np.isin(table.sample, [i for i, name in enumerate(table.sample_names) if labels[name] == 1])
    found = []
    if signal.any():
        found.append((_SIGNAL, _top(explanation.score, signal)))
    if (~signal).any():
        found.append((_MISTAKEN, _top(explanation.score, ~signal)))
        found.append((_TYPICAL, _median(explanation.score, table.weight, ~signal)))
    return tuple(Choice(*words, index, table.sample_names[table.sample[index]]) for words, index in found)


def _top(score: Array, chosen: Array) -> int:
    return int(np.argmax(np.where(chosen, score, -np.inf)))


def _median(score: Array, weight: Array, chosen: Array) -> int:
    """Position of the event where the summed weight of the chosen events, by rising score, passes one half."""
    order = np.flatnonzero(chosen)[np.argsort(score[chosen], kind="stable")]
    running = np.cumsum(weight[order])
    return int(order[np.argmax(running >= running[-1] / 2)])


def displayed_events(saved: Saved) -> Table:
    """The objects of the events on display."""
    explanation = saved.objects
    assert explanation is not None
    assert explanation.error is not None
    table, rows = explanation.events, []
    for choice in choices(explanation, saved.labels):
        i = choice.index
        event = (choice.key, int(table.event_id[i]), table.sample_names[table.sample[i]], float(explanation.score[i]))
        for slot in np.flatnonzero(table.mask[i]):
            attribution = (float(explanation.values[i, slot]), float(explanation.error[i, slot]))
            features = tuple(float(value) for value in table.x[i, slot])
            rows.append((*event, table.slots[slot], *attribution, int(table.truth_parent[i, slot]), *features))
    columns = ("display", "event_id", "sample", "score", "object", "attribution", "error", "truth_parent")
    return Table((*columns, *table.features), tuple(rows))
