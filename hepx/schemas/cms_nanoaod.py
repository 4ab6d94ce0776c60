"""CMS NanoAOD (TTree or RNTuple `Events`, GeV), for example CMS Open Data.

`btag` is the DeepJet score; 0.2783 is its medium working point for the 2018 data: give data.btag_cut for other years.
All simulated samples have run 1, so the config must give each sample its own channel. MET_significance is CMS's own
definition (a χ², not its root).
"""

from hepx.events import MissingMomentum, Normalization, ObjectSchema, Schema

SCHEMA = Schema(
    name="cms_nanoaod",
    description="CMS NanoAOD (TTree or RNTuple 'Events', GeV)",
    trees=("Events",),
    energy_unit="GeV",
    event_number="event",
    jet=(
        ObjectSchema(
            branches={
                "pt": "Jet_pt",
                "eta": "Jet_eta",
                "phi": "Jet_phi",
                "mass": "Jet_mass",
                "btag": "Jet_btagDeepFlavB",
                "true_flavour": "Jet_hadronFlavour?",
            },
            select="pt > 30 and abs(eta) < 2.5 and delta_r_lepton > 0.4",
        ),
    ),
    lepton=(
        ObjectSchema(
            branches={
                "pt": "Electron_pt",
                "eta": "Electron_eta",
                "phi": "Electron_phi",
                "charge": "Electron_charge",
                "identification": "Electron_cutBased",
            },
            derived={"mass": "0.000511", "flavour": "11"},
            select="pt > 25 and abs(eta) < 2.5 and identification == 4",
        ),
        ObjectSchema(
            branches={
                "pt": "Muon_pt",
                "eta": "Muon_eta",
                "phi": "Muon_phi",
                "charge": "Muon_charge",
                "identification": "Muon_tightId",
            },
            derived={"mass": "0.10566", "flavour": "13"},
            select="pt > 25 and abs(eta) < 2.4 and identification == 1",
        ),
    ),
    met=MissingMomentum(pt="MET_pt|PuppiMET_pt", phi="MET_phi|PuppiMET_phi", significance="MET_significance?"),
    btag_meaning="score",
    btag_cut=0.2783,
    weights=("genWeight?",),
    normalization=Normalization(kfactor=1.0, filter_efficiency=1.0),
)
