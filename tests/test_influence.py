"""Scores of training events against captum, closed forms and real retraining; and a contract that all of them keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.influence import TracInCP, TracInCPFast
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hepx.attribution import Shard
from hepx.errors import ConfigError
from hepx.graph import GraphBatch
from hepx.influence import SCORES, Score, Snapshot, Task, read_snapshots
from hepx.models import Model, Output, build_model, predict
from hepx.models.base import empty_trace
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.train import TrainSettings, fit
from hepx.train.snapshots import load_snapshot

SMALL = MoEGraphTransformerSettings(dim=16, expert_dim=8, num_heads=2)
PAIRWISE = sorted(name for name, kind in SCORES.items() if kind.pairwise)
ALONE = sorted(name for name, kind in SCORES.items() if kind.on_itself)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A small transformer trained for four epochs, with three snapshots."""
    folder = tmp_path_factory.mktemp("trained")
    graphs = plant(toy_graphs(500, 4), MECHANISMS["mt"], 5)
    model = build_model(SMALL, graphs.layout, 1)
    settings = TrainSettings(epochs=4, batch_size=32, lr=3e-3, snapshots=3)
    fit(model, graphs[:300], graphs[300:400], settings, 1, folder)
    generator = torch.Generator().manual_seed(2)
    weight = torch.rand(160, generator=generator) * 2 - 0.3
    return Task(
        model, folder / "best.safetensors", read_snapshots(folder), graphs[:160], weight, graphs[400:420], seed=3
    )


def make(name: str, **settings: Any) -> Score:
    """A score, exact where it can be."""
    if "projection" in SCORES[name].model_fields:
        settings = {"projection": 64 if name == "trak" else 0, **settings}
    return SCORES[name](**settings)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


