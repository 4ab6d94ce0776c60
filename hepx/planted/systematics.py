"""Level 5: does the error band of an explanation cover what a systematic variation does to the true one?

A variation changes the Shapley values of the Bayes-optimal score by a known amount. A user has networks instead: their
change has a band from the spread of trainings with other seeds and bootstrap samples of the training events (the error
from the finite number of replacements is common to the network, the truth and both sides of the change, and cancels).
A 68 % band has to hold the truth in 68 % of the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import ndtri, stdtrit
from torch import Tensor

from hepx import random
from hepx.attribution import Subject, explain
from hepx.attribution.shapley import Shapley
from hepx.graph import GraphBatch
from hepx.models import Model
from hepx.models.inputs import MASS, PHI, PT
from hepx.planted.judge import Check
from hepx.results import Explanation, Provenance

LEVEL, MECHANISM = 5, "mbb"
NETWORKS = 5
BAND, LOW, HIGH = 0.68, 0.58, 0.78
SCALE, SMEARING = 0.03, 0.10  # of the jets' momentum
TILT = 0.02  # 1/GeV: background with more missing momentum becomes more common
JETS = ("jet", "bjet")


@dataclass(frozen=True)
class Variation:
    """What it is, and the events or the replacements it changes."""

    what: str
    events: Callable[[GraphBatch], GraphBatch] = lambda graphs: graphs
    background: Callable[[GraphBatch], GraphBatch] = lambda graphs: graphs


def with_jets(graphs: GraphBatch, factor: Float[Tensor, "B N"]) -> GraphBatch:
    """Events whose jets have pt and mass times a factor; the missing momentum takes the opposite of what they gain."""
    jets = torch.tensor([kind in JETS for kind in graphs.layout.types]) & graphs.mask
    factor = torch.where(jets, factor, 1.0).to(graphs.x.dtype)
    x, met = graphs.x.clone(), graphs.layout.slots.index("met")
    gained = (factor - 1) * x[..., PT]
    x[..., [PT, MASS]] *= factor[..., None]
    phi = x[..., PHI].clone()
    along = [x[:, met, PT] * part(phi[:, met]) - (gained * part(phi)).sum(1) for part in (torch.cos, torch.sin)]
    x[:, met, PT], x[:, met, PHI] = torch.hypot(*along), torch.atan2(along[1], along[0])
    return replace(graphs, x=x)


def _scaled(graphs: GraphBatch) -> GraphBatch:
    return with_jets(graphs, torch.full(graphs.mask.shape, 1 + SCALE))


def _smeared(graphs: GraphBatch) -> GraphBatch:
    """Each jet by its own Gaussian factor, drawn from its event number."""
    drawn = ndtri(random.uniform(0, graphs.event_id.numpy(), "jer", graphs.mask.shape[1]))
    return with_jets(graphs, torch.from_numpy((1 + SMEARING * drawn).clip(min=0.2)))


def _tilted(graphs: GraphBatch) -> GraphBatch:
    """Other background: weights that grow with the missing momentum."""
    met = graphs.x[:, graphs.layout.slots.index("met"), PT].double()
    return replace(graphs, weight=graphs.weight * torch.exp(TILT * (met - 80).clamp(max=100)))


VARIATIONS: dict[str, Variation] = {
    "jes": Variation(f"jet energy scale {SCALE:+.0%}", events=_scaled),
    "jer": Variation(f"jet energy smeared by {SMEARING:.0%}", events=_smeared),
    "background": Variation("background with more missing momentum", background=_tilted),
}
"""Name -> systematic variation."""


def bootstrap_sample(graphs: GraphBatch, seed: int) -> GraphBatch:
    """As many events, drawn with replacement; the last tenth, which validates, stays and is not drawn from."""
    last = len(graphs) - len(graphs) // 10
    drawn = torch.randint(last, (last,), generator=torch.Generator().manual_seed(seed))
    return graphs[torch.cat([drawn, torch.arange(last, len(graphs))])]


def shift(model: Model, subject: Subject, variation: Variation, draws: int) -> Float[np.ndarray, "B N"]:
    """Change of the exact Shapley values of the objects under a variation, with the same replacements."""
    method = Shapley(draws=draws)
    provenance = Provenance("shapley", {}, "", "", "", subject.seed, "", "", "cpu")
    nominal = replace(subject, model=model)
    varied = replace(nominal, graphs=variation.events(subject.graphs), baseline=variation.background(subject.baseline))
    before, after = (explain(method, one, provenance) for one in (nominal, varied))
    assert isinstance(before, Explanation)
    assert isinstance(after, Explanation)
    return after.values - before.values


def coverage(
    shifts: Float[np.ndarray, "R B N"],
    truth: Float[np.ndarray, "B N"],
    mask: Bool[np.ndarray, "B N"],
    weight: Float[np.ndarray, "B"],
) -> float:
    """Weighted share of the objects whose true change lies in the 68 % band of a network's, mean over the networks.

    The band: its own change ± t times the standard deviation of those of the other networks, t for their number.
    """
    quantile = stdtrit(len(shifts) - 2, 0.5 + BAND / 2)
    counts, shares = mask * weight[:, None], []
    for i, own in enumerate(shifts):
        spread = np.delete(shifts, i, axis=0).std(0, ddof=1)
        shares.append(((np.abs(own - truth) <= quantile * spread) * counts).sum() / counts.sum())
    return float(np.mean(shares))


def systematics_checks(
    networks: Sequence[Model], bayes: Model, subject: Subject, true_objects: Bool[np.ndarray, "B N"], draws: int
) -> Iterator[Check]:
    """One per variation; true_objects [B, N]: what the truth depends on."""
    mask, weight = subject.graphs.mask.numpy(), subject.graphs.weight.double().numpy()
    for name, variation in VARIATIONS.items():
        truth = shift(bayes, subject, variation, draws)
        shifts = np.stack([shift(model, subject, variation, draws) for model in networks])
        found, there = (coverage(shifts, truth, chosen, weight) for chosen in (mask, true_objects))
        size, off = (float(np.sqrt((v[true_objects] ** 2).mean())) for v in (truth, shifts.mean(0) - truth))
        text = (
            f"{there:.0%} of the true objects; their values change by {size:.3f} (rms, logit), "
            f"the mean of the networks is off by {off:.3f}"
        )
        error = float(np.sqrt(found * (1 - found) / len(mask)))
        what = f"{variation.what}: share of the objects whose 68 % band holds the change of the true Shapley value"
        passed = LOW <= found <= HIGH
        yield Check(LEVEL, name, "shapley", what, found, error, f"{LOW:g}–{HIGH:g}", passed, text)
