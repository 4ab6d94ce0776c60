"""Events that occur twice, or nearly: the same objects with nearly the same measured values, under other event numbers.

Two events are twins if they have the same objects and no raw feature differs by more than a tolerance: relatively where
it is large, absolutely where it is small (the difference of sign(v) ln(1 + |v|)), and as an angle for φ. All pairs are
found: a k-d tree of the few widest features proposes them (of all features it would be slow), and all features decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from hepx.graph import DEFINED, RAW_FEATURES, GraphBatch
from hepx.kinematics import wrap

Array = npt.NDArray[Any]
WIDEST = 4  # features: in so many dimensions events of a large sample are far apart already


@dataclass(frozen=True)
class Twins:
    """group [B]: number of the group of twins that an event belongs to, −1 for an event without one; partner [B]: row
    of another event of the group, the nearest one, −1 without; distance [B]: largest difference to it, NaN without."""

    group: Array
    partner: Array
    distance: Array

    @property
    def found(self) -> Array:
        """Mask [B] of the events that have a twin."""
        return self.group >= 0


def find_twins(graphs: GraphBatch, tolerance: float) -> Twins:
    """All twins among some events. Memory and time grow with the number of pairs; equal events are put together first,
    so that a file read five times is five events per group and not twenty pairs."""
    plain, angle = _coordinates(graphs)
    every = np.hstack([graphs.mask.numpy(), plain, angle])
    _, first, which = np.unique(every, axis=0, return_index=True, return_inverse=True)
    which = which.reshape(-1)
    turned = np.hstack([plain, np.cos(angle), np.sin(angle)])[first]
    widest = np.argsort(-turned.std(0), kind="stable")[:WIDEST]
    pairs = cKDTree(turned[:, widest]).query_pairs(tolerance * (1 + 1e-9), p=np.inf, output_type="ndarray")
    one, other = first[pairs[:, 0]], first[pairs[:, 1]]
    distance = _distance(plain, angle, one, other)
    near = (distance <= tolerance) & (graphs.mask.numpy()[one] == graphs.mask.numpy()[other]).all(1)
    one, other, distance = one[near], other[near], distance[near]
    copies = np.flatnonzero(first[which] != np.arange(len(graphs)))
    one, other = np.append(one, first[which][copies]), np.append(other, copies)
    return _grouped(len(graphs), one, other, np.append(distance, np.zeros(len(copies))))


def _coordinates(graphs: GraphBatch) -> tuple[Array, Array]:
    """All raw features of the objects but φ, and φ; 0 where there is no object [B, …]."""
    mask, x = graphs.mask.numpy(), graphs.x.numpy().astype(np.float64)
    names, plain, angle = list(RAW_FEATURES), [], []
    for slot, kind in enumerate(graphs.layout.types):
        for name in DEFINED[kind]:
            value = np.where(mask[:, slot], x[:, slot, names.index(name)], 0.0)
            if name == "phi":
                angle.append(value)
            else:
                plain.append(np.sign(value) * np.log1p(np.abs(value)))
    return np.stack(plain, 1), np.stack(angle, 1)


def _distance(plain: Array, angle: Array, one: Array, other: Array) -> Array:
    apart = np.abs(plain[one] - plain[other]).max(1, initial=0.0)
    return np.maximum(apart, np.abs(wrap(angle[one] - angle[other])).max(1, initial=0.0))


def _grouped(num_events: int, one: Array, other: Array, distance: Array) -> Twins:
    """Pairs joined to groups, and the nearest partner of each event."""
    group, partner = np.full(num_events, -1), np.full(num_events, -1)
    nearest = np.full(num_events, np.nan)
    if len(one) == 0:
        return Twins(group, partner, nearest)
    links = coo_array((np.ones(len(one)), (one, other)), shape=(num_events, num_events))
    _, component = connected_components(links, directed=False)
    members = np.unique(np.append(one, other))
    group[members] = np.unique(component[members], return_inverse=True)[1].reshape(-1)
    order = np.argsort(-np.append(distance, distance), kind="stable")  # the nearest is written last
    mine, its = np.append(one, other)[order], np.append(other, one)[order]
    partner[mine] = its
    nearest[mine] = np.append(distance, distance)[order]
    return Twins(group, partner, nearest)
