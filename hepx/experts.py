"""What the experts of a mixture do: who is sent to whom (with the null of an untrained router), and does it matter.

Routing tables describe; knock-out and swap intervene. Type-specialised routing needs no learning, because the node
type is an input of the router, so a table without its null says nothing, and a verdict needs the interventions too.
"""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hepx import metrics
from hepx.graph import NODE_TYPES, GraphBatch
from hepx.models import Model, batches, predict
from hepx.models.layers import MixtureOfExperts
from hepx.progress import track
from hepx.results import Change, ExpertReport, Provenance

Array = npt.NDArray[np.float64]
REPLICAS = 100
SIGNIFICANT = 3.0  # standard deviations; a dozen interventions are looked at, so two would be too few
SPECIALIZED_BITS = 0.05  # information beyond the null below this is not called specialization


def expert_report(
    model: Model, untrained: Model, graphs: GraphBatch, target: int, seed: int, provenance: Provenance
) -> ExpertReport | None:
    """Tables, information and interventions on the given events; None for a model without experts."""
    layers = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    if not layers:
        return None
    routing, null = _routing_table(model, graphs), _routing_table(untrained, graphs)
    knock_out, swap = _interventions(model, graphs, target, seed)
    distinct = [_distinct(layer) for layer in layers]
    present = sorted({NODE_TYPES.index(name) for name in graphs.layout.types})
    information = [_information(table) for table in (routing, null)]
    total = routing.sum((0, 2))
    return ExpertReport(
        routing=_normalised(routing)[:, :, present].tolist(),
        routing_null=_normalised(null)[:, :, present].tolist(),
        load=(total / total.sum(-1, keepdims=True)).tolist(),
        information_type=information[0][0],
        information_type_null=information[1][0],
        information_process=information[0][1],
        information_process_null=information[1][1],
        knock_out=knock_out,
        swap=swap,
        distinct_experts=distinct,
        node_types=[NODE_TYPES[i] for i in present],
        sample_names=list(graphs.layout.samples),
        verdict=_verdict(distinct, information, knock_out, swap),
        provenance=provenance,
    )


@torch.inference_mode()
def _routing_table(model: Model, graphs: GraphBatch) -> Array:
    """Sum of weight × gate [P, L, T, X] over the nodes of a process and type; a negative total counts as zero."""
    model.eval()
    device = next(model.parameters()).device
    cells = len(graphs.layout.samples) * len(NODE_TYPES)
    table: Tensor | None = None
    for batch in (part.to(device) for part in batches(graphs)):
        gates = model(batch.x, batch.mask, batch.node_type).trace.gates.double()
        cell = batch.sample[:, None] * len(NODE_TYPES) + batch.node_type
        weighted = (gates * batch.weight[:, None, None, None]).transpose(1, 2).flatten(0, 1)
        if table is None:
            table = torch.zeros(cells, *weighted.shape[1:], dtype=torch.float64, device=device)
        table.index_add_(0, cell.flatten(), weighted)
    assert table is not None
    samples = len(graphs.layout.samples)
    return table.cpu().clamp(min=0).unflatten(0, (samples, len(NODE_TYPES))).transpose(1, 2).numpy()


def _normalised(table: Array) -> Array:
    total = table.sum(-1, keepdims=True)
    return np.divide(table, total, out=np.zeros_like(table), where=total > 0)


def _information(table: Array) -> tuple[list[float], list[float]]:
    """I(expert; node type) and I(expert; process | node type) per layer, in bit, every process given equal weight."""
    share = table / table.sum((2, 3), keepdims=True)
    types = [mutual_information(share[:, layer].sum(0)) for layer in range(table.shape[1])]
    process = []
    for layer in range(table.shape[1]):
        joint = share[:, layer] / share[:, layer].sum()
        per_type = [
            joint[:, t].sum() * mutual_information(joint[:, t]) for t in range(table.shape[2]) if joint[:, t].sum() > 0
        ]
        process.append(float(sum(per_type)))
    return types, process


def mutual_information(joint: Array) -> float:
    """Mutual information in bit of a table of non-negative weights.

    >>> mutual_information(np.eye(2))
    1.0
    """
    p = joint / joint.sum()
    independent = p.sum(0, keepdims=True) * p.sum(1, keepdims=True)
    good = p > 0
    return float((p[good] * np.log2(p[good] / independent[good])).sum())


