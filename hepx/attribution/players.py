"""Groups of features as players: which cells (slot, feature) of an event move together.

A group names features as `type.feature` (bjet.pt: of every b-jet) or `slot.feature` (b1.pt), or whole objects as `type`
or `slot`. All nodes of one object move together; an object that is a b-jet in any slot counts as one. The lepton's φ is
in no group by default: replacements are turned so that their lepton points along the event's, which makes every other φ
a Δφ to the lepton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from hepx.attribution.baselines import Pattern
from hepx.errors import ConfigError, closest
from hepx.graph import DEFINED, RAW_FEATURES, Layout

MOST_PLAYERS = 12  # 2¹² = 4096 coalitions per replacement
REST = "rest"


def default_players(layout: Layout) -> dict[str, tuple[str, ...]]:
    """One player per type and feature; the jets that are not b-jets are one player, if there are b-jets."""
    types = list(dict.fromkeys(layout.types))
    players: dict[str, tuple[str, ...]] = {}
    for kind in types:
        if kind == "jet" and "bjet" in types:
            players["jet"] = ("jet",)
            continue
        features = [name for name in DEFINED[kind] if (kind, name) != ("lepton", "phi")]
        players |= {f"{kind}.{name}": (f"{kind}.{name}",) for name in features}
    return players


def check_players(players: Mapping[str, Sequence[str]], layout: Layout) -> None:
    """ConfigError if a group is empty, names what the graphs do not have, or there are too many groups."""
    if len(players) > MOST_PLAYERS:
        raise ConfigError(
            f"{len(players)} groups of features have 2^{len(players)} coalitions; at most {MOST_PLAYERS} are allowed. "
            "Join some of them in `players`."
        )
    known = [*layout.types, *layout.slots]
    for group, names in players.items():
        if not names:
            raise ConfigError(f"group '{group}' of `players` is empty; name its features, for example [met.pt].")
        for name in names:
            owner, dot, feature = name.partition(".")
            if owner not in known:
                raise ConfigError(f"group '{group}': unknown object '{owner}'; {closest(owner, known)}")
            if dot and feature not in RAW_FEATURES:
                raise ConfigError(f"group '{group}': unknown feature '{feature}'; {closest(feature, RAW_FEATURES)}")


def object_kinds(pattern: Pattern, layout: Layout) -> list[str]:
    """Type of each object of the pattern: bjet where one of its nodes is one."""
    kinds = []
    for player in range(pattern.num_players):
        types = [kind for kind, p in zip(layout.types, pattern.player.tolist(), strict=True) if p == player]
        kinds.append("bjet" if "bjet" in types else types[0])
    return kinds


def cells(
    players: Mapping[str, Sequence[str]], pattern: Pattern, layout: Layout
) -> tuple[list[int], Bool[Tensor, "p N F"]]:
    """Numbers of the groups that have an object in such events, and their cells; cells of no group join the last one.

    The group `rest`, numbered after the others, holds the defined features that no group names.
    """
    kinds, features = object_kinds(pattern, layout), list(RAW_FEATURES)
    table = torch.zeros(len(players) + 1, len(layout.slots), len(features), dtype=torch.bool)
    for slot, player in enumerate(pattern.player.tolist()):
        if player < 0:
            continue
        names = {layout.slots[s] for s, p in enumerate(pattern.player.tolist()) if p == player} | {kinds[player]}
        for feature in DEFINED[kinds[player]]:
            wanted = names | {f"{name}.{feature}" for name in names}
            groups = [number for number, group in enumerate(players.values()) if wanted & set(group)]
            if len(groups) > 1:
                pair = [list(players)[number] for number in groups[:2]]
                raise ConfigError(f"{layout.slots[slot]}.{feature} is in two groups of `players`: {', '.join(pair)}.")
            is_reference = (kinds[player], feature) == ("lepton", "phi")
            number = groups[0] if groups else (None if is_reference else len(players))
            if number is not None:
                table[number, slot, features.index(feature)] = True
    active = [number for number in range(len(table)) if table[number].any()]
    return active, table[active]


def has_rest(players: Mapping[str, Sequence[str]], layout: Layout) -> bool:
    """Whether some defined feature is in no group."""
    named = {name for group in players.values() for name in group}
    return any(
        not named & {slot, kind, f"{slot}.{feature}", f"{kind}.{feature}"} and (kind, feature) != ("lepton", "phi")
        for slot, kind in zip(layout.slots, layout.types, strict=True)
        for feature in DEFINED[kind]
    )
