"""One result in memory as a figure, for notebooks: what `result.plot()` shows."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from hepx.metrics import weighted_mean
from hepx.report import derive, style
from hepx.report.figures_objects import LOWERS, RAISES, draw_features, draw_waterfall
from hepx.results import Array, EventResult, Explanation, PairExplanation


def draw(result: EventResult) -> Canvas:
    """Weighted means over the events of each process.

    Attributions to objects that add up: from the baseline to the score; to features and pairs: mean sizes; else bars.
    """
    events = result.events
    # graphs made by hand may list more classes than samples
    colors = style.class_colors(dict(zip(events.sample_names, events.sample_labels, strict=False)))
    with style.style():
        if isinstance(result, PairExplanation):
            figure = _pairs(result, colors)
        elif isinstance(result, Explanation) and result.values.ndim == 3:
            figure = draw_features(result, colors)
        elif isinstance(result, Explanation) and result.completeness_error is not None:
            figure = draw_waterfall(result, colors)
        else:
            figure = _bars(result, colors)
        figure.suptitle(f"{result.provenance.method.replace('_', ' ')}, {len(events)} events", x=0.01, ha="left")
    return figure


def _bars(result: EventResult, colors: dict[str, str]) -> Canvas:
    """Mean attribution of objects, or groups of features, one panel per process; error bars: over the events."""
    names = getattr(result, "players", None) or [style.object_label(slot) for slot in result.events.slots]
    samples = list(derive.samples_with_events(result.events))
    figure = style.canvas(style.WIDTH, 1.5 + 0.36 * len(names))
    panels = figure.subplots(1, len(samples), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, chosen) in zip(panels, samples, strict=True):
        weight = result.events.weight[chosen]
        means = np.array([weighted_mean(column, weight) for column in result.values[chosen].T])
        bars = [RAISES if value >= 0 else LOWERS for value in means[:, 0]]
        axes.barh(range(len(names)), means[:, 0], 0.62, xerr=means[:, 1], color=bars, ecolor="black")
        axes.axvline(0, color="black", lw=0.8)
        axes.set_title(style.sample_label(name), color=colors[name])
        axes.set_xlabel("Mean attribution  [logit]")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.08)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def _pairs(result: PairExplanation, colors: dict[str, str]) -> Canvas:
    """Mean size of the value of every pair, one panel per process."""
    samples, slots = list(derive.samples_with_events(result.events)), result.events.slots
    figure = style.canvas(style.WIDTH, 1.3 + 0.42 * len(slots))
    panels = figure.subplots(1, len(samples), sharey=True, squeeze=False)[0]
    means = {name: _mean_sizes(result, chosen) for name, chosen in samples}
    everything = np.stack(list(means.values()))
    labels = [style.object_label(slot) for slot in slots]
    norm, cell = style.positive(everything), 7.7 / (len(samples) * len(slots))
    for axes, (name, values) in zip(panels, means.items(), strict=True):
        decimals = style.decimals_for(everything)
        image = style.matrix(axes, values, labels, labels, norm, style.SEQUENTIAL, cell, decimals)
        axes.set_title(style.sample_label(name), color=colors[name])
    figure.colorbar(image, ax=panels, pad=0.015, label=f"Mean size  [{result.unit}]")
    return figure


def _mean_sizes(result: PairExplanation, chosen: Array) -> Array:
    """Below the diagonal the weighted mean |value| of the pair, over the events that have both objects; else NaN."""
    mask, slots = result.events.mask, len(result.events.slots)
    values = np.full((slots, slots), np.nan)
    for i, j in zip(*np.tril_indices(slots, -1), strict=True):
        both = chosen & mask[:, i] & mask[:, j]
        if both.any():
            values[i, j], _ = weighted_mean(np.abs(result.values[both, i, j]), result.events.weight[both])
    return values
