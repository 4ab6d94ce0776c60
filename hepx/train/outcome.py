"""What a training leaves: a history, and its best weights in the checkpoint folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from hepx import files
from hepx.errors import ResultError
from hepx.models import Model
from hepx.train.snapshots import FOLDER


@dataclass(frozen=True)
class Epoch:
    """One line of the history; of boosted trees, one tree."""

    epoch: int
    loss: float
    balance_loss: float
    z_loss: float
    validation_loss: float
    validation_auc: float
    lr: float


Report = Callable[[Sequence[Epoch]], None]
Track = Callable[[int], AbstractContextManager[Report]]


def _no_report(history: Sequence[Epoch]) -> None:
    del history


def untracked(num_known: int) -> AbstractContextManager[Report]:
    """Tells nobody."""
    del num_known
    return nullcontext(_no_report)


def open_folder(folder: Path) -> None:
    """Make the checkpoint folder, or clear it of half files of a killed process."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob(".*"), *(folder / FOLDER).glob(".*")]:
        path.unlink()


def save_weights(model: Model, folder: Path) -> None:
    """Write the best weights so far, atomically."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with files.atomic(folder / "best.safetensors") as temporary:
        save_file(weights, temporary)


def load_weights(model: Model, folder: Path) -> None:
    """Load the best weights of a training; ResultError if there are none."""
    path = folder / "best.safetensors"
    if not path.exists():
        raise ResultError(f"'{folder}' holds no trained weights (best.safetensors). Run `hepx train` first.")
    with files.reading(path):
        weights = load_file(path)
    model.load_state_dict(weights)
