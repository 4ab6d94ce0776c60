"""Weighted measures against scikit-learn and against what they must be."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from hepx import metrics
from hepx.errors import ConfigError, DataError
from hepx.expression import cuts, evaluate

RNG = np.random.default_rng(1)
Y = RNG.integers(0, 2, 2000)
SCORE = np.round(RNG.normal(Y, 1.0), 1)  # rounded: many ties
WEIGHT = RNG.gamma(2, 1, 2000)


def test_auc_equals_sklearn_with_weights_and_ties() -> None:
    assert metrics.auc(Y, SCORE, WEIGHT) == pytest.approx(
        oracle.roc_auc_score(Y, SCORE, sample_weight=WEIGHT), abs=1e-12
    )


def test_auc_of_an_event_and_its_negative_copy_is_that_without_them() -> None:
    """Signed weights: +w and −w at the same place cancel."""
    y, score = np.append(Y, [1, 1]), np.append(SCORE, [5.0, 5.0])
    weight = np.append(WEIGHT, [3.0, -3.0])
    assert metrics.auc(y, score, weight) == pytest.approx(metrics.auc(Y, SCORE, WEIGHT), abs=1e-12)


def test_auc_of_shuffled_labels_is_one_half_within_its_bootstrap_error() -> None:
    y = RNG.permutation(Y)
    error = metrics.bootstrap_auc(y, SCORE, WEIGHT).std()
    assert abs(metrics.auc(y, SCORE, WEIGHT) - 0.5) < 4 * error


def test_bootstrap_error_against_hanley_mcneil() -> None:
    """Unweighted error of the AUC; Hanley & McNeil's exponential model holds to some 10 % for Gaussian scores."""
    score = SCORE + RNG.normal(0, 1e-6, len(SCORE))
    a, n = metrics.auc(Y, score, np.ones(len(Y))), len(Y) / 2
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    expected = np.sqrt((a * (1 - a) + (n - 1) * (q1 + q2 - 2 * a * a)) / n**2)
    assert metrics.bootstrap_auc(Y, score, np.ones(len(Y)), 1000).std() == pytest.approx(expected, rel=0.15)


def test_bootstrap_is_paired() -> None:
    """Two classifiers that rank alike have no error of their difference, whatever their scores."""
    first = metrics.bootstrap_auc(Y, SCORE, WEIGHT, 50, seed=3)
    second = metrics.bootstrap_auc(Y, np.exp(SCORE), WEIGHT, 50, seed=3)
    nearly = metrics.bootstrap_auc(Y, SCORE + RNG.normal(0, 0.05, len(Y)), WEIGHT, 50, seed=3)
    np.testing.assert_allclose(first, second, atol=1e-12)
    assert (nearly - first).std() < 0.3 * first.std()


def test_rejection_counts() -> None:
    y = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    score = np.array([9, 8, 7, 1, 7.5, 6, 5, 4])
    value, error = metrics.rejection(y, score, np.ones(8), 0.75)
    assert (value, error) == (4.0, 4.0)
    assert metrics.rejection(y, score, np.ones(8), 0.5) == (np.inf, np.inf)


def test_confusion_equals_sklearn_for_equal_classes() -> None:
    weight = WEIGHT / np.where(Y == 1, WEIGHT[Y == 1].sum(), WEIGHT[Y == 0].sum())
    decided = SCORE > 0.5
    found = metrics.confusion(Y, decided, WEIGHT)
    options = {"sample_weight": weight}
    assert found.accuracy == pytest.approx(oracle.accuracy_score(Y, decided, **options))
    assert found.precision == pytest.approx(oracle.precision_score(Y, decided, **options))
    assert found.recall == pytest.approx(oracle.recall_score(Y, decided, **options))
    assert found.f1 == pytest.approx(oracle.f1_score(Y, decided, **options))


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="signal and background"):
        metrics.auc(np.ones(3), np.ones(3), np.ones(3))


def test_expressions() -> None:
    values = {"a": np.array([1.0, 2.0, np.nan]), "b": np.array([3, 4, 5])}
    assert evaluate("a + 1 < b / 1 and not b == 4", values).tolist() == [True, False, False]
    assert evaluate("abs(-a) <= 1 or b >= 5", values).tolist() == [True, False, True]
    assert cuts("a > 1 and b > 2 and (a < 5 or b < 3)") == ["a > 1", "b > 2", "a < 5 or b < 3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os')", "is not allowed"),
        ("a.real > 1", "is not allowed"),
        ("a > 'x'", "is not allowed"),
        ("a if a else a", "is not allowed"),
        ("abs(a, 1)", "is not allowed"),
        ("bb > 1", "unknown quantity 'bb'"),
        ("a >", "not valid"),
    ],
)
def test_expressions_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(text, {"a": np.ones(2), "b": np.ones(2)})
