"""The one exception hepx raises for a mistake a user can mend: what, where, expected, got, how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HepxError(Exception):
    """A sentence for the user. The command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 1


class ConfigError(HepxError):
    """The configuration or the command line is wrong."""

    exit_code = 2


class DataError(HepxError):
    """An input file, or what it holds, is wrong."""

    exit_code = 3


class ResultError(HepxError):
    """A result failed its own check (for example the completeness gate) or a needed result is missing."""

    exit_code = 4


class StoppedError(HepxError):
    """The user stopped work that can go on later."""

    exit_code = 130


class PreemptedError(StoppedError):
    """A signal of the batch system stopped work that goes on when the same command is started again.

    85 is also what HTCondor takes as "checkpoint written, start me again" (checkpoint_exit_code).
    """

    exit_code = 85


def closest(word: str, choices: Iterable[str], number: int = 3) -> str:
    """Return a hint for a misspelt word.

    >>> closest("jet_MV2c10", ["jet_MV2c20", "met"])
    "closest: 'jet_MV2c20'"
    >>> closest("zzz", ["a", "b"])
    'known: a, b'
    >>> closest("zzz", [])
    'there are none'
    """
    names = list(choices)
    if not names:
        return "there are none"
    found = difflib.get_close_matches(word, names, n=number, cutoff=0.6)
    if found:
        return "closest: " + ", ".join(f"'{name}'" for name in found)
    return "known: " + ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
