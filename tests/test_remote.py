"""Files on other machines: the same events as from a local file, and a sentence for each way a server can fail."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uproot
from web import Site, serve, xrootd

from hepx import remote
from hepx.cli import main
from hepx.config import parse
from hepx.errors import ConfigError, DataError
from hepx.events import DataSettings, find_files, inspect_file
from hepx.graph import GraphSettings
from hepx.remote import TransferError, Url, identity, identity_if_any, locate, probe, request, sentences, uuid_of
from hepx.run import Run
from hepx.schemas import load_schema
from hepx.store import convert
from hepx.workers import Execution

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"
SCHEMA = load_schema("atlas_open_2025")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No long pauses between attempts, no proxy between this machine and itself, no broken http for the environment."""
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site(DATA)) as running:
        yield running


def data(signal: object, background: object = str(DATA / "singletop.root")) -> DataSettings:
    samples = {"signal": {"files": signal, "label": 1}, "other": {"files": background, "label": 0}}
    select = "n_lepton == 1 and n_bjet == 2 and met > 100"
    return parse(DataSettings, {"samples": samples, "luminosity": 1.0, "select": select}, "data")


def assert_same_graphs(one: Path, other: Path) -> None:
    """Every shard has the same bytes."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names
    assert names == sorted(path.name for path in other.glob("*.safetensors"))
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs of the shipped files."""
    folder = tmp_path_factory.mktemp("graphs") / "local"
    convert(data(str(DATA / "signal.root")), GraphSettings(), folder)
    return folder


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_graphs_of_an_http_file_are_those_of_the_local_file(
    site: Site, local: Path, tmp_path: Path, workers: int
) -> None:
    store = convert(data(site.url("signal.root")), GraphSettings(), tmp_path / "far", Execution(workers))
    assert_same_graphs(tmp_path / "far", local)
    assert store.manifest["sources"][0]["path"] == site.url("signal.root")
    assert store.manifest["sources"][0]["size"] == (DATA / "signal.root").stat().st_size


def test_another_file_gives_other_graphs(site: Site, local: Path, tmp_path: Path) -> None:
    """The negative control of the test above."""
    convert(data(site.url("ttbar.root")), GraphSettings(), tmp_path / "far")
    with pytest.raises(AssertionError):
        assert_same_graphs(tmp_path / "far", local)


def test_only_what_is_needed_is_read(site: Site) -> None:
    """Opening a file reads its head and its directory, not the events."""
    inspect_file(Url(site.url("signal.root")), SCHEMA)
    assert all(part for part in site.ranges_asked("signal.root"))
    inclusive = [part.removeprefix("bytes=").split("-") for part in site.ranges_asked("signal.root") if part]
    read = sum(int(stop) - int(start) + 1 for start, stop in inclusive)
    assert read < 0.5 * (DATA / "signal.root").stat().st_size


def test_a_connection_that_breaks_is_tried_again(site: Site, local: Path, tmp_path: Path) -> None:
    site.cuts["/signal.root"] = [500, 500]
    site.faults["/signal.root"] = [503]
    convert(data(site.url("signal.root")), GraphSettings(), tmp_path / "far")
    assert_same_graphs(tmp_path / "far", local)
    assert site.cuts["/signal.root"] == []
    assert site.faults["/signal.root"] == []


def test_a_bad_file_may_be_skipped_but_not_one_whose_server_is_away(site: Site, tmp_path: Path) -> None:
    """Else a network that fails for a minute would quietly leave out a part of the sample."""
    both = data([str(DATA / "signal.root"), site.url("none.root")])
    skipped = convert(both, GraphSettings(), tmp_path / "skipped", Execution(skip_bad_files=True)).manifest["skipped"]
    assert [one["path"] for one in skipped] == [site.url("none.root")]
    both = data([str(DATA / "signal.root"), site.url("ttbar.root")])
    for faults in ([503] * 99, [0] * 12 + [503] * 99):  # away from the start, or while events are read
        site.faults["/ttbar.root"] = list(faults)
        with pytest.raises(TransferError, match=r"cannot answer now .HTTP 503"):
            convert(both, GraphSettings(), tmp_path / f"{len(faults)}", Execution(skip_bad_files=True))


