"""Slurm: one sbatch script per job; `srun` starts the processes, so signals and exit codes of hepx get through."""

from __future__ import annotations

from collections.abc import Sequence

from hepx.batch.base import RESTARTS, STOPPED, BatchSystem, Job, Script
from hepx.errors import ConfigError

REQUEUE = f"""\
code=$?
if [ "$code" -eq {STOPPED} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {RESTARTS} ]; then
    # one task of an array: its number alone may be that of the whole array
    task=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
    scontrol requeue "${{task:-$SLURM_JOB_ID}}" && exit 0   # stopped with a checkpoint: the same line goes on from it
fi
exit "$code\""""

RANKS = """\
# One process per GPU. srun, not torchrun, starts them: torchrun dies of the warning signal and hides the exit code.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT WORLD_SIZE="$SLURM_NTASKS" LOCAL_WORLD_SIZE="$SLURM_NTASKS_PER_NODE\""""


class Slurm(BatchSystem):
    """`--signal` warns every process before the time limit; a stopped job requeues itself; a chain by dependencies."""

    def check(self, jobs: Sequence[Job]) -> None:
        """Slurm has no flavours and copies no files."""
        for name, wanted in {"--flavour": self.resources.flavour, "--transfer": self.resources.transfer}.items():
            if wanted:
                raise ConfigError(f"{name} is for HTCondor; Slurm has --time and a shared file system.")

    def scripts(self, jobs: Sequence[Job]) -> list[Script]:
        """NAME.sh for each job."""
        return [Script(f"{job.name}.sh", self._script(job)) for job in jobs]

    def commands(self, jobs: Sequence[Job]) -> dict[str, list[str]]:
        """sbatch; an array waits for the same task of an array before it, any other job for the whole."""
        lines: dict[str, list[str]] = {}
        before: Job | None = None
        for job in jobs:
            dependency = []
            if before is not None:
                kind = "aftercorr" if before.tasks and before.tasks == job.tasks else "afterok"
                dependency = [f"--dependency={kind}:{{{before.name}}}", "--kill-on-invalid-dep=yes"]
            lines[job.name] = ["sbatch", "--parsable", *dependency, f"{job.name}.sh"]
            before = job
        return lines

    def number(self, answer: str) -> str:
        """`--parsable` says NUMBER or NUMBER;CLUSTER."""
        return answer.strip().split(";")[0]

    def cancel(self, numbers: Sequence[str]) -> list[str]:
        """scancel."""
        return ["scancel", *numbers]

    def _script(self, job: Job) -> str:
        lines = ["#!/bin/bash", *(f"#SBATCH {line}" for line in self._directives(job)), *self.head()]
        if job.tasks:
            lines.append("task=$SLURM_ARRAY_TASK_ID")
        lines.append('export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"')
        hepx = self.hepx(job)
        start = 'srun --cpus-per-task="$SLURM_CPUS_PER_TASK"'
        if self.is_parallel(job):
            lines.append(RANKS)
            start += f" --wait={self.resources.warn}"  # for the others, when the first one has ended
            hepx = f"""bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' - {hepx}"""
        return "\n".join([*lines, f"{start} {hepx}", REQUEUE, ""])

    def _directives(self, job: Job) -> list[str]:
        wanted = self.resources
        gpus = self.num_gpus(job)
        log = self.folder / f"{job.name}-{'%A_%a' if job.tasks else '%j'}.log"
        lines = {
            "job-name": f"hepx-{job.name}",
            "output": _in_quotes(str(log)),
            "open-mode": "append",
            "time": wanted.time,
            "partition": wanted.partition,
            "account": wanted.account,
            "nodes": str(wanted.nodes if self.is_parallel(job) else 1),
            "ntasks-per-node": str(max(1, gpus)),
            "cpus-per-task": str(wanted.cpus),
            "mem": wanted.memory,
            "gpus-per-node": str(gpus or ""),
            "array": ",".join(job.tasks),
            "signal": f"USR1@{wanted.warn}",
        }
        return [*(f"--{key}={value}" for key, value in lines.items() if value), "--requeue", *wanted.directives]


def _in_quotes(text: str) -> str:
    return f'"{text}"' if " " in text else text
