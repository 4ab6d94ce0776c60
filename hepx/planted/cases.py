"""What the planted-truth suite is made of: its sizes, the events, and the networks of every mechanism."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator

from hepx import __version__, files
from hepx.attribution import METHODS, Subject, background_events, explain
from hepx.attribution.baselines import patterns
from hepx.attribution.edge_knockout import EdgeKnockout
from hepx.config import Settings, known_names
from hepx.errors import ConfigError, DataError
from hepx.graph import GraphBatch
from hepx.models import Model, build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.nulls import untrained
from hepx.planted.bayes import BayesNetwork
from hepx.planted.events import plant, toy_graphs
from hepx.planted.mechanisms import MECHANISMS, Mechanism
from hepx.planted.observations import OBSERVATIONS
from hepx.results import Array, PairExplanation, Provenance
from hepx.train import TrainSettings, fit, load_weights

log = logging.getLogger(__name__)

JUDGED = "judged-3"  # folder of rows and facts; named anew when they are made otherwise, so old ones are not read
QUICK = ("unit_sum", "unit_product", "met_significance", "mt")  # what little training comes near
FEWEST_DONORS = 20
CONTROLS = ("untrained", "shuffled")
SHORTER = 0.35  # of the epochs, for labels of which nothing can be learned


VARIANTS: dict[str, dict[str, Any]] = {
    "shapley:conditional": {"baseline": "conditional", "near": ["mbb", "mt"]},
    "shapley:masked": {"baseline": "masked"},
    "shapley:mean": {"baseline": "mean"},
    "shapley:zero": {"baseline": "zero"},
    "integrated_gradients:free": {"routing": "free"},
}
"""Methods with another setting, METHOD:SETTING, judged like the method: other replacements ask another question, or
make events that no detector sees (arXiv:2412.13864); paths across a change of experts do not add up."""


class SuiteSettings(Settings):
    """Sizes and seeds. explained: events each method explains (a quarter for the costly ones); draws:
    replacements per event; mechanisms, methods: all by default."""

    train_events: int = Field(default=40_000, ge=500)
    test_events: int = Field(default=6_000, ge=100)
    explained: int = Field(default=100, ge=20)
    draws: int = Field(default=24, ge=2)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=512, ge=1)
    quick: bool = False
    seed: int = Field(default=1, ge=0)
    mechanisms: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    @field_validator("mechanisms")
    @classmethod
    def _known_mechanisms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known_names(names, MECHANISMS, "mechanism")

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known_names(names, (*METHODS, *VARIANTS, *OBSERVATIONS), "method")


def sizes(quick: bool, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the full or the quick suite, changed by the values that are given (not None)."""
    small = {"train_events": 20_000, "test_events": 2_000, "explained": 48, "draws": 16, "epochs": 16}
    start: dict[str, Any] = {**small, "batch_size": 256, "mechanisms": QUICK, "quick": True} if quick else {}
    return start | {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Base:
    """Events without labels to plant into. name: what they are, for the reader; digest: for the cache."""

    train: GraphBatch
    test: GraphBatch
    name: str
    digest: str


def toy_base(settings: SuiteSettings) -> Base:
    """Sampled events of independent objects."""
    graphs = toy_graphs(settings.train_events + settings.test_events, settings.seed)
    recipe = {"toys": [settings.train_events, settings.test_events, settings.seed]}
    train, test = graphs[: settings.train_events], graphs[settings.train_events :]
    return Base(train, test, "sampled events of independent objects", files.digest(recipe))


def own_base(train: GraphBatch, test: GraphBatch, settings: SuiteSettings, name: str, digest: str) -> Base:
    """A user's events, as many as the settings say, without rare combinations of objects that have no donors."""
    train, test = (_first(g, n) for g, n in ((train, settings.train_events), (test, settings.test_events)))
    usual = [pattern.index for pattern in patterns(test, train, required=False) if len(pattern.donors) >= FEWEST_DONORS]
    if not usual:
        raise DataError(f"'{name}' has too few events to plant labels into; give more, or leave them out.")
    test = test[torch.cat(usual).sort().values]
    recipe = {"events": digest, "sizes": [len(train), len(test)]}
    return Base(train, test, f"events of '{name}' with planted labels", files.digest(recipe))


def _first(graphs: GraphBatch, number: int) -> GraphBatch:
    """`number` events in the order of a scramble of their place, which does not depend on labels."""
    order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(0))
    return graphs[order[:number]]


