"""How good the classifier is: weighted, with errors, per process and mass point, beside gradient-boosted trees.

Every number is measured the same way for the model and for the reference classifiers, on the same test events and the
same bootstrap replicas of them, so any two classifiers can be compared event by event, in one run or across runs.
Thresholds come from elsewhere: 0 for the decision, the signal efficiency for a rejection, the validation events for the
cut of the significance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from hepx import files, metrics, random, trees
from hepx.config import Settings
from hepx.errors import DataError
from hepx.events import EVENT_NUMBERS
from hepx.graph import GraphBatch
from hepx.kinematics import HIGH_LEVEL
from hepx.models import Model, predict
from hepx.models.tables import node_table
from hepx.results import EFFICIENCY, Measured
from hepx.train import training_weights

Array = npt.NDArray[Any]
REPLICAS = 200
BOOTSTRAP_SEED = 0  # not the run's: the replicas are of the test events, and the same in every run on them
SIGNAL = 1  # the class whose log-odds are the score; 0 is background
CHANNEL = "channel"  # stands for the channel number, which is part of the event id
DECISION = ("accuracy", "precision", "recall", "f1")


class EvaluateSettings(Settings):
    """Which working points, which signal points, and whether the reference trees are fitted beside the model.

    background_uncertainty: relative, of the expected background in the Asimov significance. min_background: effective
    events of background that a cut must leave in the validation events to be tried. points: what tells the mass points
    of a signal apart: names of `columns` of the schema (mass_chargino, mass_lsp), or `channel`, the channel number
    (DSID); empty: every signal sample is one point. calibration_bins: bins of equal numbers of events in the score.
    """

    signal_efficiencies: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.3, 0.5, 0.7, 0.9)
    trees: bool = True
    background_uncertainty: float = Field(default=0.2, ge=0)
    min_background: float = Field(default=10.0, ge=1)
    points: tuple[str, ...] = ()
    calibration_bins: int = Field(default=10, ge=2)


@dataclass(frozen=True)
class Splits:
    """Events of the three splits. Nothing is fitted or chosen on `test`."""

    train: GraphBatch
    validation: GraphBatch
    test: GraphBatch


@dataclass(frozen=True)
class Classifier:
    """Name, column in the score table, and scores (log-odds of signal) of the validation and test events."""

    name: str
    column: str
    validation: Array
    test: Array


@dataclass(frozen=True)
class Group:
    """A part of the question: `all` signal against all background, against one `background`, or one `signal` sample or
    `point` against all background; what names the point; and which events belong to it, in any GraphBatch."""

    kind: str
    name: str
    point: dict[str, float | str]
    chosen: Callable[[GraphBatch], Array]


@dataclass(frozen=True)
class Evaluation:
    """metrics.json, the score table, and the replicas that comparisons are made of."""

    metrics: dict[str, Any]
    scores: pa.Table
    measured: Measured


def evaluate(model: Model, splits: Splits, settings: EvaluateSettings, seed: int) -> Evaluation:
    """Measure the model and the reference classifiers on the test events."""
    scores = [predict(model, graphs, SIGNAL).double().numpy() for graphs in (splits.validation, splits.test)]
    classifiers = [Classifier(type(model).__name__, "score", *scores)]
    classifiers += _references(splits, seed) if settings.trees else []
    groups = _groups(splits.test, settings)
    factors = _yield_factors(splits)
    questions = [[_Question(c, g, splits, settings, factors) for g in groups] for c in classifiers]
    measured = _measure(classifiers, groups, questions, len(splits.test), settings)
    described = [_describe(measured, k, questions[k]) for k in range(len(classifiers))]
    result = {
        "parameters": model.num_fitted,
        "events": len(splits.test),
        "background_uncertainty": settings.background_uncertainty,
        "min_background": settings.min_background,
        "yield_factors": factors["test"],
        **described[0],
        "references": [
            {"name": c.name, "column": c.column, **described[k], "difference": _difference(measured, 0, k)}
            for k, c in enumerate(classifiers)
            if k
        ],
    }
    return Evaluation(result, _score_table(splits.test, classifiers), measured)


# Groups -----------------------------------------------------------------------------------------------------------


def _groups(test: GraphBatch, settings: EvaluateSettings) -> list[Group]:
    """All, one background at a time, one signal sample at a time if there are several, one signal point at a time."""
    layout, y = test.layout, labels(test)
    groups = [Group("all", "", {}, lambda graphs: np.ones(len(graphs), dtype=bool))]
    kinds = [(n, "signal" if label == SIGNAL else "background") for n, label in enumerate(layout.labels)]
    several = sum(kind == "signal" for _, kind in kinds) > 1
    groups += [_sample_group(n, kind, layout.samples[n]) for n, kind in kinds if kind == "background" or several]
    if settings.points:
        values = point_values(test, settings.points)
        for point in np.unique(values[(y == 1) & np.isfinite(values).all(1)], axis=0):
            groups.append(_point_group(settings.points, point))
    weight = test.weight.numpy()
    return [g for g in groups if all(weight[g.chosen(test) & (y == label)].sum() > 0 for label in (0, 1))]


def _sample_group(number: int, kind: str, name: str) -> Group:
    other = 1 if kind == "background" else 0  # the class that is there as a whole

    def chosen(graphs: GraphBatch) -> Array:
        return (graphs.sample.numpy() == number) | (labels(graphs) == other)

    return Group(kind, name, {}, chosen)


def _point_group(names: tuple[str, ...], point: Array) -> Group:
    def chosen(graphs: GraphBatch) -> Array:
        return (labels(graphs) == 0) | (point_values(graphs, names) == point).all(1)

    numbers = {name: float(value) for name, value in zip(names, point, strict=True)}
    return Group("point", ", ".join(f"{name} {value:g}" for name, value in numbers.items()), dict(numbers), chosen)


def point_values(graphs: GraphBatch, names: tuple[str, ...]) -> Array:
    """What names the point of each event [B, len(names)]; ConfigError if there is no such column."""
    channel = graphs.event_id.numpy() // EVENT_NUMBERS
    return np.stack([channel if name == CHANNEL else graphs.observable(name).numpy() for name in names], 1)


def labels(graphs: GraphBatch) -> Array:
    """1 for signal, 0 for background [B]."""
    return (graphs.y == SIGNAL).numpy().astype(np.int64)


def _yield_factors(splits: Splits) -> dict[str, dict[str, float]]:
    """For the events of validation and test, per sample: by how much their weights must grow to stand for all events of
    the sample at the luminosity of the config. DataError if a sample has no positive yield there."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    names = splits.test.layout.samples
    totals = {
        split: np.bincount(graphs.sample.numpy(), graphs.weight.numpy(), len(names)) for split, graphs in parts.items()
    }
    factors = {}
    for split in ("validation", "test"):
        for name, total in zip(names, totals[split], strict=True):
            if total <= 0:
                raise DataError(
                    f"sample '{name}' has a total weight of {total:g} in the {split} events; expected a positive "
                    "number. Change data.split or data.negative_weights, or give more events."
                )
        factors[split] = dict(zip(names, (sum(totals.values()) / totals[split]).tolist(), strict=True))
    return factors


