"""Files from web servers: resumed, checked, and written down in a manifest beside them.

A file arrives as NAME.part and gets its name when it is complete and its checksum is right, so a killed download goes
on at the next call (HTTP Range) and a half file never looks whole. What its server tells about it (size, ETag) stands
in NAME.part.json: if the file changes there, the download starts over.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from hepx import files, remote
from hepx.errors import ConfigError, DataError
from hepx.progress import Advance, progress, track
from hepx.remote import TransferError, Url

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
BLOCK = 2**16
MEGABYTE = 1e6
ALGORITHMS = ("adler32", "md5", "sha1", "sha256", "sha512")
_SAYS = {
    "given": "as the list of checksums says",
    "server": "as its server says",
    "size": "only the size could be compared",
}


@dataclass(frozen=True)
class Checksum:
    """Algorithm and value (hexadecimal)."""

    algorithm: str
    value: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"


@dataclass(frozen=True)
class Download:
    """A file to fetch: from where, to which place inside the folder; size and checksum where somebody else than its
    server tells them."""

    url: Url
    name: str
    size: int | None = None
    checksum: Checksum | None = None


@dataclass(frozen=True)
class Entry:
    """A fetched file in the manifest. `verified` says against what the checksum was compared: `given` (a list of
    checksums), `server`, or `size` if there was only the size to compare; the checksum is then that of what came."""

    url: str
    size: int
    version: str
    checksum: str
    verified: str
    time: str


@dataclass(frozen=True)
class Plan:
    """A download as its server describes it; `entry` is there if nothing is left to do."""

    wanted: Download
    path: Path
    size: int
    version: str
    checksum: Checksum | None
    verified: str
    entry: Entry | None = None

    @property
    def part(self) -> Path:
        """Where the bytes are until the file is complete."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def note(self) -> Path:
        """What the server told about the file of which `part` holds the beginning."""
        return self.path.with_name(f"{self.path.name}.part.json")


def download(wanted: Sequence[Download], folder: Path) -> dict[str, Entry]:
    """Fetch files into a folder; returns the manifest's entries of them, by their names.

    What is there already is not fetched again unless it changed on its server. Raises DataError if a file is not there,
    has the wrong size or checksum, or does not fit on the disk; TransferError if the network fails again and again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder, "wait for it, or choose another --output."):
        manifest = read_manifest(folder)
        plans = [_plan(one, folder, manifest) for one in track(wanted, "ask the servers", len(wanted))]
        left = [plan for plan in plans if plan.entry is None]
        _require_space(folder, sum(plan.size - _arrived(plan) for plan in left))
        for plan in plans:
            if plan.entry is not None:
                _write_down(folder, manifest, plan.wanted.name, plan.entry)
        megabytes = round(sum(plan.size for plan in left) / MEGABYTE, 1)
        log.info("%d of %d files are to be fetched, %g MB", len(left), len(plans), megabytes)
        with progress("fetch", megabytes, " MB") as advance:
            for plan in left:
                _write_down(folder, manifest, plan.wanted.name, _fetch(plan, advance))
        return {plan.wanted.name: manifest[plan.wanted.name] for plan in plans}


def read_manifest(folder: Path) -> dict[str, Entry]:
    """What was fetched into a folder so far."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        return {name: Entry(**entry) for name, entry in files.read_json(path)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{path}' is not a manifest that hepx wrote ({error}). Move it away, or choose another folder."
        ) from error


def _write_down(folder: Path, manifest: dict[str, Entry], name: str, entry: Entry) -> None:
    """Every finished file is in the manifest before the next one begins."""
    if manifest.get(name) != entry:
        manifest[name] = entry
        files.write_json(
            folder / MANIFEST, {"files": {name: asdict(entry) for name, entry in sorted(manifest.items())}}
        )


def _plan(wanted: Download, folder: Path, manifest: dict[str, Entry]) -> Plan:
    """Ask the server about a file, and find out what there is of it already."""
    path, known = folder / wanted.name, manifest.get(wanted.name)
    if known and not (path.exists() and path.stat().st_size == known.size and known.url == wanted.url.text):
        known = None
    try:
        found = remote.probe(wanted.url)
    except TransferError as error:
        if known is None:
            raise
        log.warning("%s '%s' was fetched earlier and is used as it is.", error, path)
        return Plan(wanted, path, known.size, known.version, None, known.verified, known)
    if wanted.size is not None and wanted.size != found.size:
        raise DataError(
            f"'{wanted.url}' has {found.size} bytes, but {wanted.size} were announced. Mend the list of checksums."
        )
    told = None if wanted.checksum else _told_checksum(wanted.url)
    verified = "given" if wanted.checksum else "server" if told else "size"
    plan = Plan(wanted, path, found.size, found.version, wanted.checksum or told, verified)
    return replace(plan, entry=_present(plan, known))


