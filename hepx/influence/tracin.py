"""TracIn (arXiv:2002.08484): what the steps of the training on an event did, summed over snapshots of the training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hepx.attribution import Shard
from hepx.influence.base import Score, Task
from hepx.influence.store import Keep, event_blocks, prepare, products


class TracIn(Score):
    """TracInCP over all parameters.

    A step of gradient descent with learning rate lr on a training event of weight w changes the score f of a query by
    −lr w ∇ℓ·∇f; this is summed over the snapshots with their learning rates, without the 1/batch size common to all.
    Left out is what AdamW, dropout, hidden objects and the balance losses do to the steps. On itself (eq. 1 of the
    paper) Σ lr |w ∇ℓ|², exact whatever the projection. projection: products of sketches of so many numbers; 0: exact.
    """

    score: Literal["tracin"] = "tracin"
    projection: int = Field(default=2048, ge=0)

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        """Self-influence; from gradients that are kept, if they are, else from their norms alone."""
        return self_influence(task, Keep(self.projection if task.cache else None))

    def blocks(self, task: Task) -> Iterator[Float[Tensor, "b Q"]]:
        """See `Score.blocks`."""
        return influence(task, Keep(self.projection))

    def prepare(self, task: Task, shard: Shard) -> None:
        """See `Score.prepare`."""
        prepare(task, [one.weights for one in task.snapshots], Keep(self.projection), shard)


class LastLayer(Score):
    """TracIn for the parameters of the last layer alone (TracInCPFast), exact in closed form.

    On itself, for two classes, that is the squared residual times the squared norm of the last hidden state: fast, and
    blind to how the network got there.
    """

    score: Literal["last_layer"] = "last_layer"

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        """Self-influence by the last layer."""
        return self_influence(task, Keep(0, "last"))

    def blocks(self, task: Task) -> Iterator[Float[Tensor, "b Q"]]:
        """See `Score.blocks`."""
        return influence(task, Keep(0, "last"))


def self_influence(task: Task, keep: Keep) -> Float[Tensor, "B"]:
    """Σ_snapshots lr |w ∇ℓ|² of each training event."""
    found = torch.zeros(len(task.train))
    for snapshot in task.snapshots:
        squares = [
            block.residual.square() * block.squared_norm
            for block in event_blocks(task, snapshot.weights, "train", keep)
        ]
        found += snapshot.lr * torch.cat(squares)
    return found * task.weight.float() ** 2


def influence(task: Task, keep: Keep) -> Iterator[Float[Tensor, "b Q"]]:
    """Σ_snapshots lr w (−∇ℓ)·∇f in blocks of training events."""
    start = 0
    for blocks in products(task, [one.weights for one in task.snapshots], keep):
        total = torch.zeros_like(blocks[0].dots)
        for snapshot, block in zip(task.snapshots, blocks, strict=True):
            total += snapshot.lr * block.train.residual[:, None] * block.dots
        yield task.weight[start : start + len(total), None].float() * total
        start += len(total)
