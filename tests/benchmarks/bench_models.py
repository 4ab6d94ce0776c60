"""Speed of the model against the published formulation, of the same weights on the same events in one run.

`python tests/benchmarks/bench_models.py [--quick] [--compile]`. One thread; the contestants take turns, the medians of
their times are compared. The published formulation: all nodes of a batch in one list, one dense adjacency for the whole
batch, a loop over experts, the smooth load of each. Ratios mean something, absolute times do not. --compile measures
torch.compile and bfloat16 instead (minutes to compile; needs a C++ compiler).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from hepx.graph import GraphBatch
from hepx.memory import keep_memory
from hepx.models import Model, Output, build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.layers import MixtureOfExperts
from hepx.models.paper import PaperMGTSettings
from hepx.planted import toy_graphs
from hepx.train import cv2_loss
from hepx.train.loop import compiled

SLOTS = [0, 1, 2, 0, 1, 3, 4]  # the published table lists the b-jets twice: 6 or 7 nodes
PAPER = {"dim": 80, "num_layers": 2, "num_heads": 2, "num_experts": 6, "expert_dim": 20, "top_k": 2}


class PublishedMixture(nn.Module):
    """Noisy top-k gates, one pass per expert, and the smooth load of each expert from a top-k among the others."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(80, 20), nn.LeakyReLU(), nn.Linear(20, 80)) for _ in range(6)]
        )
        self.router, self.noise_width = nn.Linear(80, 6, bias=False), nn.Linear(80, 6, bias=False)

    def forward(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        clean, width = self.router(h), functional.softplus(self.noise_width(h))
        noisy = clean + torch.randn(6) * width
        best, chosen = noisy.topk(2)
        gates, out, loads = best.softmax(-1), torch.zeros_like(h), []
        for e, expert in enumerate(self.experts):
            node, place = torch.where(chosen == e)
            out[node] += gates[node, place, None] * expert(h[node])
            others = torch.cat([noisy[:, :e], noisy[:, e + 1 :]], 1).topk(2).values[:, 1]
            loads.append(torch.distributions.Normal(0.0, 1.0).cdf((clean[:, e] - others) / width[:, e]).sum())
        load = torch.stack(loads)
        return out, (load.std() / load.mean()) ** 2


class PublishedLayer(nn.Module):
    """Two heads of 40 on a dense adjacency of all nodes of the batch, post-norm, mixture, post-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(80, 80) for _ in range(4))
        self.norm1, self.norm2, self.mixture = nn.LayerNorm(80), nn.LayerNorm(80), PublishedMixture()

    def forward(self, h: torch.Tensor, adjacency: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = (part(h).view(len(h), 2, 40).transpose(0, 1) for part in (self.query, self.key, self.value))
        scores = (q @ k.transpose(-1, -2) / 40**0.5).masked_fill(adjacency == 0, -1e9)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(h), 80)
        h = self.norm1(h + self.out(mixed))
        out, balance = self.mixture(h)
        return self.norm2(h + out), balance


class Published(nn.Module):
    """The whole network on nodes [M, 12] with their event numbers [M]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cut, self.predict = nn.Linear(12, 80), nn.Linear(80, 40), nn.Linear(40, 2)
        self.layers = nn.ModuleList([PublishedLayer(), PublishedLayer()])

    def forward(self, nodes: torch.Tensor, event: torch.Tensor, edges: torch.Tensor) -> tuple[torch.Tensor, ...]:
        adjacency = torch.zeros(len(nodes), len(nodes))
        adjacency[edges[0], edges[1]] = 1
        h, losses = self.embed(nodes), []
        for layer in self.layers:
            h, balance = layer(h, adjacency)
            losses.append(balance)
        h = torch.relu(self.cut(h))
        count = torch.bincount(event)[:, None]
        return self.predict(torch.zeros(len(count), 40).index_add(0, event, h) / count), torch.stack(losses).mean()


class BareProducts(nn.Module):
    """The matrix products of the padded model and nothing else: no norm, softmax, gate, pooling over events."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(12, 80), *[(80, 240), (80, 80), (80, 12), (80, 120), (120, 80)] * 2, (80, 40)]
        self.weights = nn.ParameterList([torch.randn(a, b) / a**0.5 for a, b in widths])

    def forward(self, nodes: torch.Tensor) -> torch.Tensor:
        h = nodes @ self.weights[0]
        for i in (1, 6):
            q, k, v = (h @ self.weights[i]).unflatten(-1, (3, 2, 40)).permute(2, 0, 3, 1, 4).unbind(0)
            h = ((q @ k.transpose(-1, -2)) @ v).transpose(1, 2).flatten(-2) @ self.weights[i + 1]
            h = h + (h @ self.weights[i + 2]).sum(-1, keepdim=True)
            h = h @ self.weights[i + 3] @ self.weights[i + 4]
        return h @ self.weights[11]


def seven_nodes(num_events: int) -> GraphBatch:
    """Toy events with the slots of the published table."""
    toys = toy_graphs(num_events, seed=1)
    fields = ("x", "mask", "node_type", "object_index", "truth_parent")
    tensors = {name: getattr(toys, name)[:, SLOTS] for name in fields}
    layout = toys.layout
    names, types = (tuple(values[i] for i in SLOTS) for values in (layout.slots, layout.types))
    kept = {name: tensor for name, tensor in toys.tensors().items() if name not in fields}
    y = torch.randint(0, 2, (num_events,), generator=torch.Generator().manual_seed(1))
    new_layout = type(layout)(names, types, layout.observables, layout.observable_units, layout.samples, (0, 1))
    return GraphBatch(**{**kept, **tensors, "y": y}, layout=new_layout)


def medians(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU time of each, in turns, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            start = time.process_time()
            work()
            if number:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def training_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Forward, backward, clipping, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def inference(model: nn.Module, call: Callable[[], object]) -> Callable[[], None]:
    """One pass without gradients."""

    def step() -> None:
        model.eval()
        with torch.inference_mode():
            call()

    return step


def hepx_work(
    model: Model, graphs: GraphBatch, fused: bool = False, bfloat16: bool = False
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Training step and inference of a model of the package, as `train.compile` and `train.precision` do them."""
    moe = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    forward = compiled(model) if fused else model

    def call(noise: torch.Tensor | None = None) -> Output:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return forward(graphs.x, graphs.mask, graphs.node_type, noise=noise)

    def loss() -> torch.Tensor:
        logits, trace = call(torch.randn(len(graphs), len(moe), graphs.mask.shape[1], moe[0].num_experts))
        return functional.cross_entropy(logits.float(), graphs.y) + cv2_loss(trace, graphs.mask)

    return training_step(model, loss), inference(model, call)


def published_work(graphs: GraphBatch, nodes: torch.Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """Training step and inference of the published formulation; list of nodes and edges are made beforehand."""
    model, counts = Published(), graphs.mask.sum(1)
    event = torch.arange(len(graphs)).repeat_interleave(counts)
    pairs = (graphs.mask[:, :, None] & graphs.mask[:, None, :] & ~torch.eye(7, dtype=torch.bool)).nonzero()
    number = torch.full(graphs.mask.shape, -1)
    number[graphs.mask] = torch.arange(int(counts.sum()))
    edges = torch.stack([number[pairs[:, 0], pairs[:, 1]], number[pairs[:, 0], pairs[:, 2]]])

    def loss() -> torch.Tensor:
        logits, balance = model(nodes, event, edges)
        return functional.cross_entropy(logits, graphs.y) + balance

    return training_step(model, loss), inference(model, lambda: model(nodes, event, edges))


def paper_size(graphs: GraphBatch) -> dict[str, Model]:
    """The paper's model, and the default model (pair bias and values, pooling by type) at the same sizes."""
    settings = {
        "paper": PaperMGTSettings(),
        "default": MoEGraphTransformerSettings(**PAPER, pair_values=True, dropout=0.0),
    }
    models = {name: build_model(chosen, graphs.layout, 1) for name, chosen in settings.items()}
    for model in models.values():
        model.inputs.fit(graphs, torch.ones(len(graphs)))
    return models


def against_published(sizes: list[int], rounds: int) -> None:
    """Ratios at each batch size, and the share of the time that the bare matrix products take."""
    print(
        f"{'batch':>6} {'model':>8} {'training':>10} {'inference':>10} {'floor/training':>15} {'floor/inference':>16}"
    )
    for size in sizes:
        graphs = seven_nodes(size)
        models = paper_size(graphs)
        table = torch.randn(size, 7, 12)
        train, infer = {}, {}
        for name, model in models.items():
            train[name], infer[name] = hepx_work(model, graphs)
        bare = BareProducts()
        train["floor"] = training_step(bare, lambda b=bare, t=table: b(t).square().mean())
        infer["floor"] = inference(bare, lambda b=bare, t=table: b(t))
        train["published"], infer["published"] = published_work(graphs, table[graphs.mask])
        t, i = medians(train, rounds), medians(infer, rounds)
        for name in models:
            print(
                f"{size:>6} {name:>8} {t['published'] / t[name]:>9.1f}x {i['published'] / i[name]:>9.1f}x "
                f"{t['floor'] / t[name]:>15.2f} {i['floor'] / i[name]:>16.2f}"
            )


def repeated(work: Callable[[], object], times: int) -> Callable[[], object]:
    """Work several times in a row."""
    return lambda: [work() for _ in range(times)]


def cost_per_event(rounds: int) -> None:
    """Training and inference time per event from batch 256 to 8,192, relative to 1,024. As many events for every size:
    step follows step of the same size, as in a training; a single small one would find the caches of a large one."""
    sizes = [256, 512, 1024, 2048, 4096, 8192]
    train, infer = {}, {}
    for size in sizes:
        graphs = seven_nodes(size)
        train[str(size)], infer[str(size)] = hepx_work(paper_size(graphs)["paper"], graphs)
    for name, work in (("training", train), ("inference", infer)):
        cost = medians({size: repeated(one, sizes[-1] // int(size)) for size, one in work.items()}, rounds)
        print(f"cost per event, {name}:", "  ".join(f"{size}: {cost[size] / cost['1024']:.2f}" for size in cost))


def fused_and_narrow(size: int, rounds: int) -> None:
    """torch.compile and bfloat16 against float32 as it is, and against the bare products in float32."""
    graphs, table = seven_nodes(size), torch.randn(size, 7, 12)
    bare = BareProducts()
    train = {"floor": training_step(bare, lambda: bare(table).square().mean())}
    infer = {"floor": inference(bare, lambda: bare(table))}
    kinds = {
        "float32": {},
        "compiled": {"fused": True},
        "bfloat16": {"bfloat16": True},
        "both": {"fused": True, "bfloat16": True},
    }
    for name, kind in kinds.items():
        train[name], infer[name] = hepx_work(paper_size(graphs)["paper"], graphs, **kind)
    t, i = medians(train, rounds), medians(infer, rounds)
    for name in kinds:
        print(
            f"{size:>6} {name:>8} {t['float32'] / t[name]:>9.2f}x {i['float32'] / i[name]:>9.2f}x "
            f"{t['floor'] / t[name]:>15.2f} {i['floor'] / i[name]:>16.2f}",
            flush=True,
        )


def expert_paths(rounds: int) -> None:
    """Each expert on its own nodes against all experts on all nodes, forward and backward of the layer."""
    for dim, expert_dim in ((80, 20), (256, 128)):
        for num_experts in (6, 8, 16, 32, 64):
            moe = MixtureOfExperts(dim, expert_dim, num_experts, 2, 0.0)
            h = torch.randn(512, 7, dim)
            with torch.no_grad():
                gates = moe(h, None, None)[2]
            counts = moe._counts(gates)

            def dense(moe: MixtureOfExperts = moe, h: torch.Tensor = h, gates: torch.Tensor = gates) -> None:
                moe._dense(h, gates).sum().backward()

            def grouped(
                moe: MixtureOfExperts = moe, h: torch.Tensor = h, gates: torch.Tensor = gates, counts: object = counts
            ) -> None:
                moe._grouped(h, gates, counts).sum().backward()

            found = medians({"dense": dense, "grouped": grouped}, rounds)
            print(
                f"dim {dim:>3}, {num_experts:>2} experts: grouped {found['dense'] / found['grouped']:.2f}x two products"
            )


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="batch 500 only, fewer rounds")
    parser.add_argument("--compile", action="store_true", help="torch.compile and bfloat16 instead")
    arguments = parser.parse_args()
    quick = arguments.quick
    torch.set_num_threads(1)
    batches, rounds = [500] if quick else [500, 1024, 2048], 3 if quick else 5
    if not arguments.compile:
        print("the allocator as it is, for both")
        against_published(batches, rounds)
    keep_memory()  # as the command line does
    if arguments.compile:
        fused_and_narrow(500, 5)
        return
    print("freed memory kept, for both")
    against_published(batches, rounds)
    expert_paths(3 if quick else 7)
    if not quick:
        cost_per_event(5)


if __name__ == "__main__":
    main()
