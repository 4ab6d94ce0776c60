"""Memory that is freed stays with the process, for the next array.

The allocator of Linux (glibc) gives large arrays back to the system as soon as they are freed, and takes pages of zeros
for the next ones. The arrays of a step are as large as those of the step before, so much of the time goes into pages
(tests/benchmarks/bench_explain.py prints how much). What the process has once used it holds to its end.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of the settings in malloc.h


def keep_memory() -> bool:
    """Keep freed memory from now on; whether it is done. Not where the allocator is another one or has settings of the
    user (MALLOC_…, GLIBC_TUNABLES)."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    wanted = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
    return all(mallopt(name, value) == 1 for name, value in wanted.items())
