"""The planted truth is exact, the gate tells a wrong network from a wrong method, and the table judges every method."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from dataclasses import replace
from math import factorial
from pathlib import Path

import numpy as np
import pytest
import torch

from hepx.attribution import METHODS, Subject, event_table, explain
from hepx.attribution.baselines import draw, patterns
from hepx.attribution.shapley import Shapley
from hepx.errors import ConfigError, ResultError
from hepx.graph import GraphBatch
from hepx.models import build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.planted import MECHANISMS, Mechanism, plant, suite, toy_graphs
from hepx.planted.bayes import BayesNetwork, expected_auc, judge_network
from hepx.planted.cases import VARIANTS, SuiteSettings, cases, own_base, toy_base
from hepx.planted.judge import Criterion, Measures, measure, missed
from hepx.planted.mechanisms import hidden_class
from hepx.planted.observations import OBSERVATIONS
from hepx.planted.suite import run_suite
from hepx.planted.systematics import VARIATIONS
from hepx.report.planted import make_planted
from hepx.results import Explanation, Provenance

TINY = {"train_events": 600, "test_events": 300, "explained": 20, "draws": 4, "epochs": 1, "quick": True}
COMPLETE = {"shapley", "feature_groups", "owen", "integrated_gradients", "deeplift"}
NEEDS_ATTENTION = {"edge_knockout", "gradient_attention", "gnn_explainer", *OBSERVATIONS}


def tiny(**values: object) -> SuiteSettings:
    return SuiteSettings(**TINY | values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> suite.Suite:
    """The table of the hand-made networks."""
    settings = tiny(mechanisms=("unit_single", "unit_sum", "unit_product", "unit_max"))
    return run_suite(settings, toy_base(settings), tmp_path_factory.mktemp("units"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[suite.Suite, Path]:
    """The table of one mechanism with its controls; far too little training to pass the gate."""
    folder = tmp_path_factory.mktemp("planted")
    settings = tiny(mechanisms=("mbb",))
    return run_suite(settings, toy_base(settings), folder), folder


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_bayes_score_is_calibrated(name: str) -> None:
    """In bins of σ(score) the share of signal is the mean probability: the log-odds of labels and events are exact,
    the leak's too. The labels of other events are not."""
    mechanism, graphs = MECHANISMS[name], toy_graphs(20_000, 3)
    prepared = graphs if mechanism.prepare is None else mechanism.prepare(graphs)
    events = plant(graphs, mechanism.balanced(prepared), 4)
    score = mechanism.balanced(prepared).score(events.x, events.node_type, events.layout.slots).double()
    pulls = [_pull(score, events.y), _pull(score, events.y.roll(1))]
    assert pulls[0] < 4
    assert pulls[1] > 10 or name == "null"
    if mechanism.level:
        assert float(events.y.double().mean()) == pytest.approx(0.5, abs=0.02)


def _pull(score: torch.Tensor, y: torch.Tensor) -> float:
    """Largest deviation of the share of signal over its binomial error, in ten bins of the score."""
    p = torch.sigmoid(score)
    parts = torch.argsort(score).chunk(10)
    return max(float((y[i] - p[i]).sum().abs() / (p[i] * (1 - p[i])).sum().sqrt().clamp(min=1e-9)) for i in parts)


def test_a_hidden_class_decides_which_mass_matters() -> None:
    """Inside each class the labels follow its own mechanism and not the other; both have as much signal, so the class
    tells nothing of the label, and no event shows it."""
    graphs = toy_graphs(20_000, 3)
    events = plant(graphs, MECHANISMS["two"].balanced(graphs), 4)
    drawn = hidden_class(events)
    assert torch.equal(events.x, graphs.x)
    assert float(drawn.double().mean()) == pytest.approx(0.5, abs=0.015)
    for number, (own, other) in enumerate([("mbb", "mt"), ("mt", "mbb")]):
        inside = events[drawn == number]
        scores = [MECHANISMS[name].balanced(graphs).score for name in (own, other)]
        pulls = [_pull(one(inside.x, inside.node_type, inside.layout.slots).double(), inside.y) for one in scores]
        assert pulls[0] < 4
        assert pulls[1] > 10
        assert float(inside.y.double().mean()) == pytest.approx(0.5, abs=0.02)


