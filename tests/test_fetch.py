"""hepx fetch against a local web server that plays catalogue and file server: resume, checksums, faults, config."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from web import Site, serve, xrootd

from hepx import download as downloads
from hepx import files, remote
from hepx.cli import main
from hepx.config import load, parse, read_yaml
from hepx.download import Checksum, Download, digest, download, read_checksums, read_manifest
from hepx.errors import ConfigError, DataError
from hepx.fetch import Dataset, Order, addresses, catalogue, config_text
from hepx.remote import TransferError, Url
from hepx.run import RunSettings

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"
CONTENT = np.random.default_rng(5).bytes(300_000)
RELEASE = "2025e-13tev-beta"
PROBED = f"bytes=0-{remote.HEAD - 1}"  # how a probe asks for a few bytes
Hepx = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No long pauses between attempts, and no proxy between this machine and itself."""
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server with one file of random bytes."""
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "a.root").write_bytes(CONTENT)
    with serve(Site(folder)) as running:
        yield running


def get(site: Site, folder: Path, checksum: Checksum | None = None, size: int | None = None) -> downloads.Entry:
    return download([Download(Url(site.url("a.root")), "1/a.root", size, checksum)], folder)["1/a.root"]


def leave_part(site: Site, folder: Path, bytes_here: int, damage: bool = False) -> Path:
    """The beginning of the file, as a download that was stopped leaves it."""
    site.cuts["/a.root"] = [bytes_here] * 9
    site.faults["/a.root"] = []
    arrived = folder / "1" / "a.root.part"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "ATTEMPTS", 1)
        with pytest.raises(TransferError, match=r"0.\d MB of 0.3 MB are kept; the same command goes on there"):
            get(site, folder)
    site.cuts.clear()
    if damage:
        arrived.write_bytes(b"x" + arrived.read_bytes()[1:])
    site.asked.clear()
    return arrived


def test_a_file_arrives_whole_and_is_written_down(site: Site, tmp_path: Path) -> None:
    entry = get(site, tmp_path / "my")
    assert (tmp_path / "my/1/a.root").read_bytes() == CONTENT
    assert (entry.url, entry.size, entry.verified) == (site.url("a.root"), len(CONTENT), "size")
    assert entry.checksum == f"adler32:{zlib.adler32(CONTENT):08x}"
    assert json.loads((tmp_path / "my/manifest.json").read_text())["files"]["1/a.root"]["size"] == len(CONTENT)
    assert read_manifest(tmp_path / "my") == {"1/a.root": entry}
    assert sorted(path.name for path in (tmp_path / "my/1").iterdir()) == ["a.root"]


def test_what_is_there_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    first = get(site, tmp_path / "my")
    site.asked.clear()
    assert get(site, tmp_path / "my") == first
    assert site.ranges_asked("a.root") == [PROBED], "only the few bytes of a probe"
    site.faults["/a.root"] = [503] * 9
    assert get(site, tmp_path / "my") == first, "a server that is away does not matter then"


def test_a_stopped_download_goes_on(site: Site, tmp_path: Path) -> None:
    arrived = leave_part(site, tmp_path / "my", 100_000)
    assert arrived.read_bytes() == CONTENT[:100_000]
    get(site, tmp_path / "my")
    assert site.ranges_asked("a.root") == [PROBED, "bytes=100000-299999"]
    assert (tmp_path / "my/1/a.root").read_bytes() == CONTENT
    assert not arrived.exists()


def test_a_part_that_was_complete_only_gets_its_name(site: Site, tmp_path: Path) -> None:
    arrived = leave_part(site, tmp_path / "my", 100_000)
    arrived.write_bytes(CONTENT)
    get(site, tmp_path / "my")
    assert site.ranges_asked("a.root") == [PROBED]


def test_a_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    leave_part(site, tmp_path / "my", 100_000)
    site.ranges = False
    get(site, tmp_path / "my")
    assert (tmp_path / "my/1/a.root").read_bytes() == CONTENT
    assert "bytes=100000-299999" in site.ranges_asked("a.root")


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changed_on_the_server_starts_over(site: Site, tmp_path: Path, etags: bool) -> None:
    site.etags = etags
    leave_part(site, tmp_path / "my", 100_000)
    new = CONTENT[::-1] + (b"" if etags else b"longer")
    (site.folder / "a.root").write_bytes(new)
    get(site, tmp_path / "my")
    assert (tmp_path / "my/1/a.root").read_bytes() == new
    assert site.ranges_asked("a.root") == [PROBED, None]


def test_a_fetched_file_that_changed_on_the_server_is_fetched_again(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get(site, tmp_path / "my")
    (site.folder / "a.root").write_bytes(CONTENT[::-1])
    get(site, tmp_path / "my")
    assert (tmp_path / "my/1/a.root").read_bytes() == CONTENT[::-1]
    assert "is not the file that was fetched any more" in caplog.text


def test_a_file_that_changes_between_question_and_download_is_refused(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = remote.probe

    def change_after(url: Url) -> remote.Probe:
        found = ask(url)
        (site.folder / "a.root").write_bytes(CONTENT[::-1])
        return found

    monkeypatch.setattr(remote, "probe", change_after)
    with pytest.raises(DataError, match=r"changed on its server while it was fetched. Start the same command again"):
        get(site, tmp_path / "my")
    assert not (tmp_path / "my/1/a.root").exists()


def test_broken_connections_are_taken_up_as_long_as_something_arrives(site: Site, tmp_path: Path) -> None:
    site.cuts["/a.root"] = [20_000] * 10  # more often than there are attempts
    get(site, tmp_path / "my")
    assert (tmp_path / "my/1/a.root").read_bytes() == CONTENT
    assert len(site.ranges_asked("a.root")) == 12


def test_attempts_end_when_nothing_arrives(site: Site, tmp_path: Path) -> None:
    site.cuts["/a.root"] = [0] * 9
    with pytest.raises(TransferError, match=r"ended early .*0.0 MB of 0.3 MB are kept"):
        get(site, tmp_path / "my")
    assert len(site.ranges_asked("a.root")) == 1 + remote.ATTEMPTS


@pytest.mark.parametrize("algorithm", ["adler32", "md5", "sha1", "sha256"])
def test_a_right_checksum_is_written_down_and_a_wrong_one_refused(site: Site, tmp_path: Path, algorithm: str) -> None:
    value = f"{zlib.adler32(CONTENT):08x}" if algorithm == "adler32" else hashlib.new(algorithm, CONTENT).hexdigest()
    right, wrong = Checksum(algorithm, value), Checksum(algorithm, value[:-1] + ("0" if value[-1] != "0" else "1"))
    with pytest.raises(
        DataError, match=rf"came with the checksum {right}, expected {wrong} .as the list of checksums says"
    ):
        get(site, tmp_path / "my", wrong)
    assert not list((tmp_path / "my/1").glob("*.root*")) or not (tmp_path / "my/1/a.root").exists()
    entry = get(site, tmp_path / "my", right)
    assert (entry.checksum, entry.verified) == (str(right), "given")


def test_the_server_may_tell_the_checksum(site: Site, tmp_path: Path) -> None:
    site.digests = True
    entry = get(site, tmp_path / "my")
    assert (entry.checksum, entry.verified) == (f"adler32:{zlib.adler32(CONTENT):08x}", "server")


def test_a_real_xrootd_server_tells_the_checksum_and_goes_on(tmp_path: Path) -> None:
    content = (DATA / "ttbar.root").read_bytes()
    with xrootd(DATA) as (_, address):
        wanted = [Download(Url(f"{address}/ttbar.root"), "1/a.root")]
        (tmp_path / "1").mkdir()
        note = {"url": wanted[0].url.text, "size": len(content), "version": ""}
        files.write_json(tmp_path / "1/a.root.part.json", note)
        (tmp_path / "1/a.root.part").write_bytes(content[:500_000])
        entry = download(wanted, tmp_path)["1/a.root"]
    assert (tmp_path / "1/a.root").read_bytes() == content
    assert (entry.checksum, entry.verified) == (f"adler32:{zlib.adler32(content):08x}", "server")


def test_a_damaged_beginning_is_noticed_by_the_checksum_and_fetched_again(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
    leave_part(site, tmp_path / "my", 100_000, damage=True)
    get(site, tmp_path / "my", right)
    assert (tmp_path / "my/1/a.root").read_bytes() == CONTENT
    assert "the checksum is wrong after going on; fetched again from the start" in caplog.text
    leave_part(site, tmp_path / "other", 100_000, damage=True)
    get(site, tmp_path / "other")  # the negative control: the size alone does not notice
    assert (tmp_path / "other/1/a.root").read_bytes() != CONTENT


def test_a_checksum_given_later_checks_what_is_there(site: Site, tmp_path: Path) -> None:
    assert get(site, tmp_path / "my").verified == "size"
    site.asked.clear()
    right = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
    assert get(site, tmp_path / "my", right).verified == "given"
    assert site.ranges_asked("a.root") == [PROBED]


def test_a_file_of_the_user_is_adopted_if_it_is_the_same_and_never_overwritten(site: Site, tmp_path: Path) -> None:
    (tmp_path / "my/1").mkdir(parents=True)
    mine = tmp_path / "my/1/a.root"
    mine.write_bytes(CONTENT)
    assert get(site, tmp_path / "my").size == len(CONTENT)
    assert site.ranges_asked("a.root") == [PROBED]
    mine.write_bytes(b"my own")
    with pytest.raises(DataError, match=r"is there already, but it is not the file at .*6 bytes here, 300000 there"):
        get(site, tmp_path / "my")
    assert mine.read_bytes() == b"my own"


def test_the_size_that_was_announced(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 300000 bytes, but 5 were announced"):
        get(site, tmp_path / "my", size=5)


def test_a_full_disk(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room is noticed before; a disk that fills up meanwhile (/dev/full) has its sentence too."""
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(DataError, match=r"has 0.0 MB left, but 0.3 MB are to be fetched. Make room"):
            get(site, tmp_path / "my")
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    arrived = leave_part(site, tmp_path / "my", 100_000)
    arrived.unlink()
    arrived.symlink_to("/dev/full")
    monkeypatch.setattr(downloads, "_start_over", lambda plan: None)  # it would remove the link
    with pytest.raises(
        DataError, match=r"the disk or the quota is full .No space left on device.*goes on where it stopped"
    ):
        get(site, tmp_path / "my")


