"""The report draws what was saved: the numbers are those of the files, and what is missing is said, not guessed."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib import pyplot
from scipy import stats

from hepx import files, metrics, report
from hepx.errors import ResultError
from hepx.kinematics import OBSERVABLES
from hepx.report import (
    closure,
    derive,
    explained,
    figures_experts,
    inside_grids,
    inside_tables,
    page,
    style,
    variations,
)
from hepx.report.saved import Saved, load_saved
from hepx.report.tables import Table
from hepx.results import (
    EventTable,
    Explanation,
    GroupExplanation,
    Importance,
    ObservableLink,
    PairExplanation,
    Provenance,
    ResponseCurve,
    Result,
)
from hepx.results_closure import Closure, Fidelity, MeanAttribution, Ranking, Separation, Usage
from hepx.results_influence import Influence
from hepx.results_network import (
    AttentionMap,
    Dictionary,
    Effect,
    Erasure,
    ExpertReport,
    Information,
    Lens,
    Probe,
    Representation,
    RoutingTable,
    Sink,
    Sparsity,
    Stability,
    Surrogate,
)

SLOTS, SAMPLES, LABELS = ("b1", "b2", "j3", "lepton", "met"), ("signal", "ttbar", "singletop"), (1, 0, 0)
TYPE_OF = {"b": "bjet", "j": "jet", "l": "lepton", "m": "met"}
TYPES = ("jet", "bjet", "lepton", "met")
FEATURES = {"pt": "GeV", "eta": "", "phi": "rad", "mass": "GeV", "btag": "", "met_significance": ""}
HAS = {"jet": 5, "bjet": 5, "lepton": 3, "met": 3}  # number of leading features, E_T^miss without η
SHARES = [0.0, 0.25, 0.5, 0.75, 1.0]
SHOWN = ("mbb", "mt", "mct", "met", "delta_r_bb")
PROVENANCE = Provenance(
    "shapley", {"baseline": "background", "draws": 16}, "c0ffee", "badcafe", "f00d", 42, "0.1.0", "abc", "cpu"
)


# A synthetic run ----------------------------------------------------------------------------------------------------


def make_events(
    number: int, rng: np.random.Generator, samples: Sequence[str] = SAMPLES, slots: Sequence[str] = SLOTS
) -> EventTable:
    """Events with plausible momenta: a peak in m_bb for signal (the first sample), 10 % negative weights."""
    sample = np.sort(rng.choice(len(samples), number))
    signal = sample == 0
    types = [TYPE_OF[slot[0]] for slot in slots]
    mbb = np.where(signal, rng.normal(118, 18, number), rng.gamma(3.0, 45, number) + 30)
    mt = np.where(signal, rng.gamma(4, 55, number), rng.gamma(3, 30, number))
    shown = [mbb, mt, rng.gamma(5, 35, number), rng.gamma(4, 30, number) + 100, rng.uniform(0.5, 4, number)]
    mask = np.ones((number, len(slots)), dtype=bool)
    mask[:, slots.index("j3")] = rng.random(number) < 0.45
    x = rng.gamma(3, 4, (number, len(slots), 6))
    x[..., 0] = 12 * x[..., 0] + 25
    x[..., 1], x[..., 2] = rng.normal(0, 1.1, mask.shape), rng.uniform(-np.pi, np.pi, mask.shape)
    for slot, kind in enumerate(types):
        x[:, slot, HAS[kind] :] = 0
        if kind == "met":
            x[:, slot, 1], x[:, slot, 5] = 0, rng.gamma(5, 2, number)
    weight = np.where(signal, 0.02, 1.1) * np.where(rng.random(number) < 0.1, -1, 1) * rng.uniform(0.5, 1.5, number)
    is_jet = np.array([kind in ("jet", "bjet") for kind in types])
    return EventTable(
        x=x * mask[..., None],
        mask=mask,
        node_type=np.tile([TYPES.index(kind) for kind in types], (number, 1)),
        object_index=np.where(mask, np.arange(len(slots)), -1),
        truth_parent=np.where(signal, 25, 6)[:, None] * is_jet * mask * np.where(np.arange(len(slots)) % 2, -1, 1),
        y=signal.astype(np.int64),
        sample=sample,
        weight=weight,
        event_id=np.arange(number) + 10**12,
        observables=np.stack(shown, 1),
        slots=tuple(slots),
        types=tuple(types),
        features=tuple(FEATURES),
        feature_units=tuple(FEATURES.values()),
        observable_names=SHOWN,
        observable_units=("GeV", "GeV", "GeV", "GeV", ""),
        sample_names=tuple(samples),
        sample_labels=(1,) + (0,) * (len(samples) - 1),
    )


def make_shapley(events: EventTable, rng: np.random.Generator) -> Explanation:
    """Pair interactions that follow m_bb and m_T, main effects, and a score that is their sum."""
    shape, slot = events.mask.shape, events.slots.index
    interactions = rng.normal(0, 0.05, (*shape, shape[1]))
    interactions[:, slot("b1"), slot("b2")] = 1.6 * np.exp(-(((events.observable("mbb") - 120) / 30) ** 2)) - 0.6
    interactions[:, slot("lepton"), slot("met")] = np.tanh((events.observable("mt") - 120) / 60)
    interactions = np.triu(interactions, 1)
    interactions = (interactions + interactions.transpose(0, 2, 1)) * events.mask[:, None] * events.mask[:, :, None]
    values = interactions.sum(2) / 2 + rng.normal(0.1, 0.2, shape) * events.mask
    baseline = rng.normal(-1.2, 0.1, len(events))
    alone = np.einsum("bij,ij->bi", interactions, np.full((shape[1],) * 2, -0.5)) + values
    faith = interactions + alone[:, :, None] * np.eye(shape[1])
    return Explanation(
        events=events,
        values=values,
        error=np.full_like(values, 0.06) * events.mask,
        score=baseline + values.sum(1),
        baseline_score=baseline,
        completeness_error=np.full(len(events), 1e-7),
        interactions=interactions,
        interactions_error=np.full_like(interactions, 0.05),
        unit="logit",
        provenance=PROVENANCE,
        faith=faith,
        faith_error=np.full_like(faith, 0.05),
    )


def make_gradients(shapley: Explanation, rng: np.random.Generator) -> Explanation:
    """The object attributions shared out over the features the object has."""
    shares = rng.dirichlet(np.ones(6), len(shapley.events))[:, None] * (shapley.events.x != 0).any(0)
    values = shapley.values[..., None] * shares / np.maximum(shares.sum(2, keepdims=True), 1e-9)
    provenance = replace(PROVENANCE, method="integrated_gradients", settings={"steps": 64, "routing": "fixed"})
    gap = np.abs(rng.normal(0, 0.01, len(values)))
    changes: dict[str, Any] = {"values": values, "error": np.abs(values) * 0.1, "completeness_error": gap}
    without = dict.fromkeys(("interactions", "interactions_error", "faith", "faith_error"))
    return replace(shapley, **changes, **without, provenance=provenance)


def make_others(shapley: Explanation, rng: np.random.Generator) -> dict[str, Result]:
    """One result of every other kind: objects that do not add up, groups of features, edges, the whole sample."""
    events, ones = shapley.events, np.ones(len(shapley.events))
    groups = {
        "players": ("b pt", "met"),
        "members": ("b1.pt b2.pt", "met.pt"),
        "values": rng.normal(0, 1, (len(ones), 2)),
    }
    sizes = np.abs(rng.normal(0, 1, (len(ones), 2, 3, *[len(events.slots)] * 2)))
    return {
        "occlusion": replace(
            shapley,
            completeness_error=None,
            interactions=None,
            faith=None,
            provenance=replace(PROVENANCE, method="occlusion"),
        ),
        "feature_groups": GroupExplanation(
            events=events,
            **groups,
            error=0.1 * np.abs(groups["values"]),
            score=shapley.score,
            baseline_score=shapley.score - groups["values"].sum(1),
            completeness_error=0 * ones,
            interactions=np.zeros((len(ones), 2, 2)),
            interactions_error=np.zeros((len(ones), 2, 2)),
            unit="logit",
            provenance=replace(PROVENANCE, method="feature_groups"),
        ),
        "edge_knockout": PairExplanation(
            events=events,
            values=sizes.sum((1, 2)),
            error=None,
            null=0.1 * sizes.sum((1, 2)),
            edges=sizes,
            score=shapley.score,
            unit="logit",
            provenance=replace(PROVENANCE, method="edge_knockout"),
        ),
        "permutation_importance": Importance(
            players=groups["players"],
            members=groups["members"],
            delta_auc=np.array([-0.03, 0.001]),
            error=np.array([0.002, 0.002]),
            delta_z=np.array([-1.0, 0.2]),
            delta_z_error=np.array([0.5, 0.5]),
            auc=0.95,
            significance=4.2,
            num_events=len(ones),
            provenance=replace(PROVENANCE, method="permutation_importance"),
        ),
    }


def make_response(rng: np.random.Generator, samples: Sequence[str] = SAMPLES) -> ResponseCurve:
    """A peak at the Higgs mass, points of observed events with holes, a flat null."""
    points = np.linspace(40, 240, 41)
    mean = np.stack(
        [3 * np.exp(-(((points - 120) / 28) ** 2)) + start for start in np.linspace(-0.5, -2, len(samples))]
    )
    observed = mean + rng.normal(0.2, 0.15, mean.shape)
    observed[-1, :4] = np.nan
    null = np.full_like(mean, 0.03) + 0.0004 * points
    reached = np.clip(1.2 - np.abs(points - 120) / 150, 0, 1) * np.ones((len(samples), 1))
    errors = np.full_like(mean, 0.08)
    return ResponseCurve(
        "mbb", "GeV", "b2", points, mean, errors, reached, observed, 1.5 * errors, null, tuple(samples), PROVENANCE
    )


def make_attention(rng: np.random.Generator, events: EventTable, layers: int = 2, heads: int = 4) -> AttentionMap:
    """Rows that add up to one; the trained heads look at the partner of the pair."""
    slots, samples = events.slots, events.sample_names
    shape = (len(samples), layers, heads, len(slots), len(slots))
    trained, null = rng.gamma(1.0, 1.0, shape), rng.gamma(30, 1.0, shape)
    trained[..., slots.index("b1"), slots.index("b2")] += 3
    trained[..., slots.index("lepton"), slots.index("met")] += 3
    trained, null = (weights / weights.sum(-1, keepdims=True) for weights in (trained, null))
    follows = rng.uniform(-0.6, 0.6, (layers, heads, 6, len(slots), len(slots)))
    each = [(layer, head) for layer in range(layers) for head in range(heads)]
    return AttentionMap(
        mean=trained,
        error=trained * 0.02,
        null=null,
        shuffled=null[..., ::-1, :].copy(),
        value_norm=trained * rng.uniform(0.5, 2, shape),
        value_norm_error=trained * 0.02,
        value_norm_null=0.4 * null,
        value_norm_shuffled=np.full_like(null, np.nan),
        rollout=trained.mean(2),
        rollout_error=trained.mean(2) * 0.02,
        rollout_null=null.mean(2),
        rollout_shuffled=null.mean(2),
        num_events=np.full(len(samples), 200),
        entropy=rng.uniform(0.3, 0.9, (layers, heads)),
        entropy_error=np.full((layers, heads), 0.01),
        entropy_null=rng.uniform(0.9, 1, (3, layers, heads)),
        slot_share=rng.uniform(0.2, 0.6, (layers, heads)),
        slot_share_null=rng.uniform(0.4, 0.9, (3, layers, heads)),
        quantities=("delta_r", "delta_phi", "mass", "kt", "mt", "mct"),
        correlation=follows,
        correlation_error=np.full_like(follows, 0.03),
        correlation_null=rng.uniform(0.2, 0.5, (3, 6)),
        logit_parts=("type × type", "type × kinematics", "kinematics × kinematics", "pair bias"),
        logit_shares=rng.dirichlet(np.ones(4), (layers, heads)),
        logit_shares_null=rng.dirichlet(np.ones(4), (3, layers, heads)),
        sinks=tuple(Sink(*at, "met", 2.1, 0.83, 0.7, True, -0.0002, 0.0003) for at in each),
        sinks_null=tuple(
            tuple(
                Sink(*at, "b1", 1.1 + 0.1 * i, 0.02, 1.2, i == 1, *((0.01, 0.003) if i != 1 else (None, None)))
                for at in each
            )
            for i in range(3)
        ),
        knock_out=tuple(Effect("head", *at, "all events", -0.004, 0.001) for at in each),
        knock_out_null=tuple(
            tuple(Effect("head", *at, "all events", 0.002 * (i - 1), 0.001) for at in each) if i != 1 else ()
            for i in range(3)
        ),
        null_kinds=("untrained", "untrained", "shuffled"),
        null_auc=np.array([0.4, 0.6, 0.52]),
        slots=slots,
        sample_names=samples,
        provenance=PROVENANCE,
    )


def make_experts(
    rng: np.random.Generator, samples: Sequence[str] = SAMPLES, layers: int = 2, experts: int = 6
) -> ExpertReport:
    """Sharp trained routing, soft null, one expert that matters."""
    shape = (len(samples), layers, len(TYPES))
    effects = [
        Effect(kind, i, e, where, float(rng.normal(-0.002, 0.002)), 0.0012, *more)
        for kind in ("knock_out", "mean_ablation", "forced")
        for i in range(layers)
        for e in range(experts)
        for where, more in (("all events", ()), ("with j3", (-0.001, 0.001, 0.3, 0.1, -0.12, 0.05)))
    ]
    effects[0] = Effect("knock_out", 0, 0, "all events", -0.031, 0.002)
    effects += [Effect("swap", i, -1, "all events", -0.05 * (i + 1), 0.004) for i in range(layers)]
    by = {"type": TYPES, "slot": SLOTS, "process": samples, "score": ("< -1.2", "≥ -1.2")}
    by |= {"mass point": tuple(f"{150 + 10 * i}, 0 GeV" for i in range(30))}
    likeness = np.clip(np.eye(experts) + 0.6, 0, 1) * np.ones((layers, 1, 1))
    about = ("type", "process", "score", "mbb", "mt", "with j3")
    return ExpertReport(
        routing=rng.dirichlet(np.ones(experts) * 0.4, shape).tolist(),
        routing_null=rng.dirichlet(np.ones(experts) * 4, shape).tolist(),
        tables=[make_routing(rng, name, rows, layers, experts) for name, rows in by.items()],
        load=np.full((layers, experts), 1 / experts).tolist(),
        load_entropy=[1.0] * layers,
        dead=[[0, 1]],
        coactivation=np.full((layers, experts, experts), 0.1).tolist(),
        coactivation_chance=np.full((layers, experts, experts), 0.11).tolist(),
        similarity=likeness.tolist(),
        similarity_null=likeness.tolist(),
        information=[
            Information(i, name, "slot", 0.2, 0.01, [0.05, 0.08], 0.12, 0.12, 0.1, 0.14)
            for i in range(layers)
            for name in about
        ],
        effects=effects,
        carries=[],
        probes=[Probe(0, "expert 1", "mbb", 0.4, 0.03, -0.02, 0.1)],
        surrogates=[Surrogate(i, 0.7, 0.01, 0.6, 0.3, "|--- pt <= 50.0\n|   |--- class: E1\n") for i in range(layers)],
        distinct_experts=[experts] * layers,
        null_kinds=["untrained", "untrained", "shuffled"],
        node_types=list(TYPES),
        sample_names=list(samples),
        verdict="the experts of layer 1 and 2 differ in function (swapping them costs AUC)",
        provenance=replace(PROVENANCE, method="experts", settings={}),
    )


def make_routing(rng: np.random.Generator, by: str, rows: Sequence[str], layers: int, experts: int) -> RoutingTable:
    """Rows that add up to one, with an untrained network and none on shuffled labels."""
    soft = rng.dirichlet(np.ones(experts), (layers, len(rows)))
    return RoutingTable(by, list(rows), soft.tolist(), (0.1 * soft).tolist(), soft[:, ::-1].tolist(), None)


def make_representation(rng: np.random.Generator, layers: int = 2) -> Representation:
    """Probes that rise with the layer, erasures that cost, a dictionary that wins."""
    return Representation(
        probes=[
            Probe(i, kind, name, 0.2 + 0.3 * i + float(rng.uniform(0, 0.05)), 0.02, -0.01, 0.2 + 0.1 * i)
            for i in range(layers + 1)
            for kind in TYPES
            for name in ("mbb", "mt", "ht")
        ],
        erasures=[
            Erasure(i, name, 2, -0.04 * (i + 1), 0.003, -0.002, 0.001, 0.8, 0.02, 0.01, 0.02)
            for i in range(layers + 1)
            for name in ("mbb", "mt")
        ],
        dictionaries=[
            Dictionary(network, 1, kind, 64, 8, miss, 0.001, 3, {"mbb": readable}, {"mbb": 0.05})
            for network, readable in (("trained", 0.5), ("untrained", 0.35), ("shuffled", 0.45))
            for kind, miss in (("dictionary", 0.02), ("principal components", 0.04), ("neurons", 0.5))
        ],
        sparsity=[
            Sparsity(network, 0, e, 0.8, 0.04, 0.6, 0.03, [[0.0, 0.95, 0.004], [0.8, 0.945, 0.004]])
            for network, e in (("trained", -1), ("trained", 0), ("trained", 1), ("untrained", -1))
        ],
        lens=[Lens(i, 0.8 + 0.07 * i, 0.004, 0.5, 0.01, None, None) for i in range(layers + 1)],
        provenance=replace(PROVENANCE, method="representation", settings={}),
    )


def make_closure(shapley: Explanation) -> Closure:
    """Trees and network that rank alike but for one observable; regions; one variation."""
    rows = [("variable", name) for name in (*SHOWN, "n_jet")]
    rows += [("object", slot) for slot in SLOTS] + [("pair", f"{a} {b}") for a, b in combinations(SLOTS, 2)]
    usage = [
        Usage(kind, name, 0.5 / (i + 1), 0.01, 0.4 / (i + 1), 0.02, 0.1, 0.8, 0.1)
        for i, (kind, name) in enumerate(rows)
    ]
    means = [
        MeanAttribution(
            name, slot, where, 40, 0.3 * i - k, 0.1, {"jes_up": (0.3, 0.01), "jes_down": (-0.2, 0.01)}, 0.3, 0.2
        )
        for k, name in enumerate(SAMPLES)
        for where in ("all events", "signal_region")
        for i, slot in enumerate(SLOTS)
    ]
    information = [Separation("network", "", 0.96, 0.002), Separation("trees", "", 0.95, 0.003)]
    information += [Separation("both", "", 0.97, 0.002), Separation("network", "trees", 0.01, 0.001)]
    fidelity = [Fidelity("trees that imitate the network", 0.93, 0.01)]
    rankings = [Ranking(kind, 0.9, 0.05, 0.4, -0.1) for kind in ("variable", "object", "pair")]
    where = replace(shapley.provenance, method="closure", settings={})
    return Closure(information, usage, rankings, fidelity, means, 200, where)


def make_validation(shapley: Explanation) -> dict[str, Any]:
    """Two methods, one as good as random values; no other seeds."""
    good, bad = {"value": 0.8, "error": 0.02}, {"value": 0.0, "error": 0.05}
    keys = ("order", "infidelity", "correlation", "fidelity_plus", "fidelity_minus", "unfaithfulness", "sensitivity")

    def row(measured: dict[str, float], gain: float) -> dict[str, Any]:
        curves = {
            kind: [{"value": 4 * s * (1 + sign * gain * (1 - s)) - 2, "error": 0.1} for s in shares]
            for kind, shares, sign in (("insertion", SHARES, 1), ("deletion", SHARES[::-1], -1))
        }
        likeness = {"donors": good, "seeds": None, "untrained": bad, "shuffled": None}
        spread = {"donors": 0.1, "seeds": None}
        return dict.fromkeys(keys, measured) | {"curves": curves, "likeness": likeness, "spread": spread, "means": []}

    return {
        "events": 200,
        "shares": SHARES,
        "methods": {"shapley": row(good, 0.8), "saliency": row(bad, 0.1)},
        "random": row(bad, 0.0),
        "agreement": [[1.0, 0.4], [0.4, 1.0]],
        "provenance": asdict(replace(shapley.provenance, method="validate", settings={})),
    }


def make_links(explanation: Explanation) -> dict[str, Any]:
    """One link for every second observable, some below their null."""
    objects = {"mbb": ("b1", "b2"), "mt": ("lepton", "met"), "met": ("met",), "ht": ("b1", "b2", "j3")}
    strength = {"mbb": 0.62, "mt": 0.55, "met": 0.31, "ht": 0.06}
    links = [asdict(ObservableLink(name, objects[name], strength[name], 0.03, 0.08)) for name in objects]
    return {"links": links, "provenance": asdict(explanation.provenance)}


def make_scores(rng: np.random.Generator, number: int = 3600) -> pa.Table:
    """Test events with the scores of the model and two references."""
    events = make_events(number, rng)
    truth = events.y * 4.5 - 2.5
    columns = {"score": 1.6, "trees_observables": 1.9, "trees_nodes": 2.3}
    scores = {name: truth + rng.normal(0, spread, number) for name, spread in columns.items()}
    names = np.array(SAMPLES)[events.sample]
    header = {"event_id": events.event_id, "sample": names, "label": events.y, "weight": events.weight}
    return pa.table({**header, **scores, **{name: events.observable(name) for name in SHOWN}})


def make_measures(auc: float, none: bool = False) -> dict[str, Any]:
    """Measures of one classifier over one set of events."""
    cells = {"accuracy": 0.8871, "precision": 0.8912, "recall": 0.882, "f1": 0.8866, "calibration_error": 0.012}
    rejections = [(0.3, 812.0, 160.0), (0.5, 120.3, 11.0), (0.7, 31.2, 1.4), (0.9, None, None)]
    significance = {"value": None, "error": None} if none else {"value": 3.1, "error": 0.4}
    return {
        "signal_yield": 512.0,
        "background_yield": 81240.5,
        "auc": {"value": auc, "error": 0.0031},
        "significance": significance,
        "rejection": [{"signal_efficiency": s, "value": v, "error": e} for s, v, e in rejections],
        **{name: {"value": value, "error": 0.004} for name, value in cells.items()},
    }


def make_classifier(auc: float) -> dict[str, Any]:
    """Everything metrics.json holds about one classifier; a bin without events has no numbers."""
    groups = [{"kind": "background", "name": name, "point": {}, "events": 900} for name in SAMPLES[1:]]
    for mass in (200.0, 400.0):
        point = {"mass_chargino": mass, "mass_lsp": 50.0}
        name = f"mass_chargino {mass:g}, mass_lsp 50"
        groups.append({"kind": "point", "name": name, "point": point, "events": 200})
    groups = [{**group, **make_measures(0.9, none=group["kind"] == "background")} for group in groups]
    numbers = {"low": -1.0, "high": 1.0, "observed_error": 0.02, "share": 0.5}
    bins: list[dict[str, Any]] = [{**numbers, "predicted": p, "observed": p**1.1} for p in (0.02, 0.4, 0.95)]
    bins.append(dict.fromkeys(bins[0], None) | {"share": 0.0})
    reliability = {"error": 0.021, "error_if_perfect": 0.012, "bins": bins}
    calibration = {"prior_log_odds": -5.0, "equal_classes": reliability, "expected_yields": reliability}
    return {**make_measures(auc), "groups": groups, "calibration": calibration}


def make_metrics(table: pa.Table) -> dict[str, Any]:
    """metrics.json of these scores."""
    y, weight = table["label"].to_numpy(), table["weight"].to_numpy()
    aucs = {n: metrics.auc(y, table[n].to_numpy(), weight) for n in ("score", "trees_observables", "trees_nodes")}
    names = {"trees_observables": "trees on 15 observables", "trees_nodes": "trees on the node table"}
    cells = {"auc": 0.0021, "accuracy": 0.004, "significance": 0.2}
    references = [
        {"name": name, "column": column, **make_classifier(aucs[column])}
        | {"difference": {key: {"value": aucs["score"] - aucs[column], "error": cells[key]} for key in cells}}
        for column, name in names.items()
    ]
    return {
        "model": "moe_graph_transformer",
        "parameters": 103786,
        "seed": 42,
        "split": "test",
        "events": len(table),
        "luminosity": 139.0,
        "background_uncertainty": 0.2,
        "min_background": 10.0,
        **make_classifier(aucs["score"]),
        "references": references,
    }


def make_dataset(samples: Sequence[str] = SAMPLES, slots: Sequence[str] = SLOTS) -> dict[str, Any]:
    """dataset.json."""
    steps = (("read", 8000, 52034.2), ("n_lepton == 1", 6120, 40120.9), ("met > 100", 3011, 9021.4))
    flow = [{"name": name, "events": n, "weighted": w, "error": w / n**0.5} for name, n, w in steps]
    return {
        "layout": {
            "slots": slots,
            "types": [TYPE_OF[slot[0]] for slot in slots],
            "observables": SHOWN,
            "observable_units": ["GeV"] * 4 + [""],
            "samples": samples,
            "labels": (1,) + (0,) * (len(samples) - 1),
        },
        "luminosity": 139.0,
        "split": {"fractions": [0.6, 0.2, 0.2]},
        "sources": [
            {"path": f"data/{n}.root", "tree": "analysis", "num_events": 8000, "uuid": f"1f-{n}", "size": 2100000}
            | {"tagger": "DL1dv01" if n == "ttbar" else "", "computed": ["met_significance"] if n == "ttbar" else []}
            for n in samples
        ],
        "shards": [],
        "cutflow": dict.fromkeys(samples, flow),
    }


def make_variations() -> list[dict[str, Any]]:
    """What `evaluate` saves about two variations."""

    def change(nominal: float, difference: float) -> dict[str, float]:
        values = {"value": nominal + difference, "nominal": nominal, "difference": difference}
        return {**values, "difference_error": abs(difference) / 4}

    found = []
    for name, size in (("jes_up", 0.05), ("jes_down", -0.04)):
        yields = zip(SAMPLES, ("signal", "background", "background"), (100.0, 4000.0, 0.0), strict=True)
        classes = {"signal": change(50.0, 50 * size), "background": change(40.0, 0.0)}
        auc = {"value": 0.95 + size / 100, "error": 0.002, "difference": size / 100, "difference_error": 0.0002}
        cut = {"signal_efficiency": 0.5, "score": 2.0, "yields": [{"class": c, **v} for c, v in classes.items()]}
        rows = [{"sample": s, "class": kind, **change(nominal, size * nominal)} for s, kind, nominal in yields]
        events = {"events": 900, "gained": 20, "lost": 3}
        found.append({"variation": name, **events, "auc": auc, "yields": rows, "cuts": [cut]})
    return found


def make_varied(nominal: Explanation) -> Explanation:
    """The explanation under a variation: fewer events, and 0.5 logit more for the first object."""
    events = EventTable(**{
        name: value[50:] if isinstance(value, np.ndarray) else value for name, value in vars(nominal.events).items()
    })  # fmt: skip
    values = nominal.values[50:].copy()
    values[:, 0] += 0.5
    parts = {name: getattr(nominal, name)[50:] for name in ("score", "baseline_score")}
    return replace(nominal, events=events, values=values, error=None, interactions=None, **parts)


def make_share(value: float) -> dict[str, float]:
    return {"value": value, "low": 0.7 * value, "high": min(1.0, 1.4 * value)}


def make_rate(category: str, stratum: tuple[str, str], chosen_by: str, rate: float) -> dict[str, Any]:
    """Rate of a category: 4 % in all events."""
    shares = {"rate": make_share(rate), "rate_of_all": make_share(0.04), "enrichment": make_share(rate / 0.04)}
    kind, name = stratum
    return {
        "stratum": kind,
        "name": name,
        "category": category,
        "chosen_by": chosen_by,
        "events": 60,
        "found": 9,
        **shares,
    }


def make_picture(events: EventTable, i: int) -> dict[str, Any]:
    objects = [
        {"slot": slot, "type": events.types[n], "truth_parent": int(events.truth_parent[i, n])}
        | dict(zip(FEATURES, events.x[i, n].tolist(), strict=True))
        for n, slot in enumerate(SLOTS)
        if events.mask[i, n]
    ]
    observables = dict(zip(SHOWN, events.observables[i].tolist(), strict=True))
    about = {"channel": 900000, "event": i, "sample": SAMPLES[events.sample[i]], "model_score": -1.5}
    return {**about, "objects": objects, "observables": observables}


def make_audit(events: EventTable, run: Path) -> None:
    """An audit that finds wrong b pairs, and its list."""
    strata = [("all", ""), *(("process", name) for name in SAMPLES), ("region", "with_j3")]
    sets, categories = ("any", "loss", "random"), ("wrong_b_pair", "duplicate")
    rates = [
        make_rate(category, stratum, chosen_by, 0.04 if chosen_by == "random" else 0.3)
        for category in categories
        for stratum in strata
        for chosen_by in sets
    ]
    pictures = [
        {"rank": i + 1, "reason": "loss", "categories": ["wrong_b_pair"], **make_picture(events, i)} for i in range(3)
    ]
    about = [{"name": "wrong_b_pair", "what": "", "by": "truth", "known": 600, "found": 24}]
    about += [{"name": "duplicate", "what": "", "by": "rule", "known": 600, "found": 0}]
    values = {
        "settings": {"share": 0.1},
        "num_events": 600,
        "suspicious": 60,
        "criteria": ["loss", "twin"],
        "notes": [],
    }
    values |= {"categories": about, "rates": rates, "displays": pictures, "provenance": asdict(PROVENANCE)}
    files.write_json(run / "influence" / "audit.json", values)
    lines = ["rank,channel,event,sample,tail,reason,categories,loss,score,mbb,mt,mct,met"]
    lines += [f"{i},900000,{i},signal,0.002,loss,wrong_b_pair; none,4.2,-3.1,250,80,,120" for i in range(1, 20)]
    files.write_text(run / "influence" / "audit.csv", "\n".join(lines) + "\n")


def make_arm(score: str, order: str, equal: str, fraction: float, gain: float) -> dict[str, Any]:
    """A way to train; `gain` over random removal in units of its error 0.001."""
    word = "equal" if abs(gain) <= 2 else "better" if gain > 0 else "worse"
    found = {
        "value": gain * 1e-3,
        "error": 1e-3,
        "training_error": 1e-3,
        "test_error": 0.0,
        "sigmas": gain,
        "word": word,
    }
    versus = {"full": None if score == "full" else found, "random": found if score == "tracin" else None, "short": None}
    about = {"score": score, "order": order, "fraction": fraction, "equal": equal, "epochs": 10, "sets": 1}
    measured = {"events": 600, "steps": 20, "cpu_seconds": 1.5, "auc": 0.95, "auc_error": 0.002, "auc_by_seed": [0.95]}
    return {**about, **measured, "rejection": 30.0, "rejection_error": 2.0, "versus": versus}


def make_distilled(events: EventTable) -> dict[str, Any]:
    """A study whose score is as good as random removal, but the lowest values are needed."""
    key = {"score": "tracin", "fraction": 0.5}
    rows = [make_arm("full", "", "events", 0.0, 0), make_arm("short", "", "steps", 0.5, -0.5)]
    for equal in ("events", "steps"):
        rows += [make_arm("random", "", equal, 0.5, -1), make_arm("tracin", "highest", equal, 0.5, 0.4)]
        rows += [make_arm("tracin", "lowest", equal, 0.5, -6)]
    before = (np.ones(6) / 6).tolist()
    shape = {"before": before, "after": before, "ratio": [1.0] * 6, "ratio_error": [0.1] * 6, "chi2": 5.0, "bins": 5}
    removals = [{**key, "order": order} for order in ("highest", "lowest")]
    counts = {"sample": "ttbar", "label": 0, "events_before": 300, "events_after": 100, "share_before": 0.9}
    means = {"sample": "ttbar", "observable": "mbb", "unit": "GeV", "dropped": 150.0, "dropped_error": 3.0}
    return {
        "settings": {"seeds": [1, 2, 3], "sets": 4},
        "notes": [],
        "rows": rows,
        "verdict": ["No score chose events to drop better than chance."],
        "test": {"events": 3600},
        "composition": [{**one, **counts, "share_after": 0.8, "dropped": make_share(0.6)} for one in removals],
        "shapes": [
            {**one, **shape, "observable": "mbb", "label": label, "edges": [0.0, 50, 100, 150, 200, 250, 900]}
            | {"distance": 0.2, "null": 0.05}
            for one in removals
            for label in (0, 1)
        ],
        "means": [{**one, **means, "kept": 120.0, "kept_error": 2.0} for one in removals],
        "dropped": [{**one, **make_rate("wrong_b_pair", ("all", ""), "dropped", 0.1)} for one in removals],
        "displays": [{**one, "value": 0.3, **make_picture(events, i)} for i, one in enumerate(removals)],
        "provenance": asdict(PROVENANCE),
    }


CONFIG = """name: synthetic
seed: 42
data:
  samples: {signal: {xsec_pb: 1.0}}
  variations: {jes_up: {scale: {jet.pt: 1.05}}, jes_down: {scale: {jet.pt: "1 - 0.04 * tagged"}, samples: [ttbar]}}
