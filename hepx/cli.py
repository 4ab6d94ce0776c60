"""The command line: hepx VERB CONFIG|RUN [key=value ...]. Imports stay inside the verbs so that --help is instant."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hepx import __version__, signals
from hepx.errors import ConfigError, HepxError, PreemptedError, StoppedError, closest

if TYPE_CHECKING:
    from hepx.influence.bench import ValidateSettings
    from hepx.run import Run
    from hepx.workers import Execution

log = logging.getLogger("hepx")

app = typer.Typer(
    name="hepx",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train graph classifiers on ATLAS events and explain, with checks, why they select an event.",
    epilog="Examples:\n\n"
    "  hepx run configs/quickstart.yaml                      ROOT files in, report.html out\n\n"
    "  hepx run configs/quickstart.yaml name=try2 train.epochs=5 model.num_experts=4\n\n"
    "  hepx explain runs/quickstart                          only what is missing is done\n\n"
    "  hepx simulate ttbar --events 10000 --output mydata    events to try things on",
)


class _Influence(TyperGroup):
    """`hepx influence RUN` is `hepx influence scores RUN`: what does not name another command is the run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the name of the command where it is left out."""
        named = next((one for one in args if not one.startswith("-")), None)
        if named is not None and named not in self.commands:
            args = ["scores", *args]
        return list(super().parse_args(ctx, args))


influence_app = typer.Typer(
    cls=_Influence,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which training events made the network what it is, and is the answer right?",
    epilog="Examples:\n\n  hepx influence runs/quickstart        the same as hepx influence scores runs/quickstart\n\n"
    "  hepx influence scores --help",
)
app.add_typer(influence_app, name="influence")

Target = Annotated[Path, typer.Argument(metavar="CONFIG|RUN", help="A YAML config, or the folder of an earlier run.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the config, e.g. train.epochs=5.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds the run folders.")]


class Protocol(StrEnum):
    """How files are read from another machine."""

    https = "https"
    root = "root"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hepx {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that come before the verb."""
    del version
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.setLevel(level)
    log.handlers = [handler]


@contextmanager
def _resumable(where: str = "after the last checkpoint or finished stage") -> Iterator[None]:
    """Ctrl-C or a signal inside the block ends with a sentence: what is finished is kept."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise StoppedError(f"stopped. The same command goes on {where}.") from error
    except signals.Preempted as error:
        raise PreemptedError(f"{error}.") from error


def _run(
    target: Path,
    overrides: list[str] | None,
    runs: Path,
    work: str | Callable[[Run], None],
    execution: Execution | None = None,
    methods: list[str] | None = None,
    resume: bool = False,
) -> Run:
    """Open the run, log into its log.txt, and carry out the stages up to `work`, or other work.

    Under torchrun every process comes here; all but the first end here, when they have helped to train.
    """
    from hepx.run import Run, log_file
    from hepx.train import joined

    run = Run.from_config(target, overrides or [], runs, methods or [])
    run.execution = execution or run.execution
    if resume:
        run.check_resumable()
    with _resumable(), joined() as run.ranks:
        if not run.ranks.is_first:
            log.setLevel(logging.WARNING)
            run.follow()
            raise typer.Exit
        with log_file(run.folder), run.leading(), _resumable():
            if isinstance(work, str):
                run.execute(work)
            else:
                work(run)
    return run


@app.command(epilog="Example:  hepx run configs/quickstart.yaml train.epochs=5")
def run(target: Target, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Convert, train, evaluate, explain and report; what is done already is skipped."""
    from hepx.report import summary_lines

    done = _run(target, overrides, runs, "report")
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
        bool, typer.Option("--skip-bad-files", help="Leave out files that cannot be read; dataset.json lists them.")
    ] = False,
) -> None:
    """Turn ROOT files into graphs on disk."""
    from hepx.workers import Execution

    done = _run(target, overrides, runs, "convert", Execution(workers, dask, skip_bad_files))
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
    done = _run(target, changes, runs, "train", resume=resume)
    typer.echo(f"checkpoints: {done.folder / 'checkpoints'}")


