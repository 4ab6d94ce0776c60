"""Files on other machines: their addresses, what a server says about them, and a sentence for each way it can fail.

http and https go through the standard library here (proxies and certificates as it finds them in the environment),
root through fsspec-xrootd. Reading events from an address is uproot's work, through fsspec.
"""

from __future__ import annotations

import http.client
import importlib
import logging
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import hepx
from hepx.errors import ConfigError, DataError

log = logging.getLogger(__name__)

T = TypeVar("T")
PORTS = {"https": 443, "http": 80, "root": 1094}
NEEDED = {"https": "aiohttp", "http": "aiohttp", "root": "fsspec_xrootd"}  # what uproot reads such an address through
TIMEOUT = 20.0  # seconds without a sign of the server
ATTEMPTS = 3
PAUSE = 1.0  # seconds before the second attempt; each further one waits twice as long
HEAD = 100  # first bytes of a file: its kind, and the header of a ROOT file with its UUID


class TransferError(DataError):
    """The network or a server failed in a way that may pass."""


@dataclass(frozen=True)
class Url:
    """The address of a file: https://…, http://… or root://…"""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def scheme(self) -> str:
        """https, http or root."""
        return self.text.partition("://")[0]

    @property
    def host(self) -> str:
        """Name of the server."""
        return urlsplit(self.text).hostname or ""

    @property
    def port(self) -> int:
        """Port of the server."""
        return urlsplit(self.text).port or PORTS[self.scheme]

    @property
    def name(self) -> str:
        """Last part of the path: the name of the file."""
        return PurePosixPath(urlsplit(self.text).path).name

    def resolve(self) -> Url:
        """The same address without a default port and repeated slashes at the start of the path."""
        parts = urlsplit(self.text)
        port = f":{self.port}" if self.port != PORTS[self.scheme] else ""
        query = f"?{parts.query}" if parts.query else ""
        return Url(f"{self.scheme}://{self.host}{port}/{parts.path.lstrip('/')}{query}")


Location = Path | Url
"""Where a file is: on this machine or on another."""


@dataclass(frozen=True)
class Probe:
    """What a server says about a file: bytes, version (ETag or time of the last change; empty if it tells neither),
    the first bytes, and whether it sends parts of files."""

    size: int
    version: str
    head: bytes
    parts: bool


def is_url(text: str) -> bool:
    """Whether a text is an address rather than a path."""
    return "://" in text


def locate(text: str, root: Path = Path()) -> Location:
    """The file that a text names: an address, or a path seen from `root`; ConfigError for an address of no use.

    >>> locate("https://example.org/a.root").name
    'a.root'
    >>> locate("root://eos.example.org:1094//eos/a.root").resolve().text
    'root://eos.example.org/eos/a.root'
    """
    if not is_url(text):
        return root / text
    url = Url(text)
    if url.scheme not in PORTS:
        raise ConfigError(f"'{text}': files can be read from {', '.join(PORTS)}; expected an address that begins so.")
    parts = urlsplit(text)
    try:
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0) and bool(url.name)
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise ConfigError(f"'{text}' is not the address of a file; expected {url.scheme}://host/folder/file.root.")
    if any(sign in parts.path for sign in "*[") or any(character.isspace() for character in text):
        raise ConfigError(
            f"'{text}': patterns are not expanded in an address, because servers do not list their files (and there "
            "are no spaces in it); give the address of each file. `hepx fetch` writes a config with all of them."
        )
    return url


def identity(location: Location) -> list[Any]:
    """What changes when a file changes: its name, size, and the UUID that ROOT gives to every file it writes, so that a
    copy or a new time stamp changes nothing. Without a UUID: the version that a server tells, or the time stamp."""
    if isinstance(location, Url):
        found = probe(location)
        return [str(location), found.size, uuid_of(found.head) or found.version]
    stat = location.stat()
    return [str(location), stat.st_size, _local_version(location, stat.st_size, stat.st_mtime_ns)]


@cache
def _local_version(path: Path, size: int, time_ns: int) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:  # it is opened again for its events, and what is wrong is said then
        head = b""
    return uuid_of(head) or f"time {time_ns}"