"""


def make_influence(events: EventTable, rng: np.random.Generator) -> Influence:
    """A score by which signal pushes towards signal; the first events are the queries."""
    number, sign = len(events), np.where(events.y == 1, 1.0, -1.0)
    queries = {name: one[:20] if isinstance(one, np.ndarray) else one for name, one in vars(events).items()}
    extremes = np.argsort(rng.normal(size=(20, number)), axis=1)[:, :5]
    inside = np.stack([events.sample == i for i in range(len(events.sample_names))])
    mean = sign * rng.exponential(size=number)
    return Influence(
        score="tracin",
        query="label == 0",
        events=EventTable(**queries),
        query_score=rng.normal(size=20),
        train_id=events.event_id,
        train_sample=events.sample,
        train_label=events.y,
        train_weight=events.weight,
        loss_weight=events.weight,
        train_observables=events.observables,
        own=rng.exponential(size=number),
        mean=mean,
        mean_error=np.full(number, 0.1),
        proponents=extremes,
        proponent_values=np.abs(rng.normal(size=(20, 5))),
        opponents=extremes[::-1],
        opponent_values=-np.abs(rng.normal(size=(20, 5))),
        by=("sample",) * len(events.sample_names),
        group=events.sample_names,
        num_events=inside.sum(1),
        share=inside.mean(1),
        total=inside @ mean,
        total_error=np.sqrt(inside @ mean**2),
        expected=inside.sum(1) * mean.mean(),
        own_mean=np.ones(len(events.sample_names)),
        own_error=np.full(len(events.sample_names), 0.1),
        provenance=PROVENANCE,
    )


def make_influence_validation() -> dict[str, Any]:
    """Scores of training events judged by retraining."""
    names = {"trak": 0.6, "tracin": 0.2, "loss": 0.07, "random": 0.01}
    rows = [
        {"test": test, "score": name, "models": models, "value": value * models**0.5, "error": 0.03, "chance": chance}
        | {"better": None if name == "loss" else (value - 0.07) / 0.04, "more": {}}
        for test, several, chance in (("lds", (1, 2), 0.0), ("flips 10 %", (2,), 0.5))
        for models in several
        for name, value in names.items()
    ]
    return {
        "study": "events of the run",
        "settings": {"train_events": 1000, "models": 2, "subset_seeds": 2},
        "model": {"name": "moe_graph_transformer"},
        "num_parameters": 7418,
        "trainings": 123,
        "rows": rows,
        "seed_correlation": 0.5,
        "ceiling": 0.82,
        "scans": {"trak": {"0.1": 0.4, "1": 0.6}},
        "verdicts": [
            {"name": "random", "what": "|LDS of random values|", "value": 0.01, "error": 0.03, "passed": True}
        ],
    }


def write_run(run: Path) -> Path:
    """A run folder as the stages leave it."""
    rng = np.random.default_rng(7)
    shapley = make_shapley(make_events(600, rng), rng)
    shapley.save(run / "explain" / "shapley.npz")
    make_gradients(shapley, rng).save(run / "explain" / "integrated_gradients.npz")
    make_response(rng).save(run / "explain" / "response_mbb.npz")
    for name, result in make_others(shapley, np.random.default_rng(9)).items():
        result.save(run / "explain" / f"{name}.npz")
    files.write_json(run / "explain" / "links.json", make_links(shapley))
    make_attention(rng, shapley.events).save(run / "attention.npz")
    make_experts(rng).save(run / "experts.json")
    make_representation(rng).save(run / "representation.json")
    make_closure(shapley).save(run / "closure.json")
    files.write_json(run / "validate.json", make_validation(shapley))
    stability = [asdict(Stability(i, 3, 0.3, 0.05, 0.2, 0.4, 0.5, 0.1, 0.02)) for i in range(2)]
    files.write_json(run / "stability.json", {"runs": ["a", "b", "c"], "layers": stability})
    make_audit(shapley.events, run)
    make_influence(shapley.events, np.random.default_rng(8)).save(run / "influence" / "scores" / "tracin.npz")
    files.write_json(run / "influence" / "distill.json", make_distilled(shapley.events))
    files.write_json(run / "influence" / "validate.json", make_influence_validation())
    table = make_scores(rng)
    pq.write_table(table, run / "scores.parquet")
    make_varied(shapley).save(run / "explain" / "shapley@jes_up.npz")
    files.write_json(run / "metrics.json", {**make_metrics(table), "variations": make_variations()})
    files.write_json(run / "dataset" / "dataset.json", make_dataset())
    files.write_json(run / "provenance.json", {"config": "c0ffee", "seed": 42, "packages": {"numpy": "2"}})
    files.write_text(run / "config.yaml", CONFIG)
    header = "epoch,loss,balance_loss,z_loss,validation_loss,validation_auc,lr"
    lines = [f"{e},{0.6 / e**0.3},{1 + 0.4 / e},0.1,{0.62 / e**0.28},{0.95 - 0.2 / e},0.001" for e in range(1, 21)]
    files.write_text(run / "history.csv", "\n".join([header, *lines]) + "\n")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run folder with its report; the report is made once, with every warning an error."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "synthetic")
    report.make_report(folder)
    return folder


@pytest.fixture(scope="module")
def saved(run: Path) -> Saved:
    return load_saved(run)


def test_errors_of_mean_attributions_add_in_quadrature(saved: Saved) -> None:
    """Statistical ⊕ seed ⊕ systematic; without other seeds the seed column is empty and adds nothing."""
    rows = [{"sample": "signal", "object": "b1", "where": "all events", "seed": 0.4}]
    seeded = replace(saved, validation={"methods": {"shapley": {"means": rows}}})
    first, plain = closure.mean_table(seeded).dicts()[0], closure.mean_table(saved).dicts()[0]
    assert (first["sample"], first["object"], first["where"]) == ("signal", "b1", "all events")
    assert first["up"] == pytest.approx((0.1**2 + 0.4**2 + 0.3**2) ** 0.5)
    assert first["down"] == pytest.approx((0.1**2 + 0.4**2 + 0.2**2) ** 0.5)
    assert plain["up"] == pytest.approx((0.1**2 + 0.3**2) ** 0.5)
    assert plain["seed"] is None
    assert (first["shift_jes_up"], first["shift_jes_down"]) == (0.3, -0.2)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A run folder after `evaluate`, without scores: the least a report needs."""
    files.write_json(tmp_path / "metrics.json", make_metrics(make_scores(np.random.default_rng(1), 200)))
    files.write_json(tmp_path / "dataset" / "dataset.json", make_dataset())
    return tmp_path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# The page ---------------------------------------------------------------------------------------------------------