class Plain(nn.Module):
    """A model as captum wants it: one tensor out."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, mask: Tensor, node_type: Tensor) -> Tensor:
        return self.model(x, mask, node_type).logits


def load(module: nn.Module, path: str) -> float:
    assert isinstance(module, Plain)
    load_snapshot(module.model, Path(path))
    return 0.5  # the learning rate as captum takes it


def dataset(graphs: GraphBatch) -> TensorDataset:
    return TensorDataset(graphs.x, graphs.mask, graphs.node_type, graphs.y)


def captums(task: Task, kind: Callable[..., Any], **arguments: Any) -> Any:
    return kind(
        model=Plain(build_model(SMALL, task.train.layout, 1)).eval(),
        train_dataset=dataset(task.train),
        checkpoints=[str(one.weights) for one in task.snapshots],
        checkpoints_load_func=load,
        batch_size=50,
        **arguments,
    )


def captums_scores(oracle: Any, task: Task) -> tuple[Tensor, Tensor]:
    """Self-influence [B] and influence on the losses of the queries [B, Q]."""
    inputs = (task.query.x, task.query.mask, task.query.node_type, task.query.y)
    return oracle.self_influence(show_progress=False), oracle.influence(inputs, show_progress=False).T


def on_loss(name: str, task: Task) -> Tensor:
    """Influence on the losses of the queries: that on their scores times −∂loss/∂score, snapshot by snapshot."""
    found = torch.zeros(len(task.train), len(task.query))
    for snapshot in task.snapshots:
        found += make(name).influence(replace(task, snapshots=(snapshot,))) * slope(task, snapshot, task.query)
    return found


def slope(task: Task, snapshot: Snapshot, graphs: GraphBatch) -> Tensor:
    """−∂loss/∂score of each event."""
    model = build_model(SMALL, task.train.layout, 1)
    load_snapshot(model, snapshot.weights)
    sign = 2.0 * graphs.y - 1
    return sign * torch.sigmoid(-sign * predict(model, graphs))


@pytest.fixture(scope="module")
def few(task: Task) -> Task:
    """Some of the events, with the weights and learning rates that captum takes."""
    snapshots = tuple(replace(one, lr=0.5) for one in task.snapshots)
    return replace(task, train=task.train[:60], weight=torch.ones(60), query=task.query[:8], snapshots=snapshots)


def test_tracin_is_captums(few: Task) -> None:
    oracle = captums(few, TracInCP, loss_fn=nn.CrossEntropyLoss(reduction="none"))
    own, pairs = captums_scores(oracle, few)
    torch.testing.assert_close(make("tracin").of_training(few), own, rtol=1e-4, atol=1e-5 * float(own.max()))
    found = on_loss("tracin", few)
    torch.testing.assert_close(found, pairs, rtol=1e-4, atol=1e-5 * float(pairs.abs().max()))
    assert correlation(found, pairs.flip(0)) < 0.9  # the control: other events


def test_the_last_layer_is_captums_and_its_bias(few: Task) -> None:
    """captum leaves out the bias of the layer, whose two gradients are ± the residual."""
    oracle = captums(few, TracInCPFast, loss_fn=nn.CrossEntropyLoss(reduction="sum"), final_fc_layer="model.head.2")
    own, pairs = captums_scores(oracle, few)
    for snapshot in few.snapshots:
        residual, query = slope(few, snapshot, few.train), slope(few, snapshot, few.query)
        own = own + 0.5 * 2 * residual.square()
        pairs = pairs + 0.5 * 2 * torch.outer(residual, query)
    torch.testing.assert_close(make("last_layer").of_training(few), own, rtol=1e-4, atol=1e-5 * float(own.max()))
    found = on_loss("last_layer", few)
    torch.testing.assert_close(found, pairs, rtol=1e-4, atol=1e-5 * float(pairs.abs().max()))


def test_projected_influence_is_close_to_the_exact_one(task: Task) -> None:
    for name in ("tracin", "grad_dot", "grad_cos"):
        exact, sketch = make(name).influence(task), make(name, projection=2048).influence(task)
        assert correlation(exact, sketch) > 0.99
        assert correlation(exact, sketch.flip(0)) < 0.9
    torch.testing.assert_close(make("tracin").of_training(task), make("tracin", projection=64).of_training(task))


def test_weights_enter_with_their_sign(task: Task) -> None:
    turned = replace(task, weight=-2 * task.weight)
    for name in ("tracin", "last_layer", "grad_dot"):
        torch.testing.assert_close(make(name).influence(turned), -2 * make(name).influence(task))
        torch.testing.assert_close(make(name).of_training(turned), 4 * make(name).of_training(task))
    for name in ("grad_cos", "representation"):
        torch.testing.assert_close(make(name).influence(turned), -make(name).influence(task))
    assert (task.weight < 0).any()


class Regression(Model):
    """Logistic regression on the pt of the first two objects and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: Tensor, mask: Tensor, node_type: Tensor, *_: Any, **__: Any) -> Output:
        score = self.linear(x[:, :2, 0])
        return Output(torch.cat([torch.zeros_like(score), score], 1), empty_trace(mask, 0))


def fitted(features: Float[Tensor, "B 3"], y: Tensor, weight: Tensor, ridge: float) -> Tensor:
    """The minimum of Σ w ℓ + ridge/2 |θ|², by Newton's method."""
    theta = torch.zeros(3, dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(features @ theta)
        gradient = features.T @ (weight * (p - y)) + ridge * theta
        theta = theta - torch.linalg.solve(
            features.T @ (features * (weight * p * (1 - p))[:, None]) + ridge * torch.eye(3), gradient
        )
    return theta


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Tensor, Tensor]:
    """A logistic regression at its minimum, its features [B, 3], and the true effect [B, Q] of each event."""
    rng, graphs = np.random.default_rng(5), toy_graphs(120, 5)
    x = torch.zeros_like(graphs.x)
    x[:, :2, 0] = torch.from_numpy(rng.normal(size=(120, 2))).float()
    y = torch.from_numpy((x[:, 0, 0].numpy() + rng.normal(size=120) > 0).astype(np.int64))
    graphs = replace(graphs, x=x, y=y)
    features = torch.cat([x[:, :2, 0], torch.ones(120, 1)], 1).double()
    train, query, weight = features[:80], features[80:], torch.from_numpy(rng.uniform(0.2, 2, 80))
    theta = fitted(train, y[:80].double(), weight, 1.0)
    effect = []
    for one in range(80):
        without = weight.clone()
        without[one] = 0
        effect.append(query @ (theta - fitted(train, y[:80].double(), without, 1.0)))
    path = tmp_path_factory.mktemp("regression") / "weights.safetensors"
    save_file({"linear.weight": theta[None, :2].float().contiguous(), "linear.bias": theta[2:].float().clone()}, path)
    task = Task(Regression(), path, (Snapshot(path, 0.3, 1),), graphs[:80], weight, graphs[80:], 1)
    return task, features, torch.stack(effect)


