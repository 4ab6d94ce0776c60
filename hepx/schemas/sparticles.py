"""The flat table of arXiv:2501.03432 (repository sparticles): one row per event, written by pandas as HDF5, GeV.

jet1 to jet3 are all selected jets by pt, so b1 and b2 repeat two of them; here every object is kept once, with the
fields of b1 and b2, which have a mass (the table has none for the others: 0). The paper's own graph lists them twice:
nodes of type jet with `alias: true`. An absent third jet is −99. The table has neither weights nor event numbers: the
config gives each sample its channel, cross-section and sum of weights, and the row numbers identify the events.
"""

from hepx.events import MissingMomentum, ObjectSchema, Schema

PRESENT = "pt > 0"


def _jet(suffix: str, quantile: str, mass: str | None = None) -> ObjectSchema:
    branches = {"pt": f"pT{suffix}", "eta": f"eta{suffix}", "phi": f"phi{suffix}", "btag": quantile}
    return ObjectSchema(branches=branches | ({"mass": mass} if mass else {}), slot=True, exists=PRESENT)


SCHEMA = Schema(
    name="sparticles",
    description="flat HDF5 table of the paper (pandas, GeV, b-jets listed twice)",
    trees=("*",),
    energy_unit="GeV",
    event_number="index",
    jet=(
        _jet("b1", "b1_quantile", "b1m"),
        _jet("b2", "b2_quantile", "b2m"),
        _jet("j1", "j1_quantile"),
        _jet("j2", "j2_quantile"),
        _jet("j3", "j3_quantile"),
    ),
    repeated=("jet",),
    lepton=(ObjectSchema(branches={"pt": "pTl1", "eta": "etal1", "phi": "phil1"}, slot=True, exists=PRESENT),),
    met=MissingMomentum(pt="ETMiss", phi="ETMissPhi", significance="metsig_New"),
    btag_meaning="quantile",
    btag_cut=3,
)
