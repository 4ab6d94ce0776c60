"""hepx: train graph classifiers on ATLAS events and explain, with checks, why they select an event.

Where things are:
    load                 a finished run for a notebook: run = hepx.load("runs/quickstart"); run.explain("shapley")
    events, schemas      ROOT files -> EventBatch (GeV, rad)
    kinematics           m_bb, m_T, m_CT, ...: pure functions
    graph, store         EventBatch -> GraphBatch -> shards on disk
    models, train        graph classifiers and how they are fitted
    evaluate             weighted ROC, rejection, per process and mass point
    attribution          which objects, features and pairs made the score
    attention, experts   what the attention looks at, what the experts do
    report               figures and report.html from saved results
    run, cli             one config, one run folder, one command line
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from hepx.notebook import Trained

__version__ = "0.1.0"


def load(folder: str | os.PathLike[str]) -> Trained:
    """A finished run, opened to look at and to explain; see `hepx.notebook.Trained`."""
    from hepx.notebook import open_run  # only now: `import hepx` loads no heavy library

    return open_run(folder)
