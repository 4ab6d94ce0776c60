"""The tests of scores of training events: each gives rows of the table.

* lds: linear datamodelling score (arXiv:2303.14186): random halves of the events, retrained with several seeds; rank
  correlation of the sum of influences with the mean score, mean over queries. The settings of a score (the λ of TRAK)
  are chosen on halves that are not used to judge.
* drop, single, exact: one deterministic training on few events. 1 % of them, or one, removed (weight 0, all else as it
  was): rank correlation of predicted and real change; exact: with the metagradient (arXiv:2504.16430), over events.
* flips, jes, mass: events with a wrong label, a wrong jet energy, or of another mass point, hidden in a process; AUROC.
* twin: near copies of the queries hidden in the training; mean reciprocal rank of the copy.
* mechanism: share of the 20 most influential events that obey the planted mechanism of the query.
* brittle: the most supporting events of a decision are removed, and the network is trained again; fall of the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from hepx.config import Settings
from hepx.influence import Score, Task, judge, studies
from hepx.influence.bench import Array, Bench, Row, effect
from hepx.influence.metagradient import metagradient
from hepx.influence.retrain import Change, Recipe
from hepx.influence.studies import Hidden

NEAREST = 20  # training events that the retrieval of mechanisms looks at
REMOVALS = {"drop": 0.01, "single": 0.0}  # test: share of the events that is removed at once; 0: one event
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)  # in units of the mean eigenvalue
LOSS, METAGRADIENT = "loss", "metagradient"

# Retrained halves -------------------------------------------------------------------------------------------------


def run_lds(bench: Bench) -> Iterator[Row]:
    """Halves of the training events."""
    settings, num = bench.settings, len(bench.study.events)
    number = settings.tuning_subsets + settings.subsets
    generator = torch.Generator().manual_seed(settings.seed)
    halves = [torch.randperm(num, generator=generator)[: num // 2].sort().values for _ in range(number)]
    seeds = [1000 + seed for seed in range(settings.subset_seeds)]
    changes = [Change(f"half {i}", seed, rows) for i, rows in enumerate(halves) for seed in seeds]
    trained = bench.train(bench.recipe, changes, "halves")
    scores = np.stack([one.score for one in trained]).astype(np.float64).reshape(number, len(seeds), -1)
    member = np.zeros((number, num))
    for row, half in zip(member, halves, strict=True):
        row[half.numpy()] = 1
    judged, tuning = np.split(np.arange(number), [settings.tuning_subsets])[::-1]
    bench.repeat = judge.repeatability(scores[judged])
    actual = scores.mean(1)
    for name, score in list(bench.scores.items()):
        found = scan(score, bench.base, member[tuning], actual[tuning])
        if found:
            bench.scans[name] = found
            bench.choose(name, score.model_copy(update={"ridge": max(found, key=lambda ridge: found[ridge])}))
    for name, effects in bench.effects.items():
        yield from _lds_rows(name, [member[judged] @ one for one in effects], actual[judged])
    name = max(
        bench.effects, key=lambda one: judge.lds(member[tuning] @ np.mean(bench.effects[one], 0), actual[tuning])[0]
    )
    order = np.random.default_rng(settings.seed).permutation(num)
    value, error = judge.lds(member[judged] @ np.mean(bench.effects[name], 0)[order], actual[judged])
    yield Row("lds", f"{name}, shuffled", settings.models, value, error, 0.0)


def _lds_rows(name: str, predicted: list[Array], actual: Array) -> Iterator[Row]:
    """Of single models, and of the mean of all. The error of single models adds their spread to that of the subsets."""
    each, errors = zip(*(judge.lds(one, actual) for one in predicted), strict=True)
    value, spread = judge.over_seeds(list(each))
    yield Row("lds", name, 1, value, float(np.hypot(np.mean(errors), spread or 0)), 0.0)
    yield Row("lds", name, len(predicted), *judge.lds(np.mean(predicted, 0), actual), 0.0)


def scan(score: Score, tasks: Sequence[Task], member: Array, actual: Array) -> dict[float, float]:
    """LDS of the mean of all models for the values RIDGES of the λ (`ridge`) of a score; empty if it has none."""
    influences = getattr(score, "scan", None)
    if influences is None:
        return {}
    found = [influences(task, RIDGES) for task in tasks]
    means = {ridge: np.mean([one[ridge].double().numpy() for one in found], 0) for ridge in RIDGES}
    return {ridge: float(judge.rank_correlation(member @ mean, actual).mean()) for ridge, mean in means.items()}


# One deterministic training ---------------------------------------------------------------------------------------


def run_reference(bench: Bench) -> Iterator[Row]:
    """Few events, real removals of 1 % and of single ones, and the metagradient. Where the network chooses experts, the
    metagradient is judged without these jumps too."""
    study, settings = bench.study, bench.settings
    model = changed(study.model, dropout=0.0)
    events, queries = study.events[: settings.reference_events], study.queries[: settings.reference_queries]
    quiet = {"ema": 0.0, "router_noise": 0.0, "node_dropout": 0.0, "reflections": False, "precision": "float32"}
    train = study.train.model_copy(update=quiet | {"epochs": settings.reference_epochs})
    recipe = Recipe(model, train, events, queries)
    seeds = range(settings.seed, settings.seed + settings.reference_seeds)
    tasks = bench.tasks(recipe, [Change(f"seed {seed}", seed) for seed in seeds], "reference")
    effects = {name: [effect(score, task) for task in tasks] for name, score in bench.scores.items()}
    exact = _metagradients(bench, recipe, seeds)
    for test, share in REMOVALS.items():
        yield from _removals(bench, recipe, seeds, test, share, effects | {METAGRADIENT: exact})
    for name, tables in effects.items():
        each = [judge.rank_correlation(t, e) for t, e in zip(tables, exact, strict=True)]
        yield Row("exact", name, 1, *judge.over_seeds(np.concatenate(each).tolist()), 0.0)
    if getattr(model, "gates", "soft") != "soft":
        smooth = replace(recipe, model=changed(model, gates="soft"))
        exact_too = {f"{METAGRADIENT}, soft gates": _metagradients(bench, smooth, seeds)}
        for test, share in REMOVALS.items():
            yield from _removals(bench, smooth, seeds, test, share, exact_too)


def changed(model: Settings, **values: Any) -> Settings:
    """The settings of a model with some changed, as far as it has them."""
    fields = type(model).model_fields
    return model.model_copy(update={name: value for name, value in values.items() if name in fields})


def _metagradients(bench: Bench, recipe: Recipe, seeds: Sequence[int]) -> list[Array]:
    return [metagradient(recipe, Change("", seed), bench.folder / "trainings").numpy() for seed in seeds]


def _removals(
    bench: Bench, recipe: Recipe, seeds: Sequence[int], test: str, share: float, tables: Mapping[str, list[Array]]
) -> Iterator[Row]:
    """Influences [B, Q] by each seed against real removals in the training of that seed."""
    factors = _without(len(recipe.events), share, bench.settings.removals, bench.settings.seed)
    changes = [Change(test, seed, factor=one) for seed in seeds for one in (torch.ones_like(factors[0]), *factors)]
    scores = np.stack([one.score for one in bench.train(recipe, changes, f"{test} removed")]).astype(np.float64)
    by_seed = scores.reshape(len(seeds), 1 + len(factors), -1)
    removed = 1 - factors.double().numpy()
    for name, influences in tables.items():
        found = [judge.lds(-removed @ one, s[1:] - s[0]) for one, s in zip(influences, by_seed, strict=True)]
        values, errors = zip(*found, strict=True)
        yield Row(test, name, 1, float(np.mean(values)), float(np.sqrt(np.square(errors).sum()) / len(errors)), 0.0)


def _without(num_events: int, share: float, number: int, seed: int) -> Float[Tensor, "S B"]:
    """Factors 0 for a random share of the events, or for one event."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.ones(number, num_events)
    for row in factors:
        row[torch.randperm(num_events, generator=generator)[: max(1, round(share * num_events))]] = 0
    return factors


