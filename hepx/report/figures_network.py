"""Inside the network: attention maps, what the heads do and follow, each beside null networks."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.image import AxesImage
from matplotlib.ticker import NullLocator

from hepx.report import derive, inside_tables, style
from hepx.report.saved import Saved
from hepx.report.tables import Table
from hepx.results import Array
from hepx.results_network import AttentionMap

TRAINED, UNTRAINED, CHANGED = "#0072b2", "0.8", "#d55e00"
PARTS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00")


def attention(saved: Saved) -> dict[str, Canvas]:
    """One figure per layer: heads in columns, a row per process, then null networks; pair interactions beside."""
    assert saved.attention is not None
    num_layers = saved.attention.mean.shape[1]
    return {f"layer{layer + 1}": _attention_layer(saved, saved.attention, layer) for layer in range(num_layers)}


def _attention_layer(saved: Saved, maps: AttentionMap, layer: int) -> Canvas:
    names = [name for i, name in enumerate(maps.sample_names) if maps.num_events[i] > 0]
    num_heads, num_slots = maps.mean.shape[2], len(maps.slots)
    shown = [maps.mean[maps.sample_names.index(name), layer] for name in names]
    labels = [(style.sample_label(name), style.colors(saved)[name]) for name in names]
    for note, null in _nulls(maps.null[:, layer], maps.shuffled[:, layer]).items():
        shown.append(null)
        labels.append((f"{note},\nall processes", "0.3"))
    columns, beside = num_heads * (num_slots + 1) - 1, saved.pairs is not None
    right = max(1.25 * num_slots, 0.22 * columns)
    cell = 7.6 / (columns + right * beside)
    tall = min(0.34, max(cell, 0.16)) * num_slots + 0.5
    figure = style.canvas(style.WIDTH, 1.3 + len(shown) * tall)
    grid = figure.add_gridspec(
        len(shown) + 1,
        1 + beside,
        width_ratios=[columns, right][: 1 + beside],
        height_ratios=[tall] * len(shown) + [0.14],
    )
    norm = style.positive(np.stack(shown))
    rows = [figure.add_subplot(grid[i, 0]) for i in range(len(shown))]
    for axes, values, (label, color) in zip(rows, shown, labels, strict=True):
        image = _heads(axes, values, maps.slots, norm, cell, last=axes is rows[-1])
        axes.set_ylabel(label, loc="center", fontsize=11)
        axes.yaxis.label.set_color(color)
    for head in range(num_heads):
        place = (head * (num_slots + 1) + (num_slots - 1) / 2, -0.75)
        rows[0].text(*place, f"head {head + 1}", ha="center", va="bottom", fontsize=11)
    if beside:
        _interactions_beside(saved, [figure.add_subplot(grid[i, 1]) for i in range(len(names))], names, cell * right)
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[-1, 0]), orientation="horizontal")
    bar.set_label("Mean attention weight", loc="center")
    style.stamp(figure, saved, f"Layer {layer + 1}: an observation, not an explanation")
    return figure


def _nulls(untrained: Array, shuffled: Array) -> dict[str, Array]:
    """Name -> mean over the processes of the maps [P, …] of the null networks that are there."""
    found = {"untrained": untrained, "shuffled labels": shuffled}
    return {name: _mean_of_processes(maps) for name, maps in found.items() if np.isfinite(maps).any()}


def _mean_of_processes(values: Array) -> Array:
    """Mean over processes of maps [P, …]; NaN where two objects never occur together."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(total.shape, np.nan), where=known.any(0))


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


def heads(saved: Saved) -> dict[str, Canvas]:
    """Every head: how evenly it looks, how fixed its map is, what its logit is made of, what its loss costs; each
    beside null networks."""
    assert saved.attention is not None
    table = inside_tables.heads(saved)
    labels = [f"{row['layer']}, {row['head']}" for row in table.dicts()]
    figure = style.canvas(style.WIDTH, 1.9 + 0.26 * len(labels))
    panels = figure.subplots(1, 4, sharey=True, width_ratios=(1, 1, 1.25, 1))
    _against_null(panels[0], table, "entropy", "Entropy / ln n")
    _against_null(panels[1], table, "slot_share", "Fixed map, share")
    _logit_shares(panels[2], saved.attention)
    values, errors, low, high = (
        1e3 * table.array(f"knock_out{end}") for end in ("", "_error", "_null_low", "_null_high")
    )
    panels[3].barh(range(len(labels)), high - low, 0.7, low, color=UNTRAINED)
    panels[3].errorbar(values, range(len(labels)), xerr=errors, fmt="o", color=CHANGED, capsize=2.5)
    panels[3].axvline(0, color="black", lw=0.8)
    panels[3].set_xlabel(r"$\Delta$AUC without  [$10^{-3}$]", loc="center")
    panels[3].use_sticky_edges = False
    panels[3].margins(x=0.1)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.4, -0.6)
    panels[0].set_ylabel("Layer, head", loc="center")
    for axes in panels:
        axes.tick_params(axis="y", which="both", length=0)
        axes.yaxis.set_minor_locator(NullLocator())
    style.stamp(figure, saved)
    return {"": figure}


