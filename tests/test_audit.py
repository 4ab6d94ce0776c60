"""The audit of training events: twins are found exactly, categories follow the truth, rates have honest errors."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import uproot
from scipy.stats import binomtest

from hepx import metrics
from hepx.config import load, parse
from hepx.errors import DataError
from hepx.evaluate import cross_scores
from hepx.graph import DEFINED, RAW_FEATURES, GraphBatch, concatenate
from hepx.influence import audit as module
from hepx.influence.audit import ANY, RANDOM, Audit, AuditSettings, audit, finite, rank, tails
from hepx.influence.taxonomy import Category, TaxonomySettings, TruthMet, categorize
from hepx.influence.truth import true_met
from hepx.influence.twins import find_twins
from hepx.results import Provenance
from hepx.settings import RunSettings
from hepx.store import GraphStore, convert
from hepx.train import training_weights

ROOT = Path(__file__).parent.parent
PT, PHI = (list(RAW_FEATURES).index(name) for name in ("pt", "phi"))
LINES = TaxonomySettings()


@pytest.fixture(scope="module")
def settings() -> RunSettings:
    values = load(ROOT / "configs" / "quickstart.yaml")
    for sample in values["data"]["samples"].values():
        sample["files"] = str(ROOT / sample["files"])
    return parse(RunSettings, values, "quickstart")


@pytest.fixture(scope="module")
def store(settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return convert(settings.data, settings.graph, tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def graphs(store: GraphStore) -> GraphBatch:
    """A tenth of the training events of the shipped sample."""
    return store.load("train")[::10]


def category(graphs: GraphBatch, name: str, truth: TruthMet | None = None) -> Category:
    nothing = np.zeros(len(graphs))
    found = categorize(graphs, nothing, find_twins(graphs, LINES.tolerance), truth, LINES)
    return next(one for one in found if one.name == name)


# Twins --------------------------------------------------------------------------------------------------------------


def copies(graphs: GraphBatch, factor: float = 1.0, turn: float = 0.0) -> GraphBatch:
    """The same events under other event numbers, measured a little differently and turned by a small angle."""
    x = graphs.x.clone()
    x[..., PT] *= factor
    x[..., PHI] = torch.where(graphs.mask, torch.remainder(x[..., PHI] + turn + np.pi, 2 * np.pi) - np.pi, 0.0)
    return replace(graphs, x=x, event_id=graphs.event_id + 500_000)


@pytest.mark.parametrize(("factor", "turn", "are_twins"), [(1, 0, True), (1.0005, 5e-4, True), (1.01, 0, False)])
def test_twins_are_found_and_others_are_not(graphs: GraphBatch, factor: float, turn: float, are_twins: bool) -> None:
    """Copies within the tolerance are, also across φ = ±π; copies beyond it are not, nor are different events."""
    some = graphs[:40]
    found = find_twins(concatenate([graphs, copies(some, factor, turn)]), 1e-3)
    assert found.found.sum() == (80 if are_twins else 0)
    if are_twins:
        np.testing.assert_array_equal(found.partner[:40], np.arange(40) + len(graphs))
        np.testing.assert_array_equal(found.group[:40], found.group[-40:])
        assert (found.distance[:40] <= 1e-3).all()


@pytest.mark.parametrize("tolerance", [0.01, 0.05])
def test_twins_are_those_of_a_comparison_of_all_pairs(graphs: GraphBatch, tolerance: float) -> None:
    """Copies with noise of all sizes up to 15 %: some are within the tolerance."""
    some = graphs[torch.arange(0, len(graphs), 15)]
    noise = torch.rand(some.x.shape, generator=torch.Generator().manual_seed(1))
    noise *= torch.linspace(0, 0.15, len(some))[:, None, None]
    some = concatenate([some, replace(copies(some), x=some.x * (1 + noise))])
    expected = set()
    columns = [
        (slot, list(RAW_FEATURES).index(name)) for slot, kind in enumerate(some.layout.types) for name in DEFINED[kind]
    ]
    x, mask = some.x.double().numpy(), some.mask.numpy()
    for i, j in combinations(range(len(some)), 2):
        if (mask[i] != mask[j]).any():
            continue
        worst = 0.0
        for slot, column in columns:
            a, b = x[i, slot, column], x[j, slot, column]
            if column == PHI:
                apart = abs((a - b + np.pi) % (2 * np.pi) - np.pi)
            else:
                apart = abs(np.sign(a) * np.log1p(abs(a)) - np.sign(b) * np.log1p(abs(b)))
            worst = max(worst, apart * mask[i, slot])
        if worst <= tolerance:
            expected |= {i, j}
    found = find_twins(some, tolerance)
    assert set(np.flatnonzero(found.found).tolist()) == expected
    assert 0 < len(expected) < len(some)


def test_a_file_read_many_times_is_one_group_per_event(graphs: GraphBatch) -> None:
    some = graphs[:50]
    many = concatenate([replace(some, event_id=some.event_id + 10_000 * k) for k in range(5)])
    found = find_twins(many, 1e-3)
    assert np.bincount(found.group).tolist() == [5] * 50
    assert (found.partner != np.arange(250)).all()
    assert (found.distance == 0).all()


# Rates --------------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_share_is_wilsons() -> None:
    rng = np.random.default_rng(1)
    for number, probability in ((20, 0.1), (50, 0.5), (7, 0.0)):
        chosen = rng.random(number) < probability
        found = metrics.share(chosen, np.full(number, 0.3))
        wanted = binomtest(int(chosen.sum()), number).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose((found.low, found.high), (wanted.low, wanted.high), atol=1e-12)
    signed = metrics.share(np.array([True, True, False]), np.array([1.0, -0.5, 1.0]))
    assert signed.value == pytest.approx(0.5 / 1.5)
    assert metrics.share(np.ones(2, dtype=bool), np.array([1.0, -1.0])).high == 1


@pytest.mark.parametrize(("factor", "base"), [(1.0, 0.05), (4.0, 0.05), (1.0, 0.3)])
def test_the_interval_of_an_enrichment_covers_the_truth(factor: float, base: float) -> None:
    """In 95 of 100 experiments, with weights that differ threefold; checked to four standard errors of the experiment,
    on the low side only for the approximations in it."""
    rng = np.random.default_rng(2)
    part = np.arange(2000) < 60
    weight = rng.uniform(0.5, 1.5, 2000)
    fraction = weight[part].sum() / weight.sum()
    rest = base * (1 - fraction * factor) / (1 - fraction)
    covered = []
    for _ in range(400):
        chosen = rng.random(2000) < np.where(part, factor * base, rest)
        found = metrics.enrichment(chosen, part, weight)
        covered.append(found.low <= factor <= found.high)
    assert np.mean(covered) > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 400)


def test_an_enrichment_has_its_limits() -> None:
    part, weight = np.arange(10) < 2, np.ones(10)
    assert metrics.enrichment(part, part, weight).value == pytest.approx(5)  # all in the part: 1 / its share
    assert metrics.enrichment(~part, part, weight).value == 0
    assert metrics.enrichment(np.ones(10, dtype=bool), part, weight).value == pytest.approx(1)
    nothing = metrics.enrichment(np.zeros(10, dtype=bool), part, weight)
    assert np.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (0, np.inf)


# Categories ---------------------------------------------------------------------------------------------------------


def test_a_wrong_pair_is_one_with_other_parents(graphs: GraphBatch) -> None:
    """h → bb has two b of the Higgs, tt one of each top quark, whatever the sign and the order."""
    found, layout = category(graphs, "wrong_b_pair"), graphs.layout
    parents, sample = np.abs(graphs.truth_parent[:, :2].numpy()), graphs.sample.numpy()
    assert found.by == "truth"
    for name, pair in (("signal", {25}), ("ttbar", {6}), ("singletop", {0, 6})):
        own = sample == layout.samples.index(name)
        expected = [set(row) != pair for row in parents[own].tolist()]
        np.testing.assert_array_equal(found.found[own], expected)
        assert 0 < np.mean(expected) < 0.4
    blind = category(replace(graphs, truth_parent=torch.zeros_like(graphs.truth_parent)), "wrong_b_pair")
    assert blind.by == "rule"
    np.testing.assert_array_equal(blind.known, graphs.y.numpy() == 1)
    mbb = graphs.observable("mbb").numpy()
    np.testing.assert_array_equal(blind.found, blind.known & ((mbb < 90) | (mbb > 150)))


def test_true_missing_momentum_is_that_of_the_files(
    graphs: GraphBatch, settings: RunSettings, store: GraphStore
) -> None:
    truth = true_met(settings.data, graphs.event_id.numpy())
    assert truth is not None
    tree = uproot.open(ROOT / "data" / "ttbar.root")["analysis"].arrays(library="np")
    own = (graphs.sample == 1).numpy()
    row = {int(number): i for i, number in enumerate(tree["eventNumber"])}
    index = [row[int(one) % 10**12] for one in graphs.event_id[torch.from_numpy(own)]]
    np.testing.assert_allclose(truth.pt[own], tree["truth_met"][index], rtol=1e-6)
    np.testing.assert_allclose(truth.phi[own], tree["truth_met_phi"][index], atol=1e-6)
    files = store.files_of(graphs.event_id.numpy())
    assert [Path(name).stem for name in files] == [graphs.layout.samples[i] for i in graphs.sample.tolist()]


def test_lost_leptons_are_in_top_pairs(graphs: GraphBatch, settings: RunSettings) -> None:
    """Single top has one W → ℓν and no second lepton to lose: its true m_T ends near m_W. Top pairs go beyond it."""
    truth = true_met(settings.data, graphs.event_id.numpy())
    found, sample = category(graphs, "lost_lepton", truth), graphs.sample.numpy()
    assert found.by == "truth"
    assert not found.known[graphs.y.numpy() == 1].any()
    assert found.found[sample == 1].mean() > 0.2
    assert found.found[sample == 2].mean() < 0.05
    rule = category(graphs, "lost_lepton")
    np.testing.assert_array_equal(
        rule.found, (graphs.y == 0).numpy() & (graphs.observable("mt").numpy() > LINES.w_edge)
    )


def test_pathological_events_are_found(graphs: GraphBatch) -> None:
    """Each of some events is spoiled in one way; it is found in its category, and what was whole before is not."""
    x, weight, slots = graphs.x.clone(), graphs.weight.clone(), graphs.layout.slots
    lepton, met = slots.index("lepton"), slots.index("met")
    eta = list(RAW_FEATURES).index("eta")
    x[0, lepton, eta] = 3.1
    x[1, 0, PT] = 90_000.0
    x[2, lepton, [eta, PHI]] = x[2, 0, [eta, PHI]]
    x[3, met, PT] += 700
    weight[4], weight[5] = -weight[4], 50 * weight[5]
    spoiled = replace(graphs, x=x, weight=weight)
    ways = ("outside_detector", "extreme_value", "merged_objects", "unbalanced_met", "negative_weight", "huge_weight")
    for row, name in enumerate(ways):
        after = category(spoiled, name).found
        assert after[row], name
        others = np.setdiff1d(np.arange(len(graphs)), range(6))
        if name != "negative_weight":  # there is none in the sample, so there is no such category
            np.testing.assert_array_equal(after[others], category(graphs, name).found[others])


def test_trees_do_not_see_the_event_they_judge(graphs: GraphBatch) -> None:
    """With another label of an event its score stays, bit by bit; those of events in other parts do not."""
    before, flipped = cross_scores(graphs, 3, 2), replace(graphs, y=graphs.y.clone())
    assert metrics.auc(graphs.y.numpy(), before, graphs.weight.numpy()) > 0.9
    flipped.y[7] = 1 - flipped.y[7]
    after = cross_scores(flipped, 3, 2)
    assert after[7] == before[7]
    assert (after != before).any()
    with pytest.raises(DataError, match="need at least 50 of each class"):
        cross_scores(graphs[:60], 3)


# The audit ----------------------------------------------------------------------------------------------------------


def run_audit(graphs: GraphBatch, scores: dict[str, np.ndarray], **options: object) -> Audit:
    return audit(
        graphs, training_weights(graphs), scores, np.zeros(len(graphs)), AuditSettings(share=0.05), 1, **options
    )  # type: ignore[arg-type]


@pytest.fixture
def quick_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trees are tested above."""
    monkeypatch.setattr(module, "cross_scores", lambda graphs, seed: graphs.observable("mct").numpy() / 100 - 1.5)


