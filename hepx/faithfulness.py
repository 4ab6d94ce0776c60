"""Does an explanation of a real run say what the network does? Measures that need no truth, for every method alike.

All of them look at objects: features are summed over the nodes of an object. The worth v(S) of a set of objects is the
mean score when all others are replaced by those of background events (donors of the same objects, as in
`hepx.attribution.shapley`), so nothing is judged on events that no detector sees. From one table of all sets follow:

* order: objects put in (insertion) and taken out (deletion) by falling value; the mean difference of the two curves
  between the ends, divided by that of the best of all orders. 1: the best order; 0: a random one (RISE,
  arXiv:1806.07421, normalised).
* infidelity: E_S[(Σ_S φ − (v(N) − v(N∖S)))²] over all sets S, divided by E_S[(v(N) − v(N∖S))²]: 0 is perfect, 1 is what
  zeros get (arXiv:1901.09392). Interactions leave a floor.
* faithfulness correlation: of Σ_S φ with v(N) − v(N∖S) over all sets S (arXiv:2005.00631).
* fidelity⁺, fidelity⁻: share of events whose decision changes without, or with nothing but, the two objects that speak
  most for it; characterization = 2 / (1/fid⁺ + 1/(1 − fid⁻)) (arXiv:2206.09677).
* unfaithfulness: 1 − exp(−KL(p(v(N)) ‖ p(v(top two)))) (arXiv:2208.09339).
* completeness: root mean square |Σφ − (score − baseline score)| over that of score − baseline score.
* sensitivity: largest ‖φ(x + r) − φ(x)‖ / ‖φ(x)‖ over a few shifts r drawn from the detector resolution of jets and
  leptons, E_T^miss following them (max-sensitivity, arXiv:1901.09392).
* likeness: mean over events of the rank correlation of |φ| of the objects: with other donors, an untrained network, one
  trained on shuffled labels (arXiv:1810.03292), other seeds of the training, and between methods. A few objects
  correlate by chance: the mean of a random ranking is 0, not the value of a single event.

Every mean takes the event weights with their signs; errors are a bootstrap of the events.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hepx import attribution, files, metrics, random
from hepx.attribution import Method, Subject
from hepx.attribution.baselines import Pattern, per_pattern, replacements
from hepx.attribution.coalitions import coalitions, worths
from hepx.attribution.shapley import Shapley
from hepx.errors import ResultError
from hepx.graph import NODE_TYPES, GraphBatch
from hepx.kinematics import jet_resolution, lepton_resolution
from hepx.metrics import probability
from hepx.models import Model
from hepx.models.inputs import ETA, MASS, PHI, PT
from hepx.progress import track
from hepx.results import Explanation, Provenance

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
MOST_SLOTS = 12  # 2¹² sets of objects per event and donor
REPLICAS = 100
TOP = 2  # objects: the mechanisms of interest are pairs
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Game:
    """Worth of every set of objects: worth [B, 2^N], set s holds slot i if bit i of s is set; absent ones add nothing.

    present [B, N]: slots where an object stands first. The last set is the event itself, set 0 all donors.
    """

    worth: Array
    present: Array

    @property
    def members(self) -> Array:
        """[2^N, N]: which slots each set holds."""
        slots = self.present.shape[1]
        return (np.arange(2**slots)[:, None] >> np.arange(slots)) % 2 == 1

    @property
    def drop(self) -> Array:
        """v(N) − v(N∖S) of every set S [B, 2^N]."""
        return self.worth[:, -1:] - self.worth[:, ::-1]


def play(subject: Subject, draws: int) -> Game:
    """The worth of all sets of objects, mean over `draws` donors; ResultError if there are too many slots."""
    slots = subject.graphs.mask.shape[1]
    if slots > MOST_SLOTS:
        raise ResultError(f"{slots} objects have 2^{slots} sets; at most {MOST_SLOTS} can be validated.")
    method = Shapley(draws=draws)
    every = (torch.arange(2**slots)[:, None] >> torch.arange(slots)) % 2

    def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
        donors = replacements(method, pattern, events, subject.seed, aligned=False)
        kept = coalitions(pattern.num_players)[:, pattern.player.clamp(min=0)] & (pattern.player >= 0)
        worth = worths(subject.model, events, donors, kept[..., None], subject.target).mean(1)
        index = (every[:, pattern.first_slot] * 2 ** torch.arange(pattern.num_players)).sum(1)
        return {"worth": worth[:, index]}

    found = per_pattern(method, subject, lambda pattern: 2**pattern.num_players * draws, compute)
    return Game(found["worth"], first_slots(subject.graphs))


def first_slots(graphs: GraphBatch) -> Array:
    """Mask [B, N] of the slots where an object stands first (a second node of the same object is an alias)."""
    objects = graphs.object_index.numpy()
    first = (objects[:, :, None] == objects[:, None, :]).argmax(-1)
    return (first == np.arange(objects.shape[1])) & graphs.mask.numpy()


def of_objects(explanation: Explanation) -> Array:
    """Attribution of each object [B, N], at the slot where it stands first: features and aliases summed."""
    values, objects = explanation.values, explanation.events.object_index
    if values.ndim == 3:
        values = values.sum(2)
    first = (objects[:, :, None] == objects[:, None, :]).argmax(-1)
    return (values[:, :, None] * (first[:, :, None] == np.arange(objects.shape[1]))).sum(1)


# One number per event ----------------------------------------------------------------------------------------------


def curves(game: Game, phi: Array) -> tuple[Array, Array]:
    """Score [B, N + 1] as the objects with the largest values are put in (insertion) and taken out (deletion), in turn:
    from all donors to the event, and back. Absent objects come last and change nothing."""
    order = np.argsort(-np.where(game.present, phi, -np.inf), axis=1, kind="stable")
    sets = np.pad(np.cumsum(2**order, axis=1), ((0, 0), (1, 0)))
    whole = 2 ** phi.shape[1] - 1
    return np.take_along_axis(game.worth, sets, 1), np.take_along_axis(game.worth, whole - sets, 1)


def order_gap(game: Game, phi: Array) -> Array:
    """Insertion minus deletion curve [B], mean over the steps between the ends, logit."""
    number, (insertion, deletion) = game.present.sum(1), curves(game, phi)
    inner = (np.arange(phi.shape[1] + 1) > 0) & (np.arange(phi.shape[1] + 1) < number[:, None])
    return ((insertion - deletion) * inner).sum(1) / np.maximum(number - 1, 1)


def mean_curves(game: Game, phi: Array, weight: Array) -> dict[str, list[dict[str, float | None]]]:
    """Weighted mean of both curves and its error where these SHARES of an event's objects are in, or out; linear in
    between."""
    place = np.array(SHARES) * game.present.sum(1)[:, None]
    below = np.minimum(place.astype(int), phi.shape[1] - 1)
    found = {}
    for name, curve in zip(("insertion", "deletion"), curves(game, phi), strict=True):
        start, end = (np.take_along_axis(curve, below + step, 1) for step in (0, 1))
        found[name] = [mean(column, weight) for column in (start + (place - below) * (end - start)).T]
    return found


def best_gap(game: Game) -> Array:
    """The largest `order_gap` of any order [B]: the best chain of sets, by dynamic programming over the sets."""
    gain, slots = game.worth - game.worth[:, ::-1], game.present.shape[1]
    best = np.full_like(gain, -np.inf)
    best[:, 0] = 0
    for number in range(1, 2**slots):
        steps = [i for i in range(slots) if number >> i & 1]
        before = [np.where(game.present[:, i], best[:, number ^ 1 << i], -np.inf) for i in steps]
        best[:, number] = np.max(before, axis=0) + gain[:, number]
    whole = (game.present * 2 ** np.arange(slots)).sum(1)
    last = np.take_along_axis(best, whole[:, None], 1)[:, 0]
    return (last - gain[:, -1]) / np.maximum(game.present.sum(1) - 1, 1)


def infidelity(game: Game, phi: Array) -> Array:
    """Mean over all sets of (Σ_S φ − (v(N) − v(N∖S)))² [B], logit²; sets that differ in absent slots count as often."""
    return ((phi @ game.members.T - game.drop) ** 2).mean(1)


def set_correlation(game: Game, phi: Array) -> Array:
    """Pearson correlation over all sets of Σ_S φ with v(N) − v(N∖S) [B]; NaN where one of them does not vary."""
    return _correlation(phi @ game.members.T, game.drop, np.ones_like(game.drop))


def top_objects(game: Game, phi: Array) -> tuple[Array, Array]:
    """Score without and with nothing but the objects that speak most for the decision, [B] each."""
    slots, sign = phi.shape[1], np.sign(game.worth[:, -1:])
    order = np.argsort(-np.where(game.present, phi * sign, -np.inf), axis=1, kind="stable")[:, :TOP]
    chosen = (2**order).sum(1)[:, None]
    without = np.take_along_axis(game.worth, 2**slots - 1 - chosen, 1)[:, 0]
    return without, np.take_along_axis(game.worth, chosen, 1)[:, 0]


def unfaithfulness(score: Array, kept: Array) -> Array:
    """1 − exp(−KL(p ‖ q)) [B] of the class probabilities of two scores; 0 is best."""
    p, q = probability(score), probability(kept)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(a > 0, a * np.log(a / b), 0.0) for a, b in ((p, q), (1 - p, 1 - q))]
    return -np.expm1(-np.maximum(terms[0] + terms[1], 0.0))


def likeness(first: Array, second: Array, present: Array) -> Array:
    """Spearman correlation of |φ| of the objects of each event [B]; NaN with fewer than two or without differences."""
    return _correlation(_ranks(np.abs(first), present), _ranks(np.abs(second), present), present)


def _ranks(values: Array, present: Array) -> Array:
    """Rank of each value among the present ones of its event; equal values share the mean of their ranks."""
    below = values[:, None, :] < values[:, :, None]
    equal = values[:, None, :] == values[:, :, None]
    return ((below + 0.5 * equal) * present[:, None, :]).sum(2)


def _correlation(a: Array, b: Array, use: Array) -> Array:
    """Pearson correlation along the last axis, of the entries in use."""
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (v - (v * use).sum(-1, keepdims=True) / use.sum(-1, keepdims=True) for v in (a, b))
        product, squares = (a * b * use).sum(-1), (a**2 * use).sum(-1) * (b**2 * use).sum(-1)
        return np.where(squares > 1e-24, product / np.sqrt(squares), np.nan)


# The whole sample --------------------------------------------------------------------------------------------------


def mean(top: Array, weight: Array, bottom: Array | float = 1.0, root: bool = False) -> dict[str, float | None]:
    """Weighted mean of `top` over that of `bottom` (or its root), with its error from a bootstrap of the events.

    Events without a value (NaN) are left out; signs of weights are kept. None where the sum in the denominator is ≤ 0.
    """
    known = np.isfinite(top)
    w, upper, lower = weight[known], top[known], np.broadcast_to(bottom, top.shape)[known]
    counts = np.stack([np.ones(len(w)), *metrics.poisson_counts(len(w), REPLICAS, 0)])
    numerator, denominator = (counts * w) @ upper, (counts * w) @ lower
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(denominator > 0, numerator / denominator, np.nan)
        found = np.sqrt(found) if root else found
    return {"value": _number(found[0]), "error": metrics.spread(found[1:])}


def characterization(necessary: float, enough: float) -> float:
    """Harmonic mean of fidelity⁺ and 1 − fidelity⁻ (arXiv:2206.09677); 0 if either is 0."""
    parts = (necessary, 1 - enough)
    return 2 / sum(1 / part for part in parts) if min(parts) > 0 else 0.0


def measure(game: Game, phi: Array, weight: Array) -> dict[str, Any]:
    """What the table of worths says of attributions φ [B, N]: name -> value and error."""
    score = game.worth[:, -1]
    without, kept = top_objects(game, phi)
    changed = [((np.sign(other) != np.sign(score)) * 1.0) for other in (without, kept)]
    necessary, enough = (mean(one, weight) for one in changed)
    both = necessary["value"], enough["value"]
    return {
        "order": mean(order_gap(game, phi), weight, best_gap(game)),
        "infidelity": mean(infidelity(game, phi), weight, (game.drop**2).mean(1)),
        "correlation": mean(set_correlation(game, phi), weight),
        "fidelity_plus": necessary,
        "fidelity_minus": enough,
        "characterization": None if None in both else characterization(float(both[0] or 0), float(both[1] or 0)),
        "unfaithfulness": mean(unfaithfulness(score, kept), weight),
        "curves": mean_curves(game, phi, weight),
    }


def smeared(graphs: GraphBatch, seed: int, number: int) -> GraphBatch:
    """The events measured once more: pt (and mass) of jets and leptons shifted by a Gaussian of their resolution.

    E_T^miss takes the opposite of what the objects gain; its significance and all directions but its own stay.
    """
    x, mask = graphs.x.double().numpy().copy(), graphs.mask.numpy()
    ids, slots = graphs.event_id.numpy(), mask.shape[1]
    kinds = np.array(NODE_TYPES)[graphs.node_type.numpy()]
    uniform = random.uniform(seed, ids, f"smear{number}", 2 * slots).reshape(len(ids), 2, slots)
    gauss = np.sqrt(-2 * np.log1p(-uniform[:, 0])) * np.cos(2 * np.pi * uniform[:, 1])
    objects = graphs.object_index.numpy()
    gauss = np.take_along_axis(gauss, (objects[:, :, None] == objects[:, None, :]).argmax(-1), 1)  # aliases move as one
    pt = np.where(mask, x[..., PT], 1.0)
    width = np.where(kinds == "lepton", lepton_resolution(11, pt * np.cosh(x[..., ETA]), pt), jet_resolution(pt))
    moved = mask & (kinds != "met")
    factor = np.where(moved, np.maximum(1 + width * gauss, 0.1), 1.0)
    gained = np.where(moved & first_slots(graphs), x[..., PT] * (factor - 1), 0.0)
    shift = [(gained * function(x[..., PHI])).sum(1, keepdims=True) for function in (np.cos, np.sin)]
    met = mask & (kinds == "met")
    px, py = (x[..., PT] * function(x[..., PHI]) - one for function, one in zip((np.cos, np.sin), shift, strict=True))
    x[..., PT] = np.where(met, np.hypot(px, py), x[..., PT] * factor)
    x[..., PHI] = np.where(met, np.arctan2(py, px), x[..., PHI])
    x[..., MASS] *= factor
    return replace(graphs, x=torch.from_numpy(x).to(graphs.x.dtype))


def sensitivity(phi: Array, shifted: Sequence[Array]) -> tuple[Array, Array]:
    """Largest ‖φ(x + r) − φ(x)‖ over the shifts [B], and ‖φ(x)‖ [B]."""
    changes = [np.linalg.norm(other - phi, axis=1) for other in shifted]
    return np.max(changes, axis=0), np.linalg.norm(phi, axis=1)


@dataclass(frozen=True)
class Judged:
    """What is said of one method, and its attributions of the objects [B, N]; row None: it has none."""

    row: dict[str, Any] | None
    values: Array


@dataclass(frozen=True)
class Kept:
    """A folder where each method is kept once it is judged, so that a stopped `validate` goes on; by default none.

    key: names the networks, the events and everything else but the method that a judgement depends on.
    """

    folder: Path | None = None
    key: str = ""

    def load(self, name: str, method: Method) -> Judged | None:
        """What was kept of this method with this key; None if there is nothing."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        found = files.read_json(path)
        return Judged(found["row"], np.array(found["values"])) if found["key"] == self._key(method) else None

    def save(self, name: str, method: Method, judged: Judged) -> None:
        """Keep it, if there is a folder."""
        path = self._path(name)
        if path is not None:
            values = {"key": self._key(method), "row": judged.row, "values": judged.values.tolist()}
            files.write_json(path, values)

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.json"

    def _key(self, method: Method) -> str:
        return files.digest([self.key, method.model_dump(mode="json")])


