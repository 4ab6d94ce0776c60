"""Gradient-boosted trees as a model: scikit-learn as the oracle, planted truth, and what they refuse."""

from __future__ import annotations

import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pyarrow import parquet

from hepx import evaluate, files, nulls, trees
from hepx.attribution import METHODS, Subject, explain
from hepx.errors import ConfigError
from hepx.evaluate import EvaluateSettings, Splits
from hepx.graph import GraphBatch, GraphSettings, NodeSettings, make_layout
from hepx.kinematics import HIGH_LEVEL
from hepx.models import build_model, flaws, predict, symmetries
from hepx.models.boosted_trees import BoostedTrees, BoostedTreesSettings
from hepx.models.mlp import MLPSettings
from hepx.models.tables import node_observables
from hepx.notebook import explain as explain_anything
from hepx.notebook import open_run
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.results import Provenance
from hepx.results_closure import Closure
from hepx.run import Run
from hepx.train import Epoch, TrainSettings, fit, load_weights, training_weights
from hepx.trees import Table, Trees

ROOT = Path(__file__).parent.parent
Inputs = Literal["observables", "nodes"]
INPUTS: tuple[Inputs, ...] = ("observables", "nodes")
GRADIENTS = sorted(name for name, method in METHODS.items() if method.needs_gradients)


@pytest.fixture(scope="module")
def splits() -> Splits:
    """m_bb planted; all observables filled, weights with a tenth of negative ones."""
    graphs = plant(toy_graphs(3000, 4), MECHANISMS["mbb"], 5)
    observables = torch.from_numpy(node_observables(*(t.numpy() for t in (graphs.x, graphs.mask, graphs.node_type))))
    graphs.observables[:, [graphs.layout.observable_index(name) for name in HIGH_LEVEL]] = observables
    weight = torch.rand(3000, generator=torch.Generator().manual_seed(6), dtype=torch.float64) - 0.1
    graphs = replace(graphs, weight=weight)
    return Splits(graphs[:1800], graphs[1800:2400], graphs[2400:])


def table_of(model: BoostedTrees, graphs: GraphBatch) -> Table:
    weight = training_weights(graphs).abs().numpy()
    return Table(model.table(graphs.x, graphs.mask, graphs.node_type), graphs.y.numpy(), weight)


def grown(splits: Splits, inputs: Inputs = "observables", **more: Any) -> tuple[BoostedTrees, Trees]:
    model = build_model(BoostedTreesSettings(inputs=inputs, **more), splits.train.layout, 1)
    assert isinstance(model, BoostedTrees)
    return model, model.grow(table_of(model, splits.train), table_of(model, splits.validation), 1)


@pytest.mark.parametrize("inputs", INPUTS)
def test_scores_are_those_of_scikit_learn(inputs: Inputs, splits: Splits, tmp_path: Path) -> None:
    """To 1e-9, with absent objects as missing values, and with a column that no training event fills; also of a copy
    and of the weights in a file. A threshold that is moved shows."""
    train = splits.train if inputs == "observables" else replace(splits.train, mask=splits.train.mask.clone())
    if inputs == "nodes":
        train.mask[:, 3] = False
    model, fitted = grown(replace(splits, train=train), inputs)
    table = table_of(model, splits.test).x
    assert np.isnan(table).any() == (inputs == "nodes")
    assert fitted.known.all() == (inputs == "observables")
    expected = fitted.score(table)
    assert expected.std() > 0.5
    np.testing.assert_allclose(predict(model, splits.test).numpy(), expected, atol=1e-9)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = build_model(model.settings, train.layout, 2)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(predict(other, splits.test), predict(deepcopy(model), splits.test))
    assert model.num_fitted == sum(len(nodes) for nodes in trees.nodes_of(fitted.estimator))
    other.threshold[0, 0] += 20
    assert np.abs(predict(other, splits.test).numpy() - expected).max() > 1e-3
    anew = model.grow(
        table_of(model, train[:300]), table_of(model, splits.validation), 1
    )  # nothing is left of the first
    assert model.num_fitted == sum(len(nodes) for nodes in trees.nodes_of(anew.estimator)) < other.num_fitted
    np.testing.assert_allclose(predict(model, splits.test).numpy(), anew.score(table), atol=1e-9)


def test_missing_objects_go_the_way_that_was_learned(splits: Splits) -> None:
    """Class 1 has a third jet: hiding it turns the answer; hiding what was always there says nothing of the class."""
    there = {name: replace(g, y=g.mask[:, 2].long()) for name, g in vars(splits).items()}
    model, _ = grown(Splits(**there), "nodes")
    having = splits.test[splits.test.mask[:, 2]]
    mask = having.mask.clone()
    mask[:, 2] = False
    assert predict(model, having).min() > 2
    assert predict(model, replace(having, mask=mask)).max() < -2
    mask = having.mask.clone()
    mask[:, 0] = False
    assert predict(model, replace(having, mask=mask)).min() > 2


