"""Training: reproducible, restartable, weighted, balanced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hepx import files
from hepx.errors import DataError, ResultError
from hepx.graph import GraphBatch
from hepx.models import MODELS, Model, Trace, build_model, predict
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.inputs import ETA, PHI, pair_kinematics, reflect
from hepx.models.layers import MixtureOfExperts
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.train import (
    TrainSettings,
    balance_loss,
    cv2_loss,
    fit,
    hide_objects,
    load_weights,
    training_weights,
    update_selection_bias,
    z_loss,
)

SMALL = MoEGraphTransformerSettings(dim=16, expert_dim=8, num_heads=2)
FAST = TrainSettings(epochs=3, batch_size=128, lr=3e-3)


@pytest.fixture(scope="module")
def planted() -> GraphBatch:
    return plant(toy_graphs(1500, 4), MECHANISMS["mt"], 5)


def train(
    planted: GraphBatch, folder: Path, seed: int = 1, settings: TrainSettings = FAST
) -> tuple[Model, list[object]]:
    model = build_model(SMALL, planted.layout, seed)
    history = fit(model, planted[:1000], planted[1000:], settings, seed, folder)
    return model, list(history)


def test_same_seed_same_everything(planted: GraphBatch, tmp_path: Path) -> None:
    first, history = train(planted, tmp_path / "a")
    second, again = train(planted, tmp_path / "b")
    _, other = train(planted, tmp_path / "c", seed=2)
    assert history == again
    assert history != other
    assert torch.equal(predict(first, planted), predict(second, planted))


def test_interrupted_training_ends_as_if_it_had_never_stopped(
    planted: GraphBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, history = train(planted, tmp_path / "a")
    real, calls = torch.optim.AdamW.step, []

    def stop(self: torch.optim.AdamW, *args: object) -> object:
        calls.append(1)
        if len(calls) == 12:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(planted, tmp_path / "b")
    monkeypatch.undo()
    resumed, continued = train(planted, tmp_path / "b")
    assert continued == history
    assert torch.equal(predict(resumed, planted), predict(whole, planted))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_learns_a_planted_threshold(name: str, tmp_path: Path) -> None:
    graphs = plant(toy_graphs(4000, 4), MECHANISMS["mt"], 5)
    model = build_model(MODELS[name][0](), graphs.layout, 1)
    options = TrainSettings(epochs=6, batch_size=128, lr=2e-3)
    history = fit(model, graphs[:3000], graphs[3000:], options, 1, tmp_path)
    assert max(epoch.validation_auc for epoch in history) > 0.85


def test_best_weights_are_kept_and_patience_stops(planted: GraphBatch, tmp_path: Path) -> None:
    shuffled = replace(planted, y=planted.y[torch.randperm(len(planted), generator=torch.Generator().manual_seed(1))])
    settings = TrainSettings(epochs=40, batch_size=250, patience=2, lr=1e-2)
    model, history = train(shuffled, tmp_path, settings=settings)
    assert len(history) < 40
    loaded = build_model(SMALL, planted.layout, 9)
    load_weights(loaded, tmp_path)
    assert torch.equal(predict(model, planted), predict(loaded, planted))
    with pytest.raises(ResultError, match="holds no trained weights"):
        load_weights(loaded, tmp_path / "none")


def test_training_weights_balance_classes_and_keep_signs(planted: GraphBatch) -> None:
    weight = torch.where(torch.arange(len(planted)) % 7 == 0, -1.0, 2.0).double()
    graphs = replace(planted, weight=weight)
    found = training_weights(graphs)
    assert torch.equal(torch.sign(found), torch.sign(weight))
    totals = [float(found[graphs.y == label].sum()) for label in (0, 1)]
    assert totals == pytest.approx([len(graphs) / 2] * 2)
    assert float(training_weights(graphs, "sign").abs().unique().numel()) == 2
    with pytest.raises(DataError, match="class 1 has a total training weight of -"):
        training_weights(replace(graphs, weight=torch.where(graphs.y == 1, -weight, weight)))


def trace(gates: torch.Tensor, logits: torch.Tensor) -> Trace:
    return Trace(torch.zeros(len(gates), 1, 0, gates.shape[2], gates.shape[2]), logits, gates)


def test_balance_loss_is_one_when_even_and_x_when_collapsed() -> None:
    mask = torch.ones(6, 2, dtype=torch.bool)
    even = torch.eye(6).reshape(6, 1, 1, 6).expand(6, 1, 2, 6)
    assert float(balance_loss(trace(even, 0 * even), mask)) == pytest.approx(1)
    one = torch.zeros(6, 1, 2, 6)
    one[..., 0] = 1
    assert float(balance_loss(trace(one, 50 * one), mask)) == pytest.approx(6)
    assert float(z_loss(trace(one, 0 * one), mask)) == pytest.approx(np.log(6) ** 2)


def test_cv2_loss_is_zero_when_even_x_when_collapsed_and_prefers_the_smooth_load() -> None:
    mask = torch.ones(6, 2, dtype=torch.bool)
    even = torch.eye(6).reshape(6, 1, 1, 6).expand(6, 1, 2, 6)
    assert float(cv2_loss(trace(even, 0 * even), mask)) == pytest.approx(0)
    one = torch.zeros(6, 1, 2, 6)
    one[..., 0] = 1
    assert float(cv2_loss(trace(one, one), mask)) == pytest.approx(6)
    assert float(cv2_loss(trace(one, one)._replace(load=even), mask)) == pytest.approx(0)


def test_hidden_objects_are_a_flat_choice_of_the_number_of_objects() -> None:
    mask = torch.ones(20_000, 4, dtype=torch.bool)
    mask[:, 3] = False
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(20_000, 6, generator=generator)
    hidden = hide_objects(mask, 1.0, uniform)
    assert not (hidden & ~mask).any()
    share = torch.bincount(hidden.sum(1), minlength=4) / len(mask)
    torch.testing.assert_close(share, torch.full((4,), 0.25), atol=0.015, rtol=0)  # five standard deviations
    half = (hide_objects(mask, 0.5, uniform) == mask).all(1).double().mean()
    assert float(half) == pytest.approx(0.5 + 0.5 * 0.25, abs=0.015)
    assert torch.equal(hide_objects(mask, 0.0, uniform), mask)


@pytest.mark.parametrize(
    "settings",
    [
        {"ema": 0.9, "node_dropout": 0.5, "router_noise": 0.5, "reflections": True},
        {"optimizer": "adam", "schedule": "step", "step_epochs": 1, "balance": "cv2", "warmup": 0.0},
    ],
)
def test_training_options_train_and_restart_exactly(
    settings: dict[str, Any], planted: GraphBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainSettings(epochs=3, batch_size=128, lr=3e-3, **settings)
    whole, history = train(planted, tmp_path / "a", settings=options)
    assert history[-1].validation_auc > 0.8  # type: ignore[attr-defined]
    real = files.atomic

    def stop(path: Path) -> Any:
        if path.name == "last.pt" and path.exists():
            raise KeyboardInterrupt  # at the end of the second epoch
        return real(path)

    monkeypatch.setattr(files, "atomic", stop)
    with pytest.raises(KeyboardInterrupt):
        train(planted, tmp_path / "b", settings=options)
    monkeypatch.undo()
    resumed, continued = train(planted, tmp_path / "b", settings=options)
    assert continued == history
    assert torch.equal(predict(resumed, planted), predict(whole, planted))


def test_learning_rate_steps_down(planted: GraphBatch, tmp_path: Path) -> None:
    options = TrainSettings(epochs=3, batch_size=500, lr=1e-3, schedule="step", step_epochs=1, warmup=0.0)
    _, history = train(planted, tmp_path, settings=options)
    assert [epoch.lr for epoch in history] == pytest.approx([1e-3, 1e-4, 1e-5])  # type: ignore[attr-defined]


def test_training_with_hidden_objects_makes_their_removal_fair(tmp_path: Path) -> None:
    """Without the lepton little is known about m_T: a network that has met such events says so, one that has not is
    sure of itself and wrong. The loss of knowing nothing is ln 2 = 0.69."""
    graphs = plant(toy_graphs(4000, 4), MECHANISMS["mt"], 5)
    mask = graphs.mask.clone()
    mask[:, 3] = False
    missing = []
    for node_dropout in (0.0, 0.5):
        options = TrainSettings(epochs=5, batch_size=128, lr=5e-3, node_dropout=node_dropout)
        model = build_model(SMALL, graphs.layout, 2)
        history = fit(model, graphs[:3000], graphs[3000:], options, 2, tmp_path / str(node_dropout))
        assert max(epoch.validation_auc for epoch in history) > 0.88
        score = predict(model, replace(graphs, mask=mask)[3000:]).double()
        y, weight = (graphs.y[3000:] == 1).double(), training_weights(graphs[3000:])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score, y, weight=weight)
        missing.append(float(loss))
    assert missing[1] < 0.75 < missing[0]


def test_reflected_events_have_the_same_pairs() -> None:
    graphs = toy_graphs(4000, 4)
    uniform = torch.rand(len(graphs), 2, generator=torch.Generator().manual_seed(3))
    x = reflect(graphs.x, uniform)
    flipped = uniform < 0.5
    torch.testing.assert_close(flipped.double().mean(0), torch.full((2,), 0.5).double(), atol=0.03, rtol=0)
    for column, one in ((ETA, flipped[:, :1]), (PHI, flipped[:, 1:])):
        assert torch.equal(x[..., column], torch.where(one, -1, 1) * graphs.x[..., column])
    others = [column for column in range(x.shape[2]) if column not in (ETA, PHI)]
    assert torch.equal(x[..., others], graphs.x[..., others])
    before, after = (pair_kinematics(one, graphs.node_type) for one in (graphs.x, x))
    for name in ("delta_r2", "mass2", "mt2", "mct2"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-5, atol=1e-3)


def test_what_a_reflection_changes_is_not_learned(tmp_path: Path) -> None:
    """Labels that are the sign of the lepton's η cannot be learned with reflections; those of m_T can."""
    graphs = toy_graphs(1500, 4)
    signs = replace(graphs, y=(graphs.x[:, 3, ETA] > 0).long())
    best = {}
    for name, events in (("sign", signs), ("mt", plant(graphs, MECHANISMS["mt"], 5))):
        for reflections in (False, True):
            options = FAST.model_copy(update={"reflections": reflections})
            history = train(events, tmp_path / f"{name}-{reflections}", settings=options)[1]
            best[name, reflections] = max(epoch.validation_auc for epoch in history)  # type: ignore[attr-defined]
    assert best["sign", False] > 0.95
    assert best["sign", True] < 0.6
    assert min(best["mt", False], best["mt", True]) > 0.8


def test_loss_free_balancing_evens_the_load(planted: GraphBatch) -> None:
    model = build_model(SMALL, planted.layout, 1).eval()
    moe = next(module for module in model.modules() if isinstance(module, MixtureOfExperts))
    model.inputs.fit(planted, planted.weight)

    def spread() -> float:
        gates = model(planted.x, planted.mask, planted.node_type).trace.gates[:, 0][planted.mask]
        return float((gates > 0).double().mean(0).std())

    before = spread()
    for _ in range(300):
        output = model(planted.x, planted.mask, planted.node_type)
        update_selection_bias(model, output.trace, planted.mask, 5e-3)
    assert spread() < 0.5 * before
    assert moe.selection_bias.abs().max() > 0