def _present(plan: Plan, known: Entry | None) -> Entry | None:
    """The entry of a file that is there already, as its server has it now; None if it must be fetched."""
    if not plan.path.exists():
        return None
    same_version = known is not None and known.version == plan.version and known.size == plan.size
    if known and same_version and (plan.checksum is None or known.checksum == str(plan.checksum)):
        return known
    found = _entry(plan, plan.path) if plan.path.stat().st_size == plan.size else None
    if found and (known is None or plan.checksum) and _is_right(plan, found):
        return found
    if known is None:
        raise DataError(
            f"'{plan.path}' is there already, but it is not the file at '{plan.wanted.url}' "
            f"({plan.path.stat().st_size} bytes here, {plan.size} there). Move it away, or choose another --output."
        )
    log.warning("'%s' is not the file that was fetched any more; it is fetched again", plan.wanted.url)
    return None


def _told_checksum(url: Url) -> Checksum | None:
    """Adler-32 of a file if its server tells it (RFC 3230, which XRootD and EOS servers follow)."""
    try:
        with remote.request(url, {"Want-Digest": "adler32"}, "HEAD") as answer:
            text = answer.headers.get("Digest") or ""
    except DataError as error:  # some servers refuse the question; then there is no checksum, and the manifest says so
        log.debug("no checksum: %s", error)
        return None
    found = re.search(r"adler32=([0-9a-f]{1,8})\b", text, re.IGNORECASE)
    return Checksum("adler32", found[1].lower().zfill(8)) if found else None


def _arrived(plan: Plan) -> int:
    """Bytes of the file that are here; a beginning of another state of it does not count."""
    about = {"url": plan.wanted.url.text, "size": plan.size, "version": plan.version}
    if not plan.part.exists() or not plan.note.exists() or files.read_json(plan.note) != about:
        return 0
    arrived = plan.part.stat().st_size
    return arrived if arrived <= plan.size else 0


def _shown(size: int) -> str:
    return f"{size / MEGABYTE:.1f} MB"


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"'{folder}' has {_shown(free)} left, but {_shown(needed)} are to be fetched. Make room, "
            "choose another --output, or fewer files (--max-files)."
        )


def _fetch(plan: Plan, advance: Advance) -> Entry:
    """Fetch a file, check it and give it its name."""
    plan.path.parent.mkdir(parents=True, exist_ok=True)
    resumed = _arrived(plan) > 0
    if not resumed:
        _start_over(plan)
    _complete(plan, advance)
    entry = _entry(plan, plan.part)
    if not _is_right(plan, entry) and resumed:
        log.warning("'%s': the checksum is wrong after going on; fetched again from the start", plan.wanted.url)
        _start_over(plan)
        _complete(plan, advance)
        entry = _entry(plan, plan.part)
    if not _is_right(plan, entry):
        _start_over(plan)
        raise DataError(
            f"'{plan.wanted.url}' came with the checksum {entry.checksum}, expected {plan.checksum} "
            f"({_SAYS[plan.verified]}). It was removed; start the same command again, and if that does not help, "
            "ask who serves the file."
        )
    plan.part.rename(plan.path)
    plan.note.unlink()
    log.info("%s: %s, %s", plan.path, _shown(plan.size), _describe(entry))
    return entry


def _start_over(plan: Plan) -> None:
    plan.part.unlink(missing_ok=True)
    files.write_json(plan.note, {"url": plan.wanted.url.text, "size": plan.size, "version": plan.version})


def _complete(plan: Plan, advance: Advance) -> None:
    """Transfer what is missing; a connection that breaks is taken up again as long as something arrives."""
    failures = 0
    advance(_arrived(plan) / MEGABYTE)
    while (before := _arrived(plan)) < plan.size or not plan.part.exists():
        try:
            _transfer(plan, before, advance)
        except TransferError as error:
            failures = failures + 1 if _arrived(plan) <= before else 1
            if failures == remote.ATTEMPTS:
                raise TransferError(
                    f"{error} {_shown(_arrived(plan))} of {_shown(plan.size)} are kept; the same command goes on there."
                ) from error
            log.info("%s (trying again)", error)
            time.sleep(remote.PAUSE * 2 ** (failures - 1))


def _transfer(plan: Plan, start: int, advance: Advance) -> None:
    """One connection: the bytes from `start` on, appended; or all of them if the server cannot go on."""
    headers = {"Range": f"bytes={start}-{plan.size - 1}"} if start else {}  # XRootD 5 has no answer to an open end
    if start and plan.version.startswith('"'):
        headers["If-Range"] = plan.version
    with remote.request(plan.wanted.url, headers) as answer:
        _require_unchanged(plan, answer)
        goes_on = answer.status == http.client.PARTIAL_CONTENT
        if start and not goes_on:
            log.info("'%s': its server cannot go on in the middle; fetched from the start", plan.wanted.url)
            advance(-start / MEGABYTE)
        with _opened(plan, "ab" if goes_on else "wb") as file:
            _receive(plan, answer, file, advance)
    arrived = plan.part.stat().st_size
    if arrived < plan.size:
        raise TransferError(f"the connection to '{plan.wanted.url.host}' ended early ('{plan.wanted.url}').")
    if arrived > plan.size:
        _start_over(plan)
        raise DataError(f"'{plan.wanted.url}' sends more than its {plan.size} bytes. Ask who serves the file.")


