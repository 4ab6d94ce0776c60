"""Weighted measures of a classifier. Every function takes signed weights and says what it does with a negative one.

Scores are log-odds of the signal class; `y` is 1 for signal and 0 for background.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hepx.errors import DataError

Array = npt.NDArray[Any]
Z95 = 1.959963984540054  # standard deviations of a central interval of 95 %


@dataclass(frozen=True)
class Roc:
    """Signal and background efficiency at every threshold on the score, from the tightest to the loosest cut; NaN where
    a class has no positive sum of weights."""

    signal: Array
    background: Array
    threshold: Array

    @property
    def area(self) -> float:
        """Area under the curve."""
        return float(np.trapezoid(self.signal, self.background))

    def step(self, efficiency: float) -> int:
        """Position of the tightest cut that keeps at least this share of the signal weight."""
        return int(np.argmax(self.signal >= efficiency - 1e-12))


@dataclass(frozen=True)
class Ranked:
    """Events sorted by falling score once, so that the curve for other weights costs one pass; y and score [B]."""

    y: Array
    score: Array

    @cached_property
    def _sorted(self) -> tuple[Array, Array, Array, Array]:
        """Order of the events, which of them are signal, where a step ends, and the threshold there."""
        order = np.argsort(-self.score, kind="stable")
        score = self.score[order]
        last = np.flatnonzero(np.append(score[1:] != score[:-1], True))
        return order, self.y[order] == 1, last, np.concatenate([[np.inf], score[last]])

    def curve(self, weight: Array) -> Roc:
        """Weighted ROC curve; equal scores are one step. With negative weights the curve may bend back locally."""
        order, is_signal, last, threshold = self._sorted
        w = weight[order]
        signal, background = np.cumsum(w * is_signal)[last], np.cumsum(w * ~is_signal)[last]
        signal, background = (
            np.concatenate([[0.0], part / (part[-1] if part[-1] > 0 else np.nan)]) for part in (signal, background)
        )
        return Roc(signal, background, threshold)


def roc(y: Array, score: Array, weight: Array) -> Roc:
    """Weighted ROC curve of `Ranked`; DataError if a class has no positive sum of weights."""
    if not all(weight[y == label].sum() > 0 for label in (0, 1)):
        raise DataError("a ROC curve needs signal and background events, each with a positive sum of weights.")
    return Ranked(y, score).curve(weight)


def auc(y: Array, score: Array, weight: Array) -> float:
    """Weighted area under the ROC curve: Σ w_s w_b (1[s > b] + ½ 1[s = b]) / (Σ w_s Σ w_b); signs kept.

    >>> auc(np.array([1, 0, 1]), np.array([2.0, 1.0, 1.0]), np.ones(3))
    0.75
    """
    return roc(y, score, weight).area


def poisson_counts(num_events: int, replicas: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each event [B] occurs in each replica of a Poisson bootstrap; the same seed, the same replicas."""
    rng = np.random.default_rng(seed)
    for _ in range(replicas):
        yield rng.poisson(1.0, num_events)


def spread(replicas: Array) -> float | None:
    """Standard deviation of replicas; None where more than 5 % of them have no value.

    >>> spread(np.array([1.0, 3.0])), spread(np.array([1.0, 3.0, np.nan]))
    (1.0, None)
    """
    known = replicas[np.isfinite(replicas)]
    return float(known.std()) if len(known) >= 0.95 * len(replicas) else None


def bootstrap_auc(y: Array, score: Array, weight: Array, replicas: int = 200, seed: int = 0) -> Array:
    """AUC of Poisson-bootstrap replicas [R] of the events; its standard deviation is the statistical error.

    The same seed gives the same replicas of the events, so differences between classifiers can be taken pairwise. A
    replica without signal or background is drawn again; DataError if that happens to more than half of them.
    """
    ranked = Ranked(y, score)
    values: list[float] = []
    for counts in poisson_counts(len(y), 2 * replicas, seed):
        value = ranked.curve(weight * counts).area
        if np.isfinite(value):
            values.append(value)
        if len(values) == replicas:
            return np.array(values)
    raise DataError(
        f"{int((y == 1).sum())} signal and {int((y == 0).sum())} background events are too few, or their weights "
        "cancel, for an error of the AUC. Loosen data.select or give more events."
    )


def threshold_at(y: Array, score: Array, weight: Array, efficiency: float) -> float:
    """The tightest cut on the score that keeps at least this share of the signal weight."""
    curve = roc(y, score, weight)
    return float(curve.threshold[curve.step(efficiency)])


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


