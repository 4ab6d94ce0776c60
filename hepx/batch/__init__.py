"""Jobs of batch systems. Adding one = one file with a frozen `BatchSystem`, and one line below."""

from __future__ import annotations

from hepx.batch.base import BatchSystem, Job, Resources, Script
from hepx.batch.htcondor import HTCondor
from hepx.batch.plan import plan, read_line, read_seeds
from hepx.batch.slurm import Slurm

__all__ = ["SYSTEMS", "BatchSystem", "Job", "Resources", "Script", "plan", "read_line", "read_seeds"]

SYSTEMS: dict[str, type[BatchSystem]] = {"slurm": Slurm, "htcondor": HTCondor}
"""Name on the command line -> batch system."""
