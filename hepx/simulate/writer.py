"""Writing simulated events as the TTree `analysis` of the 2025 ATLAS Open Data for education (GeV, rad).

Branch names and types follow opendata.atlas.cern, 13 TeV 2025 beta release; the branches that real files do not have
are met_sig, jet_truthflav, jet_truth_parent, susy_mC1N2 and susy_mN1.

The weight of an event for a luminosity L in 1/pb is, as for the real files,

    L * xsec * kfac * filteff * mcWeight * product of the ScaleFactor_* / sum_of_weights
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import awkward as ak
import uproot

from hepx.files import atomic

TREE = "analysis"
RUN_NUMBER = 284_500  # the run number that ATLAS gives to simulation of the 2015-16 data
SCALE_FACTORS = ("PILEUP", "ELE", "MUON", "LepTRIGGER", "FTAG", "JVT")
SCALARS: dict[str, str] = {
    "runNumber": "uint32",
    "eventNumber": "uint64",
    "channelNumber": "uint32",
    "mcWeight": "float32",
    **dict.fromkeys(("xsec", "kfac", "filteff", "sum_of_weights", "num_events"), "float64"),
    **{f"ScaleFactor_{name}": "float32" for name in SCALE_FACTORS},
    **dict.fromkeys(("trigE", "trigM", "trigMET"), "bool"),
    **dict.fromkeys(("met", "met_phi", "met_mpx", "met_mpy", "met_sig", "truth_met", "truth_met_phi"), "float32"),
    **dict.fromkeys(("susy_mC1N2", "susy_mN1"), "float32"),
}
# One record per object; uproot turns a field into the branch object_field and counts the objects in object_n.
OBJECTS: dict[str, dict[str, str]] = {
    "lep": {"type": "int32", **dict.fromkeys(("pt", "eta", "phi", "e"), "float32"), "charge": "int32"},
    "jet": {
        **dict.fromkeys(("pt", "eta", "phi", "e"), "float32"),
        "btag_quantile": "int32",
        "jvt": "bool",
        "truthflav": "int32",
        "truth_parent": "int32",
    },
}


def write_tree(events: ak.Array, path: Path, title: str) -> Path:
    """Write events that have every branch of SCALARS and OBJECTS, atomically; returns `path`.

    The same events and title give the same bytes: the UUID is made of the title, and the time stamps are fixed.
    """
    columns = branches(events)
    types = {name: array.type.content for name, array in columns.items()}
    identity = partial(uuid.uuid5, uuid.NAMESPACE_URL, title)
    options = {"compression": uproot.ZSTD(5), "uuid_function": identity}
    # an open file instead of a path: uproot would store the temporary name
    with atomic(path) as temporary, temporary.open("w+b") as raw, fixed_time(), uproot.recreate(raw, **options) as file:
        tree = file.mktree(TREE, types, title=title, counter_name=lambda counted: f"{counted}_n")
        tree.extend(columns)
    return path


@contextmanager
def fixed_time() -> Iterator[None]:
    """Inside, uproot stamps everything with 1 January 2000: it takes the time from the clock and has no option."""
    real = uproot._util.datetime_to_code
    uproot._util.datetime_to_code = lambda _: real(datetime(2000, 1, 1))
    try:
        yield
    finally:
        uproot._util.datetime_to_code = real


def branches(events: ak.Array) -> dict[str, ak.Array]:
    """What uproot writes: one array per single branch, one array of records per kind of object."""
    columns = {name: ak.values_astype(events[name], kind) for name, kind in SCALARS.items()}
    for kind, fields in OBJECTS.items():
        columns[kind] = ak.zip(
            {name: ak.values_astype(ak.from_regular(events[f"{kind}_{name}"]), dtype) for name, dtype in fields.items()}
        )
    return columns
