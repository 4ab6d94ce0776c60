"""Fit a model: weighted loss, AdamW, warm-up and cosine, early stopping on the validation AUC, exact restart.

A training that was killed at any moment ends, when started again, with the bits it would have ended with: the state is
saved in the middle of an epoch too, and every random number is a function of seed, epoch and step.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from hepx import files, metrics, signals
from hepx.errors import ConfigError, ResultError
from hepx.graph import GraphBatch
from hepx.models import Model, Output, Trace, predict
from hepx.models.boosted_trees import BoostedTrees
from hepx.models.inputs import reflect
from hepx.models.layers import MixtureOfExperts
from hepx.progress import Advance, progress
from hepx.train.boosting import grow_trees
from hepx.train.events import Batch, Events, Feed, InMemory, at_most, parts
from hepx.train.finetune import freeze
from hepx.train.losses import (
    BALANCE_LOSSES,
    balance_loss,
    class_scale,
    hide_objects,
    loss_weights,
    training_weights,
    update_selection_bias,
    z_loss,
)
from hepx.train.outcome import Epoch, Report, Track, load_weights, open_folder, save_weights, untracked
from hepx.train.ranks import ALONE, Ranks
from hepx.train.settings import TrainSettings
from hepx.train.snapshots import FOLDER, kept_epochs, write_snapshot

log = logging.getLogger(__name__)


def step_seed(seed: int, step: int, *more: int) -> int:
    """A seed for the random numbers of one step; `more` tells apart several of them."""
    return int(np.random.SeedSequence([seed, step, *more]).generate_state(1, np.uint64)[0])


def compiled(model: Model) -> Callable[..., Output]:
    """The model with its operations fused; ConfigError where there is nothing to compile with."""
    if next(model.parameters()).device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise ConfigError(
            "train.compile needs a C++ compiler (g++ or clang++) for the CPU; install one or set it to false."
        )
    return torch.compile(model)


def learning_rate(step: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    """Linear warm-up, then half a cosine to zero or steps."""
    total = settings.epochs * steps_per_epoch
    warmup = max(1, int(settings.warmup * total))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "step":
        return settings.lr * settings.step_factor ** (step // (steps_per_epoch * settings.step_epochs))
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def draw(
    x: Float[Tensor, "B N F"],
    mask: Bool[Tensor, "B N"],
    rows: slice,
    size: int,
    moes: Sequence[MixtureOfExperts],
    settings: TrainSettings,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "B N F"], Bool[Tensor, "B N"], Float[Tensor, "B L N X"] | None]:
    """The events, some of them reflected, the mask with some objects hidden and the noise of the routers, for the
    `rows` of a batch of `size` events."""
    noise, device, num_nodes = None, mask.device, mask.shape[1]
    if settings.node_dropout:
        uniform = torch.rand(size, 2 + num_nodes, generator=generator, device=device)
        mask = hide_objects(mask, settings.node_dropout, uniform[rows])
    if moes and settings.router_noise:
        shape = (size, len(moes), num_nodes, moes[0].num_experts)
        noise = torch.randn(shape, generator=generator, device=device)[rows] * settings.router_noise
    if settings.reflections:
        x = reflect(x, torch.rand(size, 2, generator=generator, device=device)[rows])
    return x, mask, noise


class _Fit:
    """The state of one training: model, optimiser, history, and the position in the epoch with its sums so far."""

    def __init__(self, model: Model, feed: Feed, validation: GraphBatch) -> None:
        self.model, self.feed, self.validation = model, feed, validation
        settings = self.settings = feed.settings
        self.seed, self.ranks = feed.seed, feed.ranks
        self.validation_weight = training_weights(validation, settings.weights)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        # fused: one kernel for all parameters, whose cost per step is what makes small batches dear
        self.optimizer = optimizer(self.parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self.kept = copy.deepcopy(model) if settings.ema else model  # what is evaluated and saved
        self.forward = compiled(model) if settings.compile else model
        self.generator = torch.Generator(feed.device)
        self.history: list[Epoch] = []
        self.step, self.sums = 0, torch.zeros(3, dtype=torch.float64, device=feed.device)  # of this epoch
        self.moes = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
        self.steps_per_epoch = math.ceil(feed.num_events / settings.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps done since the training began."""
        return len(self.history) * self.steps_per_epoch + self.step

    def advance(self, batch: Batch) -> None:
        """One optimiser step; adds task, balance and z-loss to the sums."""
        settings = self.settings
        self.model.train()
        torch.manual_seed(step_seed(self.seed, self.total_steps, self.ranks.rank))  # of dropout
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.total_steps, self.steps_per_epoch, settings)
        x, mask, noise = self._draw(batch)
        parts, trace = self._losses(batch, x, mask, noise)
        weight = settings.balance_weight if settings.balance in BALANCE_LOSSES else 0.0
        total = parts[0] + weight * parts[1] + settings.z_weight * parts[2]
        self.optimizer.zero_grad()
        total.backward()
        self.ranks.sum_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, settings.grad_clip)
        self.optimizer.step()
        if self.moes and settings.balance == "loss_free":
            update_selection_bias(self.model, trace, mask, settings.balance_rate, self.ranks.total)
        self._average()
        self.sums += torch.stack(parts).detach()
        self.step += 1

    def _losses(self, batch: Batch, x: Tensor, mask: Tensor, noise: Tensor | None) -> tuple[list[Tensor], Trace]:
        """Task, balance and z-loss of the whole batch; their gradients are of this process's events."""
        events, total = batch.events, self.ranks.total
        with torch.autocast(self.feed.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            logits, trace = self.forward(x, mask, events.node_type, noise=noise)
        each = functional.cross_entropy(logits.float(), events.y, reduction="none") * events.weight
        task = total(each.sum() / batch.size)
        if not self.moes:
            return [task, task.new_zeros(()), task.new_zeros(())], trace
        balance = BALANCE_LOSSES.get(self.settings.balance, balance_loss)
        return [task, balance(trace, mask, total), z_loss(trace, mask, total)], trace

    def _draw(self, batch: Batch) -> tuple[Tensor, Bool[Tensor, "B N"], Float[Tensor, "B L N X"] | None]:
        """How and which objects the model sees and the noise of its routers, drawn for the whole batch: however many
        processes share it, the numbers are the same."""
        self.generator.manual_seed(step_seed(self.seed, self.total_steps))
        return draw(batch.events.x, batch.events.mask, batch.rows, batch.size, self.moes, self.settings, self.generator)

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
        """Weighted loss and AUC (class 1 against the rest) of the validation events, of which every process scores its
        share."""
        score, mine = torch.zeros(len(self.validation)), self.ranks.share(len(self.validation))
        score[mine] = predict(self.kept, self.validation[mine])
        score = self.ranks.total(score)
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
            "snapshots": self.settings.snapshots,
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
    model: Model,
    train: GraphBatch | Events,
    validation: GraphBatch | Events,
    settings: TrainSettings,
    seed: int,
    folder: Path,
    ranks: Ranks = ALONE,
    source: Path | None = None,
    track: Track = untracked,
) -> list[Epoch]:
    """Train `model` in place and leave it with its best weights; returns the history.

    Writes `best.safetensors` (highest validation AUC) and `last.pt` (the state) into `folder`; if `last.pt` is there
    already, the training goes on from it and ends as if it had never stopped, also with another number of processes
    (up to rounding and dropout then). A signal that `signals.raised` listens to ends it after the step at hand, with
    the state saved. With several `ranks` every process calls this and the first one writes. `source`: the checkpoint
    folder of a training to go on from, with its standardisation. `track` is told the number of epochs known already and
    gives, while its context lasts, what is called with the history after every epoch. Boosted trees are grown at once
    (`hepx.train.boosting`).
    """
    train, validation = (InMemory(one) if isinstance(one, GraphBatch) else one for one in (train, validation))
    device = next(model.parameters()).device
    scale = class_scale(parts(train), settings.weights)
    if isinstance(model, BoostedTrees):
        few = at_most(validation, settings.validation_events)
        return grow_trees(model, train, few, scale, settings, seed, folder, ranks, track)
    feed = Feed(train, scale, settings, seed, device, ranks)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if source is None:
            model.inputs.fit_parts(
                (one.to(device), loss_weights(one, scale, settings.weights).to(device)) for one in parts(train)
            )
        else:
            load_weights(model, source)
            freeze(model, settings.freeze, settings.trainable_layers)
        state = _Fit(model, feed, at_most(validation, settings.validation_events))
        _start(state, folder)
        with (track if ranks.is_first else untracked)(len(state.history)) as report:
            _epochs(state, folder, report)
    load_weights(model, folder)
    return state.history


