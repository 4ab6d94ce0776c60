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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

from hepx import files, metrics
from hepx.evaluate import SIGNAL
from hepx.graph import GraphBatch
from hepx.influence.audit import finite
from hepx.influence.dropped import composition, means, shapes
from hepx.influence.reduced import EPOCHS, FULL, RANDOM, SHORT, STEPS, Arm, Study
from hepx.influence.retrain import Retrained
from hepx.results import Provenance

Array = npt.NDArray[Any]
SIGMAS = 2.0  # a claim needs more
REPLICAS = 200
EFFICIENCY = 0.5  # of the signal, where the rejection is quoted
NAMES = ("influence/distill.json", "influence/distill.csv")


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
    return float(stdtrit(number - 1, ndtr(SIGMAS)) / SIGMAS)


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
    by_chance = num * float(ndtr(-SIGMAS))
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
