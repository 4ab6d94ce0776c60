"""Events whose true explanation is known, and the suite that judges every explanation method on them.

The label is drawn from a known function of the event, y ~ Bernoulli(σ(g(v(x)))): the objects, features and pairs that
explain it are exactly those of v, the Bayes-optimal score is g(v), its AUC is the best any classifier can reach, and
its Shapley values are those a perfect network would get. The events come from a toy sampler or are a user's own graphs,
whose labels are replaced ("label planting"). `hepx.planted.suite` trains and judges.
"""

from __future__ import annotations

from hepx.planted.events import plant, toy_graphs
from hepx.planted.mechanisms import MECHANISMS, Mechanism, pair_mass

__all__ = ["MECHANISMS", "Mechanism", "pair_mass", "plant", "toy_graphs"]
