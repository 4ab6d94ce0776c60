"""Systematic variations: momenta move as asked and nothing else does, the missing momentum keeps the balance, and the
comparison with the nominal events is exact where a closed form exists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import torch
import uproot
from test_store import content, write_events

from hepx import events, kinematics, metrics
from hepx.config import parse
from hepx.errors import ConfigError, DataError, HepxError
from hepx.events import DataSettings, EventBatch, read_events
from hepx.files import read_json
from hepx.graph import GraphBatch, GraphSettings
from hepx.models import Model, build_model, predict
from hepx.models.mlp import MLPSettings
from hepx.planted import toy_graphs
from hepx.results import Explanation
from hepx.run import Run, RunSettings
from hepx.schemas import load_schema
from hepx.store import GraphStore, convert, split_index
from hepx.variations import Scored, compare_variations
from hepx.workers import Execution

NUM_EVENTS = 2500
LOOSE = {"select_jets": "pt > 0", "select_leptons": "pt > 0"}
UP = {"scale": {"jet.pt": 1.05}}


def settings(path: Path, other: Path | None = None, **more: Any) -> DataSettings:
    samples = {"a": {"files": str(path), "label": 1}, "b": {"files": str(other or path), "label": 0}}
    return parse(DataSettings, {"samples": samples, **more}, "data")


def read(path: Path, variation: dict[str, Any] | None = None, **more: Any) -> EventBatch:
    """The first events of a file, under a variation."""
    found = {} if variation is None else {"x": variation}
    data = settings(path, variations=found, **LOOSE | more)
    steps = read_events(path, load_schema(data.schema_name), data, "a", variation=data.varied("x" if found else ""))
    return next(steps)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("varied") / "a.root", NUM_EVENTS)


@pytest.fixture(scope="module")
def nominal(path: Path) -> EventBatch:
    return read(path)


def transverse(batch: EventBatch) -> np.ndarray[Any, Any]:
    """Vector sum of jets, leptons and missing momentum [2, B]."""
    objects = batch.objects
    hard = [ak.sum(getattr(objects[name], axis), axis=1) for axis in ("px", "py") for name in ("jet", "lepton")]
    met = [objects["met"].px, objects["met"].py]
    return np.array([hard[0] + hard[1] + met[0], hard[2] + hard[3] + met[1]])


# --- what moves, and what does not ------------------------------------------------------------------------------------


def test_jets_scaled_by_x_scale_mbb_by_x(path: Path, nominal: EventBatch) -> None:
    varied = read(path, {"scale": {"jet.pt": 1.1}})
    for name in ("mbb", "mct", "ht", "pt_bb"):
        np.testing.assert_allclose(varied.observables[name], 1.1 * nominal.observables[name], rtol=1e-12, err_msg=name)
    for name in ("delta_r_bb", "n_jet", "lepton_pt"):
        np.testing.assert_array_equal(varied.observables[name], nominal.observables[name])
    only_met = read(path, {"scale": {"met.pt": 1.1}})  # negative control
    np.testing.assert_array_equal(only_met.observables["mbb"], nominal.observables["mbb"])
    np.testing.assert_allclose(only_met.observables["met"], 1.1 * nominal.observables["met"])
    np.testing.assert_array_equal(varied.event_id, nominal.event_id)
    np.testing.assert_array_equal(varied.weight, nominal.weight)


@pytest.mark.parametrize("variation", [{"scale": {"jet.pt": 1.05, "lepton.pt": 0.98}}, {"smear": {"jet.pt": 0.2}}])
def test_missing_momentum_balances_what_moved(path: Path, nominal: EventBatch, variation: dict[str, Any]) -> None:
    varied = read(path, variation)
    np.testing.assert_allclose(transverse(varied), transverse(nominal), atol=1e-9)
    assert np.abs(varied.observables["met"] - nominal.observables["met"]).mean() > 0.5
    unbalanced = read(path, {"scale": {"met.pt": 1.05}})
    assert np.abs(transverse(unbalanced) - transverse(nominal)).mean() > 0.5


def test_a_cut_on_pt_does_not_decide_what_the_missing_momentum_knows(path: Path) -> None:
    """A jet that a tighter selection drops, or that is moved over the cut, enters with its shift alone."""
    loose, tight = (read(path, {"scale": {"jet.pt": 1.1}}, select_jets=f"pt > {cut}") for cut in (0, 60))
    np.testing.assert_array_equal(loose.observables["met"], tight.observables["met"])
    assert (loose.observables["n_jet"] > tight.observables["n_jet"]).any()


def test_selections_and_regions_are_applied_after_the_variation(path: Path) -> None:
    cuts = {"select_jets": "pt > 40", "regions": {"many": "n_jet >= 3"}}
    nominal, varied = read(path, **cuts), read(path, {"scale": {"jet.pt": 1.2}}, **cuts)
    gained = varied.observables["n_jet"] - nominal.observables["n_jet"]
    file = uproot.open(path)["analysis"].arrays(["jet_pt", "jet_eta"])
    between = (file.jet_pt > 40 / 1.2) & (file.jet_pt <= 40)
    np.testing.assert_array_equal(gained, ak.sum(between, axis=1))
    np.testing.assert_array_equal(varied.observables["many"], varied.observables["n_jet"] >= 3)
    assert varied.observables["many"].sum() > nominal.observables["many"].sum()


def test_significance_keeps_the_definition_of_the_file(path: Path, nominal: EventBatch) -> None:
    """The file's value times the ratio of the formula after and before."""
    varied = read(path, {"scale": {"jet.pt": 1.1}})

    def formula(batch: EventBatch) -> Any:
        met, jets, leptons = (batch.collections[name] for name in ("met", "jet", "lepton"))
        return kinematics.met_significance(met["pt"], met["phi"], jets, leptons)

    wanted = nominal.observables["met_significance"] * formula(varied) / formula(nominal)
    np.testing.assert_allclose(varied.observables["met_significance"], wanted, rtol=1e-12)
    assert not np.allclose(wanted, nominal.observables["met_significance"], rtol=0.01)