def test_one_process_works_in_a_folder(site: Site, tmp_path: Path) -> None:
    (tmp_path / "my").mkdir()
    with (
        files.locked(tmp_path / "my", "wait."),
        pytest.raises(ConfigError, match=r"another hepx works in .*my'; wait for it"),
    ):
        get(site, tmp_path / "my")


def test_a_killed_process_loses_nothing(site: Site, tmp_path: Path) -> None:
    """A real kill -9 in the middle; the next call takes up what had arrived."""
    (site.folder / "a.root").write_bytes(CONTENT)
    site.delay = 0.02
    code = (
        "from pathlib import Path; from hepx.download import *; from hepx.remote import Url\n"
        f"download([Download(Url('{site.url('a.root')}'), '1/a.root')], Path('{tmp_path / 'my'}'))"
    )
    arrived = tmp_path / "my/1/a.root.part"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not (arrived.exists() and arrived.stat().st_size > 0):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    here = arrived.stat().st_size
    assert 0 < here < len(CONTENT)
    site.delay = 0
    site.asked.clear()
    get(site, tmp_path / "my")
    assert site.ranges_asked("a.root") == [PROBED, f"bytes={here}-299999"]
    assert (tmp_path / "my/1/a.root").read_bytes() == CONTENT


def test_digest_against_the_libraries(tmp_path: Path) -> None:
    path = tmp_path / "wiki"
    path.write_bytes(b"Wiki")
    assert digest(path, "adler32") == "03da0195"  # the example of the IANA registry
    path.write_bytes(CONTENT * 3)
    assert digest(path, "adler32") == f"{zlib.adler32(CONTENT * 3):08x}"
    assert digest(path, "sha256") == hashlib.sha256(CONTENT * 3).hexdigest()


