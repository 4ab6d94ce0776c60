"""Attributions to objects, features and pairs; links to observables; response curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from hepx.report import derive, style
from hepx.report.saved import Saved
from hepx.report.tables import Table, fixed, plus_minus
from hepx.results import Explanation, ResponseCurve

RAISES, LOWERS = "#b2182b", "#2166ac"  # the ends of the diverging colour map


def waterfall(saved: Saved) -> dict[str, Canvas]:
    """From the mean baseline score to the mean score, one panel per process."""
    assert saved.objects is not None
    figure = draw_waterfall(saved.objects, style.colors(saved))
    style.stamp(figure, saved)
    return {"": figure}


def draw_waterfall(explanation: Explanation, colors: Mapping[str, str]) -> Canvas:
    """The waterfall of one explanation of the objects; colors: of the samples."""
    table, slots = derive.waterfall(explanation), explanation.events.slots
    names = [name for name in explanation.events.sample_names if len(table.where(sample=name))]
    figure = style.canvas(style.WIDTH, 1.5 + 0.42 * (len(slots) + 2))
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _steps(axes, table.where(sample=name), slots)
        axes.set_title(style.sample_label(name), color=colors[name])
    for axes in panels:
        axes.set_xlabel(style.with_unit("Mean score", explanation.unit))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    labels = ["mean baseline", *(style.object_label(slot) for slot in slots), "mean score"]
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.4, -0.6)
    _pad_x(panels[0], table, 0.13 * max(len(names), 2))
    return figure


def _steps(axes: Axes, table: Table, slots: tuple[str, ...]) -> None:
    rows = {row["step"]: row for row in table.dicts()}
    steps = [rows["baseline"], *(rows[slot] for slot in slots), rows["score"]]
    for y, row in enumerate(steps):
        total = row["step"] in ("baseline", "score")
        left, width = (0.0, row["mean"]) if total else (row["start"], row["mean"])
        color = "0.55" if total else (RAISES if width >= 0 else LOWERS)
        axes.barh(y, width, 0.62, left=left, color=color)
        axes.errorbar(row["end"], y, xerr=row["error"], fmt="none", color="black", elinewidth=1.2, capsize=2.5)
        _write_step(axes, y, row, left, total)
    ends = [row["end"] for row in steps]
    for y in range(len(steps) - 1):
        axes.plot([ends[y]] * 2, [y + 0.31, y + 0.69], color="0.4", lw=0.8)
    axes.axvline(0, color="black", lw=0.8)
    axes.tick_params(axis="y", which="both", length=0)
    axes.minorticks_off()


def _write_step(axes: Axes, y: int, row: dict[str, Any], start: float, total: bool) -> None:
    """The number beside the bar and its error bar, on the side the bar points to."""
    side = 1 if row["end"] >= start else -1
    label = axes.annotate(
        fixed(row["mean"], 2, signed=not total),
        (row["end"] + side * row["error"], y),
        xytext=(6 * side, 0),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="center",
        fontsize=9.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )
    label.set_in_layout(False)


def _pad_x(axes: Axes, table: Table, share: float) -> None:
    """Room for the numbers."""
    error = np.nan_to_num(table.array("error"))
    ends = np.concatenate([table.array("start"), table.array("end") - error, table.array("end") + error])
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    axes.set_xlim(low - share * (high - low), high + share * (high - low))


def features(saved: Saved) -> dict[str, Canvas]:
    """Mean |attribution| of every feature of every object, one panel per process."""
    assert saved.features is not None
    figure = draw_features(saved.features, style.colors(saved))
    style.stamp(figure, saved)
    return {"": figure}


def draw_features(explanation: Explanation, colors: Mapping[str, str]) -> Canvas:
    """The same of one explanation of the features; colors: of the samples."""
    table, events = derive.feature_means(explanation), explanation.events
    names = [name for name in events.sample_names if len(table.where(sample=name))]
    used = [feature for feature in events.features if len(table.where(feature=feature))]
    figure = style.canvas(style.WIDTH, 1.3 + 0.42 * len(events.slots))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    norm, cell = style.positive(table.array("mean_abs")), 7.7 / (len(names) * len(used))
    decimals = style.decimals_for(table.array("mean_abs"))
    for axes, name in zip(panels, names, strict=True):
        values = np.full((len(events.slots), len(used)), np.nan)
        for row in table.where(sample=name).dicts():
            values[events.slots.index(row["object"]), used.index(row["feature"])] = row["mean_abs"]
        rows = [style.object_label(slot) for slot in events.slots]
        columns = [style.feature_label(feature) for feature in used]
        image = style.matrix(axes, values, rows, columns, norm, style.SEQUENTIAL, cell, decimals)
        axes.tick_params(axis="x", rotation=0 if cell > 0.38 else 60)
        axes.set_title(style.sample_label(name), color=colors[name])
    figure.colorbar(image, ax=panels, pad=0.015, label=style.with_unit("Mean |attribution|", explanation.unit))
    return figure


def pairs(saved: Saved) -> dict[str, Canvas]:
    """Mean |I_ij| (above) and mean I_ij (below) of every pair, one column per process."""
    explanation = saved.pairs
    assert explanation is not None
    table, slots = derive.pair_means(explanation), explanation.events.slots
    names = [name for name in saved.samples if len(table.where(sample=name))]
    figure = style.canvas(style.WIDTH, 1.0 + 2 * (0.5 + 0.40 * len(slots)))
    grid = figure.subplots(2, len(names), sharex=True, sharey=True, squeeze=False)
    cell = 7.7 / (len(names) * (len(slots) - 1))
    for row, column, colormap, norm, label in (
        (0, "mean_abs", style.SEQUENTIAL, style.positive(table.array("mean_abs")), r"Mean $|I_{ij}|$  [logit]"),
        (1, "mean", style.DIVERGING, style.symmetric(table.array("mean")), r"Mean $I_{ij}$  [logit]"),
    ):
        decimals = style.decimals_for(table.array(column))
        for axes, name in zip(grid[row], names, strict=True):
            values = derive.square(table.where(sample=name), slots, column)
            labels = [style.object_label(slot) for slot in slots]
            image = style.matrix(axes, values[1:, :-1], labels[1:], labels[:-1], norm, colormap, cell, decimals)
            axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=grid[row], pad=0.015, label=label)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(style.sample_label(name), color=style.colors(saved)[name])
    style.stamp(figure, saved)
    return {"": figure}


def pair_profiles(saved: Saved) -> dict[str, Canvas]:
    """Interaction of a pair against the mass it carries."""
    explanation = saved.pairs
    assert explanation is not None
    profiles, correlations = derive.pair_profiles(explanation), derive.rank_correlations(explanation)
    observables = [name for name in derive.pair_observables(explanation) if len(profiles.where(observable=name))]
    figure = style.canvas(style.WIDTH if len(observables) > 1 else 6.0, 4.4)
    panels = figure.subplots(1, max(1, len(observables)), squeeze=False)[0]
    for axes, name in zip(panels, observables, strict=False):
        for i, sample in enumerate(saved.samples):
            part, link = (
                profiles.where(observable=name, sample=sample),
                correlations.where(observable=name, sample=sample),
            )
            if len(part):
                row = link.dicts()[0]
                text = f"{style.sample_label(sample)},  rank corr. {plus_minus(row['correlation'], row['error'])}"
                _profile(axes, part, saved, sample, text, i)
        pair = [style.object_label(explanation.events.slots[i]) for i in derive.pair_observables(explanation)[name]]
        _finish_profile(axes, name, explanation.events.observable_units, explanation.events.observable_names, pair)
    style.stamp(figure, saved)
    return {"": figure}


def _profile(axes: Axes, table: Table, saved: Saved, sample: str, label: str, position: int) -> None:
    low, high = table.array("low"), table.array("high")
    shift = (position - (len(saved.samples) - 1) / 2) * 0.12 * (high - low)  # so that error bars do not hide each other
    axes.errorbar(
        (low + high) / 2 + shift,
        table.array("mean"),
        table.array("error"),
        fmt=style.markers(saved)[sample],
        ls=style.lines(saved)[sample],
        lw=1.0,
        elinewidth=1.3,
        color=style.colors(saved)[sample],
        label=label,
    )


def _finish_profile(axes: Axes, name: str, units: tuple[str, ...], names: tuple[str, ...], pair: list[str]) -> None:
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xlabel(style.with_unit(style.observable_label(name), units[names.index(name)]))
    axes.set_ylabel(f"Mean interaction ({pair[0]}, {pair[1]})  [logit]")
    axes.margins(0.04, 0.08)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.30 * (high - low))
    axes.legend(loc="upper left", fontsize=9.5)


def links(saved: Saved) -> dict[str, Canvas]:
    """How much the attribution of an observable's objects follows it, beside the null."""
    ordered = sorted(saved.links, key=lambda link: link.strength)
    figure = style.canvas(7.2, 1.3 + 0.38 * len(ordered))
    axes = figure.subplots()
    for y, link in enumerate(ordered):
        above = link.strength > link.null
        axes.barh(y, link.strength, 0.6, color="#0072b2" if above else "0.75")
        axes.errorbar(link.strength, y, xerr=link.error, fmt="none", color="black", elinewidth=1.2, capsize=2.5)
        axes.plot([link.null] * 2, [y - 0.4, y + 0.4], color="#d55e00", lw=2.5)
    labels = [f"{style.observable_label(link.observable)}  ({_objects(link.objects)})" for link in ordered]
    axes.set_yticks(range(len(ordered)), labels)
    axes.tick_params(axis="y", which="both", length=0)
    axes.minorticks_off()
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlim(0, 1.08 * max(max(link.strength + link.error, link.null) for link in ordered))
    axes.set_xlabel("Spread of the mean attribution over bins of the observable  [logit]")
    axes.plot([], [], color="#d55e00", lw=2.5, label="null: observable shuffled, 95th percentile")
    axes.legend(loc="lower right")
    style.stamp(figure, saved)
    return {"": figure}


