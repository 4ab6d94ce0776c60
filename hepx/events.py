"""ROOT files -> EventBatch: the only file that reads with uproot. Units become GeV and rad here, once.

A `Schema` declares a ROOT layout: which tree, which branch holds what, in which unit. Branch names ending in `?` are
optional: the field is absent where the file has no such branch.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot
import vector
from pydantic import Field, field_validator, model_validator

from hepx import expression, kinematics
from hepx.config import Settings
from hepx.errors import ConfigError, DataError, closest

vector.register_awkward()
log = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]
EVENTS_PER_STEP = 100_000  # below 50 k events per step uproot's cost per basket dominates
EVENT_NUMBERS = 10**12


class ObjectSchema(Settings):
    """Branches of one kind of object: field -> branch, and the default selection on these fields (GeV)."""

    branches: dict[str, str]
    select: str | None = None

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        missing = {"pt", "eta", "phi"} - {name for name, branch in self.branches.items() if not branch.endswith("?")}
        if missing:
            raise ValueError(f"an object needs the fields pt, eta and phi; missing: {', '.join(sorted(missing))}")
        return self


class Normalization(Settings):
    """Branches with the normalisation of a simulated sample; None where a file does not say and the config must."""

    xsec_pb: str | None = None
    kfactor: str | None = None
    filter_efficiency: str | None = None
    sum_of_weights: str | None = None


class Schema(Settings):
    """One ROOT layout. All branch names are as in the file; `energy_unit` is the file's unit of energy."""

    name: str
    description: str = ""
    trees: tuple[str, ...]
    energy_unit: Literal["GeV", "MeV"]
    run_number: str
    event_number: str
    channel_number: str | None = None
    jet: ObjectSchema
    lepton: ObjectSchema
    met: dict[str, str]
    btag_cut: float
    weights: tuple[str, ...] = ()
    normalization: Normalization = Normalization()
    columns: dict[str, str] = Field(default={})

    def branches(self) -> list[str]:
        """Every branch the schema names, optional ones with their `?`."""
        norm = [name for name in self.normalization.model_dump().values() if name]
        ids = [name for name in (self.run_number, self.event_number, self.channel_number) if name]
        objects = [*self.jet.branches.values(), *self.lepton.branches.values(), *self.met.values()]
        return list(dict.fromkeys([*ids, *objects, *self.weights, *norm, *self.columns.values()]))


class SampleSettings(Settings):
    """One process: its files and its class label; a given number replaces what the files say."""

    files: tuple[str, ...]
    label: int = Field(ge=0)
    xsec_pb: float | None = Field(default=None, gt=0)
    kfactor: float | None = Field(default=None, gt=0)
    filter_efficiency: float | None = Field(default=None, gt=0)
    sum_of_weights: float | None = None

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class SplitSettings(Settings):
    """Fractions of train, validation and test; an event's place follows from its event number alone."""

    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("the three fractions must not be negative and must sum to 1")
        return value


class DataSettings(Settings):
    """Which events: layout, samples, luminosity (fb⁻¹), selection, split."""

    schema_name: str = Field(alias="schema", default="atlas_open_2025")
    samples: dict[str, SampleSettings] = Field(min_length=1)
    luminosity: float = Field(default=139.0, gt=0)
    select: str | None = None
    select_jets: str | None = None
    select_leptons: str | None = None
    btag_cut: float | None = None
    split: SplitSettings = SplitSettings()

    @model_validator(mode="after")
    def _labels_are_classes(self) -> Self:
        labels = {sample.label for sample in self.samples.values()}
        if labels != set(range(len(labels))) or len(labels) < 2:
            given = ", ".join(f"{name}: {sample.label}" for name, sample in self.samples.items())
            raise ValueError(
                f"the labels must be 0, 1, … without a gap and name at least two classes; the samples have {given}"
            )
        return self