def test_report_is_one_file_that_loads_nothing(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text)
    assert len(sources) > 20
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert not re.search(r"<script|<link|<iframe|@import|url\(", text)


def test_links_of_the_contents_lead_somewhere(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    targets = re.findall(r'href="#(\w+)"', text)
    assert len(targets) == 19
    assert all(f'id="{target}"' in text for target in targets)


@pytest.mark.parametrize("name", report.FIGURES)
def test_every_figure_is_written_as_png_and_pdf(run: Path, name: str) -> None:
    found = sorted(path.name for path in (run / "figures").glob(f"{name}*"))
    assert [name.suffix for name in map(Path, found)].count(".png") >= 1
    assert {Path(f).stem for f in found if f.endswith(".png")} == {Path(f).stem for f in found if f.endswith(".pdf")}
    assert all((run / "figures" / f).stat().st_size > 5000 for f in found)


@pytest.mark.parametrize("name", report.TABLES)
def test_every_table_is_written(run: Path, name: str) -> None:
    assert read_csv(run / "tables" / f"{name}.csv")


def test_every_explanation_of_a_run_is_drawn(run: Path, saved: Saved) -> None:
    """Nothing that a method wrote is only in a file: each is a figure, with the numbers of the result."""
    shown = {path.stem for path in (run / "figures").glob("*.png")}
    for name in (path.stem for path in (run / "explain").glob("*.npz") if "@" not in path.stem):
        own = {"shapley": "waterfall", "integrated_gradients": "features", "permutation_importance": "importance"}
        assert own.get(name, "response" if name.startswith("response") else f"methods_{name}") in shown
    assert {"faith", "edges_edge_knockout"} <= shown
    with style.style():
        bars = explained.draw(saved.group_values["feature_groups"]).axes[0].patches
        losses = explained.draw(saved.importances["permutation_importance"]).axes
    groups, signal = saved.group_values["feature_groups"], saved.samples.index("signal")
    chosen = groups.events.sample == signal
    means = [np.average(column, weights=groups.events.weight[chosen]) for column in groups.values[chosen].T]
    np.testing.assert_allclose([bar.get_width() for bar in bars], means)
    np.testing.assert_allclose([[bar.get_width() for bar in axes.patches] for axes in losses], [[-30, 1], [-1, 0.2]])


def test_no_half_written_file_is_left(run: Path) -> None:
    assert not list(run.rglob(".*"))


def test_drawing_leaves_no_trace(run: Path) -> None:
    assert matplotlib.rcParams["font.family"] == matplotlib.rcParamsDefault["font.family"]
    assert pyplot.get_fignums() == []


def test_report_needs_no_model() -> None:
    """Layering: neither torch nor the graphs are imported to draw saved numbers."""
    code = "import hepx.report, sys; sys.exit(any(m in sys.modules for m in ('torch', 'hepx.graph', 'hepx.store')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbers_of_metrics_stand_on_the_page(run: Path, saved: Saved) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    auc = saved.metrics["auc"]
    assert f"{auc['value']:.4f} ± {auc['error']:.4f}" in text
    assert "no background passes" in text  # a rejection that is null
    assert "Verdict: the experts of layer 1 and 2 differ in function" in text
    assert "0.30 ± 0.05 (0.10)" in text  # stability
    assert "+0.120 [+0.100, +0.140]" in text  # excess information
    assert "−0.120 ± 0.050" in text  # ΔZ in a region


# What is missing --------------------------------------------------------------------------------------------------


def test_sections_without_results_say_so(bare: Path) -> None:
    text = report.make_report(bare).read_text(encoding="utf-8")
    assert "This model has no attention" in text
    assert "This model has no experts" in text
    assert "The states of this model were not analysed" in text
    assert "There are no attributions (explain/*.npz)" in text
    assert "There is no response curve" in text
    assert "There is no training history" in text
    drawn = {path.stem for path in (bare / "figures").iterdir()}
    assert drawn == {"calibration", "points"}  # metrics.json alone holds their numbers
    assert text.count("<img") == len(drawn)


def test_complete_report_misses_nothing(run: Path) -> None:
    absent = re.findall(r'class="absent">(.*?)<', (run / "report.html").read_text(encoding="utf-8"))
    assert absent == []


@pytest.mark.parametrize(("name", "stage"), [("metrics.json", "evaluate"), ("dataset/dataset.json", "convert")])
def test_missing_required_result_names_the_stage(bare: Path, name: str, stage: str) -> None:
    (bare / name).unlink()
    with pytest.raises(ResultError, match=rf"{re.escape(name)}' is missing.*`hepx {stage} "):
        report.make_report(bare)


def test_missing_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"there is no run folder .*nothing"):
        report.make_report(tmp_path / "nothing")


