"""Sparse dictionaries of node states: an overcomplete set of directions of which each state uses a few.

A BatchTopK autoencoder (arXiv:2412.06410): of all coefficients of a batch the k·n largest stay. It earns its name only
if it explains more than principal components and single neurons do with as many coefficients per state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor, nn

from hepx.results_network import Dictionary

Array = npt.NDArray[Any]
SIZE = 4  # directions per dimension
STEPS, BATCH, RATE = 400, 512, 3e-3
FEWEST = 100


class BatchTopK(nn.Module):
    """Encoder, decoder with directions of length 1, and the k·n largest coefficients of a batch of n."""

    def __init__(self, dim: int, size: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.encode = nn.Linear(dim, size)
        self.decode = nn.Linear(size, dim)
        with torch.no_grad():
            self.encode.weight.copy_(self.decode.weight.T)
            self.encode.bias.zero_()
            self.decode.bias.zero_()
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        """Directions of length 1: a coefficient then has the unit of the states."""
        self.decode.weight.div_(self.decode.weight.norm(dim=0, keepdim=True).clamp(min=1e-8))

    def coefficients(self, states: Float[Tensor, "n D"]) -> Float[Tensor, "n S"]:
        """The largest k·n positive coefficients of the batch, 0 elsewhere."""
        found = torch.relu(self.encode(states))
        number = min(self.active * len(states), found.numel())
        return found * (found >= found.flatten().topk(number).values[-1])

    def forward(self, states: Float[Tensor, "n D"]) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n S"]]:
        """Reconstruction and coefficients."""
        coefficients = self.coefficients(states)
        return self.decode(coefficients), coefficients


def fit_dictionary(states: Float[Tensor, "n D"], active: int, seed: int) -> BatchTopK:
    """Train a dictionary on standardised states; the random state of the caller is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BatchTopK(states.shape[1], SIZE * states.shape[1], active)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        for _ in range(STEPS):
            batch = states[torch.randint(0, len(states), (min(BATCH, len(states)),))]
            loss = ((model(batch)[0] - batch) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.normalise()
    return model.eval()


def dictionaries(
    states: Array,
    weight: Array,
    fitted: Array,
    slot: Array,
    targets: dict[str, Array],
    layer: int,
    active: int,
    seed: int,
) -> list[Dictionary]:
    """The dictionary, principal components and neurons of a layer's states [n, D], each with `active` coefficients.

    Fitted on the rows in `fitted` [n] without weights, judged on the others with |w|. slot [n], targets [n].
    """
    mean, spread = states[fitted].mean(0), states[fitted].std(0).clip(min=1e-6)
    scaled = (states - mean) / spread
    train, test = (torch.from_numpy(scaled[part]).float() for part in (fitted, ~fitted))
    model = fit_dictionary(train, active, seed)
    with torch.inference_mode():
        rebuilt, found = model(test)
    axes = np.linalg.svd(scaled[fitted] - scaled[fitted].mean(0), full_matrices=False)[2]
    rows = [("dictionary", rebuilt.numpy(), found.numpy())]
    for kind, basis in (("principal components", axes), ("neurons", np.eye(states.shape[1]))):
        sparse = largest(scaled[~fitted] @ basis.T, active)
        rows.append((kind, sparse @ basis, sparse))
    w = np.abs(weight[~fitted])
    inside = {name: values[~fitted] for name, values in targets.items()}
    return [
        Dictionary(
            layer,
            kind,
            coefficients.shape[1],
            active,
            unexplained(scaled[~fitted], again, w),
            int((coefficients == 0).all(0).sum()),
            readable(coefficients, inside, slot[~fitted]),
        )
        for kind, again, coefficients in rows
    ]


def largest(values: Array, number: int) -> Array:
    """The `number` largest entries in size of each row, 0 elsewhere."""
    if number >= values.shape[1]:
        return values
    limit = -np.partition(-np.abs(values), number - 1, axis=1)[:, number - 1 : number]
    return np.where(np.abs(values) >= limit, values, 0.0)


def unexplained(states: Array, rebuilt: Array, weight: Array) -> float:
    """Weighted share of the variance that the reconstruction misses."""
    w = weight / weight.sum()
    missed = w @ ((states - rebuilt) ** 2).sum(1)
    return float(missed / (w @ ((states - w @ states) ** 2).sum(1)))


def readable(coefficients: Array, targets: dict[str, Array], slot: Array) -> dict[str, float]:
    """Largest |rank correlation| of one coefficient with each target inside one slot, over coefficients and slots."""
    best = dict.fromkeys(targets, 0.0)
    for one in np.unique(slot):
        rows = slot == one
        for name, values in targets.items():
            known = rows & np.isfinite(values)
            if known.sum() >= FEWEST:
                best[name] = max(best[name], _largest_correlation(coefficients[known], values[known]))
    return best


def _largest_correlation(coefficients: Array, values: Array) -> float:
    ranks, wanted = rankdata(coefficients, axis=0), rankdata(values)
    ranks, wanted = ranks - ranks.mean(0), wanted - wanted.mean()
    spread = np.sqrt((ranks**2).sum(0) * (wanted**2).sum())
    return float(np.max(np.abs(wanted @ ranks) / np.where(spread > 0, spread, np.inf)))