def test_closed_forms_of_a_logistic_regression(regression: tuple[Task, Tensor, Tensor]) -> None:
    task, features, _ = regression
    theta = torch.cat([one.flatten() for one in (load_file(task.trained)[f"linear.{n}"] for n in ("weight", "bias"))])
    residual = task.train.y - torch.sigmoid(features[:80] @ theta.double())
    exact = (task.weight * residual)[:, None] * (features[:80] @ features[80:].T)
    for name, factor in (("tracin", 0.3), ("last_layer", 0.3), ("grad_dot", 1.0)):
        torch.testing.assert_close(make(name).influence(task), factor * exact.float(), rtol=1e-4, atol=1e-5)
        squares = (task.weight * residual) ** 2 * features[:80].square().sum(1)
        torch.testing.assert_close(make(name).of_training(task), factor * squares.float(), rtol=1e-4, atol=1e-6)
    cosine = (
        torch.sign(residual)[:, None]
        * nn.functional.normalize(features[:80])
        @ nn.functional.normalize(features[80:]).T
    )
    torch.testing.assert_close(make("grad_cos").influence(task), cosine.float(), rtol=1e-4, atol=1e-5)
    gram = features[:80].T @ (features[:80] * task.weight[:, None])
    for projection in (
        16,
        64,
    ):  # more numbers than parameters: the sketch loses nothing, only the mean eigenvalue counts
        ridge = 2.0
        inverse = torch.linalg.inv(gram + ridge * gram.trace() / projection * torch.eye(3))
        exact = (task.weight * residual)[:, None] * (features[:80] @ inverse @ features[80:].T)
        trak = SCORES["trak"](projection=projection, ridge=ridge)
        torch.testing.assert_close(trak.influence(task), exact.float(), rtol=1e-3, atol=1e-5)
        own = task.weight * residual.abs() * ((features[:80] @ inverse) * features[:80]).sum(1)
        torch.testing.assert_close(trak.of_training(task), own.float(), rtol=1e-3, atol=1e-5)


def test_trak_predicts_what_leaving_an_event_out_does(regression: tuple[Task, Tensor, Tensor]) -> None:
    """Against 80 real refits. TRAK leaves out the factor p (1 − p) of the curvature, so it is not exact; without any
    curvature it is further off, and random numbers say nothing."""
    task, _, effect = regression
    trak = correlation(SCORES["trak"](projection=16, ridge=0.01).influence(task), effect)
    assert trak > 0.9
    assert trak > correlation(make("grad_dot").influence(task), effect)
    assert abs(correlation(make("random").influence(task), effect)) < 4 / 3200**0.5
    assert correlation(SCORES["trak"](projection=16).influence(task).flip(0), effect) < 0.5


def test_trak_averages_over_trainings(task: Task) -> None:
    trak = SCORES["trak"]
    single = [trak(projection=64).influence(replace(task, trained=one.weights)) for one in task.snapshots]
    both = trak(projection=64).influence(
        replace(task, trained=task.snapshots[0].weights, others=tuple(one.weights for one in task.snapshots[1:]))
    )
    snapshots = trak(projection=64, members="snapshots").influence(task)
    torch.testing.assert_close(both, snapshots)
    assert all(correlation(one, both) > 0.3 for one in single)
    assert not torch.allclose(both, torch.stack(single).mean(0))  # the mean of the products, not of the scores
    same = trak(projection=64).influence(replace(task, others=(task.trained,)))
    torch.testing.assert_close(same, trak(projection=64).influence(task))


def test_trak_scans_the_ridge(task: Task) -> None:
    found = SCORES["trak"](projection=64).scan(task, (0.01, 1.0))
    for ridge, influence in found.items():
        torch.testing.assert_close(influence, SCORES["trak"](projection=64, ridge=ridge).influence(task))
    assert not torch.allclose(found[0.01], found[1.0])


