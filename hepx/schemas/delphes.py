"""Output of Delphes, a fast detector simulation (arXiv:1307.6346): tree `Delphes`, GeV.

`btag` is Delphes' decision (bit 0 of BTag). The file numbers its events from 0 and knows no sample: the config gives
each sample its own channel, and its cross-section and sum of weights.
"""

from hepx.events import MissingMomentum, Normalization, ObjectSchema, Schema


def _lepton(name: str, mass: str, code: str) -> ObjectSchema:
    branches = {"pt": "PT", "eta": "Eta", "phi": "Phi", "charge": "Charge"}
    return ObjectSchema(
        branches={field: f"{name}.{branch}" for field, branch in branches.items()},
        derived={"mass": mass, "flavour": code},
        select="pt > 25",
    )


SCHEMA = Schema(
    name="delphes",
    description="Delphes fast simulation (tree 'Delphes', GeV)",
    trees=("Delphes",),
    energy_unit="GeV",
    event_number="Event.Number[0]",
    jet=(
        ObjectSchema(
            branches={
                "pt": "Jet.PT",
                "eta": "Jet.Eta",
                "phi": "Jet.Phi",
                "mass": "Jet.Mass",
                "tags": "Jet.BTag",
                "true_flavour": "Jet.Flavor?",
            },
            derived={"btag": "tags % 2"},
            select="pt > 30 and abs(eta) < 2.5 and delta_r_lepton > 0.4",
        ),
    ),
    lepton=(_lepton("Electron", "0.000511", "11"), _lepton("Muon", "0.10566", "13")),
    met=MissingMomentum(pt="MissingET.MET[0]", phi="MissingET.Phi[0]"),
    btag_meaning="flag",
    btag_cut=1,
    weights=("Event.Weight[0]?",),
    normalization=Normalization(kfactor=1.0, filter_efficiency=1.0),
)
