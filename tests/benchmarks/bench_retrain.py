"""Trainings of a small network one by one with `fit`, and several at once: seconds of processor time per training.

`python tests/benchmarks/bench_retrain.py`. The ratio is to `fit`, measured in the same run, alternating.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hepx.influence import retrain as module
from hepx.influence.retrain import Change, Recipe, prepared, retrain
from hepx.influence.studies import planted_study
from hepx.train import TrainSettings, fit

TOGETHER = (1, 2, 4, 8, 16)
ROUNDS = 2


def seconds(work: Callable[[], object]) -> float:
    """Processor time."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print a line per number of trainings done together."""
    torch.set_num_threads(1)
    settings = TrainSettings(epochs=4, batch_size=128, lr=3e-3, weights="sign", patience=4)
    study = planted_study("mix", 1500, 100, settings, 1)
    recipe = Recipe(study.model, settings, study.events, study.queries)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        retrain(recipe, [Change("warm", 0)], folder / "warm")
        alone, stacked = [], {number: [] for number in TOGETHER}
        for turn in range(ROUNDS):
            model, _ = prepared(recipe, Change("", 1))
            alone.append(
                seconds(lambda m=model, t=turn: fit(m, recipe.events, recipe.queries, settings, 1, folder / f"fit{t}"))  # type: ignore[misc]
            )
            for number in TOGETHER:
                module.TOGETHER = number
                changes = [Change("", 100 + seed) for seed in range(number)]
                target = folder / f"{number} {turn}"
                spent = seconds(lambda c=changes, t=target: retrain(recipe, c, t))  # type: ignore[misc]
                stacked[number].append(spent / number)
    print(f"fit: {min(alone):.2f} s")
    for number, times in stacked.items():
        print(f"{number:3d} together: {min(times):.2f} s each, {min(alone) / min(times):.1f} times faster than fit")


if __name__ == "__main__":
    main()
