"""Where the events are kept, how many processes train, and how the order is cut do not change what is learned."""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hepx import files
from hepx.errors import ConfigError
from hepx.graph import GraphBatch, concatenate
from hepx.models import build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.order import BLOCK, even_blocks, shuffled_blocks
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.store import FORMAT, GraphStore
from hepx.train import Epoch, OnDisk, Ranks, TrainSettings, fit, joined, parts, training_weights
from hepx.train.events import Feed, InMemory, ahead, at_most, epoch_order, free_memory
from hepx.train.losses import class_scale
from hepx.train.ranks import ALONE

ROOT = Path(__file__).parent.parent
SMALL = MoEGraphTransformerSettings(dim=8, expert_dim=4, num_heads=2, dropout=0.0)
CPU = torch.device("cpu")


def write_store(graphs: GraphBatch, folder: Path, sizes: tuple[int, ...]) -> GraphStore:
    """A data set whose shards are these events, `sizes` of them each."""
    folder.mkdir(parents=True)
    names, first = [], 0
    for number, size in enumerate(sizes):
        names.append({"name": f"s-{number:05d}-00000", "events": size})
        part = graphs[first : first + size]
        save_file(
            {key: one.contiguous() for key, one in part.tensors().items()}, folder / f"s-{number:05d}-00000.safetensors"
        )
        first += size
    manifest = {"format": FORMAT, "recipe": "", "layout": graphs.layout.to_dict(), "shards": names}
    files.write_json(folder / "dataset.json", {**manifest, "split": {"fractions": [0.6, 0.2, 0.2]}})
    return GraphStore(folder)


@pytest.fixture(scope="module")
def graphs() -> GraphBatch:
    planted = plant(toy_graphs(3000, 4), MECHANISMS["mt"], 5)
    weight = torch.where(torch.arange(3000) % 9 == 0, -0.5, 1.0).double()
    return replace(planted, weight=weight)


