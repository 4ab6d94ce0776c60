"""What the experts do, by taking them away: knock-out, mean-ablation, swap, forced routing; and what an expert adds to
the score. A routing table describes; only these intervene."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from hepx.graph import GraphBatch
from hepx.interventions import (
    EVERYWHERE,
    Recorder,
    Referee,
    balanced_weight,
    mixture_names,
    mixtures,
    separated,
    spliced,
)
from hepx.models import Model
from hepx.models.layers import MixtureOfExperts
from hepx.probes import quantile_bins
from hepx.progress import track
from hepx.results_network import Carries, Effect

Array = npt.NDArray[Any]
MAX_SHIFTS = 3  # cyclic permutations tried in a swap
MAX_NODES = 8192  # whose expert outputs are compared
NUM_BINS, REPLICAS = 6, 100
PARAMETERS = ("w1", "b1", "w2", "b2")


# Changed models ---------------------------------------------------------------------------------------------------


def without(model: Model, layer: int, expert: int) -> Model:
    """The router of one layer cannot choose an expert and takes the next best instead.

    The layers before keep their routing; those after it choose again on what they get.
    """
    changed = copy.deepcopy(model).eval()
    mixtures(changed)[layer].selection_bias[expert] = -torch.inf
    return changed


def silenced(model: Model, layer: int, expert: int, output: Float[Tensor, "D"]) -> Model:
    """An expert that is chosen as before, but gives the same `output` to every node: its mean removes what it tells."""
    changed = copy.deepcopy(model).eval()
    mixture = separated(mixtures(changed)[layer])
    with torch.no_grad():
        mixture.w2[expert] = 0
        mixture.b2[expert] = output.to(mixture.b2)
    return changed


def swapped(model: Model, layer: int, shift: int) -> Model:
    """Each gate of one layer opens the expert `shift` places further."""
    changed = copy.deepcopy(model).eval()
    mixture = separated(mixtures(changed)[layer])
    with torch.no_grad():
        for name in PARAMETERS:
            parameter = getattr(mixture, name)
            parameter.copy_(parameter.roll(shift, 0))
    return changed


def forced(model: Model, layer: int, expert: int) -> Model:
    """Every node of one layer goes to one expert alone, with gate 1."""

    def only(h: Tensor, routing: Any, noise: Any) -> tuple[Any, ...]:
        del routing
        alone = torch.arange(num_experts, device=h.device) == expert
        return h, alone.expand(*h.shape[:-1], num_experts), noise

    name, num_experts = mixture_names(model)[layer], mixtures(model)[layer].num_experts
    return spliced(model, {name: only})


# Their effects ----------------------------------------------------------------------------------------------------


def interventions(model: Model, referee: Referee, means: Float[Tensor, "L X D"]) -> tuple[list[Effect], list[Array]]:
    """The effects of all changes; and for each knock-out [layer, expert] in order the changed scores [B].

    means: mean output of each expert over the nodes that use it.
    """
    effects: list[Effect] = []
    knocked: list[Array] = []
    layers = list(enumerate(mixtures(model)))
    with_choice = [(i, e) for i, mixture in layers for e in range(mixture.num_experts)]
    for layer, expert in track(with_choice, "experts", len(with_choice)):
        mixture = layers[layer][1]
        if mixture.num_experts > (1 if mixture.gate_kind == "soft" else mixture.top_k):
            knocked.append(referee.score(without(model, layer, expert)))
            effects += referee.effects("knock_out", layer, expert, [knocked[-1]])
        score = referee.score(silenced(model, layer, expert, means[layer, expert]))
        effects += referee.effects("mean_ablation", layer, expert, [score])
        effects += referee.effects("forced", layer, expert, [referee.score(forced(model, layer, expert))])
    for layer, mixture in layers:
        shifts = range(1, mixture.num_experts)[:: max(1, (mixture.num_experts - 1) // MAX_SHIFTS)][:MAX_SHIFTS]
        if shifts:
            scores = [referee.score(swapped(model, layer, shift)) for shift in shifts]
            effects += referee.effects("swap", layer, -1, scores)
    return effects, knocked


def carried(
    referee: Referee, needed: Sequence[Effect], scores: Sequence[Array], observables: dict[str, Array]
) -> list[Carries]:
    """For each needed expert and region the observable that score − score without the expert follows most, if it does
    more than a shuffled one. scores [B]: without the expert of each effect."""
    found = []
    for effect, score in zip(needed, scores, strict=True):
        inside = np.ones(len(score), dtype=bool) if effect.where == EVERYWHERE else referee.regions[effect.where]
        best = _best_observable(referee.reference - score, inside, referee.graphs, observables, referee.seed)
        if best is not None:
            found.append(Carries(effect.layer, effect.index, effect.where, *best))
    return found


def _best_observable(
    added: Array, inside: Array, graphs: GraphBatch, observables: dict[str, Array], seed: int
) -> tuple[str, float, float, float, list[str]] | None:
    """Observable, explained share, its error and null, and the rivals that cannot be told apart; None if none."""
    weight, process = np.maximum(balanced_weight(graphs), 0.0), graphs.sample.numpy()
    rng = np.random.default_rng([seed, 5])
    counts = rng.poisson(1.0, (REPLICAS, len(added)))
    values, replicas, nulls = {}, {}, {}
    for name, observable in observables.items():
        good = inside & np.isfinite(observable) & (weight > 0)
        if len(np.unique(observable[good])) < 2:
            continue
        bins, _ = quantile_bins(np.where(good, observable, np.nan), weight, NUM_BINS)
        part = (added[good], bins[good], process[good])
        values[name] = explained_share(*part, weight[good])
        replicas[name] = np.array([explained_share(*part, weight[good] * row[good]) for row in counts])
        permuted = [
            explained_share(part[0], _permuted(part[1], part[2], rng), part[2], weight[good]) for _ in range(20)
        ]
        nulls[name] = float(np.mean(permuted) + 2 * np.std(permuted))
    above = {name: value for name, value in values.items() if value > nulls[name]}
    if not above:
        return None
    best = max(above, key=lambda name: above[name])
    rivals = [
        name
        for name in above
        if name != best and above[best] - above[name] < 2 * float((replicas[best] - replicas[name]).std())
    ]
    return best, values[best], float(replicas[best].std()), nulls[best], rivals


def explained_share(values: Array, bins: Array, process: Array, weight: Array) -> float:
    """Share of the variance of values [n] inside each process that their bins explain; weights ≥ 0."""
    number = int(bins.max()) + 1
    cell = process * number + bins
    size = (int(process.max()) + 1) * number
    total, summed = np.bincount(cell, weight, size), np.bincount(cell, weight * values, size)
    weights, sums = (part.reshape(-1, number).sum(1) for part in (total, summed))
    mean = np.divide(sums, weights, out=np.zeros(len(sums)), where=weights > 0)
    cell_mean = np.divide(summed, total, out=np.zeros(size), where=total > 0)
    spread = float((weight * (values - mean[process]) ** 2).sum())
    between = float((total * (cell_mean - np.repeat(mean, number)) ** 2).sum())
    return between / spread if spread > 0 else 0.0


def _permuted(bins: Array, process: Array, rng: np.random.Generator) -> Array:
    """Bins permuted inside each process."""
    found = bins.copy()
    for one in np.unique(process):
        found[process == one] = rng.permutation(bins[process == one])
    return found


# Their outputs ----------------------------------------------------------------------------------------------------


def outputs(model: Model, graphs: GraphBatch) -> tuple[list[Array], Array, list[Array]]:
    """Per layer the outputs of all experts [n, X, D] and the gates [n, X] on present nodes; and each node's event [n].

    At most MAX_NODES nodes, those of the first events of a random order.
    """
    few = graphs
    if len(graphs) * graphs.mask.shape[1] > MAX_NODES:
        number = max(1, MAX_NODES // graphs.mask.shape[1])
        chosen = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(0))[:number]
        few = graphs[chosen.sort().values]
    else:
        chosen = torch.arange(len(graphs))
    recorder = Recorder(model, mixture_names(model))
    kept: list[list[Array]] = [[] for _ in mixtures(model)]
    gates: list[list[Array]] = [[] for _ in mixtures(model)]
    for batch, output in recorder.runs(few):
        for layer, (name, mixture) in enumerate(zip(mixture_names(model), mixtures(model), strict=True)):
            h = recorder.kept[name][0][batch.mask]
            with torch.inference_mode():
                kept[layer].append(expert_outputs(mixture, h).cpu().numpy())
            gates[layer].append(output.trace.gates[:, layer][batch.mask].cpu().numpy())
    event = chosen.sort().values.numpy()[np.nonzero(few.mask.numpy())[0]]
    return [np.concatenate(part) for part in kept], event, [np.concatenate(part) for part in gates]


def expert_outputs(mixture: MixtureOfExperts, h: Float[Tensor, "n D"]) -> Float[Tensor, "n X D"]:
    """What each expert would answer to each node."""
    hidden = mixture.activation(torch.einsum("nd,xdh->nxh", h, mixture.w1) + mixture.b1)
    found = torch.einsum("nxh,xhd->nxd", hidden, mixture.w2) + mixture.b2
    return found.expand(-1, mixture.num_experts, -1)


def similarity(answers: Float[np.ndarray, "n X D"], weight: Array) -> Array:
    """Linear CKA (arXiv:1905.00414) of the outputs of all experts [X, X] on the same nodes, weighted with |w|.

    1: one output is a rotation and scaling of the other; 0: they have nothing in common.
    """
    w = np.abs(weight) / np.abs(weight).sum()
    number, dim = answers.shape[1:]
    flat = answers.reshape(len(answers), -1).astype(np.float64)
    flat = (flat - w @ flat) * np.sqrt(w)[:, None]
    cross = (flat.T @ flat).reshape(number, dim, number, dim)
    squared = (cross**2).sum((1, 3))
    own = np.sqrt(np.diagonal(squared))
    product = np.outer(own, own)
    return np.divide(squared, product, out=np.zeros_like(squared), where=product > 0)


def distinct(mixture: MixtureOfExperts) -> int:
    """Number of experts with different weights."""
    flat = torch.cat([getattr(mixture, name).detach().flatten(1) for name in PARAMETERS], 1)
    return len(torch.unique(flat, dim=0))
