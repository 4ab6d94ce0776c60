"""Graph convolutional network (Kipf and Welling, arXiv:1609.02907) on the complete graph of an event.

With self-loops its normalised adjacency is 1/n everywhere, so after one layer all nodes are the same vector: the first
layer is then a mean of the embedded objects and the others a perceptron on it. It is the weakest row of the published
comparison for that reason.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from hepx.graph import NODE_TYPES, Layout
from hepx.models.base import InputSettings, Model, Output, empty_trace
from hepx.models.inputs import Inputs
from hepx.models.layers import mean_pool


class GCNSettings(InputSettings):
    """self_loops: as in the paper cited above; without them a node sees the mean of the others, and nodes differ."""

    name: Literal["gcn"] = "gcn"
    pair_features: tuple[()] = ()
    dim: int = Field(default=64, ge=1)
    num_layers: int = Field(default=2, ge=1)
    self_loops: bool = True
    dropout: float = Field(default=0.1, ge=0, lt=1)


class GCN(Model):
    """Embedded objects, convolutions, mean pooling."""

    def __init__(self, settings: GCNSettings, layout: Layout, num_classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.inputs = Inputs(layout, settings.features, ())
        self.embed = nn.Linear(self.inputs.num_features, settings.dim)
        self.type_embedding = nn.Embedding(len(NODE_TYPES), settings.dim)
        self.convolutions = nn.ModuleList([nn.Linear(settings.dim, settings.dim) for _ in range(settings.num_layers)])
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(settings.dim, num_classes)

    def forward(
        self,
        x: Float[Tensor, "B N F"],
        mask: Bool[Tensor, "B N"],
        node_type: Int[Tensor, "B N"],
        routing: Bool[Tensor, "B L N X"] | None = None,
        noise: Float[Tensor, "B L N X"] | None = None,
        gain: Float[Tensor, "B L H N N"] | None = None,
        pair_terms: tuple[Tensor, ...] | None = None,
    ) -> Output:
        """Classify events; there is no routing and no attention."""
        return Output(self.head(mean_pool(self.nodes(x, mask, node_type), mask)), empty_trace(mask, 0))

    def nodes(
        self, x: Float[Tensor, "B N F"], mask: Bool[Tensor, "B N"], node_type: Int[Tensor, "B N"]
    ) -> Float[Tensor, "B N D"]:
        """Node states after the last convolution."""
        h = nn.functional.gelu(self.embed(self.inputs.nodes(x, mask, node_type)) + self.type_embedding(node_type))
        adjacency = self.adjacency(mask).to(h.dtype)
        for convolution in self.convolutions:
            h = self.dropout(torch.relu(convolution(adjacency @ h)))
        return h

    def adjacency(self, mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N N"]:
        """D^(−½) A D^(−½) of the complete graph of the present objects."""
        edges = mask[:, :, None] & mask[:, None, :]
        if not self.settings.self_loops:
            edges = edges & ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        degree = edges.sum(-1).clamp(min=1).to(torch.float32)
        return edges / (degree[:, :, None] * degree[:, None, :]).sqrt()