def test_reference_values_equal_the_sum_over_orderings(provenance: Provenance) -> None:
    """Oracle: Shapley values of the Bayes score by all 5! orders of the objects, donor by donor."""
    graphs = toy_graphs(300, 5)
    events, donors = graphs[graphs.mask.all(1)][:2], graphs[100:]
    for name in ("mbb", "mix", "two", "xor"):
        network = BayesNetwork(MECHANISMS[name], graphs.layout)
        found = explain(Shapley(draws=3), Subject(network, network, events, donors, 1, 7), provenance)
        pattern = next(patterns(events, donors))
        others = draw(pattern, events, 3, 7)
        expected = np.zeros((2, 5))
        for order in itertools.permutations(range(5)):
            x = others.clone()
            before = _score(network, x, events)
            for player in order:
                x[:, :, player] = events.x[:, None, player]
                after = _score(network, x, events)
                expected[:, player] += (after - before).mean(1) / factorial(5)
                before = after
        np.testing.assert_allclose(found.values, expected, atol=1e-5)  # type: ignore[attr-defined]
        assert np.abs(expected).max() > 0.1


def _score(network: BayesNetwork, x: torch.Tensor, events: GraphBatch) -> np.ndarray:
    rows, kinds = x.flatten(0, 1), events.node_type.repeat_interleave(x.shape[1], 0)
    return network.score(rows, kinds, network.slots).double().reshape(x.shape[:2]).numpy()


def test_expected_auc_is_the_mean_over_labels_and_highest_for_bayes() -> None:
    rng = np.random.default_rng(0)
    bayes, weight = rng.normal(0, 1.5, 400), rng.choice([1.0, 2.0, -0.3], 400)
    other = bayes + rng.normal(0, 1, 400)
    y = rng.random((3000, 400)) < 1 / (1 + np.exp(-bayes))
    pairs = weight[:, None] * weight * ((other[:, None] > other) + 0.5 * (other[:, None] == other))
    sums = [((v * weight) @ np.ones(400), ((~v) * weight) @ np.ones(400)) for v in y]
    drawn = [v @ pairs @ ~v / (s * b) for v, (s, b) in zip(y[:300], sums, strict=False)]
    assert expected_auc(bayes, other, weight) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 300**0.5)
    ones = np.ones(400)
    assert expected_auc(bayes, bayes, ones) > expected_auc(bayes, other, ones) > 0.5
    assert expected_auc(bayes, ones, ones) == pytest.approx(0.5)


def test_the_gate_refuses_an_untrained_network() -> None:
    """The Bayes network passes with the best AUC there is; an untrained one and the wrong mechanism do not."""
    mechanism = MECHANISMS["mbb"]
    graphs = plant(toy_graphs(2000, 6), mechanism, 7)
    untrained = build_model(MoEGraphTransformerSettings(dim=8, expert_dim=4), graphs.layout, 1)
    untrained.inputs.fit(graphs, graphs.weight)
    networks = {
        "bayes": BayesNetwork(mechanism, graphs.layout),
        "untrained": untrained,
        "wrong": BayesNetwork(MECHANISMS["mt"], graphs.layout),
    }
    gates = {k: judge_network("mbb", k, mechanism, model, graphs, 0, 1) for k, model in networks.items()}
    assert {k for k, gate in gates.items() if gate.passed} == {"bayes"}
    assert gates["bayes"].auc == pytest.approx(gates["bayes"].bayes_auc)
    assert gates["bayes"].correlation == pytest.approx(1)
    assert gates["wrong"].auc == pytest.approx(0.5, abs=0.05)


