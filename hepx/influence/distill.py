"""What a smaller training set costs: some training events are dropped by their scores, and the model is trained again.

arXiv:2407.14859 drops "non-contributory" training events by their self-influence and finds models as good or better.
That claim needs controls, and a test set that nobody touches (in the public code events leave the test set too). Here

* events leave the training set only; the test events, their weights and their number stay; scores are of training
  events, so no number of a test event decides what is dropped;
* every reduced set is compared with several sets of as many events drawn at random, each trained with the same seeds,
  at equal events (as many epochs as the full training, so fewer steps) and at equal steps (those of the full training);
* the full set trained for as few steps as a reduced one (`short`) says what merely stopping earlier costs.

A gain is claimed only where the AUC, mean of the seeds, exceeds that of random removal by more than two standard
deviations in both comparisons. A single set drawn at random may be lucky, whatever the seeds: the error of a difference
to random removal has the spread from one random set to the other (for the one set of the score, and over √sets for the
mean of the random ones). Other differences have the spread of the seed-by-seed differences over √seeds. Both are
widened for small numbers by Student's t; bootstrap replicas of the test events, common to all, are added in quadrature.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from scipy.stats import norm, t

from hepx import files, metrics, random
from hepx.config import Settings
from hepx.errors import ConfigError
from hepx.evaluate import SIGNAL
from hepx.graph import GraphBatch
from hepx.influence.audit import finite, picture, rate, strata
from hepx.influence.retrain import Change, Recipe, Retrained, retrain
from hepx.influence.taxonomy import Category
from hepx.results import Provenance
from hepx.train import TrainSettings, training_weights

Array = npt.NDArray[Any]
Order = Literal["highest", "lowest"]
EPOCHS, STEPS = "events", "steps"  # what a comparison holds equal; the same number of epochs, or of steps as the full
FULL, SHORT, RANDOM = "full", "short", "random"
SIGMAS = 2.0  # a claim needs more
REPLICAS = 200
EFFICIENCY = 0.5  # of the signal, where the rejection is quoted
SHAPES = ("mbb", "mt", "mct")
NUM_BINS = 24
NULL_DRAWS = 200
NAMES = ("influence/distill.json", "influence/distill.csv")


class DistillSettings(Settings):
    """fractions of the training events that are dropped; seeds of the trainings; orders: which end of the ranking goes;
    sets: how many random removals stand beside it; epochs of the full training (null: as in the config of the run)."""

    fractions: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.2, 0.5)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(1, 2, 3), min_length=2)
    orders: tuple[Order, ...] = Field(default=("highest", "lowest"), min_length=1)
    sets: int = Field(default=4, ge=2)
    epochs: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Arm:
    """One way to train, with every seed. score: what ranks the events, or full, short, random; order: which end is
    dropped; fraction that is dropped; equal: to the full training in epochs (`events`) or in `steps`; draw: number of
    the random set."""

    score: str
    order: str
    fraction: float
    equal: str
    epochs: int
    draw: int = 0

    @property
    def is_scored(self) -> bool:
        """Whether a score decides what is dropped."""
        return self.score not in (FULL, SHORT, RANDOM)


@dataclass(frozen=True)
class Study:
    """A model with its training settings, training and test events, and scores of the training events by name [B]."""

    model: Settings
    train: TrainSettings
    events: GraphBatch
    test: GraphBatch
    scores: Mapping[str, Array]
    settings: DistillSettings

    @cached_property
    def epochs(self) -> int:
        """Of the full training."""
        return self.settings.epochs or self.train.epochs

    @cached_property
    def steps_per_epoch(self) -> int:
        """Of the full training."""
        return math.ceil(len(self.events) / self.train.batch_size)

    def num_dropped(self, fraction: float) -> int:
        """Number of events that a fraction is."""
        return round(fraction * len(self.events))

    def arms(self) -> list[Arm]:
        """Full training; then per fraction the shorter one, random removal and every score, at equal events and steps.

        The number of epochs of equal steps is rounded, so steps agree with those of the full training to half an epoch.
        """
        found = [Arm(FULL, "", 0.0, EPOCHS, self.epochs)]
        for fraction in self.settings.fractions:
            left = math.ceil((len(self.events) - self.num_dropped(fraction)) / self.train.batch_size)
            more, fewer = self.steps_per_epoch / left, left / self.steps_per_epoch
            found.append(Arm(SHORT, "", fraction, STEPS, max(1, round(self.epochs * fewer))))
            for equal, epochs in ((EPOCHS, self.epochs), (STEPS, round(self.epochs * more))):
                found += [Arm(RANDOM, "", fraction, equal, epochs, draw) for draw in range(self.settings.sets)]
                for score in self.scores:
                    found += [Arm(score, order, fraction, equal, epochs) for order in self.settings.orders]
        return found

    def dropped(self, arm: Arm) -> Array:
        """Mask [B] of the events that are dropped: the ends of the ranking (equal scores by the event id), or events
        drawn at random, more of them for a larger fraction. Only training events are looked at."""
        mask = np.zeros(len(self.events), dtype=bool)
        if arm.score in (FULL, SHORT):
            return mask
        ids = self.events.event_id.numpy()
        if arm.score == RANDOM:
            value = random.uniform(arm.draw, ids, "distill", 1)[:, 0]
        else:
            value = self.scores[arm.score] * (-1 if arm.order == "highest" else 1)
        mask[np.lexsort((ids, value))[: self.num_dropped(arm.fraction)]] = True
        return mask

    def change(self, arm: Arm, seed: int) -> Change:
        """The training of an arm with a seed."""
        rows = None if arm.fraction == 0 or arm.score == SHORT else np.flatnonzero(~self.dropped(arm))
        name = f"{arm.score} {arm.order or arm.draw} {arm.fraction:g} equal {arm.equal}, seed {seed}"
        return Change(name=name, seed=seed, rows=None if rows is None else torch.from_numpy(rows))


def execute(study: Study, folder: Path, workers: int = 1) -> dict[Arm, list[Retrained]]:
    """All trainings, those whose files are in `folder` not again; outcomes per arm, one per seed."""
    if len(set(study.settings.seeds)) < 2:
        raise ConfigError("distill needs two different seeds at least: one says nothing about the spread of trainings.")
    found: dict[Arm, list[Retrained]] = {}
    arms = study.arms()
    for epochs in dict.fromkeys(arm.epochs for arm in arms):
        settings = study.train.model_copy(update={"epochs": epochs})
        recipe = Recipe(study.model, settings, study.events, study.test)
        mine = [arm for arm in arms if arm.epochs == epochs]
        changes = [study.change(arm, seed) for arm in mine for seed in study.settings.seeds]
        done = retrain(recipe, changes, folder, workers, what=f"distill, {epochs} epochs")
        num = len(study.settings.seeds)
        found |= {arm: done[i * num : (i + 1) * num] for i, arm in enumerate(mine)}
    return {arm: found[arm] for arm in arms}


# Measures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """AUC and background efficiency of one arm: by seed [S, 2], and of bootstrap replicas, mean of the seeds [R, 2];
    the replicas are the same for every arm, so that differences are taken pairwise."""

    values: Array
    replicas: Array


@dataclass(frozen=True)
class Gain:
    """A difference of AUC with its error, and the two parts of the error: trainings (seeds and random sets) and test
    events; sigmas: difference in its errors."""

    value: float
    error: float
    training_error: float
    test_error: float
    sigmas: float


def measure(study: Study, outcomes: Sequence[Retrained]) -> Entry:
    """AUC and background efficiency of some trainings on the weighted test events."""
    y = (study.test.y.numpy() == SIGNAL).astype(np.int64)
    weight, values, replicas = study.test.weight.numpy(), [], []
    for one in outcomes:
        ranked = metrics.Ranked(y, one.score.astype(np.float64))
        values.append(_measures(ranked.curve(weight)))
        counts = metrics.poisson_counts(len(y), REPLICAS, 0)
        replicas.append([_measures(ranked.curve(weight * n)) for n in counts])
    return Entry(np.array(values), np.mean(replicas, axis=0))


def _measures(curve: metrics.Roc) -> tuple[float, float]:
    return curve.area, float(curve.background[curve.step(EFFICIENCY)]) if np.isfinite(curve.area) else math.nan


def gain(one: Entry, other: Entry) -> Gain:
    """Mean AUC of an arm minus that of another one, paired by seed and by replica."""
    by_seed = one.values[:, 0] - other.values[:, 0]
    error = float(by_seed.std(ddof=1) / np.sqrt(len(by_seed))) * few(len(by_seed))
    return _gain(float(by_seed.mean()), error, one.replicas[:, 0] - other.replicas[:, 0])


def gain_over_sets(one: Entry, others: Sequence[Entry]) -> Gain:
    """Mean AUC of an arm minus that of K random sets. If the arm dropped at random too, the difference in units of
    √(1 + 1/K) times the spread of the K means would follow Student's t."""
    by_set = np.array([one.values[:, 0].mean() - other.values[:, 0].mean() for other in others])
    error = float(by_set.std(ddof=1) * np.sqrt(1 + 1 / len(by_set))) * few(len(by_set))
    return _gain(float(by_set.mean()), error, one.replicas[:, 0] - merged(others).replicas[:, 0])


