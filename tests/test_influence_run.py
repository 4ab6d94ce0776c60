"""Sums over groups are sums; and the command line, shards, notebook and report of a run that kept snapshots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from hepx.cli import app
from hepx.cli.jobs import _values
from hepx.errors import ConfigError, DataError, ResultError
from hepx.graph import GraphBatch
from hepx.influence import SCORES, Score, Task
from hepx.influence.groups import Grouping, Question
from hepx.influence.output import lines
from hepx.models import build_model
from hepx.models.deepsets import DeepSetsSettings
from hepx.notebook import Trained, open_run
from hepx.planted import toy_graphs
from hepx.report import FIGURES, Figure, make_report
from hepx.results import Provenance
from hepx.results_influence import Influence

ROOT = Path(__file__).parent.parent
GROUPING = Grouping(observables=("mbb",), regions=("tagged",))


class Known(Score):
    """Influences that are given: row b, query q -> b + 1000 q, in blocks of 64."""

    score: str = "known"

    def of_training(self, task: Task) -> Tensor:
        return torch.arange(len(task.train)).float()

    def blocks(self, task: Task):  # type: ignore[no-untyped-def]
        yield from (self.table(task)[start : start + 64] for start in range(0, len(task.train), 64))

    @staticmethod
    def table(task: Task) -> Tensor:
        """The influences: of no order, positive and negative."""
        generator = torch.Generator().manual_seed(3)
        return torch.randn(len(task.train), len(task.query), generator=generator) + 0.1


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Question:
    """Two samples, weights of both signs, a region, an observable that is not always defined."""
    graphs = toy_graphs(500, 5)
    rng = np.random.default_rng(1)
    layout = replace(
        graphs.layout, samples=("a", "b"), labels=(0, 1), observables=("mbb", "tagged"), observable_units=("GeV", "")
    )
    sample = torch.from_numpy(rng.integers(0, 2, 500))
    mbb = np.where(rng.random(500) < 0.1, np.nan, rng.normal(100, 20, 500))
    observables = torch.from_numpy(np.stack([mbb, rng.integers(0, 2, 500)], 1))
    weight = torch.from_numpy(rng.uniform(-0.3, 1, 500))
    graphs = replace(graphs, sample=sample, y=sample, layout=layout, weight=weight, observables=observables)
    model = build_model(DeepSetsSettings(dim=4), layout, 1)
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_file(model.state_dict(), path)
    task = Task(model, path, (), graphs[:450], 2 * weight[:450], graphs[450:], 1)
    return Question(Known(), task, "all", GROUPING, provenance)


def test_groups_are_sums_of_the_mean_influence(question: Question) -> None:
    found, table = question.answer(), Known.table(question.task).double().numpy()
    weight = question.task.query.weight.numpy()
    mean = table @ weight / weight.sum()
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    train = question.task.train
    masks = {
        ("sample", "a"): train.sample.numpy() == 0,
        ("region", "tagged"): train.observable("tagged").numpy() == 1,
        ("weight", "negative"): train.weight.numpy() < 0,
    }
    assert found.total is not None
    assert found.total_error is not None
    assert found.expected is not None
    assert found.own_mean is not None
    for (by, name), mask in masks.items():
        (i,) = [i for i, one in enumerate(zip(found.by, found.group, strict=True)) if one == (by, name)]
        assert found.num_events[i] == mask.sum()
        np.testing.assert_allclose(found.total[i], mean[mask].sum())
        np.testing.assert_allclose(found.total_error[i], np.sqrt((mean[mask] ** 2).sum()))
        np.testing.assert_allclose(found.expected[i], mask.sum() * mean.mean())
        np.testing.assert_allclose(found.own_mean[i], np.flatnonzero(mask).mean())
        np.testing.assert_allclose(found.share[i], np.abs(train.weight.numpy())[mask].sum() / train.weight.abs().sum())
    of_sample = [i for i, by in enumerate(found.by) if by == "sample"]
    np.testing.assert_allclose(found.total[of_sample].sum(), mean.sum())
    bins = [i for i, by in enumerate(found.by) if by == "mbb"]
    assert (
        found.num_events[bins].sum() == np.isfinite(train.observable("mbb").numpy()).sum()
    )  # each in one, NaN in none
    assert np.ptp(found.num_events[bins]) <= 1


def test_proponents_and_opponents_are_the_extremes(question: Question) -> None:
    found, table = question.answer(), Known.table(question.task).numpy()
    order = np.argsort(table, axis=0)
    np.testing.assert_array_equal(found.proponents, order[::-1][:5].T)
    np.testing.assert_array_equal(found.opponents, order[:5].T)
    np.testing.assert_allclose(found.proponent_values, np.take_along_axis(table, order[::-1][:5], 0).T)
    np.testing.assert_allclose(found.opponent_values, np.take_along_axis(table, order[:5], 0).T)


def test_random_influence_prefers_no_group(question: Question) -> None:
    """The null: deviations from the expected sums are as large as their errors say."""
    pulls = []
    for seed in range(20):
        found = replace(question, score=SCORES["random"](), task=replace(question.task, seed=seed)).answer()
        assert found.total is not None
        assert found.total_error is not None
        assert found.expected is not None
        few = found.num_events < 250  # the expectation shares the events of a large group
        pulls.append(((found.total - found.expected) / found.total_error)[few])
    spread = np.concatenate(pulls).std()
    assert 0.7 < spread < 1.2


def test_queries_without_weight_are_refused(question: Question) -> None:
    query = replace(question.task.query, weight=-question.task.query.weight)
    with pytest.raises(DataError, match=r"50 queries have a total weight of -.*expected a positive number"):
        replace(question, task=replace(question.task, query=query)).answer()


def test_the_result_survives_being_saved(question: Question, tmp_path: Path) -> None:
    found = question.answer()
    found.save(tmp_path / "known.npz")
    again = Influence.load(tmp_path / "known.npz")
    for name, value in vars(found).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(again, name), value)
    assert again.group == found.group
    columns = again.columns()
    np.testing.assert_array_equal(columns["event_id"], question.task.train.event_id)
    assert set(columns["sample"]) == {"a", "b"}
    assert {"mbb", "own", "mean", "mean_error", "loss_weight"} <= columns.keys()


# A run ------------------------------------------------------------------------------------------------------------

SMALL = ["train.epochs=2", "train.snapshots=2", "model.dim=16", "model.expert_dim=8", "evaluate.trees=false"]
CUT = 'data.select="n_lepton == 1 and n_bjet == 2 and met > 200"'


def invoke(*line: str) -> str:
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return str(done.output)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that kept snapshots, with a report."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        invoke("evaluate", "configs/quickstart.yaml", *SMALL, CUT, "explain=[]", "name=small", "--runs", str(folder))
    return folder / "small"


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    return open_run(run)


def test_scores_of_a_run_by_the_command_line(run: Path, trained: Trained) -> None:
    said = invoke(
        "influence", str(run), "--score", "grad_dot", "--score", "loss", "--query", "label == 0", "--queries", "40"
    )
    assert "grad_dot" in said
    assert "40 queries (label == 0)" in said
    table = pq.read_table(run / "influence" / "scores" / "grad_dot.parquet").to_pydict()
    assert table["event_id"] == trained.train.event_id.tolist()
    found = trained.influence("grad_dot", "label == 0", limit=40)
    np.testing.assert_allclose(table["own"], found.own, rtol=1e-4)
    np.testing.assert_allclose(table["mean"], found.mean, rtol=1e-3, atol=1e-4 * np.abs(found.mean).max())
    assert "mean" not in pq.read_table(run / "influence" / "scores" / "loss.parquet").column_names
    before = (run / "influence" / "scores" / "grad_dot.npz").stat().st_mtime_ns
    assert invoke("influence", "scores", str(run), "--score", "grad_dot", "--query", "label == 0", "--queries", "40")
    assert (run / "influence" / "scores" / "grad_dot.npz").stat().st_mtime_ns == before  # it was there


def test_shards_make_the_same_bytes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepx.influence.store.ROWS", 256)
    line = ("influence", str(run), "--score", "trak", "--projection", "64", "--queries", "30", "--query", "label == 0")
    path = run / "influence" / "scores" / "trak.npz"
    invoke(*line)
    alone = path.read_bytes()
    path.unlink()
    for block in (run / "influence" / "gradients").rglob("*.safetensors"):
        block.unlink()
    for shard in ("2/2", "1/2"):
        invoke(*line, "--shard", shard)
    monkeypatch.setattr("hepx.influence.store.gradients", None)
    invoke(*line)
    assert path.read_bytes() == alone


def test_a_run_in_a_notebook(trained: Trained) -> None:
    found = trained.influence("representation", "label == 0", limit=20)
    assert repr(found).startswith(
        f"Influence by representation: {len(trained.train)} training events, their effect on 20 "
    )
    assert len(repr(found)) < 300
    assert any("unit is the score's own" in line for line in lines(found))
    assert list(trained.scores_of_training("loss")) == ["loss"]
    alone = trained.influence("loss")
    assert "mean loss of an event" in lines(alone)[1]
    frame = found.to_pandas()
    assert len(frame) == len(trained.train)
    assert frame.index.name == "event_id"
    signal = frame["mean"][frame["label"] == 1]
    assert (signal[frame["weight"][frame["label"] == 1] > 0] > 0).mean() > 0.9  # what is alike and signal pushes there


@pytest.mark.parametrize(
    ("score", "settings", "error", "sentence"),
    [
        ("trcin", {}, ConfigError, "unknown score 'trcin'; closest: 'tracin'"),
        ("tracin", {"ridge": 1}, ConfigError, "ridge"),
        ("trak", {"projection": 0}, ConfigError, "projection"),
        ("tracin", {"events": "score > 1e9"}, DataError, "none of the"),
    ],
)
def test_a_wrong_question_is_a_sentence(
    trained: Trained, score: str, settings: dict[str, object], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        trained.ask(score, **settings)  # type: ignore[arg-type]


def test_a_run_without_snapshots_says_how_to_get_them(run: Path, trained: Trained) -> None:
    kept = run / "checkpoints" / "snapshots"
    kept.rename(run / "aside")
    try:
        with pytest.raises(ResultError, match=r"holds no snapshots of the training.*train.snapshots=5"):
            trained.ask("tracin")
    finally:
        (run / "aside").rename(kept)


def only(*names: str) -> dict[str, Figure]:
    """The figures of a report, those of other sections not drawn."""
    return {name: one if name in names else replace(one, draw=lambda saved: {}) for name, one in FIGURES.items()}


def test_the_report_has_a_section_where_there_are_results(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it has none without is what `test_report` sees."""
    monkeypatch.setattr("hepx.report.figures.FIGURES", only("own_influence", "influence"))
    invoke("influence", str(run), "--score", "grad_cos", "--score", "loss", "--query", "label == 0", "--queries", "25")
    text = make_report(run).read_text(encoding="utf-8")
    assert ">Training events<" in text
    for name in ("influence_grad_cos", "own_influence_loss"):
        assert (run / "figures" / f"{name}.pdf").exists()
    groups = (run / "tables" / "influence_groups.csv").read_text().splitlines()
    assert groups[0].startswith("score,by,group,events")
    assert any(line.startswith("grad_cos,sample,ttbar") for line in groups)
    assert any("signal point" in line for line in groups)
    extremes = (run / "tables" / "influence_extremes.csv").read_text().splitlines()
    assert sum(line.startswith("grad_cos,") for line in extremes) == 25 * 2 * 5


