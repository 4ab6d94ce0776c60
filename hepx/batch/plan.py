"""Which jobs a `hepx` line becomes: one, or several that wait for one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
JOINING = ("sweep", "influence")
"""Verbs that, without --shard, put together what the shards have done."""
REFUSED = ("submit", "inspect")


def read_line(verb: str, arguments: Sequence[str], values: Mapping[str, Any]) -> Line:
    """Check what follows a verb, parsed into `values`: a wrong config is found now and not after hours in the queue."""
    runs, changes, line = Path(values.get("runs") or "runs"), list(values.get("overrides") or []), tuple(arguments)
    shards, target = "shard" in values, values.get("target", values.get("run"))
    if verb == "sweep":
        return Line(verb, line, Sweep(values["config"], changes, runs).folder, shards=shards)
    if target is None:
        return Line(verb, line, runs, shards=shards)
    if values.get("source"):
        changes.append(f'train.from="{values["source"]}"')
    run = Run.from_config(target, changes, runs, values.get("method") or [])
    config = (str(target), *changes, *(["--runs", str(runs)] if values.get("runs") != Path("runs") else []))
    if target.is_dir():
        return Line(verb, line, run.folder, config, inputs=(target,), shards=shards)
    found = [place for name, sample in run.settings.data.samples.items() for place in find_files(name, sample)]
    done = [run.folder] if run.folder.exists() else []
    inputs = (target, *(place for place in found if isinstance(place, Path)), *done)
    return Line(verb, line, run.folder, config, run.settings.name, inputs, shards)


def plan(line: Line, shards: int, seeds: Sequence[int], processes: int) -> list[Job]:
    """The jobs of a line, each of which starts when the one before it has ended well.

    shards: number of jobs at once that share out the work of a verb with `--shard`, or the explanations of a run, 0: no
    sharing; seeds: one run for each, beside one another; processes: how many train together. Raises ConfigError for
    what makes no sense.
    """
    _check(line, shards, seeds)
    if not shards:
        return [*_training(line, seeds, processes), *_whole(line, seeds, processes)]
    numbers = tuple(map(str, range(1, shards + 1)))
    if line.verb not in EXPLAINING:
        share = Job("shards", (line.verb, *line.arguments, "--shard", f"{TASK}/{shards}"), numbers)
        return [share, Job(line.verb, (line.verb, *line.arguments), gpus="none")] if line.verb in JOINING else [share]
    run, first = str(line.folder), Job("evaluate", ("evaluate", *line.config))
    if line.verb == "explain":  # its options say what will be explained
        first = Job("prepare", ("explain", *line.arguments, "--prepare"))
    share = Job("shards", ("explain", run, "--shard", f"{TASK}/{shards}"), numbers)
    last = "explain" if line.verb == "explain" else "report"
    return [*_training(line, (), processes), first, share, Job(last, (last, run), gpus="none")]


def _whole(line: Line, seeds: Sequence[int], processes: int) -> list[Job]:
    """The job of the line itself, if training by several processes does not do it all."""
    if line.verb == "train" and processes > 1:
        return []
    gpus: Literal["none", "one"] = "none" if line.verb == "convert" else "one"
    return [Job(line.verb, (line.verb, *line.arguments, *_own(line, seeds)), tuple(map(str, seeds)), gpus)]


def _training(line: Line, seeds: Sequence[int], processes: int) -> list[Job]:
    """Where several processes train together, that is a job of its own, and so is converting, for which one will do."""
    if processes == 1 or line.verb not in TRAINING:
        return []
    tasks, own = tuple(map(str, seeds)), _own(line, seeds)
    arguments = line.arguments if line.verb == "train" else line.config
    convert = Job("convert", ("convert", *line.config, *own), tasks, "none")
    return [convert, Job("train", ("train", *arguments, *own), tasks, "all")]


def _own(line: Line, seeds: Sequence[int]) -> tuple[str, ...]:
    """What makes the run of a seed another run."""
    return (f"seed={TASK}", f"name={line.name}-seed{TASK}") if seeds else ()


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