@pytest.mark.usefixtures("quick_trees")
def test_what_is_hidden_is_found_and_enriched(graphs: GraphBatch, provenance: Provenance, tmp_path: Path) -> None:
    """A score that ranks wrong b pairs first enriches them in every process, and copies are found as twins; the events
    drawn at random show neither."""
    graphs = concatenate([graphs, copies(graphs[:20])])
    wrong = category(graphs, "wrong_b_pair").found
    score = wrong + 0.5 * np.random.default_rng(1).random(len(graphs))
    found = run_audit(graphs, {"loss": score}, points=("mass_chargino", "mass_lsp"))
    rates = {(one.stratum, one.name, one.category, one.chosen_by): one for one in found.rates}
    best = rates["all", "", "wrong_b_pair", "loss"]
    assert best.found == best.events
    assert best.enrichment.low > 3
    for name in ("signal", "ttbar"):
        assert rates["process", name, "wrong_b_pair", ANY].enrichment.low > 1
    assert rates["all", "", "duplicate", "twin"].found == 40
    for what in ("wrong_b_pair", "duplicate"):
        drawn = rates["all", "", what, RANDOM].enrichment
        assert drawn.low <= 1 <= drawn.high
    assert sum(one.stratum == "point" for one in found.rates) > 0
    found.save(tmp_path, provenance)
    lines = (tmp_path / "influence" / "audit.csv").read_text().splitlines()
    assert len(lines) == len(found.rows) + 1
    assert lines[0].startswith("rank,event_id,channel,event,file,sample")
    ids = {int(line.split(",")[1]) for line in lines[1:]}
    assert set(graphs.event_id[:20].tolist()) | set(graphs.event_id[-20:].tolist()) <= ids


