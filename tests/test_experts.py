"""Experts: information against closed forms, interventions against networks made by hand, verdicts they force."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from insides_models import mixed_graphs, mixture_score, small_network
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from hepx.errors import ResultError
from hepx.experts import changes, expert_report, mutual_information, routing
from hepx.experts.information import Stratum, information
from hepx.experts.stability import adjusted_rand, contingency, matched_agreement, normalised_information, stability
from hepx.experts.surrogate import surrogate
from hepx.experts.verdict import Facts, exceeding, needed, verdict
from hepx.graph import GraphBatch
from hepx.interventions import Referee, mixtures, regions_of
from hepx.models import MODELS, Model, build_model, predict
from hepx.models.layers import MixtureOfExperts
from hepx.models.paper import PaperMGTSettings
from hepx.nulls import Null, shuffled_labels
from hepx.planted.experts import OracleNetwork, random_oracles
from hepx.probes import quantile_bins
from hepx.results import Provenance
from hepx.results_network import Effect, ExpertReport, Information
from hepx.train import TrainSettings, fit


@pytest.fixture(scope="module")
def mixed() -> GraphBatch:
    return mixed_graphs(3000, 7)


def judged(model: Model, graphs: GraphBatch) -> Referee:
    return Referee(model.eval(), graphs, 1, 1, regions_of(graphs, {}))


def report_of(model: Model, graphs: GraphBatch, nulls: list[Null], provenance: Provenance) -> ExpertReport:
    report = expert_report(model, nulls, judged(model, graphs), provenance)
    assert report is not None
    return report


@pytest.fixture(scope="module")
def oracle(mixed: GraphBatch, provenance: Provenance) -> ExpertReport:
    return report_of(OracleNetwork(mixed.layout), mixed, random_oracles(mixed.layout), provenance)


# Information ------------------------------------------------------------------------------------------------------


def hard(choice: np.ndarray, number: int) -> np.ndarray:
    return np.eye(number)[choice]


def test_mutual_information_of_known_tables() -> None:
    assert mutual_information(np.ones((3, 4))) == pytest.approx(0)
    assert mutual_information(np.array([[2.0, 0, 0, 0], [0, 1, 0, 1]])) == pytest.approx(1)


def test_correction_is_millers_for_hard_choices_of_unit_weight() -> None:
    """Plug-in minus (cells − rows − columns + 1) / 2n, in bit (Miller 1955)."""
    rng = np.random.default_rng(0)
    choice, value = rng.integers(0, 4, 300), rng.integers(0, 3, 300)
    stratum = Stratum(hard(choice, 4), value, np.ones(300), np.arange(300))
    plain = mutual_information(stratum.table.sum(0))
    expected = plain - (12 - 4 - 3 + 1) / (2 * 300) / np.log(2)
    assert information([stratum]) == pytest.approx(expected, abs=1e-12)


def test_corrected_information_of_independent_choices_is_zero_on_average() -> None:
    """Weighted, partly negative, soft: within three standard errors of 0; negative control: as it stands it is not."""
    rng = np.random.default_rng(1)
    corrected, plain = [], []
    for _ in range(150):
        soft = rng.dirichlet(np.ones(4) * 0.3, 400)
        weight = rng.choice([-0.4, 0.5, 2.0], 400, p=[0.1, 0.5, 0.4])
        stratum = Stratum(soft, rng.integers(0, 4, 400), weight, np.arange(400))
        corrected.append(information([stratum]))
        plain.append(mutual_information(np.maximum(np.einsum("n,nzx->zx", weight, stratum.table), 0)))
    error = np.std(corrected) / np.sqrt(len(corrected))
    assert abs(np.mean(corrected)) < 3 * error + 2e-4
    assert np.mean(plain) > 10 * error


def test_information_that_is_there_is_kept() -> None:
    value = np.random.default_rng(2).integers(0, 2, 4000)
    stratum = Stratum(hard(value, 2), value, np.ones(4000), np.arange(4000))
    assert information([stratum]) == pytest.approx(1, abs=2e-3)
    even = Stratum(np.full((4000, 3), 1 / 3), value, np.ones(4000), np.arange(4000))
    assert information([even]) == pytest.approx(0, abs=1e-12)


def test_an_event_and_its_negative_cancel(mixed: GraphBatch) -> None:
    """In tables, load, co-activation and information: adding a pair of opposite weights changes nothing."""
    few = mixed[:200]
    model = small_network(mixed, 1)
    doubled = mixed[torch.cat([torch.arange(200), torch.arange(200, 260), torch.arange(200, 260)])]
    weight = torch.cat([torch.ones(200), torch.ones(60), -torch.ones(60)]).double()
    doubled = replace(doubled, weight=weight)
    results = []
    for graphs in (few, doubled):
        gates = routing.gates_of(model, graphs)
        types = routing.variables(graphs, np.zeros(len(graphs)), {})[0]
        table, _ = routing.mean_gates(gates, types, graphs, graphs.weight.numpy())
        results.append((table, routing.load_of(gates, graphs), routing.coactivation(gates, graphs)[0]))
    for first, second in zip(*results, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_quantile_bins_have_equal_weight() -> None:
    values = np.concatenate([np.random.default_rng(0).exponential(size=4000), [np.nan, np.inf]])
    weight = np.linspace(0.1, 2, 4002)
    bins, rows = quantile_bins(values, weight)
    assert len(rows) == 4
    assert (bins[-2:] == -1).all()
    shares = np.bincount(bins[:-2], weight[:-2]) / weight[:-2].sum()
    np.testing.assert_allclose(shares, 0.25, atol=2e-3)
    assert quantile_bins(np.array([2.0, 3, 3, 3, 4]), np.ones(5))[1] == ["< 3", "≥ 3"]


# Known networks ---------------------------------------------------------------------------------------------------


def test_oracle_expert_is_found_with_what_it_carries(oracle: ExpertReport) -> None:
    """Expert 1 hands on m_bb where there is no third jet, expert 2 m_T where there is one, the third does nothing."""
    mbb, mt = (oracle.effect("knock_out", 0, expert, f"with{where} j3") for expert, where in ((0, "out"), (1, "")))
    for effect in (mbb, mt):
        assert effect.outside == 0
        assert effect.selectivity is not None
        assert effect.selectivity >= 0.9
        assert effect.significance() > 10
    assert oracle.effect("knock_out", 0, 2).delta_auc == 0
    assert oracle.dead == [[0, 2]]
    assert "expert 1 of layer 1 carries mbb in events without j3" in oracle.verdict
    assert "expert 2 of layer 1 carries mt in events with j3" in oracle.verdict
    assert oracle.distinct_experts == [3]
    told = {one.about: one for one in oracle.information}
    assert told["score"].given == "slot"
    assert oracle.effect("forced", 0, 0, "with j3").significance() > 10
    assert oracle.effect("forced", 0, 0, "without j3").delta_auc == 0


def test_clones_are_called_identical(mixed: GraphBatch, provenance: Provenance) -> None:
    """Swapping changes nothing, exactly; CKA is 1; the verdict says it, for copies and for experts that are one by
    another order of their hidden units."""
    clones, reordered = OracleNetwork(mixed.layout).eval(), OracleNetwork(mixed.layout).eval()
    with torch.no_grad():
        for name in ("w1", "b1", "w2", "b2"):
            for model in (clones, reordered):
                parameter = getattr(model.mixture, name)
                parameter.copy_(parameter[:1].expand_as(parameter))
        for name, axis in (("w1", 1), ("b1", 0), ("w2", 0)):
            parameter = getattr(reordered.mixture, name)
            parameter[1] = parameter[1].flip(axis)
    for model, distinct in ((clones, 1), (reordered, 2)):
        report = report_of(model, mixed, random_oracles(mixed.layout), provenance)
        assert report.verdict.startswith("experts identical")
        assert report.distinct_experts == [distinct]
        assert report.effect("swap", 0).delta_auc == 0
        np.testing.assert_allclose(report.similarity, 1, atol=1e-6)


def test_shared_experts_of_the_published_code_are_identical(mixed: GraphBatch, provenance: Provenance) -> None:
    few = mixed[:600]
    settings = PaperMGTSettings(dim=16, shared_experts=True)
    model = build_model(settings, mixed.layout, 1).eval()
    model.inputs.fit(mixed, mixed.weight)
    nulls = [Null("untrained", build_model(settings, mixed.layout, seed).eval()) for seed in (2, 3)]
    report = report_of(model, few, nulls, provenance)
    assert report.verdict.startswith("experts identical")
    assert {e.delta_auc for e in report.effects if e.kind == "swap"} == {0.0}


def test_untrained_and_label_shuffled_networks_have_no_functional_specialization(
    mixed: GraphBatch, provenance: Provenance, tmp_path: Path
) -> None:
    """The negative controls of every claim: networks that know nothing of the labels, judged beside others."""
    models = [small_network(mixed, seed) for seed in range(6)]
    train, test = mixed[:1600], mixed[1600:2300]
    for i in range(2):
        permuted = shuffled_labels(train, i)
        fit(models[i], permuted[:1300], permuted[1300:], TrainSettings(epochs=2, lr=3e-3), i, tmp_path / str(i))
    nulls = [*(Null("untrained", model) for model in models[3:]), Null("shuffled", models[1])]
    for model in (models[2], models[0]):
        assert report_of(model, test, nulls, provenance).verdict.startswith("no functional specialization")


def test_a_router_that_sorts_for_experts_that_nobody_hears(mixed: GraphBatch, provenance: Provenance) -> None:
    """Experts that differ where the head does not look: the choice tells the third jet, exchanging them costs
    nothing."""
    model = OracleNetwork(mixed.layout).eval()
    with torch.no_grad():
        for name in ("w1", "b1", "w2", "b2"):
            parameter = getattr(model.mixture, name)
            parameter.copy_(parameter[:1].expand_as(parameter))
        generator = torch.Generator().manual_seed(0)
        model.mixture.w2[:, :, 1:] = torch.randn(3, 2, 2, generator=generator)
        model.mixture.b1[:] = 0
        model.mixture.b2[:, 0] = 0
        model.mixture.w1[:] = torch.tensor([[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]])
        model.mixture.w1[:, 1] = 0
    graphs = replace(mixed, y=(mixed.observable("mbb") < 150).long())
    region = {"j3": mixed.mask[:, 2].numpy()}
    report = expert_report(model, random_oracles(mixed.layout), Referee(model, graphs, 1, 1, region), provenance)
    assert report is not None
    assert report.effect("swap", 0).delta_auc == 0
    assert report.verdict.startswith("no functional specialization: exchanging the experts costs nothing measurable")
    assert "although the choice of expert tells j3" in report.verdict


def information_row(excess: float, about: str = "mbb") -> Information:
    return Information(0, about, "slot", excess + 0.01, 0.005, [0.01], 0.03, excess, excess - 0.01, excess + 0.01)


@pytest.mark.parametrize(
    ("distinct", "similar", "swap", "excess", "auc", "words"),
    [
        (1, 1.0, -0.1, 0.5, 0.9, "experts identical"),
        (6, 0.5, -0.001, 0.0, 0.9, "no functional specialization: exchanging the experts costs nothing measurable"),
        (6, 0.5, -0.001, 0.5, 0.9, "although the choice of expert tells mbb"),
        (6, 0.5, -0.1, 0.0, 0.9, "the choice of expert tells nothing that a null network's does not"),
        (6, 0.5, -0.1, 0.5, 0.6, "separates the classes no better than a null network"),
        (6, 0.5, -0.1, 0.5, 0.9, "the experts of layer 1 differ in function; expert 2 of layer 1 is needed"),
    ],
)
def test_verdict_is_forced_by_the_numbers(
    distinct: int, similar: float, swap: float, excess: float, auc: float, words: str
) -> None:
    effects = [
        Effect("swap", 0, -1, "all events", swap, 0.001),
        Effect("knock_out", 0, 0, "all events", 0.0, 0.001),
        Effect("knock_out", 0, 1, "all events", swap, 0.001),
    ]
    assert words in verdict(Facts([distinct], [similar], [information_row(excess)], effects, [], auc, 0.2))


def test_a_loss_everywhere_is_not_called_one_of_a_region() -> None:
    everywhere = Effect("knock_out", 0, 0, "all events", -0.1, 0.001)
    region = Effect("knock_out", 0, 0, "with j3", -0.1, 0.001, -0.09, 0.001, 0.05, 0.01)
    assert needed([everywhere, region]) == [everywhere]
    assert needed([replace(region, outside=-0.01, selectivity=0.82)])[0].where == "with j3"
    assert needed([replace(everywhere, delta_auc=-0.002)]) == []


def test_what_the_next_null_network_could_show_is_not_called_learned() -> None:
    """Beyond the largest of the nulls and the statistics of the events is not enough where the nulls spread widely."""
    narrow = replace(information_row(0.05), null_limit=routing.null_limit([0.01, 0.011, 0.012]))
    wide = replace(narrow, null_limit=routing.null_limit([0.0, 0.02, 0.04]))
    assert exceeding([narrow]) == [narrow]
    assert exceeding([wide]) == exceeding([replace(narrow, low=-0.01)]) == []
    assert exceeding([replace(narrow, about="type", given="")]) == []


# Interventions ----------------------------------------------------------------------------------------------------


def test_interventions_do_what_they_say(mixed: GraphBatch) -> None:
    """Against the same network changed by hand; an expert that nobody uses is not missed, exactly."""
    model = small_network(mixed, 2)
    few, mixture = mixed[:300], mixtures(model)[0]
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for name in ("w1", "b1", "w2", "b2"):
            parameter = getattr(mixtures(by_hand)[0], name)
            parameter.copy_(parameter[[3, 0, 1, 2]])
    assert torch.equal(predict(changes.swapped(model, 0, 1), few), predict(by_hand, few))
    gates = routing.gates_of(changes.without(model, 0, 2), few)
    assert gates[:, 0, :, 2].max() == 0
    forced = routing.gates_of(changes.forced(model, 1, 3), few)
    assert torch.equal(forced[:, 1, :, 3], few.mask.float())
    unused = copy.deepcopy(model)
    mixtures(unused)[0].selection_bias[1] = -1e9
    assert torch.equal(predict(changes.without(unused, 0, 1), few), predict(unused, few))
    answer = changes.expert_outputs(mixture, torch.randn(7, 16))
    same = changes.silenced(unused, 0, 1, answer[0, 1])
    assert torch.equal(predict(same, few), predict(unused, few))
    assert not torch.equal(predict(changes.silenced(model, 0, 0, answer[0, 0]), few), predict(model, few))


def test_expert_outputs_are_those_of_the_mixture() -> None:
    mixture = MixtureOfExperts(8, 5, 4, 2, 0.0)
    h = torch.randn(6, 3, 8)
    out, _, gates, _ = mixture(h, None, None)
    answers = changes.expert_outputs(mixture, h.flatten(0, 1)).reshape(6, 3, 4, 8)
    torch.testing.assert_close((answers * gates[..., None]).sum(2), out)


def test_similarity_is_blind_to_rotation_and_scale_and_sees_independence() -> None:
    rng = np.random.default_rng(0)
    base, other = rng.normal(size=(2, 3000, 4))
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    found = changes.similarity(np.stack([base, 3 * base @ rotation + 1, other], 1), np.ones(3000))
    assert found[0, 1] == pytest.approx(1, abs=1e-9)
    assert found[0, 2] < 0.01


def test_what_an_expert_adds_is_explained_by_the_right_observable(mixed: GraphBatch) -> None:
    process = np.zeros(len(mixed), dtype=int)
    mbb = mixed.observable("mbb").numpy()
    bins, _ = quantile_bins(mbb, np.ones(len(mbb)), 6)
    added = bins.astype(float)
    assert changes.explained_share(added, bins, process, np.ones(len(mbb))) == pytest.approx(1)
    order = np.random.default_rng(0).permutation(len(mbb))
    assert changes.explained_share(added, bins[order], process, np.ones(len(mbb))) < 0.01


# Surrogate, stability, file ---------------------------------------------------------------------------------------


def test_a_router_that_cuts_is_imitated_and_a_random_one_is_not(mixed: GraphBatch) -> None:
    cut = (mixed.x[..., 0] > 70).long() + 2 * (mixed.node_type == 2).long()
    gates = torch.eye(4)[cut][:, None]
    fitted = np.arange(len(mixed)) % 2 == 0
    (tree,) = surrogate(gates, mixed, fitted, 1)
    assert tree.fidelity > 0.99
    assert tree.type_only < 0.8
    assert "pt <= 7" in tree.rules
    random = torch.eye(4)[torch.randint(0, 4, cut.shape, generator=torch.Generator().manual_seed(0))][:, None]
    (none,) = surrogate(random, mixed, fitted, 1)
    assert none.fidelity < 0.3


def test_agreement_of_partitions_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 4, 500)
    b = np.where(rng.random(500) < 0.6, a, rng.integers(0, 5, 500))
    table, square = contingency(a, b, np.ones(500))
    assert adjusted_rand(table, square) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    assert normalised_information(table) == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-12)
    renamed, _ = contingency(a, (a + 1) % 4, np.ones(500))
    assert matched_agreement(renamed) == 1


def test_stability_is_blind_to_names_and_sees_chance(mixed: GraphBatch) -> None:
    """The same network with renamed experts agrees fully; independent choices agree as chance does."""
    gates = routing.gates_of(small_network(mixed, 1), mixed)
    generator = torch.Generator().manual_seed(0)
    random = [torch.rand(gates.shape, generator=generator) for _ in range(2)]
    for row in stability([gates, gates.roll(1, -1)], random, mixed):
        assert (row.ari, row.within, row.agreement) == pytest.approx((1, 1, 1))
        assert abs(row.null) < 0.01
        assert row.null_within is not None
        assert abs(row.null_within) < 0.02


def test_a_slot_in_which_no_router_varies_says_nothing_of_stability(mixed: GraphBatch) -> None:
    """Experts by slot alone: the same overall, and nothing to compare at a fixed object; one that varies counts."""
    gates = routing.gates_of(small_network(mixed, 1), mixed)
    num_experts = gates.shape[-1]
    by_slot = torch.eye(num_experts)[torch.arange(gates.shape[2]) % num_experts].expand_as(gates)
    random = torch.rand(gates.shape, generator=torch.Generator().manual_seed(0))
    for row in stability([by_slot, by_slot.roll(1, -1)], [by_slot, random], mixed):
        assert row.ari == pytest.approx(1)
        assert row.within is None
        assert row.null_within == pytest.approx(0, abs=0.02)


def test_report_survives_a_file_and_an_old_one_is_refused(oracle: ExpertReport, tmp_path: Path) -> None:
    oracle.save(tmp_path / "experts.json")
    assert ExpertReport.load_report(tmp_path / "experts.json") == oracle
    (tmp_path / "old.json").write_text('{"verdict": "?"}')
    with pytest.raises(ResultError, match="does not hold a ExpertReport of this version"):
        ExpertReport.load_report(tmp_path / "old.json")


def test_tables_are_shares(oracle: ExpertReport) -> None:
    for table in oracle.tables:
        sums = np.array(table.gates, dtype=float).sum(-1)
        np.testing.assert_allclose(sums[np.isfinite(sums)], 1, atol=1e-6)
    assert {"type", "slot", "process", "class", "score", "mbb"} <= {table.by for table in oracle.tables}
    np.testing.assert_allclose(np.array(oracle.load).sum(-1), 1)


def test_models_without_experts_have_no_such_result(mixed: GraphBatch, provenance: Provenance) -> None:
    model = build_model(MODELS["mlp"][0](), mixed.layout, 1).eval()
    assert expert_report(model, [Null("untrained", model)], Referee(model, mixed, 1, 1), provenance) is None


def test_the_oracle_is_as_good_as_the_truth(mixed: GraphBatch) -> None:
    torch.testing.assert_close(predict(OracleNetwork(mixed.layout), mixed), mixture_score(mixed), atol=1e-4, rtol=1e-4)
