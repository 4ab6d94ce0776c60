"""Node states: probes, erasure (its theorem, and concept-erasure as oracle), dictionaries, sparsity, logit lens."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from insides_models import mixed_graphs, small_network
from scipy.stats import spearmanr

from hepx.graph import GraphBatch
from hepx.interventions import Referee, mixtures
from hepx.models import MODELS, build_model, predict
from hepx.nulls import Null
from hepx.planted.experts import OracleNetwork
from hepx.probes import explained, probe, solve, targets
from hepx.representation import dictionary, early_exit, representation, stream
from hepx.representation.dictionary import Rows, dictionaries, largest, readable, unexplained
from hepx.representation.erasure import Eraser, concept, erased, fit_eraser
from hepx.representation.sparsity import Scan, critical_sparsity, random_share, switched, top_p
from hepx.results import Provenance
from hepx.results_network import Representation


@pytest.fixture(scope="module")
def mixed() -> GraphBatch:
    return mixed_graphs(1500, 9)


# Probes -----------------------------------------------------------------------------------------------------------


def test_probe_reads_a_linear_target_and_no_shuffled_one() -> None:
    rng = np.random.default_rng(0)
    states, fitted, event = rng.normal(size=(4000, 12)), np.arange(4000) % 2 == 0, np.arange(4000)
    signal = states @ rng.normal(size=12)
    noise = rng.normal(size=4000) * signal.std()
    wanted = {"all": signal, "half": signal + noise, "none": rng.permutation(signal), "gone": signal * np.nan}
    wanted["constant"] = np.full(4000, 2.0)
    found = probe(states, wanted, np.ones(4000), fitted, event, 1)
    assert set(found) == {"all", "half", "none"}
    assert found["all"].value == pytest.approx(1, abs=1e-4)
    assert found["half"].value == pytest.approx(0.5, abs=4 * found["half"].error + 0.01)
    assert abs(found["none"].value) < 4 * found["none"].error + 0.01
    assert all(abs(score.control) < 0.03 for score in found.values())


def test_probe_equals_least_squares_and_cancels_opposite_weights() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 3)), rng.normal(size=(300, 2))
    coefficients, constant = solve(x, y, np.ones(300))
    expected = np.linalg.lstsq(np.c_[x, np.ones(300)], y, rcond=None)[0]
    np.testing.assert_allclose(np.r_[coefficients, constant[None]], expected, atol=2e-3)  # the ridge
    weight = np.ones((1, 300))
    rows = np.r_[np.arange(300), np.arange(20), np.arange(20)]
    doubled = np.r_[np.ones(320), -np.ones(20)][None]
    np.testing.assert_allclose(
        explained(y, x @ coefficients, weight), explained(y[rows], (x @ coefficients)[rows], doubled)
    )


def test_targets_are_logarithms_of_gev(mixed: GraphBatch) -> None:
    found = targets(mixed)
    assert set(found) == {"mbb", "mt"}  # the toy events fill no other
    np.testing.assert_allclose(np.exp(found["mbb"]), mixed.observable("mbb").numpy().clip(1))


# Erasure ----------------------------------------------------------------------------------------------------------


def correlated(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(600, 2))
    x = z @ rng.normal(size=(2, 8)) + rng.normal(size=(600, 8)) @ rng.normal(size=(8, 8))
    return x, z


def test_after_an_erasure_no_linear_probe_beats_the_constant() -> None:
    """The theorem (Cov(x, z) = 0), on weighted events; negative control: before it, and for another concept."""
    x, z = correlated()
    weight = np.random.default_rng(1).uniform(0.2, 2, 600)
    after = fit_eraser(x, z, weight)(x)
    w = weight / weight.sum()
    covariance = ((after - w @ after) * w[:, None]).T @ (z - w @ z)
    assert np.abs(covariance).max() < 1e-9
    readable = []
    for states in (x, after):
        coefficients, constant = solve(states, z, weight)
        readable.append(explained(z, states @ coefficients + constant, weight[None])[0].max())
    assert readable[0] > 0.3
    assert readable[1] == pytest.approx(0, abs=1e-6)
    other = fit_eraser(x, np.random.default_rng(2).normal(size=(600, 1)), weight)(x)
    coefficients, constant = solve(other, z, weight)
    assert explained(z, other @ coefficients + constant, weight[None])[0].max() > 0.9 * readable[0]


def test_erasure_equals_the_concept_erasure_package() -> None:
    """Oracle: LeaceEraser of its authors, without shrinkage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it still uses torch.jit.script
        from concept_erasure import LeaceEraser
    x, z = correlated(3)
    eraser = LeaceEraser.fit(torch.from_numpy(x), torch.from_numpy(z), shrinkage=False)
    np.testing.assert_allclose(fit_eraser(x, z, np.ones(600))(x), eraser(torch.from_numpy(x)).numpy(), atol=1e-8)


