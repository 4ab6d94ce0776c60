"""Network beside trees: identities where both are the same, known answers for planted physics, and their controls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from hepx import closure, evaluate, metrics
from hepx.attribution import Subject, background_events, event_table
from hepx.attribution.shapley import Shapley
from hepx.closure import ClosureSettings
from hepx.evaluate import Splits, fit_trees, observable_table
from hepx.graph import GraphBatch
from hepx.kinematics import HIGH_LEVEL
from hepx.models import build_model
from hepx.models.mlp import MLPSettings
from hepx.planted import toy_graphs
from hepx.results import Explanation, Provenance
from hepx.results_closure import Closure

Array = np.ndarray[Any, Any]
MT = HIGH_LEVEL.index("mt")


def planted(num: int, seed: int) -> GraphBatch:
    """Toy events, with labels by a peak in m_bb and nothing else; all observables as their nodes have them."""
    graphs = toy_graphs(num, seed=seed)
    own = graphs.x.double().numpy()
    kinds = list(graphs.layout.types)
    observables = graphs.observables.clone()
    for present in np.unique(graphs.mask.numpy(), axis=0):
        chosen = (graphs.mask.numpy() == present).all(1)
        here = np.flatnonzero(present)
        table = closure.event_observables(own[chosen][:, here], [kinds[i] for i in here], np.zeros((chosen.sum(), 2)))
        for name, column in zip(HIGH_LEVEL, table.T, strict=True):
            observables[torch.from_numpy(chosen), graphs.layout.observable_index(name)] = torch.from_numpy(column)
    mbb = observables[:, graphs.layout.observable_index("mbb")]
    signal = torch.rand(num, generator=torch.Generator().manual_seed(seed)) < torch.sigmoid(4 - (mbb - 125).abs() / 15)
    return replace(graphs, observables=observables, y=signal.long())


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits(planted(1500, 1), planted(500, 2), planted(600, 3))


@pytest.fixture(scope="module")
def subject(splits: Splits) -> Subject:
    models = [build_model(MLPSettings(), splits.test.layout, seed).eval() for seed in (1, 2)]
    for one in models:
        one.inputs.fit(splits.train, splits.train.weight)
    return Subject(models[0], models[1], splits.test[:60], splits.train, 1, 5)


@pytest.fixture(scope="module")
def fitted(splits: Splits) -> Any:
    return fit_trees(splits, [observable_table(splits.train), observable_table(splits.validation)], 0)


def test_observables_of_nodes_are_those_of_the_events() -> None:
    """On the events as they are, jets beside the nodes included; without those H_T is not that of the event."""
    graphs = planted(50, 8)
    full = graphs[graphs.mask.all(1)]
    own, kinds = full.x.double().numpy(), list(full.layout.types)
    ht, n_jet = (full.layout.observable_index(name) for name in ("ht", "n_jet"))
    full.observables[:, ht] += 40.0  # one jet of 40 GeV that is no node
    full.observables[:, n_jet] += 1
    rest = closure.not_nodes(full, own, kinds)
    np.testing.assert_allclose(rest, np.broadcast_to([1.0, 40.0], rest.shape), atol=1e-4)
    found = closure.event_observables(own, kinds, rest)
    np.testing.assert_allclose(found, observable_table(full), rtol=1e-6)
    alone = closure.event_observables(own, kinds, 0 * rest)
    assert (alone[:, HIGH_LEVEL.index("ht")] < observable_table(full)[:, HIGH_LEVEL.index("ht")] - 30).all()
    swapped = closure.event_observables(own[:, [1, 0, *range(2, own.shape[1])]], kinds, rest)
    np.testing.assert_allclose(swapped, found, rtol=1e-6)  # b1 is the harder one, wherever it stands


def test_the_game_of_the_trees_is_that_of_their_observables(subject: Subject, fitted: Any) -> None:
    """Values add up to score − mean score of the donors; only the b-jets matter where only m_bb was planted."""
    found = closure.tree_game(fitted, subject, Shapley(draws=8))
    score = fitted.score(observable_table(subject.graphs))
    np.testing.assert_allclose(found.score, score, atol=1e-5)
    size = np.abs(found.values).mean(0)
    pairs = np.abs(found.interactions).mean(0)
    assert size[[0, 1]].min() > 3 * size[2:].max()
    assert np.unravel_index(pairs.argmax(), pairs.shape) in ((0, 1), (1, 0))
    assert (found.values[~subject.graphs.mask.numpy()] == 0).all()


def test_the_information_is_in_the_right_place(splits: Splits, fitted: Any) -> None:
    """A score that knows the truth adds to the trees; noise adds nothing, and trees given the truth gain nothing."""
    rng = np.random.default_rng(0)
    events = (splits.train, splits.validation, splits.test)
    truth = [2.0 * evaluate.labels(g) + rng.normal(size=len(g)) for g in events]
    noise = [rng.normal(size=len(g)) for g in events]
    known, nothing = (
        {(one.name, one.minus): one for one in closure.separations(splits, scores, fitted, 0)}
        for scores in (truth, noise)
    )
    gain = known["both", "trees"]
    assert gain.auc > 4 * gain.error > 0
    assert abs(nothing["both", "trees"].auc) < 3 * nothing["both", "trees"].error + 0.005
    y, weight = evaluate.labels(splits.test), splits.test.weight.numpy()
    assert known["network", ""].auc == pytest.approx(metrics.auc(y, truth[2], weight))
    difference = known["network", ""].auc - known["trees", ""].auc
    assert known["network", "trees"].auc == pytest.approx(difference)
    apart = np.hypot(known["network", ""].error, known["trees", ""].error)
    assert gain.error < apart  # paired


def test_the_ranking_finds_what_was_planted(splits: Splits, subject: Subject, fitted: Any, monkeypatch: Any) -> None:
    """A network whose score is that of the trees ranks as they do, m_bb first; one that follows m_T does not."""

    def compare(same: bool) -> tuple[dict[str, Any], Any, Any]:
        def score(model: Any, graphs: GraphBatch, target: int) -> torch.Tensor:
            table = observable_table(graphs)
            own = fitted.score(table) if same and model is subject.model else np.nan_to_num(table[:, MT]) / 50
            return torch.from_numpy(own)

        monkeypatch.setattr(closure, "predict", score)
        scores = [score(subject.model, g, 1).numpy() for g in (splits.train, splits.validation, splits.test)]
        found = closure.variables(subject, splits, scores, fitted, 16)
        return {one.name: one for one in found.usage}, found.rankings[0], found.fidelity[0]

    usage, ranking, fidelity = compare(True)
    assert max(usage.values(), key=lambda one: one.network).name == "mbb"
    assert usage["mbb"].trees == pytest.approx(usage["mbb"].network, abs=0.05)
    assert usage["mbb"].likeness > 0.98
    assert fidelity.r2 > 0.95
    assert sum(one.trees for one in usage.values()) == pytest.approx(1)
    expected = stats.spearmanr([one.trees for one in usage.values()], [one.network for one in usage.values()]).statistic
    assert ranking.rho == pytest.approx(expected)
    assert ranking.rho > ranking.shuffled > ranking.untrained - 0.5
    wrong, other, _ = compare(False)
    assert max(wrong.values(), key=lambda one: one.network).name == "mt"
    assert other.rho < ranking.rho


def test_weights_are_honoured() -> None:
    """Shares: an event of weight 2 counts as two; with a weight of −1 it cancels an equal one."""
    values = np.random.default_rng(3).normal(size=(3, 1, 4))
    double = closure._shares(values, np.array([[1.0, 2, 0]]))
    twice = closure._shares(values[[0, 1, 1]], np.ones((1, 3)))
    np.testing.assert_allclose(double, twice)
    cancelled = closure._shares(values[[0, 1, 1]], np.array([[1.0, 1, -1]]))
    np.testing.assert_allclose(cancelled, closure._shares(values[:1], np.ones((1, 1))))


def explanation(graphs: GraphBatch, values: Array, provenance: Provenance) -> Explanation:
    zero = np.zeros(len(graphs))
    return Explanation(event_table(graphs), values, 0 * values, zero, zero, zero, None, None, "logit", provenance)


def test_means_regions_and_shifts(splits: Splits, provenance: Provenance) -> None:
    """Means are those of numpy; a variation that adds 0.3 to every value shifts up by 0.3 without error, one that
    takes 0.1 away adds to the other side, and an event that a variation loses does not count."""
    graphs = splits.test[:300]
    rng = np.random.default_rng(1)
    graphs = replace(graphs, weight=torch.from_numpy(rng.normal(1, 0.8, len(graphs))))
    values = rng.normal(size=graphs.mask.shape)
    varied = {"": values, "up": values + 0.3, "down": values - 0.1, "lost": values}
    lost = np.arange(0, 300, 2)
    found = {name: explanation(graphs, one, provenance) for name, one in varied.items()}
    found["lost"] = explanation(graphs[torch.from_numpy(lost)], values[lost] + 0.4, provenance)
    rows = closure.mean_attributions(splits.test, found, {"high": "mbb > 125"})
    mbb = graphs.observable("mbb").numpy()
    assert {one.where for one in rows} == {"all events", "high"}
    for one in rows:
        chosen = (graphs.sample.numpy() == graphs.layout.samples.index(one.sample)) & (
            (one.where != "high") | (mbb > 125)
        )
        slot, weight = graphs.layout.slots.index(one.object), graphs.weight.numpy()[chosen]
        assert one.events == chosen.sum()
        assert one.mean == pytest.approx(np.average(values[chosen, slot], weights=weight))
        np.testing.assert_allclose([*one.shifts["up"], *one.shifts["down"]], [0.3, 0, -0.1, 0], atol=1e-12)
        assert one.shifts["lost"] == pytest.approx((0.4, 0))
        assert (one.up, one.down) == pytest.approx((0.5, 0.1))  # 0.3 ⊕ 0.4


def test_everything_survives_a_file(splits: Splits, subject: Subject, provenance: Provenance, tmp_path: Path) -> None:
    """The whole comparison on small numbers; without trees, or with events of one class, only what is left."""
    nominal = Shapley(draws=4).explain(subject, replace(provenance, settings=Shapley(draws=4).model_dump(mode="json")))
    whole = replace(subject, graphs=splits.test)
    settings = ClosureSettings(events=40, draws=4)
    found = closure.closure(whole, splits, {"": nominal}, settings, provenance)
    found.save(tmp_path / "closure.json")
    assert json.loads((tmp_path / "closure.json").read_text())["num_events"] == found.num_events > 20
    again = Closure.load(tmp_path / "closure.json")
    assert again.usage == found.usage
    assert {one.kind for one in found.rankings} == {"variable", "object", "pair"}
    nodes = next(one for one in found.fidelity if "nodes" in one.name)
    assert nodes.r2 == pytest.approx(1)
    bare = closure.closure(whole, splits, {"": nominal}, settings, provenance, with_trees=False)
    assert (bare.usage, bare.means) == ([], found.means)
    only = replace(subject, graphs=background_events(subject.graphs, 1))
    background = Shapley(draws=4).explain(only, nominal.provenance)
    one_class = closure.closure(whole, splits, {"": background}, settings, provenance)
    assert one_class.usage == []
    assert len(one_class.information) == 6
