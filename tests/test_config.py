"""Configs: YAML scalars, overrides, and sentences that mend a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from hepx.config import load, parse, read_yaml, write_yaml
from hepx.errors import ConfigError
from hepx.run import RunSettings

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2", -2),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("2026-01-02", "2026-01-02"),
        ("1_000", "1_000"),
        ("010", 10),
    ],
)
def test_yaml_scalars(text: str, value: object) -> None:
    found = read_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_written_yaml_is_read_back() -> None:
    value = {"a": [1, 0.5, "no", None, True], "b": {"c": "1e-3"}}
    assert read_yaml(write_yaml(value)) == value


def test_overrides_come_last_and_reach_into_lists(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train: {lr: 1e-3}\nexplain: [{method: shapley}]\n")
    values = load(path, ["train.lr=2e-3", "train.epochs=3", "explain.0.draws=8"])
    assert values == {"train": {"lr": 0.002, "epochs": 3}, "explain": [{"method": "shapley", "draws": 8}]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"unknown key 'train.epoch'; closest: 'epochs'"),
        ("train.epochs=no", r"^config: 'train.epochs': expected a whole number, got 'no'$"),
        ("train.epochs=1.5", r"'train.epochs': expected a whole number, got 1.5$"),
        ("train.epochs=0", r"'train.epochs': expected a number not below 1, got 0$"),
        ("train.lr=fast", r"'train.lr': expected a number, got 'fast'$"),
        ("evaluate.trees=maybe", r"'evaluate.trees': expected true or false, got 'maybe'$"),
        ("train.balance=foo", r"'train.balance': expected one of 'loss_free', .* or 'none', got 'foo'$"),
        ("model.features=pt", r"'model.features': expected a list, got 'pt'$"),
        ("train=3", r"'train': expected keys with values, got 3$"),
        ("name=3", r"'name': expected text, got 3$"),
        ("data.samples={}", r"'data.samples': expected a list of at least 1, got {}$"),
        (
            "insides.nulls={untrained:2}",
            r"unknown key 'insides.nulls.untrained:2'; write a blank after the colon, 'untr",
        ),
        ("insides.nulls={untrainedd:2}", r"unknown key 'insides.nulls.untrainedd:2'; closest: 'untrained'$"),
        ("model={dim: 3}", r"key 'model.name' is missing; add it$"),
        ("explain.0.method=shap", r"'explain.0': unknown method 'shap'; expected one of 'shapley', "),
        ("model.name=mgt", r"'model'.*'mgt'.*'moe_graph_transformer'"),
        ("model.top_k=9", r"top_k is 9, but there are only 6 experts"),
        ("model.num_heads=5", r"dim must be a multiple of num_heads"),
        ("model.num_expert=4", r"unknown key 'model.*num_expert'; closest: 'num_experts'"),
        ("explain.0.draw=4", r"unknown key 'explain.0.*draw'; closest: 'draws'"),
        ("data.samples.signal.label=3", r"the labels must be 0 \(background\) and 1 \(signal\)"),
        ("data.split.fractions=[0.5, 0.6, 0.1]", r"must sum to 1"),
        ("graph.nodes.0.type=bjets", r"unknown node type 'bjets'; closest: 'bjet'"),
        ("explain.7.draws=4", r"expected a position from 0 to 2"),
        ("epochs", r"not of the form key=value"),
    ],
)
def test_mistakes_get_a_sentence(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(RunSettings, load(QUICKSTART, [override]), "config")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("a: 1\nb: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(tmp_path / "a.yaml")
    for text, kind in (("", "is empty"), ("- a", "holds a list")):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ConfigError, match=f"a.yaml' {kind}; expected a mapping of keys to values"):
            load(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match="key 'a' is given twice"):
        load(tmp_path / "b.yaml")


def test_resolved_config_is_a_config_again() -> None:
    settings = parse(RunSettings, load(QUICKSTART), "config")
    assert parse(RunSettings, read_yaml(write_yaml(settings.dump())), "again") == settings