def test_broken_json_is_named(bare: Path) -> None:
    (bare / "metrics.json").write_text("{")
    with pytest.raises(ResultError, match=r"metrics\.json' is not a JSON object"):
        report.make_report(bare)


def test_results_of_two_trainings_are_reported(saved: Saved) -> None:
    assert saved.experts is not None
    other = replace(saved.experts, provenance=replace(PROVENANCE, checkpoint="0ther"))
    (problem,) = page._problems(replace(saved, experts=other))
    assert "2 different checkpoints (0ther, badcafe)" in problem
    assert page._problems(saved) == []


# The numbers ------------------------------------------------------------------------------------------------------


def test_waterfall_adds_up_to_the_mean_score(run: Path) -> None:
    """Recomputed from the saved explanation; 1e-6 is the precision asked of the CSV."""
    explanation = Explanation.load(run / "explain" / "shapley.npz")
    rows = read_csv(run / "tables" / "waterfall.csv")
    for number, sample in enumerate(SAMPLES):
        mean = {row["step"]: float(row["mean"]) for row in rows if row["sample"] == sample}
        chosen = explanation.events.sample == number
        weight = explanation.events.weight[chosen]
        assert mean["score"] == pytest.approx((weight @ explanation.score[chosen]) / weight.sum(), abs=1e-6)
        for slot, name in enumerate(SLOTS):
            expected = weight @ explanation.values[chosen, slot] / weight.sum()
            assert mean[name] == pytest.approx(expected, abs=1e-6)
        assert sum(mean[step] for step in ("baseline", *SLOTS)) == pytest.approx(mean["score"], abs=1e-6)
        assert mean["residual"] == pytest.approx(0, abs=1e-6)


