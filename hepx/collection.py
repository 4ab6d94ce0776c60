"""Objects of many events as flat columns: one numpy array per field, event after event.

Everything per object is then one pass over a flat array, and everything per event a sum or a look-up by `offsets`;
several times faster than nested lists. `momenta` gives the same objects as awkward momenta of `vector`, without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Collection:
    """fields: name -> one number per object [M]; offsets [B + 1]: objects offsets[i] to offsets[i + 1] are event i's.

    >>> jets = Collection({"pt": np.array([50.0, 40.0, 30.0])}, np.array([0, 2, 2, 3]))
    >>> jets.counts.tolist(), jets.total(jets["pt"]).tolist(), jets.padded("pt").tolist()
    ([2, 0, 1], [90.0, 0.0, 30.0], [[50.0, 40.0], [nan, nan], [30.0, nan]])
    """

    fields: Mapping[str, Array]
    offsets: npt.NDArray[np.int64]

    def __getitem__(self, name: str) -> Array:
        return self.fields[name]

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    @property
    def num_events(self) -> int:
        """Number of events B."""
        return len(self.offsets) - 1

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Number of objects of each event [B]."""
        return np.diff(self.offsets)

    @cached_property
    def most(self) -> int:
        """Number of objects of the event that has most; 0 without events."""
        return int(self.counts.max(initial=0))

    @cached_property
    def event(self) -> npt.NDArray[np.int64]:
        """Event of each object [M]."""
        return np.flatnonzero(self.counts) if self.most <= 1 else np.repeat(np.arange(self.num_events), self.counts)

    @cached_property
    def rank(self) -> npt.NDArray[np.int64]:
        """Place of each object in the list of its event [M]."""
        return np.arange(self.offsets[-1]) - self.offsets[self.event]

    def with_fields(self, **fields: Array) -> Collection:
        """The same objects with further or changed fields."""
        return Collection({**self.fields, **fields}, self.offsets)

    def without(self, *names: str) -> Collection:
        """The same objects without some fields."""
        return Collection({name: values for name, values in self.fields.items() if name not in names}, self.offsets)

    def where(self, mask: Array) -> Collection:
        """The objects for which `mask` [M] is true."""
        if mask.all():
            return self
        place = np.flatnonzero(mask)  # positions are taken faster than a mask is applied, field after field
        before = np.concatenate([[0], np.cumsum(mask)])
        return Collection({name: values[place] for name, values in self.fields.items()}, before[self.offsets])

    def events(self, index: Any) -> Collection:
        """The objects of the events at `index`: a slice, a mask or positions."""
        chosen = np.arange(self.num_events)[index]
        counts = self.counts[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        place = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], counts)
        return Collection({name: values[place] for name, values in self.fields.items()}, offsets)

    def by_falling_pt(self) -> Collection:
        """The same objects, those of an event by falling pt; equal ones keep their order."""
        pt, starts = self["pt"], self.offsets[1:-1]
        rises = pt[1:] > pt[:-1]
        rises[starts[(starts > 0) & (starts < len(pt))] - 1] = False  # there another event begins
        if not rises.any():
            return self
        event = self.event
        negative = np.full((self.num_events, self.most), np.inf)
        negative[event, self.rank] = -pt
        order = np.argsort(negative, axis=1, kind="stable") + self.offsets[:-1, np.newaxis]
        place = order[np.arange(negative.shape[1]) < self.counts[:, np.newaxis]]
        return Collection({name: values[place] for name, values in self.fields.items()}, self.offsets)

    def total(self, values: Array) -> npt.NDArray[np.float64]:
        """Sum over the objects of each event [B] of one value per object [M]."""
        return np.bincount(self.event, values, minlength=self.num_events).astype(np.float64, copy=False)

    def place(self, rank: int) -> npt.NDArray[np.int64]:
        """Where the object of this rank of each event stands in the flat columns [B]; −1 where there is none."""
        return np.where(self.counts > rank, self.offsets[:-1] + rank, -1)

    def least(self, values: Array) -> npt.NDArray[np.int64]:
        """Where the object with the least value [M] of each event stands [B], the first of equal ones; −1 where there
        is none. NaN is never the least."""
        place, least = np.full(self.num_events, -1), np.full(self.num_events, np.inf)
        having = np.flatnonzero(self.counts)
        for rank in range(self.most):
            having = having[self.counts[having] > rank] if rank else having
            position = self.offsets[having] + rank
            value = values[position]
            less = np.flatnonzero(value < least[having])
            place[having[less]], least[having[less]] = position[less], value[less]
        return place

    def take(self, place: npt.NDArray[np.int64], *names: str) -> list[npt.NDArray[np.float64]]:
        """Fields of the objects at places [B] of the flat columns; NaN where the place is −1."""
        absent = np.flatnonzero(place < 0)
        if len(absent) == len(place):
            return [np.full(len(place), np.nan) for _ in names]
        found = [self[name][place].astype(np.float64, copy=False) for name in names]
        for values in found:
            values[absent] = np.nan
        return found

    def padded(self, name: str) -> npt.NDArray[np.float64]:
        """A field as a table [B, most objects of an event]; NaN where there is none."""
        table = np.full((self.num_events, self.most), np.nan)
        table[self.event, self.rank] = self[name]
        return table

    def momenta(self) -> ak.Array:
        """The objects as awkward momenta [B, var] of `vector`; nothing is copied."""
        import vector  # slow: it imports sympy

        vector.register_awkward()
        contents = [ak.contents.NumpyArray(values) for values in self.fields.values()]
        record = ak.contents.RecordArray(contents, list(self.fields), parameters={"__record__": "Momentum4D"})
        return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(self.offsets), record))


def join(parts: list[Collection]) -> Collection:
    """Several lists of objects as one, part after part in each event, with the fields that all of them have."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.sum([part.offsets for part in parts], axis=0)
    fields = {name: np.empty(offsets[-1]) for name in parts[0].fields if all(name in part for part in parts)}
    start = offsets[:-1]
    for part in parts:
        place = start[part.event] + part.rank
        for name, values in fields.items():
            values[place] = part[name]
        start = start + part.counts
    return Collection(fields, offsets)
