"""Where the scores of a run are kept, and what the terminal says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hepx import files
from hepx.influence.groups import Question
from hepx.results import is_result_of
from hepx.results_influence import Influence

FOLDER = "scores"
SHOWN = 8  # groups on the terminal


def save(folder: Path, found: Influence) -> Influence:
    """Write scores/NAME.npz, all of it, and scores/NAME.parquet, a row per training event; returns what was written."""
    with files.atomic(folder / FOLDER / f"{found.score}.parquet") as temporary:
        pq.write_table(pa.table(found.columns()), temporary)
    found.save(folder / FOLDER / f"{found.score}.npz")
    return found


def is_answered(folder: Path, asked: Question) -> Influence | None:
    """The saved answer to a question, if it is there."""
    path = folder / FOLDER / f"{asked.score.name}.npz"
    return Influence.load(path) if is_result_of(path, asked.provenance) else None


def lines(found: Influence) -> list[str]:
    """The sums over groups, the largest deviation from the expected first; or the means of a score without pairs."""
    head = f"{found.score}: {len(found.train_id)} training events"
    if found.total is None or found.total_error is None or found.expected is None:
        assert found.own_mean is not None
        assert found.own_error is not None
        means = zip(found.by, found.group, found.own_mean, found.own_error, strict=True)
        return [
            head,
            f"  mean {found.score} of an event (larger: harder, or does more to itself; unit of the score) ± its error",
            *(f"  {by} {name}: mean {mean:.4g} ± {error:.2g}" for by, name, mean, error in means if by == "sample"),
        ]
    far = np.abs(found.total - found.expected) / np.maximum(found.total_error, np.finfo(float).tiny)
    rows = (
        f"  {found.by[i]} {found.group[i]}: {found.total[i]:+.4g} ± {found.total_error[i]:.2g} "
        f"(as many events of any kind: {found.expected[i]:+.4g})"
        for i in np.argsort(-far, kind="stable")[:SHOWN]
    )
    legend = (
        "  group: sum over its training events of their effects on the log-odds of signal of the queries, ± error",
        "  above 0 they push towards signal; the unit is the score's own, only ratios mean something",
    )
    return [f"{head}, {len(found.events)} queries ({found.query})", *legend, *rows]