@pytest.mark.parametrize("name", sorted(SCORES))
def test_contract_of_every_score(name: str, task: Task) -> None:
    score = make(name)
    assert score.name == name
    assert SCORES[name]().name == name
    assert score.model_config["frozen"]
    assert SCORES[name].__doc__
    if not score.on_itself:
        with pytest.raises(ConfigError, match="pairs of events only"):
            score.of_training(task)
    if not score.pairwise:
        with pytest.raises(ConfigError, match="training events only"):
            score.influence(task)
    assert score.on_itself or score.pairwise
    before = {name: one.clone() for name, one in task.model.state_dict().items()}
    for found in _results(score, task):
        assert torch.isfinite(found).all()
        assert found.dtype == torch.float32
        assert found.std() > 0
    for name, one in task.model.state_dict().items():
        assert torch.equal(one, before[name])
    assert all(parameter.requires_grad for parameter in task.model.parameters())


def _results(score: Score, task: Task) -> list[Tensor]:
    found = []
    if score.on_itself:
        found.append(score.of_training(task))
        assert found[-1].shape == (len(task.train),)
    if score.pairwise:
        found.append(score.influence(task))
        assert found[-1].shape == (len(task.train), len(task.query))
    return found


@pytest.mark.parametrize("name", sorted(SCORES))
def test_a_score_does_not_depend_on_order_and_blocks(
    name: str, task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    score = make(name)
    first = _results(score, task)
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(1))
    turned = _results(score, replace(task, train=task.train[order], weight=task.weight[order]))
    monkeypatch.setattr("hepx.influence.store.ROWS", 64)
    monkeypatch.setattr("hepx.influence.baselines.ROWS", 64)
    sketched = make(name, projection=64) if "projection" in SCORES[name].model_fields else score
    blocks = _results(sketched, replace(task, cache=tmp_path))
    monkeypatch.undo()
    reference = _results(sketched, task)
    for a, b in zip(first, turned, strict=True):
        torch.testing.assert_close(b, a[order], rtol=1e-3, atol=1e-4 * float(a.abs().max()))
    for a, b in zip(reference, blocks, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("name", ["tracin", "trak"])
def test_kept_gradients_are_computed_once_by_anyone(
    name: str, task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three shards, one of them killed half-way, fill the cache; then nothing is computed any more."""
    monkeypatch.setattr("hepx.influence.store.ROWS", 32)
    kept, score = replace(task, cache=tmp_path / "shared"), SCORES[name](projection=64)
    expected = score.influence(replace(task, cache=tmp_path / "alone"))
    for shard in (0, 1, 2):
        score.prepare(kept, Shard(shard, 3))
    files = sorted((tmp_path / "shared").rglob("*.safetensors"))
    assert len(files) == len(list((tmp_path / "alone").rglob("*.safetensors")))
    files[0].unlink()  # what a kill loses
    score.prepare(kept, Shard(0, 3))
    if not files[0].exists():
        score.prepare(kept, Shard(1, 3))
        score.prepare(kept, Shard(2, 3))
    monkeypatch.setattr("hepx.influence.store.gradients", None)  # would fail if it were called
    torch.testing.assert_close(score.influence(kept), expected, rtol=0, atol=0)
    with pytest.raises(TypeError):  # the control: other events have other gradients
        score.influence(replace(kept, train=task.train[:100], weight=task.weight[:100]))


def test_exact_influence_on_many_queries_is_refused(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepx.influence.store.MAX_EXACT", 1e5)
    with pytest.raises(ConfigError, match=r"projection=0 \(exact\) keeps .* GB .*20 queries"):
        SCORES["tracin"](projection=0).influence(task)


def test_flipped_labels_have_the_largest_losses(task: Task) -> None:
    """Labels turned after the training are hard to explain; order and control by random numbers."""
    chosen = torch.arange(160) % 10 == 0
    y = torch.where(chosen, 1 - task.train.y, task.train.y)
    flipped = replace(task, train=replace(task.train, y=y), weight=torch.ones(160))
    for name in ("loss", "el2n", "tracin", "last_layer"):
        found = make(name).of_training(flipped)
        assert float((found[chosen][:, None] > found[~chosen]).float().mean()) > 0.6, name
    found = make("random").of_training(flipped)
    assert abs(float((found[chosen][:, None] > found[~chosen]).float().mean()) - 0.5) < 0.2
