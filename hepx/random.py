"""Random numbers that belong to an event: the same whoever else is in the batch, and wherever they are drawn."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def scramble(number: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """One step of SplitMix64 (Steele et al., OOPSLA 2014): neighbouring integers become independent ones."""
    z = number.astype(np.uint64) + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def unit(number: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Scrambled integers as numbers in [0, 1)."""
    return (number >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform(seed: int, event_id: npt.NDArray[np.int64], what: str, num: int) -> npt.NDArray[np.float64]:
    """`num` numbers in [0, 1) for each event, [B, num], fixed by the seed, the event id and what they are for.

    The first ones do not depend on `num`.

    >>> ids = np.array([7, 8])
    >>> bool((uniform(1, ids, "donor", 3)[1] == uniform(1, ids[1:], "donor", 5)[0, :3]).all())
    True
    """
    key = np.frombuffer(hashlib.sha256(f"{seed} {what}".encode()).digest()[:8], dtype="<u8")
    start = scramble(scramble(event_id) ^ key)
    return unit(scramble(start[:, None] + np.arange(num, dtype=np.uint64) * _GAMMA))
