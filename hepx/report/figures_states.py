"""The node states: what a probe reads layer by layer, what an erasure costs, how far the answer has come."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullLocator

from hepx.report import inside_tables, style
from hepx.report.figures_network import CHANGED, TRAINED
from hepx.report.saved import Saved
from hepx.report.tables import Table

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def probes(saved: Saved) -> dict[str, Canvas]:
    """R² of a linear probe per observable, layer and node type; untrained network dashed."""
    assert saved.representation is not None
    table = inside_tables.probes(saved).where(of="states")
    names = inside_tables.shown_probes(saved.representation.probes)
    kinds = list(dict.fromkeys(table.column("where")))
    figure = style.canvas(style.WIDTH, 3.1)
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        for kind, color, marker in zip(kinds, COLORS, style.MARKERS, strict=False):
            rows = table.where(observable=name, where=kind)
            label = style.object_label(kind)
            values, errors = rows.array("r2"), rows.array("error")
            axes.errorbar(rows.array("layer"), values, errors, color=color, marker=marker, label=label, capsize=2)
            axes.plot(rows.array("layer"), rows.array("untrained"), color=color, ls="--", lw=1, alpha=0.7)
        axes.set_title(style.observable_label(name), fontsize=11)
        axes.set_xlabel("Layer", loc="center")
        style.integer_ticks(axes)
        axes.set_ylim(-0.05, 1.05)
        axes.margins(x=0.1)
    panels[0].set_ylabel(r"$R^2$ of a linear fit", loc="center")
    panels[-1].legend(loc="lower right", fontsize=9, handlelength=1.4)
    style.stamp(figure, saved, "Layer 0: inputs; dashed: untrained")
    return {"": figure}


def erasures(saved: Saved) -> dict[str, Canvas]:
    """ΔAUC when an observable is erased at a layer, beside the erasure of a shuffled one; and the logit lens."""
    table, lens = inside_tables.erasures(saved), inside_tables.lens(saved)
    figure = style.canvas(style.WIDTH, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.9, 1))
    _erasure_bars(left, table)
    right.errorbar(
        lens.array("layer"), lens.array("auc"), lens.array("error"), color=TRAINED, marker="o", label="trained"
    )
    for name, marker in (("untrained", "s"), ("shuffled", "^")):
        values, errors = lens.array(name), lens.array(f"{name}_error")
        if np.isfinite(values).any():
            right.errorbar(lens.array("layer"), values, errors, color="0.45", ls="--", marker=marker, label=name)
    right.axhline(0.5, color="black", lw=0.6)
    right.set_xlabel("Layers before the head", loc="center")
    right.set_ylabel("AUC", loc="center")
    right.set_title("Logit lens", fontsize=11)
    right.legend(loc="best", fontsize=9)
    right.margins(x=0.1)
    style.integer_ticks(right)
    style.stamp(figure, saved)
    return {"": figure}


def _erasure_bars(axes: Axes, table: Table) -> None:
    names, layers = (list(dict.fromkeys(table.column(column))) for column in ("observable", "layer"))
    width = 0.8 / max(1, len(layers))
    for i, layer in enumerate(layers):
        rows = table.where(layer=layer)
        places = np.arange(len(names)) + (i - (len(layers) - 1) / 2) * width
        shade = 0.35 + 0.65 * (i + 1) / len(layers)
        values, errors = rows.array("delta_auc"), rows.array("error")
        bars: dict[str, Any] = {"color": CHANGED, "alpha": shade, "capsize": 2, "ecolor": "black"}
        axes.bar(places, values, width * 0.9, yerr=errors, label=f"layer {layer}", **bars)
        control: dict[str, Any] = {"facecolor": "none", "edgecolor": "0.25", "hatch": "///", "lw": 0.8, "zorder": 3}
        beside: dict[str, Any] = {"yerr": rows.array("control_error"), "error_kw": {"ecolor": "0.45", "lw": 1}}
        label = "shuffled" if i == 0 else None
        axes.bar(places, rows.array("control"), width * 0.9, label=label, **control, **beside)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(len(names)), [style.observable_label(name) for name in names])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(r"$\Delta$AUC when erased", loc="center")
    axes.legend(loc="lower left", fontsize=9, ncols=2)
