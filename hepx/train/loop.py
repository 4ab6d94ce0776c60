"""Fit a model: weighted loss, AdamW, warm-up and cosine, early stopping on the validation AUC, exact restart.

A training that was killed at any moment ends, when started again, with the bits it would have ended with: the state is
saved in the middle of an epoch too, and every random number is a function of seed, epoch and step (`order`).
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from hepx import files, metrics, signals
from hepx.errors import ResultError
from hepx.graph import GraphBatch
from hepx.models import Model, predict
from hepx.models.layers import MixtureOfExperts
from hepx.progress import Advance, progress
from hepx.train.losses import (
    BALANCE_LOSSES,
    balance_loss,
    hide_objects,
    training_weights,
    update_selection_bias,
    z_loss,
)
from hepx.train.order import BLOCK, shuffled_blocks, step_seed
from hepx.train.settings import TrainSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """One line of the history."""

    epoch: int
    loss: float
    balance_loss: float
    z_loss: float
    validation_loss: float
    validation_auc: float
    lr: float


def _learning_rate(step: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    """Linear warm-up, then half a cosine to zero or steps."""
    total = settings.epochs * steps_per_epoch
    warmup = max(1, int(settings.warmup * total))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "step":
        return settings.lr * settings.step_factor ** (step // (steps_per_epoch * settings.step_epochs))
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class _Fit:
    """The state of one training: model, optimiser, history, and the position in the epoch with its sums so far."""

    def __init__(
        self, model: Model, train: GraphBatch, validation: GraphBatch, settings: TrainSettings, seed: int
    ) -> None:
        self.model, self.settings, self.seed = model, settings, seed
        device = next(model.parameters()).device
        self.train, self.validation = train.to(device), validation
        self.weight = training_weights(train, settings.weights).float().to(device)
        self.validation_weight = training_weights(validation, settings.weights)
        optimizer = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        # fused: one kernel for all parameters, whose cost per step is what makes small batches dear
        self.optimizer = optimizer(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self.kept = copy.deepcopy(model) if settings.ema else model  # what is evaluated and saved
        self.generator = torch.Generator()
        self.history: list[Epoch] = []
        self.step, self.sums = 0, torch.zeros(3, dtype=torch.float64, device=device)  # of this epoch
        self.has_experts = any(isinstance(module, MixtureOfExperts) for module in model.modules())
        self.steps_per_epoch = math.ceil(len(train) / settings.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps done since the training began."""
        return len(self.history) * self.steps_per_epoch + self.step

    def indices(self) -> Iterator[Int[Tensor, "B"]]:
        """The events of each step from here to the end of the epoch."""
        starts = np.arange(0, len(self.train), BLOCK)
        counts = np.minimum(BLOCK, len(self.train) - starts)
        order = []
        for blocks, shuffle in shuffled_blocks(counts, self.seed, len(self.history)):
            rows = (starts[blocks, None] + np.arange(BLOCK)).flatten()
            order.append(rows[rows < len(self.train)][shuffle])
        whole = torch.from_numpy(np.concatenate(order)).to(self.train.x.device)
        yield from whole.split(self.settings.batch_size)[self.step :]

    def advance(self, index: Int[Tensor, "B"]) -> None:
        """One optimiser step; adds task, balance and z-loss to the sums."""
        settings, batch = self.settings, self.train[index]
        self.model.train()
        torch.manual_seed(step_seed(self.seed, self.total_steps))  # of dropout
        self.generator.manual_seed(step_seed(self.seed, self.total_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(self.total_steps, self.steps_per_epoch, settings)
        mask = hide_objects(batch.mask, settings.node_dropout, self.generator) if settings.node_dropout else batch.mask
        logits, trace = self.model(batch.x, mask, batch.node_type, noise=self._noise(batch))
        loss = (functional.cross_entropy(logits, batch.y, reduction="none") * self.weight[index]).mean()
        parts = [loss, loss.new_zeros(()), loss.new_zeros(())]
        if self.has_experts:
            parts[1:] = [BALANCE_LOSSES.get(settings.balance, balance_loss)(trace, mask), z_loss(trace, mask)]
        weight = settings.balance_weight if settings.balance in BALANCE_LOSSES else 0.0
        total = parts[0] + weight * parts[1] + settings.z_weight * parts[2]
        self.optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)
        self.optimizer.step()
        if self.has_experts and settings.balance == "loss_free":
            update_selection_bias(self.model, trace, mask, settings.balance_rate)
        self._average()
        self.sums += torch.stack(parts).detach()
        self.step += 1

    @torch.no_grad()
    def _average(self) -> None:
        """Move the kept weights towards the new ones; the first steps average over what there is."""
        if self.kept is self.model:
            return
        decay = min(self.settings.ema, (1 + self.total_steps) / (10 + self.total_steps))
        kept, new = self.kept.state_dict(), self.model.state_dict()
        for name, value in kept.items():
            if value.is_floating_point():
                value.lerp_(new[name], 1 - decay)

    def _noise(self, batch: GraphBatch) -> Tensor | None:
        if not self.has_experts or self.settings.router_noise == 0:
            return None
        moes = [module for module in self.model.modules() if isinstance(module, MixtureOfExperts)]
        shape = (len(batch), len(moes), batch.x.shape[1], moes[0].num_experts)
        return torch.randn(shape, generator=self.generator).to(batch.x.device) * self.settings.router_noise

    def finish_epoch(self) -> bool:
        """Validate, add a line to the history; whether the weights are the best so far."""
        number = len(self.history) + 1
        task, balance, z = (self.sums / self.step).tolist()
        if not math.isfinite(task):
            raise ResultError(
                f"the loss became {task} in epoch {number}. Lower train.lr or look for extreme event weights."
            )
        torch.manual_seed(step_seed(self.seed, self.total_steps))  # of models that draw in evaluation too
        best = max((epoch.validation_auc for epoch in self.history), default=-1.0)
        self.history.append(Epoch(number, task, balance, z, *self.validate(), self.optimizer.param_groups[0]["lr"]))
        self.step = 0
        self.sums.zero_()
        return self.history[-1].validation_auc > best

    def validate(self) -> tuple[float, float]:
        """Weighted loss and AUC (class 1 against the rest) of the validation events."""
        score = predict(self.kept, self.validation)
        y = (self.validation.y == 1).double()
        weight = self.validation_weight
        loss = float((functional.binary_cross_entropy_with_logits(score.double(), y, reduction="none") * weight).mean())
        return loss, metrics.auc(y.numpy(), score.numpy(), weight.numpy())

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "model": self.model.state_dict(),
            "kept": self.kept.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "sums": self.sums,
            "history": [vars(epoch) for epoch in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.model.load_state_dict(state["model"])
        self.kept.load_state_dict(state["kept"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.sums.copy_(state["sums"])
        self.history = [Epoch(**values) for values in state["history"]]


def fit(
    model: Model, train: GraphBatch, validation: GraphBatch, settings: TrainSettings, seed: int, folder: Path
) -> list[Epoch]:
    """Train `model` in place and leave it with its best weights; returns the history.

    Writes `best.safetensors` (highest validation AUC) and `last.pt` (the state) into `folder`; if `last.pt` is there
    already, the training goes on from it and ends as if it had never stopped. A signal that `signals.raised` listens to
    ends it after the step at hand, with the state saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".*"):
        path.unlink()  # half files of a killed process
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.inputs.fit(train.to(device), training_weights(train, settings.weights).to(device))
        state = _Fit(model, train, validation, settings, seed)
        if (folder / "last.pt").exists():
            state.restore(torch.load(folder / "last.pt", weights_only=True, map_location="cpu"))
            log.info("training goes on after epoch %d, step %d", len(state.history), state.step)
        _epochs(state, folder)
    load_weights(model, folder)
    return state.history


def _epochs(state: _Fit, folder: Path) -> None:
    settings = state.settings
    total = settings.epochs * state.steps_per_epoch
    with signals.deferred("checkpoint written") as stop, progress("train", total, " steps") as advance:
        advance(state.total_steps)
        while len(state.history) < settings.epochs and not _stopped(state.history, settings.patience):
            if not _steps(state, folder, advance, stop):
                return


def _steps(state: _Fit, folder: Path, advance: Advance, stop: Callable[[], bool]) -> bool:
    """The rest of an epoch; False if it was stopped."""
    settings = state.settings
    saved, since = state.step, time.monotonic()
    for index in state.indices():
        state.advance(index)
        advance(1, f"epoch {len(state.history) + 1}")
        late = settings.checkpoint_seconds is not None and time.monotonic() - since >= settings.checkpoint_seconds
        if stop() or late or (settings.checkpoint_steps and state.step - saved >= settings.checkpoint_steps):
            _save(state, folder)
            saved, since = state.step, time.monotonic()
        if stop():
            return False
    if state.finish_epoch():
        _save_weights(state.kept, folder)
    log.debug("%s", state.history[-1])
    _save(state, folder)
    return not stop()


def _save(state: _Fit, folder: Path) -> None:
    with files.atomic(folder / "last.pt") as temporary:
        torch.save(state.state(), temporary)


def _save_weights(model: Model, folder: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with files.atomic(folder / "best.safetensors") as temporary:
        save_file(weights, temporary)


def _stopped(history: list[Epoch], patience: int) -> bool:
    """No better validation AUC for `patience` epochs."""
    if not history:
        return False
    best = max(range(len(history)), key=lambda i: history[i].validation_auc)
    return len(history) - 1 - best >= patience


def load_weights(model: Model, folder: Path) -> None:
    """Load the best weights of a training; ResultError if there are none."""
    path = folder / "best.safetensors"
    if not path.exists():
        raise ResultError(f"'{folder}' holds no trained weights (best.safetensors). Run `hepx train` first.")
    model.load_state_dict(load_file(path))
