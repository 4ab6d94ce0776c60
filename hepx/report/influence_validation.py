"""How right scores of training events are: the table score × test, the verdicts and the figure, from validate.json."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure as Canvas

from hepx import files
from hepx.report import style
from hepx.report.grid import Grid, template
from hepx.report.grids import count
from hepx.report.influence import score_name
from hepx.report.saved import Saved
from hepx.report.tables import fixed, plus_minus

NOTHING = "–"
TITLES = {
    "lds": "Halves",
    "drop": "1 % removed",
    "single": "1 event removed",
    "exact": "Metagradient",
    "jes": "Wrong jet energy",
    "mass": "Wrong mass point",
    "twin": "Near copies",
    "mechanism": "Mechanism",
}
PREFIXES = {"flips": "Wrong labels", "brittle": "Support removed"}
BLUE, GREY = "#0072b2", "#767676"
CAPTION = (
    "Scores of training events against real retrainings. Halves (LDS), 1 % removed, 1 event removed: rank "
    "correlation of predicted and real scores of test events over sets of training events, mean over test events."
    " Metagradient: rank correlation with the exact derivative, over training events. Wrong labels, jet energy, "
    "mass point: AUROC of a number per training event for those hidden. Near copies: mean reciprocal rank of the "
    "copy of a test event. Mechanism: share of the 20 most influential events that obey the planted mechanism of "
    "the test event. Support removed: fall of the score (log-odds) when the events that support a decision most "
    "are taken away and the network is trained again. Oracle: the planted log-odds of the wrong label. Event "
    "weight: its size alone. A score that knows no pairs pushes every test event towards the label of the "
    "training event. Errors: of the mean of several trainings, and of the sets of events where there are such. "
    "Bold: more than two standard deviations above the loss, and above chance. All numbers: influence/validate.csv."
)


def title(test: str) -> str:
    """The head of a column."""
    word, _, share = test.partition(" ")
    return f"{PREFIXES[word]}, {share}" if word in PREFIXES else TITLES.get(test, test)


def grids(found: Mapping[str, Any]) -> dict[str, Grid]:
    """The table and the verdicts."""
    columns = _columns(found["rows"])
    cells = {(row["score"], row["test"], row["models"]): row for row in found["rows"]}
    names = dict.fromkeys(row["score"] for row in found["rows"])
    rows = [(_name(name), *(_cell(cells.get((name, *column))) for column in columns)) for name in names]
    chance = [next(row["chance"] for row in found["rows"] if (row["test"], row["models"]) == one) for one in columns]
    rows.append(("chance", *(NOTHING if value is None else fixed(value, 3) for value in chance)))
    if found["ceiling"] is not None:
        ceiling = [fixed(found["ceiling"], 3) if test == "lds" else NOTHING for test, _ in columns]
        rows.append(("ceiling", *ceiling))
    head = ("Score", *(_head(test, models, columns) for test, models in columns))
    verdicts = tuple((one["what"], plus_minus(one["value"], one["error"]), _verdict(one)) for one in found["verdicts"])
    criteria = Grid(("Criterion or control", "Measured", ""), verdicts, "Criteria and negative controls")
    return {"influence_tests": Grid(head, tuple(rows), CAPTION), "influence_verdicts": criteria}


def _name(score: str) -> str:
    """A score, and what was done to it, in words."""
    name, comma, rest = score.partition(",")
    return score_name(name) + comma + rest


def facts(found: Mapping[str, Any]) -> str:
    """What the study was, in words."""
    settings, model = found["settings"], found["model"]
    text = (
        f"{found['study'][0].upper()}{found['study'][1:]}; {count(settings['train_events'])} training events, "
        f"{model['name'].replace('_', ' ')} of {count(found['num_parameters'])} parameters, {settings['models']} "
        f"trainings judged, {count(found['trainings'])} made in all."
    )
    if found["ceiling"] is not None:
        agree, most = (fixed(found[name], 2) for name in ("seed_correlation", "ceiling"))
        text += (
            f" On the halves one seed agrees with another to {agree}, so the most that any prediction can reach with "
            f"the mean of {settings['subset_seeds']} seeds is {most}."
        )
    for name, values in found["scans"].items():
        tried = ", ".join(f"{fixed(value, 2)} at {ridge}" for ridge, value in values.items())
        text += f" The λ of {score_name(name)} was chosen on other halves (LDS {tried})."
    return text


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Test and number of models of every column, in order."""
    return list(dict.fromkeys((row["test"], row["models"]) for row in rows))


