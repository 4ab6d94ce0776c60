"""Layouts hepx can read. Adding one = one file with a SCHEMA here and one line below (or a YAML file)."""

from __future__ import annotations

from pathlib import Path

from hepx.config import load, parse
from hepx.errors import ConfigError, closest
from hepx.events import Schema, refuse_unfilled
from hepx.schemas.atlas_open_2020 import SCHEMA as ATLAS_OPEN_2020
from hepx.schemas.atlas_open_2025 import SCHEMA as ATLAS_OPEN_2025
from hepx.schemas.cms_nanoaod import SCHEMA as CMS_NANOAOD
from hepx.schemas.delphes import SCHEMA as DELPHES
from hepx.schemas.physlite import SCHEMA as PHYSLITE
from hepx.schemas.sparticles import SCHEMA as SPARTICLES

SCHEMAS: dict[str, Schema] = {
    "atlas_open_2025": ATLAS_OPEN_2025,
    "atlas_open_2020": ATLAS_OPEN_2020,
    "physlite": PHYSLITE,
    "sparticles": SPARTICLES,
    "cms_nanoaod": CMS_NANOAOD,
    "delphes": DELPHES,
}


def load_schema(name: str) -> Schema:
    """A schema of the package by its name, or a YAML file by its path; ConfigError if there is neither, or
    if it is a starter schema with lines that are not filled in."""
    if name in SCHEMAS:
        return SCHEMAS[name]
    if name.endswith((".yaml", ".yml")):
        values = load(Path(name))
        refuse_unfilled(Path(name))
        return parse(Schema, values, f"schema '{name}'")
    raise ConfigError(
        f"unknown schema '{name}'; {closest(name, SCHEMAS)}. A schema of your own is the path of a YAML file."
    )
