"""The page of a sweep: who beats the reference, by how much, and how sure that is; made from sweep.csv alone."""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, NullLocator

from hepx import files
from hepx.report import style
from hepx.report.grid import Grid, template
from hepx.report.grids import count, sigmas
from hepx.report.performance import LABELS, group_html
from hepx.report.tables import number, plus_minus

REJECTION = "rejection@"
SIGNIFICANT = 2.0  # standard deviations from which a difference is set in bold
DECISION = ("auc", "accuracy", "precision", "recall", "f1")


@dataclass(frozen=True)
class Compared:
    """sweep.csv and sweep.json: cells by (variant, group, measure), names in the order of the file."""

    name: str
    reference: str
    facts: dict[str, dict[str, float]]
    cells: dict[tuple[str, str, str], dict[str, float | None]]

    @property
    def variants(self) -> list[str]:
        """Variants, then the reference classifiers."""
        return list(dict.fromkeys(variant for variant, _, _ in self.cells))

    @property
    def groups(self) -> list[str]:
        """All, then processes and signal points."""
        return list(dict.fromkeys(group for _, group, _ in self.cells))

    @property
    def measures(self) -> list[str]:
        """What was measured."""
        return list(dict.fromkeys(measure for _, _, measure in self.cells))

    @property
    def num_seeds(self) -> int:
        """Seeds of every variant."""
        return int(next(iter(self.cells.values()))["seeds"] or 0)

    def cell(self, variant: str, measure: str, group: str = "all") -> dict[str, float | None]:
        """One row of the file."""
        return self.cells[variant, group, measure]

    @property
    def middle_rejection(self) -> str:
        """The rejection at the signal efficiency nearest to one half."""
        return min(
            (m for m in self.measures if m.startswith(REJECTION)),
            key=lambda m: abs(float(m.removeprefix(REJECTION)) - 0.5),
        )


def load_compared(folder: Path) -> Compared:
    """Read what the sweep wrote."""
    about = files.read_json(folder / "sweep.json")
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("variant", "group", "measure")
    cells = {
        (row["variant"], row["group"], row["measure"]): {
            key: float(value) if value else None for key, value in row.items() if key not in names
        }
        for row in rows
    }
    return Compared(folder.resolve().name, about["reference"], about["facts"], cells)


def make_comparison(folder: Path) -> Path:
    """Write sweep.html, sweep.md and figures/sweep.{png,pdf}; returns the path of the page."""
    compared = load_compared(folder)
    with style.style():
        rendered = style.render(_figure(compared))
    for kind, content in rendered.items():
        with files.atomic(folder / "figures" / f"sweep.{kind}") as temporary:
            temporary.write_bytes(content)
    files.write_text(folder / "sweep.md", markdown(compared))
    page = template("comparison.html").render(
        compared=compared,
        grids=_grids(compared),
        picture=base64.b64encode(rendered["png"]).decode(),
        reference=_name(compared.reference),
    )
    files.write_text(folder / "sweep.html", page)
    return folder / "sweep.html"


def _name(variant: str) -> str:
    return variant.replace("_", " ")


# Tables -----------------------------------------------------------------------------------------------------------


def value_and_error(cell: dict[str, float | None], seeds: int) -> str:
    """Mean of the seeds with its whole error: seeds and test events in quadrature."""
    if cell["value"] is None or cell["test_error"] is None or cell["seed_spread"] is None:
        return plus_minus(cell["value"], None)
    return plus_minus(cell["value"], math.hypot(cell["seed_spread"] / math.sqrt(seeds), cell["test_error"]))


def difference(cell: dict[str, float | None], significance: bool = True) -> str:
    """Difference to the reference with its error and, if wanted, in units of its error."""
    if cell["difference"] is None:
        return "–"
    text = plus_minus(cell["difference"], cell["difference_error"], signed=True)
    return f"{text} ({sigmas(_sigmas(cell))})" if significance else text


def _sigmas(cell: dict[str, float | None]) -> float | None:
    value, error = cell["difference"], cell["difference_error"]
    return abs(value) / error if value is not None and error else None


def markdown(compared: Compared) -> str:
    """The tables for a README or a merge request: the most wanted numbers, then what the page has."""
    others = [_lines(grid) for name, grid in _grids(compared).items() if name != "training"]
    return "\n".join([_overview(compared), *others])


