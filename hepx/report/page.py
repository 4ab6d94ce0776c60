"""The page: what stands in each section, in words and tables, around the figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from hepx import files
from hepx.kinematics import OBSERVABLES
from hepx.report import derive, influence_validation
from hepx.report.audit import audit_grids
from hepx.report.closure import closure_grids
from hepx.report.distill import distill_grids
from hepx.report.figures import draw_figures, write_tables
from hepx.report.grid import object_html, observable_html, template
from hepx.report.grids import (
    count,
    make_grids,
    method_name,
    named_values,
    percent,
    shared_provenance,
)
from hepx.report.influence import influence_grids
from hepx.report.performance import performance_grids
from hepx.report.saved import Saved, load_saved
from hepx.report.tables import number, plus_minus
from hepx.report.validation import validation_grids
from hepx.report.variations import variation_grids
from hepx.results import ObservableLink

SIGNIFICANT = 2.0  # standard deviations below which a difference is not called one


def make_report(run: Path) -> Path:
    """Write report.html, figures/ and tables/ of a run folder; returns the path of report.html.

    Raises ResultError if the data set or the metrics are missing; sections without results are left out.
    """
    saved = load_saved(run)
    tables = write_tables(saved)
    pictures = draw_figures(saved)
    page = template("template.html").render(
        saved=saved,
        name=run.resolve().name,
        pictures=pictures,
        grids=make_grids(saved, tables)
        | performance_grids(saved)
        | variation_grids(saved)
        | validation_grids(saved)
        | closure_grids(saved)
        | audit_grids(saved)
        | distill_grids(saved)
        | influence_grids(saved)
        | (influence_validation.grids(saved.influence_validation) if saved.influence_validation else {}),
        influence_facts=influence_validation.facts(saved.influence_validation) if saved.influence_validation else "",
        summary=summary(saved),
        facts=_facts(saved),
        verdict=_verdict(saved),
        result_problems=_problems(saved),
        symmetries={name: percent(value) for name, value in saved.metrics.get("symmetries", {}).items()},
        choices=derive.choices(saved.objects, saved.labels) if saved.objects else (),
        moved={name: object_html(curve.moved) for name, curve in saved.responses.items()},
        observable={name: observable_html(curve.observable) for name, curve in saved.responses.items()},
    )
    path = run / "report.html"
    files.write_text(path, page)
    return path


# Summary ----------------------------------------------------------------------------------------------------------


def summary(saved: Saved) -> tuple[tuple[str, Markup], ...]:
    """The five lines a physicist reads first: what, and what was found."""
    folder = escape(saved.run)
    return (
        ("Separation", _separation(saved)),
        ("Attributions follow", _strongest_link(saved)),
        ("Completeness", _completeness(saved)),
        ("Experts", _verdict(saved)),
        ("Files", Markup(f"figures/ (pdf, png) and tables/ (csv), beside {folder}/report.html")),
    )


def summary_lines(run: Path) -> list[str]:
    """The summary of the report as plain lines for a terminal."""
    return [f"{what}: {_plain(text)}" for what, text in summary(load_saved(run))]


def _plain(text: Markup) -> str:
    marked = str(text).replace("<sub>", "_").replace("<sup>", "^")
    return Markup(re.sub(r"<[^>]*>", "", marked)).unescape()


def _separation(saved: Saved) -> Markup:
    values = saved.metrics
    auc = plus_minus(values["auc"]["value"], values["auc"]["error"])
    text = f"weighted AUC {auc} on {count(values['events'])} test events"
    best = max(values.get("references", []), key=lambda reference: reference["auc"]["value"], default=None)
    if best is not None:
        auc = plus_minus(best["auc"]["value"], best["auc"]["error"])
        text += f"; {_difference(best)} {escape(best['name'])} ({auc})"
    return Markup(text)


def _difference(reference: dict[str, Any]) -> str:
    """What the paired difference allows to say."""
    value, error = (reference["difference"]["auc"][key] for key in ("value", "error"))
    if abs(value) <= SIGNIFICANT * error:  # of a classifier that is the reference itself both are 0
        return "not distinguishable from"
    return f"{'better' if value > 0 else 'worse'} by {plus_minus(abs(value), error)} than"


def _strongest_link(saved: Saved) -> Markup:
    above = [link for link in saved.links if link.strength > link.null]
    if not saved.links:
        return Markup("no observable links were computed")
    if not above:
        return Markup("no observable more than a shuffled one")
    best = max(above, key=lambda link: link.strength)
    rivals = [link for link in above if link is not best and _close(link, best)]
    also = (
        f"; not distinguishable from it: {', '.join(observable_html(r.observable) for r in rivals)}" if rivals else ""
    )
    return Markup(
        f"{observable_html(best.observable)} most: inside a process the mean attribution of {_objects(best)} varies by "
        f"{plus_minus(best.strength, best.error)} logit with it, by {number(best.null, 2)} when shuffled (95 %){also}"
    )


def _close(first: ObservableLink, second: ObservableLink) -> bool:
    error = (first.error**2 + second.error**2) ** 0.5
    return abs(first.strength - second.strength) < SIGNIFICANT * error


def _objects(link: ObservableLink) -> str:
    return ", ".join(object_html(slot) for slot in link.objects)


def _completeness(saved: Saved) -> Markup:
    if not saved.explanations:
        return Markup("no attributions were computed")
    rows = [row for row in derive.completeness(saved).dicts() if row["relative"] is not None]
    parts = [f"{method_name(row['method'])} {percent(row['relative'])}" for row in rows]
    return Markup("attributions miss score − baseline score by: " + ", ".join(parts) + " (root mean square, relative)")


def _verdict(saved: Saved) -> Markup:
    """The verdict on the experts with observables as in a paper."""
    if saved.experts is None:
        return Markup("no expert analysis in this run")
    names = "|".join(sorted(OBSERVABLES, key=len, reverse=True))
    text = str(escape(saved.experts.verdict))
    return Markup(re.sub(rf"\b({names})\b", lambda match: observable_html(match[1]), text))


# Facts ------------------------------------------------------------------------------------------------------------


def _facts(saved: Saved) -> tuple[tuple[str, str], ...]:
    """The numbers of the model, what all results share, and provenance.json, as name and value."""
    values = saved.metrics
    facts = {
        "model": f"{values['model'].replace('_', ' ')}, {count(values['parameters'])} parameters",
        "seed": values["seed"],
        "luminosity": f"{saved.luminosity:g} fb⁻¹",
        "split": _split(saved.dataset["split"]),
    }
    facts |= {name: value for name, value in shared_provenance(saved).items() if name not in facts}
    for name, value in (saved.provenance or {}).items():
        facts.setdefault(name, named_values(value) if isinstance(value, dict) else value)
    return tuple((name, str(value)) for name, value in facts.items())


def _split(split: dict[str, Any]) -> str:
    """How the events are split, in words."""
    if "folds" in split:
        return f"fold {split['fold']} of {split['folds']} by event number"
    return " / ".join(f"{share:g}" for share in split["fractions"]) + " (train, validation, test), by event number"


def _problems(saved: Saved) -> list[str]:
    """Results that do not belong together: made from other checkpoints or other data."""
    found = saved.provenances().values()
    checkpoints, data = {provenance.checkpoint for provenance in found}, {provenance.data for provenance in found}
    return [
        f"The results come from {len(values)} different {what} ({', '.join(sorted(values))}); run `hepx explain` again."
        for what, values in (("checkpoints", checkpoints), ("data sets", data))
        if len(values) > 1
    ]