def _against_null(axes: Axes, table: Table, name: str, label: str) -> None:
    """Points over the range that the null networks span."""
    low, high = (table.array(f"{name}_null_{end}") for end in ("low", "high"))
    axes.barh(range(len(table)), high - low, 0.7, low, color=UNTRAINED, label="null networks")
    errors = table.array(f"{name}_error") if f"{name}_error" in table.columns else None
    axes.errorbar(table.array(name), range(len(table)), xerr=errors, fmt="o", color=TRAINED, label="trained")
    axes.set_xlim(0, 1.05)
    axes.set_xlabel(label, loc="center")
    if name == "entropy":
        axes.legend(loc="lower left", fontsize=8.5, frameon=True, handlelength=1.2)


def _stacked(axes: Axes, shares: Array, shift: float, height: float, labels: list[str], alpha: float = 1.0) -> None:
    """Shares [L, H, parts] side by side, one line per head."""
    rows = shares.reshape(-1, shares.shape[-1]).clip(0)
    left, places = np.zeros(len(rows)), np.arange(len(rows)) + shift
    for label, color, values in zip(labels, PARTS, rows.T, strict=True):
        axes.barh(places, values, height, left, color=color, label=label or None, alpha=alpha)
        left = left + values


def carried(saved: Saved) -> dict[str, Canvas]:
    """How much of another object's state each head carries, one figure per layer; processes in rows, then null
    networks."""
    maps = saved.attention
    assert maps is not None
    names = [name for i, name in enumerate(maps.sample_names) if maps.num_events[i] > 0]
    found = {}
    for layer in range(maps.value_norm.shape[1]):
        shown = {name: maps.value_norm[maps.sample_names.index(name), layer] for name in names}
        shown |= _nulls(maps.value_norm_null[:, layer], maps.value_norm_shuffled[:, layer])
        num_heads, num_slots = maps.value_norm.shape[2:4]
        cell, norm = 7.9 / (num_heads * (num_slots + 1)), style.positive(np.stack(list(shown.values())))
        figure = style.canvas(style.WIDTH, 0.9 + len(shown) * (0.34 * num_slots + 0.3))
        rows = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
        for axes, (name, values) in zip(rows, shown.items(), strict=True):
            image = _heads(axes, values, maps.slots, norm, cell, last=axes is rows[-1])
            axes.set_ylabel(style.sample_label(name), loc="center", fontsize=11)
            axes.yaxis.label.set_color(style.colors(saved).get(name, "0.3"))
        figure.colorbar(image, ax=rows, pad=0.015, label="Mean length of what is carried")
        style.stamp(figure, saved, f"Layer {layer + 1}, heads side by side")
        found[f"layer{layer + 1}"] = figure
    return found


def rollout(saved: Saved) -> dict[str, Canvas]:
    """Attention through all layers, one panel per process, then null networks."""
    maps = saved.attention
    assert maps is not None
    names = [name for i, name in enumerate(maps.sample_names) if maps.num_events[i] > 0]
    shown = {name: maps.rollout[maps.sample_names.index(name), -1] for name in names}
    shown |= _nulls(maps.rollout_null[:, -1], maps.rollout_shuffled[:, -1])
    labels, norm = [style.object_label(slot) for slot in maps.slots], style.positive(np.stack(list(shown.values())))
    figure = style.canvas(style.WIDTH, 1.3 + 0.4 * len(labels))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (name, values) in zip(panels, shown.items(), strict=True):
        cell = 7.7 / (len(shown) * len(labels))
        image = style.matrix(axes, values, labels, labels, norm, style.ATTENTION, cell)
        axes.set_title(style.sample_label(name), color=style.colors(saved).get(name, "0.3"))
        axes.tick_params(axis="x", rotation=0 if cell > 0.3 else 90)
    figure.colorbar(image, ax=panels, pad=0.015, label="Mean rollout")
    style.stamp(figure, saved)
    return {"": figure}


def _logit_shares(axes: Axes, maps: AttentionMap) -> None:
    labels = [part.replace("kinematics", "kin.") for part in maps.logit_parts]
    _stacked(axes, maps.logit_shares, -0.12, 0.46, labels)
    _stacked(axes, maps.logit_shares_null.mean(0), 0.27, 0.18, [""] * len(labels), alpha=0.45)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("Variance of the logit", loc="center")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8.5, frameon=False, handlelength=1)
