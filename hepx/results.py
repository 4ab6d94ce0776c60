"""What the stages write and the report reads: frozen, numpy only, saved without pickle.

Shape letters: B events, N node slots, F raw features, V observables, P samples (processes). What the analyses of the
network's inside write is in `results_network.py`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hepx import files
from hepx.errors import ResultError

Array = npt.NDArray[Any]
FORMAT = 2
"""Of saved results: it rises when they hold something else; `hepx explain` makes those of another format again."""


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from: enough to make it again, byte for byte (so not when: stages.json says that)."""

    method: str
    settings: dict[str, Any]
    config: str
    checkpoint: str
    data: str
    seed: int
    version: str
    commit: str
    device: str


@dataclass(frozen=True)
class EventTable:
    """The events a result is about.

    x: raw features [B, N, F] in GeV and rad; mask [B, N]; node_type [B, N]; object_index [B, N]: equal for two nodes of
    one object; truth_parent [B, N]: PDG id of the true parent, 0 unknown; y, sample, weight, event_id [B];
    observables [B, V]. The names say what the axes mean.
    """

    x: Array
    mask: Array
    node_type: Array
    object_index: Array
    truth_parent: Array
    y: Array
    sample: Array
    weight: Array
    event_id: Array
    observables: Array
    slots: tuple[str, ...]
    types: tuple[str, ...]
    features: tuple[str, ...]
    feature_units: tuple[str, ...]
    observable_names: tuple[str, ...]
    observable_units: tuple[str, ...]
    sample_names: tuple[str, ...]
    sample_labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        names = (", ".join(self.slots), len(self.observable_names), ", ".join(self.sample_names))
        return "EventTable: {} events with {}; {} observables; samples {}".format(len(self), *names)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The events of all parts, in their order."""
        return cls(**_concatenated(parts))

    def observable(self, name: str) -> Array:
        """One observable [B]."""
        return self.observables[:, self.observable_names.index(name)]

    def of_sample(self, name: str) -> Array:
        """Mask [B] of the events of one sample."""
        return self.sample == self.sample_names.index(name)


class Result(ABC):
    """Base of the frozen results that are saved as .npz."""

    provenance: Provenance

    def __init_subclass__(cls) -> None:
        """A frozen dataclass that would print all of its arrays prints what it is instead."""
        cls.__repr__ = Result.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        note = getattr(self, "note", "")
        return f"{type(self).__name__} by {self.provenance.method}: {self.about()}" + (f" ({note})" if note else "")

    @abstractmethod
    def about(self) -> str:
        """What it is, its sizes and its unit, in a line."""

    def save(self, path: str | Path) -> None:
        """Write an .npz with one entry per array and the names as JSON in `meta`."""
        save_npz(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Inverse of `save`; ResultError if the file is not such a result."""
        return load_npz(cls, Path(path))

    def to_pandas(self) -> Any:
        """A pandas.DataFrame. Of events: one row each, with the event number as index, to be joined to any table.

        Columns: sample, label, weight, observables (GeV, rad), score, baseline_score, attribution_… and error_… in the
        unit of the values (in `.attrs`, which a parquet file keeps), completeness_error; interaction_… and faith_… of
        pairs and objects, where the method has them. NaN where an object is absent. Of an Importance one row per group
        of features, of a ResponseCurve one per process and point, with the fields as columns.
        """
        from hepx import frames

        return frames.to_pandas(self)

    def plot(self) -> Any:
        """A matplotlib Figure of the weighted means per process; a notebook shows it, `.savefig(path)` writes it."""
        from hepx.report import draw  # upwards, and only when asked: a result draws itself

        return draw(self)


