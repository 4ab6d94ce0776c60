"""The planted-truth suite: train a network per mechanism, let every method explain it, judge; one table.

Resumable: networks and table rows are kept in the output folder under a digest of what made them, and found again.
"""

from __future__ import annotations

import csv
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from hepx import __version__, files
from hepx.attribution import METHODS, Method, Subject, background_events, event_table, explain
from hepx.attribution.baselines import Pattern, Referenced, patterns, per_pattern, replacements
from hepx.config import Settings, parse
from hepx.errors import ConfigError, DataError, ResultError, closest
from hepx.graph import GraphBatch
from hepx.models import Model, batches, build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.planted.bayes import BayesNetwork, Gate, judge_network
from hepx.planted.events import plant, toy_graphs
from hepx.planted.judge import CRITERIA, Measures, found_in, measure, missed, with_exactness
from hepx.planted.mechanisms import MECHANISMS, Mechanism
from hepx.progress import progress
from hepx.results import PairExplanation, Provenance, Result
from hepx.train import TrainSettings, fit, load_weights

log = logging.getLogger(__name__)

ATTENTION = "attention"  # stands in the table as an observation
QUICK = ("unit_sum", "unit_product", "met_significance", "mt")  # what little training comes near
COSTLY = ("feature_groups", "owen", "gnn_explainer")  # get a quarter of the events
FEWEST_DONORS = 20
CONTROLS = ("untrained", "shuffled")


class SuiteSettings(Settings):
    """Sizes and seeds. explained: events each method explains (a quarter for those with many coalitions); draws:
    replacements per event; mechanisms, methods: all by default."""

    train_events: int = Field(default=40_000, ge=500)
    test_events: int = Field(default=6_000, ge=100)
    explained: int = Field(default=200, ge=20)
    draws: int = Field(default=24, ge=2)
    epochs: int = Field(default=12, ge=1)
    batch_size: int = Field(default=512, ge=1)
    quick: bool = False
    seed: int = Field(default=1, ge=0)
    mechanisms: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    @field_validator("mechanisms")
    @classmethod
    def _known_mechanisms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, MECHANISMS, "mechanism")

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, (*METHODS, ATTENTION), "method")


