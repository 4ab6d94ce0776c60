"""Events with known truth: Pythia, a toy detector, and the layout of the 2025 ATLAS Open Data.

A new process is a `Process` in processes.py (or a new file) and a new entry of PROCESSES. Importing this package
does not import Pythia or FastJet, which only the extra `simulate` installs.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hepx import __version__
from hepx.errors import ConfigError, closest
from hepx.simulate.generator import require_generators
from hepx.simulate.processes import SIGNAL, SINGLE_TOP, TTBAR, Process
from hepx.simulate.production import Recipe, produce
from hepx.simulate.writer import write_tree

__all__ = ["PROCESSES", "Process", "SimulateSettings", "simulate"]

log = logging.getLogger(__name__)

PROCESSES: dict[str, Process] = {process.name: process for process in (SIGNAL, TTBAR, SINGLE_TOP)}


class SimulateSettings(BaseModel):
    """Settings of one simulated file.

    The events depend on process, num_events, seed, met_min and filters, never on workers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: str
    """A key of PROCESSES."""
    num_events: int = Field(default=8000, ge=1)
    """Events after the preselection, over all channels of the process."""
    seed: int = Field(default=1, ge=0)
    workers: int = Field(default=1, ge=1)
    """Processes that generate at the same time."""
    met_min: float = Field(default=100.0, ge=0.0, le=500.0)
    """Preselection on the missing transverse momentum (GeV)."""
    filters: bool = True
    """False generates every event, many times slower: it measures what the generator filters lose."""

    @field_validator("process")
    @classmethod
    def known_process(cls, process: str) -> str:
        """Refuse an unknown process with the closest names."""
        if process not in PROCESSES:
            raise ConfigError(f"hepx simulate: there is no process '{process}'; {closest(process, PROCESSES)}")
        return process


def simulate(settings: SimulateSettings, output: Path) -> Path:
    """Generate the events of one process and write the ROOT file `output`.

    Args:
        settings: what to generate.
        output: path of the file; it appears only when it is complete.

    Returns:
        `output`.

    Raises:
        ConfigError: Pythia or FastJet is missing.
        HepxError: a worker process was killed.
    """
    require_generators()
    process = PROCESSES[settings.process]
    recipe = Recipe(settings.seed, settings.met_min, settings.filters)
    events = produce(process, settings.num_events, recipe, settings.workers)
    title = (
        f"{process.title}; hepx {__version__} simulate {process.name} --events {settings.num_events} "
        f"--seed {settings.seed} --met-min {settings.met_min:g}"
    )
    write_tree(events, output, title)
    log.info("%s: %d events of %s", output, len(events), process.name)
    return output