def test_waterfall_shows_what_completeness_misses(saved: Saved) -> None:
    """Negative control: attributions that do not add up leave a residual."""
    explanation = saved.explanations["shapley"]
    table = derive.waterfall(replace(explanation, score=explanation.score + 0.5)).where(step="residual")
    assert table.column("mean") == pytest.approx([0.5] * len(SAMPLES))


def test_means_keep_the_sign_of_weights(saved: Saved) -> None:
    """Two events of weight 2 and −1 with values 1 and 3: the mean is (2 − 3) / 1 = −1, and |w| would give 5/3."""
    explanation = saved.explanations["shapley"]
    first = np.flatnonzero(explanation.events.sample == 1)[:2]
    events = replace(explanation.events, weight=explanation.events.weight.copy())
    events.weight[events.sample == 1] = 0
    events.weight[first] = [2.0, -1.0]
    values = explanation.values.copy()
    values[first, 0] = [1.0, 3.0]
    changed = replace(explanation, events=events, values=values)
    row = derive.object_means(changed).where(sample="ttbar", object="b1").dicts()[0]
    assert (row["mean"], row["mean_abs"]) == pytest.approx((-1.0, -1.0))


def test_pair_means_use_events_with_both_objects(saved: Saved) -> None:
    explanation = saved.explanations["shapley"]
    assert explanation.interactions is not None
    events = explanation.events
    row = derive.pair_means(explanation).where(sample="signal", object_1="b1", object_2="j3").dicts()[0]
    chosen = (events.sample == 0) & events.mask[:, 0] & events.mask[:, 2]
    expected = np.average(explanation.interactions[chosen, 0, 2], weights=events.weight[chosen])
    assert row["mean"] == pytest.approx(expected)
    assert row["events"] == chosen.sum() < (events.sample == 0).sum()


