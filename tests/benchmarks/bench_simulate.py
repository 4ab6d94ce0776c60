"""Rate, acceptance and filter loss of every channel: `python tests/benchmarks/bench_simulate.py [process ...]`.

Prints the table of data/README.md. The rate is selected events per CPU second of this machine, as busy as it is:
compare rows of one run with each other. The loss is measured on other events, of which none is rejected and the
filters only say which they would have rejected. `--loss-seconds 0` leaves it out.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator

import awkward as ak
import numpy as np

from hepx.simulate import PROCESSES
from hepx.simulate.generator import FILTERS
from hepx.simulate.processes import Channel
from hepx.simulate.production import Chunk, Recipe, generate_chunk

HEADER = (
    "channel",
    "tried",
    "kept by the filters",
    "selected",
    "acceptance",
    "selected per CPU s",
    "effective per CPU s",
    "lost in the filters",
)


def chunks(channel: Channel, recipe: Recipe, seconds: float) -> Iterator[tuple[Chunk, float]]:
    """Chunks of a channel until the CPU time is used up, with the time used so far; at least one."""
    start, index = time.process_time(), 0
    while index == 0 or time.process_time() - start < seconds:
        chunk = generate_chunk(channel, index, recipe)
        index += 1
        yield chunk, time.process_time() - start


def rate(channel: Channel, filters: str, seconds: float) -> list[str]:
    """Tried, kept, selected, acceptance and rates."""
    recipe = Recipe(seed=101, met_min=100.0, filters=filters)
    weight, tried, kept, spent = np.zeros(0), 0, 0, 0.0
    for chunk, spent in chunks(channel, recipe, seconds):  # noqa: B007 - the last time is used below
        weight = np.concatenate([weight, ak.to_numpy(chunk.events.mcWeight)])
        tried, kept = tried + chunk.num_tried, kept + recipe.chunk_size
    acceptance, error = weight.sum() / tried, math.sqrt((weight**2).sum()) / tried
    effective = weight.sum() ** 2 / (weight**2).sum()
    numbers = [f"{tried}", f"{kept}", f"{len(weight)}", f"{100 * acceptance:.3g} ± {100 * error:.1g} %"]
    return [*numbers, f"{len(weight) / spent:.3g}", f"{effective / spent:.3g}"]


def loss(channel: Channel, filters: str, seconds: float) -> str:
    """Part of the selected events that the filters would have rejected, with its binomial error."""
    weight, passed = np.zeros(0), np.zeros(0, dtype=bool)
    for chunk, _ in chunks(channel, Recipe(202, 100.0, filters, 1600, looking_on=True), seconds):
        weight = np.concatenate([weight, ak.to_numpy(chunk.events.mcWeight)])
        passed = np.concatenate([passed, ak.to_numpy(chunk.events.passed)])
    if len(weight) < 20:
        return "–"
    lost = weight[~passed].sum() / weight.sum()
    effective = weight.sum() ** 2 / (weight**2).sum()
    return f"{100 * lost:.1f} ± {100 * math.sqrt(max(lost * (1 - lost), 1 / effective) / effective):.1f} %"


def main() -> None:
    """Print one row per channel as it is ready."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("processes", nargs="*", default=list(PROCESSES))
    parser.add_argument("--filters", default="tight", choices=list(FILTERS))
    parser.add_argument("--rate-seconds", type=float, default=60.0, help="CPU time per channel")
    parser.add_argument("--loss-seconds", type=float, default=300.0, help="CPU time per channel")
    options = parser.parse_args()
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for name in options.processes:
        for channel in PROCESSES[name].channels:
            masses = " ({:g}, {:g})".format(*channel.masses) if channel.masses else ""
            row = [f"{name} {channel.number}{masses}", *rate(channel, options.filters, options.rate_seconds)]
            row.append(loss(channel, options.filters, options.loss_seconds) if options.loss_seconds else "–")
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