def test_erasing_what_the_network_uses_costs_and_erasing_nothing_does_not(mixed: GraphBatch) -> None:
    """In a network made by hand whose states are m_bb and m_T scores: without m_bb the AUC of 2-jet events is gone, of
    3-jet events untouched; an empty erasure changes nothing, exactly."""
    model = OracleNetwork(mixed.layout).eval()
    with_j3 = mixed.mask[:, 2].numpy()
    referee = Referee(model, mixed, 1, 1, {"with j3": with_j3})
    states = stream(model, mixed)[0]
    erasers = {
        s: fit_eraser(states[:, s].astype(float), states[:, s, :1].astype(float), np.ones(len(mixed))) for s in range(5)
    }
    (_, region) = referee.effects("erase", 0, 0, [referee.score(erased(model, "mixture", erasers))])
    assert region.outside is not None
    assert region.delta_auc is not None
    assert region.outside < -0.2
    assert abs(region.delta_auc) < 0.02
    nothing = {s: Eraser(np.zeros(3), np.zeros((3, 3)), 0) for s in range(5)}
    assert torch.equal(predict(erased(model, "mixture", nothing), mixed), predict(model, mixed))


def test_concept_holds_trend_and_curvature() -> None:
    values = np.exp(np.random.default_rng(0).normal(size=999))
    z = concept(values)
    assert abs(z[:, 0].mean()) < 1e-9
    np.testing.assert_array_equal(z[:, 0].argsort(), values.argsort())
    np.testing.assert_allclose(z[:, 1], z[:, 0] ** 2)


# Dictionary -------------------------------------------------------------------------------------------------------


def compare(states: np.ndarray, active: int = 2) -> dict[str, float]:
    number = len(states)
    counts = np.random.default_rng(2).poisson(1.0, (20, number))
    rows = Rows(np.ones(number), counts, np.arange(number) % 4 > 0, np.zeros(number, dtype=int), {})
    return {row.kind: row.unexplained or 0.0 for row in dictionaries(states, rows, "trained", 1, active, 1)}


def test_dictionary_beats_components_on_sparse_states_and_not_on_noise() -> None:
    """States made of two of 24 directions in 8 dimensions: the dictionary misses less than half of what principal
    components miss. Negative control: isotropic noise, where no directions are better than others."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(24, 8))
    coefficients = largest(rng.uniform(0.5, 1.5, (6000, 24)) * rng.random((6000, 24)) ** 4, 2)
    sparse = compare(coefficients @ directions)
    assert sparse["dictionary"] < 0.5 * sparse["principal components"]
    noise = compare(rng.normal(size=(6000, 8)))
    assert noise["dictionary"] > 0.5 * noise["principal components"]


def test_errors_of_a_dictionary_are_the_spread_of_other_events() -> None:
    """Bootstrap errors of one sample beside the spread over 80 samples: within a third (two errors of such a spread are
    16 %, and bootstraps of 40 replicas scatter by 11 %). Negative control: without replicas there is no error."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(80):
        states = rng.normal(size=(300, 3)) * np.array([1.0, 2.0, 0.5])
        rebuilt, wanted = 0.7 * states + 0.1 * rng.normal(size=states.shape), states[:, 1] + rng.normal(size=300)
        weight = np.concatenate([np.ones((1, 300)), rng.poisson(1.0, (40, 300))])
        missed = unexplained(states, rebuilt, weight)
        found.append((missed[0], missed[1:].std(), *readable(states, {"it": wanted}, np.zeros(300), weight)["it"]))
    values = np.array(found)
    np.testing.assert_allclose(values[:, [1, 3]].mean(0), values[:, [0, 2]].std(0), rtol=0.33)
    assert readable(states, {"it": wanted}, np.zeros(300), weight[:1])["it"][1] is None


