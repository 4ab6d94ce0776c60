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
from hepx.models.inputs import reflect, turned
from hepx.models.layers import MixtureOfExperts, SelfAttention

COUPLED = (
    1e-5  # share of the gradient's norm; float32 rounding of a vanishing gradient stays below, a real one far above
)
MOVED = 1e-3  # of the spread of the scores; rounding stays far below
MAX_EVENTS = 512
MIRRORS = {"phi_mirror": (1.0, 0.0), "eta_mirror": (0.0, 1.0)}  # as `reflect` is told: 0 changes the signs of η, of φ


def flaws(model: Model, graphs: GraphBatch) -> list[str]:
    """What is wrong with the model, judged on some events; the model and the random state are left as they were."""
    training, few = model.training, graphs[:MAX_EVENTS].to(next(model.parameters()).device)
    model.eval()
    with torch.random.fork_rng(devices=[]):
        found = [*_identical_experts(model), *_idle_router(model, few), *_flicker(model, few)]
        found += [
            *_no_self_loops(model, few),
            *_same_nodes(model, few),
            *_keys_unused(model),
            *_noise_of_a_batch(model),
        ]
        found += [*_order(model, few), *_azimuth(model, few), *_twice(few)]
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


def _keys_unused(model: Model) -> list[str]:
    attentions = [module for module in model.modules() if isinstance(module, SelfAttention)]
    if not any(attention.score_of_values for attention in attentions):
        return []
    return ["the attention scores are q·v: the keys that the network learns are never used"]


def _noise_of_a_batch(model: Model) -> list[str]:
    if not getattr(getattr(model, "settings", None), "batch_noise", False):
        return []
    return ["one draw of the routing noise for all nodes of a batch: it moves them all to the same expert"]


def _order(model: Model, graphs: GraphBatch) -> list[str]:
    """Swap two objects of one type; a model that knows objects by their places is not asked."""
    types = graphs.layout.types
    twins = next(((i, j) for j in range(len(types)) for i in range(j) if types[i] == types[j]), None)
    if twins is None or model.knows_places:
        return []
    order = list(range(len(types)))
    order[twins[0]], order[twins[1]] = twins[1], twins[0]
    moved = _moved(model, graphs, graphs.x[:, order], graphs.mask[:, order])
    if moved < MOVED:
        return []
    return [
        f"the same objects in another order move the score by {moved:.2f} of its spread: all objects of a complete "
        "graph are neighbours of all, so a positional code of it is arbitrary"
    ]


def symmetries(model: Model, graphs: GraphBatch) -> dict[str, float]:
    """How much the score moves, root mean square over its spread, when an event is turned about the beam by a quarter,
    and when the signs of all its φ or of all its η are changed. The first is 0 if no input holds an azimuth itself; the
    others are learned, or trained (train.reflections): collisions look the same in these mirrors, on average."""
    training, few = model.training, graphs[:MAX_EVENTS].to(next(model.parameters()).device)
    model.eval()
    mirrors = {name: few.x.new_tensor(which).expand(len(few), 2) for name, which in MIRRORS.items()}
    changed = {"rotation": turned(few, torch.pi / 2).x, **{name: reflect(few.x, u) for name, u in mirrors.items()}}
    with torch.random.fork_rng(devices=[]):
        found = {name: _moved(model, few, x, few.mask) for name, x in changed.items()}
    model.train(training)
    return found


def _azimuth(model: Model, graphs: GraphBatch) -> list[str]:
    moved = _moved(model, graphs, turned(graphs, torch.pi / 2).x, graphs.mask)
    if moved < MOVED:
        return []
    return [
        f"turning the whole event about the beam moves the score by {moved:.2f} of its spread: it looks at φ itself"
    ]


@torch.inference_mode()
def _moved(model: Model, graphs: GraphBatch, x: Tensor, mask: Tensor) -> float:
    """Root mean square change of the score, over its spread; what the model draws is the same for both."""
    scores = []
    for values, here in ((graphs.x, graphs.mask), (x, mask)):
        torch.manual_seed(1)
        scores.append(model(values, here, graphs.node_type).logits[:, -1])
    first, second = scores
    return float((second - first).square().mean().sqrt() / first.std().clamp(min=1e-12))


def _twice(graphs: GraphBatch) -> list[str]:
    index = graphs.object_index
    same = (index[:, :, None] == index[:, None, :]) & (index >= 0)[:, :, None]
    if not torch.triu(same, 1).any():
        return []
    return ["some objects stand in the graph twice: what one node means cannot be told from its twin"]


def _listed(numbers: list[int]) -> str:
    return " and ".join(str(number) for number in numbers)
