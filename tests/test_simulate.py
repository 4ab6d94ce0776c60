"""Facts about the event generation and the toy detector."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
import vector
from pydantic import ValidationError

from hepx import kinematics
from hepx.errors import ConfigError, HepxError
from hepx.progress import progress
from hepx.simulate import PROCESSES, SimulateSettings, chunk_folder, detector, production, simulate, truth
from hepx.simulate.detector import UNWEIGHTING
from hepx.simulate.processes import MASS_GRID, SIGNAL, TTBAR, WINO_XSEC, Channel, Process, slha
from hepx.simulate.production import ALL, Chunk, InProcess, Recipe, Shard, Workers
from hepx.simulate.truth import HADRON, HIGGS, TOP, W
from hepx.simulate.writer import OBJECTS, SCALARS, write_tree

RECIPE = Recipe(seed=5, met_min=100.0, filters="loose", chunk_size=800)
POINT = SIGNAL.channels[2]  # (300, 75) GeV
ONE_POINT = Process("signal", "one mass point", (POINT,))


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture(scope="module")
def generators() -> None:
    """Skip, with the reason, where the extra is not installed."""
    pytest.importorskip("pythia8mc", reason="needs the extra 'simulate' (Pythia)")
    pytest.importorskip("fastjet", reason="needs the extra 'simulate' (FastJet)")


@pytest.fixture(scope="module")
def signal_chunk(generators: None) -> Chunk:
    return production.generate_chunk(POINT, 0, RECIPE)


@pytest.fixture(scope="module")
def ttbar_chunk(generators: None) -> Chunk:
    return production.generate_chunk(TTBAR.channels[0], 0, RECIPE)


# --- doors and settings -------------------------------------------------------------------------------------------


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_no_generator() -> None:
    assert run_python("import sys, hepx.simulate; print({'pythia8mc', 'fastjet'} & set(sys.modules))") == "set()\n"


def test_a_missing_generator_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pythia8mc", None)
    with pytest.raises(ConfigError, match=r"needs the extra 'simulate': in the hepx folder, pip install -e"):
        simulate(SimulateSettings(process="ttbar"), tmp_path / "ttbar.root")
    assert not list(tmp_path.iterdir())


def test_an_unknown_process_gives_the_closest_name() -> None:
    with pytest.raises(ConfigError, match="there is no process 'tbar'; closest: 'ttbar'"):
        SimulateSettings(process="tbar")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"filters": "tite"}, "there are no filters 'tite'; closest: 'tight'"),
        ({"shard": "4/3"}, "there is no shard 4 of 3; the last one is 3/3"),
    ],
)
def test_unknown_filters_and_shards_are_explained(wrong: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SimulateSettings(process="signal", **wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"num_events": 0}, {"shard": "0/2"}, {"shard": "1"}, {"workers": 0}, {"met_min": -1.0}, {"luminosity": 139.0}],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SimulateSettings(process="signal", **wrong)


# --- processes ----------------------------------------------------------------------------------------------------


def test_channels_can_be_told_apart_and_normalised() -> None:
    channels = [channel for process in PROCESSES.values() for channel in process.channels]
    assert len({channel.number for channel in channels}) == len(channels)
    assert all(channel.xsec > 0 and 0 < channel.filteff <= 1 and channel.share > 0 for channel in channels)
    assert all(name == process.name for name, process in PROCESSES.items())


def test_every_mass_point_allows_an_on_shell_higgs_and_the_cross_section_falls_with_mass() -> None:
    assert all(m_wino - m_lsp > 125 and m_wino <= 500 for m_wino, m_lsp in MASS_GRID)
    sections = [WINO_XSEC[mass] for mass in sorted(WINO_XSEC)]
    assert sections == sorted(sections, reverse=True)


def test_slha_holds_the_masses_the_decays_and_a_bino_lsp() -> None:
    blocks: dict[str, list[str]] = {}
    for line in slha(300.0, 75.0).splitlines():
        if line.startswith(("BLOCK", "DECAY")):
            entries = blocks.setdefault(" ".join(line.split()[:2]), [])
        else:
            entries.append(line)
    masses = {int(code): float(mass) for code, mass in (line.split() for line in blocks["BLOCK MASS"])}
    assert (masses[1000022], masses[1000023], masses[1000024]) == (75.0, 300.0, 300.0)
    light = {code for code, mass in masses.items() if mass < 1000}
    assert light == {25, 1000022, 1000023, 1000024}
    assert blocks["DECAY 1000023"] == [" 1.0 2 1000022 25"]
    assert blocks["DECAY 1000024"] == [" 1.0 2 1000022 24"]
    mixing = np.zeros((4, 4))
    for line in blocks["BLOCK NMIX"]:
        row, column, value = line.split()
        mixing[int(row) - 1, int(column) - 1] = float(value)
    np.testing.assert_allclose(mixing @ mixing.T, np.eye(4), atol=1e-7)  # eight digits in the text
    assert mixing[0, 0] == mixing[1, 1] == 1.0


# --- history ------------------------------------------------------------------------------------------------------


def test_origin_is_the_nearest_resonance_and_a_hadron_hides_it() -> None:
    # 0 system, 1 proton beam, 2 top, 3 top copy, 4 gluon off the top, 5 b, 6 W, 7 mu, 8 b after a gluon emission,
    # 9 that gluon, 10 B hadron, 11 mu of its decay
    code = np.array([90, 2212, 6, 6, 21, 5, 24, -13, 5, 21, 511, 13])
    status = np.array([-11, -12, -22, -62, -51, -23, -22, 1, -51, -51, -83, 1])
    mother = np.array([0, 0, 1, 2, 2, 3, 3, 6, 5, 5, 8, 10])
    origin = truth.nearest_ancestor(truth.origin_labels(code, status, mother), mother)
    assert origin.tolist() == [0, 0, 0, 0, 0, TOP, TOP, W, TOP, TOP, HADRON, HADRON]


def test_only_the_end_of_a_shower_counts_as_last() -> None:
    # quark -> quark + gluon, quark -> hadron: the second quark and the gluon are last.
    code, mother = np.array([90, 2, 2, 21, 211]), np.array([0, 0, 1, 1, 2])
    assert truth.is_last(code, mother, np.zeros(5, dtype=int)).tolist() == [False, False, True, True, False]


@pytest.mark.parametrize(
    ("quark", "hadrons"), [(5, (511, 513, 541, 553, 5122)), (4, (421, 443, 4122)), (None, (5, 211, 2112, 1000022))]
)
def test_heaviest_quark_of_pdg_ids(quark: int | None, hadrons: tuple[int, ...]) -> None:
    code = np.array(hadrons)
    assert np.all(truth.holds(code, 5) == (quark == 5))
    assert np.all(truth.holds(code, 4) == (quark == 4))


# --- detector -----------------------------------------------------------------------------------------------------


def particles(count: int, **columns: float) -> ak.Array:
    """`count` events of one particle."""
    masks = {
        "final": True,
        "invisible": False,
        "seen": True,
        "jet_muon": False,
        "last": False,
        "code": 211,
        "origin": 1,
    }
    return vector.zip({name: np.full((count, 1), value) for name, value in (masks | columns).items()})[:, :]


@pytest.mark.parametrize("pt", [30.0, 300.0])
def test_the_energy_of_a_jet_is_smeared_with_the_resolution(
    generators: None, rng: np.random.Generator, pt: float
) -> None:
    single = ak.from_regular(particles(20_000, px=pt, py=0.0, pz=0.5 * pt, energy=1.2 * pt))
    jets = detector.cluster(single, rng)
    assert ak.all(ak.num(jets) == 1)
    response = ak.to_numpy(jets.pt[:, 0]) / pt
    expected = np.sqrt((3.3 / pt) ** 2 + 0.74**2 / pt + 0.03**2)
    # The error of a mean of n numbers is width/sqrt(n) = 0.7 % of the width, that of a width 0.5 %: 4 sigma.
    assert abs(response.mean() - 1) < 0.03 * expected
    assert response.std() == pytest.approx(expected, rel=0.02)
    np.testing.assert_allclose(ak.to_numpy(jets.eta[:, 0]), np.arcsinh(0.5), rtol=1e-12)


def test_fastjet_writes_no_banner(generators: None) -> None:
    cluster = "fastjet.ClusterSequence(particle, fastjet.JetDefinition(fastjet.antikt_algorithm, 0.4)).inclusive_jets()"
    setup = "import awkward as ak, fastjet; from hepx.simulate.detector import silence_fastjet\n"
    setup += "particle = ak.Array([[{'px': 50.0, 'py': 0.0, 'pz': 0.0, 'E': 50.0}]])\n"
    assert run_python(f"{setup}silence_fastjet()\n{cluster}\n") == ""
    assert "FastJet" in run_python(f"{setup}{cluster}\n")


def test_overlap_removal() -> None:
    def at(distances: list[list[float]], pt: float = 50.0) -> ak.Array:
        phi = ak.Array(distances)
        return vector.zip({"pt": phi * 0 + pt, "eta": phi * 0, "phi": phi, "mass": phi * 0})

    lepton = vector.zip({"pt": np.full(4, 50.0), "eta": np.zeros(4), "phi": np.zeros(4), "mass": np.zeros(4)})
    lepton = ak.with_field(lepton, np.array([11, 11, 13, 13]), "code")
    # The electron itself; a jet beside the electron; a jet beside a muon; a jet outside 0.04 + 10/50 = 0.24.
    jets, isolated = detector.remove_overlap(at([[0.1, 1.0], [0.3], [0.2], [0.3]]), lepton)
    assert ak.num(jets).tolist() == [1, 1, 1, 1]
    assert isolated.tolist() == [True, False, False, True]
    _, isolated = detector.remove_overlap(at([[0.3], [0.3], [0.2], [0.2]], pt=15.0), lepton)
    assert ak.all(isolated)  # jets below 20 GeV are not jets


def test_choose_draws_in_proportion_and_rejects_the_rest(rng: np.random.Generator) -> None:
    index = detector.choose(np.tile([0.2, 0.0, 0.3], (40_000, 1)), 0.8, rng)
    fractions = [np.mean(index == value) for value in (0, 1, 2, -1)]
    np.testing.assert_allclose(fractions, [0.25, 0.0, 0.375, 0.375], atol=0.01)  # 4 sigma = 0.0097
    assert np.all(detector.choose(np.zeros((3, 0)), 0.8, rng) == -1)


def test_pair_probabilities_are_those_of_independent_tags(rng: np.random.Generator) -> None:
    efficiency = rng.random(3)
    expected = np.zeros(3)
    for decision in itertools.product((True, False), repeat=3):
        if sum(decision) == 2:
            expected[decision.index(False)] = np.prod(np.where(decision, efficiency, 1 - efficiency))
    np.testing.assert_allclose(detector.pair_probabilities(efficiency[np.newaxis])[0], expected, rtol=1e-12)


def test_tag_efficiencies() -> None:
    flavour, pt = np.array([5, 4, 15, 0]), np.full(4, 100.0)
    central = detector.tag_efficiency(flavour, pt, np.zeros(4)) / detector.tag_shape(100.0)
    np.testing.assert_allclose(central[0], [0.85, 0.77, 0.70, 0.60])
    np.testing.assert_allclose(1 / central[1:, 1], [6.0, 22.0, 134.0])
    assert np.all(detector.tag_efficiency(flavour, pt, np.full(4, -2.6)) == 0)  # outside the tracker


def test_accept_and_reject_never_needs_a_probability_above_one() -> None:
    pts = np.geomspace(20, 3000, 500)
    best = detector.tag_efficiency(np.full(500, 5), pts, np.zeros(500))[:, 1].max()
    grid = np.stack(np.meshgrid(*[np.linspace(0, best, 41)] * 3), axis=-1).reshape(-1, 3)
    assert detector.pair_probabilities(grid).sum(axis=1).max() <= detector.TAG_MAXIMUM


def test_tagging_accepts_the_right_fraction_and_keeps_the_shape_of_the_quantiles(rng: np.random.Generator) -> None:
    def run(flavours: list[int]) -> tuple[float, ak.Array]:
        count = 40_000
        flavour = ak.Array(np.tile(flavours, (count, 1)))
        flavour = ak.from_regular(flavour)
        quantile = detector.tag(flavour, flavour * 0 + 100.0, flavour * 0.0, rng)
        return float(ak.mean(ak.num(quantile) > 0)), quantile[ak.num(quantile) > 0]

    tagged = 0.77 * detector.tag_shape(100.0)
    fraction, quantile = run([5, 5])
    assert fraction == pytest.approx(tagged**2 / 0.66, abs=0.01)
    assert ak.all(quantile >= 3)
    assert float(ak.mean(quantile == 5)) == pytest.approx(0.60 / 0.77, abs=0.01)
    fraction, quantile = run([5, 5, 0])
    assert ak.all(ak.sum(quantile >= 3, axis=1) == 2)
    assert float(ak.mean(quantile[:, 2] >= 3)) < 0.02
    fraction_light, _ = run([0, 0])
    assert fraction_light < 0.001 < fraction


def test_met_significance_is_the_projection_on_the_direction_of_met(rng: np.random.Generator) -> None:
    phi, sigma = rng.uniform(-np.pi, np.pi, 4), rng.uniform(2, 20, 4)
    px, py = 120.0, -35.0
    covariance = sum(s**2 * np.outer(u, u) for s, u in zip(sigma, np.stack([np.cos(phi), np.sin(phi)], 1), strict=True))
    covariance = covariance + 8.9**2 * np.eye(2)
    met, angle = np.hypot(px, py), np.arctan2(py, px)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    (v_l, v_lt), (_, v_t) = rotation @ covariance @ rotation.T
    expected = met / np.sqrt(v_l * (1 - v_lt**2 / (v_l * v_t)))
    value = kinematics.significance(np.array([px]), np.array([py]), ak.Array([phi]), ak.Array([sigma]))
    assert value[0] == pytest.approx(expected, rel=1e-12)


def test_a_jet_along_met_lowers_the_significance_and_one_across_does_not() -> None:
    def significance(phi: list[float]) -> float:
        sigma = ak.Array([[20.0] * len(phi)])
        return float(kinematics.significance(np.array([100.0]), np.array([0.0]), ak.Array([phi]) * 1.0, sigma)[0])

    assert significance([np.pi / 2]) == pytest.approx(100 / 8.9)
    assert significance([0.0]) == pytest.approx(100 / np.hypot(8.9, 20.0))


# --- production ---------------------------------------------------------------------------------------------------


def test_quotas_add_up() -> None:
    for count in (1, 7, 100, 8001):
        quotas = production.quotas([0.84, 0.16, 1.0], count)
        assert sum(quotas) == count
        assert min(quotas) >= 0


def test_a_part_of_a_chunk_keeps_its_acceptance() -> None:
    part = production.first_part(Chunk(ak.Array(np.arange(50)), 1000), 20)
    assert (len(part.events), part.num_tried) == (20, 400)


def test_the_result_depends_on_the_seed_and_not_on_the_workers(generators: None) -> None:
    recipe = replace(RECIPE, chunk_size=100)  # several chunks, so that the two workers share them
    one = production.produce(ONE_POINT, 40, recipe, num_workers=1)
    two = production.produce(ONE_POINT, 40, recipe, num_workers=2)
    assert one.num_events[0] > 2 * recipe.chunk_size
    assert one.fields == two.fields
    assert ak.array_equal(one, two)
    other = production.produce(ONE_POINT, 10, replace(recipe, seed=6), num_workers=1)
    assert not np.any(np.isin(ak.to_numpy(other.met), ak.to_numpy(one.met)))
    assert sorted(one.eventNumber) == list(range(1, 41))


def test_the_same_events_give_the_same_bytes(generators: None, tmp_path: Path) -> None:
    """At another time and under another name; another title is another file."""
    events = production.produce(ONE_POINT, 5, replace(RECIPE, chunk_size=100), num_workers=1)
    first, second, other = (tmp_path / name for name in ("a.root", "b.root", "c.root"))
    write_tree(events, first, "title")
    time.sleep(1.1)  # ROOT's time stamps count seconds
    write_tree(events, second, "title")
    write_tree(events, other, "another title")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_a_killed_worker_is_explained() -> None:
    sentence = "a worker process was killed, .* what is generated is kept. Run again with fewer --workers"
    with pytest.raises(HepxError, match=sentence), production.start_workers(2) as workers:
        workers.pool.submit(os._exit, 9).result()


def test_a_stopped_production_goes_on_with_its_chunks(
    generators: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as without a stop; no finished chunk is generated again, and none of another seed is taken."""
    settings = SimulateSettings(process="signal", num_events=48, seed=3, filters="loose", chunk_size=200)
    whole = simulate(settings, tmp_path / "whole" / "signal.root")
    output = tmp_path / "signal.root"
    chunks, made, real = chunk_folder(settings, output), [], production.generate_chunk

    def stops(channel: Channel, index: int, recipe: Recipe) -> Chunk:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((channel.number, index))
        return real(channel, index, recipe)

    monkeypatch.setattr(production, "generate_chunk", stops)
    with pytest.raises(KeyboardInterrupt):
        simulate(settings, output, chunks)
    assert not output.exists()
    kept = {path.name for path in chunks.iterdir()}
    assert kept == {f"{number}-{index:06d}.npz" for number, index in made}

    def goes_on(channel: Channel, index: int, recipe: Recipe) -> Chunk:
        assert (channel.number, index) not in made
        return real(channel, index, recipe)

    monkeypatch.setattr(production, "generate_chunk", goes_on)
    assert simulate(settings, output, chunks).read_bytes() == whole.read_bytes()
    assert {path.name for path in chunks.iterdir()} > kept
    assert chunk_folder(settings.model_copy(update={"seed": 4}), output) != chunks
    assert chunk_folder(settings.model_copy(update={"workers": 4}), output) == chunks


