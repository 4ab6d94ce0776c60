"""Where each object looks, and whether it matters: maps and numbers of the attention weights, each beside null networks
and beside an intervention. An observation is not an explanation (arXiv:1902.10186, arXiv:1908.04626)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

__all__ = ["Observed", "attention_map", "observe", "sinks"]

Array = npt.NDArray[Any]
PARTS = ("type × type", "type × kinematics", "kinematics × kinematics", "pair bias")
"""What an attention logit is made of; see `_logit_parts`."""
ENDS = ("", "_error", "_null", "_shuffled")
"""What the names of a map's mean, its error and its nulls end with."""


@dataclass(frozen=True)
class Observed:
    """The attention of one network on some events, on the CPU.

    attention [B, L, H, N, N]; allowed [B, N, N]; logit_shares [L, H, 4]; score [B]; length [B, L, H, N, N]: ‖W_o v_j‖,
    the length of what is sent (arXiv:2004.10102); head_output [L, H, D]: weighted mean of what each head adds to a
    present object.
    """

    attention: Float[Tensor, "B L H N N"]
    allowed: Bool[Tensor, "B N N"]
    logit_shares: Array
    score: Array
    length: Float[Tensor, "B L H N N"]
    head_output: Float[Tensor, "L H D"]


def attention_map(model: Model, nulls: Sequence[Null], referee: Referee, provenance: Provenance) -> AttentionMap | None:
    """All observations and interventions on the referee's events; None for a model without attention.

    nulls: null networks, at least one of them untrained. Heads are taken away, and columns hidden, in the first of each
    kind only: every head costs a pass over all events.
    """
    if not attention_names(model):
        return None
    graphs, kinds = referee.graphs, tuple(null.kind for null in nulls)
    mine, others = _numbers(model, referee, referee), []
    for i, null in enumerate(track(nulls, "attention of nulls", len(nulls))):
        first = kinds.index(null.kind) == i
        others.append(_numbers(null.model, referee, replace(referee, model=null.model) if first else None))
    beside = [others[kinds.index(kind)].maps if kind in kinds else {} for kind in ("untrained", "shuffled")]
    maps = {name: _beside(found, [null.get(name) for null in beside]) for name, found in mine.maps.items()}
    return AttentionMap(
        **dict(zip(("mean", "error", "null", "shuffled"), maps.pop("attention"), strict=True)),
        **{f"{name}{end}": value for name, found in maps.items() for end, value in zip(ENDS, found, strict=True)},
        num_events=np.bincount(graphs.sample.numpy(), minlength=len(graphs.layout.samples)),
        entropy=mine.entropy[0],
        entropy_error=mine.entropy[1],
        entropy_null=np.stack([one.entropy[0] for one in others]),
        slot_share=mine.slot_share,
        slot_share_null=np.stack([one.slot_share for one in others]),
        quantities=QUANTITIES,
        correlation=mine.correlation[0],
        correlation_error=mine.correlation[1],
        correlation_null=np.stack([_largest(one.correlation[0]) for one in others]),
        logit_parts=PARTS,
        logit_shares=mine.logit_shares,
        logit_shares_null=np.stack([one.logit_shares for one in others]),
        sinks=mine.sinks,
        sinks_null=tuple(one.sinks for one in others),
        knock_out=mine.knock_out,
        knock_out_null=tuple(one.knock_out for one in others),
        null_kinds=kinds,
        null_auc=np.array([one.auc for one in others]),
        slots=graphs.layout.slots,
        sample_names=graphs.layout.samples,
        provenance=provenance,
    )


@dataclass(frozen=True)
class _Numbers:
    """What is kept of one network: maps (name -> mean and error), the numbers of an `AttentionMap`, and its AUC."""

    maps: dict[str, tuple[Array, Array]]
    entropy: tuple[Array, Array]
    slot_share: Array
    correlation: tuple[Array, Array]
    logit_shares: Array
    sinks: tuple[Sink, ...]
    knock_out: tuple[Effect, ...]
    auc: float


