"""Network and gradient-boosted trees beside one another: what `hepx.closure` writes and the report reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hepx.results import Provenance, save_json
from hepx.results_network import from_json


@dataclass(frozen=True)
class Separation:
    """The weighted AUC of a classifier on the test events, or the difference of two (`minus`), with its bootstrap error
    from common replicas. `name`: network, trees, or both (trees on the observables and the network's score)."""

    name: str
    minus: str
    auc: float
    error: float


@dataclass(frozen=True)
class Usage:
    """How much of the score a player carries in the trees and in the network.

    kind: variable, object or pair; name: of the observable, or of one or two slots joined by a blank. trees, network,
    untrained: weighted mean |value| over the sum of those of all players of the kind, classes of equal weight; errors:
    bootstrap of events (and, for variables, donors). likeness: correlation of the two values from event to event inside
    the classes, 0 where one of them does not vary.
    """

    kind: str
    name: str
    trees: float
    trees_error: float
    network: float
    network_error: float
    untrained: float
    likeness: float
    likeness_error: float


@dataclass(frozen=True)
class Ranking:
    """Do trees and network rank the players of a kind alike? Spearman's ρ of the shares, with its bootstrap error.

    shuffled: 95th percentile of ρ when the players of the trees are shuffled; untrained: ρ of an untrained network.
    """

    kind: str
    rho: float
    error: float
    shuffled: float
    untrained: float


@dataclass(frozen=True)
class Fidelity:
    """How well something stands for a score: the share of the variance of the score that it explains (R²), on test
    events, classes of equal weight, with its bootstrap error."""

    name: str
    r2: float
    error: float


@dataclass(frozen=True)
class MeanAttribution:
    """Weighted mean attribution of an object over the events of a process, logit.

    where: all events, or a region; error: statistical, of events and draws. shifts: variation -> change of the mean
    over the events that both have, and its statistical error; up, down: the positive and the negative shifts, each
    added in quadrature; 0 without variations.
    """

    sample: str
    object: str
    where: str
    events: int
    mean: float
    error: float
    shifts: dict[str, tuple[float, float]]
    up: float
    down: float


@dataclass(frozen=True)
class Closure:
    """All of it; `num_events`: explained in the comparison of variables and objects. Empty lists where the run has no
    trees, or no Shapley values of objects."""

    information: list[Separation]
    usage: list[Usage]
    rankings: list[Ranking]
    fidelity: list[Fidelity]
    means: list[MeanAttribution]
    num_events: int
    provenance: Provenance

    def save(self, path: Path) -> None:
        """Write JSON."""
        save_json(self, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Inverse of `save`; ResultError if the file is of another kind or version."""
        rows = {"information": Separation, "usage": Usage, "rankings": Ranking, "fidelity": Fidelity}
        found: Self = from_json(cls, path, {**rows, "means": MeanAttribution})
        return found
