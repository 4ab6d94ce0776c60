"""Change one thing inside a network and see what it does: a copy of the model with a part spliced, never the model.

A splice lets the arguments of a submodule pass through a function first. Returning them unchanged changes nothing,
exactly; keeping them is how states that no `Trace` holds are read. What a change does is measured on the same events
before and after, with Poisson-bootstrap replicas common to both, so that most of the statistical error cancels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hepx import metrics
from hepx.expression import condition
from hepx.graph import GraphBatch
from hepx.models import Model, Output, batches, predict
from hepx.models.layers import MixtureOfExperts, SelfAttention
from hepx.models.particle_transformer import ParticleAttentionBlock
from hepx.results_network import Effect

Array = npt.NDArray[Any]
Change = Callable[..., tuple[Any, ...]]
REPLICAS = 100
EFFICIENCY = 0.7  # share of the signal kept by the cut at which significances are compared
EVERYWHERE = "all events"


# Splicing ---------------------------------------------------------------------------------------------------------


class _Spliced(nn.Module):
    def __init__(self, inner: nn.Module, change: Change) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *arguments: Any) -> Any:
        return self.inner(*self.change(*arguments))


def spliced(model: Model, changes: Mapping[str, Change]) -> Model:
    """A copy of the model in which the arguments of the named submodules pass through a function first."""
    changed = copy.deepcopy(model).eval()
    for name in sorted(changes, key=lambda name: -name.count(".")):  # inner ones first: a splice adds to the path
        parent, _, last = name.rpartition(".")
        setattr(changed.get_submodule(parent), last, _Spliced(changed.get_submodule(name), changes[name]))
    return changed


class Recorder:
    """Runs a model and keeps the arguments that the named submodules were called with, in `kept`."""

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        self.kept: dict[str, tuple[Any, ...]] = {}
        self.model = spliced(model, {name: self._keep(name) for name in names})

    def _keep(self, name: str) -> Change:
        def keep(*arguments: Any) -> tuple[Any, ...]:
            self.kept[name] = arguments
            return arguments

        return keep

    @torch.no_grad()
    def runs(self, graphs: GraphBatch, batch_size: int = 2048) -> Iterator[tuple[GraphBatch, Output]]:
        """Batches on the model's device with their outputs; `kept` holds the arguments of the batch at hand."""
        device = next(self.model.parameters()).device
        for batch in (part.to(device) for part in batches(graphs, batch_size)):
            yield batch, self.model(batch.x, batch.mask, batch.node_type)


def attention_names(model: Model) -> list[str]:
    """Names of the submodules that let the nodes attend to each other, in layer order."""
    return [n for n, module in model.named_modules() if isinstance(module, SelfAttention | ParticleAttentionBlock)]


def mixture_names(model: Model) -> list[str]:
    """Names of the mixtures of experts, in layer order."""
    return [name for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)]


def mixtures(model: Model) -> list[MixtureOfExperts]:
    """The mixtures of experts, in layer order."""
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


# Measuring --------------------------------------------------------------------------------------------------------


def balanced_weight(graphs: GraphBatch) -> Array:
    """Signed weights [B] with which every process has the same total, 1; a process of no positive total has none.

    Tables and information would else speak of the most abundant process only.
    """
    weight, sample = graphs.weight.double().numpy(), graphs.sample.numpy()
    totals = np.bincount(sample, weight, len(graphs.layout.samples))
    scale = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
    return weight * scale[sample]


def regions_of(graphs: GraphBatch, regions: Mapping[str, str]) -> dict[str, Array]:
    """Name -> mask [B] of the events inside each region: those given, and the observables that are 0 or 1 only.

    Without regions of either kind: events with and without each object that not all events have.
    """
    layout = graphs.layout
    values = {name: graphs.observables[:, i].numpy() for i, name in enumerate(layout.observables)}
    found = {
        name: np.broadcast_to(condition(t, values, f"region '{name}'"), len(graphs)) for name, t in regions.items()
    }
    for name, value in values.items():
        if name not in found and not name.startswith("n_") and np.isin(value, (0.0, 1.0)).all():
            found[name] = value == 1
    for slot, name in enumerate(layout.slots) if not found else ():
        present = graphs.mask[:, slot].numpy()
        found |= {f"with {name}": present, f"without {name}": ~present}
    return {name: mask for name, mask in found.items() if mask.any() and not mask.all()}


