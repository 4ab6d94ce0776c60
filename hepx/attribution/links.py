"""Links between attributions and physics observables: does the attribution of the b-jets follow m_bb?

Everything is computed from a saved Explanation, inside each process: signal and background differ in every observable
and in every attribution, so a link over both would say nothing. The null shuffles the observable inside each process.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hepx.kinematics import OBSERVABLES
from hepx.results import Explanation, ObservableLink

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
BINS = 10
REPLICAS = 200


def observable_links(explanation: Explanation, seed: int = 0) -> list[ObservableLink]:
    """Strength of the link of every observable that varies and is defined, strongest first.

    Inside each process: the standard deviation, over ten equally filled bins of the observable, of the weighted mean
    summed attribution of its objects; over the processes: the root mean square. In logits. Negative weights keep their
    sign in the means; a bin without positive total weight is left out.
    """
    links = [_link(explanation, name, np.random.default_rng(seed)) for name in OBSERVABLES]
    return sorted((link for link in links if link is not None), key=lambda link: -link.strength)


def _link(explanation: Explanation, name: str, rng: np.random.Generator) -> ObservableLink | None:
    events = explanation.events
    slots = [i for i, kind in enumerate(events.types) if kind in OBSERVABLES[name].types]
    values, known = events.observable(name), np.isfinite(events.observable(name))
    samples = [np.flatnonzero(known & (events.sample == s)) for s in range(len(events.sample_names))]
    samples = [index for index in samples if len(index) >= 2 * BINS and len(np.unique(values[index])) > 1]
    if not slots or not samples:
        return None
    parts = [(_bins(values[i]), explanation.values[i][:, slots].sum(1), events.weight[i]) for i in samples]
    shuffled = [_strength([(rng.permutation(bins), *rest) for bins, *rest in parts]) for _ in range(REPLICAS)]
    drawn = [[_take(part, rng.integers(0, len(part[0]), len(part[0]))) for part in parts] for _ in range(REPLICAS)]
    objects = tuple(events.slots[i] for i in slots)
    spread = float(np.std([_strength(replica) for replica in drawn]))
    return ObservableLink(name, objects, _strength(parts), spread, float(np.percentile(shuffled, 95)))


def _take(part: tuple[Numbers, Array, Array], index: Numbers) -> tuple[Numbers, Array, Array]:
    return part[0][index], part[1][index], part[2][index]


def _bins(values: Array) -> Numbers:
    """Number of the equally filled bin of each event; repeated edges (integers) are merged."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right").astype(np.int64)


def _strength(parts: list[tuple[Numbers, Array, Array]]) -> float:
    """Root mean square over the processes of the spread of the bin means."""
    return float(np.sqrt(np.mean([_variance(*part) for part in parts])))


def _variance(number: Numbers, summed: Array, weight: Array) -> float:
    total = np.bincount(number, weight, BINS)
    good = total > 0
    mean = np.bincount(number, weight * summed, BINS)[good] / total[good]
    share = total[good] / total[good].sum()
    return float((share * (mean - (share * mean).sum()) ** 2).sum())
