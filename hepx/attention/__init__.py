"""Where each object looks, and whether it matters: maps and numbers of the attention weights, each beside null networks
and beside an intervention. An observation is not an explanation (arXiv:1902.10186, arXiv:1908.04626)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hepx import metrics
from hepx.attention import heads
from hepx.attention.observations import (
    OFTEN,
    QUANTITIES,
    correlations,
    entropy,
    process_means,
    rollout,
    slot_share,
    top_columns,
)
from hepx.graph import NODE_TYPES, GraphBatch
from hepx.interventions import Referee, attention_names, balanced_weight
from hepx.models import Model, log_odds
from hepx.nulls import Null
from hepx.progress import track
from hepx.results import Provenance
from hepx.results_network import AttentionMap, Effect, Sink

__all__ = ["Observed", "attention_map", "observe"]

Array = npt.NDArray[Any]
PARTS = ("type × type", "type × kinematics", "kinematics × kinematics", "pair bias")
"""What an attention logit is made of; see `_logit_parts`."""


@dataclass(frozen=True)
class Observed:
    """The attention of one network on some events, on the CPU.

    attention [B, L, H, N, N]; allowed [B, N, N]; logit_shares [L, H, 4]; score [B]; and, empty for a null network:
    length [B, L, H, N, N]: ‖W_o v_j‖, the length of what is sent (arXiv:2004.10102); head_output [L, H, D]: weighted
    mean of what each head adds to a present object.
    """

    attention: Float[Tensor, "B L H N N"]
    allowed: Bool[Tensor, "B N N"]
    logit_shares: Array
    score: Array
    length: Tensor
    head_output: Tensor


def attention_map(model: Model, nulls: Sequence[Null], referee: Referee, provenance: Provenance) -> AttentionMap | None:
    """All observations and interventions on the referee's events; None for a model without attention.

    nulls: null networks, at least one of them untrained.
    """
    if not attention_names(model):
        return None
    graphs, weight = referee.graphs, balanced_weight(referee.graphs)
    seen = observe(model, graphs, referee.target)
    others = [
        observe(null.model, graphs, referee.target, messages=False)
        for null in track(nulls, "attention of nulls", len(nulls))
    ]
    kinds = tuple(null.kind for null in nulls)
    mean, error = process_means(seen.attention, graphs)
    maps = {kind: process_means(others[kinds.index(kind)].attention, graphs)[0] for kind in dict.fromkeys(kinds)}
    correlation, correlation_error = correlations(seen.attention, graphs)
    evenness = [entropy(one.attention, one.allowed, weight) for one in (seen, *others)]
    shares = [slot_share(one.attention, one.allowed, weight) for one in (seen, *others)]
    return AttentionMap(
        mean=mean,
        error=error,
        null=maps["untrained"],
        shuffled=maps.get("shuffled", np.full_like(mean, np.nan)),
        value_norm=process_means(seen.attention * seen.length, graphs)[0],
        rollout=process_means(rollout(seen.attention), graphs)[0],
        num_events=np.bincount(graphs.sample.numpy(), minlength=len(graphs.layout.samples)),
        entropy=evenness[0][0],
        entropy_error=evenness[0][1],
        entropy_null=np.stack([value for value, _ in evenness[1:]]),
        slot_share=shares[0],
        slot_share_null=np.stack(shares[1:]),
        quantities=QUANTITIES,
        correlation=correlation,
        correlation_error=correlation_error,
        correlation_null=np.stack([_largest(correlations(one.attention, graphs)[0]) for one in others]),
        logit_parts=PARTS,
        logit_shares=seen.logit_shares,
        logit_shares_null=np.stack([one.logit_shares for one in others]),
        sinks=tuple(_sinks(model, seen, referee, weight)),
        knock_out=tuple(_knock_out(model, seen, referee)),
        null_kinds=kinds,
        null_auc=np.array([metrics.auc(referee.y, one.score, referee.weight) for one in others]),
        slots=graphs.layout.slots,
        sample_names=graphs.layout.samples,
        provenance=provenance,
    )


@torch.no_grad()
def observe(model: Model, graphs: GraphBatch, target: int, messages: bool = True) -> Observed:
    """Run a network over the events and keep what the observations are made of, with what the heads send if wanted."""
    weight = torch.from_numpy(balanced_weight(graphs))
    means = _type_means(model, graphs, weight)
    attention, length, allowed, score = [], [], [], []
    outputs: Any = torch.zeros(())
    sums: Any = 0
    start = 0
    for batch, output, layers in heads.run_layers(model, graphs):
        weights = output.trace.attention
        w = weight[start : start + len(batch)].to(weights.device)
        start += len(batch)
        attention.append(weights.cpu())
        allowed.append(layers[0].allowed.cpu())
        score.append(log_odds(output.logits, target).cpu())
        if messages:
            sent = [layer.messages() for layer in layers]
            length.append(torch.stack([part.norm(dim=-1) for part in sent], 1).cpu())
            node = w[:, None] * batch.mask
            added = [torch.einsum("bhij,bhijd->bhid", weights[:, i], part) for i, part in enumerate(sent)]
            outputs = outputs + torch.stack([torch.einsum("bn,bhnd->hd", node, p.double()) for p in added]).cpu()
        sums = sums + torch.stack([_products(layer, batch, means[i], w) for i, layer in enumerate(layers)]).cpu()
    total = (weight[:, None] * graphs.mask).sum()
    share = (sums / sums.sum(-1, keepdim=True)).numpy()
    lengths = torch.cat(length) if messages else torch.zeros(())
    joined = (torch.cat(attention), torch.cat(allowed), share, torch.cat(score).double().numpy())
    return Observed(*joined, lengths, outputs / total)


@torch.no_grad()
def _type_means(model: Model, graphs: GraphBatch, weight: Float[Tensor, "B"]) -> Float[Tensor, "L T D"]:
    """Weighted mean state of each node type as each attention layer gets it."""
    sums: Any = 0
    totals: Any = 0
    start = 0
    for batch, _, layers in heads.run_layers(model, graphs):
        w = weight[start : start + len(batch)].to(batch.x.device)
        start += len(batch)
        kind = torch.nn.functional.one_hot(batch.node_type.long(), len(NODE_TYPES)).double()
        kind = kind * (w[:, None] * batch.mask)[..., None]
        sums = sums + torch.stack([torch.einsum("bnt,bnd->td", kind, layer.h.double()) for layer in layers])
        totals = totals + kind.sum((0, 1))
    means = sums / torch.where(totals > 0, totals, 1.0)[None, :, None]
    return means.float() * (totals > 0)[None, :, None]


def _products(
    layer: heads.Layer, batch: GraphBatch, means: Float[Tensor, "T D"], weight: Float[Tensor, "B"]
) -> Float[Tensor, "H S"]:
    """Weighted sum of part × logit for each part, whose shares are those of the variance; parts as in `PARTS`."""
    parts = _logit_parts(layer, means[batch.node_type.long()])
    allowed = layer.allowed[:, None, :, :, None].double()
    number = allowed.sum(-2, keepdim=True).clamp(min=1)
    parts = (parts - (parts * allowed).sum(-2, keepdim=True) / number) * allowed
    return torch.einsum("b,bhijs,bhij->hs", weight, parts, parts.sum(-1))


def _logit_parts(layer: heads.Layer, typical: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N N S"]:
    """The attention logit split by splitting each state into the mean of its type and the rest (its kinematics).

    A softmax ignores what all columns of a row share, so the caller takes that away.
    """
    rest = layer.h - typical
    query, key = layer.project(typical, 0), layer.project(typical, layer.key_index)
    moved_query = layer.project(rest, 0, affine=False)
    moved_key = layer.project(rest, layer.key_index, affine=False)
    mixed = layer.scores(query, moved_key) + layer.scores(moved_query, key)
    bias = torch.zeros_like(mixed) if layer.bias is None else layer.bias.expand_as(mixed)
    parts = (layer.scores(query, key), mixed, layer.scores(moved_query, moved_key), bias)
    return torch.stack(parts, -1).double()


def _largest(correlation: Array) -> Array:
    """Largest |correlation| over layers, heads and pairs [Q]."""
    return np.nanmax(np.abs(correlation), axis=(0, 1, 3, 4), initial=0.0)


def _knock_out(model: Model, seen: Observed, referee: Referee) -> list[Effect]:
    """Each head in turn replaced by its mean output: it still adds what it always adds, and tells nothing."""
    found = []
    pairs = [(i, h) for i in range(seen.attention.shape[1]) for h in range(seen.attention.shape[2])]
    names = attention_names(model)
    for layer, head in track(pairs, "heads", len(pairs)):
        changed = heads.without_head(model, names[layer], head, seen.head_output[layer, head])
        found += referee.effects("head", layer, head, [referee.score(changed)])
    return found


def _sinks(model: Model, seen: Observed, referee: Referee, weight: Array) -> list[Sink]:
    """The most looked-at column of each head, whether it is a sink, and the effect of hiding it from the head.

    The rule of arXiv:2510.15731 has a threshold for long texts; here it is rescaled to the number of objects.
    """
    names, found = attention_names(model), []
    columns = top_columns(seen.attention, seen.allowed, weight)
    for layer, row in enumerate(columns):
        for head, column in enumerate(row):
            changed = heads.without_column(model, names[layer], head, column.slot)
            effect = referee.overall([referee.score(changed)])
            carried = _value_ratio(seen, layer, head, column.slot, weight)
            is_sink = column.share > OFTEN and carried < 1
            slot = referee.graphs.layout.slots[column.slot]
            numbers = (column.ratio, column.share, carried, is_sink, *effect)
            found.append(Sink(layer, head, slot, *numbers))
    return found


def _value_ratio(seen: Observed, layer: int, head: int, slot: int, weight: Array) -> float:
    """Mean length of what a column carries over the mean length of what the others carry."""
    allowed = seen.allowed & ~torch.eye(seen.allowed.shape[-1], dtype=torch.bool)
    w = torch.from_numpy(weight)[:, None, None] * allowed
    length = seen.length[:, layer, head].double()
    here = torch.zeros(seen.allowed.shape[-1], dtype=torch.bool)
    here[slot] = True
    inside, outside = ((w * length)[:, :, part].sum() / w[:, :, part].sum() for part in (here, ~here))
    return float(inside / outside)