def test_chunks_are_different_and_taken_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(channel: object, index: int, recipe: Recipe) -> Chunk:
        return Chunk(ak.Array({"value": np.full(30, index)}), 100)

    monkeypatch.setattr(production, "generate_chunk", fake)
    with progress("test", 70) as advance:
        total = production.generate_channel(POINT, 70, RECIPE, ALL, Workers(InProcess(), ahead=3), advance)
    assert total.events.value.tolist() == [0] * 30 + [1] * 30 + [2] * 10
    assert total.num_tried == 233


def fake_chunk(channel: object, index: int, recipe: Recipe) -> Chunk:
    """30 events that carry the index of their chunk, of 1000 tried; 40 of 1000 where the index is odd."""
    count = 30 + index % 2 * 10
    return Chunk(ak.Array({"mcWeight": np.ones(count), "index": np.full(count, index)}), 1000)


def test_shards_share_nothing_and_are_the_sample_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(production, "generate_chunk", fake_chunk)
    shards = [production.produce(ONE_POINT, 1000, RECIPE, 1, Shard(number, 3)) for number in (1, 2, 3)]
    assert [len(shard) for shard in shards] == [333, 333, 334]
    numbers = np.concatenate([shard.eventNumber for shard in shards])
    assert len(np.unique(numbers)) == 1000
    chunks = [set(shard["index"].tolist()) for shard in shards]
    assert len(set.union(*chunks)) == sum(map(len, chunks))
    assert set.union(*chunks) >= set(range(24))

    # All files together give the yield of 35 selected of 1000 tried; the weights of one file give its part of it.
    def weights(shard: ak.Array) -> ak.Array:
        return shard.mcWeight / shard.sum_of_weights

    total = sum(float(ak.sum(weights(shard))) for shard in shards)
    assert total == pytest.approx(0.035, rel=0.01)  # chunks are whole but for the last one of a shard
    assert float(ak.sum(weights(shards[0]))) == pytest.approx(total / 3, rel=0.05)
    whole = production.produce(ONE_POINT, 1000, RECIPE, 1)
    assert float(ak.sum(weights(whole))) == pytest.approx(total, rel=0.01)
    assert sorted(whole.eventNumber) == list(range(1, 1001))