def test_an_event_and_its_negative_leave_no_trace_in_a_dictionary() -> None:
    """Unit weights: R² and Spearman's correlation of the largest column. Nodes added with weights w and −w change
    neither; negative control: with |w| they change both."""
    rng = np.random.default_rng(5)
    states, more = rng.normal(size=(400, 3)), 3 + rng.normal(size=(100, 3))
    rebuilt, wanted = 0.8 * states, np.exp(states[:, 2]) + rng.normal(size=400)
    weight = np.ones((1, 400))
    missed = unexplained(states, rebuilt, weight)[0]
    assert missed == pytest.approx(((states - rebuilt) ** 2).sum() / ((states - states.mean(0)) ** 2).sum())
    size, _ = readable(states, {"it": wanted}, np.zeros(400), weight)["it"]
    assert size == pytest.approx(max(abs(spearmanr(column, wanted).statistic) for column in states.T))
    joined, again = np.concatenate([states, more, more]), np.concatenate([rebuilt, 0 * more, 0 * more])
    signed = np.concatenate([weight, np.full((1, 100), 2.0), np.full((1, 100), -2.0)], 1)
    assert unexplained(joined, again, signed)[0] == pytest.approx(missed)
    assert unexplained(joined, again, np.abs(signed))[0] > 1.5 * missed
    assert np.isnan(unexplained(more, more, np.tile([1.0, -1.0], 50)[None])[0])
    targets = {"it": np.concatenate([wanted, np.full(200, wanted.min() - 1)])}  # last in every rank: the order stays
    last = np.concatenate([states, np.tile(states.min(0) - 1, (200, 1))])
    assert readable(last, targets, np.zeros(600), signed)["it"][0] == pytest.approx(size)
    assert readable(last, targets, np.zeros(600), np.abs(signed))["it"][0] > size + 0.1


def test_largest_keeps_so_many() -> None:
    values = np.random.default_rng(0).normal(size=(50, 9))
    kept = largest(values, 3)
    assert ((kept != 0).sum(1) == 3).all()
    assert (np.abs(kept).sum(1) >= np.sort(np.abs(values), 1)[:, -3:].sum(1) - 1e-12).all()


# Sparsity and lens ------------------------------------------------------------------------------------------------


def test_top_p_keeps_the_fewest_units_that_hold_the_share() -> None:
    hidden = torch.tensor([[4.0, -3.0, 2.0, 1.0]])
    assert torch.equal(top_p(hidden, 0.4), torch.tensor([[4.0, 0, 0, 0]]))
    assert torch.equal(top_p(hidden, 0.41), torch.tensor([[4.0, -3.0, 0, 0]]))
    assert torch.equal(top_p(hidden, 1.0), hidden)
    kept = random_share(torch.ones(200, 10), 0.3, torch.Generator().manual_seed(0))
    assert (kept.sum(1) == 3).all()


def test_switching_nothing_changes_nothing_and_one_expert_only_its_nodes(mixed: GraphBatch) -> None:
    model = small_network(mixed, 1)
    counted = np.zeros(2)
    assert torch.equal(predict(switched(model, 0, -1, lambda h: h, counted), mixed), predict(model, mixed))
    assert counted[0] == 0
    with torch.no_grad():
        used = model(mixed.x, mixed.mask, mixed.node_type).trace.gates[:, 0] > 0  # 0 for absent objects
    assert counted[1] == used.sum() * mixtures(model)[0].expert_dim  # gelu is 0 nowhere here
    mixtures(model)[0].selection_bias[1] = -1e9  # nobody uses it
    before = predict(model, mixed)
    assert torch.equal(predict(switched(model, 0, 1, torch.zeros_like, np.zeros(2)), mixed), before)
    assert not torch.equal(predict(switched(model, 0, 0, torch.zeros_like, np.zeros(2)), mixed), before)


def test_critical_sparsity_of_needed_and_of_idle_experts(mixed: GraphBatch) -> None:
    """The experts of the oracle are needed (half of their units: the two signs of one number); the third is not."""
    model = OracleNetwork(mixed.layout).eval()
    found = {row.expert: row for row in critical_sparsity(model, Referee(model, mixed, 1, 1), "trained")}
    assert found[2].critical == 1.0 or found[2].curve[-1][1] == found[2].curve[0][1]
    assert found[-1].critical < 0.9
    assert min(found[0].critical, found[1].critical) == pytest.approx(0.5, abs=0.05)


