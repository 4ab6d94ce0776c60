"""The command line as a user meets it: the whole chain on a small run, skipping, resuming, sentences and exit codes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import uproot
from safetensors.torch import load_file
from typer.testing import CliRunner

from hepx import metrics
from hepx.cli import app, main
from hepx.config import load, parse, write_yaml
from hepx.errors import ConfigError, HepxError, ResultError
from hepx.report import FIGURES
from hepx.results import Explanation
from hepx.results_network import AttentionMap, ExpertReport
from hepx.run import Run, RunSettings
from hepx.schemas import load_schema
from hepx.train import load_weights

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "quickstart.yaml"
LOGS = ("log.txt", "stages.json", "provenance.json", ".lock")
SMALL = [
    "name=small",
    "data.select=met > 200",
    "train.epochs=2",
    "model.dim=16",
    "model.expert_dim=8",
    "explain.0.draws=2",
    "explain.0.events=60",
    "explain.1.events=20",
    "explain.1.draws=2",
    "explain.1.max_completeness_error=1.0",
    "explain.2.events=60",
    "explain.2.points=5",
    "insides.events=500",
    "insides.nulls={untrained: 2, shuffled: 1, epochs: 1}",
    "insides.representation=false",
]


def hepx(*arguments: str, cwd: Path = ROOT, **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hepx.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, **options)  # type: ignore[call-overload, no-any-return]


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in this process: the imports of a new one would take most of the time."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["hepx", *arguments])
        monkeypatch.setattr(logging.getLogger("hepx"), "handlers", [])  # `main` puts its own there
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(arguments, ended.value.code, said.out, said.err)

    return call


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def small(runs: Path) -> Path:
    """A finished small run."""
    done = hepx("run", str(CONFIG), *SMALL, "--runs", str(runs))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 6
    assert lines[-1].endswith("report.html")
    return runs / "small"


def test_run_folder_holds_every_result(small: Path) -> None:
    wanted = [
        "config.yaml",
        "provenance.json",
        "metrics.json",
        "history.csv",
        "history.jsonl",
        "scores.parquet",
        "experts.json",
    ]
    wanted += ["attention.npz", "report.html", "log.txt", "checkpoints/best.safetensors", "explain/shapley.npz"]
    wanted += ["explain/integrated_gradients.npz", "explain/response_mbb.npz", "explain/links.json"]
    assert [name for name in wanted if not (small / name).exists()] == []
    assert not list(small.rglob(".*.npz"))


def test_explanations_are_judged_and_labels_planted_into_the_events_of_a_run(
    small: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a copy: the judgement is in validate.json and on the page, and found again; labels of a sum are explained."""
    own = {
        name: replace(one, draw=lambda saved: {})
        for name, one in FIGURES.items()
        if name not in ("validation", "agreement")
    }
    monkeypatch.setattr("hepx.report.figures.FIGURES", FIGURES | own)
    copy = shutil.copytree(small, runs / "judged")
    line = ["validate", str(copy), "--explained", "6", "--method", "saliency"]
    inside = CliRunner()  # in this process: the imports of new ones would take most of the time
    done = inside.invoke(app, line)
    assert done.exit_code == 0, done.output
    found = json.loads((copy / "validate.json").read_text())
    assert {"shapley", "integrated_gradients", "saliency"} == set(found["methods"])
    assert found["methods"]["shapley"]["completeness"]["value"] < 1e-4
    assert found["methods"]["saliency"]["completeness"] is None
    assert "Do the objects named first carry the score?" in (copy / "report.html").read_text()
    mixed = inside.invoke(app, [*line, "--mechanism", "mbb"])
    assert "takes --method, --explained and --beside only" in str(mixed.exception)
    sizes = ["--train-events", "500", "--test-events", "100", "--explained", "20", "--draws", "2"]
    line = ["validate", "planted", str(copy), "--mechanism", "unit_sum", "--method", "shapley", *sizes]
    planted = inside.invoke(app, line)
    assert planted.exit_code == 0, planted.output
    (row,) = json.loads((copy / "planted" / "planted.json").read_text())["rows"]
    assert (row["mechanism"], row["method"], row["verdict"]) == ("unit_sum", "shapley", "pass")
    assert row["measures"]["exactness"] < 1e-5
    assert (copy / "planted" / "planted.html").exists()


