"""How many hidden units of an expert can be switched off before the classifier notices (arXiv:2509.00454).

Top-p rule: of each node's hidden units the fewest that hold a share p of the summed size stay, the rest is set to 0.
The critical sparsity is the largest share of units set to 0 with which 99 % of the AUC is left. Units count at the
objects that use the expert: what it makes of others goes nowhere. An expert that none uses needs none of its units.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

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


@dataclass(frozen=True)
class Scan:
    """Shares of units set to 0 [n], rising from 0, and the AUC with each, of all events and the replicas [n, 1 + R]."""

    shares: Array
    aucs: Array

    @property
    def curve(self) -> list[list[float]]:
        """[share, AUC, its error] of each point."""
        return [[float(s), float(a[0]), float(np.nanstd(a[1:]))] for s, a in zip(self.shares, self.aucs, strict=True)]

    @property
    def critical(self) -> tuple[float, float]:
        """Largest share that keeps 99 % of the AUC of the first point, and its error: spread of the replicas, and the
        step to the next share that was tried, /√12, in quadrature."""
        kept = self.aucs >= TOLERATED * self.aucs[0]
        largest = (kept * self.shares[:, None]).max(0)
        beyond = self.shares[self.shares > largest[0]]
        step = float(beyond.min() - largest[0]) if len(beyond) else 0.0
        drawn = largest[1:][np.isfinite(self.aucs[0, 1:])]
        return float(largest[0]), float(np.hypot(drawn.std() if len(drawn) else 0.0, step / 12**0.5))


def critical_sparsity(model: Model, referee: Referee, network: str, alone: bool = True) -> list[Sparsity]:
    """Of every layer, all experts at once (expert −1), then, if `alone`, of every expert alone. The referee is that of
    the model; network: what it is called."""
    found = []
    layers = list(enumerate(mixtures(model)))
    tried = [(i, e) for i, mixture in layers for e in (-1, *range(mixture.num_experts if alone else 0))]
    for layer, expert in track(tried, f"sparsity, {network}", len(tried)):
        random = functools.partial(random_share, generator=torch.Generator().manual_seed(referee.seed))
        off = _point(model, referee, layer, expert, torch.zeros_like)
        scans = [_scan(model, referee, layer, expert, switch, off) for switch in (top_p, random)]
        numbers = (*scans[0].critical, *scans[1].critical)
        found.append(Sparsity(network, layer, expert, *numbers, scans[0].curve))
    return found


def _scan(
    model: Model, referee: Referee, layer: int, expert: int, switch: Callable[..., Tensor], off: tuple[float, Array]
) -> Scan:
    """From nothing off to everything `off`; if that costs too much, the interval of the kept share p is halved towards
    where it begins to."""
    whole, replicas = referee.auc(referee.reference)
    points, low, high = [(0.0, np.array([whole, *replicas])), off], 0.0, 1.0
    for _ in range(STEPS if off[1][0] < TOLERATED * whole else 0):
        middle = (low + high) / 2
        points.append(_point(model, referee, layer, expert, functools.partial(switch, share=middle)))
        low, high = (low, middle) if points[-1][1][0] >= TOLERATED * whole else (middle, high)
    shares, aucs = (np.array(part) for part in zip(*points, strict=True))
    order = np.argsort(shares, kind="stable")
    return Scan(shares[order], aucs[order])


def _point(
    model: Model, referee: Referee, layer: int, expert: int, switch: Callable[[Tensor], Tensor]
) -> tuple[float, Array]:
    """Share of hidden units set to 0, and the AUC and its replicas [1 + R], with the units of an expert (−1: of all)
    switched."""
    counted = np.zeros(2)
    auc, replicas = referee.auc(referee.score(switched(model, layer, expert, switch, counted)))
    return float(counted[0] / counted[1]) if counted[1] else 1.0, np.array([auc, *replicas])


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
