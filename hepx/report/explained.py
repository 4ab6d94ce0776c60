"""Results of the explanation methods as figures: for `result.plot()`, and every method of a run in its report."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from hepx.metrics import weighted_mean
from hepx.report import derive, style
from hepx.report.figures_objects import LOWERS, RAISES, draw_features, draw_response, draw_waterfall
from hepx.report.saved import Saved
from hepx.report.tables import Table
from hepx.results import Array, EventResult, EventTable, Explanation, Importance, PairExplanation, ResponseCurve, Result

# One result -------------------------------------------------------------------------------------------------------


def draw(result: Result) -> Canvas:
    """Weighted means over the events of each process.

    Attributions to objects that add up: from the baseline to the score; to features and pairs: mean sizes; else bars.
    Measures of the whole sample as they are.
    """
    with style.style():
        if isinstance(result, Importance):
            figure = _importance(result)
        elif isinstance(result, ResponseCurve):
            figure = draw_response(result, style.class_colors(dict.fromkeys(result.sample_names, 0)))
        else:
            assert isinstance(result, EventResult)
            figure = _of_events(result, _colors(result.events))
        figure.suptitle(_title(result), x=0.01, ha="left")
    return figure


def _title(result: Result) -> str:
    settings, name = result.provenance.settings, result.provenance.method.replace("_", " ")
    baseline = settings.get("process") or settings.get("baseline")
    size = len(result.events) if isinstance(result, EventResult) else getattr(result, "num_events", None)
    known = baseline is None or str(baseline) in name
    about = ["" if known else f"replaced from {baseline}", f"{size} events" if size else ""]
    return ", ".join([name, *(text for text in about if text)])


def _colors(events: EventTable) -> dict[str, str]:
    # graphs made by hand may list more classes than samples
    return style.class_colors(dict(zip(events.sample_names, events.sample_labels, strict=False)))


def _of_events(result: EventResult, colors: Mapping[str, str]) -> Canvas:
    if isinstance(result, PairExplanation):
        return _pairs(result, colors)
    if isinstance(result, Explanation) and result.values.ndim == 3:
        return draw_features(result, colors)
    if isinstance(result, Explanation) and result.completeness_error is not None:
        return draw_waterfall(result, colors)
    return _bars(result, colors)


def _bars(result: EventResult, colors: Mapping[str, str]) -> Canvas:
    """Mean attribution of objects, or groups of features, one panel per process; error bars: over the events."""
    names = getattr(result, "players", None) or [style.object_label(slot) for slot in result.events.slots]
    samples = list(derive.samples_with_events(result.events))
    figure = style.canvas(style.WIDTH, 1.5 + 0.36 * len(names))
    panels = figure.subplots(1, len(samples), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, chosen) in zip(panels, samples, strict=True):
        weight = result.events.weight[chosen]
        means = np.array([weighted_mean(column, weight) for column in result.values[chosen].T])
        _signed_bars(axes, means[:, 0], means[:, 1])
        axes.set_title(style.sample_label(name), color=colors[name])
        axes.set_xlabel(style.with_unit("Mean attribution", result.unit))
        axes.xaxis.set_major_locator(MaxNLocator(4))
    _name_bars(panels[0], names)
    return figure


def _importance(result: Importance) -> Canvas:
    """What AUC and significance lose, one bar per group of features."""
    both = result.delta_z is not None
    figure = style.canvas(style.WIDTH, 1.5 + 0.36 * len(result.players))
    panels = figure.subplots(1, 1 + both, sharey=True, squeeze=False)[0]
    _signed_bars(panels[0], 1e3 * result.delta_auc, 1e3 * result.error)
    panels[0].set_xlabel(rf"Change of the AUC of {result.auc:.4f}  [$10^{{-3}}$]")
    if both:
        assert result.delta_z is not None
        assert result.delta_z_error is not None
        _signed_bars(panels[1], result.delta_z, result.delta_z_error)
        panels[1].set_xlabel(rf"Change of the significance of {result.significance:.3g} $\sigma$")
    _name_bars(panels[0], result.players)
    return figure


def _signed_bars(axes: Axes, values: Array, errors: Array) -> None:
    colors = [RAISES if value >= 0 else LOWERS for value in values]
    axes.barh(range(len(values)), values, 0.62, xerr=errors, color=colors, ecolor="black")
    axes.axvline(0, color="black", lw=0.8)
    axes.margins(x=0.08)


def _name_bars(axes: Axes, names: tuple[str, ...] | list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _pairs(result: PairExplanation, colors: Mapping[str, str]) -> Canvas:
    """Mean size of the value of every pair, one panel per process; below, the same of an untrained model."""
    samples, slots = list(derive.samples_with_events(result.events)), result.events.slots
    shown = {"": result.values} | ({"untrained model": result.null} if result.null is not None else {})
    figure = style.canvas(style.WIDTH, 1.0 + len(shown) * (0.4 + 0.40 * len(slots)))
    grid = figure.subplots(len(shown), len(samples), sharex=True, sharey=True, squeeze=False)
    means = [[_mean_sizes(values, result.events, chosen) for _, chosen in samples] for values in shown.values()]
    labels, norm = [style.object_label(slot) for slot in slots], style.positive(np.stack(means))
    cell, decimals = 7.7 / (len(samples) * (len(slots) - 1)), style.decimals_for(np.stack(means))
    for panels, row, what in zip(grid, means, shown, strict=True):
        for axes, values in zip(panels, row, strict=True):
            image = style.matrix(axes, values[1:, :-1], labels[1:], labels[:-1], norm, style.SEQUENTIAL, cell, decimals)
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel(what, loc="center", fontsize=11)
    for axes, (name, _) in zip(grid[0], samples, strict=True):
        axes.set_title(style.sample_label(name), color=colors[name])
    figure.colorbar(image, ax=grid, pad=0.015, label=style.with_unit("Mean size", result.unit))
    return figure


def _mean_sizes(values: Array, events: EventTable, chosen: Array) -> Array:
    """Below the diagonal the weighted mean |value| of the pair, over the events that have both objects; else NaN."""
    sizes = np.full((len(events.slots),) * 2, np.nan)
    for i, j in zip(*np.tril_indices(len(events.slots), -1), strict=True):
        both = chosen & events.mask[:, i] & events.mask[:, j]
        if both.any():
            sizes[i, j], _ = weighted_mean(np.abs(values[both, i, j]), events.weight[both])
    return sizes


# All results of a run ---------------------------------------------------------------------------------------------


def other_methods(saved: Saved) -> dict[str, Canvas]:
    """Every method whose values no other figure of the report shows."""
    found: dict[str, Canvas] = {}
    for name, result in saved.others.items():
        found[name] = draw(result)
        style.stamp(found[name], saved, _title(result))
    return found


def edges(saved: Saved) -> dict[str, Canvas]:
    """The pairs of the methods that tell layers and heads apart, over all explained events."""
    found = {}
    for name, result in saved.edges.items():
        if result.edges is not None:
            found[name] = _edges(result.edges, result)
            style.stamp(found[name], saved, _title(result))
    return found


def _edges(values: Array, result: PairExplanation) -> Canvas:
    layers, heads = values.shape[1:3]
    events, slots = result.events, [style.object_label(slot) for slot in result.events.slots]
    everything = np.ones(len(events), dtype=bool)
    means = [[_mean_sizes(values[:, i, h], events, everything) for h in range(heads)] for i in range(layers)]
    figure = style.canvas(style.WIDTH, 1.0 + layers * (0.3 + 0.32 * len(slots)))
    grid = figure.subplots(layers, heads, sharex=True, sharey=True, squeeze=False)
    norm, cell = style.positive(np.stack(means)), 7.4 / (heads * (len(slots) - 1))
    decimals = style.decimals_for(np.stack(means))
    for layer, panels in enumerate(grid):
        for head, axes in enumerate(panels):
            one = means[layer][head][1:, :-1]
            image = style.matrix(axes, one, slots[1:], slots[:-1], norm, style.SEQUENTIAL, cell, decimals)
            axes.spines[:].set_visible(False)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=11)
    figure.colorbar(image, ax=grid, pad=0.015, label=style.with_unit("Mean size", result.unit))
    return figure


def faith(saved: Saved) -> dict[str, Canvas]:
    """Faith-Shap of order two: objects on the diagonal, pairs below."""
    explanation = saved.faith
    assert explanation is not None
    assert explanation.faith is not None
    events, slots = explanation.events, [style.object_label(slot) for slot in explanation.events.slots]
    samples = list(derive.samples_with_events(events))
    means = [_mean_faith(explanation.faith, events, chosen) for _, chosen in samples]
    figure = style.canvas(style.WIDTH, 1.4 + 0.40 * len(slots))
    panels = figure.subplots(1, len(samples), sharey=True, squeeze=False)[0]
    norm, cell = style.symmetric(np.stack(means)), 7.7 / (len(samples) * len(slots))
    decimals = style.decimals_for(np.stack(means))
    for axes, (name, _), values in zip(panels, samples, means, strict=True):
        image = style.matrix(axes, values, slots, slots, norm, style.DIVERGING, cell, decimals)
        axes.spines[:].set_visible(False)
        axes.set_title(style.sample_label(name), color=style.colors(saved)[name])
    figure.colorbar(image, ax=panels, pad=0.015, label="Mean  [logit]")
    style.stamp(figure, saved)
    return {"": figure}


def _mean_faith(values: Array, events: EventTable, chosen: Array) -> Array:
    """Weighted means of the objects (diagonal) and pairs (below), over the events that have them; NaN elsewhere."""
    means = np.full((len(events.slots),) * 2, np.nan)
    for i, j in zip(*np.tril_indices(len(events.slots)), strict=True):
        both = chosen & events.mask[:, i] & events.mask[:, j]
        if both.any():
            means[i, j], _ = weighted_mean(values[both, i, j], events.weight[both])
    return means


def importances(saved: Saved) -> dict[str, Canvas]:
    """What the classifier loses when groups of features are exchanged between the events."""
    found = {}
    for name, result in saved.importances.items():
        suffix = name.removeprefix("permutation_importance").strip("_")
        found[suffix] = draw(result)
        style.stamp(found[suffix], saved, _title(result))
    return found


def importance_table(saved: Saved) -> Table:
    """The groups of features with their members and what is lost without them."""
    names = ("delta_auc", "error", "delta_z", "delta_z_error")
    rows = []
    for name, result in saved.importances.items():
        empty = np.full(len(result.players), np.nan)
        values = [empty if (found := getattr(result, column)) is None else found for column in names]
        rows += [(name, *row) for row in zip(result.players, result.members, *values, strict=True)]
    return Table(("result", "group", "members", *names), tuple(rows))
