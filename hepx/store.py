"""Graphs on disk: `convert` writes shards (safetensors) and `dataset.json`; `GraphStore` reads them memory-mapped.

Work is cut into tasks (sample, file, event range). A task writes its shard and a small JSON beside it, so a finished
task is never done again, and neither the order of work nor who does it (this process, worker processes, a Dask cluster)
changes a byte of the result. Memory does not grow with the number of events.
"""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save

from hepx import events, files
from hepx.errors import ConfigError, DataError, closest
from hepx.events import DataSettings, EventBatch, FoldSettings, Schema, Source, SplitSettings, WeightSums
from hepx.graph import GraphBatch, GraphSettings, Layout, build_graphs, concatenate, make_layout
from hepx.order import BLOCK, shuffled_blocks
from hepx.progress import progress, track
from hepx.random import scramble, unit
from hepx.remote import Location, TransferError, identity_if_any, locate
from hepx.schemas import load_schema
from hepx.workers import THIS_PROCESS, Execution, outcomes

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
FORMAT = 3
SKIPPED = "skipped.json"
IDS_AT_ONCE = 20_000_000  # event ids compared in one pass (160 MB)

Int64 = npt.NDArray[np.int64]
Part = dict[str, Any]  # what a finished task notes beside its shard


@dataclass(frozen=True)
class InputFile:
    """A file of a sample as it was found: what it holds, or the problem for which it is left out; and what it holds
    for each variation that concerns the sample."""

    sample: str
    path: str
    source: Source | None
    problem: str = ""
    varied: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A range of events of one file, under a variation or nominal, and the name and the recipe of its shard."""

    sample: str
    path: str
    start: int
    stop: int
    shard: str
    recipe: str
    variation: str = ""


@dataclass(frozen=True)
class Job:
    """What all tasks of a conversion share; relative paths start at `root`."""

    data: DataSettings
    graph: GraphSettings
    schema: Schema
    layout: Layout
    root: Path
    folder: Path


def split_index(event_id: Int64, split: SplitSettings | FoldSettings) -> Int64:
    """0 train, 1 validation, 2 test for each event [B], from its event number alone.

    The number is scrambled, so neighbouring event numbers fall independently and a cut, a shuffle or a second file
    never moves an event to another split.
    """
    uniform = unit(scramble(event_id))
    if isinstance(split, FoldSettings):
        part = ((uniform * split.folds).astype(np.int64) - split.fold) % split.folds
        return np.select([part == 0, part == 1], [2, 1], 0)
    return np.searchsorted(np.cumsum(split.fractions)[:2], uniform, side="right")


def convert(
    data: DataSettings,
    graph: GraphSettings,
    folder: Path,
    execution: Execution = THIS_PROCESS,
    split: FoldSettings | None = None,
) -> GraphStore:
    """ROOT files -> shards in `folder`. Finished shards are kept; `dataset.json` is written last.

    `split` replaces data.split. Raises DataError if a file is wrong, a sample has no event left after the selection, or
    an event occurs twice. A bad file that was left out once (`execution.skip_bad_files`) is left out again without
    being asked for, until it changes.
    """
    schema = load_schema(data.schema_name)
    labels = [sample.label for sample in data.samples.values()]
    layout = make_layout(graph, list(data.samples), labels, events.extra_observables(schema, data))
    job = Job(data, graph, schema, layout, Path.cwd(), folder.absolute())
    may_skip = _skipping(job, execution)
    inputs = _inspect(job, may_skip)
    _refuse_same_file(inputs)
    tasks = _plan(job, inputs)
    if not all(_is_finished(folder, task) for task in tasks):
        (folder / "dataset.json").unlink(missing_ok=True)  # before a shard that it names is replaced
    parts, problems = _carry_out(job, tasks, execution, may_skip)
    weights = _weights(job, tasks, parts)
    inputs = [replace(one, problem=problems.get((one.sample, one.path), one.problem)) for one in inputs]
    _say_skipped(inputs)
    _note_skipped(job, [one.path for one in inputs if one.problem])
    tasks = [task for task in tasks if (task.sample, task.path) not in problems]
    part = split or data.split
    manifest = {
        "format": FORMAT,
        "recipe": _recipe(_of_variation(job, tasks, ""), part),
        "layout": layout.to_dict(),
        "luminosity": data.luminosity,
        "split": part.model_dump(),
        "sources": [asdict(one.source) for one in inputs if one.source and not one.problem],
        "skipped": [{"sample": one.sample, "path": one.path, "why": one.problem} for one in inputs if one.problem],
        "weights": {name: asdict(sums) for name, sums in weights.items()},
        **_describe(job, _of_variation(job, tasks, ""), parts, ""),
    }
    if data.variations:
        manifest["variations"] = {}
    for name in data.variations:
        mine = _of_variation(job, tasks, name)
        manifest["variations"][name] = {"recipe": _recipe(mine, part), **_describe(job, mine, parts, name)}
    files.write_json(folder / "dataset.json", manifest)
    _remove_strays(folder, tasks)
    return GraphStore(folder)


def _of_variation(job: Job, tasks: Sequence[Task], variation: str) -> list[Task]:
    """The tasks whose shards make up the data set under a variation: nominal ones for samples it does not concern."""
    varied = {task.sample for task in tasks if task.variation == variation}
    wanted = {name: variation if name in varied else "" for name in job.data.samples}
    return [task for name, which in wanted.items() for task in tasks if (task.sample, task.variation) == (name, which)]


def _recipe(tasks: Sequence[Task], split: SplitSettings | FoldSettings) -> str:
    return files.digest([[task.recipe for task in tasks], split.model_dump()])


def _describe(job: Job, tasks: Sequence[Task], parts: dict[str, Part], variation: str) -> dict[str, Any]:
    """Shards and cut-flow; DataError if a sample has no event left, or an event occurs twice."""
    cutflow = _cutflow(job, tasks, parts, variation)
    _refuse_repeated(job.folder, tasks, parts)
    return {
        "shards": [{"name": task.shard, "events": parts[task.shard]["events"]} for task in tasks],
        "cutflow": cutflow,
    }


def skipped(folder: Path) -> dict[str, list[Any]]:
    """The files that the conversion in `folder` left out, path -> identity (without the name)."""
    noted = folder / SKIPPED
    with files.reading(noted):
        return dict(files.read_json(noted)) if noted.exists() else {}


def _note_skipped(job: Job, paths: Sequence[str]) -> None:
    if paths:
        files.write_json(job.folder / SKIPPED, {path: identity_if_any(locate(path, job.root))[1:] for path in paths})
    else:
        (job.folder / SKIPPED).unlink(missing_ok=True)


def _skipping(job: Job, execution: Execution) -> Callable[[str], bool]:
    """Which bad files are left out: all if asked to, or those that were before and have not changed since."""
    known = skipped(job.folder)

    def may_skip(path: str) -> bool:
        if execution.skip_bad_files or path not in known:
            return execution.skip_bad_files
        return known[path] == identity_if_any(locate(path, job.root))[1:]

    return may_skip


def _inspect(job: Job, may_skip: Callable[[str], bool]) -> list[InputFile]:
    """Open every file once; a bad one raises DataError or is noted with its problem."""
    wanted = [(name, path) for name, sample in job.data.samples.items() for path in events.find_files(name, sample)]
    inputs = []
    for name, path in track(wanted, "open files", len(wanted)):
        try:
            source = events.inspect_file(path, job.schema)
            inputs.append(InputFile(name, str(path), source, varied=_inspect_varied(job, name, path)))
        except TransferError:  # a network that fails says nothing about the file, so it is not left out
            raise
        except DataError as error:
            if not may_skip(str(path)):
                raise
            inputs.append(InputFile(name, str(path), None, str(error)))
    return inputs


def _inspect_varied(job: Job, sample: str, path: Location) -> dict[str, Source]:
    """What a file holds for each variation that concerns its sample; the error names the variation."""
    found = {}
    for name, variation in job.data.variations.items():
        if variation.samples is None or sample in variation.samples:
            try:
                found[name] = events.inspect_file(path, job.schema, variation)
            except (ConfigError, DataError) as error:
                raise type(error)(f"variation '{name}': {error}") from error
    return found


def _plan(job: Job, inputs: Sequence[InputFile]) -> list[Task]:
    """Cut the files into tasks. A recipe holds all that decides about the bytes of a shard, and nothing else: a new
    file, another split or another variation leaves the finished shards as they are."""
    shared = job.data.model_dump(exclude={"samples", "split", "variations"})
    shared |= {"graph": job.graph.model_dump(), "schema": job.schema.model_dump(), "layout": job.layout.to_dict()}
    tasks = []
    for variation in ("", *job.data.variations):
        for number, one in enumerate(inputs):
            source = one.varied.get(variation) if variation else one.source
            if source is not None:
                tasks += _plan_file(job, one, source, number, shared, variation)
    return tasks


def _plan_file(
    job: Job, one: InputFile, source: Source, number: int, shared: dict[str, Any], variation: str
) -> list[Task]:
    sample = job.data.samples[one.sample].model_dump(exclude={"files"})
    settings = job.data.varied(variation)
    how = [] if settings is None else [settings.model_dump(exclude={"samples"})]
    name = f"{one.sample}@{variation}" if variation else one.sample
    tasks = []
    for start in range(0, source.num_events, events.EVENTS_PER_STEP):
        stop = min(start + events.EVENTS_PER_STEP, source.num_events)
        recipe = files.digest([FORMAT, shared, one.sample, sample, asdict(source), start, stop, *how])
        shard = f"{name}-{number:05d}-{start // events.EVENTS_PER_STEP:05d}"
        tasks.append(Task(one.sample, one.path, start, stop, shard, recipe, variation))
    return tasks


def _is_finished(folder: Path, task: Task) -> bool:
    note, shard = _paths(folder, task)
    return note.exists() and shard.exists() and files.read_json(note)["recipe"] == task.recipe


def _paths(folder: Path, task: Task) -> tuple[Path, Path]:
    return folder / f"{task.shard}.json", folder / f"{task.shard}.safetensors"


def _carry_out(
    job: Job, tasks: Sequence[Task], execution: Execution, may_skip: Callable[[str], bool]
) -> tuple[dict[str, Part], dict[tuple[str, str], str]]:
    """Do what is not done yet; returns the notes of the shards, and the problems of the files (sample, path)."""
    left = [task for task in tasks if not _is_finished(job.folder, task)]
    problems: dict[tuple[str, str], str] = {}
    with progress("convert", sum(task.stop - task.start for task in left), " events") as advance:
        for task, problem in outcomes(partial(_attempt, job), left, execution):
            if problem is not None and not may_skip(task.path):
                raise DataError(problem)
            if problem is not None:
                problems.setdefault((task.sample, task.path), problem)
            advance(task.stop - task.start)
    good = [task for task in tasks if (task.sample, task.path) not in problems]
    return {task.shard: files.read_json(_paths(job.folder, task)[0]) for task in good}, problems


def _attempt(job: Job, task: Task) -> str | None:
    """Do a task; returns what is wrong with the file, or None. Other errors are not the file's and are raised."""
    gc.freeze()
    try:
        _convert_task(job, task)
    except TransferError:
        raise
    except DataError as error:
        return str(error)
    finally:
        gc.collect()  # an open ROOT file is a reference cycle with its arrays: without this, memory grows task by task
        gc.unfreeze()
    return None


