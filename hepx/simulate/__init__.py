"""Events with known truth: Pythia, a toy detector, and the layout of the 2025 ATLAS Open Data.

A new process is a `Process` in processes.py (or a new file) and a new entry of PROCESSES. Importing this package
does not import Pythia or FastJet, which only the extra `simulate` installs.
"""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hepx import __version__, files
from hepx.errors import ConfigError, closest
from hepx.simulate.generator import FILTERS, require_generators
from hepx.simulate.processes import SIGNAL, SINGLE_TOP, TTBAR, Process
from hepx.simulate.production import Recipe, Shard, produce
from hepx.simulate.wjets import WJETS
from hepx.simulate.writer import write_tree
from hepx.simulate.wt import WT

__all__ = ["PROCESSES", "Process", "SimulateSettings", "chunk_folder", "simulate"]

log = logging.getLogger(__name__)

PROCESSES: dict[str, Process] = {process.name: process for process in (SIGNAL, TTBAR, SINGLE_TOP, WT, WJETS)}


class SimulateSettings(BaseModel):
    """Settings of one simulated file.

    The events depend on everything but workers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: str
    """A key of PROCESSES."""
    num_events: int = Field(default=8000, ge=1)
    """Events after the preselection, over all channels of the process and all shards."""
    seed: int = Field(default=1, ge=0)
    workers: int = Field(default=1, ge=1)
    """Processes that generate at the same time."""
    met_min: float = Field(default=100.0, ge=0.0, le=500.0)
    """Preselection on the missing transverse momentum (GeV)."""
    filters: str = "tight"
    """A key of FILTERS; `none` generates every event, many times slower."""
    chunk_size: int = Field(default=3200, ge=100)
    """Events that one Pythia generates."""
    shard: str = Field(default="1/1", pattern=r"^[1-9]\d*/[1-9]\d*$")
    """3/20 is the third of twenty parts, each of which can be made by itself."""

    @field_validator("process")
    @classmethod
    def known_process(cls, process: str) -> str:
        """Refuse an unknown process with the closest names."""
        if process not in PROCESSES:
            raise ConfigError(f"hepx simulate: there is no process '{process}'; {closest(process, PROCESSES)}")
        return process

    @field_validator("filters")
    @classmethod
    def known_filters(cls, filters: str) -> str:
        """Refuse unknown filters with the closest names."""
        if filters not in FILTERS:
            raise ConfigError(f"hepx simulate: there are no filters '{filters}'; {closest(filters, FILTERS)}")
        return filters

    @field_validator("shard")
    @classmethod
    def existing_shard(cls, shard: str) -> str:
        """Refuse a shard beyond the last one."""
        number, count = parts(shard)
        if number > count:
            raise ConfigError(f"hepx simulate: there is no shard {number} of {count}; the last one is {count}/{count}.")
        return shard

    @property
    def file_name(self) -> str:
        """PROCESS.root; a shard carries its number: PROCESS_03of20.root."""
        number, count = parts(self.shard)
        width = len(str(count))
        return f"{self.process}.root" if count == 1 else f"{self.process}_{number:0{width}}of{count}.root"

    @property
    def title(self) -> str:
        """The command that makes the file.

        Options younger than the shipped sample are named where they differ from what made it: its bytes stay.
        """
        text = (
            f"{PROCESSES[self.process].title}; hepx {__version__} simulate {self.process} --events {self.num_events} "
            f"--seed {self.seed} --met-min {self.met_min:g}"
        )
        younger = (("filters", "loose"), ("chunk_size", 800), ("shard", "1/1"))
        for name, first in younger:
            if getattr(self, name) != first:
                text += f" --{name.replace('_', '-')} {getattr(self, name)}"
        return text


def parts(shard: str) -> list[int]:
    """Number and count of a shard.

    >>> parts("3/20")
    [3, 20]
    """
    return [int(text) for text in shard.split("/")]


def simulate(settings: SimulateSettings, output: Path, chunks: Path | None = None) -> Path:
    """Generate the events of one process and write the ROOT file `output`.

    Args:
        settings: what to generate.
        output: path of the file; it appears only when it is complete.
        chunks: folder (`chunk_folder`) in which finished parts of the work are kept, and looked for first.

    Returns:
        `output`.

    Raises:
        ConfigError: Pythia or FastJet is missing.
        HepxError: a worker process was killed.
    """
    require_generators()
    process = PROCESSES[settings.process]
    recipe = _recipe(settings)
    events = produce(process, settings.num_events, recipe, settings.workers, Shard(*parts(settings.shard)), chunks)
    write_tree(events, output, settings.title)
    log.info("%s: %d events of %s", output, len(events), process.name)
    return output


def chunk_folder(settings: SimulateSettings, output: Path) -> Path:
    """Hidden folder beside `output`, named after what makes the events: settings, code, and libraries."""
    require_generators()
    versions = [importlib.metadata.version(name) for name in ("pythia8mc", "fastjet", "numpy", "awkward", "vector")]
    code = [files.sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    return output.with_name(f".{output.stem}.{files.digest([asdict(_recipe(settings)), code, versions])}")


def _recipe(settings: SimulateSettings) -> Recipe:
    return Recipe(settings.seed, settings.met_min, settings.filters, settings.chunk_size)
