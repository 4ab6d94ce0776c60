"""The audit of the training events: what influence/audit.json and audit.csv say, as tables, grids and figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullLocator

from hepx.report import style
from hepx.report.figures_events import SHOWN, Arrow, draw_plane, object_name
from hepx.report.grid import Grid, observable_html, sample_html
from hepx.report.grids import count, percent
from hepx.report.saved import Saved
from hepx.report.tables import Table, fixed, number

ANY, RANDOM = "any", "random"
LISTED = 12  # events of the list that the page shows
FLOOR = 2e-4  # smallest rate on the figure
CATEGORIES = {
    "wrong_b_pair": "wrong b pair",
    "lost_lepton": "lost lepton or τ",
    "unbalanced_met": "missing momentum off",
    "outside_detector": "outside the detector",
    "merged_objects": "merged objects",
    "extreme_value": "extreme value",
    "overlap": "looks like the other class",
    "duplicate": "duplicate",
    "huge_weight": "huge weight",
    "negative_weight": "negative weight",
    "none": "none of these",
}
CRITERIA = {"loss": "mean loss", "tracin": "self-influence", "twin": "twin", "weight": "weight"}
CHOSEN = {ANY: "suspicious", RANDOM: "drawn at random", **CRITERIA}


def rate_table(saved: Saved) -> Table:
    """One row per stratum, category and set of events."""
    measured = ("rate", "rate_of_all", "enrichment")
    columns = ("stratum", "name", "category", "chosen_by", "events", "found")
    assert saved.audit is not None
    rows = [
        (*(one[name] for name in columns), *(one[what][end] for what in measured for end in ("value", "low", "high")))
        for one in saved.audit["rates"]
    ]
    ends = tuple(f"{what}{end}" for what in measured for end in ("", "_low", "_high"))
    return Table((*columns, *ends), tuple(rows))


def audit_grids(saved: Saved) -> dict[str, Grid]:
    """Enrichments by criterion and by process, and the head of the list; empty without an audit."""
    if saved.audit is None:
        return {}
    return {"enrichments": _enrichments(saved), "strata": _strata(saved), "suspects": _suspects(saved)}


def _shown(saved: Saved, kind: str) -> list[dict[str, Any]]:
    """Rates of the categories that have any event, in strata of a kind."""
    assert saved.audit is not None
    present = [one["name"] for one in saved.audit["categories"] if one["found"]]
    return [one for one in saved.audit["rates"] if one["stratum"] == kind and one["category"] in present]


def _enrichments(saved: Saved) -> Grid:
    """Category against what chose the events, in the whole training sample."""
    audit, rates = saved.audit, _shown(saved, "all")
    assert audit is not None
    sets = list(dict.fromkeys(one["chosen_by"] for one in rates))
    by = {one["name"]: one["by"] for one in audit["categories"]}
    rows = []
    for name in dict.fromkeys(one["category"] for one in rates):
        own = {one["chosen_by"]: one for one in rates if one["category"] == name}
        cells = [interval(own[chosen]["enrichment"]) if chosen in own else "–" for chosen in sets]
        rows.append((CATEGORIES.get(name, name), by[name], rate_text(own[ANY]["rate_of_all"]), *cells))
    heads = [f"{CHOSEN.get(chosen, chosen)}" for chosen in sets]
    return Grid(("Category", "Known by", "All events", *heads), tuple(rows), _caption(audit), "audit_rates")


def _caption(audit: dict[str, Any]) -> str:
    empty = [CATEGORIES.get(one["name"], one["name"]) for one in audit["categories"] if not one["found"]]
    without = f" No training event: {', '.join(empty)}." if empty else ""
    notes = "".join(f" {note}" for note in audit["notes"])
    return (
        f"Enrichment: by which factor a category is more frequent among the {count(audit['suspicious'])} suspicious "
        f"events (and among the {percent(audit['settings']['share'])} that stand out most by one criterion) than in "
        f"all {count(audit['num_events'])} training events, with 95 % intervals; 1 means that the list has nothing to "
        "do with the category, as for the events drawn at random. By weight in the loss. An enriched category says "
        f"nothing about a single event, and no event is proved wrong.{without}{notes}"
    )


def _strata(saved: Saved) -> Grid:
    """Rates and enrichment of the suspicious events in each process, signal point and region."""
    rows = []
    for kind in ("process", "point", "region"):
        rates = [one for one in _shown(saved, kind) if one["chosen_by"] == ANY]
        for one in rates:
            if one["found"] and one["category"] != "none":
                name = sample_html(one["name"]) if kind == "process" else one["name"].replace("_", " ")
                found = f"{one['found']} of {one['events']}"
                cells = (rate_text(one["rate_of_all"]), rate_text(one["rate"]), found, interval(one["enrichment"]))
                rows.append((name, CATEGORIES.get(one["category"], one["category"]), *cells))
    head = ("Stratum", "Category", "All events", "Suspicious events", "Found", "Enrichment")
    caption = (
        "The same within processes, signal points and regions, where the suspicious events hold any. 95 % intervals."
    )
    return Grid(head, tuple(rows), caption, "audit_rates")


def _suspects(saved: Saved) -> Grid:
    """The first events of the list."""
    audit, suspects = saved.audit, saved.suspects
    assert audit is not None
    assert suspects is not None
    shown = [name for name in SHOWN if name in suspects.columns]
    scores = [name for name in audit["criteria"] if name in suspects.columns]
    rows = []
    for one in suspects.dicts()[:LISTED]:
        about = (
            one["rank"],
            f"{one['channel']}/{one['event']}",
            sample_html(one["sample"]),
            CRITERIA.get(one["reason"], one["reason"]),
            f"1 in {round(1 / float(one['tail'])):d}",
            ", ".join(CATEGORIES.get(name, name) for name in one["categories"].split("; ")),
        )
        numbers = [number(float(one[name])) if one[name] else "–" for name in (*scores, "score")]
        rows.append((*about, *numbers, *(fixed(float(one[name]), 0) if one[name] else "–" for name in shown)))
    names = (*(escape(CRITERIA.get(name, name)) for name in scores), "score")
    units = [Markup("{} [GeV]").format(observable_html(name)) for name in shown]
    head = ("Rank", "Channel/event", "Process", "Stands out by", "Tail", "Categories", *names, *units)
    return Grid(head, tuple(rows), "The first suspicious events; all of them are in influence/audit.csv.")


def rate_text(share: dict[str, Any]) -> str:
    """A share in percent."""
    return "–" if share["value"] is None else percent(share["value"]) if share["value"] else "0"


def interval(share: dict[str, Any]) -> str:
    """A value with its interval."""
    if share["value"] is None:
        return "–"
    value, low, high = ("∞" if one is None else number(one, 2) if one else "0" for one in share.values())
    return f"{value} [{low}, {high}]"


# Figures ------------------------------------------------------------------------------------------------------------


def draw_rates(saved: Saved) -> dict[str, Canvas]:
    """Rates of the categories among the suspicious events and among all, one panel per process."""
    rates = [one for one in _shown(saved, "process") if one["category"] != "none"]
    present = {one["category"] for one in rates}
    names = [name for name in CATEGORIES if name in present]
    figure = style.canvas(style.WIDTH, 1.9 + 0.42 * len(names))
    panels = figure.subplots(1, len(saved.samples), sharey=True, squeeze=False)[0]
    colors = style.colors(saved)
    for axes, sample in zip(panels, saved.samples, strict=True):
        own = [one for one in rates if one["name"] == sample]
        _points(axes, [one for one in own if one["chosen_by"] == ANY], names, colors[sample])
        axes.set_title(style.sample_label(sample), fontsize=11.5)
        axes.set_xscale("log")
        axes.set_xlim(FLOOR, 1.5)
        axes.set_xlabel("Share of the events")
        axes.tick_params(axis="y", which="both", length=0)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(axis="x", color="0.9", lw=0.8)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(names)), [CATEGORIES.get(name, name) for name in names])
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    style.stamp(figure, saved, "training events")
    return {"": figure}


def _points(axes: Axes, rates: list[dict[str, Any]], names: list[str], color: str) -> None:
    """Filled: suspicious events; open: all; a rate of zero is an arrow down from its upper limit."""
    for key, label, shift, face in (
        ("rate", "suspicious", -0.14, color),
        ("rate_of_all", "all training events", 0.14, "white"),
    ):
        known = [one for one in rates if one[key]["value"] is not None]
        place = np.array([names.index(one["category"]) + shift for one in known])
        value, low, high = (np.array([one[key][end] for one in known], dtype=float) for end in ("value", "low", "high"))
        some = value > 0
        error = np.stack([value - np.maximum(low, FLOOR / 10), high - value])[:, some].clip(min=0)
        points = (value[some], place[some])
        axes.errorbar(*points, xerr=error, label=label, fmt="o", color=color, mfc=face, ms=5.5, elinewidth=1.2)
        axes.plot(high[~some], place[~some], marker="<", color=color, mfc=face, ls="none", ms=5.5)


def draw_suspects(saved: Saved) -> dict[str, Canvas]:
    """Displays of the first suspicious events, two in a row."""
    assert saved.audit is not None
    shown = saved.audit["displays"]
    num_rows = -(-len(shown) // 2)
    figure = style.canvas(style.WIDTH, 0.4 + 4.0 * num_rows)
    panels = figure.subplots(num_rows, 2, squeeze=False).ravel()
    for axes, event in zip(panels, shown, strict=False):
        draw_event(axes, event, f"{event['rank']}. ", _why(event))
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    style.stamp(figure, saved, "training events")
    return {"": figure}


def _why(event: dict[str, Any]) -> str:
    found = ", ".join(CATEGORIES.get(name, name) for name in event["categories"])
    return f"stands out by {CRITERIA.get(event['reason'], event['reason'])}; {found}"


def draw_event(axes: Axes, event: dict[str, Any], prefix: str, note: str) -> None:
    """The transverse plane of one event, its observables and a note."""
    arrows = [
        Arrow(
            name=object_name(one["slot"], one["truth_parent"]),
            pt=one["pt"],
            phi=one["phi"],
            dashed=one["type"] == "met",
            color=TYPE_COLORS[one["type"]],
        )
        for one in event["objects"]
    ]
    draw_plane(axes, arrows)
    score = fixed(event["model_score"], 1, signed=True)
    title = f"{prefix}{style.sample_label(event['sample'])}, event {event['event']}, score {score}"
    axes.set_title(f"{title}\n{note}", fontsize=10.5, loc="left")
    known = {name: value for name in SHOWN if (value := event["observables"].get(name)) is not None}
    numbers = ",  ".join(f"{style.observable_label(name)} = {value:.0f}" for name, value in known.items())
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.1 * (high - low), high)
    axes.text(0.5, 0.01, f"{numbers} GeV", transform=axes.transAxes, ha="center", va="bottom", fontsize=9.5)


TYPE_COLORS = {
    "bjet": (0.0, 0.45, 0.70, 1.0),
    "jet": (0.34, 0.71, 0.91, 1.0),
    "lepton": (0.84, 0.37, 0.0, 1.0),
    "met": (0.55, 0.55, 0.55, 1.0),
}
