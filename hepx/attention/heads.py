"""What one attention layer computes with, whatever the model calls its parts: projections, messages, interventions."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from hepx.graph import GraphBatch
from hepx.interventions import Recorder, attention_names, spliced
from hepx.models import Model, Output
from hepx.models.layers import SelfAttention
from hepx.models.particle_transformer import ParticleAttentionBlock

HIDDEN = -1e9  # added to the score of a hidden column: nothing is left of it, unless there is no other
LARGEST = 2**25  # numbers in the messages of one batch: bounds the memory


@dataclass(frozen=True)
class Layer:
    """One attention layer at work on a batch: its module, the (normed) states h, who may look where, and the scores'
    pair bias and pair features where there are any."""

    module: SelfAttention | ParticleAttentionBlock
    h: Float[Tensor, "B N D"]
    allowed: Bool[Tensor, "B N N"]
    bias: Tensor | None
    pairs: Tensor | None

    @property
    def num_heads(self) -> int:
        """Number of heads H."""
        return self.module.num_heads

    def project(self, h: Float[Tensor, "B N D"], which: int, affine: bool = True) -> Float[Tensor, "B H N E"]:
        """Queries (0), keys (1) or values (2) of states; without the constant term if not `affine`."""
        linear = self.module.qkv
        weight, constant = (part.chunk(3)[which] for part in (linear.weight, linear.bias))
        mapped = functional.linear(h, weight, constant if affine else None)
        return mapped.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    @property
    def key_index(self) -> int:
        """Which projection the queries are multiplied with: the keys (1), or the values (2) in the published code."""
        return 2 if isinstance(self.module, SelfAttention) and self.module.score_of_values else 1

    def scores(self, query: Float[Tensor, "B H N E"], key: Float[Tensor, "B H N E"]) -> Float[Tensor, "B H N N"]:
        """Scaled products."""
        return query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])

    def out(self) -> Float[Tensor, "H E D"]:
        """What each head's mixture is multiplied with before the heads are added."""
        weight = self.module.out.weight.T.unflatten(0, (self.num_heads, -1))
        if isinstance(self.module, ParticleAttentionBlock):
            return weight * self.module.head_scale[:, None, None]
        return weight

    def messages(self) -> Float[Tensor, "B H N N D"]:
        """What the object in the column sends to that in the row, per head, before the attention weight."""
        sent = self.project(self.h, 2) @ self.out()
        sent = sent[:, :, None].expand(-1, -1, self.h.shape[1], -1, -1)
        if self.pairs is not None and isinstance(self.module, SelfAttention) and self.module.pair_values is not None:
            weight = self.module.pair_values.weight.T.unflatten(0, (self.num_heads, -1))
            sent = sent + torch.einsum("bijp,hpd->bhijd", self.pairs, weight)
        return sent


@torch.no_grad()
def run_layers(model: Model, graphs: GraphBatch) -> Iterator[tuple[GraphBatch, Output, list[Layer]]]:
    """Batches with their outputs and their attention layers, in order; made without gradients."""
    names = attention_names(model)
    modules: list[Any] = [model.get_submodule(name) for name in names]
    largest = max((module.qkv.in_features * module.num_heads for module in modules), default=1)
    size = max(1, min(2048, LARGEST // (graphs.x.shape[1] ** 2 * largest)))
    recorder = Recorder(model, names)
    for batch, output in recorder.runs(graphs, size):
        yield batch, output, [_layer(module, recorder.kept[name]) for module, name in zip(modules, names, strict=True)]


def _layer(module: Any, arguments: tuple[Any, ...]) -> Layer:
    h, allowed, bias, *rest = arguments
    if isinstance(module, ParticleAttentionBlock):
        return Layer(module, module.norm1(h), allowed, bias if isinstance(bias, Tensor) else None, None)
    return Layer(module, h, allowed, bias, rest[0] if rest else None)


def without_head(model: Model, name: str, head: int, output: Float[Tensor, "D"]) -> Model:
    """A copy in which one head gives the same `output` to every object; its mean output removes what it tells."""
    changed = copy.deepcopy(model).eval()
    module: Any = changed.get_submodule(name)
    width = module.out.in_features // module.num_heads
    with torch.no_grad():
        module.out.weight[:, head * width : (head + 1) * width] = 0
        module.out.bias += output.to(module.out.bias)
        if getattr(module, "pair_values", None) is not None:
            width = module.pair_values.in_features // module.num_heads
            module.pair_values.weight[:, head * width : (head + 1) * width] = 0
    return changed


def without_column(model: Model, name: str, head: int, slot: int) -> Model:
    """A copy in which one head cannot look at the object of a slot, except that object at itself."""
    return drawn_to_column(model, name, head, slot, HIDDEN)


def drawn_to_column(model: Model, name: str, head: int, slot: int, score: float) -> Model:
    """A copy in which one head adds so much to all scores of the object of a slot, except that object's of itself."""
    module: Any = model.get_submodule(name)
    num_heads: int = module.num_heads

    def draw(h: Tensor, allowed: Tensor, bias: Any, *rest: Any) -> tuple[Any, ...]:
        added = h.new_zeros(num_heads, h.shape[1], h.shape[1])
        added[head, :, slot] = score
        added[head, slot, slot] = 0
        biased = (added if bias is None else bias + added).expand(len(h), -1, -1, -1)
        return h, allowed, biased, *rest

    return spliced(model, {name: draw})
