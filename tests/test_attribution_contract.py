"""What every explanation method promises, tested on each entry of METHODS: symmetries, absent objects, independence of
the rest of the batch, the dummy axiom; each with its negative control."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hepx.attribution import METHODS, Method, Subject
from hepx.errors import ResultError
from hepx.graph import RAW_FEATURES, GraphBatch
from hepx.models import Model, build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.inputs import turned
from hepx.results import (
    EventTable,
    Explanation,
    Provenance,
    ResponseCurve,
    Result,
    is_result_of,
    load_event_result,
)

PLAYERS = {"b": ["bjet.pt", "bjet.eta", "bjet.phi"], "met": ["met"], "lepton": ["lepton.pt"]}
SMALL: dict[str, dict[str, Any]] = {
    "shapley": {"draws": 3},
    "feature_groups": {"draws": 2, "players": PLAYERS},
    "owen": {"draws": 2},
    "occlusion": {"draws": 3},
    "integrated_gradients": {"draws": 2, "steps": 16, "max_completeness_error": 9.0},
    "expected_gradients": {"draws": 8},
    "gradient_shap": {"draws": 8},
    "input_x_gradient": {"draws": 3},
    "deeplift": {"draws": 3},
    "gnn_explainer": {"restarts": 3, "epochs": 40},
    "permutation_importance": {"repeats": 2, "replicas": 20, "players": PLAYERS},
    "response": {"points": 5},
    "smooth_grad": {"draws": 4},
}
"""Settings that make a method quick."""
PER_EVENT = sorted(name for name, method in METHODS.items() if method.per_event)
MODEL = MoEGraphTransformerSettings(dim=16, expert_dim=8, num_experts=3, num_heads=2)


def make(name: str) -> Method:
    return METHODS[name](**SMALL.get(name, {}))


def arrays(result: Result) -> dict[str, np.ndarray[Any, Any]]:
    """All that a result says about single events."""
    return {key: value for key, value in vars(result).items() if isinstance(value, np.ndarray)}


@pytest.fixture(scope="module")
def model(toys: GraphBatch) -> Model:
    return make_model(toys)


def make_model(toys: GraphBatch) -> Model:
    """Random weights, scaled inputs and a strong head, so that the score varies by units."""
    model = build_model(MODEL, toys.layout, seed=2).eval()
    model.inputs.fit(toys, toys.weight)
    with torch.no_grad():
        model.head[-1].weight *= 20
    return model


@pytest.fixture(scope="module")
def untrained(toys: GraphBatch) -> Model:
    return build_model(MODEL, toys.layout, seed=9).eval()


@pytest.fixture(scope="module")
def subject(model: Model, untrained: Model, toys: GraphBatch) -> Subject:
    return Subject(model, untrained, toys[:10], toys, 1, 7)


@pytest.fixture(scope="module")
def results(subject: Subject, provenance: Provenance) -> dict[str, Result]:
    """Every method on the same ten events."""
    return {name: make(name).explain(subject, provenance) for name in PER_EVENT}


@pytest.mark.parametrize("name", PER_EVENT)
def test_a_method_says_how_sure_it_is(name: str, results: dict[str, Result], subject: Subject) -> None:
    """An error or a null, finite numbers, and which events they are about."""
    result: Any = results[name]
    assert result.error is not None or result.null is not None
    assert all(np.isfinite(value).all() for value in arrays(result).values())
    assert all(len(value) == len(subject.graphs) for value in arrays(result).values())
    assert isinstance(result.events, EventTable)
    np.testing.assert_array_equal(result.events.event_id, subject.graphs.event_id.numpy())
    assert np.abs(result.values).max() > 1e-4
    missing = getattr(result, "completeness_error", None)
    if missing is not None:
        axes = tuple(range(1, result.values.ndim))
        total = result.values.sum(axes) - (result.score - result.baseline_score)
        assert (np.abs(total) <= missing + 1e-9).all()


@pytest.mark.parametrize("name", PER_EVENT)
def test_an_event_does_not_depend_on_the_others(
    name: str, results: dict[str, Result], subject: Subject, provenance: Provenance
) -> None:
    """Bit by bit the same in another order, in another batch and alone; negative control: another seed."""
    order = torch.tensor([6, 2, 9, 0, 7])
    whole = arrays(results[name])
    for chosen in (order, torch.tensor([4])):
        part = make(name).explain(replace(subject, graphs=subject.graphs[chosen]), provenance)
        for key, value in arrays(part).items():
            np.testing.assert_array_equal(value, whole[key][chosen.numpy()], err_msg=key)
    other = arrays(make(name).explain(replace(subject, seed=8), provenance))
    same = all(np.array_equal(value, whole[key]) for key, value in other.items())
    assert same == (getattr(results[name], "error", None) is None)  # without draws there is no seed


@pytest.mark.parametrize("name", PER_EVENT)
def test_absent_objects_get_nothing(
    name: str, results: dict[str, Result], subject: Subject, provenance: Provenance
) -> None:
    """Exactly 0 for an absent object, whatever its slot holds; a present one does not get 0."""
    result: Any = results[name]
    absent = ~subject.graphs.mask[:, 2].numpy()
    assert 0 < absent.sum() < len(absent)
    x = subject.graphs.x.clone()
    x[torch.from_numpy(absent), 2] = 17.0
    filled = make(name).explain(replace(subject, graphs=replace(subject.graphs, x=x)), provenance)
    for key, value in arrays(filled).items():
        np.testing.assert_allclose(value, arrays(result)[key], atol=1e-9, err_msg=key)
    if hasattr(result, "players"):
        return
    assert np.abs(result.values[absent, 2]).max() == 0
    assert np.abs(result.values[~absent, 2]).max() > 0


@pytest.mark.parametrize("name", PER_EVENT)
def test_explanations_turn_with_the_event(
    name: str, results: dict[str, Result], subject: Subject, provenance: Provenance
) -> None:
    """φ has no zero: a rotation of the event about the beam changes nothing; that of one object does."""
    result: Any = results[name]
    second: Any = make(name).explain(replace(subject, graphs=turned(subject.graphs, 1.3)), provenance)
    size = np.abs(result.values).max()
    np.testing.assert_allclose(second.values, result.values, atol=0.01 * size)
    x = subject.graphs.x.clone()
    x[:, 4, 2] = torch.remainder(x[:, 4, 2] + 1.3 + torch.pi, 2 * torch.pi) - torch.pi
    moved: Any = make(name).explain(replace(subject, graphs=replace(subject.graphs, x=x)), provenance)
    assert np.abs(moved.values - result.values).max() > 0.05 * size


UNITS = {"saliency": "logit per σ", "smooth_grad": "logit per σ", "gnn_explainer": "mask"}


@pytest.mark.parametrize("name", ["saliency", "occlusion", "feature_groups", "edge_knockout", "gnn_explainer"])
def test_values_have_the_unit_they_name(
    name: str, results: dict[str, Result], subject: Subject, provenance: Provenance, toys: GraphBatch
) -> None:
    """Twice the score is twice a value in logits; negative control: the mask of an explainer is no share of it."""
    assert {one: result.unit for one, result in results.items()} == dict.fromkeys(PER_EVENT, "logit") | UNITS  # type: ignore[attr-defined]
    louder = make_model(toys)
    with torch.no_grad():
        louder.head[-1].weight *= 2
        louder.head[-1].bias *= 2
    result: Any = results[name]
    values = make(name).explain(replace(subject, model=louder), provenance).values  # type: ignore[attr-defined]
    doubled = np.allclose(values, 2 * result.values, rtol=1e-3, atol=1e-5)
    assert doubled == result.unit.startswith("logit")


def test_a_gradient_is_per_spread_of_its_feature(
    results: dict[str, Result], subject: Subject, provenance: Provenance
) -> None:
    """Baseline events that spread twice as wide in one feature: twice the value there. All other features: the same."""
    x = subject.baseline.x.clone()
    x[:, 4, 0] = 2 * x[:, 4, 0] - x[:, 4, 0].mean()
    wider = replace(subject, baseline=replace(subject.baseline, x=x))
    expected = results["saliency"].values.copy()  # type: ignore[attr-defined]
    assert expected[:, 4, 0].min() > 0
    expected[:, 4, 0] *= 2
    found: Any = make("saliency").explain(wider, provenance)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)


def test_a_file_without_a_unit_is_refused_and_made_again(results: dict[str, Result], tmp_path: Path) -> None:
    """As results were written before they had units. Negative control: the file as it is written now."""
    result = results["saliency"]
    new, old = tmp_path / "new.npz", tmp_path / "old.npz"
    result.save(new)
    assert load_event_result(new).unit == "logit per σ"
    assert is_result_of(new, result.provenance)
    with np.load(new) as file:
        meta = json.loads(str(file["meta"]))
        del meta["unit"], meta["format"]
        np.savez(old, **{**{name: file[name] for name in file.files}, "meta": np.array(json.dumps(meta))})
    with pytest.raises(
        ResultError, match=r"another version: Explanation lacks unit. Run the stage .* \(`hepx explain RUN`\)"
    ):
        load_event_result(old)
    assert not is_result_of(old, result.provenance)


def permuted(graphs: GraphBatch, order: list[int]) -> GraphBatch:
    """The same events with their node slots in another order."""
    layout = graphs.layout
    slots, types = (tuple(names[i] for i in order) for names in (layout.slots, layout.types))
    nodes = ("x", "mask", "node_type", "object_index", "truth_parent")
    parts: dict[str, Any] = {name: getattr(graphs, name)[:, order] for name in nodes}
    return replace(graphs, layout=replace(layout, slots=slots, types=types), **parts)


@pytest.mark.parametrize("name", PER_EVENT)
def test_explanations_follow_a_permutation_of_the_objects(
    name: str, results: dict[str, Result], subject: Subject, provenance: Provenance
) -> None:
    order = [4, 1, 3, 0, 2]
    graphs, baseline = permuted(subject.graphs, order), permuted(subject.baseline, order)
    models = [build_model(MODEL, graphs.layout, seed=2).eval() for _ in range(2)]
    for new, old in zip(models, (subject.model, subject.untrained), strict=True):
        new.load_state_dict(old.state_dict())
    second: Any = make(name).explain(Subject(*models, graphs, baseline, 1, 7), provenance)
    result: Any = results[name]
    values = result.values if hasattr(result, "players") else result.values[:, order]
    values = values[:, :, order] if name in ("edge_knockout", "gradient_attention", "gnn_explainer") else values
    np.testing.assert_allclose(second.values, values, atol=2e-3 * np.abs(values).max())


@pytest.mark.parametrize("name", PER_EVENT)
def test_an_unused_input_changes_nothing(
    name: str, results: dict[str, Result], subject: Subject, provenance: Provenance
) -> None:
    """The missing momentum has no pseudorapidity: what stands there must not matter, in any event."""
    result: Any = results[name]
    parts = {}
    for key in ("graphs", "baseline"):
        graphs = getattr(subject, key)
        x = graphs.x.clone()
        x[:, 4, 1] = torch.rand(len(x), generator=torch.Generator().manual_seed(0))
        parts[key] = replace(graphs, x=x)
    second: Any = make(name).explain(replace(subject, **parts), provenance)
    np.testing.assert_allclose(second.values, result.values, atol=1e-4 * np.abs(result.values).max())
    if result.values.shape[1:] == (5, len(RAW_FEATURES)):
        assert np.abs(second.values[:, 4, 1]).max() == 0
        assert np.abs(second.values[:, 4, 0]).max() > 0


@pytest.mark.parametrize("name", PER_EVENT)
def test_a_constant_model_has_no_reasons(name: str, subject: Subject, provenance: Provenance, toys: GraphBatch) -> None:
    """Negative control of everything above: without a dependence there is nothing to find."""
    constant = make_model(toys)
    with torch.no_grad():
        constant.head[-1].weight.zero_()
    settings = {**SMALL.get(name, {}), **({"force": True} if name == "integrated_gradients" else {})}
    result: Any = METHODS[name](**settings).explain(replace(subject, model=constant), provenance)
    if name != "gnn_explainer":  # its masks are not in units of the score: they stay where they start or shrink
        assert np.abs(result.values).max() < 1e-12


@pytest.mark.parametrize("name", sorted(METHODS))
def test_results_survive_a_file(name: str, subject: Subject, provenance: Provenance, tmp_path: Path) -> None:
    result = make(name).explain(subject, provenance)
    path = tmp_path / f"{name}.npz"
    result.save(path)
    again = type(result).load(path)
    first, second = (vars(r) | vars(getattr(r, "events", r)) for r in (result, again))
    for key, value in first.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, second[key])
        elif key != "events":
            assert value == second[key]
    other = ResponseCurve if isinstance(result, Explanation) else Explanation
    with pytest.raises(ResultError, match=f"holds a {type(result).__name__}; expected {other.__name__}"):
        other.load(path)
    with pytest.raises(ResultError, match="there is no result"):
        type(result).load(tmp_path / "none.npz")
