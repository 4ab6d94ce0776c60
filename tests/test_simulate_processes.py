"""Facts about the processes that hepx adds to Pythia's, and about the filters of all of them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import pytest
import uproot

from hepx.config import load, parse
from hepx.run import RunSettings
from hepx.simulate import PROCESSES, SimulateSettings, production
from hepx.simulate.generator import COMMON, FILTERS, generate
from hepx.simulate.processes import BR_W_LEPTONIC, Channel
from hepx.simulate.production import Recipe
from hepx.simulate.wjets import LEADING_ORDER_W
from hepx.simulate.wt import matrix_element, squared_amplitude

DATA = Path(__file__).parent.parent / "data"
SIGNAL, TTBAR, WT, WJETS = (PROCESSES[name].channels[0] for name in ("signal", "ttbar", "wt", "wjets"))
METRIC = np.diag([1.0, -1.0, -1.0, -1.0])
M_TOP, M_W = 172.5, 80.4


@pytest.fixture(scope="module", autouse=True)
def _generators() -> None:
    pytest.importorskip("pythia8mc", reason="needs the extra 'simulate' (Pythia)")
    pytest.importorskip("fastjet", reason="needs the extra 'simulate' (FastJet)")


# --- g b -> t W: the matrix element -------------------------------------------------------------------------------


def dirac() -> npt.NDArray[np.complex128]:
    """The matrices gamma^0 to gamma^3 in the Dirac representation, `[4, 4, 4]`."""
    one, zero = np.eye(2), np.zeros((2, 2))
    pauli = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
    space = [np.block([[zero, sigma], [-sigma, zero]]) for sigma in pauli]
    return np.array([np.block([[one, zero], [zero, -one]]), *space], dtype=complex)


GAMMA = dirac()
LEFT = (np.eye(4) - 1j * GAMMA[0] @ GAMMA[1] @ GAMMA[2] @ GAMMA[3]) / 2


def slash(p: npt.NDArray[np.float64]) -> npt.NDArray[np.complex128]:
    return np.einsum("m,mn,nij->ij", p, METRIC, GAMMA)


def momenta(energy: float, cosine: float, top: float, w: float) -> list[npt.NDArray[np.float64]]:
    """Gluon, b, top, W in the centre of mass for an angle between gluon and top; squared masses in GeV^2."""
    upper, lower = (math.sqrt(top) + math.sqrt(w)) ** 2, (math.sqrt(top) - math.sqrt(w)) ** 2
    p = math.sqrt((energy**2 - upper) * (energy**2 - lower)) / (2 * energy)
    x, z, half = p * math.sqrt(1 - cosine**2), p * cosine, energy / 2
    vectors = [(half, 0, 0, half), (half, 0, 0, -half)]
    vectors += [(math.sqrt(p**2 + top), x, 0, z), (math.sqrt(p**2 + w), -x, 0, -z)]
    return [np.array(vector) for vector in vectors]


def diagrams(gluon: Any, b: Any, top: Any, w: Any) -> list[npt.NDArray[np.complex128]]:
    """The two diagrams without couplings and spinors, `[4 (W), 4 (gluon), 4, 4]`: the b, or the top, propagates."""
    s, mass_squared = (gluon + b) @ METRIC @ (gluon + b), top @ METRIC @ top
    vertex, inner = GAMMA @ LEFT, top - gluon
    propagator = (slash(inner) + math.sqrt(mass_squared) * np.eye(4)) / (inner @ METRIC @ inner - mass_squared)
    return [
        np.einsum("mij,jk,nkl->mnil", vertex, slash(gluon + b) / s, GAMMA),
        np.einsum("nij,jk,mkl->mnil", GAMMA, propagator, vertex),
    ]


def trace(gluon: Any, b: Any, top: Any, w: Any) -> float:
    """Sum over spins of |diagram + diagram|^2 over 48, by matrix products: traces and metric sums, no algebra."""
    amplitude = sum(diagrams(gluon, b, top, w))
    mass = math.sqrt(top @ METRIC @ top)
    conjugate = GAMMA[0] @ np.swapaxes(amplitude.conj(), -1, -2) @ GAMMA[0]
    polarisation = -METRIC + np.outer(METRIC @ w, METRIC @ w) / (w @ METRIC @ w)
    lines = np.einsum(
        "ij,mnjk,kl,abli->mnab", slash(top) + mass * np.eye(4), amplitude, slash(b), conjugate, optimize=True
    )
    return float(np.einsum("mnab,ma,nb->", lines, polarisation, -METRIC).real) / 48


@pytest.mark.parametrize("cosine", [-0.95, -0.3, 0.4, 0.99])
@pytest.mark.parametrize("energy", [260.0, 500.0, 3000.0])
def test_wt_matrix_element_is_the_trace_of_its_diagrams(energy: float, cosine: float) -> None:
    gluon, b, top, w = momenta(energy, cosine, M_TOP**2, M_W**2)
    inner = gluon - top
    value = squared_amplitude(energy**2, float(inner @ METRIC @ inner), M_TOP**2, M_W**2)
    assert value == pytest.approx(trace(gluon, b, top, w), rel=1e-9)  # cancellations eat seven of sixteen digits
    other = gluon - w  # negative control: the other invariant
    wrong = squared_amplitude(energy**2, float(other @ METRIC @ other), M_TOP**2, M_W**2)
    assert value != pytest.approx(wrong, rel=0.01)


def test_the_two_wt_diagrams_are_gauge_invariant_only_together() -> None:
    """A gluon polarised along its momentum gives nothing between the spinors of top and b."""
    gluon, b, top, w = momenta(400.0, 0.3, M_TOP**2, M_W**2)

    def longitudinal(amplitude: Any) -> float:
        contracted = np.einsum("mnij,np,p->mij", amplitude, METRIC, gluon)
        return float(np.abs((slash(top) + M_TOP * np.eye(4)) @ contracted @ slash(b)).max())

    first, second = diagrams(gluon, b, top, w)
    assert longitudinal(first + second) < 1e-9 * longitudinal(first)


def test_wt_with_a_massless_top_is_quark_gluon_to_w_quark() -> None:
    # q g -> W q: (s^2 + u^2 + 2 t w) / (-s u), Halzen and Scott, Phys. Rev. Lett. 40 (1978) 1117; u: gluon to quark.
    s, w = 300.0**2, M_W**2
    for u in (-1e3, -2e4, -6e4):
        limit = (s**2 + u**2 + 2 * (w - s - u) * w) / (-s * u) / 12
        assert squared_amplitude(s, u, 1e-6, w) == pytest.approx(limit, rel=1e-6)
        assert squared_amplitude(s, u, M_TOP**2, w) != pytest.approx(limit, rel=0.1)


def hard_process(settings: tuple[str, ...], num_events: int, matrix_element: Any = None) -> Any:
    """A Pythia after `num_events` hard processes without showers."""
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    for line in (*COMMON, "PartonLevel:all = off", "Random:setSeed = on", "Random:seed = 4", *settings):
        assert pythia.readString(line), line
    if matrix_element is not None:
        pythia.setSigmaPtr(matrix_element)
    assert pythia.init()
    for _ in range(num_events):
        pythia.next()
    return pythia


def cross_section(pythia: Any) -> tuple[float, float]:
    """Value and error in pb."""
    info = pythia.infoPython()
    return info.sigmaGen() * 1e9, info.sigmaErr() * 1e9


def test_wt_cross_section_and_momentum_are_integrals_of_its_matrix_element() -> None:
    """Against a plain Monte Carlo integral over x1, x2 and the angle, with masses on their shells."""
    import pythia8mc

    element = matrix_element()
    pythia, pts = hard_process((), 0, element), np.zeros(4000)
    for i in range(len(pts)):
        pythia.next()
        pts[i] = pythia.process[5].pT()
    sigma, error = cross_section(pythia)
    parton = pythia.getPDFPtr(2212)
    alpha = pythia8mc.AlphaStrong()
    alpha.init(0.13, 1, 5, False)  # Pythia's SigmaProcess:alphaSvalue and order
    rng, num = np.random.default_rng(1), 10_000
    tau_min = ((M_TOP + M_W) / 13_000) ** 2
    tau = tau_min / (1 - (1 - tau_min) * rng.random(num))  # density like 1 / tau^2: mostly near the threshold
    x1 = tau ** rng.random(num)
    energy, cosine = 13_000 * np.sqrt(tau), rng.uniform(-1, 1, num)
    total, pt = np.zeros((2, num))
    for i in range(num):
        s = energy[i] ** 2
        gluon, _, top, _ = momenta(energy[i], cosine[i], M_TOP**2, M_W**2)
        transverse, pt[i] = top[1] ** 2, top[1]
        factorisation = transverse + M_W**2  # the smaller squared transverse mass; for alpha_s the geometric mean
        renormalisation = math.sqrt((transverse + M_W**2) * (transverse + M_TOP**2))
        inner = gluon - top
        couplings = (4 * math.pi) ** 2 * alpha.alphaS(renormalisation) / 127.5 / 0.2312
        squared = couplings * squared_amplitude(s, float(inner @ METRIC @ inner), M_TOP**2, M_W**2)
        flux = parton.xf(21, x1[i], factorisation) * 2 * parton.xf(5, tau[i] / x1[i], factorisation)
        # dx1/x1 dx2/x2 = dtau/tau d(ln x1); two beams; dcosθ = 2; dσ/dcosθ = |M|² p / (16 π s √s).
        momentum = math.sqrt(transverse / (1 - cosine[i] ** 2))
        jacobian = -2 * math.log(tau[i]) * tau[i] * (1 / tau_min - 1)
        total[i] = 2 * flux * jacobian * squared * momentum / (16 * math.pi * s * energy[i])
    expected, spread = 0.389379e9 * total.mean(), 0.389379e9 * total.std() / math.sqrt(num)
    # 2 %: running of alpha_em and the widths of top and W.
    assert abs(sigma - expected) < 3 * math.hypot(error, spread, 0.02 * expected / 3)
    assert spread < 0.02 * expected
    # The mean transverse momentum of the top, 99 GeV, has an error of 1.1 GeV from 4000 events: 3 sigma.
    assert pts.mean() == pytest.approx(float(np.average(pt, weights=total)), abs=3.5)
    # 71.7 pb at approximate NNLO: corrections of a few tens of per cent, like those of all top processes.
    assert 1.2 < WT.xsec / sigma < 1.5


def test_wt_makes_top_and_antitop_alike_and_its_w_has_the_helicities_of_a_top_decay() -> None:
    element = matrix_element()
    pythia = hard_process((), 0, element)
    signs, cosines = [], []
    for _ in range(2500):
        pythia.next()
        event = pythia.process
        assert event[5].id() * event[6].id() == -6 * 24
        assert event[5].charge() + event[6].charge() == pytest.approx(event[3].charge() + event[4].charge())
        signs.append(np.sign(event[5].id()))
        boson = event[event[5].daughter1()]
        fermion = next(event[i] for i in (boson.daughter1(), boson.daughter2()) if event[i].idAbs() % 2)
        cosines.append(decay_cosine(event[5], boson, fermion))
    assert abs(np.mean(signs)) < 4 / math.sqrt(2500)
    # (F_R - F_L) / 2 with F_L = 0.30 for m_t^2 / (2 m_W^2) = F_0 / F_L; a flat distribution has 0 ± 0.012.
    assert np.mean(cosines) == pytest.approx(-0.15, abs=0.04)


def decay_cosine(top: Any, boson: Any, fermion: Any) -> float:
    """Cosine between the charged lepton (or down-type quark) in the W frame and the W in the top frame."""

    def four(particle: Any) -> npt.NDArray[np.float64]:
        return np.array([particle.e(), particle.px(), particle.py(), particle.pz()])

    # In the W frame, the top flies opposite to where the W flies in the top frame.
    t, w, f = four(top), four(boson), four(fermion)
    product = lambda a, b: float(a @ METRIC @ b)  # noqa: E731
    mass = math.sqrt(product(w, w))
    energy_t, energy_f = product(t, w) / mass, product(f, w) / mass
    length = math.sqrt((energy_t**2 - product(t, t)) * (energy_f**2 - product(f, f)))
    return (product(t, f) - energy_t * energy_f) / length


# --- W + jets -----------------------------------------------------------------------------------------------------


def test_wjets_cross_sections_are_those_of_pythia() -> None:
    undecayed = "ProcessLevel:resonanceDecays = off"
    hard = tuple(line for line in WJETS.pythia if line.startswith(("Weak", "Phase")))
    for settings, expected in ((hard, WJETS.xsec), (("WeakSingleBoson:ffbar2W = on",), LEADING_ORDER_W)):
        sigma, error = cross_section(hard_process((*settings, undecayed), 4000))
        assert abs(sigma - expected) < 4 * error
        assert error < 0.02 * sigma
    assert WJETS.kfac == pytest.approx(61_526.7 / (LEADING_ORDER_W * BR_W_LEPTONIC))


def beauty(channel: Channel, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Weights of 1200 generated events, and which of them hold b quarks of a splitting."""
    batches = list(generate(channel, seed, 100.0, None, 1200))
    weight = np.concatenate([batch.weight for batch in batches])
    split = [ak.any((abs(batch.records.id) == 5) & (abs(batch.records.status) == 51), axis=1) for batch in batches]
    return weight, ak.to_numpy(ak.concatenate(split))