def test_an_expression_moves_some_objects_only(path: Path, nominal: EventBatch) -> None:
    varied = read(path, {"scale": {"jet.pt": "1 + 0.03 * tagged", "lepton.pt": "1 + 0.5 * (flavour == 13)"}})
    for name, factor in (("jet", 1 + 0.03 * nominal.collections["jet"]["tagged"]), ("lepton", None)):
        was = nominal.collections[name]
        factor = 1 + 0.5 * (was["flavour"] == 13) if factor is None else factor
        assert len(np.unique(factor)) == 2
        wanted = np.sort(was["pt"] * factor)
        np.testing.assert_allclose(np.sort(varied.collections[name]["pt"]), wanted)


# --- smearing ---------------------------------------------------------------------------------------------------------


def ratios(varied: EventBatch, nominal: EventBatch) -> np.ndarray[Any, Any]:
    """pt after and before of all jets; eta, which does not move, tells which is which."""
    found = []
    for batch in (varied, nominal):
        jets = batch.collections["jet"]
        found.append(jets["pt"][np.lexsort((jets["eta"], jets.event))])
    return found[0] / found[1]


def test_smearing_has_the_width_asked_for(path: Path, nominal: EventBatch) -> None:
    varied = read(path, {"smear": {"jet.pt": 0.1}})
    found = ratios(varied, nominal)
    sigma = 1 / np.sqrt(len(found))
    assert found.mean() == pytest.approx(1, abs=4 * 0.1 * sigma)
    assert found.std() == pytest.approx(0.1, abs=4 * 0.1 * sigma / np.sqrt(2))
    assert np.mean(np.abs(found - 1) > 0.2) == pytest.approx(0.0455, abs=4 * np.sqrt(0.0455) * sigma)  # Gaussian tails
    counts = nominal.collections["jet"].counts
    first = np.cumsum(counts) - counts  # jets of one event, and of neighbouring events, move independently
    for one, other in ((found[first], found[first + 1]), (found[first[:-1]], found[first[1:]])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(len(one))
    twice = ratios(read(path, {"smear": {"jet.pt": 0.2}}), nominal)
    np.testing.assert_allclose(twice - 1, 2 * (found - 1), atol=1e-12)  # the same direction, twice as far
    other = ratios(read(path, {"smear": {"jet.pt": 0.1}, "seed": 1}), nominal)
    assert abs(np.corrcoef(found, other)[0, 1]) < 4 * sigma


JER = {"jer": {"smear": {"jet.pt": 0.1}}}


@pytest.mark.slow
def test_smearing_does_not_depend_on_the_workers(
    path: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "EVENTS_PER_STEP", 700)
    data = settings(path, others, variations=JER)
    one = convert(data, GraphSettings(), tmp_path / "one")
    two = convert(data, GraphSettings(), tmp_path / "two", Execution(workers=2))
    assert content(one.folder) == content(two.folder)
    assert len(one.part("jer")["shards"]) > 4


def test_smearing_belongs_to_the_event(
    path: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the size of the shards nor the order of the events in the file changes what happens to an event."""
    data = settings(path, others, variations=JER)
    whole = convert(data, GraphSettings(), tmp_path / "whole")
    monkeypatch.setattr(events, "EVENTS_PER_STEP", 700)
    parts = convert(data, GraphSettings(), tmp_path / "parts")
    monkeypatch.undo()
    assert len(parts.manifest["shards"]) > len(whole.manifest["shards"])
    for variation in ("", "jer"):
        same_events(whole.load(None, variation), parts.load(None, variation))
    columns = uproot.open(path)["analysis"].arrays()
    turned = write_rows(tmp_path / "turned.root", {name: columns[name][::-1] for name in columns.fields})
    one, other = (read(file, {"smear": {"jet.pt": 0.1}}) for file in (path, turned))
    np.testing.assert_array_equal(one.event_id, other.event_id[::-1])
    for name, values in one.observables.items():
        np.testing.assert_allclose(values, other.observables[name][::-1], rtol=1e-6, err_msg=name)


def same_events(one: Any, other: Any) -> None:
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(tensor, other.tensors()[name], rtol=0, atol=0, equal_nan=True, msg=name)


def write_rows(path: Path, columns: dict[str, Any], **trees: dict[str, Any]) -> Path:
    """A file with the tree `analysis`, and further trees."""
    with uproot.recreate(path) as file:
        for tree, values in {"analysis": columns, **trees}.items():
            kept = {name: one for name, one in values.items() if not name.startswith("n") and name[-2:] != "_n"}
            types = {name: one.type.content for name, one in kept.items()}
            file.mktree(tree, types).extend(kept)
    return path


# --- other branches, another tree -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def systematics(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as experiments write them: varied branches beside the nominal ones, and a tree of its own with other
    events in another order."""
    arrays = uproot.open(path)["analysis"].arrays()
    columns = {name: arrays[name] for name in arrays.fields}
    columns |= {f"{name}_JESUP": columns[name] * np.float32(1.05) for name in ("jet_pt", "jet_e", "met")}
    columns["met_phi_JESUP"] = columns["met_phi"]
    columns["ScaleFactor_FTAG_UP"] = columns["ScaleFactor_FTAG"] * np.float32(1.25)
    chosen = np.random.default_rng(1).permutation(NUM_EVENTS)[:1800]
    tree = {name: arrays[name][chosen] for name in arrays.fields}
    tree["jet_pt"], tree["jet_e"] = (tree[name] * np.float32(1.05) for name in ("jet_pt", "jet_e"))
    return write_rows(tmp_path_factory.mktemp("systematics") / "a.root", columns, analysis_JESUP=tree)


def close(one: EventBatch, other: EventBatch, *but: str) -> None:
    for name, values in one.observables.items():
        if name not in but:
            np.testing.assert_allclose(values, other.observables[name], rtol=3e-6, atol=1e-3, err_msg=name)


def test_another_branch_is_the_scale_it_was_written_with(systematics: Path) -> None:
    scaled = read(systematics, {"scale": {"jet.pt": 1.05}})
    both = read(systematics, {"branches": {"jet_pt": "jet_pt_JESUP", "jet_e": "jet_e_JESUP"}})
    close(scaled, both)
    close(scaled, read(systematics, {"branches": {"jet_pt": "jet_pt_JESUP"}}))  # the mass follows pt
    own = read(systematics, {"branches": {"jet_pt": "jet_pt_JESUP", "met": "met_JESUP", "met_phi": "met_phi_JESUP"}})
    np.testing.assert_allclose(own.observables["met"], 1.05 * read(systematics).observables["met"], rtol=1e-6)
    close(scaled, own, "met", "mt", "met_significance", "delta_phi_lepton_met")
    assert not np.allclose(own.observables["met"], scaled.observables["met"], rtol=0.01)


def test_a_weight_may_vary_alone(systematics: Path) -> None:
    nominal, varied = read(systematics), read(systematics, {"branches": {"ScaleFactor_FTAG": "ScaleFactor_FTAG_UP"}})
    np.testing.assert_allclose(varied.weight, 1.25 * nominal.weight)
    for name, values in nominal.observables.items():
        np.testing.assert_array_equal(values, varied.observables[name])


def test_another_tree_is_joined_by_event_id(systematics: Path) -> None:
    nominal, varied = read(systematics), read(systematics, {"tree": "analysis_JESUP"})
    assert len(varied) == 1800
    place = {number: i for i, number in enumerate(nominal.event_id.tolist())}
    matched = nominal[[place[number] for number in varied.event_id.tolist()]]
    np.testing.assert_allclose(varied.observables["mbb"], 1.05 * matched.observables["mbb"], rtol=1e-5)
    np.testing.assert_array_equal(varied.observables["met"], matched.observables["met"])


def test_missing_momentum_made_of_objects_is_made_of_the_varied_ones() -> None:
    path = Path(__file__).parents[2] / "shared" / "realfiles" / "uproot-issue-951.root"
    if not path.exists():
        pytest.skip("the real file is not here")
    sample = {"label": 1, "xsec_pb": 1.0, "sum_of_weights": 1.0}
    data = parse(
        DataSettings,
        {
            "schema": "physlite",
            "samples": {"a": {"files": str(path), **sample}, "b": {"files": "b", "label": 0}},
            "variations": {"up": {"scale": {"jet.pt": 1.1}}},
        },
        "data",
    )
    one, up = (
        next(read_events(path, load_schema("physlite"), data, "a", variation=data.varied(n))) for n in ("", "up")
    )
    np.testing.assert_allclose(transverse(up), transverse(one), atol=1e-9)  # both are the soft term


# --- beside the nominal data set --------------------------------------------------------------------------------------

NOTHING = {"scale": {"jet.pt": 1.0, "lepton.pt": 1, "met.pt": 1.0}, "smear": {"jet.pt": 0.0}}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("others") / "b.root", 900, 1, 7)


@pytest.fixture(scope="module")
def store(path: Path, others: Path, tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    variations = {"nothing": NOTHING, "jes_up": UP, "only_a": {**UP, "samples": ["a"]}}
    data = settings(path, others, variations=variations, select="n_lepton >= 1 and met > 60", select_jets="pt > 40")
    return convert(data, GraphSettings(), tmp_path_factory.mktemp("store"))


def test_a_factor_of_one_is_nominal_bit_for_bit(store: GraphStore) -> None:
    for sample in ("a", "b"):
        one, other = (
            store.folder / f"{name}-0000{sample == 'b':d}-00000.safetensors" for name in (sample, f"{sample}@nothing")
        )
        assert one.read_bytes() == other.read_bytes()
    assert store.part("nothing")["cutflow"] == store.manifest["cutflow"]
    assert store.part("nothing")["recipe"] != store.manifest["recipe"]


def test_an_event_keeps_its_identity_and_its_split(store: GraphStore) -> None:
    one, other = store.load("test"), store.load("test", "jes_up")
    shared = np.intersect1d(one.event_id, other.event_id)
    assert len(shared) > 0.9 * len(one)
    assert set(one.event_id.tolist()) ^ set(other.event_id.tolist())  # the cuts come after the variation
    everything = [set(store.load(split, "jes_up").event_id.tolist()) for split in ("train", "validation")]
    assert not any(ids & set(one.event_id.tolist()) for ids in everything)
    assert (split_index(other.event_id.numpy(), store.split) == 2).all()


def test_samples_that_are_not_concerned_stay_nominal(store: GraphStore) -> None:
    one, other = store.load(None, "only_a"), store.load()
    same_events(one[one.sample == 1], other[other.sample == 1])
    same_events(one[one.sample == 0], store.load(None, "jes_up")[: int((one.sample == 0).sum())])
    assert not any("@" in shard["name"] for shard in store.part("only_a")["shards"] if shard["name"].startswith("b"))


def test_a_new_variation_leaves_the_finished_shards(path: Path, others: Path, tmp_path: Path) -> None:
    plain = convert(settings(path, others), GraphSettings(), tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    found = convert(settings(path, others, variations={"jes_up": UP}), GraphSettings(), tmp_path)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 * len(before)
    assert found.manifest["recipe"] == plain.manifest["recipe"]
    assert found.variations == ("jes_up",)
    convert(settings(path, others), GraphSettings(), tmp_path)
    assert set(tmp_path.glob("*.safetensors")) == set(before)


# --- sentences --------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "object": ({"scale": {"jets.pt": 1.01}}, "variations.x.scale.*cannot move 'jets.pt'; closest: 'jet.pt'"),
    "field": ({"smear": {"jet.ptt": 0.1}}, "cannot move 'jet.ptt'; closest: 'jet.pt'"),
    "negative": ({"scale": {"jet.pt": -1.0}}, "'jet.pt' needs a number that is not negative"),
    "nothing": ({}, "a variation needs scale, smear, branches or tree"),
    "sample": ({**UP, "samples": ["c"]}, "variation 'x': unknown sample 'c'"),
    "syntax": ({"scale": {"jet.pt": "1 +"}}, r"selection '1 \+' is not valid"),
    "quantity": ({"scale": {"jet.pt": "1 + etaa"}}, "unknown quantity 'etaa'; closest: 'eta'"),
    "negative factor": ({"scale": {"jet.pt": "eta"}}, r"what moves jet.pt: \d+ of \d+ values are negative"),
    "branch of the schema": ({"branches": {"jet_ptt": "x"}}, "reads no branch 'jet_ptt'; closest: 'jet_pt'"),
    "branch of the file": ({"branches": {"jet_pt": "jet_pt_up"}}, "no branch 'jet_pt_up'; closest: 'jet_pt'"),
    "optional branch": ({"branches": {"met_sig": "met_sig_up"}}, "no branch 'met_sig_up'; closest: 'met_sig'"),
    "tree": ({"tree": "analysis_up"}, "variation 'x': schema .* has no tree 'analysis_up'; it has: analysis"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_variation_has_its_own_sentence(kind: str, path: Path, others: Path, tmp_path: Path) -> None:
    variation, message = BAD[kind]
    with pytest.raises(HepxError, match=message):
        convert(settings(path, others, variations={"x": variation}), GraphSettings(), tmp_path)


def test_unknown_names_of_variations(store: GraphStore, path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown variation 'jes_upp'; closest: 'jes_up'"):
        store.load("test", "jes_upp")
    with pytest.raises(ConfigError, match="'jes/up' is not a possible name of a variation"):
        settings(path, variations={"jes/up": UP})


def test_a_selection_that_leaves_nothing_names_the_variation(path: Path, others: Path, tmp_path: Path) -> None:
    more = {"variations": {"x": {"scale": {"met.pt": 0.0}}}, "select": "met > 20"}
    with pytest.raises(DataError, match="sample 'a' under variation 'x': the selection leaves no event"):
        convert(settings(path, others, **more), GraphSettings(), tmp_path)


# --- what it does to a classifier -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toys() -> GraphBatch:
    """Events of both classes, some of negative weight, and an untrained network's opinion of them."""
    graphs = toy_graphs(2000, seed=1)
    rng = np.random.default_rng(2)
    y = torch.from_numpy((rng.random(2000) < 0.5).astype(np.int64))
    weight = torch.from_numpy(np.where(rng.random(2000) < 0.2, -1.0, 1.0) * rng.uniform(0.5, 2, 2000))
    layout = replace(graphs.layout, samples=("planted", "nothing"))
    return replace(graphs, y=y, sample=y * 0, weight=weight, layout=layout)


@pytest.fixture(scope="module")
def model(toys: GraphBatch) -> Model:
    return build_model(MLPSettings(), toys.layout, seed=1).eval()


FACTOR = 5.0  # as if a fifth of the events were test events
FACTORS = {"planted": FACTOR, "nothing": 1.0}


def compared(model: Model, toys: GraphBatch, varied: GraphBatch) -> dict[str, Any]:
    score = predict(model, toys).double().numpy()
    (found,) = compare_variations(model, Scored(toys, score), [("x", varied)], [0.5], FACTORS, seed=3)
    return found


def test_the_same_events_differ_in_nothing(model: Model, toys: GraphBatch) -> None:
    shuffled = toys[torch.randperm(len(toys), generator=torch.Generator().manual_seed(1))]
    found = compared(model, toys, shuffled)
    assert found["auc"]["difference"] == pytest.approx(0, abs=1e-12)
    assert found["auc"]["difference_error"] == pytest.approx(0, abs=1e-12)
    assert found["auc"]["error"] > 0.005
    assert (found["gained"], found["lost"]) == (0, 0)
    for row in (*found["yields"], *found["cuts"][0]["yields"]):
        assert row["difference"] == row["difference_error"] == 0
    y, score, weight = toys.y.numpy(), predict(model, toys).double().numpy(), toys.weight.numpy()
    assert found["auc"]["value"] == pytest.approx(metrics.auc(y, score, weight), abs=1e-12)
    kept = (score >= found["cuts"][0]["score"]) & (y == 1)
    assert found["cuts"][0]["yields"][0]["value"] == pytest.approx(FACTOR * weight[kept].sum())


def test_scaled_weights_change_the_yield_and_not_the_auc(model: Model, toys: GraphBatch) -> None:
    found = compared(model, toys, replace(toys, weight=1.1 * toys.weight))
    assert found["auc"]["difference"] == pytest.approx(0, abs=1e-12)
    total, error = FACTOR * float(toys.weight.sum()), FACTOR * float((toys.weight**2).sum().sqrt())
    assert found["yields"][0]["difference"] == pytest.approx(0.1 * total)
    assert found["yields"][0]["difference_error"] == pytest.approx(0.1 * error)


def test_lost_events_are_counted(model: Model, toys: GraphBatch) -> None:
    found = compared(model, toys, toys[30:])
    lost = toys.weight[:30]
    assert (found["events"], found["gained"], found["lost"]) == (1970, 0, 30)
    assert found["yields"][0]["difference"] == pytest.approx(-FACTOR * float(lost.sum()))
    assert found["yields"][0]["difference_error"] == pytest.approx(FACTOR * float((lost**2).sum().sqrt()))
    pair = found["auc"]
    assert pair["difference_error"] < 0.3 * pair["error"]  # the events that both have cancel in the difference
    other = toys[30:]
    strangers = replace(other, event_id=other.event_id + 10**6)  # negative control: nothing can be matched
    assert compared(model, toys, strangers)["auc"]["difference_error"] > pair["error"]


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_variation_added_later_trains_nothing_again(path: Path, others: Path, tmp_path: Path) -> None:
    """And its explanation is of the same events, in a file of its own."""
    config = {
        "name": "r",
        "data": {
            "samples": {"a": {"files": str(path), "label": 1}, "b": {"files": str(others), "label": 0}},
            "select": "n_lepton >= 1 and n_bjet >= 1 and met > 60",
        },
        "model": {"name": "mlp", "hidden_dim": 4, "num_layers": 1},
        "train": {"epochs": 1},
        "evaluate": {"trees": False},
        "explain": [{"method": "shapley", "draws": 2, "events": 30}],
    }
    Run(tmp_path, parse(RunSettings, config, "config")).execute("explain")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    nominal = (tmp_path / "explain" / "shapley.npz").stat().st_mtime_ns
    assert "variations" not in read_json(tmp_path / "metrics.json")
    config["data"]["variations"] = {"jes_up": {"scale": {"jet.pt": 1.05}}}  # type: ignore[index]
    Run(tmp_path, parse(RunSettings, config, "config")).execute("explain")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert (tmp_path / "explain" / "shapley.npz").stat().st_mtime_ns == nominal
    (found,) = read_json(tmp_path / "metrics.json")["variations"]
    assert found["variation"] == "jes_up"
    assert found["gained"] + found["lost"] > 0
    config["explain"] += [{**config["explain"][0], "variation": "jes_up"}]  # type: ignore[index, operator]
    Run(tmp_path, parse(RunSettings, config, "config")).execute("explain")
    one, other = (Explanation.load(tmp_path / "explain" / f"shapley{name}.npz") for name in ("", "@jes_up"))
    assert (tmp_path / "explain" / "shapley.npz").stat().st_mtime_ns == nominal
    assert set(other.events.event_id.tolist()) <= set(one.events.event_id.tolist())
    assert len(other.events.event_id) > 20
    assert one.provenance.data != other.provenance.data
    config["explain"][1]["variation"] = "jes_upp"  # type: ignore[index]
    with pytest.raises(ConfigError, match="unknown variation 'jes_upp'; closest: 'jes_up'"):
        parse(RunSettings, config, "config")