@pytest.fixture(scope="module")
def store(graphs: GraphBatch, tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return write_store(graphs, tmp_path_factory.mktemp("store") / "d", (1100, 0, 300, 1600))


def test_every_event_comes_once_and_blocks_are_mixed() -> None:
    counts = np.random.default_rng(1).integers(0, BLOCK, 700)
    order = epoch_order(counts, 1, 0)
    assert sorted(order) == list(range(counts.sum()))
    assert not np.array_equal(order, epoch_order(counts, 1, 1))
    assert np.array_equal(order, epoch_order(counts, 1, 0))
    assert [len(blocks) for blocks, _ in shuffled_blocks(counts, 1, 0)] == [256, 256, 188]
    neighbours = np.abs(np.diff(order)) == 1
    assert neighbours.mean() < 0.001  # negative control: in file order it would be 1


def test_streamed_batches_are_those_from_memory_from_any_position_on(store: GraphStore, monkeypatch: Any) -> None:
    """The same events in the same order, with several refills of the buffer too."""
    monkeypatch.setattr("hepx.order.BLOCKS_AT_ONCE", 3)
    events = OnDisk(store, "train")
    loaded = store.load("train")
    assert events.counts.sum() == len(loaded)
    assert torch.equal(concatenate(list(parts(events))).event_id, loaded.event_id)
    order = torch.from_numpy(epoch_order(events.counts, 7, 2))
    whole = list(events.batches(100, 7, 2, 0))
    assert torch.equal(torch.cat([batch.event_id for batch in whole]), loaded.event_id[order])
    assert [len(batch) for batch in whole[:-1]] == [100] * (len(whole) - 1)
    for first in (1, 7, len(whole) - 1):
        rest = list(events.batches(100, 7, 2, first))
        assert len(rest) == len(whole) - first
        assert all(torch.equal(a.x, b.x) for a, b in zip(rest, whole[first:], strict=True))


@pytest.mark.parametrize("keep", ["device", "host", "disk"])
def test_a_feed_gives_the_same_bits_wherever_it_keeps_the_events(keep: Any, store: GraphStore) -> None:
    events = OnDisk(store, "train")
    scale = class_scale(parts(events))
    settings = TrainSettings(batch_size=128, keep=keep)
    feeds = [Feed(events, scale, settings, 3, CPU, Ranks(rank, 2)) for rank in (0, 1)]
    loaded = store.load("train")
    weight = training_weights(loaded).float()
    order = torch.from_numpy(epoch_order(events.counts, 3, 1)).split(128)
    for index, *halves in zip(order[2:], *(feed.batches(1, 2) for feed in feeds), strict=True):
        assert [half.size for half in halves] == [len(index)] * 2
        assert torch.equal(torch.cat([half.events.x for half in halves]), loaded.x[index])
        torch.testing.assert_close(torch.cat([half.events.weight for half in halves]), weight[index])


def test_the_place_follows_the_room(store: GraphStore, caplog: pytest.LogCaptureFixture) -> None:
    events = OnDisk(store, "train")

    def place(**changes: Any) -> str:
        return Feed(events, torch.ones(2), TrainSettings(**changes), 1, CPU, Ranks()).place

    needed = (5 * (6 * 4 + 1 + 8) + 8 + 4) * int(events.counts.sum())
    assert place() == "device"
    assert place(memory_gb=needed * 1.01e-9) == "device"
    assert place(memory_gb=needed * 0.99e-9) == "disk"
    assert place(keep="host", memory_gb=1e-9) == "host"
    assert "kept on: disk" in caplog.text
    assert 1e8 < free_memory() < 1e14
    columns = Feed(events, torch.ones(2), TrainSettings(), 1, CPU, Ranks()).columns
    assert sum(column.nbytes for column in columns) == needed


def test_streaming_trains_to_the_same_bits(store: GraphStore, tmp_path: Path) -> None:
    """And a training goes on from memory that was begun from disk."""
    histories = []
    for keep in ("device", "disk"):
        settings = TrainSettings(epochs=2, batch_size=128, lr=3e-3, keep=keep)  # type: ignore[arg-type]
        model = build_model(SMALL, store.layout, 1)
        histories.append(fit(model, OnDisk(store, "train"), OnDisk(store, "validation"), settings, 1, tmp_path / keep))
    assert histories[0] == histories[1]
    first, second = ((tmp_path / keep / "best.safetensors").read_bytes() for keep in ("device", "disk"))
    assert first == second
    settings = TrainSettings(epochs=2, batch_size=128, lr=3e-3)
    other = fit(
        build_model(SMALL, store.layout, 1), store.load("train"), store.load("validation"), settings, 2, tmp_path
    )
    assert other != histories[0]  # negative control: another seed


def test_moments_part_by_part_are_those_of_all(graphs: GraphBatch) -> None:
    whole, in_parts = (build_model(SMALL, graphs.layout, 1).inputs for _ in range(2))
    whole.fit(graphs, graphs.weight)
    in_parts.fit_parts((graphs[i : i + 700], graphs.weight[i : i + 700]) for i in range(0, 3000, 700))
    for name in ("mean", "std", "pair_mean", "pair_std"):
        torch.testing.assert_close(getattr(in_parts, name), getattr(whole, name), rtol=1e-6, atol=1e-7)
    in_parts.fit(graphs[:700], graphs.weight[:700])
    assert (in_parts.mean - whole.mean).abs().max() > 1e-4  # negative control: one part alone


def test_validation_takes_whole_blocks_and_no_more_than_needed(store: GraphStore) -> None:
    events = OnDisk(store, "validation")
    assert torch.equal(at_most(events, 10**9).event_id, store.load("validation").event_id)
    few = at_most(events, 100)
    assert 100 <= len(few) < 100 + BLOCK
    assert torch.equal(few.event_id, at_most(events, 100).event_id)
    assert len(at_most(InMemory(store.load("validation")), 10**9)) == events.counts.sum()


def test_items_made_ahead_are_the_same_and_their_errors_arrive() -> None:
    assert list(ahead(iter(range(100)), 3)) == list(range(100))

    def broken() -> Any:
        yield 1
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(ahead(broken(), 2))
    made = []
    for item in ahead((made.append(i) or i for i in range(1000)), 5):  # type: ignore[func-returns-value]
        if item == 2:
            break
    assert len(made) < 20


def test_blocks_of_neighbours() -> None:
    assert even_blocks(600).tolist() == [256, 256, 88]
    assert even_blocks(512).tolist() == [256, 256]


GLOBAL_BATCH = TrainSettings(
    epochs=2,
    batch_size=100,
    lr=3e-3,
    balance="switch",
    ema=0.9,
    node_dropout=0.5,
    router_noise=0.5,
    reflections=True,
    checkpoint_steps=4,
)


def _worker(
    rank: int, size: int, port: int, folder: Path, graphs: GraphBatch, settings: TrainSettings, stop_after: int
) -> None:
    """One process of a training, as torchrun would start it."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined() as ranks:
        if stop_after:
            _die_after(stop_after)
        history = _train(folder, graphs, settings, ranks)
    files.write_json(folder / f"history{rank}.json", [vars(epoch) for epoch in history])


def _die_after(steps: int) -> None:
    """Make the optimiser kill this process at its call after the given number."""
    real, calls = torch.optim.AdamW.step, []

    def step(optimizer: torch.optim.AdamW, *args: Any) -> Any:
        calls.append(1)
        if len(calls) > steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(optimizer, *args)

    torch.optim.AdamW.step = step  # type: ignore[method-assign,assignment]


def _train(folder: Path, graphs: GraphBatch, settings: TrainSettings, ranks: Ranks = ALONE) -> list[Epoch]:
    return fit(build_model(SMALL, graphs.layout, 1), graphs[:1001], graphs[2000:], settings, 1, folder, ranks)


def processes(
    number: int, folder: Path, graphs: GraphBatch, settings: TrainSettings, stop_after: int = 0
) -> list[Epoch]:
    """The history of a training by so many processes; all must have the same one."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "hepx.train", "hepx.planted", __name__])  # Adam imports it
    arguments = [(rank, number, port, folder, graphs, settings, stop_after) for rank in range(number)]
    started = [context.Process(target=_worker, args=one) for one in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if stop_after:
        assert -signal.SIGKILL in [process.exitcode for process in started]
        return []
    assert [process.exitcode for process in started] == [0] * number
    saved = [files.read_json(folder / f"history{rank}.json") for rank in range(number)]
    assert all(other == saved[0] for other in saved)
    return [Epoch(**epoch) for epoch in saved[0]]


def curves(history: list[Epoch]) -> list[float]:
    return [value for epoch in history for value in vars(epoch).values()]


@pytest.mark.parametrize("balance", ["switch", "cv2", "loss_free"])
def test_two_processes_learn_what_one_does(balance: Any, graphs: GraphBatch, tmp_path: Path) -> None:
    """With hidden objects, router noise, negative weights, and a last batch of one event that only one process has."""
    settings = GLOBAL_BATCH.model_copy(update={"balance": balance})
    alone = _train(tmp_path / "one", graphs, settings)
    together = processes(2, tmp_path / "two", graphs, settings)
    assert curves(together) == pytest.approx(curves(alone), abs=1e-5)
    half = settings.model_copy(update={"batch_size": 50})
    assert curves(_train(tmp_path / "half", graphs, half)) != pytest.approx(curves(alone), abs=1e-3)  # negative control


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_other_numbers_of_processes_go_on_with_a_checkpoint(
    before: int, after: int, graphs: GraphBatch, tmp_path: Path
) -> None:
    alone = _train(tmp_path / "one", graphs, GLOBAL_BATCH)
    processes(before, tmp_path / "two", graphs, GLOBAL_BATCH, stop_after=7)
    assert torch.load(tmp_path / "two" / "last.pt", weights_only=True)["step"] == 4
    assert curves(processes(after, tmp_path / "two", graphs, GLOBAL_BATCH)) == pytest.approx(curves(alone), abs=1e-5)


def test_torchrun_variables_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=r"MASTER_ADDR, MASTER_PORT is not set\. Start .* torchrun"), joined():
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        ["train.epochs=2", "model.dim=16", "model.expert_dim=8", "model.dropout=0"],
        ["model={name: boosted_trees, max_trees: 20}", "explain=[]"],
    ],
    ids=["network", "trees"],
)
def test_torchrun_runs_the_command_line(model: list[str], tmp_path: Path) -> None:
    """Converted once, trained by two processes, evaluated once; the loss curve is that of one process."""
    config = ROOT / "configs" / "quickstart.yaml"
    changes = [*model, "evaluate.trees=false"]
    launch = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]}
    curve = {}
    for name, launcher in launch.items():
        arguments = ["-m", "hepx.cli", "evaluate", str(config), *changes, f"name={name}", "--runs", str(tmp_path)]
        done = subprocess.run([sys.executable, *launcher, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test AUC") == 1
        with (tmp_path / name / "history.csv").open() as file:
            curve[name] = [float(value) for row in csv.DictReader(file) for value in row.values()]
    assert curve["two"] == pytest.approx(curve["one"], abs=1e-5)


SLOPE = """
import sys, torch
from pathlib import Path
from hepx.models import build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.store import GraphStore
from hepx.train import Epoch, OnDisk, TrainSettings, fit, parts, write_training_events
torch.set_num_threads(1)
folder = Path(sys.argv[1])
store = GraphStore(folder)
settings = TrainSettings(epochs=1, batch_size=1024, keep="disk", validation_events=20_000)
model = build_model(MoEGraphTransformerSettings(dim=8, expert_dim=4, num_heads=2), store.layout, 1)
events = OnDisk(store, "train")
write_training_events(folder / "c", (part.event_id.numpy() for part in parts(events)), int(events.counts.sum()))
fit(model, events, OnDisk(store, "validation"), settings, 1, folder / "c")
peak = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak[0].split()[1]) / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_training_events(graphs: GraphBatch, tmp_path: Path) -> None:
    """Ten times the events, 800 MB of graphs more: the peak may differ by a few allocator pages (30 MB). Streaming does
    it: what the events would fill in memory is the negative control."""
    peaks, needed = [], []
    for factor in (1, 10):
        store = replicated(graphs, tmp_path / f"x{factor}", 200_000 * factor)
        done = subprocess.run(
            [sys.executable, "-c", SLOPE, str(store.folder)], capture_output=True, text=True, check=True
        )
        peaks.append(float(done.stdout))
        needed.append(sum(path.stat().st_size for path in store.folder.glob("*.safetensors")) / 2**20)
    assert needed[1] - needed[0] > 500
    assert peaks[1] - peaks[0] < 30, (peaks, needed)


def replicated(graphs: GraphBatch, folder: Path, num_events: int, size: int = 50_000) -> GraphStore:
    """A data set of so many events: the same ones again and again under other event numbers."""
    many = graphs[torch.arange(size) % len(graphs)]
    for first in range(0, num_events, size):
        shard = replace(many, event_id=torch.arange(first, first + size))
        write_store(shard, folder / "part", (size,))
        (folder / "part" / "s-00000-00000.safetensors").rename(folder / f"s-{first // size:05d}-00000.safetensors")
        manifest = files.read_json(folder / "part" / "dataset.json")
        shutil.rmtree(folder / "part")
    names = [{"name": f"s-{number:05d}-00000", "events": size} for number in range(num_events // size)]
    files.write_json(folder / "dataset.json", {**manifest, "shards": names})
    return GraphStore(folder)
