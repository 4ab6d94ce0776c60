"""Which events a model was trained on, and the refusal to evaluate it on them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hepx import files
from hepx.errors import DataError
from hepx.store import in_words

Int64 = npt.NDArray[np.int64]
NAME = "training_events.npy"


def write_training_events(folder: Path, event_ids: Iterable[Int64], num_events: int) -> None:
    """Note in a checkpoint folder the events that the model is trained on: `num_events` ids that come part by part.

    They are sorted inside the file, so that they never fill memory that the system cannot take back.
    """
    with files.atomic(folder / NAME) as temporary:
        known = np.lib.format.open_memmap(temporary, "w+", np.int64, (num_events,))
        first = 0
        for part in event_ids:
            known[first : first + len(part)] = part
            first += len(part)
        known.sort()
        known.flush()


def training_events(folder: Path) -> Int64:
    """Ids [B] of the events that the model in a checkpoint folder was trained on, rising."""
    return np.load(folder / NAME, mmap_mode="r")


def refuse_training_events(folder: Path, event_id: Int64) -> None:
    """DataError if an event to be evaluated is one the model in the checkpoint folder was trained on.

    It compares the event ids themselves, so it holds across data sets, recipes and splits.
    """
    known = training_events(folder)
    position = np.minimum(np.searchsorted(known, event_id), len(known) - 1)
    seen = event_id[known[position] == event_id]
    if len(seen):
        raise DataError(
            f"{len(seen)} of {len(event_id)} events to be evaluated were used to train the model in '{folder}' or one "
            f"it was fine-tuned from, for example {in_words(int(seen[0]))}. Evaluate on other events, or train again "
            "with this split."
        )