def uuid_of(head: bytes) -> str:
    """UUID of a ROOT file from its first bytes, as text; empty for another file, and for one without.

    Source: TFile::WriteHeader of ROOT; in a file above 2 GB (version from 1 000 000) three positions are twice as long.
    """
    if len(head) < HEAD or not head.startswith(b"root"):
        return ""
    start = 59 if int.from_bytes(head[4:8], "big") >= 1_000_000 else 47
    found = uuid.UUID(bytes=head[start : start + 16])
    return f"uuid {found}" if found.int else ""


def identity_if_any(location: Location) -> list[Any]:
    """The identity of a file that may be unreadable: of one that its server does not give, that alone."""
    try:
        return identity(location)
    except TransferError:
        raise
    except DataError:
        return [str(location), 0, "unreadable"]


def differences(before: Iterable[list[Any]], after: Iterable[list[Any]]) -> list[str]:
    """What changed between two lists of identities, a phrase for each file.

    >>> differences([["a.root", 1, "uuid x"], ["b.root", 2, ""]], [["a.root", 3, "uuid z"], ["c.root", 2, ""]])
    ['a.root: size 1 -> 3 bytes, uuid x -> uuid z', 'b.root: not among them any more', 'c.root: new']
    """
    old, new = ({name: rest for name, *rest in one} for one in (before, after))
    found = []
    for name in dict.fromkeys([*old, *new]):
        if name not in new:
            found.append(f"{name}: not among them any more")
        elif name not in old:
            found.append(f"{name}: new")
        elif old[name] != new[name]:
            sizes, versions = zip(old[name], new[name], strict=True)
            parts = [f"size {sizes[0]} -> {sizes[1]} bytes"] if sizes[0] != sizes[1] else []
            parts += [f"{versions[0]} -> {versions[1]}"] if versions[0] != versions[1] else []
            found.append(f"{name}: {', '.join(parts)}")
    return found


def size(location: Location) -> int:
    """Bytes of a file."""
    return probe(location).size if isinstance(location, Url) else location.stat().st_size


def require(url: Url) -> None:
    """ConfigError if the library that reads such addresses is not installed."""
    if url.scheme == "root":  # at the end, XRootD looks at every object there is, and torch warns of its old ones
        warnings.filterwarnings("ignore", message="`torch.distributed.reduce_op` is deprecated", category=FutureWarning)
    try:
        importlib.import_module(NEEDED[url.scheme])
    except ImportError as error:
        raise ConfigError(
            f"'{url}': {url.scheme}:// needs the extra 'opendata' ({error}): in the hepx folder, "
            "pip install -e '.[opendata]'"
        ) from error


def options(location: Location) -> dict[str, Any]:
    """Options with which uproot opens a file: for http, the proxies of the environment."""
    is_http = isinstance(location, Url) and location.scheme != "root"
    return {"client_kwargs": {"trust_env": True}} if is_http else {}