def _gain(value: float, training_error: float, replicas: Array) -> Gain:
    test_error = metrics.spread(replicas) or 0.0
    error = math.hypot(training_error, test_error)
    return Gain(value, error, training_error, test_error, value / error if error > 0 else 0.0)


def merged(entries: Sequence[Entry]) -> Entry:
    """The mean of several sets."""
    values = np.mean([entry.values for entry in entries], axis=0)
    return Entry(values, np.mean([entry.replicas for entry in entries], axis=0))


def few(number: int) -> float:
    """How much wider two standard errors from a few values must be, so as to be exceeded no more often than from many.

    >>> round(few(3), 2), round(few(1000), 2)
    (2.26, 1.0)
    """
    return float(t.ppf(norm.cdf(SIGMAS), number - 1) / SIGMAS)


def word(found: Gain) -> str:
    """What a difference allows to say: better, worse, or equal (not distinguishable)."""
    if abs(found.sigmas) <= SIGMAS:
        return "equal"
    return "better" if found.value > 0 else "worse"


def describe(study: Study, outcomes: Mapping[Arm, Sequence[Retrained]]) -> dict[str, Any]:
    """How good the arms are, and what dropping changes about the training set."""
    measured = analyse(study, outcomes)
    return {**measured, "composition": composition(study), "shapes": shapes(study), "means": means(study)}


