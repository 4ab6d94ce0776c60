"""The graph transformer of arXiv:2501.03432, as its text describes it and, by settings, as its public code computes it.

Two post-norm layers, noisy top-k gates, mean pooling after the first layer of the head. What the public code does
beyond the text is off by default, one setting each, so that every effect can be measured alone; configs/paper.yaml and
configs/paper_code.yaml are the two descriptions. Attention is per event, which gives the same numbers as the public
code's matrix over all nodes of a batch.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from hepx.graph import Layout
from hepx.models.base import InputSettings, Model, Output, Trace
from hepx.models.inputs import Inputs
from hepx.models.layers import MixtureOfExperts, SelfAttention, mean_pool

CODE_DIM = 4  # Laplacian eigenvectors


class PaperMGTSettings(InputSettings):
    """Sizes of the paper; and its flaws, off by default.

    shared_experts: one network X times, so the gates (sum 1) cancel and the task gives the router no gradient.
    batch_noise: one noise vector for all nodes of a batch. laplacian_pe: eigenvectors of the Laplacian, of which a
    complete graph has an (n−1)-fold degenerate set, so they are an arbitrary code of the slot; `random_signs` draws
    their signs anew at each call, in evaluation too. attention_scores: `qv` is what the code did until 19 May 2025.
    self_loops: absent in paper and code. missing_flags: a column per feature that says whether the type has it.
    """

    name: Literal["paper_mgt"] = "paper_mgt"
    pair_features: tuple[()] = ()
    missing_flags: bool = True
    dim: int = Field(default=80, ge=2)
    num_layers: int = Field(default=2, ge=1)
    num_heads: int = Field(default=2, ge=1)
    num_experts: int = Field(default=6, ge=1)
    expert_dim: int = Field(default=20, ge=1)
    top_k: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    self_loops: bool = False
    shared_experts: bool = False
    batch_noise: bool = False
    laplacian_pe: Literal["none", "fixed", "random_signs"] = "none"
    attention_scores: Literal["qk", "qv"] = "qk"

    @model_validator(mode="after")
    def _sizes_fit(self) -> PaperMGTSettings:
        if self.dim % self.num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, but {self.dim} is not one of {self.num_heads}")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k is {self.top_k}, but there are only {self.num_experts} experts")
        return self


class PaperLayer(nn.Module):
    """Post-norm: h = norm(h + attention h), then norm(h + experts h)."""

    def __init__(self, settings: PaperMGTSettings) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(settings.dim), nn.LayerNorm(settings.dim)
        self.attention = SelfAttention(settings.dim, settings.num_heads, scores=settings.attention_scores)
        self.dropout = nn.Dropout(settings.dropout)
        self.experts = MixtureOfExperts(
            settings.dim,
            settings.expert_dim,
            settings.num_experts,
            settings.top_k,
            settings.dropout,
            activation="leaky_relu",
            shared=settings.shared_experts,
            learned_noise=True,
        )

    def forward(
        self,
        h: Float[Tensor, "B N D"],
        allowed: Bool[Tensor, "B N N"],
        routing: Bool[Tensor, "B N X"] | None,
        noise: Float[Tensor, "B N X"] | None,
        gain: Float[Tensor, "B H N N"] | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """New node states, attention, router logits, gates, smooth load."""
        mixed, attention = self.attention(h, allowed, None, None, gain)
        h = self.dropout(self.norm1(h + mixed))
        out, router_logits, gates, load = self.experts(h, routing, noise)
        assert load is not None
        return self.norm2(h + out), attention, router_logits, gates, load


class PaperMGT(Model):
    """The published model; see the module's docstring."""

    slot_code: Tensor

    def __init__(self, settings: PaperMGTSettings, layout: Layout, num_classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.inputs = Inputs(layout, settings.features, (), settings.missing_flags)
        self.embed = nn.Linear(self.inputs.num_features, settings.dim)
        self.embed_code = None
        if settings.laplacian_pe != "none":
            self.embed_code = nn.Linear(CODE_DIM, settings.dim)
            self.register_buffer("slot_code", torch.from_numpy(laplacian_code(len(layout.slots))))
        self.layers = nn.ModuleList([PaperLayer(settings) for _ in range(settings.num_layers)])
        self.cut = nn.Linear(settings.dim, settings.dim // 2)
        self.predict = nn.Linear(settings.dim // 2, num_classes)

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
        """Classify events; see `Model.forward`. Noise is in units of the learned width."""
        h = self.embed(self.inputs.nodes(x, mask, node_type))
        if self.embed_code is not None:
            h = h + self.embed_code(self.positions(mask))
        h = h * mask[..., None]
        if noise is not None and self.settings.batch_noise:
            noise = noise[:1, :, :1].expand_as(noise)
        allowed = mask[:, None, :] & mask[:, :, None]
        if not self.settings.self_loops:
            allowed = allowed & ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        stored = []
        for i, layer in enumerate(self.layers):
            of_layer = [None if tensor is None else tensor[:, i] for tensor in (routing, noise, gain)]
            h, *trace = layer(h, allowed, *of_layer)
            stored.append(trace)
        attention, router_logits, gates, load = (torch.stack(parts, 1) for parts in zip(*stored, strict=True))
        node = mask[:, None, :, None]
        logits = self.predict(mean_pool(torch.relu(self.cut(h)), mask))
        return Output(logits, Trace(attention, router_logits, gates * node, load * node))

    def stream_names(self) -> tuple[str, ...]:
        """See `Model.stream_names`."""
        return (*(f"layers.{i}" for i in range(len(self.layers))), "cut")

    def positions(self, mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N E"]:
        """Laplacian code of each present object by its place among them, with the signs of this call."""
        place = (mask.cumsum(-1) - 1).clamp(min=0)
        code = self.slot_code[mask.sum(-1)[:, None], place] * mask[..., None]
        if self.settings.laplacian_pe == "random_signs":
            signs = torch.randint(0, 2, (mask.shape[0], 1, CODE_DIM), device=mask.device)
            code = code * (2 * signs - 1)
        return code


def laplacian_code(num_slots: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    """Eigenvectors 2 to 5 of the normalised Laplacian of the complete graphs of 0 … N nodes [N + 1, N, 4].

    Computed as torch_geometric does for a graph not marked undirected (general eigensolver, sorted by eigenvalue): the
    choice inside the degenerate space is the solver's, and the columns need not be orthogonal.
    """
    table = np.zeros((num_slots + 1, num_slots, CODE_DIM), dtype=np.float32)
    for n in range(2, num_slots + 1):
        root = torch.tensor([n - 1.0]).pow(-0.5)  # rounded as there: the last bit decides on the vectors
        laplacian = np.full((n, n), -(root * root).item(), dtype=np.float32)
        np.fill_diagonal(laplacian, 1)
        values, vectors = np.linalg.eig(laplacian)
        chosen = np.real(vectors[:, values.argsort()])[:, 1 : CODE_DIM + 1]
        table[n, :n, : chosen.shape[1]] = chosen
    return table
