"""Imports point down, each heavy library has one door, and `import hepx` and `hepx --help` stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hepx"
LAYERS = [
    {
        "__init__",
        "errors",
        "files",
        "memory",
        "order",
        "progress",
        "random",
        "signals",
        "expression",
        "collection",
        "kinematics",
        "config",
        "results",
        "results_network",
        "results_closure",
        "results_influence",
        "frames",
        "metrics",
        "trees",
        "remote",
        "download",
    },
    {"events"},
    {"schemas", "simulate"},
    {"graph", "workers", "store", "fetch"},
    {"models"},
    {"train"},
    {"interventions", "nulls", "probes"},
    {"attribution", "attention", "experts", "representation", "evaluate", "comparison", "variations"},
    {"insides", "planted", "faithfulness", "closure", "influence"},
    {"report"},
    {"settings"},
    {"run"},
    {"sweep", "batch", "agreement", "notebook"},
    {"cli"},
]
DOORS = {
    "uproot": {"events", "simulate"},
    "captum": {"attribution"},
    "matplotlib": {"report"},
    "mplhep": {"report"},
    "jinja2": {"report"},
    "pandas": {"frames"},
    "typer": {"cli"},
    "fsspec": {"remote"},
    "urllib.request": {"remote"},
    "atlasopenmagic": {"fetch"},
    "sklearn": {"trees", "experts"},
    "pythia8mc": {"simulate"},
    "fastjet": {"simulate"},
    "numba": {"models"},
}
LATE = {("results", "report"): "Explanation.plot draws itself", ("__init__", "notebook"): "hepx.load opens a run"}
"""The imports that point up: inside the one function that needs them, so that nothing is loaded before it is called."""
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    return imported(ast.walk(ast.parse(path.read_text())))


def imported(tree: Iterable[ast.AST]) -> set[str]:
    nodes = [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("hepx.")}


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    inside = rooms(imports(path)) - {"__version__", room(path)}
    late = {name for name in inside if (room(path), name) in LATE}
    assert all(layer(name) <= layer(room(path)) for name in inside - late), inside
    assert not late & rooms(imported(ast.iter_child_nodes(ast.parse(path.read_text())))), "import it in the function"


def test_imports_that_point_up_are_used() -> None:
    found = {(room(path), name) for path in FILES for name in rooms(imports(path))}
    assert set(LATE) <= found


@pytest.mark.parametrize("library", sorted(DOORS))
def test_heavy_libraries_have_one_door(library: str) -> None:
    users = {room(path) for path in FILES if any(f"{name}.".startswith(f"{library}.") for name in imports(path))}
    assert users <= DOORS[library]
    assert users, f"{library} is not used: remove it here and from pyproject.toml"


def test_no_forbidden_calls() -> None:
    """No eval or exec, no pickle, no print outside the command line, no torch.load of arbitrary objects."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"eval", "exec", "pickle.load", "pickle.loads", "print"}, (path, node.lineno)
                if name == "torch.load":
                    assert any(word.arg == "weights_only" for word in node.keywords), (path, node.lineno)


def test_import_and_help_are_light() -> None:
    code = (
        "import sys, hepx, hepx.cli\n"
        "heavy = {'torch', 'pandas', 'awkward', 'uproot', 'matplotlib', 'captum', 'numpy', 'pydantic'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