def analyse(study: Study, outcomes: Mapping[Arm, Sequence[Retrained]]) -> dict[str, Any]:
    """Everything that is measured on the test events: rows of the arms (one for all random sets), and the verdict."""
    entries = {arm: measure(study, done) for arm, done in outcomes.items()}
    whole: dict[Arm, list[Arm]] = {}
    for arm in entries:
        whole.setdefault(replace(arm, draw=0), []).append(arm)
    sets = {arm: [entries[one] for one in ones] for arm, ones in whole.items()}
    rows = [_row(arm, sets, [one for each in whole[arm] for one in outcomes[each]]) for arm in sets]
    return {"rows": rows, "verdict": verdict(rows), "test": _frozen(study.test)}


def _row(arm: Arm, sets: Mapping[Arm, Sequence[Entry]], outcomes: Sequence[Retrained]) -> dict[str, Any]:
    """One arm: what it costs, how good it is, and how it compares."""
    entry, first = merged(sets[arm]), outcomes[0]
    auc, efficiency = entry.values.mean(0).tolist()
    spread = entry.values.std(0, ddof=1) / np.sqrt(len(entry.values))
    errors = np.hypot(spread, [metrics.spread(column) or 0.0 for column in entry.replicas.T])
    controls = {(one.score, one.equal): one for one in sets if one.fraction in (arm.fraction, 0.0)}
    versus: dict[str, Any] = {"full": None, "random": None, "short": None}
    if arm.score != FULL:
        versus["full"] = _compared(gain(entry, merged(sets[controls[FULL, EPOCHS]])))
    if arm.is_scored:
        versus["random"] = _compared(gain_over_sets(entry, sets[controls[RANDOM, arm.equal]]))
    if arm.equal == EPOCHS and arm.score != FULL:
        versus["short"] = _compared(gain(entry, merged(sets[controls[SHORT, STEPS]])))
    about = {name: value for name, value in asdict(arm).items() if name != "draw"}
    return {
        **about,
        "sets": len(sets[arm]),
        "events": first.num_events,
        "steps": first.steps,
        "cpu_seconds": float(np.mean([one.seconds for one in outcomes])),
        "auc": auc,
        "auc_error": float(errors[0]),
        "auc_by_seed": entry.values[:, 0].tolist(),
        "rejection": 1 / efficiency if efficiency > 0 else None,
        "rejection_error": float(errors[1] / efficiency**2) if efficiency > 0 else None,
        "versus": versus,
    }


