"""Which kinds of training events did it: influence summed by process, signal point, region, sign of weight, observable.

An event more or less changes little; what a physicist can act on is a group (arXiv:2410.09940 for why sums are what is
wanted). A sum over N events grows with N, so it stands beside what N training events of any kind add up to.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hepx.attribution import Shard, event_table
from hepx.errors import DataError
from hepx.graph import GraphBatch
from hepx.influence.base import Score, Task
from hepx.models import predict
from hepx.results import Array, Provenance
from hepx.results_influence import Influence
from hepx.train.snapshots import load_snapshot

BINNED = ("mbb", "mt", "mct", "met")
NUM_BINS = 5
SHOWN = 5  # proponents and opponents kept for each query


@dataclass(frozen=True)
class Grouping:
    """What groups are made of, beside process and sign of weight: names of observables that tell signal points apart,
    names of regions, and the observables that are cut into bins of equal numbers of training events."""

    points: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    observables: tuple[str, ...] = BINNED


@dataclass(frozen=True)
class _Pairs:
    """What is kept of the influences [B, Q]: mean over the queries and its error [B], and the extremes [Q, K]."""

    mean: Array
    error: Array
    proponents: Array
    proponent_values: Array
    opponents: Array
    opponent_values: Array


@dataclass(frozen=True)
class Question:
    """Which score, of which events by which model; query: the expression that chose the queries of the task."""

    score: Score
    task: Task
    query: str
    grouping: Grouping
    provenance: Provenance

    def answer(self) -> Influence:
        """The score of all training events, alone and on the queries, and its sums over groups.

        Memory grows with the number of training events and of queries, not with their product. DataError if the
        queries have no positive total weight.
        """
        return _attribute(self.score, self.task, self.query, self.grouping, self.provenance)

    def prepare(self, shard: Shard) -> None:
        """One shard of the gradients that `answer` reads, into the cache of the task; other jobs do the others."""
        self.score.prepare(self.task, shard)


def _attribute(score: Score, task: Task, query: str, grouping: Grouping, provenance: Provenance) -> Influence:
    own = score.of_training(task).double().numpy() if score.on_itself else None
    pairs = _pairs(score, task) if score.pairwise else None
    groups = list(groups_of(task.train, grouping))
    inside = np.stack([mask for _, _, mask in groups])
    absolute = task.weight.abs().double().numpy()
    events = event_table(task.train)
    return Influence(
        score=score.name,
        query=query,
        events=event_table(task.query),
        query_score=_scores(task),
        train_id=events.event_id,
        train_sample=events.sample,
        train_label=events.y,
        train_weight=events.weight,
        loss_weight=task.weight.double().numpy(),
        train_observables=events.observables,
        own=own,
        mean=None if pairs is None else pairs.mean,
        mean_error=None if pairs is None else pairs.error,
        proponents=None if pairs is None else pairs.proponents,
        proponent_values=None if pairs is None else pairs.proponent_values,
        opponents=None if pairs is None else pairs.opponents,
        opponent_values=None if pairs is None else pairs.opponent_values,
        by=tuple(by for by, _, _ in groups),
        group=tuple(name for _, name, _ in groups),
        num_events=inside.sum(1),
        share=inside @ absolute / absolute.sum(),
        **_sums(inside, None if pairs is None else pairs.mean),
        **_means(inside, own),
        provenance=provenance,
    )


def groups_of(graphs: GraphBatch, grouping: Grouping) -> Iterator[tuple[str, str, Array]]:
    """What, name and mask [B] of every group with events."""
    for what, name, mask in _every(graphs, grouping):
        if mask.any():
            yield what, name, mask


def _every(graphs: GraphBatch, grouping: Grouping) -> Iterator[tuple[str, str, Array]]:
    layout, sample, weight = graphs.layout, graphs.sample.numpy(), graphs.weight.numpy()
    for number, name in enumerate(layout.samples):
        yield "sample", name, sample == number
    if grouping.points:
        signal = graphs.y.numpy() == 1
        values = np.stack([graphs.observable(name).numpy() for name in grouping.points], axis=1)
        for point in np.unique(values[signal], axis=0):
            named = zip(grouping.points, point, strict=True)
            yield "signal point", ", ".join(f"{n} = {v:g}" for n, v in named), signal & (values == point).all(1)
    for name in grouping.regions:
        inside = graphs.observable(name).numpy() == 1
        yield "region", name, inside
    if (weight < 0).any():
        yield "weight", "negative", weight < 0
        yield "weight", "positive", weight > 0
    for name in grouping.observables:
        if name in layout.observables:
            yield from _bins(name, graphs.observable(name).numpy())


def _bins(name: str, values: Array) -> Iterator[tuple[str, str, Array]]:
    """Bins of equal numbers of events, the outermost open. Undefined values are in none."""
    edges = np.unique(np.nanquantile(values, np.linspace(0, 1, NUM_BINS + 1)))
    low, *inner, high = (f"{edge:.0f}" if edge >= 100 else f"{edge:.3g}" for edge in edges)
    names = (
        [f"below {inner[0]}", *map(" – ".join, pairwise(inner)), f"above {inner[-1]}"] if inner else [f"{low} – {high}"]
    )
    edges[-1] = np.inf
    for text, (start, end) in zip(names, pairwise(edges), strict=True):
        yield name, text, (values >= start) & (values < end)


def _sums(inside: Array, mean: Array | None) -> dict[str, Any]:
    if mean is None:
        return dict.fromkeys(("total", "total_error", "expected"))
    number = inside.sum(1)
    return {
        "total": inside @ mean,
        "total_error": np.sqrt(inside @ mean**2),
        "expected": number * mean.mean(),
    }


def _means(inside: Array, own: Array | None) -> dict[str, Any]:
    if own is None:
        return dict.fromkeys(("own_mean", "own_error"))
    spread = np.array([own[mask].std(ddof=1) if mask.sum() > 1 else np.nan for mask in inside])
    return {"own_mean": inside @ own / inside.sum(1), "own_error": spread / np.sqrt(inside.sum(1))}


def _pairs(score: Score, task: Task) -> _Pairs:
    weight = task.query.weight.double()
    total = float(weight.sum())
    if total <= 0:
        raise DataError(
            f"the {len(task.query)} queries have a total weight of {total:g}; expected a positive number. "
            "Choose more of them, or others."
        )
    share = weight / total
    means, errors = [], []
    highest, lowest = _Extremes(len(task.query), 1), _Extremes(len(task.query), -1)
    start = 0
    for block in score.blocks(task):
        mean = block.double() @ share
        means.append(mean)
        errors.append(((block.double() - mean[:, None]) ** 2 @ share**2).sqrt())
        highest.add(block, start)
        lowest.add(block, start)
        start += len(block)
    return _Pairs(
        torch.cat(means).numpy(), torch.cat(errors).numpy(), highest.rows, highest.values, lowest.rows, lowest.values
    )


class _Extremes:
    """The SHOWN training events with the largest influence (times `sign`) on each query, as blocks come by."""

    def __init__(self, num_queries: int, sign: int) -> None:
        self.sign = sign
        self._values, self._rows = torch.zeros(num_queries, 0), torch.zeros(num_queries, 0, dtype=torch.int64)

    def add(self, block: Float[Tensor, "b Q"], start: int) -> None:
        """Take in a block whose first training event is number `start`."""
        rows = torch.arange(start, start + len(block)).expand(block.shape[1], -1)
        values, rows = torch.cat([self._values, self.sign * block.T], 1), torch.cat([self._rows, rows], 1)
        best = torch.topk(values, min(SHOWN, values.shape[1]), dim=1).indices
        self._values, self._rows = values.gather(1, best), rows.gather(1, best)

    @property
    def values(self) -> Array:
        """Influences [Q, K], the largest first."""
        return (self.sign * self._values).double().numpy()

    @property
    def rows(self) -> Array:
        """Rows of the training events [Q, K]."""
        return self._rows.numpy()


def _scores(task: Task) -> Array:
    """Log-odds of the queries by the trained model."""
    model = deepcopy(task.model)
    load_snapshot(model, task.trained)
    return predict(model, task.query, task.target).double().numpy()
