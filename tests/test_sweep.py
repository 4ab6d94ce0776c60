"""Sweeps: paired differences, shared data, several processes at once, kills, shards, and the page of the table."""

from __future__ import annotations

import csv
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hepx import files, sweep
from hepx.attribution import Shard
from hepx.cli import app
from hepx.comparison import Entry, compare
from hepx.errors import ConfigError, ResultError
from hepx.graph import NODE_TYPES, GraphBatch, Layout, make_layout
from hepx.models import build_model
from hepx.report import comparison
from hepx.results import Measured
from hepx.sweep import Sweep

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "quickstart.yaml"
MEASURES = ("auc", "background_efficiency@0.5", "significance")
SMALL = (
    "{model: {name: mlp, hidden_dim: 8}, train.epochs: 1, train.batch_size: 1000, evaluate.trees: false, "
    'data.select: "n_lepton == 1 and n_bjet == 2 and met > 200"}'
)


def entry(values: list[float], replicas: np.ndarray) -> Entry:
    """One group and one measure."""
    return Entry(np.array(values)[:, None, None], replicas[:, :, None, None])


def test_differences_are_paired_by_seed_and_event() -> None:
    """What two classifiers share (a lucky seed, a lucky test sample) does not enter their difference."""
    replicas = np.random.default_rng(1).normal(0.85, 0.05, (2, 500))
    reference = entry([0.90, 0.80], replicas)
    better = entry([0.92, 0.84], replicas + 0.03)
    (row,) = compare("better", better, reference, ["all"], ["auc"])
    assert row.difference == pytest.approx(0.03)
    assert row.difference_error == pytest.approx(np.std([0.02, 0.04], ddof=1) / 2**0.5)
    assert row.test_error is not None
    assert row.test_error > 0.03
    assert row.sigmas == pytest.approx(3.0)
    independent = entry([0.90, 0.80], np.random.default_rng(2).normal(0.85, 0.05, (2, 500)))
    (other,) = compare("other", independent, reference, ["all"], ["auc"])
    assert other.difference_error is not None
    assert other.difference_error > 0.04


def test_rejection_is_the_inverse_of_the_mean_efficiency_with_errors_to_first_order() -> None:
    replicas = np.random.default_rng(1).normal(0.01, 0.0002, (2, 4000))
    reference, better = entry([0.011, 0.009], replicas), entry([0.0055, 0.0045], replicas / 2)
    (row,) = compare("b", better, reference, ["all"], ["background_efficiency@0.5"])
    assert row.measure == "rejection@0.5"
    assert row.value == pytest.approx(200)
    assert row.difference == pytest.approx(100)
    assert row.test_error == pytest.approx(np.std(1 / replicas.mean(0)) * 2, rel=0.01)
    none = entry([0.0, 0.0], replicas)
    (missing,) = compare("n", none, reference, ["all"], ["background_efficiency@0.5"])
    assert (missing.value, missing.difference, missing.test_error, missing.sigmas) == (None, None, None, None)


def test_what_a_classifier_does_not_have_is_no_number() -> None:
    replicas = np.full((2, 50), np.nan)
    (row,) = compare("a", entry([np.nan, np.nan], replicas), entry([1.0, 2.0], replicas + 1), ["all"], ["significance"])
    assert (row.value, row.test_error, row.difference, row.difference_error) == (None, None, None, None)


def test_shards_share_out_all_pieces() -> None:
    shards = [Shard.parse(f"{i}/3") for i in (1, 2, 3)]
    assert sorted(n for s in shards for n in range(10) if s.has(n)) == list(range(10))
    for wrong in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(ConfigError, match="expected i/n with i from 1 to n"):
            Shard.parse(wrong)


def write_config(folder: Path, variants: str, name: str = "s") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"name: {name}\nbase: {CONFIG}\nseeds: [1, 2]\nreference: a\nvariants:\n{variants}")
    return path


def aliased(graphs: GraphBatch, layout: Layout) -> GraphBatch:
    """The table of arXiv:2501.03432: the b-jets once as jets and once as b-jets."""
    source = [0, 1, 2, 0, 1, 3, 4]
    types = torch.tensor([NODE_TYPES.index(name) for name in layout.types]).expand(len(graphs), -1)
    fields = {name: getattr(graphs, name)[:, source] for name in ("x", "mask", "object_index", "truth_parent")}
    return replace(graphs, **fields, node_type=types, layout=layout)


