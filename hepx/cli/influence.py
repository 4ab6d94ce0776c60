"""hepx influence: which training events made the network what it is?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hepx.cli.base import app, resumable
from hepx.cli.judging import in_the_report, report_again
from hepx.errors import ConfigError, closest

if TYPE_CHECKING:
    from hepx.influence.bench import ValidateSettings


class InfluenceGroup(TyperGroup):
    """`hepx influence RUN` is `hepx influence scores RUN`: what does not name another command is the run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the name of the command where it is left out."""
        named = next((one for one in args if not one.startswith("-")), None)
        if named is not None and named not in self.commands:
            args = ["scores", *args]
        return list(super().parse_args(ctx, args))


influence_app = typer.Typer(
    cls=InfluenceGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which training events made the network what it is, and is the answer right?",
    epilog="Examples:\n\n  hepx influence runs/quickstart        the same as hepx influence scores runs/quickstart\n\n"
    "  hepx influence scores --help",
)


app.add_typer(influence_app, name="influence")


@influence_app.command(
    "validate",
    epilog="Examples:\n\n  hepx influence validate planted --quick                a first look, a minute or two\n\n"
    "  hepx influence validate planted --workers 2            the full tests on planted events\n\n"
    "  hepx influence validate runs/quickstart --workers 2    on training events of a run\n\n"
    "  hepx influence validate runs/quickstart --test lds --score trak --score loss subsets=100 subset_seeds=5\n\n"
    "A stopped validation goes on with the same command: every finished training is kept.",
)
def influence_validate(
    what: Annotated[str, typer.Argument(metavar="RUN|planted", help="A trained run, or planted truths.")],
    sizes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Sizes of the study, e.g. train_events=5000.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few events and trainings; large errors.")] = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, with one thread each.")] = 1,
    own_model: Annotated[
        bool, typer.Option("--own-model", help="For a run: its model as it is, not a small one of its kind.")
    ] = False,
    mechanism: Annotated[
        list[str] | None, typer.Option("--mechanism", metavar="NAME", help="For planted: this one; may be repeated.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option("--test", metavar="NAME", help="Only this; may be repeated.")
    ] = None,
    score: Annotated[
        list[str] | None, typer.Option("--score", metavar="NAME", help="Only this; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder; else runs/influence, or influence/ of the run."),
    ] = None,
) -> None:
    """Judge scores of training events by training again: every score, beside random values and the loss.

    Tests: lds (halves of the events), reference (1 % and single events removed; metagradient), flips (wrong labels),
    jes (wrong jet energy), mass (wrong mass point), twin (near copies), mechanism (planted), brittle (decisions).
    """
    from hepx.config import override, parse
    from hepx.influence.bench import QUICK, ValidateSettings

    values: dict[str, Any] = dict(QUICK) if quick else {}
    override(values, sizes or [])
    values |= {name: names for name, names in {"tests": test, "scores": score}.items() if names}
    settings = parse(ValidateSettings, values, "hepx influence validate")
    with resumable("where it stopped"):
        if what == "planted":
            if own_model:
                raise ConfigError("--own-model is for a run; planted events have no model of their own.")
            _influence_planted(mechanism, settings, output or Path("runs") / "influence", workers)
        else:
            if mechanism:
                raise ConfigError("--mechanism is for planted events; a run has no planted truth.")
            _influence_run(Path(what), settings, output, workers, own_model)


def _influence_planted(mechanisms: list[str] | None, settings: ValidateSettings, folder: Path, workers: int) -> None:
    """By default the mixture of two mechanisms, and wrong labels where one feature tells all."""
    from hepx.influence.studies import planted_study
    from hepx.influence.validate import lines, validate
    from hepx.planted import MECHANISMS
    from hepx.report.influence_validation import make_influence_page
    from hepx.train import TrainSettings

    for name in mechanisms or ():
        if name not in MECHANISMS:
            raise ConfigError(f"unknown mechanism '{name}'; {closest(name, MECHANISMS)}")
    both = {"mix": settings, "met_significance": settings.model_copy(update={"tests": ("flips",)})}
    plan = dict.fromkeys(mechanisms, settings) if mechanisms else both if not settings.tests else {"mix": settings}
    train = settings.training(TrainSettings(weights="sign"))
    for name, one in plan.items():
        study = planted_study(name, one.train_events, one.queries, train, one.seed)
        for line in lines(validate(study, one, folder / name, workers)):
            typer.echo(line)
    typer.echo(f"tables: {make_influence_page(folder, list(plan))}, and validate.json, .csv beside it")


def _influence_run(path: Path, settings: ValidateSettings, output: Path | None, workers: int, own_model: bool) -> None:
    from hepx.influence.studies import run_study, stand_in
    from hepx.influence.validate import lines, validate
    from hepx.models import require_gradients
    from hepx.notebook import open_run

    run = open_run(path).run
    require_gradients(run.model(), "hepx influence validate")
    folder, data = output or run.folder / "influence", run.store()
    if data.layout.num_classes != 2:
        raise ConfigError("hepx influence validate needs two classes: a wrong label is the other one.")
    model = run.settings.model if own_model else stand_in(run.settings.model)
    pools = (data.load("train"), data.load("validation"))
    sizes = (settings.train_events, settings.queries)
    study = run_study(path.name, model, settings.training(run.settings.train), pools, *sizes, settings.seed)
    for line in lines(validate(study, settings, folder, workers)):
        typer.echo(line)
    if output is None:
        report_again(run.folder)
    typer.echo(f"all numbers: {folder / 'validate.json'}, validate.csv" + ("" if output else in_the_report(run.folder)))


@influence_app.command(
    epilog="Examples:\n\n  hepx influence audit runs/quickstart        audit.json, audit.csv, and in the report\n\n"
    "  hepx influence audit runs/quickstart --share 0.02 --score loss\n\n"
    "The run needs snapshots of its training: hepx train CONFIG train.snapshots=6"
)
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a trained run.")],
    score: Annotated[
        list[str] | None, typer.Option("--score", metavar="NAME", help="Rank by this one; may be repeated.")
    ] = None,
    share: Annotated[
        float, typer.Option("--share", help="Share of the events that is suspicious by one score.")
    ] = 0.01,
) -> None:
    """Rank suspicious training events and say what is odd about them, by truth where there is one."""
    from hepx.influence.audit import summary
    from hepx.notebook import open_run

    trained = open_run(run)
    scores = score or ["loss", "tracin"]
    with resumable("from the start"):
        found = trained.audit(scores, share=share)
        found.save(run, trained.run.provenance("audit", {"scores": scores, **found.settings.model_dump()}))
        report_again(run)
    for line in summary(found):
        typer.echo(line)
    typer.echo(f"list: {run / 'influence' / 'audit.csv'}; all numbers: {run / 'influence' / 'audit.json'}")


@influence_app.command(
    epilog="Examples:\n\n"
    "  hepx influence distill runs/quickstart --score tracin --fractions 0.1,0.2,0.5 --seeds 1-3 --workers 2\n\n"
    "  hepx influence distill runs/quickstart --score tracin --score loss --seeds 1-5 --epochs 10\n\n"
    "The test events stay as they are. A stopped study goes on with the same command."
)
def distill(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a trained run.")],
    score: Annotated[
        list[str] | None, typer.Option("--score", metavar="NAME", help="Drop by this one (tracin); may be repeated.")
    ] = None,
    fractions: Annotated[str, typer.Option("--fractions", help="Shares of the training events.")] = "0.1,0.2,0.5",
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds of the trainings: 1-5 or 1,2,7.")] = "1-3",
    order: Annotated[
        list[str] | None, typer.Option("--order", metavar="highest|lowest", help="Only drop this end of the ranking.")
    ] = None,
    sets: Annotated[int, typer.Option("--sets", help="Random removals beside every score.")] = 4,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Of the full training; else as in the run.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that train.")] = 1,
) -> None:
    """Train again without the events that a score ranks highest or lowest, beside random removal of as many."""
    from hepx.batch import read_seeds
    from hepx.influence.distill import save
    from hepx.notebook import open_run

    trained, scores = open_run(run), score or ["tracin"]
    settings: dict[str, Any] = {
        "fractions": fractions.split(","),
        "seeds": read_seeds(seeds),
        "sets": sets,
        "epochs": epochs,
    }
    settings |= {"orders": order} if order else {}
    with resumable("where it stopped"):
        found = trained.distill(scores, workers=workers, **settings)
        save(run, found, trained.run.provenance("distill", {"scores": scores, **found["settings"]}))
        report_again(run)
    for line in found["verdict"]:
        typer.echo(line)
    typer.echo(f"table: {run / 'influence' / 'distill.csv'}; all numbers: {run / 'influence' / 'distill.json'}")


@influence_app.command(
    "scores",
    epilog="Examples:\n\n  hepx influence runs/quickstart             TracIn, for background that looks like signal\n\n"
    '  hepx influence runs/quickstart --score trak --query "score > 2.2 and sample == ttbar" --beside runs/seed2\n\n'
    "  hepx influence runs/quickstart --score tracin --score loss --score random\n\n"
    "  hepx influence runs/quickstart --shard 3/8          one of eight jobs that compute the gradients\n\n"
    "The run needs snapshots of its training: hepx train CONFIG train.snapshots=5.\n\n"
    "Scores: tracin, last_layer, grad_dot, grad_cos, trak; beside them loss, logit, el2n, representation, random.\n\n"
    "When all shards are done, the command without --shard reads what they computed. A stopped command goes on where "
    "it stopped.",
)
def influence_scores(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a trained run.")],
    score: Annotated[
        list[str] | None, typer.Option("--score", metavar="NAME", help="This one (tracin); may be repeated.")
    ] = None,
    query: Annotated[
        str, typer.Option("--query", metavar="EXPRESSION", help="Test events whose score is traced back.")
    ] = "probability > 0.5 and label == 0",
    queries: Annotated[int, typer.Option("--queries", min=1, help="At most so many of them, chosen at random.")] = 200,
    projection: Annotated[
        int | None, typer.Option("--projection", min=0, help="Numbers kept of a gradient; 0: all of it, exact.")
    ] = None,
    ridge: Annotated[float | None, typer.Option("--ridge", help="For trak: λ, in mean eigenvalues.")] = None,
    beside: Annotated[
        list[Path] | None, typer.Option("--beside", metavar="RUN", help="For trak: average over this run too.")
    ] = None,
    shard: Annotated[str, typer.Option("--shard", metavar="i/n", help="Only one of n parts of the gradients.")] = "",
) -> None:
    """Score the training events: alone, and as causes of what the network says of some test events."""
    from hepx.attribution import Shard
    from hepx.influence import SCORES
    from hepx.influence.output import is_answered, lines, save
    from hepx.notebook import open_run

    trained, part = open_run(run), Shard.parse(shard) if shard else None
    given = {name: value for name, value in {"projection": projection, "ridge": ridge}.items() if value is not None}
    folder = run / "influence"
    with resumable("where it stopped"):
        for name in score or ["tracin"]:
            known = SCORES[name].model_fields if name in SCORES else given
            settings = {key: value for key, value in given.items() if key in known}
            asked = trained.ask(name, query, queries, beside or [], folder / "gradients", **settings)
            if part is not None:
                asked.prepare(part)
                typer.echo(f"part {shard} of {name}: {folder / 'gradients'}")
                continue
            found = is_answered(folder, asked) or save(folder, asked.answer())
            for line in lines(found):
                typer.echo(line)
        if part is None and (run / "report.html").exists():
            from hepx.report import make_report

            make_report(run)
    if part is None:
        typer.echo(f"scores by event number: {folder / 'scores'}{in_the_report(run)}")
