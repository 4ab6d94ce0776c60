"""Training from disk: events per second and memory against the number of events, and against events kept in memory.

`python tests/benchmarks/bench_streaming.py [--events 200000 1000000 3000000] [--folder FOLDER]`. Each data set is the
same planted events again and again under new event numbers, in shards as `hepx convert` writes them. Every line is a
process of its own: one pass over the training events by the feed alone, then the training of a tiny model for an epoch
(with the passes before it). Anonymous memory is what the system cannot take back; the rest of the peak is files that
are mapped. The last lines extrapolate to 10 million events: memory by the line through the measurements, time by the
slowest rate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from hepx import files
from hepx.graph import GraphBatch
from hepx.models import build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.store import FORMAT, GraphStore
from hepx.train import OnDisk, TrainSettings, fit, parts, write_training_events
from hepx.train.events import Feed
from hepx.train.losses import class_scale
from hepx.train.ranks import ALONE

SHARD = 50_000
TINY = MoEGraphTransformerSettings(dim=4, expert_dim=4, num_heads=1, num_layers=1, num_experts=2, top_k=1)


def write_store(folder: Path, num_events: int) -> None:
    """A data set of so many events."""
    events: GraphBatch = plant(toy_graphs(SHARD, 4), MECHANISMS["mt"], 5)
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for first in range(0, num_events, SHARD):
        name = f"planted-{first // SHARD:05d}-00000"
        shard = replace(events, event_id=torch.arange(first, first + SHARD))[: num_events - first]
        save_file({key: one.contiguous() for key, one in shard.tensors().items()}, folder / f"{name}.safetensors")
        shards.append({"name": name, "events": len(shard)})
    manifest = {"format": FORMAT, "recipe": "", "layout": events.layout.to_dict(), "shards": shards}
    files.write_json(folder / "dataset.json", {**manifest, "split": {"fractions": [0.6, 0.2, 0.2]}})


def memory() -> dict[str, float]:
    """Anonymous memory now and the peak of all memory, MB."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("anonymous", "RssAnon"), ("peak", "VmHWM"))}


def measure(folder: Path, keep: str) -> None:
    """One line of the table, as JSON: for a process of its own."""
    torch.set_num_threads(1)
    store = GraphStore(folder)
    train, validation = OnDisk(store, "train"), OnDisk(store, "validation")
    num_events = int(train.counts.sum())
    settings = TrainSettings(epochs=1, batch_size=4096, keep=keep, validation_events=20_000, memory_gb=100)  # type: ignore[arg-type]
    scale = class_scale(parts(train))
    feed = Feed(train, scale, settings, 1, torch.device("cpu"), ALONE)
    if keep == "device":
        assert len(feed.columns.y) == num_events  # loading is not feeding
    start = time.perf_counter()
    assert sum(batch.size for batch in feed.batches(0, 0)) == num_events
    found = {"feed": num_events / (time.perf_counter() - start)}
    with tempfile.TemporaryDirectory() as checkpoints:
        ids = (part.event_id.numpy() for part in parts(train))
        write_training_events(Path(checkpoints), ids, num_events)
        start = time.perf_counter()
        fit(build_model(TINY, store.layout, 1), train, validation, settings, 1, Path(checkpoints))
        found["epoch"] = num_events / (time.perf_counter() - start)
    print(json.dumps({**found, **memory()}))


def main() -> None:
    """Write the data sets, measure each in processes of their own, extrapolate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[200_000, 1_000_000, 3_000_000])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(Path(arguments.measure[0]), arguments.measure[1])
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        print(f"{'events':>10} {'kept on':>8} {'feed':>10} {'epoch':>9} {'anonymous':>10} {'peak':>8}")
        print(f"{'':>10} {'':>8} {'events/s':>10} {'events/s':>9} {'MB':>10} {'MB':>8}")
        table: dict[str, list[dict[str, float]]] = {"disk": [], "device": []}
        for number in arguments.events:
            folder = Path(scratch) / str(number)
            write_store(folder, number)
            for keep, rows in table.items():
                command = [sys.executable, __file__, "--measure", str(folder), keep]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row = json.loads(done.stdout)
                rows.append(row)
                print(
                    f"{number:>10} {keep:>8} {row['feed']:>10.0f} {row['epoch']:>9.0f} "
                    f"{row['anonymous']:>10.0f} {row['peak']:>8.0f}",
                    flush=True,
                )
        for keep, rows in table.items():
            slope, at_zero = np.polyfit(arguments.events, [row["anonymous"] for row in rows], 1)
            seconds = 6e6 / min(row["feed"] for row in rows)
            print(
                f"10 M events, kept on {keep}: {at_zero + 1e7 * slope:.0f} MB anonymous memory "
                f"({1e6 * slope:+.1f} MB per million); feeding an epoch takes {seconds:.0f} s"
            )


if __name__ == "__main__":
    main()