def _start(state: _Fit, folder: Path) -> None:
    """Go on from the saved state if there is one; all processes begin alike."""
    if state.ranks.is_first:
        open_folder(folder)
    if state.ranks.from_first((folder / "last.pt").exists()):
        _go_on(state, torch.load(folder / "last.pt", weights_only=True, map_location="cpu"))
    if state.ranks.is_first and not (state.settings.snapshots and state.history):
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
    state.ranks.copy_first([*state.model.state_dict().values(), *state.kept.state_dict().values()])


def _go_on(state: _Fit, saved: dict[str, Any]) -> None:
    """Take up a saved state, unless it is of a training that kept other snapshots: those cannot be made good."""
    if state.settings.snapshots not in (0, saved.get("snapshots", 0)):
        log.info("training starts again, to the same weights, for the snapshots that are wanted now")
        return
    state.restore(saved)
    log.info("training goes on after epoch %d, step %d", len(state.history), state.step)


def _epochs(state: _Fit, folder: Path, report: Report) -> None:
    settings = state.settings
    total = settings.epochs * state.steps_per_epoch
    with signals.deferred("checkpoint written") as stop, progress("train", total, " steps") as advance:
        advance(state.total_steps)
        while len(state.history) < settings.epochs and not _stopped(state.history, settings.patience):
            if not _steps(state, folder, advance, stop, report):
                return


