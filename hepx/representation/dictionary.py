"""Sparse dictionaries of node states: an overcomplete set of directions of which each state uses a few.

A BatchTopK autoencoder (arXiv:2412.06410): of all coefficients of a batch the k·n largest stay. It earns its name only
if it explains more than principal components and single neurons do with as many coefficients per state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hepx import metrics
from hepx.interventions import spread
from hepx.results_network import Dictionary, finite

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
        limit = np.partition(found.detach().numpy().ravel(), -number)[-number]  # ten times as fast as topk
        return found * (found >= float(limit))

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


@dataclass(frozen=True)
class Rows:
    """The nodes whose states are compared: weight [n], signed; counts [R, n]: how often each is drawn in each bootstrap
    replica, the nodes of an event together; fitted [n]: those fitted on; slot [n]; targets: observable -> [n]."""

    weight: Array
    counts: Array
    fitted: Array
    slot: Array
    targets: dict[str, Array]


def dictionaries(states: Array, rows: Rows, network: str, layer: int, active: int, seed: int) -> list[Dictionary]:
    """The dictionary, principal components and neurons of a layer's states [n, D], each with `active` coefficients.

    Fitted without weights, judged on the other rows with signed weights. The errors are those of the events judged on;
    another seed of the fit is not in them.
    """
    fitted = rows.fitted
    mean, width = states[fitted].mean(0), states[fitted].std(0).clip(min=1e-6)
    scaled = (states - mean) / width
    train, test = (torch.from_numpy(scaled[part]).float() for part in (fitted, ~fitted))
    model = fit_dictionary(train, active, seed)
    with torch.inference_mode():
        rebuilt, found = model(test)
    axes = np.linalg.svd(scaled[fitted] - scaled[fitted].mean(0), full_matrices=False)[2]
    kinds = [("dictionary", rebuilt.numpy(), found.numpy())]
    for kind, basis in (("principal components", axes), ("neurons", np.eye(states.shape[1]))):
        sparse = largest(scaled[~fitted] @ basis.T, active)
        kinds.append((kind, sparse @ basis, sparse))
    weight = rows.weight[~fitted] * np.concatenate([np.ones((1, (~fitted).sum())), rows.counts[:, ~fitted]])
    inside, compared = {name: values[~fitted] for name, values in rows.targets.items()}, []
    for kind, again, coefficients in kinds:
        missed = unexplained(scaled[~fitted], again, weight)
        read = readable(coefficients, inside, rows.slot[~fitted], weight)
        compared.append(
            Dictionary(
                network=network,
                layer=layer,
                kind=kind,
                size=coefficients.shape[1],
                active=active,
                unexplained=finite(missed[:1])[0],
                error=spread(missed[1:]),
                dead=int((coefficients == 0).all(0).sum()),
                readable={name: value for name, (value, _) in read.items()},
                readable_error={name: error for name, (_, error) in read.items()},
            )
        )
    return compared


def largest(values: Array, number: int) -> Array:
    """The `number` largest entries in size of each row, 0 elsewhere."""
    if number >= values.shape[1]:
        return values
    limit = -np.partition(-np.abs(values), number - 1, axis=1)[:, number - 1 : number]
    return np.where(np.abs(values) >= limit, values, 0.0)


def unexplained(states: Array, rebuilt: Array, weight: Float[np.ndarray, "R n"]) -> Float[np.ndarray, "R"]:
    """Share of the variance that the reconstruction misses, for each row of signed weights; NaN where they cancel."""
    total = weight.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = weight @ (states**2).sum(1) - ((weight @ states) ** 2).sum(1) / total
        missed = weight @ ((states - rebuilt) ** 2).sum(1)
        return np.where((total > 0) & (variance > 0), missed / variance, np.nan)


def readable(
    coefficients: Array, targets: dict[str, Array], slot: Array, weight: Float[np.ndarray, "R n"]
) -> dict[str, tuple[float, float | None]]:
    """Largest |weighted rank correlation| of one coefficient with each target inside one slot, over coefficients and
    slots, with the first row of weights; and the spread of that one over the other rows."""
    best: dict[str, tuple[float, float | None]] = dict.fromkeys(targets, (0.0, None))
    for one in np.unique(slot):
        rows = slot == one
        for name, values in targets.items():
            known = rows & np.isfinite(values)
            if known.sum() >= FEWEST:
                found = _largest_correlation(coefficients[known], values[known], weight[:, known])
                best[name] = max(best[name], found, key=lambda pair: pair[0])
    return best


def _largest_correlation(coefficients: Array, values: Array, weight: Array) -> tuple[float, float | None]:
    ranks, wanted = metrics.ranks(coefficients), metrics.ranks(values)
    size = np.abs(_correlations(ranks, wanted, weight[:1])[0])
    at = int(size.argmax())
    return float(size[at]), spread(_correlations(ranks[:, at : at + 1], wanted, weight[1:])[:, 0])


def _correlations(ranks: Array, wanted: Array, weight: Array) -> Float[np.ndarray, "R S"]:
    """Weighted correlation of each column [n, S] with `wanted` [n]; 0 where one of them does not vary."""
    x, y = ranks - ranks.mean(0), wanted - wanted.mean()
    total = weight.sum(1, keepdims=True)
    w = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    mean_x, mean_y = w @ x, (w @ y)[:, None]
    product = (w @ x**2 - mean_x**2).clip(0) * ((w @ y**2)[:, None] - mean_y**2).clip(0)
    covariance = (w * y) @ x - mean_x * mean_y
    return np.divide(covariance, np.sqrt(product), out=np.zeros_like(covariance), where=product > 1e-9)