class EventResult(Result):
    """Base of the results that say something of each event."""

    events: EventTable
    values: Array
    error: Array | None
    score: Array
    unit: str
    note: str

    def about(self) -> str:
        """What it is, its sizes and its unit, in a line."""
        shape, unit = list(self.values.shape), getattr(self, "unit", "log-odds of signal")
        names, samples = (", ".join(n) for n in (getattr(self, "players", self.events.slots), self.events.sample_names))
        return f"{len(self.events)} events of {samples}; values {shape} of {names} in {unit}"

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The result for the events of all parts, in their order."""
        events = EventTable.concatenate([part.events for part in parts])
        provenance = _joined([part.provenance for part in parts])
        return cls(**{**_concatenated(parts, "events", "provenance"), "events": events, "provenance": provenance})


def relative_error(gap: Array | None, score: Array, baseline_score: Array | None) -> float | None:
    """Root mean square of what is missing to score − baseline score, divided by that of this change."""
    if gap is None or baseline_score is None:
        return None
    missing, change = (float(np.sqrt(np.mean(v**2))) for v in (gap, score - baseline_score))
    return missing / change if change else (float("inf") if missing else 0.0)


@dataclass(frozen=True)
class Explanation(EventResult):
    """Attributions to objects or to their features.

    unit: of values, error and null: `logit`, parts of the score (log-odds of the target class); or `logit per σ`, the
    change of the score with a feature, for its standard deviation among the baseline events: features can be compared
    with each other, but their values add up to nothing.

    values [B, N] (objects) or [B, N, F] (raw features), 0 where absent; error: standard error over the draws of the
    method, same shape, 0 where the baseline is not random, None for a method without draws; score [B]; baseline_score
    [B], None for a method without baseline; completeness_error [B]: |Σ values − (score − baseline_score)| in logits,
    None for a method whose values are not meant to add up to it; interactions [B, N, N] (symmetric, zero diagonal) with
    their error, None for methods without them; faith [B, N, N]: Faith-Shap of order two, pairs off and single objects
    on the diagonal: they add up to score − baseline_score; null: `values` of an untrained model, where a method has no
    error; note: what a reader must know, else empty.
    """

    events: EventTable
    values: Array
    error: Array | None
    score: Array
    baseline_score: Array | None
    completeness_error: Array | None
    interactions: Array | None
    interactions_error: Array | None
    unit: str
    provenance: Provenance
    faith: Array | None = None
    faith_error: Array | None = None
    null: Array | None = None
    note: str = ""

    @property
    def relative_completeness_error(self) -> float | None:
        """Root mean square completeness error divided by that of score − baseline score; None without one."""
        return relative_error(self.completeness_error, self.score, self.baseline_score)


@dataclass(frozen=True)
class GroupExplanation(EventResult):
    """Attributions to groups of features, in `unit`: that of the score, logit.

    values [B, P] of the groups `players`, 0 where no object of the group is present; members: the features of each
    group, as slot.feature joined by blanks; the rest as in Explanation, with P for N.
    """

    events: EventTable
    players: tuple[str, ...]
    members: tuple[str, ...]
    values: Array
    error: Array
    score: Array
    baseline_score: Array
    completeness_error: Array
    interactions: Array
    interactions_error: Array
    unit: str
    provenance: Provenance
    note: str = ""

    @property
    def relative_completeness_error(self) -> float | None:
        """Root mean square completeness error divided by that of score − baseline score."""
        return relative_error(self.completeness_error, self.score, self.baseline_score)


@dataclass(frozen=True)
class PairExplanation(EventResult):
    """What the edge between two objects does, measured inside the network.

    values [B, N, N]: symmetric, zero diagonal, 0 where an object is absent, in `unit`; error: standard deviation over
    restarts, None for a method without; null: `values` of an untrained model, None where an error is given; edges
    [B, L, H, N, N]: the same for each layer and head, None if the method does not tell them apart; score [B].
    """

    events: EventTable
    values: Array
    error: Array | None
    null: Array | None
    edges: Array | None
    score: Array
    unit: str
    provenance: Provenance
    note: str = ""


@dataclass(frozen=True)
class Importance(Result):
    """What the classifier loses when a group of features is exchanged between the events.

    delta_auc [P]: weighted AUC after minus before (negative: worse), mean over the repeats; error: paired bootstrap of
    the events and spread of the repeats in quadrature; delta_z, delta_z_error [P]: the same for the expected
    significance, None if it is not defined; auc: before; members as in GroupExplanation.
    """

    players: tuple[str, ...]
    members: tuple[str, ...]
    delta_auc: Array
    error: Array
    delta_z: Array | None
    delta_z_error: Array | None
    auc: float
    significance: float | None
    num_events: int
    provenance: Provenance

    def about(self) -> str:
        """What it is, its sizes and its unit, in a line."""
        groups = ", ".join(self.players)
        return f"AUC {self.auc:.4f} of {self.num_events} events; its change when {groups} are exchanged between events"


@dataclass(frozen=True)
class ResponseCurve(Result):
    """Mean score when an observable is moved by changing one object and nothing else.

    points [Q] (unit of the observable); mean, error [P, Q]: weighted mean score per sample and its standard error;
    reached [P, Q]: share of the events that can be moved there; observed, observed_error [P, Q]: mean score of the
    unchanged events in the bin around the point, NaN where there are too few for an error; null [P, Q]: `mean` of an
    untrained model.
    """

    observable: str
    unit: str
    moved: str
    points: Array
    mean: Array
    error: Array
    reached: Array
    observed: Array
    observed_error: Array
    null: Array
    sample_names: tuple[str, ...]
    provenance: Provenance

    def about(self) -> str:
        """What it is, its sizes and its unit, in a line."""
        span = f"{self.points[0]:g} to {self.points[-1]:g} {self.unit}"
        samples = ", ".join(self.sample_names)
        return f"mean score (log-odds of signal) of {samples} at {len(self.points)} points of {self.observable}, {span}"


@dataclass(frozen=True)
class ObservableLink:
    """How much the attribution of an observable's objects follows the observable.

    strength: standard deviation, over bins of the observable, of the mean summed attribution of its objects (logit),
    inside each process, root mean square over the processes; error: bootstrap; null: 95th percentile of the strength
    with the observable shuffled inside each process.
    """

    observable: str
    objects: tuple[str, ...]
    strength: float
    error: float
    null: float


EFFICIENCY = "background_efficiency@"
"""Measure: ε_b at a signal efficiency, which follows; its inverse is the rejection."""


@dataclass(frozen=True)
class Measured:
    """Measures of classifiers on the test events, and on bootstrap replicas of them that are the same in every run.

    values [Z, G, M]: Z classifiers, G groups (all, one process, one signal point), M measures; replicas [R, Z, G, M].
    NaN where a measure does not exist. columns: of the classifiers in the score table; the first is the model.
    """

    values: Array
    replicas: Array
    classifiers: tuple[str, ...]
    columns: tuple[str, ...]
    groups: tuple[str, ...]
    measures: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write an .npz."""
        save_npz(self, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Inverse of `save`."""
        return load_npz(cls, path)


def _concatenated(parts: Sequence[Any], *others: str) -> dict[str, Any]:
    """Arrays of all parts along the events; everything else must be the same in all. `others` are left out."""
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(parts[0]) if field.name not in others):
        found = [getattr(part, name) for part in parts]
        if isinstance(found[0], np.ndarray):
            values[name] = np.ascontiguousarray(np.concatenate(found))
        elif any(value != found[0] for value in found):
            raise ResultError(f"parts of a result do not fit together: they differ in '{name}'.")
        else:
            values[name] = found[0]
    return values


def _joined(parts: Sequence[Provenance]) -> Provenance:
    """The common provenance; where the parts were made in different ways (two kinds of device), it names them all."""
    names = ("config", "commit", "device")
    joined: dict[str, Any] = {name: ", ".join(sorted({getattr(part, name) for part in parts})) for name in names}
    first, *others = [replace(part, **joined) for part in parts]
    if any(other != first for other in others):
        raise ResultError("parts of a result do not fit together: they differ in method, settings, model or data.")
    return first


def save_npz(result: Any, path: Path) -> None:
    """Write a frozen result: one entry per array, everything else as JSON in `meta`."""
    arrays: dict[str, Array] = {}
    meta: dict[str, Any] = {"type": type(result).__name__, "format": FORMAT}
    for field in fields(result):
        value = getattr(result, field.name)
        if isinstance(value, EventTable):
            for inner in fields(value):
                _put(inner.name, getattr(value, inner.name), arrays, meta)
        else:
            _put(field.name, value, arrays, meta)
    entries: dict[str, Any] = {"meta": np.array(json.dumps(meta)), **arrays}
    with files.atomic(path) as temporary:
        np.savez_compressed(temporary, **entries)


def _put(name: str, value: Any, arrays: dict[str, Array], meta: dict[str, Any]) -> None:
    if isinstance(value, np.ndarray):
        arrays[name] = value
    else:
        meta[name] = _jsonable(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_jsonable(item) for item in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def load_npz(cls: Any, path: Path) -> Any:
    """Inverse of `save_npz`; lists come back as tuples, rows of a table as dictionaries."""
    if not path.exists():
        raise ResultError(f"there is no result '{path}'. Run the stage that writes it (`hepx explain RUN`).")
    with files.reading(path), path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        if meta.get("type") != cls.__name__:
            raise ResultError(f"'{path}' holds a {meta.get('type')}; expected {cls.__name__}.")
        values = {**meta, **{name: file[name] for name in file.files if name != "meta"}}
    missing = [name for name in _names(cls) if name not in values]
    if missing:
        raise ResultError(
            f"'{path}' was written by another version: {cls.__name__} lacks {', '.join(missing)}. Run the stage that "
            "writes it again (`hepx explain RUN`)."
        )
    return _build(cls, values)


def _names(cls: Any) -> list[str]:
    """Names of all that a file of such a result holds."""
    own = [field.name for field in fields(cls) if field.name != "events"]
    return own + ([field.name for field in fields(EventTable)] if len(own) < len(fields(cls)) else [])


def save_json(result: Any, path: Path) -> None:
    """Write a frozen result whose fields are numbers, words and tables."""
    files.write_json(path, {"format": FORMAT, **asdict(result)})


def load_event_result(path: Path) -> EventResult:
    """A saved result of any kind that says something of each event; ResultError if it is none."""
    if not path.exists():
        raise ResultError(f"there is no result '{path}'. Run the stage that writes it (`hepx explain RUN`).")
    kind, known = kind_of(path), {one.__name__: one for one in (Explanation, GroupExplanation, PairExplanation)}
    if kind not in known:
        raise ResultError(f"'{path}' holds a {kind}; expected one of {', '.join(known)}.")
    return known[kind].load(path)


def kind_of(path: Path) -> str:
    """Name of the class of a saved .npz result; empty if it is none."""
    with files.reading(path), path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        return str(json.loads(str(file["meta"])).get("type")) if "meta" in file.files else ""


def read_provenance(path: Path) -> Provenance:
    """Where a saved .npz or .json result comes from, without loading its arrays."""
    return Provenance(**_meta(path)["provenance"])


def _meta(path: Path) -> dict[str, Any]:
    """What a saved .npz or .json result holds beside arrays."""
    if path.suffix == ".json":
        return dict(files.read_json(path))
    with files.reading(path), path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        return dict(json.loads(str(file["meta"])))


def is_result_of(path: Path, provenance: Provenance) -> bool:
    """Whether a saved result is there, of this format, made with the same method, settings, model, data and seed."""
    if not path.exists():
        return False
    meta = _meta(path)
    found = Provenance(**meta["provenance"])
    if meta.get("format") != FORMAT:
        return False
    same = ("method", "settings", "checkpoint", "data", "seed", "version")
    return all(getattr(found, name) == getattr(provenance, name) for name in same)


def _build(cls: Any, values: dict[str, Any]) -> Any:
    arguments = {}
    for field in fields(cls):
        if field.name == "events":
            arguments[field.name] = _build(EventTable, values)
        elif field.name == "provenance":
            arguments[field.name] = Provenance(**values["provenance"])
        else:
            value = values[field.name]
            arguments[field.name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)
