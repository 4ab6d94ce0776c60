"""Fixtures shared by the tests; shapes in signatures are checked while the tests run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook(["hepx.models", "hepx.graph", "hepx.attribution", "hepx.planted"], "beartype.beartype")

from hepx.graph import GraphBatch  # noqa: E402 - the hook must come first
from hepx.planted import toy_graphs  # noqa: E402
from hepx.results import Provenance  # noqa: E402

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"


LONG = ("test_slurm.py", "test_run.py", "test_planted.py", "test_report.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: at the end no process waits for another that has just begun one of them."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small matrices gain nothing from a second thread, and lose much when the machine is busy."""
    torch.set_num_threads(1)
    logging.getLogger("hepx").setLevel(logging.DEBUG)


@pytest.fixture(scope="session")
def toys() -> GraphBatch:
    """400 toy events with random labels."""
    graphs = toy_graphs(400, seed=1)
    graphs.y[:] = torch.randint(0, 2, (400,), generator=torch.Generator().manual_seed(1))
    return graphs


@pytest.fixture(scope="session")
def provenance() -> Provenance:
    """A provenance that says it is of a test."""
    return Provenance("test", {}, "", "", "", 1, "", "", "cpu")
