"""Networks whose inside is known: made by hand, so that every analysis has an answer to be compared with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from hepx.graph import GraphBatch, Layout
from hepx.models import Model, Output, Trace, build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.inputs import Inputs
from hepx.models.layers import MixtureOfExperts, mean_pool
from hepx.nulls import Null
from hepx.planted import MECHANISMS, toy_graphs

SMALL = MoEGraphTransformerSettings(dim=16, expert_dim=8, num_heads=2, num_experts=4)
BOTH = ("mbb", "mt")


def mixture_score(graphs: GraphBatch) -> Tensor:
    """The planted truth: m_bb where there is no third jet, m_T where there is one."""
    mbb, mt = (MECHANISMS[name].score(graphs.x, graphs.node_type, graphs.layout.slots) for name in BOTH)
    return torch.where(graphs.mask[:, graphs.layout.slots.index("j3")], mt, mbb)


def mixed_graphs(number: int, seed: int) -> GraphBatch:
    """Toy events whose label follows m_bb without, and m_T with a third jet."""
    graphs = toy_graphs(number, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    y = (torch.rand(number, generator=generator) < torch.sigmoid(mixture_score(graphs))).long()
    return replace(graphs, y=y)


class Oracle(Model):
    """One layer, gates to one expert: expert 1 hands on the score of m_bb, expert 2 that of m_T, the third is never
    chosen; the router looks whether there is a third jet. A GELU expert is exactly linear: gelu(x) − gelu(−x) = x."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.inputs = Inputs(layout, (), ())
        self.slots = layout.slots
        self.mixture = MixtureOfExperts(3, 2, 3, 1, 0.0)
        self.last = nn.Identity()
        with torch.no_grad():
            self.mixture.router.weight.copy_(torch.tensor([[0.0, 0, -10], [0, 0, 10], [0, 0, 0]]))
            self.mixture.w1.zero_()
            self.mixture.w2.zero_()
            for expert in range(2):
                self.mixture.w1[expert, expert] = torch.tensor([1.0, -1.0])
                self.mixture.w2[expert, :, 0] = torch.tensor([1.0, -1.0])

    def stream_names(self) -> tuple[str, ...]:
        return ("mixture", "last")

    def forward(  # type: ignore[no-untyped-def]
        self, x: Tensor, mask: Tensor, node_type: Tensor, routing=None, noise=None
    ) -> Output:
        parts = [MECHANISMS[name].score(x, node_type, self.slots) for name in BOTH]
        parts.append(2.0 * mask[:, self.slots.index("j3")] - 1)
        h = torch.stack(parts, -1)[:, None].expand(-1, x.shape[1], -1)
        out, router_logits, gates, _ = self.mixture(h, None if routing is None else routing[:, 0], None)
        score = mean_pool(self.last(out), mask)[:, 0]
        logits = torch.stack([torch.zeros_like(score), score], -1)
        attention = torch.zeros(len(x), 1, 0, x.shape[1], x.shape[1])
        return Output(logits, Trace(attention, router_logits[:, None], (gates * mask[..., None])[:, None]))


def null_oracles(layout: Layout, number: int = 4) -> list[Null]:
    """The same network with random weights."""
    found = []
    for seed in range(number):
        model = Oracle(layout)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.normal_()
        found.append(Null("untrained", model.eval()))
    return found


def small_network(graphs: GraphBatch, seed: int) -> Model:
    """A small mixture with random weights, scaled inputs and a strong head."""
    model = build_model(SMALL, graphs.layout, seed).eval()
    model.inputs.fit(graphs, graphs.weight)
    with torch.no_grad():
        model.get_submodule("head")[-1].weight *= 10  # type: ignore[index]
    return model
