"""Coalitions of players and the linear maps from their worths to values: Shapley, interaction, Faith-Shap, Owen.

Every map is a matrix [..., S] over the S coalitions of a table, so one table serves all of them. Players are objects or
groups of features; a coalition keeps its players' cells (slot, feature) and takes the others from the replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import comb, factorial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hepx.attribution.base import ROWS_PER_PASS, Shared, in_blocks, scores
from hepx.graph import GraphBatch
from hepx.models import Model


@cache
def coalitions(n: int) -> Bool[Tensor, "S n"]:
    """All 2ⁿ coalitions: row s holds player i if bit i of s is set; row 0 is empty, the last one full."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1


@cache
def shapley_weights(n: int) -> Float[Tensor, "n S"]:
    """Matrix that turns coalition worths [S] into Shapley values [n] (Shapley, 1953)."""
    members = coalitions(n)
    size = members.sum(1)
    shares = [factorial(s) * factorial(n - s - 1) / factorial(n) if s < n else 0.0 for s in range(n + 1)]
    table = torch.tensor(shares, dtype=torch.float64)
    joined = table[(size - 1).clamp(min=0)][:, None] * members  # S contains i: +w(|S|−1)
    left = table[size][:, None] * ~members  # S lacks i: −w(|S|)
    return (joined - left).T


@cache
def interaction_weights(n: int) -> Float[Tensor, "n n S"]:
    """Tensor that turns coalition worths [S] into Shapley interaction indices [n, n]; zero on the diagonal.

    Grabisch & Roubens, 1999: I_ij = Σ_S |S|! (n−|S|−2)! / (n−1)! [v(S∪ij) − v(S∪i) − v(S∪j) + v(S)].
    """
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


@cache
def faith_weights(n: int) -> Float[Tensor, "n n S"]:
    """Tensor that turns coalition worths [S] into Faith-Shap of order two [n, n] (Tsai et al., arXiv:2203.00870).

    The polynomial E_0 + Σ E_i + Σ E_ij that fits the worths best with the weights (n−1) / (C(n,s) s (n−s)) of Shapley's
    regression and exactly for the empty and the full coalition. E_i on the diagonal, E_ij in both triangles.
    """
    members = coalitions(n).double()
    first, second = torch.triu_indices(n, n, 1)
    design = torch.cat([members, members[:, first] * members[:, second]], 1)  # [S, n + pairs]; v(∅) is subtracted
    size = members.sum(1).long().tolist()
    inner = [(n - 1) / (comb(n, s) * s * (n - s)) if 0 < s < n else 0.0 for s in size]
    weighted = design.T * torch.tensor(inner, dtype=torch.float64)
    unknowns = design.shape[1]
    system = torch.zeros(unknowns + 1, unknowns + 1, dtype=torch.float64)  # with a multiplier for the full coalition
    system[:unknowns, :unknowns] = weighted @ design
    system[:unknowns, unknowns] = system[unknowns, :unknowns] = 1.0
    right = torch.zeros(unknowns + 1, 2**n, dtype=torch.float64)
    right[:unknowns], right[unknowns, -1] = weighted, 1.0
    right[:, 0] -= right.sum(1)  # worths count from that of the empty coalition
    solution = torch.linalg.solve(system, right)[:unknowns]
    table = torch.diag_embed(solution[:n].T).permute(1, 2, 0).clone()
    table[first, second] = table[second, first] = solution[n:]
    return table


@cache
def owen_table(unions: tuple[int, ...]) -> tuple[Bool[Tensor, "S P"], Float[Tensor, "P S"]]:
    """The coalitions that Owen values need, and the matrix from their worths to the values of the players.

    unions: number of players of each union, in order. Players share what their union gets (Owen, 1977): the unions join
    in every order, and inside the joining union its players in every order. First row empty, last full.
    """
    num_unions, num_players = len(unions), sum(unions)
    starts = [sum(unions[:k]) for k in range(num_unions)]
    whole = [((1 << unions[k]) - 1) << starts[k] for k in range(num_unions)]
    entries: dict[int, dict[int, float]] = {}
    for k, size in enumerate(unions):
        others = [j for j in range(num_unions) if j != k]
        for chosen in range(1 << len(others)):
            joined = [others[j] for j in range(len(others)) if chosen >> j & 1]
            base = sum(whole[j] for j in joined)
            outer = factorial(len(joined)) * factorial(num_unions - len(joined) - 1) / factorial(num_unions)
            for inside in range(1 << size):
                count = inside.bit_count()
                row = entries.setdefault(base | inside << starts[k], {})
                for i in range(size):
                    before = count - (inside >> i & 1)
                    share = outer * factorial(before) * factorial(size - before - 1) / factorial(size)
                    player = starts[k] + i
                    row[player] = row.get(player, 0.0) + (share if inside >> i & 1 else -share)
    keys = sorted(entries)
    weights = torch.zeros(num_players, len(keys), dtype=torch.float64)
    for column, key in enumerate(keys):
        for player, value in entries[key].items():
            weights[player, column] = value
    members = (torch.tensor(keys)[:, None] >> torch.arange(num_players)) % 2 == 1
    return members, weights


