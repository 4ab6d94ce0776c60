"""ROOT -> EventBatch -> GraphBatch -> shards: identities, oracles, and sentences for bad input."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch
import uproot
import vector

from hepx import kinematics
from hepx.collection import Collection
from hepx.config import parse
from hepx.errors import ConfigError, DataError
from hepx.events import DataSettings, SplitSettings, inspect_file, read_events, select
from hepx.graph import GraphBatch, GraphSettings, build_graphs, concatenate, make_layout
from hepx.schemas import load_schema
from hepx.store import SPLITS, GraphStore, convert, split_index

DATA = Path(__file__).parent.parent / "data"
SELECTION = "n_lepton == 1 and n_bjet == 2 and met > 100"
PAPER = {
    "nodes": [{"type": "jet", "max": 3, "alias": True}, {"type": "bjet", "max": 2}, {"type": "lepton"}, {"type": "met"}]
}

NUM_EVENTS = 60
RNG = np.random.default_rng(3)


def branches() -> dict[str, ak.Array]:
    """A small file in the 2025 layout: 0 to 4 jets, 0 to 2 leptons, some negative weights."""
    n = NUM_EVENTS

    def jagged(low: int, high: int) -> dict[str, ak.Array]:
        counts = RNG.integers(low, high + 1, n)
        total = int(counts.sum())
        pt, eta = 31 + RNG.exponential(40, total), RNG.normal(0, 1, total)
        energy = np.sqrt((pt * np.cosh(eta)) ** 2 + 10**2)
        values = {"pt": pt, "eta": eta, "phi": RNG.uniform(-np.pi, np.pi, total), "e": energy}
        return {name: ak.unflatten(value.astype(np.float32), counts) for name, value in values.items()}

    jet, lepton = jagged(0, 4), jagged(0, 2)
    shape = ak.num(jet["pt"])
    jet["btag_quantile"] = ak.unflatten(RNG.integers(1, 6, int(ak.sum(shape))).astype(np.int32), shape)
    kind = ak.num(lepton["pt"])
    lepton["charge"] = ak.unflatten(RNG.choice([-1, 1], int(ak.sum(kind))).astype(np.int32), kind)
    lepton["type"] = ak.unflatten(RNG.choice([11, 13], int(ak.sum(kind))).astype(np.int32), kind)
    ones = {name: np.ones(n, np.float32) for name in load_schema("atlas_open_2025").weights}
    return {
        "runNumber": np.full(n, 284500, np.uint32),
        "eventNumber": np.arange(1, n + 1, dtype=np.uint64),
        "channelNumber": np.full(n, 410470, np.uint32),
        **ones,
        "mcWeight": np.where(np.arange(n) % 5 == 0, -1, 1).astype(np.float32),
        "xsec": np.full(n, 2.0),
        "kfac": np.full(n, 1.5),
        "filteff": np.full(n, 0.5),
        "sum_of_weights": np.full(n, 30.0),
        "met": (100 * RNG.random(n)).astype(np.float32),
        "met_phi": RNG.uniform(-np.pi, np.pi, n).astype(np.float32),
        "met_sig": (10 * RNG.random(n)).astype(np.float32),
        "jet": ak.zip(jet),
        "lep": ak.zip(lepton),
    }


def write(path: Path, columns: dict[str, ak.Array], tree: str = "analysis") -> Path:
    types = {
        name: array.type.content if isinstance(array, ak.Array) else array.dtype for name, array in columns.items()
    }
    with uproot.recreate(path) as file:
        file.mktree(tree, types, counter_name=lambda name: f"{name}_n").extend(columns)
    return path


@pytest.fixture(scope="module")
def columns() -> dict[str, ak.Array]:
    return branches()


@pytest.fixture(scope="module")
def small(columns: dict[str, ak.Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("root") / "small.root", columns)


def settings(path: Path | str, **more: object) -> DataSettings:
    other = {"files": str(DATA / "ttbar.root"), "label": 0}
    values = {"samples": {"a": {"files": str(path), "label": 1}, "b": other}, "luminosity": 1.0, **more}
    return parse(DataSettings, values, "data")


def read(path: Path, **more: object):  # type: ignore[no-untyped-def]
    data = settings(path, **more)
    return next(read_events(path, load_schema("atlas_open_2025"), data, "a"))


def test_weight_is_cross_section_times_luminosity_over_sum_of_weights(
    small: Path, columns: dict[str, ak.Array]
) -> None:
    batch = read(small)
    np.testing.assert_allclose(batch.weight, 1000.0 * 2.0 * 1.5 * 0.5 / 30.0 * columns["mcWeight"])
    given = {
        "samples": {
            "a": {"files": str(small), "label": 1, "xsec_pb": 4.0, "kfactor": 1.0},
            "b": {"files": "x", "label": 0},
        }
    }
    data = parse(DataSettings, {**given, "luminosity": 1.0}, "data")
    other = next(read_events(small, load_schema("atlas_open_2025"), data, "a"))
    np.testing.assert_allclose(other.weight, batch.weight * 4.0 / 3.0)


def test_observables_against_vector(small: Path, columns: dict[str, ak.Array]) -> None:
    """Oracle: each event by itself with vector's own objects."""
    batch = read(small)
    jets, leptons = columns["jet"], columns["lep"]
    for i in range(NUM_EVENTS):
        momenta = [
            (vector.obj(pt=j["pt"], eta=j["eta"], phi=j["phi"], energy=j["e"]), j["btag_quantile"])
            for j in sorted(jets[i].to_list(), key=lambda j: -j["pt"])
            if abs(j["eta"]) < 2.8
        ]
        b = [momentum for momentum, quantile in momenta if quantile >= 3]
        assert batch.observables["n_jet"][i] == len(momenta)
        assert batch.observables["n_bjet"][i] == len(b)
        assert batch.observables["ht"][i] == pytest.approx(sum(momentum.pt for momentum, _ in momenta), rel=1e-5)
        if len(b) >= 2:
            assert batch.observables["mbb"][i] == pytest.approx((b[0] + b[1]).mass, rel=1e-3)
            assert batch.observables["delta_r_bb"][i] == pytest.approx(b[0].deltaR(b[1]), rel=1e-4)
            mct2 = 2 * b[0].pt * b[1].pt * (1 + np.cos(b[0].deltaphi(b[1])))
            assert batch.observables["mct"][i] == pytest.approx(mct2**0.5, rel=1e-4, abs=1e-2)
        else:
            assert np.isnan(batch.observables["mbb"][i])
        if len(leptons[i]):
            lepton = max(leptons[i].to_list(), key=lambda one: one["pt"])
            met = vector.obj(pt=float(columns["met"][i]), phi=float(columns["met_phi"][i]))
            mt2 = 2 * lepton["pt"] * met.pt * (1 - np.cos(lepton["phi"] - met.phi))
            assert batch.observables["mt"][i] == pytest.approx(mt2**0.5, rel=1e-4, abs=1e-2)