INDEX = [
    {
        "availability": "online",
        "checksum": "adler32:3da0195",
        "filename": "a.root",
        "size": 4,
        "uri": "root://x//a.root",
    }
]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (json.dumps(INDEX), 4),
        (json.dumps({"files": INDEX}), 4),
        ("adler32:03da0195 a.root\n", None),
        ("03da0195  eos/a.root\n", None),
        ("http://host/eos/a.root\t12345678\tadler32:03da0195\n", 12345678),
    ],
)
def test_lists_of_checksums(tmp_path: Path, text: str, size: int | None) -> None:
    (tmp_path / "list").write_text(text)
    assert read_checksums(tmp_path / "list") == {"a.root": (size, Checksum("adler32", "03da0195"))}


def test_lists_of_checksums_by_the_usual_programs(tmp_path: Path) -> None:
    (tmp_path / "a.root").write_bytes(CONTENT)
    for program, algorithm in (("sha256sum", "sha256"), ("md5sum", "md5"), ("sha1sum", "sha1")):
        done = subprocess.run([program, "a.root"], cwd=tmp_path, capture_output=True, text=True, check=True)
        (tmp_path / "list").write_text(done.stdout)
        assert read_checksums(tmp_path / "list")["a.root"][1] == Checksum(
            algorithm, hashlib.new(algorithm, CONTENT).hexdigest()
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no checksums; expected a file index"),
        ("nothing here\n", "has no checksums"),
        ('[{"size": 3}]', "is not a file index of opendata.cern.ch: KeyError"),
        ("{broken", "is not a file index"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_checksums(tmp_path / "list")
    with pytest.raises(ConfigError, match=r"cannot read the checksums in '.*none'"):
        read_checksums(tmp_path / "none")


def test_a_manifest_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"version": 3}')
    with pytest.raises(DataError, match=r"is not a manifest that hepx wrote"):
        read_manifest(tmp_path)


# ---- the catalogue


def entry(
    dsid: str, name: str, files: list[str], skims: dict[str, list[str]] | None = None, **more: Any
) -> dict[str, Any]:
    """A dataset as the web service of ATLAS Open Data describes it."""
    known = {
        "dataset_number": dsid,
        "physics_short": name,
        "e_tag": "e1",
        "cross_section_pb": 2.5,
        "genFiltEff": 0.5,
        "kFactor": 1.1,
        "nEvents": 1000,
        "sumOfWeights": 4000.0,
        "process": "pp>X",
        "generator": "Pythia8",
        "keywords": ["top"],
        "description": None,
        "release": {"name": RELEASE},
    }
    lists = [{"id": 1, "skim_type": skim, "file_list": urls} for skim, urls in (skims or {}).items()]
    return {**known, "file_list": files, "skims": lists, **more}


@pytest.fixture(scope="module")
def opendata(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Catalogue and files: the shipped sample as if it were a release."""
    with serve(Site(DATA)) as running:
        page = [
            entry("601352", "signal_C1N2", [], {"1LMET30": [running.url("signal.root")]}, process="pp>C1N2"),
            entry(
                "410470",
                "PhPy8EG_ttbar.nonallhad",
                [running.url("none.root")],
                {"1LMET30": [running.url("ttbar.root")]},
            ),
            entry("410644", "singletop", [], {"1LMET30": [running.url("singletop.root")]}, kFactor=None),
            entry("data", "data", ["root://eospublic.cern.ch:1094//eos/opendata/data.root"]),
        ]
        count = {"count": len(page)}

        def datasets(query: dict[str, list[str]]) -> list[dict[str, Any]]:
            return page if query["release_name"] == [RELEASE] and query["skip"] == ["0"] else []

        running.answers = {"/datasets": datasets, "/datasets/count": lambda _: count}
        yield running


@pytest.fixture
def hepx(
    opendata: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Hepx]:
    """The command line in this process and an empty folder, with the server as the web service of the catalogue."""
    atom = pytest.importorskip("atlasopenmagic", reason="the extra opendata is not installed")
    monkeypatch.setattr(atom.metadata, "API_BASE_URL", opendata.address)
    monkeypatch.chdir(tmp_path)
    opendata.asked.clear()

    def call(*arguments: str) -> tuple[int, str, str]:
        atom.metadata.empty_metadata()
        monkeypatch.setattr(sys, "argv", ["hepx", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    log = logging.getLogger("hepx")
    level, handlers = log.level, log.handlers
    yield call
    log.level, log.handlers = level, handlers


def test_list_shows_a_table_and_fetches_nothing(hepx: Hepx, opendata: Site) -> None:
    code, out, _ = hepx("fetch", "--list", "TTBAR")
    assert code == 0
    header, row, last = out.splitlines()
    assert re.split(" {2,}", header) == [
        "DSID", "name", "process", "generator", "xsec_pb", "filter eff.", "k-factor", "events", "files", "size",
    ]  # fmt: skip
    values = [
        "410470",
        "PhPy8EG_ttbar.nonallhad",
        "pp>X",
        "Pythia8",
        "2.5",
        "0.5",
        "1.1",
        "1000",
        "1",
        "-",
    ]
    assert re.split(" {2,}", row) == values
    assert last == "datasets: 1; skims: 1LMET30, noskim; - is not known"
    assert {path for _, path, _ in opendata.asked} == {"/datasets", "/datasets/count"}
    assert len(hepx("fetch", "--list")[1].splitlines()) == 4 + 2
    assert hepx("fetch", "--list", "top", "pp>C1N2")[1].splitlines()[1].startswith("601352")
    assert hepx("fetch", "--list", "nothing of it")[1].endswith("datasets: 0; skims: none; - is not known\n")


def test_list_can_ask_for_sizes(hepx: Hepx) -> None:
    _, out, _ = hepx("fetch", "--list", "ttbar", "--skim", "1LMET30", "--sizes")
    assert out.splitlines()[1].endswith(f"  1      {(DATA / 'ttbar.root').stat().st_size / 1e6:.1f} MB")


def test_fetch_downloads_checks_and_writes_a_config_that_runs(hepx: Hepx, tmp_path: Path) -> None:
    names = ("signal.root", "ttbar.root", "singletop.root")
    index = [
        {
            "filename": name,
            "size": (DATA / name).stat().st_size,
            "checksum": f"adler32:{digest(DATA / name, 'adler32')}",
        }
        for name in names
    ]
    Path("index.json").write_text(json.dumps(index))
    code, out, errors = hepx(
        "fetch",
        "410470",
        "410644",
        "--signal",
        "601352",
        "--skim",
        "1LMET30",
        "-o",
        "mydata",
        "--checksums",
        "index.json",
    )
    assert code == 0, errors
    assert out.splitlines() == [
        "files: 3 in mydata, 2.6 MB",
        "config: mydata/config.yaml; look through it, then: hepx run mydata/config.yaml",
    ]
    for dsid, name in zip(("601352", "410470", "410644"), names, strict=True):
        assert (tmp_path / "mydata" / dsid / name).read_bytes() == (DATA / name).read_bytes()
    assert {one.verified for one in read_manifest(tmp_path / "mydata").values()} == {"given"}
    samples = load(tmp_path / "mydata/config.yaml")["data"]["samples"]
    assert samples == {
        "signal_C1N2": {
            "files": ["mydata/601352/signal.root"],
            "label": 1,
            "xsec_pb": 2.5,
            "kfactor": 1.1,
            "filter_efficiency": 0.5,
            "sum_of_weights": 4000.0,
        },
        "PhPy8EG_ttbar_nonallhad": {
            "files": ["mydata/410470/ttbar.root"],
            "label": 0,
            "xsec_pb": 2.5,
            "kfactor": 1.1,
            "filter_efficiency": 0.5,
            "sum_of_weights": 4000.0,
        },
        "singletop": {"files": ["mydata/410644/singletop.root"], "label": 0},
    }
    assert "# the catalogue lacks kfactor: the numbers in the files are used" in Path("mydata/config.yaml").read_text()
    small = ["data.select=met > 250", "train.epochs=1", "model.dim=8", "model.expert_dim=8", "evaluate.trees=false"]
    code, out, errors = hepx("evaluate", "mydata/config.yaml", *small)
    assert code == 0, errors
    assert out.startswith("test AUC 0.")
    assert hepx("fetch", "410470", "410644", "--signal", "601352", "--skim", "1LMET30", "-o", "mydata")[0] == 0


def test_a_streamed_config_has_addresses_and_the_same_events(hepx: Hepx, opendata: Site, tmp_path: Path) -> None:
    chosen = ("410470", "--signal", "601352", "--skim", "1LMET30")
    code, out, errors = hepx("fetch", *chosen, "--stream", "https", "--config", "far.yaml")
    assert code == 0, errors
    assert out.splitlines() == ["config: far.yaml; look through it, then: hepx run far.yaml"]
    assert not Path("opendata").exists()
    assert not opendata.ranges_asked("ttbar.root")
    settings = parse(RunSettings, load(Path("far.yaml")), "far.yaml")
    assert settings.data.samples["signal_C1N2"].files == (opendata.url("signal.root"),)


def test_root_addresses_for_reading_and_https_ones_for_downloading() -> None:
    lists = {
        "noskim": ("root://eospublic.cern.ch:1094//eos/opendata/atlas/a.root", "root://eospublic.cern.ch//eos/b.root")
    }
    one = Dataset("1", "x", "", "", "", (), None, None, None, None, None, lists)
    assert [str(url) for url in addresses(one, "", "https")] == [
        "https://opendata.cern.ch/eos/opendata/atlas/a.root",
        "https://opendata.cern.ch/eos/b.root",
    ]
    assert [str(url) for url in addresses(one, "", "root")] == list(lists["noskim"])
    assert len(addresses(one, "noskim", max_files=1)) == 1


def test_a_share_of_the_files_has_a_share_of_the_sum_of_weights() -> None:
    urls = tuple(f"https://host/{number}.root" for number in range(4))
    one = Dataset("1", "x", "", "", "", (), 2.0, 1.0, 1.0, 100.0, None, {"noskim": urls})
    other = Dataset("2", "y", "", "", "", (), 2.0, 1.0, 1.0, None, None, {"noskim": urls})

    def samples(max_files: int | None) -> tuple[dict[str, Any], str]:
        text = config_text(Order((one, other), RELEASE, "", Path("my"), frozenset({"1"}), max_files))
        return read_yaml(text)["data"]["samples"], text

    assert samples(None)[0]["x"]["sum_of_weights"] == 100.0
    assert samples(1)[0]["x"]["sum_of_weights"] == 25.0
    assert "# 1 of 4 files: sum_of_weights is their share of 100" in samples(1)[1]
    assert "sum_of_weights" not in samples(1)[0]["y"]
    assert "# 1 of 4 files: give sum_of_weights of that share, or the yield is too small" in samples(1)[1]


@pytest.mark.slow
def test_the_config_of_a_streamed_order_goes_through_the_whole_chain(hepx: Hepx) -> None:
    hepx("fetch", "410470", "410644", "--signal", "601352", "--skim", "1LMET30", "--stream", "https", "-o", "my")
    small = ("explain.1.draws=2", "explain.1.events=20", "explain.1.max_completeness_error=1")
    code, out, errors = hepx(
        "run", "my/config.yaml", "train.epochs=2", "explain.0.draws=4", "data.select=met > 250", *small
    )
    assert code == 0, errors
    assert Path("runs/my/report.html").exists()
    assert out.rstrip().endswith("report.html")


@pytest.mark.parametrize("release", ["2020e-13tev", "2024r-pp", "2025e-13tev-beta"])
def test_every_release_with_a_schema_gives_a_config_that_parses(release: str) -> None:
    lists = {"noskim": ("https://host/a.pool.root.1",)}
    pair = tuple(Dataset(dsid, f"{dsid} x: y", "", "", "", (), 2.0, 0.5, 1.0, 9.0, None, lists) for dsid in "12")
    settings = parse(
        RunSettings, read_yaml(config_text(Order(pair, release, "", Path("my data"), frozenset("1")))), "config"
    )
    assert {name: sample.label for name, sample in settings.data.samples.items()} == {"1_x_y": 1, "2_x_y": 0}
    assert settings.name == "my_data"
    with pytest.raises(
        ConfigError, match=r"has no schema for the files of release '2016e-8tev'; give one with --schema"
    ):
        config_text(Order(pair, "2016e-8tev", "", Path("my"), frozenset("1")))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "name a dataset, for example 410470"),
        (("410471",), 2, "there is no dataset '410471' in this release; closest: '410470'.*hepx fetch --list 410471"),
        (("410470",), 2, "410470 comes in several skims; choose one: --skim 1LMET30 or noskim"),
        (("410470", "--skim", "1LMET3"), 2, "has no skim '1LMET3'; closest: '1LMET30'"),
        (("410470", "--skim", "1LMET30", "--config", "x.yaml"), 2, "a config needs signal and background"),
        (("410470", "--release", "2025e"), 2, "there is no release '2025e' of ATLAS Open Data; known: 2016e-8tev"),
        (("410470", "--skim", "noskim"), 3, "there is no file 'http://127.0.0.1.*none.root'"),
        (("410470", "--checksums", "none"), 2, "cannot read the checksums in 'none'"),
        (("410470", "--metadata", "none"), 2, "'none' is not a catalogue that atlasopenmagic saved"),
    ],
)
def test_orders_that_cannot_be(hepx: Hepx, arguments: tuple[str, ...], code: int, words: str) -> None:
    found, _, errors = hepx("fetch", *arguments)
    assert found == code
    assert re.search(words, errors), errors
    assert "Traceback" not in errors


def test_without_a_signal_there_is_no_config(hepx: Hepx) -> None:
    code, out, _ = hepx("fetch", "singletop", "-o", "my")
    assert code == 0
    assert out.splitlines() == [
        "files: 1 in my, 0.3 MB",
        "files of which only the size could be checked: 1; a file index helps: --checksums",
        "no config written: --signal DSID says which dataset is signal, the others are background",
    ]
    assert not Path("my/config.yaml").exists()


def test_a_config_of_the_user_is_not_overwritten_and_nothing_is_fetched_then(hepx: Hepx, opendata: Site) -> None:
    Path("mine.yaml").write_text("name: mine\n")
    code, _, errors = hepx("fetch", "singletop", "--signal", "601352", "--config", "mine.yaml")
    assert code == 2
    assert "'mine.yaml' exists already and says something else; choose another --config" in errors
    assert Path("mine.yaml").read_text() == "name: mine\n"
    assert not opendata.ranges_asked("singletop.root")


def test_collision_data_can_be_fetched_but_is_no_sample(opendata: Site) -> None:
    lists = {"noskim": ("https://host/a.root",)}
    some = tuple(
        Dataset(dsid, f"n{dsid}", "", "", "", (), 2.0, 0.5, 1.0, 9.0, None, lists) for dsid in ("1", "2", "data")
    )
    text = config_text(Order(some, RELEASE, "", Path("my"), frozenset("1")))
    assert "ndata" not in text


def test_the_catalogue_from_a_file_needs_no_network(hepx: Hepx, opendata: Site) -> None:
    atom = pytest.importorskip("atlasopenmagic")
    hepx("fetch", "--list")
    atom.save_metadata("catalogue.json")
    opendata.asked.clear()
    _, far, _ = hepx("fetch", "--list", "top")
    opendata.asked.clear()
    _, near, _ = hepx("fetch", "--list", "top", "--metadata", "catalogue.json")
    assert near == far
    assert opendata.asked == []


def test_no_network_is_a_sentence(hepx: Hepx, monkeypatch: pytest.MonkeyPatch) -> None:
    atom = pytest.importorskip("atlasopenmagic")
    monkeypatch.setattr(atom.metadata, "API_BASE_URL", "http://127.0.0.1:1")
    session = atom.metadata.get_session()
    for adapter in session.adapters.values():
        monkeypatch.setattr(adapter, "max_retries", 0)
    code, _, errors = hepx("fetch", "--list", "ttbar")
    assert code == 3
    assert "the catalogue of ATLAS Open Data at http://127.0.0.1:1 gave no answer of use (ConnectionError)" in errors
    assert "--metadata catalogue.json" in errors


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "atlasopenmagic", None)
    with pytest.raises(ConfigError, match=r"hepx fetch needs the extra 'opendata'.*pip install -e '.\[opendata\]'"):
        catalogue(RELEASE)


def test_entries_that_make_no_sense(tmp_path: Path) -> None:
    pytest.importorskip("atlasopenmagic")
    (tmp_path / "c.json").write_text(
        json.dumps({"1": entry("1", "x", ["https://host/a.root"], cross_section_pb="much")})
    )
    with pytest.raises(DataError, match=r"says of dataset 1 what hepx does not understand .ValueError"):
        catalogue(RELEASE, tmp_path / "c.json")
    (tmp_path / "c.json").write_text(json.dumps({"1": entry("1", "x", [], None, cross_section_pb=0, kFactor=-1)}))
    one = catalogue(RELEASE, tmp_path / "c.json")["1"]
    assert (one.xsec_pb, one.kfactor, one.filter_efficiency) == (None, None, 0.5)
    with pytest.raises(DataError, match=r"has no files in the catalogue"):
        addresses(one, "")
