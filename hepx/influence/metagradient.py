"""The exact answer for one training: how the weight of each training event moves the scores of the trained network.

A training whose random numbers are fixed is a function of the weights of its events. Its derivative at the weights it
was done with is found by going back through every step of the optimiser (MAGIC, arXiv:2504.16430; reverse mode through
a training: arXiv:1502.03492). It is what cheap scores approximate, and itself an approximation where events are really
removed: the choice of experts jumps, and a long training with a large learning rate forgets its past chaotically. How
far it predicts removals is therefore measured (`hepx.influence.validate`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from hepx import files
from hepx.errors import ConfigError
from hepx.influence.retrain import Change, Recipe, one_thread, prepared
from hepx.influence.stacked import Lesson, Stack, State
from hepx.models import log_odds
from hepx.order import even_blocks
from hepx.progress import progress
from hepx.train.events import epoch_order
from hepx.train.loop import learning_rate

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of torch.optim.AdamW
TINY = 1e-30  # under the root: where a parameter never had a gradient, the derivative is 0 and not 0 × ∞

Vectors = tuple[Tensor, Tensor, Tensor]  # parameters, mean and mean square of their gradients, [P] each


@dataclass(frozen=True)
class Point:
    """What a step of the training starts from, and the events of its batch."""

    vectors: Vectors
    buffers: State
    rows: Int[Tensor, "b"]
    number: int


class Trajectory:
    """One training, step by step, in float64: where a gradient is 0 by symmetry, Adam would divide rounding noise by
    itself."""

    def __init__(self, recipe: Recipe, change: Change) -> None:
        settings = self.settings = recipe.train
        drawn = settings.router_noise or settings.node_dropout or settings.reflections
        if settings.ema or drawn or settings.precision != "float32":
            raise ConfigError(
                "a metagradient needs a training without ema, router_noise, node_dropout, reflections and bfloat16."
            )
        if getattr(recipe.model, "dropout", 0.0):
            raise ConfigError("a metagradient needs a training without dropout: set model.dropout=0.")
        model, lesson = prepared(recipe, change)
        self.events = lesson.events.map(lambda one: one.double() if one.is_floating_point() else one)
        self.seed, self.queries = change.seed, recipe.queries
        self.stack = Stack([model.double()], [Lesson(self.events, self.seed)], settings)
        self.shapes = {name: tensor.shape[1:] for name, tensor in self.stack.parameters.items()}

    @property
    def num_steps(self) -> int:
        """Steps of the optimiser."""
        return self.stack.steps_per_epoch * self.settings.epochs

    def named(self, theta: Float[Tensor, "P"]) -> State:
        """A vector as the parameters of the model."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def batches(self) -> Iterator[Int[Tensor, "b"]]:
        """Rows of the events of every step."""
        counts = even_blocks(len(self.events.y))
        for epoch in range(self.settings.epochs):
            yield from torch.from_numpy(epoch_order(counts, self.seed, epoch)).split(self.settings.batch_size)

    def step(
        self, vectors: Vectors, buffers: State, rows: Tensor, number: int, factor: Tensor, graph: bool
    ) -> tuple[Vectors, Tensor]:
        """The vectors after a step, and how many nodes use each expert [L, X]; factor [b]: on the weights of the batch;
        graph: whether the step itself is to be differentiated."""
        theta, mean, square = vectors
        batch, settings = self.events.at(rows), self.settings
        weight = batch.weight * factor
        total, load = self.stack.loss(
            self.named(theta), buffers, batch.x, batch.mask, batch.node_type, batch.y, weight, None
        )
        (gradient,) = torch.autograd.grad(total, theta, create_graph=graph)
        gradient = gradient * (settings.grad_clip / (gradient.square().sum().sqrt() + 1e-6)).clamp(max=1)
        mean = BETA1 * mean + (1 - BETA1) * gradient
        square = BETA2 * square + (1 - BETA2) * gradient**2
        lr = learning_rate(number, self.stack.steps_per_epoch, settings)
        spread = (square / (1 - BETA2 ** (number + 1))).clamp(min=TINY).sqrt() + EPSILON
        decay = lr * settings.weight_decay if settings.optimizer == "adamw" else 0.0
        if settings.optimizer == "adam" and settings.weight_decay:
            raise ConfigError("a metagradient with optimizer adam needs weight_decay 0; adamw takes any.")
        theta = theta * (1 - decay) - lr * mean / (1 - BETA1 ** (number + 1)) / spread
        return (theta, mean, square), load

    @cached_property
    def points(self) -> list[Point]:
        """The start of every step, and as the last one (with no events) the end of the training."""
        theta = torch.cat([tensor.detach().flatten() for tensor in self.stack.parameters.values()])
        vectors: Vectors = (theta, torch.zeros_like(theta), torch.zeros_like(theta))
        buffers = {name: tensor[0].clone() for name, tensor in self.stack.buffers.items()}
        found, balanced = [], bool(self.stack.moes) and self.settings.balance == "loss_free"
        for number, rows in enumerate(self.batches()):
            found.append(Point(vectors, buffers, rows, number))
            leaves = (vectors[0].requires_grad_(), *vectors[1:])
            after, load = self.step(leaves, buffers, rows, number, torch.ones(len(rows), dtype=theta.dtype), False)
            vectors = (after[0].detach(), after[1].detach(), after[2].detach())
            if balanced:
                steps = self.stack.selection_steps(load.to(theta.dtype))
                buffers = {name: tensor + steps.get(name, 0) for name, tensor in buffers.items()}
        return [*found, Point(vectors, buffers, torch.zeros(0, dtype=torch.int64), len(found))]

    def score(self, theta: Float[Tensor, "P"], buffers: State) -> Float[Tensor, "Q"]:
        """Log-odds of signal of the queries."""
        model, graphs = self.stack.base.eval(), self.queries
        inputs = (graphs.x.to(theta.dtype), graphs.mask, graphs.node_type)
        logits = functional_call(model, (self.named(theta), buffers), inputs).logits
        model.train()
        return log_odds(logits, 1)