def test_metrics_can_be_recomputed_from_the_scores(small: Path) -> None:
    table = pq.read_table(small / "scores.parquet").to_pydict()
    y, score, weight = (np.array(table[name]) for name in ("label", "score", "weight"))
    found = json.loads((small / "metrics.json").read_text())
    assert found["auc"]["value"] == pytest.approx(metrics.auc(y, score, weight), abs=1e-12)
    assert found["auc"]["value"] > 0.6
    row = found["references"][0]
    expected = metrics.auc(y, np.array(table[row["column"]]), weight)
    assert row["auc"]["value"] == pytest.approx(expected, abs=1e-12)
    assert expected > 0.9  # the trees see the same events


def test_results_carry_their_provenance(small: Path) -> None:
    shapley = Explanation.load(small / "explain" / "shapley.npz")
    experts = ExpertReport.load_report(small / "experts.json")
    attention = AttentionMap.load(small / "attention.npz")
    data = json.loads((small / "dataset" / "dataset.json").read_text())
    for provenance in (shapley.provenance, experts.provenance, attention.provenance):
        assert provenance.data == data["recipe"]
        assert provenance.checkpoint == shapley.provenance.checkpoint
        assert provenance.seed == 42
    assert shapley.provenance.settings["draws"] == 2
    np.testing.assert_allclose(shapley.values.sum(1), shapley.score - shapley.baseline_score, atol=1e-4)
    with np.load(small / "explain" / "shapley.npz") as file:
        names = {"values", "mask", "node_type", "event_id", "weight", "score", "baseline_score", "interactions"}
        assert names <= set(file.files)


def test_finished_stages_are_skipped_and_changed_ones_repeated(small: Path, inside: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*") if path.suffix in {".npz", ".safetensors"}}
    again = inside("run", str(small))
    assert again.returncode == 0, again.stderr
    assert "train: done already" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (small / "report.html").exists()
    changed = inside("explain", str(small), "explain.0.draws=3")
    assert changed.returncode == 0, changed.stderr
    assert "train: done already" in changed.stderr
    assert not (small / "report.html").exists()  # it told of the explanations before
    assert not (small / "figures").exists()
    assert Explanation.load(small / "explain" / "shapley.npz").provenance.settings["draws"] == 3


def test_a_change_that_is_refused_loses_nothing(small: Path, runs: Path) -> None:
    """Files, observables and sources that are not there: every result stays, and the next command works as before (data
    that were converted anew before the refusal, to the same bytes as then)."""
    copy = shutil.copytree(small, runs / "refused")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name not in LOGS}
    inside = CliRunner()
    for change in (
        ["data.samples.signal.files=data/none.root"],
        ["data.select=n_lepton == 7"],
        ["evaluate.points=[mass]"],
        ["data.select=met > 250", "model.features=[log_ptt]"],
        ["--from", str(runs / "none")],
    ):
        refused = inside.invoke(app, ["train" if "--from" in change else "evaluate", str(copy), *change])
        assert isinstance(refused.exception, HepxError), change
        results = {path: content for path, content in before.items() if copy / "dataset" not in path.parents}
        assert [path for path, content in results.items() if not path.exists() or path.read_bytes() != content] == []
    again = inside.invoke(app, ["evaluate", str(copy)])
    assert again.exit_code == 0, again.exception
    assert [path for path, content in before.items() if not path.exists() or path.read_bytes() != content] == []


def test_what_is_finished_is_not_taken_back(small: Path, runs: Path) -> None:
    """A training with other settings ends well and an explanation after it is refused: the training stays."""
    copy, inside = shutil.copytree(small, runs / "finished"), CliRunner()
    change = ["train.epochs=1", "explain.1.steps=2", "explain.1.max_completeness_error=1e-6"]
    refused = inside.invoke(app, ["explain", str(copy), *change])
    assert isinstance(refused.exception, ResultError)
    assert load(copy / "config.yaml")["train"]["epochs"] == 1
    assert len((copy / "history.csv").read_text().splitlines()) == 2  # head, one epoch
    assert (copy / "metrics.json").read_bytes() != (small / "metrics.json").read_bytes()
    assert not (copy / ".before").exists()
    other = shutil.copytree(small, runs / "other")
    draws = Explanation.load(other / "explain" / "shapley.npz").provenance.settings["draws"]
    changed = inside.invoke(app, ["explain", str(other), "explain.0.draws=5", *change[1:]])
    assert isinstance(changed.exception, ResultError)
    again = inside.invoke(app, ["explain", str(other)])
    assert again.exit_code == 0, again.exception
    assert Explanation.load(other / "explain" / "shapley.npz").provenance.settings["draws"] == draws


