"""The network's inside: attention, experts and node states, each beside null networks; what a run does of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from hepx import attention, experts, files, representation
from hepx.attribution import subsample
from hepx.config import Settings
from hepx.graph import GraphBatch
from hepx.interventions import Referee, attention_names, mixture_names, regions_of
from hepx.models import Model
from hepx.nulls import Null, NullSettings, shuffled, untrained
from hepx.results import Provenance, is_result_of
from hepx.train import TrainSettings

log = logging.getLogger(__name__)

FILES = {"attention": "attention.npz", "experts": "experts.json", "representation": "representation.json"}
"""Analysis -> the result in the run folder."""
NULLS = "nulls"  # folder of the null networks
STABILITY = "stability.json"  # what `hepx experts` writes


class InsideSettings(Settings):
    """Which analyses are made, on how many test events (a random subset), beside which null networks.

    regions: name -> expression on the observables, such as `n_jet == 2`: every intervention is judged inside and
    outside of each. Without any: the regions of data.regions, or else events with and without each optional object.
    """

    attention: bool = True
    experts: bool = True
    representation: bool = True
    events: int = Field(default=20_000, ge=100)
    regions: dict[str, str] = Field(default={})
    nulls: NullSettings = NullSettings()


@dataclass(frozen=True)
class Inside:
    """The network to look into and what it is compared with.

    build: a fresh model of the same settings from a seed; training: loads the training and validation events;
    yield_factors: process -> factor that makes its test weights expected yields; background_uncertainty: relative;
    key: names the training, so that null networks of another one are not taken for those of this one.
    """

    model: Model
    build: Callable[[int], Model]
    test: GraphBatch
    training: Callable[[], tuple[GraphBatch, GraphBatch]]
    train_settings: TrainSettings
    target: int
    seed: int
    yield_factors: Mapping[str, float]
    background_uncertainty: float
    key: str


def describe(
    inside: Inside, settings: InsideSettings, folder: Path, provenance: Callable[[str, dict[str, Any]], Provenance]
) -> None:
    """Make the analyses whose result is not in `folder` yet; results that are no longer wanted are deleted."""
    applies = {
        "attention": attention_names(inside.model),
        "experts": mixture_names(inside.model),
        "representation": inside.model.stream_names(),
    }
    wanted = {name: settings.model_dump(mode="json") for name in FILES if getattr(settings, name) and applies[name]}
    for name, file in FILES.items():
        path = folder / file
        if name in wanted and is_result_of(path, provenance(name, wanted[name])):
            log.info("%s: done already", name)
            del wanted[name]
        else:
            path.unlink(missing_ok=True)
    if not wanted:
        return
    graphs = subsample(inside.test, settings.events, inside.seed)
    referee = Referee(
        inside.model,
        graphs,
        inside.target,
        inside.seed,
        regions_of(graphs, settings.regions),
        _yields(inside, graphs),
        inside.background_uncertainty,
    )
    nulls = list(_nulls(inside, settings.nulls, folder))
    for name, values in wanted.items():
        result = _ANALYSES[name](inside.model, nulls, referee, provenance(name, values))
        result.save(folder / FILES[name])


_ANALYSES: Mapping[str, Callable[..., Any]] = {
    "attention": attention.attention_map,
    "experts": experts.expert_report,
    "representation": representation.representation,
}


def _yields(inside: Inside, graphs: GraphBatch) -> npt.NDArray[np.float64]:
    """Expected events that each chosen test event stands for [B]; a process of no positive weight has none."""
    number = len(graphs.layout.samples)
    whole, part = (np.bincount(g.sample.numpy(), g.weight.double().numpy(), number) for g in (inside.test, graphs))
    factors = np.array([inside.yield_factors.get(name, 0.0) for name in graphs.layout.samples])
    scale = np.divide(factors * whole, part, out=np.zeros(number), where=part > 0)
    return graphs.weight.double().numpy() * scale[graphs.sample.numpy()]


def _nulls(inside: Inside, settings: NullSettings, folder: Path) -> Iterator[Null]:
    """Untrained networks, the first with the initial weights of the trained one; then those on shuffled labels."""
    seeds = [inside.seed + 1000 * i for i in range(settings.untrained + settings.shuffled)]
    yield from untrained(inside.model, inside.build, seeds[: settings.untrained])
    short = inside.train_settings.model_copy(update={"epochs": settings.epochs})
    device = next(inside.model.parameters()).device
    for seed in seeds[settings.untrained :]:
        key = files.digest([inside.key, settings.epochs, seed])
        yield shuffled(inside.build, inside.training, short, seed, folder / NULLS / f"shuffled-{seed}", key, device)
