"""Measures of an explanation against captum, PyG, scipy and enumeration; perfect and wrong explanations as controls."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max
from scipy import stats

from hepx import attribution, faithfulness
from hepx.attribution import Subject
from hepx.attribution.occlusion import Occlusion
from hepx.attribution.saliency import Saliency
from hepx.attribution.shapley import Shapley
from hepx.errors import ResultError
from hepx.faithfulness import Game
from hepx.graph import NODE_TYPES, GraphBatch
from hepx.kinematics import jet_resolution
from hepx.models import build_model
from hepx.models.graph_transformer import GraphTransformerSettings
from hepx.models.inputs import PHI, PT
from hepx.results import Provenance

SLOTS = 4
FULL = 2**SLOTS - 1


@pytest.fixture(scope="module")
def game() -> Game:
    """Random worths of twelve events of four slots; in half of them slot 1 is empty and counts for nothing."""
    rng = np.random.default_rng(3)
    worth, present = rng.normal(size=(12, FULL + 1)), np.ones((12, SLOTS), dtype=bool)
    present[:6, 1] = False
    without = np.arange(FULL + 1) & ~2
    worth[:6] = worth[:6][:, without]
    return Game(worth, present)


@pytest.fixture(scope="module")
def phi(game: Game) -> np.ndarray[Any, Any]:
    return np.random.default_rng(4).normal(size=game.present.shape) * game.present


def gap_of_order(game: Game, event: int, order: tuple[int, ...]) -> float:
    """The difference of the curves, step by step."""
    number, gaps = 0, []
    for slot in order[:-1]:
        number += 2**slot
        gaps.append(game.worth[event, number] - game.worth[event, FULL - number])
    return float(np.mean(gaps))


def test_the_order_is_scored_against_all_orders(game: Game, phi: np.ndarray[Any, Any]) -> None:
    """The best gap is that of the best of all n! orders, the mean over all orders is 0."""
    best, own = faithfulness.best_gap(game), faithfulness.order_gap(game, phi)
    for event in range(12):
        objects = np.flatnonzero(game.present[event])
        all_orders = [gap_of_order(game, event, order) for order in permutations(objects)]
        assert best[event] == pytest.approx(max(all_orders))
        assert np.mean(all_orders) == pytest.approx(0)
        assert own[event] == pytest.approx(gap_of_order(game, event, tuple(objects[np.argsort(-phi[event, objects])])))
    assert (own <= best + 1e-12).all()
    assert (own < best - 1e-6).any()


def test_infidelity_is_that_of_captum(game: Game, phi: np.ndarray[Any, Any]) -> None:
    """captum with every set removed once; game and values as a function of which slots are there."""
    powers = 2 ** torch.arange(SLOTS)
    for event in range(0, 12, 3):
        table, values = torch.from_numpy(game.worth[event]), torch.from_numpy(phi[event])[None]
        removed = torch.from_numpy(game.members).double()

        def worth(there: torch.Tensor, table: torch.Tensor = table) -> torch.Tensor:
            return table[(there.round().long() * powers).sum(1)]

        def perturb(there: torch.Tensor, removed: torch.Tensor = removed) -> tuple[torch.Tensor, torch.Tensor]:
            return removed, there - removed

        whole = torch.ones(1, SLOTS, dtype=torch.float64)
        found = captum_infidelity(worth, perturb, whole, values, n_perturb_samples=len(removed))
        assert faithfulness.infidelity(game, phi)[event] == pytest.approx(float(found))


def test_an_additive_game_is_explained_without_fault(phi: np.ndarray[Any, Any], game: Game) -> None:
    """Its own terms: infidelity 0, correlation 1, the best order; with the sign turned all of that fails."""
    additive = replace(game, worth=phi @ game.members.T + 0.3)
    weight = np.ones(12)
    right, wrong = (faithfulness.measure(additive, values, weight) for values in (phi, -phi))
    assert right["infidelity"]["value"] == pytest.approx(0, abs=1e-12)
    assert right["correlation"]["value"] == pytest.approx(1)
    assert right["order"]["value"] == pytest.approx(1)
    assert wrong["infidelity"]["value"] == pytest.approx(4)  # (−2 Σφ)² / (Σφ)²
    assert wrong["correlation"]["value"] == pytest.approx(-1)
    assert wrong["order"]["value"] == pytest.approx(-1)


def test_correlations_are_those_of_scipy(game: Game, phi: np.ndarray[Any, Any]) -> None:
    found = faithfulness.set_correlation(game, phi)
    other = np.random.default_rng(8).normal(size=phi.shape)
    other[0] = 1.0  # all alike: no ranking
    like = faithfulness.likeness(phi, other, game.present)
    assert np.isnan(like[0])
    for event in range(1, 12):
        here = game.present[event]
        expected = np.corrcoef(game.members @ phi[event], game.drop[event])[0, 1]
        assert found[event] == pytest.approx(expected)
        expected = stats.spearmanr(np.abs(phi[event, here]), np.abs(other[event, here])).statistic
        assert like[event] == pytest.approx(expected)


class Worths(torch.nn.Module):
    """Logits of an event whose objects are kept where x is 1, from the table of worths."""

    def __init__(self, worth: np.ndarray[Any, Any]) -> None:
        super().__init__()
        self.worth = torch.from_numpy(worth)

    def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        score = self.worth[(x[:, 0] * 2 ** torch.arange(len(x))).sum().long()]
        return torch.stack([0 * score, score])[None]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_fidelity_is_that_of_pyg(game: Game, phi: np.ndarray[Any, Any]) -> None:
    """Fidelities, characterization and unfaithfulness, event by event; PyG's unfaithfulness has y and ŷ of the paper
    (arXiv:2208.09339, eq. 2) in each other's place."""
    from torch_geometric.explain import DummyExplainer, Explainer, Explanation, characterization_score, fidelity
    from torch_geometric.explain.metric import unfaithfulness

    without, kept = faithfulness.top_objects(game, phi)
    score, found = game.worth[:, -1], []
    config = {"mode": "multiclass_classification", "task_level": "graph", "return_type": "raw"}
    for event in range(12):
        objects = np.flatnonzero(game.present[event])
        top = objects[np.argsort(-np.sign(score[event]) * phi[event, objects])[:2]]
        assert kept[event] == game.worth[event, (2**top).sum()]
        assert without[event] == game.worth[event, FULL - (2**top).sum()]
        x, edges = torch.ones(phi.shape[1], 1), torch.zeros(2, 0, dtype=torch.long)
        mask = torch.zeros_like(x)
        mask[top] = 1
        explainer = Explainer(Worths(game.worth[event]), DummyExplainer(), "model", config, node_mask_type="object")
        logits = explainer.get_prediction(x, edges)
        one = Explanation(x=x, edge_index=edges, node_mask=mask, prediction=logits, target=logits.argmax(1))
        one._model_args = []
        found.append((*fidelity(explainer, one), unfaithfulness(explainer, one)))
    each = np.array(found)
    assert 0 < each[:, 0].sum() < 12
    weight = np.linspace(-0.2, 2, 12)
    measured = faithfulness.measure(game, phi, weight)
    plus, minus, _ = weight @ each / weight.sum()
    assert (measured["fidelity_plus"]["value"], measured["fidelity_minus"]["value"]) == pytest.approx((plus, minus))
    expected = characterization_score(torch.tensor(plus), torch.tensor(minus))
    assert measured["characterization"] == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(faithfulness.unfaithfulness(kept, score), each[:, 2], atol=1e-6)
    p, q = (torch.sigmoid(torch.from_numpy(np.stack([v, -v], 1))) for v in (score, kept))
    divergence = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(1)
    np.testing.assert_allclose(faithfulness.unfaithfulness(score, kept), 1 - torch.exp(-divergence).numpy(), atol=1e-12)


