"""Links between attributions and physics observables: does the attribution of the b-jets follow m_bb?

Everything is computed from a saved Explanation; the null shuffles the observable among the events.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hepx.kinematics import OBSERVABLES
from hepx.results import Explanation, ObservableLink

Array = npt.NDArray[np.float64]
BINS = 10
REPLICAS = 200


def observable_links(explanation: Explanation, seed: int = 0) -> list[ObservableLink]:
    """Strength of the link of every observable that varies and is defined, strongest first.

    The strength is the standard deviation over ten equally filled bins of the observable of the weighted mean summed
    attribution of its objects, in logits. Negative weights keep their sign in the means; a bin without positive total
    weight is left out.
    """
    links = [_link(explanation, name, np.random.default_rng(seed)) for name in OBSERVABLES]
    return sorted((link for link in links if link is not None), key=lambda link: -link.strength)


def _link(explanation: Explanation, name: str, rng: np.random.Generator) -> ObservableLink | None:
    events = explanation.events
    types = OBSERVABLES[name].types
    slots = [i for i, kind in enumerate(events.types) if kind in types]
    values = events.observable(name)
    known = np.isfinite(values)
    if not slots or known.sum() < 2 * BINS or len(np.unique(values[known])) < 2:
        return None
    summed = explanation.values[known][:, slots].sum(1)
    weight, values = events.weight[known], values[known]
    number = _bins(values)
    shuffled = [_strength(rng.permutation(number), summed, weight) for _ in range(REPLICAS)]
    index = np.arange(len(values))
    drawn = [rng.choice(index, len(index)) for _ in range(REPLICAS)]
    spread = np.std([_strength(number[i], summed[i], weight[i]) for i in drawn])
    strength = _strength(number, summed, weight)
    objects = tuple(events.slots[i] for i in slots)
    return ObservableLink(name, objects, strength, float(spread), float(np.percentile(shuffled, 95)))


def _bins(values: Array) -> npt.NDArray[np.int64]:
    """Number of the equally filled bin of each event; repeated edges (integers) are merged."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right").astype(np.int64)


def _strength(number: npt.NDArray[np.int64], summed: Array, weight: Array) -> float:
    total = np.bincount(number, weight, BINS)
    good = total > 0
    mean = np.bincount(number, weight * summed, BINS)[good] / total[good]
    share = total[good] / total[good].sum()
    return float(np.sqrt((share * (mean - (share * mean).sum()) ** 2).sum()))
