"""Several models and seeds on one data set: every run once, many at once, on one machine or on a cluster; one table."""

from __future__ import annotations

import csv
import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from hepx import files
from hepx.attribution import Shard
from hepx.comparison import Row, compare_runs
from hepx.config import Settings, apply_overrides, load, parse, write_yaml
from hepx.errors import ConfigError, PreemptedError, ResultError
from hepx.progress import progress
from hepx.run import Run, log_file
from hepx.settings import RunSettings

log = logging.getLogger(__name__)

ALL = Shard()
ATTEMPTS = 3  # a run that is killed three times will be killed again
SECONDS_BETWEEN_LOOKS = 0.2
CONSOLE = "console.txt"  # what a process of a member says, kept if it fails


class SweepSettings(Settings):
    """A base config, seeds, and variants: name -> overrides of the base, as on the command line. Differences are taken
    to the variant `reference`, seed by seed and event by event. A variant may name a `base` of its own, another config
    beside this one: its graph, model and training count, the data and the evaluation stay those of the sweep's base.

    The reference trees of the evaluation are the same for all variants that see the same data: they are fitted in the
    runs of the variant `reference` alone, once per seed. (A seed changes little in them: it draws the events whose
    quantiles become the bins, and only of more than 200 000 events.)
    """

    name: str
    base: str
    seeds: tuple[int, ...] = Field(min_length=2)
    reference: str
    variants: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Member:
    """One variant with one seed."""

    variant: str
    seed: int
    run: Run

    @property
    def name(self) -> str:
        """As in the log."""
        return f"{self.variant}, seed {self.seed}"


