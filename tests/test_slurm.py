"""`hepx submit slurm` and `hepx convert --dask slurm` on a real Slurm: jobs that are stopped, requeued and chained."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import slurm

ROOT = Path(__file__).parent.parent
TINY = ["model.dim=16", "model.expert_dim=8", "model.num_layers=1", "train.batch_size=64", "evaluate.trees=false"]
TINY += ["data.select=met > 250 and n_bjet == 2 and n_lepton == 1", "train.patience=1000", "explain.0.draws=2"]
TINY += ["explain.0.events=130", "explain.1.events=70", "explain.1.draws=2", "explain.1.steps=4"]
TINY += ["explain.1.max_completeness_error=1e9", "explain.2.events=30", "explain.2.points=3"]
TINY += ["insides.events=100", "insides.nulls.untrained=2", "insides.nulls.epochs=1", "insides.representation=false"]

pytestmark = pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Slurm for the tests of this file; its jobs see these sources."""
    with slurm.one_node_slurm(tmp_path_factory.mktemp("slurm")) as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def hepx(*arguments: str) -> str:
    """Run hepx; returns what it prints."""
    command = [sys.executable, "-m", "hepx.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(*arguments: str) -> dict[str, str]:
    """Hand in jobs; returns name -> number."""
    text = hepx("submit", "slurm", *arguments, "--memory", "1G", "--cpus", "1")
    return dict(re.findall(r"^(\w+): job (\d+)$", text, re.MULTILINE))


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def job(number: str) -> dict[str, str]:
    """What Slurm knows of a job."""
    return dict(re.findall(r"(\w+)=(\S*)", ask("scontrol", "show", "job", number).split("\n\n")[0]))


def wait_for(what: Callable[[], object], folder: Path, seconds: float = 400) -> None:
    """Wait until something is so; on the way out of patience show what the jobs said."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            logs = "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(folder.rglob("*.log")))
            raise AssertionError(f"{ask('squeue')}\n{ask('scontrol', 'show', 'jobs')}\n{logs}")
        time.sleep(0.1)


def ended(number: str) -> bool:
    return job(number)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def content(folder: Path, *names: str) -> dict[str, str]:
    """Hash of every file below the names."""
    paths = [
        path for name in names for path in ((folder / name).rglob("*") if (folder / name).is_dir() else [folder / name])
    ]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.is_file()}


RESULTS = ("checkpoints/best.safetensors", "metrics.json", "explain", "attention.npz", "experts.json")


def test_a_run_is_killed_by_its_time_limit_requeued_finished_and_explained_by_an_array(
    cluster: None, tmp_path: Path
) -> None:
    """Two minutes per start, and the first one hangs after its first checkpoint, as on a disk that does not answer:
    Slurm itself ends it for its time limit, and the next one goes on. Every byte is that of an unbroken run by hand."""
    config = str(ROOT / "configs" / "quickstart.yaml")
    line = ["explain", config, "name=r", *TINY, "train.epochs=20"]
    numbers = submit(*line, "--array", "2", "--time", "2", "--warn", "60", "--runs", str(tmp_path))
    assert list(numbers) == ["prepare", "shards", "explain"]
    run = tmp_path / "r"
    wait_for((run / "checkpoints" / "last.pt").exists, run)
    with hanging(process(numbers["prepare"])) as number:
        hepx(*line, "--runs", str(tmp_path / "alone"))
        wait_for(lambda: warned(number), run)
    wait_for(lambda: ended(numbers["explain"]), run)
    logs = {path.name: path.read_text() for path in (run / "jobs" / "001").glob("*.log")}
    assert job(numbers["explain"])["JobState"] == "COMPLETED", logs
    assert int(job(numbers["prepare"])["Restarts"]) >= 1
    (train,) = [text for name, text in logs.items() if name.startswith("prepare")]
    assert "stopped by SIGUSR1" in train
    assert "training goes on" in train
    assert len([name for name in logs if name.startswith("shards")]) == 2
    assert "explain/shards" not in str(list((run / "explain").iterdir()))
    assert content(run, *RESULTS) == content(tmp_path / "alone" / "r", *RESULTS)


def process(number: str) -> int:
    """The process of hepx in a job: of all that srun has started there, the one that runs Python."""
    for line in ask("scontrol", "listpids", number).splitlines()[1:]:
        found = line.split()[0]
        command = Path("/proc", found, "cmdline").read_bytes().split(b"\0")
        if Path(os.fsdecode(command[0])).name == Path(sys.executable).name:
            return int(found)
    raise AssertionError(f"no process of hepx in job {number}")


@contextmanager
def hanging(number: int) -> Iterator[int]:
    """A process that stands still; what is sent to it waits."""
    os.kill(number, signal.SIGSTOP)
    try:
        yield number
    finally:
        with suppress(ProcessLookupError):  # some Slurm wakes what it tells
            os.kill(number, signal.SIGCONT)


def warned(number: int) -> bool:
    """Whether SIGUSR1 waits for a process, or has ended it."""
    try:
        status = Path("/proc", str(number), "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    waiting = int(dict(re.findall(r"^(\w+):\s+(\w+)$", status, re.MULTILINE))["ShdPnd"], 16)
    return bool(waiting & 1 << signal.SIGUSR1 - 1)


def test_processes_that_train_together_are_requeued_but_not_taken_back(cluster: None, tmp_path: Path) -> None:
    """Two processes, as for two GPUs: srun tells both, both end with 85 after one checkpoint, and both go on. Then the
    user takes the job back: scancel sends SIGTERM, hepx writes its checkpoint, but the job must not come again."""
    config, run = str(ROOT / "configs" / "quickstart.yaml"), tmp_path / "p"
    line = ["train", config, "name=p", "device=cpu", *TINY, "train.epochs=100000", "--runs", str(tmp_path)]
    numbers = submit(*line, "--gpus", "2")
    assert list(numbers) == ["convert", "train"]
    wait_for((run / "checkpoints" / "last.pt").exists, run)
    ask("scancel", "--signal=USR1", numbers["train"])
    wait_for(lambda: "training goes on" in log(run), run)
    assert log(run).count("stopped by SIGUSR1; checkpoint written") == 2
    assert log(run).count("training goes on") == 1
    ask("scancel", numbers["train"])
    wait_for(lambda: ended(numbers["train"]), run)
    time.sleep(2)
    assert job(numbers["train"])["JobState"] == "CANCELLED"
    assert job(numbers["train"])["Restarts"] == "1"


def test_a_failed_job_is_not_requeued_and_what_waits_for_it_is_given_up(cluster: None, tmp_path: Path) -> None:
    """The data are gone when the job starts: one try, its sentence in the log, and no job hangs in the queue."""
    data = tmp_path / "data"
    shutil.copytree(ROOT / "data", data)
    changes = [f"data.samples.{name}.files={data}/{name}.root" for name in ("signal", "ttbar", "singletop")]
    config = str(ROOT / "configs" / "quickstart.yaml")
    ask("scontrol", "update", "PartitionName=tests", "State=DOWN")
    numbers = submit("run", config, "name=f", *changes, "--array", "2", "--runs", str(tmp_path))
    (data / "ttbar.root").unlink()
    ask("scontrol", "update", "PartitionName=tests", "State=UP")
    wait_for(lambda: all(ended(number) for number in numbers.values()), tmp_path)
    assert job(numbers["evaluate"])["ExitCode"] == "3:0"
    assert job(numbers["evaluate"])["Restarts"] == "0"
    assert job(numbers["report"])["JobState"] == "CANCELLED"
    assert "ttbar.root" in next((tmp_path / "f" / "jobs" / "001").glob("evaluate-*.log")).read_text()


@pytest.mark.skipif(find_spec("dask_jobqueue") is None, reason="dask_jobqueue is not installed")
def test_dask_starts_its_workers_as_slurm_jobs(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs converted by two jobs of Slurm are, to the byte, those converted here."""
    monkeypatch.setenv("DASK_JOBQUEUE__SLURM__MEMORY", "1GB")
    monkeypatch.setenv("DASK_JOBQUEUE__SLURM__LOG_DIRECTORY", str(tmp_path))
    config, runs = str(ROOT / "configs" / "quickstart.yaml"), str(tmp_path)
    hepx("convert", config, TINY[5], "name=here", "--runs", runs)
    hepx("convert", config, TINY[5], "name=there", "--runs", runs, "--dask", "slurm", "--workers", "2")
    assert len(list(tmp_path.glob("*.out"))) >= 1  # what the workers said, in the jobs of Slurm
    assert content(tmp_path / "there", "dataset") == content(tmp_path / "here", "dataset")


def log(run: Path) -> str:
    """What the jobs of a run have said so far."""
    return "".join(path.read_text() for path in (run / "jobs").rglob("*.log"))
