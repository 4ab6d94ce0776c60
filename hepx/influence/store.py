"""Per-event gradients in blocks of events, kept on disk so that they are computed once.

A block that is there is read, one that is not is computed and written; so a killed job goes on where it stopped,
several jobs share the blocks out, and memory does not grow with the number of events. What is in a block is fixed by
the digest in the name of its folder: weights, events, classes, projection and seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from hepx import files
from hepx.attribution import Shard
from hepx.errors import ConfigError
from hepx.graph import GraphBatch
from hepx.influence.base import ROWS, Task
from hepx.influence.gradients import Gradients, Layers, Reduce, Sketch, Tape, full, gradients, nothing, taped
from hepx.progress import Advance, progress, silent

FORMAT = 1
MAX_EXACT = 4e9  # bytes that the whole gradients of the queries may take
Which = Literal["train", "query"]
WHICH: tuple[Which, ...] = ("train", "query")


@dataclass(frozen=True)
class Keep:
    """What is kept of a gradient: a sketch of `projection` numbers, everything (0), or only its norm (None)."""

    projection: int | None
    layers: Layers = "all"

    @property
    def rows(self) -> int:
        """Events in a block."""
        return ROWS if self.projection or self.projection is None or self.layers == "last" else ROWS // 16

    def reduce(self, seed: int) -> Reduce:
        """From the parts of a gradient to what is kept."""
        if self.projection is None:
            return nothing
        return Sketch(self.projection, seed) if self.projection else full


class Products(NamedTuple):
    """A block of training events and the queries."""

    train: Gradients
    query: Gradients

    @property
    def dots(self) -> Float[Tensor, "b Q"]:
        """Scalar products of their gradients."""
        return self.train.values @ self.query.values.T


def event_blocks(
    task: Task, weights: Path, which: Which, keep: Keep, advance: Advance = silent, shard: Shard | None = None
) -> Iterator[Gradients]:
    """The gradients of the training events (of the margin of their class) or of the queries (of the score), block by
    block; only those of a `shard` if one is given. Whole gradients are not kept on disk."""
    events = task.train if which == "train" else task.query
    y = events.y if which == "train" else torch.full_like(events.y, task.target)
    folder, reduce = _folder(task, weights, keep, events, y), keep.reduce(task.seed)
    with ExitStack() as stack:
        tape: Tape | None = None
        for number in range(-(-len(events) // keep.rows)):
            if shard is not None and not shard.has(number):
                continue
            rows = slice(number * keep.rows, (number + 1) * keep.rows)
            if folder is not None and _path(folder, number).exists():
                found = Gradients(**load_file(_path(folder, number)))
            else:
                tape = tape or stack.enter_context(taped(task.model, weights, keep.layers))
                found = gradients(tape, events[rows], y[rows], reduce, advance)
                if folder is not None:
                    with files.atomic(_path(folder, number)) as temporary:
                        save_file({name: one.contiguous() for name, one in found._asdict().items()}, temporary)
            yield found


def whole(task: Task, weights: Path, which: Which, keep: Keep) -> Gradients:
    """All events of `event_blocks` at once."""
    with progress(f"gradients ({which})", len(task.train if which == "train" else task.query), " events") as advance:
        return _whole(task, weights, which, keep, advance)


def _whole(task: Task, weights: Path, which: Which, keep: Keep, advance: Advance) -> Gradients:
    return Gradients(*map(torch.cat, zip(*event_blocks(task, weights, which, keep, advance), strict=True)))


def products(task: Task, weights: Sequence[Path], keep: Keep) -> Iterator[tuple[Products, ...]]:
    """Gradients of the training events, in blocks, and of the queries, for several weights side by side; ConfigError if
    whole gradients of the queries do not fit into memory."""
    _check_exact(task, keep, len(weights))
    with progress("gradients", (len(task.query) + len(task.train)) * len(weights), " events") as advance:
        queries = [_whole(task, one, "query", keep, advance) for one in weights]
        for blocks in zip(*(event_blocks(task, one, "train", keep, advance) for one in weights), strict=True):
            yield tuple(Products(*pair) for pair in zip(blocks, queries, strict=True))


def prepare(task: Task, weights: Sequence[Path], keep: Keep, shard: Shard) -> None:
    """Put one shard of the gradients that `products` reads into the cache of the task."""
    total = (len(task.query) + len(task.train)) * len(weights) / shard.total
    with progress("gradients", total, " events") as advance:
        for one in weights:
            for which in WHICH:
                for _ in event_blocks(task, one, which, keep, advance, shard):
                    pass


def _check_exact(task: Task, keep: Keep, snapshots: int) -> None:
    """ConfigError if exact products over so many snapshots at once would need too much memory."""
    num_parameters = sum(parameter.numel() for parameter in task.model.parameters())
    needed = 4.0 * num_parameters * len(task.query) * snapshots
    if keep.projection == 0 and keep.layers == "all" and needed > MAX_EXACT:
        raise ConfigError(
            f"projection=0 (exact) keeps {needed / 1e9:.1f} GB for the gradients of {len(task.query)} queries; "
            f"expected at most {MAX_EXACT / 1e9:.0f} GB. Choose fewer queries, or a projection, for example 2048."
        )


def _folder(task: Task, weights: Path, keep: Keep, events: GraphBatch, y: Int[Tensor, "B"]) -> Path | None:
    """Where the blocks are; None if nothing is kept."""
    if task.cache is None or (keep.projection == 0 and keep.layers == "all"):
        return None
    sha = hashlib.sha256()
    for tensor in (events.x, events.mask, events.node_type, y):
        sha.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    what = [FORMAT, files.sha256(weights), sha.hexdigest(), keep.projection, keep.layers, keep.rows, task.seed]
    return task.cache / files.digest(what)


def _path(folder: Path, number: int) -> Path:
    return folder / f"block_{number:05d}.safetensors"
