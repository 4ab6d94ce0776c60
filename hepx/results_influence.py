"""What a score says of the training events of a run: frozen, numpy only, saved without pickle.

Shape letters: B training events, Q queries, K events shown, G groups, V observables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hepx.results import Array, EventTable, Provenance, Result


@dataclass(frozen=True)
class Influence(Result):
    """One score. query: the expression that chose the events whose scores are attributed; events, query_score [Q]:
    these events and their log-odds of signal.

    train_id, train_sample, train_label, train_weight, loss_weight [B], train_observables [B, V]: the training events,
    with their weights in the sample and in the loss; own [B]: the score of each alone, None if it has none; mean [B]:
    its influence on the scores of the queries, mean over them by weight; mean_error [B]: standard error over the
    queries; proponents, opponents [Q, K]: rows of the training events that push a query most towards signal and most
    towards background, with their influences. All of these are None for a score that says nothing of pairs. The unit of
    an influence is the score's own: only ratios mean something.

    by, group: what the events of a group have in common, and its name; num_events [G]; share [G]: of the sum of
    |weight| in the loss; total, total_error [G]: sum of `mean` over the group and √Σ mean², its error as a sum over
    events of a sample; expected [G]: what as many training events of any kind add up to on average; own_mean,
    own_error [G]: mean of `own` and its standard error.
    """

    score: str
    query: str
    events: EventTable
    query_score: Array
    train_id: Array
    train_sample: Array
    train_label: Array
    train_weight: Array
    loss_weight: Array
    train_observables: Array
    own: Array | None
    mean: Array | None
    mean_error: Array | None
    proponents: Array | None
    proponent_values: Array | None
    opponents: Array | None
    opponent_values: Array | None
    by: tuple[str, ...]
    group: tuple[str, ...]
    num_events: Array
    share: Array
    total: Array | None
    total_error: Array | None
    expected: Array | None
    own_mean: Array | None
    own_error: Array | None
    provenance: Provenance

    def about(self) -> str:
        """What it is, its sizes and its unit, in a line."""
        queries = f", their effect on {len(self.events)} events ({self.query})" if self.mean is not None else ""
        return f"{len(self.train_id)} training events{queries}; in a unit of its own, only ratios mean something"

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with one row per training event and the event number as index: sample, label, weight,
        loss_weight, observables (GeV, rad), and what the score has of own, mean and mean_error."""
        from hepx import frames

        return frames.training_events(self)

    def columns(self) -> dict[str, Array]:
        """The columns of `to_pandas`, and event_id."""
        names = self.events.sample_names
        found: dict[str, Array] = {"event_id": self.train_id}
        found["sample"] = np.array(names, dtype=object)[self.train_sample]
        found |= {"label": self.train_label, "weight": self.train_weight, "loss_weight": self.loss_weight}
        found |= dict(zip(self.events.observable_names, self.train_observables.T, strict=True))
        scores = {"own": self.own, "mean": self.mean, "mean_error": self.mean_error}
        return found | {name: values for name, values in scores.items() if values is not None}
