"""Who does the work: this process, others on this machine, or a Dask cluster. What is done does not depend on it."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from hepx.errors import ConfigError, DataError
from hepx.memory import keep_memory

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
ATTEMPTS = 3  # a task that kills its worker three times will do so again
KILLED = (
    "{what}: workers were killed again and again without finishing a task, perhaps for lack of memory. "
    "The same command, with fewer --workers, goes on where it stopped."
)
ANSWER = 300  # seconds that a batch system has to take a job: sbatch itself asks a controller that is away for long
JOBQUEUES = {"slurm": "SLURMCluster", "htcondor": "HTCondorCluster"}


@dataclass(frozen=True)
class Execution:
    """Who does the work of `convert`, and what becomes of a file that cannot be read.

    workers: processes on this machine, or jobs of the batch system; dask: address of a Dask scheduler, or slurm or
    htcondor to start workers there; skip_bad_files: leave such files out and list them in the manifest.
    """

    workers: int = 1
    dask: str | None = None
    skip_bad_files: bool = False


THIS_PROCESS = Execution()


def outcomes(
    work: Callable[[T], R], tasks: Sequence[T], execution: Execution, what: str = "convert"
) -> Iterator[tuple[T, R]]:
    """Every task with what `work` returned for it, in the order in which they end; `what` it is, for messages."""
    if not tasks:
        return iter(())
    if execution.dask is not None:
        return _on_dask(work, tasks, execution.dask, execution.workers, what)
    if execution.workers > 1:
        return _in_processes(work, tasks, execution.workers, what)
    return ((task, work(task)) for task in tasks)


def _in_processes(work: Callable[[T], R], tasks: Sequence[T], workers: int, what: str) -> Iterator[tuple[T, R]]:
    """Fresh interpreters on this machine. If one is killed, the tasks it leaves are given to new ones."""
    left, failures = list(tasks), 0
    while left:
        done = set()
        pool = ProcessPoolExecutor(
            min(workers, len(left)), multiprocessing.get_context("spawn"), initializer=keep_memory
        )
        try:
            futures = {pool.submit(work, task): task for task in left}
            for future in as_completed(futures):
                outcome = future.result()
                done.add(futures[future])
                yield futures[future], outcome
        except BrokenProcessPool as error:
            failures = 0 if done else failures + 1
            if failures == ATTEMPTS:
                raise DataError(KILLED.format(what=what)) from error
            log.warning("%s: a worker process was killed; its tasks are started again", what)
        finally:
            pool.shutdown(cancel_futures=True)
        left = [task for task in left if task not in done]


def _on_dask(work: Callable[[T], R], tasks: Sequence[T], where: str, workers: int, what: str) -> Iterator[tuple[T, R]]:
    """The workers of a Dask cluster, which must see the same files; Dask repeats the tasks of a worker that dies."""
    distributed = _import_dask("distributed")
    with ExitStack() as stack:
        address: Any = where
        if where in JOBQUEUES:
            address = stack.enter_context(_batch_cluster(where))
            _hand_in(address, where, workers)
        try:
            client = stack.enter_context(distributed.Client(address))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--dask {where}: no Dask scheduler answers there ({error}). "
                f"Give its address, for example tcp://host:8786, or one of: {', '.join(JOBQUEUES)}."
            ) from error
        futures = dict(zip(client.map(work, tasks, pure=False), tasks, strict=True))
        try:
            for future, outcome in distributed.as_completed(futures, with_results=True):
                yield futures[future], outcome
        except distributed.KilledWorker as error:
            raise DataError(KILLED.format(what=what)) from error


def _batch_cluster(system: str) -> Any:
    """Workers as jobs of the batch system. Queue, memory and the like come from dask-jobqueue's own configuration
    (~/.config/dask/jobqueue.yaml); without one a job has a core and 4 GB."""
    dask, jobqueue = _import_dask("dask"), _import_dask("dask_jobqueue")
    given = dask.config.get(f"jobqueue.{system}")
    needed = {"cores": 1, "memory": "4GB"} | ({"disk": "4GB"} if system == "htcondor" else {})
    missing = {name: value for name, value in needed.items() if given.get(name) is None}
    return getattr(jobqueue, JOBQUEUES[system])(**missing)


def _hand_in(cluster: Any, system: str, workers: int) -> None:
    """Hand in the jobs of the workers, the first one alone: ConfigError if it is refused, with the words of the batch
    system. If others are (a limit of jobs per user), those that were taken do the work.

    `cluster.scale` would do this in the background, where a refusal is lost and the work waits for ever.
    """
    for number in (1, workers - 1):
        for _ in range(number):
            cluster.worker_spec.update(cluster.new_worker_spec())
        try:
            cluster.sync(cluster._correct_state, callback_timeout=ANSWER)
        except (RuntimeError, ValueError, OSError, TimeoutError) as error:
            jobs = list(cluster._created)
            refused = [job for job in jobs if getattr(job, "job_id", None) is None]
            for job in refused:
                job.status = _import_dask("distributed").Status.failed  # else the cluster does not close
            why = " ".join(str(error).split())
            if len(refused) == len(jobs):
                raise ConfigError(
                    f"--dask {system}: the batch system takes no jobs ({why}). Queue, account, memory and time of "
                    "its jobs are set in ~/.config/dask/jobqueue.yaml."
                ) from error
            log.warning("--dask %s: some of the %d jobs were refused, the others work: %s", system, workers, why)


def _import_dask(name: str) -> Any:
    """dask_jobqueue takes Ctrl-C for itself when it is imported, and ends without a word: it is given back."""
    before = signal.getsignal(signal.SIGINT)
    try:
        module = importlib.import_module(name)
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)
        return module
    except ImportError as error:
        how = "in the hepx folder, pip install -e '.[dask]'"
        raise ConfigError(f"--dask needs the extra 'dask' ({error}): {how}") from error
