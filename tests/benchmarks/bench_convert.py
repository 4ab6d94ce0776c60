"""Conversion and input against per-event Python and PyG's DataLoader: `python tests/benchmarks/bench_convert.py`.

Every pair is measured side by side in one process with one thread; the ratios count, not the times. The machine's load
changes between two readings, so the readings of a pair alternate and their medians are compared (CPU time).
"""

from __future__ import annotations

import gc
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import torch
import uproot

from hepx import events
from hepx.config import parse
from hepx.events import DataSettings
from hepx.events.columns import Resolved
from hepx.events.tables import open_table
from hepx.graph import GraphBatch, GraphSettings, build_graphs, concatenate, make_layout, to_pyg
from hepx.schemas import load_schema

warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch_geometric's own import warns
sys.path.insert(0, str(Path(__file__).parent.parent))

from test_store import write_events  # noqa: E402 - found through the line above
from torch_geometric.data import Data  # noqa: E402
from torch_geometric.loader import DataLoader  # noqa: E402

torch.set_num_threads(1)

NUM_EVENTS = 100_000
NUM_LOOP = 3_000  # events given to the per-event loop, which is far slower
BATCH = 500


def seconds(*functions: Callable[[], object], repeats: int = 5) -> list[float]:
    """Median CPU seconds of each function; they take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, spent in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            spent.append(time.process_time() - start)
    return [statistics.median(spent) for spent in times]


def read_alone(path: Path, branches: list[str]) -> ak.Array:
    """What uproot does by itself: open, read the same branches."""
    return uproot.open(path)["analysis"].arrays(branches, library="ak")


def loop(arrays: ak.Array) -> list[Data]:
    """Row -> list of nodes -> pairs -> Data, one event after the other, as PyG data sets for such events are written.

    Takes the same objects as hepx's default graph: two b-jets, the leading other jet, the leading lepton, the MET.
    """
    return [event_to_data(row) for row in arrays.to_list()]


def event_to_data(row: dict[str, object]) -> Data:
    """One event in plain Python."""
    jets = [
        {"pt": pt, "eta": eta, "phi": phi, "mass": max(e**2 - (pt * np.cosh(eta)) ** 2, 0.0) ** 0.5, "btag": quantile}
        for pt, eta, phi, e, quantile in zip(*(row[f"jet_{name}"] for name in JET), strict=True)
        if pt > 30 and abs(eta) < 2.8
    ]
    jets.sort(key=lambda jet: -jet["pt"])
    bjets = [jet for jet in jets if jet["btag"] >= 3][:2]
    others = [jet for jet in jets if not any(jet is other for other in bjets)][:1]
    leptons = sorted(zip(*(row[f"lep_{name}"] for name in ("pt", "eta", "phi")), strict=True), key=lambda one: -one[0])
    nodes = [[jet["pt"], jet["eta"], jet["phi"], jet["mass"], jet["btag"], 0.0] for jet in bjets + others]
    nodes += [[pt, eta, phi, 0.0, 0.0, 0.0] for pt, eta, phi in leptons[:1]]
    nodes += [[row["met"], 0.0, row["met_phi"], 0.0, 0.0, row["met_sig"]]]
    pairs = list(itertools.combinations(range(len(nodes)), 2))
    edge_index = torch.tensor(pairs + [(b, a) for a, b in pairs], dtype=torch.long).reshape(-1, 2).t().contiguous()
    weight = 1000.0 * row["xsec"] * row["kfac"] * row["filteff"] / row["sum_of_weights"] * row["mcWeight"]
    return Data(
        x=torch.tensor(nodes, dtype=torch.float32),
        edge_index=edge_index,
        y=torch.tensor([1]),
        weight=torch.tensor([weight], dtype=torch.float64),
        event_id=torch.tensor([row["channelNumber"] * 10**12 + row["eventNumber"]]),
    )


JET = ("pt", "eta", "phi", "e", "btag_quantile")


class Conversion:
    """hepx's conversion of one file, in its two steps."""

    def __init__(self, path: Path) -> None:
        samples = {"a": {"files": str(path), "label": 1}, "b": {"files": str(path), "label": 0}}
        self.path, self.schema = path, load_schema("atlas_open_2025")
        self.data = parse(DataSettings, {"samples": samples}, "data")
        names = events.extra_observables(self.schema, self.data)
        self.layout = make_layout(GraphSettings(), ["a", "b"], [1, 0], names)

    def columns(self) -> object:
        """ROOT -> the columns of the schema."""
        table = open_table(self.path, self.schema.trees, self.schema.name)
        return Resolved(table, self.schema).columns(0, NUM_EVENTS)

    def read(self) -> list[events.EventBatch]:
        """ROOT -> EventBatch: objects, weights, observables."""
        return list(events.read_events(self.path, self.schema, self.data, "a"))

    def convert(self) -> GraphBatch:
        """ROOT -> GraphBatch, batch by batch as `hepx convert` does."""
        batches = events.read_events(self.path, self.schema, self.data, "a")
        return concatenate([build_graphs(batch, GraphSettings(), self.layout) for batch in batches])

    def build(self, batches: list[events.EventBatch]) -> list[GraphBatch]:
        """EventBatch -> GraphBatch."""
        return [build_graphs(batch, GraphSettings(), self.layout) for batch in batches]

    def branches(self) -> list[str]:
        """The branches that hepx reads from this file."""
        present = set(uproot.open(self.path)["analysis"].keys(recursive=False))
        wanted = [name.rstrip("?") for name in self.schema.branches()]
        return [name for name in dict.fromkeys(wanted) if name in present]