def _compared(found: Gain) -> dict[str, Any]:
    return {**asdict(found), "word": word(found)}


def _frozen(test: GraphBatch) -> dict[str, Any]:
    """What identifies the test events: their number, effective number, and a digest of ids and weights."""
    weight = test.weight.numpy()
    parts = [test.event_id.tolist(), weight.tolist()]
    return {"events": len(test), "effective": metrics.effective_number(weight), "digest": files.digest(parts)}


# Words --------------------------------------------------------------------------------------------------------------


def verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the numbers allow to say about dropping events, in sentences that nothing else decides."""
    scored = [row for row in rows if row["versus"]["random"] is not None]
    claims = _claims(scored)
    sentences = [_of_claims(claims, scored)]
    worse = sorted({_name(row) for row in scored if row["versus"]["random"]["word"] == "worse"})
    if worse:
        sentences.append(f"Worse than random removal by more than {SIGMAS:g} σ: {'; '.join(worse)}.")
    sentences.append(_against_full(rows))
    sentences += _of_time(rows)
    return sentences


def _claims(scored: Sequence[Mapping[str, Any]]) -> list[str]:
    """Reduced sets that are better than random ones at equal events and at equal steps."""
    words: dict[tuple[Any, ...], list[str]] = {}
    for row in scored:
        words.setdefault((row["score"], row["order"], row["fraction"]), []).append(row["versus"]["random"]["word"])
    names = {(row["score"], row["order"], row["fraction"]): _name(row, equal=False) for row in scored}
    return [names[key] for key, found in words.items() if len(found) == 2 and set(found) == {"better"}]


def _of_claims(claims: Sequence[str], scored: Sequence[Mapping[str, Any]]) -> str:
    num = len(scored)
    by_chance = num * float(norm.sf(SIGMAS))
    better = sum(row["versus"]["random"]["word"] == "better" for row in scored)
    seen = f"{better} of {num} comparisons exceed +{SIGMAS:g} σ; {by_chance:.1f} would by chance"
    if claims:
        return f"Better than random removal at equal events and at equal steps: {'; '.join(claims)} ({seen})."
    return f"No score chose events to drop better than chance, at equal events and at equal steps ({seen})."


def _against_full(rows: Sequence[Mapping[str, Any]]) -> str:
    reduced = [row for row in rows if row["score"] not in (FULL, SHORT)]
    words = [row["versus"]["full"]["word"] for row in reduced]
    counts = {what: words.count(what) for what in ("better", "equal", "worse")}
    best = max(reduced, key=lambda row: row["versus"]["full"]["value"])
    found = best["versus"]["full"]
    return (
        f"Of {len(reduced)} reduced training sets {counts['better']} are better than the full one by more than "
        f"{SIGMAS:g} σ, {counts['worse']} worse and {counts['equal']} not distinguishable from it; the highest AUC "
        f"relative to it: {found['value']:+.4f} ± {found['error']:.4f} ({_name(best)})."
    )


def _of_time(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Steps saved by reduced sets, and whether a shorter training on all events does the same."""
    full = next(row for row in rows if row["score"] == FULL)
    for row in rows:
        if row["score"] == RANDOM and row["equal"] == EPOCHS:
            saved, versus = 100 * (1 - row["steps"] / full["steps"]), row["versus"]["short"]
            yield (
                f"Dropping {100 * row['fraction']:g} % of the events saves {saved:.0f} % of the steps of a training; "
                f"AUC of random removal minus that of all events for as few steps: {versus['value']:+.4f} ± "
                f"{versus['error']:.4f}."
            )


