"""Conversion at scale: the same bytes whoever works, nothing lost by a kill, bounded memory; folds; PyG round trips."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch
import uproot

from hepx import events, store, workers
from hepx.config import parse
from hepx.errors import ConfigError, DataError
from hepx.events import DataSettings, SplitSettings
from hepx.graph import GraphSettings, concatenate, from_pyg, to_pyg
from hepx.schemas import load_schema
from hepx.store import FoldSettings, GraphStore, convert, split_index
from hepx.train import refuse_training_events, write_training_events
from hepx.workers import Execution

STEP = 1000
NUM_SIGNAL, NUM_BACKGROUND = 6000, 4200


def write_events(path: Path, num_events: int, first: int = 1, channel: int = 410470) -> Path:
    """A file in the 2025 layout: 2 to 5 jets, 0 to 2 leptons, by falling pt. Written in pieces: it may be large."""
    rng = np.random.default_rng(first)
    with uproot.recreate(path) as file:
        for start in range(0, num_events, 50_000):
            columns = _columns(rng, first + start, min(50_000, num_events - start), channel)
            if start == 0:
                kinds = {
                    name: array.type.content if isinstance(array, ak.Array) else array.dtype
                    for name, array in columns.items()
                }
                tree = file.mktree("analysis", kinds, counter_name=lambda name: f"{name}_n")
            tree.extend(columns)
    return path


def _columns(rng: np.random.Generator, first: int, n: int, channel: int) -> dict[str, ak.Array]:
    def objects(low: int, high: int, **integers: tuple[int, int]) -> ak.Array:
        counts = rng.integers(low, high + 1, n)
        total = int(counts.sum())
        pt, eta = 31 + rng.exponential(40, total), rng.uniform(-2.4, 2.4, total)
        pt = pt[np.lexsort((-pt, np.repeat(np.arange(n), counts)))]
        values = {"pt": pt, "eta": eta, "phi": rng.uniform(-np.pi, np.pi, total), "e": 1.1 * pt * np.cosh(eta)}
        fields = {name: value.astype(np.float32) for name, value in values.items()}
        fields |= {name: rng.integers(*span, total).astype(np.int32) for name, span in integers.items()}
        return ak.unflatten(ak.zip(fields), counts)

    return {
        "runNumber": np.full(n, 284500, np.uint32),
        "eventNumber": np.arange(first, first + n, dtype=np.uint64),
        "channelNumber": np.full(n, channel, np.uint32),
        **{name: np.ones(n, np.float32) for name in load_schema("atlas_open_2025").weights},
        "mcWeight": rng.choice([-1, 1, 1, 1], n).astype(np.float32),
        "xsec": np.full(n, 2.0),
        "kfac": np.full(n, 1.5),
        "filteff": np.full(n, 0.5),
        "sum_of_weights": np.full(n, 30.0),
        "met": rng.exponential(80, n).astype(np.float32),
        "met_phi": rng.uniform(-np.pi, np.pi, n).astype(np.float32),
        "met_sig": (10 * rng.random(n)).astype(np.float32),
        "jet": objects(2, 5, btag_quantile=(1, 6)),
        "lep": objects(0, 2, charge=(-1, 2), type=(11, 14)),
    }


def settings(signal_files: object, background: object, **more: object) -> DataSettings:
    samples = {"signal": {"files": signal_files, "label": 1}, "background": {"files": background, "label": 0}}
    return parse(DataSettings, {"samples": samples, "select": "met > 20", **more}, "data")


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVENTS_PER_STEP", STEP)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    write_events(folder / "s0.root", NUM_SIGNAL // 2, 1)
    write_events(folder / "s1.root", NUM_SIGNAL // 2, 1_000_001)
    write_events(folder / "b.root", NUM_BACKGROUND, 1, channel=410000)
    return folder


@pytest.fixture(scope="module")
def data(roots: Path) -> DataSettings:
    return settings(str(roots / "s*.root"), str(roots / "b.root"))


@pytest.fixture(scope="module")
def reference(data: DataSettings, tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """The data set converted in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "EVENTS_PER_STEP", STEP)
        return convert(data, GraphSettings(), tmp_path_factory.mktemp("reference"))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a data set, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def when_shards_exist(folder: Path, number: int, action: Callable[[], None]) -> threading.Thread:
    def wait() -> None:
        while len(list(folder.glob("*-*.json"))) < number:
            time.sleep(0.002)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_tasks_cover_every_event_once(reference: GraphStore) -> None:
    flow = reference.manifest["cutflow"]
    assert flow["signal"][0]["events"] == NUM_SIGNAL
    assert flow["background"][0]["events"] == NUM_BACKGROUND
    assert len(reference.manifest["shards"]) == (NUM_SIGNAL + NUM_BACKGROUND + STEP - 1) // STEP
    ids = reference.load().event_id
    assert len(ids) == sum(steps[-1]["events"] for steps in flow.values()) == len(ids.unique())
    assert reference.manifest["skipped"] == []


