"""The section of the report: every number of the file in its place, and honest words where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hepx import files
from hepx.cli import app
from hepx.report import influence_validation as section
from hepx.report import style


def row(test: str, score: str, models: int, value: float, **more: Any) -> dict[str, Any]:
    start = {"test": test, "score": score, "models": models, "value": value, "error": 0.02, "chance": 0.0}
    return {**start, "better": None, "more": {}, **more}


@pytest.fixture
def found() -> dict[str, Any]:
    return {
        "study": "planted: a truth",
        "settings": {"train_events": 3000, "models": 5, "subset_seeds": 3},
        "model": {"name": "moe_graph_transformer"},
        "num_parameters": 7418,
        "trainings": 321,
        "rows": [
            row("lds", "loss", 1, 0.05),
            row("lds", "loss", 5, 0.06),
            row("lds", "trak", 1, 0.15),
            row("lds", "trak", 5, 0.25),
            row("lds", "trak, shuffled", 5, 0.001),
            row("flips 10 %", "loss", 1, 0.8, chance=0.5),
            row("flips 10 %", "trak", 1, 0.9, chance=0.5, better=4.0),
            row("brittle 2 %", "trak", 5, 1.3, chance=None),
        ],
        "seed_correlation": 0.31,
        "ceiling": 0.76,
        "scans": {"trak": {"1": 0.2, "10": 0.3}},
        "verdicts": [
            {"name": "trak", "what": "LDS of TRAK ≥ 0.2", "value": 0.25, "error": 0.02, "passed": True},
            {"name": "other", "what": "something else", "value": 0.1, "error": None, "passed": False},
        ],
    }


def test_table_has_every_number_in_its_place(found: dict[str, Any]) -> None:
    table = section.grids(found)["influence_tests"]
    heads = ("Score", "Halves, 1 model", "Halves, 5 models", "Wrong labels, 10 %", "Support removed, 2 %")
    assert table.head == heads
    by_name = {cells[0]: [str(cell) for cell in cells[1:]] for cells in table.rows}
    assert by_name["mean loss"] == ["0.050 ± 0.020", "0.060 ± 0.020", "0.800 ± 0.020", "–"]
    assert by_name["TRAK"][2:] == ["<b>0.900 ± 0.020</b>", "1.300 ± 0.020"]
    assert by_name["TRAK, shuffled"] == ["–", "0.001 ± 0.020", "–", "–"]
    assert by_name["chance"] == ["0.000", "0.000", "0.500", "–"]
    assert by_name["ceiling"] == ["0.760", "0.760", "–", "–"]
    verdicts = section.grids(found)["influence_verdicts"].rows
    assert [("met" in str(one[2]), "missed" in str(one[2])) for one in verdicts] == [(True, False), (False, True)]
    assert "7 418 parameters" in section.facts(found).replace("\u202f", " ")
    assert "one seed agrees with another to 0.31" in section.facts(found)
    assert "λ of TRAK was chosen on other halves (LDS 0.20 at 1, 0.30 at 10)" in section.facts(found)


def test_page_and_figure(found: dict[str, Any], tmp_path: Path) -> None:
    files.write_json(tmp_path / "mix" / "validate.json", found)
    less = found | {"rows": [one for one in found["rows"] if one["test"] != "lds"], "ceiling": None}
    files.write_json(tmp_path / "other" / "validate.json", less)
    page = section.make_influence_page(tmp_path, ["mix", "other"]).read_text()
    assert page.count("<h2>") == 2
    assert page.count("data:image/png") == 1, "without LDS there is no figure of it"
    assert (tmp_path / "mix" / "lds.pdf").exists()
    assert "**0.900 ± 0.020**" in (tmp_path / "mix" / "validate.md").read_text()
    with style.style():
        (axes,) = section.figure(found).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["TRAK, shuffled", "mean loss", "TRAK"]


def test_command_line_says_what_is_wrong() -> None:
    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["influence", "validate", *arguments])
        assert result.exit_code != 0
        return str(result.exception)

    assert "there is no run folder 'nowhere'" in said("nowhere")
    assert "unknown test 'twins'; closest: 'twin'" in said("planted", "--test", "twins")
    assert "unknown mechanism 'mixt'" in said("planted", "--mechanism", "mixt")
    assert "train_event" in said("planted", "train_event=100")
    assert "--own-model is for a run" in said("planted", "--own-model")
    assert "--mechanism is for planted" in said("runs/x", "--mechanism", "mix")