def repeat(work: Callable[[], T], retry: type[Exception] = TransferError) -> T:
    """`work()`, up to ATTEMPTS times, because a connection may break for a moment."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return work()
        except retry as error:
            log.info("%s (trying again)", " ".join(str(error).split()) or type(error).__name__)
            time.sleep(PAUSE * 2**attempt)
    return work()


def probe(url: Url) -> Probe:
    """Ask the server about a file, for a few bytes; DataError if there is no such file or it must not be read."""
    return repeat(lambda: _probe_root(url) if url.scheme == "root" else _probe_http(url))


def _probe_http(url: Url) -> Probe:
    try:
        with request(url, {"Range": f"bytes=0-{HEAD - 1}"}) as answer, sentences(url):
            head = answer.read(HEAD)
            parts = answer.status == http.client.PARTIAL_CONTENT
            return Probe(total(url, answer), version(answer.headers), head, parts)
    except EmptyFileError:
        return Probe(0, "", b"", True)


def total(url: Url, answer: Any) -> int:
    """Bytes of the whole file, from the answer to a request for all or for a part of it."""
    whole = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range") or "")
    text = whole[1] if whole else answer.headers.get("Content-Length") if answer.status == http.client.OK else None
    if text is None:
        raise DataError(f"the server of '{url}' does not say how large the file is. Download it and give its path.")
    return int(text)


def version(headers: Mapping[str, str]) -> str:
    """What a server says to tell one state of a file from another; empty if it says nothing."""
    return headers.get("ETag") or headers.get("Last-Modified") or ""


class EmptyFileError(DataError):
    """A part was asked for that the file does not have."""


@contextmanager
def request(url: Url, headers: Mapping[str, str] | None = None, method: str = "GET") -> Iterator[Any]:
    """The answer of an HTTP server, open for reading; every failure to get one becomes a sentence."""
    agent = {"User-Agent": f"hepx/{hepx.__version__}", "Accept-Encoding": "identity"}
    wanted = urllib.request.Request(url.text, headers={**agent, **(headers or {})}, method=method)
    with sentences(url):
        answer = urllib.request.urlopen(wanted, timeout=TIMEOUT)
    with closing(answer):
        yield answer


@contextmanager
def sentences(url: Url) -> Iterator[None]:
    """Failures of the network inside the block become DataError, or TransferError if they may pass."""
    try:
        yield
    except urllib.error.HTTPError as error:
        with closing(error):
            raise _refusal(url, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _failure(url, error) from error


def _refusal(url: Url, error: urllib.error.HTTPError) -> DataError:
    """What a status of HTTP means for the user."""
    status = f"HTTP {error.code} {error.reason}"
    if error.code in (404, 410):
        return DataError(f"there is no file '{url}' ({status}). Mend the address.")
    if error.code in (401, 403, 407):
        return DataError(f"'{url}' must not be read by you ({status}). Ask who owns it, or mend the address.")
    if error.code == 416:
        return EmptyFileError(f"'{url}' is shorter than expected ({status}).")
    if error.code in (408, 425, 429) or error.code >= 500:
        return TransferError(f"the server of '{url}' cannot answer now ({status}). Try again later.")
    return DataError(f"the server refuses '{url}' ({status}). Mend the address.")


def _failure(url: Url, error: OSError | http.client.HTTPException) -> DataError:
    """What a failure below HTTP means for the user."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DataError(
            f"the certificate of '{url.host}' is not trusted here ({reason.verify_message}), so '{url}' is not read. "
            "Set SSL_CERT_FILE to a file with the certificates of its authority, or use another address."
        )
    if isinstance(reason, socket.gaierror):
        return TransferError(
            f"the host '{url.host}' is not known: there is no network here, or the address '{url}' is wrong "
            f"({reason.strerror})."
        )
    if isinstance(reason, TimeoutError):
        return TransferError(f"'{url.host}' did not answer for {TIMEOUT:.0f} s ('{url}'). Try again later.")
    what = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return TransferError(f"the connection to '{url.host}' failed: {what} ('{url}'). Try again later.")


def _probe_root(url: Url) -> Probe:
    require(url)
    from fsspec.core import url_to_fs

    with sentences(url):  # the XRootD client itself would try a host that does not answer for minutes
        socket.create_connection((url.host, url.port), timeout=TIMEOUT).close()
    try:
        filesystem, path = url_to_fs(url.text, timeout=int(TIMEOUT))
        info = filesystem.info(path)
        if info["type"] == "directory":
            raise DataError(f"'{url}' is a folder, not a file. Give the address of each file.")
        return Probe(
            info["size"], str(info["mtime"]), filesystem.cat_file(path, 0, HEAD) if info["size"] else b"", True
        )
    except (OSError, ValueError) as error:
        raise _xrootd_failure(url, error) from error


def _xrootd_failure(url: Url, error: Exception) -> DataError:
    """What an error of the XRootD client means for the user; the numbers are those of the protocol (kXR_…)."""
    text = " ".join(str(error).split())
    if "[3011]" in text:
        return DataError(f"there is no file '{url}' ({text}). Mend the address.")
    if "[3010]" in text:
        return DataError(f"'{url}' must not be read by you ({text}). Ask who owns it, or mend the address.")
    return TransferError(f"the connection to '{url.host}' failed ('{url}': {text}). Try again later.")