def asimov_significance(signal: Any, background: Any, uncertainty: Any = 0.0) -> Any:
    """Median significance with which an expected signal is discovered in one counting bin, in standard deviations.

    Without an uncertainty of the background Z = √(2 ((s+b) ln(1+s/b) − s)) (arXiv:1007.1727, eq. 97). With σ_b, taken
    from a counting auxiliary measurement of b²/σ_b² events and profiled (G. Cowan, Discovery sensitivity for a counting
    experiment with background uncertainty, 2012, eq. 20; arXiv:physics/0702156 for the test it is the median of),

        Z² / 2 = (s+b) ln[(s+b)(b+σ_b²) / (b²+(s+b)σ_b²)] − (b²/σ_b²) ln[1 + σ_b² s / (b (b+σ_b²))].

    signal, background, uncertainty (all of one unit: events): numbers or arrays. For s ≪ b it is s/√(b+σ_b²). As b → 0
    with σ_b/b fixed it grows without limit, like √(2 s ln(1/b)): that is why a cut must leave some background to be
    estimated. With negative weights: b ≤ 0 has no expectation and gives NaN; s ≤ 0 gives 0.

    >>> round(float(asimov_significance(10.0, 100.0)), 3), round(float(asimov_significance(10.0, 100.0, 20.0)), 3)
    (0.984, 0.434)
    """
    s, b, sigma = (np.asarray(value, dtype=np.float64) for value in (signal, background, uncertainty))
    s, b, variance = np.broadcast_arrays(np.maximum(s, 0.0), np.where(b > 0, b, np.nan), sigma**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = (s + b) * np.log1p(s / b) - s
        first = (s + b) * np.log1p(s * b / (b**2 + (s + b) * variance))
        second = b**2 / variance * np.log1p(variance * s / (b * (b + variance)))
        half = np.where(variance > 0, first - second, plain)
    return np.sqrt(2 * np.maximum(half, 0.0))


def best_cut(
    y: Array, score: Array, yields: Array, uncertainty: float, min_background: float
) -> tuple[float, float] | None:
    """The cut score ≥ t with the highest Asimov significance, and that significance; None where no cut qualifies.

    yields [B]: expected events each event stands for, signed. uncertainty: relative, of the background that passes.
    Only cuts are tried that keep at least `min_background` effective events (Σw)²/Σw² of background: with fewer the
    expectation itself is unknown, and the significance grows without limit as it goes to zero. Use other events than
    those the significance is then quoted for.
    """
    order = np.argsort(-score, kind="stable")
    w, is_signal, sorted_score = yields[order], y[order] == 1, score[order]
    last = np.append(sorted_score[1:] != sorted_score[:-1], True)
    s, b, squares = (np.cumsum(part)[last] for part in (w * is_signal, w * ~is_signal, w**2 * ~is_signal))
    known = (b > 0) & (b**2 >= min_background * squares)
    significance = np.where(known, asimov_significance(s, b, uncertainty * b), -1.0)
    if not known.any():
        return None
    best = int(np.argmax(significance))
    return float(sorted_score[last][best]), float(significance[best])


@dataclass(frozen=True)
class Calibration:
    """Reliability in bins of the score: mean predicted and observed share of signal, the error √Σ(w (y − p))² / Σw of
    their difference, share of the weight.

    error is Σ share·|predicted − observed|, the expected calibration error (arXiv:1706.04599); error_if_perfect what
    the finite number of events alone makes of it on average. A bin without positive weight holds NaN and counts 0.
    """

    low: Array
    high: Array
    predicted: Array
    observed: Array
    observed_error: Array
    share: Array
    error: float
    error_if_perfect: float


def probability(score: Array) -> Array:
    """Probability of signal 1/(1 + e^−score) from log-odds, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * score))


def score_bins(score: Array, num_bins: int) -> Array:
    """Inner edges of at most `num_bins` bins of equal numbers of events; fewer where scores repeat."""
    return np.unique(np.quantile(score, np.linspace(0, 1, num_bins + 1)[1:-1]))


def calibration(y: Array, score: Array, weight: Array, edges: Array) -> Calibration:
    """Compare the predicted probability of signal with its share of the weight, in bins of the score; inner `edges`.

    The weights set the prior for which the score is judged. Negative weights keep their sign in every sum.
    """
    index, num = np.searchsorted(edges, score, side="right"), len(edges) + 1
    predicted = probability(score)
    terms = (weight, weight * (y == 1), weight * predicted, (weight * ((y == 1) - predicted)) ** 2)
    total, signal, expected, squares = (np.bincount(index, term, num) for term in terms)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.where(total > 0, total, np.nan)
        mean, observed, error = expected / total, signal / total, np.sqrt(squares) / total
    share = np.nan_to_num(total) / np.nansum(total)
    bounds = np.concatenate([[score.min()], edges, [score.max()]])
    return Calibration(
        low=bounds[:-1],
        high=bounds[1:],
        predicted=mean,
        observed=observed,
        observed_error=error,
        share=share,
        error=float(np.nansum(share * np.abs(mean - observed))),
        error_if_perfect=float(np.nansum(share * np.sqrt(2 / np.pi) * error)),
    )


def effective_number(weight: Array) -> float:
    """Kish's effective number of events (Σw)² / Σw².

    >>> effective_number(np.ones(10))
    10.0
    """
    squares = float((weight**2).sum())
    return float(weight.sum()) ** 2 / squares if squares > 0 else 0.0


@dataclass(frozen=True)
class Share:
    """A share of a weighted sample and its 95 % interval."""

    value: float
    low: float
    high: float


def share(chosen: Array, weight: Array) -> Share:
    """Share of the weight that lies in `chosen` [B], with Wilson's interval for the effective number of events.

    The number of events is Kish's (Σw)² / Σw². Negative weights keep their sign in the sums; a share that they push out
    of [0, 1] is cut off there. Without a positive sum of weights the share is NaN and its interval [0, 1]. Source:
    E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209.

    >>> share(np.array([True, False, False, False]), np.ones(4)).value
    0.25
    """
    total = float(weight.sum())
    if total <= 0:
        return Share(float("nan"), 0.0, 1.0)
    value, n = float(np.clip(weight[chosen].sum() / total, 0.0, 1.0)), effective_number(weight)
    middle = (value + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * np.sqrt(value * (1 - value) / n + Z95**2 / (4 * n**2))
    return Share(value, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def enrichment(chosen: Array, part: Array, weight: Array) -> Share:
    """By how much `chosen` events are more frequent in a part of the sample [B] than in all of it, with 95 % interval.

    The part belongs to the whole, so the ratio of the shares in the part and in the rest, which are independent, is
    bounded first (from their Wilson intervals by the method of Donner and Zou, Stat. Methods Med. Res. 21 (2012) 347)
    and turned into the ratio to the whole, which grows with it. NaN where the whole has none, or the part is all.
    """
    inside, outside = share(chosen[part], weight[part]), share(chosen[~part], weight[~part])
    whole = float(weight.sum())
    fraction = float(weight[part].sum()) / whole if whole > 0 else float("nan")
    if not (0 < fraction < 1) or not inside.value + outside.value > 0:
        return Share(float("nan"), 0.0, float("inf"))
    value = inside.value / (fraction * inside.value + (1 - fraction) * outside.value)
    return Share(value, *(_to_whole(ratio, fraction) for ratio in _ratio_interval(inside, outside)))


def _to_whole(ratio: float, fraction: float) -> float:
    """From the ratio part : rest to the ratio part : whole."""
    return 1 / fraction if np.isinf(ratio) else ratio / (fraction * ratio + 1 - fraction)


def _ratio_interval(one: Share, other: Share) -> tuple[float, float]:
    """Interval of one.value / other.value, from the intervals of the two."""
    product = one.value * other.value

    def bound(near: float, far: float, sign: int) -> float:
        width = far * (2 * other.value - far)
        root = np.sqrt(max(0.0, product**2 - near * (2 * one.value - near) * width))
        return float((product + sign * root) / width) if width != 0 else float("inf")

    return max(0.0, bound(one.low, other.high, -1)), bound(one.high, other.low, 1)


def ranks(values: Array) -> Array:
    """Ranks along the first axis, from 1; equal values get the mean of theirs."""
    from scipy.stats import rankdata  # slow

    return np.asarray(rankdata(values, axis=0))


def weighted_mean(values: Array, weight: Array) -> tuple[float, float]:
    """Weighted mean and its standard error √Σw²(v−mean)² / |Σw|; negative weights keep their sign in the mean."""
    total = weight.sum()
    if total == 0:
        return float("nan"), float("nan")
    mean = float((weight * values).sum() / total)
    return mean, float(np.sqrt((weight**2 * (values - mean) ** 2).sum()) / abs(total))
