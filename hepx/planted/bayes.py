"""The best any classifier can do on planted events, exactly; and the gate a network must pass before an explanation of
it may judge a method (else the network is wrong, not the method)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hepx import metrics
from hepx.graph import GraphBatch, Layout
from hepx.models import Model, Output, predict
from hepx.models.base import empty_trace
from hepx.models.inputs import Inputs
from hepx.planted.mechanisms import Mechanism

Array = npt.NDArray[np.float64]
MAX_AUC_LOSS, MIN_CORRELATION = 0.010, 0.97


class BayesNetwork(Model):
    """A network whose score is exactly that of the mechanism; for level 0 the hand-made network itself."""

    def __init__(self, mechanism: Mechanism, layout: Layout) -> None:
        super().__init__()
        self.inputs = Inputs(layout, (), ())
        self.score, self.slots = mechanism.score, layout.slots
        self.nothing = nn.Parameter(torch.zeros(1))  # so that it has a device like any model

    def forward(
        self,
        x: Float[Tensor, "B N F"],
        mask: Bool[Tensor, "B N"],
        node_type: Int[Tensor, "B N"],
        routing: Bool[Tensor, "B L N X"] | None = None,
        noise: Float[Tensor, "B L N X"] | None = None,
        gain: Float[Tensor, "B L H N N"] | None = None,
        pair_terms: tuple[Tensor, ...] | None = None,
    ) -> Output:
        """Logits 0 and g(v(x))."""
        score = self.score(x, node_type, self.slots)
        return Output(torch.stack([torch.zeros_like(score), score], -1), empty_trace(mask, 0))


@dataclass(frozen=True)
class Gate:
    """How near a network is to the Bayes-optimal score on test events: AUC of both with the expected labels, and the
    weighted correlation of the scores (None where the Bayes score is constant).

    error: of the AUC, bootstrap. For a control it is rather how far from ½ the AUC of networks that have learned
    nothing lies, root mean square: any function of a few inputs follows a mechanism a little, or runs against it.
    """

    mechanism: str
    network: str
    auc: float
    error: float
    bayes_auc: float
    correlation: float | None
    num_train: int
    passed: bool


def expected_auc(bayes: Array, score: Array, weight: Array) -> float:
    """AUC of a score averaged over all labels the events could get: each event counts as signal with its probability
    and as background with the rest. No drawn label enters, so for score = bayes it is the highest there is."""
    probability = 1 / (1 + np.exp(-bayes))
    y = np.repeat([1, 0], len(score))
    return metrics.auc(y, np.tile(score, 2), np.concatenate([weight * probability, weight * (1 - probability)]))


def judge_network(
    name: str,
    network: str,
    mechanism: Mechanism,
    model: Model,
    graphs: GraphBatch,
    num_train: int,
    seed: int,
    ignorant: Sequence[Model] = (),
) -> Gate:
    """The gate, on planted test events; ignorant: networks that have learned nothing, for a control."""
    weight = graphs.weight.double().numpy()
    bayes = mechanism.score(graphs.x, graphs.node_type, graphs.layout.slots).double().numpy()
    score, *others = (predict(one, graphs).double().numpy() for one in (model, *ignorant))
    auc, best = (expected_auc(bayes, one, weight) for one in (score, bayes))
    error = float(metrics.bootstrap_auc(graphs.y.numpy(), score, weight, 100, seed).std())
    if others:
        error = float(np.sqrt(np.mean([(expected_auc(bayes, one, weight) - 0.5) ** 2 for one in others])))
    r = correlation(bayes, score, weight)
    return Gate(
        mechanism=name,
        network=network,
        auc=auc,
        error=error,
        bayes_auc=best,
        correlation=r,
        num_train=num_train,
        passed=auc >= best - MAX_AUC_LOSS and (r is None or r >= MIN_CORRELATION),
    )


def correlation(a: Array, b: Array, weight: Array) -> float | None:
    """Weighted Pearson correlation over all elements; None if one of them is constant or a variance is not positive."""
    total = weight.sum()
    a, b = (v - (weight * v).sum() / total for v in (a, b))
    variances = [(weight * v * v).sum() / total for v in (a, b)]
    if min(variances) <= 1e-18:
        return None
    return float((weight * a * b).sum() / total / np.sqrt(variances[0] * variances[1]))
