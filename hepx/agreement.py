"""Do several trainings divide the labour among the experts alike? On the test events that their runs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from hepx import files
from hepx.errors import ConfigError
from hepx.experts.routing import gates_of
from hepx.experts.stability import stability
from hepx.insides import STABILITY
from hepx.results_network import Stability
from hepx.run import Run

STABLE = 0.6  # of the adjusted Rand index: below, the number of an expert means nothing in another training


def compare_experts(folders: Sequence[Path]) -> list[Stability]:
    """How alike the expert choices of finished runs are; written into the first run folder, for its report.

    Raises ConfigError if there are fewer than two runs, other test events, no experts, or other numbers of layers.
    """
    if len(folders) < 2:
        raise ConfigError(f"to compare experts, at least two run folders are needed; got {len(folders)}.")
    runs = [Run.from_config(folder, [], folder.parent) for folder in folders]
    weights = [folder / "checkpoints" / "best.safetensors" for folder in folders]
    if len({files.sha256(path) for path in weights if path.exists()}) < sum(path.exists() for path in weights):
        raise ConfigError("two of the run folders hold the same training; give trainings of different seeds.")
    first, *others = [run.store().load("test") for run in runs]
    for folder, other in zip(folders[1:], others, strict=True):
        if not torch.equal(other.event_id, first.event_id):
            raise ConfigError(
                f"'{folder}' and '{folders[0]}' have different test events, so their experts cannot be compared event "
                "by event. Give them the same data.samples, data.select and data.split."
            )
    gates, nulls = ([gates_of(run.model(trained), first) for run in runs] for trained in (True, False))
    if len({one.shape[1] for one in gates}) > 1 or any(one.shape[-1] == 0 for one in gates):
        raise ConfigError("the models of these runs have no experts, or different numbers of layers.")
    found = stability(gates, nulls, first)
    values = {"runs": [str(folder) for folder in folders], "layers": [asdict(one) for one in found]}
    files.write_json(folders[0] / STABILITY, values)
    return found
