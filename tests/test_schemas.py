"""Every layout is read into the same events: against independent readers, real files, and sentences for bad input.

Real files are looked up beside the project (`../shared`); a test that needs one is skipped where it is absent.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
import vector
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hepx import events, kinematics
from hepx.cli import app
from hepx.config import parse, read_yaml, write_yaml
from hepx.errors import ConfigError, DataError, HepxError
from hepx.events import DataSettings, EventBatch, Schema, inspect_file, read_events, select
from hepx.events.schema import Branch, parse_branch
from hepx.events.weights import apply_policy, effective_events
from hepx.graph import GraphSettings, build_graphs, make_layout
from hepx.schemas import SCHEMAS, load_schema

ROOT = Path(__file__).parent.parent
DATA, REAL, SAMPLES = ROOT / "data", ROOT.parent / "shared" / "realfiles", ROOT.parent / "shared" / "samples"
PASSES = "n_lepton == 1 and 2 <= n_jet <= 3 and n_bjet == 2"
SAMPLE = {"label": 1, "xsec_pb": 1.0, "sum_of_weights": 100.0, "channel": 7}


def real(name: str) -> Path:
    path = (SAMPLES if (SAMPLES / name).exists() else REAL) / name
    if not path.exists():
        pytest.skip(f"the real file {name} is not here")
    return path


def data_settings(schema: str, sample: dict[str, Any] | None = None, **more: Any) -> DataSettings:
    one = {"files": "a", **(SAMPLE if sample is None else sample)}
    samples = {"a": one, "b": {"files": "b", "label": 0}}
    return parse(DataSettings, {"schema": schema, "samples": samples, "luminosity": 1.0, **more}, "data")


def read(path: Path, schema: str, sample: dict[str, Any] | None = None, **more: Any) -> EventBatch:
    return next(read_events(path, load_schema(schema), data_settings(schema, sample, **more), "a"))


def num_passing(batch: EventBatch) -> int:
    return len(select(batch, PASSES)[0])


# --- how a schema names a branch ------------------------------------------------------------------------------------


def test_names_of_branches() -> None:
    assert parse_branch("a|b[2]?").branches == (Branch("a"), Branch("b", position=2))
    assert parse_branch("x.mpx[x.name=Soft]").branches == (Branch("x.mpx", key="x.name", text="Soft"),)
    assert parse_branch("a?").optional
    assert not parse_branch("a").optional
    with pytest.raises(ValueError, match="is not the name of a branch"):
        parse_branch("a[")


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_a_yaml_file_too(name: str, tmp_path: Path) -> None:
    """A user's YAML can say whatever a schema of the package says."""
    path = tmp_path / "mine.yaml"
    path.write_text(write_yaml(SCHEMAS[name].model_dump(mode="json")))
    assert load_schema(str(path)) == SCHEMAS[name]
    assert SCHEMAS[name].name == name


def test_a_schema_that_declares_too_little_is_refused() -> None:
    values = SCHEMAS["atlas_open_2025"].model_dump(mode="json")
    for key in ("energy_unit", "btag_meaning", "event_number"):
        with pytest.raises(ConfigError, match=f"key '{key}' is missing"):
            parse(Schema, {name: value for name, value in values.items() if name != key}, "schema")
    with pytest.raises(ConfigError, match="either pt and phi, or px and py, or soft_px and soft_py"):
        parse(Schema, {**values, "met": {"pt": "met"}}, "schema")
    with pytest.raises(ConfigError, match="missing: phi"):
        parse(Schema, {**values, "jet": {"branches": {"pt": "a", "eta": "b", "btag": "c"}}}, "schema")
    with pytest.raises(ConfigError, match="need the field btag"):
        parse(Schema, {**values, "jet": {"branches": {"pt": "a", "eta": "b", "phi": "c"}}}, "schema")


# --- real files, against numbers of an independent reader -------------------------------------------------------------


def physlite_by_hand(path: Path) -> dict[str, Any]:
    """Oracle: the same selection in a few lines of awkward, nothing shared with hepx."""
    file = uproot.open(path)
    rntuple = "EventData" in {key.split(";")[0] for key in file.keys()}  # noqa: SIM118 - file is not a dict
    tree, separator = (file["EventData"], ":") if rntuple else (file["CollectionTree"], ".")
    present = set(tree.keys())

    def get(name: str) -> Any:
        name = name.replace(".", separator)
        return tree[name].array()

    jets, electrons, muons = (f"Analysis{kind}AuxDyn." for kind in ("Jets", "Electrons", "Muons"))
    old = "BTagging_AntiKt4EMPFlow_201903AuxDyn.DL1r_pb" in present
    tagger = "BTagging_AntiKt4EMPFlow_201903AuxDyn.DL1r_p" if old else "BTagging_AntiKt4EMPFlowAuxDyn.DL1dv01_p"
    score = np.log(get(tagger + "b") / (0.018 * get(tagger + "c") + 0.982 * get(tagger + "u")))
    jvt = get(jets + "NNJvtPass") if (jets + "NNJvtPass").replace(".", separator) in present else get(jets + "Jvt")
    tight = (get(electrons + "pt") > 25e3) & (get(electrons + "DFCommonElectronsLHTight") == 1)
    medium = (get(muons + "pt") > 25e3) & (get(muons + "quality") % 8 <= 1)
    pt, eta, phi = (get(jets + name) for name in ("pt", "eta", "phi"))
    away_eta = eta[:, :, None] - get(electrons + "eta")[tight][:, None, :]
    away_phi = (phi[:, :, None] - get(electrons + "phi")[tight][:, None, :] + np.pi) % (2 * np.pi) - np.pi
    keep = (pt > 30e3) & (abs(eta) < 2.5) & ((jvt > 0.5) | (pt > 60e3) | (abs(eta) > 2.4))
    keep = keep & ~ak.any(np.hypot(away_eta, away_phi) < 0.2, axis=2)
    return {
        "n_lepton": ak.sum(tight, axis=1) + ak.sum(medium, axis=1),
        "n_jet": ak.sum(keep, axis=1),
        "n_bjet": ak.sum(keep & (score >= (2.195 if old else 2.456)), axis=1),
    }


