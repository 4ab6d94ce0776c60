"""The jobs of `hepx submit`: what they ask for, what they do when they are stopped, and that a mistake is found early.

The scripts are run with stand-ins for the programs of the batch system; tests/test_slurm.py has a real Slurm.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hepx import batch, cli
from hepx.batch import SYSTEMS, BatchSystem, Job, Resources, plan, read_line, read_seeds
from hepx.cli import jobs as line_of_jobs
from hepx.config import parse
from hepx.errors import ConfigError

ROOT = Path(__file__).parent.parent
CONFIG = "configs/quickstart.yaml"


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def jobs_of(system: str, verb: str, *line: str, shards: int = 0, seeds: str = "", **wanted: object) -> "Submission":
    resources = parse(Resources, wanted, "hepx submit")
    checked = read_line(verb, line, line_of_jobs._values(verb, list(line)))
    jobs = plan(checked, shards, read_seeds(seeds), resources.processes)
    queue = SYSTEMS[system].of(checked, resources, "hepx submit …")
    queue.check(jobs)
    return Submission(queue, jobs)


class Submission:
    def __init__(self, queue: BatchSystem, jobs: list[Job]) -> None:
        self.queue, self.jobs = queue, jobs
        self.scripts = {script.name: script.text for script in queue.scripts(jobs)}

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """What the jobs do, one after the other."""
        return [job.arguments for job in self.jobs]

    def directives(self, name: str) -> dict[str, str]:
        """The #SBATCH lines of a script."""
        return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", self.scripts[f"{name}.sh"], re.MULTILINE))


def test_one_line_is_one_job() -> None:
    found = jobs_of("slurm", "train", CONFIG, "train.epochs=5", gpus=1, time="2:00:00", partition="gpu", account="us")
    assert found.lines == [("train", CONFIG, "train.epochs=5")]
    wanted = {
        "time": "2:00:00",
        "partition": "gpu",
        "account": "us",
        "gpus-per-node": "1",
        "nodes": "1",
        "mem": "8G",
    }
    assert wanted.items() <= found.directives("train").items()
    assert found.directives("train")["signal"] == "USR1@120"
    assert "requeue" in found.directives("train")
    assert sys.executable in found.scripts["train.sh"]
    assert found.directives("train")["output"].startswith(str(ROOT / "runs" / "quickstart" / "jobs"))
    assert "gpus-per-node" not in jobs_of("slurm", "train", CONFIG).directives("train")
    assert "time" not in jobs_of("slurm", "train", CONFIG).directives("train")


def test_shards_become_an_array_between_what_comes_before_and_the_merge() -> None:
    found = jobs_of("slurm", "run", CONFIG, "seed=3", shards=8, gpus=1)
    run = "runs/quickstart"
    shards = ("explain", run, "--shard", "{task}/8")
    assert found.lines == [("evaluate", CONFIG, "seed=3"), shards, ("report", run)]
    assert found.directives("shards")["array"] == "1,2,3,4,5,6,7,8"
    assert found.directives("shards")["output"].endswith("%A_%a.log")
    assert 'explain runs/quickstart --shard "$task"/8' in found.scripts["shards.sh"]
    assert "gpus-per-node" not in found.directives("report")
    commands = found.queue.commands(found.jobs)
    assert commands["shards"][2] == "--dependency=afterok:{evaluate}"
    assert commands["report"][2] == "--dependency=afterok:{shards}"
    alone = jobs_of("slurm", "explain", CONFIG, "--method", "owen", "seed=3", shards=2)
    assert alone.lines[0] == ("explain", CONFIG, "--method", "owen", "seed=3", "--prepare")
    assert [line[0] for line in alone.lines] == ["explain", "explain", "explain"]


