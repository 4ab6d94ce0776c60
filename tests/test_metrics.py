"""Weighted measures against scikit-learn and against what they must be."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle
from sklearn.calibration import calibration_curve

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


@pytest.mark.parametrize(("s", "b"), [(1.0, 1.0), (10.0, 100.0), (3.0, 0.2), (50.0, 4000.0), (200.0, 30.0)])
@pytest.mark.parametrize("relative", [0.0, 0.05, 0.2, 1.0])
def test_significance_is_the_profile_likelihood_of_pyhf(s: float, b: float, relative: float) -> None:
    """Oracle: √q₀ of the Asimov data of s + b, the background measured by a count of (b/σ)² events. 1e-3: minimiser."""
    pyhf = pytest.importorskip("pyhf")
    modifiers = [{"name": "u", "type": "shapesys", "data": [relative * b]}] if relative else []
    signal = {"name": "s", "data": [s], "modifiers": [{"name": "mu", "type": "normfactor", "data": None}]}
    background = {"name": "b", "data": [b], "modifiers": modifiers}
    model = pyhf.Model({"channels": [{"name": "c", "samples": [signal, background]}]}, poi_name="mu", validate=False)
    data = model.expected_data([1.0] * model.config.npars)
    pars = (model.config.suggested_init(), model.config.suggested_bounds(), model.config.suggested_fixed())
    q0 = float(pyhf.infer.test_statistics.q0(0.0, data, model, *pars))
    found = float(metrics.asimov_significance(s, b, relative * b))
    assert found == pytest.approx(q0**0.5, rel=1e-3, abs=1e-3)


def test_significance_at_its_limits() -> None:
    z = metrics.asimov_significance
    s, b = 7.0, 40.0
    assert z(s, b) == pytest.approx(np.sqrt(2 * ((s + b) * np.log(1 + s / b) - s)), rel=1e-12)  # eq. 97
    assert z(s, b, 1e-5) == pytest.approx(z(s, b), rel=1e-6)
    assert z(1e-3, 1e4, 300.0) == pytest.approx(1e-3 / np.sqrt(1e4 + 300.0**2), rel=1e-4)  # s << b
    assert z(1e-3, 1e4, 300.0) != pytest.approx(1e-3 / 100, rel=0.1)  # the uncertainty matters
    small = z(s, 10.0 ** -np.arange(1, 60, 10), 0.2 * 10.0 ** -np.arange(1, 60, 10))
    assert (np.diff(small) > 0).all()  # b -> 0 at fixed σ/b: no limit …
    assert small[-1] == pytest.approx(np.sqrt(2 * s * 51 * np.log(10)), rel=0.1)  # … but the logarithm of 1/b
    assert (np.diff(z(s, b, np.array([0, 1, 5, 20, 100.0]))) < 0).all()
    assert np.isnan(z(s, np.array([0.0, -3.0]), 1.0)).all()
    assert z(-s, b, 4.0) == z(0.0, b, 4.0) == 0.0


def test_best_cut_is_that_of_a_search_over_all_cuts() -> None:
    """With negative weights; and never one that leaves too little background to be known."""
    yields = np.where(RNG.random(2000) < 0.1, -1.0, 1.0) * WEIGHT * np.where(Y == 1, 0.02, 0.5)
    for least in (1.0, 20.0, 100.0):
        best = (-1.0, 0.0)
        for cut in np.unique(SCORE):
            s, b = (yields[(cut <= SCORE) & (label == Y)].sum() for label in (1, 0))
            passed = yields[(cut <= SCORE) & (Y == 0)]
            if b > 0 and metrics.effective_number(passed) >= least:
                best = max(best, (float(metrics.asimov_significance(s, b, 0.2 * b)), float(cut)))
        found = metrics.best_cut(Y, SCORE, yields, 0.2, least)
        assert found == pytest.approx((best[1], best[0]))
    assert metrics.best_cut(Y, SCORE, yields, 0.2, 1e6) is None
    assert metrics.best_cut(Y, SCORE, -yields, 0.2, 1.0) is None  # no background is expected anywhere


def test_calibration_equals_sklearn_without_weights() -> None:
    score = SCORE + RNG.normal(0, 1e-3, len(Y))
    edges = metrics.score_bins(score, 8)
    found = metrics.calibration(Y, score, np.ones(len(Y)), edges)
    observed, predicted = calibration_curve(Y, metrics.probability(score), n_bins=8, strategy="quantile")
    np.testing.assert_allclose(found.observed, observed, atol=1e-12)
    np.testing.assert_allclose(found.predicted, predicted, atol=1e-12)
    assert found.error == pytest.approx(np.mean(np.abs(observed - predicted)), abs=1e-3)  # bins of equal size


def test_calibration_error_of_true_probabilities_is_noise_and_of_others_is_not() -> None:
    """The probability of a label drawn from the score is the score's; with weights that differ between the classes it
    is so after the prior is moved by their ratio, and only then."""
    rng = np.random.default_rng(5)
    score = rng.normal(0, 2, 40_000)
    y = (rng.random(40_000) < metrics.probability(score)).astype(int)
    edges, equal = metrics.score_bins(score, 10), np.ones(len(y))
    perfect = metrics.calibration(y, score, equal, edges)
    assert perfect.error < 2 * perfect.error_if_perfect
    assert metrics.calibration(y, 2 * score, equal, 2 * edges).error > 10 * perfect.error_if_perfect
    weight = np.where(y == 1, 0.01, 1.0) * np.where(rng.random(len(y)) < 0.05, -1.0, 1.0)
    shift = np.log(0.01)
    moved = metrics.calibration(y, score + shift, weight, edges + shift)
    assert moved.error < 3 * moved.error_if_perfect
    assert metrics.calibration(y, score, weight, edges).error > 20 * moved.error_if_perfect
    assert moved.share.sum() == pytest.approx(1)


def test_bin_whose_weights_cancel_has_no_observed_share() -> None:
    found = metrics.calibration(np.array([1, 0, 1, 0]), np.array([-1, -1, 1, 1.0]), np.array([1, -1, 1, 1.0]), [0.0])
    assert np.isnan(found.observed[0])
    assert found.share.tolist() == [0, 1]
    assert found.observed[1] == 0.5


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
