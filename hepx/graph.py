"""EventBatch -> GraphBatch: each event is a small complete graph of reconstructed objects, stored densely.

Shape letters: B events, N node slots, F raw features, V observables. `x` holds raw physical quantities (GeV, rad);
what the network sees is computed from them inside the model (`hepx.models.inputs`), so that an object can be replaced
by another one and everything that depends on it follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from hepx.config import Settings
from hepx.errors import ConfigError, DataError, closest
from hepx.events import EventBatch
from hepx.kinematics import OBSERVABLES

NODE_TYPES = ("jet", "bjet", "lepton", "met")
RAW_FEATURES = {"pt": "GeV", "eta": "", "phi": "rad", "mass": "GeV", "btag": "", "met_significance": ""}
"""Columns of `x` and their units."""
DEFINED = {
    "jet": ("pt", "eta", "phi", "mass", "btag"),
    "bjet": ("pt", "eta", "phi", "mass", "btag"),
    "lepton": ("pt", "eta", "phi"),
    "met": ("pt", "phi", "met_significance"),
}
"""Which raw features a node type has; the others are 0 in `x` and never reach the network."""
_PYG_NODE = ("x", "node_type", "object_id", "truth_parent", "slot")  # attributes of a PyG Data: of each node
_PYG_EVENT = ("y", "weight", "sample", "event_id", "observables")  # and of the event
_FIRST_INDEX = {"jet": 0, "lepton": 100, "met": 200}  # ranges of object_index; jets and b-jets are the same objects


class NodeSettings(Settings):
    """`max` nodes of one type, in falling pt. An object already used by an earlier entry is passed over unless `alias`
    is set: then it becomes a second node of the same object, as in the table of arXiv:2501.03432."""

    type: str
    max: int = Field(default=1, ge=1, le=20)
    alias: bool = False

    @model_validator(mode="after")
    def _known(self) -> NodeSettings:
        if self.type not in NODE_TYPES:
            raise ValueError(f"unknown node type '{self.type}'; {closest(self.type, NODE_TYPES)}")
        if self.type == "met" and self.max != 1:
            raise ValueError("an event has one missing momentum: max must be 1 for type met")
        return self


DEFAULT_NODES = (
    NodeSettings(type="bjet", max=2),
    NodeSettings(type="jet", max=1),
    NodeSettings(type="lepton", max=1),
    NodeSettings(type="met"),
)


class GraphSettings(Settings):
    """The nodes of the graph, in slot order."""

    nodes: tuple[NodeSettings, ...] = DEFAULT_NODES


@dataclass(frozen=True)
class Layout:
    """What the axes of a GraphBatch mean; the same for every batch of a data set.

    slots: name of each node slot [N], for example b1, b2, j3, lepton, met; types: its node type [N].
    """

    slots: tuple[str, ...]
    types: tuple[str, ...]
    observables: tuple[str, ...]
    observable_units: tuple[str, ...]
    samples: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return max(self.labels) + 1

    def observable_index(self, name: str) -> int:
        """Column of an observable; ConfigError with near names if there is none."""
        if name not in self.observables:
            raise ConfigError(f"unknown observable '{name}'; {closest(name, self.observables)}")
        return self.observables.index(name)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Layout:
        """Inverse of `to_dict`."""
        return cls(**{name: tuple(value) for name, value in values.items()})


def make_layout(
    graph: GraphSettings, samples: Sequence[str], labels: Sequence[int], extra: Mapping[str, str] | None = None
) -> Layout:
    """The layout of graphs built with these settings; `extra` observables: name -> unit."""
    types = tuple(node.type for node in graph.nodes for _ in range(node.max))
    units = {name: observable.unit for name, observable in OBSERVABLES.items()} | dict(extra or {})
    names = tuple(units)
    return Layout(_slot_names(graph.nodes), types, names, tuple(units.values()), tuple(samples), tuple(labels))


def _slot_names(nodes: Sequence[NodeSettings]) -> tuple[str, ...]:
    """b1 b2 for b-jets; j1 j2 j3 for jets, counted on after the b-jets unless the jets repeat them; lepton, met."""
    names, num_bjets = [], sum(node.max for node in nodes if node.type == "bjet")
    for node in nodes:
        if node.type == "bjet":
            names += [f"b{i + 1}" for i in range(node.max)]
        elif node.type == "jet":
            first = 1 if node.alias else num_bjets + 1
            names += [f"j{i + first}" for i in range(node.max)]
        else:
            names += [node.type if node.max == 1 else f"{node.type}{i + 1}" for i in range(node.max)]
    return tuple(names)


@dataclass(frozen=True)
class GraphBatch:
    """Events as dense tensors. A data set and a batch are the same sliceable type.

    x: raw features [B, N, F] in GeV and rad, 0 where absent or undefined; mask [B, N]: the object exists;
    node_type [B, N]: index into NODE_TYPES; object_index [B, N]: which physical object the node is (−1 absent), equal
    for aliases; truth_parent [B, N]: PDG id of the jet's true parent, 0 unknown; y [B]: class; weight [B]: signed
    event weight at the given luminosity; sample [B]: index into layout.samples; event_id [B]; observables [B, V].
    """

    x: Float[Tensor, "B N F"]
    mask: Bool[Tensor, "B N"]
    node_type: Int[Tensor, "B N"]
    object_index: Int[Tensor, "B N"]
    truth_parent: Int[Tensor, "B N"]
    y: Int[Tensor, "B"]
    weight: Float[Tensor, "B"]
    sample: Int[Tensor, "B"]
    event_id: Int[Tensor, "B"]
    observables: Float[Tensor, "B V"]
    layout: Layout

    def __len__(self) -> int:
        return self.x.shape[0]

    def __repr__(self) -> str:
        slots, number = ", ".join(self.layout.slots), len(self.layout.observables)
        samples = ", ".join(self.layout.samples)
        return f"GraphBatch: {len(self)} events with {slots}; {number} observables; samples {samples}"

    def __getitem__(self, index: Any) -> GraphBatch:
        """Events at `index`: a slice, a mask, positions, or one position."""
        if isinstance(index, int | np.integer):
            index = slice(range(len(self))[index], range(len(self))[index] + 1)
        if isinstance(index, Tensor) and index.dtype == torch.int64 and index.ndim == 1:
            return self._map(lambda tensor: tensor.index_select(0, index))  # several times faster than tensor[index]
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> GraphBatch:
        """The same events on a device."""
        return self._map(lambda tensor: tensor.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, all but the layout."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "layout"}

    def observable(self, name: str) -> Float[Tensor, "B"]:
        """One observable of every event."""
        return self.observables[:, self.layout.observable_index(name)]

    def _map(self, function: Any) -> GraphBatch:
        tensors: dict[str, Any] = {name: function(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **tensors)


def concatenate(batches: Sequence[GraphBatch]) -> GraphBatch:
    """Join batches of one layout; DataError if there is none or the layouts differ."""
    if not batches:
        raise DataError("there are no events to join.")
    first = batches[0]
    if any(batch.layout != first.layout for batch in batches):
        raise DataError("batches of different layouts cannot be joined.")
    joined: dict[str, Any] = {name: torch.cat([batch.tensors()[name] for batch in batches]) for name in first.tensors()}
    return replace(first, **joined)


def build_graphs(batches: Iterable[EventBatch], graph: GraphSettings, layout: Layout, most: int) -> GraphBatch:
    """Turn batches of events, as they come, into the graphs of at most so many events: one node per object (or aliases
    where the settings ask for them).

    Vectorised: slot by slot over all events of a batch; each is written once, where it stays.
    """
    whole, filled = _empty(most, layout), 0
    for events in batches:
        _fill(whole[filled : filled + len(events)], events, graph)
        filled += len(events)
    return whole[:filled]


def _empty(num_events: int, layout: Layout) -> GraphBatch:
    """Memory for so many events, zeros where `_fill` does not write."""
    shape = (num_events, len(layout.slots))
    arrays: dict[str, Any] = {
        "x": np.zeros((*shape, len(RAW_FEATURES)), dtype=np.float32),
        "mask": np.empty(shape, dtype=bool),
        "node_type": np.empty(shape, dtype=np.int64),
        "object_index": np.empty(shape, dtype=np.int16),
        "truth_parent": np.zeros(shape, dtype=np.int32),
        "observables": np.empty((num_events, len(layout.observables))),
    }
    arrays |= {name: np.empty(num_events, dtype=np.int64) for name in ("y", "sample", "event_id")}
    arrays["weight"] = np.empty(num_events)
    return GraphBatch(**{name: torch.from_numpy(values) for name, values in arrays.items()}, layout=layout)


def _fill(graphs: GraphBatch, events: EventBatch, graph: GraphSettings) -> None:
    """Write the graphs of the events into as many that are empty."""
    into, layout = {name: tensor.numpy() for name, tensor in graphs.tensors().items()}, graphs.layout
    object_index, truth_parent = into["object_index"], into["truth_parent"]
    object_index[:] = -1
    collections = {name: _flatten(events, name) for name in dict.fromkeys(map(_collection, graph.nodes))}
    slot = 0
    for node in graph.nodes:
        flat, first_index = collections[_collection(node)], _FIRST_INDEX[_collection(node)]
        for having, lacking, place in list(flat.leading(node)):  # all of them before any is marked as used
            if len(having):  # whole columns are written, and 0 where there is no object: faster than positions
                for name in DEFINED[node.type]:
                    values = flat.fields[name].take(place)
                    values[lacking] = 0
                    into["x"][:, slot, list(RAW_FEATURES).index(name)] = values
                object_index[:, slot] = first_index + (place - flat.starts)
                object_index[lacking, slot] = -1
                if "truth_parent" in flat.fields:
                    truth_parent[having, slot] = flat.fields["truth_parent"][place[having]]
                if not node.alias:
                    flat.used[place[having]] = True
            slot += 1
    np.stack([events.observables[name] for name in layout.observables], axis=1, out=into["observables"])
    np.greater_equal(object_index, 0, out=into["mask"])
    into["node_type"][:] = [NODE_TYPES.index(name) for name in layout.types]
    into["y"][:], into["sample"][:] = events.label, layout.samples.index(events.sample)
    into["weight"][:], into["event_id"][:] = events.weight, events.event_id


@dataclass(frozen=True)
class _Flat:
    """All objects of one collection, event after event: their fields, where those of an event start and end, and which
    of them are a node already."""

    fields: dict[str, Any]
    starts: Any
    ends: Any
    used: Any

    def leading(self, node: NodeSettings) -> Iterator[tuple[Any, Any, Any]]:
        """For each rank below `max` the events that have so many objects for such a node, those that do not, and where
        the object of each event stands; anywhere for those that lack it."""
        place, starts, ends = self._allowed(node)
        for rank in range(node.max):
            enough = ends - starts > rank
            having, lacking = np.flatnonzero(enough), np.flatnonzero(~enough)
            yield having, lacking, place.take(starts + rank, mode="clip") if len(having) else starts

    def _allowed(self, node: NodeSettings) -> tuple[Any, Any, Any]:
        """Where the objects stand that may become such a node, and from where to where in this list an event's are."""
        mask = np.ones(len(self.used), dtype=bool) if node.alias else ~self.used
        if node.type == "bjet":
            mask &= self.fields["tagged"]
        if mask.all():
            return np.arange(len(mask)), self.starts, self.ends
        before = np.concatenate([[0], np.cumsum(mask)])
        return np.flatnonzero(mask), before[self.starts], before[self.ends]