def test_the_runs_of_a_sweep_and_the_parts_of_a_sample_are_shared_out() -> None:
    sweep = jobs_of("slurm", "sweep", "configs/models.yaml", shards=3)
    shards = ("sweep", "configs/models.yaml", "--shard", "{task}/3")
    assert sweep.lines == [shards, ("sweep", "configs/models.yaml")]
    assert str(ROOT / "runs" / "models" / "jobs") in sweep.directives("shards")["output"]
    sample = jobs_of("slurm", "simulate", "ttbar=1000", shards=20)
    assert sample.lines == [("simulate", "ttbar=1000", "--shard", "{task}/20")]


def test_seeds_become_an_array_of_runs_with_names_of_their_own() -> None:
    found = jobs_of("slurm", "evaluate", CONFIG, seeds="1-3,7")
    assert found.lines == [("evaluate", CONFIG, "seed={task}", "name=quickstart-seed{task}")]
    assert found.directives("evaluate")["array"] == "1,2,3,7"
    assert 'seed="$task" name=quickstart-seed"$task"' in found.scripts["evaluate.sh"]
    chain = jobs_of("slurm", "evaluate", CONFIG, seeds="1-3", gpus=2)
    assert chain.queue.commands(chain.jobs)["train"][2] == "--dependency=aftercorr:{convert}"


def test_several_gpus_train_and_one_does_the_rest() -> None:
    found = jobs_of("slurm", "run", CONFIG, gpus=4, nodes=2, cpus=6)
    assert [line[0] for line in found.lines] == ["convert", "train", "run"]
    explain = jobs_of("slurm", "explain", CONFIG, "seed=3", "--method", "owen", "--runs", "r", gpus=2, shards=3)
    assert explain.lines[:2] == [(verb, CONFIG, "seed=3", "--runs", "r") for verb in ("convert", "train")]
    assert len(explain.lines) == 5
    train, rest = found.directives("train"), found.directives("run")
    assert (train["nodes"], train["ntasks-per-node"], train["gpus-per-node"]) == ("2", "4", "4")
    assert (rest["nodes"], rest["ntasks-per-node"], rest["gpus-per-node"]) == ("1", "1", "1")
    assert "gpus-per-node" not in found.directives("convert")
    assert 'WORLD_SIZE="$SLURM_NTASKS"' in found.scripts["train.sh"]
    assert "WORLD_SIZE" not in found.scripts["run.sh"]
    condor = jobs_of("htcondor", "train", CONFIG, gpus=4).scripts
    assert "torch.distributed.run --standalone --nproc-per-node=4 -m hepx.cli train" in condor["train.sh"]
    assert "request_gpus = 4" in condor["train.sub"]
    assert "request_gpus" not in condor["convert.sub"]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("wanted", [{}, {"gpus": 2, "time": "1-0"}, {"shards": 3, "time": "30"}, {"seeds": "1,2"}])
def test_scripts_are_bash_and_quote_what_the_user_wrote(system: str, wanted: dict[str, object]) -> None:
    """Blanks, quotes, dollars and a text like a command reach hepx as they were."""
    text = "name=a $(touch /tmp/x) 'b' \"c\""
    found = jobs_of(system, "run", CONFIG, text, setup=("module load cuda",), **wanted)  # type: ignore[arg-type]
    for name, script in found.scripts.items():
        if name.endswith(".sh"):
            assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0, script
            assert "\nmodule load cuda\n" in script
    (word,) = re.findall(r"-m hepx.cli \w+ configs/quickstart.yaml (.*)", next(iter(_shell(found).values())))[:1]
    word = word.removesuffix(" &")
    shown = subprocess.run(["bash", "-c", f"task=7; printf '%s|' {word}"], capture_output=True, text=True, check=True)
    assert shown.stdout.split("|")[0] == text


def _shell(found: Submission) -> dict[str, str]:
    return {name: script for name, script in found.scripts.items() if name.endswith(".sh")}


