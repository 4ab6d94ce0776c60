"""Does a model do what its name says? Checks of the flaws found in public code, by running the model.

A flaw is a sentence for a report; an empty list means that none of the known ones is there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hepx.graph import GraphBatch
from hepx.models.base import Model, predict
from hepx.models.gcn import GCN
from hepx.models.layers import MixtureOfExperts

COUPLED = (
    1e-5  # share of the gradient's norm; float32 rounding of a vanishing gradient stays below, a real one far above
)
MAX_EVENTS = 512


def flaws(model: Model, graphs: GraphBatch) -> list[str]:
    """What is wrong with the model, judged on some events; the model and the random state are left as they were."""
    training, few = model.training, graphs[:MAX_EVENTS].to(next(model.parameters()).device)
    model.eval()
    with torch.random.fork_rng(devices=[]):
        found = [*_identical_experts(model), *_idle_router(model, few), *_flicker(model, few)]
        found += [*_no_self_loops(model, few), *_same_nodes(model, few)]
    model.train(training)
    return found


def _mixtures(model: Model) -> list[MixtureOfExperts]:
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts) and module.num_experts > 1]


def _identical_experts(model: Model) -> list[str]:
    same = [
        i + 1
        for i, moe in enumerate(_mixtures(model))
        if all(torch.equal(p, p[:1].expand_as(p)) for p in (moe.w1, moe.b1, moe.w2, moe.b2))
    ]
    if not same:
        return []
    return [f"identical experts in layer {_listed(same)}: the mixture is one dense network, whatever the router does"]


def _idle_router(model: Model, graphs: GraphBatch) -> list[str]:
    mixtures = _mixtures(model)
    if not mixtures:
        return []
    logits = model(graphs.x, graphs.mask, graphs.node_type).logits
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(functional.cross_entropy(logits, graphs.y), parameters, allow_unused=True)
    norms = {id(p): 0.0 if g is None else float(g.norm()) for p, g in zip(parameters, gradients, strict=True)}
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    shares = [norms[id(moe.router.weight)] / total if total else 0.0 for moe in mixtures]
    idle = [i + 1 for i, share in enumerate(shares) if share < COUPLED]
    if not idle:
        return []
    worst = max(shares[i - 1] for i in idle)
    return [
        f"the task gives the router of layer {_listed(idle)} no gradient ({worst:.1e} of its norm): "
        "the expert choice is shaped by the balance loss alone"
    ]


def _flicker(model: Model, graphs: GraphBatch) -> list[str]:
    torch.manual_seed(1)
    first, second = predict(model, graphs), predict(model, graphs)
    if torch.equal(first, second):
        return []
    ratio = float((first - second).std() / 2**0.5 / first.std().clamp(min=1e-12))
    return [
        f"two evaluations of one event differ by {ratio:.2f} of the spread of the scores: a positional code with "
        "random signs in a degenerate space"
    ]


@torch.inference_mode()
def _no_self_loops(model: Model, graphs: GraphBatch) -> list[str]:
    attention = model(graphs.x, graphs.mask, graphs.node_type).trace.attention
    if attention.numel() == 0 or attention.diagonal(dim1=-2, dim2=-1).any():
        return []
    return ["no self-loops: an object never attends to itself, so the zero diagonal of the attention is not learned"]


@torch.inference_mode()
def _same_nodes(model: Model, graphs: GraphBatch) -> list[str]:
    if not isinstance(model, GCN):
        return []
    h: Tensor = model.nodes(graphs.x, graphs.mask, graphs.node_type)
    first = torch.gather(h, 1, graphs.mask.int().argmax(1)[:, None, None].expand(-1, 1, h.shape[-1]))
    spread = ((h - first) * graphs.mask[..., None]).abs().max()
    if spread > COUPLED * h.abs().max():
        return []
    return ["degenerate graph convolution: a complete graph with self-loops maps all nodes to the same vector"]


def _listed(numbers: list[int]) -> str:
    return " and ".join(str(number) for number in numbers)
