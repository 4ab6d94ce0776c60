"""The experts: who is sent to whom beside a null network, what the choice tells, what it costs to take one away."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullLocator

from hepx.report import inside_tables, style
from hepx.report.figures_network import CHANGED, TRAINED, UNTRAINED
from hepx.report.saved import Saved
from hepx.results import Array
from hepx.results_network import Effect, ExpertReport, RoutingTable

SHOWN = 12  # variables of the information panel
ROUTED = {"slot": "object", "process": "process", "score": "score [logit]", "mass point": "mass point"}
"""Variables whose routing tables are drawn, and what they are called."""
MOST_ROWS = 24  # of one variable
WIDER = 2.5  # the panel that has room for errors


def routing(saved: Saved) -> dict[str, Canvas]:
    """One figure per layer: mean gate of every expert by node type, trained above untrained, one column per process."""
    assert saved.experts is not None
    trained, null = np.array(saved.experts.routing), np.array(saved.experts.routing_null)
    return {
        f"layer{layer + 1}": _routing_layer(saved, saved.experts, trained[:, layer], null[:, layer], layer)
        for layer in range(trained.shape[1])
    }


def _routing_layer(saved: Saved, report: ExpertReport, trained: Array, null: Array, layer: int) -> Canvas:
    num_types, num_experts = trained.shape[1:]
    figure = style.canvas(style.WIDTH, 1.5 + 2 * (0.15 + 0.36 * num_types))
    grid = figure.subplots(2, len(report.sample_names), squeeze=False, sharex=True, sharey=True)
    norm = style.positive(np.stack([trained, null]))
    rows, columns = [style.object_label(name) for name in report.node_types], [f"E{i + 1}" for i in range(num_experts)]
    cell = 7.7 / (num_experts * len(report.sample_names))
    for row, values, note in ((0, trained, "trained"), (1, null, "untrained")):
        for axes, table in zip(grid[row], values, strict=True):
            image = style.matrix(axes, table, rows, columns, norm, "Blues", cell)
        grid[row, 0].set_ylabel(note, loc="center")
    for axes, name in zip(grid[0], report.sample_names, strict=True):
        axes.set_title(style.sample_label(name), color=style.colors(saved)[name])
    figure.colorbar(image, ax=grid, pad=0.015, label="Mean gate")
    style.stamp(figure, saved, f"Layer {layer + 1}")
    return figure


def routing_by(saved: Saved) -> dict[str, Canvas]:
    """One figure per layer: mean gate of every expert by object, process, score bin and mass point, with its error,
    beside null networks; the variables one below the other."""
    assert saved.experts is not None
    tables = {table.by: table for table in saved.experts.tables}
    shown = [tables[name] for name in ROUTED if name in tables]
    num_layers = len(shown[0].gates) if shown else 0
    return {f"layer{layer + 1}": _routing_by(saved, shown, layer) for layer in range(num_layers)}


def _routing_by(saved: Saved, tables: list[RoutingTable], layer: int) -> Canvas:
    trained, errors, untrained, shuffled = (
        _below([getattr(table, name) for table in tables], layer) for name in ("gates", "error", "null", "shuffled")
    )
    assert trained is not None
    assert errors is not None
    found = {"trained": trained, "untrained": untrained, "shuffled labels": shuffled}
    panels = {name: values for name, values in found.items() if values is not None}
    widths = [WIDER, 1, 1][: len(panels)]
    figure = style.canvas(style.WIDTH, 1.1 + 0.21 * len(trained))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    norm, names = style.positive(np.stack(list(panels.values()))), [f"E{i + 1}" for i in range(trained.shape[1])]
    for axes, width, (note, values) in zip(grid, widths, panels.items(), strict=True):
        cell, beside = 7.0 * width / (sum(widths) * len(names)), errors if note == "trained" else None
        image = style.matrix(axes, values, _row_labels(tables), names, norm, "Blues", cell, errors=beside)
        axes.tick_params(labelsize=9)
        axes.spines[:].set_visible(False)
        axes.set_title(note, fontsize=11)
    for label in grid[0].get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in ROUTED.values() else "normal")
    figure.colorbar(image, ax=grid, pad=0.015, label="Mean gate")
    style.stamp(figure, saved, f"Layer {layer + 1}; largest error of a trained gate {np.nanmax(errors):.2g}")
    return figure


def _below(parts: list[Any], layer: int) -> Array | None:
    """Tables [L, G, X] of one layer one below the other, an empty row before each; None if there is none."""
    if any(part is None for part in parts):
        return None
    found = [np.array(part[layer], dtype=np.float64) for part in parts]
    return np.concatenate([np.pad(one[_chosen(len(one))], ((1, 0), (0, 0)), constant_values=np.nan) for one in found])


def _chosen(number: int) -> Array:
    """Which rows of a table of so many are shown: all, or a few of them at even distances."""
    return np.unique(np.linspace(0, number - 1, min(number, MOST_ROWS)).round().astype(int))


def _row_labels(tables: list[RoutingTable]) -> list[str]:
    label = {"slot": style.object_label, "process": style.sample_label, "score": _true_minus}
    return [
        text
        for table in tables
        for text in (ROUTED[table.by], *(label.get(table.by, str)(table.rows[i]) for i in _chosen(len(table.rows))))
    ]


def _true_minus(text: str) -> str:
    return text.replace("-", "−")


def experts(saved: Saved) -> dict[str, Canvas]:
    """What the expert choice tells beyond null networks, and what the experts do (knock-out, swap)."""
    report = saved.experts
    assert report is not None
    changes = _everywhere(report)
    rows = max(len(changes), SHOWN)
    figure = style.canvas(style.WIDTH, max(3.8, 1.4 + rows * (0.27 if rows <= 20 else 0.18)))
    left, right = figure.subplots(1, 2)
    _information(left, saved)
    _interventions(right, changes)
    style.stamp(figure, saved)
    return {"": figure}


def _information(axes: Axes, saved: Saved) -> None:
    """The largest excesses: information and the largest of the null networks."""
    table = inside_tables.information(saved)
    rows = sorted(table.dicts(), key=lambda row: -row["excess"])[:SHOWN]
    places = np.arange(len(rows))
    nulls, bits = np.array([row["largest_null"] for row in rows]), np.array([row["bits"] for row in rows])
    axes.barh(places, nulls.clip(0), 0.7, color=UNTRAINED, label="largest null")
    errors = [(row["high"] - row["low"]) / 2 for row in rows]
    axes.errorbar(bits, places, xerr=errors, fmt="o", color=TRAINED, capsize=2.5, label="trained")
    axes.set_yticks(
        places, [f"{style.observable_label(row['about'])}, layer {row['layer']}" for row in rows], fontsize=10
    )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * max([*bits, *nulls, 1e-3]))
    axes.set_xlabel("What the choice of expert tells  [bit]")
    axes.tick_params(axis="y", which="both", length=0)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(loc="lower right")


def _everywhere(report: ExpertReport) -> list[Effect]:
    """Knock-outs and swaps, layer by layer, in all events."""
    kinds = ("knock_out", "swap")
    found = [e for e in report.effects if e.kind in kinds and e.where == "all events" and e.delta_auc is not None]
    return sorted(found, key=lambda e: (kinds.index(e.kind), e.layer, e.index))


def _interventions(axes: Axes, changes: list[Effect]) -> None:
    for y, change in enumerate(changes):
        swap = change.kind == "swap"
        value, error = 1e3 * (change.delta_auc or 0.0), 1e3 * (change.error or 0.0)
        color = CHANGED if swap else TRAINED
        axes.errorbar(value, y, xerr=error, fmt="s" if swap else "o", color=color, capsize=2.5)
    axes.axvline(0, color="black", lw=0.8)
    labels = [f"layer {e.layer + 1}: {'exchanged' if e.kind == 'swap' else f'without E{e.index + 1}'}" for e in changes]
    axes.set_yticks(range(len(labels)), labels, fontsize=10 if len(labels) <= 20 else 8.5)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", which="both", length=0)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.1)
    axes.set_xlabel(r"Change of the AUC  [$10^{-3}$]")


def likeness(saved: Saved) -> dict[str, Canvas]:
    """Per layer: how alike the answers of the experts are, trained and untrained, and which are used together."""
    report = saved.experts
    assert report is not None
    num_layers, num_experts = np.shape(report.load)
    cell = 7.2 / (3 * num_experts)
    figure = style.canvas(style.WIDTH, 0.9 + num_layers * (2.3 if num_experts <= 8 else 2.9))
    grid = figure.subplots(num_layers, 3, squeeze=False)
    names = [f"E{i + 1}" for i in range(num_experts)]
    for layer, panels in enumerate(grid):
        together, chance = np.array(report.coactivation[layer]), np.array(report.coactivation_chance[layer])
        ratio = np.divide(together, chance, out=np.full_like(together, np.nan), where=chance > 0)
        np.fill_diagonal(ratio, np.nan)
        likes = [np.array(part[layer]) for part in (report.similarity, report.similarity_null)]
        norm = style.positive(np.ones(1))
        for axes, values in zip(panels, likes, strict=False):
            style.matrix(axes, values, names, names, norm, "Blues", cell)
        style.matrix(panels[2], ratio, names, names, style.positive(ratio), style.SEQUENTIAL, cell, 1)
        panels[0].set_ylabel(f"Layer {layer + 1}", loc="center")
    for axes, title in zip(grid[0], ("Likeness (CKA), trained", "untrained", "Used together / chance"), strict=True):
        axes.set_title(title, fontsize=11)
    style.stamp(figure, saved)
    return {"": figure}
