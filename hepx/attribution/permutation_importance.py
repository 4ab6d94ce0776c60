"""Permutation importance: what the classifier loses when a group of features is exchanged between the events.

Breiman (2001), for groups of features and weighted events: the events that have the same objects exchange the features
of a group (turned, so that φ stays a Δφ to the lepton), labels and weights stay. One number for the whole sample, in
units a physicist uses: the weighted AUC, and the Asimov significance behind a cut that other events chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from hepx import metrics, random
from hepx.attribution.base import Method, Subject, chunks_of, in_chunks, scores
from hepx.attribution.baselines import Pattern, patterns, reference_phi
from hepx.attribution.players import REST, cells, check_players, default_players, has_rest
from hepx.graph import GraphBatch
from hepx.models.inputs import PHI
from hepx.progress import track
from hepx.results import Array, Importance, Provenance

BOOTSTRAP_SEED = 7


class PermutationImportance(Method):
    """`repeats` exchanges of each group in `players` (as in feature_groups).

    The significance is that of the whole sample: half of the explained events choose the cut, the other half, scaled
    up, is counted. background_uncertainty: relative; min_background: effective background events a cut must keep.
    """

    per_event: ClassVar[bool] = False
    method: Literal["permutation_importance"] = "permutation_importance"
    players: dict[str, tuple[str, ...]] | None = None
    repeats: int = Field(default=5, ge=2)
    replicas: int = Field(default=200, ge=20)
    events: int = Field(default=5000, ge=1)
    background_uncertainty: float = Field(default=0.2, ge=0)
    min_background: float = Field(default=10.0, ge=1)

    def explain(self, subject: Subject, provenance: Provenance) -> Importance:
        """ΔAUC and ΔZ of every group with their errors."""
        graphs, layout = subject.graphs, subject.graphs.layout
        players = self.players or default_players(layout)
        check_players(players, layout)
        names = [*players, *([REST] if has_rest(players, layout) else [])]
        groups = list(patterns(graphs, graphs))
        before = self._scores(subject, graphs.x[:, None])[:, 0]
        measure = _Measure(self, subject, before)
        changes = []
        for player in track(range(len(names)), "permutation importance", len(names)):
            x = [exchanged(graphs, groups, player, players, subject.seed + r) for r in range(self.repeats)]
            after = self._scores(subject, torch.stack(x, 1))
            changes.append([measure.change(after[:, r]) for r in range(self.repeats)])
        delta: Array = np.array(changes)  # [P, repeats, 2, 1 + replicas]: AUC and Z; without and with resampling
        error = np.hypot(delta[..., 1:].mean(1).std(-1), delta[..., 0].std(1, ddof=1) / self.repeats**0.5)
        mean, known = delta[..., 0].mean(1), measure.cut is not None
        members = [*(" ".join(group) for group in players.values()), "all other features"]
        return Importance(
            players=tuple(names),
            members=tuple(members[: len(names)]),
            delta_auc=mean[:, 0],
            error=error[:, 0],
            delta_z=mean[:, 1] if known else None,
            delta_z_error=error[:, 1] if known else None,
            auc=float(measure.before[0, 0]),
            significance=float(measure.before[1, 0]) if known else None,
            num_events=len(graphs),
            provenance=provenance,
        )

    @staticmethod
    def _scores(subject: Subject, x: Float[Tensor, "B k N F"]) -> Array:
        graphs = subject.graphs

        def compute(chosen: Tensor) -> dict[str, Tensor]:
            events = graphs[chosen]
            return {"score": scores(subject.model, x[chosen], events.mask[:, None], events.node_type, subject.target)}

        parts = chunks_of(len(graphs), x.shape[1])
        return np.asarray(in_chunks(len(graphs), ((part, compute) for part in parts))["score"])


class _Measure:
    """AUC and significance of a score, and of the same resampled events."""

    def __init__(self, method: PermutationImportance, subject: Subject, score: Array) -> None:
        graphs = subject.graphs
        self.y = (graphs.y == subject.target).long().numpy()
        self.weight, self.uncertainty = graphs.weight.numpy(), method.background_uncertainty
        first = random.uniform(subject.seed, graphs.event_id.numpy(), "cut", 1)[:, 0] < 0.5
        share = np.abs(self.weight[~first]).sum() / np.abs(self.weight).sum() * subject.share
        self.yields = np.where(first, 0.0, self.weight / share)
        least = method.min_background
        found = metrics.best_cut(self.y[first], score[first], self.weight[first] / share, self.uncertainty, least)
        self.cut = found[0] if found else None
        self.counts = [np.ones(len(self.y)), *metrics.poisson_counts(len(self.y), method.replicas, BOOTSTRAP_SEED)]
        self.before = self._of(score)

    def change(self, score: Array) -> Array:
        """After − before, [2, 1 + replicas]."""
        return self._of(score) - self.before

    def _of(self, score: Array) -> Array:
        ranked = metrics.Ranked(self.y, score)
        passed = (score >= (np.inf if self.cut is None else self.cut)) * self.yields
        values = []
        for count in self.counts:
            signal, background = ((passed * count)[self.y == label].sum() for label in (1, 0))
            z = metrics.asimov_significance(signal, background, self.uncertainty * background)
            values.append((ranked.curve(self.weight * count).area, float(z) if np.isfinite(z) else 0.0))
        return np.array(values).T


def exchanged(
    graphs: GraphBatch, groups: Sequence[Pattern], number: int, players: dict[str, tuple[str, ...]], seed: int
) -> Float[Tensor, "B N F"]:
    """Raw features with those of group `number` exchanged among the events with the same objects."""
    x = graphs.x.clone()
    generator = torch.Generator().manual_seed(seed)
    for pattern in groups:
        active, tables = cells(players, pattern, graphs.layout)
        if number not in active:
            continue
        table: Bool[Tensor, "N F"] = tables[active.index(number)]
        events = graphs[pattern.index]
        other = events[torch.randperm(len(events), generator=generator)]
        theirs = other.x.clone()
        turn = (reference_phi(events) - reference_phi(other))[:, None] * (pattern.player >= 0)
        theirs[..., PHI] = torch.remainder(theirs[..., PHI] + turn + torch.pi, 2 * torch.pi) - torch.pi
        x[pattern.index] = torch.where(table, theirs, events.x)
    return x
