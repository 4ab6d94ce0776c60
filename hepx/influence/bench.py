"""The study at work: its sizes, its trainings, and the influences of all scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from hepx.config import Settings, known_names
from hepx.influence import SCORES, Score, Task, read_snapshot
from hepx.influence.retrain import Change, Recipe, Retrained, retrain
from hepx.influence.studies import Study
from hepx.models import build_model
from hepx.train import TrainSettings, training_weights

Array = npt.NDArray[np.float64]
TESTS = ("lds", "reference", "flips", "jes", "mass", "twin", "mechanism", "brittle")


class ValidateSettings(Settings):
    """Sizes of the study: two cores need about ten minutes for the default ones.

    subsets: halves to judge on, each trained with subset_seeds seeds; tuning_subsets: more of them to choose settings
    of scores on; models: trainings whose scores are judged, the repetitions of every test; flips: shares of wrong
    labels; hidden: share of mis-modelled events; reference_…: of the deterministic training; removals: subsets of 1 %,
    and single events, removed from it; brittle_queries: decisions to be changed by removing the shares `brittle`.
    """

    train_events: int = Field(default=3000, ge=200)
    queries: int = Field(default=100, ge=10)
    subsets: int = Field(default=40, ge=4)
    tuning_subsets: int = Field(default=16, ge=4)
    subset_seeds: int = Field(default=3, ge=2)
    models: int = Field(default=5, ge=2)
    snapshots: int = Field(default=5, ge=1)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=1)
    lr: float = Field(default=3e-3, gt=0)
    flips: tuple[Annotated[float, Field(gt=0, lt=0.5)], ...] = (0.1, 0.2)
    hidden: float = Field(default=0.1, gt=0, lt=0.5)
    reference_events: int = Field(default=600, ge=50)
    reference_queries: int = Field(default=10, ge=1)
    reference_epochs: int = Field(default=5, ge=1)
    reference_seeds: int = Field(default=2, ge=1)
    removals: int = Field(default=30, ge=4)
    twins: int = Field(default=40, ge=1)
    brittle_queries: int = Field(default=8, ge=1)
    brittle: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.02, 0.1)
    seed: int = Field(default=1, ge=0)
    tests: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()

    @field_validator("tests")
    @classmethod
    def _known_tests(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known_names(names, TESTS, "test")

    @field_validator("scores")
    @classmethod
    def _known_scores(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known_names(names, SCORES, "score")

    def training(self, base: TrainSettings) -> TrainSettings:
        """The settings of a training with the sizes of the study."""
        sizes = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
        return base.model_copy(update=sizes)


QUICK = {
    "train_events": 1000,
    "queries": 50,
    "subsets": 16,
    "tuning_subsets": 8,
    "subset_seeds": 2,
    "models": 2,
    "epochs": 6,
    "reference_events": 300,
    "reference_queries": 6,
    "reference_seeds": 1,
    "removals": 16,
    "twins": 20,
    "brittle_queries": 3,
    "brittle": (0.1,),
}
"""What `--quick` changes: a minute or two, with large errors."""


@dataclass(frozen=True)
class Row:
    """What a score reached in a test. models: over how many trainings its influences were averaged (1: value is the
    mean of that many repetitions); error: of the value, None if there was no repetition; chance: what knowing nothing
    reaches; better: how many standard deviations it is above the loss, training by training (`judge.significance`;
    None where there is no loss); more: further measures."""

    test: str
    score: str
    models: int
    value: float
    error: float | None
    chance: float | None
    better: float | None = None
    more: dict[str, float] = field(default_factory=dict)


class Bench:
    """The study at work: trainings, tasks, and the influences of all scores."""

    def __init__(self, study: Study, settings: ValidateSettings, folder: Path, workers: int = 1) -> None:
        self.study, self.settings, self.folder, self.workers = study, settings, folder, workers
        self.scores: dict[str, Score] = {
            name: SCORES[name].model_validate({"score": name}) for name in settings.scores or SCORES
        }
        self.recipe = Recipe(study.model, study.train, study.events, study.queries)
        self.used: set[str] = set()
        self.repeat: tuple[float, float] | None = None
        self.scans: dict[str, dict[float, float]] = {}

    @property
    def seeds(self) -> range:
        """Of the trainings whose scores are judged."""
        return range(self.settings.seed, self.settings.seed + self.settings.models)

    def train(self, recipe: Recipe, changes: Sequence[Change], what: str, snapshots: int = 0) -> list[Retrained]:
        """`retrain` in the folder of the study."""
        self.used |= {change.key(recipe, snapshots) for change in changes}
        return retrain(recipe, changes, self.folder / "trainings", self.workers, snapshots, what)

    def tasks(self, recipe: Recipe, changes: Sequence[Change], what: str) -> list[Task]:
        """What is asked of the trainings with snapshots."""
        found = self.train(recipe, changes, what, self.settings.snapshots)
        return [task_of(recipe, change, one) for change, one in zip(changes, found, strict=True)]

    @cached_property
    def base(self) -> list[Task]:
        """Trainings on all events."""
        return self.tasks(self.recipe, [Change(f"seed {seed}", seed) for seed in self.seeds], "train")

    @cached_property
    def effects(self) -> dict[str, list[Array]]:
        """Score -> influences [B, Q] by each of the trainings on all events."""
        return {name: [effect(score, task) for task in self.base] for name, score in self.scores.items()}

    def choose(self, name: str, score: Score) -> None:
        """Use other settings of a score from now on."""
        self.scores[name] = score
        self.effects[name] = [effect(score, task) for task in self.base]


def task_of(recipe: Recipe, change: Change, trained: Retrained) -> Task:
    """What is asked of a training: who taught it its scores of the queries."""
    train = change.graphs(recipe)
    return Task(
        model=build_model(recipe.model, train.layout, change.seed),
        trained=trained.snapshots[-1],
        snapshots=tuple(map(read_snapshot, trained.snapshots)),
        train=train,
        weight=training_weights(train, recipe.train.weights),
        query=recipe.queries,
        seed=change.seed,
    )


def effect(score: Score, task: Task) -> Array:
    """Influence [B, Q] on the score of each query; what knows no pairs pushes every query towards its own label."""
    if score.pairwise:
        return score.influence(task).double().numpy()
    towards = (2 * task.train.y - 1).double() * score.of_training(task).double()
    return towards[:, None].expand(-1, len(task.query)).numpy()