def _steps(state: _Fit, folder: Path, advance: Advance, stop: Callable[[], bool], report: Report) -> bool:
    """The rest of an epoch; False if it was stopped."""
    settings, saved, since = state.settings, state.step, time.monotonic()
    for batch in state.feed.batches(len(state.history), state.step):
        state.advance(batch)
        advance(1, f"epoch {len(state.history) + 1}")
        late = settings.checkpoint_seconds is not None and time.monotonic() - since >= settings.checkpoint_seconds
        due = settings.checkpoint_steps is not None and state.step - saved >= settings.checkpoint_steps
        stopped, save = state.ranks.any(stop(), late or due)
        if stopped or save:
            _save(state, folder)
            saved, since = state.step, time.monotonic()
        if stopped:
            return False
    if state.finish_epoch() and state.ranks.is_first:
        save_weights(state.kept, folder)
    log.debug("%s", state.history[-1])
    report(state.history)
    _save_snapshot(state, folder)
    _save(state, folder)
    return not state.ranks.any(stop())[0]


def _save(state: _Fit, folder: Path) -> None:
    if state.ranks.is_first:
        with files.atomic(folder / "last.pt") as temporary:
            torch.save(state.state(), temporary)


def _save_snapshot(state: _Fit, folder: Path) -> None:
    """Keep the weights of this epoch if it is one of those wanted, or the last."""
    settings, epoch = state.settings, len(state.history)
    if not state.ranks.is_first or not settings.snapshots:
        return
    if epoch in kept_epochs(settings.epochs, settings.snapshots) or _stopped(state.history, settings.patience):
        write_snapshot(folder / FOLDER, epoch, state.history[-1].lr, state.kept.state_dict())


def _stopped(history: list[Epoch], patience: int) -> bool:
    """No better validation AUC for `patience` epochs."""
    if not history:
        return False
    best = max(range(len(history)), key=lambda i: history[i].validation_auc)
    return len(history) - 1 - best >= patience
