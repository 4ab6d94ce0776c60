"""The table score × test: mechanics with scores made for the purpose, whose place in it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from hepx.graph import GraphBatch
from hepx.influence import SCORES, Score, Task, bench, trials, validate
from hepx.influence.bench import Bench, Row, ValidateSettings
from hepx.influence.studies import Study, planted_study
from hepx.models import build_model, predict
from hepx.train import TrainSettings
from hepx.train.snapshots import load_snapshot

TINY = {
    "train_events": 240,
    "queries": 20,
    "subsets": 6,
    "tuning_subsets": 4,
    "subset_seeds": 2,
    "models": 2,
    "snapshots": 1,
    "epochs": 2,
    "batch_size": 40,
    "flips": (0.2,),
    "reference_events": 80,
    "reference_queries": 3,
    "reference_epochs": 1,
    "reference_seeds": 1,
    "removals": 5,
    "twins": 5,
    "brittle_queries": 2,
    "brittle": (0.2,),
}


class Random(Score):
    """Knows nothing."""

    score: Literal["random"] = "random"

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        return self.influence(task)[:, 0]

    def influence(self, task: Task) -> Float[Tensor, "B Q"]:
        generator = torch.Generator().manual_seed(task.seed)
        return torch.randn(len(task.train), len(task.query), generator=generator)


class Loss(Score):
    """Loss of the trained network; knows no pairs."""

    score: Literal["loss"] = "loss"
    pairwise: ClassVar[bool] = False

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        load_snapshot(task.model, task.trained)
        return torch.nn.functional.softplus(-(2 * task.train.y - 1) * predict(task.model, task.train))


class Near(Score):
    """A power of the inverse distance in the raw features, towards the label of the training event."""

    score: Literal["near"] = "near"
    ridge: float = 1.0

    def scan(self, task: Task, ridges: Sequence[float]) -> dict[float, Tensor]:
        return {ridge: Near(ridge=ridge).influence(task) for ridge in ridges}

    def of_training(self, task: Task) -> Float[Tensor, "B"]:
        return torch.ones(len(task.train))

    def influence(self, task: Task) -> Float[Tensor, "B Q"]:
        scale = torch.tensor([50.0, 1, 1, 10, 2, 3])
        near = torch.cdist(*((graphs.x / scale).flatten(1) for graphs in (task.train, task.query))) + 0.01
        return (2 * task.train.y - 1)[:, None] * near**-self.ridge


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(SCORES):
        monkeypatch.delitem(SCORES, name)
    for score in (Random, Loss, Near):
        monkeypatch.setitem(SCORES, score.model_fields["score"].default, score)


def study(settings: ValidateSettings) -> Study:
    train = settings.training(TrainSettings(weights="sign"))
    return planted_study("mix", settings.train_events, settings.queries, train, settings.seed)


def table(rows: list[Row]) -> dict[tuple[str, str, int], Row]:
    return {(row.test, row.score, row.models): row for row in rows}


@pytest.mark.usefixtures("scores")
def test_every_test_runs_every_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, tiny; again without any training; the files say the same."""
    settings = ValidateSettings.model_validate(TINY)
    found = validate.validate(study(settings), settings, tmp_path)
    tests = {row.test for row in found.rows}
    assert tests == {"lds", "drop", "single", "exact", "flips 20 %", "jes", "twin", "mechanism", "brittle 20 %"}
    for test in tests:
        assert {"random", "loss", "near"} <= {row.score for row in found.rows if row.test == test}, test
    assert all(np.isfinite(row.value) for row in found.rows)
    assert validate.read(tmp_path / "validate.json") == found
    assert len((tmp_path / "validate.csv").read_text().splitlines()) == 1 + len(found.rows)
    text = "\n".join(validate.lines(found))
    assert "two trainings with one seed give the same bits" in text
    assert found.verdicts[2].name == "repeats"
    assert found.verdicts[2].passed
    monkeypatch.setattr(trials, "metagradient", trials.metagradient)
    monkeypatch.setattr("hepx.influence.retrain._train", _never)
    again = Bench(study(settings), settings, tmp_path)
    assert table(list(trials.run_flips(again))) == table([row for row in found.rows if row.test.startswith("flips")])


def _never(*arguments: object) -> None:
    raise AssertionError("trained again")


@pytest.mark.usefixtures("scores")
def test_twins_are_found_by_what_measures_distance(tmp_path: Path) -> None:
    settings = ValidateSettings.model_validate(TINY)
    rows = table(list(trials.run_twin(Bench(study(settings), settings, tmp_path))))
    assert rows["twin", "near", 1].value > 0.9
    assert rows["twin", "near", 1].more["in_first_10"] == 1
    assert rows["twin", "random", 1].value < 0.3
    assert rows["twin", "near", 1].chance == pytest.approx((1 / np.arange(1, 241)).mean())