def test_a_batch_job_reads_the_line_as_the_command_does(run: Path) -> None:
    for line in ([str(run), "--score", "trak"], ["scores", str(run), "--score", "trak"]):
        values = _values("influence", line)
        assert values["run"] == run
        assert values["score"] == ["trak"]
        assert "shard" in values


def test_graphs_may_be_queries(trained: Trained) -> None:
    few: GraphBatch = trained.test[:12]
    assert len(trained.influence("random", few).events) == 12


def test_audit_and_distillation_by_the_command_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beside one another, and sections of the report."""
    monkeypatch.setattr(
        "hepx.report.figures.FIGURES", only("audit_rates", "suspects", "distilled", "shapes", "dropped")
    )
    (run / "report.html").unlink(missing_ok=True)  # made once, at the end
    assert "training events stand out" in invoke("influence", "audit", str(run), "--share", "0.05", "--score", "loss")
    line = ["influence", "distill", str(run), "--score", "loss", "--fractions", "0.5", "--seeds", "1-2", "--sets", "2"]
    line += ["--order", "highest", "--epochs", "1"]
    assert "reduced training sets" in invoke(*line)
    for name in ("audit.json", "audit.csv", "distill.json", "distill.csv"):
        assert (run / "influence" / name).stat().st_size > 100
    text = make_report(run).read_text(encoding="utf-8")
    assert 'id="audit"' in text
    assert 'id="distilled"' in text
