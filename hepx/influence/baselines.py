"""Scores that need no gradient: what every other one must beat before it means anything (arXiv:2506.11584)."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hepx.graph import GraphBatch
from hepx.influence.base import ROWS, Score, Task
from hepx.influence.gradients import margins
from hepx.models import batches, log_odds
from hepx.random import uniform
from hepx.train.snapshots import load_snapshot


class Loss(Score):
    """Mean loss over the snapshots, without the event weight: events that are hard to learn, among them wrong labels
    (the area under the margin of arXiv:2001.10528 by another name)."""

    pairwise: ClassVar[bool] = False
    score: Literal["loss"] = "loss"

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        """Mean loss."""
        found = [
            functional.softplus(-margins(_logits(task, one.weights), task.train.y)).cpu() for one in task.snapshots
        ]
        return torch.stack(found).mean(0)


class Logit(Score):
    """−|score| of the trained model: events at the border between the classes, whatever their label."""

    pairwise: ClassVar[bool] = False
    score: Literal["logit"] = "logit"

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        """−|log-odds|."""
        return -log_odds(_logits(task, task.trained), task.target).abs()


class EL2N(Score):
    """Norm of the error vector, |p − one-hot label|, mean over the snapshots (arXiv:2107.07075, eq. 3)."""

    pairwise: ClassVar[bool] = False
    score: Literal["el2n"] = "el2n"

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        """Mean norm."""
        found = []
        for snapshot in task.snapshots:
            probability = torch.softmax(_logits(task, snapshot.weights), -1)
            found.append((probability - functional.one_hot(task.train.y, probability.shape[-1])).norm(dim=-1))
        return torch.stack(found).mean(0)


class Representation(Score):
    """Cosine of the states before the last layer, with the sign of the training event's label and weight: similar
    events, which need not be influential ones."""

    on_itself: ClassVar[bool] = False
    score: Literal["representation"] = "representation"

    def blocks(self, task: Task) -> Iterator[Float[Tensor, "b Q"]]:
        """See `Score.blocks`."""
        query = functional.normalize(_states(task, task.query))
        sign = torch.sign(task.weight.float()) * torch.where(task.train.y == task.target, 1.0, -1.0)
        for start in range(0, len(task.train), ROWS):
            rows = slice(start, start + ROWS)
            yield sign[rows, None] * (functional.normalize(_states(task, task.train[rows])) @ query.T)


class Random(Score):
    """Uniform numbers fixed by event and seed: the control."""

    score: Literal["random"] = "random"

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        """In [0, 1)."""
        return torch.from_numpy(uniform(task.seed, task.train.event_id.numpy(), "influence", 1)[:, 0]).float()

    def blocks(self, task: Task) -> Iterator[Float[Tensor, "b Q"]]:
        """In [−½, ½)."""
        for start in range(0, len(task.train), ROWS):
            events = task.train.event_id[start : start + ROWS].numpy()
            yield torch.from_numpy(uniform(task.seed, events, "influence on others", len(task.query))).float() - 0.5


@torch.no_grad()
def _logits(task: Task, weights: Path) -> Float[Tensor, "B C"]:
    """Of the training events, on the CPU, with the weights of a file."""
    model = deepcopy(task.model).eval()
    load_snapshot(model, weights)
    device = next(model.parameters()).device
    found = [model(b.x, b.mask, b.node_type).logits.cpu() for b in (one.to(device) for one in batches(task.train))]
    return torch.cat(found)


@torch.no_grad()
def _states(task: Task, events: GraphBatch) -> Float[Tensor, "B D"]:
    """What the last linear layer of the trained model gets, on the CPU; the mean over nodes where it gets those."""
    model = deepcopy(task.model).eval()
    load_snapshot(model, task.trained)
    device, last, found = next(model.parameters()).device, torch.zeros(0), []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal last
        del module
        last = arguments[0]

    handles = [one.register_forward_pre_hook(keep) for one in model.modules() if isinstance(one, nn.Linear)]
    for batch in (one.to(device) for one in batches(events)):
        model(batch.x, batch.mask, batch.node_type)
        found.append(last.flatten(1, -2).mean(1).cpu() if last.ndim > 2 else last.cpu())
    for handle in handles:
        handle.remove()
    return torch.cat(found)
