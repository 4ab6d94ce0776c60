"""Writing files so that a killed run never leaves a half file that looks whole, and fingerprints of files."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hepx.errors import ConfigError, ResultError

_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` only when the block ends without an error.

    The temporary name keeps the suffix of `path`, because many writers choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)  # some writers make files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove(folder: Path, *names: str) -> None:
    """Delete files and folders of a folder; what is not there is passed over."""
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not path.is_dir():
            path.unlink(missing_ok=True)


class Aside:
    """Files and folders of a folder, moved to `.before` in it until it is known whether they are wanted again. What a
    killed process left there is deleted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / ".before"
        self.drop()

    def put(self, *names: str) -> None:
        """Out of the way; of two things of one name the first is kept."""
        self.place.mkdir(exist_ok=True)
        for name in names:
            if (self.folder / name).exists() and not (self.place / name).exists():
                (self.folder / name).rename(self.place / name)
        remove(self.folder, *names)

    def restore(self) -> set[str]:
        """Back to where they were, instead of what is there now; returns their names."""
        names = {path.name for path in self.place.glob("*")}
        remove(self.folder, *names)
        for name in names:
            (self.place / name).rename(self.folder / name)
        return names

    def drop(self) -> None:
        """Delete them."""
        remove(self.folder, self.place.name)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused, because it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong inside with a file that was cut short, by a full disk for example, is a ResultError."""
    try:
        yield
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        raise ResultError(f"'{path}' is damaged ({error}). Delete it and run its stage again.") from error


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def locked(folder: Path, mend: str, shared: bool = False) -> Iterator[None]:
    """One process at a time in a folder, or several that all ask for a `shared` lock; else ConfigError that says how to
    `mend` it. The lock goes with the process, however it ends."""
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another hepx works in '{folder}'; {mend}") from error
        yield


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Short SHA-256 of a JSON-able value, independent of the order of its keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