# Measures ---------------------------------------------------------------------------------------------------------


class _Question:
    """One classifier and one group: everything about its measures that does not depend on the replica."""

    def __init__(
        self,
        classifier: Classifier,
        group: Group,
        splits: Splits,
        settings: EvaluateSettings,
        factors: dict[str, dict[str, float]],
    ) -> None:
        self.group, self.settings = group, settings
        self.chosen = group.chosen(splits.test)
        test, validation = splits.test, splits.validation
        self.y, self.score = labels(test)[self.chosen], classifier.test[self.chosen]
        self.weight = test.weight.numpy()[self.chosen]
        self.yields = self.weight * _per_event(test, factors["test"])[self.chosen]
        self.num_own = int((self.y == (0 if group.kind == "background" else 1)).sum())
        self.ranked = metrics.Ranked(self.y, self.score)
        self.balanced = self.weight / np.where(self.y == 1, *(abs(self.weight[self.y == k].sum()) for k in (1, 0)))
        self.edges = metrics.score_bins(self.score, settings.calibration_bins)
        self.cut: float | None = None
        known = group.chosen(validation)
        if group.kind != "background":  # a significance needs all the background
            yields = validation.weight.numpy() * _per_event(validation, factors["validation"])
            found = metrics.best_cut(
                labels(validation)[known],
                classifier.validation[known],
                yields[known],
                settings.background_uncertainty,
                settings.min_background,
            )
            self.cut = found[0] if found else None
        self.prior = _prior(splits.train, group.chosen(splits.train))

    def measures(self, counts: Array | float) -> list[float]:
        """AUC, decision, background efficiencies, significance and calibration error if every event occurred `counts`
        times; NaN where there is none."""
        weight = self.weight * counts
        curve = self.ranked.curve(weight)
        efficiencies = [
            float(curve.background[curve.step(e)]) if np.isfinite(curve.area) else np.nan
            for e in self.settings.signal_efficiencies
        ]
        with np.errstate(divide="ignore", invalid="ignore"):
            decision = metrics.confusion(self.y, self.score > 0, weight)
            reliability = metrics.calibration(self.y, self.score, self.balanced * counts, self.edges)
        return [
            curve.area,
            *(getattr(decision, name) for name in DECISION),
            *efficiencies,
            self.significance(counts),
            reliability.error,
        ]

    def passing(self, counts: Array | float = 1.0) -> tuple[float, float]:
        """Expected signal and background above the cut."""
        passed = (self.score >= (np.inf if self.cut is None else self.cut)) * self.yields * counts
        return float(passed[self.y == 1].sum()), float(passed[self.y == 0].sum())

    def significance(self, counts: Array | float = 1.0) -> float:
        """Asimov significance above the cut that the validation events chose; NaN without a cut or background."""
        if self.cut is None:
            return float("nan")
        signal, background = self.passing(counts)
        return float(metrics.asimov_significance(signal, background, self.settings.background_uncertainty * background))


