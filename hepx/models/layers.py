"""Layers the models are built from. One static formulation: captum, torch.func.vmap and torch.export all take it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hepx.graph import NODE_TYPES

log = logging.getLogger(__name__)

GROUPED_FROM = 16
"""From this number of experts on, each runs on its own nodes only: `test_models` shows equality, the benchmark why."""
SHORT_ROW = 15
"""On a CPU a softmax of up to this many entries is faster written out: three times for seven (`bench_models`)."""
VECTOR = 8
"""Numbers that the kernels of `fused` take at once."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "leaky_relu": functional.leaky_relu}


@cache
def compiled_kernels() -> ModuleType | None:
    """The module `hepx.models.fused`; None where numba (extra `fast`) is not installed, or (said) cannot work."""
    try:
        from hepx.models import fused
    except ModuleNotFoundError:
        return None
    except ImportError as error:  # such as a numba that knows no NumPy as new as this
        log.warning("no compiled kernels, PyTorch's operations are used instead: %s", error)
        return None
    return fused


def kernels_for(h: Tensor, *widths: int) -> ModuleType | None:
    """The kernels if they may compute on states [B, ..., D]: inference of float32 on a CPU, of plain tensors, at least
    eight rows, and widths that are multiples of their vectors. They have no gradient and cannot be traced."""
    usable = (
        not torch.compiler.is_compiling()  # first: the compiler cannot look into what follows
        and torch.is_inference_mode_enabled()
        and h.device.type == "cpu"
        and h.dtype == torch.float32
        and len(h) >= VECTOR
        and all(width % VECTOR == 0 for width in widths)
        and not torch.is_autocast_enabled("cpu")
        and type(h) is Tensor
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )
    return compiled_kernels() if usable else None


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis."""

    def forward(self, h: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Normalised states."""
        kernels = kernels_for(h, h.shape[-1])
        return super().forward(h) if kernels is None else kernels.norm(h, self.weight, self.bias, self.eps)


