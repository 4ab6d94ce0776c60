"""What all verbs share: the application, its options, arguments, and how a run is opened."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hepx import __version__, signals
from hepx.errors import PreemptedError, StoppedError

if TYPE_CHECKING:
    from hepx.run import Run
    from hepx.workers import Execution

log = logging.getLogger("hepx")


app = typer.Typer(
    name="hepx",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train graph classifiers on ATLAS events and explain, with checks, why they select an event.",
    epilog="Examples:\n\n"
    "  hepx run configs/quickstart.yaml                      ROOT files in, report.html out\n\n"
    "  hepx run configs/quickstart.yaml name=try2 train.epochs=5 model.num_experts=4\n\n"
    "  hepx explain runs/quickstart                          only what is missing is done\n\n"
    "  hepx simulate ttbar --events 10000 --output mydata    events to try things on",
)


Target = Annotated[Path, typer.Argument(metavar="CONFIG|RUN", help="A YAML config, or the folder of an earlier run.")]


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the config, e.g. train.epochs=5.")
]


Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds the run folders.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hepx {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that come before the verb."""
    del version
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.setLevel(level)
    log.handlers = [handler]


@contextmanager
def resumable(where: str = "after the last checkpoint or finished stage") -> Iterator[None]:
    """Ctrl-C or a signal inside the block ends with a sentence: what is finished is kept."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise StoppedError(f"stopped. The same command goes on {where}.") from error
    except signals.Preempted as error:
        raise PreemptedError(f"{error}.") from error


def carry_out(
    target: Path,
    overrides: list[str] | None,
    runs: Path,
    work: str | Callable[[Run], None],
    execution: Execution | None = None,
    methods: list[str] | None = None,
    resume: bool = False,
) -> Run:
    """Open the run, log into its log.txt, and carry out the stages up to `work`, or other work.

    Under torchrun every process comes here; all but the first end here, when they have helped to train.
    """
    from hepx.run import Run, log_file
    from hepx.train import joined

    run = Run.from_config(target, overrides or [], runs, methods or [])
    run.execution = execution or run.execution
    if resume:
        run.check_resumable()
    with resumable(), joined() as run.ranks:
        if not run.ranks.is_first:
            log.setLevel(logging.WARNING)
            run.follow()
            raise typer.Exit
        with log_file(run.folder), run.leading(), resumable():
            if isinstance(work, str):
                run.execute(work)
            else:
                work(run)
    return run
