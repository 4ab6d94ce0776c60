"""Speed of exact Shapley values and of integrated gradients against captum and PyG, on one model and the same donors.

`python tests/benchmarks/bench_explain.py [--quick]`. One thread, CPU time. captum is called as its documentation shows:
ShapleyValues one event and one donor at a time, IntegratedGradients on the whole batch with the fewest nodes that make
it as accurate as hepx (root mean square error against 4096 nodes on every path, in pieces; that of 300 nodes on the
whole path is printed beside it); PyG's CaptumExplainer one graph at a time with so many nodes. The network is trained:
random ones have fewer kinks. What is linear (donors, graphs) is measured on a few and scaled. Memory: the peak of
a process that explains so many events and of one with ten times as many. Kept memory: a process with `keep_memory`, as
the command line has it, and one without. The kernels (extra `fast`) are measured against PyTorch's operations alone.
Ratios mean something, times do not.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from bench_models import seven_nodes
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import ShapleyValues
from torch import nn
from torch_geometric.explain import CaptumExplainer, Explainer

from hepx.attribution import METHODS, Subject, explain_blocks, merge_blocks
from hepx.attribution.base import ROWS_PER_PASS
from hepx.attribution.baselines import Pattern, draw, patterns
from hepx.attribution.gradients import Paths, score_function
from hepx.attribution.integrated_gradients import IntegratedGradients, path_integral
from hepx.attribution.shapley import Shapley
from hepx.graph import GraphBatch
from hepx.kinematics import Momentum, invariant_mass
from hepx.memory import keep_memory
from hepx.models import Model, build_model, layers
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.results import Provenance
from hepx.train import TrainSettings, fit

SIZES = {"quickstart": {"dim": 64, "expert_dim": 32, "num_heads": 4}, "small": {"dim": 32, "expert_dim": 16}}
WHERE = Provenance("bench", {}, "", "", "", 1, "", "", "cpu")
DONORS = 16
ROWS_AT_ONCE = 16_384  # of captum: more need several GB


def seven_objects(num_events: int) -> GraphBatch:
    """Toy events of seven different objects, all present: two b-jets, three jets, a lepton, E_T^miss."""
    graphs = seven_nodes(8 * num_events)
    graphs = graphs[graphs.mask.all(1)][:num_events]
    assert len(graphs) == num_events
    x = graphs.x.clone()
    x[:, 3:5, 0] *= 0.6  # the copies of the b-jets become softer jets elsewhere
    x[:, 3:5, 1] += 0.7
    return replace(graphs, x=x, object_index=torch.arange(7, dtype=torch.int16).expand(num_events, 7).contiguous())


@cache
def trained(size: str) -> Model:
    """A network trained for a few epochs on a noisy peak in m_bb."""
    graphs = seven_objects(3000)
    first, second = (Momentum(*graphs.x[:, i, :4].double().numpy().T) for i in (0, 1))
    peak = torch.from_numpy(np.abs(invariant_mass(first, second) - 120) < 40)
    graphs = replace(graphs, y=(peak ^ (torch.rand(len(graphs)) < 0.1)).long())
    model = build_model(MoEGraphTransformerSettings(**SIZES[size], dropout=0.0), graphs.layout, 1)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, graphs[:2500], graphs[2500:], TrainSettings(epochs=6, batch_size=250, lr=3e-3), 1, Path(folder))
    return model.eval()


def subject_of(graphs: GraphBatch, model: Model) -> Subject:
    """All events explained, all of them donors."""
    return Subject(model, model, graphs, replace(graphs, y=torch.zeros_like(graphs.y)), 1, 7)


def seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """Least CPU time of a few rounds: other work on the machine only adds."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


# Shapley values ---------------------------------------------------------------------------------------------------