def test_a_damaged_file_is_named(small: Path, tmp_path: Path) -> None:
    """Cut short, as by a full disk: a sentence, not a traceback."""
    model = Run.from_config(small, [], small.parent).model(trained=False)
    reads: dict[str, Callable[[Path], object]] = {
        "explain/shapley.npz": Explanation.load,
        "checkpoints/best.safetensors": lambda path: load_weights(model, path.parent),
    }
    for name, read in reads.items():
        path = tmp_path / Path(name).name
        path.write_bytes((small / name).read_bytes()[:2000])
        with pytest.raises(ResultError, match=rf"{path.name}' is damaged"):
            read(path)


def test_same_seed_twice_gives_identical_metrics(small: Path, runs: Path, inside: Command) -> None:
    again = hepx("evaluate", str(CONFIG), *SMALL, "name=again", "--runs", str(runs))
    assert again.returncode == 0, again.stderr
    assert (runs / "again" / "metrics.json").read_bytes() == (small / "metrics.json").read_bytes()
    third = inside("train", str(CONFIG), *SMALL, "name=third", "seed=43", "--runs", str(runs))
    assert third.returncode == 0, third.stderr
    assert (runs / "third" / "history.csv").read_bytes() != (small / "history.csv").read_bytes()
    same = inside("experts", str(small), str(runs / "again"))
    assert same.returncode == 2
    assert "two of the run folders hold the same training" in same.stderr
    other_seed = inside("experts", str(small), str(runs / "third"))
    assert "the number of an expert means nothing in another training" in other_seed.stdout
    alone = inside("experts", str(small))
    assert alone.returncode != 0
    assert "at least two run folders are needed; got 1" in alone.stderr


def test_killed_training_goes_on_to_the_same_result(runs: Path, small: Path) -> None:
    """kill -9 before the first checkpoint and in the middle of the training: no half file, and the last start ends like
    an unbroken run."""
    changes = [change if not change.startswith("name=") else "name=killed" for change in SMALL]
    command = [sys.executable, "-m", "hepx.cli", "train", str(CONFIG), *changes, "--runs", str(runs)]
    environment, said = {**os.environ, "OMP_NUM_THREADS": "1"}, runs / "said.txt"
    assert hepx(*command[3:], "--resume").returncode == 2  # there is nothing to go on with
    for resume, mark in (([], "config.yaml"), (["--resume"], "checkpoints/last.pt")):
        with said.open("w") as stderr:
            process = subprocess.Popen([*command, *resume], cwd=ROOT, stderr=stderr, env=environment)
        while not (runs / "killed" / mark).exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert "has no checkpoint yet; its training starts from the beginning" in said.read_text()
    done = hepx(*command[3:], "--resume")
    assert done.returncode == 0, done.stderr
    assert "training goes on after epoch 1" in done.stderr
    best = Path("checkpoints", "best.safetensors")
    assert (runs / "killed" / best).read_bytes() == (small / best).read_bytes()
    assert (runs / "killed" / "history.csv").read_bytes() == (small / "history.csv").read_bytes()


