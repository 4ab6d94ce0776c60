"""The order in which training events come: a function of seed and epoch alone, wherever the events are kept.

Blocks of neighbouring events are taken in random order and as many of them as fit into memory are shuffled into one
another, so a batch mixes all samples while a disk is read in pieces that are worth a seek. To go on in the middle of an
epoch, only the position has to be known.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
BLOCK = 256  # neighbouring events taken together
BLOCKS_AT_ONCE = 256  # blocks shuffled into one another


def even_blocks(num_events: int) -> Int64:
    """Number of events in each block when `num_events` neighbours are cut into blocks."""
    return np.minimum(BLOCK, num_events - np.arange(0, num_events, BLOCK))


def shuffled_blocks(counts: Int64, seed: int, epoch: int) -> Iterator[tuple[Int64, Int64]]:
    """For blocks of `counts` [K] events: which blocks come together next, in rising order, and the order of their
    events when these are laid side by side. Every event comes once."""
    rng = np.random.default_rng([seed, epoch])
    blocks = rng.permutation(len(counts))
    for first in range(0, len(blocks), BLOCKS_AT_ONCE):
        together = np.sort(blocks[first : first + BLOCKS_AT_ONCE])
        yield together, rng.permutation(int(counts[together].sum()))
