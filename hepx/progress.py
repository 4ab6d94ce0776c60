"""Progress of long work: a bar on a terminal, a plain log line every few seconds in a batch log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

log = logging.getLogger(__name__)

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 5.0


class Advance(Protocol):
    """Called with the number of finished units and, if wanted, a short note such as a rate or a loss."""

    def __call__(self, amount: float = 1, note: str = "") -> None: ...


def silent(amount: float = 1, note: str = "") -> None:
    """The `Advance` that shows nothing: of work that is part of other work."""
    del amount, note


class _Rate(ProgressColumn):
    """Finished units per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


@contextmanager
def progress(what: str, total: float, unit: str = "") -> Iterator[Advance]:
    """Show the progress of `total` units of work while the block runs; yields the function that advances it."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(what, total=total, note="")

            def advance_bar(amount: float = 1, note: str = "") -> None:
                bar.update(task, advance=amount, note=note)

            yield advance_bar
        return
    start = last = time.monotonic()
    done = 0.0

    def advance_log(amount: float = 1, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = done / (now - start)
        left = (total - done) / rate if rate > 0 else float("inf")
        log.info(
            "%s: %g of %g%s, %.3g/s, %.0f s left%s", what, done, total, unit, rate, left, f", {note}" if note else ""
        )

    yield advance_log


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Iterate over `items` and show the progress."""
    with progress(what, total) as advance:
        for item in items:
            yield item
            advance()