def rate(size: str, rounds: int) -> float:
    """Events per CPU second: values, all interactions and Faith-Shap."""
    graphs, model = seven_objects(64), trained(size)
    subject, method = subject_of(graphs, model), Shapley(draws=DONORS)
    method.explain(replace(subject, graphs=graphs[:1]), WHERE)  # the kernels are compiled or loaded
    return len(graphs) / seconds(lambda: method.explain(subject, WHERE), rounds)


def shapley(size: str, rounds: int) -> None:
    """Values, all interactions and Faith-Shap against captum's values alone."""
    ours, model = 1 / rate(size, rounds), trained(size)
    with patch.object(layers, "compiled_kernels", lambda: None):
        plain = rate(size, rounds)
    graphs = seven_objects(64)
    one, pattern = graphs[:1], next(iter(patterns(graphs, subject_of(graphs, model).baseline)))
    donor = draw(pattern, one, 1, 7)[:, 0]
    score, groups = score_function(model, 1), torch.arange(7)[None, :, None].expand_as(one.x).contiguous()

    def captum() -> torch.Tensor:
        arguments = (one.mask, one.node_type)
        with torch.no_grad():
            return ShapleyValues(score).attribute(one.x, donor, feature_mask=groups, additional_forward_args=arguments)

    peer = seconds(captum, 1) * DONORS
    rows = (2**7 - 1) * DONORS + 1
    floor, least = bare_products(model, rows), least_work(model, rows)
    print(
        f"shapley, {size}, 7 objects, {DONORS} donors: {1 / ours:.1f} events/s, "
        f"{1 / ours / plain:.2f}x those without the kernels ({plain:.1f}), "
        f"{peer / ours:.0f}x captum.ShapleyValues (one event, one donor measured); PyTorch's matrix products of the "
        f"network alone allow {1 / floor:.1f} events/s, the least that has to be done of each row {1 / least:.1f}"
    )


def kept_memory(size: str) -> None:
    """Rates of two processes; a setting of the allocator by the user keeps hepx from making its own."""
    command, found = [sys.executable, __file__, "--rate", size], []
    for environment in ({}, {"MALLOC_ARENA_MAX": "8"}):
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
        found.append(float(done.stdout))
    print(f"kept memory, {size}: shapley {found[0] / found[1]:.2f}x ({found[0]:.1f} and {found[1]:.1f} events/s)")