@dataclass(frozen=True)
class EventBatch:
    """Events of one sample. Momenta in GeV and rad; collections sorted by falling pt.

    objects: jet, bjet, lepton as awkward momenta [B, var], met as momenta [B];
    weight: float64 [B], may be negative; event_id: int64 [B], stable across cuts, shuffles and jobs;
    observables: name -> float64 [B], NaN where undefined.
    """

    objects: dict[str, ak.Array]
    sample: str
    label: int
    weight: Float64
    event_id: npt.NDArray[np.int64]
    observables: dict[str, Float64]

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, index: Any) -> EventBatch:
        """Events at `index` (a slice, a mask or positions)."""
        return replace(
            self,
            objects={name: momenta[index] for name, momenta in self.objects.items()},
            weight=self.weight[index],
            event_id=self.event_id[index],
            observables={name: values[index] for name, values in self.observables.items()},
        )


@dataclass(frozen=True)
class Cut:
    """One line of a cut-flow: what was asked, how many events are left, raw and weighted (Σw, √Σw²)."""

    name: str
    events: int
    weighted: float
    error: float


@dataclass(frozen=True)
class Source:
    """A ROOT file: where, which tree, how many events, and the identity its writer gave it."""

    path: str
    tree: str
    num_events: int
    uuid: str
    size: int


def find_files(sample: str, settings: SampleSettings) -> list[Path]:
    """The files of a sample, patterns expanded, in a stable order; DataError if one is missing."""
    paths: list[Path] = []
    for pattern in settings.files:
        found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
        if not found:
            raise DataError(
                f"sample '{sample}': no file matches '{pattern}' (seen from {Path.cwd()}). "
                f"Mend data.samples.{sample}.files."
            )
        paths += found
    return list(dict.fromkeys(paths))


def inspect_file(path: Path, schema: Schema) -> Source:
    """Open a file, check it against the schema, and say what it is."""
    tree = _open_tree(path, schema)
    return Source(str(path), tree.name, int(tree.num_entries), str(tree.file.uuid), path.stat().st_size)


def read_events(
    path: Path, schema: Schema, data: DataSettings, sample: str, start: int = 0, stop: int | None = None
) -> Iterator[EventBatch]:
    """Read the events [start, stop) of one file in steps; objects selected, events not yet.

    Raises DataError for a file that cannot be read, a missing branch, a value that is not finite.
    """
    tree = _open_tree(path, schema)
    fields = _present(schema, tree)
    stop = int(tree.num_entries) if stop is None else min(stop, int(tree.num_entries))
    for first in range(start, stop, EVENTS_PER_STEP):
        last = min(first + EVENTS_PER_STEP, stop)
        try:
            arrays = tree.arrays(fields, entry_start=first, entry_stop=last, library="ak")
        except Exception as error:
            raise DataError(
                f"cannot read events {first} to {last} of tree '{tree.name}' in {path}: the file is damaged or "
                f"truncated ({type(error).__name__}). Copy it again and compare its checksum."
            ) from error
        yield _to_batch(arrays, schema, data, sample, f"{path}, events {first} to {last}")


def select(batch: EventBatch, selection: str | None) -> tuple[EventBatch, list[Cut]]:
    """Apply a selection on observables, cut by cut; returns the events left and the cut-flow."""
    flow = [_cut("read", batch)]
    for text in expression.cuts(selection) if selection else []:
        passed = np.broadcast_to(np.asarray(expression.evaluate(text, batch.observables), dtype=bool), len(batch))
        batch = batch[passed]
        flow.append(_cut(text, batch))
    return batch, flow


def _cut(name: str, batch: EventBatch) -> Cut:
    return Cut(name, len(batch), float(batch.weight.sum()), float(np.sqrt((batch.weight**2).sum())))


