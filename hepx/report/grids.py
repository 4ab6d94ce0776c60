"""The tables of the page: cells ready to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from hepx.config import read_yaml
from hepx.report.grid import Grid, object_html, sample_html
from hepx.report.inside_grids import inside_grids
from hepx.report.saved import Saved
from hepx.report.tables import Table, number, plus_minus
from hepx.results import Provenance

SHARED = ("config", "checkpoint", "data", "seed", "version", "commit", "device")
"""Fields of a provenance that are usually the same for all results of a run."""


def count(value: int) -> str:
    """A number of events with thin spaces.

    >>> count(12345).split()
    ['12', '345']
    """
    return f"{value:,}".replace(",", "\u202f")


def method_name(name: str) -> str:
    """A method as in a sentence."""
    return str(escape({"shapley": "Shapley values"}.get(name, name.replace("_", " "))))


def percent(value: float) -> str:
    """A share in percent.

    >>> percent(0.0123), percent(1e-9)
    ('1.2 %', 'less than 0.001 %')
    """
    return "less than 0.001 %" if value < 1e-5 else f"{number(100 * value, 2)} %"


def named_values(values: dict[str, Any]) -> str:
    """Settings in one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def make_grids(saved: Saved, tables: dict[str, Table]) -> dict[str, Grid]:
    """Every table of the page that has rows."""
    grids = {"cutflow": _cutflow_grid(saved, tables["cutflow"]), "sources": _sources_grid(saved)}
    if "completeness" in tables:
        grids["completeness"] = _completeness_grid(tables["completeness"])
    if "objects" in tables:
        grids["objects"] = _per_sample(saved, tables["objects"], ("object",), "mean_abs", "error_abs", "objects")
    if "pairs" in tables:
        grids["pairs"] = _per_sample(saved, tables["pairs"], ("object_1", "object_2"), "mean_abs", "error_abs", "pairs")
    grids |= inside_grids(saved, tables)
    grids["results"] = _results_grid(saved)
    return {name: grid for name, grid in grids.items() if grid.rows}


def _cutflow_grid(saved: Saved, table: Table) -> Grid:
    rows = []
    for step in dict.fromkeys(table.column("step")):
        cells: list[Any] = [step]
        for name in saved.samples:
            found = table.where(sample=name, step=step).dicts()
            cells += _cutflow_cells(found[0]) if found else ["–", "–", "–"]
        rows.append(tuple(cells))
    head = ["Step", *(text for name in saved.samples for text in (f"{sample_html(name)}: events", "weighted", "left"))]
    caption = (
        f"Events read and events left after each cut, and their weighted number at {saved.luminosity:g} fb⁻¹ with its "
        f"statistical error √Σw². “Left” is the share of the weight. {_normalisation(saved)}"
    )
    return Grid(tuple(Markup(text) for text in head), tuple(rows), caption, "cutflow")


def _normalisation(saved: Saved) -> str:
    """Which cross sections the yields are for: those of the files, or those the config gives instead."""
    given = {
        name: values["xsec_pb"]
        for name, values in (read_yaml(saved.config)["data"]["samples"] if saved.config else {}).items()
        if values.get("xsec_pb")
    }
    if not given:
        return "Cross sections are those of the files."
    parts = ", ".join(f"{xsec:g} pb for every channel of {name}" for name, xsec in given.items())
    return f"The config sets {parts}, instead of the predicted cross section; the others are those of the files."


def _cutflow_cells(row: dict[str, Any]) -> list[str]:
    share = "–" if row["efficiency"] is None else f"{number(100 * row['efficiency'])} %"
    return [count(row["events"]), plus_minus(row["weighted"], row["error"]), share]


def _sources_grid(saved: Saved) -> Grid:
    sources = saved.dataset.get("sources", [])
    marks = {"tagger": "b-tagger", "computed": "Computed by hepx"}
    shown = [name for name in marks if any(source.get(name) for source in sources)]
    rows = []
    for source in sources:
        about = (source["tree"], count(source["num_events"]), source["uuid"], _size(source["size"]))
        rows.append((Path(source["path"]).name, *about, *(_mark(source.get(name)) for name in shown)))
    caption = "The files this run has read."
    if "tagger" in shown:
        caption += " The b-tag is computed from the probabilities of the tagger named."
    if "computed" in shown:
        caption += " What a file does not have is computed from its objects, and marked."
    head = ("File", "Tree", "Events", "UUID", "Size", *(marks[name] for name in shown))
    return Grid(head, tuple(rows), caption)


def _mark(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(name.replace("_", " ") for name in value or ()) or "–"


def _size(num_bytes: float) -> str:
    return f"{number(num_bytes / 1e6)} MB"


def sigmas(value: float | None) -> str:
    """A significance in standard deviations."""
    return "–" if value is None else f"{value:.1f} σ"


def _completeness_grid(table: Table) -> Grid:
    rows = [
        (
            method_name(row["method"]),
            count(row["events"]),
            "–" if row["relative"] is None else percent(row["relative"]),
            "–" if row["largest"] is None else number(row["largest"], 2),
            row["note"],
        )
        for row in table.dicts()
    ]
    caption = (
        "Completeness: the attributions of an event must add up to score − baseline score. Relative: root mean square "
        "of what is missing over that of score − baseline score; – for a method whose values are not meant to add up. "
        "With fixed routing both are scores with the experts that the explained event chooses."
    )
    return Grid(("Method", "Events", "Relative", "Largest [logit]", "Note"), tuple(rows), caption, "completeness")


def _per_sample(saved: Saved, table: Table, keys: Sequence[str], value: str, error: str, csv: str) -> Grid:
    """A weighted mean for every object (or pair) in the rows and process in the columns."""
    names = [name for name in saved.samples if len(table.where(sample=name))]
    rows = []
    for row in table.where(sample=names[0]).dicts() if names else []:
        key = {name: row[name] for name in keys}
        cells = [table.where(sample=name, **key).dicts()[0] for name in names]
        label = Markup("–").join(object_html(name) for name in key.values())
        rows.append((label, *(plus_minus(cell[value], cell[error]) for cell in cells)))
    what = "|φ|" if len(keys) == 1 else "|I|"
    caption = (
        f"Weighted mean {what} ± standard error in logits, over the events that have the "
        f"{'object' if len(keys) == 1 else 'pair'}."
    )
    return Grid(
        ("Object" if len(keys) == 1 else "Pair", *(sample_html(name) for name in names)), tuple(rows), caption, csv
    )


def _results_grid(saved: Saved) -> Grid:
    """Where each result comes from; what is the same for all stands among the facts instead."""
    found = saved.provenances() | {f"explain/{name}.npz": one.provenance for name, one in saved.varied.items()}
    varying = [name for name in SHARED if name not in shared_provenance(saved)]
    rows = [
        (path, p.method, named_values(p.settings), *(getattr(p, name) for name in varying)) for path, p in found.items()
    ]
    return Grid(("Result", "Method", "Settings", *varying), tuple(rows), "How each result was made.")


def _settings(provenance: Provenance) -> str:
    return named_values({name: value for name, value in provenance.settings.items() if name != "method"})


def shared_provenance(saved: Saved) -> dict[str, Any]:
    """What all results have in common, by name."""
    values = {name: {getattr(p, name) for p in saved.provenances().values()} for name in SHARED}
    return {name: found.pop() for name, found in values.items() if len(found) == 1}