def _name(row: Mapping[str, Any], equal: bool = True) -> str:
    order = f"{row['order']} " if row["order"] else ""
    text = f"{order}{row['score']}, {100 * row['fraction']:g} % dropped"
    return f"{text}, equal {row['equal']}" if equal else text


# What is dropped ------------------------------------------------------------------------------------------------------


def removals(study: Study) -> list[Arm]:
    """The different sets that scores drop: one arm for each score, order and fraction."""
    return [arm for arm in study.arms() if arm.is_scored and arm.equal == EPOCHS]


def composition(study: Study) -> list[dict[str, Any]]:
    """Share of each process in its class in the training set, by weight, before and after."""
    graphs = study.events
    weight, sample, y = graphs.weight.numpy(), graphs.sample.numpy(), graphs.y.numpy()
    rows = []
    for arm in removals(study):
        kept = ~study.dropped(arm)
        for number, label in np.unique(np.stack([sample, y], 1), axis=0).tolist():
            own, peers = (sample == number) & (y == label), y == label
            before, after = (float(weight[own & part].sum() / weight[peers & part].sum()) for part in (peers, kept))
            rows.append(
                {
                    **_key(arm),
                    "sample": graphs.layout.samples[number],
                    "label": label,
                    "events_before": int(own.sum()),
                    "events_after": int((own & kept).sum()),
                    "dropped": asdict(metrics.share(~kept[own], weight[own])),
                    "share_before": before,
                    "share_after": after,
                }
            )
    return rows


def shapes(study: Study) -> list[dict[str, Any]]:
    """Distribution of m_bb, m_T and m_CT of each class in the training set, before and after, at unit area.

    ratio: after / before with its error (the events after are among those before); distance: largest difference of the
    weighted cumulative distributions (Kolmogorov–Smirnov); null: its 95th percentile for as many events drawn at random
    from the training set; chi2: of the ratio to 1 over `bins` bins.
    """
    weight, y = training_weights(study.events, study.train.weights).numpy(), study.events.y.numpy()
    rows = []
    for name in SHAPES:
        value = study.events.observable(name).numpy()
        if not np.isfinite(value).any():  # events without b-jets have no m_bb
            continue
        edges = _edges(value[np.isfinite(value)])
        for label in np.unique(y):
            own = (y == label) & np.isfinite(value)
            nulls: dict[float, float] = {}
            for arm in removals(study):
                kept = ~study.dropped(arm)[own]
                if arm.fraction not in nulls:
                    nulls[arm.fraction] = _null_distance(value[own], weight[own], arm.fraction)
                if weight[own][kept].sum() <= 0:
                    continue
                found = compare_shapes(value[own], weight[own], kept, edges)
                key = {**_key(arm), "observable": name, "label": int(label)}
                rows.append({**key, **found, "null": nulls[arm.fraction], "edges": edges.tolist()})
    return rows


def compare_shapes(value: Array, weight: Array, kept: Array, edges: Array) -> dict[str, Any]:
    """Histogram of some values and of the kept ones, their ratio, and how far apart they are.

    The variance of the share r = k/f of a bin that is kept is ((1 − 2r) Σ_kept w² + r² Σ w²) / f²: the binomial one
    for equal weights.
    """
    before, after = (np.histogram(value[m], edges, weights=weight[m])[0] for m in (slice(None), kept))
    all2, kept2 = (np.histogram(value[m], edges, weights=weight[m] ** 2)[0] for m in (slice(None), kept))
    overall = weight[kept].sum() / weight.sum()
    known = before > 0
    share = np.divide(after, before, out=np.zeros_like(before), where=known)
    variance = np.divide((1 - 2 * share) * kept2 + share**2 * all2, before**2, out=np.zeros_like(before), where=known)
    ratio, error = share / overall, np.sqrt(np.maximum(variance, 0)) / overall
    used = error > 0
    return {
        "before": (before / before.sum()).tolist(),
        "after": (after / after.sum()).tolist(),
        "ratio": np.where(known, ratio, 0.0).tolist(),
        "ratio_error": error.tolist(),
        "distance": ks_distance(value, weight, kept),
        "chi2": float((((ratio - 1) / np.where(used, error, 1)) ** 2)[used].sum()),
        "bins": int(used.sum()) - 1,
    }