def test_an_empty_shard_is_explained() -> None:
    with pytest.raises(ConfigError, match="shard 1/9 of 3 events is empty; make fewer shards or more events"):
        production.produce(ONE_POINT, 3, RECIPE, 1, Shard(1, 9))


def test_a_shard_comes_out_the_same_wherever_it_is_made(
    generators: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, after another one, or by two workers; together they have the layout and the yield of one sample."""
    monkeypatch.setitem(PROCESSES, "signal", ONE_POINT)

    def make(shard: str, folder: str, workers: int = 1) -> Path:
        settings = SimulateSettings(
            process="signal", num_events=60, seed=3, chunk_size=200, shard=shard, workers=workers
        )
        return simulate(settings, tmp_path / folder / settings.file_name)

    first, second, again = make("1/2", "a"), make("2/2", "a"), make("2/2", "b", workers=2)
    assert [path.name for path in (first, second)] == ["signal_1of2.root", "signal_2of2.root"]
    assert second.read_bytes() == again.read_bytes() != first.read_bytes()
    events = uproot.concatenate([f"{first}:analysis", f"{second}:analysis"])
    assert len(events) == len(np.unique(events.eventNumber)) == len(np.unique(ak.to_numpy(events.met))) == 60
    # 0.068 of W -> l nu, h -> bb (the table of data/README.md) is selected at this mass point, 60 events are 13 %.
    assert float(ak.sum(events.mcWeight / events.sum_of_weights)) == pytest.approx(0.068, rel=0.4)


def test_selected_events_obey_the_selection(signal_chunk: Chunk, ttbar_chunk: Chunk) -> None:
    for events in (signal_chunk.events, ttbar_chunk.events):
        assert len(events) > 10
        assert ak.all(events.met > 100)
        assert ak.all((ak.num(events.jet_pt) == 2) | (ak.num(events.jet_pt) == 3))
        assert ak.all(ak.num(events.lep_pt) == 1)
        assert ak.all(ak.sum(events.jet_btag_quantile >= 3, axis=1) == 2)
        assert ak.all(events.jet_pt > 30)
        assert ak.all(events.lep_pt > 25)
        assert ak.all(events.jet_pt[:, 0] >= events.jet_pt[:, 1])
        vectors = vector.zip({"pt": events.jet_pt, "eta": events.jet_eta, "phi": events.jet_phi, "E": events.jet_e})
        assert ak.all(vectors.mass >= 0)


def test_tagged_jets_come_from_the_higgs_in_signal_and_from_top_in_ttbar(
    signal_chunk: Chunk, ttbar_chunk: Chunk
) -> None:
    def tagged_b_from(events: ak.Array, parent: int) -> float:
        beauty = (events.jet_btag_quantile >= 3) & (events.jet_truthflav == 5)
        return float(ak.mean(events.jet_truth_parent[beauty] == parent))

    assert tagged_b_from(signal_chunk.events, HIGGS) > 0.95
    assert tagged_b_from(ttbar_chunk.events, TOP) > 0.90
    assert tagged_b_from(ttbar_chunk.events, HIGGS) == tagged_b_from(signal_chunk.events, TOP) == 0


def test_met_is_the_truth_smeared(signal_chunk: Chunk) -> None:
    events = signal_chunk.events
    measured = events.met * np.cos(events.met_phi)
    residual = measured - events.truth_met * np.cos(events.truth_met_phi)
    assert 8.9 < float(ak.std(residual)) < 22  # GeV per axis; 8.9 is the noise of the soft term alone
    np.testing.assert_allclose(events.met_mpx, measured, atol=1e-9)
    unrelated = np.roll(events.truth_met * np.cos(events.truth_met_phi), 1)
    assert float(ak.std(measured - unrelated)) > 100


def test_the_filters_do_not_change_the_acceptance(signal_chunk: Chunk) -> None:
    """Filtered and unfiltered generation give the same acceptance but for the 3 % that the filters lose."""
    free = [production.generate_chunk(POINT, index, replace(RECIPE, filters="none")) for index in range(2)]
    selected, tried = sum(len(chunk.events) for chunk in free), sum(chunk.num_tried for chunk in free)
    assert tried == pytest.approx(2 * 800, abs=5)
    ratio = (len(signal_chunk.events) / signal_chunk.num_tried) / (selected / tried)
    sigma = np.sqrt(1 / len(signal_chunk.events) + 1 / selected)
    assert abs(ratio - 0.97) < 3 * sigma
    assert signal_chunk.num_tried > 1.2 * 800  # negative control: the filters did reject


def test_events_without_leptons_or_jets_are_rejected(generators: None, rng: np.random.Generator) -> None:
    beam = {
        "id": 2212,
        "status": -12,
        "mother1": 0,
        "mother2": 0,
        "p": {"px": 0.0, "py": 0.0, "pz": 6500.0, "e": 6500.0},
    }
    pion = {"id": 211, "status": 1, "mother1": 0, "mother2": 0, "p": {"px": 9.0, "py": 0.0, "pz": 0.0, "e": 9.0}}
    muon = {"id": 13, "status": 1, "mother1": 0, "mother2": 0, "p": {"px": 90.0, "py": 0.0, "pz": 0.0, "e": 90.0}}
    no_lepton, _ = detector.reconstruct(ak.Array([[beam, pion], [beam, pion]]), 100.0, rng)
    no_jets, _ = detector.reconstruct(ak.Array([[beam, pion, muon]] * 5), 50.0, rng)
    assert len(no_lepton) == len(no_jets) == 0
    assert no_lepton.fields == no_jets.fields


# --- file ---------------------------------------------------------------------------------------------------------


def test_the_file_has_the_open_data_layout_and_its_weights_give_the_yield(signal_chunk: Chunk, tmp_path: Path) -> None:
    events = production.normalise(signal_chunk, POINT, len(signal_chunk.events))
    events = ak.with_field(events, np.arange(1, len(events) + 1), "eventNumber")
    path = write_tree(events, tmp_path / "signal.root", "a title")
    with uproot.open(path) as file:
        tree = file["analysis"]
        assert tree.title == "a title"
        expected = [*SCALARS, *(f"{kind}_{name}" for kind, fields in OBJECTS.items() for name in ("n", *fields))]
        assert tree.keys() == expected
        read = tree.arrays()
    assert read.jet_n.tolist() == ak.num(events.jet_pt).tolist()
    np.testing.assert_allclose(ak.flatten(read.jet_pt), ak.flatten(events.jet_pt), rtol=1e-6)
    assert set(read.susy_mC1N2) == {300.0}
    assert set(read.susy_mN1) == {75.0}
    luminosity = 1000.0  # 1/pb
    weight = luminosity * read.xsec * read.kfac * read.filteff * read.mcWeight / read.sum_of_weights
    acceptance = len(events) * UNWEIGHTING / signal_chunk.num_tried
    # 0.3258 and 0.5824: W -> l nu and h -> bb.
    assert float(ak.sum(weight)) == pytest.approx(luminosity * 0.386936 * 0.3258 * 0.5824 * acceptance, rel=1e-5)


def test_a_run_that_dies_leaves_no_file(generators: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hepx.simulate.writer.branches", broken)
    with pytest.raises(KeyboardInterrupt):
        write_tree(ak.Array([]), tmp_path / "signal.root", "")
    assert not list(tmp_path.iterdir())