def test_rejection_curve_is_the_rejection_of_metrics(saved: Saved) -> None:
    """One sort for all efficiencies gives what the plain function gives, with ties and negative weights."""
    assert saved.scores is not None
    y, weight, score = saved.scores["label"], saved.scores["weight"], saved.scores["score"].round(1)
    efficiencies = np.array([0.1, 0.5, 0.77, 0.9, 1.0])
    values, errors = derive.rejection_curve(y, score, weight, efficiencies)
    expected = [metrics.rejection(y, score, weight, efficiency) for efficiency in efficiencies]
    assert np.transpose([values, errors]) == pytest.approx(np.array(expected))


def test_score_distributions_have_unit_area(saved: Saved) -> None:
    table = derive.score_distributions(saved)
    for sample in SAMPLES:
        part = table.where(sample=sample)
        width = part.array("high") - part.array("low")
        assert (part.array("density") * width).sum() == pytest.approx(1)


def test_rank_correlation_is_that_of_spearman_for_equal_weights() -> None:
    """Oracle: scipy. Negative control: after a shuffle it is compatible with zero (4 standard errors)."""
    rng = np.random.default_rng(3)
    a = rng.integers(0, 50, 400).astype(float)
    b = a**2 + rng.normal(0, 400, 400)
    value, error = derive.rank_correlation(a, b, np.ones(400))
    assert value == pytest.approx(stats.spearmanr(a, b).statistic)
    assert 0 < error < 0.1
    shuffled, error = derive.rank_correlation(a, rng.permutation(b), np.ones(400))
    assert abs(shuffled) < 4 * error