def test_nearest_lepton_bjet_mass() -> None:
    lepton = kinematics.Momentum(*np.array([[50.0], [0.0], [0.0], [0.0]]))
    bjets = {"pt": [90.0, 40.0], "eta": [2.0, 0.0], "phi": [3.0, 1.0], "mass": [0.0, 0.0]}
    objects = Collection({name: np.array(values) for name, values in bjets.items()}, np.array([0, 2]))
    expected = np.sqrt(2 * 50 * 40 * (1 - np.cos(1.0)))
    assert kinematics.nearest_mass(lepton, objects)[0] == pytest.approx(expected)


def test_pairs_against_vector() -> None:
    """Mass and pt of two momenta in double precision, also back to back, side by side, and far forward."""
    rng = np.random.default_rng(3)
    pt, eta, phi = (
        rng.exponential(80, (2, 2000)) + 5,
        rng.normal(0, 2, (2, 2000)),
        rng.uniform(-np.pi, np.pi, (2, 2000)),
    )
    mass = rng.exponential(5, (2, 2000))
    phi[1, :500], pt[1, :500] = phi[0, :500] + np.pi, pt[0, :500]
    eta[1, 500:600], phi[1, 500:600] = eta[0, 500:600] + 1e-3, phi[0, 500:600] - 1e-3
    ours = [kinematics.Momentum(*columns) for columns in zip(pt, eta, phi, mass, strict=True)]
    one, other = (vector.arr({"pt": m.pt, "eta": m.eta, "phi": m.phi, "mass": m.mass}) for m in ours)
    np.testing.assert_allclose(kinematics.invariant_mass(*ours), (one + other).mass, rtol=1e-8)
    mct = kinematics.contransverse_mass(*ours)
    np.testing.assert_allclose(kinematics.pair_pt(*ours, mct), (one + other).pt, rtol=1e-9, atol=1e-9)
    transverse = np.sqrt(2 * one.pt * other.pt * (1 - np.cos(one.deltaphi(other))))
    np.testing.assert_allclose(kinematics.transverse_mass(*ours), transverse, rtol=1e-6, atol=1e-6)


