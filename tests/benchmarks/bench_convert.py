"""Conversion and input against per-event Python and PyG's DataLoader: `python tests/benchmarks/bench_convert.py`.

Every pair is measured side by side in one process with one thread; the ratios count, not the times. The machine's load
changes between two readings, so the readings of a pair alternate and their medians are compared (CPU time).

Bases of group (a). Both sides start from the same arrays in memory and end with the same nodes (checked): the
jagged branches of an ATLAS file, and the flat table of arXiv:2501.03432 (one row per event), from which sparticles
builds its graphs. The loops do less than hepx: no observables, no checks of values, no other samples; and they
have none of the transforms that sparticles applies at each access of an event (missing flags, Laplacian positions,
standardising). With the file, both sides use uproot, whose own rate limits the ratio: that limit is printed.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import awkward as ak
import numpy as np
import torch
import uproot

from hepx import events
from hepx.config import parse
from hepx.events import DataSettings, reading
from hepx.events.columns import Resolved
from hepx.events.tables import Table, open_table
from hepx.graph import (
    NODE_TYPES,
    GraphBatch,
    GraphSettings,
    NodeSettings,
    build_graphs,
    make_layout,
    to_pyg,
)
from hepx.memory import keep_memory
from hepx.schemas import load_schema

warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch_geometric's own import warns
sys.path.insert(0, str(Path(__file__).parent.parent))

from test_store import write_events  # noqa: E402 - found through the line above
from torch_geometric.data import Data  # noqa: E402
from torch_geometric.loader import DataLoader  # noqa: E402

torch.set_num_threads(1)
keep_memory()  # as the command line does

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
NODES = [*((f"pT{one}", f"eta{one}", f"phi{one}", f"{one}_quantile") for one in ("j1", "j2", "j3", "b1", "b2"))]
LEPTON, MET = ("pTl1", "etal1", "phil1"), ("ETMiss", "ETMissPhi", "metsig_New")
PAPER = GraphSettings(
    nodes=(
        NodeSettings(type="jet", max=3, alias=True),
        NodeSettings(type="bjet", max=2, alias=True),
        NodeSettings(type="lepton"),
        NodeSettings(type="met"),
    )
)


def paper_table(graphs: GraphBatch) -> dict[str, np.ndarray]:
    """The flat table of the paper of those events that have two b-jets and a lepton: j1 to j3, of which the b-jets are
    two, b1, b2, the lepton and the missing momentum; −99 where there is no third jet."""
    graphs = graphs[graphs.mask[:, [0, 1, 3]].all(1)]
    x = torch.where(graphs.mask[:, :, None], graphs.x, -99.0).numpy()
    jets = np.take_along_axis(x[:, :3], np.argsort(-x[:, :3, :1], axis=1), axis=1)
    table = {"index": np.arange(len(x))}
    for names, values in zip(NODES, (*jets.swapaxes(0, 1), x[:, 0], x[:, 1]), strict=True):
        table |= {name: values[:, i] for name, i in zip(names, (0, 1, 2, 4), strict=True)}
    table |= {"b1m": x[:, 0, 3], "b2m": x[:, 1, 3]}
    table |= {name: x[:, 3, i] for i, name in enumerate(LEPTON)}
    return table | {name: x[:, 4, i] for name, i in zip(MET, (0, 2, 5), strict=True)}


def torch_loop(table: np.ndarray, names: list[str]) -> list[Data]:
    """Row of the flat table as a tensor -> a tensor per node -> pairs -> Data, the way of sparticles."""
    at = {name: place for place, name in enumerate(names)}
    columns = [torch.tensor([at[name] for name in node]) for node in NODES]
    lepton, met = (torch.tensor([at[name] for name in node]) for node in (LEPTON, MET))
    places = {"jet": torch.tensor([0, 1, 2, 4]), "lepton": torch.tensor([0, 1, 2]), "met": torch.tensor([0, 2, 5])}

    def node(values: torch.Tensor, kind: str) -> torch.Tensor:
        return torch.zeros(6).scatter_(0, places[kind], values)

    found = []
    for row in torch.from_numpy(table).float():
        nodes = [node(row[of], "jet") for of in columns if row[of[0]] > 0]
        for name, one in (("b1m", -2), ("b2m", -1)):
            nodes[one][3] = row[at[name]]
        nodes += [node(row[lepton], "lepton"), node(row[met], "met")]
        pairs = list(itertools.combinations(range(len(nodes)), 2))
        edge_index = torch.tensor(pairs + [(b, a) for a, b in pairs], dtype=torch.long).t().contiguous()
        found.append(Data(x=torch.stack(nodes), edge_index=edge_index, y=torch.tensor([1])))
    return found


def list_loop(table: np.ndarray, names: list[str]) -> list[Data]:
    """The same from lists of numbers: the fastest such loop."""
    at = {name: place for place, name in enumerate(names)}
    columns = [[at[name] for name in node] for node in NODES]
    masses = [None, None, None, at["b1m"], at["b2m"]]
    lepton, met = ([at[name] for name in node] for node in (LEPTON, MET))
    found = []
    for row in table.tolist():
        nodes = [
            [row[pt], row[eta], row[phi], 0.0 if mass is None else row[mass], row[btag], 0.0]
            for (pt, eta, phi, btag), mass in zip(columns, masses, strict=True)
            if row[pt] > 0
        ]
        nodes.append([*(row[i] for i in lepton), 0.0, 0.0, 0.0])
        nodes.append([row[met[0]], 0.0, row[met[1]], 0.0, 0.0, row[met[2]]])
        pairs = list(itertools.combinations(range(len(nodes)), 2))
        edge_index = torch.tensor(pairs + [(b, a) for a, b in pairs], dtype=torch.long).t().contiguous()
        found.append(Data(x=torch.tensor(nodes), edge_index=edge_index, y=torch.tensor([1])))
    return found


class InMemory(Table):
    """The columns of a file that were read already."""

    def __init__(self, arrays: dict[str, ak.Array]) -> None:
        self.path, self.name, self.kind, self.uuid = Path("memory"), "memory", "TTree", ""
        self._arrays, self.columns = arrays, tuple(arrays)
        self.num_entries = len(next(iter(arrays.values())))

    def types(self, names: Sequence[str]) -> dict[str, str]:
        return {name: str(self._arrays[name].type.content) for name in names}

    def _read(self, names: Sequence[str], start: int, stop: int) -> dict[str, ak.Array]:
        return {name: self._arrays[name][start:stop] for name in names}


class Conversion:
    """hepx's conversion of one file, in its steps."""

    def __init__(self, path: Path, schema: str = "atlas_open_2025", graph: GraphSettings | None = None) -> None:
        normal = {"xsec_pb": 1, "kfactor": 1, "filter_efficiency": 1, "sum_of_weights": 1, "channel": 7}
        given = normal if schema == "sparticles" else {}
        samples = {name: {"files": str(path), "label": label, **given} for name, label in (("a", 1), ("b", 0))}
        self.path, self.schema, self.graph = path, load_schema(schema), graph or GraphSettings()
        self.data = parse(DataSettings, {"samples": samples}, "data")
        names = events.extra_observables(self.schema, self.data)
        self.layout = make_layout(self.graph, ["a", "b"], [1, 0], names)

    def convert_memory(self, table: Table) -> GraphBatch:
        """Columns in memory -> GraphBatch: `convert` without the file."""
        with mock.patch.object(reading, "open_table", return_value=table):
            return self.convert()

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
        return build_graphs(batches, self.graph, self.layout, NUM_EVENTS)

    def build(self, batches: list[events.EventBatch]) -> list[GraphBatch]:
        """EventBatch -> GraphBatch."""
        return [build_graphs([batch], self.graph, self.layout, len(batch)) for batch in batches]

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
        memory = InMemory({name: arrays[name] for name in branches})
        flat = paper_table(graphs)
        paper = Conversion(path, "sparticles", PAPER)
        rows, names = np.stack([flat[name] for name in flat], axis=1), list(flat)
        flat_memory = InMemory({name: ak.Array(values) for name, values in flat.items()})
        for one in (torch_loop, list_loop):
            check_same_table(paper.convert_memory(flat_memory), one(rows[:200], names))
        gc.collect()
        gc.freeze()  # or the loop's garbage collections walk through all that is alive here, and it takes twice as long
        print(f"{NUM_EVENTS} events, {len(branches)} branches, one thread; events per CPU second")
        print(f"{'':58s} {'hepx':>12s} {'other':>12s} {'ratio':>8s}")
        columns, read, build, both, alone, per_event, in_memory, in_table, by_torch, by_list = seconds(
            conversion.columns,
            conversion.read,
            lambda: conversion.build(batches),
            conversion.convert,
            lambda: read_alone(path, branches),
            lambda: loop(arrays[:NUM_LOOP]),
            lambda: conversion.convert_memory(memory),
            lambda: paper.convert_memory(flat_memory),
            lambda: torch_loop(rows[:NUM_LOOP], names),
            lambda: list_loop(rows[:NUM_LOOP], names),
        )
    rate, slow = NUM_EVENTS / both, NUM_LOOP / per_event
    with_file = 1 / (1 / slow + alone / NUM_EVENTS)
    line(
        "(a) branches in memory -> graphs, against a loop over rows",
        NUM_EVENTS / in_memory,
        slow,
        "wanted >= 100",
    )
    table_rate = len(rows) / in_table
    line("    table of the paper -> its graphs, against torch rows", table_rate, NUM_LOOP / by_torch, "wanted >= 100")
    line("    table of the paper -> its graphs, against lists", table_rate, NUM_LOOP / by_list, "")
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
    line("    file -> graphs, against uproot alone", rate, NUM_EVENTS / alone, "wanted >= 0.5")
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


def check_same_table(graphs: GraphBatch, data: list[Data]) -> None:
    """Same nodes but for the mass of jets: hepx gives a jet the mass of the b-jet that it is, the table has none."""
    for i, one in enumerate(data):
        is_bjet = graphs.node_type[i] == NODE_TYPES.index("bjet")
        found = torch.where(is_bjet[:, None], graphs.x[i], graphs.x[i] * torch.tensor([1, 1, 1, 0, 1, 1]))
        torch.testing.assert_close(found[graphs.mask[i]], one.x, rtol=1e-4, atol=1e-4)


def check_same(graphs: GraphBatch, data: list[Data]) -> None:
    """Both sides must hold the same nodes and weights, or the comparison means nothing."""
    for i, one in enumerate(data):
        torch.testing.assert_close(graphs.x[i][graphs.mask[i]], one.x, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(graphs.event_id[i : i + 1], one.event_id)


if __name__ == "__main__":
    main()
