"""The verbs that take several runs: sweep, experts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hepx.cli.base import Runs, app, resumable


@app.command(
    epilog="Examples:\n\n  hepx sweep configs/models.yaml --workers 2\n\n"
    "  hepx sweep configs/ablation.yaml --shard 3/40         one of forty jobs of a cluster\n\n"
    "  hepx sweep configs/models.yaml 'seeds=[1,2]' base=quickstart.yaml name=two    two seeds, another base\n\n"
    "  hepx sweep configs/models.yaml 'variants.wide={model.dim: 128}'               one more variant\n\n"
    "What a run is made of (train.epochs, …) is changed in the base, a config beside the sweep's file.\n\n"
    "A stopped sweep goes on with the same command. When all shards are done, it makes the table: runs/NAME/sweep.html."
)
def sweep(
    config: Annotated[Path, typer.Argument(help="A YAML file with base, seeds and variants.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the sweep: base, seeds, variants, name."),
    ] = None,
    runs: Runs = Path("runs"),
    workers: Annotated[int, typer.Option("--workers", min=1, help="Runs at once on this machine.")] = 1,
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Only every N-th run, from the I-th on.")
    ] = "1/1",
) -> None:
    """Train several models with several seeds and compare them seed by seed."""
    from hepx.attribution import Shard
    from hepx.sweep import Sweep

    wanted = Sweep(config, overrides or [], runs)
    with resumable():
        wanted.execute(workers, Shard.parse(shard))
        left = wanted.left
        if left:
            typer.echo(f"{len(left)} of {len(wanted.members)} runs are not finished, so there is no table yet")
            return
        rows = [row for row in wanted.table() if (row.group, row.measure) == ("all", "auc")]
    for row in rows:
        typer.echo(
            f"{row.variant:28s} AUC {row.value:.4f} ± {row.seed_spread:.4f} (seeds) ± {row.test_error:.4f} (test), "
            f"difference {row.difference:+.4f} ± {row.difference_error:.4f}"
        )
    typer.echo(f"table: {wanted.folder / 'sweep.html'}, sweep.csv, sweep.md")


@app.command(epilog="Example:  hepx experts runs/models/mgt-1 runs/models/mgt-2 runs/models/mgt-3")
def experts(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders that differ in their seed.")],
) -> None:
    """Compare what the experts of several trainings do: is it the same division of labour?"""
    from hepx.agreement import STABLE, compare_experts

    for row in compare_experts(runs):
        within, null = ("none" if v is None else f"{v:.2f}" for v in (row.within, row.null_within))
        typer.echo(
            f"layer {row.layer + 1}: adjusted Rand index {row.ari:.2f} ± {row.spread:.2f} (untrained {row.null:.2f}), "
            f"at fixed object {within} (untrained {null}), agreement {row.agreement:.2f}"
            + ("" if row.ari >= STABLE else "; the number of an expert means nothing in another training")
        )