def test_sensitivity_is_that_of_captum() -> None:
    shifts = torch.tensor([[0.1, 0.0], [0.0, -0.3], [0.2, 0.2]])
    x = torch.tensor([[1.0, 2.0]])

    def explain(inputs: Any) -> tuple[torch.Tensor]:
        return ((inputs[0] if isinstance(inputs, tuple) else inputs) ** 2,)

    steps = iter(shifts)
    expected = sensitivity_max(
        explain, x, lambda one: one + next(steps), n_perturb_samples=3, norm_ord="fro", max_examples_per_batch=1
    )
    assert next(steps, None) is None  # captum has used them all
    change, size = faithfulness.sensitivity((x**2).numpy(), [((x + one) ** 2).numpy() for one in shifts])
    assert (change / size)[0] == pytest.approx(float(expected[0]))


def test_weights_are_honoured() -> None:
    """An event of weight 2 counts as two events; one of weight −1 takes one away; no value, no event."""
    top = np.array([1.0, 2.0, 4.0, np.nan])
    single, double = (
        faithfulness.mean(values, weight)["value"]
        for values, weight in ((top, np.array([1.0, 2, 1, 9])), (top[[0, 1, 1, 2]], np.ones(4)))
    )
    assert single == double == pytest.approx(9 / 4)
    assert faithfulness.mean(top, np.array([1.0, 1, -1, 1]))["value"] == pytest.approx(-1)
    assert faithfulness.mean(top, np.array([1.0, 1, -2, 1]))["value"] is None  # no weight is left


