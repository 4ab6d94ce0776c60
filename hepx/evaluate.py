"""How good the classifier is: weighted, with errors, per process and mass point, beside gradient-boosted trees."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from sklearn.ensemble import HistGradientBoostingClassifier

from hepx import files, metrics
from hepx.config import Settings
from hepx.graph import DEFINED, RAW_FEATURES, GraphBatch
from hepx.kinematics import OBSERVABLES
from hepx.models import Model, predict
from hepx.train import training_weights

Array = npt.NDArray[Any]
REPLICAS = 200
SIGNAL = 1  # the class whose log-odds are the score; 0 is background
HIGH_LEVEL = tuple(name for name in OBSERVABLES if name not in ("n_bjet", "n_lepton"))


class EvaluateSettings(Settings):
    """Which working points, and whether the reference trees are trained beside the model."""

    signal_efficiencies: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.3, 0.5, 0.7, 0.9)
    trees: bool = True


def evaluate(
    model: Model, train: GraphBatch, test: GraphBatch, settings: EvaluateSettings, seed: int
) -> tuple[dict[str, Any], pa.Table]:
    """Metrics of the test events and a table with their scores; nothing is fitted on test events."""
    score = predict(model, test, SIGNAL).double().numpy()
    y = (test.y == SIGNAL).numpy().astype(np.int64)
    weight = test.weight.numpy()
    replicas = metrics.bootstrap_auc(y, score, weight, REPLICAS, seed)
    references = _trees(train, test, seed) if settings.trees else {}
    decided = metrics.confusion(y, score > 0, weight)
    result = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "events": len(test),
        "auc": _auc(y, score, weight, seed),
        "auc_unweighted": _auc(y, score, np.ones(len(y)), seed),
        **asdict(decided),
        "rejection": [_rejection(y, score, weight, efficiency) for efficiency in settings.signal_efficiencies],
        "per_background": _per_background(test, y, score, weight, seed),
        "per_mass_point": _per_mass_point(test, y, score, weight, seed),
        "references": [
            {
                "name": name,
                "column": column,
                **{key.replace("value", "auc"): value for key, value in _auc(y, other, weight, seed).items()},
                "difference": metrics.auc(y, score, weight) - metrics.auc(y, other, weight),
                "difference_error": float((replicas - metrics.bootstrap_auc(y, other, weight, REPLICAS, seed)).std()),
            }
            for column, (name, other) in references.items()
        ],
    }
    return result, _score_table(test, score, {column: other for column, (_, other) in references.items()})


def _auc(y: Array, score: Array, weight: Array, seed: int) -> dict[str, float]:
    error = metrics.bootstrap_auc(y, score, weight, REPLICAS, seed).std()
    return {"value": metrics.auc(y, score, weight), "error": float(error)}


def _rejection(y: Array, score: Array, weight: Array, efficiency: float) -> dict[str, float | None]:
    value, error = metrics.rejection(y, score, weight, efficiency)
    finite = np.isfinite(value)
    return {"signal_efficiency": efficiency, "value": value if finite else None, "error": error if finite else None}


def _per_background(graphs: GraphBatch, y: Array, score: Array, weight: Array, seed: int) -> list[dict[str, Any]]:
    """AUC of all signal against one background sample at a time."""
    sample = graphs.sample.numpy()
    rows = []
    for number, name in enumerate(graphs.layout.samples):
        chosen = (y == 1) | (sample == number)
        only = sample == number
        if (y[only] == 0).all() and weight[only].sum() > 0:
            auc = _auc(y[chosen], score[chosen], weight[chosen], seed)
            rows.append(
                {
                    "sample": name,
                    "auc": auc["value"],
                    "error": auc["error"],
                    "events": int(only.sum()),
                    "yield": float(weight[only].sum()),
                }
            )
    return rows


def _per_mass_point(graphs: GraphBatch, y: Array, score: Array, weight: Array, seed: int) -> list[dict[str, Any]]:
    """AUC of one signal mass point at a time against all background; empty where the files hold no mass point."""
    if not {"mass_chargino", "mass_lsp"} <= set(graphs.layout.observables):
        return []
    points = np.stack([graphs.observable("mass_chargino").numpy(), graphs.observable("mass_lsp").numpy()], 1)
    rows = []
    for point in np.unique(points[(y == 1) & np.isfinite(points).all(1)], axis=0):
        only = (y == 1) & (points == point).all(1)
        chosen = only | (y == 0)
        if weight[only].sum() > 0:
            auc = _auc(y[chosen], score[chosen], weight[chosen], seed)
            row = {"mass_chargino": float(point[0]), "mass_lsp": float(point[1])}
            rows.append({**row, "auc": auc["value"], "error": auc["error"], "events": int(only.sum())})
    return rows


def _trees(train: GraphBatch, test: GraphBatch, seed: int) -> dict[str, tuple[str, Array]]:
    """Scores of gradient-boosted trees on the observables and on the flat node table: column -> (name, scores).

    The trees cannot take negative weights: they are fitted with |w|. Columns that no training event fills are left out.
    """
    weight = training_weights(train).abs().numpy()
    inputs = {"trees_observables": _observable_table, "trees_nodes": _node_table}
    names = {"trees_observables": "trees on {} observables", "trees_nodes": "trees on the node table"}
    scores = {}
    for column, table in inputs.items():
        values = table(train)
        known = ~np.isnan(values).all(0)
        trees = HistGradientBoostingClassifier(random_state=seed, early_stopping=True)
        trees.fit(values[:, known], (train.y == SIGNAL).numpy(), sample_weight=weight)
        scores[column] = (names[column].format(known.sum()), trees.decision_function(table(test)[:, known]))
    return scores


def _observable_table(graphs: GraphBatch) -> Array:
    return np.stack([graphs.observable(name).numpy() for name in HIGH_LEVEL], 1)


def _node_table(graphs: GraphBatch) -> Array:
    """Raw features of all nodes side by side, as far as their type defines them; absent objects are missing values."""
    table = np.where(graphs.mask.numpy()[..., None], graphs.x.numpy(), np.nan)
    defined = np.array([[name in DEFINED[kind] for name in RAW_FEATURES] for kind in graphs.layout.types])
    return table[:, defined]


def _score_table(graphs: GraphBatch, score: Array, references: dict[str, Array]) -> pa.Table:
    layout = graphs.layout
    columns: dict[str, Any] = {
        "event_id": graphs.event_id.numpy(),
        "sample": np.array(layout.samples)[graphs.sample.numpy()],
        "label": graphs.y.numpy(),
        "weight": graphs.weight.numpy(),
        "score": score,
        "probability": 1 / (1 + np.exp(-score)),
        **references,
    }
    for i, name in enumerate(layout.observables):
        columns[name] = graphs.observables[:, i].numpy()
    return pa.table(columns)


def write_scores(path: Path, table: pa.Table) -> None:
    """Write the score table atomically."""
    with files.atomic(path) as temporary:
        pq.write_table(table, temporary)