def _interventions(model: Model, graphs: GraphBatch, target: int, seed: int) -> tuple[list[Change], list[Change]]:
    """Knock-out of every expert and cyclic swaps of every layer, as ΔAUC with paired bootstrap errors."""
    y = (graphs.y == target).numpy().astype(np.int64)
    weight = graphs.weight.numpy()
    reference = predict(model, graphs, target).numpy()
    replicas = metrics.bootstrap_auc(y, reference, weight, REPLICAS, seed)

    def change(layer: int, expert: int, scores: list[Array]) -> Change:
        delta = np.mean([metrics.auc(y, s, weight) for s in scores]) - metrics.auc(y, reference, weight)
        spread = np.mean([metrics.bootstrap_auc(y, s, weight, REPLICAS, seed) for s in scores], axis=0) - replicas
        return Change(layer, expert, float(delta), float(spread.std()))

    layers = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    knock_out, swap = [], []
    for layer, moe in track(list(enumerate(layers)), "experts", len(layers)):
        if moe.num_experts > moe.top_k:
            tried = range(moe.num_experts)
            knock_out += [change(layer, e, [_without(model, graphs, target, layer, e)]) for e in tried]
        shifts = range(1, moe.num_experts)
        if shifts:
            swap.append(change(layer, -1, [_swapped(model, graphs, target, layer, shift) for shift in shifts]))
    return knock_out, swap


@torch.inference_mode()
def _without(model: Model, graphs: GraphBatch, target: int, layer: int, expert: int) -> Array:
    """Scores when the router of one layer cannot choose an expert and takes the next best instead.

    The layers before keep their routing; those after it choose again on what they get.
    """
    changed = copy.deepcopy(model).eval()
    moe = [module for module in changed.modules() if isinstance(module, MixtureOfExperts)][layer]
    moe.selection_bias[expert] = -torch.inf
    return predict(changed, graphs, target).numpy()


@torch.inference_mode()
def _swapped(model: Model, graphs: GraphBatch, target: int, layer: int, shift: int) -> Array:
    """Scores when each gate of one layer opens the expert `shift` places further."""
    changed = copy.deepcopy(model).eval()
    moe = [module for module in changed.modules() if isinstance(module, MixtureOfExperts)][layer]
    for parameter in (moe.w1, moe.b1, moe.w2, moe.b2):
        parameter.copy_(parameter.roll(shift, 0))
    return predict(changed, graphs, target).numpy()


def _distinct(layer: MixtureOfExperts) -> int:
    """Number of experts with different weights."""
    flat = torch.cat([tensor.detach().flatten(1) for tensor in (layer.w1, layer.b1, layer.w2, layer.b2)], 1)
    return len(torch.unique(flat, dim=0))


def _verdict(
    distinct: list[int], information: list[tuple[list[float], list[float]]], knock_out: list[Change], swap: list[Change]
) -> str:
    """What the numbers allow to say: needs information beyond the null and an intervention that costs AUC."""
    if max(distinct) == 1:
        return "the experts are identical: the mixture is one dense network"
    matters = [change.layer for change in swap if -change.delta_auc > SIGNIFICANT * change.error]
    if not matters:
        return "no functional specialization: swapping the experts changes nothing measurable"
    by_type, by_process = (
        [layer for layer in matters if information[0][kind][layer] - information[1][kind][layer] > SPECIALIZED_BITS]
        for kind in (0, 1)
    )
    text = f"the experts of layer {_numbers(matters)} differ in function (swapping them costs AUC)"
    worst = min(knock_out, key=lambda change: change.delta_auc, default=None)
    if worst is not None and -worst.delta_auc > SIGNIFICANT * worst.error:
        text += (
            f"; the single most needed one is expert {worst.expert + 1} of layer {worst.layer + 1} "
            f"(its loss costs {-worst.delta_auc:.4f} ± {worst.error:.4f} of AUC)"
        )
    if by_process:
        return text + f"; in layer {_numbers(by_process)} the choice also depends on the process"
    if by_type:
        return text + "; the choice follows the object type more than an untrained router's, not the process"
    return text + "; the choice tells no more about object type or process than an untrained router's"


def _numbers(layers: list[int]) -> str:
    return " and ".join(str(layer + 1) for layer in layers)
