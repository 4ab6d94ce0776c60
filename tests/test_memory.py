"""Freed memory is kept: the pages that a step needs are there from the step before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hepx.memory import keep_memory

STEPS = """
import resource, sys
import numpy as np
from hepx.memory import keep_memory
kept = keep_memory() if sys.argv[1] == "keep" else False
def step():
    return [np.ones(500_000) for _ in range(8)] and None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
before = faults()
for _ in range(10):
    step()
print(kept, faults() - before)
"""


def faults(how: str, **environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and page faults of ten steps with 32 MB each, in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", STEPS, how]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    kept, number = done.stdout.split()
    return kept == "True", int(number)


def test_steps_take_no_new_pages() -> None:
    kept, few = faults("keep")
    if not kept:
        pytest.skip("the allocator is not that of glibc")
    _, many = faults("plain")
    assert few < many / 10
    assert many > 10_000  # ten steps of 8 arrays with 977 pages each


def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_memory()