def _per_event(graphs: GraphBatch, factors: dict[str, float]) -> Array:
    return np.array([factors[name] for name in graphs.layout.samples])[graphs.sample.numpy()]


def _prior(train: GraphBatch, chosen: Array) -> float | None:
    """Log-odds of signal among these training events at their yields; None where a class has none."""
    weight, y = train.weight.numpy()[chosen], labels(train)[chosen]
    signal, background = (float(weight[y == label].sum()) for label in (1, 0))
    return float(np.log(signal / background)) if min(signal, background) > 0 else None


def measure_names(settings: EvaluateSettings) -> tuple[str, ...]:
    """Names of what `_Question.measures` returns."""
    efficiencies = (f"{EFFICIENCY}{efficiency:g}" for efficiency in settings.signal_efficiencies)
    return ("auc", *DECISION, *efficiencies, "significance", "calibration_error")


def _measure(
    classifiers: list[Classifier],
    groups: list[Group],
    questions: list[list[_Question]],
    num_events: int,
    settings: EvaluateSettings,
) -> Measured:
    """Values and replicas of every measure."""

    def once(counts: Array) -> list[list[list[float]]]:
        return [[q.measures(counts[q.chosen]) for q in row] for row in questions]

    replicas = [once(counts) for counts in metrics.poisson_counts(num_events, REPLICAS, BOOTSTRAP_SEED)]
    points = _points_of(groups)
    return Measured(
        values=_mean_of_points(np.array(once(np.ones(num_events))), points, settings),
        replicas=_mean_of_points(np.array(replicas, dtype=np.float32), points, settings),
        classifiers=tuple(c.name for c in classifiers),
        columns=tuple(c.column for c in classifiers),
        groups=tuple(f"{g.kind}: {g.name}" if g.name else g.kind for g in groups),
        measures=measure_names(settings),
    )