def _head(test: str, models: int, columns: Sequence[tuple[str, int]]) -> str:
    several = sum(name == test for name, _ in columns) > 1
    return f"{title(test)}, {models} model{'s' if models > 1 else ''}" if several else title(test)


def _cell(row: Mapping[str, Any] | None) -> Any:
    if row is None:
        return NOTHING
    text = fixed(row["value"], 3) + ("" if row["error"] is None else f" ± {row['error']:.3f}")
    better, chance, error = row["better"], row["chance"], row["error"] or 0.0
    found = better is not None and better > 2 and (chance is None or row["value"] > chance + 2 * error)
    return Markup("<b>{}</b>").format(text) if found else text


def _verdict(one: Mapping[str, Any]) -> Markup:
    text, kind = ("met", "pass") if one["passed"] else ("missed", "miss")
    return Markup('<span class="{}">{}</span>').format(kind, text)


def figure(found: Mapping[str, Any]) -> Canvas:
    """LDS of every score, of single models and of their mean, with the ceiling."""
    rows = [row for row in found["rows"] if row["test"] == "lds"]
    of_mean = {row["score"]: row for row in rows if row["models"] > 1}
    of_one = {row["score"]: row for row in rows if row["models"] == 1}
    names = sorted(of_mean, key=lambda name: of_mean[name]["value"])
    canvas = style.canvas(7.2, 1.3 + 0.34 * len(names))
    axes = canvas.subplots()
    for place, name in enumerate(names):
        row = of_mean[name]
        axes.errorbar(row["value"], place + 0.1, xerr=row["error"], fmt="o", color=BLUE, ms=6, capsize=2)
        if name in of_one:
            one = of_one[name]
            axes.errorbar(
                one["value"], place - 0.2, xerr=one["error"], fmt="o", color=GREY, mfc="white", ms=5, capsize=2
            )
    axes.plot([], [], "o", color=BLUE, label=f"mean of {found['settings']['models']} models")
    axes.plot([], [], "o", color=GREY, mfc="white", label="one model")
    axes.axvline(0, color="black", lw=0.8)
    if found["ceiling"] is not None:
        axes.axvline(found["ceiling"], color="black", lw=1.2, ls="--", label="ceiling (noise of the seeds)")
    axes.set_yticks(range(len(names)), [_name(name) for name in names])
    axes.tick_params(axis="y", which="both", length=0)
    axes.minorticks_off()
    ends = [row["value"] + sign * row["error"] for row in rows for sign in (-1, 1)] + [found["ceiling"] or 0.0]
    axes.set_xlim(min(ends) - 0.03, max(ends) + 0.03)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlabel("LDS: rank correlation with retrainings on half of the events")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncol=3, columnspacing=1.2, handletextpad=0.4)
    canvas.suptitle(rf"$\mathbf{{hepx}}$  Influence   {found['study']}", x=0.01, ha="left", fontsize=11.5)
    return canvas


def figure_of(saved: Saved) -> dict[str, Canvas]:
    """The figure for the report of a run."""
    assert saved.influence_validation is not None
    has_lds = any(row["test"] == "lds" for row in saved.influence_validation["rows"])
    return {"": figure(saved.influence_validation)} if has_lds else {}


def markdown(found: Mapping[str, Any]) -> str:
    """The table for a README."""
    table = grids(found)["influence_tests"]
    lines = [f"| {' | '.join(table.head)} |", "|" + "---|" * len(table.head)]
    cells = ((str(cell).replace("<b>", "**").replace("</b>", "**") for cell in row) for row in table.rows)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)]) + "\n"


def make_influence_page(folder: Path, names: Sequence[str]) -> Path:
    """Write validation.html, .md tables and figures from FOLDER/NAME/validate.json; returns the path of the page."""
    sections = []
    for name in names:
        found = files.read_json(folder / name / "validate.json")
        picture = ""
        if any(row["test"] == "lds" for row in found["rows"]):
            with style.style():
                rendered = style.render(figure(found))
            for kind, content in rendered.items():
                with files.atomic(folder / name / f"lds.{kind}") as temporary:
                    temporary.write_bytes(content)
            picture = base64.b64encode(rendered["png"]).decode()
        files.write_text(folder / name / "validate.md", markdown(found))
        sections.append(
            {"name": name.replace("_", " "), "facts": facts(found), "picture": picture, "grids": grids(found)}
        )
    page = template("influence_validation.html").render(sections=sections)
    files.write_text(folder / "validation.html", page)
    return folder / "validation.html"
