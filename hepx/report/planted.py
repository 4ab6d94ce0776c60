"""The page of the planted-truth suite: method against mechanism, made from planted.json alone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from hepx import files
from hepx.errors import ResultError
from hepx.report import style
from hepx.report.grid import Grid, template
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
    "null": ("by chance", "probability of the largest |mean attribution| of an object, where labels are coin flips"),
    "shortcut": ("shortcut", "the planted leak is the strongest feature (1) or not (0)"),
    "unused": ("unused", "share of Σ|attribution| on the features that the truth does not use"),
}
GREEN, ORANGE, GREY = "#00705a", "#d55e00", "#767676"
VERDICTS = {"pass": GREEN, "fail": ORANGE}
SHADES = {"pass": "#cfe8e0", "fail": "#f8d9c4"}
NOTHING = "–"
EXPERTS, STATES, SYSTEMATICS = 3, 4, 5  # levels of the planted truth


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
    settings = suite["settings"]
    page = template("planted.html").render(
        base=suite["base"][0].upper() + suite["base"][1:],
        train_events=count(max((gate["num_train"] for gate in suite["gates"]), default=settings["train_events"])),
        seed=settings["seed"],
        picture=base64.b64encode(rendered["png"]).decode(),
        gates=_gates(suite),
        sections=list(_sections(suite)),
        facts=_facts(suite),
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
    """Method × mechanism for a README: relevance mass of the trained networks, bold where every criterion is met; over
    the mechanisms the range of the pair hit rate, the smallest closure, the mean time and how many are passed."""
    rows = {(row["mechanism"], row["method"]): row for row in suite["rows"] if row["network"] == "trained"}
    names = list(dict.fromkeys(name for name, _ in rows))
    heads = [*(name.replace("_", " ") for name in names), "pair hit", "closure", "ms/event", "passes"]
    lines = [f"| method | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for method in dict.fromkeys(method for _, method in rows):
        of_method = [rows[name, method] for name in names]
        cells = [*(_markdown_cell(row) for row in of_method), *_over_mechanisms(of_method)]
        lines.append(f"| {method.replace('_', ' ')} | {' | '.join(cells)} |")
    lines += ["", *_markdown_experts(suite)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_cell(row: dict[str, Any]) -> str:
    value, chance = headline(row), row["measures"]["null"]
    if value is None:
        return NOTHING if chance is None or row["verdict"] == "not judged" else f"p = {chance:.2f}"
    text = f"{value:.2f}" + ("*" if row["verdict"] == "refused" else "")
    return f"**{text}**" if row["verdict"] == "pass" else text


def _over_mechanisms(rows: list[dict[str, Any]]) -> list[str]:
    """Pair hit rate from–to, smallest closure, mean milliseconds per event, and how many of the judged are passed."""
    hits, closures = (
        [row["measures"][name] for row in rows if row["measures"][name] is not None] for name in ("pair_hit", "closure")
    )
    times = [row["milliseconds"] for row in rows if row["num_events"]]
    judged = [row["verdict"] == "pass" for row in rows if row["verdict"] in ("pass", "fail", "refused")]
    return [
        f"{min(hits):.2f}–{max(hits):.2f}" if hits else NOTHING,
        f"≥ {min(closures):.2f}".replace("-", "−") if closures else NOTHING,
        f"{float(f'{np.mean(times):.2g}'):g}" if times else NOTHING,
        f"{sum(judged)} of {len(judged)}" if judged else NOTHING,
    ]


def _markdown_experts(suite: dict[str, Any]) -> list[str]:
    """Analysis × mixture whose experts are known, bold where it finds what it must."""
    cases, table = _expert_table(suite)
    if not table:
        return []
    lines = [f"| analysis | {' | '.join(cases)} |", "|" + "---|" * (len(cases) + 1)]
    for analysis, found in table.items():
        cells = [_markdown_check(found.get(case, [])) for case in cases]
        lines.append(f"| {analysis} | {' | '.join(cells)} |")
    return lines


def _markdown_check(checks: list[dict[str, Any]]) -> str:
    if not checks:
        return NOTHING
    text = _value(checks[0])
    return f"**{text}**" if all(check["passed"] for check in checks) else text


def _expert_table(suite: dict[str, Any]) -> tuple[list[str], dict[str, dict[str, list[dict[str, Any]]]]]:
    """Mixtures, and analysis -> mixture -> what was asked."""
    of_experts = [check for check in suite["checks"] if check["level"] == EXPERTS]
    table: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for check in of_experts:
        table.setdefault(check["analysis"], {}).setdefault(check["case"], []).append(check)
    if "verdict" in table:
        table["verdict"] = table.pop("verdict")  # the last line
    return list(dict.fromkeys(check["case"] for check in of_experts)), table


def _value(check: dict[str, Any]) -> str:
    if check["value"] is None:
        return "right" if check["passed"] else "wrong"
    text = f"{check['value']:.3g}".replace("-", "−")
    if check["error"] is None:
        return text
    return f"{check['value']:.3f} ± {check['error']:.3f}".replace("-", "−").replace(" ", "\u00a0")


def _facts(suite: dict[str, Any]) -> dict[str, Grid]:
    """What must hold besides the table of the methods, by kind; a kind that nothing was asked of is left out."""
    cases, table = _expert_table(suite)
    others = [check for check in suite["checks"] if check["level"] not in (EXPERTS, STATES, SYSTEMATICS)]
    inside = [
        {**check, "what": f"{check['analysis']}: {check['what']}"}
        for check in suite["checks"]
        if check["level"] == STATES
    ]
    varied = [check for check in suite["checks"] if check["level"] == SYSTEMATICS]
    body = [(analysis, *(_checks(found.get(case, [])) for case in cases)) for analysis, found in table.items()]
    said = [check for found in table.get("verdict", {}).values() for check in found]
    verdicts = [(check["case"], check["text"], _result(check)) for check in said]
    found = {
        "experts": Grid(("Analysis", *cases), tuple(body), "Found, and what was asked (in brackets)"),
        "verdicts": Grid(("Mixture", "Verdict", ""), tuple(verdicts), "What the numbers make the analysis say"),
        "others": _fact_grid(others),
        "states": _fact_grid(inside),
        "systematics": _fact_grid(varied),
    }
    return {name: grid for name, grid in found.items() if grid.rows}


def _fact_grid(checks: list[dict[str, Any]]) -> Grid:
    rows = [(check["case"], _words(check), _value(check), check["criterion"], _result(check)) for check in checks]
    return Grid(("Case", "What", "Value", "Asked", ""), tuple(rows), "")


def _words(check: dict[str, Any]) -> str:
    return check["what"] + (f" ({check['text']})" if check["text"] else "")


def _result(check: dict[str, Any]) -> Markup:
    return _mark("holds", "pass") if check["passed"] else _mark("fails", "miss")


def _checks(checks: list[dict[str, Any]]) -> Any:
    """All that was asked of a mixture in one cell: values with their criteria."""
    if not checks:
        return NOTHING
    parts = [Markup('<span title="{}">{}</span>').format(c["what"], _check(c)) for c in checks]
    return Markup("<br>").join(parts)


def _check(check: dict[str, Any]) -> Markup:
    text = _value(check) + ("" if check["value"] is None else f" ({check['criterion']})")
    return _mark(text, "pass" if check["passed"] else "miss")


def _gates(suite: dict[str, Any]) -> Grid:
    rows = []
    for gate in suite["gates"]:
        r = NOTHING if gate["correlation"] is None else f"{gate['correlation']:.3f}"
        passed = _mark("passes", "pass") if gate["passed"] else _mark("misses the gate", "miss")
        if gate["network"] != "trained" and not gate["passed"]:
            passed = _mark("misses, as it must", "quiet")
        loss = f"{gate['bayes_auc'] - gate['auc']:+.4f}".replace("-", "−")
        auc = f"{gate['auc']:.4f} ± {gate['error']:.4f}"
        events = count(gate["num_train"])
        name = gate["mechanism"].replace("_", " ")
        rows.append((name, gate["network"], events, auc, f"{gate['bayes_auc']:.4f}", loss, r, passed))
    head = ("Mechanism", "Network", "Training events", "AUC", "Best possible", "Lost", "Correlation", "Gate")
    caption = "AUC with the expected labels; error from the drawn ones, by bootstrap; of controls: see below"
    return Grid(head, tuple(rows), caption)


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
    error = row["errors"][name]
    text = f"{value:.0e}" if name == "exactness" else f"{value:.3f}"
    shown = _mark(text, "miss") if name in row["missed"] else Markup(text)
    return shown if error is None else shown + _mark(f"({1000 * error:.0f})", "quiet")


def _mark(text: str, kind: str) -> Markup:
    return Markup('<span class="{}">{}</span>').format(kind, text)


def _verdict(row: dict[str, Any]) -> Markup:
    control = row["network"] in ("untrained", "shuffled")
    verdict = row["verdict"]
    if verdict == "observation" and row["note"]:
        return _mark(row["note"], "quiet")
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
