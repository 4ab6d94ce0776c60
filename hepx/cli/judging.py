"""hepx validate: are explanations right?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hepx.cli.base import Overrides, Runs, app, carry_out, resumable
from hepx.errors import ConfigError


@app.command(
    epilog="Examples:\n\n  hepx validate runs/quickstart --method saliency         faithfulness, for any run\n\n"
    "  hepx validate runs/seed1 --beside runs/seed2          with the spread of the seeds of the training\n\n"
    "  hepx validate planted --quick                         a few mechanisms, a few minutes\n\n"
    "  hepx validate planted                                 all mechanisms, 40 000 training events each\n\n"
    "  hepx validate planted configs/quickstart.yaml         labels planted into your own events\n\n"
    "  hepx validate planted runs/quickstart --mechanism mbb --method shapley\n\n"
    "A stopped suite goes on with the same command."
)
def validate(
    what: Annotated[str, typer.Argument(metavar="RUN|planted", help="A trained run, or planted truths.")],
    events: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG|RUN]", help="Plant labels into these events, not sampled ones.")
    ] = None,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    quick: Annotated[bool, typer.Option("--quick", help="Few mechanisms, few events, a short training.")] = False,
    mechanism: Annotated[
        list[str] | None, typer.Option("--mechanism", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    train_events: Annotated[int | None, typer.Option("--train-events", help="Training events per mechanism.")] = None,
    test_events: Annotated[int | None, typer.Option("--test-events", help="Test events per mechanism.")] = None,
    explained: Annotated[
        int | None, typer.Option("--explained", min=1, help="Events that each method explains.")
    ] = None,
    draws: Annotated[int | None, typer.Option("--draws", help="Replacements per explained event.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Epochs of each training.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of events, labels, networks and replacements.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; else runs/planted, or planted/ in the run folder.")
    ] = None,
    beside: Annotated[
        list[Path] | None, typer.Option("--beside", metavar="RUN", help="For a run: the same with another seed.")
    ] = None,
) -> None:
    """Judge explanations: of a run without a truth (validate.json), or on planted truths (planted.html).

    For a run --method adds a method and --explained says how many events; the other options are for planted truths.
    """
    if what != "planted":
        others = (train_events, test_events, draws, epochs, seed)
        if events or overrides or output or mechanism or quick or any(value is not None for value in others):
            raise ConfigError("hepx validate RUN takes --method, --explained and --beside only.")
        _validate_run(Path(what), method or [], explained or 200, beside or [])
        return
    from hepx.config import parse
    from hepx.planted import cases, suite
    from hepx.report.planted import make_planted

    wanted: dict[str, Any] = {"train_events": train_events, "test_events": test_events, "explained": explained}
    wanted |= {"draws": draws, "epochs": epochs, "seed": seed, "mechanisms": mechanism, "methods": method}
    settings = parse(cases.SuiteSettings, cases.sizes(quick, wanted), "hepx validate planted")
    folder = output or runs / "planted"
    if events is None:
        base = cases.toy_base(settings)
    else:
        run = carry_out(events, overrides, runs, "convert")
        folder, data = output or run.folder / "planted", run.store()
        base = cases.own_base(data.load("train"), data.load("test"), settings, run.settings.name, run.key("convert"))
    with resumable("where it stopped"):
        found = suite.run_suite(settings, base, folder)
    for line in suite.summary(found):
        typer.echo(line)
    typer.echo(f"table: {make_planted(folder)}, planted.csv, planted.json")


def _validate_run(folder: Path, methods: list[str], limit: int, beside: list[Path]) -> None:
    """Measure how faithful the explanations of a run are; its report shows it."""
    from hepx import files
    from hepx.faithfulness import lines
    from hepx.notebook import open_run

    with resumable("after the last method that was judged"):
        found = open_run(folder).validate(methods, limit, beside, folder / "validate")
        files.write_json(folder / "validate.json", found)
        report_again(folder)
    for line in lines(found):
        typer.echo(line)
    typer.echo(f"all numbers: {folder / 'validate.json'}{in_the_report(folder)}")


def in_the_report(run: Path) -> str:
    """Says so, if there is one."""
    return ", and in the report" if (run / "report.html").exists() else ""


def report_again(run: Path) -> None:
    """Make the report of a run anew, if it has one."""
    from hepx.report import make_report

    if (run / "report.html").exists():
        make_report(run)