def _judge(
    method: Method,
    subject: Subject,
    provenance: Callable[[Method], Provenance],
    game: Game,
    networks: Mapping[str, Sequence[Model]],
    regions: Mapping[str, Array],
    shifts: int,
) -> Judged:
    """All measures of one method."""

    # a network that has learned nothing need not add up: what that says of the method is in its own row
    forced = method.model_copy(update={"force": True}) if "force" in type(method).model_fields else method

    def phi(changed: Subject) -> Array:
        found = attribution.explain(forced, changed, provenance(forced))
        assert isinstance(found, Explanation)  # as the first one of the method was
        return of_objects(found)

    whole = attribution.explain(method, subject, provenance(method)) if method.per_event else None
    if not isinstance(whole, Explanation):
        return Judged(None, np.zeros(0))
    own, weight = of_objects(whole), subject.graphs.weight.numpy()
    others = {kind: [phi(replace(subject, model=one)) for one in models] for kind, models in networks.items()}
    others["donors"] = [phi(replace(subject, seed=subject.seed + 1))]
    repeats = [phi(replace(subject, graphs=smeared(subject.graphs, subject.seed, i))) for i in range(shifts)]
    change, size = sensitivity(own, repeats)
    row = measure(game, own, weight) | {
        "completeness": _completeness(whole, weight),
        "sensitivity": mean(np.where(size > 0, change / np.where(size > 0, size, 1), np.nan), weight),
        "likeness": {kind: _likeness(own, found, game, weight) for kind, found in others.items()},
        "spread": {kind: _spread(own, others[kind], weight) for kind in ("donors", "seeds")},
        "means": _means([own, *others["seeds"]], subject.graphs, regions) if networks["seeds"] else [],
    }
    return Judged(row, own)