def auc_replicas(y: Array, score: Array, draws: Array) -> Array:
    """AUC [R] with each row of weights [R, B]: `metrics.bootstrap_auc` for many replicas at once; NaN where a replica
    has no signal or no background."""
    order = np.argsort(-score, kind="stable")
    ordered, w = score[order], draws[:, order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    signal, background = (np.cumsum(w * (y[order] == label), axis=1)[:, last] for label in (1, 0))
    first = np.zeros((len(draws), 1))
    signal, background = (np.concatenate([first, part], axis=1) for part in (signal, background))
    total = signal[:, -1] * background[:, -1]
    good = (signal[:, -1] > 0) & (background[:, -1] > 0)
    return np.divide(np.trapezoid(signal, background, axis=1), total, out=np.full(len(draws), np.nan), where=good)


def significances(y: Array, score: Array, yields: Array, uncertainty: float) -> Array:
    """Asimov significance [R] above the cut that keeps 70 % of the signal, for each row of yields [R, B]; NaN where
    that leaves no background. uncertainty: of the background, relative."""
    order = np.argsort(-score, kind="stable")
    w, signal = yields[:, order], y[order] == 1
    s, b = np.cumsum(w * signal, axis=1), np.cumsum(w * ~signal, axis=1)
    cut = np.argmax(s >= EFFICIENCY * s[:, -1:], axis=1)
    rows = np.arange(len(w))
    return metrics.asimov_significance(s[rows, cut], b[rows, cut], uncertainty * b[rows, cut])


@dataclass(frozen=True)
class Referee:
    """Judges changed models on one set of events against the model as it is.

    model, target: whose score of which class; graphs: the events; regions: name -> mask [B], each compared with the
    events outside it. Every background process is judged too, against all signal. yields [B]: expected events each
    event stands for, None: no significances; uncertainty: of the background, relative.
    """

    model: Model
    graphs: GraphBatch
    target: int
    seed: int
    regions: Mapping[str, Array] = field(default_factory=dict)
    yields: Array | None = None
    uncertainty: float = 0.0
    y: Array = field(init=False)
    weight: Array = field(init=False)
    counts: Array = field(init=False)
    draws: Array = field(init=False)
    reference: Array = field(init=False)
    _cache: dict[str, tuple[float, Array]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        y = (self.graphs.y == self.target).numpy().astype(np.int64)
        weight = self.graphs.weight.double().numpy()
        counts = np.random.default_rng(self.seed).poisson(1.0, (REPLICAS, len(y)))
        values = {"y": y, "weight": weight, "counts": counts, "draws": weight * counts}
        values["reference"] = self.score(self.model)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def score(self, model: Model) -> Array:
        """Scores [B] of a model."""
        return predict(model, self.graphs, self.target).double().numpy()

    def processes(self) -> dict[str, Array]:
        """Background process -> mask [B] of its events and all signal."""
        sample = self.graphs.sample.numpy()
        only = {name: sample == i for i, name in enumerate(self.graphs.layout.samples)}
        kept = {n: m for n, m in only.items() if m.any() and (self.y[m] == 0).all()}
        return {name: mask | (self.y == 1) for name, mask in kept.items()} if len(kept) > 1 else {}

    def auc(self, score: Array, mask: Array | None = None) -> tuple[float, Array]:
        """AUC and its replicas [R] on the events in `mask`; NaN where it is not defined there."""
        y, weight, draws = self.y, self.weight, self.draws
        if mask is not None:
            y, weight, draws, score = y[mask], weight[mask], draws[:, mask], score[mask]
        if weight[y == 1].sum() <= 0 or weight[y == 0].sum() <= 0:
            return float("nan"), np.full(len(draws), np.nan)
        return metrics.auc(y, score, weight), auc_replicas(y, score, draws)

    def change(self, scores: Sequence[Array], where: str, mask: Array | None) -> tuple[float, Array]:
        """Mean ΔAUC of the changed scores and its replicas [R]."""
        if where not in self._cache:
            self._cache[where] = self.auc(self.reference, mask)
        before, replicas = self._cache[where]
        after = [self.auc(score, mask) for score in scores]
        return float(np.mean([a - before for a, _ in after])), np.mean([r - replicas for _, r in after], axis=0)

    def change_of_significance(
        self, scores: Sequence[Array], where: str, mask: Array | None
    ) -> dict[str, float | None]:
        """Mean change of the Asimov significance, and its paired bootstrap error, as fields of an `Effect`."""
        if self.yields is None:
            return {}
        chosen = np.ones(len(self.y), dtype=bool) if mask is None else mask
        counts = np.concatenate([np.ones((1, len(self.y))), self.counts])[:, chosen]

        def judged(score: Array) -> Array:
            assert self.yields is not None
            return significances(self.y[chosen], score[chosen], self.yields[chosen] * counts, self.uncertainty)

        key = f"significance {where}"
        if key not in self._cache:
            self._cache[key] = (0.0, judged(self.reference))
        changes = np.mean([judged(score) - self._cache[key][1] for score in scores], axis=0)
        return {"delta_z": _finite(changes[0]), "delta_z_error": spread(changes[1:])}

    def overall(self, scores: Sequence[Array]) -> tuple[float | None, float | None]:
        """Mean ΔAUC of the changed scores in all events, and its error."""
        delta, replicas = self.change(scores, EVERYWHERE, None)
        return _finite(delta), spread(replicas)

    def everywhere(self, kind: str, layer: int, index: int, scores: Sequence[Array]) -> list[Effect]:
        """What a change does in all events, and nowhere else."""
        return [Effect(kind, layer, index, EVERYWHERE, *self.overall(scores))]

    def effects(self, kind: str, layer: int, index: int, scores: Sequence[Array]) -> list[Effect]:
        """What a change (or the mean of several) does: in all events, to each background process, in each region."""
        found = []
        for where, mask in {EVERYWHERE: None, **self.processes()}.items():
            delta, replicas = self.change(scores, where, mask)
            significance = self.change_of_significance(scores, where, mask)
            found.append(Effect(kind, layer, index, where, _finite(delta), spread(replicas), **significance))
        for where, mask in self.regions.items():
            inside, outside = (self.change(scores, name, m) for name, m in ((where, mask), (f"not {where}", ~mask)))
            chosen = [_selectivity(inside[0], outside[0]), spread(_selectivity(inside[1], outside[1]))]
            values = (_finite(inside[0]), spread(inside[1]), _finite(outside[0]), spread(outside[1]))
            significance = self.change_of_significance(scores, where, mask)
            found.append(Effect(kind, layer, index, where, *values, _finite(chosen[0]), chosen[1], **significance))
        return found


def _selectivity(inside: Any, outside: Any) -> Any:
    """(Δ inside − Δ outside) / (|Δ inside| + |Δ outside|) of the AUC lost: 1 if it is lost inside only."""
    lost, kept = -np.asarray(inside), -np.asarray(outside)
    total = np.abs(lost) + np.abs(kept)
    return np.divide(lost - kept, total, out=np.zeros_like(total, dtype=np.float64), where=total > 0)


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def spread(replicas: Array) -> float | None:
    """Standard deviation of bootstrap replicas; None if half of them or more are undefined."""
    good = replicas[np.isfinite(replicas)]
    return float(good.std()) if 2 * len(good) > len(replicas) else None


# Changes used by more than one analysis ---------------------------------------------------------------------------


def separated(mixture: MixtureOfExperts) -> MixtureOfExperts:
    """The mixture with one set of weights per expert, in place: shared experts are written out X times."""
    if len(mixture.w1) < mixture.num_experts:
        for name in ("w1", "b1", "w2", "b2"):
            tensor: Tensor = getattr(mixture, name).detach()
            copies = tensor.expand(mixture.num_experts, *tensor.shape[1:]).clone()
            setattr(mixture, name, nn.Parameter(copies))
    return mixture
