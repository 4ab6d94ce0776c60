"""The events a model is trained on, in memory or on disk, and how their batches reach the device.

The order of the events does not depend on where they are kept, so neither does the result.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hepx.errors import DataError
from hepx.graph import RAW_FEATURES, GraphBatch, Layout
from hepx.order import even_blocks, shuffled_blocks
from hepx.store import GraphStore
from hepx.train.losses import loss_weights
from hepx.train.ranks import Ranks
from hepx.train.settings import TrainSettings

log = logging.getLogger(__name__)

T = TypeVar("T")
Int64 = npt.NDArray[np.int64]
PART = 64  # blocks read together when a pass needs no particular order
AHEAD = 16_384  # events made ready before they are needed: about a fifth of what is read from disk at once


class Events(Protocol):
    """Events of one split, cut into blocks of `counts` [K] events."""

    layout: Layout
    counts: Int64

    def read(self, blocks: Int64) -> GraphBatch:
        """The events of the blocks of these numbers (rising), side by side."""

    def batches(self, batch_size: int, seed: int, epoch: int, first: int) -> Iterator[GraphBatch]:
        """Batches from number `first` of an epoch on."""


class InMemory:
    """Events that are in memory already."""

    def __init__(self, graphs: GraphBatch) -> None:
        self.graphs, self.layout, self.counts = graphs, graphs.layout, even_blocks(len(graphs))

    def read(self, blocks: Int64) -> GraphBatch:
        """See `Events`."""
        return self.graphs[torch.from_numpy(_rows(self.counts, blocks))]

    def batches(self, batch_size: int, seed: int, epoch: int, first: int) -> Iterator[GraphBatch]:
        """See `Events`."""
        order = torch.from_numpy(epoch_order(self.counts, seed, epoch))
        return (self.graphs[index] for index in order.split(batch_size)[first:])


class OnDisk:
    """Events of one split of a data set; only what is asked for is read."""

    def __init__(self, store: GraphStore, split: str) -> None:
        self.store, self.split, self.layout = store, split, store.layout
        self.counts = store.block_counts(split)
        if self.counts.sum() == 0:
            raise DataError(f"the {split} split of '{store.folder}' is empty; change data.split.")

    def read(self, blocks: Int64) -> GraphBatch:
        """See `Events`."""
        return self.store.read(self.split, blocks)

    def batches(self, batch_size: int, seed: int, epoch: int, first: int) -> Iterator[GraphBatch]:
        """See `Events`."""
        return self.store.batches(self.split, batch_size, seed, epoch, first)


def parts(events: Events) -> Iterator[GraphBatch]:
    """All events in the order in which they are kept, some blocks at a time."""
    for first in range(0, len(events.counts), PART):
        yield events.read(np.arange(first, min(first + PART, len(events.counts))))


def at_most(events: Events, num_events: int) -> GraphBatch:
    """All events, or whole blocks of them, drawn at random but always the same, with `num_events` events or little
    more."""
    order = np.random.default_rng(0).permutation(len(events.counts))
    wanted = int(np.searchsorted(events.counts[order].cumsum(), num_events)) + 1
    return events.read(np.sort(order[:wanted]))


def epoch_order(counts: Int64, seed: int, epoch: int) -> Int64:
    """Row numbers [B] of all events in the order of an epoch."""
    return np.concatenate([_rows(counts, blocks)[shuffle] for blocks, shuffle in shuffled_blocks(counts, seed, epoch)])


def _rows(counts: Int64, blocks: Int64) -> Int64:
    """Row numbers of the events of some blocks, side by side."""
    chosen = counts[blocks]
    shift = (counts.cumsum() - counts)[blocks] - (chosen.cumsum() - chosen)
    return np.asarray(np.arange(chosen.sum()) + np.repeat(shift, chosen), dtype=np.int64)


class Columns(NamedTuple):
    """What a step needs of events (see GraphBatch), and their weights in the loss."""

    x: Float[Tensor, "B N F"]
    mask: Bool[Tensor, "B N"]
    node_type: Int[Tensor, "B N"]
    y: Int[Tensor, "B"]
    weight: Float[Tensor, "B"]

    @classmethod
    def of(cls, graphs: GraphBatch, weight: Float[Tensor, "B"]) -> Columns:
        """Those of some events."""
        return cls(graphs.x, graphs.mask, graphs.node_type, graphs.y, weight.float())

    def at(self, index: Int[Tensor, "B"]) -> Columns:
        """Those of some of the events."""
        return self.map(lambda column: column.index_select(0, index))

    def map(self, function: Callable[[Tensor], Tensor]) -> Columns:
        """The same change of every column."""
        return Columns(*(function(column) for column in self))


@dataclass(frozen=True)
class Batch:
    """This process's events of a batch, and which of the `size` events of the whole batch they are."""

    events: Columns
    rows: slice
    size: int


