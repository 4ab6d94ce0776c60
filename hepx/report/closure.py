"""Network and trees beside one another, and mean attributions with all their errors: tables, grids and figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullLocator

from hepx.report import style
from hepx.report.grid import Grid
from hepx.report.grids import percent
from hepx.report.saved import Saved
from hepx.report.tables import Table, number, plus_minus
from hepx.results_closure import Closure, Ranking

CLASSIFIERS = {"network": "network", "trees": "trees on observables", "both": "trees on observables and network score"}
KINDS = {"variable": "Observables", "object": "Objects", "pair": "Pairs of objects"}
CURVES = {"trees": (-0.14, style.BACKGROUND_COLORS[0], "o"), "network": (0.14, style.SIGNAL_COLORS[0], "s")}
NULL, VARIED = "0.6", style.SIGNAL_COLORS[0]
METHOD = "shapley"  # whose means are shown, and whose spread over seeds validate.json has


def _closure(saved: Saved) -> Closure:
    assert saved.closure is not None
    return saved.closure


# Tables -----------------------------------------------------------------------------------------------------------


def usage_table(saved: Saved) -> Table:
    """One row per observable, object and pair: shares in trees, network and untrained network."""
    rows = [tuple(vars(one).values()) for one in _closure(saved).usage]
    head = ("kind", "name", "trees", "trees_error", "network", "network_error", "untrained", "likeness")
    return Table((*head, "likeness_error"), tuple(rows))


def mean_table(saved: Saved) -> Table:
    """Mean attributions with the parts of their error, logit: statistical, seed (empty without other seeds), systematic
    (empty without variations) and the whole; then the shift under each variation."""
    means, seeds = _closure(saved).means, _seeds(saved)
    variations = list(means[0].shifts) if means else []
    rows = []
    for one in means:
        seed = seeds.get((one.sample, one.object, one.where))
        up, down = (one.up, one.down) if variations else (None, None)
        whole = [math.hypot(one.error, seed or 0.0, syst or 0.0) for syst in (up, down)]
        shifts = [one.shifts[name][0] for name in variations]
        rows.append(
            (one.sample, one.object, one.where, one.events, one.mean, one.error, seed, up, down, *whole, *shifts)
        )
    head = ("sample", "object", "where", "events", "mean", "statistical", "seed", "systematic_up", "systematic_down")
    return Table((*head, "up", "down", *(f"shift_{name}" for name in variations)), tuple(rows))


def _seeds(saved: Saved) -> dict[tuple[str, str, str], float | None]:
    """Spread of the means over the seeds of the training, as `hepx validate RUN --beside` has measured it."""
    rows = ((saved.validation or {}).get("methods", {}).get(METHOD) or {}).get("means") or []
    return {(row["sample"], row["object"], row["where"]): row["seed"] for row in rows}


# Grids ------------------------------------------------------------------------------------------------------------


def closure_grids(saved: Saved) -> dict[str, Grid]:
    """Information and rankings; empty without closure.json."""
    if saved.closure is None:
        return {}
    grids = {"information_left": _information(saved.closure), "rankings": _rankings(saved.closure)}
    return {name: grid for name, grid in grids.items() if grid.rows}


def _information(found: Closure) -> Grid:
    auc = {one.name: one for one in found.information if not one.minus}
    differences = {(one.name, one.minus): one for one in found.information if one.minus}
    rows = []
    for name, one in auc.items():
        cells = []
        for other in auc:
            pair = differences.get((name, other))
            cells.append(plus_minus(pair.auc, pair.error, signed=True) if pair else "")
        rows.append((CLASSIFIERS[name], plus_minus(one.auc, one.error), *cells))
    head = ("Classifier", "AUC", *(f"minus {CLASSIFIERS[other]}" for other in auc))
    keep = [i for i in range(len(head)) if i < 2 or any(row[i] for row in rows)]
    caption = (
        "Information left: what trees on the observables miss of the network, and what each adds to the other. Fitted "
        "on training events, stopped on validation events; AUC of the weighted test events, differences with the "
        "paired bootstrap error. The network's score on its own training events is a little too good, so the trees "
        "that are given it may trust it too much: what they gain is a lower bound."
    )
    return Grid(tuple(head[i] for i in keep), tuple(tuple(row[i] for i in keep) for row in rows), caption)


def _rankings(found: Closure) -> Grid:
    rows = tuple(
        (KINDS[one.kind], plus_minus(one.rho, one.error), number(one.shuffled, 2), number(one.untrained, 2))
        for one in found.rankings
    )
    parts = [f"{one.name}: {percent(one.r2)}" for one in found.fidelity]
    caption = (
        "Do network and trees rank alike? Spearman’s ρ of the shares in the figure, with the bootstrap error; what "
        "shuffled names stay below 95 times out of 100; ρ for an untrained network. Share of the variance of the score "
        f"that is explained by {'; '.join(parts)}."
    )
    return Grid(("Ranking of", "ρ", "shuffled (95 %)", "untrained"), rows, caption)


# Figures ----------------------------------------------------------------------------------------------------------


def draw_usage(saved: Saved) -> dict[str, Canvas]:
    """Shares of the observables, left, and of objects and pairs, right."""
    found, table = _closure(saved), usage_table(saved)
    rankings = {one.kind: one for one in found.rankings}
    left = [row for row in table.dicts() if row["kind"] == "variable"]
    right = [[row for row in table.dicts() if row["kind"] == kind] for kind in ("object", "pair")]
    columns = [[left], [part for part in right if part]]
    columns = [column for column in columns if any(column)]
    height = 1.4 + 0.3 * max(sum(map(len, column)) + 2 * (len(column) - 1) for column in columns)
    figure = style.canvas(style.WIDTH, height)
    parts = figure.subfigures(1, len(columns), squeeze=False)[0]
    for part, column in zip(parts, columns, strict=True):
        panels = part.subplots(len(column), 1, squeeze=False, height_ratios=[len(rows) + 0.8 for rows in column])[:, 0]
        for axes, rows in zip(panels, column, strict=True):
            _shares(axes, sorted(rows, key=lambda row: -float(row["trees"])), rankings.get(rows[0]["kind"]))
        panels[-1].set_xlabel(r"Share of $\Sigma$ mean |value|  [%]")
    parts[0].axes[0].legend(loc="best", fontsize=9.5)
    style.stamp(figure, saved)
    return {"": figure}


def _shares(axes: Axes, rows: list[dict[str, Any]], ranking: Ranking | None) -> None:
    place = np.arange(len(rows))
    for name, (shift, color, marker) in CURVES.items():
        values, errors = (100 * np.array([row[key] for row in rows]) for key in (name, f"{name}_error"))
        axes.errorbar(values, place + shift, xerr=errors, fmt=marker, color=color, label=name, elinewidth=1.3)
    untrained = 100 * np.array([row["untrained"] for row in rows])
    axes.plot(untrained, place, "x", color=NULL, ms=5, label="untrained network")
    axes.set_yticks(place, [_label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.06 * max(untrained.max(), *(100 * (row[k] + row[f"{k}_error"]) for row in rows for k in CURVES)))
    axes.tick_params(axis="y", which="both", length=0)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="0.92", lw=0.8)
    title = KINDS[rows[0]["kind"]]
    axes.set_title(f"{title}: ρ = {plus_minus(ranking.rho, ranking.error)}" if ranking else title, fontsize=11)


def _label(row: dict[str, Any]) -> str:
    if row["kind"] == "variable":
        return style.observable_label(row["name"])
    return "–".join(style.object_label(part) for part in row["name"].split())


def draw_means(saved: Saved) -> dict[str, Canvas]:
    """Mean attribution of each object in all events and in each region, one panel per process."""
    table = mean_table(saved)
    samples = [name for name in saved.samples if len(table.where(sample=name))]
    places = list(dict.fromkeys(table.column("where")))
    objects = list(dict.fromkeys(table.column("object")))
    figure = style.canvas(style.WIDTH, 1.9 + len(objects) * (0.3 + 0.16 * len(places)))
    panels = figure.subplots(1, len(samples), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, samples, strict=True):
        for k, where in enumerate(places):
            _band(axes, table.where(sample=name, where=where), objects, k, len(places))
        axes.axvline(0, color="black", lw=0.8)
        axes.set_title(style.sample_label(name), color=style.colors(saved)[name])
        axes.set_xlabel("Mean attribution  [logit]")
        axes.tick_params(axis="y", which="both", length=0)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.08)
    for axes in panels:
        for edge in range(1, len(objects)):
            axes.axhline(edge - 0.5, color="0.88", lw=0.8)
    panels[0].set_yticks(range(len(objects)), [style.object_label(slot) for slot in objects])
    panels[0].set_ylim(len(objects) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=9.5)
    style.stamp(figure, saved, f"errors: {_parts(table)}")
    return {"": figure}


def _parts(table: Table) -> str:
    """Which errors the bands have."""
    parts = {"statistical": "statistical", "seed": "seed", "systematic": "systematic_up"}
    return r" $\oplus$ ".join(name for name, column in parts.items() if np.isfinite(table.array(column)).any())


def _band(axes: Axes, table: Table, objects: list[str], number: int, total: int) -> None:
    """Means in one region: thin bar statistical, wide bar the whole error; the first one with its shifted means."""
    colors = ("black", *style.SIGNAL_COLORS[1:], *style.BACKGROUND_COLORS[1:])
    color, where = colors[number % len(colors)], [str(name) for name in table.column("where")][:1]
    place = np.array([objects.index(name) for name in table.column("object")]) + 0.72 * ((number + 0.5) / total - 0.5)
    mean, whole = table.array("mean"), [table.array("down"), table.array("up")]
    axes.errorbar(mean, place, xerr=whole, fmt="none", color=color, alpha=0.35, elinewidth=6, capsize=0)
    marker = style.MARKERS[number % len(style.MARKERS)]
    label = where[0].replace("_", " ") if where else ""
    axes.errorbar(mean, place, xerr=table.array("statistical"), fmt=marker, color=color, elinewidth=1.3, label=label)
    shifts = [name for name in table.columns if name.startswith("shift_")]
    for name in shifts if number == 0 else ():
        axes.plot(mean + table.array(name), place, "|", color=VARIED, ms=9, mew=1.2)
    if shifts and number == 0:
        axes.plot([], [], "|", color=VARIED, ms=9, mew=1.2, label="varied, all events")