def _collection(node: NodeSettings) -> str:
    return "jet" if node.type == "bjet" else node.type


def _flatten(events: EventBatch, collection: str) -> _Flat:
    objects = events.collections[collection]
    names = {"met_significance": "significance"} if collection == "met" else {}
    wanted = {name: names.get(name, name) for name in (*DEFINED[collection], "tagged", "truth_parent")}
    fields = {name: objects[field] for name, field in wanted.items() if field in objects}
    if collection == "met" and np.isnan(fields["met_significance"]).any():
        raise DataError(
            f"sample '{events.sample}': the events have no E_T^miss significance, which the node type met needs. "
            "Name its branch in the schema (met: {significance: …})."
        )
    return _Flat(fields, objects.offsets[:-1], objects.offsets[1:], np.zeros(objects.offsets[-1], dtype=bool))


def to_pyg(graphs: GraphBatch, self_loops: bool = False) -> list[Any]:
    """One torch_geometric `Data` per event: present nodes only, every node joined to every other (and to itself).

    Node attributes: x [n, F], node_type, object_id, truth_parent and slot [n]; event attributes: y, weight, sample,
    event_id [1] and observables [1, V]. `from_pyg` is the exact inverse. (No name holds the word index: PyG would add
    the number of nodes to it when it joins events to a batch.)
    """
    from torch_geometric.data import Data

    counts = graphs.mask.sum(1).tolist()
    slot = torch.arange(graphs.mask.shape[1]).expand_as(graphs.mask)
    nodes = {name: getattr(graphs, name)[graphs.mask].split(counts) for name in ("x", "node_type", "truth_parent")}
    nodes["object_id"] = graphs.object_index[graphs.mask].split(counts)
    nodes["slot"] = slot[graphs.mask].split(counts)
    each = {name: getattr(graphs, name).split(1) for name in _PYG_EVENT}
    edges = {count: _complete_graph(count, self_loops) for count in set(counts)}
    columns = nodes | each
    return [
        Data(edge_index=edges[count].clone(), **dict(zip(columns, values, strict=True)))
        for count, *values in zip(counts, *columns.values(), strict=True)
    ]


