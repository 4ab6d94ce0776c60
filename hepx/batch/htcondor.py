"""HTCondor: a submit description and a script per job, and a DAG where one waits for another.

HTCondor does not warn before the time is over, so the script does: `timeout` sends SIGTERM in time. A job that ends
with code 85 goes back into the queue; one that fails is held, for you to look at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from hepx.batch.base import RESTARTS, STOPPED, BatchSystem, Job, Script, seconds
from hepx.errors import ConfigError, closest

FLAVOURS = {
    "espresso": 1200,
    "microcentury": 3600,
    "longlunch": 7200,
    "workday": 28_800,
    "tomorrow": 86_400,
    "testmatch": 259_200,
    "nextweek": 604_800,
}
"""JobFlavour at CERN -> seconds; elsewhere the attribute is ignored."""

WAIT = f"""\
job=$!
stopped=no
trap 'stopped=yes; kill -TERM "$job"' TERM   # preemption
wait "$job"; code=$?
while kill -0 "$job" 2>/dev/null; do wait "$job"; code=$?; done
if [ "$code" -gt 128 ]; then wait "$job"; code=$?; fi   # the first wait was ended by the signal, not by hepx
if [ "$code" -eq 124 ]; then stopped=yes; fi   # timeout says so: the time is over, and it told hepx to stop
# torchrun ends with 1 when it is told to stop, whatever its processes end with
if [ "$stopped" = yes ] && [ "$code" -ne 0 ]; then code={STOPPED}; fi
exit "$code\""""
REQUEUE = {
    # back into the queue when stopped; held, for the user to look at, when it failed
    "on_exit_remove": f"(ExitBySignal == False) && (ExitCode =!= {STOPPED} || NumJobStarts > {RESTARTS})",
    "on_exit_hold": f"(ExitBySignal == True) || (ExitCode =!= 0 && ExitCode =!= {STOPPED})",
}


class HTCondor(BatchSystem):
    """Vanilla universe; the machines share a file system unless `transfer` is set."""

    def check(self, jobs: Sequence[Job]) -> None:
        """One machine per job; without a shared file system one job, whose paths are inside of where it starts."""
        wanted = self.resources
        if wanted.nodes > 1:
            raise ConfigError("a job of HTCondor runs on one machine; give --gpus N instead of --nodes.")
        if wanted.partition:
            raise ConfigError("HTCondor has no partitions; give for example --directive 'requirements = …'.")
        if wanted.flavour and wanted.flavour not in FLAVOURS:
            raise ConfigError(f"unknown --flavour '{wanted.flavour}'; {closest(wanted.flavour, FLAVOURS)}")
        if wanted.flavour and wanted.time:
            raise ConfigError("give --time or --flavour, not both.")
        if wanted.transfer and (len(jobs) > 1 or jobs[0].tasks):
            raise ConfigError(
                "--transfer is for one job alone: several jobs that work in one run folder need a shared file system."
            )
        if wanted.transfer and (outside := [str(path) for path in (*self.inputs, *self.outputs) if path.is_absolute()]):
            raise ConfigError(
                f"--transfer needs paths relative to where you are, and inside of it; got {', '.join(outside[:3])}. "
                "Change them in the config and in --runs."
            )

    def scripts(self, jobs: Sequence[Job]) -> list[Script]:
        """NAME.sub and NAME.sh for each job, and hepx.dag if there are several."""
        scripts = [one for job in jobs for one in (self._description(job), self._script(job))]
        if len(jobs) == 1:
            return scripts
        lines = [f"JOB {job.name} {job.name}.sub" for job in jobs]
        lines += [f"PARENT {first.name} CHILD {then.name}" for first, then in pairwise(jobs)]
        return [*scripts, Script("hepx.dag", "\n".join([*lines, ""]))]

    def commands(self, jobs: Sequence[Job]) -> dict[str, list[str]]:
        """condor_submit, or condor_submit_dag for several jobs."""
        if len(jobs) == 1:
            return {jobs[0].name: ["condor_submit", "-terse", f"{jobs[0].name}.sub"]}
        return {" → ".join(job.name for job in jobs): ["condor_submit_dag", "hepx.dag"]}

    def number(self, answer: str) -> str:
        """The cluster: `123.0 - 123.7` (terse), or `submitted to cluster 123` (DAG)."""
        found = re.search(r"cluster (\d+)|^(\d+)\.", answer, re.MULTILINE)
        return (found[1] or found[2]) if found else answer.strip()

    def cancel(self, numbers: Sequence[str]) -> list[str]:
        """condor_rm."""
        return ["condor_rm", *numbers]

    def _description(self, job: Job) -> Script:
        wanted = self.resources
        log = f"{self.folder}/{job.name}.$(Cluster).$(Process)"
        lines = {
            "universe": "vanilla",
            "executable": f"{self.folder}/{job.name}.sh",
            "arguments": "$(Process)" if job.tasks else "",
            "initialdir": str(self.start),
            "output": f"{log}.log",
            "error": f"{log}.log",
            "log": f"{self.folder}/{job.name}.$(Cluster).condor",
            "request_cpus": str(wanted.cpus * (self._processes(job))),
            "request_memory": f"{wanted.memory}B",
            "request_gpus": str(self.num_gpus(job) or ""),
            "+JobFlavour": f'"{self._flavour()}"' if self._flavour() else "",
            "accounting_group": wanted.account,
            "job_max_vacate_time": str(wanted.warn),
            **(self._transfer() if wanted.transfer else {"should_transfer_files": "NO", **REQUEUE}),
        }
        body = [f"{key} = {value}" for key, value in lines.items() if value]
        body += [*wanted.directives, f"queue {len(job.tasks) or 1}", ""]
        return Script(f"{job.name}.sub", "\n".join([self.note, *body]))

    def _transfer(self) -> dict[str, str]:
        """The files that travel. HTCondor keeps the run folder at code 85 and starts the job again with it."""
        return {
            "should_transfer_files": "YES",
            "preserve_relative_paths": "True",
            "when_to_transfer_output": "ON_EXIT_OR_EVICT",
            "transfer_input_files": ", ".join(map(str, self.inputs)),
            "transfer_output_files": ", ".join(map(str, self.outputs)),
            "transfer_checkpoint_files": ", ".join(map(str, self.outputs)),
            "checkpoint_exit_code": str(STOPPED),
        }

    def _script(self, job: Job) -> Script:
        """The time is watched here, so that hepx is told in time to write a checkpoint."""
        lines = ["#!/bin/bash", *self.head(change_folder=not self.resources.transfer)]
        if job.tasks:
            lines += [f"tasks=({' '.join(job.tasks)})", "task=${tasks[$1]}"]
        lines.append(f"export OMP_NUM_THREADS={self.resources.cpus}")
        module = ["-m", "hepx.cli"]
        if self.is_parallel(job):
            module = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.resources.gpus}", *module]
        limit = self._seconds()
        watch = f"timeout --foreground --signal=TERM {limit - self.resources.warn} " if limit else ""
        return Script(f"{job.name}.sh", "\n".join([*lines, f"{watch}{self.hepx(job, module)} &", WAIT, ""]))

    def _processes(self, job: Job) -> int:
        return self.resources.processes if self.is_parallel(job) else 1

    def _seconds(self) -> int:
        if self.resources.flavour:
            return FLAVOURS[self.resources.flavour]
        return seconds(self.resources.time) if self.resources.time else 0

    def _flavour(self) -> str:
        wanted = self._seconds()
        return next((name for name, length in FLAVOURS.items() if wanted and length >= wanted), "")
