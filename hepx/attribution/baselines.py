"""What replaces a removed object: events drawn from the data, turned about the beam.

A donor event has the same objects present as the explained one. It is turned by an angle measured from the explained
event (at random, or so that their leptons point the same way), so an explanation does not change when the event is
rotated: φ has no zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hepx import random
from hepx.errors import ResultError
from hepx.graph import NODE_TYPES, GraphBatch
from hepx.models.inputs import PHI


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


def background_events(train: GraphBatch, target: int) -> GraphBatch:
    """Baseline `background`: training events that are not of the target class."""
    return train[train.y != target]


def patterns(graphs: GraphBatch, donors: GraphBatch) -> Iterator[Pattern]:
    """Group events by which objects are present and which slots share one; ResultError if a group has no donor."""
    keys, inverse = torch.unique(_players(graphs), dim=0, return_inverse=True)
    donor_players = _players(donors)
    for number, player in enumerate(keys):
        matching = donors[(donor_players == player).all(-1)]
        if len(matching) == 0:
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


def draw(
    pattern: Pattern, events: GraphBatch, draws: int, seed: int, aligned: bool = False
) -> Float[Tensor, "b K N F"]:
    """Raw features of `draws` donors per event, with probability ∝ |weight| (a reference has no sign).

    Each donor is turned by a uniform angle, so that a single object taken from it brings no direction along; or, if
    `aligned`, so that its reference direction is the event's, which makes φ differences those of Δφ to the lepton.
    What an event is given depends on the seed and on its event id alone, not on the other events.
    """
    weight = pattern.donors.weight.abs().double()
    if weight.sum() <= 0:
        raise ResultError(
            f"all {len(weight)} baseline events with these objects have weight 0, so none can be drawn. "
            "Give the background events weights, or drop these events from the selection."
        )
    event_id = events.event_id.numpy()
    edges = (weight.cumsum(0) / weight.sum()).numpy()
    chosen = torch.from_numpy(np.searchsorted(edges[:-1], random.uniform(seed, event_id, "donor", draws), side="right"))
    x = pattern.donors.x[chosen]
    if aligned:
        angle = reference_phi(events)[:, None] - reference_phi(pattern.donors)[chosen]
    else:
        angle = (
            reference_phi(events)[:, None]
            + 2 * torch.pi * torch.from_numpy(random.uniform(seed, event_id, "angle", draws)).float()
        )
    turn = (pattern.player >= 0).to(x.dtype) * angle[..., None]
    x[..., PHI] = torch.remainder(x[..., PHI] + turn + torch.pi, 2 * torch.pi) - torch.pi
    return x


def reference_phi(events: GraphBatch) -> Float[Tensor, "B"]:
    """A direction that turns with the event: that of its lepton, of its hardest object where there is none."""
    is_lepton = events.mask & (events.node_type == NODE_TYPES.index("lepton"))
    hardest = torch.where(events.mask, events.x[..., 0], -1.0).argmax(-1)
    slot = torch.where(is_lepton.any(-1), is_lepton.to(torch.int64).argmax(-1), hardest)
    return events.x[..., PHI].gather(1, slot[:, None])[:, 0]
