"""Several models and seeds on one data set, and one table with paired differences."""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pydantic import Field

from hepx import files, metrics
from hepx.config import Settings, apply_overrides, load, parse
from hepx.errors import ConfigError
from hepx.run import Run, RunSettings

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]
EXTRA = ("accuracy", "precision", "recall", "f1", "parameters")


class SweepSettings(Settings):
    """A base config, seeds, and variants: name -> overrides of the base, as on the command line. Differences are taken
    to the variant `reference`, seed by seed and event by event."""

    name: str
    base: str
    seeds: tuple[int, ...] = Field(min_length=2)
    reference: str
    variants: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Entry:
    """One classifier over the seeds S: AUC [S], AUC of bootstrap replicas of the test events [S, R], other numbers."""

    auc: Array
    replicas: Array
    extra: dict[str, float]


def sweep(path: Path, overrides: list[str], root: Path) -> list[dict[str, Any]]:
    """Train and evaluate every variant with every seed; finished ones are skipped. Writes and returns the table.

    Every data set is converted once: the run folders link to it. Raises ConfigError if the variants do not have the
    same test events, because then nothing can be paired.
    """
    settings = parse(SweepSettings, load(path, overrides), f"config '{path}'")
    if settings.reference not in settings.variants:
        raise ConfigError(f"config '{path}': the reference '{settings.reference}' is not one of the variants.")
    folder = root / settings.name
    runs: dict[str, list[Path]] = {}
    for variant, changes in settings.variants.items():
        for seed in settings.seeds:
            run = _member(settings, path.parent, folder, variant, changes, seed)
            log.info("%s, seed %d", variant, seed)
            run.execute("evaluate")
            runs.setdefault(variant, []).append(run.folder)
    table = _table(runs, settings.reference)
    with files.atomic(folder / "sweep.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return table


def _member(
    settings: SweepSettings, beside: Path, folder: Path, variant: str, changes: dict[str, Any], seed: int
) -> Run:
    """The run of one variant and seed; `base` is a path relative to the sweep's own file."""
    values = load(beside / settings.base)
    name = f"{variant}-{seed}"
    apply_overrides(values, {**changes, "seed": seed, "name": name})
    run = Run(folder / name, parse(RunSettings, values, f"variant '{variant}' of sweep '{settings.name}'"))
    data = folder / f"dataset-{run.key('convert')}"
    data.mkdir(parents=True, exist_ok=True)
    link = folder / name / "dataset"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.readlink() != Path("..") / data.name:
        link.unlink()
    if not link.is_symlink():
        link.symlink_to(Path("..") / data.name)
    return run


def _table(runs: dict[str, list[Path]], reference: str) -> list[dict[str, Any]]:
    """A row per variant, then one per reference classifier that the runs of the reference variant hold."""
    _check_same_events([folder for folders in runs.values() for folder in folders])
    entries = {variant: _entry(folders, "score") for variant, folders in runs.items()}
    for other in files.read_json(runs[reference][0] / "metrics.json")["references"]:
        entries[other["name"]] = _entry(runs[reference], other["column"])
    return [compare(name, entry, entries[reference]) for name, entry in entries.items()]


def _check_same_events(folders: list[Path]) -> None:
    first, *others = [pq.read_table(folder / "scores.parquet", columns=["event_id"]) for folder in folders]
    for folder, events in zip(folders[1:], others, strict=True):
        if not events.equals(first):
            raise ConfigError(
                f"'{folder}' and '{folders[0]}' have different test events, so they cannot be compared event by event. "
                "Give all variants the same data.samples, data.select and data.split."
            )


def _entry(folders: list[Path], column: str) -> Entry:
    """One classifier from the saved scores of its runs; the test events are the same in all of them."""
    auc, replicas = [], []
    for folder in folders:
        table = pq.read_table(folder / "scores.parquet", columns=["label", "weight", column])
        y, weight, score = (table[name].to_numpy() for name in ("label", "weight", column))
        auc.append(metrics.auc(y, score, weight))
        replicas.append(metrics.bootstrap_auc(y, score, weight))
    saved = [files.read_json(folder / "metrics.json") for folder in folders]
    extra = {name: float(np.mean([values[name] for values in saved])) for name in EXTRA} if column == "score" else {}
    return Entry(np.array(auc), np.array(replicas), extra)


def compare(name: str, entry: Entry, reference: Entry) -> dict[str, Any]:
    """Mean AUC with the spread of the seeds and the error of the test events, and the difference to the reference.

    The error of a difference joins in quadrature the spread of the seed-by-seed differences over √seeds and the
    spread of the difference over common bootstrap replicas of the test events.
    """
    difference = entry.auc - reference.auc
    by_seed = difference.std(ddof=1) / np.sqrt(len(difference))
    by_events = (entry.replicas.mean(0) - reference.replicas.mean(0)).std()
    return {
        "variant": name,
        "seeds": len(entry.auc),
        "auc": float(entry.auc.mean()),
        "seed_spread": float(entry.auc.std(ddof=1)),
        "test_error": float(entry.replicas.mean(0).std()),
        "difference": float(difference.mean()),
        "difference_error": float(np.hypot(by_seed, by_events)),
        **{key: entry.extra.get(key) for key in EXTRA},
    }
