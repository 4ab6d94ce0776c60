"""An explanation of many events is worked out in blocks: by one process or by several at once, and never twice.

A block is a fixed range of the chosen events and lands in a file of its own. Who works out which block, and in what
order, decides nothing: a sum in floating point depends on what else is in the batch, and the batch is always the block.
So the result of any number of shards is, to the byte, that of one process; and what was stopped goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hepx.attribution.base import Method, Subject
from hepx.errors import ConfigError
from hepx.progress import progress
from hepx.results import EventResult, Provenance, Result, is_result_of, load_event_result

BLOCK = 64  # events; the largest number of shards that all have work is the number of events over this


@dataclass(frozen=True)
class Shard:
    """One of `total` equal parts of the work; index counts from 0."""

    index: int = 0
    total: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/8` is the third of eight; ConfigError if it is nothing of the kind.

        >>> Shard.parse("3/8")
        Shard(index=2, total=8)
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(f"--shard {text}: expected i/n with i from 1 to n, for example 3/8.")
        return cls(int(found[1]) - 1, int(found[2]))

    def has(self, number: int) -> bool:
        """Whether piece `number` of the work is this shard's."""
        return number % self.total == self.index


def explain(method: Method, subject: Subject, provenance: Provenance) -> Result:
    """The whole result of a method, in memory; ResultError if it fails its own check, ConfigError for a model it cannot
    explain."""
    method.refuse_model(subject.model)
    if not method.per_event:
        return method.explain(subject, provenance)
    parts = [_explain(method, one, provenance) for one in _blocks(subject)]
    return method.check(type(parts[0]).concatenate(parts))


def explain_blocks(
    method: Method, subject: Subject, provenance: Provenance, folder: Path, shard: Shard = Shard()
) -> None:
    """Write the blocks of one shard into `folder`; those that are there already are kept."""
    blocks = [(number, one) for number, one in enumerate(_blocks(subject)) if shard.has(number)]
    with progress(method.name, sum(len(one.graphs) for _, one in blocks), " events") as advance:
        for number, one in blocks:
            path = _path(folder, number)
            if not is_result_of(path, provenance):
                _explain(method, one, provenance).save(path)
            advance(len(one.graphs))


def merge_blocks(method: Method, num_events: int, folder: Path) -> EventResult:
    """The result of all blocks in `folder`; ResultError if one is missing or the whole fails its own check."""
    parts = [load_event_result(_path(folder, number)) for number in range(-(-num_events // BLOCK))]
    return method.check(type(parts[0]).concatenate(parts))


def _explain(method: Method, subject: Subject, provenance: Provenance) -> EventResult:
    result = method.explain(subject, provenance)
    if not isinstance(result, EventResult):
        raise TypeError(f"{method.name} is declared per_event, so it must return an EventResult")
    return result


def _blocks(subject: Subject) -> Iterator[Subject]:
    for start in range(0, len(subject.graphs), BLOCK):
        yield replace(subject, graphs=subject.graphs[start : start + BLOCK])


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"
