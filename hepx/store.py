"""Graphs on disk: `convert` writes shards (safetensors) and `dataset.json`; `GraphStore` reads them memory-mapped.

Work is cut into tasks (sample, file, event range). A task writes its shard and a small JSON beside it, so a finished
task is never done again and the order of work does not change the result.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.torch import save_file

from hepx import events, files
from hepx.errors import DataError
from hepx.events import DataSettings, SplitSettings
from hepx.graph import GraphBatch, GraphSettings, Layout, build_graphs, concatenate, make_layout
from hepx.progress import track
from hepx.schemas import load_schema

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
FORMAT = 1


@dataclass(frozen=True)
class Task:
    """A range of events of one file, and the name of the shard it becomes."""

    sample: str
    path: str
    start: int
    stop: int
    shard: str


def split_index(event_id: npt.NDArray[np.int64], split: SplitSettings) -> npt.NDArray[np.int64]:
    """0 train, 1 validation, 2 test for each event [B], from its event number alone.

    The number is scrambled by the finaliser of SplitMix64 (Steele et al., OOPSLA 2014), so neighbouring event numbers
    fall independently and a cut, a shuffle or a second file never moves an event to another split.
    """
    z = event_id.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    edges = np.cumsum(split.fractions)[:2]
    return np.searchsorted(edges, uniform, side="right")


def convert(data: DataSettings, graph: GraphSettings, folder: Path) -> GraphStore:
    """ROOT files -> shards in `folder`. Finished shards are kept; `dataset.json` is written last.

    Raises DataError if a file is wrong or a sample has no event left after the selection.
    """
    schema = load_schema(data.schema_name)
    labels = [sample.label for sample in data.samples.values()]
    layout = make_layout(graph, list(data.samples), labels, list(schema.columns))
    sources, tasks = _plan(data)
    recipe = files.digest([data.model_dump(), graph.model_dump(), [asdict(source) for source in sources], FORMAT])
    for task in track(tasks, "convert", len(tasks)):
        _convert_task(task, data, graph, layout, folder, recipe)
    parts = [files.read_json(folder / f"{task.shard}.json") for task in tasks]
    cutflow = {
        name: _sum_cutflow([part["cutflow"] for part in parts if part["sample"] == name]) for name in data.samples
    }
    for name, flow in cutflow.items():
        if flow[-1]["events"] == 0:
            steps = ", ".join(f"{cut['name']}: {cut['events']}" for cut in flow)
            raise DataError(f"sample '{name}': the selection leaves no event ({steps}). Loosen data.select.")
    manifest = {
        "format": FORMAT,
        "recipe": recipe,
        "layout": layout.to_dict(),
        "luminosity": data.luminosity,
        "split": list(data.split.fractions),
        "sources": [asdict(source) for source in sources],
        "shards": [{"name": task.shard, "events": part["events"]} for task, part in zip(tasks, parts, strict=True)],
        "cutflow": cutflow,
    }
    files.write_json(folder / "dataset.json", manifest)
    store = GraphStore(folder)
    store.check_unique()
    return store


def _plan(data: DataSettings) -> tuple[list[events.Source], list[Task]]:
    schema = load_schema(data.schema_name)
    sources: list[events.Source] = []
    tasks: list[Task] = []
    for name, sample in data.samples.items():
        for path in events.find_files(name, sample):
            source = events.inspect_file(path, schema)
            sources.append(source)
            starts = range(0, max(source.num_events, 1), events.EVENTS_PER_STEP)
            for start in starts:
                shard = f"{name}-{len(tasks):05d}"
                stop = min(start + events.EVENTS_PER_STEP, source.num_events)
                tasks.append(Task(name, str(path), start, stop, shard))
    return sources, tasks


def _convert_task(
    task: Task, data: DataSettings, graph: GraphSettings, layout: Layout, folder: Path, recipe: str
) -> None:
    note = folder / f"{task.shard}.json"
    if note.exists() and files.read_json(note)["recipe"] == recipe:
        return
    schema = load_schema(data.schema_name)
    batches, flows = [], []
    for batch in events.read_events(Path(task.path), schema, data, task.sample, task.start, task.stop):
        kept, flow = events.select(batch, data.select)
        batches.append(build_graphs(kept, graph, layout))
        flows.append([asdict(cut) for cut in flow])
    if not batches:
        raise DataError(
            f"sample '{task.sample}': tree of {task.path} holds no events. Remove the file from the config."
        )
    graphs = concatenate(batches)
    with files.atomic(folder / f"{task.shard}.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in graphs.tensors().items()}, temporary)
    part = {"sample": task.sample, "events": len(graphs), "cutflow": _sum_cutflow(flows), "recipe": recipe}
    files.write_json(note, part)


def _sum_cutflow(flows: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {
            "name": cuts[0]["name"],
            "events": sum(cut["events"] for cut in cuts),
            "weighted": sum(cut["weighted"] for cut in cuts),
            "error": float(np.sqrt(sum(cut["error"] ** 2 for cut in cuts))),
        }
        for cuts in zip(*flows, strict=True)
    ]


class GraphStore:
    """A converted data set on disk. Shards are memory-mapped: only what is used is read."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`; DataError if it holds no finished data set."""
        if not (folder / "dataset.json").exists():
            raise DataError(f"'{folder}' holds no finished data set (no dataset.json). Run `hepx convert` first.")
        self.folder = folder
        self.manifest = files.read_json(folder / "dataset.json")
        self.layout = Layout.from_dict(self.manifest["layout"])
        self.split = SplitSettings(fractions=tuple(self.manifest["split"]))

    def load(self, split: str | None = None) -> GraphBatch:
        """All events, or those of one split (train, validation, test), as one GraphBatch."""
        batches = [self._shard(shard["name"]) for shard in self.manifest["shards"] if shard["events"]]
        if split is not None:
            wanted = SPLITS.index(split)
            batches = [batch[split_index(batch.event_id.numpy(), self.split) == wanted] for batch in batches]
        graphs = concatenate(batches)
        if len(graphs) == 0:
            raise DataError(f"the {split} split of '{self.folder}' is empty; change data.split.fractions.")
        return graphs

    def check_unique(self) -> None:
        """DataError if an event occurs twice (the same file under two names, or overlapping samples)."""
        ids = self.load().event_id.numpy()
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) < len(ids):
            example = int(unique[np.argmax(counts)])
            raise DataError(
                f"{len(ids) - len(unique)} events occur more than once, for example channel {example // 10**12} "
                f"event {example % 10**12}. Remove the repeated file or sample from data.samples."
            )

    def _shard(self, name: str) -> GraphBatch:
        with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
            return GraphBatch(**{key: file.get_tensor(key) for key in file.keys()}, layout=self.layout)  # noqa: SIM118
