"""Explanations against enumeration, closed forms, captum and vector; symmetries; gates; planted truth."""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import comb, factorial
from pathlib import Path

import numpy as np
import pytest
import torch
import vector
from captum.attr import FeatureAblation, ShapleyValues
from torch import Tensor

from hepx.attribution import Subject, background_events, event_table, explain, subsample
from hepx.attribution.baselines import donor_pool, draw, patterns, replacements
from hepx.attribution.coalitions import (
    coalitions,
    computed_once,
    faith_weights,
    interaction_weights,
    owen_table,
    shapley_weights,
    values_of,
    worths,
)
from hepx.attribution.feature_groups import FeatureGroups
from hepx.attribution.gradients import score_function
from hepx.attribution.integrated_gradients import IntegratedGradients
from hepx.attribution.links import observable_links
from hepx.attribution.occlusion import Occlusion
from hepx.attribution.owen import Owen
from hepx.attribution.response import Response, move_b2, turn_met
from hepx.attribution.shapley import Shapley
from hepx.errors import ConfigError, ResultError
from hepx.graph import GraphBatch, GraphSettings, NodeSettings, make_layout
from hepx.models import MODELS, Model, Output, build_model, log_odds, predict
from hepx.models.base import empty_trace
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.inputs import Inputs, turned
from hepx.planted import MECHANISMS, Mechanism, plant, toy_graphs
from hepx.results import Explanation, Provenance
from hepx.train import TrainSettings, fit


class ClosedForm(Model):
    """score = Σ a_i pt_i + c · pt_0 pt_4 / 100: Shapley values and interactions known in closed form."""

    def __init__(self, layout: object, weights: list[float], product: float) -> None:
        super().__init__()
        self.inputs = Inputs(layout, (), ())  # type: ignore[arg-type]
        self.weights = torch.nn.Parameter(torch.tensor(weights))
        self.product = product

    def forward(  # type: ignore[no-untyped-def]
        self, x: Tensor, mask: Tensor, node_type: Tensor, routing=None, noise=None, gain=None, pair_terms=None
    ) -> Output:
        pt = x[..., 0] / 100 * mask
        score = (self.weights * pt).sum(-1) + self.product * pt[:, 0] * pt[:, 4]
        return Output(torch.stack([torch.zeros_like(score), score], -1), empty_trace(mask, 0))


@pytest.fixture(scope="module")
def trained_like(toys: GraphBatch) -> Model:
    """A default MGT with random weights, scaled inputs and a strong head, so that its score varies by units."""
    model = build_model(MoEGraphTransformerSettings(), toys.layout, seed=2).eval()
    model.inputs.fit(toys, toys.weight)
    with torch.no_grad():
        model.head[-1].weight *= 20
    return model


def subject(model: Model, graphs: GraphBatch, baseline: GraphBatch) -> Subject:
    """Everything in `baseline` counts as background."""
    return Subject(model, model, graphs, replace(baseline, y=torch.zeros_like(baseline.y)), 1, 7)


def test_shapley_weights_equal_the_sum_over_orderings() -> None:
    """Oracle: average marginal contribution over all 4! orders, and the definition of the interaction index."""
    n, worth = 4, torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.zeros(n)
    for order in itertools.permutations(range(n)):
        members = 0
        for player in order:
            expected[player] += float(worth[members | 1 << player] - worth[members]) / factorial(n)
            members |= 1 << player
    np.testing.assert_allclose((shapley_weights(n) @ worth).numpy(), expected, atol=1e-14)
    i, j, pair = 1, 3, 0.0
    for s in (s for s in range(2**n) if not s >> i & 1 and not s >> j & 1):
        size = bin(s).count("1")
        change = worth[s | 1 << i | 1 << j] - worth[s | 1 << i] - worth[s | 1 << j] + worth[s]
        pair += factorial(size) * factorial(n - size - 2) / factorial(n - 1) * float(change)
    assert float((interaction_weights(n) @ worth)[i, j]) == pytest.approx(pair, abs=1e-14)
    assert float((interaction_weights(n) @ worth).diagonal().abs().max()) == 0


