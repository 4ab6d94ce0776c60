"""ATLAS DAOD_PHYSLITE, the research format (CERN Open Data record 80020): TTree or RNTuple, MeV.

The final E_T^miss is not in the file: it is the track soft term (PVSoftTrkCore) minus the selected jets and leptons.
A tagger's score is D = ln(p_b / (f_c p_c + f_τ p_τ + (1 − f_c − f_τ) p_u)); its edges are the working points 85, 77, 70
and 60 % (65 % for GN2v01), so `btag` is a quantile 1 to 5. The edges are approximate; the tests check the efficiency of
true b-jets.
The cross-section and the sum of weights are not in the file: the config gives them, xsec_pb times kfactor times
filter_efficiency. Files of 2021 have no runNumber and eventNumber outside EventInfo, but those of the generator.
"""

from hepx.events import MissingMomentum, Normalization, ObjectSchema, Schema, Tagger

JETS, ELECTRONS, MUONS = "AnalysisJetsAuxDyn", "AnalysisElectronsAuxDyn", "AnalysisMuonsAuxDyn"
EVENT, MET = "EventInfoAuxDyn", "MET_Core_AnalysisMETAuxDyn"
TAGGING = "BTagging_AntiKt4EMPFlowAuxDyn"
DL1 = "log(pb / (0.018 * pc + 0.982 * pu))"
GN2 = "log(pb / (0.2 * pc + 0.01 * ptau + 0.79 * pu))"


def _tagger(name: str, edges: tuple[float, ...], container: str = TAGGING) -> Tagger:
    """A tagger of the DL1 or GN2 family by its name."""
    flavours, score = (("b", "c", "u", "tau"), GN2) if name.startswith("GN2") else (("b", "c", "u"), DL1)
    return Tagger(
        name=name, branches={f"p{one}": f"{container}.{name}_p{one}" for one in flavours}, score=score, edges=edges
    )


SCHEMA = Schema(
    name="physlite",
    description="ATLAS DAOD_PHYSLITE (TTree 'CollectionTree' or RNTuple 'EventData', MeV)",
    trees=("CollectionTree", "EventData"),
    rntuple_separator=":",
    energy_unit="MeV",
    run_number=f"{EVENT}.runNumber|{EVENT}.mcChannelNumber",
    event_number=f"{EVENT}.eventNumber|{EVENT}.mcEventNumber",
    channel_number=f"{EVENT}.mcChannelNumber?",
    jet=(
        ObjectSchema(
            branches={
                "pt": f"{JETS}.pt",
                "eta": f"{JETS}.eta",
                "phi": f"{JETS}.phi",
                "mass": f"{JETS}.m",
                "jvt": f"{JETS}.NNJvtPass|{JETS}.Jvt",  # a decision (0, 1), in older files a score
                "true_flavour": f"{JETS}.HadronConeExclTruthLabelID?",
            },
            select="pt > 30 and abs(eta) < 2.8 and (jvt > 0.5 or pt > 60 or abs(eta) > 2.4) and delta_r_electron > 0.2",
        ),
    ),
    lepton=(
        ObjectSchema(
            branches={
                "pt": f"{ELECTRONS}.pt",
                "eta": f"{ELECTRONS}.eta",
                "phi": f"{ELECTRONS}.phi",
                "charge": f"{ELECTRONS}.charge",
                "tight": f"{ELECTRONS}.DFCommonElectronsLHTight",
            },
            derived={"mass": "0.000511", "flavour": "11"},
            select="pt > 25 and abs(eta) < 2.47 and tight == 1",
        ),
        ObjectSchema(
            branches={
                "pt": f"{MUONS}.pt",
                "eta": f"{MUONS}.eta",
                "phi": f"{MUONS}.phi",
                "charge": f"{MUONS}.charge?",
                "quality": f"{MUONS}.quality",
            },
            derived={"mass": "0.10566", "flavour": "13"},
            select="pt > 25 and abs(eta) < 2.5 and quality % 8 <= 1",  # the low three bits: 0 tight, 1 medium
        ),
    ),
    met=MissingMomentum(soft_px=f"{MET}.mpx[{MET}.name=PVSoftTrkCore]", soft_py=f"{MET}.mpy[{MET}.name=PVSoftTrkCore]"),
    taggers=(
        _tagger("DL1dv01", (0.948, 2.456, 3.493, 4.854)),
        _tagger("GN2v01", (-0.378, 0.844, 1.892, 2.669)),
        _tagger("DL1r", (0.665, 2.195, 3.245, 4.565)),
        _tagger("DL1r", (0.665, 2.195, 3.245, 4.565), "BTagging_AntiKt4EMPFlow_201903AuxDyn"),
        _tagger("DL1dv00", (0.930, 2.443, 3.494, 4.884)),
    ),
    btag_meaning="quantile",
    btag_cut=3,
    weights=(f"{EVENT}.mcEventWeights[0]?",),
    normalization=Normalization(kfactor=1.0, filter_efficiency=1.0),
)