def test_pair_profile_finds_the_planted_peak(saved: Saved) -> None:
    table = derive.pair_profiles(saved.explanations["shapley"]).where(observable="mbb", sample="ttbar")
    top = max(table.dicts(), key=lambda row: row["mean"])
    assert top["low"] <= 120 <= top["high"]


def test_displayed_events_are_what_the_text_says(saved: Saved) -> None:
    explanation = saved.explanations["shapley"]
    events, score = explanation.events, explanation.score
    signal, mistaken, typical = derive.choices(explanation, saved.labels)
    assert score[signal.index] == score[events.y == 1].max()
    assert score[mistaken.index] == score[events.y == 0].max()
    background = events.y == 0
    below = events.weight[background & (score < score[typical.index])].sum()
    total = events.weight[background].sum()
    assert below < total / 2 <= below + events.weight[typical.index]
    assert events.y[typical.index] == 0


def test_difference_within_two_errors_is_no_difference(saved: Saved) -> None:
    def words(difference: float, error: float = 0.002) -> str:
        changed = {**saved.metrics["references"][0], "difference": {"auc": {"value": difference, "error": error}}}
        return str(page.summary(replace(saved, metrics={**saved.metrics, "references": [changed]}))[0][1])

    assert "not distinguishable from trees" in words(0.0039)
    assert "not distinguishable from trees" in words(0.0, 0.0)
    assert "better by 0.0041 ± 0.0020 than trees" in words(0.0041)
    assert "worse by 0.0041 ± 0.0020 than trees" in words(-0.0041)


def page_rows(run: Path, csv: str) -> list[list[str]]:
    """The cells of a table of the page, found by the name of its CSV file."""
    text = (run / "report.html").read_text(encoding="utf-8")
    table = text[text.index(f"<code>tables/{csv}.csv</code>") :]
    rows = re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")], re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows[1:]]


