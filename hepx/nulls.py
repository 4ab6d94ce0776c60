"""Null networks: what a network of the same settings shows that has learned nothing about the labels.

`untrained` networks have other initial weights and the input scaling of the trained one. `shuffled` ones are trained
as it was, but for fewer epochs, on labels permuted among the events (with their weights and processes, so that the
classes keep their weight spectra): they know the inputs, not the physics (arXiv:1810.03292, data randomisation).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import Field

from hepx import files, train
from hepx.config import Settings
from hepx.graph import GraphBatch
from hepx.models import Model

log = logging.getLogger(__name__)


class NullSettings(Settings):
    """How many null networks (few leave the spread among them unknown, so little exceeds it); `epochs`: how long those
    on shuffled labels are trained."""

    untrained: int = Field(default=3, ge=2)
    shuffled: int = Field(default=1, ge=0)
    epochs: int = Field(default=4, ge=1)


@dataclass(frozen=True)
class Null:
    """A null network and its kind: untrained or shuffled."""

    kind: str
    model: Model


def shuffled_labels(graphs: GraphBatch, seed: int) -> GraphBatch:
    """The same events with class, weight and process permuted together among them: independent of the objects."""
    order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(seed))
    return replace(graphs, y=graphs.y[order], weight=graphs.weight[order], sample=graphs.sample[order])


def untrained(model: Model, build: Callable[[int], Model], seeds: Sequence[int]) -> list[Null]:
    """Fresh networks with the input scaling and on the device of `model`; `build` makes one from a seed."""
    scaling = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("inputs.")}
    found = []
    for seed in seeds:
        fresh = build(seed)
        fresh.load_state_dict({**fresh.state_dict(), **scaling})
        found.append(Null("untrained", fresh.to(next(model.parameters()).device).eval()))
    return found


def shuffled(
    build: Callable[[int], Model],
    events: Callable[[], tuple[GraphBatch, GraphBatch]],
    settings: train.TrainSettings,
    seed: int,
    folder: Path,
    key: str,
    device: torch.device,
) -> Null:
    """A network trained on shuffled labels, kept in `folder`; made again only if `key` is not the one it was made with.

    events: loads the training and the validation events.
    """
    model = build(seed).to(device)
    note = folder / "key.txt"
    if note.exists() and note.read_text() == key:
        train.load_weights(model, folder)
    else:
        log.info("training a null network on shuffled labels, %d epochs", settings.epochs)
        if folder.exists():
            shutil.rmtree(folder)
        train_events, validation = (shuffled_labels(graphs, seed) for graphs in events())
        train.fit(model, train_events, validation, settings, seed, folder)
        (folder / "last.pt").unlink(missing_ok=True)
        files.write_text(note, key)
    return Null("shuffled", model.eval())