def bare_products(model: Model, rows: int) -> float:
    """CPU seconds of nothing but the matrix products of so many rows of seven nodes, in passes as hepx makes them."""
    block = model.blocks[0]
    dim, heads = block.attention.qkv.in_features, block.attention.num_heads
    hidden = block.feed_forward.num_experts * block.feed_forward.expert_dim
    pairs = 0 if block.attention.pair_values is None else block.attention.pair_values.in_features // heads

    def of(*shapes: tuple[int, ...]) -> Callable[[], torch.Tensor]:
        one, other = (torch.randn(shape) for shape in shapes)
        out = one @ other
        return lambda: torch.matmul(one, other, out=out)

    def layer(rows: int) -> list[Callable[[], torch.Tensor]]:
        nodes, of_head = 7 * rows, (rows * heads, 7, dim // heads)
        plain = [(dim, 3 * dim), (dim, dim), (dim, hidden), (hidden, dim)]
        plain += [(heads * pairs, dim)] if pairs else []
        found = [of((nodes, one), (one, other)) for one, other in plain]
        found += [of(of_head, (rows * heads, dim // heads, 7)), of((rows * heads, 7, 7), of_head)]
        return found + ([of((nodes, heads, 7), (nodes, 7, pairs))] if pairs else [])

    products = layer(ROWS_PER_PASS)
    passes = len(model.blocks) * rows / ROWS_PER_PASS
    with torch.inference_mode():
        return passes * seconds(lambda: [product() for product in products], 5)


def least_work(model: Model, rows: int) -> float:
    """CPU seconds of what no evaluation of so many rows of seven nodes by PyTorch's operations can leave out.

    A node of the first layer is the event's or a donor's, so its queries, keys and values cost nothing; only the chosen
    experts run, on nodes that lie in their order; attention, norms, sums and every copy are free.
    """
    block, layers = model.blocks[0], len(model.blocks)
    dim, moe, nodes = block.attention.qkv.in_features, block.feed_forward, 7 * ROWS_PER_PASS
    chosen = nodes * moe.top_k // moe.num_experts
    one, wide, hidden = (torch.randn(shape) for shape in ((nodes, dim), (nodes, 3 * dim), (chosen, moe.expert_dim)))
    qkv, out, up, down = (
        torch.randn(shape) for shape in ((dim, 3 * dim), (dim, dim), (dim, moe.expert_dim), (moe.expert_dim, dim))
    )
    mixed, of_expert, acted = torch.empty_like(one), one[:chosen].clone(), torch.empty_like(hidden)
    back = torch.empty_like(of_expert)

    def after_attention() -> None:
        torch.mm(one, out, out=mixed)
        for _ in range(moe.num_experts):
            torch.mm(of_expert, up, out=hidden)
            torch.ops.aten.gelu.out(hidden, out=acted)
            torch.mm(acted, down, out=back)

    with torch.inference_mode():
        per_layer, projections = seconds(after_attention, 5), seconds(lambda: torch.mm(one, qkv, out=wide), 5)
    return (layers * per_layer + (layers - 1) * projections) * rows / ROWS_PER_PASS


# Integrated gradients ---------------------------------------------------------------------------------------------


def relative(values: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square difference over that of the exact values."""
    return float((values - exact).square().mean().sqrt() / exact.square().mean().sqrt())


class Peers:
    """The same paths for hepx and captum: events [B], as many donors as by default, routing of the event kept."""

    def __init__(self, size: str, num_events: int) -> None:
        graphs = seven_objects(num_events)
        self.subject = subject_of(graphs, trained(size))
        self.method = IntegratedGradients(force=True)
        pattern: Pattern = next(iter(patterns(graphs, self.subject.baseline)))
        self.paths = Paths(self.method, self.subject, pattern, graphs)
        self.rows = torch.arange(num_events * self.paths.draws)
        self.x = self.paths.x.repeat_interleave(self.paths.draws, 0)
        self.start = self.paths.start.flatten(0, 1)
        self.extra = tuple(tensor.repeat_interleave(self.paths.draws, 0) for tensor in self.paths.extra)
        self.exact = path_integral(self.paths, self.rows, 32, pieces=128)

    def ours(self) -> torch.Tensor:
        """As `IntegratedGradients` does it."""
        end, starts = self.paths.ends()
        last = end.repeat_interleave(self.paths.draws)
        return self.method._integrate(self.paths, starts.flatten(), last).flatten(0, 1)

    def captum(self, steps: int, number: int) -> torch.Tensor:
        """All rows of a few paths at once, Gauss–Legendre nodes as is captum's default."""
        found: torch.Tensor = CaptumIntegratedGradients(self.paths.score).attribute(
            self.x[:number],
            self.start[:number],
            n_steps=steps,
            additional_forward_args=tuple(tensor[:number] for tensor in self.extra),
        )
        return found.detach().double()

    def pyg(self, steps: int, number: int) -> None:
        """CaptumExplainer on single graphs."""
        slots = self.x.shape[1]
        edges = torch.cartesian_prod(torch.arange(slots), torch.arange(slots)).T
        config = {"mode": "regression", "task_level": "graph", "return_type": "raw"}
        for i in range(number):
            graph = OneGraph(self.paths.score, tuple(tensor[i : i + 1] for tensor in self.extra))
            algorithm = CaptumExplainer("IntegratedGradients", n_steps=steps, baselines=self.start[i : i + 1])
            explainer = Explainer(
                graph, algorithm, explanation_type="model", node_mask_type="attributes", model_config=config
            )
            explainer(self.x[i], edges)


class OneGraph(nn.Module):
    """The score of one event as PyG calls a model."""

    def __init__(self, score: Callable[..., torch.Tensor], extra: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.score, self.extra = score, extra

    def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        """Score [1, 1] of the nodes [n, F]."""
        return self.score(x[None], *self.extra)[:, None]


def integrated_gradients(size: str, num_events: int, rounds: int) -> None:
    """hepx against captum with the fewest nodes that are as accurate, and against PyG with so many."""
    peers = Peers(size, num_events)
    error = relative(peers.ours(), peers.exact)
    coarse = relative(path_integral(peers.paths, peers.rows, 300), peers.exact)
    for steps in (*range(16, 400, 16), 512, 768, 1024, 1536, 2048):
        theirs = relative(path_integral(peers.paths, peers.rows, steps), peers.exact)  # the same rule as captum's
        if theirs <= error:
            break
    ours, total = seconds(peers.ours, rounds), len(peers.rows)
    some = max(1, min(total, ROWS_AT_ONCE // steps))
    check = path_integral(peers.paths, peers.rows[:some], steps)
    assert relative(peers.captum(steps, some), check) < 1e-3
    captum = seconds(lambda: peers.captum(steps, some), rounds) * total / some
    default = seconds(lambda: peers.captum(50, total), rounds)
    pyg = seconds(lambda: peers.pyg(steps, 2), 1) / 2 * total
    print(
        f"integrated gradients, {size}, 7 objects, {total} paths: error {error:.4f} (of 300 nodes: {coarse:.4f}), "
        f"{total / ours:.0f} paths/s; captum needs {steps} nodes (error {theirs:.4f}): {captum / ours:.1f}x; its "
        f"default of 50 (error {relative(peers.captum(50, total), peers.exact):.4f}): {default / ours:.1f}x; "
        f"PyG CaptumExplainer, {steps} nodes: {pyg / ours:.0f}x"
    )


# Memory -----------------------------------------------------------------------------------------------------------


def peak(method: str, num_events: int) -> None:
    """Explain and join so many events, in blocks; print the peak memory of this process in MB."""
    torch.set_num_threads(1)
    keep_memory()  # as the command line does
    graphs = seven_objects(128)
    many = graphs[torch.arange(num_events) % len(graphs)]
    many = replace(many, event_id=torch.arange(num_events))
    subject = replace(subject_of(graphs, trained("small")), graphs=many)
    chosen = METHODS[method](draws=4, **({"force": True} if method == "integrated_gradients" else {}))
    with tempfile.TemporaryDirectory() as folder:
        explain_blocks(chosen, subject, WHERE, Path(folder))
        merge_blocks(chosen, num_events, Path(folder))
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent of a fork
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)  # type: ignore[index]


def memory(num_events: int) -> None:
    """Peak memory of two processes."""
    for method in ("shapley", "integrated_gradients"):
        found = []
        for factor in (1, 10):
            command = [sys.executable, __file__, "--peak", method, str(factor * num_events)]
            found.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(
            f"memory, {method}: {found[0]:.0f} MB for {num_events} events, {found[1]:.0f} MB for {10 * num_events}: "
            f"{found[1] / found[0]:.2f}x"
        )


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer paths and rounds")
    parser.add_argument("--rate", metavar="SIZE", help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, metavar=("METHOD", "EVENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak[0], int(options.peak[1]))
        return
    torch.set_num_threads(1)
    keep_memory()  # as the command line does
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - captum draws from it
    if options.rate:
        print(rate(options.rate, 3))
        return
    for size in SIZES:
        kept_memory(size)
        shapley(size, 2 if options.quick else 5)
        integrated_gradients(size, 10 if options.quick else 20, 1 if options.quick else 3)
    memory(100 if options.quick else 1000)  # from some hundred events on the allocator holds what it will need


if __name__ == "__main__":
    main()
