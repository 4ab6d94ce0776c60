"""What must hold besides the table of the methods: controls, unused features, experts that are known, error bands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hepx.attribution import Subject
from hepx.graph import GraphBatch
from hepx.models import build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.inputs import PHI, PT
from hepx.nulls import Null
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.planted.bayes import BayesNetwork, judge_network
from hepx.planted.cases import Case, SuiteSettings, cases, toy_base
from hepx.planted.checks import control_checks, shortcut_check, shortcut_costs, suppressor_checks
from hepx.planted.experts import EXPERT_CASES, OracleNetwork, Setting, cloned, deadened, renamed
from hepx.planted.judge import Check, Measures, measure
from hepx.planted.observations import wording
from hepx.planted.systematics import VARIATIONS, coverage, shift, with_jets
from hepx.results import GroupExplanation, Provenance
from hepx.results_network import ExpertReport

SMALL = MoEGraphTransformerSettings(dim=16, expert_dim=8, num_heads=2, num_experts=4)


@pytest.fixture(scope="module")
def setting() -> Setting:
    """Mixture events and networks of random weights; one with a strong head stands for the trained one."""
    graphs = plant(toy_graphs(1200, 11), MECHANISMS["mix"], 12)
    networks = [build_model(SMALL, graphs.layout, seed).eval() for seed in range(5)]
    for network in networks:
        network.inputs.fit(graphs, graphs.weight)
    with torch.no_grad():
        networks[0].get_submodule("head")[-1].weight *= 10  # type: ignore[index]
    return Setting(graphs, networks[0], networks[1:4], networks[4], 1)


@pytest.fixture(scope="module")
def reports(setting: Setting) -> dict[str, ExpertReport]:
    return {name: EXPERT_CASES[name].report(setting) for name in ("oracle", "clone", "dead", "untrained")}


# Experts ----------------------------------------------------------------------------------------------------------


def failed(name: str, report: ExpertReport) -> set[str]:
    return {check.analysis for check in EXPERT_CASES[name].judge(report) if not check.passed}


@pytest.mark.parametrize("name", ["oracle", "clone", "dead", "untrained"])
def test_known_experts_are_found(name: str, reports: dict[str, ExpertReport]) -> None:
    assert failed(name, reports[name]) == set()


def test_what_is_asked_of_one_mixture_fails_for_another(reports: dict[str, ExpertReport]) -> None:
    """The negative control: no report meets what must be found of another network."""
    assert failed("clone", reports["oracle"]) == {"different weights", "likeness", "swap", "verdict"}
    assert {"swap", "information", "verdict", "different weights"} <= failed("oracle", reports["clone"])
    assert failed("dead", reports["untrained"]) >= {"dead experts", "knock-out"}
    assert failed("untrained", reports["oracle"]) == {"information", "variables told", "verdict"}
    assert failed("mix", reports["untrained"]) >= {"information", "verdict"}


def test_the_choice_of_expert_cannot_tell_a_hidden_class(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that looks at m_bb tells m_bb and not the class; one that looks at neither mass is blind; and the class
    is found out if it is no longer hidden."""

    def router(*at: int) -> OracleNetwork:
        """It looks at some of m_bb, m_T and the third jet."""
        model = OracleNetwork(setting.graphs.layout).eval()
        with torch.no_grad():
            model.mixture.router.weight.zero_()
            model.mixture.router.weight[:2, at] = torch.tensor([[-20.0], [20.0]])
        return model

    def looking(at: int) -> set[str]:
        case = replace(EXPERT_CASES["two"], make=lambda setting: router(at))
        return {check.analysis for check in case.judge(case.report(setting)) if not check.passed}

    monkeypatch.setattr("hepx.planted.experts.random_oracles", lambda layout: [Null("untrained", router())] * 3)

    assert looking(0) == set()
    assert looking(2) == {"variables told"}
    third = setting.graphs.layout.slots.index("j3")
    monkeypatch.setattr("hepx.planted.experts.hidden_class", lambda graphs: graphs.mask[:, third].long())
    assert looking(2) == {"information", "variables told"}


