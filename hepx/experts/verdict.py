"""What the numbers allow to say about the experts, in words.

Two things must come together. The choice of expert must tell something beyond what null networks' choices tell, and
exchanging the experts must cost AUC: a router may sort the nodes although its experts behave alike, and experts may
differ although nobody is sorted by anything that a physicist would name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from hepx.experts.information import INTERVAL
from hepx.interventions import EVERYWHERE
from hepx.results_network import Carries, Effect, Information

CHANCE = 0.01  # that noise alone passes any of the tests made
SMALLEST_BITS = 0.01  # information beyond the null below this is not worth a word
SELECTIVE = 0.5
SAME = 1 - 1e-6  # of CKA


@dataclass(frozen=True)
class Facts:
    """What a verdict is made of; see `ExpertReport`. similarity: smallest CKA of two experts of each layer; null_auc:
    largest distance of a null network's AUC from 1/2."""

    distinct: Sequence[int]
    similarity: Sequence[float]
    information: Sequence[Information]
    effects: Sequence[Effect]
    carries: Sequence[Carries]
    auc: float
    null_auc: float


def threshold(number: int) -> float:
    """Standard deviations that noise passes in one of `number` looks with 1 % probability (one-sided, Bonferroni).

    >>> round(threshold(1), 2), round(threshold(60), 2)
    (2.33, 3.59)
    """
    return NormalDist().inv_cdf(1 - CHANCE / max(1, number))


def needed(effects: Sequence[Effect]) -> list[Effect]:
    """The knock-outs that cost AUC beyond chance, in all events or in one region and there only: worst first.

    A region counts if the AUC is lost there and not outside (selectivity above ½ by a standard deviation).
    """
    looks = [effect for effect in effects if effect.kind == "knock_out"]
    limit = threshold(len(looks))
    found = []
    for effect in looks:
        if effect.significance() <= limit or effect.where not in (EVERYWHERE, *_regions(looks)):
            continue
        lower = (effect.selectivity or 0.0) - (effect.selectivity_error or 0.0)
        if effect.where == EVERYWHERE or lower > SELECTIVE:
            found.append(effect)
    return sorted(found, key=lambda effect: effect.delta_auc or 0.0)


def _regions(effects: Sequence[Effect]) -> set[str]:
    return {effect.where for effect in effects if effect.outside is not None}


def exceeding(information: Sequence[Information]) -> list[Information]:
    """What a choice tells at fixed slot beyond any null network, these and the next: largest excess first.

    The excess over the largest null has to be beyond the statistics of the events, for the number of looks, and the
    value beyond what the spread of the null networks allows. The type does not count: the router is given it.
    """
    looks = [one for one in information if one.given == "slot"]
    limit = threshold(len(looks)) / INTERVAL
    told = [
        one
        for one in looks
        if one.excess > max(SMALLEST_BITS, limit * (one.excess - one.low)) and one.value > one.null_limit
    ]
    return sorted(told, key=lambda one: -one.excess)


def verdict(facts: Facts) -> str:
    """The sentence."""
    same = [i for i, number in enumerate(facts.distinct) if number == 1 or facts.similarity[i] > SAME]
    if len(same) == len(facts.distinct):
        return "experts identical: the mixture is one dense network, whatever the router does"
    swaps = [effect for effect in facts.effects if effect.kind == "swap" and effect.where == EVERYWHERE]
    limit = threshold(len(swaps))
    differing = [effect.layer for effect in swaps if effect.significance() > limit]
    told = exceeding(facts.information)
    if abs(facts.auc - 0.5) <= facts.null_auc:
        return "no functional specialization: the classifier separates the classes no better than a null network"
    if not differing:
        text = "no functional specialization: exchanging the experts costs nothing measurable"
        return text + (f", although the choice of expert tells {_told(told)}" if told else "")
    here = [one for one in told if one.layer in differing]
    if not here:
        return (
            f"no functional specialization: the experts of layer {_numbers(differing)} differ, because exchanging them "
            "costs AUC, but the choice of expert tells nothing that a null network's does not"
        )
    return "; ".join([f"the experts of layer {_numbers(differing)} differ in function", *_sentences(facts, here)])


def _sentences(facts: Facts, told: Sequence[Information]) -> list[str]:
    """One per needed expert; then what the choice tells."""
    found, seen = [], set()
    for effect in needed(facts.effects):
        key = (effect.layer, effect.index)
        if key not in seen:
            seen.add(key)
            found.append(_carried(effect, facts.carries))
    if not found:
        found.append("no single expert is needed: the others take over")
    return [*found[:4], f"the choice tells {_told(told)}"]


def _carried(effect: Effect, carries: Sequence[Carries]) -> str:
    """`expert 2 of layer 1 carries mbb in 2-jet events`, with what its loss costs."""
    who = f"expert {effect.index + 1} of layer {effect.layer + 1}"
    where = "" if effect.where == EVERYWHERE else f" in events {effect.where}"
    cost = f"(without it the AUC there changes by {effect.delta_auc:+.4f} ± {effect.error:.4f})"
    key = (effect.layer, effect.index, effect.where)
    what = next((one for one in carries if (one.layer, one.expert, one.where) == key), None)
    if what is None:
        return f"{who} is needed{where} {cost}"
    names = " or ".join([what.observable, *what.rivals[:2]])
    return f"{who} carries {names}{where} {cost}"


def _told(information: Sequence[Information]) -> str:
    parts = [
        f"{one.about} ({one.excess:.2f} bit beyond the nulls, layer {one.layer + 1})" for one in _strongest(information)
    ]
    return ", ".join(parts)


def _strongest(information: Sequence[Information]) -> list[Information]:
    """The strongest of each variable, at most three."""
    best: dict[str, Information] = {}
    for one in information:
        best.setdefault(one.about, one)
    return list(best.values())[:3]


def _numbers(layers: Sequence[int]) -> str:
    return " and ".join(str(layer + 1) for layer in np.unique(layers))
