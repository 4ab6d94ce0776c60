"""Pythia: from a channel and a seed to arrays of particles (arXiv:2203.11601).

Leading-order matrix elements with initial- and final-state showers and hadronisation; no multiparton interactions,
which make an event five times slower and shift the m_bb median of the signal by 2 % only.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import awkward as ak

from hepx.errors import ConfigError
from hepx.simulate.processes import Channel, slha

COMMON = (
    "Print:quiet = on",
    "SLHA:verbose = 0",
    "Beams:eCM = 13000.",
    "PartonLevel:MPI = off",
)
BATCH_SIZE = 400  # event records in memory at once: about 30 MB
INVISIBLE = (12, 14, 16, 1000022)

# The filters reject events that would fail the selection, before the slow showers and hadronisation. Their cuts (GeV)
# are loose; what they lose of the selected events is in the table of data/README.md.
LEPTON_PT = 12.0
B_PT = 10.0
MET_SLACK_PROCESS = 60.0
MET_SLACK_PARTON = 45.0
LIGHT_PT = 80.0
TRACKER_ETA = 2.5


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


def worth_showering(particles: list[Any], min_b: int, met_min: float) -> bool:
    """Whether the final particles of a hard process can give one lepton, two b-jets, few light jets and enough MET."""
    pts: dict[str, list[float]] = {"lepton": [], "b": [], "light": []}
    for particle in particles:
        code = particle.idAbs()
        kind = "lepton" if code in (11, 13, 15) else "b" if code == 5 else "light" if code < 5 else ""
        if kind:
            pts[kind].append(particle.pT())
    return (
        max(pts["lepton"], default=0.0) > LEPTON_PT
        and sum(pt > B_PT for pt in pts["b"]) >= min_b
        and sum(pt > LIGHT_PT for pt in pts["light"]) < 2
        and missing_pt(particles) > met_min - MET_SLACK_PROCESS
    )


def worth_hadronising(particles: list[Any], met_min: float) -> bool:
    """Whether the partons after the showers hold two heavy quarks and enough missing transverse momentum."""
    heavy = sum(particle.idAbs() in (4, 5) and particle.pT() > B_PT for particle in particles)
    return heavy >= 2 and missing_pt(particles) > met_min - MET_SLACK_PARTON


def make_filter(channel: Channel, met_min: float, filters: bool) -> Any:
    """A Pythia `UserHooks` that counts every hard process as tried and, if `filters`, rejects the hopeless ones.

    Pythia calls it once per event, so this is the one place with a loop over the particles of an event.
    """
    import pythia8mc

    class Filter(pythia8mc.UserHooks):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.num_tried = 0

        def canVetoProcessLevel(self) -> bool:
            return True

        def doVetoProcessLevel(self, process: Any) -> bool:
            self.num_tried += 1
            return filters and not worth_showering(final(process), channel.min_b, met_min)

        def canVetoPartonLevel(self) -> bool:
            return filters

        def doVetoPartonLevel(self, event: Any) -> bool:
            return not worth_hadronising(final(event), met_min)

    return Filter()


def final(event: Any) -> list[Any]:
    """The final particles of a Pythia event."""
    return [particle for particle in event if particle.isFinal()]


def make_pythia(channel: Channel, seed: int, hook: Any) -> Any:
    """An initialised Pythia of one channel."""
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    with tempfile.TemporaryDirectory() as folder:
        settings = [*COMMON, *channel.pythia, "Random:setSeed = on", f"Random:seed = {seed}"]
        if channel.masses:
            card = Path(folder) / "model.slha"
            card.write_text(slha(*channel.masses), encoding="utf-8")
            settings.append(f"SLHA:file = {card}")
        pythia.setUserHooksPtr(hook)
        if not all(pythia.readString(line) for line in settings) or not pythia.init():
            raise ConfigError(f"Pythia refuses the settings of channel {channel.number}: {settings}")
    return pythia


def generate(channel: Channel, seed: int, met_min: float, filters: bool, num_events: int) -> Iterator[tuple[Any, int]]:
    """Yield batches of at most BATCH_SIZE generated events and the number of hard processes tried for each.

    Args:
        channel: what to generate.
        seed: Pythia's seed, 1 to 900 000 000.
        met_min: the later cut on the missing transverse momentum (GeV), which the filters anticipate.
        filters: False generates every event, to measure what the filters lose.
        num_events: events to generate, after the filters.

    Yields:
        Event records `[B, particles]` with the fields id, status, mother1, mother2, p (px, py, pz, e in GeV), and the
        number tried.
    """
    hook = make_filter(channel, met_min, filters)
    pythia = make_pythia(channel, seed, hook)
    for first in range(0, num_events, BATCH_SIZE):
        before = hook.num_tried
        records: ak.Array = pythia.nextBatch(min(BATCH_SIZE, num_events - first))
        yield records.prt, hook.num_tried - before