@dataclass(frozen=True)
class Feed:
    """Batches of training events on the device, from where the events are kept; `scale` [C]: what turns the weight of
    an event of a class into its weight in the loss (`class_scale`)."""

    events: Events
    scale: Float[Tensor, "C"]
    settings: TrainSettings
    seed: int
    device: torch.device
    ranks: Ranks

    @property
    def num_events(self) -> int:
        """Number of events of an epoch."""
        return int(self.events.counts.sum())

    @cached_property
    def place(self) -> str:
        """Where the events are kept: device, host or disk."""
        shape = (len(self.events.layout.types), len(RAW_FEATURES))
        needed = self.num_events * (shape[0] * (4 * shape[1] + 1 + 8) + 8 + 4)
        place = self.settings.keep if self.settings.keep != "auto" else self._choose(needed)
        log.info("%d training events, %.3g MB, kept on: %s", self.num_events, needed / 1e6, place)
        return place

    def _choose(self, needed: int) -> str:
        """The nearest place with room: half of the free device memory, or the given or half of the free host memory."""
        if self.device.type == "cuda" and needed <= torch.cuda.mem_get_info(self.device)[0] / 2:
            return "device"
        budget = self.settings.memory_gb
        host = free_memory() / 2 / self.ranks.local_size if budget is None else budget * 1e9
        if needed > host:
            return "disk"
        return "host" if self.device.type == "cuda" else "device"

    @cached_property
    def columns(self) -> Columns:
        """All events, on the device or in host memory; filled part by part, so that no second copy is made."""
        device = self.device if self.place == "device" else torch.device("cpu")
        whole: Columns | None = None
        first = 0
        for graphs in parts(self.events):
            part = self._columns(graphs)
            if whole is None:
                whole = part.map(lambda one: one.new_empty((self.num_events, *one.shape[1:]), device=device))
            for column, values in zip(whole, part, strict=True):
                column[first : first + len(graphs)] = values
            first += len(graphs)
        assert whole is not None
        return whole

    def _columns(self, graphs: GraphBatch) -> Columns:
        return Columns.of(graphs, loss_weights(graphs, self.scale, self.settings.weights))

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Batches of an epoch from number `first` on."""
        batches = self._from_disk(epoch, first) if self.place == "disk" else self._from_memory(epoch, first)
        if self.place == "device":
            return batches
        return ahead(map(self._to_device, batches), max(2, AHEAD // self.settings.batch_size))

    def _from_disk(self, epoch: int, first: int) -> Iterator[Batch]:
        for graphs in self.events.batches(self.settings.batch_size, self.seed, epoch, first):
            rows = self.ranks.share(len(graphs))
            yield Batch(self._columns(graphs[rows]), rows, len(graphs))

    def _from_memory(self, epoch: int, first: int) -> Iterator[Batch]:
        order = torch.from_numpy(epoch_order(self.events.counts, self.seed, epoch)).to(self.columns.x.device)
        for index in order.split(self.settings.batch_size)[first:]:
            rows = self.ranks.share(len(index))
            yield Batch(self.columns.at(index[rows]), rows, len(index))

    def _to_device(self, batch: Batch) -> Batch:
        """Page-locked memory lets the copy run while the processor goes on."""
        if self.device.type == "cpu":
            return batch
        copied = batch.events.map(lambda one: one.pin_memory().to(self.device, non_blocking=True))
        return replace(batch, events=copied)


def ahead(items: Iterator[T], number: int) -> Iterator[T]:
    """The same items, made by a thread that is up to `number` of them ahead."""
    end = object()
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(number))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)


def free_memory() -> float:
    """Host memory in bytes that this process may still take: what is free, or what its control group leaves it."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = [float(lines["MemAvailable"].split()[0]) * 1024]
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    group = Path("/sys/fs/cgroup") / "".join(own).lstrip("/")
    for folder in (group, *group.parents):  # Slurm and HTCondor limit a group above the job's own
        limit, used = folder / "memory.max", folder / "memory.current"
        if limit.exists() and limit.read_text().strip() != "max":
            free.append(float(limit.read_text()) - float(used.read_text()))
    return max(0.0, min(free))
