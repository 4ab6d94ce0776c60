"""Linear probes: what can a linear function read off the states? On events it was not fitted on, beside its control.

A probe that also predicts a random target says something about its own capacity only (control tasks, arXiv:1909.03368),
and one that reads as much off an untrained network says that the inputs held it already.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from hepx.graph import GraphBatch

Array = npt.NDArray[Any]
RIDGE = 1e-3  # of the mean variance of a state: enough to solve, too little to bias
CONTROLS = 5  # permuted targets
REPLICAS = 50
FEWEST = 100  # nodes on either side below which a probe says nothing


@dataclass(frozen=True)
class Score:
    """R² on held-out events, its bootstrap error, and the mean R² of the control tasks."""

    value: float
    error: float
    control: float


def halves(graphs: GraphBatch, seed: int) -> Array:
    """Mask [B]: the random half of the events that probes are fitted on."""
    return np.random.default_rng([seed, 7]).random(len(graphs)) < 0.5


def targets(graphs: GraphBatch) -> dict[str, Array]:
    """Observable -> what a probe predicts [B]: the observable, its logarithm where the unit is GeV; NaN if undefined.

    Observables of one value only are left out.
    """
    layout, found = graphs.layout, {}
    for i, name in enumerate(layout.observables):
        values = graphs.observables[:, i].double().numpy()
        if layout.observable_units[i] == "GeV":
            values = np.log(np.maximum(np.where(np.isfinite(values), values, np.nan), 1.0))
        known = values[np.isfinite(values)]
        if len(known) and known.min() < known.max():
            found[name] = values
    return found


def quantile_bins(values: Array, weight: Array, number: int = 4) -> tuple[Array, list[str]]:
    """Bin of each value [B] (−1: not finite) in `number` bins of equal weight ≥ 0, and how the bins are called; equal
    edges (whole numbers) are one."""
    known = np.isfinite(values)
    if not known.any():
        return np.full(len(values), -1), []
    order = np.flatnonzero(known)[np.argsort(values[known], kind="stable")]
    running = np.cumsum(weight[order])
    at = np.searchsorted(running, running[-1] * np.arange(1, number) / number).clip(max=len(order) - 1)
    edges = np.unique(values[order][at])
    edges = edges[edges > values[order[0]]]
    limits = [f"< {edges[0]:.4g}"] if len(edges) else []
    limits += [f"{low:.4g} – {high:.4g}" for low, high in pairwise(edges)]
    limits += [f"≥ {edges[-1]:.4g}"] if len(edges) else []
    return np.where(known, np.searchsorted(edges, values, side="right"), -1), limits


def solve(states: Array, wanted: Array, weight: Array) -> tuple[Array, Array]:
    """Ridge regression of columns [n, V] on states [n, D], weighted with |w|: coefficients [D, V], constants [V]."""
    w = np.abs(weight) / np.abs(weight).sum()
    mean, constant = w @ states, w @ wanted
    centred = (states - mean) * np.sqrt(w)[:, None]
    gram = centred.T @ centred
    ridge = RIDGE * np.trace(gram) / len(gram) + 1e-12
    cross = centred.T @ ((wanted - constant) * np.sqrt(w)[:, None])
    coefficients = np.linalg.solve(gram + ridge * np.eye(len(gram)), cross)
    return coefficients, constant - mean @ coefficients


def explained(wanted: Array, predicted: Array, weight: Array) -> Array:
    """R² of columns [n, V] for each row of signed weights [R, n]: 1 − Σw(t−p)² / Σw(t−t̄)² [R, V]; NaN where the
    weights cancel."""
    total = weight.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = weight @ wanted / total
        spread = weight @ wanted**2 - total * mean**2
        return np.where(spread > 0, 1 - weight @ (wanted - predicted) ** 2 / spread, np.nan)


def probe(
    states: Array, wanted: dict[str, Array], weight: Array, fitted: Array, event: Array, seed: int
) -> dict[str, Score]:
    """Probe every target [n] on states [n, D]: fitted on the rows in `fitted`, judged on the others.

    weight [n]: signed; event [n]: the event each row belongs to, so that the rows of one event are drawn together.
    Targets with too few finite rows are left out.
    """
    rng = np.random.default_rng([seed, 11])
    counts = rng.poisson(1.0, (REPLICAS, int(event.max()) + 1)) if len(event) else np.zeros((REPLICAS, 1))
    found: dict[str, Score] = {}
    for known, names in _by_known(wanted):
        train, test = known & fitted, known & ~fitted
        if min(train.sum(), test.sum()) < FEWEST or weight[test].sum() <= 0:
            continue
        columns = np.stack([wanted[name] for name in names], 1)
        permuted = [columns[train][rng.permutation(int(train.sum()))] for _ in range(CONTROLS)]
        coefficients, constant = solve(states[train], np.concatenate([columns[train], *permuted], 1), weight[train])
        predicted = states[test] @ coefficients + constant
        shown, w = columns[test], weight[test]
        value = explained(shown, predicted[:, : len(names)], w[None])[0]
        drawn = explained(shown, predicted[:, : len(names)], w * counts[:, event[test]])
        drawn[:, ~np.isfinite(value)] = 0.0  # a constant target: it has no R², and is left out below
        spread = np.nanstd(drawn, axis=0)
        control = np.mean(
            [
                explained(shown[rng.permutation(len(shown))], part, w[None])[0]
                for part in np.split(predicted[:, len(names) :], CONTROLS, axis=1)
            ],
            axis=0,
        )
        for name, *numbers in zip(names, value, spread, control, strict=True):
            if np.isfinite(numbers).all():
                found[name] = Score(*(float(number) for number in numbers))
    return found


def _by_known(wanted: dict[str, Array]) -> list[tuple[Array, list[str]]]:
    """Targets that are known on the same rows can be solved together."""
    groups: dict[bytes, tuple[Array, list[str]]] = {}
    for name, values in wanted.items():
        known = np.isfinite(values)
        groups.setdefault(known.tobytes(), (known, []))[1].append(name)
    return list(groups.values())
