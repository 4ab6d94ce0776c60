"""Templates of pages, a table of a page, and names of physics as HTML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
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


def template(name: str) -> Template:
    """A page of this folder; a name that it does not know is an error."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
