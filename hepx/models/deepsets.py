"""Deep sets (arXiv:1703.06114; for jets arXiv:1810.05165): a network per object, their sum, a network of the sum.

The baseline without any interaction between objects before the sum: what a graph model must beat.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from hepx.graph import NODE_TYPES, Layout
from hepx.models.base import InputSettings, Model, Output, empty_trace
from hepx.models.inputs import Inputs


class DeepSetsSettings(InputSettings):
    """Width of both networks."""

    name: Literal["deepsets"] = "deepsets"
    pair_features: tuple[()] = ()
    dim: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)


class DeepSets(Model):
    """The node type enters as an embedding, as in the other graph models."""

    def __init__(self, settings: DeepSetsSettings, layout: Layout, num_classes: int) -> None:
        super().__init__()
        self.inputs = Inputs(layout, settings.features, ())
        dim, dropout = settings.dim, settings.dropout
        self.embed = nn.Linear(self.inputs.num_features, dim)
        self.type_embedding = nn.Embedding(len(NODE_TYPES), dim)
        self.per_object = nn.Sequential(nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.per_event = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(dim, dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(dim, num_classes),
        )

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
        h = self.per_object(self.embed(self.inputs.nodes(x, mask, node_type)) + self.type_embedding(node_type))
        return Output(self.per_event((h * mask[..., None]).sum(1)), empty_trace(mask, 0))
