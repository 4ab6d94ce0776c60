"""What the network would say had it been trained on other events: many trainings, each with its small file.

Each trains the model and the settings of a run from the start, on some of the training events, with other labels or
with other weights in the loss, for all epochs of the settings: which epoch is the best on few validation events is a
coin flip that would hide what the events do, so there is no early stopping and the last weights count.

A training that is finished is kept under a digest of what made it and never done again; one that was killed loses
nothing but itself. Trainings of equally many events run together (`hepx.influence.stacked`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hepx import __version__, files
from hepx.config import Settings
from hepx.errors import ConfigError
from hepx.graph import GraphBatch
from hepx.influence.stacked import Lesson, Stack
from hepx.models import Model, build_model
from hepx.progress import progress
from hepx.train import TrainSettings, training_weights
from hepx.train.events import Columns
from hepx.train.snapshots import kept_epochs, write_snapshot
from hepx.workers import Execution, outcomes

FORMAT = 1  # of the files; and of what a training does with its random numbers
TOGETHER = 8  # trainings at once in one process: more gain little (`bench_retrain`)


@dataclass(frozen=True)
class Recipe:
    """What all trainings of a study share: the model, how it is trained, the training events, and the events whose
    scores are kept."""

    model: Settings
    train: TrainSettings
    events: GraphBatch
    queries: GraphBatch

    def __post_init__(self) -> None:
        if self.train.source is not None:
            raise ConfigError(
                "a training that starts from another one (train.from) cannot be repeated without some of its events: "
                f"the weights of '{self.train.source}' know them already. Study a run that was trained from the start."
            )

    @cached_property
    def digest(self) -> str:
        """Of everything that decides about the results."""
        graphs = [_digest(*one.tensors().values()) for one in (self.events, self.queries)]
        return files.digest([FORMAT, __version__, self.model.model_dump(mode="json"), self._settings, graphs])

    @property
    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in self.train.recipe().items() if name not in ("patience", "compile")}


@dataclass(frozen=True, eq=False)
class Change:
    """One training. name: for the reader; seed: of the weights, the order of the events and all else that is drawn.

    events: other training events, in place of those of the recipe; what follows is about them then.
    rows [b]: the training events used (all if None), rising; class weights and standardisation are those of a training
    on them. y [B]: labels of all training events, in place of their own. factor [B]: factors on the weights in the loss
    as they are without it; 0 leaves an event where it is in its batch and in the standardisation of the inputs, but it
    teaches nothing, so two trainings of one seed differ by what the event teaches and by nothing else.
    """

    name: str
    seed: int
    rows: Int[Tensor, "b"] | None = None
    y: Int[Tensor, "B"] | None = None
    factor: Float[Tensor, "B"] | None = None
    events: GraphBatch | None = None

    def graphs(self, recipe: Recipe) -> GraphBatch:
        """The events it trains on."""
        graphs = recipe.events if self.events is None else self.events
        graphs = graphs if self.y is None else replace(graphs, y=self.y)
        return graphs if self.rows is None else graphs[self.rows]

    def num_events(self, recipe: Recipe) -> int:
        """How many events it trains on."""
        return len(self.events or recipe.events) if self.rows is None else len(self.rows)

    def key(self, recipe: Recipe, snapshots: int) -> str:
        """Digest of everything that decides about the result."""
        events = () if self.events is None else self.events.tensors().values()
        return files.digest([recipe.digest, self.seed, _digest(self.rows, self.y, self.factor, *events), snapshots])


@dataclass(frozen=True)
class Retrained:
    """The outcome of a training. score [Q]: log-odds of signal of the queries; steps: of the optimiser;
    seconds: its share of the processor time of the trainings done together; snapshots: the files
    of the kept weights, chronological, the last one final (empty if none were asked for)."""

    name: str
    seed: int
    num_events: int
    epochs: int
    steps: int
    seconds: float
    score: npt.NDArray[np.float32]
    snapshots: tuple[Path, ...]


def retrain(
    recipe: Recipe,
    changes: Sequence[Change],
    folder: Path,
    workers: int = 1,
    snapshots: int = 0,
    what: str = "retrain",
) -> list[Retrained]:
    """Carry out all changes whose file is not in `folder` yet; the outcomes in the order of `changes`.

    workers: processes, with one thread each; the outcome does not depend on their number. snapshots: keep the weights
    of so many epochs, evenly spread, the last one included, as safetensors with the metadata epoch and lr. The same
    list gives the same bits; in other company a training is the same to rounding, or with dropout another draw.
    """
    groups = _groups(recipe, changes)
    left = [group for group in groups if not all(_path(folder, recipe, one, snapshots).exists() for one in group)]
    num_steps = sum(len(group) for group in left)
    work = partial(_train, recipe, folder, snapshots)
    with progress(what, num_steps, " trainings") as advance:
        for group, _ in outcomes(work, left, Execution(workers), what):
            advance(len(group), group[-1].name)
    return [_read(_path(folder, recipe, one, snapshots), one.name) for one in changes]


def _groups(recipe: Recipe, changes: Sequence[Change]) -> list[tuple[Change, ...]]:
    """Up to TOGETHER changes with equally many events each; those asked for twice once."""
    different = {change.key(recipe, 0): change for change in changes}.values()
    sizes: dict[int, list[Change]] = {}
    for change in different:
        sizes.setdefault(change.num_events(recipe), []).append(change)
    return [tuple(one[i : i + TOGETHER]) for one in sizes.values() for i in range(0, len(one), TOGETHER)]


def _train(recipe: Recipe, folder: Path, snapshots: int, group: tuple[Change, ...]) -> None:
    """Train a group and write its files."""
    start = time.process_time()
    with one_thread(), torch.random.fork_rng(devices=[]):
        models, lessons = zip(*(prepared(recipe, change) for change in group), strict=True)
        stack = Stack(models, lessons, recipe.train)
        epochs = kept_epochs(recipe.train.epochs, snapshots)
        paths = [_path(folder, recipe, change, snapshots) for change in group]

        def keep(epoch: int, stack: Stack) -> None:
            if epoch in epochs:
                for member, path in enumerate(paths):
                    write_snapshot(_weights_folder(path), epoch, stack.lr, stack.weights(member))

        stack.run(keep)
        scores = stack.scores(recipe.queries).numpy()
    seconds = (time.process_time() - start) / len(group)
    facts = np.array([stack.num_events, recipe.train.epochs, stack.step, seconds])
    for change, path, score in zip(group, paths, scores, strict=True):
        with files.atomic(path) as temporary:
            np.savez(temporary, score=score, facts=facts, seed=np.array(change.seed))


def prepared(recipe: Recipe, change: Change) -> tuple[Model, Lesson]:
    """The untrained model with its inputs standardised, and the events of a training with their weights in the loss."""
    graphs = change.graphs(recipe)
    model = build_model(recipe.model, graphs.layout, change.seed)
    weight = training_weights(graphs, recipe.train.weights)
    model.inputs.fit(graphs, weight)
    if change.factor is not None:
        weight = weight * (change.factor if change.rows is None else change.factor[change.rows])
    return model, Lesson(Columns.of(graphs, weight), change.seed)


@contextmanager
def one_thread() -> Iterator[None]:
    """A sum in another number of threads is another sum: here and in a process of its own, one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _path(folder: Path, recipe: Recipe, change: Change, snapshots: int) -> Path:
    return folder / f"{change.key(recipe, snapshots)}.npz"


def _weights_folder(path: Path) -> Path:
    return path.with_suffix("")


def _read(path: Path, name: str) -> Retrained:
    with np.load(path) as stored:
        num_events, epochs, steps, seconds = stored["facts"].tolist()
        return Retrained(
            name=name,
            seed=int(stored["seed"]),
            num_events=int(num_events),
            epochs=int(epochs),
            steps=int(steps),
            seconds=seconds,
            score=stored["score"],
            snapshots=tuple(sorted(_weights_folder(path).glob("epoch_*.safetensors"))),
        )


def _digest(*tensors: Tensor | None) -> str:
    """Of the values and types of some tensors."""
    sha = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            sha.update(np.ascontiguousarray(tensor.numpy()).tobytes())
        sha.update(b"|")
    return sha.hexdigest()
