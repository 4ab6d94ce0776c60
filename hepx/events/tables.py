"""The only place that opens event files: ROOT TTrees and RNTuples (uproot), and tables that pandas wrote as HDF5.

A `Table` has a name, a number of entries, columns with their types, and reads ranges of some columns. Every way in
which a file can be unreadable has its own sentence.
"""

from __future__ import annotations

import fnmatch
import hashlib
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import awkward as ak
import numpy as np
import uproot

from hepx import remote
from hepx.errors import ConfigError, DataError
from hepx.remote import Location, TransferError, Url

T = TypeVar("T")
ROOT_MAGIC, HDF5_MAGIC = b"root", b"\x89HDF\r\n\x1a\n"


class Table(ABC):
    """Events of a file as columns.

    columns: the names of its columns; kind: TTree, RNTuple or HDF5; uuid: the identity its writer gave it.
    """

    path: Location
    name: str
    kind: str
    num_entries: int
    columns: tuple[str, ...]
    uuid: str

    @abstractmethod
    def types(self, names: Sequence[str]) -> dict[str, str]:
        """Column -> type, as the file names it."""

    @abstractmethod
    def _read(self, names: Sequence[str], start: int, stop: int) -> dict[str, ak.Array]: ...

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, ak.Array]:
        """Columns of the entries [start, stop); DataError where the file breaks off or is damaged."""
        try:
            return _patiently(self.path, lambda: self._read(names, start, stop))
        except TransferError:
            raise
        except Exception as error:
            raise DataError(
                f"cannot read events {start} to {stop} of tree '{self.name}' in {self.path}: {_why(self.path, error)}"
            ) from error


class RootTable(Table):
    """A TTree or RNTuple of a ROOT file."""

    def __init__(self, path: Location, name: str, tree: Any) -> None:
        self.path, self.name, self._tree = path, name, tree
        self.kind = "RNTuple" if "RNTuple" in type(tree).__name__ else "TTree"
        self.num_entries, self.uuid = int(tree.num_entries), str(tree.file.uuid)
        # a TTree may keep its branches in folders; the short name of a branch reaches it
        names = tree.keys(full_paths=False) if self.kind == "TTree" else tree.keys(recursive=False)
        self.columns = tuple(dict.fromkeys(str(name) for name in names))

    def types(self, names: Sequence[str]) -> dict[str, str]:
        return {name: _typename(self._tree, name) for name in names}

    def _read(self, names: Sequence[str], start: int, stop: int) -> dict[str, ak.Array]:
        if self.kind == "RNTuple":  # `arrays` would first walk through all fields: seconds in a wide one
            found = {name: self._tree[name].array(entry_start=start, entry_stop=stop) for name in names}
        else:
            found = self._tree.arrays(list(names), entry_start=start, entry_stop=stop, library="ak", how=dict)
        if any(len(values) != stop - start for values in found.values()):
            raise EOFError("fewer events than the tree says")
        return found


def _typename(tree: Any, name: str) -> str:
    try:
        return str(tree[name].typename)
    except Exception:  # types that uproot cannot interpret have no name either
        return "unknown"


