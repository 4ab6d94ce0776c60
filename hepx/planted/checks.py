"""Facts that must hold besides the table of the methods: negative controls have learned nothing, a suppressor gets
weight although it tells nothing; experts, node states and error bands are what they are known to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace

import numpy as np
from scipy.special import stdtrit

from hepx import metrics
from hepx.attribution import Subject, explain
from hepx.attribution.shapley import Shapley
from hepx.graph import RAW_FEATURES, GraphBatch
from hepx.models import predict
from hepx.nulls import Null
from hepx.planted import experts, states, systematics
from hepx.planted.bayes import Gate
from hepx.planted.cases import CONTROLS, Case, trained
from hepx.planted.events import plant
from hepx.planted.judge import EXACT, Check, Criterion, Measures, measure, missed
from hepx.planted.observations import OBSERVATIONS
from hepx.results import Array, Explanation, Provenance

IGNORANT = 8  # untrained networks: how far from ½ is the AUC of a network that has learned nothing?
CHANCE = 0.01  # that a control fails although all is well, for each fact
UNIFORM = 2.0  # standard deviations from chance of the relevance mass of a network that has learned nothing
ABOVE_CHANCE = 0.25  # relevance mass of a network that has learned nothing, beyond the share of the true objects
MOST = 3000  # events in which experts are looked at
WEIGHT = Criterion(0.10)  # of a suppressor
NORMAL = 2.576  # standard deviations of a 99 % interval

Ask = Callable[[], list[Check]]


def checks_of(case: Case, gate: Gate | None, rows: Mapping[str, Measures]) -> Iterator[tuple[str, Ask]]:
    """Names of the facts that this case has to be asked for, and how to ask. rows: method -> its measures."""
    if case.network in CONTROLS and gate is not None:
        yield "control", lambda: list(control_checks(case, gate, rows))
    if case.network != "trained":
        return
    if case.mechanism.shortcut:
        yield "shortcut", lambda: [shortcut_check(case, rows), *shortcut_costs(case)]
    if case.mechanism.suppressor:
        yield "suppressor", lambda: list(suppressor_checks(case))
    for name, known in experts.EXPERT_CASES.items():
        if known.mechanism == case.name:
            yield f"experts-{name}", lambda name=name: _of_experts(case, name)  # type: ignore[misc]
    if case.name in states.VARIABLES:
        yield "states", lambda: _of_states(case)
    if case.name == systematics.MECHANISM:
        yield "systematics", lambda: _of_systematics(case)


def asked(case: Case, name: str, ask: Ask) -> list[Check]:
    """The facts, from the folder of the case if they are there already."""
    return [Check(**values) for values in case.kept(f"check-{name}", lambda: [asdict(check) for check in ask()])]


def control_checks(case: Case, gate: Gate, rows: Mapping[str, Measures]) -> Iterator[Check]:
    """Nothing was learned: of labels shuffled alike; of the mechanism; and the attributions do not know the truth."""
    level, name = case.mechanism.level, f"{case.name}, {case.network}"
    test = case.events[1]
    if case.network == "shuffled":
        score = predict(case.model, test).double().numpy()
        auc, error = _auc(test.y.numpy(), score, test.weight.double().numpy(), case.settings.seed)
        yield _half(level, name, "AUC of other events with labels shuffled alike", auc, error, NORMAL)
    what = f"AUC with the labels of the mechanism; error: rms distance from ½ of {IGNORANT} untrained networks"
    yield _half(level, name, what, gate.auc, gate.error, float(stdtrit(IGNORANT, 1 - CHANCE / 2)))
    judged = {method: measures for method, measures in rows.items() if method not in OBSERVATIONS}
    passing = [method for method, measures in judged.items() if missed(method, measures) == []]
    what = "methods that meet every criterion although there is nothing to find"
    none = Criterion(0.0, at_least=False)
    yield Check(level, name, "control", what, float(len(passing)), None, str(none), not passing, ", ".join(passing))
    if "shapley" in rows and rows["shapley"].mass is not None:
        bound = Criterion(round(_chance(case, test) + ABOVE_CHANCE, 3), at_least=False)
        value = rows["shapley"].mass
        what = f"relevance mass of the exact Shapley values: at most the share of the true objects + {ABOVE_CHANCE:g}"
        yield Check(level, name, "shapley", what, value, None, str(bound), bound.met(value))
        if case.network == "shuffled":
            yield _uniform(case, name, value)


def _chance(case: Case, graphs: GraphBatch) -> float:
    """Mean share of the true objects."""
    share = (case.mechanism.relevant(graphs).sum(1) / graphs.mask.sum(1)).double().numpy()
    return metrics.weighted_mean(share, graphs.weight.double().numpy())[0]


def _uniform(case: Case, name: str, value: float) -> Check:
    """The relevance mass is that of attributions which are spread evenly, as far as networks that have learned nothing
    have it: they differ by far more than the statistics of the events."""
    off, chance = [], _chance(case, case.subject(case.model, case.settings.explained).graphs)
    for model in case.fresh_networks(IGNORANT):
        subject = case.subject(model, case.settings.explained)
        found = _shapley(case, subject)
        mass = measure(case.mechanism, subject.graphs, found, found, found)[0].mass
        assert mass is not None
        off.append(mass - chance)
    error = float(np.sqrt(np.mean(np.square(off))))
    what = f"the same at chance; error: rms distance from chance of {IGNORANT} untrained networks"
    text = f"their mean {chance + np.mean(off):.3f} ± {np.std(off, ddof=1) / IGNORANT**0.5:.3f}"
    asked, passed = f"{chance:.3f} within {UNIFORM:g} σ", abs(value - chance) <= UNIFORM * error
    return Check(case.mechanism.level, name, "shapley", what, value, error, asked, passed, text)


def _shapley(case: Case, subject: Subject) -> Explanation:
    provenance = Provenance("shapley", {}, "", "", "", case.settings.seed, "", "", "cpu")
    found = explain(Shapley(draws=case.settings.draws), subject, provenance)
    assert isinstance(found, Explanation)
    return found


def _half(level: int, case: str, what: str, auc: float, error: float, limit: float) -> Check:
    return Check(level, case, "control", what, auc, error, f"½ within {limit:.1f} σ", abs(auc - 0.5) <= limit * error)


def _auc(y: Array, score: Array, weight: Array, seed: int) -> tuple[float, float]:
    return metrics.auc(y, score, weight), float(metrics.bootstrap_auc(y, score, weight, 200, seed).std())


def shortcut_check(case: Case, rows: Mapping[str, Measures]) -> Check:
    """The leak is reported as a shortcut: the exact methods, of all that explain features, have it as the strongest."""
    found = {name: measures.shortcut for name, measures in rows.items() if measures.shortcut is not None}
    blind = [name for name, value in found.items() if value < 1]
    share = 1 - len(blind) / len(found) if found else None
    what = f"{case.mechanism.shortcut} is a shortcut: share of the methods that have it as the strongest feature"
    passed = bool(found) and not set(blind) & set(EXACT)
    text = f"not {', '.join(blind)}" if blind else ""
    return Check(
        case.mechanism.level, case.name, "shortcut", what, share, None, "the exact ones", passed, text.replace("_", " ")
    )


def shortcut_costs(case: Case) -> Iterator[Check]:
    """The shortcut pays where it leaks, and costs where it does not: the same test events with the same labels but
    without the leak are classified worse, and worse than by a score that never relied on it. Errors from replicas of
    the events that both AUCs share."""
    mechanism, seed = case.mechanism, case.settings.seed
    events = {"with": case.events[1], "without": plant(case.base.test, replace(mechanism, leak=None), seed + 2)}
    y, weight = events["without"].y.numpy(), events["without"].weight.double().numpy()
    scores = {where: predict(case.model, graphs) for where, graphs in events.items()}
    scores |= {f"best {where}": predict(case.bayes, graphs) for where, graphs in events.items()}
    scores["honest"] = mechanism.drawn(events["without"])
    numbers = {name: score.double().numpy() for name, score in scores.items()}
    auc = {name: metrics.auc(y, score, weight) for name, score in numbers.items()}
    replicas = {name: metrics.bootstrap_auc(y, score, weight, 200, seed) for name, score in numbers.items()}
    text = ", ".join(f"{name} {value:.3f}" for name, value in auc.items())
    worth = "AUC that the shortcut is worth: of the test events with the leak, minus of the same events without it"
    cost = "AUC that it costs where nothing leaks: of the best score without it (honest), minus of the network"
    for what, one, other, said in ((worth, "with", "without", text), (cost, "honest", "without", "")):
        gap, error = auc[one] - auc[other], float((replicas[one] - replicas[other]).std())
        asked, passed = f"> {NORMAL:.1f} σ", gap > NORMAL * error
        yield Check(mechanism.level, case.name, "shortcut", what, gap, error, asked, passed, said)


def suppressor_checks(case: Case) -> Iterator[Check]:
    """A suppressor tells nothing of the class by itself (so its class-conditional association, and the pattern of Haufe
    et al. 2014, is none), but the best classifier needs it: Shapley values give it weight (arXiv:2111.07473)."""
    slot, _, feature = case.mechanism.suppressor.partition(".")
    test, index = case.events[1], case.base.test.layout.slots.index(slot)
    present = test[test.mask[:, index]]
    values = present.x[:, index, list(RAW_FEATURES).index(feature)].double().numpy()
    auc, error = _auc(present.y.numpy(), values, present.weight.double().numpy(), case.settings.seed)
    name = case.mechanism.suppressor
    yield replace(
        _half(case.mechanism.level, case.name, f"{name} alone: AUC with the class", auc, error, NORMAL),
        analysis="association",
    )
    number = min(len(present), case.settings.explained)
    subject = replace(case.subject(case.model, 1), graphs=present[:number])
    size, weight = np.abs(_shapley(case, subject).values), subject.graphs.weight.double().numpy()
    share, error = metrics.weighted_mean(size[:, index] / size.sum(1), weight)
    what = f"{slot}: share of Σ|φ| in events that have it"
    yield Check(case.mechanism.level, case.name, "shapley", what, share, error, str(WEIGHT), WEIGHT.met(share))


def _of_experts(case: Case, name: str) -> list[Check]:
    setting = experts.Setting(
        graphs=case.events[1][:MOST],
        trained=case.model,
        untrained=[case.fresh, *case.fresh_networks(3)],
        shuffled=case.beside("shuffled").model,
        seed=case.settings.seed,
    )
    return experts.expert_checks(name, setting)


def _of_states(case: Case) -> list[Check]:
    graphs = case.events[1][:MOST]
    ignorant = [Null("untrained", model) for model in (case.fresh, *case.fresh_networks(3))]
    if case.mechanism.controls:
        ignorant.append(Null("shuffled", case.beside("shuffled").model))
    score = case.mechanism.score(graphs.x, graphs.node_type, graphs.layout.slots).double().numpy()
    setting = states.Setting(case.name, graphs, score, case.model, ignorant, case.settings.seed)
    return list(states.state_checks(setting))


def _of_systematics(case: Case) -> list[Check]:
    train, settings = case.events[0], case.settings
    networks = []
    for i in range(1, systematics.NETWORKS + 1):
        sample = systematics.bootstrap_sample(train, settings.seed + i)
        folder = case.folder / f"bootstrap-{i}"
        networks.append(trained(sample, settings, 1.0, settings.seed + i, folder))
    subject = case.subject(case.model, settings.explained)
    truth = case.mechanism.relevant(subject.graphs).numpy()
    return list(systematics.systematics_checks(networks, case.bayes, subject, truth, settings.draws))