def _convert_task(job: Job, task: Task) -> None:
    note, shard = _paths(job.folder, task)
    note.unlink(missing_ok=True)  # a note never stands beside a shard it does not describe
    flows, sums = [], WeightSums()
    path, variation = locate(task.path, job.root), job.data.varied(task.variation)

    def selected() -> Iterator[EventBatch]:
        nonlocal sums
        for batch in events.read_events(path, job.schema, job.data, task.sample, task.start, task.stop, variation):
            kept, flow = events.select(batch, job.data.select)
            sums += batch.weight_sums
            flows.append([asdict(cut) for cut in flow])
            yield kept

    graphs = build_graphs(selected(), job.graph, job.layout, task.stop - task.start)
    with files.atomic(shard) as temporary:
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in graphs.tensors().items()}))
    part = {"sample": task.sample, "events": len(graphs), "cutflow": _sum_cutflow(flows), "recipe": task.recipe}
    part["weights"] = asdict(sums)
    files.write_json(note, part)


def _weights(job: Job, tasks: Sequence[Task], parts: Mapping[str, Part]) -> dict[str, WeightSums]:
    """For each sample what the policy for negative weights changed, nominal events; logged if it has such weights."""
    found = dict.fromkeys(job.data.samples, WeightSums())
    for task in tasks:
        note = {} if task.variation else parts.get(task.shard, {})
        if "weights" in note:  # not there: a shard of an earlier version, still good
            found[task.sample] += WeightSums(**note["weights"])
    for name, sums in found.items():
        if sums.negative:
            log.info("sample '%s': %s", name, sums.describe(job.data.negative_weights))
    return found


