"""What every score of training events is: settings with `of_training`, and for most `influence` on other events."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hepx.attribution import Shard
from hepx.config import Settings
from hepx.errors import ConfigError
from hepx.evaluate import SIGNAL
from hepx.graph import GraphBatch
from hepx.models import Model
from hepx.train.snapshots import Snapshot

ROWS = 4096  # training events in a block: bounds the memory of whatever is computed for all pairs


@dataclass(frozen=True)
class Task:
    """What is asked: which training events made a model say what it says of the `query` events.

    model: the architecture (its present weights are not used); trained: weights of the model whose scores are
    attributed; snapshots: of its training, chronological; others: weights of further trainings of the same model, for
    scores that average over trainings; train, weight [B]: the training events and their signed weights in the loss
    (`training_weights`); query: events of which the score (log-odds of signal) is attributed; seed: of everything that
    is drawn; cache: a folder in which gradients are kept (None: in memory only).
    """

    model: Model
    trained: Path
    snapshots: tuple[Snapshot, ...]
    train: GraphBatch
    weight: Float[Tensor, "B"]
    query: GraphBatch
    seed: int
    others: tuple[Path, ...] = ()
    cache: Path | None = None
    target: int = SIGNAL


class Score(Settings, ABC):
    """Base of all scores; a subclass names itself in `score: Literal["…"]`.

    on_itself: whether the score says something of a training event alone (`of_training`); pairwise: whether it says
    something of pairs of a training event and a query. A larger number of `of_training` means an event that is more
    unusual, harder or more influential: what an audit would look at first.
    """

    on_itself: ClassVar[bool] = True
    pairwise: ClassVar[bool] = True

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        """One number per training event: what it does to itself, or how hard it is."""
        raise ConfigError(f"score '{self.name}' says something of pairs of events only, not of a training event alone.")

    def prepare(self, task: Task, shard: Shard) -> None:
        """Put one shard of what is slow to compute into the cache of the task; nothing where nothing is."""
        del task, shard

    def blocks(self, task: Task) -> Iterator[Float[Tensor, "b Q"]]:
        """`influence` in consecutive blocks of training events, for what does not fit into memory."""
        raise ConfigError(f"score '{self.name}' says something of training events only, not of pairs with others.")

    def influence(self, task: Task) -> Float[Tensor, "B Q"]:
        """Predicted change of the score (log-odds of signal) of each query by having trained on each training event;
        positive: it pushes the query towards signal. Scores of different names differ in their scale."""
        return torch.cat(list(self.blocks(task)))

    @property
    def name(self) -> str:
        """Name of the score."""
        return str(self.model_dump()["score"])
