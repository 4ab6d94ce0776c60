"""ROOT or HDF5 files -> EventBatch. Units become GeV and rad here, once; nothing behind this room knows a layout.

settings   what a config says about events: samples, luminosity, selection, regions, split
schema     Schema, which declares one layout: which branch holds what, in which unit, with which meaning
tables     the only place that opens files: ROOT TTrees and RNTuples, pandas' HDF5 tables
columns    branches of a schema -> arrays, alternatives and optional ones resolved, types and values checked
objects    arrays -> jets, leptons, missing momentum
variations what a systematic variation does to objects and missing momentum
weights    event weights and event identities
reading    files -> EventBatch, selection, cut-flow
inspection what is in a file, which schema fits, and a starter schema for a file that none fits
"""

from hepx.events.inspection import FileReport, Fit, describe, inspect, refuse_unfilled, starter_schema, write_starter
from hepx.events.reading import (
    EVENTS_PER_STEP,
    Cut,
    EventBatch,
    Source,
    extra_observables,
    find_files,
    inspect_file,
    read_events,
    select,
)
from hepx.events.schema import MissingMomentum, Normalization, ObjectSchema, Schema, Tagger
from hepx.events.settings import DataSettings, FoldSettings, SampleSettings, SplitSettings, VariationSettings
from hepx.events.weights import EVENT_NUMBERS, FACTORS, WeightSums

__all__ = [
    "EVENTS_PER_STEP",
    "EVENT_NUMBERS",
    "FACTORS",
    "Cut",
    "DataSettings",
    "EventBatch",
    "FileReport",
    "Fit",
    "FoldSettings",
    "MissingMomentum",
    "Normalization",
    "ObjectSchema",
    "SampleSettings",
    "Schema",
    "Source",
    "SplitSettings",
    "Tagger",
    "VariationSettings",
    "WeightSums",
    "describe",
    "extra_observables",
    "find_files",
    "inspect",
    "inspect_file",
    "read_events",
    "refuse_unfilled",
    "select",
    "starter_schema",
    "write_starter",
]
