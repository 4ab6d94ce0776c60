"""Branches as a schema names them -> arrays: alternatives and optional names resolved, types and values checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from hepx.collection import Collection
from hepx.errors import DataError, closest
from hepx.events.schema import Branch, Schema, Tagger, parse_branch
from hepx.events.tables import Table

Float64 = npt.NDArray[np.float64]
Column = Any  # an array of numbers per event; lists of numbers as a Collection with the field VALUE; else awkward
VALUE = "value"


class Resolved:
    """Which branches of a table hold what a schema asks for; DataError if one that is needed is missing."""

    def __init__(self, table: Table, schema: Schema) -> None:
        self.table, self.schema = table, schema
        self._separator = schema.rntuple_separator if table.kind == "RNTuple" else "."
        self._known = set(table.columns)
        self._found: dict[str, Branch] = {}
        for text in schema.branches():
            branch = self._find(text)
            if branch is not None:
                self._found[text] = branch
            elif not parse_branch(text).optional:
                raise DataError(self._missing(schema, text))
        self.tagger = self._choose_tagger(schema)

    def names(self) -> list[str]:
        """The branches to read."""
        wanted = [name for branch in self._found.values() for name in branch.names]
        return list(dict.fromkeys(self._in_file(name) for name in wanted))

    def present(self) -> dict[str, str]:
        """What the schema asks for -> the branch that holds it."""
        return {text: self._in_file(branch.name) for text, branch in self._found.items()}

    def columns(self, start: int, stop: int) -> Columns:
        """The columns of the events [start, stop)."""
        arrays = self.table.read(self.names(), start, stop)
        where = f"{self.table.path}, events {start} to {stop}"
        values = {text: _element(branch, arrays, self._in_file, where) for text, branch in self._found.items()}
        return Columns({text: _column(one) for text, one in values.items()}, where, stop - start)

    def _in_file(self, name: str) -> str:
        return name.replace(".", self._separator)

    def _find(self, text: str) -> Branch | None:
        known = self._known
        choices = parse_branch(text).branches
        return next((one for one in choices if all(self._in_file(name) in known for name in one.names)), None)

    def _choose_tagger(self, schema: Schema) -> Tagger | None:
        for tagger in schema.taggers:
            found = {text: self._find(text) for text in tagger.branches.values()}
            if None not in found.values():
                self._found |= {text: branch for text, branch in found.items() if branch is not None}
                return tagger
        if schema.taggers:
            first = next(iter(schema.taggers[0].branches.values()))
            names = ", ".join(tagger.name for tagger in schema.taggers)
            raise DataError(f"{self._missing(schema, first)} (b-taggers the schema knows: {names})")
        return None

    def _missing(self, schema: Schema, text: str) -> str:
        name = self._in_file(parse_branch(text).branches[0].name)
        return (
            f"schema '{schema.name}': tree '{self.table.name}' of {self.table.path} has no branch '{name}'; "
            f"{closest(name, sorted(self.table.columns))}. Fix the name in the schema or choose another schema."
        )


class Columns:
    """Columns of some events under the names that the schema uses: numbers per event, or lists of them."""

    def __init__(self, values: Mapping[str, Column], where: str, num_events: int) -> None:
        self._values, self.where, self.num_events = values, where, num_events

    def __contains__(self, text: str) -> bool:
        return text in self._values

    def pieces(self, num_events: int) -> Iterator[Columns]:
        """The same events, some at a time."""
        for start in range(0, self.num_events, num_events):
            stop = min(start + num_events, self.num_events)
            values = {name: _part(one, start, stop) for name, one in self._values.items()}
            yield Columns(values, self.where, stop - start)

    def per_event(self, text: str) -> npt.NDArray[Any]:
        """One number per event [B]; DataError if the branch holds something else."""
        values: npt.NDArray[Any] = self._values[text]
        if not isinstance(values, np.ndarray):
            raise self._of_another_type(text, "a number", values)
        return values

    def per_object(self, branches: Mapping[str, str], slot: bool) -> Collection:
        """A kind of object with its fields, as many of each in every event; absent optional fields are left out."""
        found = {name: text for name, text in branches.items() if text in self}
        if slot:
            fields = {name: self.per_event(text) for name, text in found.items()}
            return Collection(fields, np.arange(self.num_events + 1))
        lists = {name: self._list(text) for name, text in found.items()}
        first = next(iter(lists))
        offsets = lists[first].offsets
        for name, other in lists.items():
            if not np.array_equal(offsets, other.offsets):
                different = int((lists[first].counts != other.counts).sum())
                raise DataError(
                    f"branches {branches[first]} and {branches[name]} of {self.where}: they list different numbers of "
                    f"objects in {different} events, so they do not belong together. Fix the names in the schema."
                )
        return Collection({name: values[VALUE] for name, values in lists.items()}, offsets)

    def _list(self, text: str) -> Collection:
        values: Collection = self._values[text]
        if not isinstance(values, Collection):
            raise self._of_another_type(text, "a list of numbers", values)
        return values

    def _of_another_type(self, text: str, expected: str, values: Column) -> DataError:
        if isinstance(values, Collection):
            found = f"var * {values[VALUE].dtype}"
        else:
            found = str(values.dtype) if isinstance(values, np.ndarray) else str(values.type.content)
        return DataError(
            f"branch {text.rstrip('?')} of {self.where}: expected {expected} per event, got '{found}'. "
            "Fix the name in the schema, or choose another schema."
        )


def _column(values: ak.Array) -> Column:
    """Numbers or lists of numbers as numpy, as a rule without a copy; anything else as it is."""
    layout = values.layout
    if layout.is_numpy:
        layout = layout.to_RegularArray()
    content = layout.content if layout.is_list and layout.parameter("__array__") is None else layout
    if not content.is_numpy or content.purelist_depth != 1 or content.dtype.kind not in "biuf":
        return values
    if content is layout:
        return np.asarray(layout.data)
    lists = layout.to_ListOffsetArray64(True)
    offsets = np.asarray(lists.offsets)
    return Collection({VALUE: np.asarray(lists.content.data)[: offsets[-1]]}, offsets)


def _part(values: Column, start: int, stop: int) -> Column:
    if isinstance(values, Collection):
        offsets = values.offsets[start : stop + 1]
        return Collection({VALUE: values[VALUE][offsets[0] : offsets[-1]]}, offsets - offsets[0])
    return values[start:stop]


def _element(branch: Branch, arrays: Mapping[str, ak.Array], in_file: Any, where: str) -> ak.Array:
    """The branch, or the element of its list per event that is meant."""
    values = arrays[in_file(branch.name)]
    if branch.position is None and branch.key is None:
        return values
    if values.ndim < 2:
        raise DataError(f"branch {branch.name} of {where}: expected a list per event, got '{values.type.content}'.")
    if branch.key is None:
        chosen = values[:, branch.position : (branch.position or 0) + 1]
    else:
        chosen = values[arrays[in_file(branch.key)] == branch.text]
    missing = int(ak.sum(ak.num(chosen, axis=1) != 1))
    if missing:
        wanted = branch.position if branch.key is None else f"{branch.key} = {branch.text}"
        raise DataError(
            f"branch {branch.name} of {where}: {missing} events have no element [{wanted}]. Fix it in the schema."
        )
    return chosen[:, 0] if len(chosen) else ak.flatten(chosen)


def require(bad: npt.NDArray[np.bool_], values: npt.NDArray[Any], what: str, problem: str, mend: str) -> None:
    """DataError that counts the values that are bad and shows one; `bad` is a mask in the shape of the values."""
    if bad.any():
        num_bad, example = int(bad.sum()), values[bad][0]
        raise DataError(f"{what}: {num_bad} of {len(bad)} values {problem} (for example {example}). {mend}")


def require_finite(values: npt.NDArray[Any], what: str) -> None:
    """DataError if a value is NaN or infinite."""
    finite = np.isfinite(values)
    if not finite.all():
        raise DataError(
            f"{what}: {int((~finite).sum())} of {len(finite)} values are NaN or infinite; expected finite numbers. "
            "Remove these events from the file, or find out why its writer made them."
        )
