"""Events as tables of numbers, one row each: what gradient-boosted trees are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hepx import kinematics
from hepx.collection import Collection
from hepx.graph import DEFINED, NODE_TYPES, RAW_FEATURES
from hepx.kinematics import HIGH_LEVEL

Array = npt.NDArray[Any]
PT = list(RAW_FEATURES).index("pt")
_MOMENTUM = [list(RAW_FEATURES).index(name) for name in ("pt", "eta", "phi")]
HAS = np.array([[name in DEFINED[kind] for name in RAW_FEATURES] for kind in NODE_TYPES])
"""Which raw features each node type has [T, F]."""


def node_table(x: Array, mask: Array, types: Sequence[str]) -> Array:
    """Raw features of all nodes side by side [B, V], GeV and rad, as far as the type of the slot has them; absent
    objects are NaN. x [B, N, F], mask [B, N], types [N]."""
    return np.where(mask[..., None], x, np.nan)[:, HAS[[NODE_TYPES.index(kind) for kind in types]]]


def node_observables(x: Array, mask: Array, node_type: Array) -> Array:
    """The observables of HIGH_LEVEL [B, 15], GeV and rad, of the nodes alone; NaN where an object is missing.

    x [B, N, F], mask and node_type [B, N]. Jets that are no nodes are not in H_T and the number of jets; two nodes of
    one jet (`NodeSettings.alias`) count once.
    """
    x = np.where(mask[..., None] & HAS[node_type], x, 0).astype(np.float64)
    jet, bjet, lepton, met = (mask & (node_type == kind) for kind in range(len(NODE_TYPES)))
    jets = (jet | bjet) & (x[..., PT] > 0)
    same = (x[:, :, None, _MOMENTUM] == x[:, None, :, _MOMENTUM]).all(-1) & np.tri(x.shape[1], k=-1, dtype=bool)
    again = (same & jets[:, None]).any(2)
    objects = {name: _hardest_first(x, one) for name, one in (("bjet", bjet), ("lepton", lepton))}
    objects["jet"] = _hardest_first(x, (jet | bjet) & ~again)
    first = np.where(met.any(1)[:, None], x[np.arange(len(x)), met.argmax(1)], np.nan)
    objects["met"] = _columns(first, np.arange(len(x) + 1))
    found = kinematics.observables(objects)
    return np.stack([found[name] for name in HIGH_LEVEL], 1)


def _hardest_first(x: Array, chosen: Array) -> Collection:
    """The chosen objects [B, N] of each event by falling pt."""
    order = np.argsort(np.where(chosen, -x[..., PT], np.inf), axis=1, kind="stable")
    counts = chosen.sum(1)
    kept = np.take_along_axis(x, order[..., None], 1)[np.arange(x.shape[1]) < counts[:, None]]
    return _columns(kept, np.concatenate([[0], np.cumsum(counts)]))


def _columns(x: Array, offsets: Array) -> Collection:
    fields = {name: x[:, i] for i, name in enumerate(RAW_FEATURES)}
    return Collection({**fields, "significance": fields["met_significance"]}, offsets)