@pytest.mark.parametrize(
    ("name", "tagger", "num_events", "passing"),
    [
        ("uproot-physlite-rntuple_v1-0-0-0.root", "DL1dv01", 100, 7),
        ("uproot-issue-123a.root", "DL1r", 100, 4),
        ("uproot-issue-951.root", "DL1dv01", 50, 2),
    ],
)
def test_physlite_against_an_independent_reader(name: str, tagger: str, num_events: int, passing: int) -> None:
    path = real(name)
    source = inspect_file(path, load_schema("physlite"))
    assert (source.num_events, source.tagger) == (num_events, tagger)
    assert source.computed == ("met", "met_phi", "met_significance")
    default = load_schema("physlite").jet[0].select
    assert default is not None
    batch = read(path, "physlite", select_jets=default.replace("2.8", "2.5"))
    by_hand = physlite_by_hand(path)
    for observable, values in by_hand.items():
        np.testing.assert_array_equal(batch.observables[observable], ak.to_numpy(values))
    good = (by_hand["n_lepton"] == 1) & (by_hand["n_jet"] >= 2) & (by_hand["n_jet"] <= 3) & (by_hand["n_bjet"] == 2)
    assert num_passing(batch) == int(ak.sum(good)) == passing
    assert len(set(batch.event_id.tolist())) == num_events
    jets = batch.objects["jet"]
    true_b = jets[(jets["true_flavour"] == 5)]
    tagged = ak.to_numpy(ak.flatten(true_b["tagged"]))
    assert tagged.mean() == pytest.approx(0.77, abs=4 * (0.77 * 0.23 / len(tagged)) ** 0.5)
    light = ak.to_numpy(ak.flatten(jets[jets["true_flavour"] == 0]["tagged"]))
    assert light.mean() < 0.1  # negative control: the cut does not pass everything


def test_physlite_missing_momentum_recoils_against_the_objects() -> None:
    batch = read(real("uproot-issue-123a.root"), "physlite")
    objects = batch.objects
    hard = [ak.sum(m.px, axis=1) for m in (objects["jet"], objects["lepton"])]
    tree = uproot.open(real("uproot-issue-123a.root"))["CollectionTree"]
    soft = tree["MET_Core_AnalysisMETAuxDyn.mpx"].array()[:, 1] / 1000
    np.testing.assert_allclose(ak.to_numpy(objects["met"].px), ak.to_numpy(soft - hard[0] - hard[1]), atol=1e-3)
    assert np.isfinite(batch.observables["met_significance"]).all()


