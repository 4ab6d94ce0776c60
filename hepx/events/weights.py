"""Event weights as physicists mean them, what becomes of negative ones, and the identity of an event."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hepx.errors import ConfigError, DataError
from hepx.events.columns import Columns, Float64, require_finite
from hepx.events.schema import Schema
from hepx.events.settings import SampleSettings

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
    if not np.isfinite(weight).all():
        branches = [*schema.weights, *(one for one in vars(schema.normalization).values() if isinstance(one, str))]
        of = [one for one in branches if one in columns and not np.isfinite(columns.per_event(one)).all()]
        require_finite(
            weight, f"weight of {columns.where} (branch {', '.join(of)})" if of else f"weight of {columns.where}"
        )
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


@dataclass(frozen=True)
class WeightSums:
    """Of events whose weights a policy for negative ones changes: how many, how many of them are negative, and Σw and
    Σw² before and after. Sums add up over parts of a sample."""

    events: int = 0
    negative: int = 0
    before: float = 0.0
    squares_before: float = 0.0
    after: float = 0.0
    squares_after: float = 0.0

    def __add__(self, other: WeightSums) -> WeightSums:
        return WeightSums(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def describe(self, policy: str) -> str:
        """What the policy changed, in words."""
        return (
            f"{self.negative} of {self.events} weights are negative ({policy}): yield {self.before:.6g} -> "
            f"{self.after:.6g}, effective events {_effective(self.before, self.squares_before):.1f} -> "
            f"{_effective(self.after, self.squares_after):.1f}"
        )


def apply_policy(
    weight: Float64, policy: Literal["signed", "abs", "drop"]
) -> tuple[Float64, npt.NDArray[np.bool_], WeightSums]:
    """The weights under a policy for negative ones, which events are kept, and what the policy changes.

    >>> weight, kept, sums = apply_policy(np.array([2.0, -1.0]), "abs")
    >>> weight.tolist(), kept.tolist(), sums.describe("abs")
    ([2.0, 1.0], [True, True], '1 of 2 weights are negative (abs): yield 1 -> 3, effective events 0.2 -> 1.8')
    """
    negative = weight < 0
    changed = np.abs(weight) if policy == "abs" else weight
    kept = ~negative if policy == "drop" else np.ones(len(weight), dtype=bool)
    before, after = ((float(one.sum()), float((one**2).sum())) for one in (weight, changed[kept]))
    return changed, kept, WeightSums(len(weight), int(negative.sum()), *before, *after)


def effective_events(weight: Float64) -> float:
    """(Σw)² / Σw²: the number of unweighted events with the same relative uncertainty; 0 without events.

    >>> effective_events(np.array([1.0, 1.0, 1.0, -1.0]))
    1.0
    """
    return _effective(float(weight.sum()), float((weight**2).sum()))


def _effective(total: float, squares: float) -> float:
    return total**2 / squares if squares else 0.0


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
