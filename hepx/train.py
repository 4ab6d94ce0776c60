"""Fit a model: weighted loss, AdamW, warm-up and cosine, early stopping on the validation AUC, exact restart per epoch.

Losses of the router are functions of the Trace: Switch balance loss (arXiv:2101.03961 eq. 4), squared coefficient of
variation (arXiv:1701.06538 eq. 11), router z-loss (arXiv:2202.08906 eq. 5), and loss-free balancing (arXiv:2408.15664),
which moves a bias of the expert choice instead.
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from hepx import files, metrics
from hepx.config import Settings
from hepx.errors import DataError, ResultError
from hepx.graph import GraphBatch
from hepx.models import Model, Trace, predict
from hepx.models.layers import MixtureOfExperts
from hepx.progress import progress

log = logging.getLogger(__name__)


class TrainSettings(Settings):
    """How a model is fitted. `weights: physics` keeps the relative weights of the processes inside each class, `sign`
    counts every event once with the sign of its weight; both classes get equal total weight either way.

    schedule: after the warm-up half a cosine to zero, or `step`, times `step_factor` every `step_epochs` epochs.
    balance: `loss_free` moves the expert choice; `switch` and `cv2` are losses times `balance_weight`.
    router_noise: standard deviation of the noise of the expert choice, drawn per node (1 for a router that scales it).
    ema: decay per step of a running mean of the weights, which is what is evaluated and kept (0: off; arXiv:1803.05407
    for why a mean of weights is flatter). node_dropout: fraction of the training events in which a random subset of the
    objects is hidden, all subset sizes equally likely: the network then learns what is left to know without them, and
    removing an object by its mask is a fair question (arXiv:2107.07436).
    """

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=512, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = Field(default=1e-2, ge=0)
    schedule: Literal["cosine", "step"] = "cosine"
    step_epochs: int = Field(default=45, ge=1)
    step_factor: float = Field(default=0.1, gt=0, le=1)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    patience: int = Field(default=8, ge=1)
    grad_clip: float = Field(default=1.0, gt=0)
    weights: Literal["physics", "sign"] = "physics"
    balance: Literal["loss_free", "switch", "cv2", "none"] = "loss_free"
    balance_rate: float = Field(default=1e-3, ge=0)
    balance_weight: float = Field(default=1e-2, ge=0)
    z_weight: float = Field(default=1e-3, ge=0)
    router_noise: float = Field(default=0.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    node_dropout: float = Field(default=0.0, ge=0, le=1)


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


def training_weights(graphs: GraphBatch, mode: Literal["physics", "sign"] = "physics") -> Float[Tensor, "B"]:
    """Weights of the loss: every class has the same total and the mean is 1; signs are kept.

    Raises DataError if a class has no positive total.
    """
    weight = graphs.weight if mode == "physics" else torch.sign(graphs.weight)
    num_classes = graphs.layout.num_classes
    totals = torch.zeros(num_classes, dtype=weight.dtype).index_add(0, graphs.y, weight)
    if (totals <= 0).any():
        label = int(torch.argmin(totals))
        raise DataError(
            f"class {label} has a total training weight of {float(totals[label]):g}; expected a positive number. "
            "Add events of this class, or use train.weights=sign."
        )
    return weight * len(graphs) / (num_classes * totals[graphs.y])


def balance_loss(trace: Trace, mask: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Switch loss X·Σ_e f_e p_e, mean over layers: f_e share of the choices, p_e mean router probability; 1 is even."""
    node = mask[:, None, :, None].to(trace.gates.dtype)
    chosen = (trace.gates > 0).to(trace.gates.dtype) * node
    share = chosen.sum((0, 2)) / chosen.sum((0, 2, 3)).clamp(min=1)[:, None]
    probability = (torch.softmax(trace.router_logits, -1) * node).sum((0, 2)) / node.sum().clamp(min=1)
    return trace.gates.shape[-1] * (share * probability).sum(-1).mean()