def test_shapley_of_a_closed_form(toys: GraphBatch, provenance: Provenance) -> None:
    """Linear terms give a_i (pt_i − mean pt'_i); the product shares its change equally and is the whole interaction."""
    few = toys[:20]
    donor = toys[toys.mask.all(1)][:1]
    with_j3 = few[few.mask.all(1)]
    model = ClosedForm(toys.layout, [1.0, -2.0, 0.5, 0.0, 3.0], product=1.5)
    result = Shapley(draws=2).explain(subject(model, with_j3, donor), provenance)
    pt, other = with_j3.x[..., 0].double().numpy() / 100, donor.x[0, :, 0].double().numpy() / 100
    expected = np.array([1.0, -2.0, 0.5, 0.0, 3.0]) * (pt - other)
    half = 1.5 / 2
    expected[:, 0] += half * (pt[:, 0] - other[0]) * (pt[:, 4] + other[4])
    expected[:, 4] += half * (pt[:, 4] - other[4]) * (pt[:, 0] + other[0])
    np.testing.assert_allclose(result.values, expected, atol=1e-5)
    interaction = 1.5 * (pt[:, 0] - other[0]) * (pt[:, 4] - other[4])
    assert result.interactions is not None
    np.testing.assert_allclose(result.interactions[:, 0, 4], interaction, atol=1e-5)
    result.interactions[:, [0, 4], [4, 0]] = 0
    assert np.abs(result.interactions).max() < 1e-5
    assert np.abs(result.error).max() < 1e-6  # one donor: no spread


def test_shapley_equals_captum(trained_like: Model, toys: GraphBatch) -> None:
    """Oracle: captum, which goes through all 5! orderings, one event and one donor at a time."""
    events = toys[toys.mask.all(1)][:1]
    pattern = next(patterns(events, toys))
    donors = draw(pattern, events, 2, seed=1)
    worth = worths(trained_like, events, donors, coalitions(5)[:, :, None], 1)
    found = worth @ shapley_weights(5).T
    feature_mask = torch.arange(5)[None, :, None].repeat(1, 1, 6)

    def score(x: Tensor, mask: Tensor, node_type: Tensor) -> Tensor:
        return log_odds(trained_like(x, mask, node_type).logits, 1)

    exact = torch.zeros(1, 2, 5)
    for event, draw_index in itertools.product(range(1), range(2)):
        one = events[event : event + 1]
        values = ShapleyValues(score).attribute(
            one.x,
            baselines=donors[event, draw_index][None],
            additional_forward_args=(one.mask, one.node_type),
            feature_mask=feature_mask,
        )
        exact[event, draw_index] = values[0, :, 0].detach()
    torch.testing.assert_close(found.float(), exact, atol=2e-4, rtol=1e-3)


def test_shapley_is_complete_and_zero_for_absent_objects(
    trained_like: Model, toys: GraphBatch, provenance: Provenance
) -> None:
    result = Shapley(draws=4).explain(subject(trained_like, toys[:60], background_events(toys, 1)), provenance)
    assert result.completeness_error.max() < 1e-5
    assert np.abs(result.values[~result.events.mask]).max() == 0
    assert result.interactions is not None
    np.testing.assert_allclose(result.interactions, result.interactions.transpose(0, 2, 1))
    assert np.std(result.score) > 0.5


def test_explanations_turn_with_the_event(trained_like: Model, toys: GraphBatch, provenance: Provenance) -> None:
    """A rotation about the beam changes neither attributions nor baselines (φ has no zero)."""
    few, baseline = toys[:40], background_events(toys, 1)
    for method in (Shapley(draws=3), IntegratedGradients(draws=2, steps=32, max_completeness_error=9.0)):
        first = method.explain(subject(trained_like, few, baseline), provenance)
        second = method.explain(subject(trained_like, turned(few, 1.3), baseline), provenance)
        np.testing.assert_allclose(first.baseline_score, second.baseline_score, atol=5e-3)
        np.testing.assert_allclose(first.values, second.values, atol=0.02 * np.abs(first.values).max())


