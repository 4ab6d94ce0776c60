"""Explanation methods. Adding one = one file with a frozen `Method`, and one line below. captum stays here."""

from __future__ import annotations

from hepx.attribution.base import Method, Subject, event_table, subsample
from hepx.attribution.baselines import background_events
from hepx.attribution.blocks import Shard, explain, explain_blocks, merge_blocks
from hepx.attribution.integrated_gradients import IntegratedGradients
from hepx.attribution.response import Response
from hepx.attribution.shapley import Shapley

__all__ = [
    "METHODS",
    "Method",
    "Shard",
    "Subject",
    "background_events",
    "event_table",
    "explain",
    "explain_blocks",
    "merge_blocks",
    "subsample",
]

METHODS: dict[str, type[Method]] = {
    "shapley": Shapley,
    "integrated_gradients": IntegratedGradients,
    "response": Response,
}
"""Name in the config -> method."""
