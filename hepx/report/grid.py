"""A table of the page, and names of physics as HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from hepx.report import style


@dataclass(frozen=True)
class Grid:
    """A table of the page: cells ready to show, and the name of its CSV file, if it has one."""

    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str
    csv: str = ""


def sample_html(name: str) -> Markup:
    """A process as HTML."""
    return Markup(style.to_html(str(escape(style.sample_label(name)))))


def object_html(name: str) -> Markup:
    """An object as HTML."""
    return Markup(style.to_html(str(escape(style.object_label(name)))))


def observable_html(name: str) -> Markup:
    """An observable as HTML."""
    return Markup(style.to_html(str(escape(style.observable_label(name)))))
