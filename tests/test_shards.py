"""An explanation worked out by several jobs is that of one job, to the byte, whatever the method."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hepx import random
from hepx.attribution import (
    METHODS,
    Method,
    Shard,
    Subject,
    background_events,
    blocks,
    explain,
    explain_blocks,
    merge_blocks,
)
from hepx.errors import ConfigError, ResultError
from hepx.graph import GraphBatch
from hepx.models import MODELS, build_model
from hepx.results import Explanation, Provenance
from hepx.run import Run

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "quickstart.yaml"
CHEAP: dict[str, Any] = {
    "players": {"b": ["bjet"], "met": ["met"]},
    "epochs": 5,
    "restarts": 2,
    "draws": 2,
    "steps": 4,
    "samples": 2,
    "max_completeness_error": 1e9,
}
PER_EVENT = [name for name, method in METHODS.items() if method.per_event]


def cheap(name: str) -> Method:
    """A method of the dictionary, with the settings that make it fast."""
    method = METHODS[name]
    return method(**{key: value for key, value in CHEAP.items() if key in method.model_fields})


@pytest.fixture(scope="module")
def subject(toys: GraphBatch) -> Subject:
    """30 events and an untrained network, which is as good as a trained one here."""
    settings = MODELS["moe_graph_transformer"][0](dim=32, expert_dim=16)  # wide enough for the compiled kernels
    models = [build_model(settings, toys.layout, seed).eval() for seed in (1, 2)]
    for model in models:
        model.inputs.fit(toys, toys.weight.float())
    return Subject(models[0], models[1], toys[:30], background_events(toys[30:], 1), 1, 7)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 8)


@pytest.mark.parametrize("name", PER_EVENT)
def test_shards_in_any_order_give_the_bytes_of_one_job(
    name: str, subject: Subject, provenance: Provenance, tmp_path: Path
) -> None:
    method = cheap(name)
    alone = explain(method, subject, provenance)
    alone.save(tmp_path / "alone.npz")
    for index in (2, 0, 1):
        with pytest.raises(ResultError, match="there is no result"):
            merge_blocks(method, 30, tmp_path / "blocks")
        explain_blocks(method, subject, provenance, tmp_path / "blocks", Shard(index, 3))
    merge_blocks(method, 30, tmp_path / "blocks").save(tmp_path / "merged.npz")
    assert (tmp_path / "merged.npz").read_bytes() == (tmp_path / "alone.npz").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").iterdir()}
    assert len(times) == 4
    explain_blocks(method, subject, provenance, tmp_path / "blocks")
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("name", PER_EVENT)
def test_an_event_is_explained_alike_in_any_company(name: str, subject: Subject, provenance: Provenance) -> None:
    """What is drawn for an event follows from its id. The control: another id draws otherwise (if it draws at all)."""
    method = cheap(name)
    chosen = torch.tensor([21, 3, 8])
    whole: Any = method.explain(subject, provenance)
    few: Any = method.explain(replace(subject, graphs=subject.graphs[chosen]), provenance)
    np.testing.assert_allclose(few.values, whole.values[chosen], rtol=1e-3, atol=1e-4 * np.abs(whole.values).max())


def test_other_event_ids_draw_other_donors(subject: Subject, provenance: Provenance) -> None:
    """The control of the test above: it could fail."""
    graphs = subject.graphs[:3]
    other = GraphBatch(**{**graphs.tensors(), "event_id": graphs.event_id + 1000}, layout=graphs.layout)
    found = [cheap("shapley").explain(replace(subject, graphs=g), provenance) for g in (graphs, other)]
    assert isinstance(found[0], Explanation)
    assert isinstance(found[1], Explanation)
    assert np.abs(found[0].values - found[1].values).max() > 1e-2 * np.abs(found[0].values).max()


def test_the_numbers_of_events_are_independent_and_flat() -> None:
    """Neighbouring ids, other uses and other seeds are uncorrelated; mean 1/2 and variance 1/12."""
    ids = np.arange(4000)
    first, again = random.uniform(1, ids, "donor", 8), random.uniform(1, ids, "donor", 8)
    assert (first == again).all()
    others = [random.uniform(1, ids, "angle", 8), random.uniform(2, ids, "donor", 8), np.roll(first, 1, 0)]
    assert max(abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) for other in others) < 5 / 32_000**0.5
    assert abs(first.mean() - 0.5) < 5 * (1 / 12 / 32_000) ** 0.5
    assert abs(first.var() - 1 / 12) < 5 * (1 / 180 / 32_000) ** 0.5
    assert abs(np.corrcoef(first.T) - np.eye(8)).max() < 5 / 4000**0.5


def test_blocks_that_do_not_fit_together_are_refused(subject: Subject, provenance: Provenance, tmp_path: Path) -> None:
    """A block of another model is made again; parts of two models are never one result."""
    method = cheap("shapley")
    explain_blocks(method, subject, provenance, tmp_path, Shard(0, 2))
    explain_blocks(method, subject, replace(provenance, checkpoint="other"), tmp_path, Shard(1, 2))
    with pytest.raises(ResultError, match="do not fit together"):
        merge_blocks(method, 30, tmp_path)
    explain_blocks(method, subject, replace(provenance, device="cuda"), tmp_path)
    merged = merge_blocks(method, 30, tmp_path)
    assert merged.provenance.device == "cpu, cuda"


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "1/0", "-1/4"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected i/n with i from 1 to n"):
        Shard.parse(text)


CHANGES = ["name=r", "train.epochs=1", "model.dim=16", "model.expert_dim=8", "evaluate.trees=false"]
CHANGES += ["data.select=met > 200 and n_bjet == 2 and n_lepton == 1", "explain.0.draws=2", "explain.0.events=50"]
CHANGES += ["explain.1.events=20", "explain.1.draws=2", "explain.1.steps=4", "explain.1.max_completeness_error=1e9"]
CHANGES += ["explain.2.events=30", "explain.2.points=3"]
CHANGES += ["insides.events=100", "insides.nulls.untrained=2", "insides.nulls.epochs=1", "insides.representation=false"]


def content(run: Path) -> dict[str, str]:
    """Hash of everything the explain stage writes."""
    paths = [*(run / "explain").rglob("*"), run / "attention.npz", run / "experts.json"]
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.is_file()}


def test_shards_of_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards beside one another, then the merge: the folder of an unsharded run, to the byte."""
    monkeypatch.chdir(ROOT)
    run = Run.from_config(CONFIG, CHANGES, tmp_path)
    with pytest.raises(ConfigError, match="is not evaluated with this config"):
        run.explain_shard(Shard(0, 3))
    run.execute("evaluate")
    shutil.copytree(run.folder, tmp_path / "alone")
    Run.from_config(tmp_path / "alone", [], tmp_path).execute("explain")
    run.explain_shard(Shard(2, 3))
    with (run.folder / ".lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as another shard does
        run.explain_shard(Shard(0, 3))
        with pytest.raises(ConfigError, match="another hepx works in"):
            run.execute("explain")
    with pytest.raises(ConfigError, match="--prepare, with the changes to the config; then the shards, without any"):
        Run.from_config(run.folder, ["explain.0.draws=3"], tmp_path).explain_shard(Shard(1, 3))
    run.explain_shard(Shard(1, 3))
    assert not (run.folder / "explain" / "shapley.npz").exists()
    with monkeypatch.context() as patch:  # nothing is left to explain
        patch.setattr(METHODS["shapley"], "explain", None)
        patch.setattr(METHODS["response"], "explain", None)
        run.execute("explain")
    assert content(run.folder) == content(tmp_path / "alone")
    assert {"explain/shapley.npz", "explain/links.json", "attention.npz", "experts.json"} <= set(content(run.folder))