@app.command(epilog="Example:  hepx evaluate runs/quickstart")
def evaluate(target: Target, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Measure the trained model on the test events."""
    from hepx.files import read_json

    done = _run(target, overrides, runs, "evaluate")
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
    """Run the explanation methods of the config, and look inside: attention, experts, object states."""
    if prepare:
        done = _run(target, overrides, runs, "evaluate", methods=method)
        typer.echo(f"ready for: hepx explain {done.folder} --shard i/n")
        return
    if shard:
        from hepx.attribution import Shard

        part = Shard.parse(shard)
        done = _run(target, overrides, runs, lambda run: run.explain_shard(part), methods=method)
        typer.echo(f"part {shard}: {done.folder / 'explain' / 'shards'}")
        return
    done = _run(target, overrides, runs, "explain", methods=method)
    typer.echo(f"explanations: {done.folder / 'explain'}")


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
    explained: Annotated[int | None, typer.Option("--explained", help="Events that each method explains.")] = None,
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
        if events or overrides or output or mechanism:
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
        run = _run(events, overrides, runs, "convert")
        folder, data = output or run.folder / "planted", run.store()
        base = cases.own_base(data.load("train"), data.load("test"), settings, run.settings.name, run.key("convert"))
    with _resumable("where it stopped"):
        found = suite.run_suite(settings, base, folder)
    for line in suite.summary(found):
        typer.echo(line)
    typer.echo(f"table: {make_planted(folder)}, planted.csv, planted.json")


def _validate_run(folder: Path, methods: list[str], limit: int, beside: list[Path]) -> None:
    """Measure how faithful the explanations of a run are; its report shows it."""
    from hepx import files
    from hepx.faithfulness import lines
    from hepx.notebook import open_run

    with _resumable("after the last method that was judged"):
        found = open_run(folder).validate(methods, limit, beside, folder / "validate")
        files.write_json(folder / "validate.json", found)
        _report_again(folder)
    for line in lines(found):
        typer.echo(line)
    typer.echo(f"all numbers: {folder / 'validate.json'}, and in the report")


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
    with _resumable("where it stopped"):
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
    from hepx.notebook import open_run

    run = open_run(path).run
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
        _report_again(run.folder)
    typer.echo(f"all numbers: {folder / 'validate.json'}, validate.csv" + ("" if output else ", and in the report"))


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
    with _resumable("from the start"):
        found = trained.audit(scores, share=share)
        found.save(run, trained.run.provenance("audit", {"scores": scores, **found.settings.model_dump()}))
        _report_again(run)
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
    with _resumable("where it stopped"):
        found = trained.distill(scores, workers=workers, **settings)
        save(run, found, trained.run.provenance("distill", {"scores": scores, **found["settings"]}))
        _report_again(run)
    for line in found["verdict"]:
        typer.echo(line)
    typer.echo(f"table: {run / 'influence' / 'distill.csv'}; all numbers: {run / 'influence' / 'distill.json'}")


def _report_again(run: Path) -> None:
    """Make the report of a run anew, if it has one."""
    from hepx.report import make_report

    if (run / "report.html").exists():
        make_report(run)


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
    with _resumable("where it stopped"):
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
        typer.echo(f"scores by event number: {folder / 'scores'}, and in the report")


@app.command(epilog="Example:  hepx report runs/quickstart")
def report(target: Target, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Write report.html, the figures and the tables."""
    done = _run(target, overrides, runs, "report")
    typer.echo(f"report: {done.folder / 'report.html'}")


@app.command(
    epilog="Examples:\n\n  hepx sweep configs/models.yaml --workers 2\n\n"
    "  hepx sweep configs/ablation.yaml --shard 3/40         one of forty jobs of a cluster\n\n"
    "A stopped sweep goes on with the same command. When all shards are done, it makes the table: runs/NAME/sweep.html."
)
def sweep(
    config: Annotated[Path, typer.Argument(help="A YAML file with base, seeds and variants.")],
    overrides: Overrides = None,
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
    with _resumable():
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


@app.command(epilog="Example:  hepx experts runs/models/moe-1 runs/models/moe-2 runs/models/moe-3")
def experts(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders that differ in their seed.")],
) -> None:
    """Compare what the experts of several trainings do: is it the same division of labour?"""
    from hepx.agreement import STABLE, compare_experts

    for row in compare_experts(runs):
        typer.echo(
            f"layer {row.layer + 1}: adjusted Rand index {row.ari:.2f} ± {row.spread:.2f} (untrained {row.null:.2f}), "
            f"at fixed object {row.within:.2f} (untrained {row.null_within:.2f}), agreement {row.agreement:.2f}"
            + ("" if row.ari >= STABLE else "; the number of an expert means nothing in another training")
        )


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
    """Simulate events in the layout of the 2025 ATLAS Open Data, with truth (needs the extra `simulate`)."""
    from hepx.config import parse
    from hepx.simulate import SimulateSettings
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
    for settings in wanted:
        typer.echo(generate(settings, output / settings.file_name))


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Examples:\n\n  hepx submit slurm train configs/mgt.yaml --gpus 1 --time 2:00:00 --partition gpu\n\n"
    "  hepx submit slurm run configs/mgt.yaml train.epochs=50 --array 8 --dry-run\n\n"
    "  hepx submit slurm explain runs/mgt --array 8            shares of the events, then the merge\n\n"
    "  hepx submit slurm evaluate configs/mgt.yaml --seeds 1-5 --time 1:00:00\n\n"
    "  hepx submit slurm sweep configs/models.yaml --array 40 --time 1:00:00\n\n"
    "  hepx submit htcondor run configs/mgt.yaml --gpus 1 --flavour workday\n\n"
    "A job that reaches its time limit writes a checkpoint, goes back into the queue and goes on from there.",
)
def submit(
    system: Annotated[str, typer.Argument(metavar="slurm|htcondor", help="The batch system.")],
    verb: Annotated[str, typer.Argument(metavar="VERB", help="What the job does: run, train, explain, convert, …")],
    line: Annotated[list[str], typer.Argument(metavar="ARGUMENTS...", help="What follows the verb, with its options.")],
    time: Annotated[str, typer.Option("--time", help="Limit per job: minutes, H:M:S or D-H:M:S.")] = "",
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs per node; more than one train together.")] = 0,
    nodes: Annotated[int, typer.Option("--nodes", help="Machines that train together (Slurm).")] = 1,
    cpus: Annotated[int, typer.Option("--cpus", help="Cores per process; there is one process per GPU.")] = 2,
    memory: Annotated[str, typer.Option("--memory", help="Memory per node.")] = "8G",
    array: Annotated[
        int, typer.Option("--array", min=0, help="Share out the explanations, or the runs of a sweep, over N jobs.")
    ] = 0,
    seeds: Annotated[str, typer.Option("--seeds", help="One run per seed: 1-5 or 1,2,7.")] = "",
    partition: Annotated[str, typer.Option("--partition", help="Partition (Slurm).")] = "",
    account: Annotated[str, typer.Option("--account", help="Account, or accounting group (HTCondor).")] = "",
    flavour: Annotated[str, typer.Option("--flavour", help="JobFlavour, e.g. workday (HTCondor at CERN).")] = "",
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Copy the files: no shared file system (HTCondor).")
    ] = False,
    warn: Annotated[int, typer.Option("--warn", help="Seconds before the limit at which a job stops.")] = 120,
    directive: Annotated[
        list[str] | None, typer.Option("--directive", help="A further line for the scheduler; may be repeated.")
    ] = None,
    setup: Annotated[
        list[str] | None, typer.Option("--setup", help="A shell line before hepx: 'module load cuda'; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the scripts; submit and write nothing.")] = False,
) -> None:
    """Run any verb as jobs of a batch system, which survive their time limit."""
    from hepx import batch
    from hepx.config import parse

    if system not in batch.SYSTEMS:
        raise ConfigError(f"unknown batch system '{system}'; {closest(system, batch.SYSTEMS)}")
    wanted = {"time": time, "gpus": gpus, "nodes": nodes, "cpus": cpus, "memory": memory, "partition": partition}
    wanted |= {"account": account, "flavour": flavour, "transfer": transfer, "warn": warn}
    wanted |= {"directives": tuple(directive or ()), "setup": tuple(setup or ())}
    resources = parse(batch.Resources, wanted, "hepx submit")
    checked = batch.read_line(verb, line, _values(verb, line))
    jobs = batch.plan(checked, array, batch.read_seeds(seeds), resources.processes)
    queue = batch.SYSTEMS[system].of(checked, resources, shlex.join(["hepx", *sys.argv[1:]]))
    queue.check(jobs)
    if dry_run:
        for text in queue.describe(jobs):
            typer.echo(text)
        return
    for name, number in queue.submit(jobs).items():
        typer.echo(f"{name}: job {number}")
    typer.echo(f"scripts and logs: {queue.folder}")