@pytest.mark.parametrize("inputs", INPUTS)
def test_a_trained_model_is_the_reference_of_the_evaluation(inputs: Inputs, splits: Splits, tmp_path: Path) -> None:
    """The same seed, the same table and |w|: the same scores in one table. The other table is the control, and trees
    that leave out events of negative weight are others."""
    model = build_model(BoostedTreesSettings(inputs=inputs), splits.train.layout, 7)
    history = fit(model, splits.train, splits.validation, TrainSettings(), 7, tmp_path)
    scores = evaluate.evaluate(model, splits, EvaluateSettings(), 7).scores
    same, *_ = (scores[f"trees_{name}"].to_numpy() for name in sorted(INPUTS, key=lambda name: name != inputs))
    np.testing.assert_allclose(scores["score"].to_numpy(), same, atol=1e-9)
    assert np.abs(scores["trees_nodes"].to_numpy() - scores["trees_observables"].to_numpy()).max() > 0.1
    kept = [one[one.weight > 0] for one in (splits.train, splits.validation)]
    positive = build_model(BoostedTreesSettings(inputs=inputs), splits.train.layout, 7)
    fit(positive, *kept, TrainSettings(), 7, tmp_path / "positive")
    assert np.abs(predict(positive, splits.test).numpy() - same).max() > 0.1
    score, weight = predict(model, splits.validation), training_weights(splits.validation)
    each = torch.nn.functional.binary_cross_entropy_with_logits(score, splits.validation.y.double(), reduction="none")
    assert history[-1].validation_loss == pytest.approx(float((each * weight).mean()))
    assert history[-1].validation_auc > history[0].validation_auc > 0.6


def test_history_has_a_line_per_tree_and_is_reported(splits: Splits, tmp_path: Path) -> None:
    told: list[int] = []

    class Track:
        def __init__(self, num_known: int) -> None:
            assert num_known == 0

        def __enter__(self) -> Any:
            return lambda history: told.append(len(history))

        def __exit__(self, *error: object) -> None:
            told.append(-1)

    model = build_model(BoostedTreesSettings(max_trees=9), splits.train.layout, 1)
    history = fit(model, splits.train, splits.validation, TrainSettings(), 1, tmp_path, track=Track)
    assert [line.epoch for line in history] == list(range(1, 10))
    assert told == [*range(1, 10), -1]
    assert model.num_trees == 9