@pytest.mark.slow
def test_a_run_is_fine_tuned(small: Path, runs: Path, tmp_path: Path, inside: Command) -> None:
    """Its events are refused where they would test the new run; its weights are named; --resume finds it finished."""
    source = tmp_path / "source"
    shutil.copytree(small, source, ignore=shutil.ignore_patterns("explain", "figures"))
    changes = [change if not change.startswith("name=") else "name=tuned" for change in SMALL]
    arguments = [str(CONFIG), *changes, "train.trainable_layers=1", "--runs", str(runs)]
    done = inside("train", *arguments, "--from", str(source))
    assert done.returncode == 0, done.stderr
    assert "trained: head; all else stays as it is" in done.stderr
    before, after = (load_file(folder / "checkpoints" / "best.safetensors") for folder in (source, runs / "tuned"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("head.") for name in moved)
    provenance = json.loads((runs / "tuned" / "provenance.json").read_text())
    digest = hashlib.sha256((source / "checkpoints" / "best.safetensors").read_bytes()).hexdigest()
    assert provenance["source"] == {"run": str(source), "checkpoint": digest[:16]}
    shutil.rmtree(source)  # it was noted, so the run goes on without it
    again = inside("train", str(runs / "tuned"), "--resume")
    assert again.returncode == 0, again.stderr
    assert "train: done already" in again.stderr
    resplit = inside(
        "evaluate",
        str(CONFIG),
        *changes[1:],
        "name=resplit",
        f"train.from={small}",
        "--runs",
        str(runs),
        "data.split.fractions=[0.2, 0.2, 0.6]",
    )
    assert resplit.returncode == 3
    assert "or one it was fine-tuned from" in resplit.stderr
    other = inside("train", str(CONFIG), *changes[1:], "name=other", "model.dim=32", f"train.from={small}")
    assert other.returncode == 2
    assert "has dim 16, that of this config 32" in other.stderr


@pytest.mark.parametrize(
    ("number", "code", "where", "message"),
    [
        (signal.SIGINT, 130, "checkpoints/last.pt", "stopped. The same command goes on after the last checkpoint"),
        (signal.SIGTERM, 85, "checkpoints/last.pt", "stopped by SIGTERM; checkpoint written; start the same command"),
        (signal.SIGUSR1, 85, ".lock", "stopped by SIGUSR1; what is finished is kept; start the same command again"),
    ],
)
def test_ctrl_c_and_signals_end_with_a_sentence(
    number: signal.Signals, code: int, where: str, message: str, tmp_path: Path
) -> None:
    """In the training (with a checkpoint) as in the conversion; 85 asks the batch system to start it again."""
    changes = [change if not change.startswith("name=") else "name=stopped" for change in SMALL]
    command = [sys.executable, "-m", "hepx.cli", "train", str(CONFIG), *changes, "train.epochs=50"]
    # a shell starts background jobs with SIGINT ignored, and its children inherit that
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [*command, "--runs", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=listen
    )
    while not (tmp_path / "stopped" / where).exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, text = process.communicate()
    assert process.returncode == code, text
    assert message in text
    assert message in (tmp_path / "stopped" / "log.txt").read_text()
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "none.yaml"], 2, "cannot read 'none.yaml'"),
        (["run", str(CONFIG), "train.epoch=1"], 2, "unknown key 'train.epoch'; closest: 'epochs'"),
        (["run", str(CONFIG), "data.samples.signal.label=2"], 2, "the labels must be 0 (background) and 1 (signal)"),
        (["convert", str(CONFIG), "data.samples.signal.files=none.root"], 3, "no file matches 'none.root'"),
        (["convert", str(CONFIG), "data.select=met > 1e9"], 3, "the selection leaves no event"),
        (["convert", str(CONFIG), "data.select=met > "], 2, "is not valid"),
        (["convert", str(CONFIG), "data.schema=nano"], 2, "unknown schema 'nano'"),
        (["train", str(CONFIG), "device=cuda"], 2, "torch sees no GPU here"),
        (["train", str(CONFIG), "--resume"], 2, "--resume: "),
        (["train", str(CONFIG), "--from", "none"], 2, "'none' is not the folder of a run whose training is finished"),
        (["simulate", "ttbars"], 2, "ttbar"),
    ],
)
def test_mistakes_end_with_one_sentence(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    inside: Command,
) -> None:
    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    runs = [] if arguments[0] == "simulate" else ["--runs", str(tmp_path)]
    done = inside(*arguments, *runs)
    assert done.returncode == code, done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "closure.regions={peak: mbbb > 1}",
            "closure.regions.peak: selection 'mbbb > 1': unknown quantity 'mbbb'; closest",
        ),
        (
            "insides.regions={peak: met}",
            "insides.regions.peak: 'met' is a number, not a condition; for example met > 0",
        ),
        ("data.regions={peak: mbbb > 1}", "data.regions.peak: selection 'mbbb > 1': unknown quantity"),
        (
            "data.select=n_jets == 2",
            "data.select: selection 'n_jets == 2': unknown quantity 'n_jets'; closest: 'n_jet'",
        ),
        ("evaluate.points=[mass_charginos]", "evaluate.points: unknown observable 'mass_charginos'; closest"),
        ("model.features=[log_ptt]", "unknown node feature 'log_ptt'; closest: 'log_pt'"),
        (
            "explain.0={method: shapley, baseline: process, process: tbar}",
            "explain.0: baseline process 'tbar' is no sample",
        ),
        ("explain.0={method: shapley, near: [mett]}", "explain.0: unknown observable 'mett'; closest: 'met'"),
        (
            "graph.nodes=[{type: jet, max: 3}, {type: met}]",
            "explain.2: the response to mbb needs the node slots b1 and b2",
        ),
        ("explain.0={method: feature_groups, players: {a: [metq.pt]}}", "explain.0: group 'a': unknown object 'metq'"),
    ],
)
def test_unknown_names_are_refused_before_any_work(change: str, message: str, tmp_path: Path) -> None:
    """Those that are read last too: nothing is converted, let alone trained, and the key is the one of the config."""
    refused = CliRunner().invoke(app, ["run", str(CONFIG), *SMALL, change, "--runs", str(tmp_path)])
    assert isinstance(refused.exception, ConfigError)
    assert message in str(refused.exception)
    assert not (tmp_path / "small" / "dataset").exists()