def _objects(slots: tuple[str, ...]) -> str:
    return ", ".join(style.object_label(slot) for slot in slots)


def responses(saved: Saved) -> dict[str, Canvas]:
    """Score against an observable that is moved by changing one object, one figure per observable."""
    found = {}
    for name, curve in saved.responses.items():
        figure = found[name if len(saved.responses) > 1 else ""] = draw_response(curve, style.colors(saved))
        style.stamp(figure, saved)
    return found


def draw_response(curve: ResponseCurve, colors: Mapping[str, str]) -> Canvas:
    """The response of one observable, one column per process; colors: of the samples."""
    names = [name for name in curve.sample_names if np.isfinite(curve.mean[curve.sample_names.index(name)]).any()]
    figure = style.canvas(style.WIDTH, 5.0)
    grid = figure.subplots(
        2, max(1, len(names)), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1), gridspec_kw={"hspace": 0}
    )
    for column, name in enumerate(names):
        _response_panel(grid[0, column], curve, curve.sample_names.index(name), colors[name])
        _reached_panel(grid[1, column], curve, curve.sample_names.index(name), colors[name])
        grid[0, column].set_title(style.sample_label(name), color=colors[name])
        grid[1, column].set_xlabel(style.with_unit(style.observable_label(curve.observable), curve.unit))
    grid[0, 0].set_ylabel("Mean score  [logit]")
    grid[1, 0].set_ylabel("Reached", loc="center", fontsize=10.5)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _response_panel(axes: Axes, curve: ResponseCurve, sample: int, color: str) -> None:
    mean, error = curve.mean[sample], curve.error[sample]
    axes.fill_between(curve.points, mean - error, mean + error, color=color, alpha=0.25, lw=0)
    axes.plot(curve.points, mean, color=color, label=f"moved by {style.object_label(curve.moved)} alone")
    several = curve.observed_error[sample] > 1e-9  # one event alone has no error, but for rounding
    axes.errorbar(
        curve.points[several],
        curve.observed[sample][several],
        curve.observed_error[sample][several],
        fmt="o",
        ms=4,
        color="black",
        elinewidth=1,
        label="observed, nothing moved",
    )
    axes.plot(curve.points, curve.null[sample], "--", color="0.5", lw=1.4, label="moved, untrained model")
    axes.margins(0.03, 0.08)


def _reached_panel(axes: Axes, curve: ResponseCurve, sample: int, color: str) -> None:
    axes.plot(curve.points, curve.reached[sample], color=color, lw=1.4)
    axes.set_ylim(0, 1.15)
    axes.set_yticks([0, 0.5, 1], ["0", "", "1"])
    axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