def _completeness(found: Explanation, weight: Array) -> dict[str, float | None] | None:
    """Weighted root mean square of what is missing, over that of score − baseline score; None where nothing adds up."""
    if found.completeness_error is None or found.baseline_score is None:
        return None
    return mean(found.completeness_error**2, weight, (found.score - found.baseline_score) ** 2, root=True)


def validate(
    methods: Mapping[str, Method],
    subject: Subject,
    provenance: Callable[[Method], Provenance],
    shuffled: Sequence[Model] = (),
    seeds: Sequence[Model] = (),
    regions: Mapping[str, Array] | None = None,
    draws: int = 16,
    shifts: int = 3,
    kept: Kept | None = None,
) -> dict[str, Any]:
    """All measures of all methods on the events of the subject, beside those of random values; JSON-able.

    shuffled: networks trained on shuffled labels; seeds: networks of other seeds of the training; regions: name -> mask
    [B], where the spread of the means over the seeds is given; kept: where what is judged is kept. Methods that do not
    attribute the score of an event to objects or features are left out. ResultError if none is left.
    """
    weight, kept = subject.graphs.weight.numpy(), kept or Kept()
    game, networks = play(subject, draws), {"untrained": [subject.untrained], "shuffled": shuffled, "seeds": seeds}
    rows, values = {}, {}
    for name, method in track(methods.items(), "validate", len(methods)):
        judged = kept.load(name, method)
        if judged is None:
            judged = _judge(method, subject, provenance, game, networks, regions or {}, shifts)
            kept.save(name, method, judged)
        if judged.row is None:
            log.info("%s attributes no score to single objects or their features: left out", name)
        else:
            rows[name], values[name] = judged.row, judged.values
    if not rows:
        raise ResultError(
            "no method of this run attributes the score to objects or features; add one: --method shapley"
        )
    noise = np.random.default_rng(subject.seed).normal(size=game.present.shape) * game.present
    names = list(values)
    agreement = [[mean(likeness(values[a], values[b], game.present), weight)["value"] for b in names] for a in names]
    found = {"methods": rows, "random": measure(game, noise, weight), "agreement": agreement}
    return {"events": len(weight), "shares": list(SHARES), **found}