class Sweep:
    """The runs of a sweep config, in the folder of its name; seed after seed, so that what is done can be compared."""

    def __init__(self, path: Path, overrides: list[str], root: Path) -> None:
        self.settings = parse(SweepSettings, load(path, overrides), f"config '{path}'")
        if self.settings.reference not in self.settings.variants:
            raise ConfigError(f"config '{path}': the reference '{self.settings.reference}' is not one of the variants.")
        self.base, self.folder = path.parent / self.settings.base, root / self.settings.name
        self.members = [
            self._member(variant, seed) for seed in self.settings.seeds for variant in self.settings.variants
        ]

    def _member(self, variant: str, seed: int) -> Member:
        """Paths of bases are relative to the sweep's own file."""
        values, name, changes = load(self.base), f"{variant}-{seed}", dict(self.settings.variants[variant])
        if "base" in changes:
            kept: dict[str, Any] = {key: values[key] for key in ("data", "evaluate") if key in values}
            values = {**load(self.base.parent / changes.pop("base")), **kept}
        trees = {} if variant == self.settings.reference else {"evaluate.trees": False}
        apply_overrides(values, {**trees, **changes, "seed": seed, "name": name})
        settings = parse(RunSettings, values, f"variant '{variant}' of sweep '{self.settings.name}'")
        return Member(variant, seed, Run(self.folder / name, settings))

    @property
    def left(self) -> list[Member]:
        """The members that are not finished."""
        return [member for member in self.members if not member.run.is_done("evaluate")]

    def execute(self, workers: int, shard: Shard = ALL) -> None:
        """Carry out the members of a shard that are not finished; ResultError if some of them failed.

        Every data set is converted once: the run folders link to it.
        """
        mine = [member for number, member in enumerate(self.members) if shard.has(number)]
        left = [member for member in mine if not member.run.is_done("evaluate")]
        log.info("sweep '%s': %d of %d runs are finished already", self.settings.name, len(mine) - len(left), len(mine))
        for member in left:
            try:
                member.run.settings.refuse_unknown()
            except ConfigError as error:
                raise ConfigError(f"variant '{member.variant}': {error}") from error
        for data in dict.fromkeys(map(self._link, left)):
            member = next(one for one in left if self._link(one) == data)
            with _waiting(data / ".lock"), log_file(member.run.folder):
                member.run.execute("convert")
        if workers == 1:
            for member in left:
                log.info("%s", member.name)
                with log_file(member.run.folder):
                    member.run.execute("evaluate")
        else:
            _Workers(left, workers).execute()

    def _link(self, member: Member) -> Path:
        """Let the run folder use the shared data set; returns where that is."""
        data = self.folder / f"dataset-{member.run.key('convert')}"
        data.mkdir(parents=True, exist_ok=True)
        link = member.run.folder / "dataset"
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and link.readlink() != Path("..") / data.name:
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(Path("..") / data.name)
        return data

    def table(self) -> list[Row]:
        """Compare all runs and write sweep.csv, sweep.md, sweep.html and the figure; ResultError if one is missing."""
        if self.left:
            names = "; ".join(member.name for member in self.left)
            raise ResultError(f"sweep '{self.settings.name}': no table, because these runs are not finished: {names}.")
        runs = {
            variant: [member.run.folder for member in self.members if member.variant == variant]
            for variant in self.settings.variants
        }
        from hepx import report  # matplotlib is slow to import

        rows = compare_runs(runs, self.settings.reference)
        with files.atomic(self.folder / "sweep.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])))
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
        facts = {variant: _facts(folders) for variant, folders in runs.items()}
        files.write_json(self.folder / "sweep.json", {"reference": self.settings.reference, "facts": facts})
        report.make_comparison(self.folder)
        return rows


def _facts(folders: Sequence[Path]) -> dict[str, float]:
    """Parameters, epochs and seconds of the training, mean of the seeds."""
    parameters = [files.read_json(folder / "metrics.json")["parameters"] for folder in folders]
    seconds = [files.read_json(folder / "stages.json")["train"]["seconds"] for folder in folders]
    epochs = [len((folder / "history.csv").read_text().splitlines()) - 1 for folder in folders]
    values = {"parameters": parameters, "epochs": epochs, "train_seconds": seconds}
    return {name: float(np.mean(value)) for name, value in values.items()}


@contextmanager
def _waiting(path: Path) -> Iterator[None]:
    """Hold a lock that another process of the same sweep may hold now."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Processes --------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """A process at work on a member, and when it began."""

    member: Member
    process: subprocess.Popen[bytes]
    start: float


class _Workers:
    """Several members at once, each `hepx evaluate RUN` in a process of its own with its share of the cores.

    A process that is killed is started again and goes on from its checkpoint; the others do not notice. A member that
    another sweep works on is waited for. A member that fails does not keep the others from running.
    """

    def __init__(self, members: Sequence[Member], workers: int) -> None:
        self.waiting, self.workers = list(members), workers
        self.jobs: list[_Job] = []
        self.kills: dict[str, int] = {}
        self.failed: dict[str, str] = {}

    def execute(self) -> None:
        """Return when all are done; ResultError names those that failed."""
        with progress("sweep", len(self.waiting), " runs") as advance:
            try:
                while self.waiting or self.jobs:
                    self._start()
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                    for job in [job for job in self.jobs if job.process.poll() is not None]:
                        self._end(job)
                        advance(0 if job.member in self.waiting else 1, job.member.name)
            finally:
                self._stop()
        if self.failed:
            told = "; ".join(f"{name}: {words}" for name, words in self.failed.items())
            raise ResultError(f"{len(self.failed)} runs failed, the others are kept. {told}")

    def _start(self) -> None:
        for member in list(self.waiting):
            if len(self.jobs) >= self.workers:
                return
            if not member.run.is_locked():
                self.waiting.remove(member)
                self.jobs.append(self._launch(member))

    def _launch(self, member: Member) -> _Job:
        files.write_text(member.run.folder / "config.yaml", write_yaml(member.run.settings.dump()))
        cores = len(os.sched_getaffinity(0))
        threads = str(max(1, cores // self.workers))
        command = [sys.executable, "-m", "hepx.cli", "--quiet", "evaluate", str(member.run.folder)]
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        # in a process group of its own: Ctrl-C reaches this process, which asks the others to write their checkpoints
        with (member.run.folder / CONSOLE).open("wb") as words:
            process = subprocess.Popen(command, stdout=words, stderr=words, env=environment, process_group=0)
        return _Job(member, process, time.monotonic())

    def _end(self, job: _Job) -> None:
        self.jobs.remove(job)
        name, code = job.member.name, job.process.returncode
        console = job.member.run.folder / CONSOLE
        words = console.read_text(errors="replace").strip()
        if code == 0:
            console.unlink()
            log.info("%s: %.0f s", name, time.monotonic() - job.start)
            return
        killed = code < 0 or code == PreemptedError.exit_code
        self.kills[name] = self.kills.get(name, 0) + killed
        if killed and self.kills[name] < ATTEMPTS:
            log.warning("%s: its process was killed; it goes on from its last checkpoint", name)
            self.waiting.insert(0, job.member)
        else:
            last = words.splitlines()[-1] if words else "its process was killed again and again"
            self.failed[name] = last.removeprefix("hepx: error: ")
            log.warning("%s: %s", name, self.failed[name])

    def _stop(self) -> None:
        """Ask what is still at work to write a checkpoint and end."""
        for job in self.jobs:
            job.process.terminate()
        for job in self.jobs:
            job.process.wait()
