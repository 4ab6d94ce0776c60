"""What is generated: the channels of each process, their Pythia settings, cross sections and branching fractions.

A new process is one more `Process` here (or in a file of its own) and one more entry of `hepx.simulate.PROCESSES`.

Cross sections are inclusive, for pp at 13 TeV, in pb. The branching fractions of decays that Pythia is told to force
are the `filteff` of the channel, so that ``xsec * filteff`` is the cross section of what Pythia generates. A decay
that is left free has filteff 1, because what the filters reject is counted as generated.

Sources (values quoted from the literature from memory are marked approximate):

* chargino-neutralino, NLO+NLL, wino-like, both charges: LHC SUSY Cross Section Working Group, table "N2C1 wino 13 TeV"
  (Resummino; arXiv:1207.2159, arXiv:1304.0790); the value at 500 GeV is approximate;
* top pairs 831.76 pb, NNLO+NNLL, m(t) = 172.5 GeV: Top++ 2.0, arXiv:1112.5675 (approximate);
* single top 217.0 pb (t-channel) and 10.32 pb (s-channel), t and tbar, NLO: HATHOR 2.1, arXiv:1007.1327 (approximate);
* single top with a W: hepx/simulate/wt.py; W + jets: hepx/simulate/wjets.py;
* BR(W -> l nu) = 3 x 0.1086 with l = e, mu, tau: Particle Data Group; BR(h -> bb) = 0.5824 at 125 GeV:
  LHC Higgs Working Group, arXiv:1610.07922 (both approximate).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BR_W_LEPTONIC = 3 * 0.1086
BR_HIGGS_BB = 0.5824

LEPTONIC_W = ("24:onMode = off", "24:onIfAny = 11 13 15")
HIGGS_TO_BB = ("25:onMode = off", "25:onIfAny = 5")


@dataclass(frozen=True)
class Channel:
    """One simulated data set with its own `channelNumber` and its own normalisation.

    Args:
        number: the channelNumber, unique over all processes.
        pythia: Pythia settings beyond those common to all channels.
        xsec: inclusive cross section (pb).
        filteff: product of the branching fractions forced in `pythia`.
        share: part of the selected events of the process that comes from this channel, relative to the others.
        min_b: b quarks of the hard process below which an event is not worth showering.
        kfac: what corrects `xsec` to a higher order, 1 if it is of that order already.
        enhanced: splittings that Pythia makes more often, such as "fsr:G2BB = 10"; the events then have weights.
        matrix_element: makes the `SigmaProcess` of a hard process that Pythia lacks.
        masses: (m of chargino_1 and neutralino_2, m of neutralino_1) in GeV; None for the Standard Model.
    """

    number: int
    pythia: tuple[str, ...]
    xsec: float
    filteff: float = 1.0
    share: float = 1.0
    min_b: int = 2
    kfac: float = 1.0
    enhanced: str = ""
    matrix_element: Callable[[], Any] | None = None
    masses: tuple[float, float] | None = None


@dataclass(frozen=True)
class Process:
    """A named process: the channels that are mixed in one file."""

    name: str
    title: str
    channels: tuple[Channel, ...]


# m(C1) = m(N2) in GeV -> cross section in pb.
WINO_XSEC = {200.0: 1.80739, 250.0: 0.782487, 300.0: 0.386936, 400.0: 0.121013, 500.0: 0.0464}
# Every point lets N2 -> h N1 on its mass shell: m(N2) - m(N1) > m(h) = 125 GeV.
MASS_GRID = (
    (200.0, 50.0),
    (250.0, 50.0),
    (300.0, 75.0),
    (300.0, 150.0),
    (400.0, 100.0),
    (400.0, 200.0),
    (500.0, 0.0),
    (500.0, 200.0),
)
HEAVY = 4500.0
SFERMIONS = [family + flavour for family in (1_000_000, 2_000_000) for flavour in (1, 2, 3, 4, 5, 6, 11, 13, 15)]
DECOUPLED = [*SFERMIONS, 1000012, 1000014, 1000016, 1000021, 1000025, 1000035, 1000037, 35, 36, 37]
SUSY_PYTHIA = ("SUSY:qqbar2chi+-chi0 = on", "SUSY:idA = 1000024", "SUSY:idB = 1000023", *LEPTONIC_W, *HIGGS_TO_BB)


def slha(m_wino: float, m_lsp: float) -> str:
    """SUSY Les Houches Accord text of a simplified model: bino N1, wino N2 and C1, everything else at 4.5 TeV.

    Args:
        m_wino: mass of C1 and of N2 (GeV).
        m_lsp: mass of N1 (GeV).

    C1 -> W N1 and N2 -> h N1 have branching fraction 1. Format: arXiv:hep-ph/0311123.
    """
    masses = {25: 125.0, 1000022: m_lsp, 1000023: m_wino, 1000024: m_wino} | dict.fromkeys(DECOUPLED, HEAVY)
    lines = ["BLOCK MODSEL", " 1 0", "BLOCK MASS", *(f" {code} {mass:.1f}" for code, mass in masses.items())]
    # The bino couples to neither W nor gluon: production is pure wino. N3 and N4 are the heavy higgsinos.
    lines += ["BLOCK NMIX", " 1 1 1.0", " 2 2 1.0", " 3 3 0.70710678", " 3 4 -0.70710678", " 4 3 0.70710678"]
    lines += [" 4 4 0.70710678"]
    for block in ("UMIX", "VMIX", "STOPMIX", "SBOTMIX", "STAUMIX"):
        lines += [f"BLOCK {block}", " 1 1 1.0", " 2 2 1.0"]
    lines += ["BLOCK ALPHA", " -0.1", "BLOCK HMIX", f" 1 {HEAVY}", " 2 10.0"]
    lines += ["DECAY 1000022 0.0"]
    lines += ["DECAY 1000023 0.01", " 1.0 2 1000022 25", "DECAY 1000024 0.01", " 1.0 2 1000022 24"]
    return "\n".join(lines) + "\n"


SIGNAL = Process(
    name="signal",
    title="C1 N2 -> W(l nu) h(bb) N1 N1, wino-like",
    channels=tuple(
        Channel(
            number=900_000 + index,
            pythia=SUSY_PYTHIA,
            xsec=WINO_XSEC[masses[0]],
            filteff=BR_W_LEPTONIC * BR_HIGGS_BB,
            masses=masses,
        )
        for index, masses in enumerate(MASS_GRID)
    ),
)

TTBAR = Process(
    name="ttbar",
    title="top pairs, all decays",
    channels=(Channel(number=900_100, pythia=("Top:gg2ttbar = on", "Top:qqbar2ttbar = on"), xsec=831.76),),
)

# The shares are cross section x branching fraction x acceptance at MET > 100 GeV, so that the file mixes the two
# channels as nature does; with another cut the weights still are exact. Five-flavour scheme: Pythia's t-channel has
# one b in the hard process, the second comes from the shower.
SINGLE_TOP = Process(
    name="singletop",
    title="single top, t- and s-channel, W -> l nu",
    channels=(
        Channel(
            number=900_200,
            pythia=("Top:qq2tq(t:W) = on", *LEPTONIC_W),
            xsec=217.0,
            filteff=BR_W_LEPTONIC,
            share=0.84,
            min_b=1,
        ),
        Channel(
            number=900_201,
            pythia=("Top:ffbar2tqbar(s:W) = on", *LEPTONIC_W),
            xsec=10.32,
            filteff=BR_W_LEPTONIC,
            share=0.16,
        ),
    ),
)
