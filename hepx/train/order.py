"""The order of the training events, a function of seed and epoch alone, and the random numbers of a step likewise.

Nothing about the position in a random sequence has to be saved to go on in the middle of an epoch, and the same events
come in the same order whether they lie on the device, in memory or on disk: blocks of neighbouring events are taken in
random order, and as many of them as fit into memory are shuffled into one another.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
BLOCK = 256  # neighbouring events taken together
BLOCKS_AT_ONCE = 256  # blocks shuffled into one another


def shuffled_blocks(counts: Int64, seed: int, epoch: int) -> Iterator[tuple[Int64, Int64]]:
    """For blocks of `counts` [K] events: which blocks come together next, in rising order, and the order of their
    events when these are laid side by side. Every event comes once."""
    rng = np.random.default_rng([seed, epoch])
    blocks = rng.permutation(len(counts))
    for first in range(0, len(blocks), BLOCKS_AT_ONCE):
        together = np.sort(blocks[first : first + BLOCKS_AT_ONCE])
        yield together, rng.permutation(int(counts[together].sum()))


def step_seed(seed: int, step: int, *more: int) -> int:
    """A seed for the random numbers of one step; `more` tells apart several of them."""
    return int(np.random.SeedSequence([seed, step, *more]).generate_state(1, np.uint64)[0])
