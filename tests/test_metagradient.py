"""The derivative of a training by the weights of its events: against finite differences and real removals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hepx.errors import ConfigError
from hepx.graph import GraphBatch
from hepx.influence.judge import rank_correlation
from hepx.influence.metagradient import Trajectory, metagradient
from hepx.influence.retrain import Change, Recipe, retrain
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.train import TrainSettings

NUM_TRAIN, NUM_QUERIES = 160, 6
SETTINGS = TrainSettings(epochs=3, batch_size=40, lr=3e-3, weights="sign")
ONE = Change("", 1)


@pytest.fixture(scope="module")
def planted() -> GraphBatch:
    return plant(toy_graphs(NUM_TRAIN + NUM_QUERIES, 4), MECHANISMS["mt"], 5)


def recipe(planted: GraphBatch, **model: object) -> Recipe:
    values = {"dim": 8, "num_layers": 1, "num_heads": 2, "expert_dim": 4, "num_experts": 4, "dropout": 0.0}
    settings = MoEGraphTransformerSettings.model_validate(values | {"gates": "soft"} | model)
    return Recipe(settings, SETTINGS, planted[:NUM_TRAIN], planted[NUM_TRAIN:])


def final_scores(study: Recipe, factor: torch.Tensor | None = None) -> torch.Tensor:
    """Of the training in float64, with factors on the weights of the events."""
    course = Trajectory(study, ONE)
    if factor is not None:
        course.events = course.events._replace(weight=course.events.weight * factor)
    end = course.points[-1]
    return course.score(end.vectors[0], end.buffers).detach()


def test_the_trajectory_is_the_training(planted: GraphBatch, tmp_path: Path) -> None:
    """In float64 what `retrain` does in float32; top-2 routing and its moving selection bias included."""
    for gates in ("soft", "top_k"):
        study = recipe(planted, gates=gates)
        (trained,) = retrain(study, [ONE], tmp_path / gates)
        assert np.abs(trained.score - final_scores(study).numpy()).max() < 1e-5


def test_metagradient_is_the_finite_difference(planted: GraphBatch, tmp_path: Path) -> None:
    """Central differences of step h miss by h²: 1e-6 of the value."""
    study, h = recipe(planted), 1e-3
    found = metagradient(study, ONE, tmp_path)
    assert found.shape == (NUM_TRAIN, NUM_QUERIES)
    for event in (0, 77):
        step = torch.zeros(NUM_TRAIN, dtype=torch.float64)
        step[event] = h
        change = (final_scores(study, 1 + step) - final_scores(study, 1 - step)) / (2 * h)
        assert torch.allclose(found[event], change, rtol=1e-4, atol=1e-8)
    assert not torch.allclose(found[0], found[77], rtol=0.1)
    assert torch.equal(metagradient(study, ONE, tmp_path), found), "kept in the folder"


def test_metagradient_predicts_the_removal_of_events(planted: GraphBatch, tmp_path: Path) -> None:
    """Subsets of 3 %; shuffled among the events it predicts nothing (16 subsets, 6 queries: 0.1 of noise)."""
    study, generator = recipe(planted), torch.Generator().manual_seed(2)
    found = metagradient(study, ONE, tmp_path)
    factors = torch.ones(16, NUM_TRAIN)
    for one in factors:
        one[torch.randperm(NUM_TRAIN, generator=generator)[:5]] = 0
    changes = [Change(f"drop {i}", 1, factor=one) for i, one in enumerate(factors)]
    actual = np.stack([one.score for one in retrain(study, changes, tmp_path)]).astype(np.float64)
    shuffled = found[torch.randperm(NUM_TRAIN, generator=generator)]
    predicted, null = ((factors.double() @ table).numpy() for table in (found, shuffled))
    assert rank_correlation(predicted, actual).mean() > 0.9
    assert abs(rank_correlation(null, actual).mean()) < 0.4


def test_what_is_random_is_refused(planted: GraphBatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.dropout=0"):
        metagradient(recipe(planted, dropout=0.1), ONE, tmp_path)
    study = Recipe(recipe(planted).model, SETTINGS.model_copy(update={"ema": 0.9}), planted, planted)
    with pytest.raises(ConfigError, match="without ema"):
        metagradient(study, ONE, tmp_path)
