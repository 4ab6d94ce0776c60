"""What is in a file, which schema fits it, what the others miss, and a starter schema for a file that none fits."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hepx.errors import ConfigError, DataError, closest
from hepx.events.columns import Resolved
from hepx.events.reading import computed
from hepx.events.schema import CARTESIAN, POLAR, Schema, parse_branch
from hepx.events.tables import Table, open_table, open_tables
from hepx.files import write_text
from hepx.remote import Location, size

FILL_IN = "FILL_IN"
NUM_SHOWN, NUM_MISSING = 30, 6


@dataclass(frozen=True)
class TreeReport:
    """A tree of a file: kind, number of entries, names of its branches, and the types of the first ones."""

    name: str
    kind: str
    num_entries: int
    branches: tuple[str, ...]
    types: dict[str, str]


@dataclass(frozen=True)
class Fit:
    """How a schema fits a file: `problem` is empty if it does. found, absent: its optional branches; tagger: the
    b-tagger it would use; computed: what hepx would compute because the file has not got it."""

    schema: str
    tree: str = ""
    problem: str = ""
    found: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    tagger: str = ""
    computed: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileReport:
    """Everything `hepx inspect` says about a file."""

    path: Location
    size: int
    trees: tuple[TreeReport, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)
    fits: tuple[Fit, ...] = ()


def inspect(path: Location, schemas: Mapping[str, Schema], every_branch: bool = False) -> FileReport:
    """Look at a file with each of the schemas; DataError only if the file itself cannot be opened.

    The types are looked up for the first branches of a tree, or for every one: in a wide tree that takes seconds.
    """
    trees, unreadable, tables = [], {}, {}
    for name in open_tables(path):
        try:
            table = tables[name] = open_table(path, [name], "")
            shown = table.columns[: None if every_branch else NUM_SHOWN]
            trees.append(TreeReport(name, table.kind, table.num_entries, table.columns, table.types(shown)))
        except DataError as error:
            unreadable[name] = str(error)
    fits = tuple(_fit(tables, name, schema) for name, schema in schemas.items())
    return FileReport(path, size(path), tuple(trees), unreadable, fits)


def _fit(tables: Mapping[str, Table], name: str, schema: Schema) -> Fit:
    matching = next(filter(None, (fnmatch.filter(tables, wanted) for wanted in schema.trees)), None)
    if matching is None:
        return Fit(name, problem=f"there is no tree {' or '.join(schema.trees)}")
    table = min((tables[one] for one in matching), key=lambda one: (len(_missing(one, schema)), -len(one.columns)))
    missing = _missing(table, schema)
    if missing:
        more = f" and {len(missing) - NUM_MISSING} more" if len(missing) > NUM_MISSING else ""
        return Fit(name, table.name, f"tree '{table.name}' lacks {', '.join(missing[:NUM_MISSING])}{more}")
    try:
        resolved = Resolved(table, schema)
    except DataError as error:
        return Fit(name, table.name, str(error))
    optional = [text for text in schema.branches() if parse_branch(text).optional]
    present = resolved.present()
    return Fit(
        name,
        table.name,
        found=tuple(text.rstrip("?") for text in optional if text in present),
        absent=tuple(text.rstrip("?") for text in optional if text not in present),
        tagger=resolved.tagger.name if resolved.tagger else "",
        computed=computed(resolved, schema),
    )


def _missing(table: Table, schema: Schema) -> list[str]:
    separator = schema.rntuple_separator if table.kind == "RNTuple" else "."
    names = set(table.columns)

    def known(text: str) -> bool:
        branches = parse_branch(text).branches
        return any(all(name.replace(".", separator) in names for name in one.names) for one in branches)

    return [text for text in schema.branches() if not parse_branch(text).optional and not known(text)]


def describe(report: FileReport) -> list[str]:
    """The report as lines of text."""
    lines = [f"{report.path}: {report.size} bytes"]
    for tree in sorted(report.trees, key=lambda tree: -len(tree.branches)):
        lines.append(f"tree '{tree.name}' ({tree.kind}): {tree.num_entries} entries, {len(tree.branches)} branches")
        lines += [f"    {name}: {kind}" for name, kind in tree.types.items()]
        if len(tree.types) < len(tree.branches):
            lines.append(f"    … and {len(tree.branches) - len(tree.types)} more (--all shows them)")
    lines += [f"tree '{name}': {problem}" for name, problem in report.unreadable.items()]
    for fit in report.fits:
        lines += _describe_fit(fit)
    return lines + _advice(report)


def _advice(report: FileReport) -> list[str]:
    """What to do next; who asked for one schema knows it."""
    fitting = [fit.schema for fit in report.fits if not fit.problem]
    if fitting:
        return [f"in a config: data.schema: {fitting[0]}"]
    advice = f"no schema fits: hepx inspect {report.path} --write-schema my.yaml writes one to fill in"
    return [advice] if len(report.fits) > 1 else []


def _describe_fit(fit: Fit) -> list[str]:
    if fit.problem:
        return [f"schema {fit.schema}: does not fit: {fit.problem}"]
    lines = [f"schema {fit.schema}: fits (tree '{fit.tree}')"]
    parts = {
        "optional branches found": fit.found,
        "optional branches absent": fit.absent,
        "b-tag computed from the tagger": (fit.tagger,) if fit.tagger else (),
        "computed by hepx": fit.computed,
    }
    return lines + [f"    {name}: {', '.join(values)}" for name, values in parts.items() if values]


# what a starter schema asks for: field -> patterns that a fitting branch has in its name, best first
Patterns = dict[str, tuple[str, ...]]
_JET: Patterns = {
    "energy": (r"jet.*[_.](e|energy)$",),
    "mass": (r"jet.*[_.](m|mass)$",),
    "btag": (r"jet.*btag", r"(jet|btag).*(mv2|dl1|gn2|csv)"),
}
_LEPTONS = ("lep", "muon", "electron", "mu", "el")
_MET: Patterns = {"pt": (r"met[_.](pt|et|met)$", r"missinget\.met$", r"^met$"), "phi": (r"(met|missinget)[_.]phi$",)}
_MET_COMPONENTS: Patterns = {name: (rf"(met|missinget)[_.]{name}$",) for name in ("px", "py")}
_SIGNIFICANCE: Patterns = {"significance": (r"met.*sig",)}
_NOT_RECONSTRUCTED = ("truth", "gen", "syst", "_up", "_down", "fat", "large", "trig", "hlt", "sub", "soft")


def write_starter(report: FileReport, tree: str, path: Path) -> None:
    """Write a starter schema for a tree of the file, by default the one with the most branches among those with the
    most entries; an existing file is not overwritten."""
    if path.exists():
        raise ConfigError(f"'{path}' exists already; choose another name for the starter schema, or remove it.")
    trees = {one.name: one for one in report.trees}
    if not trees:
        raise DataError(f"{report.path} has no tree that can be read, so there is nothing to write a schema for.")
    if tree and tree not in trees:
        raise ConfigError(f"{report.path} has no tree '{tree}'; {closest(tree, trees)}")
    chosen = trees[tree] if tree else max(report.trees, key=lambda one: len(one.branches) * (one.num_entries > 1))
    write_text(path, starter_schema(chosen, report.path))


def starter_schema(tree: TreeReport, path: Location) -> str:
    """YAML text of a schema for a tree; a comment says what must be checked. Branches are proposed by their names only.

    What no name tells (unit, meaning of the b-tag, weights) is FILL_IN: nothing is read with such a schema.
    """

    def line(indent: str, name: str, patterns: tuple[str, ...], optional: bool = False) -> str:
        found = _propose(tree, patterns)
        if not found and optional:
            return f"{indent}# {name}:"
        others = f"; other candidates: {', '.join(found[1:5])}" if found[1:] else ""
        note = f"check{others}" if found else "no branch looks like it: fill it in"
        return f"{indent}{name}: {_quote(found[0] if found else FILL_IN)}  # {note}"

    jets = _momentum(tree, ("jet",)) | _JET
    leptons = _momentum(tree, _LEPTONS)
    met = _first_found(tree, _MET, _MET_COMPONENTS) | _SIGNIFICANCE
    has_mass = bool(_propose(tree, _JET["mass"]))
    jet = [
        line("    ", name, patterns, name in ("energy", "mass"))
        for name, patterns in jets.items()
        if not (name == "energy" and has_mass)
    ]
    lines = [
        f"# Starter schema for tree '{tree.name}' of {path.name} ({tree.kind}, {tree.num_entries} entries).",
        f"# Fill in every {FILL_IN}, check every line; hepx inspect {path.name} --schema THIS_FILE says what is left.",
        "# A branch may be written a|b (first one present), name? (optional), name[0] (element of a list per event).",
        f"name: {_quote(tree.name.replace('/', '_'))}",
        f"trees: [{_quote(tree.name)}]",
        f"energy_unit: {FILL_IN}  # GeV or MeV, the unit in the file",
        line("", "run_number", (r"^run(_?number)?$",), optional=True),
        line("", "event_number", (r"event[_.]?(number)?$", r"^evt")),
        line("", "channel_number", (r"channel(_?number)?$",), optional=True),
        "  # without run and channel number: give each sample its own data.samples.<name>.channel",
        "jet:",
        "  branches:",
        *jet,
        '  select: "pt > 30 and abs(eta) < 2.8"  # GeV, whatever the unit of the file',
        "lepton:  # one block, or a list of blocks ([{branches: …}, {branches: …}]) for electrons and muons apart",
        "  branches:",
        *(line("    ", name, patterns) for name, patterns in leptons.items()),
        '  select: "pt > 25"',
        "met:",
        *(line("  ", name, patterns, name == "significance") for name, patterns in met.items()),
        f"btag_meaning: {FILL_IN}  # quantile (1..5), score or flag",
        f"btag_cut: {FILL_IN}  # a number: from this value of btag on a jet is a b-jet",
        f"weights: {FILL_IN}  # the branches whose product is the weight, or [] for none; {_weights(tree)}",
        "normalization:  # a branch, a number, or null where the config must give it",
        line("  ", "xsec_pb", (r"xsec", r"^xsection", r"crosssection$"), optional=True),
        line("  ", "sum_of_weights", (r"^sum.*weights$",), optional=True),
        "  kfactor: 1.0",
        "  filter_efficiency: 1.0",
    ]
    return "\n".join(lines) + "\n"


def refuse_unfilled(path: Path) -> None:
    """ConfigError that names the lines of a starter schema that are not filled in yet."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    left = [f"line {number} '{' '.join(line.split())}'" for number, line in lines if FILL_IN in line.split("#")[0]]
    if left:
        raise ConfigError(
            f"schema '{path}' is not filled in: put a value in place of {FILL_IN} in {'; '.join(left)}. "
            "Nothing in the file tells it, and a guess would give wrong events."
        )