def _open_tree(path: Path, schema: Schema) -> Any:
    """The first tree of the schema that the file has, checked for the branches that are not optional."""
    if not path.exists():
        raise DataError(f"there is no file '{path}' (seen from {Path.cwd()}).")
    try:
        file = uproot.open(path)
        trees = [str(name) for name in file.keys(cycle=False, filter_classname=["TTree", "ROOT::RNTuple"])]
        name = next((name for name in schema.trees if name in trees), None)
        tree = None if name is None else file[name]
        present = set() if tree is None else set(map(str, tree.keys(recursive=False)))
    except Exception as error:
        raise DataError(
            f"cannot open '{path}' as a ROOT file: it is truncated or not a ROOT file ({type(error).__name__}). "
            "Copy it again and compare its checksum."
        ) from error
    if tree is None:
        raise DataError(
            f"schema '{schema.name}': {path} has no tree '{schema.trees[0]}'; it has: {', '.join(trees) or 'no tree'}. "
            "Choose the schema that fits the file."
        )
    _check_branches(path, tree.name, present, schema)
    return tree


def _check_branches(path: Path, tree: str, present: set[str], schema: Schema) -> None:
    for branch in schema.branches():
        if not branch.endswith("?") and branch not in present:
            raise DataError(
                f"schema '{schema.name}': tree '{tree}' of {path} has no branch '{branch}'; "
                f"{closest(branch, sorted(present))}. Fix the name in the schema or choose another schema."
            )


def _present(schema: Schema, tree: Any) -> list[str]:
    present = set(map(str, tree.keys(recursive=False)))
    return [branch.rstrip("?") for branch in schema.branches() if branch.rstrip("?") in present]


def _to_batch(arrays: ak.Array, schema: Schema, data: DataSettings, sample: str, where: str) -> EventBatch:
    scale = 1e-3 if schema.energy_unit == "MeV" else 1.0
    jets = _momenta(arrays, schema.jet.branches, scale, data.select_jets or schema.jet.select, where)
    leptons = _momenta(arrays, schema.lepton.branches, scale, data.select_leptons or schema.lepton.select, where)
    cut = schema.btag_cut if data.btag_cut is None else data.btag_cut
    tagged = jets["btag"] >= cut
    objects = {
        "jet": ak.with_field(jets, tagged, "tagged"),
        "bjet": jets[tagged],
        "lepton": leptons,
        "met": _met(arrays, schema.met, scale, where),
    }
    settings = data.samples[sample]
    batch = EventBatch(
        objects=objects,
        sample=sample,
        label=settings.label,
        weight=_weights(arrays, schema, settings, data.luminosity, where),
        event_id=_event_ids(arrays, schema, where),
        observables=kinematics.observables(objects),
    )
    for name, branch in schema.columns.items():
        known = branch.rstrip("?") in arrays.fields
        batch.observables[name] = (
            ak.to_numpy(arrays[branch.rstrip("?")]).astype(np.float64) if known else np.full(len(batch), np.nan)
        )
    return batch


def _fields(arrays: ak.Array, branches: Mapping[str, str]) -> dict[str, ak.Array]:
    names = {field: branch.rstrip("?") for field, branch in branches.items()}
    return {field: arrays[branch] for field, branch in names.items() if branch in arrays.fields}


def _momenta(arrays: ak.Array, branches: Mapping[str, str], scale: float, select: str | None, where: str) -> ak.Array:
    """Objects as awkward momenta [B, var] in GeV, selected and sorted by falling pt."""
    fields = _fields(arrays, branches)
    for name in ("pt", "energy", "mass"):
        if name in fields:
            fields[name] = ak.values_astype(fields[name], np.float64) * scale
    for name in ("eta", "phi"):
        fields[name] = ak.values_astype(fields[name], np.float64)
    for name in fields.keys() & {"pt", "eta", "phi", "energy", "mass"}:
        _require_finite(fields[name], f"{branches[name].rstrip('?')} of {where}")
    energy = fields.pop("energy", None)
    if "mass" not in fields:
        fields["mass"] = fields["pt"] * 0 if energy is None else _mass(energy, fields["pt"], fields["eta"])
    momenta = ak.zip(fields, with_name="Momentum4D")
    if select:
        momenta = momenta[expression.evaluate(select, {name: momenta[name] for name in momenta.fields})]
    return momenta[ak.argsort(momenta["pt"], axis=1, ascending=False, stable=True)]