def values_of(worth: Float[Tensor, "b K S"], weights: Float[Tensor, "*n S"]) -> Float[Tensor, "b K *n"]:
    """Apply one of the maps by plain sums: a matrix product would round differently in another batch."""
    sums = [(worth[:, :, None] * rows).sum(-1) for rows in weights.flatten(0, -2).split(8)]
    return torch.cat(sums, -1).unflatten(-1, weights.shape[:-1])


def worths(
    model: Model,
    events: GraphBatch,
    replaced: Float[Tensor, "b K N F"],
    kept: Bool[Tensor, "S N #F"],
    target: int,
    masked: bool = False,
) -> Float[Tensor, "b K S"]:
    """Score of every coalition with every replacement, float64; `masked` hides the objects that are not kept.

    kept: the cells that stay the event's; first row none, last all. The full coalition is the event itself, whatever
    the replacement, and is scored once.
    """
    part = kept[:-1]
    x = torch.where(part, events.x[:, None, None], replaced[:, :, None])
    mask = events.mask[:, None, None].expand(x.shape[:-1])
    if masked:
        mask = mask & part[..., 0]
    shared = None if masked or kept.shape[2] > 1 else computed_once(model, events, replaced, kept[..., 0])
    x, mask = (torch.cat([v.flatten(1, 2), whole[:, None]], 1) for v, whole in ((x, events.x), (mask, events.mask)))
    found = scores(model, x, mask, events.node_type, target, shared=shared)
    inner, full = found[:, :-1].unflatten(1, (-1, len(part))), found[:, -1:, None]
    return torch.cat([inner, full.expand(-1, inner.shape[1], -1)], 2)


@torch.inference_mode()
def computed_once(
    model: Model, events: GraphBatch, replaced: Float[Tensor, "b K N F"], kept: Bool[Tensor, "S N"]
) -> Shared | None:
    """What objects and pairs of event and replacement are to the model: 2 N objects, with either direction that φ
    counts from, and (2 N)² pairs, instead of N and N² for each of 2ᴺ coalitions.

    Row (draw, coalition) of an event takes slot i from place i if it is kept, else from place N + i; the last row is
    the event itself. None for a model that computes nothing of them.
    """
    batch, draws, slots, _ = replaced.shape
    device = next(model.parameters()).device
    whole = events.x[:, None].expand(replaced.shape)
    x, turned = (in_blocks(torch.cat(parts, 2)).to(device) for parts in ((whole, replaced), (replaced, whole)))
    mask, kinds = (
        torch.cat([v, v], 1).repeat_interleave(len(x) // batch, 0).to(device) for v in (events.mask, events.node_type)
    )
    passes = [slice(i, i + ROWS_PER_PASS // 4) for i in range(0, len(x), ROWS_PER_PASS // 4)]
    found = [model.pair_terms(*(v[part] for v in (x, mask, kinds))) for part in passes]
    terms = tuple(torch.cat(parts).flatten(0, 2) for parts in zip(*found, strict=True))
    states = _states(model, x, turned, mask, kinds, passes)
    if not terms and states is None:
        return None
    begin = torch.arange(len(x)).unflatten(0, (batch, -1))  # rows of `x`
    source = torch.arange(slots) + slots * ~kept
    pair = (2 * slots * source[:, :, None] + source[:, None, :]).flatten(1)  # [S, N · N]
    counted = kept[:, model.inputs.reference(events.mask.to(device)).cpu()].T  # [b, S]: from the event's own object
    node = source + 2 * slots * ~counted[..., None]
    places = _in_rows((2 * slots) ** 2 * begin, pair[None], draws), _in_rows(4 * slots * begin, node, draws)
    return Shared(terms, places[0], states, places[1])


def _states(
    model: Model, x: Tensor, turned: Tensor, mask: Tensor, kinds: Tensor, passes: Sequence[slice]
) -> Float[Tensor, "M D"] | None:
    """States of event and replacement, φ counted from an object of the event, then of the replacement."""
    found = []
    for part in passes:
        states = model.node_states(x[part], mask[part], kinds[part])
        if states is None:
            return None
        other = model.node_states(turned[part], mask[part], kinds[part])
        assert other is not None
        found.append(torch.cat([states, other.roll(states.shape[1] // 2, 1)], 1).flatten(0, 1))
    return torch.cat(found)


def _in_rows(begin: Int[Tensor, "b K2"], place: Int[Tensor, "#b S n"], draws: int) -> Int[Tensor, "b k n"]:
    """Places of all draws and coalitions but the full one, which comes last and once."""
    inner = (begin[:, :draws, None, None] + place[:, None, :-1]).flatten(1, 2)
    return torch.cat([inner, begin[:, :1, None] + place[:, -1:]], 1)
