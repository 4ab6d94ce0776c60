"""What replaces a removed object or feature: the baseline, which decides what question an explanation answers.

background: training events of the other classes (why is this not background?); process: those of one process (why not
ttbar?); conditional: background events that are near in a few observables (given MET, H_T and the number of jets, what
else?), which keeps replacements on the data (Frye et al., arXiv:2006.01272, compare the two questions); mean and zero:
one artificial event, kept because others use it; masked: the object is absent, which means something only to a model
trained with hidden objects.

A donor event has the same objects present as the explained one. It is turned by an angle measured from the explained
event (at random, or so that their leptons point the same way), so an explanation does not change when the event is
rotated: φ has no zero. Which donors an event gets depends on the seed and its event number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from hepx import random
from hepx.attribution.base import ROWS_PER_PASS, Method, Subject, in_chunks
from hepx.errors import ConfigError, ResultError, closest
from hepx.graph import NODE_TYPES, GraphBatch, Layout
from hepx.models.inputs import PHI

EVENTS_PER_SEARCH = 64  # explained events compared with all donors at once: bounds the memory
MASKED_NOTE = (
    "objects were removed by masking, but the model was not trained with hidden objects (train.node_dropout), so it "
    "has never seen such events and the values may be far off"
)


class Referenced(Method):
    """Base of the methods that replace by something: `draws` replacements per event from `baseline`.

    process: the sample of the donors, for baseline `process`. near: observables in which donors of baseline
    `conditional` are close, in units of their spread; neighbours: how many of the closest are drawn from. mean, zero
    and masked know one replacement only.
    """

    baseline: Literal["background", "process", "conditional", "masked", "mean", "zero"] = "background"
    process: str | None = None
    near: tuple[str, ...] = Field(default=("met", "ht", "n_jet"), min_length=1)
    neighbours: int = Field(default=200, ge=2)
    draws: int = Field(default=16, ge=2)

    @model_validator(mode="after")
    def _process_is_named(self) -> Referenced:
        if (self.baseline == "process") != (self.process is not None):
            raise ValueError("baseline: process needs process: <name of a sample>, and only that baseline takes it")
        return self

    def refuse_unknown(self, layout: Layout) -> None:
        """The process must be a sample, and what donors are near in an observable."""
        if self.process is not None and self.process not in layout.samples:
            raise ConfigError(
                f"baseline process '{self.process}' is no sample; {closest(self.process, layout.samples)}"
            )
        for name in self.near:
            layout.observable_index(name)

    @property
    def name(self) -> str:
        """The method, and what replaces where that is not the background."""
        parts = [str(self.model_dump()["method"]), self.baseline, self.process]
        return "_".join(part for part in parts if part and part != "background")

    @property
    def num_draws(self) -> int:
        """Replacements per event: one where they are not random."""
        return 1 if self.baseline in ("masked", "mean", "zero") else self.draws

    def note(self, subject: Subject) -> str:
        """What a reader of the result must know."""
        return MASKED_NOTE if self.baseline == "masked" and not subject.node_dropout else ""


@dataclass(frozen=True)
class Pattern:
    """Events with the same objects present and the same aliases.

    index [b]: positions of the events; player [N]: number of the object of each slot, −1 absent; donors: the events
    that may replace their objects.
    """

    index: Int[Tensor, "b"]
    player: Int[Tensor, "N"]
    donors: GraphBatch

    @property
    def num_players(self) -> int:
        """Number of distinct objects."""
        return int(self.player.max()) + 1

    @property
    def first_slot(self) -> list[int]:
        """Slot where each object appears first."""
        return [self.player.tolist().index(i) for i in range(self.num_players)]


def background_events(train: GraphBatch, target: int) -> GraphBatch:
    """Training events that are not of the target class."""
    return train[train.y != target]


def donor_pool(method: Referenced, subject: Subject) -> GraphBatch:
    """The events the method draws from."""
    if method.baseline != "process":
        return background_events(subject.baseline, subject.target)
    method.refuse_unknown(subject.baseline.layout)
    found = subject.baseline[subject.baseline.sample == subject.baseline.layout.samples.index(method.process)]
    if len(found) == 0:
        raise ResultError(f"there are no training events of process '{method.process}' to draw replacements from.")
    return found


def per_pattern(
    method: Referenced,
    subject: Subject,
    rows_per_event: Callable[[Pattern], int],
    compute: Callable[[Pattern, GraphBatch], Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Arrays [B, ...] computed from events with the same objects, a bounded number of rows at a time."""
    graphs = subject.graphs
    groups = list(patterns(graphs, donor_pool(method, subject), method.baseline not in ("masked", "zero")))
    chunks = (
        (index, lambda chosen, pattern=pattern: compute(pattern, graphs[chosen]))
        for pattern in groups
        for index in pattern.index.split(max(1, ROWS_PER_PASS // rows_per_event(pattern)))
    )
    return in_chunks(len(graphs), chunks)


def patterns(graphs: GraphBatch, donors: GraphBatch, required: bool = True) -> Iterator[Pattern]:
    """Group events by which objects are present and which slots share one; ResultError if a group has no donor."""
    keys, inverse = torch.unique(_players(graphs), dim=0, return_inverse=True)
    donor_players = _players(donors)
    for number, player in enumerate(keys):
        matching = donors[(donor_players == player).all(-1)]
        if required and len(matching) == 0:
            slots = [name for name, p in zip(graphs.layout.slots, player.tolist(), strict=True) if p >= 0]
            raise ResultError(
                f"no baseline event has exactly the objects {', '.join(slots)}; "
                "an explanation needs at least one. Add background events or drop these events from the selection."
            )
        yield Pattern(torch.nonzero(inverse == number).flatten(), player, matching)


def _players(graphs: GraphBatch) -> Int[Tensor, "B N"]:
    """Number the distinct objects of each event in slot order; −1 where absent, equal for aliases."""
    objects = graphs.object_index.to(torch.int64)
    same = (objects[:, :, None] == objects[:, None, :]).to(torch.int64)
    first = same.argmax(-1)  # slot where the object appears first
    slots = torch.arange(objects.shape[1])
    is_first = (first == slots) & graphs.mask
    number = is_first.to(torch.int64).cumsum(1) - 1
    return torch.where(graphs.mask, number.gather(1, first), -1)


def replacements(
    method: Referenced, pattern: Pattern, events: GraphBatch, seed: int, aligned: bool
) -> Float[Tensor, "b K N F"]:
    """Raw features that replace those of each event.

    Donors are turned by a uniform angle, so that a single object taken from one brings no direction along; or, if
    `aligned`, so that their reference direction is the event's, which makes φ differences those of Δφ to the lepton.
    """
    if method.baseline in ("masked", "zero"):
        return _turned(torch.zeros_like(events.x[:, None]), reference_phi(events)[:, None], pattern)
    if method.baseline == "mean":
        mean = mean_event(pattern).expand(len(events), 1, *events.x.shape[1:])
        return _turned(mean.clone(), reference_phi(events)[:, None], pattern)
    near = (method.near, method.neighbours) if method.baseline == "conditional" else None
    return draw(pattern, events, method.draws, seed, aligned, near)


def draw(
    pattern: Pattern,
    events: GraphBatch,
    draws: int,
    seed: int,
    aligned: bool = False,
    near: tuple[tuple[str, ...], int] | None = None,
) -> Float[Tensor, "b K N F"]:
    """Raw features of `draws` donors per event, with probability ∝ |weight| (a reference has no sign)."""
    weight = pattern.donors.weight.abs().double()
    if weight.sum() <= 0:
        raise ResultError(
            f"all {len(weight)} baseline events with these objects have weight 0, so none can be drawn. "
            "Give the background events weights, or drop these events from the selection."
        )
    ids = events.event_id.numpy()
    share, turn = (torch.from_numpy(random.uniform(seed, ids, what, draws)) for what in ("donor", "angle"))
    if near is None:
        chosen = _pick(weight.expand(1, -1), share.reshape(1, -1)).reshape(share.shape)
    else:
        parts = torch.arange(len(events)).split(EVENTS_PER_SEARCH)
        chosen = torch.cat([_pick_near(pattern.donors, events[part], share[part], *near) for part in parts])
    x = pattern.donors.x[chosen].clone()
    angle = reference_phi(events)[:, None]
    angle = angle - reference_phi(pattern.donors)[chosen] if aligned else angle + 2 * torch.pi * turn.to(x.dtype)
    return _turned(x, angle, pattern)


def _pick(weight: Float[Tensor, "b M"], share: Float[Tensor, "b K"]) -> Int[Tensor, "b K"]:
    """Positions drawn with probability ∝ weight: where the running sum of weights passes the share."""
    running = weight.cumsum(1)
    chosen = torch.searchsorted(running, share * running[:, -1:], right=True)
    return chosen.clamp(max=weight.shape[1] - 1)


def _pick_near(
    donors: GraphBatch, events: GraphBatch, share: Float[Tensor, "b K"], near: tuple[str, ...], neighbours: int
) -> Int[Tensor, "b K"]:
    """Positions of donors among the `neighbours` closest with weight; an undefined observable counts as equal."""
    distance = torch.zeros(len(events), len(donors), dtype=torch.float64)
    for name in near:
        theirs, ours = donors.observable(name).double(), events.observable(name).double()
        spread = torch.from_numpy(np.nanstd(theirs.numpy(), keepdims=True)) if theirs.isfinite().any() else 1.0
        distance += torch.nan_to_num((ours[:, None] - theirs) / (spread + 1e-9)) ** 2
    distance[:, donors.weight == 0] = torch.inf
    closest_ones = distance.sort(dim=1, stable=True).indices[:, :neighbours]
    weight = donors.weight.abs().double()[closest_ones]
    return closest_ones.gather(1, _pick(weight, share))


def mean_event(pattern: Pattern) -> Float[Tensor, "N F"]:
    """Weighted mean of the donors' features; of φ, the mean direction relative to the reference direction."""
    weight = pattern.donors.weight.abs().double()
    weight = (weight / weight.sum())[:, None, None]
    x = pattern.donors.x.double()
    mean = (weight * x).sum(0)
    angle = x[..., PHI] - reference_phi(pattern.donors)[:, None]
    mean[:, PHI] = torch.atan2((weight[..., 0] * angle.sin()).sum(0), (weight[..., 0] * angle.cos()).sum(0))
    return mean.to(pattern.donors.x.dtype)


def _turned(x: Float[Tensor, "b K N F"], angle: Float[Tensor, "b #K"], pattern: Pattern) -> Float[Tensor, "b K N F"]:
    """Rotate the objects about the beam, in place."""
    turn = (pattern.player >= 0).to(x.dtype) * angle[..., None]
    x[..., PHI] = torch.remainder(x[..., PHI] + turn + torch.pi, 2 * torch.pi) - torch.pi
    return x


def reference_phi(events: GraphBatch) -> Float[Tensor, "B"]:
    """A direction that turns with the event: that of its lepton, of its hardest object where there is none."""
    is_lepton = events.mask & (events.node_type == NODE_TYPES.index("lepton"))
    hardest = torch.where(events.mask, events.x[..., 0], -1.0).argmax(-1)
    slot = torch.where(is_lepton.any(-1), is_lepton.to(torch.int64).argmax(-1), hardest)
    return events.x[..., PHI].gather(1, slot[:, None])[:, 0]
