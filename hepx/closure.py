"""Physics closure: do network and gradient-boosted trees on the observables use the same physics, and who knows more?

* information: AUC of the network, of the trees, and of trees that are also given the network's score. Where both
  together are no better than one of them, the other has nothing to add.
* variables: exact Shapley values of the observables (`hepx.trees`) in the trees, and in trees that imitate the
  network's score (as in arXiv:2010.11998, which maps a network to observables); the share of the variance of the score
  that they imitate is quoted, the rest of the network is not in the observables.
* objects and pairs: the Shapley game of the objects, played with the trees too. The observables follow the objects that
  are replaced, donors and angles are those of the network's explanation, so the values of an event can be compared
  one by one. Jets that are no nodes stay the event's.
* means: the mean attribution of each object in each process, in regions and under systematic variations.

Shares are of the mean size of the values with signed weights, both classes of equal weight. The null of a ranking are
shuffled players and an untrained network. Fitted on training events, stopped on validation events, judged on test.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from hepx import metrics, trees
from hepx.attribution import Subject, background_events
from hepx.attribution.baselines import Pattern, per_pattern, replacements
from hepx.attribution.coalitions import coalitions, interaction_weights, shapley_weights, values_of
from hepx.attribution.players import object_kinds
from hepx.attribution.shapley import Shapley, scatter
from hepx.config import Settings
from hepx.evaluate import Splits, fit_trees, labels, observable_table
from hepx.faithfulness import likeness
from hepx.graph import NODE_TYPES, GraphBatch
from hepx.interventions import EVERYWHERE, regions_of
from hepx.kinematics import HIGH_LEVEL
from hepx.metrics import weighted_mean
from hepx.models import predict
from hepx.models.inputs import PT
from hepx.models.tables import node_observables
from hepx.progress import progress
from hepx.results import Explanation, Provenance
from hepx.results_closure import Closure, Fidelity, MeanAttribution, Ranking, Separation, Usage
from hepx.train import training_weights
from hepx.trees import Trees

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
REPLICAS = 200
NULL_EVENTS, NULL_DRAWS = 50, 8  # of the untrained network, whose shares need no precision
FEWEST = 5  # events of a mean; with fewer its error is unknown


class ClosureSettings(Settings):
    """Network beside trees (if evaluate.trees): `events` explained test events, `draws` background events that replace
    their observables. regions: name -> expression, where mean attributions are given; default: those of insides."""

    events: int = Field(default=200, ge=20)
    draws: int = Field(default=32, ge=2)
    regions: dict[str, str] = Field(default={})


@dataclass(frozen=True)
class Game:
    """Shapley values of the objects [B, N] and interactions of their pairs [B, N, N]; the score of the events [B]."""

    values: Array
    interactions: Array
    score: Array

    def of(self, kind: str) -> Array:
        """The values of the objects, or of the pairs, [B, P]."""
        first, second = np.triu_indices(self.values.shape[1], 1)
        return self.values if kind == "object" else self.interactions[:, first, second]


def closure(
    subject: Subject,
    splits: Splits,
    explanations: Mapping[str, Explanation],
    settings: ClosureSettings,
    provenance: Provenance,
    with_trees: bool = True,
) -> Closure:
    """subject: of the network, with the test events. explanations: Shapley values of the objects by variation, ""
    without one; empty if the run has none."""
    nominal = explanations.get("")
    information: list[Separation] = []
    compared, number = _Compared([], [], []), 0
    if with_trees:
        with progress("network and trees", 4) as advance:
            scores = [predict(subject.model, g, subject.target).double().numpy() for g in _all(splits)]
            fitted = fit_trees(splits, [observable_table(g) for g in _all(splits)[:2]], subject.seed)
            information = separations(splits, scores, fitted, subject.seed)
            advance(2)
            chosen = replace(subject, graphs=_explained(splits.test, nominal, settings, subject.seed))
            if _has_both(chosen.graphs):
                number = len(chosen.graphs)
                compared = variables(chosen, splits, scores, fitted, settings.draws)
                advance(1)
                compared += objects(chosen, nominal, fitted) if nominal is not None else _Compared([], [], [])
            else:
                log.warning("network and trees: the explained events are of one class, so nothing is compared")
    means = [] if nominal is None else mean_attributions(splits.test, explanations, settings.regions)
    return Closure(information, compared.usage, compared.rankings, compared.fidelity, means, number, provenance)


def _all(splits: Splits) -> tuple[GraphBatch, GraphBatch, GraphBatch]:
    return splits.train, splits.validation, splits.test


def _explained(test: GraphBatch, nominal: Explanation | None, settings: ClosureSettings, seed: int) -> GraphBatch:
    """Test events that are compared, as many of each class: some of those that the network's explanation is about."""
    known = np.ones(len(test), dtype=bool)
    if nominal is not None:
        known = np.isin(test.event_id.numpy(), nominal.events.event_id)
    rng, y = np.random.default_rng(seed), labels(test)
    parts = [rng.permutation(np.flatnonzero(known & (y == k)))[: settings.events // 2] for k in (0, 1)]
    return test[torch.from_numpy(np.sort(np.concatenate(parts)))]


def _has_both(graphs: GraphBatch) -> bool:
    weight, y = graphs.weight.numpy(), labels(graphs)
    return all(weight[y == k].sum() > 0 for k in (0, 1))


# Information ------------------------------------------------------------------------------------------------------


def separations(splits: Splits, scores: Sequence[Array], fitted: Trees, seed: int) -> list[Separation]:
    """AUC of network, trees and both, and their differences; scores: of the network on training, validation, test."""
    tables = [np.column_stack([observable_table(g), s]) for g, s in zip(_all(splits), scores, strict=True)]
    both = fit_trees(splits, tables[:2], seed)
    found = {"network": scores[2], "trees": fitted.score(tables[2][:, :-1]), "both": both.score(tables[2])}
    y, weight = labels(splits.test), splits.test.weight.numpy()
    auc = {name: metrics.auc(y, score, weight) for name, score in found.items()}
    replicas = {name: metrics.bootstrap_auc(y, score, weight, REPLICAS) for name, score in found.items()}
    rows = [Separation(name, "", auc[name], float(replicas[name].std())) for name in found]
    for name, other in (("network", "trees"), ("both", "trees"), ("both", "network")):
        error = float((replicas[name] - replicas[other]).std())
        rows.append(Separation(name, other, auc[name] - auc[other], error))
    return rows


# Who uses what ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Compared:
    usage: list[Usage]
    rankings: list[Ranking]
    fidelity: list[Fidelity]

    def __add__(self, other: _Compared) -> _Compared:
        parts = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Compared(*(one + more for one, more in parts))


def variables(subject: Subject, splits: Splits, scores: Sequence[Array], fitted: Trees, num_donors: int) -> _Compared:
    """The observables in the trees, and in trees that imitate the scores of the network and of an untrained one."""
    untrained = [predict(subject.untrained, g, subject.target).double().numpy() for g in _all(splits)]
    own, donors = observable_table(subject.graphs), _background(splits.train, subject, num_donors)
    values, fidelity = {"trees": trees.shapley(fitted, own, donors)}, []
    for name, score in (("network", scores), ("untrained network", untrained)):
        imitation = _imitate(splits, score, subject.seed)
        answer = imitation.score(observable_table(splits.test))
        fidelity.append(_fidelity(f"trees that imitate the {name}", score[2], answer, splits.test))
        values[name] = trees.shapley(imitation, own, donors)
    null = _shares(values["untrained network"], _weight(subject.graphs)[None])[0]
    found = _compare("variable", HIGH_LEVEL, values["trees"], values["network"], null, subject.graphs)
    return found + _Compared([], [], fidelity)


def _imitate(splits: Splits, score: Sequence[Array], seed: int) -> Trees:
    """Trees on the observables that predict a score; every event counts the same."""
    train, validation = (
        trees.Table(observable_table(g), s, None) for g, s in zip(_all(splits)[:2], score[:2], strict=True)
    )
    return trees.fit(train, validation, seed, learning_rate=0.1)


def _background(train: GraphBatch, subject: Subject, number: int) -> Array:
    """Observables of background events [K, V], drawn with probability ∝ |weight|."""
    pool = background_events(train, subject.target)
    weight = pool.weight.abs().double().numpy()
    chosen = np.random.default_rng(subject.seed).choice(len(pool), number, p=weight / weight.sum())
    return observable_table(pool[torch.from_numpy(chosen)])


def objects(subject: Subject, nominal: Explanation, fitted: Trees) -> _Compared:
    """Objects and pairs in the network, whose explanation `nominal` is, in the trees, and in an untrained network."""
    method, graphs, slots = Shapley(**nominal.provenance.settings), subject.graphs, subject.graphs.layout.slots
    own = _game(nominal, _positions(nominal.events.event_id, graphs.event_id.numpy()))
    game = tree_game(fitted, subject, method)
    some = np.random.default_rng(subject.seed).permutation(len(graphs))[:NULL_EVENTS]
    few = replace(subject, model=subject.untrained, graphs=graphs[torch.from_numpy(some)])
    null = _game(method.model_copy(update={"draws": NULL_DRAWS}).explain(few, nominal.provenance))
    weight = _weight(graphs)[some]
    names = {"object": slots, "pair": [f"{one} {other}" for one, other in combinations(slots, 2)]}
    found = _Compared([], [], [])
    for kind in names:
        shares = _shares(null.of(kind)[:, None], weight[None])[0]
        found += _compare(kind, names[kind], game.of(kind)[:, None], own.of(kind)[:, None], shares, graphs)
    stored = fitted.score(observable_table(graphs))
    return found + _Compared([], [], [_fidelity("trees on observables of the nodes", stored, game.score, graphs)])


def _game(explanation: Explanation, place: Any = slice(None)) -> Game:
    """Some events of an explanation that has interactions."""
    assert explanation.interactions is not None
    return Game(explanation.values[place], explanation.interactions[place], explanation.score[place])


def tree_game(fitted: Trees, subject: Subject, method: Shapley) -> Game:
    """The game of `hepx.attribution.shapley` with the trees as classifier: same coalitions, same donors."""
    layout = subject.graphs.layout

    def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
        n, slots, kinds = pattern.num_players, pattern.first_slot, object_kinds(pattern, layout)
        donors = replacements(method, pattern, events, subject.seed, aligned=False)[:, :, slots]
        own = events.x[:, slots]
        mixed = torch.where(coalitions(n)[..., None], own[:, None, None], donors[:, :, None])
        rest = not_nodes(events, own.double().numpy(), kinds)
        rows = mixed.shape[1] * mixed.shape[2]
        table = event_observables(mixed.flatten(0, 2).double().numpy(), kinds, np.repeat(rest, rows, 0))
        worth = torch.from_numpy(fitted.score(table)).reshape(mixed.shape[:3])
        values, pairs = (values_of(worth, of(n)).mean(1) for of in (shapley_weights, interaction_weights))
        found = {"values": scatter(values, slots, events), "interactions": scatter(pairs, slots, events)}
        return {**found, "score": worth[:, 0, -1]}

    found = per_pattern(method, subject, lambda pattern: 2**pattern.num_players * method.num_draws, compute)
    return Game(**found)


def event_observables(x: Array, kinds: Sequence[str], rest: Array) -> Array:
    """Observables [R, 15] of events whose objects [R, P, F] are of these kinds, and of the jets beside them: `rest`
    [R, 2], their number and their sum of pt, GeV. NaN where an object is missing."""
    types = np.broadcast_to([NODE_TYPES.index(kind) for kind in kinds], x.shape[:2])
    found = node_observables(x, np.ones(x.shape[:2], dtype=bool), types)
    found[:, [HIGH_LEVEL.index(name) for name in ("n_jet", "ht")]] += rest
    return found


def not_nodes(events: GraphBatch, own: Array, kinds: Sequence[str]) -> Array:
    """Number and sum of pt [B, 2] of the jets of the events that are no nodes; own: their objects [B, P, F]."""
    jets = [i for i, kind in enumerate(kinds) if kind in ("jet", "bjet")]
    number, total = (events.observable(name).numpy() for name in ("n_jet", "ht"))
    return np.stack([number - len(jets), total - own[:, jets, PT].sum(1)], 1)


def _weight(graphs: GraphBatch) -> Array:
    """Signed weights [B], both classes of equal total."""
    return training_weights(graphs).double().numpy()


def _replicas(graphs: GraphBatch) -> Array:
    """These weights, and those of bootstrap replicas of the events [1 + R, B]."""
    counts = metrics.poisson_counts(len(graphs), REPLICAS, 0)
    return _weight(graphs) * np.stack([np.ones(len(graphs)), *counts])


def _fidelity(name: str, score: Array, other: Array, graphs: GraphBatch) -> Fidelity:
    """R² = 1 − Σw(score − other)² / Σw(score − mean)², and its error; 0 for a score that does not vary."""
    draws = _replicas(graphs)
    total = draws.sum(1)
    mean, square = (draws @ score) / total, (draws @ score**2) / total
    variance = square - mean**2
    missed = np.divide(
        draws @ (score - other) ** 2 / total, variance, out=np.full_like(mean, np.nan), where=variance > 0
    )
    return Fidelity(name, *_value_and_error(1 - missed))


def _compare(kind: str, names: Sequence[str], one: Array, other: Array, null: Array, graphs: GraphBatch) -> _Compared:
    """Values [B, K, P] of K draws each in trees and network, and the shares [P] of an untrained network; players that
    neither of the two uses are left out."""
    used = np.flatnonzero((one != 0).any((0, 1)) | (other != 0).any((0, 1)))
    if len(used) < 2:
        return _Compared([], [], [])
    one, other, null, draws = one[..., used], other[..., used], null[used], _replicas(graphs)
    first, second = _shares(one, draws), _shares(other, draws)
    alike = _correlations(_inside_classes(one.mean(1), graphs), _inside_classes(other.mean(1), graphs), draws)
    columns = zip(used.tolist(), first.T, second.T, null, alike.T, strict=True)
    usage = [
        Usage(kind, names[i], *_value_and_error(a), *_value_and_error(b), float(c), *_value_and_error(d))
        for i, a, b, c, d in columns
    ]
    return _Compared(usage, [_ranking(kind, first, second, null)], [])


def _value_and_error(replicas: Array) -> tuple[float, float]:
    """The first one, and the spread of the others; NaN becomes 0 ± 0: what does not vary is not alike."""
    value = float(replicas[0])
    return (value, float(np.nanstd(replicas[1:]))) if np.isfinite(value) else (0.0, 0.0)


def _shares(values: Array, draws: Array) -> Array:
    """Mean |value| of each player over the sum of all [1 + R, P], 0 where that is 0; replicas are of events, and of the
    draws that all events share."""
    number = values.shape[1]
    counts = np.random.default_rng(1).multinomial(number, np.full(number, 1 / number), len(draws) - 1)
    counts = np.concatenate([np.ones((1, number)), counts]) / number
    mean = np.stack([w @ np.abs(np.tensordot(c, values, (0, 1))) for w, c in zip(draws, counts, strict=True)])
    total = mean.sum(1, keepdims=True)
    return np.divide(mean, total, out=np.zeros_like(mean), where=total != 0)


def _inside_classes(values: Array, graphs: GraphBatch) -> Array:
    """Values [B, P] minus the weighted mean of their class: signal and background differ in everything."""
    weight, y = _weight(graphs), labels(graphs)
    mean = np.stack([weight[y == k] @ values[y == k] / weight[y == k].sum() for k in (0, 1)])
    return np.asarray(values - mean[y])


def _correlations(a: Array, b: Array, draws: Array) -> Array:
    """Weighted Pearson correlation over the events of each column of a and b [B, P], [1 + R, P]; NaN where constant."""
    total = draws.sum(1, keepdims=True)
    one, two, aa, bb, ab = (draws @ v / total for v in (a, b, a * a, b * b, a * b))
    squares = (aa - one**2) * (bb - two**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(squares > 1e-24, (ab - one * two) / np.sqrt(squares), np.nan)


def _ranking(kind: str, one: Array, other: Array, null: Array) -> Ranking:
    """Spearman's ρ of the shares [1 + R, P] of trees and network."""

    def rho(first: Array, second: Array) -> Array:
        first, second = np.broadcast_arrays(first, second)
        return likeness(first, second, np.ones_like(first, dtype=bool))

    shuffled = np.random.default_rng(2).permuted(np.repeat(one[:1], 5 * REPLICAS, 0), axis=1)
    chance = float(np.percentile(rho(shuffled, other[:1]), 95))
    return Ranking(kind, *_value_and_error(rho(one, other)), chance, float(np.nan_to_num(rho(one[:1], null)[0])))


# Mean attributions ------------------------------------------------------------------------------------------------


def wheres(graphs: GraphBatch, regions: Mapping[str, str]) -> dict[str, Array]:
    """Mask [B] of all events and of each region."""
    return {EVERYWHERE: np.ones(len(graphs), dtype=bool), **regions_of(graphs, regions)}


def mean_attributions(
    test: GraphBatch, explanations: Mapping[str, Explanation], regions: Mapping[str, str]
) -> list[MeanAttribution]:
    """Means of the nominal explanation in each process and region, and how the variations shift them."""
    nominal = explanations[""]
    masks = wheres(test[torch.from_numpy(_positions(test.event_id.numpy(), nominal.events.event_id))], regions)
    changes = [(name, *_matched(nominal, one)) for name, one in explanations.items() if name]
    rows = []
    for where, sample, chosen in _parts(masks, nominal):
        for i, slot in enumerate(nominal.events.slots):
            mean, error = weighted_mean(nominal.values[chosen, i], nominal.events.weight[chosen])
            shifts = {
                name: _shift(nominal, explanations[name], one[chosen[one]], other[chosen[one]], i)
                for name, one, other in changes
            }
            sizes = np.array([shift for shift, _ in shifts.values()])
            up, down = (float(np.sqrt((sizes[sign * sizes > 0] ** 2).sum())) for sign in (1, -1))
            rows.append(MeanAttribution(sample, slot, where, int(chosen.sum()), mean, error, shifts, up, down))
    return rows


def _parts(masks: Mapping[str, Array], nominal: Explanation) -> Iterator[tuple[str, str, Array]]:
    for where, mask in masks.items():
        for sample in nominal.events.sample_names:
            chosen = mask & nominal.events.of_sample(sample)
            if chosen.sum() >= FEWEST and nominal.events.weight[chosen].sum() > 0:
                yield where, sample, chosen


def _positions(ids: Array, wanted: Array) -> Array:
    """Where the wanted ids stand among `ids`."""
    order = np.argsort(ids)
    return np.asarray(order[np.searchsorted(ids, wanted, sorter=order)])


def _matched(nominal: Explanation, varied: Explanation) -> tuple[Array, Array]:
    """Positions of the events that both explain."""
    _, one, other = np.intersect1d(nominal.events.event_id, varied.events.event_id, return_indices=True)
    return one, other


def _shift(nominal: Explanation, varied: Explanation, one: Array, other: Array, slot: int) -> tuple[float, float]:
    """Change of the weighted mean over the same events and its error; (0, 0) where no event has both."""
    if not len(one):
        return 0.0, 0.0
    parts, means = [], []
    for explanation, index in ((nominal, one), (varied, other)):
        value, weight = explanation.values[index, slot], explanation.events.weight[index]
        means.append(float(weight @ value / weight.sum()))
        parts.append(weight * (value - means[-1]) / weight.sum())
    return means[1] - means[0], float(np.sqrt(((parts[1] - parts[0]) ** 2).sum()))