def slices(graphs: GraphBatch, order: torch.Tensor) -> int:
    """One epoch of hepx's input: a batch is the events at some positions."""
    return sum(len(graphs[index]) for index in order.split(BATCH))


def line(what: str, ours: float, theirs: float, wanted: str) -> None:
    """One row of the table: events/s of hepx and of the other side, and their ratio."""
    print(f"{what:58s} {ours:12,.0f} {theirs:12,.0f} {ours / theirs:8.2f}   {wanted}", flush=True)


def main() -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_events(Path(folder) / "a.root", NUM_EVENTS)
        conversion = Conversion(path)
        branches = conversion.branches()
        batches = conversion.read()
        graphs = conversion.convert()
        arrays = read_alone(path, branches)
        check_same(graphs, loop(arrays[:200]))
        gc.collect()
        gc.freeze()  # or the loop's garbage collections walk through all that is alive here, and it takes twice as long
        print(f"{NUM_EVENTS} events, {len(branches)} branches, one thread; events per CPU second")
        print(f"{'':58s} {'hepx':>12s} {'other':>12s} {'ratio':>8s}")
        columns, read, build, both, alone, per_event = seconds(
            conversion.columns,
            conversion.read,
            lambda: conversion.build(batches),
            conversion.convert,
            lambda: read_alone(path, branches),
            lambda: loop(arrays[:NUM_LOOP]),
        )
    rate, slow = NUM_EVENTS / both, NUM_LOOP / per_event
    with_file = 1 / (1 / slow + alone / NUM_EVENTS)
    line(
        "(a) branches in memory -> graphs, against a loop over rows",
        NUM_EVENTS / (both - columns),
        slow,
        "wanted >= 100",
    )
    line("    EventBatch -> graphs, against a loop over rows", NUM_EVENTS / build, slow, "")
    line("    file -> graphs, against uproot and the loop", rate, with_file, "")
    line(
        "    nothing but uproot, against uproot and the loop",
        NUM_EVENTS / alone,
        with_file,
        "the limit of the line above",
    )
    line("(b) file -> columns, against uproot alone", NUM_EVENTS / columns, NUM_EVENTS / alone, "wanted >= 0.5")
    line("    file -> EventBatch, against uproot alone", NUM_EVENTS / read, NUM_EVENTS / alone, "wanted >= 0.5")
    line("    file -> graphs, against uproot alone", rate, NUM_EVENTS / alone, "")
    data = to_pyg(graphs[:20_000])
    order = torch.randperm(len(graphs))
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    ours, theirs = seconds(lambda: slices(graphs, order), lambda: sum(batch.num_graphs for batch in loader))
    line(
        f"(c) batches of {BATCH}, against DataLoader over a list of Data",
        len(graphs) / ours,
        len(data) / theirs,
        "wanted >= 100",
    )


def check_same(graphs: GraphBatch, data: list[Data]) -> None:
    """Both sides must hold the same nodes and weights, or the comparison means nothing."""
    for i, one in enumerate(data):
        torch.testing.assert_close(graphs.x[i][graphs.mask[i]], one.x, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(graphs.event_id[i : i + 1], one.event_id)


if __name__ == "__main__":
    main()
