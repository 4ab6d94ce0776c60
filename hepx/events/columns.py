"""Branches as a schema names them -> arrays: alternatives and optional names resolved, types and values checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from hepx.errors import DataError, closest
from hepx.events.schema import Branch, Schema, Tagger, parse_branch
from hepx.events.tables import Table

Float64 = npt.NDArray[np.float64]
_NUMBER = r"(u?int\d+|float\d+|bool)"
_SHAPES = {1: ("a number", re.compile(_NUMBER)), 2: ("a list of numbers", re.compile(rf"(var|\d+) \* {_NUMBER}"))}


class Resolved:
    """Which branches of a table hold what a schema asks for; DataError if one that is needed is missing."""

    def __init__(self, table: Table, schema: Schema) -> None:
        self.table = table
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
        return Columns(values, where, stop - start)

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
    """Arrays of some events under the names that the schema uses."""

    def __init__(self, values: Mapping[str, ak.Array], where: str, num_events: int) -> None:
        self._values, self.where, self.num_events = values, where, num_events

    def __contains__(self, text: str) -> bool:
        return text in self._values

    def per_event(self, text: str) -> npt.NDArray[Any]:
        """One number per event [B]; DataError if the branch holds something else."""
        return ak.to_numpy(self._checked(text, 1))

    def per_object(self, branches: Mapping[str, str], slot: bool) -> dict[str, ak.Array]:
        """Fields of a kind of object, each [B, var] with the same counts; absent optional fields are left out."""
        depth = 1 if slot else 2
        fields = {name: self._checked(text, depth) for name, text in branches.items() if text in self}
        fields = {name: values[:, np.newaxis] if slot else values for name, values in fields.items()}
        counts = {name: ak.to_numpy(ak.num(values, axis=1)) for name, values in fields.items()}
        first = next(iter(counts))
        for name, count in counts.items():
            if not np.array_equal(count, counts[first]):
                raise DataError(
                    f"branches {branches[first]} and {branches[name]} of {self.where}: they list different numbers of "
                    f"objects in {int((count != counts[first]).sum())} events, so they do not belong together. "
                    "Fix the names in the schema."
                )
        return {name: ak.from_regular(values, axis=1) for name, values in fields.items()}

    def _checked(self, text: str, depth: int) -> ak.Array:
        expected, pattern = _SHAPES[depth]
        values = self._values[text]
        found = str(values.type.content)
        if not pattern.fullmatch(found):
            raise DataError(
                f"branch {text.rstrip('?')} of {self.where}: expected {expected} per event, got '{found}'. "
                "Fix the name in the schema, or choose another schema."
            )
        return values


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


def require(bad: Any, values: Any, what: str, problem: str, mend: str) -> None:
    """DataError that counts the values that are bad and shows one; `bad` is a mask in the shape of the values."""
    flags = _flat(bad).astype(bool)
    if flags.any():
        example = _flat(values)[flags][0]
        raise DataError(f"{what}: {int(flags.sum())} of {len(flags)} values {problem} (for example {example}). {mend}")


def require_finite(values: Any, what: str) -> None:
    """DataError if a value is NaN or infinite."""
    bad = ~np.isfinite(_flat(values))
    if bad.any():
        raise DataError(
            f"{what}: {int(bad.sum())} of {len(bad)} values are NaN or infinite; expected finite numbers. "
            "Remove these events from the file, or find out why its writer made them."
        )


def _flat(values: Any) -> npt.NDArray[Any]:
    return ak.to_numpy(ak.flatten(values, axis=None))