def _points_of(groups: list[Group]) -> list[int]:
    """Positions of the groups that are one signal hypothesis each: the points, else the signal samples."""
    kind = "point" if any(g.kind == "point" for g in groups) else "signal"
    return [i for i, g in enumerate(groups) if g.kind == kind]


def _mean_of_points(values: Array, points: list[int], settings: EvaluateSettings) -> Array:
    """Several signal points are no hypothesis together: the significance over all events [..., Z, G, M] becomes the
    mean of those of the points, each with its own cut."""
    if points:
        m = measure_names(settings).index("significance")
        values[..., 0, m] = values[..., points, m].mean(-1)
    return values


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _with_error(value: float, replicas: Array) -> dict[str, float | None]:
    return {"value": _number(value), "error": metrics.spread(replicas) if np.isfinite(value) else None}


def _shown(values: Array, replicas: Array, names: tuple[str, ...]) -> dict[str, Any]:
    """Measures with errors for metrics.json; a background efficiency ε_b becomes the rejection 1/ε_b."""
    shown: dict[str, Any] = {"rejection": []}
    for m, name in enumerate(names):
        if not name.startswith(EFFICIENCY):
            shown[name] = _with_error(values[m], replicas[:, m])
        else:
            rejection, error = inverse(values[m], replicas[:, m])
            efficiency = float(name.removeprefix(EFFICIENCY))
            shown["rejection"].append({"signal_efficiency": efficiency, "value": rejection, "error": error})
    return shown


def inverse(value: float, replicas: Array) -> tuple[float | None, float | None]:
    """1/ε and its error σ(ε)/ε²; (None, None) where nothing passes: then there is only a lower limit."""
    if not value > 0:
        return None, None
    error = metrics.spread(replicas)
    return float(1 / value), None if error is None else float(error / value**2)


def _describe(measured: Measured, k: int, questions: list[_Question]) -> dict[str, Any]:
    """All numbers of one classifier: over all events, per group, and its calibration."""
    parts, several = [], bool(_points_of([question.group for question in questions]))
    for g, question in enumerate(questions):
        shown = _shown(measured.values[k, g], measured.replicas[:, k, g], measured.measures)
        signal, background = (float(question.yields[question.y == label].sum()) for label in (1, 0))
        group = question.group
        if question.cut is not None and (group.kind != "all" or not several):
            passed = dict(zip(("signal", "background"), question.passing(), strict=True))
            shown["significance"] |= {"cut": question.cut, **passed}
        about = {"kind": group.kind, "name": group.name, "point": group.point, "events": question.num_own}
        parts.append({**about, "signal_yield": signal, "background_yield": background, **shown})
    first = {name: value for name, value in parts[0].items() if name not in ("kind", "name", "point", "events")}
    return {**first, "groups": parts[1:], "calibration": _calibration(questions[0])}


def _calibration(question: _Question) -> dict[str, Any]:
    """Reliability for the prior the classifier was trained with (equal classes), and for that of the expected yields:
    there the score needs the log-odds of the yields of the training events added."""
    equal = metrics.calibration(question.y, question.score, question.balanced, question.edges)
    result: dict[str, Any] = {"prior_log_odds": question.prior, "equal_classes": _bins(equal), "expected_yields": None}
    if question.prior is not None:
        moved, edges = question.score + question.prior, question.edges + question.prior
        result["expected_yields"] = _bins(metrics.calibration(question.y, moved, question.yields, edges))
    return result


def _bins(found: metrics.Calibration) -> dict[str, Any]:
    columns = ("low", "high", "predicted", "observed", "observed_error", "share")
    arrays = [getattr(found, name) for name in columns]
    rows = [dict(zip(columns, map(_number, values), strict=True)) for values in zip(*arrays, strict=True)]
    return {"error": found.error, "error_if_perfect": found.error_if_perfect, "bins": rows}