def test_contransverse_mass_ends_where_theory_says() -> None:
    """m_CT of two massless b from a pair of resting tops with W: at most (m_t² − m_W²) / m_t, here reached."""
    energy = (172.5**2 - 80.4**2) / (2 * 172.5)
    first = vector.obj(pt=energy, phi=0.7, eta=0.0, mass=0.0)
    assert kinematics.contransverse_mass(first, first) == pytest.approx(2 * energy)
    other = vector.obj(pt=energy, phi=0.7 + np.pi, eta=0.0, mass=0.0)
    assert kinematics.contransverse_mass(first, other) == pytest.approx(0, abs=1e-4)


def graphs_of(path: Path, nodes: dict[str, object] | None = None, **more: object) -> GraphBatch:
    graph = parse(GraphSettings, nodes or {}, "graph")
    batch, _ = select(read(path, **more), None)
    return build_graphs([batch], graph, make_layout(graph, ["a", "b"], [1, 0]), len(batch))


def test_each_object_is_one_node(small: Path) -> None:
    graphs = graphs_of(small)
    assert graphs.layout.slots == ("b1", "b2", "j3", "lepton", "met")
    objects = graphs.object_index.numpy()
    for row in objects:
        present = row[row >= 0]
        assert len(set(present.tolist())) == len(present)
    n_bjet = graphs.observable("n_bjet").numpy()
    n_jet = graphs.observable("n_jet").numpy()
    np.testing.assert_array_equal(graphs.mask[:, :2].sum(1).numpy(), np.minimum(n_bjet, 2))
    np.testing.assert_array_equal(graphs.mask[:, 2].numpy(), n_jet > np.minimum(n_bjet, 2))
    assert graphs.mask[:, 4].all()
    assert graphs.x[~graphs.mask].abs().max() == 0


def test_nodes_hold_what_the_file_holds(small: Path) -> None:
    batch, graphs = read(small), graphs_of(small)
    lead = ak.fill_none(ak.firsts(batch.objects["bjet"].pt), 0).to_numpy()
    np.testing.assert_allclose(graphs.x[:, 0, 0].numpy(), lead, rtol=1e-6)
    np.testing.assert_allclose(graphs.x[:, 4, 0].numpy(), batch.objects["met"].pt.to_numpy(), rtol=1e-6)
    second = graphs.mask[:, 1]
    assert (graphs.x[second, 0, 0] >= graphs.x[second, 1, 0]).all()
    assert (graphs.x[second, 1, 4] >= 3).all()


def test_paper_layout_lists_the_b_jets_twice(small: Path) -> None:
    graphs = graphs_of(small, PAPER)
    assert graphs.layout.slots == ("j1", "j2", "j3", "b1", "b2", "lepton", "met")
    objects, mask = graphs.object_index, graphs.mask
    jets = mask[:, :3].sum(1)
    b_in_jets = (objects[:, 3, None] == objects[:, :3]).any(1) | ~mask[:, 3]
    assert b_in_jets[jets < 3].all()
    assert (objects[mask[:, 0], 0] == 0).all()


def test_vectorised_graphs_equal_a_loop_over_events(small: Path) -> None:
    """Oracle: one event at a time in plain Python."""
    batch, graphs = read(small), graphs_of(small)
    for i in range(NUM_EVENTS):
        jets = batch.objects["jet"][i]
        tagged = [k for k in range(len(jets)) if jets["btag"][k] >= 3][:2]
        other = [k for k in range(len(jets)) if k not in tagged][:1]
        expected = [*(tagged + [-1] * (2 - len(tagged))), *(other or [-1])]
        assert graphs.object_index[i, :3].tolist() == expected


def test_slicing_and_joining_are_inverse(small: Path) -> None:
    graphs = graphs_of(small)
    again = concatenate([graphs[:20], graphs[20:]])
    for name, tensor in graphs.tensors().items():
        torch.testing.assert_close(again.tensors()[name], tensor, equal_nan=True)
    assert len(graphs[graphs.y == 1]) == len(graphs)


def test_split_follows_from_the_event_number_alone() -> None:
    ids = np.arange(410470 * 10**12, 410470 * 10**12 + 100_000)
    split = SplitSettings(fractions=(0.6, 0.3, 0.1))
    found = split_index(ids, split)
    order = np.random.default_rng(0).permutation(len(ids))
    np.testing.assert_array_equal(split_index(ids[order], split), found[order])
    shares = np.bincount(found) / len(ids)
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=5 * (0.24 / len(ids)) ** 0.5)
    pairs = (found[1:] == 0) & (found[:-1] == 0)
    assert pairs.mean() == pytest.approx(0.36, abs=0.01)  # neighbours fall independently


