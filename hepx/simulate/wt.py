"""Single top with a W boson, g b -> t W, which Pythia lacks: its leading-order matrix element and the process.

Five-flavour scheme, massless initial b; the two tree diagrams (the b in the s-channel, the top in the u-channel),
summed over spins and colours. The top and both W have the Breit-Wigner masses that Pythia draws. In the decay of the
top, the W has its helicities (Pythia's `weightTopDecay`); the other W decays isotropically, and the polarisation of
the top is not passed on. At this order there is no interference with top pairs, and the second b quark of an event
comes from the initial-state shower.

Cross section 71.7 pb, t and tbar, approximate NNLO: Kidonakis, arXiv:1311.0283 (approximate). Leading order, with
Pythia's default NNPDF2.3 LO: 53.3 pb.
"""

from __future__ import annotations

import math
from typing import Any

from hepx.simulate.processes import Channel, Process

BEAUTY, TOP, GLUON, W = 5, 6, 21, 24
PROCESS_CODE = 10_001  # those of Pythia are below 10 000


def squared_amplitude(s: float, gluon_top: float, top: float, w: float) -> float:
    """|M|^2 of g b -> t W, averaged over initial and summed over final spins and colours, over g_s^2 g_w^2 |V_tb|^2.

    Args:
        s: squared energy in the centre of mass (GeV^2).
        gluon_top: (p_gluon - p_top)^2 (GeV^2).
        top: squared mass of the top (GeV^2).
        w: squared mass of the W (GeV^2).

    Without units. For a massless top it is that of q g -> W q, (s^2 + u^2 + 2 t w) / (-s u) / 24.
    """
    t = gluon_top - top  # the propagator of the top
    terms = (
        s * t * (-8 * w**3 + 12 * top * w**2 - 4 * top**3)
        + s * t**2 * (8 * w**2 - 4 * top * w - 4 * top**2)
        - s * t**3 * (4 * w + 2 * top)
        + s**2 * (8 * top * w**2 - 4 * top**2 * w - 4 * top**3)
        + s**2 * t * (8 * w**2 - 4 * top * w - 4 * top**2)
        - 4 * s**2 * t**2 * top
        - s**3 * t * (4 * w + 2 * top)
    )
    return terms / (48 * s**2 * t**2 * w)


def matrix_element() -> Any:
    """The process as a Pythia `Sigma2Process`; the caller must keep it alive as long as the Pythia that uses it."""
    import pythia8mc

    class TopW(pythia8mc.Sigma2Process):  # type: ignore[misc]
        """Pythia calls a method of this class about 75 times per event: they do as little as possible."""

        def name(self) -> str:
            return "g b -> t W"

        def code(self) -> int:
            return PROCESS_CODE

        def initFlux(self) -> bool:
            """Name the incoming partons: inFlux would loop over all quarks, in twice the time."""
            for parton in (GLUON, BEAUTY, -BEAUTY):
                self.addBeamA(parton)
                self.addBeamB(parton)
            for quark in (BEAUTY, -BEAUTY):
                self.addPair(GLUON, quark)
                self.addPair(quark, GLUON)
            return True

        def id3Mass(self) -> int:
            return TOP

        def id4Mass(self) -> int:
            return W

        def convertM2(self) -> bool:
            return True

        def initProc(self) -> None:
            self.couplings = (4 * math.pi) ** 2 / self.parm("StandardModel:sin2thetaW")

        def sigmaKin(self) -> None:
            couplings = self.couplings * self.alpS * self.alpEM
            s, top, w = self.sH, self.s3, self.s4
            self.gluon_first = couplings * squared_amplitude(s, self.tH, top, w)
            self.gluon_second = couplings * squared_amplitude(s, self.uH, top, w)

        def sigmaHat(self) -> float:
            return self.gluon_first if self.id1 == GLUON else self.gluon_second

        def setIdColAcol(self) -> None:
            gluon_first = self.id1 == GLUON
            sign = 1 if (self.id2 if gluon_first else self.id1) > 0 else -1
            self.setId(self.id1, self.id2, sign * TOP, -sign * W)
            self.setColAcol(*((1, 2, 2, 0, 1, 0) if gluon_first else (2, 0, 1, 2, 1, 0)))
            if sign < 0:
                self.swapColAcol()

        def weightDecay(self, process: Any, first: int, last: int) -> float:
            """As in Pythia's own top processes."""
            if process[process[first].mother1()].idAbs() == TOP:
                return float(self.weightTopDecay(process, first, last))
            return 1.0

    return TopW()


WT = Process(
    name="wt",
    title="single top with a W, all decays",
    channels=(Channel(number=900_300, pythia=(), xsec=71.7, min_b=1, matrix_element=matrix_element),),
)
