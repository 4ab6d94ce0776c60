"""Fine-tuning goes on from a run's weights and scaling and moves what it may move; trackers get the same history."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hepx.config import parse
from hepx.errors import ConfigError, DataError
from hepx.graph import GraphBatch, GraphSettings, NodeSettings
from hepx.models import MODELS, build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.train import (
    Epoch,
    TrainSettings,
    check_same_model,
    check_same_nodes,
    find_source,
    fit,
    refuse_training_events,
    tracked,
    training_events,
    write_history,
    write_training_events,
)
from hepx.train.finetune import freeze, layers
from hepx.train.tracking import TRACKERS

ROOT = Path(__file__).parent.parent
SMALL = MoEGraphTransformerSettings(dim=8, expert_dim=4, num_heads=2)
STATE = ("inputs.", "blocks.0.feed_forward.selection_bias", "blocks.1.feed_forward.selection_bias")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a training on a threshold in m_T."""
    folder = tmp_path_factory.mktemp("source")
    graphs = plant(toy_graphs(1500, 4), MECHANISMS["mt"], 5)
    model = build_model(SMALL, graphs.layout, 1)
    fit(model, graphs[:1000], graphs[1000:], TrainSettings(epochs=8, batch_size=64, lr=5e-3), 1, folder)
    write_training_events(folder, [graphs.event_id[:1000].numpy()], 1000)
    return folder


@pytest.fixture(scope="module")
def other() -> GraphBatch:
    """Events of another kind: harder objects, another truth."""
    graphs = toy_graphs(1200, 9)
    graphs.x[..., 0] *= 1.5
    return plant(graphs, MECHANISMS["mbb"], 5)