def test_aliases_are_one_player(provenance: Provenance) -> None:
    """Two nodes of one object move together; the object's value stands at its first node."""
    nodes = (NodeSettings(type="jet", max=3, alias=True), NodeSettings(type="bjet", max=2), NodeSettings(type="met"))
    layout = make_layout(GraphSettings(nodes=nodes), ["a"], [0, 1])
    toys = toy_graphs(30, 2)
    columns = [0, 1, 2, 0, 1, 4]
    parts = {
        name: tensor[:, columns]
        for name, tensor in toys.tensors().items()
        if tensor.dim() > 1 and name != "observables"
    }
    parts["mask"] = torch.ones_like(parts["mask"])
    parts["object_index"] = torch.tensor([0, 1, 2, 0, 1, 200], dtype=torch.int16).expand(30, 6)
    aliased = replace(toys, layout=layout, **parts)
    model = ClosedForm(layout, [1.0, 0.0, 0.0, 1.0, 0.0, 1.0], product=0.0)
    result = Shapley(draws=2).explain(subject(model, aliased[:10], aliased[10:]), provenance)
    assert np.abs(result.values[:, [3, 4]]).max() == 0
    assert result.completeness_error.max() < 1e-5
    assert np.abs(result.values[:, 0]).min() > 1e-4


def test_donors_have_the_same_objects_and_are_missed_with_a_sentence(toys: GraphBatch) -> None:
    with_j3 = toys[toys.mask[:, 2]]
    found = list(patterns(toys, toys))
    assert sorted(len(pattern.index) for pattern in found) == sorted([len(with_j3), len(toys) - len(with_j3)])
    assert all(pattern.donors.mask[:, 2].unique().numel() == 1 for pattern in found)
    with pytest.raises(ResultError, match="no baseline event has exactly the objects b1, b2, lepton, met"):
        list(patterns(toys, with_j3))


def test_donors_follow_the_weights(toys: GraphBatch) -> None:
    """Probability ∝ |w|: an event of weight −3 is drawn three times as often as one of weight 1."""
    two = toys[toys.mask.all(1)][:2]
    two = replace(two, weight=torch.tensor([1.0, -3.0], dtype=torch.float64))
    pattern = next(patterns(two, two))
    donors = draw(pattern, two[:1], 4000, seed=0)
    share = float((donors[0, :, 0, 0] == two.x[1, 0, 0]).double().mean())
    none = next(patterns(two, replace(two, weight=torch.zeros(2, dtype=torch.float64))))
    with pytest.raises(ResultError, match="all 2 baseline events with these objects have weight 0"):
        draw(none, two[:1], 4, seed=0)
    assert share == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / 4000) ** 0.5)


def test_integrated_gradients_of_a_quadratic_form(toys: GraphBatch, provenance: Provenance) -> None:
    """For c·pt_0·pt_4 the path integral is c (Δpt_0) (mean of the two pt_4), known exactly."""
    with_j3 = toys[toys.mask.all(1)]
    events, donor = with_j3[:5], with_j3[5:6]
    model = ClosedForm(toys.layout, [0.0] * 5, product=2.0)
    result = IntegratedGradients(draws=2, steps=8).explain(subject(model, events, donor), provenance)
    pt, other = events.x[..., 0].double().numpy() / 100, donor.x[0, :, 0].double().numpy() / 100
    expected = 2.0 * (pt[:, 0] - other[0]) * (pt[:, 4] + other[4]) / 2
    np.testing.assert_allclose(result.values[:, 0, 0], expected, atol=1e-5)
    assert np.abs(result.values[..., 1:]).max() < 1e-6
    assert result.relative_completeness_error < 1e-5


