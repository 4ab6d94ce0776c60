"""Exact Shapley values and pair interactions of the objects of an event.

Players are the objects that are present (all nodes of one object together). The worth of a coalition S is the mean
score of events that keep the objects in S and take the others from a donor event:
v(S) = E_x'[f(x_S, x'_{N∖S})] (Lundberg & Lee, arXiv:1705.07874; interventional form, Janzing et al., arXiv:1910.13413).
All 2ⁿ coalitions are evaluated, so the only error is that of the finite number of donors, which is stored.
Pair interactions are the Shapley interaction index of order two (Grabisch & Roubens, 1999).
"""

from __future__ import annotations

from functools import cache
from math import factorial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from hepx.attribution import baselines
from hepx.attribution.base import ROWS_PER_PASS, Method, Subject, event_table, scores
from hepx.graph import GraphBatch
from hepx.models import Model
from hepx.progress import progress
from hepx.results import Explanation, Provenance


class Shapley(Method):
    """Exact Shapley values of objects with `draws` donors per event from the `background` training events."""

    method: Literal["shapley"] = "shapley"
    baseline: Literal["background"] = "background"
    draws: int = Field(default=16, ge=2)

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N] and interactions [B, N, N] with their standard errors over the donors."""
        graphs = subject.graphs
        num_events, num_slots = graphs.mask.shape
        values = torch.zeros(2, num_events, num_slots, dtype=torch.float64)
        pairs = torch.zeros(2, num_events, num_slots, num_slots, dtype=torch.float64)
        score = torch.zeros(num_events, dtype=torch.float64)
        baseline_score = torch.zeros(num_events, dtype=torch.float64)
        subject.model.eval()
        with progress("shapley", num_events, " events") as advance:
            for pattern in baselines.patterns(graphs, subject.baseline):
                n = pattern.num_players
                first_slot = torch.tensor([pattern.player.tolist().index(i) for i in range(n)])
                rows = 2**n * self.draws
                for index in pattern.index.split(max(1, 4 * ROWS_PER_PASS // rows)):
                    events = graphs[index]
                    donors = baselines.draw(pattern, events, self.draws, subject.seed)
                    worth = coalition_worths(subject.model, events, donors, pattern.player, subject.target)
                    phi = worth @ shapley_weights(n).T
                    values[:, index[:, None], first_slot] = _mean_and_error(phi)
                    interaction = torch.einsum("bks,ijs->bkij", worth, interaction_weights(n))
                    grid = (index[:, None, None], first_slot[:, None], first_slot[None, :])
                    pairs[(slice(None), *grid)] = _mean_and_error(interaction)
                    score[index], baseline_score[index] = worth[:, 0, -1], worth[:, :, 0].mean(1)
                    advance(len(index))
        return Explanation(
            events=event_table(graphs),
            values=values[0].numpy(),
            error=values[1].numpy(),
            score=score.numpy(),
            baseline_score=baseline_score.numpy(),
            completeness_error=(values[0].sum(1) - (score - baseline_score)).abs().numpy(),
            interactions=pairs[0].numpy(),
            interactions_error=pairs[1].numpy(),
            provenance=provenance,
        )


@cache
def coalitions(n: int) -> Bool[Tensor, "S n"]:
    """All 2ⁿ coalitions: row s holds player i if bit i of s is set; row 0 is empty, the last one full."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1


@cache
def shapley_weights(n: int) -> Float[Tensor, "n S"]:
    """Matrix that turns coalition worths [S] into Shapley values [n]."""
    members = coalitions(n)
    size = members.sum(1)
    shares = [factorial(s) * factorial(n - s - 1) / factorial(n) if s < n else 0.0 for s in range(n + 1)]
    table = torch.tensor(shares, dtype=torch.float64)
    joined = table[(size - 1).clamp(min=0)][:, None] * members  # S contains i: +w(|S|−1)
    left = table[size][:, None] * ~members  # S lacks i: −w(|S|)
    return (joined - left).T


@cache
def interaction_weights(n: int) -> Float[Tensor, "n n S"]:
    """Tensor that turns coalition worths [S] into Shapley interaction indices [n, n]; zero on the diagonal."""
    members = coalitions(n)
    size = members.sum(1)
    pair_sizes = max(n - 1, 1)
    table = [factorial(s) * factorial(n - s - 2) / factorial(n - 1) if s <= n - 2 else 0.0 for s in range(pair_sizes)]
    weights = torch.tensor(table, dtype=torch.float64)
    sign = torch.where(members, 1.0, -1.0).double()
    in_pair = members[:, :, None].long() + members[:, None, :].long()
    without = (size[:, None, None] - in_pair).clamp(max=pair_sizes - 1)  # size of S without the two players
    index = weights[without] * sign[:, :, None] * sign[:, None, :]
    index = index * (1 - torch.eye(n, dtype=torch.float64))
    return index.permute(1, 2, 0)


def coalition_worths(
    model: Model, events: GraphBatch, donors: Float[Tensor, "b K N F"], player: Tensor, target: int
) -> Float[Tensor, "b K S"]:
    """Score of every coalition with every donor, float64."""
    n = int(player.max()) + 1
    kept = coalitions(n)[:, player.clamp(min=0)] & (player >= 0)  # [S, N]
    batch, draws, slots, width = donors.shape
    x = torch.where(kept[None, None, :, :, None], events.x[:, None, None], donors[:, :, None])
    rows = batch * draws * len(kept)
    mask = events.mask[0].expand(rows, slots)
    node_type = events.node_type[0].expand(rows, slots)
    device = next(model.parameters()).device
    x, mask, node_type = (tensor.to(device) for tensor in (x.reshape(rows, slots, width), mask, node_type))
    return scores(model, x, mask, node_type, target).double().cpu().reshape(batch, draws, len(kept))


def _mean_and_error(draws: Float[Tensor, "b K *n"]) -> Float[Tensor, "2 b *n"]:
    """Mean over the donors and its standard error."""
    return torch.stack([draws.mean(1), draws.std(1) / draws.shape[1] ** 0.5])
