"""TRAK (arXiv:2303.14186): the network as a logistic regression on its own gradients, in random projection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hepx.attribution import Shard
from hepx.influence.base import Score, Task
from hepx.influence.store import Keep, event_blocks, prepare, products


class Trak(Score):
    """Effect of an event on a regression on the gradients Φ of the margins: w (1 − p) φᵀ(ΦᵀΦ + λ)⁻¹φ(query),
    averaged over trainings (eq. 11 and 12 of the paper: the mean of the products times the mean of 1 − p).

    The Gram matrix ΦᵀΦ takes |w|: a scale must not depend on signs. ridge: λ in units of its mean eigenvalue, the
    setting that decides most (arXiv:2505.24261). members: the trained model and those of other `trainings` if there are
    any, or the `snapshots` of this one, which are more alike. On itself: |w| (1 − p) φᵀ(ΦᵀΦ + λ)⁻¹φ.
    """

    score: Literal["trak"] = "trak"
    projection: int = Field(default=2048, ge=16)
    ridge: float = Field(default=1.0, gt=0)
    members: Literal["trainings", "snapshots"] = "trainings"

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        """What each event does to its own margin."""
        leverages, residuals = [], []
        for weights in self._members(task):
            factor, leverage, residual = _factor(self._gram(task, weights), self.ridge), [], []
            for block in event_blocks(task, weights, "train", self._keep):
                leverage.append((_solved(factor, block.values) * block.values).sum(1))
                residual.append(block.residual)
            leverages.append(torch.cat(leverage))
            residuals.append(torch.cat(residual))
        return task.weight.abs().float() * _mean(leverages) * _mean(residuals)

    def blocks(self, task: Task) -> Iterator[Float[Tensor, "b Q"]]:
        """See `Score.blocks`."""
        return (found[self.ridge] for found in self._blocks(task, [self.ridge]))

    def scan(self, task: Task, ridges: Sequence[float]) -> dict[float, Float[Tensor, "B Q"]]:
        """`influence` for several values of λ, with the gradients and Gram matrices computed once."""
        blocks = list(self._blocks(task, ridges))
        return {ridge: torch.cat([block[ridge] for block in blocks]) for ridge in ridges}

    def prepare(self, task: Task, shard: Shard) -> None:
        """See `Score.prepare`."""
        prepare(task, self._members(task), self._keep, shard)

    @property
    def _keep(self) -> Keep:
        return Keep(self.projection)

    def _members(self, task: Task) -> list[Path]:
        if self.members == "snapshots":
            return [one.weights for one in task.snapshots]
        return [task.trained, *task.others]

    def _gram(self, task: Task, weights: Path) -> Float[Tensor, "k k"]:
        """Σ |w| φ φᵀ over the training events, float64."""
        gram, start = torch.zeros(self.projection, self.projection, dtype=torch.float64), 0
        for block in event_blocks(task, weights, "train", self._keep):
            weight = task.weight[start : start + len(block.values)].abs().float()
            gram += (block.values.T @ (block.values * weight[:, None])).double()
            start += len(weight)
        return gram

    def _blocks(self, task: Task, ridges: Sequence[float]) -> Iterator[dict[float, Float[Tensor, "b Q"]]]:
        members = self._members(task)
        grams = [self._gram(task, weights) for weights in members]
        factors = {ridge: [_factor(gram, ridge) for gram in grams] for ridge in ridges}
        solved: dict[float, list[Tensor]] = {}
        start = 0
        for blocks in products(task, members, self._keep):
            if not solved:
                solved = {
                    ridge: [_solved(one, block.query.values) for one, block in zip(of_ridge, blocks, strict=True)]
                    for ridge, of_ridge in factors.items()
                }
            weight = task.weight[start : start + len(blocks[0].dots)].float()
            start += len(weight)
            outside = weight * _mean([block.train.residual for block in blocks])
            yield {
                ridge: outside[:, None]
                * _mean([block.train.values @ q.T for block, q in zip(blocks, queries, strict=True)])
                for ridge, queries in solved.items()
            }


def _factor(gram: Float[Tensor, "k k"], ridge: float) -> Float[Tensor, "k k"]:
    """Cholesky factor of the Gram matrix plus `ridge` times its mean eigenvalue."""
    mean = gram.diagonal().mean()
    return torch.linalg.cholesky(gram + ridge * mean * torch.eye(len(gram), dtype=gram.dtype))


def _solved(factor: Float[Tensor, "k k"], values: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """(ΦᵀΦ + λ)⁻¹ applied to each row."""
    return torch.cholesky_solve(values.double().T, factor).T.float()


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)
