"""What smaller training sets cost: influence/distill.json as tables, grids and figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from hepx.report import style
from hepx.report.audit import CATEGORIES, CRITERIA, draw_event, interval, rate_text
from hepx.report.grid import Grid, observable_html, sample_html
from hepx.report.grids import count, percent
from hepx.report.saved import Saved
from hepx.report.tables import Table, number, plus_minus

EQUAL = {"events": "as many epochs", "steps": "as many steps as the full training"}
COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKS = {"highest": "^", "lowest": "v", "": "o"}
CLASSES = {1: "signal", 0: "background"}
UNITS = {"mbb": "GeV", "mt": "GeV", "mct": "GeV"}


def distill_table(saved: Saved) -> Table:
    """One row per way to train, with its comparisons."""
    found = _found(saved)
    plain = [name for name in found["rows"][0] if name not in ("versus", "auc_by_seed")]
    others = ("random", "full", "short")
    ends = [f"{what}_{other}" for other in others for what in ("gain_over", "error_over", "word")]
    rows = []
    for row in found["rows"]:
        versus = [(row["versus"][other] or {}) for other in others]
        cells = [one.get(name) for one in versus for name in ("value", "error", "word")]
        rows.append((*(row[name] for name in plain), *cells))
    return Table((*plain, *ends), tuple(rows))


def shape_table(saved: Saved) -> Table:
    """Distance of the distributions of the reduced training sets to that of the full one."""
    columns = ("score", "order", "fraction", "observable", "label", "distance", "null", "chi2", "bins")
    return Table(columns, tuple(tuple(one[name] for name in columns) for one in _found(saved)["shapes"]))


def composition_table(saved: Saved) -> Table:
    """Share of each process in its class before and after."""
    columns = ("score", "order", "fraction", "sample", "events_before", "events_after", "share_before", "share_after")
    return Table(columns, tuple(tuple(one[name] for name in columns) for one in _found(saved)["composition"]))


def mean_table(saved: Saved) -> Table:
    """Mean observables of dropped and kept events."""
    rows = _found(saved)["means"]
    return Table(tuple(rows[0]), tuple(tuple(one.values()) for one in rows))


def _found(saved: Saved) -> dict[str, Any]:
    assert saved.distilled is not None
    return saved.distilled


# Grids --------------------------------------------------------------------------------------------------------------


def distill_grids(saved: Saved) -> dict[str, Grid]:
    """Arms, composition, shapes, and what was dropped; empty without a study."""
    if saved.distilled is None:
        return {}
    grids = {
        "distilled": _arms(saved),
        "composition": _composition(saved),
        "shapes": _shapes(saved),
        "dropped": _dropped(saved),
        "dropped_means": _means(saved),
    }
    return {name: grid for name, grid in grids.items() if grid.rows}


def name_of(row: dict[str, Any]) -> str:
    """What is dropped, in words."""
    plain = {"full": "nothing (full training)", "short": "nothing, fewer steps", "random": "at random"}
    score = str(row["score"])
    return plain.get(score) or f"{row['order']} {CRITERIA.get(score, score.replace('_', ' '))}"


def _arms(saved: Saved) -> Grid:
    found, rows = _found(saved), []
    for row in found["rows"]:
        versus = row["versus"]
        fraction = f"{100 * row['fraction']:g} %" if row["score"] not in ("full", "short") else "–"
        what = (name_of(row), fraction, count(row["events"]), count(row["steps"]), number(row["cpu_seconds"], 3))
        measured = (
            plus_minus(row["auc"], row["auc_error"]),
            plus_minus(row["rejection"], row["rejection_error"]) if row["rejection"] else "–",
        )
        rows.append((*what, *measured, *(_difference(versus[other]) for other in ("random", "full", "short"))))
    head = (
        "Dropped",
        "Share",
        "Events",
        "Steps",
        "CPU [s]",
        "AUC",
        Markup("1/ε<sub>b</sub> at ε<sub>s</sub> = 50 %"),
        "Δ AUC to random",
        "to full",
        "to fewer steps",
    )
    seeds, test = found["settings"]["seeds"], found["test"]
    caption = (
        f"AUC on the {count(test['events'])} test events, which are the same everywhere, mean of {len(seeds)} seeds. "
        f"Δ to random: to the mean of {found['settings']['sets']} random sets of as many events, with as many steps; "
        "to fewer steps: to all events, trained for as few steps. Errors: seeds (Δ to random: from one random set to "
        "the other), widened for few of them, and bootstrap of the test events, in quadrature; bold beyond 2 σ. CPU: "
        "processor time of a training, measured; the more are trained together, the less each takes, so compare steps."
    )
    return Grid(head, tuple(rows), caption, "distilled")


def _difference(found: dict[str, Any] | None) -> Any:
    if found is None:
        return "–"
    text = plus_minus(found["value"], found["error"], signed=True)
    return text if found["word"] == "equal" else Markup("<b>{}</b>").format(text)


def _composition(saved: Saved) -> Grid:
    rows = []
    for one in _found(saved)["composition"]:
        before, after = count(one["events_before"]), count(one["events_after"])
        shares = (percent(one["share_before"]), percent(one["share_after"]))
        rows.append((*_removal(one), sample_html(one["sample"]), before, after, _share(one["dropped"]), *shares))
    head = ("Dropped", "Share", "Process", "Events before", "after", "Dropped", "Share of its class before", "after")
    caption = (
        "What dropping does to the composition of the training set; shares by weight. Random removal keeps the shares. "
        "Both classes have the same total weight in the training, before and after."
    )
    return Grid(head, tuple(rows), caption, "composition")


def _removal(one: dict[str, Any]) -> tuple[str, str]:
    return name_of(one), f"{100 * one['fraction']:g} %"


def _share(share: dict[str, Any]) -> str:
    return f"{100 * share['value']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}] %"


def _shapes(saved: Saved) -> Grid:
    """Distances per removal: observables and classes as columns."""
    shapes = _found(saved)["shapes"]
    columns = list(dict.fromkeys((one["observable"], one["label"]) for one in shapes))
    rows = []
    for key in dict.fromkeys((one["score"], one["order"], one["fraction"]) for one in shapes):
        own = {
            (one["observable"], one["label"]): one
            for one in shapes
            if (one["score"], one["order"], one["fraction"]) == key
        }
        first = next(iter(own.values()))
        rows.append((*_removal(first), *(_distance(own.get(column)) for column in columns)))
    heads = [Markup("{}, {}").format(observable_html(name), CLASSES.get(label, label)) for name, label in columns]
    caption = (
        "Largest difference of the cumulative distributions (Kolmogorov–Smirnov) of the reduced and the full training "
        "set, by weight; in brackets what random removal stays below in 95 of 100 cases. Bold: beyond it."
    )
    return Grid(("Dropped", "Share", *heads), tuple(rows), caption, "shapes")


def _distance(one: dict[str, Any] | None) -> Any:
    if one is None:
        return "–"
    text = f"{number(one['distance'], 2)} ({number(one['null'], 2)})"
    return Markup("<b>{}</b>").format(text) if one["distance"] > one["null"] else text


def _dropped(saved: Saved) -> Grid:
    """Enrichment of the categories among the dropped events, all processes together."""
    found = _found(saved)
    rates = [one for one in found["dropped"] if one["stratum"] == "all" and one["rate_of_all"]["value"]]
    keys = list(dict.fromkeys((one["score"], one["order"], one["fraction"]) for one in rates))
    rows = []
    for name in dict.fromkeys(one["category"] for one in rates):
        own = {(one["score"], one["order"], one["fraction"]): one for one in rates if one["category"] == name}
        first = next(iter(own.values()))
        cells = [interval(own[key]["enrichment"]) if key in own else "–" for key in keys]
        rows.append((CATEGORIES.get(name, name), rate_text(first["rate_of_all"]), *cells))
    heads = [f"{name_of({'score': s, 'order': o})}, {100 * f:g} %" for s, o, f in keys]
    caption = (
        "By which factor a category is more frequent among the dropped events than in the training set, with 95 % "
        "intervals; by weight in the loss. 1: random removal. The categories are those of the audit. "
    )
    return Grid(("Category", "All events", *heads), tuple(rows), caption + " ".join(map(str, found["notes"])))


def _means(saved: Saved) -> Grid:
    """Mean observables of dropped and kept events per process, at the largest fraction."""
    means = [one for one in _found(saved)["means"] if one["observable"] in ("mbb", "mt", "mct", "met", "n_jet")]
    largest = max((one["fraction"] for one in means), default=0.0)
    rows = []
    names = list(dict.fromkeys(one["observable"] for one in means))
    for key in dict.fromkeys((one["score"], one["order"], one["sample"]) for one in means):
        own = {
            one["observable"]: one
            for one in means
            if (one["score"], one["order"], one["sample"], one["fraction"]) == (*key, largest)
        }
        if own:
            first = next(iter(own.values()))
            cells = [_pair(own[name]) if name in own else "–" for name in names]
            rows.append((name_of(first), sample_html(first["sample"]), *cells))
    caption = (
        f"Weighted mean of dropped | kept events, {100 * largest:g} % dropped (GeV but for the number of jets); with "
        "their standard errors, of all observables, in the table."
    )
    return Grid(("Dropped", "Process", *map(observable_html, names)), tuple(rows), caption, "dropped_means")


def _pair(one: dict[str, Any]) -> str:
    return f"{number(one['dropped'])} | {number(one['kept'])}"


# Figures ------------------------------------------------------------------------------------------------------------


def draw_costs(saved: Saved) -> dict[str, Canvas]:
    """AUC relative to the full training against the share that is dropped, at equal events and at equal steps."""
    rows = _found(saved)["rows"]
    figure = style.canvas(style.WIDTH, 4.3)
    panels = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys((row["score"], row["order"]) for row in rows if row["score"] not in ("full", "short")))
    scores = [name for name in dict.fromkeys(score for score, _ in names) if name != "random"]
    for axes, (equal, title) in zip(panels, EQUAL.items(), strict=True):
        for i, (score, order) in enumerate(names):
            own = [row for row in rows if (row["score"], row["order"], row["equal"]) == (score, order, equal)]
            color = "black" if score == "random" else COLORS[scores.index(score) % len(COLORS)]
            face = "white" if order == "lowest" else color
            _curve(axes, own, (i - (len(names) - 1) / 2) * 0.8, color, face, MARKS[order])
        if equal == "events":
            own = [row for row in rows if row["score"] == "short"]
            _curve(axes, own, len(names) / 2 * 0.8, "grey", "white", "s")
        axes.axhline(0, color="grey", lw=1)
        axes.set_title(title, fontsize=11.5)
        axes.set_xlabel("Training events dropped  [%]")
        axes.margins(x=0.12)
    panels[0].set_ylabel("AUC − AUC of the full training")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    style.stamp(figure, saved, f"{len(_found(saved)['settings']['seeds'])} seeds")
    return {"": figure}


def _curve(axes: Axes, rows: list[dict[str, Any]], shift: float, color: str, face: str, marker: str) -> None:
    """Points beside one another, joined by a faint line."""
    if not rows:
        return
    x = np.array([100 * row["fraction"] + shift for row in rows])
    y, error = (np.array([row["versus"]["full"][key] for row in rows]) for key in ("value", "error"))
    label = name_of(rows[0])
    axes.errorbar(x, y, yerr=error, fmt=marker, ls=":", lw=0.8, color=color, mfc=face, elinewidth=1.2, label=label)


def draw_shapes(saved: Saved) -> dict[str, Canvas]:
    """Distributions of the training set before and after at the largest fraction, with the ratio below: one figure per
    class, a column per observable."""
    shapes = _found(saved)["shapes"]
    largest = max(one["fraction"] for one in shapes)
    shapes = [one for one in shapes if one["fraction"] == largest]
    return {
        CLASSES.get(label, f"class{label}"): _shape_figure(saved, [one for one in shapes if one["label"] == label])
        for label in dict.fromkeys(one["label"] for one in shapes)
    }


def _shape_figure(saved: Saved, shapes: list[dict[str, Any]]) -> Canvas:
    names = list(dict.fromkeys(one["observable"] for one in shapes))
    figure = style.canvas(style.WIDTH, 5.2)
    panels = figure.subplots(2, len(names), sharex="col", height_ratios=(2, 1), squeeze=False)
    removals = list(dict.fromkeys((one["score"], one["order"]) for one in shapes))
    for column, name in enumerate(names):
        own = [one for one in shapes if one["observable"] == name]
        _shape_panel(panels[0, column], panels[1, column], own, removals)
        panels[1, column].set_xlabel(style.with_unit(style.observable_label(name), UNITS[name]))
    panels[0, 0].set_ylabel("Share of the events")
    panels[1, 0].set_ylabel("after / before")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    first = shapes[0]
    kind = CLASSES.get(first["label"], str(first["label"]))
    style.stamp(figure, saved, f"training events, {kind}, {100 * first['fraction']:g} % dropped")
    return figure


def _shape_panel(top: Axes, low: Axes, shapes: list[dict[str, Any]], removals: list[tuple[str, str]]) -> None:
    """Histograms and ratios of one observable; the last bin is drawn as wide as the others."""
    edges = np.array(shapes[0]["edges"])
    edges[-1] = 2 * edges[-2] - edges[-3]
    top.stairs(shapes[0]["before"], edges, color="0.75", fill=True, label="full training set")
    for one in shapes:
        i = removals.index((one["score"], one["order"]))
        color, line = COLORS[i % len(COLORS)], style.LINES[i % len(style.LINES)]
        top.stairs(one["after"], edges, color=color, ls=line, lw=1.8, label=f"without {name_of(one)}")
        ratio, error = np.array(one["ratio"]), np.array(one["ratio_error"])
        known = np.array(one["before"]) > 0
        center = (edges[1:] + edges[:-1]) / 2 + (i - (len(removals) - 1) / 2) * 0.18 * (edges[1] - edges[0])
        low.errorbar(center[known], ratio[known], error[known], fmt="o", ms=3, color=color, elinewidth=1)
    low.axhline(1, color="grey", lw=1)
    low.set_ylim(0, min(3.0, max(1.6, *(1.1 * max(one["ratio"]) for one in shapes))))
    top.set_ylim(0, None)
    top.margins(x=0)


def draw_dropped(saved: Saved) -> dict[str, Canvas]:
    """Displays of the first events that each score drops, two in a row."""
    shown = _found(saved)["displays"]
    num_rows = -(-len(shown) // 2)
    figure = style.canvas(style.WIDTH, 0.4 + 4.2 * num_rows)
    panels = figure.subplots(num_rows, 2, squeeze=False).ravel()
    for axes, event in zip(panels, shown, strict=False):
        draw_event(axes, event, "", f"{name_of(event)}: {event['value']:.2g}")
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    style.stamp(figure, saved, "training events")
    return {"": figure}