def _refuse_same_file(inputs: Sequence[InputFile]) -> None:
    """DataError if two samples name the same file, or a copy of it: its events would be both, whatever their
    channels."""
    seen: dict[Any, InputFile] = {}
    for one in inputs:
        if one.source is not None:
            earlier = seen.setdefault((one.source.uuid, one.source.size, one.source.num_events), one)
            if earlier.sample != one.sample:
                raise DataError(
                    f"samples '{earlier.sample}' and '{one.sample}' name the same file ({earlier.path} and {one.path}; "
                    "its writer's identity, size and number of events are equal), so its events would be in both. "
                    "Mend data.samples."
                )


def _say_skipped(inputs: Sequence[InputFile]) -> None:
    """Log what was left out; DataError if nothing of a sample is left."""
    for one in inputs:
        if one.problem:
            log.warning("sample '%s': skipped, its weights are not scaled up for it: %s", one.sample, one.problem)
    for name in dict.fromkeys(one.sample for one in inputs):
        problems = [one.problem for one in inputs if one.sample == name]
        if all(problems):
            raise DataError(f"sample '{name}': every file was skipped ({len(problems)}); the first: {problems[0]}")


def _cutflow(
    job: Job, tasks: Sequence[Task], parts: dict[str, Part], variation: str
) -> dict[str, list[dict[str, Any]]]:
    """Cut-flow of each sample; DataError if one has no event left."""
    under = f" under variation '{variation}'" if variation else ""
    flows = {}
    for name in job.data.samples:
        flow = flows[name] = _sum_cutflow([parts[task.shard]["cutflow"] for task in tasks if task.sample == name])
        if flow[-1]["events"] == 0:
            steps = ", ".join(f"{cut['name']}: {cut['events']}" for cut in flow)
            raise DataError(f"sample '{name}'{under}: the selection leaves no event ({steps}). Loosen data.select.")
        if flow[-1]["error"] == 0:  # √Σw²
            raise DataError(
                f"sample '{name}'{under}: the weights of all {flow[-1]['events']} selected events are 0, so they stand "
                "for nothing. Mend weights and normalization of the schema, or give the numbers in the config."
            )
    return flows


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


