"""Several small trainings at once: the same model and settings, other events, labels, weights or seeds.

A small network on a CPU spends its time on starting operations, not on arithmetic. M trainings of the same number of
events are therefore one training with a leading axis M (torch.func.vmap over parameters, buffers and batches). Each of
them takes the steps that `hepx.train.fit` would take alone; `tests/test_retrain.py` compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from hepx.graph import GraphBatch
from hepx.models import Model, log_odds
from hepx.models.layers import MixtureOfExperts
from hepx.order import even_blocks
from hepx.train.events import Columns, epoch_order
from hepx.train.loop import draw, learning_rate, step_seed
from hepx.train.losses import BALANCE_LOSSES, z_loss
from hepx.train.settings import TrainSettings

State = dict[str, Tensor]


@dataclass(frozen=True)
class Lesson:
    """The training events of one member [b of B], their weights in the loss and its seed."""

    events: Columns
    seed: int


class Stack:
    """M models in training together; `models` have their weights drawn and their inputs standardised."""

    def __init__(self, models: Sequence[Model], lessons: Sequence[Lesson], settings: TrainSettings) -> None:
        self.base, self.lessons, self.settings = models[0].train(), lessons, settings
        self.parameters, self.buffers = stack_module_state(list(models))
        self.kept = (
            {name: tensor.detach().clone() for name, tensor in self._state().items()} if settings.ema else self._state()
        )
        optimizer = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        leaves = list(self.parameters.values())
        self.optimizer = optimizer(leaves, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self.moes = {name: m for name, m in self.base.named_modules() if isinstance(m, MixtureOfExperts)}
        self.num_events = len(lessons[0].events.y)
        self.steps_per_epoch = math.ceil(self.num_events / settings.batch_size)
        self.step = 0
        self.lr = 0.0

    def _state(self) -> State:
        return {**self.parameters, **self.buffers}

    def run(self, after_epoch: Callable[[int, Stack], None]) -> None:
        """All epochs of the settings; `after_epoch` is told the number of each, from 1."""
        counts = even_blocks(self.num_events)
        for epoch in range(self.settings.epochs):
            orders = np.stack([epoch_order(counts, lesson.seed, epoch) for lesson in self.lessons])
            for rows in torch.from_numpy(orders).split(self.settings.batch_size, dim=1):
                self._advance(rows)
            after_epoch(epoch + 1, self)

    def _advance(self, rows: Int[Tensor, "M b"]) -> None:
        """One optimiser step of every member."""
        batch = [lesson.events.at(index) for lesson, index in zip(self.lessons, rows, strict=True)]
        events = Columns(*(torch.stack(column) for column in zip(*batch, strict=True)))
        self.lr = learning_rate(self.step, self.steps_per_epoch, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        x, mask, noise = self._draw(events)
        torch.manual_seed(step_seed(self.lessons[0].seed, self.step, 0))  # of dropout, drawn for all members together
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            each = vmap(self.loss, randomness="different", in_dims=(0, 0, 0, 0, 0, 0, 0, None if noise is None else 0))
            losses, load = each(
                self.parameters, self.buffers, x, mask, events.node_type, events.y, events.weight, noise
            )
        self.optimizer.zero_grad()
        losses.sum().backward()
        self._clip()
        self.optimizer.step()
        if self.moes and self.settings.balance == "loss_free":
            self._move_selection(load)
        self.step += 1
        self._average()

    def loss(
        self,
        parameters: State,
        buffers: State,
        x: Tensor,
        mask: Tensor,
        node_type: Tensor,
        y: Tensor,
        weight: Tensor,
        noise: Tensor | None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "L X"]]:
        """Total loss of one member, and how many nodes use each expert."""
        settings = self.settings
        logits, trace = functional_call(self.base, (parameters, buffers), (x, mask, node_type), {"noise": noise})
        total = (functional.cross_entropy(logits.to(weight.dtype), y, reduction="none") * weight).sum() / len(y)
        if not self.moes:
            return total, trace.gates.new_zeros(0, 0)
        if settings.balance in BALANCE_LOSSES:
            total = total + settings.balance_weight * BALANCE_LOSSES[settings.balance](trace, mask)
        load = ((trace.gates > 0) & mask[:, None, :, None]).sum((0, 2)).float()
        return total + settings.z_weight * z_loss(trace, mask), load

    def _draw(self, events: Columns) -> tuple[Tensor, Tensor, Tensor | None]:
        """Reflections, hidden objects and noise of the routers, as `fit` draws them for the seed of each member."""
        drawn, moes, whole = [], list(self.moes.values()), slice(None)
        for lesson, x, mask in zip(self.lessons, events.x, events.mask, strict=True):
            generator = torch.Generator().manual_seed(step_seed(lesson.seed, self.step))
            drawn.append(draw(x, mask, whole, len(mask), moes, self.settings, generator))
        xs, masks, noises = zip(*drawn, strict=True)
        return torch.stack(xs), torch.stack(masks), None if noises[0] is None else torch.stack(noises)

    def _clip(self) -> None:
        """Clip the norm of the gradient of each member (as torch.nn.utils.clip_grad_norm_)."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        factor = (self.settings.grad_clip / (norm + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factor.reshape(-1, *[1] * (gradient.ndim - 1)))

    @torch.no_grad()
    def _move_selection(self, load: Float[Tensor, "M L X"]) -> None:
        for name, step in self.selection_steps(load).items():
            self.buffers[name] += step

    def selection_steps(self, load: Float[Tensor, "*M L X"]) -> State:
        """What loss-free balancing adds to the selection bias [*M, X] of each layer (see `update_selection_bias`)."""
        step = self.settings.balance_rate * torch.sign(load.mean(-1, keepdim=True) - load)
        return {f"{name}.selection_bias": step[..., layer, :] for layer, name in enumerate(self.moes)}

    @torch.no_grad()
    def _average(self) -> None:
        """The running mean of the weights, as in `fit`."""
        if not self.settings.ema:
            return
        decay = min(self.settings.ema, self.step / (9 + self.step))
        now = self._state()
        for name, value in self.kept.items():
            if value.is_floating_point():
                value.lerp_(now[name], 1 - decay)

    def weights(self, member: int) -> State:
        """Kept parameters and buffers of one member."""
        return {name: tensor[member].detach().clone() for name, tensor in self.kept.items()}

    @torch.no_grad()
    def scores(self, graphs: GraphBatch, batch_size: int = 256) -> Float[Tensor, "M Q"]:
        """Log-odds of class 1 of some events, by the kept weights of every member, in evaluation mode."""
        self.base.eval()
        parts = []
        for start in range(0, len(graphs), batch_size):
            part = graphs[start : start + batch_size]

            def score(state: Mapping[str, Tensor], part: GraphBatch = part) -> Tensor:
                logits = functional_call(self.base, dict(state), (part.x, part.mask, part.node_type)).logits
                return log_odds(logits, 1)

            parts.append(vmap(score)(self.kept))
        self.base.train()
        return torch.cat(parts, dim=1) if parts else torch.zeros(len(self.lessons), 0)
