"""The command line: hepx VERB CONFIG|RUN [key=value ...]. Imports stay inside the verbs so that --help is instant."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from hepx import signals
from hepx.cli import stages, judging, influence, comparing, data, jobs  # the verbs, in the order of the help
from hepx.cli.base import app, resumable
from hepx.errors import HepxError
from hepx.memory import keep_memory


def _call(command: Callable[[], object], debug: bool) -> int:
    """Run the command line; a HepxError becomes one sentence and its exit code."""
    try:
        with signals.raised(), resumable():
            command()
    except HepxError as error:
        if debug:
            raise
        typer.echo(f"hepx: error: {error}", err=True)
        return error.exit_code
    except OSError as error:
        if debug:
            raise
        where = f": '{error.filename}'" if error.filename else ""
        typer.echo(f"hepx: error: {error.strerror or error}{where}. Mend it and start again.", err=True)
        return 5
    return 0


def main() -> None:
    """Entry point of the `hepx` command."""
    keep_memory()
    sys.exit(_call(app, "--debug" in sys.argv))
