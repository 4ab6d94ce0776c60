"""Systematic variations: what metrics.json and the explanations under them say, as tables, grids and one figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullLocator

from hepx.config import read_yaml
from hepx.metrics import weighted_mean
from hepx.report import style
from hepx.report.grid import Grid, object_html
from hepx.report.grids import count, method_name
from hepx.report.saved import Saved
from hepx.report.tables import Table, plus_minus

CLASSES = ("signal", "background")
COLORS = {"signal": style.SIGNAL_COLORS[0], "background": style.BACKGROUND_COLORS[0]}


def variation_table(saved: Saved) -> Table:
    """One row per variation and quantity: AUC, yield of each sample, and yields of the classes above each cut."""
    rows: list[tuple[Any, ...]] = []
    for one in saved.variations:
        name, auc = one["variation"], one["auc"]
        nominal = auc["value"] - auc["difference"]
        rows.append((name, "auc", None, auc["value"], nominal, auc["difference"], auc["difference_error"]))
        rows += [(name, f"yield of {entry['sample']}", None, *_numbers(entry)) for entry in one["yields"]]
        for cut in one["cuts"]:
            above = cut["signal_efficiency"]
            rows += [(name, f"yield of all {entry['class']}", above, *_numbers(entry)) for entry in cut["yields"]]
    columns = ("variation", "what", "signal_efficiency", "value", "nominal", "difference", "difference_error")
    return Table(columns, tuple(rows))


def _numbers(entry: dict[str, Any]) -> tuple[float, ...]:
    return tuple(entry[name] for name in ("value", "nominal", "difference", "difference_error"))


def changes(saved: Saved) -> Table:
    """Relative change of the yield of each class in percent, before and after the loosest cut on the score."""
    rows = []
    for one in saved.variations:
        cut = max(one["cuts"], key=lambda cut: float(cut["signal_efficiency"]), default=None)
        for name in CLASSES:
            own = [e for e in one["yields"] if e["class"] == name]
            rows.append((one["variation"], name, None, *_relative(own)))
            if cut is not None:
                own = [e for e in cut["yields"] if e["class"] == name]
                rows.append((one["variation"], name, cut["signal_efficiency"], *_relative(own)))
    return Table(("variation", "class", "signal_efficiency", "change", "error"), tuple(rows))


def _relative(entries: list[dict[str, Any]]) -> tuple[float, float]:
    """Change and error in percent of the sum of the entries, which share no event; NaN without a nominal yield."""
    nominal = sum(entry["nominal"] for entry in entries)
    if nominal <= 0:
        return math.nan, math.nan
    error = math.sqrt(sum(entry["difference_error"] ** 2 for entry in entries))
    return 100 * sum(entry["difference"] for entry in entries) / nominal, 100 * error / nominal


def attribution_table(saved: Saved) -> Table:
    """Mean change of an object's attribution under a variation, over the explained events that both have, per class."""
    rows = []
    for name, varied in saved.varied.items():
        method, _, variation = name.partition("@")
        nominal = saved.explanations.get(method)
        if nominal is None or nominal.values.ndim != 2 or varied.values.shape[1:] != nominal.values.shape[1:]:
            continue
        _, one, other = np.intersect1d(nominal.events.event_id, varied.events.event_id, return_indices=True)
        change, weight = varied.values[other] - nominal.values[one], nominal.events.weight[one]
        labels = np.array(nominal.events.sample_labels)[nominal.events.sample[one]]
        for label, kind in ((1, "signal"), (0, "background")):
            chosen = labels == label
            for i, slot in enumerate(nominal.events.slots):
                mean, error = weighted_mean(change[chosen, i], weight[chosen]) if chosen.any() else (math.nan, math.nan)
                rows.append((variation, method, kind, slot, int(chosen.sum()), mean, error))
    return Table(("variation", "method", "class", "object", "events", "change", "error"), tuple(rows))


def variation_grids(saved: Saved) -> dict[str, Grid]:
    """Grids of the section on systematic variations, those that have rows."""
    grids = {"variations": _grid(saved), "varied_objects": _attribution_grid(attribution_table(saved))}
    return {name: grid for name, grid in grids.items() if grid.rows}


