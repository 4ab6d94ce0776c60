"""What scores of training events are tested on: planted events or those of a run, and truths hidden among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hepx.config import Settings
from hepx.errors import DataError
from hepx.graph import NODE_TYPES, GraphBatch, concatenate
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.inputs import ETA, MASS, MET_SIGNIFICANCE, PHI, PT
from hepx.planted import MECHANISMS, Mechanism, plant, toy_graphs
from hepx.train import TrainSettings

SMALL: Mapping[str, Any] = {"dim": 16, "expert_dim": 8, "hidden_dim": 16, "num_experts": 4, "dropout": 0.0}
"""What a stand-in changes of the settings of a model, as far as it has them."""
JES = 1.05  # factor on the energy of the jets of mis-modelled events
TWIN_SMEARING = 0.01  # relative in pt, absolute in η and φ
POINTS = ("mass_chargino", "mass_lsp")


@dataclass(frozen=True)
class Study:
    """Training events, queries, the network and how it is trained. name: for the reader; mechanism: the planted truth,
    if there is one; pool: more events to hide a mass point among (None: there are no mass points)."""

    name: str
    model: Settings
    train: TrainSettings
    events: GraphBatch
    queries: GraphBatch
    mechanism: Mechanism | None = None
    pool: GraphBatch | None = None


@dataclass(frozen=True)
class Hidden:
    """Training events with some that do not belong; events [B]: hidden is true for these, `among` for the process they
    are hidden in."""

    events: GraphBatch
    hidden: Bool[Tensor, "B"]
    among: Bool[Tensor, "B"]


def planted_study(mechanism: str, num_events: int, num_queries: int, train: TrainSettings, seed: int) -> Study:
    """Sampled events with planted labels, and the small network."""
    truth = MECHANISMS[mechanism]
    graphs = plant(toy_graphs(num_events + num_queries, seed), truth, seed + 1)
    model = stand_in(MoEGraphTransformerSettings())
    name = f"planted: {truth.what}"
    return Study(name, model, train, graphs[:num_events], graphs[num_events:], truth)


def run_study(
    name: str,
    model: Settings,
    train: TrainSettings,
    pools: tuple[GraphBatch, GraphBatch],
    num_events: int,
    num_queries: int,
    seed: int,
) -> Study:
    """Events of a run: of `pools`, the training and the validation events, as many as asked for, drawn at random. The
    test events stay unseen: a setting chosen here must not know them."""
    events, queries = (_drawn(pool, num, seed) for pool, num in zip(pools, (num_events, num_queries), strict=True))
    known = set(POINTS) <= set(events.layout.observables)
    return Study(name, model, train, events, queries, pool=pools[0] if known else None)


def stand_in(model: Settings) -> Settings:
    """The same kind of model, small."""
    fields = type(model).model_fields
    return type(model).model_validate({**model.model_dump(), **{k: v for k, v in SMALL.items() if k in fields}})


def _drawn(graphs: GraphBatch, number: int, seed: int) -> GraphBatch:
    if len(graphs) < number:
        raise DataError(
            f"the study needs {number} events of the run, but there are {len(graphs)}; ask for fewer "
            "(train_events=…, queries=…)."
        )
    return graphs[torch.randperm(len(graphs), generator=_generator(seed))[:number]]


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def some_of(mask: Bool[Tensor, "B"], fraction: float, seed: int) -> Bool[Tensor, "B"]:
    """A random fraction of the events of a mask, at least one."""
    rows = torch.nonzero(mask)[:, 0]
    number = max(1, round(fraction * len(rows)))
    found = torch.zeros_like(mask)
    found[rows[torch.randperm(len(rows), generator=_generator(seed))[:number]]] = True
    return found


def flipped(events: GraphBatch, fraction: float, seed: int) -> Hidden:
    """Two-class events of which a fraction has the other label."""
    everywhere = torch.ones(len(events), dtype=torch.bool)
    hidden = some_of(everywhere, fraction, seed)
    y = torch.where(hidden, 1 - events.y, events.y)
    return Hidden(replace(events, y=y), hidden, everywhere)


def miscalibrated(events: GraphBatch, fraction: float, seed: int) -> Hidden:
    """The largest background with a fraction of events whose jets have 5 % too much energy."""
    background = events.y == 0
    largest = torch.bincount(events.sample[background]).argmax()
    among = background & (events.sample == largest)
    hidden = some_of(among, fraction, seed)
    x = torch.where(hidden[:, None, None], scaled_jets(events, JES), events.x)
    return Hidden(replace(events, x=x), hidden, among)


def scaled_jets(events: GraphBatch, factor: float) -> Float[Tensor, "B N F"]:
    """Raw features with the momenta of all jets times a factor; the missing momentum loses what they gain, and its
    significance is scaled with it."""
    x, types = events.x.clone(), events.node_type
    jet = ((types == NODE_TYPES.index("jet")) | (types == NODE_TYPES.index("bjet"))) & events.mask
    same = events.object_index[:, :, None] == events.object_index[:, None, :]
    repeated = (same & torch.ones(same.shape[1:], dtype=torch.bool).tril(-1) & jet[:, None, :]).any(2)
    gain = torch.where(jet & ~repeated, (factor - 1) * x[..., PT], 0.0)
    for feature in (PT, MASS):
        x[..., feature] = torch.where(jet, factor * x[..., feature], x[..., feature])
    met = (types == NODE_TYPES.index("met")) & events.mask
    momentum = torch.polar(x[..., PT], x[..., PHI])
    changed = momentum - torch.polar(gain, x[..., PHI]).sum(1, keepdim=True)
    ratio = changed.abs() / x[..., PT].clamp(min=1e-6)
    for feature, values in ((PT, changed.abs()), (PHI, changed.angle()), (MET_SIGNIFICANCE, None)):
        new = x[..., feature] * ratio if values is None else values
        x[..., feature] = torch.where(met, new, x[..., feature])
    return x


def wrong_mass(pool: GraphBatch, num_events: int, fraction: float, seed: int) -> Hidden | None:
    """Background, and as signal one mass point with a fraction of events of another, the one whose mass difference is
    farthest; None if there is one mass point only. As many events as there are, up to `num_events`. The hidden events
    get weights of the usual ones: with those of their own cross-section and acceptance, the weight alone would tell."""
    signal = pool.y == 1
    points = torch.stack([pool.observable(name) for name in POINTS], 1)
    known = signal & points.isfinite().all(1)
    values, index, counts = points[known].unique(dim=0, return_inverse=True, return_counts=True)
    if len(values) < 2:
        return None
    gap = values[:, 0] - values[:, 1]
    usual = int(counts.argmax())
    other = int((gap - gap[usual]).abs().argmax())
    rows = torch.nonzero(known)[:, 0]
    number = min(num_events // 2, int(counts[usual] / (1 - fraction)), int(counts[other] / fraction))
    num_hidden = max(1, round(fraction * number))
    parts = [
        _first(rows[index == usual], number - num_hidden, seed),
        _first(rows[index == other], num_hidden, seed),
        _first(torch.nonzero(~signal)[:, 0], num_events - number, seed),
    ]
    chosen = torch.cat(parts)
    hidden = torch.cat([torch.full((len(part),), i == 1) for i, part in enumerate(parts)])
    weight = pool.weight[chosen]
    donors = torch.randint(len(parts[0]), (num_hidden,), generator=_generator(seed, 2))
    weight[hidden] = pool.weight[parts[0][donors]]
    order = torch.randperm(len(chosen), generator=_generator(seed, 1))
    events = replace(pool[chosen[order]], weight=weight[order])
    return Hidden(events, hidden[order], events.y == 1)


def _first(rows: Int[Tensor, "b"], number: int, seed: int) -> Int[Tensor, "b"]:
    return rows[torch.randperm(len(rows), generator=_generator(seed))[:number]]


def with_twins(events: GraphBatch, queries: GraphBatch, seed: int) -> tuple[GraphBatch, Int[Tensor, "Q"]]:
    """The events with a near copy of each query in place of an event drawn at random, and where it is: momenta, η and φ
    are smeared by 1 %, the label is that of the query."""
    generator = _generator(seed)
    place = torch.randperm(len(events), generator=generator)[: len(queries)]
    x, noise = queries.x.clone(), torch.randn(*queries.x.shape[:2], 3, generator=generator) * TWIN_SMEARING
    x[..., PT] *= 1 + noise[..., 0]
    for column, feature in ((1, ETA), (2, PHI)):
        x[..., feature] = torch.where(x[..., feature] != 0, x[..., feature] + noise[..., column], x[..., feature])
    x[..., PHI] = torch.remainder(x[..., PHI] + torch.pi, 2 * torch.pi) - torch.pi
    x = torch.where(queries.mask[..., None], x, queries.x)
    rows = torch.arange(len(events))
    rows[place] = len(events) + torch.arange(len(queries))
    return concatenate([events, replace(queries, x=x)])[rows], place
