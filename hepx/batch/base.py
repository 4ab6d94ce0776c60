"""What every batch system is given: jobs that are done one after the other, each a `hepx` line or an array of them.

A job that is stopped (time limit, preemption) is not lost: hepx hears SIGTERM or SIGUSR1, writes a checkpoint and ends
with code 85 (`hepx.errors.PreemptedError`); the batch system then starts the same line again, which goes on.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from hepx import files
from hepx.config import Settings
from hepx.errors import ConfigError, PreemptedError

TASK = "{task}"
"""Stands in the arguments of an array of jobs for the task of each."""
STOPPED = PreemptedError.exit_code
RESTARTS = 50  # a job whose next start never gets further than the last one must not run for ever


class Resources(Settings):
    """What one job asks for.

    time: limit in Slurm's notation (minutes, H:M:S, D-H, D-H:M:S; empty: that of the batch system); warn: seconds
    before it at which the job is told to stop; gpus: per node; cpus: cores per process (one process per GPU); memory:
    per node; partition, account: of the batch system; flavour: JobFlavour of HTCondor at CERN (empty: the shortest that
    is long enough); directives: further lines for the scheduler, as they are; setup: shell lines before hepx, such as
    `module load cuda`; transfer: HTCondor copies the files, because the machines share no file system.
    """

    time: str = ""
    warn: int = Field(default=120, ge=10)
    gpus: int = Field(default=0, ge=0)
    nodes: int = Field(default=1, ge=1)
    cpus: int = Field(default=2, ge=1)
    memory: str = Field(default="8G", pattern=r"^\d+[KMGT]$")
    partition: str = ""
    account: str = ""
    flavour: str = ""
    directives: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    transfer: bool = False

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        if value and seconds(value) <= 0:
            raise ValueError("expected a time longer than 0")
        return value

    @model_validator(mode="after")
    def _has_time_to_stop(self) -> Resources:
        if self.time and seconds(self.time) <= self.warn:
            raise ValueError(f"the time {self.time} is not longer than the {self.warn} s that are kept for stopping")
        return self

    @property
    def processes(self) -> int:
        """Processes that train together: one per GPU."""
        return self.nodes * max(1, self.gpus)


def seconds(time: str) -> int:
    """A time limit in Slurm's notation, in seconds.

    >>> [seconds(text) for text in ("90", "90:30", "2:00:00", "1-12", "1-0:30:05")]
    [5400, 5430, 7200, 129600, 88205]
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not found:
        raise ValueError(f"expected a time such as 30 (minutes), 2:00:00 or 1-12 (days-hours), got '{time}'")
    days, *rest = found.groups()
    first, second, third = (int(part or 0) for part in rest)
    if days is not None:
        return int(days) * 86_400 + first * 3600 + second * 60 + third
    return first * 3600 + second * 60 + third if rest[2] else first * 60 + second


@dataclass(frozen=True)
class Line:
    """A checked `hepx` line: verb, everything after it, and where it works.

    folder: of the run, or of all runs for a verb without one; config: the part that says which run, with which config,
    and that every verb of a run takes; name: of the run, empty if it is there already (a run folder was given); inputs:
    the files that are read; shards: the verb takes `--shard`.
    """

    verb: str
    arguments: tuple[str, ...]
    folder: Path
    config: tuple[str, ...] = ()
    name: str = ""
    inputs: tuple[Path, ...] = ()
    shards: bool = False


@dataclass(frozen=True)
class Job:
    """One `hepx` line, or an array of them: `arguments` then hold TASK, and `tasks` what stands there, one after the
    other. gpus: what a GPU is to this job: of no use, of use, or several of use (it trains)."""

    name: str
    arguments: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    gpus: Literal["none", "one", "all"] = "one"


