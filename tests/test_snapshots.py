"""Weights kept along a training change nothing about it, are those of their epochs, and say their learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hepx.errors import ResultError
from hepx.models import build_model
from hepx.models.deepsets import DeepSetsSettings
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.train import Epoch, TrainSettings, fit
from hepx.train.snapshots import load_snapshot, read_snapshots

SMALL = DeepSetsSettings(dim=8)


def train(folder: Path, **changes: object) -> list[Epoch]:
    graphs = plant(toy_graphs(600, 4), MECHANISMS["mt"], 5)
    settings = TrainSettings(**{"epochs": 5, "batch_size": 64, "lr": 3e-3, "ema": 0.9, **changes})
    return fit(build_model(SMALL, graphs.layout, 1), graphs[:400], graphs[400:], settings, 1, folder)


def same(first: Path, second: Path) -> bool:
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_snapshots_change_nothing_and_hold_their_epochs(tmp_path: Path) -> None:
    plain, kept = train(tmp_path / "plain"), train(tmp_path / "kept", snapshots=3)
    assert plain == kept
    assert same(tmp_path / "plain" / "best.safetensors", tmp_path / "kept" / "best.safetensors")
    assert not (tmp_path / "plain" / "snapshots").exists()
    found = read_snapshots(tmp_path / "kept")
    assert [one.epoch for one in found] == [2, 3, 5]
    assert [one.lr for one in found] == [kept[one.epoch - 1].lr for one in found]  # exactly: written with all digits
    last = torch.load(tmp_path / "kept" / "last.pt", weights_only=True)["kept"]
    assert all(torch.equal(last[name], tensor) for name, tensor in load_file(found[-1].weights).items())
    assert not same(found[0].weights, found[-1].weights)
    best = max(kept, key=lambda epoch: epoch.validation_auc).epoch
    for one in found:
        assert same(one.weights, tmp_path / "kept" / "best.safetensors") == (one.epoch == best)


def test_the_last_epoch_of_a_training_that_stops_early_is_kept(tmp_path: Path) -> None:
    history = train(tmp_path, snapshots=2, patience=1, epochs=60, lr=0.3)
    assert len(history) < 60
    assert read_snapshots(tmp_path)[-1].epoch == len(history)


def test_other_snapshots_are_trained_for_again_to_the_same_weights(tmp_path: Path) -> None:
    train(tmp_path, snapshots=0)
    before = (tmp_path / "best.safetensors").read_bytes()
    train(tmp_path, snapshots=2)
    assert [one.epoch for one in read_snapshots(tmp_path)] == [2, 5]
    assert (tmp_path / "best.safetensors").read_bytes() == before


def test_no_learning_rate_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"holds no snapshots .* train.snapshots=5"):
        read_snapshots(tmp_path)
    (tmp_path / "snapshots").mkdir()
    path = tmp_path / "snapshots" / "epoch_001.safetensors"
    save_file({"weight": torch.zeros(1)}, path, {"epoch": "1"})
    with pytest.raises(ResultError, match="does not say with which learning rate"):
        read_snapshots(tmp_path)
    path.write_bytes(b"not one")
    with pytest.raises(ResultError, match="cannot be read"):
        read_snapshots(tmp_path)


def test_a_snapshot_is_a_whole_model(tmp_path: Path) -> None:
    train(tmp_path, snapshots=1)
    graphs = toy_graphs(50, 9)
    model = build_model(SMALL, graphs.layout, 7)
    load_snapshot(model, read_snapshots(tmp_path)[-1].weights)
    assert (model.inputs.std != 1).any()  # the standardisation came along