def test_the_names_of_every_shipped_config_are_known() -> None:
    """The check must not refuse what works: columns of schemas, regions of regions, channel."""
    checked = []
    for path in sorted(CONFIG.parent.glob("*.yaml")):
        values = load(path)
        if "model" in values:
            parse(RunSettings, values, path.name).refuse_unknown()
            checked.append(path.name)
    assert "quickstart.yaml" in checked
    regions = "data.regions={high: met > 200, both: high == 1 and mbb > 100}"
    parse(RunSettings, load(CONFIG, [regions, "insides.regions={x: both == 1}"]), "c").refuse_unknown()


def test_completeness_gate_stops_the_run(small: Path, inside: Command) -> None:
    failed = inside("explain", str(small), "explain.1.steps=2", "explain.1.max_completeness_error=0.001")
    assert failed.returncode == 4
    assert "the attributions miss the score change" in failed.stderr


def test_help_has_examples() -> None:
    text = hepx("--help").stdout
    assert "hepx run configs/quickstart.yaml" in text
    for verb in ("run", "convert", "train", "evaluate", "explain", "report", "sweep", "simulate"):
        assert verb in text
        assert "Example" in hepx(verb, "--help").stdout


def test_a_moved_run_folder_needs_no_root_files(small: Path, tmp_path: Path) -> None:
    settings = parse(RunSettings, load(small / "config.yaml"), "config")
    gone = {
        name: sample.model_copy(update={"files": (str(tmp_path / "gone.root"),)})
        for name, sample in settings.data.samples.items()
    }
    moved = Run(small, settings.model_copy(update={"data": settings.data.model_copy(update={"samples": gone})}))
    assert moved._inputs() == json.loads((small / "stages.json").read_text())["convert"]["inputs"]


def test_two_processes_in_one_folder_and_a_changed_name_are_refused(small: Path, inside: Command) -> None:
    with (small / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = inside("report", str(small))
    assert refused.returncode == 2
    assert "another hepx works in" in refused.stderr
    renamed = inside("report", str(small), "name=other")
    assert renamed.returncode == 2
    assert "is the run 'small'; its name cannot be changed" in renamed.stderr


def test_only_other_content_is_converted_again_and_the_file_is_named(tmp_path: Path, inside: Command) -> None:
    """A new time stamp is not other content; another file of the same name is, and the log says which and how."""
    paths = {name: tmp_path / f"{name}.root" for name in ("signal", "ttbar", "singletop")}
    for name, path in paths.items():
        shutil.copy(ROOT / "data" / f"{name}.root", path)
    changes = [f"data.samples.{name}.files={path}" for name, path in paths.items()]
    convert = ("convert", str(CONFIG), "name=r", "data.select=met > 300", *changes, "--runs", str(tmp_path))
    assert inside(*convert).returncode == 0
    os.utime(paths["ttbar"], (1, 1))
    touched = inside(*convert)
    assert "convert: done already" in touched.stderr
    with uproot.recreate(paths["ttbar"]) as new, uproot.open(ROOT / "data" / "ttbar.root") as old:
        new.mktree("analysis", {"jet_n": "int32"})
        before = str(old.file.uuid)
    size = (ROOT / "data" / "ttbar.root").stat().st_size
    again = inside(*convert)
    assert again.returncode == 3  # a tree without events
    said = f"input files changed since they were converted: {paths['ttbar']}: size {size} -> "
    assert said in again.stderr
    assert f"uuid {before} -> uuid " in again.stderr
    assert str(paths["signal"]) not in again.stderr


def test_an_edited_schema_is_converted_again(tmp_path: Path) -> None:
    values = load_schema("atlas_open_2025").model_dump(mode="json")
    schema = tmp_path / "my.yaml"
    schema.write_text(write_yaml(values))
    settings = parse(RunSettings, load(CONFIG, [f"data.schema={schema}"]), "config")
    before = Run(tmp_path / "r", settings).key("convert")
    values["jet"][0]["select"] = "pt > 80"
    schema.write_text(write_yaml(values))
    assert Run(tmp_path / "r", settings).key("convert") != before


def test_version() -> None:
    assert hepx("--version").stdout.startswith("hepx 0.")


def test_a_missing_result_is_made_again_and_a_stale_one_deleted(small: Path, inside: Command) -> None:
    (small / "metrics.json").unlink()
    done = inside("evaluate", str(small))
    assert done.returncode == 0, done.stderr
    assert "train: done already" in done.stderr
    assert (small / "metrics.json").exists()
    changed = inside("train", str(small), "train.lr=2e-3")
    assert changed.returncode == 0, changed.stderr
    stale = ["metrics.json", "scores.parquet", "explain", "attention.npz", "experts.json"]
    assert [name for name in stale if (small / name).exists()] == []
