"""Concept erasure: make an observable unreadable for every linear probe, and see what the classifier loses.

LEACE (arXiv:2306.03819, theorem 4.3): among all affine maps after which no linear probe predicts Z from X better than a
constant does, r(x) = x − W⁺ P W (x − μ) moves the states least, where W whitens X and P projects onto the columns of
W Σ_xz. Z holds the trend of the observable and its curvature, so that a peak goes too. Where a probe only reads, this
is the matching intervention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.special import ndtri
from torch import Tensor

from hepx import metrics
from hepx.interventions import spliced
from hepx.models import Model

Array = npt.NDArray[Any]
TOLERANCE = 1e-8  # of the largest eigenvalue: below, a direction has no variance


@dataclass(frozen=True)
class Eraser:
    """x − (x − mean) removal, with removal [D, D] of the given rank."""

    mean: Float[np.ndarray, "D"]
    removal: Float[np.ndarray, "D D"]
    rank: int

    def __call__(self, states: Array) -> Array:
        """Erased states [n, D]."""
        return states - (states - self.mean) @ self.removal


def fit_eraser(states: Float[np.ndarray, "n D"], concept: Float[np.ndarray, "n K"], weight: Array) -> Eraser:
    """The least-squares eraser of `concept`, weighted with |w|."""
    w = np.abs(weight) / np.abs(weight).sum()
    mean = w @ states
    x, z = (states - mean) * np.sqrt(w)[:, None], (concept - w @ concept) * np.sqrt(w)[:, None]
    values, vectors = np.linalg.eigh(x.T @ x)
    good = values > TOLERANCE * values[-1]
    root = np.sqrt(np.where(good, values, 1.0))
    whiten, colour = (vectors * np.where(good, scale, 0.0) @ vectors.T for scale in (1 / root, root))
    directions, sizes, _ = np.linalg.svd(whiten @ (x.T @ z), full_matrices=False)
    kept = directions[:, sizes > max(1e-12, TOLERANCE**0.5 * sizes.max(initial=0.0))]
    projection = colour @ kept @ kept.T @ whiten
    return Eraser(mean, projection.T, kept.shape[1])


def concept(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    """What is erased of an observable: its trend and its curvature, in normal scores t of its rank: t and t²."""
    t = ndtri((metrics.ranks(values) - 0.5) / len(values))
    return np.stack([t, t**2], 1)


def erased(model: Model, name: str, erasers: dict[int, Eraser]) -> Model:
    """A copy whose submodule `name` gets node states in which each slot's concept is erased."""
    device = next(model.parameters()).device
    parts = {
        slot: [torch.from_numpy(part).float().to(device) for part in (eraser.mean, eraser.removal)]
        for slot, eraser in erasers.items()
    }

    def erase(h: Tensor, *rest: Any) -> tuple[Any, ...]:
        columns = list(h.unbind(1))
        for slot, (mean, removal) in parts.items():
            columns[slot] = columns[slot] - (columns[slot] - mean) @ removal
        return torch.stack(columns, 1), *rest

    return spliced(model, {name: erase})
