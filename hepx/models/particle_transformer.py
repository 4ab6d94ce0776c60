"""Particle Transformer (arXiv:2202.03772) for the few objects of an event: the strongest published attention baseline.

One network of the pair features biases the attention of every block with the same values; blocks are of the NormFormer
kind (arXiv:2110.09456: norms after attention and inside the feed-forward network, a learned scale per head); a class
token collects the event in two class-attention layers.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from hepx.graph import NODE_TYPES, Layout
from hepx.models.base import InputSettings, Model, Output, Trace
from hepx.models.inputs import Inputs
from hepx.models.layers import ClassPool, masked_softmax


class ParticleTransformerSettings(InputSettings):
    """Sizes, smaller than for jets: an event has a tenth of a jet's particles."""

    name: Literal["particle_transformer"] = "particle_transformer"
    dim: int = Field(default=64, ge=1)
    num_layers: int = Field(default=3, ge=1)
    num_heads: int = Field(default=4, ge=1)
    num_class_layers: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> ParticleTransformerSettings:
        if self.dim % self.num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, but {self.dim} is not one of {self.num_heads}")
        return self


class ParticleAttentionBlock(nn.Module):
    """h + norm(attention(norm h)), then h + feed-forward with a norm before each of its layers."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.head_scale = nn.Parameter(torch.ones(num_heads))
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.LayerNorm(4 * dim),
            nn.Linear(4 * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(
        self,
        h: Float[Tensor, "B N D"],
        allowed: Bool[Tensor, "B N N"],
        bias: Float[Tensor, "B #H N N"] | float,
        gain: Float[Tensor, "B H N N"] | None = None,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H N N"]]:
        """New node states and the attention weights (before the factors `gain`)."""
        qkv = self.qkv(self.norm1(h)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
        attention = masked_softmax(scores, allowed[:, None])
        used = attention if gain is None else attention * gain
        mixed = (used @ value) * self.head_scale[:, None, None]
        h = h + self.dropout(self.norm2(self.out(mixed.transpose(1, 2).flatten(-2))))
        return h + self.feed_forward(h), attention


class ParticleTransformer(Model):
    """Pair network, blocks, class attention, head with one hidden layer (a linear one learns slowly on few events)."""

    def __init__(self, settings: ParticleTransformerSettings, layout: Layout, num_classes: int) -> None:
        super().__init__()
        self.inputs = Inputs(layout, settings.features, settings.pair_features)
        self.embed = nn.Sequential(nn.Linear(self.inputs.num_features, settings.dim), nn.GELU())
        self.type_embedding = nn.Embedding(len(NODE_TYPES), settings.dim)
        self.project = nn.Linear(settings.dim, settings.dim)
        self.pair_network = None
        if settings.pair_features:
            widths = (self.inputs.num_pair_features, 64, 64, settings.num_heads)
            layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.GELU())]
            self.pair_network = nn.Sequential(*layers[:-1])
        self.blocks = nn.ModuleList(
            [
                ParticleAttentionBlock(settings.dim, settings.num_heads, settings.dropout)
                for _ in range(settings.num_layers)
            ]
        )
        self.pool = ClassPool(settings.dim, settings.num_heads, settings.num_class_layers, settings.dropout)
        self.head = nn.Sequential(
            nn.Linear(settings.dim, settings.dim), nn.GELU(), nn.Linear(settings.dim, num_classes)
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
        """Classify events; there is no routing."""
        h = self.project(self.embed(self.inputs.nodes(x, mask, node_type)) + self.type_embedding(node_type))
        allowed = mask[:, None, :] & mask[:, :, None]
        terms = self.pair_terms(x, mask, node_type) if pair_terms is None else pair_terms
        bias: Tensor | float = terms[0].permute(0, 3, 1, 2) if terms else 0.0
        stored = []
        for layer, block in enumerate(self.blocks):
            h, attention = block(h, allowed, bias, None if gain is None else gain[:, layer])
            stored.append(attention)
        nothing = h[:, None, :, :0].expand(-1, len(self.blocks), -1, -1)
        return Output(self.head(self.pool(h, mask)), Trace(torch.stack(stored, 1), nothing, nothing))

    def stream_names(self) -> tuple[str, ...]:
        """See `Model.stream_names`."""
        return (*(f"blocks.{i}" for i in range(len(self.blocks))), "pool")

    def pair_terms(
        self, x: Float[Tensor, "B N F"], mask: Bool[Tensor, "B N"], node_type: Int[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B N N H"], ...]:
        """Bias of the attention scores, the same in all layers."""
        return () if self.pair_network is None else (self.pair_network(self.inputs.pairs(x, mask, node_type)),)
