"""Weights kept along a training, each with the learning rate it was reached with: what training-data attribution reads.

A snapshot holds all parameters and buffers of the weights that are evaluated (the running mean, if one is kept).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hepx import files
from hepx.errors import ResultError
from hepx.models import Model

FOLDER = "snapshots"


@dataclass(frozen=True)
class Snapshot:
    """One file of weights; lr: learning rate of the step that led to it; epoch: counted from 1."""

    weights: Path
    lr: float
    epoch: int


def kept_epochs(epochs: int, snapshots: int) -> list[int]:
    """Numbers of `snapshots` epochs, evenly spread, the last one included.

    >>> kept_epochs(10, 4)
    [2, 5, 8, 10]
    """
    number = min(snapshots, epochs)
    return [round(epochs * (i + 1) / number) for i in range(number)]


def write_snapshot(folder: Path, epoch: int, lr: float, weights: Mapping[str, Tensor]) -> None:
    """Write epoch_###.safetensors with the metadata epoch and lr."""
    with files.atomic(folder / f"epoch_{epoch:03d}.safetensors") as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in weights.items()},
            temporary,
            {"epoch": str(epoch), "lr": repr(lr)},
        )


def read_snapshot(path: Path) -> Snapshot:
    """A snapshot by its file; ResultError if it does not say with which learning rate it was made: none is guessed."""
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ResultError(f"'{path}' cannot be read as a snapshot of a training ({error}).") from error
    if not {"lr", "epoch"} <= meta.keys():
        raise ResultError(
            f"snapshot '{path}' does not say with which learning rate it was made (metadata lr and epoch). "
            "Train again with train.snapshots."
        )
    return Snapshot(path, float(meta["lr"]), int(meta["epoch"]))


def read_snapshots(folder: Path) -> tuple[Snapshot, ...]:
    """The snapshots of a training in the order of its epochs; `folder`: its checkpoints. ResultError if there are
    none."""
    paths = sorted((folder / FOLDER).glob("epoch_*.safetensors"))
    if not paths:
        raise ResultError(
            f"'{folder}' holds no snapshots of the training, from which influence is computed. "
            "Train with them: hepx train CONFIG train.snapshots=5 (the training itself stays the same)."
        )
    return tuple(sorted(map(read_snapshot, paths), key=lambda one: one.epoch))


def load_snapshot(model: Model, weights: Path) -> None:
    """Put the weights of a snapshot, or of a trained model, into a model of the same settings."""
    model.load_state_dict(load_file(weights))
