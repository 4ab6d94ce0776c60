"""Speed of training-data attribution against captum's TracInCP and TracInCPFast, in one run on one thread.

`python tests/benchmarks/bench_influence.py [--quick]`. The same network (the default mixture of experts), events and
snapshots for all. Self-influence in events · snapshots per second. Influence of training events on queries in pairs ·
snapshots per second; captum computes the gradients of a batch of queries again for every batch of training events, so
its rate grows with the batch (and its memory by 0.4 MB per event of it): it is shown for two sizes. The rates for many
events are extrapolated, from the measured rate of gradients and the measured rate of products.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from captum.influence import TracInCP, TracInCPFast
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import TensorDataset

from hepx.graph import GraphBatch
from hepx.influence import SCORES, Task, read_snapshots
from hepx.influence.gradients import Reduce, Sketch, full, gradients, margins, taped
from hepx.memory import keep_memory
from hepx.models import Model, build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.train import TrainSettings, fit
from hepx.train.snapshots import load_snapshot

SETTINGS = MoEGraphTransformerSettings()
SIZES = ((20_000, 2_000), (100_000, 10_000))
PROJECTIONS = (512, 1024, 2048)


class Plain(nn.Module):
    """A model as captum wants it: one tensor out."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, mask: Tensor, node_type: Tensor) -> Tensor:
        return self.model(x, mask, node_type).logits


def load(module: nn.Module, path: str) -> float:
    """Weights of a snapshot; a learning rate of 1."""
    assert isinstance(module, Plain)
    load_snapshot(module.model, Path(path))
    return 1.0


def oracle(kind: Callable[..., object], task: Task, batch_size: int) -> object:
    """captum's class on the training events of a task."""
    graphs = task.train
    fast = kind is TracInCPFast
    return kind(
        model=Plain(build_model(SETTINGS, graphs.layout, 1)).eval(),
        train_dataset=TensorDataset(graphs.x, graphs.mask, graphs.node_type, graphs.y),
        checkpoints=[str(one.weights) for one in task.snapshots],
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum" if fast else "none"),
        batch_size=batch_size,
        **({"final_fc_layer": "model.head.2"} if fast else {}),
    )


def timed(work: Callable[[], Tensor], repeats: int = 3) -> tuple[Tensor, float]:
    """What is made, and the shortest processor time of it, after a first round that is not counted."""
    found, best = work(), np.inf
    for _ in range(repeats):
        start = time.process_time()
        found = work()
        best = min(best, time.process_time() - start)
    return found, best


def of_vmap(task: Task, path: Path, graphs: GraphBatch) -> Tensor:
    """Squared gradients of the margins by vmap(grad), in passes of 64."""
    model = build_model(SETTINGS, graphs.layout, 1).eval()
    load_snapshot(model, path)
    parameters = {name: one.detach() for name, one in model.named_parameters()}

    def value(chosen: dict[str, Tensor], x: Tensor, mask: Tensor, node_type: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, chosen, (x[None], mask[None], node_type[None])).logits
        return margins(logits, y[None])[0]

    each = vmap(grad(value), (None, 0, 0, 0, 0))
    squares = []
    for start in range(0, len(graphs), 64):
        one = graphs[start : start + 64]
        found = each(parameters, one.x, one.mask, one.node_type, one.y)
        squares.append(torch.stack([g.flatten(1).square().sum(1) for g in found.values()]).sum(0))
    return torch.cat(squares)


def pearson(a: Tensor, b: Tensor) -> float:
    """Correlation of two tables of numbers."""
    return float(np.corrcoef(a.flatten().double().numpy(), b.flatten().double().numpy())[0, 1])


def trained(folder: Path, num_events: int) -> Task:
    """A network that has learned something, with two snapshots."""
    graphs = plant(toy_graphs(num_events + 600, 4), MECHANISMS["mt"], 5)
    model = build_model(SETTINGS, graphs.layout, 1)
    fit(model, graphs[:num_events], graphs[-600:-200], TrainSettings(epochs=4, batch_size=256, snapshots=2), 1, folder)
    snapshots = tuple(replace(one, lr=1.0) for one in read_snapshots(folder))
    train = graphs[:num_events]
    return Task(model, folder / "best.safetensors", snapshots, train, torch.ones(num_events), graphs[-200:], 1)