@pytest.mark.parametrize(
    ("system", "verb", "line", "wanted", "message"),
    [
        ("slurm", "trian", [CONFIG], {}, "unknown verb 'trian'; closest: 'train'"),
        ("slurm", "train", [CONFIG, "--gpu", "1"], {}, "hepx train: No such option: --gpu"),
        ("slurm", "train", [CONFIG, "train.epoch=3"], {}, "unknown key 'train.epoch'; closest: 'epochs'"),
        ("slurm", "train", ["none.yaml"], {}, "cannot read 'none.yaml'"),
        ("slurm", "train", [CONFIG], {"time": "2 h"}, "expected a time such as 30"),
        ("slurm", "train", [CONFIG], {"time": "1"}, "not longer than the 120 s that are kept for stopping"),
        ("slurm", "train", [CONFIG], {"memory": "8 gigs"}, "memory"),
        ("slurm", "train", [CONFIG], {"shards": 4}, "--array shares out explanations"),
        ("slurm", "run", [CONFIG], {"shards": 4, "seeds": "1-3"}, "give --array or --seeds, not both"),
        ("slurm", "run", [CONFIG], {"seeds": "3-1"}, "expected numbers such as 1-5"),
        ("slurm", "run", [CONFIG], {"seeds": "1,1"}, "a seed comes twice"),
        ("slurm", "explain", [CONFIG, "--shard", "1/2"], {}, "give --array N instead of --shard"),
        ("slurm", "inspect", ["data/ttbar.root"], {}, "it is not a job"),
        ("slurm", "train", [CONFIG], {"flavour": "workday"}, "--flavour is for HTCondor"),
        ("slurm", "train", [CONFIG], {"transfer": True}, "--transfer is for HTCondor"),
        ("htcondor", "train", [CONFIG], {"flavour": "workdya"}, "unknown --flavour 'workdya'; closest: 'workday'"),
        ("htcondor", "train", [CONFIG], {"flavour": "workday", "time": "60"}, "give --time or --flavour"),
        ("htcondor", "train", [CONFIG], {"nodes": 2}, "runs on one machine"),
        ("htcondor", "run", [CONFIG], {"shards": 2, "transfer": True}, "need a shared file system"),
        ("htcondor", "run", [CONFIG, "--runs", "/scratch"], {"transfer": True}, "relative to where you are"),
    ],
)
def test_mistakes_are_found_before_anything_waits_in_a_queue(
    system: str, verb: str, line: list[str], wanted: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        jobs_of(system, verb, *line, **wanted)  # type: ignore[arg-type]


def test_dry_run_prints_and_writes_nothing(tmp_path: Path) -> None:
    line = ["submit", "slurm", "run", CONFIG, "--runs", str(tmp_path / "r"), "--array", "2", "--dry-run"]
    done = CliRunner().invoke(cli.app, line)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("#!/bin/bash") == 3
    assert "evaluate=$(sbatch --parsable evaluate.sh)\n" in done.stdout
    assert "shards=$(sbatch --parsable --dependency=afterok:$evaluate " in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a stand-in for a program first on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def add(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)

    return add


def run_script(text: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "job.sh").write_text(text)
    return subprocess.run(
        ["bash", str(folder / "job.sh"), "0"], capture_output=True, text=True, check=False, timeout=30,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(("code", "restarts", "ends"), [(85, "3", 0), (85, "50", 85), (0, "0", 0), (4, "0", 4)])
def test_a_stopped_slurm_job_requeues_itself_and_a_failed_one_does_not(
    code: int, restarts: str, ends: int, tmp_path: Path, programs: Callable[[str, str], None]
) -> None:
    programs("srun", f"exit {code}")
    programs("scontrol", f'echo "$*" > {tmp_path}/asked')
    script = jobs_of("slurm", "train", CONFIG).scripts["train.sh"]
    done = run_script(script, tmp_path, SLURM_JOB_ID="77", SLURM_RESTART_COUNT=restarts, SLURM_CPUS_PER_TASK="2")
    assert done.returncode == ends
    assert (tmp_path / "asked").exists() == (code == 85 and ends == 0)
    if (tmp_path / "asked").exists():
        assert (tmp_path / "asked").read_text() == "requeue 77\n"
    task = jobs_of("slurm", "explain", CONFIG, shards=3).scripts["shards.sh"]
    one = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "2"}  # the task whose number is that of the whole array
    run_script(task, tmp_path, SLURM_JOB_ID="77", SLURM_RESTART_COUNT=restarts, SLURM_CPUS_PER_TASK="2", **one)
    if (tmp_path / "asked").exists():
        assert (tmp_path / "asked").read_text() == "requeue 77_2\n"


@pytest.mark.parametrize("code", [85, 1])
def test_a_job_of_htcondor_is_told_in_time(
    code: int, tmp_path: Path, programs: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After limit − warn it gets SIGTERM, may write its checkpoint, and ends with 85; so too when it is preempted, and
    under torchrun, which ends with 1 then."""
    programs("hepx-python", f"trap 'echo checkpoint >> {tmp_path}/log; exit {code}' TERM; while :; do sleep 0.05; done")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "hepx-python"))
    script = jobs_of("htcondor", "train", CONFIG, time="0:11", warn=10).scripts["train.sh"]
    assert run_script(script, tmp_path).returncode == 85
    assert (tmp_path / "log").read_text() == "checkpoint\n"
    endless = jobs_of("htcondor", "train", CONFIG).scripts["train.sh"]
    (tmp_path / "job.sh").write_text(endless)
    process = subprocess.Popen(["bash", str(tmp_path / "job.sh")])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    assert process.wait(10) == 85
    assert (tmp_path / "log").read_text() == "checkpoint\ncheckpoint\n"


@pytest.mark.parametrize("code", [0, 4])
def test_a_job_of_htcondor_that_ends_by_itself_says_how(
    code: int, tmp_path: Path, programs: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs("hepx-python", f"exit {code}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "hepx-python"))
    assert run_script(jobs_of("htcondor", "train", CONFIG, time="60").scripts["train.sh"], tmp_path).returncode == code


@pytest.fixture
def htcondor(monkeypatch: pytest.MonkeyPatch) -> object:
    """HTCondor's own reader of submit descriptions."""
    monkeypatch.setenv("CONDOR_CONFIG", os.devnull)
    return pytest.importorskip("htcondor", reason="the Python bindings of HTCondor are not installed")


def test_htcondor_reads_its_descriptions(htcondor: object, tmp_path: Path) -> None:
    """Oracle: the attributes of the jobs, as HTCondor itself makes them of the description."""
    wanted = {"gpus": 1, "time": "3:00:00", "account": "group_atlas", "directives": ('+Queue = "gpu"',)}
    found = jobs_of("htcondor", "run", CONFIG, "--runs", str(tmp_path), shards=4, **wanted)
    ads = {name: list(_submit(htcondor, found, f"{name}.sub")) for name in ("evaluate", "shards", "report")}
    assert [len(jobs) for jobs in ads.values()] == [1, 4, 1]
    first = ads["evaluate"][0]
    assert (first["RequestCpus"], first["RequestMemory"], first["RequestGPUs"]) == (2, 8192, 1)
    assert (first["JobFlavour"], first["AcctGroup"], first["Queue"]) == ("workday", "group_atlas", "gpu")
    assert first["ShouldTransferFiles"] == "NO"
    assert [job["Args"] for job in ads["shards"]] == ["0", "1", "2", "3"]
    assert len({job["Out"] for job in ads["shards"]}) == 4
    assert "RequestGPUs" not in ads["report"][0]
    dag = found.scripts["hepx.dag"].splitlines()
    assert dag[3:] == ["PARENT evaluate CHILD shards", "PARENT shards CHILD report"]


@pytest.mark.parametrize(
    ("ended", "stays", "held"),
    [
        ({"ExitBySignal": False, "ExitCode": 85, "NumJobStarts": 1}, True, False),
        ({"ExitBySignal": False, "ExitCode": 85, "NumJobStarts": 51}, False, False),
        ({"ExitBySignal": False, "ExitCode": 0, "NumJobStarts": 1}, False, False),
        ({"ExitBySignal": False, "ExitCode": 4, "NumJobStarts": 1}, False, True),
        ({"ExitBySignal": True, "ExitSignal": 9, "NumJobStarts": 1}, True, True),
    ],
)
def test_htcondor_queues_a_stopped_job_again_and_holds_a_failed_one(
    ended: dict[str, object], stays: bool, held: bool, htcondor: object
) -> None:
    (job,) = _submit(htcondor, jobs_of("htcondor", "train", CONFIG), "train.sub")
    for name, value in ended.items():
        job[name] = value
    assert job.eval("OnExitRemove") is not stays
    assert job.eval("OnExitHold") is held


def test_htcondor_takes_the_files_along_if_asked_to(htcondor: object) -> None:
    found = jobs_of("htcondor", "run", CONFIG, transfer=True)
    (job,) = _submit(htcondor, found, "run.sub")
    assert job["ShouldTransferFiles"] == "YES"
    assert set(job["TransferInput"].split(",")) >= {CONFIG, "data/signal.root", "data/ttbar.root"}
    assert job["TransferOutput"] == job["TransferCheckpoint"] == "runs/quickstart"
    assert job["SuccessCheckpointExitCode"] == 85
    assert "\ncd " not in found.scripts["run.sh"]


def _submit(htcondor: object, found: Submission, name: str) -> object:
    """The jobs of a description; the scripts must be there for HTCondor to accept it."""
    found.queue.folder.mkdir(parents=True, exist_ok=True)
    (found.queue.folder / f"{name.removesuffix('.sub')}.sh").write_text("")
    return htcondor.Submit(found.scripts[name]).jobs()  # type: ignore[attr-defined]


def test_jobs_are_handed_in_one_after_the_other(tmp_path: Path, programs: Callable[[str, str], None]) -> None:
    """Each waits for the number of the one before; what was handed in is taken back if a later one is refused."""
    programs("sbatch", f'echo "$@" >> {tmp_path}/asked; grep -c . {tmp_path}/asked')
    programs("scancel", f'echo "$@" > {tmp_path}/cancelled')
    found = jobs_of("slurm", "run", CONFIG, "--runs", str(tmp_path / "runs"), shards=2)
    assert found.queue.submit(found.jobs) == {"evaluate": "1", "shards": "2", "report": "3"}
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[1] for line in asked[1:]] == ["--dependency=afterok:1", "--dependency=afterok:2"]
    folder = tmp_path / "runs" / "quickstart" / "jobs" / "001"
    assert {path.name for path in folder.iterdir()} == {"evaluate.sh", "shards.sh", "report.sh"}
    once = tmp_path / "once"
    programs("sbatch", f"[ -e {once} ] && {{ echo no such account >&2; exit 1; }}; touch {once}; echo 5")
    again = jobs_of("slurm", "run", CONFIG, "--runs", str(tmp_path / "runs"), shards=2)
    with pytest.raises(ConfigError, match="sbatch refused the job 'shards': no such account"):
        again.queue.submit(again.jobs)
    assert again.queue.folder.name == "002"
    assert (tmp_path / "cancelled").read_text() == "5\n"


def test_without_a_batch_system_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = jobs_of("htcondor", "run", CONFIG, "--runs", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no condor_submit on the PATH here"):
        found.queue.submit(found.jobs)
    assert not list(tmp_path.iterdir())


def test_every_batch_system_is_offered() -> None:
    assert set(batch.SYSTEMS) == {"slurm", "htcondor"}