def _grid(saved: Saved) -> Grid:
    table, rows = changes(saved), []
    efficiencies = [value for value in dict.fromkeys(table.column("signal_efficiency")) if value is not None]
    for one in saved.variations:
        cells = []
        for efficiency in (None, *efficiencies):
            for name in CLASSES:
                (found,) = table.where(
                    **{"variation": one["variation"], "class": name, "signal_efficiency": efficiency}
                ).dicts()
                cells.append(_signed(found["change"], found["error"]))
        auc, moved = one["auc"], f"+{count(one['gained'])} −{count(one['lost'])}"
        difference = _signed(auc["difference"], auc["difference_error"])
        rows.append((one["variation"], describe(saved, one["variation"]), moved, difference, *cells))
    above = [Markup(f" above the cut for ε<sub>s</sub> = {100 * value:g} %") for value in efficiencies]
    head = [Markup("Δ {} [%]").format(name + where) for where in (Markup(""), *above) for name in CLASSES]
    caption = (
        "The classifier on varied test events, minus nominal: events that the selection gains and loses, AUC, and "
        "weighted yields in percent, before and after the cut on the score that keeps this share of the nominal "
        "signal. The same events are compared, so the errors (bootstrap for the AUC, √ΣΔw² for yields) are those of "
        "the differences; 0 without an error: no event changed sides. Training is nominal."
    )
    return Grid(("Variation", "What", "Events", "Δ AUC", *head), tuple(rows), caption, "variations")


def _signed(value: float, error: float) -> str:
    if not math.isfinite(value):
        return "–"
    return plus_minus(value, error, signed=True) if error > 0 else ("0" if value == 0 else f"{value:+.3g}")


def describe(saved: Saved, variation: str) -> str:
    """What a variation changes, in words, from the config of the run."""
    settings = read_yaml(saved.config)["data"].get("variations", {}).get(variation, {}) if saved.config else {}
    scales = settings.get("scale", {}).items()
    parts = [f"{what} × {f'({size})' if isinstance(size, str) else size}" for what, size in scales]
    parts += [f"{what} smeared by {size}" for what, size in settings.get("smear", {}).items()]
    parts += [f"{name} → {other}" for name, other in settings.get("branches", {}).items()]
    parts += [f"tree {settings['tree']}"] if settings.get("tree") else []
    parts += [f"only {', '.join(settings['samples'])}"] if settings.get("samples") else []
    return "; ".join(parts)


def _attribution_grid(table: Table) -> Grid:
    slots = tuple(dict.fromkeys(table.column("object")))
    rows = []
    for key in dict.fromkeys(zip(*(table.column(name) for name in ("variation", "method", "class")), strict=True)):
        found = table.where(**dict(zip(("variation", "method", "class"), key, strict=True))).dicts()
        cells = [plus_minus(one["change"], one["error"], signed=True) for one in found]
        rows.append((key[0], method_name(key[1]), key[2], count(found[0]["events"]), *cells))
    caption = (
        "Mean change of an object's attribution under a variation, in logits, over the explained events that both have."
    )
    head = ("Variation", "Method", "Class", "Events", *map(object_html, slots))
    return Grid(head, tuple(rows), caption, "varied_objects")


def draw(saved: Saved) -> dict[str, Canvas]:
    """Change of the AUC and of the yields under each variation."""
    names = [one["variation"] for one in saved.variations]
    table = changes(saved)
    figure = style.canvas(style.WIDTH, 1.9 + 0.36 * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.5))
    place = np.arange(len(names))
    auc = [one["auc"] for one in saved.variations]
    values, errors = ([1000 * one[key] for one in auc] for key in ("difference", "difference_error"))
    left.errorbar(values, place, xerr=errors, fmt="o", color="black", elinewidth=1.2)
    left.set_xlabel(r"$\Delta$ AUC  [$\mathrm{10^{-3}}$]")
    efficiencies = dict.fromkeys(table.column("signal_efficiency"))
    for i, (name, efficiency) in enumerate((name, value) for value in efficiencies for name in CLASSES):
        part = table.where(**{"class": name, "signal_efficiency": efficiency})
        label = name if efficiency is None else rf"{name}, cut at $\varepsilon_s$ = {100 * efficiency:g} %"
        right.errorbar(
            part.array("change"),
            place + 0.15 * (i - len(efficiencies) + 0.5),
            xerr=part.array("error"),
            fmt="os"[name == "background"],
            mfc=COLORS[name] if efficiency is None else "white",
            color=COLORS[name],
            label=label,
            elinewidth=1.2,
        )
    right.set_xlabel(r"$\Delta$ yield  [%]")
    left.set_yticks(place, [name.replace("_", " ") for name in names])
    left.set_ylim(len(names) - 0.4, -1.1 - 0.5 * len(efficiencies))
    right.legend(loc="upper center", ncols=2, fontsize=9.5)
    for axes in (left, right):
        axes.axvline(0, color="grey", lw=1)
        axes.tick_params(axis="y", which="both", length=0)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.1)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="0.9", lw=0.8)
    style.stamp(figure, saved)
    return {"": figure}