def self_influence(task: Task, few: int) -> None:
    """Exact self-influence over all parameters."""
    small = replace(task, train=task.train[:few], weight=task.weight[:few])
    number = len(task.snapshots)
    slow, slow_time = timed(lambda: oracle(TracInCP, small, 100).self_influence(show_progress=False), 1)  # type: ignore[attr-defined]
    fast, fast_time = timed(lambda: oracle(TracInCPFast, small, 1000).self_influence(show_progress=False))  # type: ignore[attr-defined]
    own, own_time = timed(lambda: SCORES["tracin"](projection=0).of_training(task))
    _, last_time = timed(lambda: SCORES["last_layer"]().of_training(task))
    _, vmap_time = timed(lambda: of_vmap(task, task.trained, task.train[:few]))
    rates = {"captum TracInCP": few * number / slow_time, "vmap(grad)": few / vmap_time}
    rates |= {"captum TracInCPFast (last layer)": few * number / fast_time}
    rates |= {"hepx, all parameters": len(task.train) * number / own_time}
    rates |= {"hepx, last layer": len(task.train) * number / last_time}
    print(f"self-influence, {sum(p.numel() for p in task.model.parameters())} parameters, events · snapshots / s")
    for name, rate in rates.items():
        print(f"  {name:34s} {rate:12.0f}   {rate / rates['captum TracInCP']:7.1f} × TracInCP")
    print(f"  Pearson with TracInCP: hepx {pearson(own[:few], slow):.7f}, TracInCPFast {pearson(fast, slow):.2f}")


def rates_of(task: Task, keep: Reduce, num_events: int) -> tuple[float, float]:
    """Gradients per second, and scalar products of them per second."""
    with taped(task.model, task.trained) as tape:
        events = task.train[:num_events]
        found, seconds = timed(lambda: gradients(tape, events, events.y, keep).values)
    _, product = timed(lambda: found @ found.T)
    return num_events / seconds, num_events**2 / product


def influence(task: Task, few: int, batches: tuple[int, ...]) -> None:
    """Influence of training events on queries."""
    rates = {}
    for size in batches:
        small = replace(task, train=task.train[:size], weight=task.weight[:size], snapshots=task.snapshots[-1:])
        queries = task.train[size : 2 * size]
        inputs = (queries.x, queries.mask, queries.node_type, queries.y)
        table, seconds = timed(
            lambda s=small, i=inputs, n=size: oracle(TracInCP, s, n).influence(i, show_progress=False), 1
        )  # type: ignore[attr-defined, misc]
        rates[size] = table.numel() / seconds
    base = rates[batches[0]]
    print("influence of training events on queries, pairs · snapshots / s")
    for size, rate in rates.items():
        print(f"  captum TracInCP, batches of {size:4d}   {rate:10.0f}   {rate / base:5.1f} × batches of {batches[0]}")
    last = replace(task, snapshots=task.snapshots[-1:])
    exact = SCORES["tracin"](projection=0).influence(last)
    keeps: dict[str, Reduce] = {"hepx, exact": full} | {f"hepx, projection {k}": Sketch(k, 1) for k in PROJECTIONS}
    for name, keep in keeps.items():
        gradient, product = rates_of(task, keep, few)
        agreement = 1.0 if keep is full else pearson(SCORES["tracin"](projection=keep.dim).influence(last), exact)
        text = f"  {name:24s} {gradient:7.0f} gradients/s, {product / 1e6:7.2f} M products/s, Pearson {agreement:.5f}"
        for num_train, num_query in SIZES:
            seconds = (num_train + num_query) / gradient + num_train * num_query / product
            rate = num_train * num_query / seconds
            text += f"; {num_train} × {num_query}: {seconds:.0f} s, {rate / 1e6:.2f} M/s = {rate / base:.0f} ×"
        print(text)


def main() -> None:
    """All measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    keep_memory()  # as the command line does
    with tempfile.TemporaryDirectory() as folder:
        task = trained(Path(folder), 1024 if quick else 2048)
        self_influence(task, 40 if quick else 128)
        influence(task, 512 if quick else 1024, (50,) if quick else (100, 400))


if __name__ == "__main__":
    main()