def test_a_second_measurement_has_the_resolution_of_the_detector(toys: GraphBatch) -> None:
    """Relative shifts of jets have width σ(pt); the vector sum of all objects and E_T^miss stays; the rest too."""
    again = faithfulness.smeared(toys, 1, 0)
    jets = toys.mask & (toys.node_type != NODE_TYPES.index("met")) & (toys.node_type != NODE_TYPES.index("lepton"))
    ratio = (again.x[..., PT] / toys.x[..., PT] - 1)[jets].numpy() / jet_resolution(toys.x[..., PT][jets].numpy())
    assert ratio.mean() == pytest.approx(0, abs=4 / len(ratio) ** 0.5)
    assert ratio.std() == pytest.approx(1, abs=4 / (2 * len(ratio)) ** 0.5)
    sums = [(g.x[..., PT] * torch.exp(1j * g.x[..., PHI]) * g.mask).sum(1) for g in (toys, again)]
    torch.testing.assert_close(*sums, atol=1e-3, rtol=1e-5)
    assert (again.x[~toys.mask] == toys.x[~toys.mask]).all()
    assert not torch.equal(again.x, faithfulness.smeared(toys, 1, 1).x)


@pytest.fixture(scope="module")
def subject(toys: GraphBatch) -> Subject:
    settings = GraphTransformerSettings(dim=8, num_heads=2, dropout=0.0)
    model, untrained = (build_model(settings, toys.layout, seed).eval() for seed in (2, 9))
    for one in (model, untrained):
        one.inputs.fit(toys, toys.weight)
        with torch.no_grad():
            one.head[-1].weight *= 20
    return Subject(model, untrained, toys[:24], toys, 1, 7)


def test_the_game_is_that_of_shapley(subject: Subject, provenance: Provenance) -> None:
    """Same donors, same worths: Shapley values from the table are those of the method, and they add up."""
    game = faithfulness.play(subject, 3)
    whole = attribution.explain(Shapley(draws=3), subject, provenance)
    phi = faithfulness.of_objects(whole)  # type: ignore[arg-type]
    np.testing.assert_allclose(phi.sum(1), game.worth[:, -1] - game.worth[:, 0], atol=1e-5)
    slots = game.present.shape[1]
    orders = list(permutations(range(slots)))
    expected = np.zeros_like(phi)
    for order in orders:
        sets = np.cumsum([0, *(2 ** np.array(order))])
        expected[:, list(order)] += np.diff(game.worth[:, sets], axis=1) / len(orders)
    np.testing.assert_allclose(phi, expected, atol=1e-5)
    np.testing.assert_array_equal(game.present, subject.graphs.mask.numpy())


