"""Are scores of training events right? Against real retrainings, against truths hidden in the training, against chance.

Every test runs every score; random values and the loss are among them. Trainings are kept in the folder and found again
(`hepx.influence.retrain`); the table is written when all is done.
"""

from __future__ import annotations

import csv
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hepx import __version__, files
from hepx.influence.bench import TESTS, Bench, Row, ValidateSettings
from hepx.influence.retrain import Change, retrain
from hepx.influence.studies import Study
from hepx.influence.trials import LOSS, METAGRADIENT, NEAREST, TRIALS
from hepx.models import build_model

log = logging.getLogger(__name__)

RANDOM = "random"
MIN_TRAK, MIN_GAIN, MAX_RANDOM, MIN_EXACT, MIN_GROUP = 0.20, 0.05, 0.03, 0.8, 0.80  # what scores must reach
MAX_BELOW_ORACLE = {True: 0.01, False: 0.15}  # AUROC; for a truth of one feature, and for others


@dataclass(frozen=True)
class Verdict:
    """A criterion or a negative control: what it says, what was measured, whether it is met."""

    name: str
    what: str
    value: float
    error: float | None
    passed: bool


@dataclass(frozen=True)
class Validation:
    """The table of one study, as influence/validate.json holds it. seed_correlation, ceiling: how well two seeds agree
    on the halves, and the most a prediction can reach (`judge.repeatability`); scans: score -> LDS on the tuning halves
    for each λ, of which the best was taken; scores: their settings; trainings: how many were made for it."""

    study: str
    settings: dict[str, Any]
    model: dict[str, Any]
    num_parameters: int
    version: str
    digest: str
    rows: tuple[Row, ...]
    seed_correlation: float | None
    ceiling: float | None
    scans: dict[str, dict[str, float]]
    scores: dict[str, dict[str, Any]]
    verdicts: tuple[Verdict, ...]
    trainings: int


# The table --------------------------------------------------------------------------------------------------------


def validate(study: Study, settings: ValidateSettings, folder: Path, workers: int = 1) -> Validation:
    """Carry out the tests and write validate.json and validate.csv into `folder`."""
    bench = Bench(study, settings, folder, workers)
    rows: list[Row] = []
    for name in settings.tests or TESTS:
        log.info("%s: %s", study.name, name)
        rows += TRIALS[name](bench)
    repeat = bench.repeat or (None, None)
    found = Validation(
        study=study.name,
        settings=settings.model_dump(mode="json"),
        model=study.model.model_dump(mode="json"),
        num_parameters=sum(p.numel() for p in build_model(study.model, study.events.layout, 0).parameters()),
        version=__version__,
        digest=bench.recipe.digest,
        rows=tuple(rows),
        seed_correlation=repeat[0],
        ceiling=repeat[1],
        scans={name: {f"{ridge:g}": value for ridge, value in one.items()} for name, one in bench.scans.items()},
        scores={name: score.model_dump(mode="json") for name, score in bench.scores.items()},
        verdicts=(*controls(bench, rows), *criteria(study, rows)),
        trainings=len(bench.used),
    )
    write(found, folder)
    return found


def controls(bench: Bench, rows: Sequence[Row]) -> Iterator[Verdict]:
    """What must show nothing, shows nothing; what must repeat itself, does."""
    for row in rows:
        if row.test == "lds" and row.score.endswith("shuffled") and row.error is not None:
            what = "a score shuffled among the training events has LDS 0 within 3 errors"
            yield Verdict("shuffled", what, row.value, row.error, abs(row.value) <= 3 * row.error)
        if row.test == "lds" and row.score == RANDOM and row.models > 1 and row.error is not None:
            what = f"|LDS of random values| ≤ {MAX_RANDOM:g}"
            yield Verdict("random", what, row.value, row.error, abs(row.value) <= MAX_RANDOM)
    change = [Change("again", bench.settings.seed)]
    with tempfile.TemporaryDirectory() as other:
        twice = [retrain(bench.recipe, change, Path(place), what="again") for place in (f"{other}/1", f"{other}/2")]
    difference = float(np.abs(twice[0][0].score - twice[1][0].score).max())
    same = twice[0][0].score.tobytes() == twice[1][0].score.tobytes()
    yield Verdict("repeats", "two trainings with one seed give the same bits", difference, None, same)