def test_what_null_networks_show_too_stands_beside_every_number(run: Path, saved: Saved) -> None:
    """Bold beyond the null networks, and only there; the nulls themselves in brackets below."""
    probe = page_rows(run, "expert_numbers")[0][3]
    assert probe == "<b>0.400 ± 0.030</b><br><small>(0.10; −0.02)</small>"
    readable = [row[5] for row in page_rows(run, "dictionaries")]
    assert readable == ["0.500 ± 0.050<br><small>(0.35; 0.45)</small>"] * 3  # 0.05 above: one error
    head = page_rows(run, "heads")[0]
    assert head[2] == "<b>2.10</b><br><small>(1.10 … 1.30)</small>"
    assert head[5] == "yes<br><small>(4 of 12)</small>"
    assert head[6] == "−0.20 ± 0.30<br><small>(10.0 … 10.0)</small>"
    assert head[7] == "−4.0 ± 1.0<br><small>(−2.0 … 2.0)</small>"
    assert saved.attention is not None
    lost = tuple(replace(effect, delta_auc=-0.0041) for effect in saved.attention.knock_out)
    table = inside_tables.heads(replace(saved, attention=replace(saved.attention, knock_out=lost)))
    assert (
        "<b>−4.1 ± 1.0</b>"
        in inside_grids.inside_grids(replace(saved, experts=None), {"heads": table})["heads"].rows[0][7]
    )
    assert page_rows(run, "sparsity")[0][2:] == ["80 ± 4 (60 ± 3)", "80 ± 4 (60 ± 3)", "–"]
    assert saved.experts is not None
    poor = replace(saved, experts=replace(saved.experts, probes=[replace(p, null=0.36) for p in saved.experts.probes]))
    tables = {name: getattr(inside_tables, name)(poor) for name in ("expert_numbers", "interventions")}
    assert "<b>" not in inside_grids.inside_grids(poor, tables)["expert_numbers"].rows[0][3]


def test_routing_tables_are_drawn_row_by_row(saved: Saved) -> None:
    """Each row of the figure is that of its label; of 30 mass points 24 are shown, and of no variable without table."""
    assert saved.experts is not None
    tables = {table.by: table for table in saved.experts.tables}
    canvas = figures_experts.routing_by(saved)["layer2"]
    panels = [axes for axes in canvas.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["trained", "untrained"]
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    assert len(labels) == 4 + len(SLOTS) + len(SAMPLES) + 2 + 24
    for name, label, row in (("process", "single top", 2), ("score", "≥ −1.2", 1), ("mass point", "150, 0 GeV", 0)):
        for axes, field in zip(panels, ("gates", "null"), strict=True):
            drawn = np.asarray(axes.images[0].get_array())[labels.index(label)]
            np.testing.assert_array_equal(drawn, getattr(tables[name], field)[1][row])
    few = replace(saved, experts=replace(saved.experts, tables=[tables["type"]]))
    assert figures_experts.routing_by(few) == {}


def test_links_below_their_null_are_not_findings(saved: Saved) -> None:
    weak = tuple(replace(link, strength=0.5 * link.null) for link in saved.links)
    assert "no observable more than a shuffled one" in page.summary(replace(saved, links=weak))[1][1]


def test_summary_lines_are_plain_text(run: Path) -> None:
    lines = report.summary_lines(run)
    assert [line.split(":")[0] for line in lines] == [
        "Separation",
        "Attributions follow",
        "Completeness",
        "Experts",
        "Files",
    ]
    assert "m_bb most: inside a process the mean attribution of b_1, b_2" in lines[1]
    assert not re.search(r"[<>&$\\]", "".join(lines))


# Any run ----------------------------------------------------------------------------------------------------------


def test_any_number_of_samples_slots_layers_heads_and_experts(saved: Saved, tmp_path: Path) -> None:
    """Four samples, the seven nodes of arXiv:2501.03432, one layer, eight heads, eight experts."""
    rng = np.random.default_rng(5)
    samples, slots = ("wh_200", "ttbar", "singletop", "wjets"), ("j1", "j2", "j3", "b1", "b2", "lepton", "met")
    shapley = make_shapley(make_events(300, rng, samples, slots), rng)
    other = replace(
        saved,
        run=tmp_path,
        dataset=make_dataset(samples, slots),
        explanations={"shapley": shapley, "integrated_gradients": make_gradients(shapley, rng)},
        responses={"mbb": make_response(rng, samples), "mt": replace(make_response(rng, samples), observable="mt")},
        attention=make_attention(rng, shapley.events, layers=1, heads=8),
        experts=make_experts(rng, samples, layers=1, experts=8),
        representation=make_representation(rng, layers=1),
        edges={"edge_knockout": make_others(shapley, rng)["edge_knockout"]},
        influences={"tracin": make_influence(shapley.events, rng)},
    )
    report.figures.write_tables(other)
    with style.style():
        drawn = {name: figure.draw(other) for name, figure in report.FIGURES.items()}
    assert list(drawn["response"]) == ["mbb", "mt"]
    assert list(drawn["attention"]) == list(drawn["routing"]) == ["layer1"]
    assert len(set(style.colors(other).values())) == 4
    assert len({row["object_1"] for row in read_csv(tmp_path / "tables" / "pairs.csv")}) == 6


def test_attention_without_pair_interactions(saved: Saved) -> None:
    with style.style():
        drawn = report.FIGURES["attention"].draw(replace(saved, explanations={}))
    assert list(drawn) == ["layer1", "layer2"]


@pytest.mark.parametrize("name", OBSERVABLES)
def test_every_observable_has_a_label_for_figure_and_page(name: str) -> None:
    assert not re.search(r"[$\\{}_^]", style.to_html(style.observable_label(name)))


def test_table_of_numbers_survives_csv(tmp_path: Path) -> None:
    table = Table(("name", "value"), (("a", 1 / 3), ("b", None), ("c", float("nan")), ("d", np.float64(-1e-9))))
    files.write_text(tmp_path / "table.csv", table.to_csv())
    rows = read_csv(tmp_path / "table.csv")
    assert [row["value"] for row in rows] == [repr(1 / 3), "", "", "-1e-09"]


# Systematic variations ----------------------------------------------------------------------------------------------


def test_variations_are_those_of_metrics_json(run: Path, saved: Saved) -> None:
    rows = read_csv(run / "tables" / "variations.csv")
    assert len(rows) == 2 * (1 + len(SAMPLES) + 2)
    auc = [float(row["difference"]) for row in rows if row["what"] == "auc"]
    assert auc == [one["auc"]["difference"] for one in saved.variations]
    (found,) = [r for r in variations.changes(saved).dicts() if (r["variation"], r["class"]) == ("jes_up", "background")
                and r["signal_efficiency"] is None]  # fmt: skip
    assert found["change"] == pytest.approx(5.0)  # percent, of the sum of both backgrounds
    assert found["error"] == pytest.approx(1.25)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "jet.pt × 1.05" in text
    assert "jet.pt × (1 - 0.04 * tagged); only ttbar" in text


def test_explanation_under_a_variation_is_compared_event_by_event(run: Path, saved: Saved) -> None:
    assert "shapley@jes_up" not in saved.explanations  # it must not be taken for the nominal one
    rows = read_csv(run / "tables" / "varied_objects.csv")
    assert {(row["variation"], row["method"]) for row in rows} == {("jes_up", "shapley")}
    for row in rows:
        assert float(row["change"]) == pytest.approx(0.5 if row["object"] == SLOTS[0] else 0, abs=1e-6)
        assert float(row["error"]) == pytest.approx(0, abs=1e-6)
    assert sum(int(row["events"]) for row in rows) == len(SLOTS) * (600 - 50)


def test_without_variations_the_page_has_no_such_section(bare: Path) -> None:
    report.make_report(bare)
    assert "Systematic variations" not in (bare / "report.html").read_text(encoding="utf-8")


def test_what_was_computed_is_marked_in_the_table_of_files(run: Path, bare: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "Computed by hepx" in text
    assert "met significance" in text
    assert "DL1dv01" in text
    dataset = make_dataset()
    for source in dataset["sources"]:
        del source["tagger"], source["computed"]
    files.write_json(bare / "dataset" / "dataset.json", dataset)
    report.make_report(bare)
    assert "Computed by hepx" not in (bare / "report.html").read_text(encoding="utf-8")
