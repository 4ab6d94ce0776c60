"""Training history, background rejection, score distributions, calibration, signal points."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullLocator

from hepx.report import derive, performance, style
from hepx.report.saved import Saved
from hepx.report.tables import Table, plus_minus
from hepx.results import Array

MODEL_COLOR = "black"
LARGEST_ERROR = 0.7  # relative; beyond it a rejection is no measurement
REFERENCE_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")


def history(saved: Saved) -> dict[str, Canvas]:
    """Losses and validation AUC against the epoch, or against the number of trees, all of which are kept."""
    table = saved.history
    assert table is not None
    of_trees = saved.metrics["model"] == "boosted_trees"
    balanced = "balance_loss" in table.columns and bool(np.any(table.array("balance_loss") != 0))
    figure = style.canvas(style.WIDTH, 3.4)
    panels = figure.subplots(1, 3 if balanced else 2)
    kept = len(table.rows) - 1 if of_trees else int(np.argmax(table.array("validation_auc")))
    _curve(panels[0], table, "loss", "training", "#0072b2", "-")
    _curve(panels[0], table, "validation_loss", "validation", "#d55e00", "--")
    panels[0].set_ylabel("Cross entropy")
    panels[0].legend()
    _curve(panels[1], table, "validation_auc", "validation", "#d55e00", "--")
    panels[1].set_ylabel("Validation AUC")
    panels[1].plot(
        table.array("epoch")[kept], table.array("validation_auc")[kept], "*", color="black", ms=13, label="kept", ls=""
    )
    panels[1].legend(loc="lower right")
    if balanced:
        _curve(panels[2], table, "balance_loss", "training", "#0072b2", "-")
        panels[2].axhline(1, color="grey", lw=1, ls=":")
        panels[2].set_ylabel("Balance loss (1: even)")
    for axes in panels:
        axes.set_xlabel("Trees" if of_trees else "Epoch")
        axes.margins(0.05, 0.12)
        style.integer_ticks(axes)
    style.stamp(figure, saved)
    return {"": figure}


def _curve(axes: Axes, table: Table, column: str, label: str, color: str, line: str) -> None:
    axes.plot(table.array("epoch"), table.array(column), line, color=color, label=label, marker="o", ms=3.5)


def roc(saved: Saved) -> dict[str, Canvas]:
    """Background rejection against signal efficiency, and its ratio to the model."""
    table = derive.roc_curves(saved)
    names = list(derive.classifiers(saved))
    figure = style.canvas(7.2, 6.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    model = table.where(classifier=names[0])
    for i, name in enumerate(names):
        _rejection(top, table.where(classifier=name), i, f"{name}: AUC {_auc(saved, i)}")
        _ratio(bottom, table.where(classifier=name), model, i)
    grid = model.array("signal_efficiency")
    top.plot(grid, 1 / grid, ":", color="grey", lw=1.2, label="random choice")
    top.set_yscale("log")
    top.set_ylim(0.8, 20 * float(np.nanmax(_measured(table)[1])))  # room for the legend
    top.set_ylabel(r"Background rejection  $1/\varepsilon_b$")
    top.legend(loc="upper right")
    bottom.set_ylabel("Ratio to model", fontsize=11)
    bottom.set_xlabel(r"Signal efficiency  $\varepsilon_s$")
    bottom.set_xlim(0, 1)
    _limit_ratio(bottom, table, model, names)
    figure.align_ylabels()
    style.stamp(figure, saved)
    return {"": figure}


def _auc(saved: Saved, position: int) -> str:
    auc = performance.measured(saved)[position]["auc"]
    return plus_minus(auc["value"], auc["error"])


def _color(position: int) -> str:
    return MODEL_COLOR if position == 0 else REFERENCE_COLORS[(position - 1) % len(REFERENCE_COLORS)]


def _measured(table: Table) -> tuple[Array, Array, Array]:
    """Signal efficiency, rejection and its relative error; NaN where about two background events or fewer are left."""
    rejection = table.array("rejection")
    relative = table.array("error") / rejection
    known = relative < LARGEST_ERROR
    return table.array("signal_efficiency"), np.where(known, rejection, np.nan), np.where(known, relative, np.nan)


def _rejection(axes: Axes, table: Table, position: int, label: str) -> None:
    x, y, relative = _measured(table)
    axes.plot(x, y, style.LINES[position % 4], color=_color(position), label=label)
    # the band is ε_b ± error, turned over: it stays positive
    axes.fill_between(x, y / (1 + relative), y / (1 - relative), color=_color(position), alpha=0.18, lw=0)


def _ratio(axes: Axes, table: Table, model: Table, position: int) -> None:
    (x, scale, _), (_, y, relative) = _measured(model), _measured(table)
    axes.plot(x, y / scale, style.LINES[position % 4], color=_color(position))
    low, high = y / scale / (1 + relative), y / scale / (1 - relative)
    axes.fill_between(x, low, high, color=_color(position), alpha=0.18, lw=0)


def _limit_ratio(axes: Axes, table: Table, model: Table, names: list[str]) -> None:
    ratios = [_measured(table.where(classifier=name))[1] / _measured(model)[1] for name in names]
    values = np.concatenate(ratios)
    values = values[np.isfinite(values)]
    if len(values):
        axes.set_ylim(max(0.0, min(0.75, values.min() - 0.1)), min(max(1.25, values.max() + 0.1), 3.0))


def scores(saved: Saved) -> dict[str, Canvas]:
    """Distribution of the score per process."""
    table, colors, lines = derive.score_distributions(saved), style.colors(saved), style.lines(saved)
    figure = style.canvas(7.2, 4.6)
    axes = figure.subplots()
    for name in saved.samples:
        part = table.where(sample=name)
        if not len(part):
            continue
        low, high, density, error = (part.array(column) for column in ("low", "high", "density", "error"))
        edges = np.append(low, high[-1])
        fill = saved.labels[name] == 1
        axes.stairs(density, edges, color=colors[name], lw=1.8, ls=lines[name], label=style.sample_label(name))
        axes.stairs(density, edges, color=colors[name], alpha=0.15 if fill else 0, fill=True, lw=0)
        axes.errorbar((low + high) / 2, density, error, fmt="none", color=colors[name], elinewidth=1)
    axes.set_xlim(table.array("low").min(), table.array("high").max())
    axes.set_ylim(0, 1.25 * float((table.array("density") + table.array("error")).max()))
    axes.set_xlabel("Score: log-odds of signal  [logit]")
    axes.set_ylabel("Events, unit area  [1 / logit]")
    axes.legend(loc="upper right", ncols=len(saved.samples))
    style.stamp(figure, saved)
    return {"": figure}


PRIORS = {"equal_classes": "Classes of equal weight", "expected_yields": "Expected yields"}


def calibration(saved: Saved) -> dict[str, Canvas]:
    """Observed against predicted share of signal, for both priors."""
    table = performance.calibration_table(saved)
    figure = style.canvas(style.WIDTH, 4.4)
    panels = figure.subplots(1, 2)
    for axes, (prior, title) in zip(panels, PRIORS.items(), strict=True):
        part = table.where(prior=prior)
        for i, entry in enumerate(performance.measured(saved)):
            one = part.where(classifier=entry["name"])
            found = entry["calibration"][prior]
            if found is not None:
                label = f"{entry['name']}: {found['error']:.3f} ({found['error_if_perfect']:.3f})"
                _reliability(axes, one, i, label)
        axes.set_title(title)
        axes.set_xlabel("Predicted share of signal")
        axes.legend(title="Calibration error (if perfect)", fontsize=9, title_fontsize=9, loc="lower right")
    panels[0].set_ylabel("Observed share of signal")
    panels[0].plot([0, 1], [0, 1], ":", color="grey", lw=1)
    panels[0].set_xlim(0, 1)
    panels[0].set_ylim(0, 1.03)
    _logarithmic(panels[1], table.where(prior="expected_yields"))
    style.stamp(figure, saved)
    return {"": figure}


def _reliability(axes: Axes, table: Table, position: int, label: str) -> None:
    x, y, error = (table.array(name) for name in ("predicted", "observed", "error"))
    marker = style.MARKERS[position % len(style.MARKERS)]
    line = style.LINES[position % 4]
    axes.errorbar(x, y, error, fmt=marker, ls=line, lw=1, ms=4.5, color=_color(position), label=label, elinewidth=1)


def _logarithmic(axes: Axes, table: Table) -> None:
    """Shares of signal at the expected yields spread over decades."""
    known = np.concatenate([table.array("predicted"), table.array("observed")])
    known = known[known > 0]
    if len(known):
        low, high = 0.5 * float(known.min()), 1.5
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot([low, 1], [low, 1], ":", color="grey", lw=1)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)


def points(saved: Saved) -> dict[str, Canvas]:
    """AUC against each background, AUC and significance of each signal point, for every classifier."""
    table = performance.group_table(saved)
    groups = list(dict.fromkeys(zip(table.column("kind"), table.column("name"), strict=True)))
    figure = style.canvas(style.WIDTH, 1.6 + 0.42 * len(groups))
    panels = figure.subplots(1, 2, sharey=True)
    names = [entry["name"] for entry in performance.measured(saved)]
    for i, name in enumerate(names):
        part = table.where(classifier=name)
        place = np.arange(len(groups)) + 0.16 * (i - (len(names) - 1) / 2)
        marker = style.MARKERS[i % len(style.MARKERS)]
        for axes, measure in zip(panels, ("auc", "significance"), strict=True):
            value, error = part.array(measure), part.array(f"{measure}_error")
            axes.errorbar(value, place, xerr=error, fmt=marker, color=_color(i), label=name, ms=5, elinewidth=1.2)
    panels[0].set_yticks(range(len(groups)), [performance.group_label(*group) for group in groups])
    panels[0].set_ylim(len(groups) - 0.4, -0.6 - 0.42 * len(names))
    panels[0].legend(loc="upper left")
    panels[0].set_xlabel("AUC")
    panels[1].set_xlabel(r"Asimov significance  $Z_{\mathrm{A}}$")
    for axes in panels:
        axes.tick_params(axis="y", which="both", length=0)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.08)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="0.9", lw=0.8)
    panels[1].set_xlim(left=0)
    uncertainty = 100 * saved.metrics["background_uncertainty"]
    style.stamp(figure, saved, rf"background uncertainty {uncertainty:g} %")
    return {"": figure}