def _lines(grid: Grid) -> str:
    """A table of the page as Markdown."""
    rows = [grid.head, ("---",) * len(grid.head), *grid.rows]
    return f"{grid.caption}\n\n" + "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def _overview(compared: Compared) -> str:
    measures = ("auc", compared.middle_rejection, "significance")
    head = ["classifier", "AUC", "seeds", "Δ AUC", _label(measures[1]), "Z_A", "parameters"]
    lines = [f"| {' | '.join(map(str, head))} |", "|" + "---|" * len(head)]
    for variant in compared.variants:
        auc = compared.cell(variant, "auc")
        spread = "–" if auc["seed_spread"] is None else f"± {auc['seed_spread']:.4f}"
        own = "" if variant == compared.reference else difference(auc)
        others = [value_and_error(compared.cell(variant, measure), compared.num_seeds) for measure in measures[1:]]
        parameters = compared.facts.get(variant, {}).get("parameters")
        size = "" if parameters is None else count(round(parameters))
        cells = [_name(variant), number(auc["value"], 4), spread, own, *others, size]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _grids(compared: Compared) -> dict[str, Grid]:
    rejections = [measure for measure in compared.measures if measure.startswith(REJECTION)]
    separation = (*rejections, "significance", "calibration_error")
    changes = ("auc", "accuracy", compared.middle_rejection, "significance")
    grids = {
        "differences": _grid(compared, changes, _difference_cell, "Difference to the reference"),
        "decision": _grid(compared, DECISION, _value_cell, "Decision at score 0 and AUC, as in arXiv:2501.03432"),
        "separation": _grid(compared, separation, _value_cell, "Working points"),
        "training": _training_grid(compared),
    }
    for measure in ("auc", "significance"):
        known = [g for g in compared.groups[1:] if compared.cell(compared.reference, measure, g)["value"] is not None]
        if known:
            grids[f"groups_{measure}"] = _group_grid(compared, measure, known)
    return grids


def _value_cell(compared: Compared, variant: str, measure: str, group: str = "all") -> str:
    return value_and_error(compared.cell(variant, measure, group), compared.num_seeds)


def _difference_cell(compared: Compared, variant: str, measure: str, group: str = "all") -> str:
    if variant == compared.reference:
        return "reference"
    cell = compared.cell(variant, measure, group)
    text = escape(difference(cell, significance=group == "all"))
    return Markup("<b>{}</b>").format(text) if (_sigmas(cell) or 0) >= SIGNIFICANT else text


def _grid(compared: Compared, measures: Sequence[str], cell: Any, caption: str) -> Grid:
    rows = tuple(
        (_name(variant), *(cell(compared, variant, measure) for measure in measures)) for variant in compared.variants
    )
    return Grid(("Classifier", *map(_label, measures)), rows, caption)


def _group_grid(compared: Compared, measure: str, groups: Sequence[str]) -> Grid:
    rows = []
    for variant in compared.variants:
        cells = _value_cell if variant == compared.reference else _difference_cell
        rows.append((_name(variant), *(cells(compared, variant, measure, group) for group in groups)))
    caption = Markup("{}: the reference, and the differences to it.").format(LABELS[measure])
    return Grid(("Classifier", *map(group_html, groups)), tuple(rows), caption)


def _training_grid(compared: Compared) -> Grid:
    rows = [
        (_name(name), count(round(facts["parameters"])), number(facts["epochs"]), number(facts["train_seconds"]))
        for name, facts in compared.facts.items()
    ]
    return Grid(("Classifier", "Parameters", "Epochs", "Training [s]"), tuple(rows), "Training, mean of the seeds")


def _label(measure: str) -> str:
    if not measure.startswith(REJECTION):
        return LABELS[measure]
    efficiency = 100 * float(measure.removeprefix(REJECTION))
    return Markup("1/ε<sub>b</sub> at ε<sub>s</sub> = {:g} %").format(efficiency)


# Figure -----------------------------------------------------------------------------------------------------------


def _figure(compared: Compared) -> Canvas:
    """Differences to the reference with their errors, one panel per measure."""
    labels = {
        "auc": r"$\Delta$ AUC",
        compared.middle_rejection: r"$\Delta\,(1/\varepsilon_b)$"
        rf" at $\varepsilon_s$ = {100 * float(compared.middle_rejection.removeprefix(REJECTION)):g} %",
        "significance": r"$\Delta Z_{\mathrm{A}}$",
    }
    figure = style.canvas(1.2 * style.WIDTH, 1.5 + 0.3 * len(compared.variants))
    panels = figure.subplots(1, len(labels), sharey=True)
    for axes, (measure, label) in zip(panels, labels.items(), strict=True):
        _forest(axes, compared, measure)
        axes.set_xlabel(label)
    names = [_name(variant) for variant in compared.variants]
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    seeds = compared.num_seeds
    title = rf"$\mathbf{{hepx}}$  Simulation   {seeds} seeds, differences to {_name(compared.reference)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5)
    return figure


def _forest(axes: Axes, compared: Compared, measure: str) -> None:
    for place, variant in enumerate(compared.variants):
        cell = compared.cell(variant, measure)
        if variant == compared.reference or cell["difference"] is None:
            continue
        value, error = cell["difference"], cell["difference_error"] or 0.0
        sure = (_sigmas(cell) or 0) >= SIGNIFICANT
        color = "0.45" if not sure else "#0072b2" if value > 0 else "#d55e00"
        axes.errorbar(value, place, xerr=error, fmt="o" if sure else "D", color=color, ms=4.5, elinewidth=1.4)
    axes.axvline(0, color="black", lw=1)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="0.92", lw=0.8)
    axes.tick_params(axis="y", which="both", length=0)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)
    axes.margins(x=0.08)
