"""ATLAS Open Data for education, 13 TeV, 2025 release (CERN Open Data record 93910): tree `analysis`, GeV.

`jet_btag_quantile` is the pseudo-continuous b-tagging bin 1..5; bin >= 3 is the 77 % working point. Real files have no
E_T^miss significance (hepx computes it), no jet truth and no mass point: these branches `hepx simulate` adds.
"""

from hepx.events import MissingMomentum, Normalization, ObjectSchema, Schema

SCHEMA = Schema(
    name="atlas_open_2025",
    description="ATLAS Open Data for education, 13 TeV, 2025 release (tree 'analysis', GeV)",
    trees=("analysis",),
    energy_unit="GeV",
    run_number="runNumber",
    event_number="eventNumber",
    channel_number="channelNumber",
    jet=(
        ObjectSchema(
            branches={
                "pt": "jet_pt",
                "eta": "jet_eta",
                "phi": "jet_phi",
                "energy": "jet_e",
                "btag": "jet_btag_quantile",
                "jvt": "jet_jvt?",
                "true_flavour": "jet_truthflav?",
                "truth_parent": "jet_truth_parent?",
            },
            select="pt > 30 and abs(eta) < 2.8",
        ),
    ),
    lepton=(
        ObjectSchema(
            branches={
                "pt": "lep_pt",
                "eta": "lep_eta",
                "phi": "lep_phi",
                "charge": "lep_charge",
                "flavour": "lep_type",
            },
            select="pt > 25",
        ),
    ),
    met=MissingMomentum(pt="met", phi="met_phi", significance="met_sig?"),
    btag_meaning="quantile",
    btag_cut=3,
    weights=(
        "mcWeight",
        "ScaleFactor_PILEUP",
        "ScaleFactor_FTAG",
        "ScaleFactor_JVT",
        "ScaleFactor_ELE",
        "ScaleFactor_MUON",
        "ScaleFactor_LepTRIGGER",
    ),
    normalization=Normalization(
        xsec_pb="xsec", kfactor="kfac", filter_efficiency="filteff", sum_of_weights="sum_of_weights"
    ),
    columns={"mass_chargino": "susy_mC1N2?", "mass_lsp": "susy_mN1?"},
)