def test_completeness_gate_closes_and_opens(trained_like: Model, toys: GraphBatch, provenance: Provenance) -> None:
    """Negative control: with two steps the attributions are wrong, and are refused."""
    events = subject(trained_like, toys[:40], background_events(toys, 1))
    with pytest.raises(ResultError, match=r"the attributions miss the score change by .* more than the allowed 1%"):
        explain(IntegratedGradients(steps=2, max_completeness_error=0.01), events, provenance)
    good = explain(IntegratedGradients(steps=256), events, provenance)
    assert isinstance(good, Explanation)
    assert good.relative_completeness_error < 0.05
    total = good.values.sum((1, 2)) - (good.score - good.baseline_score)
    assert np.abs(total).max() <= good.completeness_error.max() + 1e-6


def test_moved_b_jets_have_the_wanted_mass(toys: GraphBatch) -> None:
    moved, reached = move_b2(toys, 100.0)
    assert 0.2 < reached.double().mean() < 1
    p = vector.array({name: moved[..., i].double().numpy() for i, name in enumerate(("pt", "eta", "phi", "mass"))})
    mass = (p[:, 0] + p[:, 1]).mass[reached.numpy()]
    np.testing.assert_allclose(mass, 100.0, atol=0.2)
    unchanged = [0, 2, 3, 4]
    assert torch.equal(moved[:, unchanged], toys.x[:, unchanged])
    assert torch.equal(moved[:, 1, 0], toys.x[:, 1, 0])


def test_response_follows_a_known_curve(toys: GraphBatch, provenance: Provenance) -> None:
    """A model that is a function of m_bb alone has this function as its response curve."""

    class OfMbb(ClosedForm):
        def forward(self, x, mask, node_type, routing=None, noise=None, gain=None, pair_terms=None):  # type: ignore[no-untyped-def]
            score = MECHANISMS["mbb"].score(x, node_type, toys.layout.slots)
            return Output(torch.stack([torch.zeros_like(score), score], -1), empty_trace(mask, 0))

    model = OfMbb(toys.layout, [0.0] * 5, 0.0)
    curve = Response(points=12).explain(subject(model, toys, toys), provenance)
    peak = 3 - np.abs((curve.points - 120) / 30)
    np.testing.assert_allclose(curve.mean[0], 4 * np.tanh(peak / 4), atol=0.02)
    assert curve.error.max() < 0.02
    flat = Response(observable="mt", points=5, high=100.0).explain(subject(model, toys, toys), provenance)
    assert np.ptp(flat.mean[0][flat.reached[0] == 1]) < 1e-4  # m_T does not enter
    assert (flat.moved, flat.unit) == ("met", "GeV")
    with pytest.raises(ValueError, match="low must be below high, but 300 is not below 300 GeV"):
        Response(observable="mt", low=300)