def _values(verb: str, line: list[str]) -> dict[str, Any]:
    """What follows a verb, as its own command line reads it; ConfigError if it would refuse it."""
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    if verb not in commands:
        raise ConfigError(f"unknown verb '{verb}'; {closest(verb, commands)}")
    try:
        command, arguments = _inner(commands[verb], list(line))
        return dict(command.make_context(verb, arguments).params)
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own errors; typer does not tell where it has their class
            raise ConfigError(f"hepx {verb}: {error.format_message()} See hepx {verb} --help.") from error
        raise


def _inner(command: Any, arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that a line of a verb with several is for, and what is left of the line."""
    if not isinstance(command, _Influence):
        return command, arguments
    name = next((one for one in arguments if one in command.commands), "scores")
    return command.commands[name], [one for one in arguments if one != name]


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
    from hepx.errors import ConfigError

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
    with _resumable("where it stopped"):
        for line in opendata.fetch(order):
            typer.echo(line)


def _call(command: Callable[[], object], debug: bool) -> int:
    """Run the command line; a HepxError becomes one sentence and its exit code."""
    try:
        with signals.raised(), _resumable():
            command()
    except HepxError as error:
        if debug:
            raise
        typer.echo(f"hepx: error: {error}", err=True)
        return error.exit_code
    except OSError as error:
        if debug:
            raise
        where = f": '{error.filename}'" if error.filename else ""
        typer.echo(f"hepx: error: {error.strerror or error}{where}. Mend it and start again.", err=True)
        return 5
    return 0


def main() -> None:
    """Entry point of the `hepx` command."""
    sys.exit(_call(app, "--debug" in sys.argv))


if __name__ == "__main__":
    main()
