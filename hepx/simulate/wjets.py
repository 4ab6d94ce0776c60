"""W + jets: one jet from the matrix element, all others, and every heavy quark, from the showers.

Leading order, five flavours: q qbar -> W g and q g -> W q with the W decay correlations of Pythia, for a jet of the
hard process above 70 GeV. Below, no event is selected at met > 100 GeV: a W at rest gives 40 GeV. With a looser cut on
met the sample is not complete.

b and c quarks come from gluons that split in the shower (and c also from q g -> W c), so two b-jets far apart are
rarer than in data or in a calculation of W + bb; jets beyond the first are softer. There is no b q -> W b q', no W
radiated off a pair of jets, no double parton scattering, and no second W or Z. The filters want two heavy quarks:
events with two tags of which one or both are light jets are lost, which is in the filter loss of data/README.md.

g -> bb is made four times as often as it happens, and the events are weighted back (Eur. Phys. J. C 73, 2350): about
half as many effective events per second again. Larger factors spread the weights more than they add events.

Cross sections: leading order from Pythia 8.317 with its default NNPDF2.3 LO, 3920 pb, over all W decays; `kfac` is
that of the inclusive W, 61 526.7 pb at NNLO for W -> l nu, three flavours (FEWZ 3.1, arXiv:1105.3540, the value that
CMS uses; approximate), over 45 990 pb at leading order, from the same Pythia.
"""

from __future__ import annotations

from hepx.simulate.processes import BR_W_LEPTONIC, LEPTONIC_W, Channel, Process

LEADING_ORDER_W = 141_165.0  # pb, inclusive, all decays
NNLO_W_LEPTONIC = 61_526.7

WJETS = Process(
    name="wjets",
    title="W + jets, W -> l nu",
    channels=(
        Channel(
            number=900_400,
            pythia=(
                "WeakBosonAndParton:qqbar2Wg = on",
                "WeakBosonAndParton:qg2Wq = on",
                "PhaseSpace:pTHatMin = 70.",
                *LEPTONIC_W,
            ),
            xsec=3920.0,
            filteff=BR_W_LEPTONIC,
            kfac=NNLO_W_LEPTONIC / (LEADING_ORDER_W * BR_W_LEPTONIC),
            min_b=0,
            enhanced="fsr:G2BB = 4.",
        ),
    ),
)