def _numbers(model: Model, referee: Referee, own: Referee | None) -> _Numbers:
    """The observations of a network; the interventions too, if it has a referee of its own. That of the trained one is
    `referee`, and judges in regions too."""
    graphs = referee.graphs
    seen, weight = observe(model, graphs, referee.target), balanced_weight(graphs)
    maps = {
        "attention": seen.attention,
        "value_norm": seen.attention * seen.length,
        "rollout": rollout(seen.attention),
    }
    return _Numbers(
        maps={name: process_means(values, graphs) for name, values in maps.items()},
        entropy=entropy(seen.attention, seen.allowed, weight),
        slot_share=slot_share(seen.attention, seen.allowed, weight),
        correlation=correlations(seen.attention, graphs),
        logit_shares=seen.logit_shares,
        sinks=tuple(sinks(model, seen, graphs, own)),
        knock_out=() if own is None else tuple(_knock_out(seen, own, in_regions=own is referee)),
        auc=metrics.auc(referee.y, seen.score, referee.weight),
    )


def _beside(found: tuple[Array, Array], nulls: Sequence[tuple[Array, Array] | None]) -> tuple[Array, ...]:
    """Mean and error of a map, and the mean of each null network; NaN where there is none."""
    return *found, *(np.full_like(found[0], np.nan) if null is None else null[0] for null in nulls)


@torch.no_grad()
def observe(model: Model, graphs: GraphBatch, target: int) -> Observed:
    """Run a network over the events and keep what the observations are made of."""
    weight = torch.from_numpy(balanced_weight(graphs))
    means = _type_means(model, graphs, weight)
    attention, length, allowed, score = [], [], [], []
    outputs: Any = 0
    sums: Any = 0
    start = 0
    for batch, output, layers in heads.run_layers(model, graphs):
        weights = output.trace.attention
        w = weight[start : start + len(batch)].to(weights.device)
        start += len(batch)
        attention.append(weights.cpu())
        allowed.append(layers[0].allowed.cpu())
        score.append(log_odds(output.logits, target).cpu())
        sent = [layer.messages() for layer in layers]
        length.append(torch.stack([part.norm(dim=-1) for part in sent], 1).cpu())
        node = w[:, None] * batch.mask
        added = [torch.einsum("bhij,bhijd->bhid", weights[:, i], part) for i, part in enumerate(sent)]
        outputs = outputs + torch.stack([torch.einsum("bn,bhnd->hd", node, p.double()) for p in added]).cpu()
        sums = sums + torch.stack([_products(layer, batch, means[i], w) for i, layer in enumerate(layers)]).cpu()
    total = (weight[:, None] * graphs.mask).sum()
    share = (sums / sums.sum(-1, keepdim=True)).numpy()
    joined = (torch.cat(attention), torch.cat(allowed), share, torch.cat(score).double().numpy())
    return Observed(*joined, torch.cat(length), outputs / total)


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


def _knock_out(seen: Observed, referee: Referee, in_regions: bool) -> list[Effect]:
    """Each head in turn replaced by its mean output: it still adds what it always adds, and tells nothing."""
    found = []
    pairs = [(i, h) for i in range(seen.attention.shape[1]) for h in range(seen.attention.shape[2])]
    names, judge = attention_names(referee.model), referee.effects if in_regions else referee.everywhere
    for layer, head in track(pairs, "heads", len(pairs)):
        changed = heads.without_head(referee.model, names[layer], head, seen.head_output[layer, head])
        found += judge("head", layer, head, [referee.score(changed)])
    return found


def sinks(model: Model, seen: Observed, graphs: GraphBatch, referee: Referee | None = None) -> list[Sink]:
    """The most looked-at column of each head, whether it is a sink, and the effect of hiding it, if one judges that.

    The rule of arXiv:2510.15731 has a threshold for long texts; here it is rescaled to the number of objects.
    """
    names, weight, found = attention_names(model), balanced_weight(graphs), []
    for layer, row in enumerate(top_columns(seen.attention, seen.allowed, weight)):
        for head, column in enumerate(row):
            effect: tuple[float | None, float | None] = (None, None)
            if referee is not None:
                changed = heads.without_column(model, names[layer], head, column.slot)
                effect = referee.overall([referee.score(changed)])
            carried = _value_ratio(seen, layer, head, column.slot, weight)
            is_sink = column.share > OFTEN and carried < 1
            slot = graphs.layout.slots[column.slot]
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