def test_a_file_that_is_damaged_on_its_server(site: Site, tmp_path: Path) -> None:
    site.folder = tmp_path
    content = (DATA / "signal.root").read_bytes()
    with uproot.open(DATA / "signal.root") as file:
        start = int(file["analysis"]["jet_pt"].member("fBasketSeek")[0])
    (tmp_path / "bad.root").write_bytes(content[:start] + bytes(400) + content[start + 400 :])
    with pytest.raises(DataError, match=r"the file is damaged or truncated .*Tell who serves it") as caught:
        convert(data(site.url("bad.root")), GraphSettings(), tmp_path / "graphs")
    assert not isinstance(caught.value, TransferError)


@pytest.mark.parametrize(
    ("path", "prepare", "words"),
    [
        ("none.root", {}, "there is no file '.*none.root' .HTTP 404"),
        ("signal.root", {"faults": {"/signal.root": [403]}}, "must not be read by you .HTTP 403"),
        ("signal.root", {"faults": {"/signal.root": [503] * 9}}, "cannot answer now .HTTP 503.*Try again later"),
        ("signal.root", {"faults": {"/signal.root": [400]}}, "the server refuses .* .HTTP 400"),
        ("signal.root", {"ranges": False}, "sends whole files only .no HTTP Range.*Download the file"),
        ("README.md", {}, "truncated or not a ROOT file"),
    ],
)
def test_servers_that_do_not_give_the_file(site: Site, path: str, prepare: dict[str, object], words: str) -> None:
    for name, value in prepare.items():
        setattr(site, name, value)
    with pytest.raises(DataError, match=words):
        inspect_file(Url(site.url(path)), SCHEMA)


