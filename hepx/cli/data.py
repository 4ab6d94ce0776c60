"""The verbs about files of events: simulate, inspect, fetch."""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hepx.cli.base import app, resumable
from hepx.errors import ConfigError


class Protocol(StrEnum):
    """How files are read from another machine."""

    https = "https"
    root = "root"


@app.command(
    epilog="Examples:\n\n  hepx simulate signal --events 1000 --output mydata\n\n"
    "  hepx simulate signal=8000 ttbar=8000 singletop=2000 wt=1000 --seed 1 --workers 2 --output mydata\n\n"
    "  hepx simulate ttbar=100000 --shard 3/20 --output mydata      one of twenty batch jobs: ttbar_03of20.root"
)
def simulate(
    processes: Annotated[
        list[str], typer.Argument(metavar="PROCESS[=EVENTS]...", help="signal, ttbar, singletop, wt, wjets.")
    ],
    events: Annotated[int, typer.Option("--events", "-n", help="Events per process after the preselection.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same events.")] = 1,
    workers: Annotated[int, typer.Option("--workers", help="Processes at work; the events do not depend on it.")] = 1,
    met_min: Annotated[float, typer.Option("--met-min", help="Preselection on E_T^miss, GeV.")] = 100.0,
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Only part I of N; read together, the N files are the sample.")
    ] = "1/1",
    filters: Annotated[
        str, typer.Option("--filters", metavar="tight|loose|none", help="Cuts on partons before the slow steps.")
    ] = "tight",
    chunk_size: Annotated[int, typer.Option("--chunk-size", help="Events that one Pythia generates.")] = 3200,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for PROCESS.root.")] = Path("simulated"),
) -> None:
    """Simulate events in the layout of the 2025 ATLAS Open Data, with truth (needs the extra `simulate`).

    The same command goes on with what was generated when it was stopped.
    """
    from hepx.config import parse
    from hepx.simulate import SimulateSettings, chunk_folder
    from hepx.simulate import simulate as generate

    wanted = []
    for text in processes:
        process, _, number = text.partition("=")
        values = {
            "process": process,
            "num_events": number or events,
            "seed": seed,
            "workers": workers,
            "met_min": met_min,
            "filters": filters,
            "chunk_size": chunk_size,
            "shard": shard,
        }
        wanted.append(parse(SimulateSettings, values, f"hepx simulate {text}"))
    paths = [output / settings.file_name for settings in wanted]
    folders = [chunk_folder(settings, path) for settings, path in zip(wanted, paths, strict=True)]
    for settings, path, folder in zip(wanted, paths, folders, strict=True):
        typer.echo(generate(settings, path, folder))
    for folder in folders:  # not before all files are there: the same command would make the first ones again
        shutil.rmtree(folder, ignore_errors=True)


@app.command(
    epilog="Examples:\n\n  hepx inspect data/ttbar.root\n\n  hepx inspect my.root --schema physlite\n\n"
    "  hepx inspect root://eospublic.cern.ch//eos/opendata/….root    (extra `opendata`)\n\n"
    "  hepx inspect my.root --write-schema my.yaml           a schema to fill in; then --schema my.yaml"
)
def inspect(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE|URL", help="A ROOT file (https:// and root:// too), or a pandas table in HDF5."),
    ],
    schema: Annotated[str, typer.Option("--schema", help="Only this schema: a name, or the path of a YAML file.")] = "",
    write_schema: Annotated[Path | None, typer.Option("--write-schema", help="Write a starter schema here.")] = None,
    tree: Annotated[str, typer.Option("--tree", help="Tree of the starter schema; else the widest one.")] = "",
    every: Annotated[bool, typer.Option("--all", help="List every branch.")] = False,
) -> None:
    """Show the trees and branches of a file and which schema fits it."""
    from hepx import events
    from hepx.remote import locate
    from hepx.schemas import SCHEMAS, load_schema

    where = locate(file)
    report = events.inspect(where, {schema: load_schema(schema)} if schema else SCHEMAS, every)
    for line in events.describe(report):
        typer.echo(line)
    if write_schema:
        events.write_starter(report, tree, write_schema)
        typer.echo(f"starter schema: {write_schema}; fill it in, then: hepx inspect {file} --schema {write_schema}")
    elif schema:
        events.inspect_file(where, load_schema(schema))


@app.command(
    epilog="Examples:\n\n  hepx fetch --list ttbar nonallhad                     what there is; nothing is fetched\n\n"
    "  hepx fetch 410470 --signal 601352 --skim 2J2LMET30 --output mydata\n\n"
    "  hepx fetch 410470 --signal 601352 --skim 2J2LMET30 --stream root --config far.yaml\n\n"
    "The config it writes runs as it is: hepx run mydata/config.yaml. A stopped download goes on where it stopped."
)
def fetch(
    wanted: Annotated[
        list[str] | None, typer.Argument(metavar="[DSID|NAME]...", help="Datasets; with --list words to search for.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the datasets that have all these words.")] = False,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="With --list: ask the servers how large the files are.")
    ] = False,
    signal: Annotated[
        list[str] | None,
        typer.Option("--signal", help="A dataset that is signal; may be repeated. Others: background."),
    ] = None,
    release: Annotated[str, typer.Option("--release", help="Release of ATLAS Open Data.")] = "2025e-13tev-beta",
    skim: Annotated[str, typer.Option("--skim", help="Preselection, as --list shows them; noskim: all events.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for DSID/FILE.")] = Path("opendata"),
    max_files: Annotated[int | None, typer.Option("--max-files", min=1, help="At most so many files each.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Config to write; else OUTPUT/config.yaml.")] = None,
    checksums: Annotated[
        Path | None, typer.Option("--checksums", help="File index of opendata.cern.ch, or output of sha256sum.")
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option("--metadata", help="Catalogue that atlasopenmagic saved; else its web service.")
    ] = None,
    schema: Annotated[str, typer.Option("--schema", help="Layout of the files, if hepx does not know it.")] = "",
    stream: Annotated[
        Protocol | None, typer.Option("--stream", help="Fetch nothing: write a config with addresses to read from.")
    ] = None,
) -> None:
    """List and download ATLAS Open Data, and write a config for it (extra `opendata`)."""
    from hepx import fetch as opendata
    from hepx.download import read_checksums

    words, signals = wanted or [], [dsid for text in signal or [] for dsid in text.split(",")]
    if not (words or signals or show):
        raise ConfigError("name a dataset, for example 410470; `hepx fetch --list ttbar` searches for some.")
    known = read_checksums(checksums) if checksums else None
    datasets = opendata.catalogue(release, metadata)
    if show:
        found = opendata.search(datasets, [*words, *signals])
        asked = opendata.total_sizes(found, skim, max_files) if sizes else None
        for line in opendata.table(found, skim, asked):
            typer.echo(line)
        return
    order = opendata.Order(
        datasets=tuple(opendata.choose(datasets, [*signals, *words])),
        release=release,
        skim=skim,
        output=output,
        signals=frozenset(one.dsid for one in opendata.choose(datasets, signals)),
        max_files=max_files,
        config=config,
        schema=schema,
        stream=stream.value if stream else None,
        checksums=known,
    )
    with resumable("where it stopped"):
        for line in opendata.fetch(order):
            typer.echo(line)