def test_convert_writes_what_was_read_and_skips_finished_shards(small: Path, tmp_path: Path) -> None:
    data = settings(small, select="n_lepton >= 1 and met > 20")
    store = convert(data, GraphSettings(), tmp_path / "d")
    graphs = store.load()
    direct, flow = select(read(small), "n_lepton >= 1 and met > 20")
    chosen = graphs.sample == 0
    np.testing.assert_array_equal(graphs.event_id[chosen].numpy(), direct.event_id)
    np.testing.assert_array_equal(graphs.weight[chosen].numpy(), direct.weight)
    assert [cut["events"] for cut in store.manifest["cutflow"]["a"]] == [cut.events for cut in flow]
    assert flow[-1].weighted == pytest.approx(direct.weight.sum())
    assert sum(len(store.load(split)) for split in SPLITS) == len(graphs)
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").glob("*.safetensors")}
    again = convert(data, GraphSettings(), tmp_path / "d")
    assert again.manifest == store.manifest
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    other = convert(settings(small, select="met > 20"), GraphSettings(), tmp_path / "d")
    assert len(other.load()) > len(graphs)


def without(columns: dict[str, ak.Array], name: str) -> dict[str, ak.Array]:
    return {key: value for key, value in columns.items() if key != name}


def test_missing_branch_is_named_with_the_nearest_one(columns: dict[str, ak.Array], tmp_path: Path) -> None:
    path = write(tmp_path / "a.root", {**without(columns, "met_phi"), "met_phl": columns["met_phi"]})
    with pytest.raises(DataError, match=r"tree 'analysis' of .*a.root has no branch 'met_phi'; closest: 'met_phl'"):
        read(path)


def test_wrong_tree_is_named(columns: dict[str, ak.Array], tmp_path: Path) -> None:
    path = write(tmp_path / "a.root", columns, tree="mini")
    with pytest.raises(DataError, match="has no tree 'analysis'; it has: mini"):
        read(path)


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_truncated_file(small: Path, tmp_path: Path, kept: float) -> None:
    content = small.read_bytes()
    path = tmp_path / "cut.root"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=r"cut.root.*truncated"):
        read(path)


def test_not_a_root_file_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "text.root"
    path.write_text("hello")
    with pytest.raises(DataError, match="truncated or not a ROOT file"):
        read(path)
    with pytest.raises(DataError, match="there is no file"):
        read(tmp_path / "none.root")
    with pytest.raises(DataError, match="sample 'a': no file matches"):
        convert(settings(tmp_path / "none*.root"), GraphSettings(), tmp_path / "d")


def test_nan_and_zero_sum_of_weights(columns: dict[str, ak.Array], tmp_path: Path) -> None:
    met = np.array(columns["met"])
    met[7] = np.nan
    with pytest.raises(DataError, match=r"branch met of .*: 1 of 60 values are NaN"):
        read(write(tmp_path / "a.root", {**columns, "met": met}))
    with pytest.raises(DataError, match="sum_of_weights is zero"):
        read(write(tmp_path / "b.root", {**columns, "sum_of_weights": np.zeros(NUM_EVENTS)}))


def test_empty_selection_shows_the_cut_flow(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sample 'a': the selection leaves no event \(read: 60, met > 1000: 0\)"):
        convert(settings(small, select="met > 1000"), GraphSettings(), tmp_path / "d")
    with pytest.raises(ConfigError, match="unknown quantity 'mett'; closest: 'met'"):
        convert(settings(small, select="mett > 10"), GraphSettings(), tmp_path / "e")
    assert not (tmp_path / "d" / "dataset.json").exists()


def test_same_events_twice_are_refused(small: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.root"
    copy.write_bytes(small.read_bytes())
    data = parse(
        DataSettings,
        {
            "samples": {
                "a": {"files": [str(small), str(copy)], "label": 1},
                "b": {"files": str(DATA / "ttbar.root"), "label": 0},
            }
        },
        "data",
    )
    with pytest.raises(DataError, match="60 events occur more than once, for example channel 410470 event"):
        convert(data, GraphSettings(), tmp_path / "d")


def test_one_class_and_unknown_schema_are_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the labels must be 0 .* and 1 .*; the samples have a: 0"):
        parse(DataSettings, {"samples": {"a": {"files": str(small), "label": 0}}}, "data")
    with pytest.raises(ConfigError, match="unknown schema 'atlas_open_2015'; closest: 'atlas_open_2025'"):
        convert(settings(small, schema="atlas_open_2015"), GraphSettings(), tmp_path / "d")


def test_unfinished_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no finished data set"):
        GraphStore(tmp_path)


def test_significance_missing_in_the_file_is_computed_and_said(columns: dict[str, ak.Array], tmp_path: Path) -> None:
    path = write(tmp_path / "a.root", without(columns, "met_sig"))
    graphs = graphs_of(path)
    assert (graphs.x[:, 4, 5] > 0).all()
    assert inspect_file(path, load_schema("atlas_open_2025")).computed == ("met_significance",)
