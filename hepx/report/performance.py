"""What metrics.json says about the model and the reference classifiers, as tables and as grids of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from hepx.report import style
from hepx.report.grid import Grid, sample_html
from hepx.report.grids import count, sigmas
from hepx.report.saved import Saved
from hepx.report.tables import Table, number, plus_minus

SINGLE = ("auc", "accuracy", "precision", "recall", "f1", "significance", "calibration_error")
LABELS = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "significance": Markup("Z<sub>A</sub>"),
    "calibration_error": "Calibration error",
}
_COLUMNS = {
    "mass_chargino": (r"$m(\tilde{\chi}_1^{\pm})$", "GeV"),
    "mass_lsp": (r"$m(\tilde{\chi}_1^{0})$", "GeV"),
    "channel": ("channel", ""),
}

_COLUMNS_HTML = {
    "mass_chargino": (Markup("m(χ̃<sub>1</sub><sup>±</sup>)"), " GeV"),
    "mass_lsp": (Markup("m(χ̃<sub>1</sub><sup>0</sup>)"), " GeV"),
}


def measured(saved: Saved) -> list[dict[str, Any]]:
    """The model, then the references: name and every measure of each."""
    model = {**saved.metrics, "name": saved.metrics["model"].replace("_", " ")}
    return [model, *saved.metrics["references"]]


def measure_table(saved: Saved) -> Table:
    """Every measure over all test events, one row per classifier."""
    entries = measured(saved)
    rejections = [f"rejection_{100 * row['signal_efficiency']:g}" for row in entries[0]["rejection"]]
    names = [*SINGLE, *rejections]
    rows = []
    for entry in entries:
        cells = [entry[name] for name in SINGLE] + entry["rejection"]
        rows.append((entry["name"], *(cell[key] for cell in cells for key in ("value", "error"))))
    return Table(("classifier", *(column for name in names for column in (name, f"{name}_error"))), tuple(rows))


def group_table(saved: Saved) -> Table:
    """Every measure per process and signal point, one row per classifier and group."""
    rows, names = [], []
    for entry in measured(saved):
        for group in entry["groups"]:
            rejections = {f"rejection_{100 * row['signal_efficiency']:g}": row for row in group["rejection"]}
            cells = {name: group[name] for name in SINGLE} | rejections
            names = list(cells)
            numbers = (cell[key] for cell in cells.values() for key in ("value", "error"))
            about = (group["events"], group["signal_yield"], group["background_yield"])
            rows.append((entry["name"], group["kind"], group["name"], *about, *numbers))
    columns = (column for name in names for column in (name, f"{name}_error"))
    head = ("classifier", "kind", "name", "events", "signal_yield", "background_yield")
    return Table((*head, *columns), tuple(rows))


def calibration_table(saved: Saved) -> Table:
    """Reliability in bins of the score, for both priors."""
    rows = []
    for entry in measured(saved):
        for prior in ("equal_classes", "expected_yields"):
            for one in (entry["calibration"][prior] or {"bins": []})["bins"]:
                shares = (one[name] for name in ("predicted", "observed", "observed_error", "share"))
                rows.append((entry["name"], prior, one["low"], one["high"], *shares))
    columns = ("classifier", "prior", "low", "high", "predicted", "observed", "error", "share")
    return Table(columns, tuple(rows))


def group_label(kind: str, name: str) -> str:
    """A process or signal point as on a figure."""
    if kind == "background":
        return f"vs. {style.sample_label(name)}"
    if kind == "signal":
        return style.sample_label(name)
    parts = [part.rsplit(" ", 1) for part in name.split(", ")]
    labels = [(*_COLUMNS.get(column, (column.replace("_", " "), "")), value) for column, value in parts]
    return ", ".join(f"{label} {value} {unit}".strip() for label, unit, value in labels)


def performance_grids(saved: Saved) -> dict[str, Grid]:
    """Grids of the section on performance, those that have rows."""
    grids = {
        "decision": _decision_grid(saved),
        "separation": _separation_grid(saved),
        "references": _references_grid(saved),
        "backgrounds": _group_grid(saved, ("background",)),
        "points": _group_grid(saved, ("signal", "point")),
    }
    return {name: grid for name, grid in grids.items() if grid.rows}


def _cell(cell: dict[str, Any]) -> str:
    return plus_minus(cell["value"], cell["error"])


def _rejection(row: dict[str, Any]) -> str:
    return "no background passes" if row["value"] is None else _cell(row)


def _decision_grid(saved: Saved) -> Grid:
    names = SINGLE[:5]
    rows = tuple((entry["name"], *(_cell(entry[name]) for name in names)) for entry in measured(saved))
    caption = (
        "Weighted measures of the test events, as in arXiv:2501.03432: AUC, and the decision at score 0 with both "
        "classes scaled to equal weight. Errors: bootstrap of the test events."
    )
    return Grid(("Classifier", *(LABELS[name] for name in names)), rows, caption, "measures")


def _separation_grid(saved: Saved) -> Grid:
    entries = measured(saved)
    efficiencies = [
        Markup(f"1/ε<sub>b</sub> at ε<sub>s</sub> = {100 * row['signal_efficiency']:g} %")
        for row in entries[0]["rejection"]
    ]
    rows = []
    for entry in entries:
        calibration = (
            f"{_cell(entry['calibration_error'])} ({entry['calibration']['equal_classes']['error_if_perfect']:.4f})"
        )
        rows.append((entry["name"], *map(_rejection, entry["rejection"]), _cell(entry["significance"]), calibration))
    percent = f"{100 * saved.metrics['background_uncertainty']:g} %"
    several = any(group["kind"] in ("signal", "point") for group in entries[0]["groups"])
    caption = Markup(
        "Background rejection at fixed signal efficiency; Asimov significance Z<sub>A</sub> (arXiv:1007.1727) of a "
        f"count above a cut on the score, with a background uncertainty of {percent} at {saved.luminosity:g} fb⁻¹ and "
        f"the cross sections of this run{', mean over the signal points' if several else ''}. The validation events "
        f"choose the cut, among those that keep {saved.metrics['min_background']:g} effective background events. "
        "Calibration error for classes of equal weight, in brackets what a perfect classifier would show."
    )
    head = ("Classifier", *efficiencies, LABELS["significance"], LABELS["calibration_error"])
    return Grid(head, tuple(rows), caption, "measures")


def _references_grid(saved: Saved) -> Grid:
    names = ("auc", "accuracy", "significance")
    rows = []
    for reference in saved.metrics["references"]:
        cells = [reference["difference"][name] for name in names]
        shown = [(plus_minus(c["value"], c["error"], signed=True), _significance(c)) for c in cells]
        rows.append((reference["name"], *(text for pair in shown for text in pair)))
    caption = (
        "Model minus reference, with the error of the difference: the same resampled events for both, so it is smaller "
        "than those of the two values."
    )
    head = [part for name in names for part in (Markup("Δ ") + LABELS[name], "")]
    return Grid(("Model minus", *head), tuple(rows), caption)


def _significance(cell: dict[str, Any]) -> str:
    known = cell["value"] is not None and cell["error"]
    return sigmas(abs(cell["value"]) / cell["error"] if known else None)


def _group_grid(saved: Saved, kinds: Sequence[str]) -> Grid:
    entries = measured(saved)
    own = [[group for group in entry["groups"] if group["kind"] in kinds] for entry in entries]
    half = min((abs(row["signal_efficiency"] - 0.5), i) for i, row in enumerate(entries[0]["rejection"]))[1]
    efficiency = entries[0]["rejection"][half]["signal_efficiency"]
    rows = []
    for position, group in enumerate(own[0]):
        each = [groups[position] for groups in own]
        shown = group["background_yield"] if kinds == ("background",) else group["signal_yield"]
        label = sample_html(group["name"]) if group["kind"] == "background" else _point_html(group)
        cells = [plus_minus(g["auc"]["value"], g["auc"]["error"]) for g in each]
        if kinds == ("background",):
            cells += [_rejection(g["rejection"][half]) for g in each]
        else:
            cells += [_cell(g["significance"]) for g in each]
        rows.append((label, count(group["events"]), number(shown), *cells))
    rejection = Markup(f"1/ε<sub>b</sub> at ε<sub>s</sub> = {100 * efficiency:g} %")
    measures = [LABELS["auc"], rejection if kinds == ("background",) else LABELS["significance"]]
    head = [Markup("{}, {}").format(measure, entry["name"]) for measure in measures for entry in entries]
    what = "Background" if kinds == ("background",) else "Signal"
    caption = (
        "All signal against one background at a time. The table on disk has all measures."
        if kinds == ("background",)
        else "One signal point at a time against all background, each with its own cut for the significance. The table "
        "on disk has all measures, background rejections too."
    )
    return Grid((what, "Test events", "Expected events", *head), tuple(rows), caption, "groups")


def group_html(text: str) -> Markup:
    """A group as named in the tables of measures (`kind: name`), as HTML."""
    kind, _, name = text.partition(": ")
    if kind == "background":
        return Markup("against {}").format(sample_html(name))
    parts = [part.rsplit(" ", 1) for part in name.split(", ")] if kind == "point" else []
    point = {column: float(value) for column, value in parts}
    return _point_html({"kind": kind, "name": name, "point": point})


def _point_html(group: dict[str, Any]) -> Markup:
    if group["kind"] == "signal":
        return sample_html(group["name"])
    parts = [(*_COLUMNS_HTML.get(name, (name.replace("_", " "), "")), v) for name, v in group["point"].items()]
    return Markup(", ").join(Markup("{} {:g}{}").format(label, value, unit) for label, unit, value in parts)