def test_finished_training_is_left_alone_and_a_stopped_one_starts_again(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(seed: int = 1) -> tuple[torch.Tensor, list[Epoch]]:
        model = build_model(BoostedTreesSettings(max_trees=20), splits.train.layout, seed)
        history = fit(model, splits.train, splits.validation, TrainSettings(), seed, tmp_path)
        return predict(model, splits.test), history

    score, history = train()
    real = trees.fit

    def stop(*args: Any) -> Any:
        raise InterruptedError("stopped")

    monkeypatch.setattr(trees, "fit", stop)
    again = train()
    assert torch.equal(again[0], score)
    assert again[1] == history
    (tmp_path / "last.pt").unlink()
    with pytest.raises(InterruptedError):
        train()
    (tmp_path / ".half").write_text("")
    monkeypatch.setattr(trees, "fit", real)
    once_more = train()
    assert torch.equal(once_more[0], score)
    assert once_more[1] == history
    assert not (tmp_path / ".half").exists()
    other = build_model(BoostedTreesSettings(max_trees=20), splits.train.layout, 2)
    load_weights(other, tmp_path)
    assert torch.equal(predict(other, splits.test), score)


def test_shapley_values_are_complete_and_find_the_planted_objects(splits: Splits, provenance: Provenance) -> None:
    """m_bb is planted: the b-jets get more than all others; an object that is replaced takes its observables along."""
    model, _ = grown(splits)
    few = splits.test[:80]
    untrained = build_model(model.settings, few.layout, 1).eval()
    subject = Subject(model.eval(), untrained, few, splits.train, 1, 5)
    found = explain(METHODS["shapley"](draws=16), subject, provenance)
    assert found.relative_completeness_error < 1e-9
    size = np.abs(found.values).mean(0)
    assert size[:2].min() > 3 * size[2:].max()
    nothing = explain(METHODS["shapley"](draws=4), replace(subject, model=untrained), provenance)
    assert np.abs(nothing.values).max() == 0


def test_the_null_of_a_notebook_has_the_leaves_and_not_their_places(splits: Splits) -> None:
    model, _ = grown(splits)
    null = deepcopy(model)
    null.shuffle(torch.Generator().manual_seed(1))
    assert torch.equal(null.value.flatten().sort().values, model.value.flatten().sort().values)
    before, after = (predict(one, splits.test).numpy() for one in (model, null))
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.5
    found = explain_anything(model, splits.test[:20], splits.train, "occlusion", draws=2)
    assert np.abs(found.values).max() > 0.1
    (alike,) = nulls.untrained(model, lambda seed: build_model(model.settings, splits.test.layout, seed), [3])
    assert predict(alike.model, splits.test).std() == 0


def test_observables_of_aliases_count_an_object_once(toys: GraphBatch) -> None:
    """b-jets that stand among the jets too, as in arXiv:2501.03432; one that is another jet by 1 % counts."""
    order = [0, 1, 2, 0, 1, 3, 4]
    nodes = [NodeSettings(type="jet", max=3, alias=True), NodeSettings(type="bjet", max=2, alias=True)]
    layout = make_layout(
        GraphSettings(nodes=(*nodes, NodeSettings(type="lepton"), NodeSettings(type="met"))), ["toy"], [0, 1]
    )
    kinds = np.broadcast_to([0, 0, 0, 1, 1, 2, 3], (len(toys), 7))
    assert [layout.types[i] for i in (0, 3, 5, 6)] == ["jet", "bjet", "lepton", "met"]
    plain = node_observables(toys.x.numpy(), toys.mask.numpy(), toys.node_type.numpy())
    twice = toys.x[:, order].numpy(), toys.mask[:, order].numpy()
    np.testing.assert_array_equal(node_observables(*twice, kinds), plain)
    twice[0][:, 0, 0] *= 1.01
    number = HIGH_LEVEL.index("n_jet")
    np.testing.assert_array_equal(node_observables(*twice, kinds)[:, number], plain[:, number] + 1)


def test_what_the_node_table_knows_of_the_azimuth_is_said(splits: Splits) -> None:
    models = [grown(splits, inputs)[0] for inputs in INPUTS]
    of_observables, of_nodes = (flaws(model, splits.test) for model in models)
    assert of_observables == []
    assert len(of_nodes) == 1
    assert "turning the whole event about the beam moves the score" in of_nodes[0]
    assert symmetries(models[0], splits.test) == {"rotation": 0.0, "phi_mirror": 0.0, "eta_mirror": 0.0}


# What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRADIENTS)
def test_methods_with_gradients_are_refused(name: str, splits: Splits, provenance: Provenance) -> None:
    model = build_model(BoostedTreesSettings(), splits.train.layout, 1).eval()
    subject = Subject(model, model, splits.test[:5], splits.train, 1, 1)
    with pytest.raises(ConfigError, match=f"method '{name}': expected a model with gradients, got BoostedTrees, .*Use"):
        explain(METHODS[name](), subject, provenance)
    METHODS[name]().refuse_model(build_model(MLPSettings(), splits.train.layout, 1))


def test_all_methods_with_gradients_are_known(splits: Splits, provenance: Provenance) -> None:
    """Those that are not called so work on trees, or want attention; so does a gradient that is asked for by hand."""
    model, _ = grown(splits, max_trees=5)
    subject = Subject(
        model.eval(), build_model(model.settings, splits.test.layout, 1).eval(), splits.test[:6], splits.train, 1, 1
    )
    for name in sorted(set(METHODS) - set(GRADIENTS)):
        options = {"observable": "mbb"} if name == "response" else {}
        if name == "edge_knockout":
            with pytest.raises(ConfigError, match="this model has no attention"):
                explain(METHODS[name](), subject, provenance)
            continue
        explain(METHODS[name](**options), subject, provenance)
    few = splits.test[:4]
    with pytest.raises(ConfigError, match="a gradient of the score: expected a model with gradients, got BoostedTrees"):
        model(few.x.clone().requires_grad_(), few.mask, few.node_type)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("snapshots", 3, r"train\.snapshots: expected 0 for boosted trees, .* got 3\. Leave it out"),
        ("node_dropout", 0.5, r"train\.node_dropout: expected 0\.0 for boosted trees, .* got 0\.5"),
        ("source", "runs/a", r"train\.from: expected None for boosted trees, .* got 'runs/a'"),
    ],
)
def test_settings_that_promise_too_much_are_refused(
    setting: str, value: Any, message: str, splits: Splits, tmp_path: Path
) -> None:
    model = build_model(BoostedTreesSettings(), splits.train.layout, 1)
    with pytest.raises(ConfigError, match=message):
        fit(model, splits.train, splits.validation, TrainSettings(**{setting: value}), 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings_without_a_meaning_are_named(splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def train(name: str, settings: TrainSettings) -> torch.Tensor:
        model = build_model(BoostedTreesSettings(max_trees=5), splits.train.layout, 1)
        fit(model, splits.train, splits.validation, settings, 1, tmp_path / name)
        return predict(model, splits.test)

    plain = train("a", TrainSettings())
    assert "change nothing" not in caplog.text
    assert torch.equal(train("b", TrainSettings(epochs=3, lr=1.0, track=())), plain)
    assert "these settings change nothing: train.epochs, train.lr\n" in caplog.text
    assert not torch.equal(train("c", TrainSettings(weights="none")), plain)


def test_three_classes_are_refused() -> None:
    layout = make_layout(GraphSettings(), ["a", "b", "c"], [0, 1, 2])
    with pytest.raises(
        ConfigError, match=r"boosted_trees: expected two classes, got 3\. Give the samples labels 0 and 1"
    ):
        build_model(BoostedTreesSettings(), layout, 1)


# A run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of trees, with the methods that need no gradients."""
    explained = ["shapley, draws: 2", "occlusion, draws: 2", "response, observable: mbb, points: 3"]
    changes = [
        "name=trees",
        "data.select=met > 200",
        "model={name: boosted_trees, inputs: nodes}",
        "explain=[" + ", ".join(f"{{method: {one}, events: 40}}" for one in explained) + "]",
        "closure.events=40",
        "closure.draws=4",
    ]
    made = Run.from_config(ROOT / "configs" / "quickstart.yaml", changes, tmp_path_factory.mktemp("runs"))
    made.execute()
    return made


def test_a_run_of_trees_has_every_result(run: Run) -> None:
    """In the score table they are the reference trees; the untrained null uses nothing, and does not break the page."""
    table = parquet.read_table(run.folder / "scores.parquet")
    np.testing.assert_allclose(table["score"].to_numpy(), table["trees_nodes"].to_numpy(), atol=1e-9)
    assert np.abs(table["score"].to_numpy() - table["trees_observables"].to_numpy()).max() > 0.1
    metrics = files.read_json(run.folder / "metrics.json")
    assert metrics["model"] == "boosted_trees"
    assert metrics["parameters"] == run.model().num_fitted > 100
    history = (run.folder / "history.csv").read_text().splitlines()
    assert len(history) == 1 + int(run.model().num_trees)
    found = Closure.load(run.folder / "closure.json")
    assert all(one.untrained == 0 for one in found.rankings)
    assert max(one.network for one in found.usage) > 0.1
    page = (run.folder / "report.html").read_text()
    assert "boosted trees, " in page
    assert "grow until the validation loss" in page


def test_a_run_of_trees_in_a_notebook(run: Run) -> None:
    opened = open_run(run.folder)
    assert "boosted_trees" in repr(opened)
    found = opened.explain("shapley", "score > 2.2", 10, draws=2)
    assert found.relative_completeness_error < 1e-9
    judged = opened.validate(limit=20)
    assert set(judged["methods"]) == {"shapley", "occlusion"}
    orders = [judged["methods"]["shapley"]["order"]["value"], judged["random"]["order"]["value"]]
    assert orders[0] > 0.5 > orders[1]
    for ask in (opened.influence, opened.audit, opened.distill, opened.scores_of_training):
        with pytest.raises(
            ConfigError, match="scores of training events: expected a model with gradients, got Boosted"
        ):
            ask()


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (["explain", "RUN", "--method", "saliency"], r"explain\.3: method 'saliency': expected a model with gradients"),
        (["influence", "validate", "RUN", "--quick"], "hepx influence validate: expected a model with gradients"),
        (["influence", "RUN"], "scores of training events: expected a model with gradients"),
        (["train", "RUN", "train.snapshots=2"], r"train\.snapshots: expected 0 for boosted trees"),
    ],
)
def test_what_trees_cannot_do_ends_with_a_sentence(verb: list[str], message: str, run: Run) -> None:
    """Exit code 2, no traceback, and the run is as it was."""
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.name != "log.txt"}
    arguments = [str(run.folder) if one == "RUN" else one for one in verb]
    done = subprocess.run([sys.executable, "-m", "hepx.cli", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    after = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.name != "log.txt"}
    assert {p for p in after if before.get(p) != after[p] and p.is_file()} <= {run.folder / ".lock"}
