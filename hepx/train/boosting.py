"""Training of gradient-boosted trees: grown at once by `hepx.trees`, with the files that any training leaves."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from hepx import files, metrics
from hepx.errors import ConfigError
from hepx.graph import GraphBatch
from hepx.models import Model
from hepx.models.boosted_trees import BoostedTrees
from hepx.train.events import Events, parts
from hepx.train.losses import loss_weights, training_weights
from hepx.train.outcome import Epoch, Track, load_weights, open_folder, save_weights, untracked
from hepx.train.ranks import Ranks
from hepx.train.settings import NEUTRAL, TrainSettings
from hepx.trees import Table

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
HEEDED = {"weights", "validation_events", *NEUTRAL}
REFUSED = ("source", "snapshots", "node_dropout")
"""Settings by which other stages would take the trees for what they are not."""


def refuse_settings(model: Model, settings: TrainSettings) -> None:
    """ConfigError for settings that promise what such a model cannot keep."""
    if not isinstance(model, BoostedTrees):
        return
    for name in REFUSED:
        value, field = getattr(settings, name), TrainSettings.model_fields[name]
        if value != field.default:
            raise ConfigError(
                f"train.{field.alias or name}: expected {field.default!r} for boosted trees, which are grown at once "
                f"and not by steps, got {value!r}. Leave it out, or choose another model.name."
            )


def grow_trees(
    model: BoostedTrees,
    train: Events,
    validation: GraphBatch,
    scale: Float[Tensor, "C"],
    settings: TrainSettings,
    seed: int,
    folder: Path,
    ranks: Ranks,
    track: Track = untracked,
) -> list[Epoch]:
    """Grow the trees of `model` and leave it with them; returns the history, one line per tree.

    Writes `best.safetensors` and, when all is done, `last.pt` with the history into `folder`; with that there, nothing
    is grown again. A training that was stopped starts from the beginning. Of several `ranks` the first one works.
    scale: factor of each class in the loss. Losses and AUC of the history take the weights with their signs.
    """
    refuse_settings(model, settings)
    done = folder / "last.pt"
    if ranks.is_first and not done.exists():
        open_folder(folder)
        _say_what_is_ignored(settings)
        history = _grow(model, train, validation, scale, settings, seed, track)
        save_weights(model, folder)
        with files.atomic(done) as temporary:
            torch.save({"history": [vars(tree) for tree in history]}, temporary)
    ranks.from_first(True)  # the others wait
    load_weights(model, folder)
    return [Epoch(**values) for values in torch.load(done, weights_only=True)["history"]]


def _say_what_is_ignored(settings: TrainSettings) -> None:
    changed = [name for name, field in TrainSettings.model_fields.items() if getattr(settings, name) != field.default]
    if ignored := [f"train.{name}" for name in changed if name not in HEEDED]:
        log.warning("boosted trees are not trained by steps, so these settings change nothing: %s", ", ".join(ignored))


@dataclass(frozen=True)
class _Split:
    """Events as the trees see them, and their weights in the loss [B], with signs: those of the table have none."""

    table: Table
    weight: Array

    @classmethod
    def of(cls, model: BoostedTrees, graphs: GraphBatch, weight: Float[Tensor, "B"]) -> _Split:
        x, y, w = model.table(graphs.x, graphs.mask, graphs.node_type), (graphs.y == 1).long().numpy(), weight.numpy()
        return cls(Table(x, y, np.abs(w)), w)

    @classmethod
    def joined(cls, parts: Iterable[_Split]) -> _Split:
        rows = [(one.table.x, one.table.y, one.weight) for one in parts]
        x, y, w = (np.concatenate(columns) for columns in zip(*rows, strict=True))
        return cls(Table(x, y, np.abs(w)), w)

    def loss(self, score: Array) -> float:
        """Cross entropy, mean over the events."""
        return float((np.logaddexp(0, np.where(self.table.y == 1, -score, score)) * self.weight).mean())


def _grow(
    model: BoostedTrees,
    train: Events,
    validation: GraphBatch,
    scale: Float[Tensor, "C"],
    settings: TrainSettings,
    seed: int,
    track: Track,
) -> list[Epoch]:
    mode, rate = settings.weights, model.settings.learning_rate
    own = _Split.joined(_Split.of(model, part, loss_weights(part, scale, mode)) for part in parts(train))
    held = _Split.of(model, validation, training_weights(validation, mode))
    log.info("growing trees on %d events with %d columns", *own.table.x.shape)
    fitted = model.grow(own.table, held.table, seed)
    history: list[Epoch] = []
    with track(0) as report:
        for first, second in zip(*(fitted.staged_score(one.table.x) for one in (own, held)), strict=True):
            auc = metrics.auc(held.table.y, second, held.weight)
            history.append(Epoch(len(history) + 1, own.loss(first), 0.0, 0.0, held.loss(second), auc, rate))
            report(history)
    return history
