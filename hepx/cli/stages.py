"""The verbs that make a run: from ROOT files to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hepx.cli.base import Overrides, Runs, Target, app, carry_out


@app.command(epilog="Example:  hepx run configs/quickstart.yaml name=short train.epochs=5")
def run(target: Target, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Convert, train, evaluate, explain and report; what is done already is skipped."""
    from hepx.report import summary_lines

    done = carry_out(target, overrides, runs, "report")
    for line in summary_lines(done.folder):
        typer.echo(line)
    typer.echo(f"report: {done.folder / 'report.html'}")


@app.command(
    epilog="Examples:\n\n  hepx convert configs/quickstart.yaml --workers 4\n\n"
    "  hepx convert configs/quickstart.yaml --dask slurm --workers 20 --skip-bad-files\n\n"
    "The result does not depend on who does the work. A stopped conversion goes on where it stopped."
)
def convert(
    target: Target,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, or batch jobs with --dask.")] = 1,
    dask: Annotated[
        str | None,
        typer.Option("--dask", metavar="ADDRESS|slurm|htcondor", help="Work on a Dask cluster (extra `dask`)."),
    ] = None,
    skip_bad_files: Annotated[
        bool,
        typer.Option(
            "--skip-bad-files", help="Leave out files that cannot be read, now and later; dataset.json lists them."
        ),
    ] = False,
) -> None:
    """Turn ROOT files into graphs on disk."""
    from hepx.workers import Execution

    done = carry_out(target, overrides, runs, "convert", Execution(workers, dask, skip_bad_files))
    typer.echo(f"data set: {done.folder / 'dataset'}")


@app.command(
    epilog="Examples:\n\n  hepx train configs/quickstart.yaml model.num_experts=4\n\n"
    "  torchrun --nproc_per_node=2 -m hepx.cli train configs/quickstart.yaml        several GPUs, or processes\n\n"
    "  hepx train my.yaml --from runs/quickstart train.trainable_layers=1              fine-tuning: the last layer\n\n"
    "An interrupted training goes on. On SIGTERM or SIGUSR1 it writes a checkpoint and exits with code 85."
)
def train(
    target: Target,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    source: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="Fine-tune this trained run: same as train.from=RUN.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Fail if there is no checkpoint to go on from (else: start anew).")
    ] = False,
) -> None:
    """Train the model (after converting, if needed)."""
    changes = [*(overrides or []), *([f'train.from="{source}"'] if source else [])]
    done = carry_out(target, changes, runs, "train", resume=resume)
    typer.echo(f"checkpoints: {done.folder / 'checkpoints'}")


@app.command(epilog="Example:  hepx evaluate runs/quickstart")
def evaluate(target: Target, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Measure the trained model on the test events."""
    from hepx.files import read_json

    done = carry_out(target, overrides, runs, "evaluate")
    auc = read_json(done.folder / "metrics.json")["auc"]
    typer.echo(f"test AUC {auc['value']:.4f} ± {auc['error']:.4f}; all numbers: {done.folder / 'metrics.json'}")


@app.command(
    epilog="Examples:\n\n  hepx explain runs/quickstart explain.0.draws=32\n\n"
    "  hepx explain runs/quickstart --method owen            this one too, with its default settings\n\n"
    "  hepx explain runs/quickstart --shard 3/8              one of eight jobs that may run at once\n\n"
    "Methods: shapley, feature_groups, owen, occlusion, integrated_gradients, expected_gradients, gradient_shap, "
    "deeplift, input_x_gradient, saliency, smooth_grad, permutation_importance, response, edge_knockout, "
    "gradient_attention, gnn_explainer; configs/explain_all.yaml has them all with their settings.\n\n"
    "First --prepare, then all shards; then the command without --shard puts them together, to the same bytes."
)
def explain(
    target: Target,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    shard: Annotated[
        str, typer.Option("--shard", metavar="i/n", help="Only one of n parts of the events of each method.")
    ] = "",
    method: Annotated[
        list[str] | None, typer.Option("--method", metavar="NAME", help="Add a method to those of the config.")
    ] = None,
    prepare: Annotated[bool, typer.Option("--prepare", help="Only what the shards need: the trained model.")] = False,
) -> None:
    """Run the explanation methods of the config, and look inside: attention, experts, object states.

    On a CPU, `pip install -e '.[fast]'` (numba) doubles the speed of Shapley values.
    """
    if prepare:
        done = carry_out(target, overrides, runs, "evaluate", methods=method)
        typer.echo(f"ready for: hepx explain {done.folder} --shard i/n")
        return
    if shard:
        from hepx.attribution import Shard

        part = Shard.parse(shard)
        done = carry_out(target, overrides, runs, lambda run: run.explain_shard(part), methods=method)
        typer.echo(f"part {shard}: {done.folder / 'explain' / 'shards'}")
        return
    done = carry_out(target, overrides, runs, "explain", methods=method)
    typer.echo(f"explanations: {done.folder / 'explain'}")


@app.command(epilog="Example:  hepx report runs/quickstart")
def report(target: Target, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Write report.html, the figures and the tables."""
    done = carry_out(target, overrides, runs, "report")
    typer.echo(f"report: {done.folder / 'report.html'}")