def _momentum(tree: TreeReport, kinds: tuple[str, ...]) -> Patterns:
    """What to look for as the momentum of objects of these names: pt, eta, phi, or px, py, pz where there are only
    these."""

    def patterns(names: tuple[str, ...]) -> Patterns:
        return {name: tuple(rf"{kind}.*[_.]{name}$" for kind in kinds) for name in names}

    return _first_found(tree, patterns(POLAR), patterns(CARTESIAN))


def _first_found(tree: TreeReport, wanted: Patterns, other: Patterns) -> Patterns:
    """The other patterns if the tree has what the first of them looks for, and not what the first of `wanted` does."""
    first, second = (next(iter(patterns.values())) for patterns in (wanted, other))
    return other if _propose(tree, second) and not _propose(tree, first) else wanted


def _propose(tree: TreeReport, patterns: tuple[str, ...]) -> list[str]:
    """Branches with a name that fits, shortest first; systematic variations and truth are left out."""
    for pattern in patterns:
        found = [name for name in tree.branches if re.search(pattern, name.lower()) and "[" not in name]
        found = [name for name in found if not any(word in name.lower() for word in _NOT_RECONSTRUCTED)]
        found = [name for name in found if not name.lower().startswith("mc")]
        if found:
            return sorted(found, key=lambda name: (len(name), name))
    return []


def _weights(tree: TreeReport) -> str:
    names = [name for name in tree.branches if re.search(r"(?<!sum_of_)weight|scalefactor", name.lower())]
    return f"candidates: [{', '.join(_quote(name) for name in names[:8])}]" if names else "no branch looks like one"


def _quote(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
