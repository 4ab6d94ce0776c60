"""Splices and judgements: an identity changes nothing, exactly; errors are those of the plain bootstrap."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from insides_models import SMALL, mixed_graphs, small_network

from hepx import metrics
from hepx.errors import ConfigError
from hepx.graph import GraphBatch
from hepx.interventions import (
    Recorder,
    Referee,
    attention_names,
    auc_replicas,
    balanced_weight,
    regions_of,
    significances,
    spliced,
)
from hepx.models import MODELS, build_model, predict
from hepx.nulls import shuffled, shuffled_labels, untrained
from hepx.train import TrainSettings

ATTENTIVE = ("moe_graph_transformer", "graph_transformer", "particle_transformer", "paper_mgt")


@pytest.fixture(scope="module")
def mixed() -> GraphBatch:
    return mixed_graphs(1200, 3)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_a_splice_that_returns_its_arguments_changes_nothing(mixed: GraphBatch, name: str) -> None:
    """Bit by bit, in every place that analyses splice; negative control: another argument does change it."""
    model = build_model(MODELS[name][0](), mixed.layout, 1).eval()
    before = predict(model, mixed)
    for place in (*model.stream_names(), *attention_names(model)):
        assert torch.equal(predict(spliced(model, {place: lambda *a: a}), mixed), before), place
        assert not torch.equal(predict(spliced(model, {place: lambda h, *a: (0.9 * h, *a)}), mixed), before), place
    assert torch.equal(predict(model, mixed), before)
    recorder = Recorder(model, model.stream_names())
    (recorded,) = [output.logits for _, output in recorder.runs(mixed)]
    assert torch.equal(recorded, model(mixed.x, mixed.mask, mixed.node_type).logits)
    assert all(recorder.kept[place][0].shape[:2] == mixed.mask.shape for place in model.stream_names())


def test_replicas_equal_the_plain_bootstrap(mixed: GraphBatch) -> None:
    """Same seed, same numbers as one replica after the other, with ties and negative weights."""
    rng = np.random.default_rng(0)
    y = mixed.y.numpy()
    score = np.round(rng.normal(y, 1.0), 1)
    weight = np.where(rng.random(len(y)) < 0.1, -0.5, 1.0)
    draws = weight * np.random.default_rng(7).poisson(1.0, (40, len(y)))
    np.testing.assert_allclose(
        auc_replicas(y, score, draws), metrics.bootstrap_auc(y, score, weight, 40, 7), atol=1e-12
    )


def test_referee_judges_regions(mixed: GraphBatch) -> None:
    """Noise added in one region only: AUC is lost there, none outside; the unchanged score changes nothing."""
    model = small_network(mixed, 1)
    with_j3 = mixed.mask[:, 2].numpy()
    good = np.where(mixed.y == 1, 1.0, -1.0) + np.random.default_rng(1).normal(0, 1, len(mixed))
    referee = Referee(model, mixed, 1, 1, {"with j3": with_j3})
    object.__setattr__(referee, "reference", good)
    worse = good + 3 * np.random.default_rng(0).normal(size=len(good)) * with_j3
    everywhere, inside = referee.effects("noise", 0, 0, [worse])
    assert inside.outside == 0
    assert inside.outside_error == 0
    assert inside.selectivity == 1
    assert inside.significance() > 5
    assert everywhere.delta_auc is not None
    assert inside.delta_auc is not None
    assert inside.delta_auc < everywhere.delta_auc < 0
    assert all(effect.delta_auc == 0 for effect in referee.effects("nothing", 0, 0, [good, good]))


def test_change_of_the_significance(mixed: GraphBatch) -> None:
    """Nothing changes nothing; ten times the background behind the same cut costs what the formula says; without
    background there is none."""
    y = np.array([1] * 10 + [0] * 10)
    score = np.r_[np.arange(20, 10, -1), np.arange(10, 0, -1)].astype(float)
    score[10] = 30  # one background event passes every cut
    (found,) = significances(y, score, np.ones((1, 20)), 0.1)
    assert found == pytest.approx(float(metrics.asimov_significance(7.0, 1.0, 0.1)))
    score[10] = 0
    assert np.isnan(significances(y, score, np.ones((1, 20)), 0.1)).all()
    referee = Referee(small_network(mixed, 1), mixed, 1, 1, {}, np.ones(len(mixed)), 0.1)
    (same,) = referee.effects("nothing", 0, 0, [referee.reference])
    assert (same.delta_z, same.delta_z_error) == (0, 0)
    worse = np.random.default_rng(0).permutation(referee.reference)
    (shuffled_score,) = referee.effects("shuffled", 0, 0, [np.where(mixed.y == 1, 1.0, -1.0) + 0.1 * worse])
    assert shuffled_score.delta_z is None or shuffled_score.delta_z > 0


def test_regions_and_balanced_weights(mixed: GraphBatch) -> None:
    assert set(regions_of(mixed, {})) == {"with j3", "without j3"}
    found = regions_of(mixed, {"peak": "100 < mbb < 140", "nobody": "mbb < 0"})
    assert list(found) == ["peak"]
    mbb = mixed.observable("mbb").numpy()
    np.testing.assert_array_equal(found["peak"], (mbb > 100) & (mbb < 140))
    with pytest.raises(ConfigError, match=r"region 'peak': .*closest: 'mbb'"):
        regions_of(mixed, {"peak": "mbbb > 100"})
    with pytest.raises(ConfigError, match=r"region 'peak': 'mbb - 100' is a number, not a condition"):
        regions_of(mixed, {"peak": "mbb - 100"})
    layout = replace(mixed.layout, samples=("a", "b", "c"))
    sample = torch.arange(len(mixed)) % 3
    weight = torch.where(sample == 2, -1.0, 1.0 + sample).double()
    weights = balanced_weight(replace(mixed, layout=layout, sample=sample, weight=weight))
    assert [weights[sample == i].sum() for i in range(3)] == pytest.approx([1, 1, 0])


def test_null_networks_know_the_inputs_and_not_the_labels(mixed: GraphBatch, tmp_path: Path) -> None:
    """Shuffling keeps weight and process with the class; the network on shuffled labels is kept, and remade for
    another key; untrained ones have the trained scaling."""
    permuted = shuffled_labels(replace(mixed, weight=1.0 + mixed.y.double()), 1)
    assert torch.equal(permuted.weight, 1.0 + permuted.y.double())
    assert permuted.y.sum() == mixed.y.sum()
    assert float((permuted.y == mixed.y).double().mean()) < 0.6
    model = small_network(mixed, 1)

    def build(seed: int) -> torch.nn.Module:
        return build_model(SMALL, mixed.layout, seed)

    first, second = untrained(model, build, [1, 2])  # type: ignore[arg-type]
    assert torch.equal(first.model.inputs.mean, model.inputs.mean)
    assert not torch.equal(predict(first.model, mixed), predict(second.model, mixed))
    calls: list[int] = []

    def events() -> tuple[GraphBatch, GraphBatch]:
        calls.append(1)
        return mixed[:800], mixed[800:]

    settings = TrainSettings(epochs=1)
    arguments = (build, events, settings, 3, tmp_path / "null")
    one = shuffled(*arguments, "key", torch.device("cpu"))  # type: ignore[arg-type]
    again = shuffled(*arguments, "key", torch.device("cpu"))  # type: ignore[arg-type]
    assert len(calls) == 1
    assert torch.equal(predict(one.model, mixed), predict(again.model, mixed))
    shuffled(*arguments, "other", torch.device("cpu"))  # type: ignore[arg-type]
    assert len(calls) == 2
