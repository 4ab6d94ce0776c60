"""What the methods for edges share: an intervention on the attention weights, and what a model must have for it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hepx.attribution.base import Subject
from hepx.errors import ConfigError
from hepx.graph import GraphBatch
from hepx.models import Model


def attention_shape(model: Model, graphs: GraphBatch) -> tuple[int, ...]:
    """Layers, heads, nodes, nodes; ConfigError for a model without attention."""
    few = graphs[:1]
    device = next(model.parameters()).device
    with torch.no_grad():
        trace = model(*(tensor.to(device) for tensor in (few.x, few.mask, few.node_type))).trace
    shape = tuple(trace.attention.shape[1:])
    if 0 in shape:
        raise ConfigError(
            "this model has no attention, so it has no edges to explain; leave out the methods for edges, or use "
            "model.name=moe_graph_transformer."
        )
    return shape


def both_present(subject: Subject) -> Tensor:
    """Pairs of different objects that an event has, bool [B, N, N]."""
    mask = subject.graphs.mask
    different = ~torch.eye(mask.shape[1], dtype=torch.bool)
    return mask[:, :, None] & mask[:, None, :] & different


def symmetric(values: Float[Tensor, "*b N N"]) -> Float[Tensor, "*b N N"]:
    """Both directions of an edge together."""
    return values + values.transpose(-1, -2)
