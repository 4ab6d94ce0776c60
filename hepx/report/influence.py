"""The section on training events: what scores say of each, of groups, and of single events of the test sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from hepx.report import style
from hepx.report.grid import Grid, observable_html, sample_html
from hepx.report.saved import Saved
from hepx.report.tables import Table, number, plus_minus
from hepx.results import Array
from hepx.results_influence import Influence

COLUMNS = ("mbb", "mt", "mct", "met")
NUM_EVENTS = 3  # queries whose proponents and opponents are shown
NAMES = {
    "tracin": "TracIn",
    "last_layer": "TracIn, last layer",
    "grad_dot": "gradient product",
    "grad_cos": "gradient cosine",
    "trak": "TRAK",
    "loss": "mean loss",
    "logit": "−|score|",
    "el2n": "EL2N",
}


def score_name(name: str) -> str:
    """A score of training events in words, as a row or a sentence begins."""
    text = NAMES.get(name, name.replace("_", " "))
    return text[0].upper() + text[1:]


def own_figures(saved: Saved) -> dict[str, Canvas]:
    """Distribution of each score of training events alone, per process."""
    return {name: _own(saved, found) for name, found in saved.influences.items() if found.own is not None}


def group_figures(saved: Saved) -> dict[str, Canvas]:
    """Influence of groups of training events on the queries, beside what is expected of as many of any kind."""
    return {name: _groups(saved, found) for name, found in saved.influences.items() if found.total is not None}


def _own(saved: Saved, found: Influence) -> Canvas:
    assert found.own is not None
    figure = style.canvas(style.WIDTH, 3.8)
    axes = figure.subplots()
    logarithmic = bool((found.own > 0).all())
    values = np.log10(found.own) if logarithmic else found.own
    low, high = np.quantile(values, [0.002, 0.998])
    edges = np.linspace(low, high, 41)
    values = np.clip(values, edges[0], edges[-1])
    centres = 10**edges if logarithmic else edges
    for number_of, name in enumerate(found.events.sample_names):
        chosen = found.train_sample == number_of
        if chosen.any():
            height = np.histogram(values[chosen], edges)[0] / chosen.sum()
            error = np.sqrt(np.histogram(values[chosen], edges)[0]) / chosen.sum()
            color = style.colors(saved)[name]
            axes.stairs(
                height, centres, color=color, ls=style.lines(saved)[name], lw=1.8, label=style.sample_label(name)
            )
            middle = np.sqrt(centres[1:] * centres[:-1]) if logarithmic else (centres[1:] + centres[:-1]) / 2
            axes.errorbar(middle, height, error, fmt="none", ecolor=color, elinewidth=0.9)
    axes.set_xscale("log" if logarithmic else "linear")
    axes.set_xlim(centres[0], centres[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_own_label(found.score))
    axes.set_ylabel("Share of the training events")
    axes.legend(frameon=False)
    style.stamp(figure, saved)
    return figure


def _own_label(name: str) -> str:
    influences = {
        "tracin": "Self-influence, TracIn",
        "trak": "Effect on itself, TRAK",
        "last_layer": "Self-influence, TracIn of the last layer",
        "grad_dot": "Squared gradient of the weighted loss",
    }
    return f"{influences[name]}  [arbitrary unit]" if name in influences else score_name(name)


def _groups(saved: Saved, found: Influence) -> Canvas:
    """One row per group, blocks by what they have in common; the unit is the sum of |mean| over all training events."""
    assert found.total is not None
    assert found.total_error is not None
    assert found.expected is not None
    assert found.mean is not None
    kinds = list(dict.fromkeys(found.by))
    halves = _halves([found.by.count(kind) for kind in kinds])
    rows = max(sum(found.by.count(kinds[i]) + 1 for i in half) for half in halves if half)
    figure = style.canvas(style.WIDTH, 1.3 + 0.25 * rows)
    panels = figure.subplots(1, 2, sharex=True, squeeze=False)[0]
    unit = float(np.abs(found.mean).sum())
    for axes, half in zip(panels, halves, strict=True):
        _panel(axes, found, [kinds[i] for i in half], unit, rows)
    for axes in panels:
        axes.set_xlabel("Influence on the queries  [share]")
        axes.margins(x=0.06)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=2, frameon=False, fontsize=9.5)
    style.stamp(figure, saved, f"{score_name(found.score)}, {len(found.events)} queries")
    return figure


def _halves(sizes: list[int]) -> tuple[list[int], list[int]]:
    """Blocks for the left and the right panel, in their order, of about the same height."""
    half, left = (sum(sizes) + len(sizes)) / 2, 0.0
    first: list[int] = []
    for i, size in enumerate(sizes):
        if left + (size + 1) / 2 > half:
            break
        first.append(i)
        left += size + 1
    return first, list(range(len(first), len(sizes)))


def _panel(axes: Axes, found: Influence, kinds: list[str], unit: float, rows: int) -> None:
    assert found.total is not None
    assert found.total_error is not None
    assert found.expected is not None
    place = 0
    ticks: list[int] = []
    labels: list[str] = []
    for kind in kinds:
        axes.text(0.01, place, _kind_label(kind, found), transform=axes.get_yaxis_transform(), va="center", fontsize=10)
        for i in [i for i, by in enumerate(found.by) if by == kind]:
            place += 1
            axes.errorbar(
                found.total[i] / unit, place, xerr=found.total_error[i] / unit, fmt="o", ms=4.5, color="black",
                label="sum over the group" if not ticks else None,
            )  # fmt: skip
            axes.plot(
                found.expected[i] / unit, place, "D", ms=4.5, mfc="white", mec="#d55e00",
                label="as many events of any kind" if not ticks else None,
            )  # fmt: skip
            ticks.append(place)
            labels.append(_group_label(kind, found.group[i]))
        place += 1
    axes.axvline(0, color="0.6", lw=0.8)
    axes.set_yticks(ticks, labels, fontsize=9.5)
    axes.tick_params(axis="y", which="both", length=0)
    axes.minorticks_off()
    axes.set_ylim(rows - 0.4, -0.7)


def _kind_label(kind: str, found: Influence) -> str:
    names = {"sample": "Process", "region": "Region", "weight": "Event weight"}
    if kind in names:
        return names[kind]
    if kind == "signal point":
        first = found.group[found.by.index(kind)]
        of = ", ".join(style.observable_label(part.split(" = ")[0]) for part in first.split(", "))
        return f"Signal point ({of})"
    units = dict(zip(found.events.observable_names, found.events.observable_units, strict=True))
    return style.with_unit(style.observable_label(kind), units.get(kind, ""))


def _group_label(kind: str, group: str) -> str:
    if kind == "sample":
        return style.sample_label(group)
    return ", ".join(part.split(" = ")[-1] for part in group.split(", ")) if kind == "signal point" else group


def group_table(saved: Saved) -> Table:
    """All groups of all scores."""
    columns = (
        "score",
        "by",
        "group",
        "events",
        "share_of_weight",
        "influence",
        "error",
        "expected",
        "own",
        "own_error",
    )
    rows = []
    for name, found in saved.influences.items():
        for i, (by, group) in enumerate(zip(found.by, found.group, strict=True)):
            values = (found.total, found.total_error, found.expected, found.own_mean, found.own_error)
            numbers = (None if one is None else float(one[i]) for one in values)
            rows.append((name, by, group, int(found.num_events[i]), float(found.share[i]), *numbers))
    return Table(columns, tuple(rows))


def extreme_table(saved: Saved) -> Table:
    """Proponents and opponents of every query."""
    columns = (
        "score",
        "query",
        "query_sample",
        "query_score",
        "role",
        "rank",
        "event_id",
        "sample",
        "weight",
        "influence",
    )
    rows: list[tuple[Any, ...]] = []
    for name, found in saved.influences.items():
        samples = found.events.sample_names
        for role, at, values in _roles(found):
            for q, k in np.ndindex(*at.shape):
                one = at[q, k]
                of = (int(found.events.event_id[q]), samples[found.events.sample[q]], float(found.query_score[q]))
                event = (int(found.train_id[one]), samples[found.train_sample[one]], float(found.train_weight[one]))
                rows.append(
                    (name, *of, role, k + 1, *event, float(values[q, k]), *found.train_observables[one].tolist())
                )
    names = next(iter(saved.influences.values())).events.observable_names
    return Table((*columns, *names), tuple(rows))


def _roles(found: Influence) -> list[tuple[str, Array, Array]]:
    if found.proponents is None or found.opponents is None:
        return []
    assert found.proponent_values is not None
    assert found.opponent_values is not None
    return [
        ("signal", found.proponents, found.proponent_values),
        ("background", found.opponents, found.opponent_values),
    ]


def influence_grids(saved: Saved) -> dict[str, Grid]:
    """Means and sums per process for each score, and the extremes of the queries with the highest score."""
    if not saved.influences:
        return {}
    return {
        "influence_groups": _overview(saved),
        **{f"influence_{n}": _extremes(f) for n, f in saved.influences.items() if _roles(f)},
    }


def _overview(saved: Saved) -> Grid:
    rows = []
    for name, found in saved.influences.items():
        for i in [i for i, by in enumerate(found.by) if by == "sample"]:
            own = (
                "–"
                if found.own_mean is None or found.own_error is None
                else plus_minus(found.own_mean[i], found.own_error[i])
            )
            total = expected = "–"
            if found.total is not None and found.total_error is not None and found.expected is not None:
                total = plus_minus(found.total[i], found.total_error[i], signed=True)
                expected = number(float(found.expected[i]), 2)
            rows.append((score_name(name), sample_html(found.group[i]), int(found.num_events[i]), own, total, expected))
    head = ("Score", "Process", "Training events", "Mean of each alone", "Sum on the queries", "As many of any kind")
    return Grid(head, tuple(rows), OVERVIEW, "influence_groups")


def _extremes(found: Influence) -> Grid:
    chosen = np.argsort(-found.query_score, kind="stable")[:NUM_EVENTS]
    names = [name for name in COLUMNS if name in found.events.observable_names]
    columns = [found.events.observable_names.index(name) for name in names]
    rows: list[tuple[Any, ...]] = []
    for q in chosen:
        events = found.events
        own = (number(float(events.observables[q, c])) for c in columns)
        title = Markup("<b>event {}</b>").format(int(events.event_id[q]))
        score = Markup("score {}").format(number(float(found.query_score[q])))
        rows.append((title, sample_html(events.sample_names[events.sample[q]]), score, *own))
        for role, at, values in _roles(found):
            for one, value in zip(at[q][:3], values[q][:3], strict=True):
                shown = (number(float(found.train_observables[one, c])) for c in columns)
                rows.append(
                    (
                        f"towards {role}",
                        sample_html(events.sample_names[found.train_sample[one]]),
                        number(float(value), 2),
                        *shown,
                    )
                )
    head = ("", "Process", "Influence", *(observable_html(name) for name in names))
    caption = Markup(EXTREMES).format(score_name(found.score), NUM_EVENTS, found.query)
    return Grid(head, tuple(rows), caption, "influence_extremes")


OVERVIEW = (
    "Training events by process. Mean of each alone: what an event does to itself, or how hard it is, with the error "
    "of the mean. Sum on the queries: predicted change of their score (log-odds of signal) by having trained on these "
    "events, mean over the queries; positive towards signal; error √Σ of squares. As many of any kind: number of "
    "events times the mean over all. Every score has its own unit: compare processes, not scores. The CSV has all "
    "groups."
)
EXTREMES = (
    "{}: the training events that push a test event most towards signal and most towards background, for the {} "
    "queries ({}) with the highest score. Such events are alike, not necessarily causes: whether leaving them out "
    "changes the score is what <code>hepx influence validate</code> asks."
)