def _require_unchanged(plan: Plan, answer: Any) -> None:
    """The answer belongs to the state of the file that was asked about before."""
    told = remote.version(answer.headers)
    if (told and told != plan.version) or remote.total(plan.wanted.url, answer) != plan.size:
        raise DataError(
            f"'{plan.wanted.url}' changed on its server while it was fetched. Start the same command again: it fetches "
            "the new file from the start."
        )


def _receive(plan: Plan, answer: Any, file: BinaryIO, advance: Advance) -> None:
    while True:
        with remote.sentences(plan.wanted.url):
            block = answer.read(BLOCK)
        if not block:
            return
        file.write(block)
        file.flush()
        advance(len(block) / MEGABYTE)


@contextmanager
def _opened(plan: Plan, mode: str) -> Iterator[BinaryIO]:
    """The part, open for writing; a disk that is full has its sentence."""
    try:
        with plan.part.open(mode) as file:
            yield cast(BinaryIO, file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"the disk or the quota is full ({error.strerror}): '{plan.path}' needs {_shown(plan.size)}. Make "
            "room and start the same command again; it goes on where it stopped."
        ) from error


def _entry(plan: Plan, path: Path) -> Entry:
    """The manifest's entry of a file, with the checksum of the bytes that are here."""
    algorithm = plan.checksum.algorithm if plan.checksum else "adler32"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    checksum = str(Checksum(algorithm, digest(path, algorithm)))
    return Entry(plan.wanted.url.text, plan.size, plan.version, checksum, plan.verified, now)


def _is_right(plan: Plan, entry: Entry) -> bool:
    return plan.checksum is None or entry.checksum == str(plan.checksum)


def _describe(entry: Entry) -> str:
    return f"{entry.checksum} ({_SAYS[entry.verified]})"


def digest(path: Path, algorithm: str) -> str:
    """Checksum of a file, hexadecimal; adler32 (RFC 1950) has eight digits."""
    with path.open("rb") as file:
        if algorithm != "adler32":
            return hashlib.file_digest(file, algorithm).hexdigest()
        value = 1
        while block := file.read(BLOCK):
            value = zlib.adler32(block, value)
        return f"{value:08x}"


def read_checksums(path: Path) -> dict[str, tuple[int | None, Checksum]]:
    """File name -> size (where it is told) and checksum, from a file index of the CERN Open Data portal (JSON), or from
    lines with a name or an address and a checksum, as sha256sum or cernopendata-client write them.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the checksums in '{path}' ({error}). Give a file index or the output of sha256sum."
        ) from error
    found = _from_index(path) if text.lstrip()[:1] in ("[", "{") else _from_lines(text)
    if not found:
        raise ConfigError(
            f"'{path}' has no checksums; expected a file index of opendata.cern.ch (JSON: filename, size, checksum) "
            "or lines like `adler32:47ef28c2 name.root`."
        )
    return found


def _from_index(path: Path) -> dict[str, tuple[int | None, Checksum]]:
    try:
        records = files.read_json(path)
        records = records if isinstance(records, list) else records["files"]
        pairs = [(one["filename"].rpartition("/")[2], one.get("size"), _parse(one["checksum"])) for one in records]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"'{path}' is not a file index of opendata.cern.ch: {type(error).__name__} {error}; expected a list of "
            "records with filename, size and checksum."
        ) from error
    return {name: (size, checksum) for name, size, checksum in pairs if checksum}


def _from_lines(text: str) -> dict[str, tuple[int | None, Checksum]]:
    found: dict[str, tuple[int | None, Checksum]] = {}
    for line in text.splitlines():
        words = line.split()
        likely = sorted(words, key=lambda word: ":" not in word)  # 12345678 may be a size, adler32:12345678 may not
        text = next((word for word in likely if _parse(word)), "")
        name = next((word for word in words if "." in word.rpartition("/")[2]), None)
        size = next((int(word) for word in words if word.isdigit() and word != text), None)
        checksum = _parse(text)
        if checksum and name:
            found[name.lstrip("*").rpartition("/")[2]] = (size, checksum)
    return found


def _parse(word: str) -> Checksum | None:
    """A checksum with its algorithm in front, or recognised by its length.

    >>> str(_parse("adler32:3DA0195")), str(_parse("03da0195")), _parse("name.root")
    ('adler32:03da0195', 'adler32:03da0195', None)
    """
    algorithm, colon, value = word.lower().rpartition(":")
    if not re.fullmatch(r"[0-9a-f]+", value):
        return None
    if not colon:
        algorithm = {8: "adler32", 32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}.get(len(value), "")
    return Checksum(algorithm, value.zfill(8) if algorithm == "adler32" else value) if algorithm in ALGORITHMS else None
