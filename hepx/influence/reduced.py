"""Training sets from which events are dropped by their scores, or at random, and the trainings on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from hepx import random
from hepx.config import Settings
from hepx.errors import ConfigError
from hepx.graph import GraphBatch
from hepx.influence.retrain import Change, Recipe, Retrained, retrain
from hepx.train import TrainSettings

Array = npt.NDArray[Any]
Order = Literal["highest", "lowest"]
EPOCHS, STEPS = "events", "steps"  # what a comparison holds equal; the same number of epochs, or of steps as the full
FULL, SHORT, RANDOM = "full", "short", "random"


class DistillSettings(Settings):
    """fractions of the training events that are dropped; seeds of the trainings; orders: which end of the ranking goes;
    sets: how many random removals stand beside it; epochs of the full training (null: as in the config of the run)."""

    fractions: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.2, 0.5)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(1, 2, 3), min_length=2)
    orders: tuple[Order, ...] = Field(default=("highest", "lowest"), min_length=1)
    sets: int = Field(default=4, ge=2)
    epochs: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Arm:
    """One way to train, with every seed. score: what ranks the events, or full, short, random; order: which end is
    dropped; fraction that is dropped; equal: to the full training in epochs (`events`) or in `steps`; draw: number of
    the random set."""

    score: str
    order: str
    fraction: float
    equal: str
    epochs: int
    draw: int = 0

    @property
    def is_scored(self) -> bool:
        """Whether a score decides what is dropped."""
        return self.score not in (FULL, SHORT, RANDOM)


@dataclass(frozen=True)
class Study:
    """A model with its training settings, training and test events, and scores of the training events by name [B]."""

    model: Settings
    train: TrainSettings
    events: GraphBatch
    test: GraphBatch
    scores: Mapping[str, Array]
    settings: DistillSettings

    @cached_property
    def epochs(self) -> int:
        """Of the full training."""
        return self.settings.epochs or self.train.epochs

    @cached_property
    def steps_per_epoch(self) -> int:
        """Of the full training."""
        return math.ceil(len(self.events) / self.train.batch_size)

    def num_dropped(self, fraction: float) -> int:
        """Number of events that a fraction is."""
        return round(fraction * len(self.events))

    def arms(self) -> list[Arm]:
        """Full training; then per fraction the shorter one, random removal and every score, at equal events and steps.

        The number of epochs of equal steps is rounded, so steps agree with those of the full training to half an epoch.
        """
        found = [Arm(FULL, "", 0.0, EPOCHS, self.epochs)]
        for fraction in self.settings.fractions:
            left = math.ceil((len(self.events) - self.num_dropped(fraction)) / self.train.batch_size)
            more, fewer = self.steps_per_epoch / left, left / self.steps_per_epoch
            found.append(Arm(SHORT, "", fraction, STEPS, max(1, round(self.epochs * fewer))))
            for equal, epochs in ((EPOCHS, self.epochs), (STEPS, round(self.epochs * more))):
                found += [Arm(RANDOM, "", fraction, equal, epochs, draw) for draw in range(self.settings.sets)]
                for score in self.scores:
                    found += [Arm(score, order, fraction, equal, epochs) for order in self.settings.orders]
        return found

    def dropped(self, arm: Arm) -> Array:
        """Mask [B] of the events that are dropped: the ends of the ranking (equal scores by the event id), or events
        drawn at random, more of them for a larger fraction. Only training events are looked at."""
        mask = np.zeros(len(self.events), dtype=bool)
        if arm.score in (FULL, SHORT):
            return mask
        ids = self.events.event_id.numpy()
        if arm.score == RANDOM:
            value = random.uniform(arm.draw, ids, "distill", 1)[:, 0]
        else:
            value = self.scores[arm.score] * (-1 if arm.order == "highest" else 1)
        mask[np.lexsort((ids, value))[: self.num_dropped(arm.fraction)]] = True
        return mask

    def change(self, arm: Arm, seed: int) -> Change:
        """The training of an arm with a seed."""
        rows = None if arm.fraction == 0 or arm.score == SHORT else np.flatnonzero(~self.dropped(arm))
        name = f"{arm.score} {arm.order or arm.draw} {arm.fraction:g} equal {arm.equal}, seed {seed}"
        return Change(name=name, seed=seed, rows=None if rows is None else torch.from_numpy(rows))


def execute(study: Study, folder: Path, workers: int = 1) -> dict[Arm, list[Retrained]]:
    """All trainings, those whose files are in `folder` not again; outcomes per arm, one per seed."""
    if len(set(study.settings.seeds)) < 2:
        raise ConfigError("distill needs two different seeds at least: one says nothing about the spread of trainings.")
    found: dict[Arm, list[Retrained]] = {}
    arms = study.arms()
    for epochs in dict.fromkeys(arm.epochs for arm in arms):
        settings = study.train.model_copy(update={"epochs": epochs})
        recipe = Recipe(study.model, settings, study.events, study.test)
        mine = [arm for arm in arms if arm.epochs == epochs]
        changes = [study.change(arm, seed) for arm in mine for seed in study.settings.seeds]
        done = retrain(recipe, changes, folder, workers, what=f"distill, {epochs} epochs")
        num = len(study.settings.seeds)
        found |= {arm: done[i * num : (i + 1) * num] for i, arm in enumerate(mine)}
    return {arm: found[arm] for arm in arms}