# Hidden truths ----------------------------------------------------------------------------------------------------


def run_flips(bench: Bench) -> Iterator[Row]:
    """Wrong labels."""
    for share in bench.settings.flips:
        test = f"flips {100 * share:g} %"
        yield from _detection(bench, test, lambda seed, share=share: studies.flipped(bench.study.events, share, seed))  # type: ignore[misc]


def run_jes(bench: Bench) -> Iterator[Row]:
    """Background whose jets have a wrong energy."""
    share = bench.settings.hidden
    yield from _detection(bench, "jes", lambda seed: studies.miscalibrated(bench.study.events, share, seed))


def run_mass(bench: Bench) -> Iterator[Row]:
    """Signal of another mass point; nothing where there are no mass points."""
    pool, settings = bench.study.pool, bench.settings
    if pool is None or studies.wrong_mass(pool, settings.train_events, settings.hidden, settings.seed) is None:
        return

    def make(seed: int) -> Hidden:
        found = studies.wrong_mass(pool, settings.train_events, settings.hidden, seed)
        assert found is not None
        return found

    yield from _detection(bench, "mass", make)


def _detection(bench: Bench, test: str, make: Callable[[int], Hidden]) -> Iterator[Row]:
    """How well a number per training event finds what is hidden; each training has its own hidden events."""
    found: dict[str, list[dict[str, float]]] = {}
    truths = {seed: make(seed) for seed in bench.seeds}
    changes = [Change(f"{test}, seed {seed}", seed, events=truth.events) for seed, truth in truths.items()]
    for truth, task in zip(truths.values(), bench.tasks(bench.recipe, changes, test), strict=True):
        among = truth.among.numpy()
        values = {n: s.of_training(task).double().numpy() for n, s in bench.scores.items() if s.on_itself}
        values["event weight"] = task.weight.abs().double().numpy()
        mechanism = bench.study.mechanism
        if mechanism is not None and test.startswith("flips"):
            events = truth.events
            logit = mechanism.score(events.x, events.node_type, events.layout.slots).double()
            values["oracle"] = (-(2 * events.y - 1) * logit).numpy()
        for name, one in values.items():
            found.setdefault(name, []).append(_detected(truth.hidden.numpy()[among], one[among]))
    for name, each in found.items():
        more = {key: float(np.mean([one[key] for one in each])) for key in ("average_precision", "precision")}
        auroc = [one["auroc"] for one in each]
        better = None
        if LOSS in found and name != LOSS:
            better = judge.significance([a - b["auroc"] for a, b in zip(auroc, found[LOSS], strict=True)])
        yield Row(test, name, 1, *judge.over_seeds(auroc), 0.5, better, more)


