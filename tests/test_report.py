"""The report draws what was saved: the numbers are those of the files, and what is missing is said, not guessed."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hepx import files, metrics, report
from hepx.errors import ResultError
from hepx.kinematics import OBSERVABLES
from hepx.report import derive, style
from hepx.report.saved import Saved, load_saved
from hepx.report.tables import Table
from hepx.results import (
    AttentionMap,
    Change,
    EventTable,
    ExpertReport,
    Explanation,
    ObservableLink,
    Provenance,
    ResponseCurve,
)

SLOTS, TYPES = ("b1", "b2", "j3", "lepton", "met"), ("bjet", "bjet", "jet", "lepton", "met")
SAMPLES, LABELS = ("signal", "ttbar", "singletop"), (1, 0, 0)
FEATURES = {"pt": "GeV", "eta": "", "phi": "rad", "mass": "GeV", "btag": "", "met_significance": ""}
SHOWN = ("mbb", "mt", "mct", "met", "delta_r_bb")
PROVENANCE = Provenance(
    "shapley", {"baseline": "background", "draws": 16}, "c0ffee", "badcafe", "f00d", 42, "0.1.0", "abc", "cpu", "2025"
)


# A synthetic run ----------------------------------------------------------------------------------------------------


def make_events(number: int, rng: np.random.Generator) -> EventTable:
    """Events with plausible momenta: a peak in m_bb for signal, an edge in m_T for background, 10 % negative weights."""
    sample = rng.choice(3, number, p=[0.4, 0.4, 0.2])
    signal = sample == 0
    mbb = np.where(signal, rng.normal(118, 18, number), rng.gamma(3.0, 45, number) + 30)
    mt = np.where(signal, rng.gamma(4, 55, number), rng.gamma(3, 30, number))
    shown = [mbb, mt, rng.gamma(5, 35, number), rng.gamma(4, 30, number) + 100, rng.uniform(0.5, 4, number)]
    mask = np.ones((number, 5), dtype=bool)
    mask[:, 2] = rng.random(number) < 0.45
    x = np.zeros((number, 5, 6))
    x[..., 0] = rng.gamma(3, 35, (number, 5)) + 30
    x[..., 1], x[..., 2] = rng.normal(0, 1.1, (number, 5)), rng.uniform(-np.pi, np.pi, (number, 5))
    x[:, :3, 3], x[:, :3, 4] = rng.gamma(3, 4, (number, 3)), rng.integers(1, 6, (number, 3))
    x[:, 4, 1], x[:, 4, 5] = 0, rng.gamma(5, 2, number)
    weight = np.where(signal, 0.02, 1.1) * np.where(rng.random(number) < 0.1, -1, 1) * rng.uniform(0.5, 1.5, number)
    parent = np.where(signal[:, None], 25, np.array([6, -6, 24, 0, 0])) * np.array([1, 1, 1, 0, 0])
    return EventTable(
        x=x * mask[..., None],
        mask=mask,
        node_type=np.tile([1, 1, 0, 2, 3], (number, 1)),
        object_index=np.where(mask, np.arange(5), -1),
        truth_parent=parent * mask,
        y=signal.astype(np.int64),
        sample=sample,
        weight=weight,
        event_id=np.arange(number) + 10**12,
        observables=np.stack(shown, 1),
        slots=SLOTS,
        types=TYPES,
        features=tuple(FEATURES),
        feature_units=tuple(FEATURES.values()),
        observable_names=SHOWN,
        observable_units=("GeV", "GeV", "GeV", "GeV", ""),
        sample_names=SAMPLES,
        sample_labels=LABELS,
    )


def make_shapley(events: EventTable, rng: np.random.Generator) -> Explanation:
    """Pair interactions that follow m_bb and m_T, main effects, and a score that is their sum."""
    number = len(events)
    interactions = rng.normal(0, 0.05, (number, 5, 5))
    interactions[:, 0, 1] = 1.6 * np.exp(-(((events.observable("mbb") - 120) / 30) ** 2)) - 0.6
    interactions[:, 3, 4] = np.tanh((events.observable("mt") - 120) / 60)
    interactions = np.triu(interactions, 1)
    interactions = (interactions + interactions.transpose(0, 2, 1)) * events.mask[:, None] * events.mask[:, :, None]
    values = interactions.sum(2) / 2 + rng.normal([0.1, 0.05, -0.1, 0.0, 0.3], 0.2, (number, 5)) * events.mask
    baseline = rng.normal(-1.2, 0.1, number)
    return Explanation(
        events=events,
        values=values,
        error=np.full_like(values, 0.06) * events.mask,
        score=baseline + values.sum(1),
        baseline_score=baseline,
        completeness_error=np.full(number, 1e-7),
        interactions=interactions,
        interactions_error=np.full_like(interactions, 0.05),
        provenance=PROVENANCE,
    )


def make_gradients(shapley: Explanation, rng: np.random.Generator) -> Explanation:
    """The object attributions shared out over the features the object has."""
    shares = rng.dirichlet(np.ones(6), len(shapley.events))[:, None] * (shapley.events.x != 0).any(0)
    values = shapley.values[..., None] * shares / np.maximum(shares.sum(2, keepdims=True), 1e-9)
    provenance = replace(PROVENANCE, method="integrated_gradients", settings={"steps": 64, "routing": "fixed"})
    gap = np.abs(rng.normal(0, 0.01, len(values)))
    changes: dict[str, Any] = {"values": values, "error": np.abs(values) * 0.1, "completeness_error": gap}
    return replace(shapley, **changes, interactions=None, interactions_error=None, provenance=provenance)


def make_response(rng: np.random.Generator) -> ResponseCurve:
    """A peak at the Higgs mass, points of observed events with holes, a flat null."""
    points = np.linspace(40, 240, 41)
    mean = np.stack([3 * np.exp(-(((points - 120) / 28) ** 2)) + start for start in (-0.5, -2.0, -1.6)])
    observed = mean + rng.normal(0.2, 0.15, mean.shape)
    observed[2, :4] = np.nan
    null = np.full_like(mean, 0.03) + 0.0004 * points
    reached = np.clip(1.2 - np.abs(points - 120) / 150, 0, 1) * np.ones((3, 1))
    errors = np.full_like(mean, 0.08)
    return ResponseCurve(
        "mbb", "GeV", "b2", points, mean, errors, reached, observed, 1.5 * errors, null, SAMPLES, PROVENANCE
    )


def make_attention(rng: np.random.Generator, layers: int = 2, heads: int = 4) -> AttentionMap:
    """Rows that add up to one; the trained heads look at the partner of the pair."""
    shape = (3, layers, heads, 5, 5)
    trained, null = rng.gamma(1.0, 1.0, shape), rng.gamma(30, 1.0, shape)
    trained[..., 0, 1] += 3
    trained[..., 3, 4] += 3
    trained, null = (weights / weights.sum(-1, keepdims=True) for weights in (trained, null))
    return AttentionMap(trained, trained * 0.02, null, np.array([900, 900, 400]), SLOTS, SAMPLES, PROVENANCE)


def make_experts(rng: np.random.Generator, layers: int = 2, experts: int = 6) -> ExpertReport:
    """Sharp trained routing, soft null, one expert that matters."""
    trained, null = (
        rng.dirichlet(np.ones(experts) * 0.4, (3, layers, 4)),
        rng.dirichlet(np.ones(experts) * 4, (3, layers, 4)),
    )
    knock_out = [Change(i, e, float(rng.normal(-0.002, 0.002)), 0.0012) for i in range(layers) for e in range(experts)]
    knock_out[1] = Change(0, 1, -0.031, 0.002)
    return ExpertReport(
        routing=trained.tolist(),
        routing_null=null.tolist(),
        load=np.full((layers, experts), 1 / experts).tolist(),
        information_type=[1.2, 1.0][:layers],
        information_type_null=[0.9, 0.5][:layers],
        information_process=[0.004, 0.09][:layers],
        information_process_null=[0.003, 0.002][:layers],
        knock_out=knock_out,
        swap=[Change(i, -1, -0.05 * (i + 1), 0.004) for i in range(layers)],
        distinct_experts=[experts] * layers,
        node_types=["jet", "bjet", "lepton", "met"],
        sample_names=list(SAMPLES),
        verdict="the experts of layer 1 and 2 differ in function (swapping them costs AUC)",
        provenance=replace(PROVENANCE, method="experts", settings={}),
    )


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


def make_metrics(table: pa.Table) -> dict[str, Any]:
    """metrics.json of these scores."""
    y, weight = table["label"].to_numpy(), table["weight"].to_numpy()
    aucs = {n: metrics.auc(y, table[n].to_numpy(), weight) for n in ("score", "trees_observables", "trees_nodes")}
    references = [
        {"name": name, "column": column, "auc": aucs[column], "error": 0.004}
        | {"difference": aucs["score"] - aucs[column], "difference_error": 0.0021}
        for name, column in (
            ("trees on 15 observables", "trees_observables"),
            ("trees on the node table", "trees_nodes"),
        )
    ]
    rejections = [(0.3, 812.0, 160.0), (0.5, 120.3, 11.0), (0.7, 31.2, 1.4), (0.9, None, None)]
    return {
        "model": "moe_graph_transformer",
        "parameters": 103786,
        "seed": 42,
        "split": "test",
        "events": len(table),
        "luminosity": 139.0,
        "auc": {"value": aucs["score"], "error": 0.0031},
        "auc_unweighted": {"value": 0.95, "error": 0.003},
        **{"accuracy": 0.8871, "precision": 0.8912, "recall": 0.882, "f1": 0.8866},
        "rejection": [{"signal_efficiency": s, "value": v, "error": e} for s, v, e in rejections],
        "per_background": [
            {"sample": name, "auc": 0.95, "error": 0.004, "events": 900, "yield": 812.4} for name in SAMPLES[1:]
        ],
        "per_mass_point": [
            {"mass_chargino": m, "mass_lsp": 50.0, "auc": 0.9, "error": 0.01, "events": 200} for m in (200.0, 400.0)
        ],
        "references": references,
    }


def make_dataset() -> dict[str, Any]:
    """dataset.json."""
    steps = (("read", 8000, 52034.2), ("n_lepton == 1", 6120, 40120.9), ("met > 100", 3011, 9021.4))
    flow = [{"name": name, "events": n, "weighted": w, "error": w / n**0.5} for name, n, w in steps]
    return {
        "layout": {
            "slots": SLOTS,
            "types": TYPES,
            "observables": SHOWN,
            "observable_units": ["GeV"] * 4 + [""],
            "samples": SAMPLES,
            "labels": LABELS,
        },
        "luminosity": 139.0,
        "split": [0.6, 0.2, 0.2],
        "sources": [
            {"path": f"data/{n}.root", "tree": "analysis", "num_events": 8000, "uuid": f"1f-{n}", "size": 2100000}
            for n in SAMPLES
        ],
        "shards": [],
        "cutflow": {name: flow for name in SAMPLES},
    }


def write_run(run: Path) -> Path:
    """A run folder as the stages leave it."""
    rng = np.random.default_rng(7)
    shapley = make_shapley(make_events(600, rng), rng)
    shapley.save(run / "explain" / "shapley.npz")
    make_gradients(shapley, rng).save(run / "explain" / "integrated_gradients.npz")
    make_response(rng).save(run / "explain" / "response_mbb.npz")
    files.write_json(run / "explain" / "links.json", make_links(shapley))
    make_attention(rng).save(run / "attention.npz")
    make_experts(rng).save(run / "experts.json")
    table = make_scores(rng)
    pq.write_table(table, run / "scores.parquet")
    files.write_json(run / "metrics.json", make_metrics(table))
    files.write_json(run / "dataset" / "dataset.json", make_dataset())
    files.write_json(run / "provenance.json", {"config": "c0ffee", "seed": 42, "packages": {"numpy": "2"}})
    files.write_text(run / "config.yaml", "name: synthetic\nseed: 42\n")
    header = "epoch,loss,balance_loss,z_loss,validation_loss,validation_auc,lr"
    lines = [f"{e},{0.6 / e**0.3},{1 + 0.4 / e},0.1,{0.62 / e**0.28},{0.95 - 0.2 / e},0.001" for e in range(1, 21)]
    files.write_text(run / "history.csv", "\n".join([header, *lines]) + "\n")
    return run
