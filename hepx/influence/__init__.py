"""Training-data attribution: which training events made the network what it is.

Adding a score = one file with a frozen `Score`, and one line in `SCORES`.
"""

from __future__ import annotations

from hepx.influence.base import Score, Task
from hepx.train.snapshots import Snapshot, read_snapshot, read_snapshots

__all__ = ["SCORES", "Score", "Snapshot", "Task", "read_snapshot", "read_snapshots"]

SCORES: dict[str, type[Score]] = {}
"""Name -> score."""