def ks_distance(value: Array, weight: Array, kept: Array) -> float:
    """Largest difference of the weighted cumulative distributions of all and of the kept values; signs of the weights
    are kept."""
    order = np.argsort(value, kind="stable")
    last = np.append(np.diff(value[order]) > 0, True)
    w, part = weight[order], (weight * kept)[order]
    return float(np.abs(np.cumsum(w) / w.sum() - np.cumsum(part) / part.sum())[last].max())


def _null_distance(value: Array, weight: Array, fraction: float) -> float:
    """95th percentile of the distance when events are dropped at random."""
    rng = np.random.default_rng(0)
    return float(
        np.quantile([ks_distance(value, weight, rng.random(len(value)) >= fraction) for _ in range(NULL_DRAWS)], 0.95)
    )


def _edges(value: Array) -> Array:
    """Bins between the lowest value and the 99th percentile; the last one holds what lies beyond."""
    edges = np.linspace(value.min(), np.quantile(value, 0.99), NUM_BINS + 1)
    return np.append(edges[:-1], max(edges[-1], float(value.max()) * (1 + 1e-9)))


def losses(study: Study, categories: Sequence[Category]) -> list[dict[str, Any]]:
    """How frequent each category is among the dropped events and in the training set, per process."""
    weight = study.events.weight.numpy()
    return [
        {**_key(arm), **asdict(rate(stratum, category, "dropped", study.dropped(arm), weight))}
        for arm in removals(study)
        for stratum in strata(study.events, ())
        for category in categories
        if stratum.kind in ("all", "process") and (stratum.mask & category.known).any()
    ]


def means(study: Study) -> list[dict[str, Any]]:
    """Weighted mean of every observable among the dropped and the kept events of each process, with standard error."""
    weight, sample, layout = study.events.weight.numpy(), study.events.sample.numpy(), study.events.layout
    rows = []
    for arm in removals(study):
        dropped = study.dropped(arm)
        for number, process in enumerate(layout.samples):
            for i, name in enumerate(layout.observables):
                value = study.events.observables[:, i].numpy()
                own = (sample == number) & np.isfinite(value)
                parts = [metrics.weighted_mean(value[own & m], weight[own & m]) for m in (dropped, ~dropped)]
                if np.isfinite(parts).all():
                    (mean, error), (kept, kept_error) = parts
                    numbers = {"dropped": mean, "dropped_error": error, "kept": kept, "kept_error": kept_error}
                    key = {**_key(arm), "sample": process, "observable": name}
                    rows.append({**key, "unit": layout.observable_units[i], **numbers})
    return rows


def first_dropped(study: Study, score: Array, number: int) -> list[dict[str, Any]]:
    """What a picture of the first events that each score drops needs; score [B]: log-odds of signal of the model."""
    found = []
    for arm in {(arm.score, arm.order): arm for arm in removals(study)}.values():
        value = study.scores[arm.score]
        order = np.lexsort((study.events.event_id.numpy(), -value if arm.order == "highest" else value))
        for i in order[:number].tolist():
            about = {**_key(arm), "value": float(value[i]), "model_score": float(score[i])}
            found.append({**about, **picture(study.events, i)})
    return found


def _key(arm: Arm) -> dict[str, Any]:
    return {"score": arm.score, "order": arm.order, "fraction": arm.fraction}


# Files --------------------------------------------------------------------------------------------------------------


def save(folder: Path, found: dict[str, Any], provenance: Provenance) -> None:
    """Write influence/distill.json and, one line per arm, influence/distill.csv into a run folder."""
    files.write_json(folder / NAMES[0], {**finite(found), "provenance": asdict(provenance)})
    plain = [name for name in found["rows"][0] if name not in ("auc_by_seed", "versus")]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    others = ("random", "full", "short")
    ends = [f"{what}_{other}" for other in others for what in ("gain_over", "error_over", "word")]
    writer.writerow([*plain, *ends])
    for row in found["rows"]:
        versus = [row["versus"][other] or {} for other in others]
        cells = [one.get(name, "") for one in versus for name in ("value", "error", "word")]
        writer.writerow(["" if row[name] is None else row[name] for name in plain] + cells)
    files.write_text(folder / NAMES[1], buffer.getvalue())
