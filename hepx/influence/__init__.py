"""Training-data attribution: which training events made the network what it is.

Adding a score = one file with a frozen `Score`, and one line in `SCORES`.
"""

from __future__ import annotations

from hepx.influence.base import Score, Task
from hepx.influence.baselines import EL2N, Logit, Loss, Random, Representation
from hepx.influence.similarity import GradCos, GradDot
from hepx.influence.tracin import LastLayer, TracIn
from hepx.influence.trak import Trak
from hepx.train.snapshots import Snapshot, read_snapshot, read_snapshots

__all__ = ["SCORES", "Score", "Snapshot", "Task", "read_snapshot", "read_snapshots"]

SCORES: dict[str, type[Score]] = {
    "tracin": TracIn,
    "last_layer": LastLayer,
    "grad_dot": GradDot,
    "grad_cos": GradCos,
    "trak": Trak,
    "loss": Loss,
    "logit": Logit,
    "el2n": EL2N,
    "representation": Representation,
    "random": Random,
}
"""Name -> score."""