def cv2_loss(trace: Trace, mask: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the experts' loads, mean over layers; 0 is even, X is all on one expert.

    The load is the sum over nodes of the smooth load where the router has noise of its own, else of the gates.
    """
    used = trace.gates if trace.load is None else trace.load
    load = (used * mask[:, None, :, None]).sum((0, 2))
    if load.shape[-1] == 1:
        return load.new_zeros(())
    return (load.var(-1) / (load.mean(-1) ** 2).clamp(min=1e-12)).mean()


BALANCE_LOSSES = {"switch": balance_loss, "cv2": cv2_loss}


def z_loss(trace: Trace, mask: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Mean squared log-sum-exp of the router logits: keeps them small and the gates smooth."""
    node = mask[:, None, :].expand(trace.router_logits.shape[:-1])
    return (torch.logsumexp(trace.router_logits, -1) ** 2 * node).sum() / node.sum().clamp(min=1)


@torch.no_grad()
def update_selection_bias(model: Model, trace: Trace, mask: Bool[Tensor, "B N"], rate: float) -> None:
    """Loss-free balancing: raise the bias of experts used less than average, lower the others'."""
    load = ((trace.gates > 0) & mask[:, None, :, None]).sum((0, 2)).float()
    step = rate * torch.sign(load.mean(-1, keepdim=True) - load)
    for layer, moe in enumerate(module for module in model.modules() if isinstance(module, MixtureOfExperts)):
        moe.selection_bias += step[layer]


def hide_objects(
    mask: Bool[Tensor, "B N"], fraction: float, generator: torch.Generator | None = None
) -> Bool[Tensor, "B N"]:
    """The mask with a random subset of the objects hidden in about `fraction` of the events: each object of such an
    event stays with one probability, drawn flat per event, so that every number of objects is equally likely."""
    affected = torch.rand(mask.shape[0], 1, generator=generator) < fraction
    keep = torch.rand(mask.shape[0], 1, generator=generator)
    hidden = affected & (torch.rand(mask.shape, generator=generator) > keep)
    return mask & ~hidden.to(mask.device)


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
    """The state of one training: model, optimiser, random numbers, history."""

    def __init__(
        self, model: Model, train: GraphBatch, validation: GraphBatch, settings: TrainSettings, seed: int
    ) -> None:
        self.model, self.settings = model, settings
        device = next(model.parameters()).device
        self.train, self.validation = train.to(device), validation
        self.weight = training_weights(train, settings.weights).float().to(device)
        self.validation_weight = training_weights(validation, settings.weights)
        optimizer = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = optimizer(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.kept = copy.deepcopy(model) if settings.ema else model  # what is evaluated and saved
        self.shuffle = torch.Generator().manual_seed(seed)
        self.history: list[Epoch] = []
        self.has_experts = any(isinstance(module, MixtureOfExperts) for module in model.modules())
        self.steps_per_epoch = math.ceil(len(train) / settings.batch_size)

    def step(self, index: Int[Tensor, "B"], step: int) -> Tensor:
        """One optimiser step; returns task, balance and z-loss."""
        settings, batch = self.settings, self.train[index]
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(step, self.steps_per_epoch, settings)
        mask = hide_objects(batch.mask, settings.node_dropout) if settings.node_dropout else batch.mask
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
        self._average(step)
        return torch.stack(parts).detach()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Move the kept weights towards the new ones; the first steps average over what there is."""
        if self.kept is self.model:
            return
        decay = min(self.settings.ema, (1 + step) / (10 + step))
        kept, new = self.kept.state_dict(), self.model.state_dict()
        for name, value in kept.items():
            if value.is_floating_point():
                value.lerp_(new[name], 1 - decay)

    def _noise(self, batch: GraphBatch) -> Tensor | None:
        if not self.has_experts or self.settings.router_noise == 0:
            return None
        moes = [module for module in self.model.modules() if isinstance(module, MixtureOfExperts)]
        shape = (len(batch), len(moes), batch.x.shape[1], moes[0].num_experts)
        return torch.randn(shape, device=batch.x.device) * self.settings.router_noise

    def epoch(self, number: int, advance: Any) -> Epoch:
        """One pass over the training events, then the validation."""
        self.model.train()
        order = torch.randperm(len(self.train), generator=self.shuffle)
        losses = []
        for i, index in enumerate(order.split(self.settings.batch_size)):
            losses.append(self.step(index.to(self.train.x.device), number * self.steps_per_epoch + i))
            advance(1, f"epoch {number + 1}")
        task, balance, z = torch.stack(losses).mean(0).tolist()
        if not math.isfinite(task):
            raise ResultError(
                f"the loss became {task} in epoch {number + 1}. Lower train.lr or look for extreme event weights."
            )
        return Epoch(number + 1, task, balance, z, *self.validate(), self.optimizer.param_groups[0]["lr"])

    def validate(self) -> tuple[float, float]:
        """Weighted loss and AUC (class 1 against the rest) of the validation events."""
        score = predict(self.kept, self.validation)
        y = (self.validation.y == 1).double()
        weight = self.validation_weight
        loss = float((functional.binary_cross_entropy_with_logits(score.double(), y, reduction="none") * weight).mean())
        return loss, metrics.auc(y.numpy(), score.numpy(), weight.numpy())

    def save(self, folder: Path) -> None:
        """Write everything needed to go on; the rename makes it all or nothing."""
        state = {
            "model": self.model.state_dict(),
            "kept": self.kept.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "shuffle": self.shuffle.get_state(),
            "random": torch.get_rng_state(),
            "history": [vars(epoch) for epoch in self.history],
        }
        with files.atomic(folder / "last.pt") as temporary:
            torch.save(state, temporary)

    def restore(self, folder: Path) -> None:
        """Go on from `save`."""
        state = torch.load(folder / "last.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.kept.load_state_dict(state["kept"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.shuffle.set_state(state["shuffle"])
        torch.set_rng_state(state["random"])
        self.history = [Epoch(**values) for values in state["history"]]


def fit(
    model: Model, train: GraphBatch, validation: GraphBatch, settings: TrainSettings, seed: int, folder: Path
) -> list[Epoch]:
    """Train `model` in place and leave it with its best weights; returns the history.

    Writes `best.safetensors` (highest validation AUC) and `last.pt` after every epoch into `folder`; if `last.pt` is
    there already, the training goes on from it and ends as if it had never stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.inputs.fit(train.to(device), training_weights(train, settings.weights).to(device))
        state = _Fit(model, train, validation, settings, seed)
        if (folder / "last.pt").exists():
            state.restore(folder)
            log.info("training goes on after epoch %d", len(state.history))
        _epochs(state, folder)
    load_weights(model, folder)
    return state.history


def _epochs(state: _Fit, folder: Path) -> None:
    settings = state.settings
    best = max((epoch.validation_auc for epoch in state.history), default=-1.0)
    with progress("train", settings.epochs * state.steps_per_epoch, " steps") as advance:
        advance(len(state.history) * state.steps_per_epoch)
        for number in range(len(state.history), settings.epochs):
            if _stopped(state.history, settings.patience):
                return
            epoch = state.epoch(number, advance)
            state.history.append(epoch)
            log.debug("%s", epoch)
            if epoch.validation_auc > best:
                best = epoch.validation_auc
                weights = {name: tensor.contiguous() for name, tensor in state.kept.state_dict().items()}
                with files.atomic(folder / "best.safetensors") as temporary:
                    save_file(weights, temporary)
            state.save(folder)


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
