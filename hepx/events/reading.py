"""Files -> EventBatch in steps, selections with their cut-flow, regions as observables."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from hepx import expression, kinematics
from hepx.collection import Collection
from hepx.errors import DataError
from hepx.events.columns import Float64, Resolved
from hepx.events.objects import read_objects
from hepx.events.schema import Schema
from hepx.events.settings import DataSettings, SampleSettings, VariationSettings
from hepx.events.tables import open_table
from hepx.events.variations import Origin, vary
from hepx.events.weights import WeightSums, apply_policy, event_ids, event_weights
from hepx.remote import Location, Url, locate, size

EVENTS_PER_STEP = 100_000  # below 50 k events per step uproot's cost per basket dominates
EVENTS_PER_BATCH = 50_000  # half as many cost 2 % more, for the calls; twice as many 3 % more, for the cache


@dataclass(frozen=True)
class EventBatch:
    """Events of one sample. Momenta in GeV and rad; collections sorted by falling pt.

    collections: jet, bjet, lepton, and met with one object per event, as flat columns;
    weight: float64 [B], may be negative; event_id: int64 [B], stable across cuts, shuffles and jobs;
    observables: name -> float64 [B], NaN where undefined; weight_sums: of the events as they were read, what the policy
    for negative weights changed.
    """

    collections: dict[str, Collection]
    sample: str
    label: int
    weight: Float64
    event_id: npt.NDArray[np.int64]
    observables: dict[str, Float64]
    weight_sums: WeightSums = field(default_factory=WeightSums)

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, index: Any) -> EventBatch:
        """Events at `index` (a slice, a mask or positions)."""
        return replace(
            self,
            collections={name: objects.events(index) for name, objects in self.collections.items()},
            weight=self.weight[index],
            event_id=self.event_id[index],
            observables={name: values[index] for name, values in self.observables.items()},
        )

    @property
    def objects(self) -> dict[str, ak.Array]:
        """jet, bjet, lepton as awkward momenta of `vector` [B, var], met [B]: for a look at events by hand."""
        found = {name: objects.momenta() for name, objects in self.collections.items()}
        return found | {"met": found["met"][:, 0]}


@dataclass(frozen=True)
class Cut:
    """One line of a cut-flow: what was asked, how many events are left, raw and weighted (Σw, √Σw²)."""

    name: str
    events: int
    weighted: float
    error: float


@dataclass(frozen=True)
class Source:
    """An input file: where, which tree, how many events, the identity its writer gave it, which b-tagger was used,
    and the quantities that the file does not have and hepx computed."""

    path: str
    tree: str
    num_events: int
    uuid: str
    size: int
    tagger: str = ""
    computed: tuple[str, ...] = ()


def find_files(sample: str, settings: SampleSettings) -> list[Location]:
    """The files of a sample, patterns expanded, in a stable order; DataError if one is missing or given twice.

    An address is taken as it is; whether there is such a file shows when it is opened.
    """
    paths: list[Location] = []
    for pattern in settings.files:
        address = locate(pattern)
        if isinstance(address, Url):
            paths.append(address)
            continue
        found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
        if not found:
            raise DataError(
                f"sample '{sample}': no file matches '{pattern}' (seen from {Path.cwd()}). "
                f"Mend data.samples.{sample}.files."
            )
        paths += found
    seen: dict[Location, Location] = {}
    for path in paths:
        earlier = seen.setdefault(path.resolve(), path)
        if earlier is not path:
            raise DataError(
                f"sample '{sample}': '{path}' and '{earlier}' are the same file, so its events would count twice. "
                f"Mend data.samples.{sample}.files."
            )
    return paths


def inspect_file(path: Location, schema: Schema, variation: VariationSettings | None = None) -> Source:
    """Open a file, check it against the schema, and say what it is; DataError if it cannot be used."""
    resolved, _ = _open(path, schema, variation)
    table = resolved.table
    if table.num_entries == 0:
        raise DataError(f"tree '{table.name}' of {path} holds no events. Remove the file from the config.")
    tagger = resolved.tagger.name if resolved.tagger else ""
    found = computed(resolved, resolved.schema)
    return Source(str(path), table.name, table.num_entries, table.uuid, size(path), tagger, found)


def _open(path: Location, schema: Schema, variation: VariationSettings | None) -> tuple[Resolved, Resolved]:
    """What the schema asks for in a file, and the same with the branches that a variation names instead."""
    if variation is not None:
        schema = schema.varied(variation.tree, {})
    table = open_table(path, schema.trees, schema.name)
    base = Resolved(table, schema)
    if variation is None or not variation.branches:
        return base, base
    return base, Resolved(table, schema.varied(None, variation.branches))


def computed(resolved: Resolved, schema: Schema) -> tuple[str, ...]:
    """The quantities that hepx computes because the file does not have them."""
    met = ("met", "met_phi") if schema.met.built else ()
    return met if schema.met.significance in resolved.present() else (*met, "met_significance")


def read_events(
    path: Location,
    schema: Schema,
    data: DataSettings,
    sample: str,
    start: int = 0,
    stop: int | None = None,
    variation: VariationSettings | None = None,
) -> Iterator[EventBatch]:
    """Read the events [start, stop) of one file in steps; objects selected, events not yet.

    Raises DataError for a file that cannot be read, a missing branch, a value that cannot be.
    """
    resolved, moved = _open(path, schema, variation)
    num_entries = resolved.table.num_entries
    stop = num_entries if stop is None else min(stop, num_entries)
    for first in range(start, stop, EVENTS_PER_STEP):
        last = min(first + EVENTS_PER_STEP, stop)
        pieces = list(resolved.columns(first, last).pieces(EVENTS_PER_BATCH))
        others = pieces if moved is resolved else list(moved.columns(first, last).pieces(EVENTS_PER_BATCH))
        for piece, other in zip(pieces, others, strict=True):
            base = Origin(piece, resolved.schema, resolved.tagger)
            origin = base if moved is resolved else Origin(other, moved.schema, moved.tagger)
            yield _to_batch(base, origin, data, sample, variation)


def _to_batch(
    base: Origin, origin: Origin, data: DataSettings, sample: str, variation: VariationSettings | None
) -> EventBatch:
    """Objects, weights, identities and observables of the events of `origin`, varied against `base` if asked to."""
    columns, schema, settings = origin.columns, origin.schema, data.samples[sample]
    event_id = event_ids(columns, schema, settings)
    if variation is None:
        collections = read_objects(columns, schema, origin.tagger, data)
    else:
        collections = vary(base, origin, data, variation, event_id)
    weight = event_weights(columns, schema, settings, data.luminosity)
    weight, kept, sums = apply_policy(weight, data.negative_weights)
    observables = kinematics.observables(collections)
    for name, branch in schema.columns.items():
        known = branch in columns
        observables[name] = columns.per_event(branch).astype(np.float64) if known else np.full(len(weight), np.nan)
    for name, text in data.regions.items():
        observables[name] = _passes(text, observables, len(weight), f"data.regions.{name}").astype(np.float64)
    batch = EventBatch(collections, sample, settings.label, weight, event_id, observables, sums)
    return batch if kept.all() else batch[kept]


def extra_observables(schema: Schema, data: DataSettings) -> dict[str, str]:
    """Observables that an event has beside those of `kinematics`, and their units: columns of the schema (masses, GeV)
    and regions of the config."""
    return dict.fromkeys(schema.columns, "GeV") | dict.fromkeys(data.regions, "")


def select(batch: EventBatch, selection: str | None) -> tuple[EventBatch, list[Cut]]:
    """Apply a selection on observables, cut by cut; returns the events left and the cut-flow."""
    passed = np.ones(len(batch), dtype=bool)
    flow = [_cut("read", batch.weight)]
    for text in expression.cuts(selection) if selection else []:
        passed = passed & _passes(text, batch.observables, len(batch), "data.select")
        flow.append(_cut(text, batch.weight[passed]))
    return batch if passed.all() else batch[passed], flow


def _passes(text: str, observables: dict[str, Float64], num_events: int, where: str) -> npt.NDArray[np.bool_]:
    return np.broadcast_to(expression.condition(text, observables, where), num_events)


def _cut(name: str, weight: Float64) -> Cut:
    return Cut(name, len(weight), float(weight.sum()), float(np.sqrt((weight**2).sum())))
