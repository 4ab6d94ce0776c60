"""`hepx validate` in tables and figures: how faithful each method is, and how alike the methods are."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from hepx.report import style
from hepx.report.grid import Grid
from hepx.report.grids import method_name, percent
from hepx.report.saved import Saved
from hepx.report.tables import Table, number, plus_minus

MEASURES = {
    "order": "Order",
    "infidelity": "Infidelity",
    "correlation": "Set correlation",
    "fidelity_plus": "Fidelity⁺",
    "fidelity_minus": "Fidelity⁻",
    "unfaithfulness": "Unfaithfulness",
    "characterization": "Characterization",
    "completeness": "Completeness",
    "sensitivity": "Sensitivity",
}
LIKENESS = {
    "donors": "Other donors",
    "seeds": "Other seeds of the training",
    "untrained": "Untrained network",
    "shuffled": "Shuffled labels",
}


def validation_grids(saved: Saved) -> dict[str, Grid]:
    """Measures and repeats; empty without validate.json."""
    if saved.validation is None:
        return {}
    methods = saved.validation["methods"]
    rows = {method_name(name): row for name, row in _judged(saved).items()}
    faithful = tuple((name, *(_cell(row.get(key)) for key in MEASURES)) for name, row in rows.items())
    repeats = tuple(
        (
            method_name(name),
            *(_cell(row["likeness"][key]) for key in LIKENESS),
            *("–" if row["spread"][key] is None else percent(row["spread"][key]) for key in ("donors", "seeds")),
        )
        for name, row in methods.items()
    )
    return {
        "faithful": Grid(("Method", *MEASURES.values()), faithful, FAITHFUL.format(saved.validation["events"])),
        "repeats": Grid(("Method", *LIKENESS.values(), "Spread: donors", "Spread: seeds"), repeats, REPEATS),
    }


def _cell(measured: dict[str, Any] | float | None) -> str:
    if isinstance(measured, float):
        return number(measured, 2)
    if measured is None or measured["value"] is None:
        return "–"
    value, error = measured["value"], measured["error"]
    return plus_minus(value, error) if error else number(value, 2)


def curve_table(saved: Saved) -> Table:
    """Insertion and deletion curves of each method and of random values, logit."""
    assert saved.validation is not None
    shares, rows = saved.validation["shares"], []
    for name, row in _judged(saved).items():
        for kind, points in row["curves"].items():
            rows += [(name, kind, s, one["value"], one["error"]) for s, one in zip(shares, points, strict=True)]
    return Table(("method", "curve", "share", "score", "error"), tuple(rows))


def _judged(saved: Saved) -> dict[str, Any]:
    assert saved.validation is not None
    return {**saved.validation["methods"], RANDOM: saved.validation["random"]}


def draw_curves(saved: Saved) -> dict[str, Canvas]:
    """One panel per method: mean score as objects are put in and taken out, beside random values."""
    table, names = curve_table(saved), [name for name in _judged(saved) if name != RANDOM]
    columns = min(4, max(2, len(names)))
    lines = -(-len(names) // columns)
    figure = style.canvas(style.WIDTH, 1.2 + 2.3 * lines)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, name in zip(panels, names, strict=False):
        _curves(axes, table.where(method=RANDOM), "0.6", {"insertion": "random"})
        _curves(axes, table.where(method=name), style.SIGNAL_COLORS[0], LABELS)
        axes.set_title(method_name(name), fontsize=10.5)
        axes.margins(y=0.28)  # room for the legend
        axes.set_xlabel("Share of own objects")
        axes.set_ylabel("Mean score  [logit]")
        axes.label_outer()
    for axes in list(panels) or ():
        axes.set_visible(False)
    figure.axes[0].legend(loc="upper left", fontsize=8.5)
    style.stamp(figure, saved)
    return {"": figure}


def _curves(axes: Axes, table: Table, color: str, labels: dict[str, str]) -> None:
    """Both against the share of the objects that are in: the area between them is the measure `order`."""
    for kind, line in (("insertion", "-"), ("deletion", "--")):
        part = table.where(curve=kind)
        share = part.array("share") if kind == "insertion" else 1 - part.array("share")
        value, error = part.array("score"), np.nan_to_num(part.array("error"))
        axes.plot(share, value, line, color=color, label=labels.get(kind))
        order = np.argsort(share)
        axes.fill_between(share[order], (value - error)[order], (value + error)[order], color=color, alpha=0.2, lw=0)


def draw_agreement(saved: Saved) -> dict[str, Canvas]:
    """Mean rank correlation of every two methods; nothing to draw for one."""
    assert saved.validation is not None
    if len(saved.validation["methods"]) < 2:
        return {}
    names = [method_name(name) for name in saved.validation["methods"]]
    values = np.array([[np.nan if v is None else v for v in row] for row in saved.validation["agreement"]], dtype=float)
    cell = min(0.6, 6.0 / len(names))
    figure = style.canvas(min(style.WIDTH, 3.6 + cell * len(names)), 1.9 + cell * len(names))
    axes = figure.subplots()
    image = style.matrix(axes, values, names, names, style.symmetric(np.ones(1)), style.DIVERGING, cell, 2)
    axes.tick_params(axis="x", rotation=45)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
    figure.colorbar(image, ax=axes, pad=0.015, label="Mean rank correlation of |φ|")
    style.stamp(figure, saved)
    return {"": figure}


RANDOM = "random values"
LABELS = {"insertion": "largest in first", "deletion": "largest out first"}
FAITHFUL = (
    "Faithfulness on {} test events, without any truth: objects are replaced by those of background events. Order: how "
    "much of the score the objects named first carry, 1 the best order, 0 a random one. Infidelity: what the sums of "
    "attributions miss of the change when objects are replaced, 0 perfect, 1 as bad as zeros; interactions leave a "
    "floor. Set correlation: of the two, 1 is best. "
    "Fidelity⁺ (⁻): share of events whose decision changes without (with "
    "nothing but) the two objects that speak most for it. Unfaithfulness: 0 is best. "
    "Characterization: of both fidelities, 1 is best. Completeness: what the attributions miss of score − baseline "
    "score, relative; – if not meant to add up. Sensitivity: largest relative "
    "change when jets and leptons are measured again within the detector resolution. Errors: bootstrap of the events."
)
REPEATS = (
    "Rank correlation of the sizes of the objects’ attributions with a second explanation of the same events: high "
    "for other donors and other seeds of the training is stability; near 0 for an untrained network and one trained on "
    "shuffled labels says that the explanation shows what was learned. Spread: root mean square over repeats, relative "
    "to the size of the attributions. – where there was no such network."
)