def _likeness(own: Array, others: Sequence[Array], game: Game, weight: Array) -> dict[str, float | None] | None:
    if not others:
        return None
    with np.errstate(invalid="ignore"):
        return mean(np.mean([likeness(own, other, game.present) for other in others], axis=0), weight)


def _spread(own: Array, others: Sequence[Array], weight: Array) -> float | None:
    """Root mean square spread of an object's attribution over repeats, relative to its root mean square size."""
    if not others:
        return None
    variance = np.var([own, *others], axis=0, ddof=1).sum(1)
    return mean(variance, weight, (own**2).sum(1), root=True)["value"]


def _means(values: Sequence[Array], graphs: GraphBatch, regions: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Weighted mean attribution of each object in each process and region, over the networks of all seeds, and `seed`,
    the spread of those of the single networks: the error that the choice of one of them has."""
    layout, weight, rows = graphs.layout, graphs.weight.numpy(), []
    for where, mask in regions.items():
        for number, sample in enumerate(layout.samples):
            chosen = mask & (graphs.sample.numpy() == number)
            if weight[chosen].sum() <= 0:
                continue
            found = np.array([weight[chosen] @ phi[chosen] / weight[chosen].sum() for phi in values])
            for slot, mean_of, spread in zip(layout.slots, found.mean(0), found.std(0, ddof=1), strict=True):
                about = {"sample": sample, "object": slot, "where": where}
                rows.append({**about, "mean": float(mean_of), "seed": float(spread)})
    return rows


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


COLUMNS = ("order", "infidelity", "correlation", "fidelity_plus", "fidelity_minus", "unfaithfulness", "sensitivity")

LEGEND = (
    "on {} test events; ratios and shares, without unit; ± bootstrap of the events; – where it has no meaning",
    "order: of the objects by their values, 1 the best, 0 a random one; infidelity: 0 perfect, 1 as bad as zeros",
    "correlation: of sums of attributions with the change of the score, 1 is best; unfaithfulness: 0 is best",
    "fidelity plus (minus): share of events whose decision changes without (with only) the two strongest objects",
    "sensitivity: largest relative change of the values within the detector resolution, 0 is best",
)


def lines(found: Mapping[str, Any]) -> list[str]:
    """The measures as a table for a terminal, a method per line, random values last."""
    rows = {**found["methods"], "random values": found["random"]}
    head = f"{'':24s}" + "".join(f"{name.replace('_', ' '):>16s}" for name in COLUMNS)
    return [
        head,
        *(f"{name:24s}" + "".join(f"{_cell(row.get(key)):>16s}" for key in COLUMNS) for name, row in rows.items()),
        *(line.format(found["events"]) for line in LEGEND),
    ]


def _cell(measured: Mapping[str, float | None] | None) -> str:
    if measured is None or measured["value"] is None:
        return "–"
    error = "" if measured["error"] is None else f" ± {measured['error']:.2f}"
    return f"{measured['value']:.2f}{error}"
