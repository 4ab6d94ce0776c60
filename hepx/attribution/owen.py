"""Owen values: exact Shapley values of objects, shared exactly among the features of each object.

The objects join in every order, and inside the joining object its features in every order (Owen, 1977). The features
of an object add up to the Shapley value it has as a whole (with the same replacements), so this is the feature table
that belongs to the object table. Coalitions: about 2ᴺ⁻¹ Σ 2^(features of the object), far fewer than 2^(all features).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hepx.attribution.base import Subject, event_table, mean_and_error
from hepx.attribution.baselines import Pattern, Referenced, per_pattern, replacements
from hepx.attribution.coalitions import owen_table, values_of, worths
from hepx.attribution.players import object_kinds
from hepx.graph import DEFINED, RAW_FEATURES, GraphBatch, Layout
from hepx.results import Explanation, Provenance


class Owen(Referenced):
    """Object first, then its features; φ is Δφ to the lepton, whose own φ gets exactly 0."""

    method: Literal["owen"] = "owen"
    baseline: Literal["background", "process", "conditional", "mean", "zero"] = "background"
    draws: int = Field(default=8, ge=2)
    events: int = Field(default=100, ge=1)

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N, F] with their standard errors over the donors; those of an object at its first slot."""
        layout = subject.graphs.layout

        def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
            players = _players(pattern, layout)
            members, weights = owen_table(_unions(players))
            donors = replacements(self, pattern, events, subject.seed, aligned=True)
            kept = torch.zeros(len(members), *events.x.shape[1:], dtype=torch.bool)
            for number, (owner, feature) in enumerate(players):
                kept[:, pattern.player == owner, feature] = members[:, number, None]
            kept[-1] = True  # cells of no player are the same in the replacement
            worth = worths(subject.model, events, donors, kept, subject.target)
            found = {"score": worth[:, 0, -1], "baseline_score": worth[:, :, 0].mean(1)}
            slots = [pattern.first_slot[owner] for owner, _ in players]
            for name, value in zip(("values", "error"), mean_and_error(values_of(worth, weights)), strict=True):
                found[name] = value.new_zeros(events.x.shape)
                found[name][:, slots, [feature for _, feature in players]] = value
            return found

        def rows(pattern: Pattern) -> int:
            return len(owen_table(_unions(_players(pattern, layout)))[0]) * self.num_draws

        found = per_pattern(self, subject, rows, compute)
        gap = abs(found["values"].sum((1, 2)) - (found["score"] - found["baseline_score"]))
        return Explanation(
            events=event_table(subject.graphs),
            **found,
            completeness_error=gap,
            interactions=None,
            interactions_error=None,
            unit="logit",
            provenance=provenance,
            note=self.note(subject),
        )


def _players(pattern: Pattern, layout: Layout) -> list[tuple[int, int]]:
    """Object and feature of each player, object by object."""
    features = list(RAW_FEATURES)
    return [
        (owner, features.index(name))
        for owner, kind in enumerate(object_kinds(pattern, layout))
        for name in DEFINED[kind]
        if (kind, name) != ("lepton", "phi")
    ]


def _unions(players: list[tuple[int, int]]) -> tuple[int, ...]:
    """Number of features of each object."""
    return tuple(sum(owner == number for owner, _ in players) for number in range(players[-1][0] + 1))