def metagradient(recipe: Recipe, change: Change, folder: Path) -> Float[Tensor, "B Q"]:
    """Derivative of the score of each query with respect to the factor on each training event's weight in the loss, at
    1, for the training of `change`: what the event, all in all, adds to the score (log-odds, to first order).

    Costs about as much per query as the training; kept in `folder`.
    """
    path = folder / f"metagradient_{change.key(recipe, 0)}.npz"
    if not path.exists():
        with one_thread(), torch.random.fork_rng(devices=[]):
            found = _backwards(Trajectory(recipe, change))
        with files.atomic(path) as temporary:
            np.savez(temporary, metagradient=found.numpy())
    with np.load(path) as stored:
        return torch.from_numpy(stored["metagradient"])


def _backwards(course: Trajectory) -> Float[Tensor, "B Q"]:
    """Adjoints [Q, P] of parameters and moments, from the scores back to the first step."""
    *points, end = course.points
    theta = end.vectors[0].requires_grad_()
    score = course.score(theta, end.buffers)
    unit = torch.eye(len(score), dtype=score.dtype)
    (adjoint,) = torch.autograd.grad(score, theta, unit, is_grads_batched=True)
    adjoints = (adjoint, torch.zeros_like(adjoint), torch.zeros_like(adjoint))
    found = torch.zeros(len(course.events.y), len(score), dtype=score.dtype)
    with progress("metagradient", len(points), " steps") as advance:
        for point in reversed(points):
            leaves = tuple(vector.detach().requires_grad_() for vector in point.vectors)
            factor = torch.ones(len(point.rows), dtype=score.dtype, requires_grad=True)
            after, _ = course.step(leaves, point.buffers, point.rows, point.number, factor, True)  # type: ignore[arg-type]
            *back, of_events = torch.autograd.grad(after, (*leaves, factor), adjoints, is_grads_batched=True)
            adjoints = (back[0], back[1], back[2])
            found[point.rows] += of_events.T
            advance()
    return found
