"""Event displays: the transverse plane with the attribution of every object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Circle
from matplotlib.ticker import NullLocator

from hepx.report import derive, style
from hepx.report.saved import Saved
from hepx.report.tables import fixed, plus_minus
from hepx.results import Array, Explanation

SHOWN = ("mbb", "mt", "mct", "met")
COLORMAP = "coolwarm"  # its middle is grey: an arrow of no importance can still be seen
_NEAREST = np.deg2rad(30)  # between two labels on the circle around the display


def displays(saved: Saved) -> dict[str, Canvas]:
    """One figure per chosen event."""
    explanation = saved.objects
    assert explanation is not None
    chosen = derive.choices(explanation, saved.labels)
    norm = style.symmetric(explanation.values[[choice.index for choice in chosen]])
    return {choice.key: _display(saved, explanation, choice, norm) for choice in chosen}


def _display(saved: Saved, explanation: Explanation, choice: derive.Choice, norm: Normalize) -> Canvas:
    figure = style.canvas(style.WIDTH, 4.7)
    plane, bars = figure.subplots(1, 2, width_ratios=(1.3, 1))
    table, i = explanation.events, choice.index
    slots = np.flatnonzero(table.mask[i])
    features = dict(zip(table.features, table.x[i].T, strict=True))
    colors = [colormaps[COLORMAP](norm(value)) for value in explanation.values[i]]
    draw_plane(
        plane,
        [
            Arrow(
                name=object_name(table.slots[slot], int(table.truth_parent[i, slot]))
                + "\n"
                + _value(explanation, i, slot),
                pt=float(features["pt"][slot]),
                phi=float(features["phi"][slot]),
                dashed=table.types[slot] == "met",
                color=colors[slot],
            )
            for slot in slots.tolist()
        ],
    )
    _bars(bars, slots, colors, explanation, i)
    bars.set_title(f"{choice.title}: {style.sample_label(choice.sample)}", fontsize=11.5, loc="left")
    style.stamp(figure, saved)
    return figure


@dataclass(frozen=True)
class Arrow:
    """An object in the transverse plane: what stands at its end, pt (GeV), phi, and how it is drawn."""

    name: str
    pt: float
    phi: float
    dashed: bool
    color: tuple[float, ...]


def draw_plane(axes: Axes, arrows: Sequence[Arrow]) -> None:
    """Arrows of length pT from the collision point; E_T^miss dashed; their names on the circle around."""
    radius, phi = _ring(max(arrow.pt for arrow in arrows)), np.array([arrow.phi for arrow in arrows])
    free = widest_gap(phi)
    for share in (0.5, 1.0):
        axes.add_patch(Circle((0, 0), share * radius, fill=False, color="0.82", lw=1))
        label = f"{share * radius:g} GeV"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        place = (share * radius * np.cos(free), share * radius * np.sin(free))
        axes.text(*place, label, color="0.45", fontsize=8.5, va="center", ha="center", bbox=box)
    angles = spread(phi, min(_NEAREST, 6 / len(arrows)))
    for arrow, angle in zip(arrows, angles, strict=True):
        tip = (arrow.pt * float(np.cos(arrow.phi)), arrow.pt * float(np.sin(arrow.phi)))
        _arrow(axes, tip, arrow.color, arrow.dashed, radius)
        place = (1.13 * radius * np.cos(angle), 1.13 * radius * np.sin(angle))
        axes.plot([tip[0], place[0]], [tip[1], place[1]], ":", color="0.6", lw=0.8, zorder=1)
        side = "left" if np.cos(angle) > 0.12 else "right" if np.cos(angle) < -0.12 else "center"
        height = "bottom" if np.sin(angle) > 0.5 else "top" if np.sin(angle) < -0.5 else "center"
        axes.text(*place, arrow.name, ha=side, va=height, fontsize=10.5)
    axes.plot(0, 0, "o", color="black", ms=4, zorder=5)
    axes.set_xlim(-1.8 * radius, 1.8 * radius)
    axes.set_ylim(-1.42 * radius, 1.42 * radius)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _arrow(axes: Axes, tip: tuple[float, float], color: tuple[float, ...], dashed: bool, radius: float) -> None:
    """A flat arrow with an outline; the shaft of a dashed one is cut into pieces."""
    length, angle = float(np.hypot(*tip)), float(np.arctan2(tip[1], tip[0]))
    head = min(0.13 * radius, 0.6 * length)
    half = 0.018 * radius
    num_pieces = max(2, round((length - head) / (0.085 * radius))) if dashed else 1
    edges = np.linspace(0, length - head, num_pieces + 1)
    filled = 0.62 if dashed else 1.0
    shapes = [_box(low, low + filled * (high - low), half) for low, high in pairwise(edges)]
    shapes.append(np.array([(length - head, -0.42 * head), (length, 0), (length - head, 0.42 * head)]))
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    axes.add_collection(
        PolyCollection(
            [shape @ turn for shape in shapes], facecolors=[color], edgecolors="0.2", linewidths=0.7, zorder=3
        )
    )


def _box(low: float, high: float, half: float) -> Array:
    return np.array([(low, -half), (high, -half), (high, half), (low, half)])


def object_name(slot: str, truth_parent: int) -> str:
    """An object with its true parent in brackets, where that is known."""
    parent = style.parent_label(truth_parent)
    return style.object_label(slot) + (f" ({parent})" if parent else "")


def _value(e: Explanation, i: int, slot: int) -> str:
    assert e.error is not None
    return plus_minus(float(e.values[i, slot]), float(e.error[i, slot]), signed=True)


def spread(angles: Array, nearest: float) -> Array:
    """Angles moved apart until neighbours are at least `nearest` from each other, order kept.

    >>> spread(np.array([0.0, 0.0]), 0.2).round(2).tolist()
    [-0.1, 0.1]
    """
    order = np.argsort(angles, kind="stable")
    moved = angles[order].astype(np.float64)
    for _ in range(200):
        gap = np.diff(np.append(moved, moved[0] + 2 * np.pi))
        missing = np.maximum(nearest - gap, 0)
        if missing.max() < 1e-9:
            break
        moved += (np.roll(missing, 1) - missing) / 2
    result = np.empty_like(moved)
    result[order] = moved
    return result


def widest_gap(angles: Array) -> float:
    """The direction in the middle of the widest gap between the angles.

    >>> round(widest_gap(np.array([0.0, 1.0, -1.0])), 2)
    3.14
    """
    ordered = np.sort(angles)
    gaps = np.diff(np.append(ordered, ordered[0] + 2 * np.pi))
    return float(ordered[np.argmax(gaps)] + gaps.max() / 2)


def _ring(largest: float) -> float:
    """A round number just above the largest pT."""
    power = 10.0 ** np.floor(np.log10(max(largest, 1.0)))
    return float(power * min(step for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= 0.98 * largest))


def _bars(axes: Axes, slots: Array, colors: list[tuple[float, ...]], e: Explanation, i: int) -> None:
    """Attributions with their errors, and the numbers of the event."""
    assert e.error is not None
    for y, slot in enumerate(slots):
        axes.barh(y, e.values[i, slot], 0.6, color=colors[slot], edgecolor="0.25", lw=0.8)
        axes.errorbar(e.values[i, slot], y, xerr=e.error[i, slot], fmt="none", color="black", capsize=2.5)
    axes.plot([0, 0], [-0.6, len(slots) - 0.4], color="black", lw=0.8)
    axes.set_yticks(range(len(slots)), [style.object_label(e.events.slots[slot]) for slot in slots])
    axes.set_ylim(len(slots) - 0.4 + 0.33 * len(slots), -0.6)
    axes.tick_params(axis="y", which="both", length=0)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)
    axes.set_xlabel(r"Attribution $\varphi_i$  [logit]")
    axes.text(0.03, 0.03, _summary(e, i), transform=axes.transAxes, va="bottom", fontsize=10.5, linespacing=1.35)


def _summary(e: Explanation, i: int) -> str:
    table = e.events
    assert e.baseline_score is not None
    score, baseline = fixed(float(e.score[i]), 2, signed=True), fixed(float(e.baseline_score[i]), 2, signed=True)
    lines = [f"score {score},  baseline {baseline}"]
    known = [name for name in SHOWN if name in table.observable_names and np.isfinite(table.observable(name)[i])]
    units = dict(zip(table.observable_names, table.observable_units, strict=True))
    numbers = [f"{style.observable_label(n)} = {table.observable(n)[i]:.0f} {units[n]}" for n in known]
    return "\n".join([*lines, *(",  ".join(numbers[k : k + 2]) for k in range(0, len(numbers), 2))])
