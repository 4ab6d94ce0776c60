"""The page of the planted-truth suite: method against mechanism, made from planted.json alone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from hepx import files
from hepx.errors import ResultError
from hepx.report import style
from hepx.report.grid import Grid
from hepx.report.grids import count

COLUMNS = {
    "mass": ("mass", "share of Σ|attribution| on the true objects, mean over events"),
    "rank": ("rank", "share of the true objects among as many strongest ones"),
    "pointing": ("pointing", "share of events whose strongest object is a true one"),
    "feature_mass": ("feature mass", "share of Σ|attribution| on the true features"),
    "pair_hit": ("pair hit", "share of events whose strongest pair is the true one"),
    "pair_mass": ("pair mass", "share of Σ|pair| on the true pair"),
    "closure": ("closure", "correlation with the reference values of the Bayes-optimal score"),
    "pair_closure": ("pair closure", "the same for pairs, with its Shapley interactions"),
    "completeness": ("compl. error", "rms of what is missing to the change of the score, relative"),
    "exactness": ("exactness", "largest deviation from the closed form of a hand-made network, logit"),
    "null": ("null", "largest |mean attribution| of an object in standard errors, where labels are coin flips"),
    "shortcut": ("shortcut", "the planted leak is the strongest feature (1) or not (0)"),
}
GREEN, ORANGE, GREY = "#00705a", "#d55e00", "#767676"
VERDICTS = {"pass": GREEN, "fail": ORANGE}
SHADES = {"pass": "#cfe8e0", "fail": "#f8d9c4"}
NOTHING = "–"


def make_planted(folder: Path) -> Path:
    """Write planted.html, planted.md and figures/planted.{png,pdf}; returns the path of the page."""
    path = folder / "planted.json"
    if not path.exists():
        raise ResultError(f"there is no '{path}'. Make it: hepx validate planted.")
    suite = files.read_json(path)
    with style.style():
        rendered = style.render(_figure(suite))
    for kind, content in rendered.items():
        with files.atomic(folder / "figures" / f"planted.{kind}") as temporary:
            temporary.write_bytes(content)
    files.write_text(folder / "planted.md", markdown(suite))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    settings = suite["settings"]
    page = environment.get_template("planted.html").render(
        base=suite["base"][0].upper() + suite["base"][1:],
        train_events=count(settings["train_events"]),
        seed=settings["seed"],
        picture=base64.b64encode(rendered["png"]).decode(),
        gates=_gates(suite),
        sections=list(_sections(suite)),
        criteria=_criteria(suite),
    )
    files.write_text(folder / "planted.html", page)
    return folder / "planted.html"


def columns_of(suite: dict[str, Any]) -> list[tuple[str, str]]:
    """Mechanism and network of every column of the table, in order."""
    return list(dict.fromkeys((row["mechanism"], row["network"]) for row in suite["rows"]))


def headline(row: dict[str, Any]) -> float | None:
    """The one number of a cell: relevance mass on objects, else on features, else closure."""
    measures = row["measures"]
    found = (measures[name] for name in ("mass", "feature_mass", "pair_mass", "closure"))
    return next((value for value in found if value is not None), None)


def markdown(suite: dict[str, Any]) -> str:
    """Method × mechanism for a README: relevance mass, pair hit rate behind it; bold where every criterion is met."""
    rows = {(row["mechanism"], row["network"], row["method"]): row for row in suite["rows"]}
    columns = [key for key in columns_of(suite) if key[1] != "hand-made"]
    heads = [name if network == "trained" else f"{name}, {network}" for name, network in columns]
    lines = [f"| method | {' | '.join(heads)} |", "|" + "---|" * (len(columns) + 1)]
    for method in dict.fromkeys(row["method"] for row in suite["rows"]):
        cells = [_markdown_cell(rows[(*key, method)]) for key in columns]
        lines.append(f"| {method.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _markdown_cell(row: dict[str, Any]) -> str:
    value, hit = headline(row), row["measures"]["pair_hit"]
    if value is None:
        return NOTHING
    text = f"{value:.2f}" + (f" / {hit:.2f}" if hit is not None else "")
    return f"**{text}**" if row["verdict"] == "pass" else text


def _gates(suite: dict[str, Any]) -> Grid:
    rows = []
    for gate in suite["gates"]:
        r = NOTHING if gate["correlation"] is None else f"{gate['correlation']:.3f}"
        passed = _mark("passes", "pass") if gate["passed"] else _mark("misses the gate", "miss")
        loss = f"{gate['bayes_auc'] - gate['auc']:+.4f}".replace("-", "−")
        auc = f"{gate['auc']:.4f} ± {gate['error']:.4f}"
        events = count(gate["num_train"])
        name = gate["mechanism"].replace("_", " ")
        rows.append((name, gate["network"], events, auc, f"{gate['bayes_auc']:.4f}", loss, r, passed))
    head = ("Mechanism", "Network", "Training events", "AUC", "Best possible", "Lost", "Correlation", "Gate")
    return Grid(head, tuple(rows), "AUC with the expected labels; its error from the drawn ones, by bootstrap.")


def _sections(suite: dict[str, Any]) -> Iterator[tuple[str, str, list[Grid]]]:
    for name, what in suite["mechanisms"].items():
        tables = []
        for network in dict.fromkeys(row["network"] for row in suite["rows"] if row["mechanism"] == name):
            rows = [row for row in suite["rows"] if (row["mechanism"], row["network"]) == (name, network)]
            tables.append(_table(rows, network))
        yield name.replace("_", " "), what, tables


def _table(rows: list[dict[str, Any]], network: str) -> Grid:
    shown = [name for name in COLUMNS if any(row["measures"][name] is not None for row in rows)]
    body = []
    for row in rows:
        cells = [_cell(row, name) for name in shown]
        time = f"{row['milliseconds']:.3g}" if row["num_events"] else NOTHING
        body.append((row["method"].replace("_", " "), *cells, row["num_events"] or NOTHING, time, _verdict(row)))
    caption = {
        "trained": "Trained network",
        "hand-made": "Network made by hand",
        "untrained": "Negative control: untrained network; nothing may pass",
        "shuffled": "Negative control: trained on shuffled labels; nothing may pass",
    }[network]
    head = ("Method", *(COLUMNS[name][0] for name in shown), "Events", "ms/event", "Verdict")
    return Grid(head, tuple(body), caption)


def _cell(row: dict[str, Any], name: str) -> Any:
    value = row["measures"][name]
    if value is None:
        return NOTHING
    text = f"{value:.0e}" if name == "exactness" else f"{value:.3f}"
    return _mark(text, "miss") if name in row["missed"] else text


def _mark(text: str, kind: str) -> Markup:
    return Markup('<span class="{}">{}</span>').format(kind, text)


def _verdict(row: dict[str, Any]) -> Markup:
    control = row["network"] in ("untrained", "shuffled")
    verdict = row["verdict"]
    if control and verdict in ("pass", "fail"):
        return _mark("fails, as it must", "quiet") if verdict == "fail" else _mark("passes: must not", "miss")
    return _mark(verdict, {"pass": "pass", "fail": "miss"}.get(verdict, "quiet"))


def _criteria(suite: dict[str, Any]) -> Grid:
    rows = [(head, suite["criteria"].get(name, ""), what) for name, (head, what) in COLUMNS.items()]
    return Grid(("Column", "Criterion", "Meaning"), tuple(rows), "Measures and what a method must reach")


def _figure(suite: dict[str, Any]) -> Canvas:
    """A cell per method and network: the headline number on the colour of the verdict."""
    columns = columns_of(suite)
    methods = list(dict.fromkeys(row["method"] for row in suite["rows"]))
    rows = {(row["mechanism"], row["network"], row["method"]): row for row in suite["rows"]}
    figure = style.canvas(2.4 + 0.66 * len(columns), 1.9 + 0.3 * len(methods))
    axes = figure.subplots()
    for i, method in enumerate(methods):
        for j, key in enumerate(columns):
            row = rows[(*key, method)]
            value, verdict = headline(row), row["verdict"]
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=SHADES.get(verdict, "#eeeeee"), lw=0))
            text = "×" if value is None else f"{value:.2f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=9, color=VERDICTS.get(verdict, GREY))
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_yticks(range(len(methods)), [method.replace("_", " ") for method in methods])
    heads = [
        name.replace("_", " ") + ("" if kind in ("trained", "hand-made") else f", {kind}") for name, kind in columns
    ]
    axes.set_xticks(range(len(columns)), heads, rotation=40, ha="left", rotation_mode="anchor")
    axes.tick_params(which="both", length=0, labeltop=True, labelbottom=False)
    axes.set_xticks(np.arange(0.5, len(columns) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(methods) - 1), minor=True)
    axes.grid(which="minor", color="white", lw=1.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.suptitle(r"$\mathbf{hepx}$  Planted truth   relevance mass", x=0.01, ha="left", fontsize=11.5)
    return figure