def _mass(energy: Any, pt: Any, eta: Any) -> Any:
    """Mass from the energy; float32 rounding can make E² − p² slightly negative, which counts as zero."""
    squared = energy**2 - (pt * np.cosh(eta)) ** 2
    return np.sqrt(ak.where(squared > 0, squared, 0.0))


def _met(arrays: ak.Array, branches: Mapping[str, str], scale: float, where: str) -> ak.Array:
    fields = _fields(arrays, branches)
    pt = ak.values_astype(fields["pt"], np.float64) * scale
    phi = ak.values_astype(fields["phi"], np.float64)
    _require_finite(pt, f"{branches['pt']} of {where}")
    _require_finite(phi, f"{branches['phi']} of {where}")
    significance = fields.get("significance", ak.Array(np.full(len(pt), np.nan)))
    values = {"pt": pt, "eta": pt * 0, "phi": phi, "mass": pt * 0, "significance": significance}
    return ak.zip(values, with_name="Momentum4D")


def _require_finite(values: Any, where: str) -> None:
    bad = ~np.isfinite(ak.to_numpy(ak.flatten(values, axis=None)))
    if bad.any():
        raise DataError(
            f"branch {where}: {int(bad.sum())} of {len(bad)} values are NaN or infinite; expected finite numbers. "
            "Remove these events from the file, or find out why its writer made them."
        )


def _weights(arrays: ak.Array, schema: Schema, sample: SampleSettings, luminosity: float, where: str) -> Float64:
    """Event weight: Π weights × σ × k-factor × filter efficiency × L / Σw; float64 [B], negative ones kept.

    A number given in the config replaces the file's; a sample without any normalisation is an error.
    """
    weight = np.full(len(arrays), luminosity * 1000.0)  # fb⁻¹ -> pb⁻¹
    for branch in schema.weights:
        weight = weight * ak.to_numpy(arrays[branch])
    for name in ("xsec_pb", "kfactor", "filter_efficiency", "sum_of_weights"):
        given, branch = getattr(sample, name), getattr(schema.normalization, name)
        if given is None and branch is None:
            raise ConfigError(
                f"{where}: schema '{schema.name}' has no branch for '{name}'; give data.samples.<name>.{name}."
            )
        value = given if given is not None else ak.to_numpy(arrays[branch])
        if name == "sum_of_weights":
            if np.any(np.asarray(value) == 0):
                raise DataError(
                    f"{where}: sum_of_weights is zero, so the sample cannot be normalised. Give it in the config."
                )
            weight = weight / value
        else:
            weight = weight * value
    _require_finite(weight, f"weight of {where}")
    return weight


def _event_ids(arrays: ak.Array, schema: Schema, where: str) -> npt.NDArray[np.int64]:
    """channel · 10¹² + event number (the run number where there is no channel): readable and reversible."""
    event = ak.to_numpy(arrays[schema.event_number]).astype(np.int64)
    run = ak.to_numpy(arrays[schema.run_number]).astype(np.int64)
    channel = ak.to_numpy(arrays[schema.channel_number]).astype(np.int64) if schema.channel_number else run
    channel = np.where(channel > 0, channel, run)
    if np.any((event < 0) | (event >= EVENT_NUMBERS)) or np.any((channel < 0) | (channel >= 9_000_000)):
        raise DataError(f"{where}: event numbers must lie in [0, 10^12) and channel or run numbers in [0, 9·10^6).")
    return channel * EVENT_NUMBERS + event
