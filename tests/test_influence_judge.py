"""Measures of influence scores: closed forms, limits, and scikit-learn and scipy as oracles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from hepx.influence import judge

RNG = np.random.default_rng(3)


def test_rank_correlation_is_spearmans() -> None:
    a, b = RNG.normal(size=(30, 4)).round(1), RNG.normal(size=(30, 4)).round(1)
    expected = [spearmanr(a[:, q], b[:, q]).statistic for q in range(4)]
    assert judge.rank_correlation(a, b) == pytest.approx(expected)
    assert judge.rank_correlation(np.exp(a), -a) == pytest.approx([-1] * 4)
    assert judge.rank_correlation(np.ones((30, 1)), b[:, :1]) == 0


def test_lds_of_the_truth_of_noise_and_of_its_opposite() -> None:
    actual = RNG.normal(size=(40, 20))
    assert judge.lds(3 * actual + 1, actual)[0] == pytest.approx(1)
    assert judge.lds(-actual, actual)[0] == pytest.approx(-1)
    value, error = judge.lds(RNG.normal(size=(40, 20)), actual)
    assert abs(value) < 3 * error
    assert 0.01 < error < 0.1


def test_error_of_lds_is_the_spread_of_studies() -> None:
    """Repeated studies of 40 subsets with a correlation of one half scatter as the bootstrap says, to 25 %."""
    found = []
    for _ in range(60):
        common, own = RNG.normal(size=(2, 40, 10))
        found.append(judge.lds(common + np.sqrt(3) * own, common))
    spread, error = np.std([value for value, _ in found]), np.mean([error for _, error in found])
    assert spread == pytest.approx(error, rel=0.25)


def test_repeatability_of_signal_and_noise() -> None:
    """With noise as large as the signal two seeds agree to one half, and three in the mean to √(3/4)."""
    signal, noise = RNG.normal(size=(200, 1, 50)), RNG.normal(size=(200, 3, 50))
    each, ceiling = judge.repeatability(signal + noise)
    assert each == pytest.approx(0.48, abs=0.03)  # Spearman's of a Pearson correlation of 0.5: 6/π asin(1/4)
    assert ceiling == pytest.approx(np.sqrt(0.75), abs=0.03)
    best = judge.rank_correlation(signal[:, 0], (signal + noise).mean(1)).mean()
    assert best == pytest.approx(ceiling, abs=0.03), "what the truth itself reaches"
    assert judge.repeatability(noise)[1] < 0.3


def test_detection_measures_are_those_of_scikit_learn() -> None:
    hidden, score = RNG.random(300) < 0.1, RNG.normal(size=300).round(1)
    score[hidden] += 0.5
    assert judge.auroc(hidden, score) == pytest.approx(roc_auc_score(hidden, score))
    assert judge.average_precision(hidden, score) == pytest.approx(average_precision_score(hidden, score))


def test_precision_among_the_first_counts_ties_in_the_mean() -> None:
    hidden = np.array([True, False, True, False, False])
    assert judge.precision_at(hidden, np.array([5.0, 4, 3, 2, 1]), 2) == 0.5
    assert judge.precision_at(hidden, np.ones(5), 3) == pytest.approx(0.4)


def test_reciprocal_rank() -> None:
    influence = np.array([[3.0, 1], [2, 1], [1, 1]])
    assert judge.reciprocal_rank(influence, np.array([1, 0])) == pytest.approx([0.5, 0.5])
    assert judge.reciprocal_rank(influence, np.array([0, 0]))[0] == 1


def test_over_seeds() -> None:
    assert judge.over_seeds([1.0, 3.0]) == (2.0, 1.0)
    assert judge.over_seeds([2.0]) == (2.0, None)


def test_significance_of_few_repetitions() -> None:
    """For many repetitions the number of errors; for two of them, 5 errors are less than 2 standard deviations."""
    assert judge.significance(RNG.normal(0.1, 1, 4000).tolist()) == pytest.approx(0.1 * np.sqrt(4000), abs=2)
    assert judge.significance([0.8, 1.2]) == pytest.approx(1.53, abs=0.01)  # t = 5 with one degree of freedom: p 0.063
    assert judge.significance([-0.8, -1.2]) == pytest.approx(-1.53, abs=0.01)
    assert judge.significance([1.0]) is None
    assert judge.significance([0.1, 0.1]) is None