def test_hand_made_networks_are_explained_exactly(units: suite.Suite) -> None:
    """|φ − closed form| ≤ 1e-5 for sum and product; the negative control misses: input × gradient of a product."""
    for row in units.rows:
        if row.mechanism != "unit_max" and row.method in COMPLETE:
            assert row.measures.exactness is not None
            assert row.measures.exactness <= 1e-5, row
            assert row.verdict == "pass"
        if row.mechanism == "unit_max" and row.method in {"shapley", "feature_groups", "owen"}:
            assert row.measures.exactness is not None
            assert row.measures.exactness <= 1e-5, row
    wrong = {row.method: row for row in units.rows if row.mechanism == "unit_product"}["input_x_gradient"]
    assert wrong.measures.exactness is not None
    assert wrong.measures.exactness > 0.1
    assert "exactness" in wrong.missed
    assert wrong.verdict == "fail"


def test_a_network_without_attention_has_no_edges_to_judge(units: suite.Suite) -> None:
    rows = [row for row in units.rows if row.method in NEEDS_ATTENTION]
    assert {row.verdict for row in rows} == {"not possible"}
    assert all("attention" in row.note for row in rows)


def test_every_method_is_in_the_table(planted: tuple[suite.Suite, Path]) -> None:
    """Trained, untrained and shuffled, each with every method and attention; a network that misses the gate judges no
    method, and no control passes."""
    found, folder = planted
    for network in ("trained", "untrained", "shuffled"):
        rows = {row.method: row for row in found.rows if row.network == network}
        assert set(rows) == {*METHODS, *VARIANTS, *OBSERVATIONS}
        assert {rows[name].verdict for name in OBSERVATIONS} == {"observation"}
        assert rows["shapley"].verdict == ("not judged" if network == "trained" else "fail")
        assert rows["shapley"].measures.mass is not None
        assert rows["shapley"].measures.mass < 0.65  # chance is 2 of 4 or 5 objects
        assert "pass" not in {row.verdict for row in rows.values()}
    assert not any(gate.passed for gate in found.gates)
    with (folder / "planted.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == [row.method for row in found.rows]
    assert float(lines[0]["mass"]) == found.rows[0].measures.mass
    assert float(lines[0]["mass_error"]) == found.rows[0].errors.mass
    assert "exactness_error" not in lines[0]


def test_what_is_asked_besides_the_table(planted: tuple[suite.Suite, Path]) -> None:
    """Both controls and every systematic variation of this mechanism; what is asked is judged by its criterion."""
    found, _ = planted
    asked = {(check.case, check.analysis) for check in found.checks}
    assert asked >= {("mbb, untrained", "control"), ("mbb, shuffled", "control"), ("mbb, shuffled", "shapley")}
    assert {name for name, analysis in asked if analysis == "shapley"} >= set(VARIATIONS)
    bands = [check for check in found.checks if check.case in VARIATIONS]
    lines = suite.summary(found)
    assert sum(line.startswith("  fails:") for line in lines) == sum(not check.passed for check in found.checks)
    assert all(check.passed == (0.58 <= (check.value or 0.0) <= 0.78) for check in bands)


def test_the_page_shows_every_number(planted: tuple[suite.Suite, Path]) -> None:
    """The table for a README has a line per method, bold where a trained network's explanation passes; the page has the
    facts besides. A folder without a table is refused."""
    found, folder = planted
    page = make_planted(folder).read_text(encoding="utf-8")
    lines = (folder / "planted.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(METHODS) + len(VARIANTS) + len(OBSERVATIONS)
    assert "**" not in "".join(lines)  # nothing is judged on a network that misses the gate
    row = next(row for row in found.rows if row.method == "shapley" and row.network == "trained")
    assert f"| shapley | {row.measures.mass:.2f} |" in "\n".join(lines)
    assert f'{row.measures.mass:.3f}</span><span class="quiet">({1000 * (row.errors.mass or 0.0):.0f})' in page
    assert page.count("fails, as it must") >= 2 * 10
    assert "misses the gate" in page
    assert "misses, as it must" in page
    assert all(variation.what in page for variation in VARIATIONS.values())
    with pytest.raises(ResultError, match="hepx validate planted"):
        make_planted(folder / "nothing")


def test_a_finished_suite_computes_nothing_again(
    planted: tuple[suite.Suite, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same settings find their rows; another seed does not."""
    found, folder = planted

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(suite, "_measured", refuse)
    monkeypatch.setattr("hepx.planted.cases.fit", refuse)
    settings = tiny(mechanisms=("mbb",))
    assert run_suite(settings, toy_base(settings), folder).rows == found.rows
    other = tiny(mechanisms=("mbb",), seed=2)
    with pytest.raises(AssertionError, match="computed again"):
        run_suite(other, toy_base(other), folder)


def test_adding_a_mechanism_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Mechanism(("met",), lambda x, types, slots: x[:, slots.index("met"), 0] / 40 - 2, "MET", 1, ("met.pt",))
    monkeypatch.setitem(MECHANISMS, "own", own)
    settings = tiny(mechanisms=("own",), methods=("shapley", "occlusion"))
    found = run_suite(settings, toy_base(settings), tmp_path)
    assert [(row.mechanism, row.method) for row in found.rows] == [("own", "shapley"), ("own", "occlusion")]
    assert found.mechanisms == {"own": "MET"}
    assert found.gates[0].bayes_auc > 0.7


def test_the_true_objects_may_differ_event_by_event(toys: GraphBatch) -> None:
    truth = MECHANISMS["mix"].relevant(toys)
    has_j3 = toys.mask[:, toys.layout.slots.index("j3")]
    assert torch.equal(truth[has_j3], torch.tensor([False, False, False, True, True]).expand(int(has_j3.sum()), -1))
    assert torch.equal(truth[~has_j3], torch.tensor([True, True, False, False, False]).expand(int((~has_j3).sum()), -1))
    suppressor = MECHANISMS["suppressor"].relevant(toys)
    assert torch.equal(suppressor[:, 2], has_j3)


def test_own_events_lose_what_cannot_be_explained(toys: GraphBatch) -> None:
    """Rare combinations of objects have no donors; a mechanism whose objects the graphs lack is left out."""
    mask = toys.mask.clone()
    mask[0, 3] = False
    rare = replace(toys, mask=mask, x=toys.x * mask[..., None], object_index=torch.where(mask, toys.object_index, -1))
    settings = tiny(mechanisms=("unit_sum",))
    base = own_base(toys, rare[:50], settings, "mine", "x")
    assert len(base.test) == 49
    layout = replace(toys.layout, slots=("b1", "b2", "j3", "l", "met"))
    without = own_base(replace(toys, layout=layout), replace(rare, layout=layout), settings, "mine", "x")
    with pytest.raises(ConfigError, match="no mechanism can be planted into these graphs"):
        cases(settings, without, Path())


# Errors -----------------------------------------------------------------------------------------------------------


def _drawn(graphs: GraphBatch, rng: np.random.Generator, provenance: Provenance) -> tuple[Explanation, Explanation]:
    """An explanation and its reference: the objects of an event share their sign, size and most of the noise."""
    mask, common = graphs.mask.numpy(), rng.normal(size=(2, len(graphs), 1))
    truth = np.array([1.0, 0.8, 0.4, 0.3, 0.4]) * common[0] * mask
    values = truth + (0.4 * common[1] + 0.3 * rng.normal(size=truth.shape)) * mask
    score, none = rng.normal(size=len(graphs)), np.zeros(len(graphs))
    pairs = values[:, :, None] * values[:, None, :]
    gap = 0.1 * np.abs(rng.normal(size=len(graphs)))
    exact = Explanation(event_table(graphs), truth, None, score, none, none, None, None, "logit", provenance)
    return Explanation(event_table(graphs), values, None, score, none, gap, pairs, None, "logit", provenance), exact


def test_errors_are_the_spread_over_other_events(toys: GraphBatch, provenance: Provenance) -> None:
    """Oracle: the same measures of 150 other sets of events, some of negative weight. The objects of an event are not
    independent: replicas of objects instead of events would give the correlation 60 % of its error."""
    rng, mechanism, number = np.random.default_rng(4), MECHANISMS["mbb"], 120
    found = []
    for _ in range(150):
        graphs = toys[torch.from_numpy(rng.choice(len(toys), number, replace=False))]
        graphs = replace(graphs, weight=torch.from_numpy(rng.choice([1.0, 2.0, -0.5], number, p=[0.5, 0.4, 0.1])))
        result, exact = _drawn(graphs, rng, provenance)
        found.append(measure(mechanism, graphs, result, exact, exact))
    for name in ("mass", "rank", "pointing", "pair_hit", "pair_mass", "closure", "completeness"):
        values, errors = (np.array([getattr(one[part], name) for one in found]) for part in (0, 1))
        assert errors.mean() == pytest.approx(values.std(), rel=0.25), name


def test_a_share_of_all_events_has_an_error(provenance: Provenance) -> None:
    """25 of 25: that of 26 of 27, by Laplace's rule; doubled weights change nothing, and one event has none."""
    graphs = toy_graphs(25, 1)
    values = np.tile([1.0, 1.0, 0, 0, 0], (25, 1))
    result = replace(_drawn(graphs, np.random.default_rng(1), provenance)[0], values=values)
    for weight in (1.0, 2.0):
        weighted = replace(graphs, weight=torch.full((25,), weight, dtype=torch.float64))
        means, errors = measure(MECHANISMS["mbb"], weighted, result, result, result)
        assert (means.pointing, means.mass, errors.mass) == (1.0, 1.0, 0.0)
        assert errors.pointing == pytest.approx(np.sqrt(26 / 27 * 1 / 27 / 27))
    one = _drawn(graphs[:1], np.random.default_rng(1), provenance)[0]
    assert measure(MECHANISMS["mbb"], graphs[:1], one, one, one)[1] == Measures()


def test_costly_methods_explain_fewer_events_only_where_nothing_is_decided(tmp_path: Path) -> None:
    settings = tiny(mechanisms=("mbb",), explained=80, quick=False)
    trained, untrained, _ = cases(settings, toy_base(settings), tmp_path)
    for name in ("owen", "feature_groups", "integrated_gradients"):
        assert [suite.method_of(name, case).events for case in (trained, untrained)] == [80, 20]
        quick = replace(trained, settings=tiny(explained=80))
        assert suite.method_of(name, quick).events == 20
    assert suite.method_of("gnn_explainer", trained).events == 20
    assert suite.method_of("shapley", untrained).events == 80


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (Measures(mass=0.9, rank=0.95, pointing=0.99, closure=0.1), []),
        (Measures(mass=0.8, rank=0.95, pointing=0.99), ["mass"]),
        (Measures(completeness=0.5), None),
    ],
)
def test_criteria(values: Measures, expected: list[str] | None) -> None:
    """Closure is asked of exact methods only; a complete but otherwise silent method is not judged."""
    assert missed("occlusion", values) == expected
    if values.closure is not None:
        assert missed("shapley", values) == ["closure"]


def test_methods_for_pairs_are_judged_by_pairs_where_the_truth_is_one() -> None:
    """What their pairs add up to for an object is not what they claim; without a true pair it is all there is."""
    found = Measures(mass=0.5, rank=0.95, pointing=0.99, pair_hit=0.95, pair_mass=0.6)
    assert missed("edge_knockout", found) == []
    assert missed("edge_knockout", replace(found, pair_hit=0.8)) == ["pair_hit"]
    assert missed("edge_knockout", replace(found, pair_hit=None, pair_mass=None)) == ["mass"]
    assert missed("shapley", found) == ["mass"]
    interactions = Measures(mass=0.9, pair_hit=0.95, pair_closure=0.9)
    assert missed("shapley", interactions) == ["pair_closure"]
    assert missed("shapley", replace(interactions, pair_hit=None)) == []


def test_criterion_reads_as_it_judges() -> None:
    low: Callable[[float], bool] = Criterion(0.05, at_least=False).met
    assert (low(0.04), low(0.06), str(Criterion(0.85))) == (True, False, "≥ 0.85")


def test_unknown_names_are_refused_with_near_ones() -> None:
    with pytest.raises(ValueError, match="unknown mechanism 'mb'; closest: 'mbb'"):
        tiny(mechanisms=("mb",))
    with pytest.raises(ValueError, match="unknown method 'shaply'; closest: 'shapley'"):
        tiny(methods=("shaply",))
