"""What is dropped from a training set: processes, shapes of observables, categories, means, and single events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from hepx import metrics
from hepx.influence.audit import picture, rate, strata
from hepx.influence.reduced import EPOCHS, Arm, Study
from hepx.influence.taxonomy import Category
from hepx.train import training_weights

Array = npt.NDArray[Any]
SHAPES = ("mbb", "mt", "mct")
NUM_BINS = 24
NULL_DRAWS = 200


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