@dataclass(frozen=True)
class Case:
    """One network of one mechanism, planted events and where its results are kept.

    network: trained, untrained, shuffled (labels), or hand-made.
    """

    name: str
    mechanism: Mechanism
    network: str
    settings: SuiteSettings
    base: Base
    folder: Path

    @cached_property
    def events(self) -> tuple[GraphBatch, GraphBatch]:
        """Planted training and test events."""
        seed = self.settings.seed
        shuffled = self.network == "shuffled"
        train = plant(self.base.train, self.mechanism, seed + 1, shuffled)
        return train, plant(self.base.test, self.mechanism, seed + 2, shuffled)

    @cached_property
    def fresh(self) -> Model:
        """The network before training, with its inputs scaled."""
        model = network_of(self.events[0], self.settings.seed)
        model.inputs.fit(self.events[0], self.events[0].weight.abs())
        return model.eval()

    @cached_property
    def model(self) -> Model:
        """The network to explain."""
        if self.network == "hand-made":
            return BayesNetwork(self.mechanism, self.base.train.layout).eval()
        if self.network == "untrained":
            return self.fresh
        effort = SHORTER if self.network == "shuffled" else self.mechanism.effort
        return trained(self.events[0], self.settings, effort, self.settings.seed, self.folder / "network")

    @cached_property
    def bayes(self) -> Model:
        """The Bayes-optimal network."""
        return BayesNetwork(self.mechanism, self.base.train.layout).eval()

    @cached_property
    def knocked_out(self) -> Array:
        """Edge knock-out of the network on the explained events [B, N, N]."""
        number = self.settings.explained
        provenance = Provenance("edge_knockout", {}, "", "", "", self.settings.seed, __version__, "", "cpu")
        found = explain(EdgeKnockout(events=number), self.subject(self.model, number), provenance)
        assert isinstance(found, PairExplanation)
        return found.values

    def fresh_networks(self, number: int) -> list[Model]:
        """Untrained networks of other seeds, with inputs scaled alike."""
        seeds = [self.settings.seed + 1000 * i for i in range(1, number + 1)]
        return [null.model for null in untrained(self.fresh, lambda seed: network_of(self.events[0], seed), seeds)]

    def beside(self, network: str) -> Case:
        """Another network for the same mechanism, without what another recipe left."""
        other = replace(self, network=network, folder=self.folder.parent / network)
        other.forget_others()
        return other

    def forget_others(self) -> None:
        """Delete what was made with other sizes, seeds or events."""
        recipe = self.settings.model_dump(mode="json", exclude={"mechanisms", "methods"})
        key = files.digest({"settings": recipe, "base": self.base.digest, "version": __version__})
        path = self.folder / "key"
        if path.exists() and path.read_text() == key:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        files.write_text(path, key)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, as JSON has it: from the folder if it is there already."""
        path = self.folder / JUDGED / f"{name}.json"
        if not path.exists():
            files.write_json(path, make())
        return files.read_json(path)

    def subject(self, model: Model, number: int) -> Subject:
        """The first `number` test events, explained for `model` with the donors of the case."""
        train, test = self.events
        untrained = self.fresh if self.network != "hand-made" else model
        return Subject(model, untrained, test[:number], background_events(train, 1), 1, self.settings.seed)


def network_of(graphs: GraphBatch, seed: int) -> Model:
    """The network of the suite: a small mixture-of-experts graph transformer."""
    settings = MoEGraphTransformerSettings(dim=32, expert_dim=16, num_heads=4, dropout=0.0, pair_values=True)
    return build_model(settings, graphs.layout, seed)


def trained(train: GraphBatch, settings: SuiteSettings, effort: float, seed: int, folder: Path) -> Model:
    """Fit a network, or load it if it was fitted before; the last tenth of the events validates.

    effort: epochs relative to the settings.
    """
    model = network_of(train, seed)
    last = len(train) - len(train) // 10
    epochs = max(1, round(settings.epochs * effort))
    options = TrainSettings(epochs=epochs, batch_size=settings.batch_size, lr=3e-3, patience=epochs, weights="sign")
    finished = folder / "finished"
    if not finished.exists():
        fit(model, train[:last], train[last:], options, seed, folder)
        files.write_text(finished, "")
    load_weights(model, folder)
    return model.eval()


def cases(settings: SuiteSettings, base: Base, folder: Path) -> list[Case]:
    """Every network the table needs, in the order of the table."""
    slots = set(base.train.layout.slots)
    found = []
    for name in settings.mechanisms or tuple(MECHANISMS):
        mechanism = MECHANISMS[name]
        lacking = sorted({*mechanism.slots, *(cell.partition(".")[0] for cell in mechanism.features)} - slots)
        if lacking:
            log.warning("mechanism '%s' is left out: the graphs have no slot %s", name, ", ".join(lacking))
            continue
        base_of = _with_objects(base, mechanism)
        ready = mechanism.balanced(base_of.train if mechanism.prepare is None else mechanism.prepare(base_of.train))
        kinds = ["hand-made" if mechanism.level == 0 else "trained", *(CONTROLS if mechanism.controls else ())]
        found += [Case(name, ready, kind, settings, base_of, folder / name / kind) for kind in kinds]
    if not found:
        raise ConfigError("no mechanism can be planted into these graphs; add the slots b1, b2, lepton, met.")
    return found


def _with_objects(base: Base, mechanism: Mechanism) -> Base:
    """The events that have the objects of the mechanism; the third jet may be absent."""
    needed = [i for i, name in enumerate(base.train.layout.slots) if name in mechanism.slots and name != "j3"]
    train, test = (graphs[graphs.mask[:, needed].all(1)] for graphs in (base.train, base.test))
    return replace(base, train=train, test=test)