def sizes(quick: bool, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the full or the quick suite, changed by the values that are given (not None)."""
    small = {"train_events": 20_000, "test_events": 2_000, "explained": 48, "draws": 16, "epochs": 12}
    start: dict[str, Any] = {**small, "batch_size": 256, "mechanisms": QUICK, "quick": True} if quick else {}
    return start | {name: value for name, value in values.items() if value is not None}


def _known(names: tuple[str, ...], choices: Any, what: str) -> tuple[str, ...]:
    for name in names:
        if name not in choices:
            raise ValueError(f"unknown {what} '{name}'; {closest(name, choices)}")
    return names


@dataclass(frozen=True)
class Base:
    """Events without labels to plant into. name: what they are, for the reader; digest: for the cache."""

    train: GraphBatch
    test: GraphBatch
    name: str
    digest: str


@dataclass(frozen=True)
class Row:
    """One line of the table. verdict: pass, fail, refused (its own gate), not possible (the network has no such thing),
    not judged (no criterion, or the network missed the gate), observation (attention); a control is judged too, and
    must not pass. milliseconds: per event."""

    mechanism: str
    level: int
    network: str
    method: str
    measures: Measures
    milliseconds: float
    num_events: int
    verdict: str
    missed: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Suite:
    """The whole result, as `planted.json` holds it."""

    settings: dict[str, Any]
    base: str
    version: str
    mechanisms: dict[str, str]
    criteria: dict[str, str]
    gates: list[Gate]
    rows: list[Row]
    checks: list[dict[str, Any]]


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
    return Base(train, test, name, files.digest(recipe))


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
        return trained(self.events[0], self.settings, self.folder / "network")

    @cached_property
    def bayes(self) -> Model:
        """The Bayes-optimal network."""
        return BayesNetwork(self.mechanism, self.base.train.layout).eval()

    def subject(self, model: Model, number: int) -> Subject:
        """The first `number` test events, explained for `model` with the donors of the case."""
        train, test = self.events
        untrained = self.fresh if self.network != "hand-made" else model
        return Subject(model, untrained, test[:number], background_events(train, 1), 1, self.settings.seed)


def network_of(graphs: GraphBatch, seed: int) -> Model:
    """The network of the suite: a small mixture-of-experts graph transformer."""
    settings = MoEGraphTransformerSettings(dim=32, expert_dim=16, num_heads=4, dropout=0.0)
    return build_model(settings, graphs.layout, seed)


def trained(train: GraphBatch, settings: SuiteSettings, folder: Path) -> Model:
    """Fit the network, or load it if it was fitted before; the last tenth of the events validates."""
    model = network_of(train, settings.seed)
    last = len(train) - len(train) // 10
    options = TrainSettings(
        epochs=settings.epochs, batch_size=settings.batch_size, lr=3e-3, patience=settings.epochs, weights="sign"
    )
    finished = folder / "finished"
    if not finished.exists():
        fit(model, train[:last], train[last:], options, settings.seed, folder)
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


def method_of(name: str, settings: SuiteSettings, mechanism: Mechanism | None = None) -> Method:
    """A method with the sizes of the suite. Refused results are kept, and called refused in the table."""
    kind = METHODS[name]
    fields, costly = kind.model_fields, name in COSTLY
    values: dict[str, Any] = {"method": name}
    values["events"] = max(8, settings.explained // 4) if costly else settings.explained
    if name == "permutation_importance":
        values["events"] = settings.test_events
    if "draws" in fields:
        values["draws"] = max(2, settings.draws // 4) if costly else settings.draws
    if "force" in fields:
        values["force"] = True
    if "observable" in fields and mechanism is not None and mechanism.slots == ("lepton", "met"):
        values["observable"] = "mt"
    if settings.quick:
        smaller = {"restarts": 2, "epochs": 30, "repeats": 2, "replicas": 20, "points": 15}
        values |= {key: value for key, value in smaller.items() if key in fields}
    return kind(**values)


def run_suite(settings: SuiteSettings, base: Base, folder: Path) -> Suite:
    """Train, explain and judge; writes planted.json and planted.csv into the folder."""
    todo = cases(settings, base, folder)
    names = settings.methods or (*METHODS, ATTENTION)
    gates: list[Gate] = []
    rows: list[Row] = []
    with progress("planted truth", len(todo) * (len(names) + 1), " steps") as advance:
        for case in todo:
            note = f"{case.name}, {case.network}"
            _forget_others(case)
            gate = judge_case(case)
            gates += [gate] if gate else []
            advance(1, note)
            for name in names:
                rows.append(row_of(case, name, gate))
                advance(1, f"{note}: {name}")
    suite = Suite(
        settings=settings.model_dump(mode="json"),
        base=base.name,
        version=__version__,
        mechanisms={case.name: MECHANISMS[case.name].what for case in todo},
        criteria={name: str(criterion) for name, criterion in CRITERIA.items()},
        gates=gates,
        rows=rows,
        checks=[],
    )
    write(suite, folder)
    return suite


def _forget_others(case: Case) -> None:
    """Delete what was made with other sizes, seeds or events."""
    recipe = case.settings.model_dump(mode="json", exclude={"mechanisms", "methods"})
    key = files.digest({"settings": recipe, "base": case.base.digest, "version": __version__})
    path = case.folder / "key"
    if path.exists() and path.read_text() == key:
        return
    shutil.rmtree(case.folder, ignore_errors=True)
    files.write_text(path, key)


def judge_case(case: Case) -> Gate | None:
    """The gate of a network; None for a hand-made one, which is right by construction."""
    if case.network == "hand-made":
        return None
    train, test = case.events
    # the truth of shuffled labels is a coin flip, but what the control must not show is the mechanism
    return judge_network(case.name, case.network, case.mechanism, case.model, test, len(train), case.settings.seed)


def row_of(case: Case, name: str, gate: Gate | None) -> Row:
    """A line of the table, from the folder if it is there already."""
    path = case.folder / "rows" / f"{name}.json"
    if path.exists():
        values = files.read_json(path)
        return Row(**{**values, "measures": Measures(**values["measures"]), "missed": tuple(values["missed"])})
    row = _judged(case, name, gate)
    files.write_json(path, asdict(row))
    return row


def _judged(case: Case, name: str, gate: Gate | None) -> Row:
    measures, milliseconds, number, note = _measured(case, name)
    failures = missed(name, measures)
    if number == 0:
        verdict = "not possible"
    elif name == ATTENTION:
        verdict = "observation"
    elif note:
        verdict = "refused"
    elif failures is None or (gate is not None and not gate.passed and case.network == "trained"):
        verdict = "not judged"
    else:
        verdict = "fail" if failures else "pass"
    level = case.mechanism.level
    return Row(
        case.name, level, case.network, name, measures, milliseconds, number, verdict, tuple(failures or ()), note
    )


def _measured(case: Case, name: str) -> tuple[Measures, float, int, str]:
    """Measures, milliseconds per event, number of events, and why there is no result if there is none."""
    method = None if name == ATTENTION else method_of(name, case.settings, case.mechanism)
    number = min(case.settings.explained if method is None else method.events, len(case.events[1]))
    subject, ideal = (case.subject(model, number) for model in (case.model, case.bayes))
    run = _attention if method is None else lambda one: explain(method, one, _provenance(method, case))
    start = time.perf_counter()
    try:
        result = run(subject)
    except (ConfigError, ResultError) as error:
        return Measures(), 0.0, 0, str(error)
    milliseconds = 1000 * (time.perf_counter() - start) / number
    graphs = subject.graphs
    if name == "permutation_importance":
        reference = exact = explain(method, ideal, _provenance(method, case)) if method else result
    else:
        shapley = method_of("shapley", case.settings).model_copy(update={"draws": _draws(method, case.settings)})
        reference = exact = explain(shapley, ideal, _provenance(shapley, case))
        if method is not None and name in ("feature_groups", "owen", "occlusion", "response"):
            exact = explain(method, ideal, _provenance(method, case))
    measures = measure(case.mechanism, graphs, result, reference, exact)
    if case.mechanism.exact is not None:
        values, pairs = closed_form(case.mechanism, subject, _draws(method, case.settings))
        measures = with_exactness(measures, case.mechanism, graphs, found_in(result, graphs), values, pairs)
    return measures, milliseconds, number, str(getattr(result, "note", ""))


def _draws(method: Method | None, settings: SuiteSettings) -> int:
    return method.draws if isinstance(method, Referenced) else settings.draws


def closed_form(mechanism: Mechanism, subject: Subject, draws: int) -> tuple[Any, Any]:
    """Exact Shapley values [B, N] and interactions [B, N, N] of a hand-made network, with the donors of the methods."""
    method = parse(METHODS["shapley"], {"method": "shapley", "draws": draws}, "closed form")
    exact = mechanism.exact
    assert isinstance(method, Referenced)
    assert exact is not None

    def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
        donors = replacements(method, pattern, events, subject.seed, aligned=False)
        values, pairs = exact(events.x, donors, events.layout.slots)
        return {"values": values, "pairs": pairs}

    found = per_pattern(method, subject, lambda _: draws, compute)
    return found["values"], found["pairs"]


def _attention(subject: Subject) -> Result:
    """Attention, mean of layers and heads, both directions: the map as papers show it, one per event."""
    with torch.inference_mode():
        model = subject.model.eval()
        parts = [model(part.x, part.mask, part.node_type).trace.attention for part in batches(subject.graphs)]
    attention = torch.cat(parts)
    if 0 in attention.shape:
        raise ConfigError("this network has no attention.")
    mean = attention.mean((1, 2)).double()
    mean = (mean + mean.transpose(1, 2)) * (1 - torch.eye(mean.shape[1], dtype=torch.float64))
    return PairExplanation(
        events=event_table(subject.graphs),
        values=mean.numpy(),
        error=None,
        null=None,
        edges=None,
        score=np.zeros(len(subject.graphs)),
        unit="",
        provenance=Provenance(ATTENTION, {}, "", "", "", subject.seed, __version__, "", "cpu"),
    )


def _provenance(method: Method, case: Case) -> Provenance:
    settings = method.model_dump(mode="json")
    where = f"planted {case.name}, {case.network}"
    return Provenance(method.name, settings, where, "", case.base.digest, case.settings.seed, __version__, "", "cpu")


def write(suite: Suite, folder: Path) -> None:
    """planted.json and planted.csv."""
    files.write_json(folder / "planted.json", asdict(suite))
    measures = list(Measures.__dataclass_fields__)
    with files.atomic(folder / "planted.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["mechanism", "level", "network", "method", *measures, "milliseconds", "num_events", "verdict", "missed"]
        writer.writerow([*head, "note"])
        for row in suite.rows:
            values = [getattr(row.measures, name) for name in measures]
            start = [row.mechanism, row.level, row.network, row.method]
            end = [row.milliseconds, row.num_events, row.verdict, " ".join(row.missed), row.note]
            writer.writerow([*start, *values, *end])


def summary(suite: Suite) -> list[str]:
    """For each network: how near it is to the best possible, and what passes and fails."""
    lines, gates = [], {(gate.mechanism, gate.network): gate for gate in suite.gates}
    for key in dict.fromkeys((row.mechanism, row.network) for row in suite.rows):
        rows = [row for row in suite.rows if (row.mechanism, row.network) == key]
        gate = gates.get(key)
        about = "" if gate is None else f", AUC {gate.auc:.4f} of {gate.bayes_auc:.4f}"
        if gate is not None and not gate.passed:
            about += ", misses the gate"
        kinds = {kind: [row.method for row in rows if row.verdict == kind] for kind in ("pass", "fail", "refused")}
        lines.append(f"{key[0]} ({key[1]}{about})")
        lines += [f"  {kind + ':':9s}{', '.join(names)}" for kind, names in kinds.items() if names]
    return lines