def test_physlite_needs_the_normalisation_from_the_config() -> None:
    path = real("uproot-issue-951.root")
    with pytest.raises(ConfigError, match=r"has no branch for 'xsec_pb'; give data.samples.<name>.xsec_pb"):
        read(path, "physlite", {"label": 1})
    batch = read(path, "physlite", {"label": 1, "xsec_pb": 2.0, "sum_of_weights": 50.0, "kfactor": 3.0})
    weights = uproot.open(path)["CollectionTree"]["EventInfoAuxDyn.mcEventWeights"].array()[:, 0]
    np.testing.assert_allclose(batch.weight, 1000 * 2 * 3 * ak.to_numpy(weights) / 50, rtol=1e-6)
    assert set(batch.event_id // 10**12) == {601229}


@pytest.mark.parametrize(
    ("name", "num_events"), [("nano_tt_v12.root", 200), ("nanoAOD_2015_CMS_Open_Data_ttbar.root", 200)]
)
def test_nanoaod(name: str, num_events: int) -> None:
    path = real(name)
    batch = read(path, "cms_nanoaod")
    assert len(batch) == num_events
    tree = uproot.open(path)["Events"].arrays(["Jet_pt", "Jet_eta", "MET_pt"])
    batch = read(path, "cms_nanoaod", select_jets="pt > 30 and abs(eta) < 2.5")
    np.testing.assert_array_equal(
        batch.observables["n_jet"], ak.sum((tree.Jet_pt > 30) & (abs(tree.Jet_eta) < 2.5), axis=1)
    )
    np.testing.assert_allclose(batch.observables["met"], tree.MET_pt, rtol=1e-6)


def test_nanoaod_rntuple_and_delphes() -> None:
    rntuple = read(real("cmsopendata2015_ttbar_19980_NANOAOD_RNTupleImporter_rntuple_v1-0-0-1.root"), "cms_nanoaod")
    assert len(rntuple) == 10
    assert len(read(real("nano_dimuon_rntuple.root"), "cms_nanoaod")) == 40
    batch = read(real("coffea_delphes.root"), "delphes")
    tree = uproot.open(real("coffea_delphes.root"))["Delphes"].arrays(["Jet.BTag", "Jet.PT", "Jet.Eta"])
    keep = (tree["Jet.PT"] > 30) & (abs(tree["Jet.Eta"]) < 2.5) & (tree["Jet.BTag"] % 2 == 1)
    plain = read(real("coffea_delphes.root"), "delphes", select_jets="pt > 30 and abs(eta) < 2.5")
    np.testing.assert_array_equal(plain.observables["n_bjet"], ak.sum(keep, axis=1))
    assert len(batch) == 25
    with pytest.raises(DataError, match=r"has no branch 'Electron.PT'"):
        inspect_file(real("uproot-issue513.root"), load_schema("delphes"))


@pytest.mark.parametrize("process", ["signal", "ttbar", "singletop"])
def test_the_same_events_in_the_2020_and_the_2025_layout(process: str) -> None:
    new = read(real(f"{process}.root"), "atlas_open_2025", {"label": 1})
    old = read(real(f"mini_{process}_2k.root"), "atlas_open_2020", {"label": 1})
    place = {number: i for i, number in enumerate(new.event_id.tolist())}
    if not set(old.event_id.tolist()) <= set(place):
        pytest.skip("the two files do not hold the same events")
    new = new[[place[number] for number in old.event_id.tolist()]]
    for name in ("n_jet", "n_bjet", "n_lepton", "met", "mbb", "mct", "mt", "ht"):
        np.testing.assert_allclose(old.observables[name], new.observables[name], rtol=2e-4, atol=1e-2, err_msg=name)
    np.testing.assert_array_equal(*(ak.to_numpy(ak.flatten(one.objects["jet"]["btag"])) for one in (old, new)))
    ratio = old.weight / new.weight
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_the_2025_layout_as_rntuple() -> None:
    new, tree = (
        read(real(name), "atlas_open_2025", {"label": 1}) for name in ("signal_rntuple_2k.root", "signal.root")
    )
    place = {number: i for i, number in enumerate(tree.event_id.tolist())}
    tree = tree[[place[number] for number in new.event_id.tolist()]]
    assert len(new) == num_passing(new) == 2000
    np.testing.assert_array_equal(new.weight, tree.weight)
    for name, values in new.observables.items():
        np.testing.assert_array_equal(values, tree.observables[name], err_msg=name)


# --- significance ---------------------------------------------------------------------------------------------------


def test_computed_significance_against_the_simulation() -> None:
    """The stored values come from the same formula on what the simulation knows, softer jets included."""
    batch = read(DATA / "ttbar.root", "atlas_open_2025", {"label": 1})[:500]
    met, jets, leptons = (batch.collections[name] for name in ("met", "jet", "lepton"))
    found = kinematics.met_significance(met["pt"], met["phi"], jets, leptons)
    nested = [batch.objects[name] for name in ("jet", "lepton")]
    sigma = [
        kinematics.jet_resolution(nested[0].pt),
        kinematics.lepton_resolution(abs(nested[1]["flavour"]), nested[1].pt * np.cosh(nested[1].eta), nested[1].pt),
    ]
    oracle = kinematics.significance(  # the same on nested lists, as the simulation computes it
        batch.objects["met"].px,
        batch.objects["met"].py,
        ak.concatenate([one.phi for one in nested], axis=1),
        ak.concatenate([one.pt * width for one, width in zip(nested, sigma, strict=True)], axis=1),
    )
    np.testing.assert_allclose(found, ak.to_numpy(oracle), rtol=1e-12)
    stored = batch.observables["met_significance"]
    # measured 0.948: the stored one also knows the jets of 20 to 30 GeV
    assert np.corrcoef(found, stored)[0, 1] > 0.9
    assert np.median(found / stored) == pytest.approx(1, abs=0.15)
    assert np.corrcoef(found, stored[::-1])[0, 1] < 0.3  # negative control: other events' significance


# --- the table of the paper -------------------------------------------------------------------------------------------


def sparticles_table(batch: EventBatch) -> dict[str, Any]:
    """Events as the flat table: three jets by pt, the two b-jets again, −99 where there is none."""
    jets, bjets, leptons = (batch.objects[name] for name in ("jet", "bjet", "lepton"))

    def column(momenta: Any, place: int, name: str) -> Any:
        return ak.to_numpy(ak.fill_none(ak.pad_none(momenta[name], place + 1, axis=1)[:, place], -99.0))

    table = {}
    for momenta, prefix in ((jets, "j"), (bjets, "b")):
        for i in range(3 if prefix == "j" else 2):
            for name, label in (("pt", "pT"), ("eta", "eta"), ("phi", "phi")):
                table[f"{label}{prefix}{i + 1}"] = column(momenta, i, name)
            table[f"{prefix}{i + 1}_quantile"] = column(momenta, i, "btag")
    table |= {f"b{i + 1}m": column(bjets, i, "mass") for i in range(2)}
    table |= {f"{label}l1": column(leptons, 0, name) for name, label in (("pt", "pT"), ("eta", "eta"), ("phi", "phi"))}
    met = batch.objects["met"]
    return table | {"ETMiss": met.pt, "ETMissPhi": met.phi, "metsig_New": met["significance"]}


@pytest.fixture(scope="module")
def hundred() -> EventBatch:
    return read(DATA / "ttbar.root", "atlas_open_2025", {"label": 1})[:100]


@pytest.mark.parametrize("layout", ["fixed", "table", "table with data columns"])
@pytest.mark.filterwarnings("default")  # pandas and PyTables only write the file
def test_sparticles_table_keeps_every_object_once(hundred: EventBatch, layout: str, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    path = tmp_path / "table.h5"
    table = pandas.DataFrame({name: np.asarray(values) for name, values in sparticles_table(hundred).items()})
    table.to_hdf(path, key="df", format=layout.split()[0], data_columns=True if "columns" in layout else None)
    batch = read(path, "sparticles", {"label": 1, "xsec_pb": 1, "sum_of_weights": 100, "kfactor": 1, **FLAT})
    for name in ("n_jet", "n_bjet", "n_lepton", "mbb", "mct", "mt", "met", "met_significance", "ht"):
        np.testing.assert_allclose(batch.observables[name], hundred.observables[name], rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(batch.event_id, 7 * 10**12 + np.arange(100))
    assert (batch.observables["n_jet"] == 3).any()
    assert (batch.observables["n_jet"] == 2).any()
    found, wanted = (graphs_of(one).x[:, :, :3].numpy() for one in (batch, hundred))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"no number that tells samples apart; give each sample its own"):
        read(path, "sparticles", {"label": 1, "xsec_pb": 1, "sum_of_weights": 1, "kfactor": 1, "filter_efficiency": 1})


FLAT = {"filter_efficiency": 1, "channel": 7}


def graphs_of(batch: EventBatch) -> Any:
    graph = GraphSettings()
    return build_graphs([batch], graph, make_layout(graph, ["a", "b"], [1, 0]), len(batch))


# --- weights and regions ----------------------------------------------------------------------------------------------


def test_policies_for_negative_weights() -> None:
    weight = np.array([2.0, -1.0, 1.0, -0.5])
    signed, kept, unchanged = apply_policy(weight, "signed")
    assert kept.all()
    np.testing.assert_array_equal(signed, weight)
    assert (unchanged.before, unchanged.squares_before) == (unchanged.after, unchanged.squares_after)
    np.testing.assert_array_equal(apply_policy(weight, "abs")[0], np.abs(weight))
    changed, kept, sums = apply_policy(weight, "drop")
    np.testing.assert_array_equal(changed[kept], [2.0, 1.0])
    said = "2 of 4 weights are negative (drop): yield 1.5 -> 3, effective events 0.4 -> 1.8"
    assert sums.describe("drop") == said
    parts = [apply_policy(weight[part], "drop")[2] for part in (slice(1), slice(1, 4))]
    assert (parts[0] + parts[1]).describe("drop") == said
    assert apply_policy(np.abs(weight), "drop")[2].negative == 0
    assert effective_events(np.ones(7)) == 7
    assert effective_events(np.zeros(0)) == 0


def test_policy_of_the_config_reaches_the_events(small: Path) -> None:
    batches = {
        policy: read(small, "atlas_open_2025", {"label": 1}, negative_weights=policy)
        for policy in ("signed", "abs", "drop")
    }
    signed = batches["signed"].weight
    assert (signed < 0).any()
    np.testing.assert_array_equal(batches["abs"].weight, np.abs(signed))
    np.testing.assert_array_equal(batches["drop"].weight, signed[signed >= 0])
    assert len(batches["drop"].objects["jet"]) == len(batches["drop"])


def test_regions_are_observables(small: Path) -> None:
    regions = {"signal_region": "n_bjet >= 2 and met > 50", "rest": "not (n_bjet >= 2 and met > 50)"}
    batch = read(small, "atlas_open_2025", {"label": 1}, regions=regions)
    inside = (batch.observables["n_bjet"] >= 2) & (batch.observables["met"] > 50)
    np.testing.assert_array_equal(batch.observables["signal_region"], inside)
    np.testing.assert_array_equal(batch.observables["signal_region"] + batch.observables["rest"], 1)
    assert len(select(batch, "signal_region == 1")[0]) == inside.sum()
    data = data_settings("atlas_open_2025", regions=regions)
    extra = events.extra_observables(load_schema("atlas_open_2025"), data)
    assert list(extra.items())[-3:] == [("mass_lsp", "GeV"), ("signal_region", ""), ("rest", "")]
    with pytest.raises(ConfigError, match="unknown quantity 'mett'; closest: 'met'"):
        read(small, "atlas_open_2025", {"label": 1}, regions={"x": "mett > 1"})
    with pytest.raises(ConfigError, match="'mbb' is not a possible name of a region"):
        data_settings("atlas_open_2025", regions={"mbb": "met > 1"})


# --- momenta as components --------------------------------------------------------------------------------------------


def in_components(values: dict[str, Any]) -> dict[str, Any]:
    """The same events with px, py, pz and E instead of pt, eta, phi and E, and E_T^miss as px and py."""
    found = {name: one for name, one in values.items() if not name.endswith(("_pt", "_eta", "_phi")) and name != "met"}
    for kind in ("jet", "lep"):
        pt, eta, phi = (values[f"{kind}_{name}"] for name in ("pt", "eta", "phi"))
        found |= {f"{kind}_px": pt * np.cos(phi), f"{kind}_py": pt * np.sin(phi), f"{kind}_pz": pt * np.sinh(eta)}
    return found | {
        f"met_p{axis}": values["met"] * part(values["met_phi"]) for axis, part in (("x", np.cos), ("y", np.sin))
    }


def test_momenta_as_components_are_the_same_events(small: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "components.root", in_components(columns()))
    schema = tmp_path / "mine.yaml"
    events.write_starter(events.inspect(path, {}), "", schema)
    values = fill_in(schema, **FILLED)
    assert values["jet"]["branches"]["px"] == "jet_px"
    assert values["met"] == {"px": "met_px", "py": "met_py", "significance": "met_sig"}
    mine, ours = read(path, str(schema), SAMPLE), read(small, "atlas_open_2025", SAMPLE)
    for name, found in mine.observables.items():
        np.testing.assert_allclose(found, ours.observables[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert inspect_file(path, load_schema(str(schema))).computed == ()
    varied = data_settings(str(schema), variations={"up": {"scale": {"jet.pt": 1.1}}})
    up = next(read_events(path, load_schema(str(schema)), varied, "a", variation=varied.varied("up")))
    np.testing.assert_allclose(up.observables["mbb"], 1.1 * mine.observables["mbb"])
    wrong = changed_components("jet_pz", with_value(np.nan))
    with pytest.raises(DataError, match=r"branch jet_pz of .* are NaN or infinite"):
        read(write(tmp_path / "wrong.root", wrong), str(schema), SAMPLE)
    with pytest.raises(ConfigError, match="missing: pz"):
        parse(Schema, {**values, "jet": {"branches": {"px": "a", "py": "b", "btag": "c"}}}, "schema")


FILLED = {"energy_unit": "GeV", "btag_meaning": "quantile", "btag_cut": 3, "weights": ["mcWeight"]}


def fill_in(schema: Path, **wanted: Any) -> dict[str, Any]:
    """What a user does with a starter schema."""
    values = read_yaml(schema.read_text()) | wanted
    schema.write_text(write_yaml(values))
    return values


def changed_components(name: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    values = in_components(columns())
    return {**values, name: change(values[name])}


def test_a_real_file_with_components_only(tmp_path: Path) -> None:
    """Oracle: vector's own conversion. The tutorial file has no event number: its number of primary vertices stands in
    for one, which only works because nothing here needs it to be unique."""
    path = real("uproot-HZZ.root")
    schema = tmp_path / "hzz.yaml"
    events.write_starter(events.inspect(path, {}), "", schema)
    values = fill_in(schema, **{**FILLED, "event_number": "NPrimaryVertices", "weights": ["EventWeight"]})
    assert values["jet"]["branches"]["energy"] == "Jet_E"
    batch = read(path, str(schema), select_jets="pt > 30 and abs(eta) < 2.8")
    tree = uproot.open(path)["events"].arrays(["Jet_Px", "Jet_Py", "Jet_Pz", "Jet_E", "MET_px", "MET_py"])
    jets = vector.zip({axis: tree[f"Jet_{axis.capitalize()}"] for axis in ("px", "py", "pz", "E")})
    jets = jets[(jets.pt > 30) & (abs(jets.eta) < 2.8)]
    np.testing.assert_array_equal(batch.observables["n_jet"], ak.num(jets))
    np.testing.assert_allclose(batch.observables["ht"], ak.sum(jets.pt, axis=1), rtol=1e-5)
    np.testing.assert_allclose(batch.observables["met"], np.hypot(tree.MET_px, tree.MET_py), rtol=1e-5)


# --- bad input: one sentence each ---------------------------------------------------------------------------------


def columns(num_events: int = 40) -> dict[str, Any]:
    """A sound file in the 2025 layout: one to three jets and one lepton in every event."""
    rng = np.random.default_rng(11)
    counts = rng.integers(1, 4, num_events)
    total = int(counts.sum())

    def jagged(values: Any) -> Any:
        return ak.unflatten(np.asarray(values), counts)

    pt, eta = 31 + rng.exponential(40, total), rng.normal(0, 1, total)
    jet = {
        "jet_pt": pt,
        "jet_eta": eta,
        "jet_phi": rng.uniform(-3, 3, total),
        "jet_e": 1.1 * pt * np.cosh(eta),
        "jet_btag_quantile": rng.integers(1, 6, total),
    }
    lepton = {"lep_pt": 40.0, "lep_eta": 0.3, "lep_phi": 1.0, "lep_charge": 1, "lep_type": 11}
    one = dict.fromkeys(load_schema("atlas_open_2025").weights, 1.0)
    one |= {"xsec": 2.0, "kfac": 1.0, "filteff": 1.0, "sum_of_weights": 10.0, "met_phi": 0.5, "met_sig": 4.0}
    values = {name: np.full(num_events, value) for name, value in one.items()}
    values["mcWeight"] = np.where(np.arange(num_events) % 5 == 0, -1.0, 1.0)
    numbers = {"runNumber": 284500, "channelNumber": 410470}
    return {
        **{name: np.full(num_events, value) for name, value in numbers.items()},
        "eventNumber": np.arange(1, num_events + 1),
        **values,
        "met": rng.uniform(10, 200, num_events),
        **{name: jagged(value) for name, value in jet.items()},
        **{name: ak.from_regular(np.full((num_events, 1), value)) for name, value in lepton.items()},
    }


def write(path: Path, values: dict[str, Any], tree: str = "analysis", rntuple: bool = False) -> Path:
    with uproot.recreate(path) as file:
        if rntuple:
            file.mkrntuple(tree, values)
        else:
            types = {name: one.type.content if isinstance(one, ak.Array) else one.dtype for name, one in values.items()}
            file.mktree(tree, types).extend(values)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("good") / "small.root", columns())


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], Path]:
    """A file whose branch `name` is changed; None removes it."""

    def make(folder: Path) -> Path:
        values = columns()
        values[name] = change(values[name])
        return write(folder / "bad.root", {key: value for key, value in values.items() if value is not None})

    return make


def with_value(value: float) -> Callable[[Any], Any]:
    """Sets the first number of a branch."""

    def change(values: Any) -> Any:
        if not isinstance(values, ak.Array):
            values = np.asarray(values, dtype=np.float64)
            return np.concatenate([[value], values[1:]])
        flat = ak.to_numpy(ak.flatten(values)).astype(np.float64)
        return ak.unflatten(np.concatenate([[value], flat[1:]]), ak.num(values))

    return change


def renamed(folder: Path) -> Path:
    values = columns()
    values["jet_ptt"] = values.pop("jet_pt")
    return write(folder / "bad.root", values)


def truncated(folder: Path) -> Path:
    path = write(folder / "bad.root", columns())
    path.write_bytes(path.read_bytes()[:700])
    return path


def of_text(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "bad.root").write_text(text)
        return folder / "bad.root"

    return make


def broken_rntuple(folder: Path) -> Path:
    path = write(folder / "bad.root", columns(), rntuple=True)
    header = uproot.open(path)["analysis"].member("fSeekHeader")
    content = bytearray(path.read_bytes())
    content[header : header + 32] = b"\xff" * 32
    path.write_bytes(content)
    return path


def no_pandas(folder: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "bad.root", "w") as file:
        file["energy"] = np.arange(4)
    return folder / "bad.root"


def broken_hdf5(folder: Path) -> Path:
    pytest.importorskip("h5py")
    (folder / "bad.root").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 10)
    return folder / "bad.root"


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (lambda folder: folder / "bad.root", "there is no file '.*bad.root'"),
    "a folder": (lambda folder: folder, "is a folder, not a file. Give its files, for example"),
    "0 bytes": (of_text(""), r"is empty \(0 bytes\)"),
    "not ROOT": (of_text("pt,eta,phi\n1,2,3\n"), "truncated or not a ROOT file.*begins with b'pt,eta,p'"),
    "truncated": (truncated, "truncated or not a ROOT file"),
    "only a magic number": (of_text("root"), "truncated or not a ROOT file"),
    "empty tree": (lambda folder: write(folder / "bad.root", columns(0)), "tree 'analysis' of .* holds no events"),
    "other tree": (
        lambda folder: write(folder / "bad.root", columns(), tree="mini"),
        "has no tree 'analysis'; it has: mini",
    ),
    "no branch": (changed("met", lambda _: None), "has no branch 'met'; closest: 'met_sig', 'met_phi'"),
    "renamed branch": (renamed, "has no branch 'jet_pt'; closest: 'jet_ptt'"),
    "scalar where a list belongs": (
        changed("jet_pt", lambda values: ak.to_numpy(values[:, 0])),
        "branch jet_pt of .* expected a list of numbers per event, got 'float64'",
    ),
    "list where a scalar belongs": (
        changed("met", lambda values: ak.from_regular(values[:, None])),
        "branch met of .* expected a number per event, got 'var [*] float64'",
    ),
    "lists of different length": (
        changed("jet_eta", lambda values: values[:, :1]),
        "jet_pt and jet_eta of .* different numbers of objects",
    ),
    "NaN": (changed("jet_pt", with_value(np.nan)), "branch jet_pt of .* 1 of .* are NaN or infinite"),
    "infinite": (changed("lep_eta", with_value(np.inf)), "branch lep_eta of .* 1 of .* are NaN or infinite"),
    "negative pt": (changed("lep_pt", with_value(-3.0)), r"branch lep_pt of .* are negative; expected pt ≥ 0"),
    "sentinel": (changed("jet_pt", with_value(-99.0)), r"example -99.0\). If it marks an absent object, say so"),
    "negative energy": (changed("jet_e", with_value(-5.0)), "branch jet_e of .* negative; expected an energy"),
    "negative met": (changed("met", with_value(-999.0)), "branch met of .* expected E_T\\^miss ≥ 0"),
    "NaN in met": (changed("met", with_value(np.nan)), "branch met of .* 1 of 40 values are NaN"),
    "phi in degrees": (changed("jet_phi", lambda values: values * 57.3), "outside ±2π.*Is it in degrees?"),
    "met_phi in degrees": (changed("met_phi", lambda values: values * 57.3), "met_phi of .*Is it in degrees?"),
    "absurd eta": (changed("jet_eta", with_value(-999.0)), "exceed 10; expected a pseudorapidity"),
    "MeV read as GeV": (
        changed("jet_pt", lambda values: values * 1000),
        "median pt of the jets is .* GeV; expected 0.5 to 5000 GeV. .* is it in MeV",
    ),
    "TeV read as GeV": (changed("jet_pt", lambda values: values / 1000), "median pt of the jets is 0.0"),
    "one absurd pt": (changed("lep_pt", with_value(1e7)), "pt of leptons of .* are above 100 TeV"),
    "absurd energy": (changed("jet_e", with_value(1e12)), "jet_e of .* are beyond any collider"),
    "zero sum of weights": (changed("sum_of_weights", lambda values: values * 0), "sum_of_weights is zero"),
    "infinite weight": (
        changed("mcWeight", with_value(np.inf)),
        r"weight of .*branch mcWeight.: .* are NaN or infinite",
    ),
    "negative event number": (changed("eventNumber", lambda values: -values), "event numbers must lie in"),
    "damaged RNTuple": (
        broken_rntuple,
        "RNTuple 'analysis' of .* damaged or of a version that uproot .* does not know",
    ),
    "HDF5 without pandas": (no_pandas, "is HDF5, but holds no table that pandas wrote; it has: energy"),
    "damaged HDF5": (broken_hdf5, "as an HDF5 file: it is truncated or damaged"),
}


