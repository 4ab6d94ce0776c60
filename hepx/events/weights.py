"""Event weights as physicists mean them, what becomes of negative ones, and the identity of an event."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
import numpy.typing as npt

from hepx.errors import ConfigError, DataError
from hepx.events.columns import Columns, Float64, require_finite
from hepx.events.schema import Schema
from hepx.events.settings import SampleSettings

log = logging.getLogger(__name__)

EVENT_NUMBERS = 10**12
CHANNELS = 9_000_000
FACTORS = ("xsec_pb", "kfactor", "filter_efficiency", "sum_of_weights")


def event_weights(columns: Columns, schema: Schema, sample: SampleSettings, luminosity: float) -> Float64:
    """Π weights × σ × k-factor × filter efficiency × L / Σw; float64 [B], negative ones kept.

    A number given in the config replaces the file's; a sample without any normalisation is an error.
    """
    weight = np.full(columns.num_events, luminosity * 1000.0)  # fb⁻¹ -> pb⁻¹
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite afterwards is an error
        for branch in schema.weights:
            if branch in columns:
                weight = weight * columns.per_event(branch).astype(np.float64)
        for name in FACTORS:
            factor = _factor(columns, schema, sample, name)
            weight = weight / factor if name == "sum_of_weights" else weight * factor
    require_finite(weight, f"weight of {columns.where}")
    return weight


def _factor(columns: Columns, schema: Schema, sample: SampleSettings, name: str) -> float | Float64:
    given, declared = getattr(sample, name), getattr(schema.normalization, name)
    value = declared if given is None else given
    if value is None:
        raise ConfigError(
            f"{columns.where}: schema '{schema.name}' has no branch for '{name}'; give data.samples.<name>.{name}."
        )
    if isinstance(value, str):
        value = columns.per_event(value).astype(np.float64)
    if name == "sum_of_weights" and np.any(np.asarray(value) == 0):
        raise DataError(
            f"{columns.where}: sum_of_weights is zero, so the sample cannot be normalised. Give it in the config."
        )
    return value


def apply_policy(
    weight: Float64, policy: Literal["signed", "abs", "drop"], what: str
) -> tuple[Float64, npt.NDArray[np.bool_]]:
    """The weights under a policy for negative ones, and which events are kept; logs what the policy changes.

    >>> weight, kept = apply_policy(np.array([2.0, -1.0]), "abs", "toy")
    >>> weight.tolist(), kept.tolist()
    ([2.0, 1.0], [True, True])
    """
    negative = weight < 0
    changed = np.abs(weight) if policy == "abs" else weight
    kept = ~negative if policy == "drop" else np.ones(len(weight), dtype=bool)
    if negative.any():
        log.info(
            "%s: %d of %d weights are negative (%s): yield %.6g -> %.6g, effective events %.1f -> %.1f",
            what,
            int(negative.sum()),
            len(weight),
            policy,
            weight.sum(),
            changed[kept].sum(),
            effective_events(weight),
            effective_events(changed[kept]),
        )
    return changed, kept


def effective_events(weight: Float64) -> float:
    """(Σw)² / Σw²: the number of unweighted events with the same relative uncertainty; 0 without events.

    >>> effective_events(np.array([1.0, 1.0, 1.0, -1.0]))
    1.0
    """
    squares = float((weight**2).sum())
    return float(weight.sum()) ** 2 / squares if squares else 0.0


def event_ids(columns: Columns, schema: Schema, sample: SampleSettings) -> npt.NDArray[np.int64]:
    """channel · 10¹² + event number, int64 [B]: readable and reversible.

    The channel is the config's number if it gives one, else the file's channel, else (data have none) its run.
    """
    event = columns.per_event(schema.event_number).astype(np.int64)
    channel = _channels(columns, schema, sample)
    if np.any((event < 0) | (event >= EVENT_NUMBERS)) or np.any((channel < 0) | (channel >= CHANNELS)):
        raise DataError(
            f"{columns.where}: event numbers must lie in [0, 10^12) and channel or run numbers in [0, 9·10^6). Name "
            "the right branches in the schema, or give data.samples.<name>.channel."
        )
    return channel * EVENT_NUMBERS + event


def _channels(columns: Columns, schema: Schema, sample: SampleSettings) -> npt.NDArray[np.int64]:
    if sample.channel is not None:
        return np.full(columns.num_events, sample.channel, dtype=np.int64)
    names = [name for name in (schema.channel_number, schema.run_number) if name and name in columns]
    numbers = [columns.per_event(name).astype(np.int64) for name in names]
    if not numbers:
        raise ConfigError(
            f"{columns.where}: schema '{schema.name}' has no number that tells samples apart; give each sample its own "
            "data.samples.<name>.channel, for example 1, 2, 3."
        )
    return np.where(numbers[0] > 0, numbers[0], numbers[-1])
