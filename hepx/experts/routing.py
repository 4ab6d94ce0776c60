"""Who is sent to which expert: tables of the mean gate, information, load, co-activation; each beside null networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from hepx.experts.information import INTERVAL, Stratum, information, replicas
from hepx.graph import NODE_TYPES, GraphBatch
from hepx.interventions import balanced_weight
from hepx.models import Model, batches
from hepx.probes import quantile_bins
from hepx.progress import track
from hepx.results_network import Information, RoutingTable, finite

Array = npt.NDArray[Any]
DEAD = 0.01  # of an even share
CHANCE = 0.01


@dataclass(frozen=True)
class Variable:
    """A classification of the nodes: value [B, N] (−1: does not apply) and the names of the values; `of_events` if all
    nodes of an event have the same."""

    name: str
    value: Array
    rows: list[str]
    of_events: bool = True


@torch.inference_mode()
def gates_of(model: Model, graphs: GraphBatch) -> Float[Tensor, "B L N X"]:
    """Gates of all nodes, on the CPU; 0 for absent objects."""
    model.eval()
    device = next(model.parameters()).device
    parts = (part.to(device) for part in batches(graphs))
    return torch.cat([model(b.x, b.mask, b.node_type).trace.gates.cpu() for b in parts])


def variables(graphs: GraphBatch, score: Array, regions: Mapping[str, Array]) -> list[Variable]:
    """Everything the choice may depend on: type, slot, process, class, mass point, regions (name -> mask [B]), and
    quartiles of the score and of every observable that has at least two values."""
    layout, shape = graphs.layout, graphs.mask.shape
    types = sorted({NODE_TYPES.index(name) for name in layout.types})
    place = np.searchsorted(types, graphs.node_type.numpy())
    slots = np.broadcast_to(np.arange(shape[1]), shape)
    found = [
        Variable("type", place, [NODE_TYPES[i] for i in types], of_events=False),
        Variable("slot", slots, list(layout.slots), of_events=False),
        _of_events("process", graphs.sample.numpy(), list(layout.samples), shape),
        _of_events("class", graphs.y.numpy(), [f"class {i}" for i in range(layout.num_classes)], shape),
    ]
    found += _mass_points(graphs)
    for name, mask in regions.items():
        if not any(np.array_equal(~mask, other) for other in regions.values() if other is not mask) or mask[0]:
            found.append(_of_events(name, mask.astype(np.int64), [f"not {name}", name], shape))  # one of two opposites
    weight = np.abs(balanced_weight(graphs))
    quantities = {"score": score} | {n: graphs.observables[:, i].numpy() for i, n in enumerate(layout.observables)}
    for name, values in quantities.items():
        if name not in ("mass_chargino", "mass_lsp"):
            bins, rows = quantile_bins(values, weight)
            if len(rows) > 1:
                found.append(_of_events(name, bins, rows, shape))
    return found


def _of_events(name: str, value: Array, rows: list[str], shape: Sequence[int]) -> Variable:
    return Variable(name, np.broadcast_to(value[:, None], shape), rows)


def _mass_points(graphs: GraphBatch) -> list[Variable]:
    """The mass point of each signal event, where the files hold it."""
    if not {"mass_chargino", "mass_lsp"} <= set(graphs.layout.observables):
        return []
    points = np.stack([graphs.observable(name).numpy() for name in ("mass_chargino", "mass_lsp")], 1)
    known = np.isfinite(points).all(1) & (graphs.y.numpy() == 1)
    if len(np.unique(points[known], axis=0)) < 2:
        return []
    values, index = np.unique(points[known], axis=0, return_inverse=True)
    code = np.full(len(points), -1)
    code[known] = index.reshape(-1)
    return [_of_events("mass point", code, [f"{a:g}, {b:g} GeV" for a, b in values], graphs.mask.shape)]


def routing_table(
    variable: Variable, gates: tuple[Tensor, Tensor | None, Tensor | None], graphs: GraphBatch
) -> RoutingTable:
    """Weighted mean gates in the rows of a variable, of the network, an untrained one and a shuffled one (or None)."""
    weight = balanced_weight(graphs)
    mean, error = mean_gates(gates[0], variable, graphs, weight)
    null, shuffled = (None if g is None else finite(mean_gates(g, variable, graphs, weight)[0]) for g in gates[1:])
    return RoutingTable(variable.name, variable.rows, finite(mean), finite(error), null, shuffled)


def mean_gates(
    gates: Float[Tensor, "B L N X"], variable: Variable, graphs: GraphBatch, weight: Array
) -> tuple[Array, Array]:
    """Weighted mean gate [L, G, X] in each row and its error √Σw²(g−ḡ)² / |Σw|; NaN where no weight is."""
    flat = gates.double().transpose(1, 2).flatten(0, 1).numpy()  # [B N, L, X]
    w = np.where(graphs.mask.numpy(), weight[:, None], 0.0).reshape(-1)
    value = np.array(variable.value).reshape(-1)
    number, shape = len(variable.rows), flat.shape[1:]
    mean, error = np.full((number, *shape), np.nan), np.full((number, *shape), np.nan)
    for row in range(number):
        chosen = (value == row) & (w != 0)
        total = w[chosen].sum()
        if total > 0:
            mean[row] = np.tensordot(w[chosen], flat[chosen], 1) / total
            error[row] = np.sqrt(np.tensordot(w[chosen] ** 2, (flat[chosen] - mean[row]) ** 2, 1)) / total
    return mean.transpose(1, 0, 2), error.transpose(1, 0, 2)


def per_process(gates: Float[Tensor, "B L N X"], types: Variable, graphs: GraphBatch) -> Array:
    """Mean gates [P, L, T, X] by type in each process; 0 where a process has no such node."""
    weight, sample = graphs.weight.double().numpy(), graphs.sample.numpy()
    tables = [
        mean_gates(gates, types, graphs, np.where(sample == i, weight, 0.0))[0]
        for i in range(len(graphs.layout.samples))
    ]
    return np.nan_to_num(np.stack(tables))


def load_of(gates: Float[Tensor, "B L N X"], graphs: GraphBatch) -> Array:
    """Share of all gates that each expert has [L, X]."""
    weight = torch.from_numpy(balanced_weight(graphs))[:, None, None, None]
    total = (gates.double() * weight).sum((0, 2)).clamp(min=0)
    return (total / total.sum(-1, keepdim=True)).numpy()


def load_entropy(load: Array) -> list[float]:
    """Entropy of the load over ln X [L]; 1 where there is one expert only."""
    if load.shape[1] == 1:
        return [1.0] * len(load)
    logs = np.log(np.where(load > 0, load, 1.0))
    return [float(value) for value in -(load * logs).sum(1) / np.log(load.shape[1])]


def dead_experts(load: Array) -> list[list[int]]:
    """[layer, expert] of the experts with less than 1 % of an even share."""
    return [[int(i), int(e)] for i, e in zip(*np.nonzero(load < DEAD / load.shape[1]), strict=True)]


def coactivation(gates: Float[Tensor, "B L N X"], graphs: GraphBatch) -> tuple[Array, Array]:
    """Share of the nodes [L, X, X] that use both experts (diagonal: that use it), and the product of the two shares."""
    weight = torch.from_numpy(balanced_weight(graphs))[:, None] * graphs.mask
    used = (gates > 0).double()
    both = torch.einsum("bn,blnx,blny->lxy", weight, used, used) / weight.sum()
    share = both.diagonal(dim1=-2, dim2=-1)
    return both.numpy(), (share[:, :, None] * share[:, None]).numpy()


def information_table(
    found: Sequence[Variable],
    gates: Float[Tensor, "B L N X"],
    nulls: Sequence[Float[Tensor, "B L N X"]],
    graphs: GraphBatch,
    seed: int,
) -> list[Information]:
    """I(expert; variable) of every layer and variable and its excess over the largest null.

    Variables of the event are taken at fixed slot: slots differ in everything, and would dominate.
    """
    wanted = [variable for variable in found if variable.name != "slot"]
    return [
        _information(variable, layer, gates, nulls, graphs, seed)
        for variable in track(wanted, "information", len(wanted))
        for layer in range(gates.shape[1])
    ]


def _information(
    variable: Variable, layer: int, gates: Tensor, nulls: Sequence[Tensor], graphs: GraphBatch, seed: int
) -> Information:
    mine = _strata(variable, layer, gates, graphs)
    others = [_strata(variable, layer, null, graphs) for null in nulls]
    value, values = information(mine), [information(strata) for strata in others]
    drawn = replicas(mine, len(graphs), seed)
    largest = int(np.argmax(values))
    spread = float((drawn - replicas(others[largest], len(graphs), seed)).std())
    excess = value - values[largest]
    limits = (excess - INTERVAL * spread, excess + INTERVAL * spread)
    given = "slot" if variable.of_events else ""
    error = float(drawn.std())
    return Information(layer, variable.name, given, value, error, values, null_limit(values), excess, *limits)


def null_limit(values: Sequence[float]) -> float:
    """What the next of these values exceeds with 1 % probability: mean + t σ √(1 + 1/n), Student's t for a small n.

    >>> round(null_limit([0.01, 0.02, 0.01, 0.02]), 3)
    0.044
    """
    number = len(values)
    quantile = stdtrit(number - 1, 1 - CHANCE)
    return float(np.mean(values) + quantile * np.std(values, ddof=1) * np.sqrt(1 + 1 / number))


def _strata(variable: Variable, layer: int, gates: Tensor, graphs: GraphBatch) -> list[Stratum]:
    """One stratum per slot for a variable of events, one of all nodes for a variable of nodes; a slot in which the
    signed weights add up to nothing is left out."""
    weight = balanced_weight(graphs)
    mask, value = graphs.mask.numpy(), np.asarray(variable.value)
    choices = gates[:, layer].numpy()
    good = mask & (value >= 0) & (choices.sum(-1) > 0)
    event, slot = np.nonzero(good)
    groups = [slot == s for s in np.unique(slot)] if variable.of_events else [np.ones(len(slot), dtype=bool)]
    found = []
    for group in groups:
        e, s = event[group], slot[group]
        if weight[e].sum() > 0:
            soft = choices[e, s] / choices[e, s].sum(-1, keepdims=True)
            found.append(Stratum(soft, value[e, s], weight[e], e))
    return found
