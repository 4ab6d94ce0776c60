"""Inside the network: attention maps and experts, each beside its untrained null."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import NullLocator

from hepx.report import derive, style
from hepx.report.saved import Saved
from hepx.results import Array, AttentionMap, ExpertReport

TRAINED, UNTRAINED = "#0072b2", "0.65"


def attention(saved: Saved) -> dict[str, Canvas]:
    """One figure per layer: heads in columns, trained above untrained for every process, pair interactions beside."""
    assert saved.attention is not None
    num_layers = saved.attention.mean.shape[1]
    return {f"layer{layer + 1}": _attention_layer(saved, saved.attention, layer) for layer in range(num_layers)}


def _attention_layer(saved: Saved, maps: AttentionMap, layer: int) -> Canvas:
    names = [name for i, name in enumerate(maps.sample_names) if maps.num_events[i] > 0]
    num_heads, num_slots = maps.mean.shape[2], len(maps.slots)
    columns, beside = num_heads * (num_slots + 1) - 1, saved.pairs is not None
    right = max(1.25 * num_slots, 0.22 * columns)
    cell = 7.6 / (columns + right * beside)
    tall = 2 * min(0.34, max(cell, 0.16)) * num_slots + 0.5
    figure = style.canvas(style.WIDTH, 1.3 + len(names) * tall)
    grid = figure.add_gridspec(
        len(names) + 1,
        1 + beside,
        width_ratios=[columns, right][: 1 + beside],
        height_ratios=[tall] * len(names) + [0.14],
    )
    norm = style.positive(np.stack([maps.mean[:, layer], maps.null[:, layer]]))
    rows: list[list[Axes]] = []
    for i, name in enumerate(names):
        halves = grid[i, 0].subgridspec(2, 1)
        rows.append([figure.add_subplot(halves[half, 0]) for half in range(2)])
        sample = maps.sample_names.index(name)
        for axes, values, note in zip(rows[i], (maps.mean, maps.null), ("trained", "untrained"), strict=True):
            image = _heads(axes, values[sample, layer], maps.slots, norm, cell, last=note == "untrained")
            axes.set_ylabel(f"{style.sample_label(name)}\n{note}", loc="center", fontsize=11)
            axes.yaxis.label.set_color(style.colors(saved)[name])
    for head in range(num_heads):
        place = (head * (num_slots + 1) + (num_slots - 1) / 2, -0.75)
        rows[0][0].text(*place, f"head {head + 1}", ha="center", va="bottom", fontsize=11)
    if beside:
        _interactions_beside(saved, [figure.add_subplot(grid[i, 1]) for i in range(len(names))], names, cell * right)
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[-1, 0]), orientation="horizontal")
    bar.set_label("Mean attention weight", loc="center")
    style.stamp(figure, saved, f"Layer {layer + 1}: an observation, not an explanation")
    return figure


def _heads(axes: Axes, weights: Array, slots: tuple[str, ...], norm: Normalize, cell: float, last: bool) -> AxesImage:
    """The maps of all heads [H, N, N] side by side, one empty column between them."""
    num_heads, num_slots = weights.shape[:2]
    gap = np.full((num_slots, 1), np.nan)
    side_by_side = np.concatenate([part for head in weights for part in (head, gap)][:-1], axis=1)
    labels = [style.object_label(slot) for slot in slots]
    columns = (([*labels, ""] * num_heads)[:-1]) if last else []
    image = style.matrix(axes, side_by_side, labels, columns, norm, style.ATTENTION, cell)
    axes.tick_params(labelsize=9 if cell > 0.2 else 7)
    axes.tick_params(axis="x", rotation=0 if cell > 0.2 else 90)
    axes.spines[:].set_visible(False)
    return image


def _interactions_beside(saved: Saved, panels: list[Axes], names: list[str], width: float) -> None:
    """The interventional answer to the question the attention seems to answer, beside the maps of each process."""
    assert saved.pairs is not None
    table, slots = derive.pair_means(saved.pairs), saved.pairs.events.slots
    norm = style.positive(table.array("mean_abs"))
    labels = [style.object_label(slot) for slot in slots]
    for axes, name in zip(panels, names, strict=True):
        values = derive.square(table.where(sample=name), slots, "mean_abs")
        full = np.where(np.isnan(values), values.T, values)
        style.matrix(axes, full, labels, labels, norm, style.SEQUENTIAL, width / len(slots))
        axes.set_aspect("equal")
        axes.tick_params(labelsize=9)
        axes.spines[:].set_visible(False)
        axes.set_title(r"mean $|I_{ij}|$ [logit]", fontsize=11)


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


def experts(saved: Saved) -> dict[str, Canvas]:
    """What the expert choice tells (information) and what the experts do (knock-out, swap)."""
    report = saved.experts
    assert report is not None
    num_rows = len(report.knock_out) + len(report.swap)
    figure = style.canvas(style.WIDTH, max(3.8, 1.4 + num_rows * (0.27 if num_rows <= 20 else 0.18)))
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15), squeeze=False)[0]
    _information(left, report)
    _interventions(right.subplots(), saved)
    style.stamp(figure, saved)
    return {"": figure}


def _information(figure: SubFigure, report: ExpertReport) -> None:
    panels = figure.subplots(2, 1, sharex=True)
    layers = np.arange(len(report.information_type)) + 1.0
    for axes, values, null, label in (
        (panels[0], report.information_type, report.information_type_null, "Object type"),
        (panels[1], report.information_process, report.information_process_null, "Process | type"),
    ):
        axes.bar(layers - 0.19, values, 0.36, color=TRAINED, label="trained")
        axes.bar(layers + 0.19, null, 0.36, color=UNTRAINED, label="untrained", hatch="//", edgecolor="0.4")
        axes.set_ylabel(f"{label}  [bit]", loc="center")
        axes.set_xlim(0.5, len(layers) + 0.5)
        axes.set_ylim(0, 1.45 * (max(*values, *null) or 1.0))
    panels[0].legend(ncols=2, loc="upper left")
    panels[1].set_xlabel("Layer")
    panels[1].set_xticks(layers, [f"{layer:.0f}" for layer in layers])
    panels[1].xaxis.set_minor_locator(NullLocator())


def _interventions(axes: Axes, saved: Saved) -> None:
    table = derive.interventions(saved)
    for y, row in enumerate(table.dicts()):
        swap = row["kind"] == "swap"
        color = "#d55e00" if swap else TRAINED
        axes.errorbar(
            1e3 * row["delta_auc"], y, xerr=1e3 * row["error"], fmt="s" if swap else "o", color=color, capsize=2.5
        )
    axes.axvline(0, color="black", lw=0.8)
    labels = [_intervention_label(row["kind"], row["layer"], row["expert"]) for row in table.dicts()]
    axes.set_yticks(range(len(labels)), labels, fontsize=10 if len(labels) <= 20 else 8.5)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", which="both", length=0)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.1)
    axes.set_xlabel(r"Change of the AUC  [$10^{-3}$]")


def _intervention_label(kind: str, layer: int, expert: int | None) -> str:
    return f"layer {layer}: experts swapped" if kind == "swap" else f"layer {layer}: without E{expert}"
