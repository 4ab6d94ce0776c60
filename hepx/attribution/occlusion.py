"""Occlusion: how much the score falls when one object alone is replaced, v(N) − v(N∖i).

Zeiler & Fergus, arXiv:1311.2901; as a removal method in Covert et al., arXiv:2011.14878. What two objects do together
is counted for both of them, so the values do not add up to the change of the score and have no completeness error.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hepx.attribution.base import Subject, event_table, mean_and_error
from hepx.attribution.baselines import Pattern, Referenced, per_pattern, replacements
from hepx.attribution.coalitions import worths
from hepx.attribution.shapley import scatter
from hepx.graph import GraphBatch
from hepx.results import Explanation, Provenance


class Occlusion(Referenced):
    """Leave one object out; (n + 1) · draws rows of the network per event."""

    method: Literal["occlusion"] = "occlusion"

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N] with their standard errors over the donors."""

        def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
            n, slots = pattern.num_players, pattern.first_slot
            donors = replacements(self, pattern, events, subject.seed, aligned=False)
            others = ~torch.eye(n, dtype=torch.bool)
            kept = torch.cat([torch.zeros(1, n, dtype=torch.bool), others, torch.ones(1, n, dtype=torch.bool)])
            kept = kept[:, pattern.player.clamp(min=0)] & (pattern.player >= 0)
            masked = self.baseline == "masked"
            worth = worths(subject.model, events, donors, kept[..., None], subject.target, masked)
            mean, error = mean_and_error(worth[:, :, -1:] - worth[:, :, 1:-1])
            return {
                "values": scatter(mean, slots, events),
                "error": scatter(error, slots, events),
                "score": worth[:, 0, -1],
                "baseline_score": worth[:, :, 0].mean(1),
            }

        rows = lambda pattern: (pattern.num_players + 1) * self.num_draws  # noqa: E731
        return Explanation(
            events=event_table(subject.graphs),
            **per_pattern(self, subject, rows, compute),
            completeness_error=None,
            interactions=None,
            interactions_error=None,
            unit="logit",
            provenance=provenance,
            note=self.note(subject),
        )