def test_the_error_of_a_critical_sparsity_is_spread_and_step() -> None:
    shares = np.array([0.0, 0.4, 0.8])
    sure = Scan(shares, np.array([[0.9] * 5, [0.895] * 5, [0.5] * 5]))
    assert sure.critical == pytest.approx((0.4, 0.4 / 12**0.5))
    unsure = Scan(shares, np.array([[0.9] * 5, [0.895, 0.895, 0.895, 0.8, 0.8], [0.5] * 5]))
    assert unsure.critical == pytest.approx((0.4, np.hypot(0.2, 0.4 / 12**0.5)))
    idle = Scan(shares, np.full((3, 5), 0.9))
    assert idle.critical == (0.8, 0.0)
    assert [point[:2] for point in sure.curve] == [[0.0, 0.9], [0.4, 0.895], [0.8, 0.5]]


def test_null_networks_are_analysed_as_the_trained_one(
    mixed: GraphBatch, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network as its own null gives the same rows; negative control: another network gives others."""
    monkeypatch.setattr(dictionary, "STEPS", 10)  # a bad dictionary is as good here
    model, other, graphs = small_network(mixed, 1), small_network(mixed, 2), mixed[:400]
    nulls = [Null("shuffled", other), Null("untrained", model), Null("untrained", other)]
    found = representation(model, nulls, Referee(model, graphs, 1, 1), provenance)
    assert found is not None
    rows: dict[str, list[Any]] = {}
    kept: list[Any] = [*found.dictionaries, *(row for row in found.sparsity if row.expert == -1)]
    for row in kept:
        rows.setdefault(row.network, []).append(replace(row, network=""))
    assert rows["trained"] == rows["untrained"] != rows["shuffled"]
    assert len(rows["trained"]) == len(rows["shuffled"])
    assert {row.network for row in found.sparsity if row.expert >= 0} == {"trained"}
    assert all((one.null, one.null_error) == (one.auc, one.error) for one in found.lens)
    assert all(one.shuffled != one.auc for one in found.lens)
    assert all((row.error or 0) > 0 for row in found.dictionaries)
    alone = representation(model, nulls[1:2], Referee(model, graphs, 1, 1), provenance)
    assert alone is not None
    assert {row.network for row in alone.dictionaries} == {"trained", "untrained"}
    assert {one.shuffled for one in alone.lens} == {None}


def test_logit_lens_ends_in_the_network_itself(mixed: GraphBatch) -> None:
    for name in ("moe_graph_transformer", "particle_transformer", "paper_mgt"):
        model = build_model(MODELS[name][0](), mixed.layout, 1).eval()
        last = len(model.stream_names()) - 1
        assert torch.equal(predict(early_exit(model, last), mixed), predict(model, mixed))
        assert not torch.equal(predict(early_exit(model, last - 1), mixed), predict(model, mixed))


def test_representation_of_a_network_survives_a_file(mixed: GraphBatch, provenance: Provenance, tmp_path: Path) -> None:
    model, null = small_network(mixed, 1), Null("untrained", small_network(mixed, 2))
    found = representation(model, [null], Referee(model, mixed[:700], 1, 1), provenance)
    assert found is not None
    found.save(tmp_path / "representation.json")
    assert Representation.load(tmp_path / "representation.json") == found
    read = {(p.layer, p.where, p.observable): p for p in found.probes}
    assert read[0, "lepton", "mbb"].value < 0.05  # the lepton alone knows nothing of the b-jets
    assert all(abs(p.control) < 0.15 for p in found.probes)
    assert {erasure.observable for erasure in found.erasures} == {"mbb", "mt"}
    assert all(erasure.rank == 2 for erasure in found.erasures)
    assert all(e.after is not None and e.before is not None and e.after < 0.5 * e.before for e in found.erasures)
    assert all((e.before_error or 0) > 0 for e in found.erasures)
    mlp = build_model(MODELS["mlp"][0](), mixed.layout, 1).eval()
    assert representation(mlp, [Null("untrained", mlp)], Referee(mlp, mixed, 1, 1), provenance) is None