def check_and_read(path: Path) -> EventBatch:
    inspect_file(path, load_schema("atlas_open_2025"))
    return read(path, "atlas_open_2025", {"label": 1})


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_has_its_own_sentence(kind: str, tmp_path: Path) -> None:
    make, message = BAD_FILES[kind]
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        check_and_read(path)
    assert caught.value.exit_code == 3
    assert str(caught.value).endswith((".", "?"))


def test_sound_file_is_read(small: Path) -> None:
    """Negative control of the bad files: the unchanged one has no problem."""
    assert len(check_and_read(small)) == 40


def parse_and_read(values: dict[str, Any], path: Path) -> None:
    data = parse(DataSettings, values, "data")
    batch = next(read_events(path, load_schema(data.schema_name), data, "a"))
    select(batch, data.select)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"schema": "mini"}, "unknown schema 'mini'"),
        ({"select": "met >"}, "selection 'met >' is not valid"),
        ({"negative_weights": "ignore"}, "'signed', 'abs' or 'drop'"),
        ({"samples": {"a": {"files": "a", "label": 3}, "b": {"files": "b", "label": 0}}}, "data: the labels must be 0"),
        ({"samples": {"a": {"files": "a", "label": "x"}, "b": {"files": "b", "label": 0}}}, "samples.a.label"),
        (
            {"samples": {"a": {"file": "a", "label": 1}, "b": {"files": "b", "label": 0}}},
            "unknown key 'samples.a.file'",
        ),
        ({"regions": {"a b": "met > 1"}}, "'a b' is not a possible name of a region"),
    ],
)
def test_bad_config_has_its_own_sentence(small: Path, more: dict[str, Any], message: str) -> None:
    values = {"samples": {"a": {"files": "a", "label": 1}, "b": {"files": "b", "label": 0}}, **more}
    with pytest.raises(ConfigError, match=message) as caught:
        parse_and_read(values, small)
    assert caught.value.exit_code == 2