@pytest.mark.usefixtures("scores")
def test_settings_are_chosen_on_the_tuning_halves_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`scan` sees exactly the tuning halves, and the best there is what is judged."""
    settings = ValidateSettings.model_validate(TINY)
    seen, scan = [], trials.scan

    def watched(score: Score, tasks: list[Task], member: np.ndarray, actual: np.ndarray) -> dict[float, float]:
        seen.append(len(member))
        found = scan(score, tasks, member, actual)
        return dict(zip(found, (0.1, 0.3, 0.2, 0.0, 0.0), strict=bool(found)))

    monkeypatch.setattr(trials, "scan", watched)
    one = Bench(study(settings), settings, tmp_path)
    list(trials.run_lds(one))
    assert seen == [4, 4, 4]
    assert one.scores["near"] == Near(ridge=trials.RIDGES[1])
    assert np.array_equal(one.effects["near"][0], bench.effect(Near(ridge=trials.RIDGES[1]), one.base[0]))
    member = np.random.default_rng(1).integers(0, 2, (12, 240)).astype(float)
    actual = member @ bench.effect(Near(ridge=10.0), one.base[0])
    found = scan(Near(), one.base[:1], member, actual)
    assert found[10.0] == pytest.approx(1)
    assert max(found, key=lambda ridge: found[ridge]) == 10.0
    assert scan(Loss(), one.base[:1], member, actual) == {}


@pytest.mark.usefixtures("scores")
@pytest.mark.slow
def test_the_loss_finds_flipped_labels_and_random_does_not(tmp_path: Path) -> None:
    settings = ValidateSettings.model_validate(
        TINY | {"train_events": 2000, "models": 3, "epochs": 8, "batch_size": 100}
    )
    train = settings.training(TrainSettings(weights="sign"))
    single = planted_study("met_significance", 2000, 20, train, 1)
    rows = table(list(trials.run_flips(Bench(single, settings, tmp_path))))
    loss, random, oracle = (rows["flips 20 %", name, 1] for name in ("loss", "random", "oracle"))
    assert loss.value > 0.8
    assert oracle.value >= loss.value - 0.005
    assert abs(random.value - 0.5) < 0.05
    assert random.better is not None
    assert random.better < -5
    assert loss.better is None


def test_effect_of_a_score_without_pairs_is_towards_the_label(scores: None, toys: GraphBatch) -> None:
    del scores
    events = toys[:50]
    model = build_model(planted_study("mix", 200, 10, TrainSettings(), 1).model, toys.layout, 1)
    task = Task(model, Path(), (), events, torch.ones(50), toys[50:60], 1)
    found = bench.effect(Near().model_copy(), task)
    assert found.shape == (50, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loss, "of_training", lambda self, task: torch.arange(50.0))
        towards = bench.effect(Loss(), task)
    assert np.array_equal(towards[:, 0], np.arange(50.0) * (2 * events.y.numpy() - 1))
    assert np.array_equal(towards[:, 0], towards[:, 9])


def test_criteria_are_met_and_missed() -> None:
    """Each bound from both sides, by rows made by hand."""
    one = planted_study("mix", 200, 10, TrainSettings(), 1)

    def judged(trak: float, tracin: float, exact: float, loss: float, group: float) -> dict[str, bool]:
        rows = [
            Row("lds", "trak", 5, trak, 0.02, 0.0),
            Row("lds", "trak", 1, 0.0, 0.02, 0.0),
            Row("lds", "tracin", 1, tracin, 0.02, 0.0),
            Row("drop", "metagradient", 1, exact, 0.02, 0.0),
            Row("flips 10 %", "loss", 1, loss, 0.01, 0.5),
            Row("flips 10 %", "oracle", 1, 0.9, 0.01, 0.5),
            Row("mechanism", "cosine", 1, group, 0.01, 0.5),
        ]
        return {verdict.name: verdict.passed for verdict in validate.criteria(one, rows)}

    good = judged(0.25, 0.15, 0.85, 0.8, 0.9)
    assert good == dict.fromkeys(("trak", "trak − tracin", "metagradient", "flips 10 %", "mechanism"), True)
    bad = judged(0.19, 0.15, 0.75, 0.7, 0.7)
    assert bad == dict.fromkeys(good, False)
    simple = planted_study("met_significance", 200, 10, TrainSettings(), 1)
    near = [Row("flips 10 %", "loss", 1, 0.88, 0.01, 0.5), Row("flips 10 %", "oracle", 1, 0.9, 0.01, 0.5)]
    assert [verdict.passed for verdict in validate.criteria(simple, near)] == [False], "one feature: 0.01"
    assert [verdict.passed for verdict in validate.criteria(one, near)] == [True], "a mixture: 0.15"


def test_names_are_checked_and_complete() -> None:
    assert tuple(trials.TRIALS) == bench.TESTS
    with pytest.raises(ValidationError, match="unknown test 'twins'"):
        ValidateSettings(tests=("twins",))
    with pytest.raises(ValidationError, match="unknown score 'tracinn'"):
        ValidateSettings(scores=("tracinn",))
    assert replace(Row("a", "b", 1, 0.0, None, None), value=1.0).value == 1.0
    ValidateSettings.model_validate(bench.QUICK)
