"""Several models and seeds on one data set, and one table with paired differences."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from hepx import files
from hepx.config import Settings, apply_overrides, load, parse
from hepx.errors import ConfigError
from hepx.run import Run, RunSettings

log = logging.getLogger(__name__)


class SweepSettings(Settings):
    """A base config, seeds, and variants: name -> overrides of the base, as on the command line. Differences are taken
    to the variant `reference`, seed by seed."""

    name: str
    base: str
    seeds: tuple[int, ...] = Field(min_length=2)
    reference: str
    variants: dict[str, dict[str, Any]] = Field(min_length=1)


def sweep(path: Path, overrides: list[str], root: Path) -> list[dict[str, Any]]:
    """Train and evaluate every variant with every seed; finished ones are skipped. Writes and returns the table.

    The data set is converted once: each run folder links to it.
    """
    settings = parse(SweepSettings, load(path, overrides), f"config '{path}'")
    if settings.reference not in settings.variants:
        raise ConfigError(f"config '{path}': the reference '{settings.reference}' is not one of the variants.")
    folder = root / settings.name
    (folder / "dataset").mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {}
    for variant, changes in settings.variants.items():
        for seed in settings.seeds:
            run = _member(settings, folder, variant, changes, seed)
            log.info("%s, seed %d", variant, seed)
            run.execute("evaluate")
            results.setdefault(variant, []).append(files.read_json(run.folder / "metrics.json"))
    table = summarise(results, settings.reference)
    with files.atomic(folder / "sweep.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return table


def _member(settings: SweepSettings, folder: Path, variant: str, changes: dict[str, Any], seed: int) -> Run:
    values = load(Path(settings.base))
    name = f"{variant}-{seed}"
    apply_overrides(values, {**changes, "seed": seed, "name": name})
    link = folder / name / "dataset"
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("..") / "dataset")
    return Run.create(folder / name, parse(RunSettings, values, f"variant '{variant}' of sweep '{settings.name}'"))


def summarise(results: dict[str, list[dict[str, Any]]], reference: str) -> list[dict[str, Any]]:
    """One row per variant and per reference tree: mean over seeds, spread of the seeds, error of the test events
    (bootstrap), and the difference to the reference variant.

    The error of a difference joins the spread of the paired differences over √seeds.
    """
    columns = {variant: _columns(runs, "auc") for variant, runs in results.items()}
    for number, tree in enumerate(results[reference][0]["references"]):
        runs = [run["references"][number] for run in results[reference]]
        columns[tree["name"]] = {"auc": [run["auc"] for run in runs], "test_error": [run["error"] for run in runs]}
    base = np.array(columns[reference]["auc"])
    return [_row(name, values, base) for name, values in columns.items()]


def _columns(runs: list[dict[str, Any]], name: str) -> dict[str, list[float]]:
    return {
        "auc": [run[name]["value"] for run in runs],
        "test_error": [run[name]["error"] for run in runs],
        "auc_unweighted": [run["auc_unweighted"]["value"] for run in runs],
        **{key: [run[key] for run in runs] for key in ("accuracy", "precision", "recall", "f1", "parameters")},
    }


def _row(name: str, values: dict[str, list[float]], base: Any) -> dict[str, Any]:
    auc = np.array(values["auc"])
    difference = auc - base
    row = {
        "variant": name,
        "seeds": len(auc),
        "auc": auc.mean(),
        "seed_spread": auc.std(ddof=1),
        "test_error": float(np.mean(values["test_error"])),
        "difference": difference.mean(),
        "difference_error": difference.std(ddof=1) / np.sqrt(len(auc)),
    }
    others = ("auc_unweighted", "accuracy", "precision", "recall", "f1", "parameters")
    return {**row, **{key: float(np.mean(values[key])) if key in values else None for key in others}}