def test_the_same_file_twice_is_refused_by_every_path(small: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.root"
    link.symlink_to(small)
    sample = data_settings("atlas_open_2025", {"files": [str(small), str(link)], "label": 1}).samples["a"]
    with pytest.raises(DataError, match=r"link.root' and '.*small.root' are the same file"):
        events.find_files("a", sample)
    twice = data_settings("atlas_open_2025", {"files": [str(small), f"{small.parent}/*.root"], "label": 1}).samples["a"]
    with pytest.raises(DataError, match="are the same file"):
        events.find_files("a", twice)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.root"
    path.write_bytes(small.read_bytes())
    path.chmod(0)
    with pytest.raises(DataError, match="permission denied"):
        inspect_file(path, load_schema("atlas_open_2025"))


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_says_which_schema_fits(small: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(small)])
    assert result.exit_code == 0
    assert "tree 'analysis' (TTree): 40 entries" in result.output
    assert "schema atlas_open_2025: fits" in result.output
    assert "schema atlas_open_2020: does not fit: there is no tree mini" in result.output
    assert "optional branches found: met_sig" in result.output
    assert "in a config: data.schema: atlas_open_2025" in result.output
    others = {name: schema for name, schema in SCHEMAS.items() if name != "atlas_open_2025"}
    unfitting = events.describe(events.inspect(small, others))[-1]
    assert unfitting.startswith(f"no schema fits: hepx inspect {small} --write-schema")
    with pytest.raises(DataError, match="has no tree 'mini'"):
        CliRunner().invoke(app, ["inspect", str(small), "--schema", "atlas_open_2020"], catch_exceptions=False)


