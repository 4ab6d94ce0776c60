"""Weighted measures of a classifier. Every function takes signed weights and says what it does with a negative one.

Scores are log-odds of the signal class; `y` is 1 for signal and 0 for background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hepx.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Roc:
    """Signal and background efficiency at every threshold on the score, from the tightest to the loosest cut."""

    signal: Array
    background: Array
    threshold: Array


def roc(y: Array, score: Array, weight: Array) -> Roc:
    """Weighted ROC curve; equal scores are one step. With negative weights the curve may bend back locally."""
    order = np.argsort(-score, kind="stable")
    y, score, weight = y[order], score[order], weight[order]
    signal, background = np.cumsum(weight * (y == 1)), np.cumsum(weight * (y == 0))
    if not len(y) or signal[-1] <= 0 or background[-1] <= 0:
        raise DataError("a ROC curve needs signal and background events, each with a positive sum of weights.")
    last = np.append(score[1:] != score[:-1], True)
    return Roc(
        np.concatenate([[0.0], signal[last] / signal[-1]]),
        np.concatenate([[0.0], background[last] / background[-1]]),
        np.concatenate([[np.inf], score[last]]),
    )


def auc(y: Array, score: Array, weight: Array) -> float:
    """Weighted area under the ROC curve: Σ w_s w_b (1[s > b] + ½ 1[s = b]) / (Σ w_s Σ w_b); signs kept.

    >>> auc(np.array([1, 0, 1]), np.array([2.0, 1.0, 1.0]), np.ones(3))
    0.75
    """
    curve = roc(y, score, weight)
    return float(np.trapezoid(curve.signal, curve.background))


def bootstrap_auc(y: Array, score: Array, weight: Array, replicas: int = 200, seed: int = 0) -> Array:
    """AUC of Poisson-bootstrap replicas [R] of the events; its standard deviation is the statistical error.

    The same seed gives the same replicas of the events, so differences between classifiers can be taken pairwise. A
    replica without signal or background is drawn again; DataError if that happens to more than half of them.
    """
    order = np.argsort(-score, kind="stable")
    y, score, weight = y[order], score[order], weight[order]
    last = np.append(score[1:] != score[:-1], True)
    rng = np.random.default_rng(seed)
    values: list[float] = []
    for _ in range(2 * replicas):
        w = weight * rng.poisson(1.0, len(y))[order]  # drawn for the events, not for their rank
        signal = np.concatenate([[0.0], np.cumsum(w * (y == 1))[last]])
        background = np.concatenate([[0.0], np.cumsum(w * (y == 0))[last]])
        if signal[-1] > 0 and background[-1] > 0:
            values.append(float(np.trapezoid(signal, background) / (signal[-1] * background[-1])))
        if len(values) == replicas:
            return np.array(values)
    raise DataError(
        f"{int((y == 1).sum())} signal and {int((y == 0).sum())} background events are too few, or their weights "
        "cancel, for an error of the AUC. Loosen data.select or give more events."
    )


def threshold_at(y: Array, score: Array, weight: Array, efficiency: float) -> float:
    """The tightest cut on the score that keeps at least this share of the signal weight."""
    curve = roc(y, score, weight)
    return float(curve.threshold[np.argmax(curve.signal >= efficiency - 1e-12)])


def rejection(y: Array, score: Array, weight: Array, efficiency: float) -> tuple[float, float]:
    """Background rejection 1/ε_b at a signal efficiency, and its error from the weights of the passing background.

    Where no background weight passes, the rejection has only a lower limit: (inf, inf) is returned.
    """
    cut = threshold_at(y, score, weight, efficiency)
    background = y == 0
    passed = background & (score >= cut)
    kept, total = weight[passed].sum(), weight[background].sum()
    if kept <= 0:
        return float("inf"), float("inf")
    value = float(total / kept)
    return value, value * float(np.sqrt((weight[passed] ** 2).sum()) / kept)


@dataclass(frozen=True)
class Confusion:
    """Accuracy, precision, recall and F1 of a decision, as in arXiv:2501.03432."""

    accuracy: float
    precision: float
    recall: float
    f1: float


def confusion(y: Array, decided: Array, weight: Array) -> Confusion:
    """Weighted confusion measures with both classes scaled to equal total weight (the paper's classes are equal too).

    Negative weights enter the sums with their sign.
    """
    scaled = np.where(y == 1, weight / weight[y == 1].sum(), weight / weight[y == 0].sum())
    true_positive = scaled[(y == 1) & decided].sum()
    false_positive = scaled[(y == 0) & decided].sum()
    selected = true_positive + false_positive
    precision = true_positive / selected if selected > 0 else 0.0
    total = precision + true_positive
    return Confusion(
        accuracy=float((true_positive + 1 - false_positive) / 2),
        precision=float(precision),
        recall=float(true_positive),
        f1=float(2 * precision * true_positive / total) if total > 0 else 0.0,
    )


def effective_number(weight: Array) -> float:
    """Kish's effective number of events (Σw)² / Σw².

    >>> effective_number(np.ones(10))
    10.0
    """
    squares = float((weight**2).sum())
    return float(weight.sum()) ** 2 / squares if squares > 0 else 0.0


def weighted_mean(values: Array, weight: Array) -> tuple[float, float]:
    """Weighted mean and its standard error √Σw²(v−mean)² / |Σw|; negative weights keep their sign in the mean."""
    total = weight.sum()
    if total == 0:
        return float("nan"), float("nan")
    mean = float((weight * values).sum() / total)
    return mean, float(np.sqrt((weight**2 * (values - mean) ** 2).sum()) / abs(total))