@pytest.mark.parametrize(("name", "base"), [("models", "mgt"), ("ablation", "mgt"), ("ablation", "large")])
def test_shipped_sweeps_change_what_they_say_and_every_variant_runs(
    name: str, base: str, toys: GraphBatch, tmp_path: Path
) -> None:
    """No variant is the reference under another name, and each gives scores and a gradient."""
    wanted = Sweep(ROOT / "configs" / f"{name}.yaml", ["seeds=[1, 2]", f"base={base}.yaml"], tmp_path)
    members = {member.variant: member.run.settings for member in wanted.members if member.seed == 1}
    recipes = [(one.model.model_dump(), one.train.model_dump()) for one in members.values()]
    assert all(first != second for first, second in combinations(recipes, 2))
    assert len({str(one.data) for one in members.values()}) == 1
    for settings in members.values():
        layout = make_layout(settings.graph, ["toy"], [0, 1])
        graphs = toys[:8] if layout.slots == toys.layout.slots else aliased(toys[:8], layout)
        model = build_model(settings.model, layout, 1)
        logits, trace = model(graphs.x, graphs.mask, graphs.node_type)
        logits.sum().backward()
        assert torch.isfinite(logits).all()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
        assert trace.gates.shape[-1] == getattr(settings.model, "num_experts", 0)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two variants, two seeds, in this process."""
    folder = tmp_path_factory.mktemp("sweep")
    done = Sweep(write_config(folder, f"  a: {SMALL}\n  b: {SMALL[:-1]}, model.hidden_dim: 16}}\n"), [], folder)
    done.execute(1)
    done.table()
    return done


def test_runs_share_their_data_and_the_table_has_every_measure(swept: Sweep) -> None:
    (data,) = swept.folder.glob("dataset-*")
    assert (swept.folder / "a-1" / "dataset").resolve() == data.resolve()
    assert len(list(data.glob("*.safetensors"))) == 3
    with (swept.folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["variant"] for row in rows} == {"a", "b"}
    assert {"auc", "f1", "rejection@0.5", "significance", "calibration_error"} <= {row["measure"] for row in rows}
    assert {"all", "background: ttbar", "point: mass_chargino 500, mass_lsp 0"} <= {row["group"] for row in rows}
    own = [row for row in rows if row["variant"] == "a" and row["measure"] == "auc"]
    assert all(float(row["difference"]) == float(row["difference_error"]) == 0 for row in own)
    value = next(float(row["value"]) for row in rows if (row["variant"], row["measure"]) == ("b", "auc"))
    saved = [files.read_json(swept.folder / f"b-{seed}" / "metrics.json")["auc"]["value"] for seed in (1, 2)]
    assert value == pytest.approx(np.mean(saved))
    assert swept.left == []


def test_other_test_events_or_measures_cannot_be_compared(swept: Sweep, tmp_path: Path) -> None:
    text = f"  a: {SMALL}\n  c: "
    for change, message in (
        (SMALL.replace("met > 200", "met > 250") + "\n", "have different test events"),
        (SMALL[:-1] + ", evaluate.points: []}\n", "do not measure the same things"),
    ):
        other = Sweep(write_config(tmp_path, text + change), [], tmp_path)
        other.execute(1)
        with pytest.raises(ConfigError, match=message):
            other.table()
    with pytest.raises(ConfigError, match="the reference 'd' is not one of the variants"):
        Sweep(write_config(tmp_path, text + change), ["reference=d"], tmp_path)


def test_the_examples_of_the_help_are_sweeps(tmp_path: Path) -> None:
    """They change keys that a sweep has: `train.epochs=5`, which the help once gave, is none."""
    text = re.sub(r"\s+", " ", CliRunner().invoke(app, ["sweep", "--help"], env={"COLUMNS": "200"}).output)
    examples = re.findall(r"hepx (sweep configs/\S+(?: '[^']+'| [a-z]+=\S+)*)", text)
    assert len(examples) == 4
    changed = [shlex.split(one)[1:] for one in examples if "=" in one]
    assert len(changed) == 2
    for path, *overrides in changed:
        found = Sweep(ROOT / path, overrides, tmp_path)
        assert found.members != Sweep(ROOT / path, [], tmp_path).members
    assert "e.g. train.epochs=5" not in text
    with pytest.raises(ConfigError, match="unknown key 'train'"):
        Sweep(ROOT / "configs" / "models.yaml", ["train.epochs=5"], tmp_path)


def test_a_variant_with_a_base_of_its_own_keeps_the_data(tmp_path: Path) -> None:
    config = write_config(tmp_path, f"  a: {SMALL}\n  b: {{base: {ROOT}/configs/paper_code.yaml, train.epochs: 3}}\n")
    first, second = (member.run.settings for member in Sweep(config, [], tmp_path).members[:2])
    assert second.model.name == "paper_mgt"
    assert second.train.epochs == 3
    assert second.data.split == first.data.split
    assert second.graph != first.graph


def test_trees_are_fitted_for_the_reference_alone(tmp_path: Path) -> None:
    text = "  a: {train.epochs: 1}\n  b: {train.epochs: 2}\n  c: {evaluate.trees: true}\n"
    wanted = Sweep(write_config(tmp_path, text), [], tmp_path)
    assert [member.run.settings.evaluate.trees for member in wanted.members[:3]] == [True, False, True]
    assert [member.seed for member in wanted.members] == [1, 1, 1, 2, 2, 2]  # seed after seed


def kill_the_first(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Send SIGKILL to the first process that a sweep starts; returns how many were at work at each look."""
    real, seen = sweep._Workers._start, []

    def start(self: sweep._Workers) -> None:
        real(self)
        if not seen:
            self.jobs[0].process.send_signal(signal.SIGKILL)
        seen.append(len(self.jobs))

    monkeypatch.setattr(sweep._Workers, "_start", start)
    return seen


