"""What attention weights look like: numbers made of the weights alone. None of them says what the score depends on.

Weighted with the signed event weights; where processes are joined, each has the same total weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hepx import metrics
from hepx.graph import GraphBatch
from hepx.models.inputs import pair_kinematics

Array = npt.NDArray[Any]
QUANTITIES = ("delta_r", "delta_phi", "mass", "kt", "mt", "mct")
FEWEST = 50  # events of a process that have the pair: below, a correlation says nothing
LOOKED_AT, OFTEN = 2.0, 0.8  # a sink gets twice its share in four events of five


def process_means(values: Float[Tensor, "B ..."], graphs: GraphBatch) -> tuple[Array, Array]:
    """Weighted mean and standard error √Σw²(v−v̄)² / |Σw| per process [P, …, N, N], over the events that have both
    objects; NaN where they never occur together. values: [B, …, N, N]."""
    parts = [_mean(values, graphs, sample) for sample in range(len(graphs.layout.samples))]
    return np.stack([mean for mean, _ in parts]), np.stack([error for _, error in parts])


def _mean(values: Tensor, graphs: GraphBatch, sample: int) -> tuple[Array, Array]:
    chosen = graphs.sample == sample
    both = (graphs.mask[chosen][:, :, None] & graphs.mask[chosen][:, None, :]).double()
    weight = both * graphs.weight[chosen][:, None, None]
    weight = weight.reshape(len(weight), *[1] * (values.dim() - 3), *weight.shape[1:])
    picked = values[chosen].double()
    total = weight.sum(0)
    mean = (weight * picked).sum(0) / total
    error = (weight**2 * (picked - mean) ** 2).sum(0).sqrt() / total.abs()
    return mean.numpy(), error.numpy()


def rollout(attention: Float[Tensor, "B L H N N"]) -> Float[Tensor, "B L N N"]:
    """Attention through the layers, mean over the heads, half of every node staying where it is (arXiv:2005.00928)."""
    nodes = attention.shape[-1]
    steps = 0.5 * (attention.mean(2) + torch.eye(nodes))
    steps = steps / steps.sum(-1, keepdim=True)
    through = [steps[:, 0]]
    for layer in range(1, steps.shape[1]):
        through.append(steps[:, layer] @ through[-1])
    return torch.stack(through, 1)


def entropy(
    attention: Float[Tensor, "B L H N N"], allowed: Bool[Tensor, "B N N"], weight: Array
) -> tuple[Array, Array]:
    """Mean over objects and events of H / ln n, n the number of objects that one may look at, and its error [L, H].

    0: always one object; 1: all alike. Objects that have no choice (n < 2) do not count.
    """
    number = allowed.sum(-1).double()
    each = torch.special.entr(attention.double()).sum(-1) / number.clamp(min=2).log()[:, None, None]
    free = (number >= 2).double()
    per_event = (each * free[:, None, None]).sum(-1) / free.sum(-1).clamp(min=1)[:, None, None]
    w = torch.from_numpy(weight) * (free.sum(-1) > 0)
    mean = (w[:, None, None] * per_event).sum(0) / w.sum()
    error = (w[:, None, None] ** 2 * (per_event - mean) ** 2).sum(0).sqrt() / w.sum().abs()
    return mean.numpy(), error.numpy()


def slot_share(attention: Float[Tensor, "B L H N N"], allowed: Bool[Tensor, "B N N"], weight: Array) -> Array:
    """Share of the variance of the attention weights that the pair of slots alone explains [L, H]: R² of the mean map.

    1: the map is the same in every event, a lookup table; 0: the slots say nothing.
    """
    w = (torch.from_numpy(weight)[:, None, None] * allowed)[:, None, None]
    values = attention.double()
    total = w.sum(0)
    by_slot = (w * values).sum(0) / torch.where(total > 0, total, 1.0)
    overall = (w * values).sum((0, 3, 4), keepdim=True) / w.sum()
    between = (total * (by_slot - overall[0]) ** 2).sum((-1, -2))
    spread = (w * (values - overall) ** 2).sum((0, 3, 4))
    return (between / spread.clamp(min=1e-12)).clamp(0, 1).numpy()


def pair_quantities(graphs: GraphBatch) -> Float[Tensor, "B N N Q"]:
    """ΔR, |Δφ| (rad), m, kT = min(pt) ΔR, m_T, m_CT (GeV) of every pair; transverse with the missing momentum."""
    pairs = pair_kinematics(graphs.x.double(), graphs.node_type)
    delta_r = pairs.delta_r2.sqrt()
    delta_phi = torch.acos(pairs.cos_phi.clamp(-1, 1))
    roots = [value.clamp(min=0).sqrt() for value in (pairs.mass2, pairs.mt2, pairs.mct2)]
    return torch.stack([delta_r, delta_phi, roots[0], pairs.min_pt * delta_r, roots[1], roots[2]], -1)


def correlations(attention: Float[Tensor, "B L H N N"], graphs: GraphBatch) -> tuple[Array, Array]:
    """Weighted rank correlation of the attention with the pair quantities, inside each slot pair and process, and its
    error 1/√n_eff for no correlation [L, H, Q, N, N]; the processes' mean weighted with n_eff; NaN on the diagonal.

    Never over slots: their means differ, and would dominate (Simpson's paradox).
    """
    num_layers, num_heads, nodes = attention.shape[1:4]
    table = np.full((num_layers * num_heads, len(QUANTITIES), nodes, nodes), np.nan)
    error = np.full_like(table, np.nan)
    quantities = pair_quantities(graphs).numpy()
    flat = attention.flatten(1, 2).numpy()
    mask, sample, weight = graphs.mask.numpy(), graphs.sample.numpy(), graphs.weight.numpy()
    for i, j in zip(*np.nonzero(~np.eye(nodes, dtype=bool)), strict=True):
        total, summed = 0.0, np.zeros(table.shape[:2])
        for process in np.unique(sample):
            chosen = mask[:, i] & mask[:, j] & (sample == process)
            w = weight[chosen]
            if chosen.sum() < FEWEST or w.sum() <= 0:
                continue
            n_eff = w.sum() ** 2 / (w**2).sum()
            summed += n_eff * _rank_correlation(flat[chosen][:, :, i, j], quantities[chosen, i, j], w)
            total += n_eff
        if total > 0:
            table[:, :, i, j], error[:, :, i, j] = summed / total, 1 / np.sqrt(total)
    shape = (num_layers, num_heads, len(QUANTITIES), nodes, nodes)
    return table.reshape(shape), error.reshape(shape)


def _rank_correlation(a: Array, b: Array, weight: Array) -> Array:
    """Weighted correlation [m, n] of the ranks of columns [B, m] with the ranks of columns [B, n]; 0 for a constant."""
    w = weight / weight.sum()
    ranks = [metrics.ranks(values) for values in (a, b)]
    ranks = [values - w @ values for values in ranks]
    covariance = (ranks[0] * w[:, None]).T @ ranks[1]
    spread = [np.sqrt(np.maximum(w @ values**2, 0.0)) for values in ranks]
    product = np.outer(*spread)
    return np.divide(covariance, product, out=np.zeros_like(covariance), where=product > 1e-9)


@dataclass(frozen=True)
class Column:
    """The slot a head looks at most: mean attention received from another object times the number it may look at, and
    the share of the events in which that exceeds 2."""

    slot: int
    ratio: float
    share: float


def top_columns(
    attention: Float[Tensor, "B L H N N"], allowed: Bool[Tensor, "B N N"], weight: Array
) -> list[list[Column]]:
    """The most looked-at column of every layer and head, by its mean ratio over the events that have it."""
    others = allowed & ~torch.eye(allowed.shape[-1], dtype=torch.bool)
    number = allowed.sum(-1).double()
    lookers = others.sum(1).double()
    scaled = attention.double() * (others * number[:, :, None])[:, None, None]
    ratio = scaled.sum(-2) / lookers.clamp(min=1)[:, None, None]  # [B, L, H, N]
    w = torch.from_numpy(weight)[:, None] * (lookers > 0)
    total = w.sum(0)
    good = total > 0
    safe = torch.where(good, total, 1.0)
    mean = torch.where(good, (w[:, None, None] * ratio).sum(0) / safe, -1.0)
    share = (w[:, None, None] * (ratio > LOOKED_AT)).sum(0) / safe
    best = mean.argmax(-1)
    return [
        [Column(int(s), float(mean[i, h, s]), float(share[i, h, s])) for h, s in enumerate(row)]
        for i, row in enumerate(best)
    ]
