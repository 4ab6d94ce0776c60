"""Attention as papers show it, one map per event: observations, which stand in the table beside the methods."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hepx import __version__
from hepx.attention import Observed, observe
from hepx.attention.observations import rollout
from hepx.attribution import Subject, event_table
from hepx.errors import ConfigError
from hepx.interventions import attention_names
from hepx.results import Array, PairExplanation, Provenance

ENOUGH = 0.90  # of the events, in which the strongest pair must be the true one, and that of edge knock-out

OBSERVATIONS: dict[str, Callable[[Observed], Tensor]] = {
    "attention": lambda seen: seen.attention.mean((1, 2)),
    "attention_first_layer": lambda seen: seen.attention[:, 0].mean(1),
    "attention_value_norm": lambda seen: (seen.attention * seen.length).mean((1, 2)),
    "attention_rollout": lambda seen: rollout(seen.attention)[:, -1],
}
"""Name -> map [B, N, N] made of the weights: their mean over layers and heads; the first layer alone; times the length
of what is sent (arXiv:2004.10102); through the layers (arXiv:2005.00928)."""


def observation(name: str, subject: Subject) -> PairExplanation:
    """The map of every event, both directions added, without the diagonal; ConfigError without attention."""
    if not attention_names(subject.model):
        raise ConfigError("this network has no attention.")
    found = OBSERVATIONS[name](observe(subject.model.eval(), subject.graphs, subject.target)).double()
    found = (found + found.transpose(1, 2)) * (1 - torch.eye(found.shape[1], dtype=torch.float64))
    return PairExplanation(
        events=event_table(subject.graphs),
        values=found.numpy(),
        error=None,
        null=None,
        edges=None,
        score=np.zeros(len(subject.graphs)),
        unit="",
        provenance=Provenance(name, {}, "", "", "", subject.seed, __version__, "", "cpu"),
    )


def wording(hit: float | None, observed: Array, knocked: Array) -> str:
    """What may be said of a map: `finds the pair` only if its strongest pair is the true one in 90 % of the events, and
    in as many the one whose edge knock-out changes the score most. observed, knocked: [B, N, N]."""
    if hit is None:
        return ""
    if hit < ENOUGH:
        return f"misses the pair in {1 - hit:.0%} of the events"
    first, second = np.triu_indices(observed.shape[1], 1)
    strongest = [np.abs(values[:, first, second]).argmax(1) for values in (observed, knocked)]
    agree = float((strongest[0] == strongest[1]).mean())
    if agree < ENOUGH:
        return f"edge knock-out names another pair in {1 - agree:.0%}"
    return "finds the pair"
