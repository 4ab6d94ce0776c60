"""What every attribution method is: settings with `explain`, a frozen recipe that turns events into a result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from hepx.config import Settings
from hepx.graph import RAW_FEATURES, GraphBatch, Layout
from hepx.models import Model, log_odds, require_gradients
from hepx.results import Array, EventResult, EventTable, Provenance, Result

ROWS_PER_PASS = 4096  # rows of the network per forward pass: more is slower (the cache), and bounds the memory
ROW_GROUP = 16
"""The rows of an event start at a multiple of this. A narrow matrix product rounds by the place of a row in such a
group; in blocks, scores and gradients of an event do not depend on the other events, bit by bit."""


@dataclass(frozen=True)
class Subject:
    """What is explained: a trained model's score for class `target` on the events.

    untrained: the same model before training (the null); baseline: the training events that replacements are drawn
    from; node_dropout: the model was trained with hidden objects, so an absent object means something to it; share: of
    the weight of the whole sample that the events carry, for yields.
    """

    model: Model
    untrained: Model
    graphs: GraphBatch
    baseline: GraphBatch
    target: int
    seed: int
    node_dropout: bool = False
    share: float = 1.0


class Method(Settings, ABC):
    """Base of all methods. `events`: how many test events are explained, chosen at random; `variation`: these events
    under a systematic variation of the config, into a result of its own (shapley@jes_up.npz).

    per_event: the result is an EventResult and says of each event what does not depend on the other events (on a CPU
    bit by bit; with 16 experts or more, which then sort the nodes of the batch, up to rounding); it can be worked out
    in blocks of events (`hepx.attribution.blocks`), by several jobs at once. A method that is random draws per event,
    with `hepx.random`. Other methods see all events in one call. needs_gradients: of the model.
    """

    per_event: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    events: int = Field(default=1000, ge=1)
    variation: str = ""

    @abstractmethod
    def explain(self, subject: Subject, provenance: Provenance) -> Result:
        """Run the method on all events of the subject. `hepx.attribution.explain` does so in blocks, and checks."""

    def check(self, result: EventResult) -> EventResult:
        """The whole result of a `per_event` method, with a note if need be; ResultError if it is not to be trusted."""
        return result

    def refuse_unknown(self, layout: Layout) -> None:
        """ConfigError if the settings name what such graphs do not have; asked before there is anything to explain."""

    def refuse_model(self, model: Model) -> None:
        """ConfigError if the method needs gradients that the model does not have."""
        if self.needs_gradients:
            require_gradients(model, f"method '{self.name}'")

    @property
    def name(self) -> str:
        """Name of the method, and what tells it from others of the same method."""
        return str(self.model_dump()["method"])

    @property
    def result(self) -> str:
        """Name of the result file without the suffix: the name, and under which variation."""
        return f"{self.name}@{self.variation}" if self.variation else self.name


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


def in_blocks(values: Float[Tensor, "b k *n"] | Tensor) -> Tensor:
    """Rows [b·k′, *n] with the k rows of an event padded to a multiple of ROW_GROUP by copies of its last one."""
    missing = -values.shape[1] % ROW_GROUP
    padding = values[:, -1:].expand(-1, missing, *[-1] * (values.ndim - 2))
    return torch.cat([values, padding], 1).flatten(0, 1)


def from_blocks(rows: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Inverse of `in_blocks`: [b, k, *n] for shape (b, k, …)."""
    return rows.unflatten(0, (shape[0], -1))[:, : shape[1]]


@dataclass(frozen=True)
class Shared:
    """What a model computes of objects and pairs that occur in many rows: terms [M, _] of M pairs, and which pair
    stands at each place of each row, pair [b, k, N · N]; states [M′, D] of M′ objects (None for a model that has none),
    and node [b, k, N]."""

    terms: tuple[Float[Tensor, "M _"], ...]
    pair: Int[Tensor, "b k NN"]
    states: Float[Tensor, "M2 D"] | None
    node: Int[Tensor, "b k N"]

    def of_rows(self) -> Callable[[slice], dict[str, Any]]:
        """For some of the rows, in the order of `in_blocks`, what `Model.logits` takes."""
        pair, node = in_blocks(self.pair), in_blocks(self.node)
        slots = node.shape[1]

        def given(rows: slice) -> dict[str, Any]:
            def at(values: Tensor, place: Tensor, *shape: int) -> Tensor:
                found = values.index_select(0, place[rows].flatten().to(values.device))
                return found.reshape(-1, *shape, values.shape[-1])

            found: dict[str, Any] = {}
            if self.terms:
                found["pair_terms"] = tuple(at(term, pair, slots, slots) for term in self.terms)
            if self.states is not None:
                found["states"] = at(self.states, node, slots)
            return found

        return given


@torch.inference_mode()
def scores(
    model: Model,
    x: Float[Tensor, "b k N F"],
    mask: Bool[Tensor, "b #k N"],
    node_type: Int[Tensor, "b N"],
    target: int,
    gain: Float[Tensor, "b k L H N N"] | None = None,
    shared: Shared | None = None,
) -> Float[Tensor, "b k"]:
    """Scores of k variants of each event, float64 on the CPU, in passes of bounded size; evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    slots = x.shape[2]
    all_rows = [in_blocks(x), in_blocks(mask.expand(-1, x.shape[1], -1))]
    all_rows.append(in_blocks(node_type[:, None].expand(-1, x.shape[1], slots)))
    factors, given = None if gain is None else in_blocks(gain), None if shared is None else shared.of_rows()
    parts = []
    for start in range(0, len(all_rows[0]), ROWS_PER_PASS):
        part = slice(start, start + ROWS_PER_PASS)
        rows = [tensor[part].to(device) for tensor in all_rows]
        logits = model.logits(
            *rows,
            gain=None if factors is None else factors[part].to(device),
            **({} if given is None else given(part)),
        )
        parts.append(log_odds(logits, target).double().cpu())
    return from_blocks(torch.cat(parts), x.shape)


def subsample(graphs: GraphBatch, number: int, seed: int) -> GraphBatch:
    """`number` events chosen at random without regard to class or weight, in their original order."""
    if number >= len(graphs):
        return graphs
    chosen = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(seed))[:number]
    return graphs[chosen.sort().values]


def in_chunks(
    num_events: int, chunks: Iterable[tuple[Tensor, Callable[[Tensor], Mapping[str, Tensor]]]]
) -> dict[str, Any]:
    """Arrays [B, ...] in float64, chunk by chunk; each chunk is positions [b] of events and a function of them."""
    found: dict[str, Array] = {}
    for index, compute in chunks:
        for name, value in compute(index).items():
            if name not in found:
                found[name] = np.zeros((num_events, *value.shape[1:]))
            found[name][index.numpy()] = value.double().cpu().numpy()
    return found


def chunks_of(num_events: int, rows_per_event: int) -> tuple[Tensor, ...]:
    """Positions of consecutive events whose rows fit into one pass."""
    return torch.arange(num_events).split(max(1, ROWS_PER_PASS // rows_per_event))


def mean_and_error(draws: Float[Tensor, "b K *n"]) -> tuple[Float[Tensor, "b *n"], Float[Tensor, "b *n"]]:
    """Mean over the draws and its standard error; a single draw stands for a replacement that is not random: 0."""
    num_draws = draws.shape[1]
    spread = draws.std(1) if num_draws > 1 else torch.zeros_like(draws[:, 0])
    return draws.mean(1), spread / num_draws**0.5
