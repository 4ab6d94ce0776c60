"""Exact Shapley values and pair interactions of the objects of an event.

Players are the objects that are present (all nodes of one object together). The worth of a coalition S is the mean
score of events that keep the objects in S and take the others from a replacement:
v(S) = E_x'[f(x_S, x'_{N∖S})] (Lundberg & Lee, arXiv:1705.07874; interventional form, Janzing et al., arXiv:1910.13413).
All 2ⁿ coalitions are evaluated, so the only error is that of the finite number of donors, which is stored.
From the same table: the Shapley interaction index of order two (Grabisch & Roubens, 1999), and Faith-Shap of order two
(Tsai et al., arXiv:2203.00870), whose pairs and single objects add up to the change of the score.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hepx.attribution.base import Subject, event_table, mean_and_error
from hepx.attribution.baselines import Pattern, Referenced, per_pattern, replacements
from hepx.attribution.coalitions import (
    coalitions,
    faith_weights,
    interaction_weights,
    shapley_weights,
    values_of,
    worths,
)
from hepx.graph import GraphBatch
from hepx.results import Explanation, Provenance


class Shapley(Referenced):
    """Exact Shapley values of objects; 2ⁿ · draws rows of the network per event."""

    method: Literal["shapley"] = "shapley"

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N], interactions and Faith-Shap [B, N, N] with their standard errors over the donors."""

        def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
            n, slots = pattern.num_players, pattern.first_slot
            donors = replacements(self, pattern, events, subject.seed, aligned=False)
            kept = coalitions(n)[:, pattern.player.clamp(min=0)] & (pattern.player >= 0)
            masked = self.baseline == "masked"
            worth = worths(subject.model, events, donors, kept[..., None], subject.target, masked)
            found = {"score": worth[:, 0, -1], "baseline_score": worth[:, :, 0].mean(1)}
            for name, weights in (
                ("values", shapley_weights(n)),
                ("interactions", interaction_weights(n)),
                ("faith", faith_weights(n)),
            ):
                values = values_of(worth, weights)
                mean, error = mean_and_error(values)
                found[name], found[f"{name}_error"] = scatter(mean, slots, events), scatter(error, slots, events)
            return found

        rows = lambda pattern: 2**pattern.num_players * self.num_draws  # noqa: E731
        found = per_pattern(self, subject, rows, compute)
        gap = abs(found["values"].sum(1) - (found["score"] - found["baseline_score"]))
        found["error"] = found.pop("values_error")
        return Explanation(
            events=event_table(subject.graphs),
            **found,
            completeness_error=gap,
            unit="logit",
            provenance=provenance,
            note=self.note(subject),
        )


def scatter(values: Float[Tensor, "b *n"], slots: list[int], events: GraphBatch) -> Float[Tensor, "b *N"]:
    """Values of the players at the slots of their objects, 0 elsewhere; one or two axes of players."""
    num_slots = events.mask.shape[1]
    place = torch.tensor(slots, dtype=torch.int64)
    full = values.new_zeros(len(events), *[num_slots] * (values.ndim - 1))
    if values.ndim == 2:
        full[:, place] = values
    else:
        full[:, place[:, None], place[None, :]] = values
    return full
