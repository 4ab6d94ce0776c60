"""Pythia: from a channel and a seed to arrays of particles (arXiv:2203.11601).

Leading-order matrix elements with initial- and final-state showers and hadronisation; no multiparton interactions,
which make an event five times slower and shift the m_bb median of the signal by 2 % only.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from hepx.errors import ConfigError, HepxError
from hepx.simulate.processes import Channel, slha

COMMON = (
    "Print:quiet = on",
    "SLHA:verbose = 0",
    "Beams:eCM = 13000.",
    "PartonLevel:MPI = off",
)
MAX_JETS = 3
BATCH_SIZE = 400  # event records in memory at once: about 30 MB
INVISIBLE = (12, 14, 16, 1000022)
TRACKER_ETA = 2.5


@dataclass(frozen=True)
class Cuts:
    """What the particles of an event must hold, in GeV: heavy quarks, a charged lepton, missing momentum."""

    heavy_pt: float = 10.0
    heavy_eta: float = math.inf
    lepton_pt: float = 0.0
    """Of an electron or muon."""
    lepton_eta: float = math.inf
    tau_pt: float = 0.0
    met_slack: float = 60.0
    """How far the missing momentum may lie below the cut on the reconstructed one."""


@dataclass(frozen=True)
class Filters:
    """Cuts that reject an event before its slow steps.

    They are loose against the selection; what they lose of the selected events is in the tables of data/README.md.
    """

    process: Cuts
    """Before the showers."""
    partons: Cuts
    """After the showers, before the hadronisation."""
    light_pt: float = 80.0
    """Two light quarks of the hard process above this (GeV) are two jets too many."""
    jet_pt: float = math.inf
    """A fourth jet of partons above this (GeV) is one too many."""


# loose made the shipped sample; tight loses a little more of the selected events and needs half the time.
FILTERS: dict[str, Filters | None] = {
    "tight": Filters(
        process=Cuts(heavy_eta=3.2, lepton_pt=18.0, lepton_eta=3.0, tau_pt=25.0, met_slack=50.0),
        partons=Cuts(heavy_eta=2.7, lepton_pt=22.0, lepton_eta=2.6, tau_pt=25.0, met_slack=40.0),
        jet_pt=50.0,
    ),
    "loose": Filters(
        process=Cuts(lepton_pt=12.0, tau_pt=12.0, met_slack=60.0),
        partons=Cuts(met_slack=45.0),
    ),
    "none": None,
}
# SlowJet: anti-kt, radius, pt (GeV), |eta|, visible particles with their masses; without fjcore, which has a banner
PARTON_JETS = (-1, 0.4, 20.0, 2.8, 2, 1, None, False)


def require_generators() -> None:
    """Import Pythia and FastJet, or say how to install them.

    Raises:
        ConfigError: when one of them is missing.
    """
    try:
        import fastjet  # noqa: F401
        import pythia8mc  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "hepx simulate needs the extra 'simulate': in the hepx folder, pip install -e '.[simulate]'"
        ) from error


def missing_pt(particles: Iterable[Any]) -> float:
    """Upper bound (GeV) on the missing transverse momentum of final particles, taus not yet decayed.

    Of the taus an unknown part is neutrinos, and muons outside the tracker are lost: either none or all of these
    momenta is missing, whatever is more.
    """
    px = py = perhaps_px = perhaps_py = 0.0
    for particle in particles:
        code = particle.idAbs()
        if code in INVISIBLE:
            px += particle.px()
            py += particle.py()
        elif code == 15 or (code == 13 and abs(particle.eta()) > TRACKER_ETA):
            perhaps_px += particle.px()
            perhaps_py += particle.py()
    return max(math.hypot(px, py), math.hypot(px + perhaps_px, py + perhaps_py))


def fulfils(particles: list[Any], cuts: Cuts, heavy: tuple[int, ...], min_heavy: int, met_min: float) -> bool:
    """Whether final particles hold `min_heavy` quarks of the flavours `heavy`, a lepton and enough missing momentum."""
    num_heavy, lepton = 0, False
    for particle in particles:
        code = particle.idAbs()
        if code in heavy:
            num_heavy += particle.pT() > cuts.heavy_pt and abs(particle.eta()) < cuts.heavy_eta
        elif code in (11, 13):
            lepton = lepton or (particle.pT() > cuts.lepton_pt and abs(particle.eta()) < cuts.lepton_eta)
        elif code == 15:
            lepton = lepton or particle.pT() > cuts.tau_pt
    return lepton and num_heavy >= min_heavy and missing_pt(particles) > met_min - cuts.met_slack


def worth_showering(process: Any, filters: Filters, min_b: int, met_min: float) -> bool:
    """Whether a hard process can give one lepton, two b-jets, few light jets and enough missing momentum."""
    particles = final(process)
    light = sum(particle.idAbs() < 5 and particle.pT() > filters.light_pt for particle in particles)
    return light < 2 and fulfils(particles, filters.process, (5,), min_b, met_min)


def worth_hadronising(event: Any, filters: Filters, finder: Any, met_min: float) -> bool:
    """Whether the partons after the showers can give one lepton, two b-tags, few jets and enough missing momentum."""
    particles = final(event)
    return fulfils(particles, filters.partons, (4, 5), 2, met_min) and (
        filters.jet_pt == math.inf or count_jets(event, particles, finder, filters.jet_pt) <= MAX_JETS
    )


def count_jets(event: Any, particles: list[Any], finder: Any, min_pt: float) -> int:
    """Jets of partons above `min_pt` (GeV) that are not an electron, muon or tau."""
    finder.analyze(event)
    jets = [(finder.y(i), finder.phi(i)) for i in range(finder.sizeJet()) if finder.pT(i) > min_pt]
    if len(jets) <= MAX_JETS:
        return len(jets)
    leptons = [particle for particle in particles if particle.idAbs() in (11, 13, 15)]
    return sum(all(distance(particle, *jet) > 0.2 for particle in leptons) for jet in jets)


def distance(particle: Any, rapidity: float, phi: float) -> float:
    """Distance in rapidity and azimuth between a particle and a direction."""
    return math.hypot(particle.y() - rapidity, math.remainder(particle.phi() - phi, math.tau))


def make_filter(channel: Channel, met_min: float, filters: Filters | None, looking_on: bool) -> Any:
    """A Pythia `UserHooks` that counts every hard process as tried and rejects the hopeless ones, if there are filters.

    If `looking_on` it rejects nothing, but notes for each event whether it would have: `passed`.
    Pythia calls it once per event, so this is the one place with a loop over the particles of an event.
    """
    import pythia8mc

    class Filter(pythia8mc.UserHooks):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.num_tried = 0
            self.passed: list[bool] = []
            self.worth_showering = self.good = True
            self.finder = pythia8mc.SlowJet(*PARTON_JETS)

        def canVetoProcessLevel(self) -> bool:
            return True

        def doVetoProcessLevel(self, process: Any) -> bool:
            self.num_tried += 1
            self.worth_showering = filters is None or worth_showering(process, filters, channel.min_b, met_min)
            return not (self.worth_showering or looking_on)

        def canVetoPartonLevel(self) -> bool:
            return filters is not None

        def doVetoPartonLevel(self, event: Any) -> bool:
            assert filters is not None
            self.good = self.worth_showering and worth_hadronising(event, filters, self.finder, met_min)
            return not (self.good or looking_on)

        def onEndEvent(self, _: Any) -> None:
            if looking_on:
                self.passed.append(self.good)

    return Filter()


def final(event: Any) -> list[Any]:
    """The final particles of a Pythia event."""
    return [particle for particle in event if particle.isFinal()]


def make_pythia(channel: Channel, seed: int, hook: Any, matrix_element: Any = None) -> Any:
    """An initialised Pythia of one channel; the caller keeps `hook` and `matrix_element` alive."""
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    with tempfile.TemporaryDirectory() as folder:
        settings = [*COMMON, *channel.pythia, "Random:setSeed = on", f"Random:seed = {seed}"]
        if channel.masses:
            card = Path(folder) / "model.slha"
            card.write_text(slha(*channel.masses), encoding="utf-8")
            settings.append(f"SLHA:file = {card}")
        if channel.enhanced:
            settings += ["Enhancements:doEnhance = on", f"EnhancedSplittings:List = {{{channel.enhanced}}}"]
        if matrix_element is not None:
            pythia.setSigmaPtr(matrix_element)
        pythia.setUserHooksPtr(hook)
        if not all(pythia.readString(line) for line in settings) or not pythia.init():
            raise ConfigError(f"Pythia refuses the settings of channel {channel.number}: {settings}")
    return pythia


@dataclass(frozen=True)
class Batch:
    """Generated events.

    Args:
        records: particles `[B, particles]` with the fields id, status, mother1, mother2, p (px, py, pz, e in GeV).
        weight: of each event, `[B]`; 1 but in channels with enhanced splittings, where the mean is 1.
        passed: whether the event passes the filters, `[B]`; False only if they were looking on.
        num_tried: hard processes tried for these events.
    """

    records: ak.Array
    weight: npt.NDArray[np.float64]
    passed: npt.NDArray[np.bool_]
    num_tried: int


def generate(
    channel: Channel, seed: int, met_min: float, filters: Filters | None, num_events: int, looking_on: bool = False
) -> Iterator[Batch]:
    """Yield batches of at most BATCH_SIZE generated events.

    Args:
        channel: what to generate.
        seed: Pythia's seed, 1 to 900 000 000.
        met_min: the later cut on the missing transverse momentum (GeV), which the filters anticipate.
        filters: None generates every event.
        num_events: events to generate, after the filters.
        looking_on: the filters reject nothing and only say which events they would have rejected.

    Raises:
        HepxError: looking on, and Pythia gave up an event, so that it is not known which one was judged how.
    """
    hook = make_filter(channel, met_min, filters, looking_on)
    matrix_element = channel.matrix_element() if channel.matrix_element else None
    pythia = make_pythia(channel, seed, hook, matrix_element)
    for first in range(0, num_events, BATCH_SIZE):
        before = hook.num_tried
        hook.passed.clear()
        events: ak.Array = pythia.nextBatch(min(BATCH_SIZE, num_events - first))
        weight = ak.to_numpy(events.info.weights[:, 0]) if channel.enhanced else np.ones(len(events))
        passed = np.array(hook.passed) if looking_on else np.ones(len(events), dtype=bool)
        if len(passed) != len(events):
            raise HepxError(f"channel {channel.number}, seed {seed}: Pythia gave up an event; take another seed.")
        yield Batch(events.prt, weight, passed, hook.num_tried - before)
