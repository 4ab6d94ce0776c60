"""Networks whose inside is known: made by hand, so that every analysis has an answer to be compared with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hepx.graph import GraphBatch
from hepx.models import Model, build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.planted import MECHANISMS, toy_graphs
from hepx.planted.experts import PARTS

SMALL = MoEGraphTransformerSettings(dim=16, expert_dim=8, num_heads=2, num_experts=4)


def mixture_score(graphs: GraphBatch) -> Tensor:
    """The planted truth: m_bb where there is no third jet, m_T where there is one."""
    mbb, mt = (MECHANISMS[name].score(graphs.x, graphs.node_type, graphs.layout.slots) for name in PARTS)
    return torch.where(graphs.mask[:, graphs.layout.slots.index("j3")], mt, mbb)


def mixed_graphs(number: int, seed: int) -> GraphBatch:
    """Toy events whose label follows m_bb without, and m_T with a third jet."""
    graphs = toy_graphs(number, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    y = (torch.rand(number, generator=generator) < torch.sigmoid(mixture_score(graphs))).long()
    return replace(graphs, y=y)


def small_network(graphs: GraphBatch, seed: int) -> Model:
    """A small mixture with random weights, scaled inputs and a strong head."""
    model = build_model(SMALL, graphs.layout, seed).eval()
    model.inputs.fit(graphs, graphs.weight)
    with torch.no_grad():
        model.get_submodule("head")[-1].weight *= 10  # type: ignore[index]
    return model