def test_definitions_of_quantus(game: Game, phi: np.ndarray[Any, Any]) -> None:
    """Oracle: the definitions of Quantus 0.6, written out: it replaces by constants, knows no weights or graphs, and
    brings a hundred packages. PixelFlipping: the score as features are replaced by falling attribution;
    FaithfulnessCorrelation: Pearson's r of the removed attribution and the change of the score, over subsets; MPRT: the
    rank correlation with the explanation of a randomised model."""
    weight = np.linspace(0.5, 1.5, 12)
    insertion, deletion = faithfulness.curves(game, phi)
    other = np.random.default_rng(5).normal(size=phi.shape)
    alike = faithfulness.likeness(phi, other, game.present)
    together = faithfulness.set_correlation(game, phi)
    for event in range(12):
        objects = np.flatnonzero(game.present[event])
        order = objects[np.argsort(-phi[event, objects])]
        removed = [FULL - int((2 ** order[:k]).sum()) for k in range(len(order) + 1)]
        np.testing.assert_allclose(deletion[event, : len(removed)], game.worth[event, removed])
        np.testing.assert_allclose(insertion[event, : len(removed)], game.worth[event, [FULL - s for s in removed]])
        drops = [game.worth[event, FULL] - game.worth[event, FULL - s] for s in range(FULL + 1)]
        sums = [sum(phi[event, i] for i in range(SLOTS) if s >> i & 1) for s in range(FULL + 1)]
        assert together[event] == pytest.approx(stats.pearsonr(drops, sums).statistic)
        a, b = np.abs(phi[event, objects]), np.abs(other[event, objects])
        assert alike[event] == pytest.approx(stats.spearmanr(a, b).statistic)
    # the mean curves pass through the ends, and the area between them is the order before it is normalised
    mean = faithfulness.mean_curves(game, phi, weight)
    for kind, ends in (("insertion", (0, -1)), ("deletion", (-1, 0))):
        found = [mean[kind][i]["value"] for i in (0, -1)]
        assert found == pytest.approx([np.average(game.worth[:, end], weights=weight) for end in ends])
    full = Game(game.worth[6:], game.present[6:])  # four objects each: the shares are their steps
    steps = faithfulness.mean_curves(full, phi[6:], weight[6:])
    gaps = [steps["insertion"][k]["value"] - steps["deletion"][k]["value"] for k in (1, 2, 3)]  # type: ignore[operator]
    expected = np.average(faithfulness.order_gap(full, phi[6:]), weights=weight[6:])
    assert np.mean(gaps) == pytest.approx(expected)


def test_a_stopped_validation_goes_on(subject: Subject, provenance: Provenance, tmp_path: Path) -> None:
    """What was judged is not judged again, and the end is the same; another key judges all anew."""
    methods = {"shapley": Shapley(draws=2), "occlusion": Occlusion(draws=2)}
    calls: list[str] = []

    def where(method: Any) -> Provenance:
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(method.name)
        return provenance

    def run(folder: Path | None, key: str = "a") -> Any:
        kept = faithfulness.Kept(folder, key)
        return faithfulness.validate(methods, subject, where, draws=2, shifts=1, kept=kept)

    stop = 1000
    whole = run(None)
    number, stop = len(calls), len(calls) * 3 // 4 + len(calls)  # in the middle of the second method
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert [path.name for path in tmp_path.glob("*.json")] == ["shapley.json"]
    calls.clear()
    stop = 1000
    assert run(tmp_path) == whole
    assert calls == ["occlusion"] * (number // 2)
    calls.clear()
    assert run(tmp_path) == whole
    assert calls == []
    assert run(tmp_path, "b") == whole
    assert len(calls) == number


def test_good_explanations_are_told_from_bad_ones(subject: Subject, provenance: Provenance) -> None:
    """Shapley values are near the best order; random values near 0; the same network again is alike, another is not."""
    methods = {"shapley": Shapley(draws=4), "occlusion": Occlusion(draws=4), "saliency": Saliency()}
    found = faithfulness.validate(
        methods, subject, lambda _: provenance, shuffled=[subject.untrained], seeds=[subject.model], draws=4, shifts=1
    )
    rows = found["methods"]
    assert json.loads(json.dumps(found)) == found
    assert rows["shapley"]["order"]["value"] > 0.8 > rows["saliency"]["order"]["value"]
    assert abs(found["random"]["order"]["value"]) < 0.5
    assert rows["shapley"]["infidelity"]["value"] < 0.6 < found["random"]["infidelity"]["value"]
    assert rows["shapley"]["completeness"]["value"] < 1e-5
    assert rows["saliency"]["completeness"] is None
    assert rows["shapley"]["likeness"]["seeds"]["value"] == pytest.approx(1)
    assert rows["shapley"]["spread"]["seeds"] == pytest.approx(0)
    assert rows["shapley"]["likeness"]["untrained"]["value"] < 0.6
    assert rows["shapley"]["sensitivity"]["value"] > 0
    np.testing.assert_allclose(np.diag(found["agreement"]), 1)
    with pytest.raises(ResultError, match="no method of this run"):
        faithfulness.validate({}, subject, lambda _: provenance)
