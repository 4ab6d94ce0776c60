"""Which jobs a `hepx` line becomes: one, or several that wait for one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hepx.batch.base import TASK, Job, Line
from hepx.errors import ConfigError
from hepx.events import find_files
from hepx.run import Run
from hepx.sweep import Sweep

TRAINING = ("train", "evaluate", "explain", "report", "run")
"""Verbs that train first if that is not done yet."""
EXPLAINING = ("explain", "report", "run")
"""Verbs that explain first if that is not done yet."""
JOINING = ("sweep",)
"""Verbs that, without --shard, put together what the shards have done."""
REFUSED = ("submit", "inspect")


def read_line(verb: str, arguments: Sequence[str], values: Mapping[str, Any]) -> Line:
    """Check what follows a verb, parsed into `values`: a wrong config is found now and not after hours in the queue."""
    runs, changes = Path(values.get("runs") or "runs"), values.get("overrides") or []
    shards, target = "shard" in values, values.get("target")
    if verb == "sweep":
        return Line(verb, tuple(arguments), Sweep(values["config"], changes, runs).folder, shards=shards)
    if target is None:
        return Line(verb, tuple(arguments), runs, shards=shards)
    run = Run.from_config(target, changes, runs)
    if target.is_dir():
        return Line(verb, tuple(arguments), run.folder, inputs=(target,), shards=shards)
    found = [place for name, sample in run.settings.data.samples.items() for place in find_files(name, sample)]
    done = [run.folder] if run.folder.exists() else []
    inputs = (target, *(place for place in found if isinstance(place, Path)), *done)
    return Line(verb, tuple(arguments), run.folder, run.settings.name, inputs, shards)


def plan(line: Line, shards: int, seeds: Sequence[int], processes: int) -> list[Job]:
    """The jobs of a line, each of which starts when the one before it has ended well.

    shards: number of jobs at once that share out the work of a verb with `--shard`, or the explanations of a run, 0: no
    sharing; seeds: one run for each, beside one
    another; processes: how many train together. Raises ConfigError for what makes no sense.
    """
    _check(line, shards, seeds)
    if seeds:
        arguments = (*line.arguments, f"seed={TASK}", f"name={line.name}-seed{TASK}")
        return _with_parallel_training(line, arguments, tuple(map(str, seeds)), processes)
    if not shards:
        return _with_parallel_training(line, line.arguments, (), processes)
    numbers = tuple(map(str, range(1, shards + 1)))
    if line.verb not in EXPLAINING:
        share = Job("shards", (line.verb, *line.arguments, "--shard", f"{TASK}/{shards}"), numbers)
        return [share, Job(line.verb, (line.verb, *line.arguments), gpus="none")] if line.verb in JOINING else [share]
    first = _with_parallel_training(replace(line, verb="evaluate"), line.arguments, (), processes)
    run = str(line.folder)
    share = Job("shards", ("explain", run, "--shard", f"{TASK}/{shards}"), numbers)
    last = "explain" if line.verb == "explain" else "report"
    return [*first, share, Job(last, (last, run), gpus="none")]


def _with_parallel_training(line: Line, arguments: tuple[str, ...], tasks: tuple[str, ...], num: int) -> list[Job]:
    """The job of a line; where several processes train together, what comes before and after is a job of one."""

    def job(verb: str, gpus: Literal["none", "one", "all"]) -> Job:
        return Job(verb, (verb, *arguments), tasks, gpus)

    if line.verb not in TRAINING:
        return [job(line.verb, "none" if line.verb == "convert" else "one")]
    if num == 1:
        return [job(line.verb, "one")]
    before = [job("convert", "none"), job("train", "all")]
    return before if line.verb == "train" else [*before, job(line.verb, "one")]


def _check(line: Line, shards: int, seeds: Sequence[int]) -> None:
    if line.verb in REFUSED:
        raise ConfigError(f"'hepx {line.verb}' is quick and talks to you; it is not a job.")
    if shards and line.verb not in EXPLAINING and not line.shards:
        raise ConfigError(
            f"--array shares out explanations (hepx {', '.join(EXPLAINING)}) and what has an option --shard, "
            f"not '{line.verb}'; see also --seeds."
        )
    if seeds and (line.verb not in TRAINING or not line.name):
        raise ConfigError(
            f"--seeds makes one run per seed from a config (hepx {', '.join(TRAINING)} CONFIG), "
            f"not '{line.verb}'{'' if line.name else ' of a run folder'}."
        )
    if seeds and shards:
        raise ConfigError("give --array or --seeds, not both: submit the seeds first, then `explain` of each run.")
    if any(word.startswith("--shard") for word in line.arguments):
        raise ConfigError("give --array N instead of --shard: it makes the jobs of all shards and puts them together.")


def read_seeds(text: str) -> list[int]:
    """Seeds as `1-5` or `1,2,7`; ConfigError if they are none, or one comes twice.

    >>> read_seeds("1-3,7")
    [1, 2, 3, 7]
    """
    seeds: list[int] = []
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or int(last or first) < int(first):
            raise ConfigError(f"--seeds {text}: expected numbers such as 1-5 or 1,2,7, got '{part}'.")
        seeds += range(int(first), int(last or first) + 1)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text}: a seed comes twice.")
    return seeds
