"""Layers the models are built from. One static formulation: captum, torch.func.vmap and torch.export all take it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hepx.graph import NODE_TYPES


class SelfAttention(nn.Module):
    """Multi-head attention over the objects of one event that keeps its weights and takes a bias per pair.

    Scores are q·k / √(D/H) + bias (arXiv:1706.03762; pair bias arXiv:2202.03772). A row without any allowed column
    gives zeros, never NaN.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, h: Float[Tensor, "B N D"], allowed: Bool[Tensor, "B N N"], bias: Float[Tensor, "B H N N"] | None
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H N N"]]:
        """New node states and the attention weights."""
        batch, nodes, dim = h.shape
        qkv = self.qkv(h).reshape(batch, nodes, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) / math.sqrt(dim // self.num_heads)
        if bias is not None:
            scores = scores + bias
        attention = masked_softmax(scores, allowed[:, None])
        mixed = (attention @ v).transpose(1, 2).reshape(batch, nodes, dim)
        return self.out(mixed), attention


def masked_softmax(scores: Float[Tensor, "*S"], allowed: Bool[Tensor, "*#S"]) -> Float[Tensor, "*S"]:
    """Softmax over the last axis among the allowed entries; a row with none of them is all zeros."""
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1) * allowed


class FeedForward(nn.Module):
    """The two-layer network of a plain transformer block, with the call of `MixtureOfExperts`."""

    num_experts = 0

    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim))

    def forward(
        self, h: Float[Tensor, "B N D"], routing: Tensor | None, noise: Tensor | None
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N X"], Float[Tensor, "B N X"]]:
        """New node states, and empty router logits and gates."""
        nothing = h[..., :0]
        return self.net(h), nothing, nothing


class MixtureOfExperts(nn.Module):
    """Independent expert networks, K of X used per node (arXiv:1701.06538).

    All experts run as two matrix products: one [D, X·h] for all first layers, the hidden units multiplied by their
    expert's gate (0 where not chosen), one [X·h, D] for all second layers. This is exact and static. The gate of a
    chosen expert is the softmax over the chosen router logits. `selection_bias` moves the choice, not the gates
    (loss-free balancing, arXiv:2408.15664); training updates it.
    """

    selection_bias: Tensor

    def __init__(self, dim: int, expert_dim: int, num_experts: int, top_k: int, dropout: float) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.expert_dim = num_experts, top_k, expert_dim
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.w1 = nn.Parameter(torch.empty(num_experts, dim, expert_dim))
        self.b1 = nn.Parameter(torch.zeros(num_experts, expert_dim))
        self.w2 = nn.Parameter(torch.empty(num_experts, expert_dim, dim))
        self.b2 = nn.Parameter(torch.zeros(num_experts, dim))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("selection_bias", torch.zeros(num_experts))
        for weight in (self.w1, self.w2):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)

    def forward(
        self,
        h: Float[Tensor, "B N D"],
        routing: Bool[Tensor, "B N X"] | None,
        noise: Float[Tensor, "B N X"] | None,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N X"], Float[Tensor, "B N X"]]:
        """New node states, router logits and gates."""
        router_logits = self.router(h)
        if routing is None:
            routing = self.choose(router_logits if noise is None else router_logits + noise)
        gates = masked_softmax(router_logits, routing)
        num_nodes_dim = h.shape[-1]
        w1 = self.w1.permute(1, 0, 2).reshape(num_nodes_dim, -1)
        hidden = functional.gelu(h @ w1 + self.b1.reshape(-1))
        hidden = self.dropout(hidden).unflatten(-1, (self.num_experts, self.expert_dim)) * gates[..., None]
        out = hidden.flatten(-2) @ self.w2.reshape(-1, num_nodes_dim) + gates @ self.b2
        return out, router_logits, gates

    def choose(self, router_logits: Float[Tensor, "B N X"]) -> Bool[Tensor, "B N X"]:
        """The K experts with the largest logit (plus selection bias) of each node."""
        best = torch.topk(router_logits + self.selection_bias, self.top_k, dim=-1).indices
        return (best[..., None] == torch.arange(self.num_experts, device=best.device)).any(-2)


class TypePool(nn.Module):
    """Mean of the node states of each type, side by side [B, T·D]: keeps apart what a plain mean would blend.

    An absent type gives zeros. `types` are the node types of the slots.
    """

    def __init__(self, types: tuple[str, ...]) -> None:
        super().__init__()
        self.types = sorted({NODE_TYPES.index(name) for name in types})

    def forward(
        self, h: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"], node_type: Int[Tensor, "B N"]
    ) -> Float[Tensor, "B TD"]:
        """Pooled state of the event."""
        return torch.cat([mean_pool(h, mask & (node_type == kind)) for kind in self.types], dim=-1)


def mean_pool(h: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B D"]:
    """Mean over the nodes in `mask`; zeros where there is none."""
    weight = mask.to(h.dtype)
    return (h * weight[..., None]).sum(-2) / weight.sum(-1, keepdim=True).clamp(min=1)