def test_starter_schema_reads_once_it_is_filled_in(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert CliRunner().invoke(app, ["inspect", str(small), "--write-schema", str(path)]).exit_code == 0
    lines = path.read_text().splitlines()
    for number, (key, value) in enumerate(FILLED.items()):  # refused as long as one is left
        with pytest.raises(ConfigError) as caught:
            load_schema(str(path))
        left = [i for i, line in enumerate(lines, 1) if line.startswith(tuple(f"{one}:" for one in FILLED))][number:]
        assert [int(one) for one in re.findall(r"line (\d+) '", str(caught.value))] == left
        assert f"'{key}: FILL_IN # " in str(caught.value)
        path.write_text(path.read_text().replace(f"{key}: FILL_IN", f"{key}: {json.dumps(value)}"))
    assert read_yaml(path.read_text())["jet"]["branches"]["pt"] == "jet_pt"
    mine, ours = (read(small, name, {"label": 1}) for name in (str(path), "atlas_open_2025"))
    for name in ("n_bjet", "mbb", "met"):
        np.testing.assert_array_equal(mine.observables[name], ours.observables[name])
    with pytest.raises(ConfigError, match="exists already"):
        events.write_starter(events.inspect(small, {}), "", path)


@pytest.mark.parametrize("name", ["uproot-HZZ.root", "coffea_delphes.root", "nano_tt_v12.root"])
def test_starter_schema_of_real_files_loads(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    events.write_starter(events.inspect(real(name), {}), "", path)
    with pytest.raises(
        ConfigError, match=r"is not filled in: put a value in place of FILL_IN in line \d+ 'energy_unit"
    ):
        load_schema(str(path))
    path.write_text(re.sub(r'"FILL_IN"', "branch", path.read_text()))  # where no branch looked like it
    fill_in(path, **FILLED)
    assert load_schema(str(path)).jet


# --- anything at all ----------------------------------------------------------------------------------------------

NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.floats(-4, 4, width=32)
MOMENTA = st.floats(0, 2000, width=32)
OBJECT = st.tuples(MOMENTA | NUMBERS, NUMBERS, NUMBERS, MOMENTA | NUMBERS, st.integers(-1, 6))
SOUND = st.tuples(MOMENTA, st.floats(-5, 5, width=32), st.floats(-3, 3, width=32), MOMENTA, st.integers(1, 5))
EVENT = st.tuples(st.lists(SOUND, max_size=6), st.lists(SOUND, max_size=3), MOMENTA, st.floats(-9, 9, width=32))
WILD = st.tuples(st.lists(OBJECT, max_size=4), st.lists(OBJECT, max_size=2), NUMBERS, NUMBERS)


def file_of(found: list[Any], path: Path) -> Path:
    values = {name: value for name, value in columns(len(found)).items() if not name.startswith(("jet_", "lep_"))}
    for place, prefix, names in (
        (0, "jet", ("pt", "eta", "phi", "e", "btag_quantile")),
        (1, "lep", ("pt", "eta", "phi", "charge", "type")),
    ):
        counts = [len(event[place]) for event in found]
        flat = np.array([one for event in found for one in event[place]], dtype=np.float64).reshape(-1, 5)
        for i, name in enumerate(names):
            values[f"{prefix}_{name}"] = ak.unflatten(flat[:, i].astype(np.float32), counts)
    values["met"] = np.array([event[2] for event in found], dtype=np.float32)
    values["mcWeight"] = np.array([event[3] for event in found], dtype=np.float32)
    return write(path, values)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EVENT, min_size=1, max_size=8) | st.lists(WILD, min_size=1, max_size=3))
def test_any_events_become_sound_graphs_or_a_sentence(tmp_path: Path, found: list[Any]) -> None:
    path = file_of(found, tmp_path / "any.root")
    try:
        batch = read(path, "atlas_open_2025", {"label": 1})
    except HepxError:
        return  # a sentence; that it is the right one is the matter of the tests of bad files
    chosen, flow = select(batch, "n_jet >= 1")
    graphs = graphs_of(chosen)
    for name in ("jet", "lepton", "bjet"):
        pt = batch.objects[name].pt
        assert ak.all(pt[:, 1:] <= pt[:, :-1])
    np.testing.assert_array_equal(np.sign(batch.weight), np.sign([event[3] for event in found]))
    assert [cut.events for cut in flow] == [len(found), len(graphs)]
    objects, mask = graphs.object_index.numpy(), graphs.mask.numpy()
    np.testing.assert_array_equal(objects >= 0, mask)
    for row in objects:
        present = row[row >= 0].tolist()
        assert len(set(present)) == len(present)
    assert np.isfinite(graphs.x.numpy()).all()
    assert (graphs.x.numpy()[~mask] == 0).all()
