"""How much the choice of expert tells: mutual information of weighted, soft choices, corrected for finite statistics.

A node chooses its experts with its gates. The plug-in estimate of an entropy from n unweighted choices is too low by
(m − 1) / 2n on average (Miller 1955); for weighted nodes and soft choices the same expansion, H ≈ Ĥ + ½ Σ Var(p̂) / p,
holds with the variance of each share as the nodes show it, and gives Miller's number for unit weights and hard choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
REPLICAS = 100
INTERVAL = 1.96  # standard deviations of a 95 % interval


def mutual_information(joint: Array) -> float:
    """Mutual information in bit of a table of non-negative weights, as it stands.

    >>> mutual_information(np.eye(2))
    1.0
    """
    p = joint / joint.sum()
    independent = p.sum(0, keepdims=True) * p.sum(1, keepdims=True)
    good = p > 0
    return float((p[good] * np.log2(p[good] / independent[good])).sum())


@dataclass(frozen=True)
class Stratum:
    """Nodes of one slot (or all): gates [n, X], the variable's value [n] (0, 1, …), signed weights and events [n]."""

    gates: Array
    value: Array
    weight: Array
    event: Array

    @property
    def table(self) -> Array:
        """What each node adds to the cells of the joint table [n, Z, X]."""
        number = int(self.value.max()) + 1
        return (self.value[:, None] == np.arange(number))[:, :, None] * self.gates[:, None]


def information(strata: Sequence[Stratum]) -> float:
    """I(expert; value | stratum) in bit, corrected; may be a little below 0 where there is none."""
    total = sum(stratum.weight.sum() for stratum in strata)
    return float(sum(stratum.weight.sum() / total * _corrected(stratum) for stratum in strata))


def _corrected(stratum: Stratum) -> float:
    table, weight = stratum.table, stratum.weight
    marginals = (table.sum(1), table.sum(2), table.reshape(len(table), -1))
    experts, values, both = (_entropy(part, weight) for part in marginals)
    return experts + values - both


def _entropy(choices: Array, weight: Array) -> float:
    """Corrected entropy in bit of soft choices [n, m]; a share of negative total weight counts as zero."""
    total = weight.sum()
    share = np.maximum(weight @ choices / total, 0.0)
    share = share / share.sum()
    square = weight**2
    variance = square @ choices**2 - 2 * share * (square @ choices) + share**2 * square.sum()
    good = share > 0
    plain = -(share[good] * np.log2(share[good])).sum()
    return float(plain + 0.5 * (variance[good] / share[good]).sum() / total**2 / np.log(2))


def replicas(strata: Sequence[Stratum], num_events: int, seed: int) -> Array:
    """Plug-in information [R] of Poisson-bootstrap replicas of the events; the same seed, the same events.

    Their spread is the statistical error; their mean is too high, because a replica repeats events.
    """
    counts = np.random.default_rng([seed, 3]).poisson(1.0, (REPLICAS, num_events)).astype(np.float32)
    found, total = np.zeros(REPLICAS), np.zeros(REPLICAS)
    for stratum in strata:
        table = stratum.table.astype(np.float32)
        drawn = counts[:, stratum.event] * stratum.weight.astype(np.float32)
        joint = (drawn @ table.reshape(len(table), -1)).clip(min=0).reshape(-1, *table.shape[1:]).astype(np.float64)
        weight = joint.sum((1, 2))
        found += weight * _plug_in(joint)
        total += weight
    return found / np.maximum(total, 1e-300)


def _plug_in(joint: Array) -> Array:
    """Mutual information in bit of each table [R, Z, X]; 0 for an empty one."""
    p = joint / np.maximum(joint.sum((1, 2), keepdims=True), 1e-300)

    def minus_entropy(part: Array) -> Array:
        return (part * np.log2(np.where(part > 0, part, 1.0))).sum(1)

    return minus_entropy(p.reshape(len(p), -1)) - minus_entropy(p.sum(1)) - minus_entropy(p.sum(2))