def test_enhanced_splittings_are_weighted_back() -> None:
    (weight, split), (ones, plain) = beauty(WJETS, 1), beauty(replace(WJETS, enhanced=""), 2)
    assert np.all(ones == 1)
    assert abs(weight.mean() - 1) < 4 * weight.std() / math.sqrt(len(weight))
    rate, error = plain.mean(), math.sqrt(plain.sum()) / len(plain)
    weighted, spread = np.mean(weight * split), np.sqrt(np.sum((weight * split) ** 2)) / len(weight)
    assert abs(weighted - rate) < 4 * math.hypot(error, spread)
    assert split.mean() - rate > 4 * error  # negative control: without the weights there are too many


def test_the_weight_of_an_event_reaches_its_mcweight(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(seed=2, met_min=40.0, filters="none", chunk_size=400)

    def weighted(*arguments: Any) -> Any:
        for batch in generate(*arguments):
            yield replace(batch, weight=np.arange(len(batch.weight)) + 1.0)

    plain = production.generate_chunk(SIGNAL, 0, recipe).events
    monkeypatch.setattr(production, "generate", weighted)
    events = production.generate_chunk(SIGNAL, 0, recipe).events
    assert ak.all(events.met == plain.met)
    number = ak.to_numpy(events.mcWeight) / detector_weight(plain)
    assert np.all(np.diff(number) > 0)
    np.testing.assert_allclose(number, np.round(number), rtol=1e-9)


def detector_weight(events: ak.Array) -> float:
    (weight,) = np.unique(ak.to_numpy(events.mcWeight))
    return float(weight)


# --- filters and the recipe of the shipped sample -----------------------------------------------------------------


def test_tight_filters_reject_more_than_loose_ones_and_lose_few_selected_events() -> None:
    """Looking on, both judge the same events."""
    loose, tight = (
        production.generate_chunk(SIGNAL, 1, Recipe(7, 100.0, name, 800, looking_on=True)).events
        for name in ("loose", "tight")
    )
    assert ak.all(loose.met == tight.met)
    assert not ak.any(tight.passed & ~loose.passed)
    assert float(ak.mean(loose.passed)) > 0.9
    assert float(ak.mean(tight.passed)) > 0.85
    generated = {
        name: np.concatenate([b.passed for b in generate(TTBAR, 5, 100.0, FILTERS[name], 400, looking_on=True)]).mean()
        for name in ("loose", "tight")
    }
    assert generated["tight"] < 0.8 * generated["loose"] < 0.5


@pytest.mark.parametrize(("name", "index"), [("signal", 4), ("ttbar", 0), ("singletop", 1)])
def test_the_recipe_of_the_shipped_sample_still_makes_it(name: str, index: int) -> None:
    """The first chunk of a channel, with the options that data/README.md gives."""
    channel = PROCESSES[name].channels[index]
    shipped = uproot.open(DATA / f"{name}.root")["analysis"].arrays(["channelNumber", "met", "mcWeight"])
    shipped = shipped[shipped.channelNumber == channel.number]

    def found(recipe: Recipe) -> float:
        events = production.generate_chunk(channel, 0, recipe).events
        assert len(events) > 5
        assert np.float32(detector_weight(events)) == np.float32(detector_weight(shipped))
        return float(np.mean(np.isin(ak.to_numpy(events.met).astype(np.float32), ak.to_numpy(shipped.met))))

    assert found(Recipe(42, 100.0, "loose", 800)) == 1.0
    if name == "signal":
        assert found(Recipe(42, 100.0, "tight", 800)) < 1.0
        assert found(Recipe(43, 100.0, "loose", 800)) == 0.0


def test_the_large_config_runs_what_its_command_makes() -> None:
    """Its comment holds a command; the samples of the config are the files that the command makes."""
    path = DATA.parent / "configs" / "large.yaml"
    (command,) = re.findall(r"hepx simulate ((?:\w+=\d+ )+).*--output (\w+)", path.read_text())
    wanted = dict(text.split("=") for text in command[0].split())
    assert set(wanted) == set(PROCESSES)
    assert sum(map(int, wanted.values())) >= 100_000
    settings = parse(RunSettings, load(path), str(path))
    for name, sample in settings.data.samples.items():
        (pattern,) = sample.files
        for shard in ("1/1", "3/20"):
            made = SimulateSettings(process=name, num_events=int(wanted.pop(name, 1)), shard=shard).file_name
            assert fnmatch(f"{command[1]}/{made}", pattern)
    assert not wanted