def test_known_routers_are_found(setting: Setting) -> None:
    """The tree, the units that are needed, and a router whose experts have other numbers; its score is the same."""
    for name in ("oracle", "mix"):
        assert [check.what for check in EXPERT_CASES[name].beside(setting) if not check.passed] == []
    few = setting.graphs[:50]
    before, after = (model(few.x, few.mask, few.node_type) for model in (setting.trained, renamed(setting.trained)))
    torch.testing.assert_close(after.logits, before.logits)
    assert not torch.equal(after.trace.gates, before.trace.gates)


def test_another_router_is_not_a_renamed_one(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepx.planted.experts.renamed", deadened)
    same, _ = EXPERT_CASES["mix"].beside(setting)
    assert not same.passed


@torch.no_grad()
def test_copies_and_dead_experts_are_made_as_said(setting: Setting) -> None:
    """Only the copy changes; the dead expert is never chosen, and a copy of every expert is the first."""
    few = setting.graphs[:50]
    before = setting.trained(few.x, few.mask, few.node_type)
    dead = deadened(setting.trained)(few.x, few.mask, few.node_type).trace.gates
    same = cloned(setting.trained).get_parameter("blocks.1.feed_forward.w1")
    assert float(dead[:, 0, :, 0].abs().max()) == 0
    assert float(before.trace.gates[:, 0, :, 0].abs().max()) > 0
    assert torch.equal(same, same[:1].expand_as(same))
    after = setting.trained(few.x, few.mask, few.node_type)
    assert torch.equal(after.logits, before.logits)


# Controls ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A network on shuffled labels, hardly trained."""
    sizes = {"train_events": 800, "test_events": 1500, "epochs": 1, "explained": 20, "draws": 4}
    settings = SuiteSettings(**sizes, mechanisms=("met_significance",))  # type: ignore[arg-type]
    found = cases(settings, toy_base(settings), tmp_path_factory.mktemp("control"))
    return next(case for case in found if case.network == "shuffled")


def facts(case: Case, model: torch.nn.Module, mass: float) -> dict[str, Check]:
    case.__dict__["model"] = model
    test, ignorant = case.events[1], case.fresh_networks(8)
    gate = judge_network(case.name, case.network, case.mechanism, model, test, 1, 1, ignorant)  # type: ignore[arg-type]
    return {check.what[:10]: check for check in control_checks(case, gate, {"shapley": Measures(mass=mass)})}


def test_a_network_that_has_learned_nothing_is_seen_as_such(control: Case) -> None:
    """A random function of a few inputs has an AUC far from one half, which is no learning: its spread over networks
    says so. The Bayes-optimal network on the same events is caught, and so is a large relevance mass: other networks
    that have learned nothing are not that far from chance."""
    nothing = facts(control, control.model, 0.3)
    assert all(check.passed for check in nothing.values())
    spread = nothing["AUC with t"].error
    assert spread is not None
    assert spread > 3 * 0.015  # the statistical error of an AUC of 1500 events
    known = facts(control, control.bayes, 0.9)
    assert {what for what, check in known.items() if check.passed} == {"AUC of oth"}  # labels are shuffled for it too


def test_labels_that_leak_into_a_shuffled_control_are_seen(control: Case) -> None:
    """The AUC of shuffled labels is one half for every network that has not seen them."""
    case = replace(control, base=replace(control.base))
    train, test = control.events
    case.__dict__["events"] = (train, replace(test, y=(test.x[:, 4, PT] > 60).long()))
    score = BayesNetwork(replace(control.mechanism, score=lambda x, types, slots: x[:, 4, PT]), test.layout)
    assert not facts(case, score, 0.3)["AUC of oth"].passed


def test_a_shortcut_is_reported(control: Case) -> None:
    """All that explain features name it, but one that is not exact; an exact one that does not is a failure."""
    case = replace(control, mechanism=MECHANISMS["leak"])
    rows = {"owen": Measures(shortcut=1.0), "saliency": Measures(shortcut=0.0), "shapley": Measures()}
    check = shortcut_check(case, rows)
    assert (check.passed, check.value, check.text) == (True, 0.5, "not saliency")
    assert not shortcut_check(case, rows | {"owen": Measures(shortcut=0.0)}).passed
    assert not shortcut_check(case, {}).passed


def test_a_shortcut_costs_where_nothing_leaks(tmp_path: Path) -> None:
    """The best score that knows of the leak gains with it and loses without; one that never looked does neither."""
    settings = SuiteSettings(train_events=1000, test_events=3000, mechanisms=("leak",))
    case = cases(settings, toy_base(settings), tmp_path)[0]
    case.__dict__["model"] = case.bayes
    worth, cost = shortcut_costs(case)
    assert worth.passed
    assert cost.passed
    assert worth.value == pytest.approx(0.20, abs=0.04)  # 0.745 − 0.545 in 6000 events
    unleaked = case.mechanism.unleaked
    assert unleaked is not None
    case.__dict__["model"] = BayesNetwork(replace(case.mechanism, score=unleaked), case.events[1].layout)
    assert [(check.value, check.passed) for check in shortcut_costs(case)] == [(0.0, False)] * 2


def test_a_suppressor_gets_weight_without_association(tmp_path: Path) -> None:
    """The Bayes network: the pile-up jet tells nothing of the class, and has its share; where it is the truth itself
    and no suppressor, the association says so."""
    settings = SuiteSettings(train_events=1000, test_events=3000, explained=60, mechanisms=("suppressor",))
    case = cases(settings, toy_base(settings), tmp_path)[0]
    case.__dict__["model"] = case.bayes
    association, share = suppressor_checks(case)
    assert association.passed
    assert share.passed
    score = lambda x, types, slots: (x[:, slots.index("j3"), PT] - 60) / 30  # noqa: E731
    told = replace(case, mechanism=replace(case.mechanism, score=score, prepare=None))
    told.__dict__["model"] = case.bayes
    assert not next(suppressor_checks(told)).passed


# Features that the truth does not use -----------------------------------------------------------------------------


def groups(graphs: GraphBatch, values: np.ndarray, provenance: Provenance) -> GroupExplanation:
    from hepx.attribution import event_table

    none = np.zeros(len(graphs))
    members = ("lepton.pt", "lepton.eta", "met.pt met.phi")
    pairs = np.zeros((len(graphs), 3, 3))
    return GroupExplanation(
        event_table(graphs), members, members, values, values, none, none, none, pairs, pairs, "logit", provenance
    )


def test_weight_on_unused_features_is_measured(provenance: Provenance) -> None:
    graphs = toy_graphs(10, 1)
    values = np.tile([1.0, -0.1, 0.9], (10, 1))
    result = groups(graphs, values, provenance)
    assert measure(MECHANISMS["mt"], graphs, result, result, result)[0].unused == pytest.approx(0.05)
    assert measure(MECHANISMS["mbb"], graphs, result, result, result)[0].unused is None


@pytest.mark.parametrize(("offset", "low", "high"), [(0.0, 0.01, 1.0), (0.3, 0.0, 1e-6)])
def test_attributions_of_nothing_are_zero_within_errors(
    offset: float, low: float, high: float, provenance: Provenance
) -> None:
    """Mean 0: not unlikely; one object with a third of its spread: impossible by chance, in 400 events."""
    from hepx.attribution import event_table
    from hepx.results import Explanation

    graphs = toy_graphs(400, 2)
    values = np.random.default_rng(3).normal(size=graphs.mask.shape)
    values[:, 0] += offset
    none = np.zeros(len(graphs))
    result = Explanation(event_table(graphs), values, None, none, None, None, None, None, "logit", provenance)
    found = measure(MECHANISMS["null"], graphs, result, result, result)[0].null
    assert found is not None
    assert low <= found <= high


# Observations -----------------------------------------------------------------------------------------------------


def test_attention_finds_the_pair_only_if_an_intervention_agrees() -> None:
    rng = np.random.default_rng(1)
    first = rng.random((100, 4, 4))
    first[:, 0, 1] = 2
    other = np.roll(first, 1, axis=2)
    assert wording(0.95, first, first) == "finds the pair"
    assert wording(0.95, first, other).startswith("edge knock-out names another pair")
    assert wording(0.63, first, first) == "misses the pair in 37% of the events"
    assert wording(None, first, first) == ""


# Systematics ------------------------------------------------------------------------------------------------------


def total(graphs: GraphBatch) -> torch.Tensor:
    parts = [graphs.x[..., PT] * part(graphs.x[..., PHI]) for part in (torch.cos, torch.sin)]
    return torch.stack(parts).sum(2)


def test_scaled_jets_conserve_the_transverse_momentum(toys: GraphBatch) -> None:
    """The missing momentum recoils; leptons stay; the identity changes nothing."""
    scaled = with_jets(toys, torch.full(toys.mask.shape, 1.1))
    torch.testing.assert_close(total(scaled), total(toys), atol=1e-3, rtol=1e-4)
    jets = toys.layout.slots.index("j3")
    torch.testing.assert_close(scaled.x[:, :jets, PT], toys.x[:, :jets, PT] * 1.1)
    assert torch.equal(scaled.x[:, 3], toys.x[:, 3])
    torch.testing.assert_close(with_jets(toys, torch.ones(toys.mask.shape)).x, toys.x, atol=1e-4, rtol=1e-4)
    smeared = VARIATIONS["jer"].events(toys)
    ratio = (smeared.x[:, :2, PT] / toys.x[:, :2, PT]).flatten()
    assert float(ratio.std()) == pytest.approx(0.1, rel=0.15)


def test_bands_cover_what_they_should() -> None:
    """Gaussian networks around the truth: 68 %, but for the spread of t; around something else: few."""
    rng = np.random.default_rng(2)
    truth, mask, ones = rng.normal(size=(400, 5)), np.ones((400, 5), dtype=bool), np.ones(400)
    networks = truth + 0.2 * rng.normal(size=(5, 400, 5))
    assert coverage(networks, truth, mask, ones) == pytest.approx(0.64, abs=0.05)
    assert coverage(networks, truth + 1.0, mask, ones) < 0.1
    half = np.arange(400) % 2
    assert coverage(networks, truth + half[:, None], mask, 1.0 - half) == pytest.approx(0.64, abs=0.07)


def test_the_change_of_a_shapley_value_is_that_of_the_score(toys: GraphBatch) -> None:
    """Their sum is the change of the score itself if the replacements stay, and nothing changes without a variation."""
    graphs = toys[:40]
    network = BayesNetwork(MECHANISMS["mbb"], toys.layout)
    subject = Subject(network, network, graphs, toys, 1, 5)
    found = shift(network, subject, VARIATIONS["jes"], 3)
    varied = VARIATIONS["jes"].events(graphs)
    change = network.score(varied.x, varied.node_type, network.slots) - network.score(
        graphs.x, graphs.node_type, network.slots
    )
    np.testing.assert_allclose(found.sum(1), change.double().numpy(), atol=1e-4)
    assert np.abs(found).max() > 0.01
    same = replace(VARIATIONS["jes"], events=lambda graphs: graphs)
    assert np.abs(shift(network, subject, same, 3)).max() == 0
    other = shift(network, subject, VARIATIONS["background"], 3)
    assert np.abs(other).max() > 0.01  # other replacements are drawn