def test_processes_give_what_one_process_gives_and_survive_a_kill(
    swept: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One of two processes at work is killed by SIGKILL: it is started again, and no bit of the result changes."""
    seen = kill_the_first(monkeypatch)
    other = Sweep(write_config(tmp_path, f"  a: {SMALL}\n"), [], tmp_path)
    other.execute(2)
    assert "its process was killed; it goes on from its last checkpoint" in caplog.text
    assert max(seen) == 2
    assert other.left == []
    for run in ("a-1", "a-2"):
        expected, found = (Measured.load(one.folder / run / "replicas.npz") for one in (swept, other))
        np.testing.assert_array_equal(found.replicas, expected.replicas)


@pytest.mark.slow
def test_a_run_that_fails_keeps_none_of_the_others_from_running(tmp_path: Path) -> None:
    text = f"  fails: {SMALL[:-1]}, train.lr: 1e30}}\n  a: {SMALL}\n"
    other = Sweep(write_config(tmp_path, text), [], tmp_path)
    with pytest.raises(ResultError, match=r"2 runs failed, the others are kept\. fails, seed 1: the loss became"):
        other.execute(2)
    assert [member.name for member in other.left] == ["fails, seed 1", "fails, seed 2"]


def test_shards_are_done_apart_and_put_together(swept: Sweep, tmp_path: Path) -> None:
    text = f"  a: {SMALL}\n  b: {SMALL[:-1]}, model.hidden_dim: 16}}\n"
    path = write_config(tmp_path, text)
    first = Sweep(path, [], tmp_path)
    first.execute(1, Shard.parse("2/2"))
    assert [member.name for member in first.left] == ["a, seed 1", "a, seed 2"]
    with pytest.raises(ResultError, match="no table, because these runs are not finished: a, seed 1; a, seed 2"):
        first.table()
    Sweep(path, [], tmp_path).execute(1, Shard.parse("1/2"))
    rows = Sweep(path, [], tmp_path).table()
    assert rows == swept.table()


@pytest.mark.slow
def test_sigterm_stops_all_processes_with_a_checkpoint(tmp_path: Path) -> None:
    """The batch system's signal reaches the runs, which end with a checkpoint; none is left at work."""
    long = SMALL.replace("train.epochs: 1", "train.epochs: 4000, train.patience: 4000")
    config = write_config(tmp_path, f"  a: {long}\n")
    command = [sys.executable, "-m", "hepx.cli", "sweep", str(config), "--workers", "2", "--runs", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    checkpoints = [tmp_path / "s" / f"a-{seed}" / "checkpoints" / "last.pt" for seed in (1, 2)]
    while not all(path.exists() for path in checkpoints) and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    _, text = process.communicate()
    assert process.returncode == 85, text
    assert "start the same command again" in text
    again = Sweep(config, [], tmp_path)
    assert not any(member.run.is_locked() for member in again.members)
    assert len(again.left) == 2


def test_a_run_that_another_process_works_on_is_waited_for(swept: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    workers, run = sweep._Workers(swept.members[:1], 2), swept.members[0].run
    monkeypatch.setattr(sweep._Workers, "_launch", lambda _, member: member)
    with files.locked(run.folder, "wait"):
        workers._start()
        assert workers.jobs == []
    workers._start()
    assert workers.jobs == swept.members[:1]


# The page ---------------------------------------------------------------------------------------------------------


def test_page_is_one_file_with_every_classifier(swept: Sweep) -> None:
    text = (swept.folder / "sweep.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text)
    assert [source[:22] for source in sources] == ["data:image/png;base64,"]
    assert not re.search(r"<script|<link|nan|None", text)
    compared = comparison.load_compared(swept.folder)
    assert compared.variants == ["a", "b"]
    assert comparison.difference(compared.cell("b", "auc")) in text
    assert (swept.folder / "figures" / "sweep.pdf").stat().st_size > 5000


def test_markdown_has_a_row_for_each_classifier(swept: Sweep) -> None:
    overview, *others = (swept.folder / "sweep.md").read_text(encoding="utf-8").split("\n\n")
    head, rule, first, second = overview.splitlines()
    assert head.count("|") == rule.count("|") == first.count("|") == second.count("|")
    tables = [text.splitlines() for text in others if text.startswith("|")]
    assert any("Precision" in table[0] and "F1" in table[0] for table in tables)
    assert all(len(table) == 4 and len({row.count("|") for row in table}) == 1 for table in tables)
    auc = comparison.load_compared(swept.folder).cell("a", "auc")["value"]
    assert first.startswith(f"| a | {auc:.4f} | ± ")


def test_only_differences_of_two_errors_are_bold(swept: Sweep) -> None:
    compared = comparison.load_compared(swept.folder)
    cell = compared.cell("b", "auc")
    for difference, error, bold in ((0.02, 0.0099, True), (0.02, 0.0101, False), (-0.5, 0.1, True), (0.1, 0.0, False)):
        cell |= {"difference": difference, "difference_error": error}
        assert comparison._difference_cell(compared, "b", "auc").startswith("<b>") == bold
    assert comparison._difference_cell(compared, "a", "auc") == "reference"