def _refuse_repeated(folder: Path, tasks: Sequence[Task], parts: dict[str, Part]) -> None:
    """DataError if an event occurs twice (the same file under two names, or overlapping samples).

    Reads the event ids alone; where there are many, in several passes over disjoint sets of ids.
    """
    num_passes = -(-sum(parts[task.shard]["events"] for task in tasks) // IDS_AT_ONCE)
    num_repeated, example = 0, -1
    for one in range(num_passes):
        chosen = []
        for task in tasks:
            ids = _event_ids(folder, task.shard)
            chosen.append(ids if num_passes == 1 else ids[scramble(ids) % np.uint64(num_passes) == one])
        ids = np.sort(np.concatenate(chosen))
        again = ids[1:][ids[1:] == ids[:-1]]
        num_repeated += len(again)
        example = int(again[0]) if len(again) else example
    if num_repeated:
        paths = dict.fromkeys(task.path for task in tasks if example in _event_ids(folder, task.shard))
        raise DataError(
            f"{num_repeated} events occur more than once, for example {in_words(example)} in {' and '.join(paths)}. "
            "Remove the repeated file or sample from data.samples."
        )


def _event_ids(folder: Path, shard: str) -> Int64:
    with safe_open(folder / f"{shard}.safetensors", framework="np") as file:
        return file.get_tensor("event_id")


def in_words(event_id: int) -> str:
    """An event id as a sentence names it."""
    return f"channel {event_id // events.EVENT_NUMBERS} event {event_id % events.EVENT_NUMBERS}"


def _remove_strays(folder: Path, tasks: Sequence[Task]) -> None:
    """Remove shards of an earlier recipe, and half files of workers that were killed."""
    kept = {path.name for task in tasks for path in _paths(folder, task)}
    for path in folder.iterdir():
        if path.name not in kept and re.fullmatch(r"\.?.+-\d{5}-\d{5}(\.\d+)?\.(json|safetensors)", path.name):
            path.unlink(missing_ok=True)


class GraphStore:
    """A converted data set on disk. Shards are memory-mapped: only what is used is read."""

    def __init__(self, folder: Path, split: SplitSettings | FoldSettings | None = None) -> None:
        """Open `folder`, with its own split or another one; DataError if it holds no finished data set."""
        if not (folder / "dataset.json").exists():
            raise DataError(f"'{folder}' holds no finished data set (no dataset.json). Run `hepx convert` first.")
        self.folder = folder
        self.manifest = files.read_json(folder / "dataset.json")
        if self.manifest["format"] != FORMAT:
            raise DataError(f"'{folder}' was converted by another version of hepx. Run `hepx convert` again.")
        self.layout = Layout.from_dict(self.manifest["layout"])
        noted = self.manifest["split"]
        self.split = split or (FoldSettings if "folds" in noted else SplitSettings).model_validate(noted)

    @property
    def variations(self) -> tuple[str, ...]:
        """Names of the systematic variations that were converted beside the nominal events."""
        return tuple(self.manifest.get("variations", {}))

    def part(self, variation: str = "") -> dict[str, Any]:
        """Recipe, shards and cut-flow of the nominal events or of a variation; ConfigError if there is none such."""
        if variation and variation not in self.variations:
            raise ConfigError(f"unknown variation '{variation}'; {closest(variation, self.variations)}")
        found: dict[str, Any] = self.manifest["variations"][variation] if variation else self.manifest
        return found

    def load(self, split: str | None = None, variation: str = "") -> GraphBatch:
        """All events, or those of one split (train, validation, test), as one GraphBatch: nominal or varied."""
        graphs = concatenate([self._of_split(self._shard(name), split) for name, _ in self._shards(variation)])
        if len(graphs) == 0:
            raise DataError(f"the {split} split of '{self.folder}' is empty; change data.split.")
        return graphs

    def batches(
        self, split: str | None, batch_size: int, seed: int, epoch: int = 0, first: int = 0
    ) -> Iterator[GraphBatch]:
        """The events of one split in an order that seed and epoch decide (`hepx.order`), without loading them all, from
        batch number `first` on; the last batch is smaller."""
        counts = self.block_counts(split)
        left: list[GraphBatch] = []
        skip = first * batch_size
        for blocks, shuffle in shuffled_blocks(counts, seed, epoch):
            if skip >= len(shuffle):
                skip -= len(shuffle)
                continue
            graphs = self.read(split, blocks)[torch.from_numpy(shuffle[skip:])]
            graphs, skip = concatenate([*left, graphs]), 0
            whole = len(graphs) - len(graphs) % batch_size
            for start in range(0, whole, batch_size):
                yield graphs[start : start + batch_size]
            left = [graphs[whole:]]
        if left and len(left[0]):
            yield left[0]

    def block_counts(self, split: str | None) -> Int64:
        """Events of one split in each block [K]; the blocks of a shard follow those of the shard before it."""
        return np.concatenate([self._counts_of_shard(name, split) for name, _ in self._shards()])

    def _counts_of_shard(self, name: str, split: str | None) -> Int64:
        ids = _event_ids(self.folder, name)
        chosen = np.ones(len(ids), dtype=np.int64)
        if split is not None:
            chosen = (split_index(ids, self.split) == SPLITS.index(split)).astype(np.int64)
        return np.add.reduceat(chosen, np.arange(0, len(ids), BLOCK))

    def read(self, split: str | None, blocks: Int64) -> GraphBatch:
        """The events of one split in the blocks of these numbers (rising), side by side."""
        parts, first = [], 0
        for name, num_events in self._shards():
            number = blocks[(blocks >= first) & (blocks < first - (-num_events // BLOCK))] - first
            if len(number):
                shard = self._shard(name)
                parts += [self._of_split(shard[one * BLOCK : (one + 1) * BLOCK], split) for one in number]
            first -= -num_events // BLOCK
        return concatenate(parts)

    def files_of(self, event_id: Int64) -> list[str]:
        """The file that each event was read from, by event ids; empty for an event that is not in the data set."""
        paths = [source["path"] for source in self.manifest["sources"]]
        names = [name for name, _ in self._shards()]
        numbers = sorted({(name.rsplit("-", 2)[1]) for name in (shard["name"] for shard in self.part()["shards"])})
        path_of = dict(zip(numbers, paths, strict=True))
        found = dict.fromkeys(event_id.tolist(), "")
        for name in names:
            mine = np.intersect1d(event_id, _event_ids(self.folder, name))
            found |= dict.fromkeys(mine.tolist(), path_of[name.rsplit("-", 2)[1]])
        return [found[one] for one in event_id.tolist()]

    def _shards(self, variation: str = "") -> list[tuple[str, int]]:
        """Name and number of events of the shards that have any."""
        return [(shard["name"], shard["events"]) for shard in self.part(variation)["shards"] if shard["events"]]

    def _of_split(self, graphs: GraphBatch, split: str | None) -> GraphBatch:
        if split is None:
            return graphs
        found = split_index(graphs.event_id.numpy(), self.split) == SPLITS.index(split)
        return graphs[torch.from_numpy(found)]

    def _shard(self, name: str) -> GraphBatch:
        path = self.folder / f"{name}.safetensors"
        with files.reading(path), safe_open(path, framework="pt") as file:
            return GraphBatch(**{key: file.get_tensor(key) for key in file.keys()}, layout=self.layout)  # noqa: SIM118
