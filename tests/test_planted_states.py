"""What is asked of the node states and heads holds where it must, and fails for a network that does not know it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hepx.attention import attention_map
from hepx.interventions import Referee, balanced_weight
from hepx.models import build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.nulls import Null
from hepx.planted import MECHANISMS, plant, states, toy_graphs
from hepx.planted.experts import OracleNetwork
from hepx.planted.judge import Check
from hepx.representation import erase, stream
from hepx.results import Provenance
from hepx.results_network import Dictionary, Effect, Erasure, Lens, Probe, Representation

SMALL = MoEGraphTransformerSettings(dim=16, expert_dim=8, num_heads=2, num_experts=4, pair_values=True)
NOWHERE = Provenance("", {}, "", "", "", 1, "", "", "cpu")


def dictionary(network: str, kind: str, unexplained: float, readable: float) -> Dictionary:
    return Dictionary(network, 1, kind, 64, 8, unexplained, 0.01, 0, {"mbb": readable}, {"mbb": 0.01})


def told(**changes: Any) -> states.Seen:
    """What the analyses say of a network that knows m_bb and needs it alone, with some numbers changed."""
    numbers = {
        "planted": -0.3, "mbb": -0.3, "mt": 0.0, "control": 0.0, "r2": 0.98, "r2_unused": 0.4, "task": 0.0,
        "first": 0.6, "last": 0.8, "readable": 0.9, "unexplained": 0.01,
    } | changes  # fmt: skip
    rows = Representation(
        probes=[
            Probe(1, "bjet", "mbb", numbers["r2"], 0.01, numbers["task"], 0.5),
            Probe(1, "bjet", "mt", numbers["r2_unused"], 0.01, 0.0, 0.5),
        ],
        erasures=[
            Erasure(1, name, 2, numbers[name], 0.01, numbers["control"], 0.01, 1.0, 0.01, 0.0, 0.01)
            for name in ("mbb", "mt")
        ],
        dictionaries=[
            dictionary("trained", "dictionary", numbers["unexplained"], numbers["readable"]),
            dictionary("trained", "principal components", 0.02, 0.8),
            dictionary("trained", "neurons", 0.2, 0.7),
            dictionary("untrained", "dictionary", 0.9, 0.1),
        ],
        sparsity=[],
        lens=[Lens(layer, numbers[name], 0.01, 0.5, 0.01, None, None) for layer, name in enumerate(("first", "last"))],
        provenance=NOWHERE,
    )
    return states.Seen(0.8, Effect("erasure", 1, -1, "", numbers["planted"], 0.01), rows)


def failing(checks: Any) -> list[str]:
    return [check.analysis for check in checks if not check.passed]


def test_a_network_that_knows_and_needs_one_observable_meets_all() -> None:
    assert failing(states.of_trained("mbb", "mt", told())) == []
    assert failing(states.of_ignorant("mbb", told())) == ["erasure", "probes", "logit lens"]


@pytest.mark.parametrize(
    ("change", "analysis"),
    [
        ({"planted": -0.2}, "erasure"),  # a third of the AUC beyond one half is left
        ({"planted": -0.4}, "erasure"),  # the score is turned round, not removed
        ({"mbb": -0.2}, "erasure"),
        ({"mt": -0.05}, "erasure"),  # what decides nothing is needed
        ({"control": -0.05}, "erasure"),  # anything erased does as much
        ({"r2": 0.6}, "probes"),  # hardly more than an untrained network
        ({"r2_unused": 0.7}, "probes"),
        ({"task": 0.2}, "probes"),
        ({"last": 0.79}, "logit lens"),  # not the network's own score
        ({"first": 0.81}, "logit lens"),
        ({"readable": 0.75}, "dictionary"),
        ({"unexplained": 0.03}, "dictionary"),
    ],
)
def test_each_fact_fails_by_itself(change: dict[str, float], analysis: str) -> None:
    assert failing(states.of_trained("mbb", "mt", told(**change))) == [analysis]


@pytest.fixture(scope="module")
def setting() -> states.Setting:
    """Events of m_bb and networks of random weights; one with strong attention outputs stands for the trained one."""
    graphs = plant(toy_graphs(900, 11), MECHANISMS["mbb"], 12)
    networks = [build_model(SMALL, graphs.layout, seed).eval() for seed in range(3)]
    for network in networks:
        network.inputs.fit(graphs, graphs.weight)
    score = MECHANISMS["mbb"].score(graphs.x, graphs.node_type, graphs.layout.slots).double().numpy()
    ignorant = [Null("untrained", network) for network in networks[1:]]
    return states.Setting("mbb", graphs, score, networks[0], ignorant, 1)


def test_untrained_networks_know_nothing(setting: states.Setting) -> None:
    """By the real analyses; and they do not pass for a network that has learned the mechanism."""
    first, other = (null.model for null in setting.ignorant)
    seen = states.seen(first, other, setting)
    assert failing(states.of_ignorant("mbb", seen)) == []
    assert set(failing(states.of_trained("mbb", "mt", seen))) >= {"probes", "erasure"}


def test_erasing_the_planted_score_of_known_states_leaves_chance(setting: states.Setting) -> None:
    """The states of the oracle before its mixture hold two scores and no more, those after it the one at work. Without
    the planted score the AUC is one half; so it is without any two numbers of two: why a control stands beside it."""
    graphs = setting.graphs[~setting.graphs.mask[:, setting.graphs.layout.slots.index("j3")]]
    score = MECHANISMS["mbb"].score(graphs.x, graphs.node_type, graphs.layout.slots).double().numpy()
    oracle = OracleNetwork(graphs.layout).eval()
    referee, held = Referee(oracle, graphs, 1, 1), stream(oracle, graphs)
    auc, weight = referee.auc(referee.reference)[0], balanced_weight(graphs)
    assert auc > 0.75
    for layer, values in ((1, score), (0, np.random.default_rng(1).permutation(score))):
        delta = erase(oracle, held[layer], values, weight, layer, referee)[0]
        assert delta is not None
        assert auc + delta == pytest.approx(0.5, abs=0.03)


# Heads ------------------------------------------------------------------------------------------------------------


def effects(*deltas: float) -> list[Effect]:
    """Of two layers of two heads."""
    return [Effect("head", i // 2, i % 2, "all events", delta, 0.001) for i, delta in enumerate(deltas)]


def test_what_is_asked_of_heads() -> None:
    alone, none = effects(-0.2, 0.0, 0.0, 0.0), effects(0.0, 0.001, 0.0, -0.001)
    assert failing(states.of_heads(alone, effects(-0.1, 0, 0, 0), none)) == []
    checks = list(states.of_heads(effects(-0.01, 0.0, 0.002, 0.0), none, effects(0.01, 0, 0, 0)))
    assert failing(checks) == ["heads", "heads", "heads"]


def test_only_the_head_that_is_left_has_an_effect(setting: states.Setting) -> None:
    """The others give the same to every object, so knocking them out changes nothing at all; and in the network as it
    was they tell something."""
    knocked = []
    for model in (states.alone(setting.trained, setting.graphs), setting.trained):
        map_ = attention_map(model, setting.ignorant[:1], Referee(model, setting.graphs, 1, 1), NOWHERE)
        assert map_ is not None
        knocked.append([e for e in map_.knock_out if e.where == "all events"])
    rest = [[abs(e.delta_auc or 0.0) for e in found if (e.layer, e.index) != states.HEAD] for found in knocked]
    assert max(rest[0]) < 1e-4
    assert max(rest[1]) > 1e-3
    assert abs(knocked[0][0].delta_auc or 0.0) > 1e-3


def test_a_head_drawn_to_one_object_by_hand_is_a_sink_if_that_tells_little(setting: states.Setting) -> None:
    """The object that it is drawn to is the one that it looks at most; always saying yes, or always no, fails."""
    found = states.drawn(setting.trained, setting.graphs)
    assert [sink.slot for sink in found] == list(setting.graphs.layout.slots)
    assert min(sink.share for sink in found) > 0.99
    assert failing(states.of_sinks(found)) == []
    assert failing(states.of_sinks([replace(sink, is_sink=False) for sink in found])) == ["sinks"]
    assert failing(states.of_sinks([replace(sink, is_sink=True) for sink in found])) == ["sinks"]


def test_the_facts_are_named_by_their_networks(setting: states.Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "seen", lambda *_: told())
    monkeypatch.setattr(states, "_of_heads", lambda _: iter([Check(4, "", "heads", "", 0.0, None, "", True)]))
    monkeypatch.setattr(states, "of_sinks", lambda _: iter([Check(4, "", "sinks", "", 0.0, None, "", True)]))
    shuffled = replace(setting, ignorant=[*setting.ignorant, Null("shuffled", setting.trained)])
    found = [check.case for check in states.state_checks(shuffled)]
    assert list(dict.fromkeys(found)) == ["mbb", "mbb, untrained", "mbb, shuffled"]
    monkeypatch.setitem(states.VARIABLES, "other", ("mbb", "mt"))
    assert "heads" not in {check.analysis for check in states.state_checks(replace(setting, name="other"))}
