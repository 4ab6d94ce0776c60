"""A finished run in a notebook: what is selected is what is explained, tables join back, and the notebooks run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hepx
from hepx.errors import ConfigError, DataError, ResultError
from hepx.faithfulness import COLUMNS, lines
from hepx.graph import RAW_FEATURES, from_arrays
from hepx.metrics import weighted_mean
from hepx.models import MODELS, build_model
from hepx.notebook import Trained, explain

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "scripts" / "notebooks"


def execute(name: str) -> dict[str, Any]:
    """Run the code cells of a notebook one after the other in this process; returns its variables."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    variables: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}[{number}]", "exec"), variables)
    return variables


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the configs and the data of the repository, and nothing else, to work in."""
    path, before = tmp_path_factory.mktemp("notebook"), Path.cwd()
    for name in ("configs", "data"):
        (path / name).symlink_to(ROOT / name)
    os.chdir(path)
    yield path
    os.chdir(before)


@pytest.fixture(scope="module")
def run(folder: Path) -> Trained:
    """The run that the first notebook makes; its own statements are checked on the way."""
    return execute("train_and_explain")["run"]


def test_the_notebook_of_planted_truth_runs(folder: Path) -> None:
    """Its last cells state that the truth is found, and not in a network trained on shuffled labels."""
    found = execute("planted_truth")
    assert found["found"]["shapley"] > found["of_control"]


def test_the_notebook_of_training_data_runs(folder: Path) -> None:
    """Its events that teach are training events, and what it drops never touches the test events."""
    found = execute("training_data")
    own, taught = found["run"], found["taught"]
    assert set(taught.train_id[taught.proponents[0]]) <= set(own.train.event_id.tolist())
    assert found["found"].num_events == len(own.train)
    assert {row["events"] for row in found["study"]["rows"]} == {len(own.train), len(own.train) - len(own.train) // 2}


def test_an_expression_selects_what_it_says(run: Trained) -> None:
    mbb, score = run.test.observable("mbb").numpy(), run.score
    wanted = (score > 0) & (mbb > 100) & (run.test.sample == 1).numpy()
    assert 0 < wanted.sum() < len(wanted)
    assert run.test.layout.samples[1] == "ttbar"
    chosen = run.select("score > 0 and mbb > 100 and sample == ttbar")
    np.testing.assert_array_equal(chosen.event_id, run.test.event_id[wanted])
    for same in (wanted, run.test.event_id.numpy()[wanted][::-1], run.test.event_id[wanted], chosen):
        np.testing.assert_array_equal(run.select(same).event_id, chosen.event_id)
    np.testing.assert_array_equal(run.select("probability > 0.5").event_id, run.select("score > 0").event_id)
    assert len(run.select("label == 1")) == int(run.test.y.sum()) != len(run.test)
    assert len(run.select()) == len(run.test)


@pytest.mark.parametrize(
    ("events", "error", "sentence"),
    [
        ("scor > 1", ConfigError, "unknown quantity 'scor'; closest: 'score'"),
        ("sample == tbar", ConfigError, "closest: 'ttbar'"),
        ("score", ConfigError, "is a number, not a condition"),
        ("__import__('os')", ConfigError, "is not allowed"),
        ("sample == 'ttbar'", ConfigError, "use names (without quotes)"),
        ("(mbb > 100) & (met > 200)", ConfigError, "and/or/not (no & and |)"),
        ("score > 1e9", DataError, "none of the"),
        (np.ones(3, dtype=bool), ConfigError, "a mask of shape"),
        (np.array([0.5]), ConfigError, "expected an expression, a mask or event numbers"),
        (np.array([-7]), DataError, "e.g. -7"),
    ],
)
def test_a_wrong_selection_is_a_sentence(run: Trained, events: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as found:
        run.select(events)
    assert sentence in str(found.value)


def test_the_table_joins_back_and_adds_up(run: Trained) -> None:
    """Event numbers are those of the run; attributions and baseline score make the score; an absent jet is no zero."""
    found = run.explain("shapley", events="score > -9 and n_jet < 4", limit=30, draws=3)
    table, position = found.to_pandas(), {one: i for i, one in enumerate(run.test.event_id.tolist())}
    index = [position[one] for one in table.index]
    assert table.index.name == "event_id"
    assert len(table) == 30
    np.testing.assert_allclose(table["score"], run.score[index], atol=1e-5)
    np.testing.assert_array_equal(table["mbb"], run.test.observable("mbb").numpy()[index])
    np.testing.assert_array_equal(table["label"], run.test.y.numpy()[index])
    values = table[[f"attribution_{slot}" for slot in found.events.slots]]
    np.testing.assert_allclose(values.sum(axis=1) + table["baseline_score"], table["score"], atol=1e-5)
    absent = ~found.events.mask
    assert 0 < absent.sum() < absent.size
    np.testing.assert_array_equal(values.isna().to_numpy(), absent)
    b1, lepton = (found.events.slots.index(slot) for slot in ("b1", "lepton"))
    assert found.interactions is not None
    np.testing.assert_array_equal(table["interaction_b1_lepton"], found.interactions[:, b1, lepton])
    assert "interaction_lepton_b1" not in table  # each pair once
    joined = table.join(table[["mbb"]].iloc[::-1].rename(columns={"mbb": "mbb_again"}))
    np.testing.assert_array_equal(joined["mbb"], joined["mbb_again"])


def test_the_result_says_where_it_comes_from(run: Trained) -> None:
    """The same as of `hepx explain` with these settings, and explained again the same numbers."""
    first, again = (run.explain("shapley", limit=5, draws=2) for _ in range(2))
    np.testing.assert_array_equal(first.values, again.values)
    assert first.provenance == run.run.provenance("shapley", first.provenance.settings)
    assert (first.provenance.settings["draws"], first.provenance.settings["events"]) == (2, 5)


@pytest.mark.parametrize("method", ["shapley", "saliency", "edge_knockout", "occlusion", "feature_groups"])
def test_every_kind_of_result_has_a_table_and_a_figure(run: Trained, method: str) -> None:
    """Numbers of the figure are weighted means of the table."""
    settings = {"players": {"b": ["bjet"], "met": ["met"]}} if method == "feature_groups" else {}
    found = run.explain(method, limit=8, **settings)
    table, figure = found.to_pandas(), found.plot()
    assert len(table) == 8
    assert any(column.startswith("attribution_") for column in table)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert table.attrs == {"method": method, "unit": "logit per σ" if method == "saliency" else "logit"}
    labels = [axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes]
    assert any(f"[{found.unit}]" in label for label in labels)
    if method == "feature_groups":
        name = next(name for name in found.events.sample_names if found.events.of_sample(name).any())
        chosen = found.events.of_sample(name)
        mean, _ = weighted_mean(table["attribution_b"].to_numpy()[chosen], table["weight"].to_numpy()[chosen])
        assert figure.axes[0].patches[0].get_width() == pytest.approx(mean)


def test_measures_of_the_whole_sample_have_a_table_and_a_figure_too(run: Trained) -> None:
    """One row per group of features, and one per process and point, with the numbers of the result."""
    lost = run.explain("permutation_importance", limit=400, repeats=2)
    table = lost.to_pandas()
    assert tuple(table.index) == lost.players
    np.testing.assert_array_equal(table["delta_auc"], lost.delta_auc)
    curve = run.explain("response", observable="mbb", limit=50)
    table = curve.to_pandas()
    assert len(table) == curve.mean.size
    of_one = table[table["sample"] == curve.sample_names[1]]
    np.testing.assert_array_equal(of_one["mean"], curve.mean[1])
    np.testing.assert_array_equal(of_one["mbb"], curve.points)
    assert all(found.plot()._repr_png_().startswith(b"\x89PNG") for found in (lost, curve))


def test_errors_are_sentences(run: Trained, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown method 'shaply'; closest: 'shapley'"):
        run.explain("shaply")
    with pytest.raises(ConfigError, match="method 'shapley': unknown key 'drows'; closest: 'draws'"):
        run.explain("shapley", drows=3)
    with pytest.raises(ConfigError, match="there is no run folder"):
        hepx.load(tmp_path / "none")
    with pytest.raises(ResultError, match="has no result 'shapley'"):
        run.load("shapley")


def test_what_is_printed_is_short_and_says_what_it_is(run: Trained) -> None:
    """Whatever is the last line of a cell: kind, sizes, unit, folder; not the arrays."""
    number = len(run.test)
    assert repr(run).startswith(f"run '{run.settings.name}' in {run.run.folder}: {run.settings.model.name}, ")
    assert "signal, ttbar, singletop" in repr(run)
    assert repr(run.test).startswith(f"GraphBatch: {number} events with b1, b2, j3, lepton, met; ")
    shapley, response = run.explain("shapley", limit=20, draws=2), run.explain("response", limit=20, points=3)
    assert repr(shapley) == (
        "Explanation by shapley: 20 events of signal, ttbar, singletop; values [20, 5] of b1, b2, j3, lepton, met "
        "in logit"
    )
    assert "at 3 points of mbb, 40 to 260 GeV" in repr(response)
    others = [run.explain(name, limit=20) for name in ("permutation_importance", "edge_knockout")]
    for one in (run, run.test, shapley, response, *others, shapley.events):
        assert len(repr(one)) < 800
        assert "array(" not in repr(one)
        assert "tensor(" not in repr(one)


def test_one_name_stands_for_a_list_of_one_and_arrays_are_no_graphs(run: Trained, toys: Any) -> None:
    found = run.validate("saliency", limit=20)
    assert "saliency" in found["methods"]
    text = "\n".join(lines(found))
    assert "on 20 test events; ratios and shares, without unit" in text
    assert all(name.replace("_", " ").split()[0] in text.split("on 20")[1] for name in COLUMNS)
    with pytest.raises(ConfigError, match="unknown method 's'; "):
        run.validate(["s"], limit=20)
    with pytest.raises(ConfigError, match=r"predict: expected graphs, such as run.test .*, got ndarray"):
        run.predict(np.zeros((3, 5)))  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"predict: expected graphs of bjet, bjet, jet, lepton, met, as in the training, got"
    ):
        run.predict(from_arrays(np.ones((2, 1, len(RAW_FEATURES))), np.ones((2, 1)), {"met": "met"}))
    with pytest.raises(ConfigError, match=r"expected the name of a method, for example 'shapley', got \['shapley'\]"):
        run.explain(["shapley"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="limit: expected a number not below 1, got 0"):
        run.validate("saliency", limit=0)


def test_one_event_and_none(run: Trained) -> None:
    """A position is one event, counted from the end too; of no events there are no scores and no explanation."""
    assert run.predict(run.test[3]) == pytest.approx(run.score[3], abs=1e-5)
    assert run.test[-1].event_id.tolist() == run.test.event_id[-1:].tolist()
    with pytest.raises(IndexError):
        run.test[len(run.test)]
    assert run.predict(run.test[:0]).shape == (0,)
    with pytest.raises(DataError, match="these graphs hold no events"):
        run.explain("shapley", run.test[:0])
    with pytest.raises(ConfigError, match="unknown variation 'jes'; there are none"):
        run.select(variation="jes")


def test_a_result_is_saved_where_a_text_says(run: Trained, tmp_path: Path) -> None:
    found = run.explain("shapley", limit=5, draws=2)
    found.save(str(tmp_path / "mine.npz"))
    np.testing.assert_array_equal(type(found).load(str(tmp_path / "mine.npz")).values, found.values)
    with pytest.raises(ResultError, match="there is no result"):
        type(found).load(str(tmp_path / "none.npz"))


def test_a_model_and_arrays_are_enough(toys: Any) -> None:
    """Without a run: as many rows as events, reproducible, and another seed draws others."""
    model = build_model(MODELS["graph_transformer"][0](dim=8, num_heads=2), toys.layout, 1).eval()
    model.inputs.fit(toys, toys.weight)
    first, again, other = (explain(model, toys[:6], toys, "shapley", seed, draws=2).values for seed in (1, 1, 2))
    assert first.shape == toys[:6].mask.shape
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


def test_arrays_go_in_and_arrays_come_out(toys: Any) -> None:
    """No file, no config: the same explanation as of graphs; what a type lacks or is absent is not looked at."""
    slots = dict(zip(toys.layout.slots, toys.layout.types, strict=True))
    x, mask = toys.x.numpy().copy(), toys.mask.numpy()
    x[~mask] = np.nan
    x[:, toys.layout.slots.index("met"), list(RAW_FEATURES).index("eta")] = 7.0
    graphs = from_arrays(x, mask, slots, y=toys.y.numpy(), observables={"mbb": np.arange(len(x))})
    torch.testing.assert_close(graphs.x, toys.x)
    model = build_model(MODELS["moe_graph_transformer"][0](dim=8, num_heads=2), graphs.layout, 1).eval()
    model.inputs.fit(graphs, graphs.weight)
    found = explain(model, graphs[:5], graphs, "shapley", draws=2)
    same = explain(model, replace(toys[:5], event_id=graphs.event_id[:5]), toys, "shapley", draws=2)
    np.testing.assert_allclose(found.values, same.values, atol=1e-6)
    assert found.to_pandas()["mbb"].tolist() == [0, 1, 2, 3, 4]
    found.plot()
    for wrong, message in (
        ({"mask": mask[:, :2]}, r"'mask' has the shape \(\d+, 2\), expected"),
        ({"x": x[..., :3]}, "'x' has the shape"),
        ({"x": np.where(mask[..., None], np.inf, x)}, "'x' holds numbers that are not finite"),
        ({"y": np.full(len(x), 2)}, "y must be 0"),
    ):
        with pytest.raises(DataError, match=message):
            from_arrays(**{"x": x, "mask": mask, "slots": slots, **wrong})
    with pytest.raises(ConfigError, match="unknown node type 'bjets'; closest: 'bjet'"):
        from_arrays(x, mask, {**slots, "b1": "bjets"})
