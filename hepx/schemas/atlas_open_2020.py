"""ATLAS Open Data for education, 13 TeV, 2020 release (opendata.atlas.cern): tree `mini`, MeV, 10 fb⁻¹.

The weight is mcWeight × Π scaleFactor_* × XSection × L / SumWeights; XSection already contains the k-factor and the
filter efficiency. The edges of MV2c10 are the working points 85, 77, 70 and 60 %, so that `btag` is a quantile as in
the 2025 release. There is no E_T^miss significance: hepx computes it.
"""

from hepx.events import MissingMomentum, Normalization, ObjectSchema, Schema, Tagger

SCHEMA = Schema(
    name="atlas_open_2020",
    description="ATLAS Open Data for education, 13 TeV, 2020 release (tree 'mini', MeV)",
    trees=("mini",),
    energy_unit="MeV",
    run_number="runNumber",
    event_number="eventNumber",
    channel_number="channelNumber",
    jet=(
        ObjectSchema(
            branches={
                "pt": "jet_pt",
                "eta": "jet_eta",
                "phi": "jet_phi",
                "energy": "jet_E",
                "jvt": "jet_jvt?",
                "true_flavour": "jet_trueflav?",
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
    met=MissingMomentum(pt="met_et", phi="met_phi"),
    taggers=(
        Tagger(name="MV2c10", branches={"score": "jet_MV2c10"}, score="score", edges=(0.1759, 0.6459, 0.8244, 0.9349)),
    ),
    btag_meaning="quantile",
    btag_cut=3,
    weights=(
        "mcWeight",
        "scaleFactor_PILEUP?",
        "scaleFactor_ELE|scaleFactor_COMBINED",
        "scaleFactor_MUON?",
        "scaleFactor_BTAG?",
        "scaleFactor_LepTRIGGER?",
    ),
    normalization=Normalization(xsec_pb="XSection", kfactor=1.0, filter_efficiency=1.0, sum_of_weights="SumWeights"),
)