def test_killed_workers_lose_nothing_and_change_no_byte(
    data: DataSettings, reference: GraphStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGKILL to every worker while they work: others take over, and the data set is the one of a single process."""

    def kill() -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    thread = when_shards_exist(tmp_path, 2, kill)
    convert(data, GraphSettings(), tmp_path, Execution(workers=2))
    thread.join()
    assert "a worker process was killed" in caplog.text
    assert content(tmp_path) == content(reference.folder)


def test_workers_that_always_die_end_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ATTEMPTS", 1)
    tasks = [store.Task("a", "a.root", 0, 1, "a-00000-00000", "")]
    with pytest.raises(DataError, match=r"workers were killed again and again .* with fewer --workers, goes on"):
        list(workers._in_processes(_die, tasks, 2, "convert"))


def _die(task: store.Task) -> str | None:
    os.kill(os.getpid(), signal.SIGKILL)
    return task.path


def test_killed_conversion_leaves_no_half_file_and_goes_on(
    data: DataSettings, reference: GraphStore, tmp_path: Path
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from hepx import events, store\n"
        "from hepx.graph import GraphSettings\n"
        f"events.EVENTS_PER_STEP, task = {STEP}, store._convert_task\n"
        "store._convert_task = lambda *job: (task(*job), time.sleep(0.2))\n"  # the kill comes in time on a busy machine
        "data = events.DataSettings.model_validate_json(sys.argv[1])\n"
        "store.convert(data, GraphSettings(), Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, data.model_dump_json(by_alias=True), str(tmp_path)])
    when_shards_exist(tmp_path, 3, process.kill).join()
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(DataError, match="no finished data set"):
        GraphStore(tmp_path)
    whole = content(reference.folder)
    left = {name: blob for name, blob in content(tmp_path).items() if not name.startswith(".")}
    assert all(whole[name] == blob for name, blob in left.items())
    notes = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-*.json")}
    assert 3 <= len(notes) < len(reference.manifest["shards"])
    convert(data, GraphSettings(), tmp_path)
    assert content(tmp_path) == whole
    assert {path: path.stat().st_mtime_ns for path in notes} == notes


def test_only_what_changed_is_converted_again(
    roots: Path, data: DataSettings, reference: GraphStore, tmp_path: Path
) -> None:
    convert(settings(str(roots / "s0.root"), str(roots / "b.root")), GraphSettings(), tmp_path)
    first = tmp_path / "signal-00000-00000.safetensors"
    time_first = first.stat().st_mtime_ns
    convert(data, GraphSettings(), tmp_path)
    assert first.stat().st_mtime_ns == time_first
    assert content(tmp_path) == content(reference.folder)
    split = FoldSettings(folds=5, fold=1)
    assert convert(data, GraphSettings(), tmp_path, split=split).split == split
    assert first.stat().st_mtime_ns == time_first
    other = convert(
        settings(str(roots / "s*.root"), str(roots / "b.root"), select="met > 60"), GraphSettings(), tmp_path
    )
    assert len(other.load()) < len(reference.load())


def test_manifest_is_removed_before_its_shards_change(
    roots: Path, data: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(data, GraphSettings(), tmp_path)
    monkeypatch.setattr(store, "_carry_out", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    other = settings(str(roots / "s*.root"), str(roots / "b.root"), select="met > 60")
    with pytest.raises(KeyboardInterrupt):
        convert(other, GraphSettings(), tmp_path)
    with pytest.raises(DataError, match="no finished data set"):
        GraphStore(tmp_path)


@pytest.fixture
def cluster() -> Iterator[object]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as started:
        yield started


def test_dask_gives_the_same_bytes_although_a_worker_is_killed(
    data: DataSettings, reference: GraphStore, tmp_path: Path, cluster: object
) -> None:
    worker = next(iter(cluster.workers.values()))  # type: ignore[attr-defined]
    thread = when_shards_exist(tmp_path, 2, lambda: os.kill(worker.pid, signal.SIGKILL))
    convert(data, GraphSettings(), tmp_path, Execution(dask=cluster.scheduler_address))  # type: ignore[attr-defined]
    thread.join()
    assert content(tmp_path) == content(reference.folder)


def test_dask_that_is_missing_or_not_there(data: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--dask somewhere: no Dask scheduler answers there .* slurm, htcondor"):
        convert(data, GraphSettings(), tmp_path, Execution(dask="somewhere"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"--dask needs the extra 'dask' .*pip install -e '\.\[dask\]'"):
        convert(data, GraphSettings(), tmp_path, Execution(dask="tcp://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'sbatch: error: Invalid account' >&2; exit 1", "the batch system takes no jobs .*Invalid account"),
        ("exec sleep 60", "the batch system takes no jobs .timed out after 2 s"),
        ("echo hello", "the batch system takes no jobs .*hello"),
        (None, "the batch system takes no jobs .*No such file.*sbatch"),
    ],
)
def test_jobs_that_are_refused_end_the_conversion(
    data: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, words: str
) -> None:
    """Else it would wait for workers that never come."""
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "bin").mkdir()
    if script is not None:
        (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(workers, "ANSWER", 2 if script == "exec sleep 60" else 30)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=words):
        convert(data, GraphSettings(), tmp_path / "d", Execution(workers=2, dask="slurm"))
    assert time.monotonic() - start < 30


def test_fewer_jobs_than_wanted_do_the_work(
    data: DataSettings,
    reference: GraphStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The sbatch of this test starts the first job as a process, and refuses the second as one too many."""
    pytest.importorskip("dask_jobqueue")
    for name, script in {
        "sbatch": f'mkdir {tmp_path}/first || {{ echo "sbatch: error: MaxSubmitJobs" >&2; exit 1; }}\n'
        f'sh "$1" >{tmp_path}/worker.log 2>&1 &\nsleep 1\necho "Submitted batch job $!"\n',
        "scancel": "exit 0\n",  # the worker ends with its scheduler
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    convert(data, GraphSettings(), tmp_path / "d", Execution(workers=2, dask="slurm"))
    assert content(tmp_path / "d") == content(reference.folder)
    assert "some of the 2 jobs were refused, the others work" in caplog.text
    assert "MaxSubmitJobs" in caplog.text


def test_bad_files_are_skipped_and_listed_if_asked_to(
    roots: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is no ROOT file, and one that breaks off in its last events: none of its events is kept."""
    (tmp_path / "s2.root").write_text("hello")
    with (roots / "s0.root").open("rb") as file:
        (tmp_path / "s3.root").write_bytes(_with_damaged_baskets(file.read()))
    mixed = settings([str(roots / "s1.root"), str(tmp_path / "s*.root")], str(roots / "b.root"))
    with pytest.raises(DataError, match=r"s2.root.*truncated or not a ROOT file"):
        convert(mixed, GraphSettings(), tmp_path / "d")
    skipping = Execution(skip_bad_files=True)
    found = convert(mixed, GraphSettings(), tmp_path / "d", skipping)
    skipped = found.manifest["skipped"]
    assert [Path(one["path"]).name for one in skipped] == ["s2.root", "s3.root"]
    assert "not a ROOT file" in skipped[0]["why"]
    assert "damaged or truncated" in skipped[1]["why"]
    assert all(one["why"] in caplog.text for one in skipped)
    alone = convert(settings(str(roots / "s1.root"), str(roots / "b.root")), GraphSettings(), tmp_path / "alone")
    torch.testing.assert_close(found.load().event_id, alone.load().event_id)
    hopeless = settings(str(tmp_path / "s*.root"), str(roots / "b.root"))
    with pytest.raises(DataError, match=r"sample 'signal': every file was skipped \(2\); the first: .*s2.root"):
        convert(hopeless, GraphSettings(), tmp_path / "e", skipping)
    assert not (tmp_path / "e" / "dataset.json").exists()


def test_what_was_skipped_is_skipped_again_until_it_changes(
    roots: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another selection without the flag leaves out what was left out before, and says so; a further bad file is still
    refused, and one that was mended is read."""
    bad = tmp_path / "s2.root"
    bad.write_text("hello")
    mixed = settings([str(roots / "s1.root"), str(bad)], str(roots / "b.root"))
    first = convert(mixed, GraphSettings(), tmp_path / "d", Execution(skip_bad_files=True))
    os.utime(bad, (1, 1))
    with pytest.raises(DataError, match=r"s2.root.*not a ROOT file"):  # its time stamp is all that tells it
        convert(mixed, GraphSettings(), tmp_path / "d")
    first = convert(mixed, GraphSettings(), tmp_path / "d", Execution(skip_bad_files=True))
    caplog.clear()
    other = mixed.model_copy(update={"select": "n_jet >= 2"})
    second = convert(other, GraphSettings(), tmp_path / "d")
    assert second.manifest["skipped"] == first.manifest["skipped"] != []
    assert first.manifest["skipped"][0]["why"] in caplog.text
    (tmp_path / "s4.root").write_text("hello")
    more = settings([str(roots / "s1.root"), str(tmp_path / "s*.root")], str(roots / "b.root"))
    with pytest.raises(DataError, match=r"s4.root.*not a ROOT file"):
        convert(more, GraphSettings(), tmp_path / "d")
    shutil.copy(roots / "s0.root", bad)
    mended = convert(mixed, GraphSettings(), tmp_path / "d")
    assert mended.manifest["skipped"] == []
    bad.write_text("hello")
    with pytest.raises(DataError, match=r"s2.root.*not a ROOT file"):
        convert(mixed, GraphSettings(), tmp_path / "d")


def _with_damaged_baskets(content: bytes) -> bytes:
    """The file with its last third before the directory overwritten: it opens, but cannot be read to the end."""
    first, last = len(content) // 2, len(content) // 2 + len(content) // 10
    return content[:first] + b"\xff" * (last - first) + content[last:]


def test_a_sample_whose_weights_are_all_zero_is_refused(
    roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is converted, not after the training; weights that merely cancel, or some zeros, are no such thing."""
    columns = _columns

    def weighted(share: float) -> Path:
        def changed(rng: np.random.Generator, first: int, n: int, channel: int) -> dict[str, ak.Array]:
            return {**columns(rng, first, n, channel), "mcWeight": (np.arange(n) < share * n).astype(np.float32)}

        monkeypatch.setitem(globals(), "_columns", changed)
        return write_events(tmp_path / f"{share}.root", 700, channel=410000)

    with pytest.raises(DataError, match=r"sample 'background': the weights of all \d+ selected events are 0"):
        convert(settings(str(roots / "s0.root"), str(weighted(0))), GraphSettings(), tmp_path / "d")
    assert len(convert(settings(str(roots / "s0.root"), str(weighted(0.1))), GraphSettings(), tmp_path / "d").load())


def test_repeated_events_are_found_in_several_passes(
    roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_events(tmp_path / "again.root", 700, first=NUM_BACKGROUND - 99, channel=410000)
    data = settings(str(roots / "s0.root"), [str(roots / "b.root"), str(tmp_path / "again.root")], select="n_jet >= 2")
    messages = []
    for number in (10_000_000, 1000):
        monkeypatch.setattr(store, "IDS_AT_ONCE", number)
        with pytest.raises(
            DataError, match=r"100 events occur more than once.* in .*b.root and .*again.root"
        ) as caught:
            convert(data, GraphSettings(), tmp_path / "d")
        messages.append(str(caught.value))
        assert not (tmp_path / "d" / "dataset.json").exists()


def test_one_file_in_two_samples_is_refused(roots: Path, tmp_path: Path) -> None:
    """Also under another name, and although each sample gives its events a channel of their own."""
    copy = tmp_path / "copy.root"
    copy.write_bytes((roots / "b.root").read_bytes())
    for name in (roots / "b.root", copy):
        samples = {"one": {"files": str(roots / "b.root"), "label": 1, "channel": 1}}
        samples["two"] = {"files": str(name), "label": 0, "channel": 2}
        with pytest.raises(DataError, match=r"samples 'one' and 'two' name the same file \(.*b.root and .*\.root;"):
            convert(parse(DataSettings, {"samples": samples}, "data"), GraphSettings(), tmp_path / "d")


def test_effect_of_negative_weights_is_said_once_and_noted(
    roots: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For all steps and tasks of a sample together, as its file gives it; a second conversion repeats it."""
    caplog.set_level("INFO")
    variations = {"up": {"scale": {"jet.pt": 1.01}}}
    data = settings(
        str(roots / "s0.root"), str(roots / "b.root"), negative_weights="drop", select=None, variations=variations
    )
    batches = list(events.read_events(roots / "b.root", load_schema("atlas_open_2025"), settings("", ""), "background"))
    weight = np.concatenate([batch.weight for batch in batches])
    for _ in range(2):
        caplog.clear()
        found = convert(data, GraphSettings(), tmp_path).manifest["weights"]["background"]
        assert (found["events"], found["negative"]) == (NUM_BACKGROUND, (weight < 0).sum())
        np.testing.assert_allclose([found["before"], found["after"]], [weight.sum(), weight[weight > 0].sum()])
        np.testing.assert_allclose(found["squares_after"], (weight[weight > 0] ** 2).sum())
        assert caplog.text.count("sample 'background': ") == 1
        assert f"{(weight < 0).sum()} of {NUM_BACKGROUND} weights are negative (drop): yield" in caplog.text


def test_folds_cover_every_event_once() -> None:
    ids = np.arange(410470 * 10**12, 410470 * 10**12 + 50_000)
    found = np.stack([split_index(ids, FoldSettings(folds=5, fold=fold)) for fold in range(5)])
    np.testing.assert_array_equal((found == 2).sum(0), 1)
    np.testing.assert_array_equal((found == 1).sum(0), 1)
    np.testing.assert_allclose((found == 2).mean(1), 0.2, atol=5 * (0.16 / len(ids)) ** 0.5)
    with pytest.raises(ConfigError, match="fold must be from 0 to 4, got 5"):
        parse(FoldSettings, {"folds": 5, "fold": 5}, "split")


def test_store_opens_with_another_split(reference: GraphStore) -> None:
    ids = reference.load().event_id
    tests = [GraphStore(reference.folder, FoldSettings(folds=3, fold=fold)).load("test").event_id for fold in range(3)]
    assert torch.equal(torch.cat(tests).sort().values, ids.sort().values)


def test_events_of_the_training_are_refused_in_an_evaluation(reference: GraphStore, tmp_path: Path) -> None:
    train = reference.load("train").event_id.numpy()
    write_training_events(tmp_path, np.array_split(train, 3), len(train))
    refuse_training_events(tmp_path, reference.load("test").event_id.numpy())
    refuse_training_events(tmp_path, train[:0])
    other = GraphStore(reference.folder, SplitSettings(fractions=(0.2, 0.2, 0.6))).load("test").event_id.numpy()
    shared = len(np.intersect1d(train, other))
    assert shared > 0
    with pytest.raises(DataError, match=rf"{shared} of {len(other)} events .* were used to train .* channel 410"):
        refuse_training_events(tmp_path, other)


def test_streamed_batches_are_the_loaded_events(reference: GraphStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepx.order.BLOCKS_AT_ONCE", 5)
    monkeypatch.setattr(store, "BLOCK", 64)
    for split in (None, "train", "test"):
        streamed = list(reference.batches(split, 100, seed=1))
        assert {len(batch) for batch in streamed[:-1]} == {100}
        assert 0 < len(streamed[-1]) <= 100
        joined, loaded = concatenate(streamed), reference.load(split)
        order, by_id = joined.event_id.argsort(), loaded[loaded.event_id.argsort()]
        for name, tensor in joined[order].tensors().items():
            torch.testing.assert_close(tensor, by_id.tensors()[name], equal_nan=True, rtol=0, atol=0)
    again = concatenate(list(reference.batches("test", 100, seed=1)))
    assert torch.equal(again.event_id, joined.event_id)
    other = concatenate(list(reference.batches("test", 100, seed=2)))
    assert not torch.equal(other.event_id, joined.event_id)
    assert 0.2 < joined.y[:500].double().mean() < 0.9  # negative control of the mixing: in file order it would be 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch_geometric's own import
@pytest.mark.parametrize("self_loops", [False, True])
def test_pyg_round_trip(reference: GraphStore, self_loops: bool) -> None:
    """Also after PyG joined the events to a batch and took them apart."""
    from torch_geometric.data import Batch

    graphs = reference.load()[:300]
    data = to_pyg(graphs, self_loops)
    for one, num_nodes in zip(data, graphs.mask.sum(1).tolist(), strict=True):
        assert one.num_nodes == num_nodes
        assert one.edge_index.shape == (2, num_nodes * (num_nodes - (not self_loops)))
        assert one.has_self_loops() == self_loops
        assert one.is_undirected()
    for these in (data, Batch.from_data_list(data).to_data_list()):
        back = from_pyg(these, graphs.layout)
        for name, tensor in graphs.tensors().items():
            torch.testing.assert_close(back.tensors()[name], tensor, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(to_pyg(back, self_loops)[7].x, data[7].x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_pyg_data_that_do_not_fit_are_refused(reference: GraphStore) -> None:
    graphs = reference.load()[:3]
    for change, message in [
        (lambda one: one.pop("weight"), "has no attribute 'weight'"),
        (lambda one: one.update({"slot": one.slot + 9}), r"slots must lie in \[0, 5\)"),
        (lambda one: one.update({"slot": one.slot * 0}), "not of the type that its slot has"),
        (lambda one: one.update({"x": one.x[1:]}), "'x' has .* rows, expected"),
    ]:
        data = to_pyg(graphs)
        change(data[1])  # type: ignore[no-untyped-call]
        with pytest.raises(DataError, match=message):
            from_pyg(data, graphs.layout)
    with pytest.raises(DataError, match="empty list"):
        from_pyg([], graphs.layout)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_events(tmp_path: Path) -> None:
    """Ten times the events, 1 200 MB of graphs more: the peak may differ by a few allocator pages (20 MB)."""
    code = (
        "import resource, sys; from pathlib import Path; from hepx import events, store\n"
        "from hepx.graph import GraphSettings; from hepx.memory import keep_memory\n"
        "keep_memory()\n"  # as the command line does
        "events.EVENTS_PER_STEP = 20_000; store.IDS_AT_ONCE = 100_000\n"
        "data = events.DataSettings.model_validate_json(sys.argv[1])\n"
        "made = store.convert(data, GraphSettings(), Path(sys.argv[2]))\n"
        "for batch in made.batches('train', 1000, 1): pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    peaks, sizes = [], []
    for factor in (3, 30):  # some tens of tasks and of read windows give the allocator its level
        folder = tmp_path / f"x{factor}"
        folder.mkdir()
        first = write_events(folder / "s.root", 80_000 * factor)
        other = write_events(folder / "b.root", 80_000 * factor, channel=410000)
        arguments = [settings(str(first), str(other)).model_dump_json(by_alias=True), str(folder / "d")]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
        sizes.append(sum(path.stat().st_size for path in (folder / "d").iterdir()) / 2**20)
    assert sizes[1] - sizes[0] > 1200
    assert peaks[1] - peaks[0] < 20, (peaks, sizes)


@pytest.mark.skipif(find_spec("dask_jobqueue") is None, reason="dask_jobqueue is not installed")
def test_htcondor_jobs_can_be_written_and_ctrl_c_stays_ours() -> None:
    """In an interpreter of its own: what an import does to the signals happens once."""
    code = (
        "import signal; from hepx import workers; before = signal.getsignal(signal.SIGINT)\n"
        "with workers._batch_cluster('htcondor') as cluster:\n"
        "    assert 'RequestMemory' in cluster.job_script()\n"
        "assert signal.getsignal(signal.SIGINT) is before\n"
        "import dask_jobqueue.runner as runner, importlib; importlib.reload(runner)\n"
        "assert signal.getsignal(signal.SIGINT) is not before, 'the import no longer does it: hepx need not undo it'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
