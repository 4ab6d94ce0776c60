"""Exact Shapley values of groups of physics features: is it the b-jets' η or their pt, MET or its direction?

The players are groups of features over several objects (at most twelve, 4096 coalitions), so a direction that has a
meaning only for a pair of objects (φ, under a rotation) stays together. Lundberg & Lee, arXiv:1705.07874, with
replacements from data (interventional; Janzing et al., arXiv:1910.13413).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hepx.attribution.base import Subject, event_table, mean_and_error
from hepx.attribution.baselines import Pattern, Referenced, per_pattern, replacements
from hepx.attribution.coalitions import coalitions, interaction_weights, shapley_weights, values_of, worths
from hepx.attribution.players import REST, cells, check_players, default_players, has_rest
from hepx.graph import GraphBatch, Layout
from hepx.results import GroupExplanation, Provenance


class FeatureGroups(Referenced):
    """Shapley values of the groups in `players`: name -> features; by default one per type and feature.

    Features that no group names are one more player, `rest`.
    """

    method: Literal["feature_groups"] = "feature_groups"
    baseline: Literal["background", "process", "conditional", "mean", "zero"] = "background"
    players: dict[str, tuple[str, ...]] | None = None
    draws: int = Field(default=8, ge=2)
    events: int = Field(default=100, ge=1)

    def refuse_unknown(self, layout: Layout) -> None:
        """Also the groups must be of features of the graphs."""
        super().refuse_unknown(layout)
        check_players(self.players or default_players(layout), layout)

    def explain(self, subject: Subject, provenance: Provenance) -> GroupExplanation:
        """Values [B, P] and interactions [B, P, P] with their standard errors over the donors."""
        layout = subject.graphs.layout
        players = self.players or default_players(layout)
        self.refuse_unknown(layout)

        def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
            active, table = cells(players, pattern, layout)
            n = len(active)
            donors = replacements(self, pattern, events, subject.seed, aligned=True)
            kept = (coalitions(n)[:, :, None, None] & table).any(1)
            kept[-1] = True  # cells of no player are the same in the replacement
            worth = worths(subject.model, events, donors, kept, subject.target)
            found = {"score": worth[:, 0, -1], "baseline_score": worth[:, :, 0].mean(1)}
            for name, weights in (("values", shapley_weights(n)), ("interactions", interaction_weights(n))):
                values = values_of(worth, weights)
                for part, value in zip(("", "_error"), mean_and_error(values), strict=True):
                    found[f"{name}{part}"] = _at_players(value, active, len(players) + 1)
            return found

        def rows(pattern: Pattern) -> int:
            return int(2 ** len(cells(players, pattern, layout)[0])) * self.num_draws

        found = per_pattern(self, subject, rows, compute)
        used = list(range(len(players) + has_rest(players, layout)))
        names = [*players, REST]
        members = [*(" ".join(group) for group in players.values()), "all other features"]
        gap = abs(found["values"].sum(1) - (found["score"] - found["baseline_score"]))
        return GroupExplanation(
            events=event_table(subject.graphs),
            players=tuple(names[i] for i in used),
            members=tuple(members[i] for i in used),
            values=found["values"][:, used],
            error=found["values_error"][:, used],
            score=found["score"],
            baseline_score=found["baseline_score"],
            completeness_error=gap,
            interactions=found["interactions"][:, used][:, :, used],
            interactions_error=found["interactions_error"][:, used][:, :, used],
            unit="logit",
            provenance=provenance,
            note=self.note(subject),
        )


def _at_players(values: Tensor, active: list[int], num_players: int) -> Tensor:
    """Values of the active players among all of them, 0 elsewhere; one or two axes of players."""
    place = torch.tensor(active, dtype=torch.int64)
    full = values.new_zeros(len(values), *[num_players] * (values.ndim - 1))
    if values.ndim == 2:
        full[:, place] = values
    else:
        full[:, place[:, None], place] = values
    return full