def tune(other: GraphBatch, source: Path, folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Weights after three epochs on other events."""
    settings = TrainSettings(epochs=3, batch_size=128, lr=5e-3, ema=0.9, source=str(source), **changes)
    fit(build_model(SMALL, other.layout, 7), other[:800], other[800:], settings, 1, folder, source=source)
    return load_file(folder / "best.safetensors")


@pytest.mark.parametrize(
    ("changes", "moving"),
    [
        ({"trainable_layers": 1}, ("head.",)),
        ({"trainable_layers": 3}, ("blocks.1.", "norm.", "head.")),
        (
            {"freeze": ("embed", "type_embedding", "pair_network", "blocks.0.attention")},
            ("blocks.0.norm", "blocks.0.feed_forward", "blocks.1.", "norm.", "head."),
        ),
    ],
)
def test_frozen_layers_keep_their_bits_and_the_others_move(
    changes: dict[str, Any], moving: tuple[str, ...], other: GraphBatch, source: Path, tmp_path: Path
) -> None:
    before, after = load_file(source / "best.safetensors"), tune(other, source, tmp_path, **changes)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    constant = {name for name in before if name.endswith(("router.bias", "defined"))}
    allowed = {name for name in before if name.startswith(moving)}
    assert moved <= allowed
    assert {name for name in allowed - constant if "selection_bias" not in name} <= moved


def test_the_scaling_of_the_inputs_is_the_sources(other: GraphBatch, source: Path, tmp_path: Path) -> None:
    """And without `from` it is that of the new events: the negative control."""
    before, after = load_file(source / "best.safetensors"), tune(other, source, tmp_path / "a")
    fresh = build_model(SMALL, other.layout, 7)
    fresh.inputs.fit(other[:800], other.weight[:800])
    for name in ("mean", "std", "pair_mean", "pair_std"):
        assert torch.equal(after[f"inputs.{name}"], before[f"inputs.{name}"])
        assert not torch.allclose(getattr(fresh.inputs, name), before[f"inputs.{name}"], atol=1e-3)
    assert not torch.equal(after["embed.weight"], before["embed.weight"])


def test_a_good_start_learns_faster(source: Path, tmp_path: Path) -> None:
    """On new events of the same truth; the negative control starts from random weights."""
    graphs = plant(toy_graphs(900, 11), MECHANISMS["mt"], 6)
    settings = TrainSettings(epochs=1, batch_size=128, lr=1e-3)
    auc = []
    for start in (source, None):
        model = build_model(SMALL, graphs.layout, 7)
        history = fit(model, graphs[:300], graphs[300:], settings, 1, tmp_path / str(start is None), source=start)
        auc.append(history[0].validation_auc)
    assert auc[0] > 0.85, auc
    assert auc[1] < auc[0] - 0.1


def test_what_does_not_fit_is_refused(source: Path, tmp_path: Path) -> None:
    model = build_model(SMALL, toy_graphs(1, 1).layout, 1)
    assert layers(model) == ["embed", "type_embedding", "pair_network", "blocks.0", "blocks.1", "norm", "head"]
    with pytest.raises(ConfigError, match=r"no part 'block\.0'; closest: 'blocks\.0'"):
        freeze(model, ["block.0"], None)
    with pytest.raises(ConfigError, match="trainable_layers is 9, but the model has 7: embed, "):
        freeze(model, [], 9)
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze(model, layers(model), None)
    with pytest.raises(ConfigError, match="freeze and trainable_layers need `from`"):
        parse(TrainSettings, {"freeze": ["embed"]}, "config")
    with pytest.raises(ConfigError, match="the model of 'runs/a' has dim 16, that of this config 8"):
        check_same_model("runs/a", SMALL, SMALL.model_copy(update={"dim": 16}))
    check_same_model("runs/a", SMALL, SMALL.model_copy(update={"dropout": 0.5}))
    with pytest.raises(ConfigError, match="has name 'mlp', that of this config 'moe_graph_transformer'"):
        check_same_model("runs/a", SMALL, MODELS["mlp"][0]())
    with pytest.raises(ConfigError, match="are b1, b2, those of this config b1, b2, j3, lepton, met"):
        check_same_nodes("runs/a", GraphSettings(), GraphSettings(nodes=(NodeSettings(type="bjet", max=2),)))
    with pytest.raises(ConfigError, match="is not the folder of a run whose training is finished"):
        find_source(str(tmp_path), None)
    assert find_source(str(tmp_path), {"run": str(tmp_path), "checkpoint": "1"})["checkpoint"] == "1"


def test_settings_are_written_and_read_back_with_from() -> None:
    settings = parse(TrainSettings, {"from": "runs/a", "trainable_layers": 1}, "config")
    dumped = settings.model_dump(mode="json", by_alias=True)
    assert dumped["from"] == "runs/a"
    assert parse(TrainSettings, dumped, "config") == settings
    moved = settings.model_copy(update={"source": "elsewhere", "track": ("wandb",), "keep": "disk"})
    assert moved.recipe() == settings.recipe()
    assert settings.model_copy(update={"trainable_layers": 2}).recipe() != settings.recipe()


HISTORY = [Epoch(i + 1, 0.7 - 0.1 * i, 1.0, 2.0, 0.6, 0.8 + 0.01 * i, 1e-3) for i in range(3)]


def test_history_is_written_as_csv_and_json_lines(tmp_path: Path) -> None:
    write_history(tmp_path, HISTORY)
    with (tmp_path / "history.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows == lines == [vars(epoch) for epoch in HISTORY]


def follow(folder: Path, tracker: str) -> None:
    """A training that is killed while its third epoch is noted, after the second was saved, and goes on from there."""
    with tracked(folder, [tracker], "my run", {"train": {"lr": 1e-3}}, 0) as report:
        for number in (1, 2, 3):
            report(HISTORY[:number])
    with tracked(folder, [tracker], "my run", {"train": {"lr": 1e-3}}, 2) as report:
        report(HISTORY)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_each_epoch_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `trackers` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tracking" / "tensorboard"))
    events.Reload()
    found = [(one.step, one.value) for one in events.Scalars("validation_auc")]
    assert found == [(epoch.epoch, pytest.approx(epoch.validation_auc)) for epoch in HISTORY]
    assert "lr" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


def in_process(folder: Path, tracker: str) -> None:
    """MLflow and W&B start threads and warn of affairs of their own, so they run in a process of their own."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); from pathlib import Path; import test_finetune\n"
    code += f"test_finetune.follow(Path({str(folder)!r}), {tracker!r})"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "WANDB"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_mlflow_holds_the_epochs_in_one_run(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="the extra `trackers` is not installed")
    if not any((Path(folder) / "mlflow").exists() for folder in sys.path):
        pytest.skip("the extra `trackers` is not installed")
    in_process(tmp_path, "mlflow")
    with sqlite3.connect(tmp_path / "tracking" / "mlflow.db") as database:
        found = database.execute("select distinct step, value from metrics where key = 'validation_auc'").fetchall()
        assert database.execute("select name, status from runs").fetchall() == [("my run", "FINISHED")]
        assert database.execute("select value from params where key = 'train.lr'").fetchall() == [("0.001",)]
    assert sorted(found) == [(epoch.epoch, epoch.validation_auc) for epoch in HISTORY]


@pytest.mark.slow
def test_wandb_writes_offline_runs_of_one_id(tmp_path: Path) -> None:
    if not any((Path(folder) / "wandb").exists() for folder in sys.path):
        pytest.skip("the extra `trackers` is not installed")
    in_process(tmp_path, "wandb")
    name = (tmp_path / "tracking" / "wandb_run.txt").read_text()
    runs = list((tmp_path / "tracking" / "wandb").rglob(f"run-{name}.wandb"))
    assert len(runs) == 2
    assert any(b"validation_auc" in run.read_bytes() for run in runs)


def test_a_missing_tracker_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch.utils.tensorboard", "mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in TRACKERS:
        with (
            pytest.raises(ConfigError, match=rf"'{name}' is not installed .* pip install -e '\.\[trackers\]'"),
            tracked(tmp_path, [name], "", {}, 0),
        ):
            pass


def test_events_of_the_source_are_refused_too(source: Path, tmp_path: Path) -> None:
    own = np.arange(5000, 5010)
    write_training_events(tmp_path, [own, training_events(source)], 1010)
    refuse_training_events(tmp_path, np.arange(1000, 5000))
    for seen in (own, np.arange(999, 1005)):
        with pytest.raises(DataError, match=r"were used to train the model in .* or one it was fine-tuned from"):
            refuse_training_events(tmp_path, seen)