def test_faith_shap_is_the_published_closed_form() -> None:
    """Oracle: Theorem 19 of arXiv:2203.00870 with the Möbius transform; with the pair index it sums to the change."""
    n, order = 5, 2
    worth = torch.rand(2**n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    subsets = [frozenset(i for i in range(n) if s >> i & 1) for s in range(2**n)]
    mobius = {
        big: sum((-1) ** (len(big) - len(small)) * float(worth[s]) for s, small in enumerate(subsets) if small <= big)
        for big in subsets
    }
    found = (faith_weights(n) @ worth).numpy()
    for small in (one for one in subsets if 1 <= len(one) <= order):
        size = len(small)
        factor = (-1) ** (order - size) * size / (order + size) * comb(order, size)
        higher = sum(
            comb(len(big) - 1, order) / comb(len(big) + order - 1, order + size) * value
            for big, value in mobius.items()
            if big > small and len(big) > order
        )
        i, j = min(small), max(small)
        assert found[i, j] == pytest.approx(mobius[small] + factor * higher, abs=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert np.triu(found).sum() == pytest.approx(float(worth[-1] - worth[0]), abs=1e-12)
    assert not np.allclose(found, (interaction_weights(n) @ worth).numpy(), atol=0.05)  # another index


def test_faith_shap_equals_shapiq() -> None:
    """Oracle where it is installed."""
    shapiq = pytest.importorskip("shapiq")
    n = 5
    worth = torch.rand(2**n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    power = 2 ** np.arange(n)
    exact = shapiq.ExactComputer(game=lambda s: worth[s.astype(int) @ power] - worth[0], n_players=n)
    found, index = (faith_weights(n) @ torch.from_numpy(worth)).numpy(), exact("FSII", order=2)
    for pair in itertools.combinations(range(n), 2):
        assert found[pair] == pytest.approx(index[pair], abs=1e-8)


def test_owen_values_equal_the_sum_over_orderings() -> None:
    """Oracle: average marginal contribution over the orders in which unions stay together; one union is Shapley."""
    unions = (2, 1, 3)
    members, weights = owen_table(unions)
    table = {tuple(row): column for column, row in enumerate(members.tolist())}
    worth = torch.rand(len(members), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blocks = [[0, 1], [2], [3, 4, 5]]
    orders = [
        [player for block in order for player in block]
        for chosen in itertools.permutations(blocks)
        for order in itertools.product(*(itertools.permutations(block) for block in chosen))
    ]
    expected = np.zeros(6)
    for order in orders:
        joined = [False] * 6
        for player in order:
            before = float(worth[table[tuple(joined)]])
            joined[player] = True
            expected[player] += (float(worth[table[tuple(joined)]]) - before) / len(orders)
    np.testing.assert_allclose((weights @ worth).numpy(), expected, atol=1e-13)
    assert float((weights @ worth).sum()) == pytest.approx(float(worth[-1] - worth[0]))
    members, weights = owen_table((4,))
    assert torch.equal(members, coalitions(4))
    torch.testing.assert_close(weights, shapley_weights(4))


def test_owen_values_of_an_object_add_up_to_its_shapley_value(
    trained_like: Model, toys: GraphBatch, provenance: Provenance
) -> None:
    """The quotient game, with the same (aligned) replacements; negative control: not with those turned at random."""
    one = subject(trained_like, toys[toys.mask.all(1)][:3], toys)
    found = Owen(draws=4).explain(one, provenance)
    pattern = next(patterns(one.graphs, one.baseline))
    for aligned in (True, False):
        donors = draw(pattern, one.graphs, 4, one.seed, aligned)
        worth = worths(trained_like, one.graphs, donors, coalitions(5)[:, :, None], 1)
        exact = values_of(worth, shapley_weights(5)).mean(1).numpy()
        assert np.allclose(found.values.sum(2), exact, atol=1e-4) == aligned
    assert found.completeness_error is not None
    assert found.completeness_error.max() < 1e-5


def test_feature_groups_equal_captum(trained_like: Model, toys: GraphBatch, provenance: Provenance) -> None:
    """Oracle: captum with a feature mask. The features no group names are one player, `rest`."""
    players = {"b": ("bjet.pt", "bjet.eta", "bjet.phi"), "met": ("met",)}
    one = subject(trained_like, toys[toys.mask.all(1)][:1], toys)
    found = FeatureGroups(players=players, draws=2).explain(one, provenance)
    assert found.players == ("b", "met", "rest")
    groups = torch.full((1, 5, 6), 2)
    groups[:, :2, :3], groups[:, 4] = 0, 1
    donors = draw(next(patterns(one.graphs, one.baseline)), one.graphs, 2, one.seed, aligned=True)
    score = score_function(trained_like, 1)
    exact = [
        ShapleyValues(score).attribute(
            one.graphs.x,
            donor[None],
            additional_forward_args=(one.graphs.mask, one.graphs.node_type),
            feature_mask=groups,
        )[0, [0, 4, 3], 0]
        for donor in donors[0]
    ]
    np.testing.assert_allclose(found.values[0], torch.stack(exact).mean(0).detach().numpy(), atol=2e-4)


def test_feature_groups_of_a_pair_mass(toys: GraphBatch, provenance: Provenance) -> None:
    """A score made of m_T alone: the lepton's η, the b-jets and every other feature get exactly nothing."""

    class OfMt(ClosedForm):
        def forward(self, x, mask, node_type, routing=None, noise=None, gain=None, pair_terms=None):  # type: ignore[no-untyped-def]
            score = MECHANISMS["mt"].score(x, node_type, toys.layout.slots)
            return Output(torch.stack([torch.zeros_like(score), score], -1), empty_trace(mask, 0))

    one = subject(OfMt(toys.layout, [0.0] * 5, 0.0), toys[:20], toys)
    found = FeatureGroups(draws=4).explain(one, provenance)
    share = np.abs(found.values).mean(0) / np.abs(found.values).mean(0).sum()
    used = {"lepton.pt", "met.pt", "met.phi"}
    assert sum(share[found.players.index(name)] for name in used) == pytest.approx(1, abs=1e-5)
    assert min(share[found.players.index(name)] for name in used) > 0.1
    assert "lepton.eta" in found.players
    with pytest.raises(ConfigError, match="group 'x': unknown object 'bjets'; closest: 'bjet'"):
        FeatureGroups(players={"x": ("bjets.pt",)}).explain(one, provenance)
    with pytest.raises(ConfigError, match=r"b1.pt is in two groups of `players`: b, first"):
        FeatureGroups(players={"b": ("bjet",), "first": ("b1.pt",)}).explain(one, provenance)
    with pytest.raises(ConfigError, match="13 groups of features have"):
        FeatureGroups(players={str(i): ("met",) for i in range(13)}).explain(one, provenance)


@pytest.mark.parametrize("without", [(), ("lepton",), ("lepton", "met")])
def test_what_is_computed_once_is_what_each_row_computes(
    trained_like: Model, toys: GraphBatch, without: tuple[str, ...]
) -> None:
    """Objects and pairs of event and replacement, φ counted from a lepton, from the missing momentum, or from a jet,
    which may be exchanged too; worths are those of the rows one by one."""
    graphs = toys[toys.mask.all(1)][:6]
    gone = torch.tensor([slot in without for slot in graphs.layout.slots])
    events = replace(graphs, mask=graphs.mask & ~gone, x=graphs.x * ~gone[:, None])
    donors = torch.stack([events.x.roll(shift, 0) for shift in (1, 2)], 1)
    kept = torch.rand(9, 5, generator=torch.Generator().manual_seed(3)) < 0.5
    kept[0], kept[-1] = False, True
    found = worths(trained_like, events, donors, kept[..., None], 1)
    for draw_, row in itertools.product(range(2), range(9)):
        x = torch.where(kept[row, :, None], events.x, donors[:, draw_])
        one = predict(trained_like, replace(events, x=x)).double()
        torch.testing.assert_close(found[:, draw_, row], one, atol=2e-5, rtol=1e-5)
    shared = computed_once(trained_like, events, donors, kept)
    assert shared is not None
    assert shared.states is not None
    wrong = replace(shared, states=shared.states.roll(len(events.layout.slots), 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hepx.attribution.coalitions.computed_once", lambda *_: wrong)
        assert (worths(trained_like, events, donors, kept[..., None], 1) - found).abs().max() > 1e-3


def test_occlusion_equals_captum(trained_like: Model, toys: GraphBatch, provenance: Provenance) -> None:
    """Oracle: captum's FeatureAblation, one donor at a time."""
    one = subject(trained_like, toys[toys.mask.all(1)][:4], toys)
    found = Occlusion(draws=2).explain(one, provenance)
    donors = draw(next(patterns(one.graphs, one.baseline)), one.graphs, 2, one.seed)
    extra = (one.graphs.mask, one.graphs.node_type)
    groups = torch.arange(5)[None, :, None].expand(1, 5, 6)
    ablation = FeatureAblation(score_function(trained_like, 1))
    exact = [
        ablation.attribute(one.graphs.x, donors[:, k], additional_forward_args=extra, feature_mask=groups)[..., 0]
        for k in range(2)
    ]
    np.testing.assert_allclose(found.values, torch.stack(exact).mean(0).detach().numpy(), atol=2e-5)
    assert found.completeness_error is None


def test_baselines_answer_different_questions(trained_like: Model, toys: GraphBatch, provenance: Provenance) -> None:
    """`process` draws its sample only, `conditional` the nearest only, `masked` says what it needs."""
    layout = replace(toys.layout, samples=("ttbar", "singletop"), labels=(0, 0))
    met = toys.layout.observable_index("met")
    toys = replace(toys, layout=layout, sample=torch.arange(400) % 2, observables=toys.observables.clone())
    toys.observables[:, met] = toys.x[:, 4, 0]
    graphs = toys[toys.mask.all(1)]
    one = subject(trained_like, graphs[:6], graphs)
    for method in (Shapley(baseline="process", process="ttbar"), Shapley(baseline="conditional", near=("met",))):
        pattern = next(patterns(one.graphs, donor_pool(method, one)))
        x = replacements(method, pattern, one.graphs, 3, aligned=False)
        pt = x[..., 4, 0]
        if method.baseline == "process":
            assert method.name == "shapley_process_ttbar"
            assert torch.isin(pt, graphs.x[graphs.sample == 0][:, 4, 0]).all()
            assert not torch.isin(
                draw(pattern, one.graphs, 16, 3)[..., 4, 0], graphs.x[graphs.sample == 1][:, 4, 0]
            ).any()
        else:
            close = (pt - one.graphs.x[:, None, 4, 0]).abs().mean()
            method = method.model_copy(update={"neighbours": 10})
            closer = replacements(method, pattern, one.graphs, 3, aligned=False)[..., 4, 0]
            assert (closer - one.graphs.x[:, None, 4, 0]).abs().mean() < 0.3 * close
    masked = Shapley(baseline="masked").explain(one, provenance)
    assert "not trained with hidden objects" in masked.note
    assert Shapley(baseline="masked").explain(replace(one, node_dropout=True), provenance).note == ""
    assert masked.error is not None
    assert np.abs(masked.error).max() == 0
    mask = one.graphs.mask.clone()
    mask[:, 2] = False
    without = trained_like(one.graphs.x, mask, one.graphs.node_type).logits
    full = trained_like(one.graphs.x, one.graphs.mask, one.graphs.node_type).logits
    alone = Occlusion(baseline="masked").explain(one, provenance).values[:, 2]
    np.testing.assert_allclose(alone, (log_odds(full, 1) - log_odds(without, 1)).detach().numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="baseline process 'ttbr' is no sample; closest: 'ttbar'"):
        Shapley(baseline="process", process="ttbr").explain(one, provenance)
    with pytest.raises(ValueError, match="baseline: process needs process"):
        Shapley(baseline="process")


def test_turned_met_has_the_wanted_transverse_mass(toys: GraphBatch) -> None:
    """m_T from vector, between 0 and 2 √(pt MET) and no further; only the direction of the missing momentum moves."""
    for mass in (0.0, 60.0, 150.0):
        moved, reached = turn_met(toys, mass)
        lepton, met = (moved[:, slot].double() for slot in (3, 4))
        p = [vector.array({"pt": q[:, 0].numpy(), "phi": q[:, 2].numpy()}) for q in (lepton, met)]
        mt = np.sqrt(2 * p[0].pt * p[1].pt * (1 - np.cos(p[0].deltaphi(p[1]))))
        np.testing.assert_allclose(mt[reached.numpy()], mass, atol=0.2)
        np.testing.assert_array_equal(reached.numpy(), 2 * np.sqrt(p[0].pt * p[1].pt) >= mass)
        assert torch.equal(moved[..., [0, 1, 3, 4, 5]], toys.x[..., [0, 1, 3, 4, 5]])
        assert torch.equal(moved[:, :4], toys.x[:, :4])


def test_links_find_the_observable_and_not_the_shuffled_one(toys: GraphBatch, provenance: Provenance) -> None:
    events = event_table(toys)
    rng = np.random.default_rng(0)
    values = np.zeros((len(toys), 5))
    values[:, 0] = np.tanh((events.observable("mbb") - 120) / 60) + 0.1 * rng.normal(size=len(toys))
    zero = np.zeros(len(toys))
    result = Explanation(events, values, values * 0, zero, zero, zero, None, None, "logit", provenance)
    links = {link.observable: link for link in observable_links(result)}
    assert links["mbb"].strength > 3 * links["mbb"].null
    assert links["mt"].strength == 0
    shuffled = replace(result, values=rng.permutation(values))
    found = {link.observable: link for link in observable_links(shuffled)}["mbb"]
    assert found.strength < 1.5 * found.null


def test_subsample_is_stable_and_random(toys: GraphBatch) -> None:
    assert torch.equal(subsample(toys, 50, 1).event_id, subsample(toys, 50, 1).event_id)
    assert not torch.equal(subsample(toys, 50, 1).event_id, subsample(toys, 50, 2).event_id)
    assert len(subsample(toys, 10_000, 1)) == len(toys)


def explain_planted(mechanism: Mechanism, shuffled: bool, folder: Path, provenance: Provenance) -> Explanation:
    """Train a small MGT on planted labels and explain 300 test events."""
    graphs = plant(toy_graphs(27_000, 1), mechanism, 2, shuffled)
    train, validation, test = graphs[:24_000], graphs[24_000:26_000], graphs[26_000:]
    settings = MODELS["moe_graph_transformer"][0](dim=32, expert_dim=16, dropout=0.0, pair_values=True)
    model = build_model(settings, graphs.layout, 1)
    fit(model, train, validation, TrainSettings(epochs=4 if shuffled else 12, lr=3e-3), 1, folder)
    return Shapley(draws=32).explain(subject(model, test[:300], background_events(train, 1)), provenance)


def mass_and_hit(result: Explanation, slots: tuple[str, ...]) -> tuple[float, float]:
    """Relevance mass on the true objects, and share of events whose strongest pair is the true one."""
    i, j = (result.events.slots.index(name) for name in slots)
    values = np.abs(result.values)
    mass = float((values[:, [i, j]].sum(1) / values.sum(1)).mean())
    assert result.interactions is not None
    strength = np.abs(result.interactions)
    top = strength.reshape(len(strength), -1).argmax(1)
    return mass, float(np.isin(top, [i * 5 + j, j * 5 + i]).mean())


def test_planted_mbb_is_found(tmp_path: Path, provenance: Provenance) -> None:
    """Labels drawn from a peak in m_bb: ≥ 85 % of the attribution on the b-jets, their pair on top in ≥ 90 %."""
    mechanism = MECHANISMS["mbb"]
    mass, hit = mass_and_hit(explain_planted(mechanism, False, tmp_path, provenance), mechanism.slots)
    assert mass >= 0.85
    assert hit >= 0.90


def test_nothing_is_found_in_shuffled_labels(tmp_path: Path, provenance: Provenance) -> None:
    """Negative control of the planted truth: chance is 2/5 of the mass and 1/10 of the pairs."""
    mechanism = MECHANISMS["mbb"]
    mass, hit = mass_and_hit(explain_planted(mechanism, True, tmp_path, provenance), mechanism.slots)
    assert mass < 0.65
    assert hit < 0.5
