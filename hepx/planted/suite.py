"""The planted-truth suite: train a network per mechanism, let every method explain it, judge; one table.

Resumable: networks and table rows are kept in the output folder under a digest of what made them, and found again.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from hepx import __version__, files
from hepx.attribution import METHODS, Method, Subject, explain
from hepx.attribution.baselines import Pattern, Referenced, per_pattern, replacements
from hepx.config import parse
from hepx.errors import ConfigError, ResultError
from hepx.graph import GraphBatch
from hepx.planted.bayes import Gate, judge_network
from hepx.planted.cases import VARIANTS, Base, Case, SuiteSettings, cases
from hepx.planted.checks import IGNORANT, asked, checks_of
from hepx.planted.judge import CRITERIA, WITHOUT_ERROR, Check, Measures, found_in, measure, missed, with_exactness
from hepx.planted.mechanisms import MECHANISMS, Mechanism
from hepx.planted.observations import OBSERVATIONS, observation, wording
from hepx.progress import progress
from hepx.results import Provenance, Result

COSTLY = ("feature_groups", "owen", "gnn_explainer", "integrated_gradients")  # get a quarter of the replacements
FAR = ("gnn_explainer", "integrated_gradients:free")  # costly, and decided by a quarter of the events too
PERMUTED = 10  # times as many events for permutation importance: one number for all of them


@dataclass(frozen=True)
class Row:
    """One line of the table. verdict: pass, fail, refused (its own gate), not possible (the network has no such thing),
    not judged (no criterion, or the network missed the gate), observation (attention); a control is judged too, and
    must not pass. errors: standard errors of the measures over the events; the verdict is of the values. note: why
    there is no result, or what may be said of it. milliseconds: of processor time per event."""

    mechanism: str
    level: int
    network: str
    method: str
    measures: Measures
    errors: Measures
    milliseconds: float
    num_events: int
    verdict: str
    missed: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Suite:
    """The whole result, as `planted.json` holds it."""

    settings: dict[str, Any]
    base: str
    version: str
    mechanisms: dict[str, str]
    criteria: dict[str, str]
    gates: list[Gate]
    rows: list[Row]
    checks: list[Check]


def method_of(name: str, case: Case) -> Method:
    """A method with the sizes of the suite. Refused results are kept, and called refused in the table."""
    plain = name.partition(":")[0]
    kind, settings, mechanism = METHODS[plain], case.settings, case.mechanism
    fields, costly = kind.model_fields, plain in COSTLY
    few = costly and (settings.quick or case.network != "trained" or name in FAR)
    values: dict[str, Any] = {"method": plain, **VARIANTS.get(name, {})}
    values["events"] = max(8, settings.explained // 4) if few else settings.explained
    if name == "permutation_importance":
        values |= {"events": min(settings.test_events, PERMUTED * settings.explained), "replicas": 50}
    if "draws" in fields:
        values["draws"] = max(2, settings.draws // 4) if costly else settings.draws
    if "force" in fields:
        values["force"] = True
    if "observable" in fields and mechanism.slots == ("lepton", "met"):
        values["observable"] = "mt"
    if settings.quick:
        smaller = {"restarts": 2, "epochs": 30, "repeats": 2, "replicas": 20, "points": 15}
        values |= {key: value for key, value in smaller.items() if key in fields}
    return kind(**values)


def run_suite(settings: SuiteSettings, base: Base, folder: Path) -> Suite:
    """Train, explain and judge; writes planted.json and planted.csv into the folder. The facts besides the table are
    asked if all methods are."""
    todo = cases(settings, base, folder)
    names = settings.methods or (*METHODS, *VARIANTS, *OBSERVATIONS)
    gates: list[Gate] = []
    rows: list[Row] = []
    checks: list[Check] = []
    with progress("planted truth", len(todo) * (len(names) + 2), " steps") as advance:
        for case in todo:
            note = f"{case.name}, {case.network}"
            case.forget_others()
            gate = judge_case(case)
            gates += [gate] if gate else []
            advance(1, note)
            found = {}
            for name in names:
                rows.append(row_of(case, name, gate))
                found[name] = rows[-1].measures
                advance(1, f"{note}: {name}")
            for name, ask in checks_of(case, gate, found) if not settings.methods else ():
                checks += asked(case, name, ask)
            advance(1, note)
    suite = Suite(
        settings=settings.model_dump(mode="json"),
        base=base.name,
        version=__version__,
        mechanisms={case.name: MECHANISMS[case.name].what for case in todo},
        criteria={name: str(criterion) for name, criterion in CRITERIA.items()},
        gates=gates,
        rows=rows,
        checks=checks,
    )
    write(suite, folder)
    return suite


def judge_case(case: Case) -> Gate | None:
    """The gate of a network; None for a hand-made one, which is right by construction."""
    if case.network == "hand-made":
        return None
    train, test = case.events
    ignorant = case.fresh_networks(IGNORANT) if case.network != "trained" else ()
    seed = case.settings.seed
    return judge_network(case.name, case.network, case.mechanism, case.model, test, len(train), seed, ignorant)


@dataclass(frozen=True)
class Measured:
    """What one method was measured to find; the fields are those of Row."""

    measures: Measures
    errors: Measures
    milliseconds: float
    num_events: int
    note: str


NOT_POSSIBLE = Measured(Measures(), Measures(), 0.0, 0, "")


def row_of(case: Case, name: str, gate: Gate | None) -> Row:
    """A line of the table; its measures from the folder if they are there already."""
    kept = case.kept(f"rows/{name.replace(':', '-')}", lambda: asdict(_measured(case, name)))
    measured = Measured(**kept | {part: Measures(**kept[part]) for part in ("measures", "errors")})
    failures = missed(name, measured.measures)
    if measured.num_events == 0:
        verdict = "not possible"
    elif name in OBSERVATIONS:
        verdict = "observation"
    elif measured.note:
        verdict = "refused"
    elif failures is None or (gate is not None and not gate.passed and case.network == "trained"):
        verdict = "not judged"
    else:
        verdict = "fail" if failures else "pass"
    return Row(
        mechanism=case.name,
        level=case.mechanism.level,
        network=case.network,
        method=name,
        verdict=verdict,
        missed=tuple(failures or ()),
        **vars(measured),
    )


def _measured(case: Case, name: str) -> Measured:
    if name in OBSERVATIONS:
        return _observed(case, name)
    method = method_of(name, case)
    number = min(method.events, len(case.events[1]))
    subject, ideal = (case.subject(model, number) for model in (case.model, case.bayes))
    found = _timed(lambda: explain(method, subject, _provenance(method, case)), number)
    if isinstance(found, str):
        return replace(NOT_POSSIBLE, note=found)
    result, milliseconds = found
    reference = exact = _reference(case, ideal, _draws(method, case.settings))
    if name in ("feature_groups", "owen", "occlusion", "response", "permutation_importance"):
        exact = explain(method, ideal, _provenance(method, case))
    measures, errors = measure(case.mechanism, subject.graphs, result, reference, exact)
    if case.mechanism.exact is not None and name not in VARIANTS:  # whose closed form is of other replacements
        values, pairs = closed_form(case.mechanism, subject, _draws(method, case.settings))
        measures = with_exactness(
            measures, case.mechanism, subject.graphs, found_in(result, subject.graphs), values, pairs
        )
    return Measured(measures, errors, milliseconds, number, str(getattr(result, "note", "")))


def _observed(case: Case, name: str) -> Measured:
    """The same for an observation, beside edge knock-out on the same events."""
    number = min(case.settings.explained, len(case.events[1]))
    subject, ideal = (case.subject(model, number) for model in (case.model, case.bayes))
    found = _timed(lambda: observation(name, subject), number)
    if isinstance(found, str):
        return replace(NOT_POSSIBLE, note=found)
    result, milliseconds = found
    reference = _reference(case, ideal, case.settings.draws)
    measures, errors = measure(case.mechanism, subject.graphs, result, reference, reference)
    note = wording(measures.pair_hit, result.values, case.knocked_out)
    return Measured(measures, errors, milliseconds, number, note)


_R = TypeVar("_R")


def _timed(run: Callable[[], _R], number: int) -> tuple[_R, float] | str:
    """A result and its milliseconds of processor time per event (others may use the machine), or why there is none."""
    start = time.process_time()
    try:
        result = run()
    except (ConfigError, ResultError) as error:
        return str(error)
    return result, 1000 * (time.process_time() - start) / number


def _reference(case: Case, ideal: Subject, draws: int) -> Result:
    """Shapley values of the Bayes-optimal score for the same events, with the same replacements."""
    shapley = method_of("shapley", case).model_copy(update={"draws": draws})
    return explain(shapley, ideal, _provenance(shapley, case))


def _draws(method: Method | None, settings: SuiteSettings) -> int:
    return method.draws if isinstance(method, Referenced) else settings.draws


def closed_form(mechanism: Mechanism, subject: Subject, draws: int) -> tuple[Any, Any]:
    """Exact Shapley values [B, N] and interactions [B, N, N] of a hand-made network, with the donors of the methods."""
    method = parse(METHODS["shapley"], {"method": "shapley", "draws": draws}, "closed form")
    exact = mechanism.exact
    assert isinstance(method, Referenced)
    assert exact is not None

    def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
        donors = replacements(method, pattern, events, subject.seed, aligned=False)
        values, pairs = exact(events.x, donors, events.layout.slots)
        return {"values": values, "pairs": pairs}

    found = per_pattern(method, subject, lambda _: draws, compute)
    return found["values"], found["pairs"]


def _provenance(method: Method, case: Case) -> Provenance:
    settings = method.model_dump(mode="json")
    where = f"planted {case.name}, {case.network}"
    return Provenance(method.name, settings, where, "", case.base.digest, case.settings.seed, __version__, "", "cpu")


def write(suite: Suite, folder: Path) -> None:
    """planted.json and planted.csv."""
    files.write_json(folder / "planted.json", asdict(suite))
    measures = list(Measures.__dataclass_fields__)
    with files.atomic(folder / "planted.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        errors = [name for name in measures if name not in WITHOUT_ERROR]
        columns = [*measures, *(f"{name}_error" for name in errors)]
        head = ["mechanism", "level", "network", "method", *columns, "milliseconds", "num_events", "verdict", "missed"]
        writer.writerow([*head, "note"])
        for row in suite.rows:
            values = [getattr(row.measures, name) for name in measures]
            values += [getattr(row.errors, name) for name in errors]
            start = [row.mechanism, row.level, row.network, row.method]
            end = [row.milliseconds, row.num_events, row.verdict, " ".join(row.missed), row.note]
            writer.writerow([*start, *values, *end])


def summary(suite: Suite) -> list[str]:
    """For each network how near it is to the best possible, what passes and fails; and the facts that do not hold."""
    lines, gates = [], {(gate.mechanism, gate.network): gate for gate in suite.gates}
    for key in dict.fromkeys((row.mechanism, row.network) for row in suite.rows):
        rows = [row for row in suite.rows if (row.mechanism, row.network) == key]
        gate = gates.get(key)
        about = "" if gate is None else f", AUC {gate.auc:.4f} of {gate.bayes_auc:.4f}"
        if gate is not None and not gate.passed:
            about += ", misses the gate"
        kinds = {kind: [row.method for row in rows if row.verdict == kind] for kind in ("pass", "fail", "refused")}
        lines.append(f"{key[0]} ({key[1]}{about})")
        lines += [f"  {kind + ':':9s}{', '.join(names)}" for kind, names in kinds.items() if names]
    if suite.checks:
        wrong = [check for check in suite.checks if not check.passed]
        lines.append(f"besides: {len(suite.checks) - len(wrong)} of {len(suite.checks)} facts hold")
        lines += [f"  fails:   {check.case}, {check.analysis}: {check.what}" for check in wrong]
    return lines