def from_arrays(
    x: Any,
    mask: Any,
    slots: Mapping[str, str],
    y: Any = None,
    weight: Any = None,
    event_id: Any = None,
    observables: Mapping[str, Any] | None = None,
) -> GraphBatch:
    """Graphs of arrays, of numpy or anything like it, for an explanation without files or a config.

    x [B, N, F]: the columns of RAW_FEATURES in GeV and rad; what a type lacks (DEFINED) is set to 0, as is an absent
    object; mask [B, N]: it exists; slots: name -> type of each node, in order: {"b1": "bjet", "met": "met"}; y [B]: 0
    background, 1 signal (default 0); weight [B] (default 1); event_id [B] (default 0, 1, …); observables: name ->
    values [B]. Raises DataError for shapes that do not fit and numbers that are not finite, ConfigError for an unknown
    type.
    """
    for kind in slots.values():
        if kind not in NODE_TYPES:
            raise ConfigError(f"from_arrays: unknown node type '{kind}'; {closest(kind, NODE_TYPES)}")
    types, values = tuple(slots.values()), torch.as_tensor(np.asarray(x, dtype=np.float32))
    number, shape = len(values), (len(values), len(types))
    labels = torch.as_tensor(np.zeros(number) if y is None else np.asarray(y)).long()
    found = {
        "mask": (torch.as_tensor(np.asarray(mask, dtype=bool)), shape),
        "x": (values, (*shape, len(RAW_FEATURES))),
        "y": (labels, (number,)),
        "weight": (_column(weight, np.ones(number), np.float32), (number,)),
        "event_id": (_column(event_id, np.arange(number), np.int64), (number,)),
        **{name: (_column(one, one, np.float32), (number,)) for name, one in (observables or {}).items()},
    }
    for name, (tensor, expected) in found.items():
        if tuple(tensor.shape) != expected:
            raise DataError(f"from_arrays: '{name}' has the shape {tuple(tensor.shape)}, expected {expected}.")
    exists = found["mask"][0]
    has = torch.tensor([[name in DEFINED[kind] for name in RAW_FEATURES] for kind in types])
    values = torch.where(exists[..., None] & has, values, 0.0)
    for name, tensor in {"x": values, "weight": found["weight"][0]}.items():
        if not torch.isfinite(tensor).all():
            raise DataError(f"from_arrays: '{name}' holds numbers that are not finite.")
    if labels.numel() and not ((labels == 0) | (labels == 1)).all():
        raise DataError("from_arrays: y must be 0 (background) or 1 (signal).")
    names = tuple(observables or {})
    units = tuple(OBSERVABLES[name].unit if name in OBSERVABLES else "" for name in names)
    columns = [found[name][0] for name in names]
    return GraphBatch(
        x=values,
        mask=exists,
        node_type=torch.tensor([NODE_TYPES.index(kind) for kind in types]).expand(shape).clone(),
        object_index=torch.where(exists, torch.arange(len(types)), -1).to(torch.int16),
        truth_parent=torch.zeros(shape, dtype=torch.int32),
        y=labels,
        weight=found["weight"][0],
        sample=labels.clone(),
        event_id=found["event_id"][0],
        observables=torch.stack(columns, 1) if columns else torch.zeros(number, 0),
        layout=Layout(tuple(slots), types, names, units, ("background", "signal"), (0, 1)),
    )


