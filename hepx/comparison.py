"""Classifiers compared over several seeds on the same test events: means, spreads, paired differences.

Works on saved results alone: `replicas.npz` and `scores.parquet` of finished runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from hepx.errors import ConfigError
from hepx.metrics import spread
from hepx.results import EFFICIENCY, Measured

Array = npt.NDArray[np.float64]
REJECTION = "rejection@"


@dataclass(frozen=True)
class Entry:
    """One classifier over the seeds S: measures [S, G, M], those of bootstrap replicas of the events [S, R, G, M]."""

    values: Array
    replicas: Array


@dataclass(frozen=True)
class Row:
    """One measure of one classifier in one group, mean of the seeds.

    seed_spread: standard deviation over the seeds (training); test_error: of the mean over replicas of the test events;
    difference to the reference and its error: the spread of the seed-by-seed differences over √seeds and the spread of
    the difference over common replicas, in quadrature. None where there is no such number.
    """

    variant: str
    group: str
    measure: str
    seeds: int
    value: float | None
    seed_spread: float | None
    test_error: float | None
    difference: float | None
    difference_error: float | None

    @property
    def sigmas(self) -> float | None:
        """Size of the difference in its errors."""
        if self.difference is None or not self.difference_error:
            return None
        return abs(self.difference) / self.difference_error


def compare_runs(runs: Mapping[str, Sequence[Path]], reference: str) -> list[Row]:
    """Rows of every variant (name -> folders of its runs, one per seed), then of every reference classifier that the
    runs of the variant `reference` hold. ConfigError if the runs cannot be paired."""
    folders = [folder for found in runs.values() for folder in found]
    _check_same_events(folders)
    measured = {
        variant: [Measured.load(folder / "replicas.npz") for folder in found] for variant, found in runs.items()
    }
    first = measured[reference][0]
    for variant, found in measured.items():
        if any((one.groups, one.measures) != (first.groups, first.measures) for one in found):
            raise ConfigError(
                f"'{variant}' and '{reference}' do not measure the same things; give all variants the same "
                "evaluate.points and evaluate.signal_efficiencies."
            )
    entries = {variant: entry(found, 0) for variant, found in measured.items()}
    others = {name: entry(measured[reference], i) for i, name in enumerate(first.classifiers) if i}
    return [
        row
        for name, one in (entries | others).items()
        for row in compare(name, one, entries[reference], first.groups, first.measures)
    ]


def _check_same_events(folders: Sequence[Path]) -> None:
    first, *others = [pq.read_table(folder / "scores.parquet", columns=["event_id"]) for folder in folders]
    for folder, events in zip(folders[1:], others, strict=True):
        if not events.equals(first):
            raise ConfigError(
                f"'{folder}' and '{folders[0]}' have different test events, so they cannot be compared event by event. "
                "Give all variants the same data.samples, data.select and data.split."
            )


def entry(measured: Sequence[Measured], classifier: int) -> Entry:
    """One classifier of the runs of several seeds."""
    values = np.array([one.values[classifier] for one in measured])
    return Entry(values, np.array([one.replicas[:, classifier] for one in measured], dtype=np.float64))


def compare(name: str, one: Entry, reference: Entry, groups: Sequence[str], measures: Sequence[str]) -> list[Row]:
    """Rows of one classifier."""
    rows = []
    for g, group in enumerate(groups):
        for m, measure in enumerate(measures):
            parts = [(e.values[:, g, m], e.replicas[:, :, g, m]) for e in (one, reference)]
            rows.append(_row(name, group, measure, *parts))
    return rows


def _row(name: str, group: str, measure: str, one: tuple[Array, Array], reference: tuple[Array, Array]) -> Row:
    """A background efficiency ε is shown as the rejection 1/⟨ε⟩, its errors to first order: σ(ε)/⟨ε⟩²."""
    shown, num = measure, len(one[0])
    (value, a), (other, b) = _linear(*one), _linear(*reference)
    if measure.startswith(EFFICIENCY):
        shown = REJECTION + measure.removeprefix(EFFICIENCY)
        (value, a), (other, b) = _inverse(*one), _inverse(*reference)
    seeds, replicas = a
    difference = value - other
    by_seed = (seeds - b[0]).std(ddof=1) / np.sqrt(num)
    by_events = spread(replicas - b[1])
    return Row(
        name,
        group,
        shown,
        num,
        _known(value),
        _known(seeds.std(ddof=1)),
        spread(replicas) if np.isfinite(value) else None,
        _known(difference),
        None if by_events is None or not np.isfinite(difference) else _known(np.hypot(by_seed, by_events)),
    )


def _linear(values: Array, replicas: Array) -> tuple[float, tuple[Array, Array]]:
    """Mean over the seeds; the values per seed [S] and the replicas of the mean [R]."""
    return float(values.mean()), (values, replicas.mean(0))


def _inverse(values: Array, replicas: Array) -> tuple[float, tuple[Array, Array]]:
    """The same for 1/mean; NaN where nothing passes for any seed, because then there is only a lower limit."""
    mean = float(values.mean())
    if not mean > 0:
        return float("nan"), (np.full_like(values, np.nan), np.full(replicas.shape[1], np.nan))
    return 1 / mean, (-values / mean**2, -replicas.mean(0) / mean**2)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
