"""What every attribution method is: settings with `explain`, a frozen recipe that turns events into an Explanation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hepx.config import Settings
from hepx.graph import RAW_FEATURES, GraphBatch
from hepx.models import Model, log_odds
from hepx.results import EventTable, Explanation, Provenance, ResponseCurve

ROWS_PER_PASS = 16_384  # rows of the network per forward pass: bounds the memory


@dataclass(frozen=True)
class Subject:
    """What is explained: a trained model's score for class `target`, the events, the baseline events, and the same
    model before training (the null)."""

    model: Model
    untrained: Model
    graphs: GraphBatch
    baseline: GraphBatch
    target: int
    seed: int


class Method(Settings, ABC):
    """Base of all methods. `events`: how many test events are explained, chosen at random.

    per_event: the result is an Explanation and says of each event what does not depend on the other events; it can then
    be worked out in blocks of events (`hepx.attribution.blocks`), by several jobs at once. A method that is random
    draws per event, with `hepx.random`. Other methods see all events in one call.
    """

    per_event: ClassVar[bool] = True
    events: int = Field(default=1000, ge=1)

    @abstractmethod
    def explain(self, subject: Subject, provenance: Provenance) -> Explanation | ResponseCurve:
        """Run the method on all events of the subject. `hepx.attribution.explain` does so in blocks, and checks."""

    def check(self, result: Explanation) -> None:
        """ResultError if the whole result of a method that is `per_event` is not to be trusted."""

    @property
    def name(self) -> str:
        """Name of the method, and of its result file without the suffix."""
        return str(self.model_dump()["method"])


def event_table(graphs: GraphBatch) -> EventTable:
    """The events of a result, as numpy."""
    layout = graphs.layout
    arrays = {name: tensor.cpu().numpy() for name, tensor in graphs.tensors().items()}
    return EventTable(
        **arrays,
        slots=layout.slots,
        types=layout.types,
        features=tuple(RAW_FEATURES),
        feature_units=tuple(RAW_FEATURES.values()),
        observable_names=layout.observables,
        observable_units=layout.observable_units,
        sample_names=layout.samples,
        sample_labels=layout.labels,
    )


@torch.inference_mode()
def scores(model: Model, x: Float[Tensor, "R N F"], mask: Tensor, node_type: Tensor, target: int) -> Float[Tensor, "R"]:
    """Scores of many rows, in passes of bounded size."""
    parts = [
        log_odds(
            model(x[i : i + ROWS_PER_PASS], mask[i : i + ROWS_PER_PASS], node_type[i : i + ROWS_PER_PASS])[0], target
        )
        for i in range(0, len(x), ROWS_PER_PASS)
    ]
    return torch.cat(parts)


def subsample(graphs: GraphBatch, number: int, seed: int) -> GraphBatch:
    """`number` events chosen at random without regard to class or weight, in their original order."""
    if number >= len(graphs):
        return graphs
    chosen = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(seed))[:number]
    return graphs[chosen.sort().values]