def criteria(study: Study, rows: Sequence[Row]) -> Iterator[Verdict]:
    """What the scores must reach on planted events; criteria of tests that were not made are left out."""
    found = {(row.test, row.score, row.models > 1): row for row in rows}
    trak, tracin = found.get(("lds", "trak", True)), found.get(("lds", "tracin", False))
    if trak is not None:
        yield _at_least("trak", f"LDS of TRAK, {trak.models} models, ≥ {MIN_TRAK:g}", trak.value, trak.error, MIN_TRAK)
    if trak is not None and tracin is not None:
        what = f"its LDS above that of TracIn, one model, by ≥ {MIN_GAIN:g}"
        yield _at_least("trak − tracin", what, trak.value - tracin.value, None, MIN_GAIN)
    exact = [row for row in rows if row.test == "drop" and row.score.startswith(METAGRADIENT)]
    if exact:
        worst = min(exact, key=lambda row: row.value)
        what = f"rank correlation of the {worst.score} with removals of 1 % ≥ {MIN_EXACT:g}"
        yield _at_least("metagradient", what, worst.value, worst.error, MIN_EXACT)
    yield from _criteria_of_flips(study, rows)
    groups = [row for row in rows if row.test == "mechanism"]
    if groups:
        best = max(groups, key=lambda row: row.value)
        what = f"share of the {NEAREST} most influential events ({best.score}) of the query's mechanism ≥ {MIN_GROUP:g}"
        yield _at_least("mechanism", what, best.value, best.error, MIN_GROUP)


def _criteria_of_flips(study: Study, rows: Sequence[Row]) -> Iterator[Verdict]:
    """The loss must come near the oracle: as near as the planted truth lets the network learn it."""
    allowed = MAX_BELOW_ORACLE[study.mechanism is not None and study.mechanism.level == 1]
    for row in rows:
        oracle = next((one for one in rows if one.test == row.test and one.score == "oracle"), None)
        if row.score == LOSS and oracle is not None:
            what = f"{row.test}: AUROC of the loss no more than {allowed:g} below the oracle"
            yield _at_least(row.test, what, row.value - oracle.value, row.error, -allowed)


def _at_least(name: str, what: str, value: float, error: float | None, bound: float) -> Verdict:
    return Verdict(name, what, value, error, value >= bound)


def write(found: Validation, folder: Path) -> None:
    """validate.json and validate.csv."""
    files.write_json(folder / "validate.json", asdict(found))
    with files.atomic(folder / "validate.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["test", "score", "models", "value", "error", "chance", "sigma_above_loss"]
        more = sorted({key for row in found.rows for key in row.more})
        writer.writerow([*head, *more])
        for row in found.rows:
            values = [row.test, row.score, row.models, row.value, row.error, row.chance, row.better]
            writer.writerow([*values, *(row.more.get(key) for key in more)])


def read(path: Path) -> Validation:
    """Inverse of `write`."""
    values = files.read_json(path)
    rows = tuple(Row(**row) for row in values.pop("rows"))
    verdicts = tuple(Verdict(**one) for one in values.pop("verdicts"))
    return Validation(**values, rows=rows, verdicts=verdicts)


LEGEND = (
    "scores of training events against real retrainings, the best first, ± error; numbers have no unit but for brittle",
    "lds, drop, single: rank correlation of predicted and real scores of test events; exact: with the exact derivative",
    "flips, jes, mass: AUROC for the events that were spoilt, 0.5 by chance; twin: mean reciprocal rank of the copy",
    "mechanism: share of the 20 strongest events that obey it; brittle: fall of the score (log-odds) without support",
)


def lines(found: Validation) -> list[str]:
    """The table for a terminal: one line per test, the scores in falling order, and the verdicts."""
    out = [f"{found.study}: {found.trainings} trainings of {found.num_parameters} parameters"]
    if found.ceiling is not None:
        out.append(
            f"halves: one seed with another {found.seed_correlation:.2f}; ceiling of the LDS {found.ceiling:.2f}"
        )
    for test in dict.fromkeys(row.test for row in found.rows):
        rows = sorted((row for row in found.rows if row.test == test), key=lambda row: -row.value)
        cells = [f"{_label(row)} {row.value:.3f}" + (f" ± {row.error:.3f}" if row.error else "") for row in rows]
        out.append(f"{test}: {'; '.join(cells)}")
    return [
        *LEGEND,
        *out,
        *(f"{'met' if one.passed else 'MISSED'}: {one.what} ({one.value:.3f})" for one in found.verdicts),
    ]


def _label(row: Row) -> str:
    return row.score if row.models == 1 or row.test.startswith("brittle") else f"{row.score} ({row.models} models)"