def _difference(measured: Measured, k: int, other: int) -> dict[str, Any]:
    """Classifier k minus another over all events, with the error of the difference: the same replicas for both."""
    values, replicas = measured.values[:, 0], measured.replicas[:, :, 0]
    shown = {}
    for m, name in enumerate(measured.measures):
        if not name.startswith(EFFICIENCY):
            shown[name] = _with_error(values[k, m] - values[other, m], replicas[:, k, m] - replicas[:, other, m])
    return shown


# References -------------------------------------------------------------------------------------------------------


def _references(splits: Splits, seed: int) -> list[Classifier]:
    """Gradient-boosted trees on the observables and on the flat node table."""
    inputs = {"trees_observables": observable_table, "trees_nodes": _node_table}
    names = {"trees_observables": "trees on {} observables", "trees_nodes": "trees on the node table"}
    found = []
    for column, table in inputs.items():
        fitted = fit_trees(splits, [table(splits.train), table(splits.validation)], seed)
        scores = (fitted.score(table(graphs)) for graphs in (splits.validation, splits.test))
        found.append(Classifier(names[column].format(fitted.known.sum()), column, *scores))
    return found


def fit_trees(splits: Splits, tables: Sequence[Array], seed: int) -> trees.Trees:
    """Trees on tables [B, V] of the training and validation events that tell signal from background.

    Trees cannot take negative weights: they are fitted with |w|, classes of equal weight.
    """
    train, validation = (
        trees.Table(table, labels(graphs), training_weights(graphs).abs().numpy())
        for table, graphs in zip(tables, (splits.train, splits.validation), strict=True)
    )
    return trees.fit(train, validation, seed)


def cross_scores(graphs: GraphBatch, seed: int, folds: int = 5) -> Array:
    """Log-odds of signal [B] of trees on the observables, of each event by trees that have not seen it.

    The events are cut into `folds` parts by their event ids; a tenth of the others says when the trees stop growing.
    Both classes get equal total |weight|. DataError if a class has fewer than ten events per part.
    """
    x, y, weight = observable_table(graphs), labels(graphs), np.zeros(len(graphs))
    if np.bincount(y, minlength=2).min() < 10 * folds:
        raise DataError(f"{folds} parts of {len(graphs)} events need at least {10 * folds} of each class.")
    fold, held = (random.uniform(seed, graphs.event_id.numpy(), "folds", 2) * (folds, 10)).astype(np.int64).T
    score = np.zeros(len(graphs))
    for part in range(folds):
        rest = fold != part
        weight[rest] = training_weights(graphs[torch.from_numpy(rest)]).abs().numpy()
        whole = trees.Table(x, y, weight)
        fitted = trees.fit(whole[rest & (held > 0)], whole[rest & (held == 0)], seed)
        score[~rest] = fitted.score(x[~rest])
    return score


def observable_table(graphs: GraphBatch) -> Array:
    """The high-level observables [B, 15]; NaN where an object is missing."""
    return np.stack([graphs.observable(name).numpy() for name in HIGH_LEVEL], 1)


def _node_table(graphs: GraphBatch) -> Array:
    return node_table(graphs.x.numpy(), graphs.mask.numpy(), graphs.layout.types)


def _score_table(graphs: GraphBatch, classifiers: list[Classifier]) -> pa.Table:
    layout, score = graphs.layout, classifiers[0].test
    columns: dict[str, Any] = {
        "event_id": graphs.event_id.numpy(),
        "sample": np.array(layout.samples)[graphs.sample.numpy()],
        "label": graphs.y.numpy(),
        "weight": graphs.weight.numpy(),
        "score": score,
        "probability": metrics.probability(score),
        **{c.column: c.test for c in classifiers[1:]},
    }
    for i, name in enumerate(layout.observables):
        columns[name] = graphs.observables[:, i].numpy()
    return pa.table(columns)


def write_scores(path: Path, table: pa.Table) -> None:
    """Write the score table atomically."""
    with files.atomic(path) as temporary:
        pq.write_table(table, temporary)