def _detected(hidden: npt.NDArray[np.bool_], score: Array) -> dict[str, float]:
    return {
        "auroc": judge.auroc(hidden, score),
        "average_precision": judge.average_precision(hidden, score),
        "precision": judge.precision_at(hidden, score, int(hidden.sum())),
    }


def run_twin(bench: Bench) -> Iterator[Row]:
    """Near copies of queries: the copy should support its label more than any other event does."""
    queries = bench.study.queries[: bench.settings.twins]
    towards = (2 * queries.y - 1).double().numpy()
    found: dict[str, list[tuple[float, float]]] = {}
    planted = {seed: studies.with_twins(bench.study.events, queries, seed) for seed in bench.seeds}
    recipe = replace(bench.recipe, queries=queries)
    changes = [Change(f"twins, seed {seed}", seed, events=events) for seed, (events, _) in planted.items()]
    for (_, place), task in zip(planted.values(), bench.tasks(recipe, changes, "twins"), strict=True):
        for name, score in bench.scores.items():
            ranks = judge.reciprocal_rank(effect(score, task) * towards, place.numpy())
            found.setdefault(name, []).append((float(ranks.mean()), float((ranks > 1 / 10.5).mean())))
    num = len(bench.study.events)
    chance = float((1 / np.arange(1, num + 1)).mean())
    for name, each in found.items():
        more = {"in_first_10": float(np.mean([one[1] for one in each]))}
        yield Row("twin", name, 1, *judge.over_seeds([one[0] for one in each]), chance, None, more)


def run_mechanism(bench: Bench) -> Iterator[Row]:
    """The planted mechanism of the query, where there are several."""
    mechanism = bench.study.mechanism
    if mechanism is None or mechanism.branch is None:
        return
    slots = bench.study.events.layout.slots
    ours, theirs = (mechanism.branch(g.x, slots).numpy() for g in (bench.study.events, bench.study.queries))
    same = ours[:, None] == theirs[None]
    for name, effects in bench.effects.items():
        each = []
        for one in effects:
            first = np.argsort(-np.abs(one), axis=0, kind="stable")[:NEAREST]
            each.append(float(np.take_along_axis(same, first, axis=0).mean()))
        yield Row("mechanism", name, 1, *judge.over_seeds(each), float(same.mean()))


def run_brittle(bench: Bench) -> Iterator[Row]:
    """Decisions without the events that support them most, by the mean of all models."""
    settings, num = bench.settings, len(bench.study.events)
    before = np.mean(
        [
            one.score
            for one in bench.train(
                bench.recipe, [Change(f"seed {seed}", seed) for seed in bench.seeds], "train", settings.snapshots
            )
        ],
        0,
    )
    right = np.flatnonzero((before > 0) == (bench.study.queries.y.numpy() == 1))[: settings.brittle_queries]
    plan = []
    for name, effects in bench.effects.items():
        support = np.mean(effects, 0)[:, right] * np.sign(before[right])
        order = np.argsort(-support, axis=0, kind="stable")
        for share in settings.brittle:
            for column, query in enumerate(right):
                kept = np.sort(order[round(share * num) :, column])
                plan.append((name, share, query, Change(f"without support, {name}", 2000, torch.from_numpy(kept))))
    trained = bench.train(bench.recipe, [one[3] for one in plan], "brittleness")
    fall: dict[tuple[str, float], list[float]] = {}
    flips: dict[tuple[str, float], list[float]] = {}
    for (name, share, query, _), one in zip(plan, trained, strict=True):
        sign = np.sign(before[query])
        fall.setdefault((name, share), []).append(float(sign * (before[query] - one.score[query])))
        flips.setdefault((name, share), []).append(float(sign * one.score[query] < 0))
    for (name, share), values in fall.items():
        more = {"flipped": float(np.mean(flips[name, share]))}
        yield Row(f"brittle {100 * share:g} %", name, settings.models, *judge.over_seeds(values), None, None, more)


TRIALS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "lds": run_lds,
    "reference": run_reference,
    "flips": run_flips,
    "jes": run_jes,
    "mass": run_mass,
    "twin": run_twin,
    "mechanism": run_mechanism,
    "brittle": run_brittle,
}
"""Name -> test, for each of TESTS."""
