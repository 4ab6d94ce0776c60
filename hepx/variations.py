"""What systematic variations do to a trained classifier: yields, efficiencies and AUC under each, beside the nominal.

The same events are compared, matched by event id, so the errors of the differences are those of the differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hepx import metrics
from hepx.graph import GraphBatch, Layout
from hepx.models import Model, predict

Array = npt.NDArray[Any]
REPLICAS = 200
SIGNAL = 1


@dataclass(frozen=True)
class Scored:
    """Test events with their scores."""

    graphs: GraphBatch
    score: Array


@dataclass(frozen=True)
class _Pair:
    """Nominal and varied events, matched: arrays [B] over all events that either has; weight and score of an event that
    one of them has not got are 0 there."""

    y: Array
    sample: Array
    weight: Array  # [2, B]
    score: Array  # [2, B]
    present: Array  # [2, B]


def compare_variations(
    model: Model,
    nominal: Scored,
    varied: Iterable[tuple[str, GraphBatch]],
    efficiencies: Sequence[float],
    yield_factors: Mapping[str, float],
    seed: int,
) -> list[dict[str, Any]]:
    """`yield_factors`: sample -> what the weights of its test events count for, so that yields are of all events.

    One entry per variation: AUC, yields per sample, and yields above the nominal cuts on the score, each with its
    difference to the nominal value and the statistical error of that difference. Negative weights keep their sign.
    """
    y, score, weight = (nominal.graphs.y == SIGNAL).numpy(), nominal.score, nominal.graphs.weight.numpy()
    cuts = {efficiency: metrics.threshold_at(y, score, weight, efficiency) for efficiency in efficiencies}
    factors, found = np.array([yield_factors[name] for name in nominal.graphs.layout.samples]), []
    for name, graphs in varied:
        pair = _match(nominal, Scored(graphs, predict(model, graphs, SIGNAL).double().numpy()))
        found.append(
            {
                "variation": name,
                "events": int(pair.present[1].sum()),
                "gained": int((pair.present[1] & ~pair.present[0]).sum()),
                "lost": int((pair.present[0] & ~pair.present[1]).sum()),
                "auc": _auc(pair, seed),
                "yields": _yields(pair, graphs.layout, factors),
                "cuts": [
                    {"signal_efficiency": efficiency, "score": cut, "yields": _classes(pair, cut, factors)}
                    for efficiency, cut in cuts.items()
                ],
            }
        )
    return found


def _match(nominal: Scored, varied: Scored) -> _Pair:
    ids = [one.graphs.event_id.numpy() for one in (nominal, varied)]
    union = np.union1d(*ids)
    shape = (2, len(union))
    weight, score, present = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool)
    y, sample = np.zeros(len(union), dtype=np.int64), np.zeros(len(union), dtype=np.int64)
    for row, (one, its) in enumerate(zip((nominal, varied), ids, strict=True)):
        place = np.searchsorted(union, its)
        weight[row, place], score[row, place], present[row, place] = one.graphs.weight.numpy(), one.score, True
        y[place], sample[place] = (one.graphs.y == SIGNAL).numpy(), one.graphs.sample.numpy()
    return _Pair(y, sample, weight, score, present)


def _auc(pair: _Pair, seed: int) -> dict[str, float]:
    """The same bootstrap replicas of the events for both."""
    nominal, varied = (metrics.auc(pair.y, pair.score[i], pair.weight[i]) for i in (0, 1))
    replicas = [metrics.bootstrap_auc(pair.y, pair.score[i], pair.weight[i], REPLICAS, seed) for i in (0, 1)]
    return {
        "value": varied,
        "error": float(replicas[1].std()),
        "difference": varied - nominal,
        "difference_error": float((replicas[1] - replicas[0]).std()),
    }


def _yields(pair: _Pair, layout: Layout, factors: Array) -> list[dict[str, Any]]:
    classes = ("signal" if label == SIGNAL else "background" for label in layout.labels)
    return [
        {"sample": name, "class": kind, **_yield(pair, pair.sample == i, -np.inf, factors)}
        for i, (name, kind) in enumerate(zip(layout.samples, classes, strict=True))
    ]


def _classes(pair: _Pair, cut: float, factors: Array) -> list[dict[str, Any]]:
    names = (("signal", pair.y == SIGNAL), ("background", pair.y != SIGNAL))
    return [{"class": name, **_yield(pair, chosen, cut, factors)} for name, chosen in names]


def _yield(pair: _Pair, chosen: Array, cut: float, factors: Array) -> dict[str, float]:
    """Σw above a cut on the score, and its difference to the nominal one with the error √Σ(Δw)² of matched events."""
    kept = np.where(pair.present & (pair.score >= cut) & chosen, pair.weight * factors[pair.sample], 0.0)
    nominal, varied = kept.sum(axis=1)
    return {
        "value": float(varied),
        "nominal": float(nominal),
        "difference": float(varied - nominal),
        "difference_error": float(np.sqrt(((kept[1] - kept[0]) ** 2).sum())),
    }