def test_files_that_cannot_be_events(site: Site, tmp_path: Path) -> None:
    site.folder = tmp_path
    (tmp_path / "empty.root").touch()
    (tmp_path / "table.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "half.root").write_bytes((DATA / "signal.root").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"is empty .0 bytes"):
        inspect_file(Url(site.url("empty.root")), SCHEMA)
    with pytest.raises(DataError, match=r"HDF5 table, which can be read on this machine only. Download it"):
        inspect_file(Url(site.url("table.h5")), SCHEMA)
    with pytest.raises(DataError, match="truncated or not a ROOT file"):
        inspect_file(Url(site.url("half.root")), SCHEMA)


def test_hosts_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens: connections are refused
        port = taken.getsockname()[1]
        with pytest.raises(TransferError, match=r"connection to '127.0.0.1' failed: Connection refused"):
            probe(Url(f"http://127.0.0.1:{port}/a.root"))
        if importlib.util.find_spec("fsspec_xrootd"):
            with pytest.raises(TransferError, match=r"connection to '127.0.0.1' failed: Connection refused"):
                probe(Url(f"root://127.0.0.1:{port}//a.root"))
        taken.listen()
        monkeypatch.setattr(remote, "TIMEOUT", 0.05)  # somebody listens and says nothing
        with pytest.raises(TransferError, match="did not answer for"):
            probe(Url(f"http://127.0.0.1:{port}/a.root"))
    with pytest.raises(TransferError, match=r"host 'nowhere.invalid' is not known: there is no network here"):
        probe(Url("https://nowhere.invalid/a.root"))


def test_https_with_a_certificate_that_is_trusted_or_not(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    wanted = "-x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    command = ["openssl", "req", *wanted.split(), "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    with serve(Site(DATA), (certificate, key)) as site:
        url = site.url("signal.root")
        with pytest.raises(DataError, match=r"certificate of 'localhost' is not trusted here .self-signed certificate"):
            probe(Url(url))
        environment = {**os.environ, "SSL_CERT_FILE": str(certificate), "no_proxy": "localhost"}
        command = [sys.executable, "-m", "hepx.cli", "inspect", url]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "schema atlas_open_2025: fits (tree 'analysis')" in done.stdout


def test_a_server_without_encryption_on_an_https_address(site: Site) -> None:
    with pytest.raises(TransferError, match=r"connection to '127.0.0.1' failed: .*SSL"):
        probe(Url(site.url("signal.root").replace("http://", "https://")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://example.org/a*.root", "patterns are not expanded in an address"),
        ("root://example.org//eos/[ab].root", "patterns are not expanded"),
        ("https://example.org/a b.root", "no spaces"),
        ("s3://bucket/a.root", "files can be read from https, http, root"),
        ("simplecache::https://example.org/a.root", "files can be read from https, http, root"),
        ("https:///a.root", "not the address of a file; expected https://host/folder/file.root"),
        ("https://example.org:port/a.root", "not the address of a file"),
        ("root://example.org", "not the address of a file; expected root://host"),
    ],
)
def test_addresses_of_no_use(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_files("signal", data(text).samples["signal"])


def test_addresses_are_taken_as_they_are_and_once() -> None:
    wanted = ["https://example.org/b.root?x=1", "root://eos.org//a.root", str(DATA / "ttbar.root")]
    found = find_files("signal", data(wanted).samples["signal"])
    assert [str(file) for file in found] == wanted
    assert [type(file) for file in found[:2]] == [Url, Url]
    twice = ["root://eos.org//eos/a.root", "root://eos.org:1094//eos/a.root"]
    with pytest.raises(DataError, match="are the same file, so its events would count twice"):
        find_files("signal", data(twice).samples["signal"])
    other = ["root://eos.org:1095//eos/a.root", "root://eos.org//eos/a.root", "http://eos.org/eos/a.root"]
    assert len(find_files("signal", data(other).samples["signal"])) == 3


def test_paths_are_seen_from_the_folder_given_and_addresses_are_not() -> None:
    assert locate("a.root", Path("/x")) == Path("/x/a.root")
    assert locate("/y/a.root", Path("/x")) == Path("/y/a.root")
    assert locate("http://host/a.root", Path("/x")) == Url("http://host/a.root")


def test_identity_changes_with_the_file_and_only_then(site: Site, tmp_path: Path) -> None:
    site.folder = tmp_path
    (tmp_path / "a.root").write_bytes(b"root" + bytes(100))
    url = Url(site.url("a.root"))
    first = identity(url)
    assert identity(url) == first == [str(url), 104, first[2]]
    (tmp_path / "a.root").write_bytes(b"root" + bytes(99) + b"x")
    assert identity(url) != first
    site.etags = False
    assert identity(url) == [str(url), 104, ""]


def test_a_root_file_is_known_by_its_uuid_wherever_it_is(site: Site, tmp_path: Path) -> None:
    """Oracle: uproot. A copy and a new time stamp change nothing; another file does; in one above 2 GB the UUID is
    elsewhere."""
    with uproot.open(DATA / "signal.root") as file:
        wanted = [(DATA / "signal.root").stat().st_size, f"uuid {file.file.uuid}"]
    copy = tmp_path / "signal.root"
    shutil.copy(DATA / "signal.root", copy)
    assert identity(copy) == [str(copy), *wanted]
    os.utime(copy, (1, 1))
    assert identity(copy) == identity_if_any(copy) == [str(copy), *wanted]
    url = Url(site.url("signal.root"))
    assert identity(url) == [str(url), *wanted]
    shutil.copy(DATA / "ttbar.root", copy)
    assert identity(copy)[2] not in (wanted[1], "")
    head = b"root" + (1_062_400).to_bytes(4, "big") + bytes(51) + bytes(range(16)) + bytes(25)
    assert uuid_of(head) == "uuid 00010203-0405-0607-0809-0a0b0c0d0e0f"
    other = tmp_path / "table.h5"
    other.write_bytes(bytes(200))
    before = identity(other)
    os.utime(other, (1, 1))
    assert identity(other) != before


def test_a_file_that_was_skipped_does_not_stop_the_run_later(site: Site, tmp_path: Path) -> None:
    """A server says that there is no such file: with the flag it is left out, and the next command goes on without."""
    (tmp_path / "none").mkdir()
    files = f"data.samples.signal.files=[{DATA / 'signal.root'}, '{site.url('none.root')}']"
    small = ["name=far", files, "data.select=met > 400"]

    def run() -> Run:
        return Run.from_config(ROOT / "configs" / "quickstart.yaml", small, tmp_path)

    with pytest.raises(DataError, match="there is no file"):
        run().execute("convert")
    skipping = run()
    skipping.execution = Execution(skip_bad_files=True)
    skipping.execute("convert")
    assert run().key("convert") == skipping.key("convert")
    assert run().is_done("convert")
    small.append("data.luminosity=100")
    run().execute("convert")
    assert [one["path"] for one in run().store().manifest["skipped"]] == [site.url("none.root")]


def test_a_changed_remote_file_changes_the_key_of_a_run_and_an_absent_server_does_not(
    site: Site, tmp_path: Path
) -> None:
    site.folder = tmp_path
    shutil.copy(DATA / "signal.root", tmp_path / "signal.root")
    small = ["name=far", f"data.samples.signal.files={site.url('signal.root')}", "data.select=met > 400"]
    config = ROOT / "configs" / "quickstart.yaml"

    def run() -> Run:
        return Run.from_config(config, small, tmp_path)

    first = run()
    key = first.key("convert")
    asked = len(site.asked)
    assert first.key("train") != key
    assert len(site.asked) == asked, "a server is asked once per run"
    assert run().key("convert") == key
    (tmp_path / "far").mkdir()
    run().execute("convert")
    shutil.copy(DATA / "ttbar.root", tmp_path / "signal.root")
    assert run().key("convert") != key
    site.faults["/signal.root"] = [503] * 9
    assert run().key("convert") == key


Hepx = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hepx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Hepx]:
    """The command line in this process: exit code, output, errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hepx", *arguments])
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    log = logging.getLogger("hepx")
    level, handlers = log.level, log.handlers
    yield call
    log.level, log.handlers = level, handlers


@pytest.mark.parametrize("library", ["aiohttp", "fsspec_xrootd"])
def test_what_is_missing_is_named_with_how_to_install_it(
    site: Site, hepx: Hepx, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    url = site.url("signal.root") if library == "aiohttp" else "root://127.0.0.1//a.root"
    monkeypatch.setitem(sys.modules, library, None)
    code, _, errors = hepx("inspect", url)
    assert code == 2
    assert f"hepx: error: '{url}': {url.partition(':')[0]}:// needs the extra 'opendata'" in errors
    assert "pip install -e '.[opendata]'" in errors


def test_inspect_takes_an_address(site: Site, hepx: Hepx) -> None:
    far, near = hepx("inspect", site.url("signal.root")), hepx("inspect", "data/signal.root")
    assert far[0] == near[0] == 0
    assert far[1].splitlines()[1:] == near[1].splitlines()[1:]
    assert far[2] == ""
    code, _, errors = hepx("inspect", site.url("none.root"))
    assert code == 3
    assert errors.startswith("hepx: error: there is no file 'http://127.0.0.1")


def test_a_server_answer_is_closed_when_the_reader_fails(site: Site) -> None:
    url = Url(site.url("signal.root"))
    with (
        pytest.raises(TransferError, match=r"the connection to '127.0.0.1' failed: Connection reset by peer"),
        request(url) as answer,
        sentences(url),
    ):
        raise ConnectionResetError("Connection reset by peer")
    assert answer.closed


@pytest.fixture(scope="module")
def eos() -> Iterator[str]:
    """A real XRootD server with the shipped files; its address."""
    with xrootd(DATA) as (address, _):
        yield address


def test_graphs_of_a_root_address_are_those_of_the_local_file(eos: str, local: Path, tmp_path: Path) -> None:
    convert(data(f"{eos}/signal.root"), GraphSettings(), tmp_path / "far")
    assert_same_graphs(tmp_path / "far", local)


def test_what_an_xrootd_server_says_about_a_file(eos: str) -> None:
    found = probe(Url(f"{eos}/ttbar.root"))
    assert (found.size, found.head[:4], found.parts) == ((DATA / "ttbar.root").stat().st_size, b"root", True)
    assert int(found.version) > 0
    with pytest.raises(DataError, match=r"there is no file 'root://.*none.root'"):
        probe(Url(f"{eos}/none.root"))
    with pytest.raises(DataError, match="is a folder, not a file"):
        probe(Url(eos))
