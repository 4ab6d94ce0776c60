"""What the files know of the truth of an event and the graphs do not: read again, for the events asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hepx import events
from hepx.events import DataSettings
from hepx.events.columns import Resolved
from hepx.events.tables import open_table
from hepx.influence.taxonomy import TruthMet
from hepx.progress import progress
from hepx.schemas import load_schema

Array = npt.NDArray[Any]
TRUE_MET = {"truth_met": "truth_met?", "truth_met_phi": "truth_met_phi?"}
"""Branches of ATLAS Open Data, and of what `hepx simulate` writes: the sum of all invisible particles."""


def true_met(data: DataSettings, event_id: Array) -> TruthMet | None:
    """True missing momentum of events by their ids [B], NaN where a file has none; None if no file has it.

    Raises DataError if a file of the config is not there or cannot be read any more.
    """
    schema = load_schema(data.schema_name)
    scale = 1e-3 if schema.energy_unit == "MeV" else 1.0
    wider = schema.model_copy(update={"columns": {**schema.columns, **TRUE_MET}})
    wanted = [(name, path) for name, sample in data.samples.items() for path in events.find_files(name, sample)]
    order, found = np.argsort(event_id), np.full((2, len(event_id)), np.nan)
    with progress("truth", len(wanted), " files") as advance:
        for sample, path in wanted:
            present = Resolved(open_table(path, schema.trees, schema.name), wider).present()
            for batch in (
                events.read_events(path, wider, data, sample) if set(TRUE_MET.values()) <= set(present) else ()
            ):
                place = np.searchsorted(event_id, batch.event_id, sorter=order).clip(max=len(order) - 1)
                row = order[place]
                mine = event_id[row] == batch.event_id
                found[0, row[mine]] = batch.observables["truth_met"][mine] * scale
                found[1, row[mine]] = batch.observables["truth_met_phi"][mine]
            advance(1, sample)
    return TruthMet(*found) if np.isfinite(found).any() else None
