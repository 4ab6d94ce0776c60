"""Trainings on changed events: each is what `fit` does alone, is done once, and repeats itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from hepx.errors import ConfigError, DataError
from hepx.graph import GraphBatch
from hepx.influence import stacked
from hepx.influence.retrain import Change, Recipe, retrain
from hepx.models import MODELS, build_model, predict
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.train import TrainSettings, fit

SMALL = {"dim": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
SIZES = {
    "moe_graph_transformer": SMALL | {"expert_dim": 4, "num_experts": 4},
    "graph_transformer": SMALL | {"hidden_dim": 8},
    "particle_transformer": SMALL,
    "deepsets": {"dim": 8, "dropout": 0.0},
    "gcn": {"dim": 8, "dropout": 0.0},
    "mlp": {"dropout": 0.0},
    "paper_mgt": {"dropout": 0.0},
}
FAST = TrainSettings(epochs=2, batch_size=64, lr=3e-3)
NUM_TRAIN = 300


@pytest.fixture(scope="module")
def planted() -> GraphBatch:
    graphs = plant(toy_graphs(400, 4), MECHANISMS["mt"], 5)
    weight = torch.rand(400, generator=torch.Generator().manual_seed(6), dtype=torch.float64) - 0.1
    return replace(graphs, weight=weight)


def recipe(planted: GraphBatch, name: str = "moe_graph_transformer", **train: object) -> Recipe:
    model = MODELS[name][0].model_validate({"name": name, **SIZES[name]})
    return Recipe(model, FAST.model_copy(update=train), planted[:NUM_TRAIN], planted[NUM_TRAIN:])


def half(seed: int) -> torch.Tensor:
    return torch.randperm(NUM_TRAIN, generator=torch.Generator().manual_seed(seed))[: NUM_TRAIN // 2].sort().values


def scores_of_fit(recipe: Recipe, change: Change, folder: Path) -> np.ndarray:
    """The plain version: one training by `fit`, the weights of its last step."""
    graphs = recipe.events if change.y is None else replace(recipe.events, y=change.y)
    graphs = graphs if change.rows is None else graphs[change.rows]
    model = build_model(recipe.model, graphs.layout, change.seed)
    fit(model, graphs, recipe.queries, recipe.train, change.seed, folder)
    model.load_state_dict(torch.load(folder / "last.pt", weights_only=True)["kept"])
    return predict(model, recipe.queries).numpy()


@pytest.mark.parametrize("name", sorted(name for name, (_, model) in MODELS.items() if model.differentiable))
def test_a_stacked_training_is_that_of_fit(name: str, planted: GraphBatch, tmp_path: Path) -> None:
    """Every model with gradients, its router loss and all that is drawn; float32 rounding over ten steps is 1e-6."""
    extra = {
        "ema": 0.5,
        "node_dropout": 0.3,
        "reflections": True,
        "balance": "switch" if name == "paper_mgt" else "loss_free",
    }
    study = recipe(planted, name, **extra)
    flipped = 1 - study.events.y
    changes = [Change("a", 1, half(1)), Change("b", 2, half(2), y=flipped)]
    other = Change("other", 2, half(2), events=replace(study.events, y=flipped))
    *found, same = retrain(study, [*changes, other], tmp_path / "stacked")
    assert np.abs(found[1].score - same.score).max() < 1e-4
    for change, one in zip(changes, found, strict=True):
        alone = scores_of_fit(study, change, tmp_path / change.name)
        assert np.abs(one.score - alone).max() < 1e-4
        assert one.steps == 2 * 3
    assert np.abs(found[0].score - found[1].score).max() > 1e-2


def test_router_noise_is_that_of_fit(planted: GraphBatch, tmp_path: Path) -> None:
    study, change = recipe(planted, router_noise=0.5), Change("a", 1, half(1))
    (found,) = retrain(study, [change], tmp_path / "stacked")
    assert np.abs(found.score - scores_of_fit(study, change, tmp_path / "fit")).max() < 1e-4
    (quiet,) = retrain(recipe(planted), [change], tmp_path / "quiet")
    assert np.abs(found.score - quiet.score).max() > 1e-3


def test_same_list_same_bits(planted: GraphBatch, tmp_path: Path) -> None:
    """In other company a sum may be cut elsewhere: rounding, 1e-6 after six steps."""
    study = recipe(planted)
    changes = [Change(f"half {i}", i, half(i)) for i in range(3)]
    first, again = (retrain(study, changes, tmp_path / name) for name in "ab")
    assert all(np.array_equal(a.score, b.score) for a, b in zip(first, again, strict=True))
    (alone,) = retrain(study, changes[1:2], tmp_path / "c")
    assert np.abs(alone.score - first[1].score).max() < 1e-4
    (other,) = retrain(study, [Change("other seed", 9, half(1))], tmp_path / "d")
    assert np.abs(other.score - first[1].score).max() > 1e-2


@pytest.mark.slow
def test_workers_give_the_same_bits(planted: GraphBatch, tmp_path: Path) -> None:
    study = recipe(planted)
    changes = [Change(f"half {i}", i, half(i)[: 150 - i % 2]) for i in range(4)]
    first, second = (retrain(study, changes, tmp_path / str(n), workers=n) for n in (1, 2))
    assert all(np.array_equal(a.score, b.score) for a, b in zip(first, second, strict=True))


def test_a_dropout_network_repeats_itself(planted: GraphBatch, tmp_path: Path) -> None:
    study = recipe(planted)
    study = replace(study, model=study.model.model_copy(update={"dropout": 0.3}))
    changes = [Change("a", 1), Change("b", 1)]
    runs = [retrain(study, [Change("a", 1), Change("b", 2)], tmp_path / name) for name in "ab"]
    assert np.array_equal(runs[0][1].score, runs[1][1].score)
    twice = retrain(study, changes, tmp_path / "c")
    assert np.array_equal(twice[0].score, twice[1].score), "one change asked for twice is one training"


def test_a_finished_training_is_not_done_again(
    planted: GraphBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, changes = recipe(planted), [Change("a", 1, half(1)), Change("b", 2, half(2)[:100])]
    whole = retrain(study, changes, tmp_path / "whole")
    trained, run = [], stacked.Stack.run

    def killed(stack: stacked.Stack, after_epoch: object) -> None:
        if trained:
            raise KeyboardInterrupt
        trained.append(stack.num_events)
        run(stack, after_epoch)  # type: ignore[arg-type]

    monkeypatch.setattr(stacked.Stack, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        retrain(study, changes, tmp_path / "killed")
    assert trained == [150]
    trained.clear()
    rest = retrain(study, changes, tmp_path / "killed")
    assert trained == [100], "only what was not finished"
    assert all(np.array_equal(a.score, b.score) for a, b in zip(whole, rest, strict=True))
    with pytest.raises(KeyboardInterrupt):  # other queries are another study: nothing of it is there
        retrain(replace(study, queries=planted[350:]), changes, tmp_path / "killed")


def test_factor_zero_keeps_the_place_but_teaches_nothing(planted: GraphBatch, tmp_path: Path) -> None:
    """Whatever the label of an event of factor 0: the same bits. (Two events of two equal classes swap theirs, so that
    the weights of all others stay.) With factor 1 nothing changes at all."""
    study, factor = recipe(planted), torch.ones(NUM_TRAIN)
    y, even = torch.arange(NUM_TRAIN) % 2, torch.ones(NUM_TRAIN, dtype=torch.float64)
    study = replace(study, events=replace(study.events, y=y, weight=even))
    y, pair = y.clone(), [10, 11]
    y[pair] = y[pair[::-1]]
    none = factor.clone()
    none[pair] = 0
    changes = [
        Change("plain", 1),
        Change("ones", 1, factor=factor),
        Change("0", 1, factor=none),
        Change("0, swapped", 1, y=y, factor=none),
        Change("swapped", 1, y=y),
    ]
    plain, ones, without, swapped_without, swapped = (one.score for one in retrain(study, changes, tmp_path))
    assert np.array_equal(plain, ones)
    assert np.array_equal(without, swapped_without)
    assert not np.array_equal(plain, without)
    assert not np.array_equal(plain, swapped)


def test_snapshots_hold_the_weights_of_their_epochs(planted: GraphBatch, tmp_path: Path) -> None:
    study = recipe(planted, epochs=4)
    (found,) = retrain(study, [Change("a", 3)], tmp_path, snapshots=2)
    assert [path.name for path in found.snapshots] == ["epoch_002.safetensors", "epoch_004.safetensors"]
    model, scores, rates = build_model(study.model, planted.layout, 0), [], []
    for path in found.snapshots:
        with safe_open(path, "pt") as stored:
            model.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
            rates.append(float(stored.metadata()["lr"]))
        scores.append(predict(model, study.queries).numpy())
    assert np.allclose(scores[1], found.score, atol=1e-6)
    assert not np.allclose(scores[0], found.score, atol=1e-3)
    assert rates[0] > rates[1] > 0


def test_what_cannot_be_studied_is_refused(planted: GraphBatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="know them already"):
        recipe(planted, source="runs/other")
    study = recipe(planted)
    with pytest.raises(DataError, match="class 1 has a total training weight of 0"):
        retrain(study, [Change("one class", 1, torch.nonzero(study.events.y == 0)[:, 0])], tmp_path)