@pytest.mark.usefixtures("quick_trees")
def test_shuffled_scores_enrich_nothing(graphs: GraphBatch) -> None:
    """Intervals of 95 %: about one in twenty misses 1."""
    rng = np.random.default_rng(5)
    scores = {f"shuffled{i}": rng.permutation(len(graphs)).astype(float) for i in range(12)}
    found = run_audit(graphs, scores)
    judged = [
        one.enrichment
        for one in found.rates
        if one.stratum == "process" and one.chosen_by in scores and one.category in ("wrong_b_pair", "none")
    ]
    missed = [not one.low <= 1 <= one.high for one in judged if np.isfinite(one.value)]
    assert len(missed) == 72
    assert np.mean(missed) < 0.15


def test_the_smallest_tail_ranks() -> None:
    """An event is as suspicious as its most unusual criterion; equal values stand out by nothing; NaN neither."""
    one = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    found = rank({"a": one, "b": np.where(np.arange(10) == 2, 1.0, 0.0), "c": np.ones(10)}, 0.2)
    assert found.order.tolist() == [9, 2, 8]
    assert [found.criteria[i] for i in found.reason[[9, 2, 8]]] == ["a", "b", "a"]
    assert tails(np.array([np.nan, 1.0])).tolist() == [1.0, 0.5]
    assert tails(np.ones(4)).tolist() == [1.0] * 4


def test_json_has_no_nan() -> None:
    assert finite({"a": [float("nan"), 1.0], "b": (float("inf"), "x")}) == {"a": [None, 1.0], "b": [None, "x"]}
