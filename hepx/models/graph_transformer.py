"""Graph transformers on the complete graph of an event: with a mixture of experts (MGT) and with a dense network (GT).

After arXiv:2501.03432, with the changes that its public code calls for: independent experts, attention per event
instead of per batch, self-loops, a node-type embedding instead of the Laplacian code of a complete graph (which is
arbitrary: one (n−1)-fold eigenvalue), noise per node and only in training, pre-norm blocks, pooling by node type.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from hepx.graph import NODE_TYPES, Layout
from hepx.models.base import InputSettings, Model, Output, Trace
from hepx.models.inputs import Inputs
from hepx.models.layers import ClassPool, FeedForward, LayerNorm, MixtureOfExperts, SelfAttention, TypePool, mean_pool


class TransformerSettings(InputSettings):
    """What both graph transformers share; configs/ablation.yaml measures each setting alone.

    pair_bias: a network of the pair features moves the attention scores (arXiv:2202.03772). pair_values: its last
    hidden layer is also carried along, as part of what a node receives (arXiv:1803.02155): a bias alone can only
    re-weight what the nodes know, so a mass has to be inferred from attention weights. It is off by default only so
    that older run folders load; on the shipped sample it gains 0.003 in AUC. type_embedding: a learned vector per node
    type is added to the features (as segments in arXiv:1810.04805); without it the type shows only in which features an
    object lacks, and in the pooling. self_loops: an object also attends to itself; without them, as in
    arXiv:2501.03432, all attention must land on another object, whether it matters or not.
    norm: layer norm before each
    sublayer (`pre`, arXiv:2002.04745: no warm-up needed) or after the sum (`post`, as in arXiv:2501.03432). pooling:
    mean per node type side by side (`type`: a plain mean blends what the head must keep apart, such as lepton and
    b-jets), plain mean, or a class token that looks at the objects (`class`, arXiv:2103.17239).
    """

    dim: int = Field(default=64, ge=1)
    num_layers: int = Field(default=2, ge=1)
    num_heads: int = Field(default=4, ge=1)
    pair_bias: bool = True
    pair_values: bool = False
    type_embedding: bool = True
    self_loops: bool = True
    norm: Literal["pre", "post"] = "pre"
    pooling: Literal["type", "mean", "class"] = "type"
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> TransformerSettings:
        if self.dim % self.num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, but {self.dim} is not one of {self.num_heads}")
        if self.pair_values and not self.pair_features:
            raise ValueError("pair_values needs at least one of pair_features")
        return self


class GraphTransformerSettings(TransformerSettings):
    """GT: one dense feed-forward network per layer."""

    name: Literal["graph_transformer"] = "graph_transformer"
    hidden_dim: int = Field(default=64, ge=1)


class MoEGraphTransformerSettings(TransformerSettings):
    """MGT: X independent experts per layer, K of them used per node.

    gates: `top_k` (arXiv:1701.06538) jumps where two experts are exchanged, so path integrals through it are not
    complete; `margin` fades out before the exchange, so that they are; `soft` uses all experts at once, as the mixtures
    of Jacobs et al. (1991) did (see `MixtureOfExperts`).
    shared_experts: all experts are one network, as in the public code of arXiv:2501.03432: the gates cancel, so what is
    left is a dense network; the control of every claim about experts. learned_noise: the noise of train.router_noise is
    scaled per node and expert by a learned width, and the balance loss `cv2` uses the smooth load (arXiv:1701.06538,
    eq. 4 and 9); the width is trained by the balance loss, so without one it stays where it starts.
    """

    name: Literal["moe_graph_transformer"] = "moe_graph_transformer"
    num_experts: int = Field(default=6, ge=1)
    expert_dim: int = Field(default=32, ge=1)
    top_k: int = Field(default=2, ge=1)
    gates: Literal["top_k", "margin", "soft"] = "top_k"
    shared_experts: bool = False
    learned_noise: bool = False

    @model_validator(mode="after")
    def _enough_experts(self) -> MoEGraphTransformerSettings:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k is {self.top_k}, but there are only {self.num_experts} experts")
        return self


PAIR_DIM = 32  # width of the pair network


class Block(nn.Module):
    """Pre-norm: x + attention(norm x), then x + feed-forward(norm x). Post-norm: norm(x + attention x), likewise."""

    def __init__(self, settings: GraphTransformerSettings | MoEGraphTransformerSettings) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(settings.dim), LayerNorm(settings.dim)
        self.pre_norm = settings.norm == "pre"
        self.attention = SelfAttention(settings.dim, settings.num_heads, PAIR_DIM if settings.pair_values else 0)
        self.dropout = nn.Dropout(settings.dropout)
        self.feed_forward: MixtureOfExperts | FeedForward
        if isinstance(settings, MoEGraphTransformerSettings):
            self.feed_forward = MixtureOfExperts(
                settings.dim,
                settings.expert_dim,
                settings.num_experts,
                settings.top_k,
                settings.dropout,
                settings.gates,
                shared=settings.shared_experts,
                learned_noise=settings.learned_noise,
            )
        else:
            self.feed_forward = FeedForward(settings.dim, settings.hidden_dim, settings.dropout)

    def forward(
        self,
        h: Float[Tensor, "B N D"],
        allowed: Bool[Tensor, "B N N"],
        bias: Float[Tensor, "B H N N"] | None,
        pairs: Float[Tensor, "B N N P"] | None,
        routing: Bool[Tensor, "B N X"] | None,
        noise: Float[Tensor, "B N X"] | None,
        gain: Float[Tensor, "B H N N"] | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """New node states, attention, router logits, gates, and the smooth load (None without learned noise)."""
        mixed, attention = self.attention(self.norm1(h) if self.pre_norm else h, allowed, bias, pairs, gain)
        h = h + self.dropout(mixed)
        h = h if self.pre_norm else self.norm1(h)
        out, router_logits, gates, load = self.feed_forward(self.norm2(h) if self.pre_norm else h, routing, noise)
        h = h + self.dropout(out)
        return h if self.pre_norm else self.norm2(h), attention, router_logits, gates, load


class GraphTransformer(Model):
    """MGT or GT, by its settings. The pair bias is a small network of the pair features, shared by the layers, with
    one output per layer and head; with `pair_values` its last hidden layer is what the attention carries."""

    def __init__(
        self, settings: GraphTransformerSettings | MoEGraphTransformerSettings, layout: Layout, num_classes: int
    ) -> None:
        super().__init__()
        self.settings = settings
        with_pairs = (settings.pair_bias or settings.pair_values) and bool(settings.pair_features)
        self.inputs = Inputs(layout, settings.features, settings.pair_features if with_pairs else ())
        self.embed = nn.Linear(self.inputs.num_features, settings.dim)
        self.type_embedding = nn.Embedding(len(NODE_TYPES), settings.dim) if settings.type_embedding else None
        self.pair_network = None
        if with_pairs:
            hidden = (nn.Linear(self.inputs.num_pair_features, PAIR_DIM), nn.GELU(), nn.Linear(PAIR_DIM, PAIR_DIM))
            bias = [nn.Linear(PAIR_DIM, settings.num_layers * settings.num_heads)] if settings.pair_bias else []
            self.pair_network = nn.Sequential(*hidden, nn.GELU(), *bias)
        self.blocks = nn.ModuleList([Block(settings) for _ in range(settings.num_layers)])
        self.norm = LayerNorm(settings.dim)
        self.pool: TypePool | ClassPool | None = None
        pooled_dim = settings.dim
        if settings.pooling == "type":
            self.pool = TypePool(layout.types)
            pooled_dim *= len(self.pool.types)
        elif settings.pooling == "class":
            self.pool = ClassPool(settings.dim, settings.num_heads, 1, settings.dropout)
        self.head = nn.Sequential(nn.Linear(pooled_dim, settings.dim), nn.GELU(), nn.Linear(settings.dim, num_classes))

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
        """Classify events; see `Model.forward`."""
        logits, stored = self._classify(x, mask, node_type, routing, noise, gain, pair_terms)
        attention, router_logits, gates, load = zip(*stored, strict=True)
        node = mask[:, None, :, None]
        trace = Trace(
            torch.stack(attention, 1),
            torch.stack(router_logits, 1),
            torch.stack(gates, 1) * node,
            None if load[0] is None else torch.stack(load, 1) * node,
        )
        return Output(logits, trace)

    def logits(
        self, x: Float[Tensor, "B N F"], mask: Bool[Tensor, "B N"], node_type: Int[Tensor, "B N"], **more: Any
    ) -> Float[Tensor, "B C"]:
        """See `Model.logits`."""
        return self._classify(x, mask, node_type, **more)[0]

    def _classify(
        self,
        x: Tensor,
        mask: Tensor,
        node_type: Tensor,
        routing: Tensor | None = None,
        noise: Tensor | None = None,
        gain: Tensor | None = None,
        pair_terms: tuple[Tensor, ...] | None = None,
        states: Tensor | None = None,
    ) -> tuple[Tensor, list[Any]]:
        """Logits, and what the trace is made of, layer by layer."""
        h = self.node_states(x, mask, node_type) if states is None else states
        allowed = mask[:, None, :] & mask[:, :, None]
        if not self.settings.self_loops:
            allowed = allowed & ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        terms = self.pair_terms(x, mask, node_type) if pair_terms is None else pair_terms
        bias, pairs = self._bias(terms), terms[-1] if self.settings.pair_values and terms else None
        stored = []
        for layer, block in enumerate(self.blocks):
            h, *trace = block(
                h,
                allowed,
                None if bias is None else bias[:, layer],
                pairs,
                None if routing is None else routing[:, layer],
                None if noise is None else noise[:, layer],
                None if gain is None else gain[:, layer],
            )
            stored.append(trace)
        return self.head(self.pooled(self.norm(h), mask, node_type)), stored

    def stream_names(self) -> tuple[str, ...]:
        """See `Model.stream_names`."""
        return (*(f"blocks.{i}" for i in range(len(self.blocks))), "norm")

    def pooled(
        self, h: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"], node_type: Int[Tensor, "B N"]
    ) -> Float[Tensor, "B E"]:
        """State of the event."""
        if isinstance(self.pool, TypePool):
            return self.pool(h, mask, node_type)
        return mean_pool(h, mask) if self.pool is None else self.pool(h, mask)

    def node_states(
        self, x: Float[Tensor, "B N F"], mask: Bool[Tensor, "B N"], node_type: Int[Tensor, "B N"]
    ) -> Float[Tensor, "B N D"]:
        """The embedded features, with that of the type: what enters the first layer."""
        h = self.embed(self.inputs.nodes(x, mask, node_type))
        if self.type_embedding is not None:
            h = h + self.type_embedding(node_type)
        return h * mask[..., None]

    def pair_terms(
        self, x: Float[Tensor, "B N F"], mask: Bool[Tensor, "B N"], node_type: Int[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B N N _"], ...]:
        """Bias of the attention scores, layers and heads in a row, and what the pairs carry; each where asked for."""
        if self.pair_network is None:
            return ()
        pairs = self.pair_network[:4](self.inputs.pairs(x, mask, node_type))
        bias = (self.pair_network[4](pairs),) if self.settings.pair_bias else ()
        return (*bias, pairs) if self.settings.pair_values else bias

    def _bias(self, terms: tuple[Tensor, ...]) -> Float[Tensor, "B L H N N"] | None:
        if not (self.settings.pair_bias and terms):
            return None
        return terms[0].permute(0, 3, 1, 2).unflatten(1, (self.settings.num_layers, self.settings.num_heads))
