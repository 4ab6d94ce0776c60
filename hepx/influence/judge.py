"""Measures of scores of training events: against real retrainings, against hidden truths, against chance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtr

from hepx import metrics

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
REPLICAS = 200


def rank_correlation(a: Array, b: Array) -> Array:
    """Spearman's correlation of the columns of two tables [S, Q] over their rows; 0 where one is constant: a constant
    predicts nothing."""
    ranks = [metrics.ranks(table) for table in (a, b)]
    first, second = (table - table.mean(0) for table in ranks)
    norm = np.sqrt((first**2).sum(0) * (second**2).sum(0))
    return np.divide((first * second).sum(0), norm, out=np.zeros_like(norm), where=norm > 0)


def lds(predicted: Array, actual: Array, seed: int = 0) -> tuple[float, float]:
    """Linear datamodelling score (arXiv:2303.14186, eq. 4): rank correlation over subsets of predicted and actual
    scores [S, Q], mean over queries, and its error: bootstrap of the subsets, which all queries share."""
    value = float(rank_correlation(predicted, actual).mean())
    rng, num = np.random.default_rng(seed), len(actual)
    drawn = (rng.integers(0, num, num) for _ in range(REPLICAS))
    replicas = [rank_correlation(predicted[index], actual[index]).mean() for index in drawn]
    return value, float(np.std(replicas, ddof=1))


def repeatability(scores: Array) -> tuple[float, float]:
    """How well trainings [S, R, Q] on the same S subsets with R seeds agree: the rank correlation over subsets of one
    seed with another, mean over pairs of seeds and queries; and the most that a perfect prediction can reach with the
    mean of R seeds, √(R r / (1 + (R − 1) r)) (Spearman 1910, Brown 1910). Needs two seeds."""
    num = scores.shape[1]
    pairs = [(i, j) for i in range(num) for j in range(i)]
    each = float(np.mean([rank_correlation(scores[:, i], scores[:, j]).mean() for i, j in pairs]))
    r = max(each, 0.0)
    return each, float(np.sqrt(num * r / (1 + (num - 1) * r)))


def auroc(hidden: Bools, score: Array) -> float:
    """Probability that a hidden event scores higher than another one."""
    return metrics.auc(hidden.astype(np.int64), score, np.ones(len(score)))


def average_precision(hidden: Bools, score: Array) -> float:
    """Mean of the precision at every hidden event, in falling order of the score; tied events count as one step."""
    order = np.argsort(-score, kind="stable")
    found, ends = hidden[order].cumsum(), np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    precision, recall = found[ends] / (ends + 1), found[ends] / found[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def precision_at(hidden: Bools, score: Array, number: int) -> float:
    """Share of hidden events among the `number` with the highest scores; of ties the expected share."""
    limit = np.sort(score)[-number]
    above, at = score > limit, score == limit
    return float((hidden[above].sum() + (number - above.sum()) * hidden[at].mean()) / number)


def reciprocal_rank(influence: Array, wanted: npt.NDArray[np.int64]) -> Array:
    """1 / rank [Q] of one wanted training event per query among all [B, Q], in falling order; of ties the mean rank."""
    ranks = metrics.ranks(-influence)
    return np.asarray(1 / ranks[wanted, np.arange(influence.shape[1])])


def over_seeds(values: list[float]) -> tuple[float, float | None]:
    """Mean of independent repetitions and its error; None for a single one."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return float(np.mean(values)), error


def significance(differences: list[float]) -> float | None:
    """How many standard deviations of a Gaussian the mean of independent differences is above 0, by Student's t, which
    knows how little two or three of them say about their own spread; None for a single one or equal ones."""
    mean, error = over_seeds(differences)
    if not error:
        return None
    return float(-ndtri(stdtr(len(differences) - 1, -mean / error)))
