"""Attention maps: where each object looks. An observation, not an explanation (arXiv:1902.10186), so each map stands
beside that of an untrained model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from hepx.graph import GraphBatch
from hepx.models import Model, batches
from hepx.results import AttentionMap, Provenance


def attention_map(model: Model, untrained: Model, graphs: GraphBatch, provenance: Provenance) -> AttentionMap | None:
    """Weighted mean attention per process, layer and head with its standard error; None for a model without attention.

    Only events where both objects are present enter an element; signed weights, errors √Σw²(a−ā)² / |Σw|.
    """
    attention = attention_weights(model, graphs)
    if 0 in attention.shape:
        return None
    null = attention_weights(untrained, graphs)
    means = [_mean(attention, graphs, sample) for sample in range(len(graphs.layout.samples))]
    nulls = [_mean(null, graphs, sample)[0] for sample in range(len(graphs.layout.samples))]
    return AttentionMap(
        mean=np.stack([mean for mean, _ in means]),
        error=np.stack([error for _, error in means]),
        null=np.stack(nulls),
        num_events=np.bincount(graphs.sample.numpy(), minlength=len(graphs.layout.samples)),
        slots=graphs.layout.slots,
        sample_names=graphs.layout.samples,
        provenance=provenance,
    )


@torch.inference_mode()
def attention_weights(model: Model, graphs: GraphBatch) -> Float[Tensor, "B L H N N"]:
    """Attention of all events, on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    parts = [model(b.x, b.mask, b.node_type).trace.attention.cpu() for b in (p.to(device) for p in batches(graphs))]
    return torch.cat(parts)


def _mean(
    attention: Float[Tensor, "B L H N N"], graphs: GraphBatch, sample: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and error [L, H, N, N] of one sample; NaN where the two objects never occur together."""
    chosen = graphs.sample == sample
    both = (graphs.mask[chosen][:, :, None] & graphs.mask[chosen][:, None, :]).double()
    weight = (both * graphs.weight[chosen][:, None, None])[:, None, None]
    values = attention[chosen].double()
    total = weight.sum(0)
    mean = (weight * values).sum(0) / total
    error = (weight**2 * (values - mean) ** 2).sum(0).sqrt() / total.abs()
    return mean.numpy(), error.numpy()
