"""How many hidden units of an expert can be switched off before the classifier notices (arXiv:2509.00454).

Top-p rule: of each node's hidden units the fewest that hold a share p of the summed size stay, the rest is set to 0.
The critical sparsity is the largest share of units set to 0 with which 99 % of the AUC is left. Units count at the
objects that use the expert: what it makes of others goes nowhere. An expert that none uses needs none of its units.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from hepx import metrics
from hepx.interventions import Referee, mixtures, separated
from hepx.models import Model
from hepx.progress import track
from hepx.results_network import Sparsity

Array = npt.NDArray[Any]
STEPS = 5  # halvings of the interval in which the critical point lies
TOLERATED = 0.99  # of the AUC


def top_p(hidden: Float[Tensor, "*n H"], share: float) -> Float[Tensor, "*n H"]:
    """The fewest units of each row that hold `share` of its summed |activation|; the others are 0."""
    size, order = hidden.abs().sort(-1, descending=True)
    before = size.cumsum(-1) - size
    stays = before < share * size.sum(-1, keepdim=True)
    return hidden * torch.zeros_like(hidden).scatter(-1, order, stays.to(hidden.dtype))


def random_share(hidden: Float[Tensor, "*n H"], share: float, generator: torch.Generator) -> Float[Tensor, "*n H"]:
    """The control: a random set of a `share` of each row's units stays."""
    number = round((1 - share) * hidden.shape[-1])
    order = torch.rand(hidden.shape, generator=generator).to(hidden.device).argsort(-1)
    return hidden * (order >= number)


def critical_sparsity(model: Model, referee: Referee) -> list[Sparsity]:
    """Of every layer, all experts at once (expert −1), then of every expert alone."""
    found = []
    layers = list(enumerate(mixtures(model)))
    tried = [(i, e) for i, mixture in layers for e in (-1, *range(mixture.num_experts))]
    for layer, expert in track(tried, "sparsity", len(tried)):
        random = torch.Generator().manual_seed(referee.seed)
        curve = _scan(model, referee, layer, expert, top_p)
        control = _scan(model, referee, layer, expert, functools.partial(random_share, generator=random))
        found.append(Sparsity(layer, expert, critical(curve), critical(control), curve))
    return found


def _scan(model: Model, referee: Referee, layer: int, expert: int, switch: Callable[..., Tensor]) -> list[list[float]]:
    """[share of units set to 0, AUC], by rising share: everything off; if that costs too much, the interval of the kept
    share p is halved towards where it begins to."""
    whole = metrics.auc(referee.y, referee.reference, referee.weight)
    points, low, high = [[0.0, whole]], 0.0, 1.0
    points.append(_point(model, referee, layer, expert, torch.zeros_like))
    for _ in range(STEPS if points[-1][1] < TOLERATED * whole else 0):
        middle = (low + high) / 2
        points.append(_point(model, referee, layer, expert, functools.partial(switch, share=middle)))
        low, high = (low, middle) if points[-1][1] >= TOLERATED * whole else (middle, high)
    return sorted(points)


def critical(curve: list[list[float]]) -> float:
    """Largest share of units set to 0 that keeps 99 % of the AUC of the first point."""
    return max(share for share, auc in curve if auc >= TOLERATED * curve[0][1])


def _point(model: Model, referee: Referee, layer: int, expert: int, switch: Callable[[Tensor], Tensor]) -> list[float]:
    """[share of hidden units set to 0, AUC] with the units of an expert (−1: of all) switched."""
    counted = np.zeros(2)
    auc = metrics.auc(referee.y, referee.score(switched(model, layer, expert, switch, counted)), referee.weight)
    return [float(counted[0] / counted[1]) if counted[1] else 1.0, auc]


def switched(model: Model, layer: int, expert: int, switch: Callable[[Tensor], Tensor], counted: Array) -> Model:
    """A copy in which hidden units [n, H] pass through `switch`; `counted` gets the units turned off and all, at the
    objects that use the expert."""
    changed = copy.deepcopy(model).eval()
    mixture: Any = separated(mixtures(changed)[layer])
    plain, number = mixture.activation, mixture.num_experts
    seen: dict[str, Tensor] = {}

    def experts(h: Tensor, gates: Tensor) -> Tensor:
        seen["used"] = (gates > 0) & seen["mask"][..., None]
        found: Tensor = mixture._dense(h, gates)
        return found

    def activation(flat: Tensor) -> Tensor:
        hidden = plain(flat).unflatten(-1, (number, -1))
        chosen = torch.ones(number, dtype=torch.bool, device=flat.device)
        if expert >= 0:
            chosen = torch.arange(number, device=flat.device) == expert
        new = torch.where(chosen[:, None], switch(hidden), hidden)
        active = (hidden != 0) & seen["used"][..., None]
        counted[0] += float(((new == 0) & active)[..., chosen, :].sum())
        counted[1] += float(active[..., chosen, :].sum())
        return new.flatten(-2)

    mixture.activation = activation
    mixture.experts = experts  # all experts' units at once; the grouped way gives the same
    changed.register_forward_pre_hook(lambda _, inputs: seen.update(mask=inputs[1]))
    return changed
