"""Do other seeds find the same division of labour? The numbers of experts mean nothing across trainings, so choices are
compared up to a renaming: adjusted Rand index and mutual information need none, the agreement uses the best one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from hepx.experts.information import mutual_information
from hepx.graph import GraphBatch
from hepx.interventions import balanced_weight
from hepx.results_network import Stability

Array = npt.NDArray[Any]


def stability(
    gates: Sequence[Float[Tensor, "B L N X"]], nulls: Sequence[Float[Tensor, "B L N X"]], graphs: GraphBatch
) -> list[Stability]:
    """Per layer the mean over all pairs of runs, its spread, and the same for their untrained networks; first expert of
    every node, weighted with |w|, every process alike."""
    weight = np.abs(balanced_weight(graphs))
    event, slot = np.nonzero(graphs.mask.numpy())
    w, found = weight[event], []
    for layer in range(gates[0].shape[1]):
        chosen, untrained = (
            [one[:, layer].argmax(-1).numpy()[event, slot] for one in group] for group in (gates, nulls)
        )
        pairs, nulls_of = (
            np.ma.masked_invalid([_compare(a, b, slot, w) for a, b in combinations(group, 2)])
            for group in (chosen, untrained)
        )
        (ari, within, nmi, same), null = pairs.mean(0).tolist(), nulls_of.mean(0).tolist()
        spread = float(pairs[:, 0].std())
        found.append(Stability(layer, len(pairs), ari, spread, within, nmi, same, null[0], null[1]))
    return found


def _compare(a: Array, b: Array, slot: Array, weight: Array) -> tuple[float, float, float, float]:
    """Adjusted Rand index, its mean inside the slots where one of the two varies (NaN: none does), normalised mutual
    information, matched agreement."""
    table, square = contingency(a, b, weight)
    inside = [
        (weight[here].sum(), adjusted_rand(*contingency(a[here], b[here], weight[here])))
        for here in (slot == s for s in np.unique(slot))
        if np.ptp(a[here]) or np.ptp(b[here])
    ]
    within = float(np.average([v for _, v in inside], weights=[w for w, _ in inside])) if inside else float("nan")
    return adjusted_rand(table, square), within, normalised_information(table), matched_agreement(table)


def contingency(a: Array, b: Array, weight: Array) -> tuple[Array, float]:
    """Summed weight ≥ 0 of each pair of choices [X, X], and Σw²."""
    number = int(max(a.max(), b.max())) + 1
    table = np.bincount(a * number + b, weight, number**2).reshape(number, number)
    return table, float((weight**2).sum())


def adjusted_rand(table: Array, square: float) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985) with pairs of nodes weighted with w w′; 1: the same partition, 0:
    chance. Two partitions into one part each agree: 1."""
    total = table.sum() ** 2 - square

    def pairs(sums: Array) -> float:
        return float((sums**2).sum() - square)

    rows, columns = pairs(table.sum(1)), pairs(table.sum(0))
    expected, largest = rows * columns / total, (rows + columns) / 2
    return (pairs(table) - expected) / (largest - expected) if largest > expected else 1.0


def normalised_information(table: Array) -> float:
    """Mutual information over the mean of the two entropies; 1 where both are 0."""

    def entropy(p: Array) -> float:
        p = p[p > 0] / p.sum()
        return float(-(p * np.log2(p)).sum())

    mean = (entropy(table.sum(0)) + entropy(table.sum(1))) / 2
    return mutual_information(table) / mean if mean > 0 else 1.0


def matched_agreement(table: Array) -> float:
    """Share of the nodes that go to the same expert under the best renaming (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment  # slow

    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())
