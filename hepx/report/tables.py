"""A small table of numbers: made once, drawn by the figures, written as CSV; and how numbers are written."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hepx.results import Array

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Table:
    """Named columns and rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        """The values of one column.

        >>> Table(("a", "b"), ((1, 2), (3, 4))).column("b")
        [2, 4]
        """
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def array(self, name: str) -> Array:
        """One column as numbers; None becomes NaN."""
        return np.array([math.nan if value is None else value for value in self.column(name)], dtype=np.float64)

    def where(self, **values: Any) -> Table:
        """The rows whose columns have these values.

        >>> Table(("a", "b"), ((1, 2), (3, 4))).where(a=3).rows
        ((3, 4),)
        """
        wanted = [(self.columns.index(name), value) for name, value in values.items()]
        return Table(self.columns, tuple(row for row in self.rows if all(row[i] == value for i, value in wanted)))

    def dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def to_csv(self) -> str:
        """CSV text with full precision; an empty field where there is no number."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[_plain(value) for value in row] for row in self.rows])
        return buffer.getvalue()


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value.item() if isinstance(value, np.generic) else value


def joined(tables: list[Table]) -> Table:
    """Tables of the same columns, one below the other."""
    return Table(tables[0].columns, tuple(row for table in tables for row in table.rows))


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits and a true minus sign; powers of ten only far from one.

    >>> number(-0.012345), number(1234567.0), number(1e-7, 2), number(None)
    ('−0.0123', '1234567', '1.0 × 10⁻⁷', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    exponent = math.floor(math.log10(abs(value))) if value else 0
    if not -5 < exponent < 7:
        power = str(exponent).translate(_SUPERSCRIPTS)
        return f"{_minus(f'{value / 10.0**exponent:.{digits - 1}f}')} × 10{power}"
    return _minus(f"{value:.{max(0, digits - 1 - exponent)}f}")


def plus_minus(value: float | None, error: float | None, signed: bool = False) -> str:
    """Value ± error, both rounded to two digits of the error.

    >>> plus_minus(0.95123, 0.00312), plus_minus(1234.5, 12.0), plus_minus(0.5, None)
    ('0.9512 ± 0.0031', '1234 ± 12', '0.500')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if error is None or not math.isfinite(error) or error <= 0:
        return number(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{fixed(value, decimals, signed)} ± {error:.{decimals}f}"


def fixed(value: float, decimals: int, signed: bool = False) -> str:
    """A number with so many decimals, a true minus sign, and no sign at all when it rounds to zero.

    >>> fixed(-0.001, 2), fixed(-0.5, 1), fixed(0.5, 1, signed=True)
    ('0.00', '−0.5', '+0.5')
    """
    rounded = round(value, decimals) + 0.0  # −0.0 becomes 0.0
    return _minus(f"{rounded:{'+' if signed and rounded else ''}.{decimals}f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")
