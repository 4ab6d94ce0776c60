"""hepx submit: any verb as batch jobs."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any

import typer

from hepx.cli.base import app
from hepx.cli.influence import InfluenceGroup
from hepx.errors import ConfigError, closest


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Examples:\n\n  hepx submit slurm train configs/mgt.yaml --gpus 1 --time 2:00:00 --partition gpu\n\n"
    "  hepx submit slurm run configs/mgt.yaml train.epochs=50 --array 8 --dry-run\n\n"
    "  hepx submit slurm explain runs/mgt --array 8            shares of the events, then the merge\n\n"
    "  hepx submit slurm evaluate configs/mgt.yaml --seeds 1-5 --time 1:00:00\n\n"
    "  hepx submit slurm sweep configs/models.yaml --array 40 --time 1:00:00\n\n"
    "  hepx submit htcondor run configs/mgt.yaml --gpus 1 --flavour workday\n\n"
    "A job that reaches its time limit writes a checkpoint, goes back into the queue and goes on from there.",
)
def submit(
    system: Annotated[str, typer.Argument(metavar="slurm|htcondor", help="The batch system.")],
    verb: Annotated[str, typer.Argument(metavar="VERB", help="What the job does: run, train, explain, convert, …")],
    line: Annotated[list[str], typer.Argument(metavar="ARGUMENTS...", help="What follows the verb, with its options.")],
    time: Annotated[str, typer.Option("--time", help="Limit per job: minutes, HH:MM:SS or D-HH:MM:SS.")] = "",
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs per node; more than one train together.")] = 0,
    nodes: Annotated[int, typer.Option("--nodes", help="Machines that train together (Slurm).")] = 1,
    cpus: Annotated[int, typer.Option("--cpus", help="Cores per process; there is one process per GPU.")] = 2,
    memory: Annotated[str, typer.Option("--memory", help="Memory per node.")] = "8G",
    array: Annotated[
        int, typer.Option("--array", min=0, help="Share out the explanations, or the runs of a sweep, over N jobs.")
    ] = 0,
    seeds: Annotated[str, typer.Option("--seeds", help="One run per seed: 1-5 or 1,2,7.")] = "",
    partition: Annotated[str, typer.Option("--partition", help="Partition (Slurm).")] = "",
    account: Annotated[str, typer.Option("--account", help="Account, or accounting group (HTCondor).")] = "",
    flavour: Annotated[str, typer.Option("--flavour", help="JobFlavour, e.g. workday (HTCondor at CERN).")] = "",
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Copy the files: no shared file system (HTCondor).")
    ] = False,
    warn: Annotated[int, typer.Option("--warn", help="Seconds before the limit at which a job stops.")] = 120,
    directive: Annotated[
        list[str] | None, typer.Option("--directive", help="A further line for the scheduler; may be repeated.")
    ] = None,
    setup: Annotated[
        list[str] | None, typer.Option("--setup", help="A shell line before hepx: 'module load cuda'; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the scripts; submit and write nothing.")] = False,
) -> None:
    """Run any verb as jobs of a batch system, which survive their time limit."""
    from hepx import batch
    from hepx.config import parse

    if system not in batch.SYSTEMS:
        raise ConfigError(f"unknown batch system '{system}'; {closest(system, batch.SYSTEMS)}")
    wanted = {"time": time, "gpus": gpus, "nodes": nodes, "cpus": cpus, "memory": memory, "partition": partition}
    wanted |= {"account": account, "flavour": flavour, "transfer": transfer, "warn": warn}
    wanted |= {"directives": tuple(directive or ()), "setup": tuple(setup or ())}
    resources = parse(batch.Resources, wanted, "hepx submit")
    checked = batch.read_line(verb, line, _values(verb, line))
    jobs = batch.plan(checked, array, batch.read_seeds(seeds), resources.processes)
    queue = batch.SYSTEMS[system].of(checked, resources, shlex.join(["hepx", *sys.argv[1:]]))
    queue.check(jobs)
    if dry_run:
        for text in queue.describe(jobs):
            typer.echo(text)
        return
    for name, number in queue.submit(jobs).items():
        typer.echo(f"{name}: job {number}")
    typer.echo(f"scripts and logs: {queue.folder}")


def _values(verb: str, line: list[str]) -> dict[str, Any]:
    """What follows a verb, as its own command line reads it; ConfigError if it would refuse it."""
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    if verb not in commands:
        raise ConfigError(f"unknown verb '{verb}'; {closest(verb, commands)}")
    try:
        command, arguments = _inner(commands[verb], list(line))
        return dict(command.make_context(verb, arguments).params)
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own errors; typer does not tell where it has their class
            raise ConfigError(f"hepx {verb}: {error.format_message()} See hepx {verb} --help.") from error
        raise


def _inner(command: Any, arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that a line of a verb with several is for, and what is left of the line."""
    if not isinstance(command, InfluenceGroup):
        return command, arguments
    name = next((one for one in arguments if one in command.commands), "scores")
    return command.commands[name], [one for one in arguments if one != name]
