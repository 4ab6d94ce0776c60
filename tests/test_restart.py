"""A training that is killed, stopped or preempted ends with the bits of an unbroken one, mid-epoch included."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hepx import signals
from hepx.models import build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.train import Epoch, TrainSettings, fit

log = logging.getLogger("hepx")
SMALL = MoEGraphTransformerSettings(dim=8, expert_dim=4, num_heads=2)
OPTIONS = TrainSettings(
    epochs=4,
    batch_size=16,
    lr=3e-3,
    ema=0.9,
    node_dropout=0.5,
    router_noise=0.5,
    reflections=True,
    checkpoint_steps=5,
    snapshots=2,
)
PREEMPTED = 85


def train(folder: Path) -> list[Epoch]:
    graphs = plant(toy_graphs(900, 4), MECHANISMS["mt"], 5)
    return fit(build_model(SMALL, graphs.layout, 1), graphs[:600], graphs[600:], OPTIONS, 1, folder)


def _child(folder: Path) -> None:
    """What a worker process does: train, and end like the command line when it is asked to stop."""
    torch.set_num_threads(1)
    try:
        with signals.raised():
            train(folder)
    except signals.Preempted as stop:
        (folder / "said.txt").write_text(str(stop))
        os._exit(PREEMPTED)


Start = Callable[[Path], Any]


@pytest.fixture(scope="module")
def start() -> Start:
    """Starts a training in a process of its own; forked from a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "hepx.train", "hepx.planted", __name__])  # Adam imports it

    def start(folder: Path) -> Any:
        folder.mkdir(exist_ok=True)
        process = context.Process(target=_child, args=(folder,))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def unbroken(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, list[Epoch]]:
    """An unbroken training: its folder, how long it took, and its history."""
    folder = tmp_path_factory.mktemp("unbroken")
    start(folder / "first").join()  # starts the server
    begin = time.monotonic()
    process = start(folder)
    process.join()
    assert process.exitcode == 0
    return folder, time.monotonic() - begin, train(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Best weights, those of the snapshots, and everything of the last state that is a tensor."""
    state = torch.load(folder / "last.pt", weights_only=True)
    flat = load_file(folder / "best.safetensors")
    for path in (folder / "snapshots").iterdir():
        flat |= {f"{path.name}.{name}": tensor for name, tensor in load_file(path).items()}
    flat |= {f"{part}.{name}": tensor for part in ("model", "kept") for name, tensor in state[part].items()}
    for number, moments in state["optimizer"]["state"].items():
        flat |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    return flat


def equal(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_killed_at_random_times_it_ends_with_the_same_bits(
    start: Start, unbroken: tuple[Path, float, list[Epoch]], tmp_path: Path
) -> None:
    """kill -9, again and again, until a start gets through; the seed of the times is printed."""
    whole, seconds, history = unbroken
    seed = time.time_ns() % 10**6
    log.info("seed of the kill times: %d", seed)
    rng, kills, middle = random.Random(seed), 0, 0
    while kills < 4:
        process = start(tmp_path)
        process.join(rng.uniform(0.1, 0.6) * seconds)
        if process.exitcode is not None:  # through before it was killed
            if kills:
                break
            shutil.rmtree(tmp_path)
            continue
        process.kill()
        process.join()
        kills += 1
        if (tmp_path / "last.pt").exists():
            middle += torch.load(tmp_path / "last.pt", weights_only=True)["step"] > 0
    log.info("%d kills, %d of them with a checkpoint in the middle of an epoch", kills, middle)
    assert train(tmp_path) == history
    assert equal(tmp_path, whole)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_it_after_the_step_with_a_checkpoint(
    number: signal.Signals, start: Start, unbroken: tuple[Path, float, list[Epoch]], tmp_path: Path
) -> None:
    whole, _, history = unbroken
    process = start(tmp_path)
    while not (tmp_path / "last.pt").exists():
        time.sleep(0.005)
    os.kill(process.pid, number)
    os.kill(process.pid, number)  # batch systems ask more than once
    process.join()
    assert process.exitcode == PREEMPTED
    said = (tmp_path / "said.txt").read_text()
    assert said == f"stopped by {number.name}; checkpoint written; start the same command again"
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    steps = len(state["history"]) * 38 + state["step"]
    assert 0 < steps < 4 * 38
    (tmp_path / "said.txt").unlink()
    assert train(tmp_path) == history
    assert equal(tmp_path, whole)


def test_a_lost_piece_of_the_state_shows(unbroken: tuple[Path, float, list[Epoch]], tmp_path: Path) -> None:
    """Negative control: the comparison sees a training that goes on without its optimiser's moments."""
    whole, _, history = unbroken
    stopped = Stop(after=50)
    with pytest.raises(KeyboardInterrupt), stopped:
        train(tmp_path)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (len(state["history"]), state["step"]) == (1, 12 - 12 % 5)
    state["optimizer"]["state"] = {}
    torch.save(state, tmp_path / "last.pt")
    assert train(tmp_path)[1:] != history[1:]
    assert not equal(tmp_path, whole)


class Stop:
    """Inside the block the optimiser raises KeyboardInterrupt at its call after the given number."""

    def __init__(self, after: int) -> None:
        self.after, self.patch = after, pytest.MonkeyPatch()

    def __enter__(self) -> None:
        real, calls = torch.optim.AdamW.step, []

        def step(optimizer: torch.optim.AdamW, *args: Any) -> Any:
            calls.append(1)
            if len(calls) > self.after:
                raise KeyboardInterrupt
            return real(optimizer, *args)

        self.patch.setattr(torch.optim.AdamW, "step", step)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def test_signals_are_left_alone_outside_the_command_line() -> None:
    """A notebook keeps its own handlers; without `raised` nothing is deferred."""
    before = [signal.getsignal(number) for number in signals.HEARD]
    with signals.deferred("") as stop:
        assert [signal.getsignal(number) for number in signals.HEARD] == before
        assert not stop()
    with pytest.raises(signals.Preempted, match="stopped by SIGUSR1; what is finished is kept"), signals.raised():
        signal.raise_signal(signal.SIGUSR1)
    assert [signal.getsignal(number) for number in signals.HEARD] == before


def test_random_numbers_are_of_the_step_not_of_the_past(
    unbroken: tuple[Path, float, list[Epoch]], tmp_path: Path
) -> None:
    """Whatever was drawn before, the training is the same."""
    torch.manual_seed(99)
    assert train(tmp_path) == unbroken[2]
