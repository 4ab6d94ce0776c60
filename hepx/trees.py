"""Gradient-boosted trees on tables of numbers, and their exact Shapley values.

A leaf is a box: its value is what the tree answers where every column lies in the interval of the leaf. Replace some
columns of an event by those of a donor: the leaf is reached if none of the columns that only the event breaks is the
event's, and none that only the donor breaks is the donor's; a column that both break keeps both out. So the game
of one event, one donor and one leaf has the Shapley values, with a columns that only the donor breaks and b that only
the event breaks, value · (a−1)! b! / (a+b)! for each of the a and −value · a! (b−1)! / (a+b)! for each of the b. Their
sum over leaves, trees and donors is exact for any number of columns (interventional TreeSHAP; Lundberg et al., Nature
Machine Intelligence 2 (2020) 56, arXiv:1905.04610).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import factorial
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MOST_COLUMNS = 32  # as many as an integer has bits
PATIENCE = 20


@dataclass(frozen=True)
class Table:
    """Inputs x [B, V], NaN where missing; what is to be predicted y [B]; weight [B], not negative, None: all alike."""

    x: Array
    y: Array
    weight: Array | None

    def __getitem__(self, rows: Array) -> Table:
        """Some of the events, by mask or place."""
        return Table(self.x[rows], self.y[rows], None if self.weight is None else self.weight[rows])


@dataclass(frozen=True)
class Trees:
    """Fitted trees; known [V]: the columns that they were given, those that some training event fills."""

    estimator: Any
    known: Array

    def score(self, x: Array) -> Array:
        """Log-odds of class 1, or the predicted number [B], from all columns [B, V]."""
        predict = getattr(self.estimator, "decision_function", self.estimator.predict)
        return np.asarray(predict(x[:, self.known]))

    def staged_score(self, x: Array) -> Iterator[Array]:
        """Log-odds of class 1 [B] after each tree."""
        return iter(self.estimator.staged_decision_function(x[:, self.known]))


def fit(
    train: Table,
    validation: Table,
    seed: int,
    learning_rate: float = 0.05,
    max_trees: int = 2000,
    max_leaves: int = 31,
    patience: int = PATIENCE,
) -> Trees:
    """Trees that tell classes apart (y integer) or predict a number, as many as the validation loss asks for: until it
    has not become better for `patience` trees, which are kept."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor  # slow

    known = np.asarray(~np.isnan(train.x).all(axis=0))
    kind = HistGradientBoostingClassifier if np.issubdtype(train.y.dtype, np.integer) else HistGradientBoostingRegressor
    estimator = kind(
        learning_rate=learning_rate,
        max_iter=max_trees,
        max_leaf_nodes=max_leaves,
        n_iter_no_change=patience,
        early_stopping=True,
        random_state=seed,
    )
    estimator.fit(
        train.x[:, known],
        train.y,
        sample_weight=train.weight,
        X_val=validation.x[:, known],
        y_val=validation.y,
        sample_weight_val=validation.weight,
    )
    return Trees(estimator, known)


def shapley(trees: Trees, x: Array, donors: Array) -> Array:
    """Shapley values [B, K, V] of the columns of x [B, V] for each donor [K, V]; they add up to score − its score.

    Exact, in units of the score. Columns that the trees were not given get 0.
    """
    known = np.flatnonzero(trees.known)
    if len(known) > MOST_COLUMNS:
        raise ValueError(f"{len(known)} columns; at most {MOST_COLUMNS}")
    rows, columns = np.concatenate([x, donors])[:, known], np.arange(len(known), dtype=np.uint32)
    found, (joins, leaves) = np.zeros((len(donors), len(x), len(known))), _shares(len(known))
    for nodes in nodes_of(trees.estimator):
        broken = _broken(nodes, rows)
        mine, theirs = broken[None, : len(x)], broken[len(x) :, None]  # [1, B, leaves], [K, 1, leaves]
        value = nodes["value"][nodes["is_leaf"] == 1] * ((mine & theirs) == 0)
        a, b = np.bitwise_count(theirs), np.bitwise_count(mine)
        bits = ((broken[..., None] >> columns) & 1).astype(np.float64)  # [B + K, leaves, V]
        found += (value * joins[a, b]) @ bits[len(x) :]
        found -= ((value * leaves[a, b]).transpose(1, 0, 2) @ bits[: len(x)]).transpose(1, 0, 2)
    whole = np.zeros((len(x), len(donors), x.shape[1]))
    whole[..., known] = found.transpose(1, 0, 2)
    return whole


def nodes_of(estimator: Any) -> list[Array]:
    """The nodes of every tree as scikit-learn keeps them: a parent stands before its children, values are scaled."""
    return [tree.nodes for trees in estimator._predictors for tree in trees]


def start_of(estimator: Any) -> float:
    """What the trees predict before the first one."""
    return float(np.asarray(estimator._baseline_prediction).item())


def _broken(nodes: Array, rows: Array) -> Array:
    """[R, leaves]: bit v is set where the row breaks a condition on column v on the way to the leaf."""
    state = np.zeros((len(nodes), len(rows)), dtype=np.uint32)
    for number in np.flatnonzero(nodes["is_leaf"] == 0):
        node = nodes[number]
        value, bit = rows[:, node["feature_idx"]], np.uint32(1) << np.uint32(node["feature_idx"])
        left = np.where(np.isnan(value), bool(node["missing_go_to_left"]), value <= node["num_threshold"])
        state[node["left"]] = state[number] | np.where(left, np.uint32(0), bit)
        state[node["right"]] = state[number] | np.where(left, bit, np.uint32(0))
    return state[nodes["is_leaf"] == 1].T


def _shares(most: int) -> tuple[Array, Array]:
    """(a−1)! b! / (a+b)! and a! (b−1)! / (a+b)!, [V + 1, V + 1] each; 0 where there is no such column."""
    joins, leaves = (np.zeros((most + 1, most + 1)) for _ in range(2))
    for a in range(most + 1):
        for b in range(most + 1 - a):
            joins[a, b] = factorial(a - 1) * factorial(b) / factorial(a + b) if a else 0.0
            leaves[a, b] = factorial(a) * factorial(b - 1) / factorial(a + b) if b else 0.0
    return joins, leaves