def _column(values: Any, default: Any, kind: Any) -> Tensor:
    return torch.as_tensor(np.asarray(default if values is None else values).astype(kind))


def from_pyg(data: Sequence[Any], layout: Layout) -> GraphBatch:
    """Inverse of `to_pyg`: `Data` objects with its attributes -> GraphBatch. Edges are not read: they are always all.

    Raises DataError if an attribute is missing, has another length, or a node's slot does not fit the layout.
    """
    if not data:
        raise DataError("from_pyg: expected at least one Data object, got an empty list.")
    for name in (*_PYG_NODE, *_PYG_EVENT):
        if any(name not in one for one in data):
            raise DataError(f"from_pyg: a Data object has no attribute '{name}'; expected what to_pyg writes.")
    joined = {name: torch.cat([one[name] for one in data]) for name in (*_PYG_NODE, *_PYG_EVENT)}
    num_nodes = torch.tensor([len(one["slot"]) for one in data])
    event, slot = torch.repeat_interleave(torch.arange(len(data)), num_nodes), joined["slot"]
    types = torch.tensor([NODE_TYPES.index(name) for name in layout.types])
    _check_pyg(joined, event, len(data), types)
    shape = (len(data), len(types))

    def scatter(values: Tensor, absent: int = 0) -> Tensor:
        dense = torch.full((*shape, *values.shape[1:]), absent, dtype=values.dtype)
        dense[event, slot] = values
        return dense

    return GraphBatch(
        x=scatter(joined["x"]),
        mask=scatter(torch.ones(len(slot), dtype=torch.bool)),
        node_type=types.expand(shape).clone(),
        object_index=scatter(joined["object_id"], -1),
        truth_parent=scatter(joined["truth_parent"]),
        **{name: joined[name] for name in _PYG_EVENT},
        layout=layout,
    )


def _check_pyg(joined: dict[str, Tensor], event: Tensor, num_events: int, types: Tensor) -> None:
    slot = joined["slot"]
    for name, expected in {**dict.fromkeys(_PYG_NODE, len(slot)), **dict.fromkeys(_PYG_EVENT, num_events)}.items():
        if len(joined[name]) != expected:
            raise DataError(f"from_pyg: '{name}' has {len(joined[name])} rows, expected {expected}.")
    if ((slot < 0) | (slot >= len(types))).any():
        raise DataError(f"from_pyg: slots must lie in [0, {len(types)}), the slots of the layout.")
    if not torch.equal(joined["node_type"], types[slot]):
        raise DataError("from_pyg: a node is not of the type that its slot has in the layout.")
    if len(torch.unique(event * len(types) + slot)) != len(slot):
        raise DataError("from_pyg: two nodes of an event have the same slot.")


def _complete_graph(num_nodes: int, self_loops: bool) -> Int[Tensor, "2 E"]:
    """All ordered pairs of nodes, as an edge_index."""
    pairs = torch.cartesian_prod(torch.arange(num_nodes), torch.arange(num_nodes)).T.reshape(2, -1)
    return pairs if self_loops else pairs[:, pairs[0] != pairs[1]]