class SelfAttention(nn.Module):
    """Multi-head attention over the objects of one event that keeps its weights and takes a bias per pair.

    Scores are q·k / √(D/H) + bias (arXiv:1706.03762; pair bias arXiv:2202.03772). With `pair_dim`, what a node receives
    from another also holds a linear map of the features of the pair (arXiv:1803.02155, eq. 3). `scores: qv` takes q·v
    instead of q·k, as the public code of arXiv:2501.03432 did. A row without any allowed column gives zeros, never NaN.
    """

    def __init__(self, dim: int, num_heads: int, pair_dim: int = 0, scores: Literal["qk", "qv"] = "qk") -> None:
        super().__init__()
        self.num_heads, self.score_of_values = num_heads, scores == "qv"
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.pair_values = nn.Linear(num_heads * pair_dim, dim, bias=False) if pair_dim else None

    def forward(
        self,
        h: Float[Tensor, "B N D"],
        allowed: Bool[Tensor, "B N N"],
        bias: Float[Tensor, "B H N N"] | None,
        pairs: Float[Tensor, "B N N P"] | None = None,
        gain: Float[Tensor, "B H N N"] | None = None,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H N N"]]:
        """New node states and the attention weights (before the factors `gain`)."""
        qkv, (_, nodes, dim) = self.qkv(h), h.shape
        few = 3 <= nodes <= SHORT_ROW
        kernels = kernels_for(qkv, dim // self.num_heads) if few and gain is None else None
        if kernels is not None:
            received, attention = kernels.attend(qkv, self.num_heads, bias, allowed, self.score_of_values)
            used = attention
        else:
            q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
            scores, scale = q @ (v if self.score_of_values else k).transpose(-1, -2), 1 / math.sqrt(q.shape[-1])
            scores = scores * scale if bias is None else torch.add(bias, scores, alpha=scale)
            attention = masked_softmax(scores, allowed[:, None])
            used = attention if gain is None else attention * gain
            received = (used @ v).transpose(1, 2).flatten(-2)
        mixed = self.out(received)
        if self.pair_values is not None and pairs is not None:
            of_pairs = used.permute(0, 2, 1, 3) @ pairs  # [B, N, H, P]
            mixed = mixed + self.pair_values(of_pairs.flatten(-2))
        return mixed, attention


def masked_softmax(scores: Float[Tensor, "*S"], allowed: Bool[Tensor, "*#S"]) -> Float[Tensor, "*S"]:
    """Softmax over the last axis among the allowed entries; a row with none of them is all zeros. At least float32."""
    scores = scores.float() if scores.dtype == torch.bfloat16 else scores
    lowest = torch.finfo(scores.dtype).min
    if scores.shape[-1] > SHORT_ROW or scores.device.type != "cpu":
        return torch.softmax(scores.masked_fill(~allowed, lowest), dim=-1) * allowed
    scores = scores.masked_fill(~allowed, -torch.inf)  # of a finite one exp underflows, which takes eight times as long
    weights = torch.exp(scores - scores.detach().amax(-1, keepdim=True).clamp(min=lowest))
    total = weights.sum(-1, keepdim=True)
    return weights / (total + (total == 0))


def in_float32(layer: nn.Linear, h: Float[Tensor, "*B D"]) -> Float[Tensor, "*B E"]:
    """A linear map that autocast leaves alone: bfloat16 would round router logits to 1 in 256, and with them the choice
    (arXiv:2101.03961, section 2.4)."""
    if not torch.is_autocast_enabled(h.device.type):
        return layer(h)
    with torch.autocast(h.device.type, enabled=False):
        return layer(h.float())


class FeedForward(nn.Module):
    """The two-layer network of a plain transformer block, with the call of `MixtureOfExperts`."""

    num_experts = 0

    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim))

    def forward(
        self, h: Float[Tensor, "B N D"], routing: Tensor | None, noise: Tensor | None
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N X"], Float[Tensor, "B N X"], None]:
        """New node states, empty router logits and gates, no load."""
        nothing = h[..., :0]
        return self.net(h), nothing, nothing, None


class MixtureOfExperts(nn.Module):
    """Independent expert networks, K of X used per node (arXiv:1701.06538).

    Few experts run as two matrix products: one [D, X·h] for all first layers, the hidden units multiplied by their
    expert's gate (0 where not chosen), one [X·h, D] for all second layers. This is exact and static. `selection_bias`
    moves the choice, not the gates (loss-free balancing, arXiv:2408.15664); training updates it.

    gates: `top_k`, the softmax over the chosen router logits; `margin`, the same times 1 − exp(score of the best expert
    not chosen − score), renormalised: a gate fades to 0 before its expert is exchanged, so the output has no jump;
    `soft`, the softmax over all experts. shared: all experts are one network. learned_noise: the noise given to
    `forward` is scaled per node and expert by softplus of a linear map (eq. 4), also enters the gates, and a smooth
    load is returned (eq. 9).
    """

    selection_bias: Tensor

    def __init__(
        self,
        dim: int,
        expert_dim: int,
        num_experts: int,
        top_k: int,
        dropout: float,
        gates: Literal["top_k", "margin", "soft"] = "top_k",
        activation: Literal["gelu", "leaky_relu"] = "gelu",
        shared: bool = False,
        learned_noise: bool = False,
    ) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.expert_dim = num_experts, top_k, expert_dim
        self.gate_kind, self.activation = gates, ACTIVATIONS[activation]
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.noise_width = nn.Linear(dim, num_experts, bias=False) if learned_noise else None
        distinct = 1 if shared else num_experts
        self.w1 = nn.Parameter(torch.empty(distinct, dim, expert_dim))
        self.b1 = nn.Parameter(torch.zeros(distinct, expert_dim))
        self.w2 = nn.Parameter(torch.empty(distinct, expert_dim, dim))
        self.b2 = nn.Parameter(torch.zeros(distinct, dim))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("selection_bias", torch.zeros(num_experts))
        for weight in (self.w1, self.w2):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
        if self.noise_width is not None:
            nn.init.zeros_(self.noise_width.weight)

    def forward(
        self,
        h: Float[Tensor, "B N D"],
        routing: Bool[Tensor, "B N X"] | None,
        noise: Float[Tensor, "B N X"] | None,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N X"], Float[Tensor, "B N X"], Float[Tensor, "B N X"] | None]:
        """New node states, router logits, gates, and the smooth load (None without learned noise)."""
        router_logits, load = in_float32(self.router, h), None
        scores = router_logits
        if self.noise_width is not None:
            width = functional.softplus(in_float32(self.noise_width, h))
            scores = scores if noise is None else scores + noise * width
            load = self.smooth_load(router_logits, scores, width)
        elif noise is not None:
            scores = scores + noise
        logits = router_logits if self.noise_width is None else scores
        kernels = kernels_for(scores) if routing is None and self.gate_kind == "top_k" else None
        if kernels is not None:
            gates = kernels.gate(logits, scores + self.selection_bias, self.top_k)
        else:
            gates = self.gate(logits, scores, self.choose(scores) if routing is None else routing)
        return self.experts(h, gates), router_logits, gates, load

    def choose(self, scores: Float[Tensor, "B N X"]) -> Bool[Tensor, "B N X"]:
        """The K experts with the largest score (plus selection bias) of each node; all of them for soft gates."""
        scores = scores + self.selection_bias
        if self.gate_kind == "soft":
            return scores > -torch.inf
        best = torch.topk(scores, self.top_k, dim=-1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)

    def gate(
        self, router_logits: Float[Tensor, "B N X"], scores: Float[Tensor, "B N X"], routing: Bool[Tensor, "B N X"]
    ) -> Float[Tensor, "B N X"]:
        """Gates of the experts in `routing`: sum 1 (0 for margin gates where none of them leads), 0 elsewhere."""
        gates = masked_softmax(router_logits, routing)
        if self.gate_kind != "margin":
            return gates
        scores = scores + self.selection_bias
        best_left = scores.masked_fill(routing, -torch.inf).amax(-1, keepdim=True)
        gates = gates * (1 - torch.exp((best_left - scores).clamp(max=0))) * routing
        return gates / gates.sum(-1, keepdim=True).clamp(min=1e-6)

    def smooth_load(
        self, router_logits: Float[Tensor, "B N X"], scores: Float[Tensor, "B N X"], width: Float[Tensor, "B N X"]
    ) -> Float[Tensor, "B N X"]:
        """Probability Φ((logit − K-th best score of the others) / width) to be chosen if only this noise is redrawn."""
        if self.top_k == self.num_experts:
            return torch.ones_like(scores)
        best = torch.topk(scores, self.top_k + 1, dim=-1).values
        last_in, first_out = best[..., self.top_k - 1 : self.top_k], best[..., self.top_k :]
        threshold = torch.where(scores > first_out, first_out, last_in)
        return torch.special.ndtr((router_logits - threshold) / width)

    def experts(self, h: Float[Tensor, "B N D"], gates: Float[Tensor, "B N X"]) -> Float[Tensor, "B N D"]:
        """Gated sum of the experts' outputs."""
        distinct = self.gate_kind != "soft" and len(self.w1) == self.num_experts
        wide = h.shape[-1] % (2 * VECTOR) == 0 and self.expert_dim % (2 * VECTOR) == 0
        if distinct and wide and self.activation is functional.gelu and not self.training:
            kernels = kernels_for(h)
            if kernels is not None:
                return kernels.mix(h, gates, self.w1, self.b1, self.w2, self.b2)
        if self.num_experts >= GROUPED_FROM and distinct:
            counts = self._counts(gates)
            if counts is not None:
                return self._grouped(h, gates, counts)
        return self._dense(h, gates)

    def _dense(self, h: Float[Tensor, "B N D"], gates: Float[Tensor, "B N X"]) -> Float[Tensor, "B N D"]:
        """All experts on all nodes, in two matrix products."""
        dim, distinct = h.shape[-1], len(self.w1)
        if distinct < self.num_experts:
            gates = gates.sum(-1, keepdim=True)
        w1 = self.w1.transpose(1, 2).reshape(-1, dim)
        hidden = self.activation(functional.linear(h, w1, self.b1.reshape(-1)))
        hidden = self.dropout(hidden).unflatten(-1, (distinct, self.expert_dim)) * gates[..., None]
        return hidden.flatten(-2) @ self.w2.reshape(-1, dim) + gates @ self.b2

    @staticmethod
    def _counts(gates: Float[Tensor, "B N X"]) -> list[int] | None:
        """Nodes per expert; None inside vmap, export and compile, where sizes must not depend on the data."""
        if torch.compiler.is_compiling():
            return None
        try:
            return (gates > 0).flatten(0, -2).sum(0).tolist()
        except RuntimeError:  # vmap has no numbers, only tensors
            return None

    def _grouped(
        self, h: Float[Tensor, "B N D"], gates: Float[Tensor, "B N X"], counts: list[int]
    ) -> Float[Tensor, "B N D"]:
        """Each expert on the nodes that chose it: sorted by expert, one matrix product after the other."""
        flat, flat_gates = h.flatten(0, -2), gates.flatten(0, -2)
        expert, node = (flat_gates > 0).T.nonzero(as_tuple=True)
        outputs = []
        for e, part in enumerate(flat[node].split(counts)):
            hidden = self.dropout(self.activation(torch.addmm(self.b1[e], part, self.w1[e])))
            outputs.append(torch.addmm(self.b2[e], hidden, self.w2[e]))
        gated = torch.cat(outputs) * flat_gates[node, expert][:, None]
        return torch.zeros_like(flat).index_add(0, node, gated).reshape(h.shape)


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
        kernels = kernels_for(h, h.shape[-1])
        if kernels is not None:
            groups = torch.full_like(node_type, -1)
            for place, kind in enumerate(self.types):
                groups = groups.masked_fill(mask & (node_type == kind), place)
            return kernels.pool(h, groups, len(self.types))
        return torch.cat([mean_pool(h, mask & (node_type == kind)) for kind in self.types], dim=-1)


class ClassPool(nn.Module):
    """Class attention (arXiv:2103.17239, used by arXiv:2202.03772): a learned token looks at itself and the objects.

    Each layer: token + attention(token; token and objects), then token + feed-forward, both pre-norm.
    """

    def __init__(self, dim: int, num_heads: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Parameter(0.02 * torch.randn(dim))
        self.layers = nn.ModuleList([_ClassLayer(dim, num_heads, dropout) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, h: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B D"]:
        """Pooled state of the event; defined for an event without objects too."""
        token = self.token.expand(h.shape[0], 1, -1)
        present = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=-1)
        for layer in self.layers:
            token = layer(token, h, present)
        return self.norm(token[:, 0])


class _ClassLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.feed_forward = FeedForward(dim, 2 * dim, dropout)

    def forward(
        self, token: Float[Tensor, "B 1 D"], h: Float[Tensor, "B N D"], present: Bool[Tensor, "B M"]
    ) -> Float[Tensor, "B 1 D"]:
        states = self.norm1(torch.cat([token, h], dim=1))
        query = self.query(states[:, :1]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.key_value(states).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        mixed = masked_softmax(scores, present[:, None, None]) @ value
        token = token + self.out(mixed.transpose(1, 2).flatten(-2))
        return token + self.feed_forward(self.norm2(token), None, None)[0]


def mean_pool(h: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B D"]:
    """Mean over the nodes in `mask`; zeros where there is none."""
    weight = mask.to(h.dtype)
    return (h * weight[..., None]).sum(-2) / weight.sum(-1, keepdim=True).clamp(min=1)
