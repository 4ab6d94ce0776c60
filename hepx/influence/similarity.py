"""Gradients of the trained model alone, side by side: their scalar product and its cosine (arXiv:2102.05262)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hepx.attribution import Shard
from hepx.influence.base import Score, Task
from hepx.influence.store import Keep, event_blocks, prepare, products


class GradDot(Score):
    """w (−∇ℓ)·∇f at the end of the training: TracIn with one snapshot and no learning rate."""

    score: Literal["grad_dot"] = "grad_dot"
    projection: int = Field(default=2048, ge=0)

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        """|w ∇ℓ|²."""
        keep = Keep(self.projection if task.cache else None)
        found = [
            block.residual.square() * block.squared_norm for block in event_blocks(task, task.trained, "train", keep)
        ]
        return torch.cat(found) * task.weight.float() ** 2

    def blocks(self, task: Task) -> Iterator[Float[Tensor, "b Q"]]:
        """See `Score.blocks`."""
        start = 0
        for (block,) in products(task, [task.trained], Keep(self.projection)):
            weight = task.weight[start : start + len(block.dots)].float()
            start += len(weight)
            yield (weight * block.train.residual)[:, None] * block.dots

    def prepare(self, task: Task, shard: Shard) -> None:
        """See `Score.prepare`."""
        prepare(task, [task.trained], Keep(self.projection), shard)


class GradCos(Score):
    """Cosine of w (−∇ℓ) and ∇f: whom the network treats alike, whatever it still has to learn of them; of the weight
    only the sign is left."""

    on_itself: ClassVar[bool] = False
    score: Literal["grad_cos"] = "grad_cos"
    projection: int = Field(default=2048, ge=0)

    def blocks(self, task: Task) -> Iterator[Float[Tensor, "b Q"]]:
        """See `Score.blocks`."""
        start = 0
        for (block,) in products(task, [task.trained], Keep(self.projection)):
            sign = torch.sign(task.weight[start : start + len(block.dots)].float())
            start += len(sign)
            norms = torch.outer(block.train.squared_norm.sqrt(), block.query.squared_norm.sqrt())
            yield sign[:, None] * block.dots / norms.clamp(min=torch.finfo(norms.dtype).tiny)

    def prepare(self, task: Task, shard: Shard) -> None:
        """See `Score.prepare`."""
        prepare(task, [task.trained], Keep(self.projection), shard)
