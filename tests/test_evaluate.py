"""Evaluation: the same question for every classifier, cuts from other events, yields at the luminosity, points."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hepx import evaluate, metrics
from hepx.errors import ConfigError, DataError
from hepx.evaluate import EvaluateSettings, Evaluation, Splits
from hepx.graph import GraphBatch
from hepx.models import Model, build_model, predict
from hepx.models.base import Output, empty_trace
from hepx.models.inputs import Inputs
from hepx.models.mlp import MLPSettings
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.results import Measured

MASSES = np.array([[200.0, 50.0], [300.0, 50.0]])


class Bayes(Model):
    """The true log-odds of the planted label, plus what the label does not depend on."""

    def __init__(self, graphs: GraphBatch, noise: float = 0.0) -> None:
        super().__init__()
        self.inputs, self.slots, self.noise = Inputs(graphs.layout, ("eta",), ()), graphs.layout.slots, noise
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, mask, node_type, routing=None, noise=None) -> Output:  # type: ignore[no-untyped-def]
        score = MECHANISMS["mt"].score(x, node_type, self.slots) + self.noise * x[:, 0, 1]
        return Output(torch.stack([torch.zeros_like(score), score], 1), empty_trace(mask, 0))


def make_split(number: int, seed: int) -> GraphBatch:
    """Signal of two mass points, two backgrounds, some negative weights."""
    graphs = plant(toy_graphs(number, seed), MECHANISMS["mt"], seed + 1)
    rng = np.random.default_rng(seed)
    layout = graphs.layout
    names = (*layout.observables, "mass_chargino", "mass_lsp")
    layout = replace(
        layout,
        observables=names,
        observable_units=(*layout.observable_units, "GeV", "GeV"),
        samples=("signal", "ttbar", "singletop"),
        labels=(1, 0, 0),
    )
    y = graphs.y.numpy()
    point = rng.integers(0, 2, number)
    masses = np.where(y[:, None] == 1, MASSES[point], 0.0)
    channel = np.where(y == 1, 500 + point, 400)
    weight = np.where(y == 1, 0.5, 3.0) * np.where(rng.random(number) < 0.05, -1.0, 1.0)
    return replace(
        graphs,
        layout=layout,
        sample=torch.from_numpy(np.where(y == 1, 0, rng.integers(1, 3, number))),
        weight=torch.from_numpy(weight),
        event_id=torch.from_numpy(channel * 10**12 + seed * 10**6 + np.arange(number)),
        observables=torch.cat([graphs.observables, torch.from_numpy(masses)], 1),
    )


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits(make_split(1800, 1), make_split(900, 20), make_split(1200, 40))


POINTS = EvaluateSettings(points=("mass_chargino", "mass_lsp"), trees=False)


@pytest.fixture(scope="module")
def found(splits: Splits) -> Evaluation:
    return evaluate.evaluate(Bayes(splits.test), splits, POINTS, 1)


def test_numbers_are_those_of_the_plain_functions(found: Evaluation, splits: Splits) -> None:
    test = splits.test
    y, weight = test.y.numpy(), test.weight.numpy()
    score = predict(Bayes(test), test).double().numpy()
    auc = found.metrics["auc"]
    assert auc["value"] == pytest.approx(metrics.auc(y, score, weight), abs=1e-12)
    replicas = metrics.bootstrap_auc(y, score, weight, evaluate.REPLICAS, evaluate.BOOTSTRAP_SEED)
    assert auc["error"] == pytest.approx(replicas.std(), rel=1e-3)  # replicas are kept in single precision
    decided = metrics.confusion(y, score > 0, weight)
    assert found.metrics["f1"]["value"] == pytest.approx(decided.f1)
    for row in found.metrics["rejection"]:
        expected, error = metrics.rejection(y, score, weight, row["signal_efficiency"])
        if np.isinf(expected):
            assert row["value"] is None
            continue
        assert row["value"] == pytest.approx(expected)
        assert 0.6 * error < row["error"] < 3 * error  # the plain one knows nothing of the error of the cut
    for group in found.metrics["groups"][:2]:
        chosen = (y == 1) | (test.sample.numpy() == test.layout.samples.index(group["name"]))
        assert group["auc"]["value"] == pytest.approx(metrics.auc(y[chosen], score[chosen], weight[chosen]))


def test_accuracy_error_is_the_binomial_one_without_weights(splits: Splits) -> None:
    equal = [replace(g, weight=torch.ones_like(g.weight)) for g in (splits.train, splits.validation, splits.test)]
    result = evaluate.evaluate(Bayes(splits.test), Splits(*equal), POINTS, 1).metrics
    y = equal[2].y.numpy()
    right = [result["recall"]["value"], 2 * result["accuracy"]["value"] - result["recall"]["value"]]
    variance = sum(p * (1 - p) / (y == label).sum() for p, label in zip(right, (1, 0), strict=True)) / 4
    assert result["accuracy"]["error"] == pytest.approx(variance**0.5, rel=0.2)  # 200 replicas: 5 %


def test_cut_of_the_significance_comes_from_the_validation_events(found: Evaluation, splits: Splits) -> None:
    """Other test events leave it where it is, other validation events do not; the count is that of the test events."""
    point = found.metrics["groups"][-1]
    other = evaluate.evaluate(Bayes(splits.test), replace(splits, test=make_split(1200, 60)), POINTS, 1)
    assert other.metrics["groups"][-1]["significance"]["cut"] == point["significance"]["cut"]
    assert other.metrics["groups"][-1]["significance"]["value"] != point["significance"]["value"]
    moved = evaluate.evaluate(Bayes(splits.test), replace(splits, validation=make_split(900, 61)), POINTS, 1)
    assert moved.metrics["groups"][-1]["significance"]["cut"] != point["significance"]["cut"]
    test, factors = splits.test, found.metrics["yield_factors"]
    score = predict(Bayes(test), test).double().numpy()
    yields = test.weight.numpy() * np.array([factors[name] for name in test.layout.samples])[test.sample.numpy()]
    signal = (test.observable("mass_chargino") == 300).numpy()
    passed = score >= point["significance"]["cut"]
    background = yields[passed & (test.y == 0).numpy()].sum()
    assert point["significance"]["background"] == pytest.approx(background)
    expected = metrics.asimov_significance(yields[passed & signal].sum(), background, 0.2 * background)
    assert point["significance"]["value"] == pytest.approx(float(expected))


def test_yields_of_the_test_events_stand_for_all_events(found: Evaluation, splits: Splits) -> None:
    total = sum(float(g.weight[g.y == 0].sum()) for g in (splits.train, splits.validation, splits.test))
    assert found.metrics["background_yield"] == pytest.approx(total)
    negative = replace(splits, test=replace(splits.test, weight=-splits.test.weight))
    with pytest.raises(DataError, match=r"sample .signal. has a total weight of -.* in the test events"):
        evaluate.evaluate(Bayes(splits.test), negative, POINTS, 1)


def test_significance_over_all_points_is_their_mean(found: Evaluation, splits: Splits) -> None:
    points = [g["significance"]["value"] for g in found.metrics["groups"] if g["kind"] == "point"]
    assert len(points) == 2
    assert found.metrics["significance"]["value"] == pytest.approx(np.mean(points))
    assert "cut" not in found.metrics["significance"]
    whole = evaluate.evaluate(Bayes(splits.test), splits, EvaluateSettings(trees=False), 1)
    assert whole.metrics["significance"]["value"] > max(points)
    assert [g["kind"] for g in whole.metrics["groups"]] == ["background", "background"]


def test_channel_numbers_and_columns_name_the_same_points(found: Evaluation, splits: Splits) -> None:
    by_channel = EvaluateSettings(points=("channel",), trees=False)
    other = evaluate.evaluate(Bayes(splits.test), splits, by_channel, 1)
    assert [g["point"] for g in other.metrics["groups"][2:]] == [{"channel": 500.0}, {"channel": 501.0}]
    np.testing.assert_array_equal(other.measured.values, found.measured.values)
    with pytest.raises(ConfigError, match="unknown observable 'mass_charginos'; closest: 'mass_chargino'"):
        evaluate.evaluate(Bayes(splits.test), splits, EvaluateSettings(points=("mass_charginos",)), 1)


def test_signal_samples_are_points_where_there_are_several(splits: Splits) -> None:
    def two(graphs: GraphBatch) -> GraphBatch:
        sample = torch.where(graphs.y == 1, (graphs.observable("mass_chargino") == 300).long(), 2)
        return replace(graphs, sample=sample, layout=replace(graphs.layout, labels=(1, 1, 0)))

    parts = Splits(two(splits.train), two(splits.validation), two(splits.test))
    result = evaluate.evaluate(Bayes(splits.test), parts, EvaluateSettings(trees=False), 1)
    kinds = [(g["kind"], g["name"]) for g in result.metrics["groups"]]
    assert kinds == [("signal", "signal"), ("signal", "ttbar"), ("background", "singletop")]
    values = [g["significance"]["value"] for g in result.metrics["groups"][:2]]
    assert result.metrics["significance"]["value"] == pytest.approx(np.mean(values))


def test_true_log_odds_are_calibrated_at_both_priors(splits: Splits) -> None:
    """Labels are drawn from the score; both classes get the weight they had then, or their yields."""
    equal = [replace(g, weight=torch.ones_like(g.weight)) for g in (splits.train, splits.validation, splits.test)]
    prior = math.log(int((equal[0].y == 1).sum()) / int((equal[0].y == 0).sum()))
    shift = Bayes(splits.test)
    forward = shift.forward
    shift.forward = lambda *a, **k: (lambda o: o._replace(logits=o.logits - torch.tensor([0.0, prior])))(
        forward(*a, **k)
    )  # type: ignore[method-assign]
    found = evaluate.evaluate(shift, Splits(*equal), EvaluateSettings(trees=False), 1).metrics["calibration"]
    assert found["prior_log_odds"] == pytest.approx(prior)
    for key in ("equal_classes", "expected_yields"):
        assert found[key]["error"] < 2 * found[key]["error_if_perfect"]
    wrong = evaluate.evaluate(Bayes(splits.test, noise=3.0), Splits(*equal), EvaluateSettings(trees=False), 1)
    reliability = wrong.metrics["calibration"]["equal_classes"]
    assert reliability["error"] > 2 * reliability["error_if_perfect"]


def test_replicas_are_common_to_all_runs_so_that_differences_are_paired(splits: Splits, tmp_path: Path) -> None:
    first, again, other = (
        evaluate.evaluate(Bayes(splits.test, noise), splits, POINTS, seed).measured
        for noise, seed in ((0.0, 1), (0.0, 2), (0.02, 3))
    )
    np.testing.assert_array_equal(first.replicas, again.replicas)
    difference = first.replicas[:, 0, 0, 0] - other.replicas[:, 0, 0, 0]
    assert difference.std() < 0.2 * first.replicas[:, 0, 0, 0].std()
    first.save(tmp_path / "replicas.npz")
    loaded = Measured.load(tmp_path / "replicas.npz")
    assert (loaded.groups, loaded.measures) == (first.groups, first.measures)
    np.testing.assert_array_equal(loaded.values, first.values)


def test_trees_see_what_they_are_given(splits: Splits) -> None:
    """Trees that know m_T nearly reach the true log-odds; a model without information is worse by many errors."""
    model = build_model(MLPSettings(hidden_dim=8), splits.test.layout, 1)
    result = evaluate.evaluate(model, splits, EvaluateSettings(signal_efficiencies=(0.5,)), 1).metrics
    names = [reference["name"] for reference in result["references"]]
    assert names == ["trees on 2 observables", "trees on the node table"]
    best = evaluate.evaluate(Bayes(splits.test), splits, POINTS, 1).metrics["auc"]["value"]
    assert best - 0.05 < result["references"][0]["auc"]["value"] < best + 0.01
    for reference in result["references"]:
        change = reference["difference"]["auc"]
        assert change["value"] == pytest.approx(result["auc"]["value"] - reference["auc"]["value"])
        assert change["value"] < -5 * change["error"]
