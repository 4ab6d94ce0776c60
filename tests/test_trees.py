"""Shapley values of gradient-boosted trees against the enumeration of all coalitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hepx import trees
from hepx.attribution.coalitions import coalitions, shapley_weights
from hepx.trees import Table, Trees

COLUMNS = 5
Array = np.ndarray[Any, Any]


def events(num: int, seed: int) -> Table:
    """A product, a peak and a line; a column of noise, one that is often missing and one that no event fills."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, COLUMNS + 1))
    score = 2 * x[:, 0] * x[:, 1] + np.exp(-((x[:, 2] - 1) ** 2)) + x[:, 3]
    x[rng.uniform(size=num) < 0.3, 3] = np.nan
    x[:, COLUMNS] = np.nan
    return Table(x, (score > rng.logistic(size=num)).astype(np.int64), rng.uniform(0.5, 2, num))


@pytest.fixture(scope="module")
def fitted() -> Trees:
    return trees.fit(events(3000, 1), events(1000, 2), 0)


def enumerated(model: Trees, x: Array, donor: Array) -> Array:
    """All 2ⁿ mixtures of an event and a donor, scored one by one."""
    kept = coalitions(COLUMNS).numpy()
    rows = np.where(np.pad(kept, ((0, 0), (0, 1))), x, donor)
    return (shapley_weights(COLUMNS) @ torch.from_numpy(model.score(rows))).numpy()


def test_shapley_values_are_those_of_the_enumeration(fitted: Trees) -> None:
    """Missing values too; the column that no event fills gets nothing."""
    x, donors = events(6, 3).x, events(4, 4).x
    assert np.isnan(x[:, 3]).any()
    assert not np.isnan(x[:, 3]).all()
    found = trees.shapley(fitted, x, donors)
    expected = [[enumerated(fitted, one, other) for other in donors] for one in x]
    np.testing.assert_allclose(found[..., :COLUMNS], expected, atol=1e-10)
    assert (found[..., COLUMNS] == 0).all()
    assert np.abs(found[..., 0]).max() > 0.1


def test_shapley_values_of_a_predicted_number() -> None:
    """They add up to what the trees predict, also for a regression; the wrong donor does not give the sum."""
    train, validation = events(3000, 1), events(1000, 2)
    numbers = [Table(t.x, t.x[:, 0] * t.x[:, 1], t.weight) for t in (train, validation)]
    model = trees.fit(*numbers, 0)
    x, donors = events(50, 3).x, events(8, 4).x
    found, change = trees.shapley(model, x, donors).sum(2), model.score(x)[:, None] - model.score(donors)
    np.testing.assert_allclose(found, change, atol=1e-10)
    assert np.abs(found - change[:, ::-1]).max() > 0.1


def test_what_matters_is_found(fitted: Trees) -> None:
    """The noise gets the least, the factors of the product alike."""
    size = np.abs(trees.shapley(fitted, events(300, 5).x, events(32, 6).x).mean(1)).mean(0)[:COLUMNS]
    assert size.argmin() == COLUMNS - 1
    assert size[0] == pytest.approx(size[1], rel=0.25)
    assert size[4] < size[0] / 3


def test_too_many_columns_are_refused(fitted: Trees) -> None:
    wide = Trees(fitted.estimator, np.ones(trees.MOST_COLUMNS + 1, dtype=bool))
    with pytest.raises(ValueError, match="at most 32"):
        trees.shapley(wide, np.zeros((1, 33)), np.zeros((1, 33)))