@dataclass(frozen=True)
class Script:
    """A file of the batch system and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class BatchSystem(ABC):
    """A batch system, with what the jobs ask for and the folder of their scripts and logs (absolute).

    line: the command that the user gave, for the head of the scripts; start: where the jobs start; inputs, outputs:
    what a job reads and where it writes, for machines that share no file system.
    """

    resources: Resources
    folder: Path
    line: str
    start: Path
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()

    @classmethod
    def of(cls, line: Line, resources: Resources, command: str) -> Self:
        """The batch system for the jobs of a line: each submission has a folder of its own in that of the run."""
        jobs = line.folder.absolute() / "jobs"
        taken = [int(path.name) for path in jobs.glob("[0-9]*") if path.name.isdigit()]
        folder = jobs / f"{max(taken, default=0) + 1:03d}"
        return cls(resources, folder, command, Path.cwd(), line.inputs, (line.folder,))

    def describe(self, jobs: Sequence[Job]) -> list[str]:
        """Every script, and how it is handed in."""
        texts = [f"# {self.folder / script.name}\n{script.text}" for script in self.scripts(jobs)]
        return [*texts, f"# handed in, in that folder, by\n{self.handed_in(jobs)}"]

    def handed_in(self, jobs: Sequence[Job]) -> str:
        """The commands of `submit`, as a user would type them; a shell variable holds the number of each job."""
        names = {name: f"${name}" for name in self.commands(jobs)}
        lines = {name: [part.format(**names) for part in command] for name, command in self.commands(jobs).items()}
        *first, last = [(name, " ".join(line)) for name, line in lines.items()]
        return "\n".join([*(f"{name}=$({line})" for name, line in first), last[1]])

    @abstractmethod
    def scripts(self, jobs: Sequence[Job]) -> list[Script]:
        """Everything that is written for these jobs, each of which waits for the one before it."""

    @abstractmethod
    def commands(self, jobs: Sequence[Job]) -> dict[str, list[str]]:
        """What is handed in, in order: name -> command line; `{NAME}` in it stands for the number that NAME got."""

    @abstractmethod
    def check(self, jobs: Sequence[Job]) -> None:
        """ConfigError if this batch system cannot do what is asked for."""

    @abstractmethod
    def number(self, answer: str) -> str:
        """The number of a job, from what the command that handed it in said."""

    @abstractmethod
    def cancel(self, numbers: Sequence[str]) -> list[str]:
        """The command line that takes jobs back."""

    def submit(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Write the scripts and hand the jobs in; returns name -> number.

        ConfigError if the batch system is not here or refuses; what it had accepted by then is taken back.
        """
        commands = self.commands(jobs)
        program = next(iter(commands.values()))[0]
        if shutil.which(program) is None:
            raise ConfigError(
                f"there is no {program} on the PATH here. Submit where the batch system is; "
                "--dry-run prints the scripts anywhere."
            )
        self.folder.mkdir(parents=True)
        for script in self.scripts(jobs):
            files.write_text(self.folder / script.name, script.text)
            if script.name.endswith(".sh"):
                (self.folder / script.name).chmod(0o755)
        numbers: dict[str, str] = {}
        for name, command in commands.items():
            filled = [part.format(**numbers) for part in command]
            done = subprocess.run(filled, capture_output=True, text=True, cwd=self.folder, check=False)
            if done.returncode:
                if numbers:
                    subprocess.run(self.cancel(list(numbers.values())), capture_output=True, check=False)
                raise ConfigError(
                    f"{program} refused the job '{name}': {(done.stderr or done.stdout).strip()} "
                    f"The scripts are in '{self.folder}'."
                )
            numbers[name] = self.number(done.stdout)
        return numbers

    def is_parallel(self, job: Job) -> bool:
        """Whether several processes work together in this job."""
        return job.gpus == "all" and self.resources.processes > 1

    def num_gpus(self, job: Job) -> int:
        """GPUs of one machine that this job asks for."""
        return {"none": 0, "one": min(1, self.resources.gpus), "all": self.resources.gpus}[job.gpus]

    @property
    def note(self) -> str:
        """A comment that says where a script comes from."""
        return f"# Made by: {self.line}".replace("\n", " ")

    def head(self, change_folder: bool = True) -> list[str]:
        """The lines of every script before hepx starts: where it comes from, where it works, what the user wants."""
        change = [f"cd {shlex.quote(str(self.start))} || exit 1"] if change_folder else []
        return [self.note, *change, *self.resources.setup]

    def hepx(self, job: Job, module: Sequence[str] = ("-m", "hepx.cli")) -> str:
        """The shell line that starts hepx with this interpreter; `$task` is the task of an array."""
        return " ".join(quote(part) for part in (sys.executable, *module, *job.arguments))


def quote(argument: str) -> str:
    """An argument for the shell; TASK becomes the variable `task`.

    >>> print(quote("my file"), quote("--shard"), quote("{task}/8"), quote("name=a b-{task}"))
    'my file' --shard "$task"/8 'name=a b-'"$task"
    """
    return '"$task"'.join(shlex.quote(part) if part else "" for part in argument.split(TASK)) or "''"