class Hdf5Table(Table):
    """A table that pandas wrote as HDF5, `fixed` or `table` format. Nothing in the file is unpickled."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.kind = path, name, "HDF5"
        with _h5py().File(path, "r") as file:
            self._places = _pandas_columns(file[name])
            index = file[name]["axis1"] if "axis1" in file[name] else file[name]["table"]
            self.num_entries = len(index)
        self.columns = tuple(self._places)
        stat = path.stat()
        self.uuid = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:32]

    def types(self, names: Sequence[str]) -> dict[str, str]:
        return {name: str(values.type.content) for name, values in self._read(names, 0, 0).items()}

    def _read(self, names: Sequence[str], start: int, stop: int) -> dict[str, ak.Array]:
        with _h5py().File(self.path, "r") as file:
            group = file[self.name]
            return {name: ak.Array(self._column(group, name, start, stop)) for name in names}

    def _column(self, group: Any, name: str, start: int, stop: int) -> Any:
        dataset, field, position = self._places[name]
        values = group[dataset][start:stop] if field is None else group[dataset].fields(field)[start:stop]
        return values if position is None else values[:, position]


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError("HDF5 files need the extra 'hdf5': in the hepx folder, pip install -e '.[hdf5]'") from error
    return h5py


def _pandas_columns(group: Any) -> dict[str, tuple[str, str | None, int | None]]:
    """Column -> (data set, field of a compound, position in a block), with the index as the column `index`."""
    if "axis0" in group:
        places: dict[str, tuple[str, str | None, int | None]] = {"index": ("axis1", None, None)}
        for items in (name for name in group if name.endswith("_items")):
            labels = [_text(label) for label in group[items][:]]
            places |= {label: (items.replace("_items", "_values"), None, i) for i, label in enumerate(labels)}
        return places
    table = group["table"]
    places = {}
    for field in table.dtype.names:
        labels = _pickled_strings(table.attrs.get(f"{field}_kind")) if field.startswith("values_block_") else []
        if not labels:
            places[field] = ("table", field, None)
        places |= {label: ("table", field, i) for i, label in enumerate(labels)}
    return places


def _text(label: Any) -> str:
    return label.decode() if isinstance(label, bytes) else str(label)


def _pickled_strings(value: Any) -> list[str]:
    """The names of columns that pandas keeps as a pickled list, read off without unpickling anything."""
    if value is None:
        return []
    code = value.tobytes() if isinstance(value, np.void | np.ndarray) else bytes(value)
    return [str(text) for operation, text, _ in pickletools.genops(code) if "UNICODE" in operation.name]


def open_tables(path: Location) -> list[str]:
    """Names of the trees or tables of a file; DataError with its own sentence for each way it can be unreadable."""
    return sorted(set(_list(path)))


def open_table(path: Location, trees: Sequence[str], schema: str) -> Table:
    """The first of these trees that the file has; `*` in a name stands for any text, but must not be ambiguous."""
    found = _list(path)
    for wanted in trees:
        matching = sorted(set(fnmatch.filter(found, wanted)))
        if len(matching) > 1:
            raise DataError(
                f"schema '{schema}': several trees of {path} match '{wanted}': {', '.join(matching[:10])}. "
                "Name one of them in the schema."
            )
        if matching:
            return _open(path, matching[0])
    raise DataError(
        f"schema '{schema}': {path} has no tree '{trees[0]}'; it has: {', '.join(found[:10]) or 'no tree'}. "
        "Choose the schema that fits the file: `hepx inspect` tells which."
    )


def _list(path: Location) -> list[str]:
    if _magic(path) != HDF5_MAGIC:
        return _list_root(path)
    return _list_hdf5(_local(path))


def _magic(path: Location) -> bytes:
    """The first bytes of a file that can be opened at all."""
    magic = _first_bytes_remote(path) if isinstance(path, Url) else _first_bytes(path)
    if not magic:
        raise DataError(f"'{path}' is empty (0 bytes): its copy or its job failed. Make it again.")
    if magic[:4] != ROOT_MAGIC and magic != HDF5_MAGIC:
        raise DataError(
            f"cannot open '{path}': it is truncated or not a ROOT file (nor HDF5); it begins with {magic[:8]!r}. "
            "Check what it is with `file`."
        )
    return magic[:4] if magic[:4] == ROOT_MAGIC else magic


def _first_bytes(path: Path) -> bytes:
    if not path.exists():
        raise DataError(f"there is no file '{path}' (seen from {Path.cwd()}).")
    if path.is_dir():
        raise DataError(f"'{path}' is a folder, not a file. Give its files, for example '{path}/*.root'.")
    try:
        with path.open("rb") as file:
            return file.read(8)
    except PermissionError as error:
        raise DataError(f"'{path}' must not be read by you (permission denied). Ask its owner, or chmod it.") from error


def _first_bytes_remote(url: Url) -> bytes:
    remote.require(url)
    found = remote.probe(url)
    if not found.parts:
        raise DataError(
            f"the server of '{url}' sends whole files only (no HTTP Range), so events cannot be read from there. "
            "Download the file and give its path."
        )
    return found.head[:8]


def _local(path: Location) -> Path:
    if isinstance(path, Url):
        raise DataError(f"'{path}' is an HDF5 table, which can be read on this machine only. Download it.")
    return path


def _patiently(path: Location, work: Callable[[], T]) -> T:
    """`work()`; on a file that is elsewhere repeated, because a connection may break for a moment. TransferError if its
    server is away in the end: that says nothing about the file."""
    if not isinstance(path, Url):
        return work()
    try:
        return remote.repeat(work, Exception)
    except Exception:
        remote.probe(path)
        raise


def _why(path: Location, error: Exception) -> str:
    """Why a file that could be opened cannot be read, and what to do."""
    name = type(error).__name__
    if isinstance(path, Url):
        return f"the file is damaged or truncated ({name} in {remote.ATTEMPTS} attempts). Tell who serves it."
    return f"the file is damaged or truncated ({name}). Copy it again and compare its checksum."


def _open_root(path: Location) -> Any:
    target = str(path) if isinstance(path, Url) else path
    return uproot.open(target, **remote.options(path))


def _list_root(path: Location) -> list[str]:
    try:
        kinds = ["TTree", "ROOT::RNTuple", "ROOT::Experimental::RNTuple"]
        names = _patiently(path, lambda: _open_root(path).keys(cycle=False, filter_classname=kinds))
    except TransferError:
        raise
    except Exception as error:
        raise DataError(
            f"cannot open '{path}' as a ROOT file: it is truncated or not a ROOT file ({type(error).__name__}). "
            "Copy it again and compare its checksum."
        ) from error
    return list(dict.fromkeys(str(name) for name in names))


def _list_hdf5(path: Path) -> list[str]:
    try:
        with _h5py().File(path, "r") as file:
            names: list[str] = []
            file.visit(names.append)
            tables = [name for name in names if "pandas_type" in file[name].attrs and _is_pandas(file[name])]
    except OSError as error:
        raise DataError(f"cannot open '{path}' as an HDF5 file: it is truncated or damaged. Copy it again.") from error
    if not tables:
        raise DataError(
            f"{path} is HDF5, but holds no table that pandas wrote; it has: {', '.join(names[:10]) or 'nothing'}. "
            "Write it with DataFrame.to_hdf."
        )
    return tables


def _is_pandas(group: Any) -> bool:
    return "table" in group or {"axis0", "axis1"} <= set(group)


def _open(path: Location, name: str) -> Table:
    if _magic(path) == HDF5_MAGIC:
        return Hdf5Table(_local(path), name)
    try:
        tree = _patiently(path, lambda: _open_root(path)[name])
    except TransferError:
        raise
    except Exception as error:
        raise _unreadable(path, name, error) from error
    try:
        return RootTable(path, name, tree)
    except Exception as error:
        raise _unreadable(path, name, error) from error


def _unreadable(path: Location, name: str, error: Exception) -> DataError:
    """Why a tree that is listed cannot be opened: its header is of another version, or the file broke off."""
    if "RNTuple" in f"{type(error).__name__} {error} {error.__traceback__ and _frames(error)}":
        return DataError(
            f"the RNTuple '{name}' of {path} cannot be read: its header is damaged or of a version that uproot "
            f"{uproot.__version__} does not know ({type(error).__name__}). Update uproot, or write it again with ROOT "
            "6.34 or later."
        )
    return DataError(
        f"cannot open tree '{name}' of '{path}' as a ROOT file: it is truncated or not a ROOT file "
        f"({type(error).__name__}). Copy it again and compare its checksum."
    )


def _frames(error: BaseException) -> str:
    names, frame = [], error.__traceback__
    while frame is not None:
        names.append(frame.tb_frame.f_code.co_filename)
        frame = frame.tb_next
    return " ".join(names)
