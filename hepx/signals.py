"""A batch system stops work that goes on later: by SIGTERM (preemption, time limit) or SIGUSR1 (Slurm's warning).

The command line calls `raised`; long loops that can save their state call `deferred` and finish the step at hand.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

HEARD = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(BaseException):
    """A signal asks to stop. Not an Exception, so that no handler of errors on the way swallows it."""

    def __init__(self, name: str, kept: str = "what is finished is kept") -> None:
        super().__init__(f"stopped by {name}; {kept}; start the same command again")


def _raise(number: int, frame: FrameType | None) -> None:
    del frame
    for other in HEARD:
        signal.signal(other, signal.SIG_IGN)  # batch systems ask several times; cleaning up must not be interrupted
    raise Preempted(signal.Signals(number).name)


@contextmanager
def raised() -> Iterator[None]:
    """Inside the block the first signal raises Preempted and further ones are ignored; for the main thread only."""
    before = {number: signal.signal(number, _raise) for number in HEARD}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred(kept: str) -> Iterator[Callable[[], bool]]:
    """Inside the block a signal is only noted: what is yielded tells whether one came. Preempted, saying what is
    `kept`, is raised at the end of the block. Without `raised` around it nothing changes: signals are not ours then."""
    came: list[int] = []
    ours = [number for number in HEARD if signal.getsignal(number) is _raise]
    for number in ours:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        for number in ours:
            signal.signal(number, _raise)
    if came:
        raise Preempted(signal.Signals(came[0]).name, kept)
