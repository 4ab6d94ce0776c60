"""What the node states hold, layer by layer: what a linear probe reads off them, what the classifier loses when that is
erased, what sparse directions they are made of, and how far the answer has come (logit lens).

Layer 0 is the embedded inputs; layer l the states after l layers. A probe reads; only an erasure intervenes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hepx.graph import NODE_TYPES, GraphBatch
from hepx.interventions import Recorder, Referee, balanced_weight, spliced, spread
from hepx.models import Model
from hepx.nulls import Null
from hepx.probes import halves, probe, targets
from hepx.progress import track
from hepx.representation.dictionary import Rows, dictionaries
from hepx.representation.erasure import concept, erased, fit_eraser
from hepx.representation.sparsity import critical_sparsity
from hepx.results import Provenance
from hepx.results_network import Dictionary, Erasure, Lens, Probe, Representation, finite

__all__ = ["erase", "representation", "stream"]

Array = npt.NDArray[Any]
ERASED = ("mbb", "mt", "mct", "met_significance")
"""Observables whose erasure is tried, as far as the events have them."""
ACTIVE = 8  # coefficients per state of a dictionary


def representation(
    model: Model, nulls: Sequence[Null], referee: Referee, provenance: Provenance
) -> Representation | None:
    """All analyses of the node states on the referee's events; None for a model without node states.

    nulls: null networks, at least one of them untrained; the first of each kind is looked into.
    """
    if not model.stream_names():
        return None
    others = {null.kind: replace(referee, model=null.model) for null in reversed(nulls)}
    referees = {"trained": referee} | {kind: others[kind] for kind in ("untrained", "shuffled") if kind in others}
    states = {name: stream(one.model, referee.graphs) for name, one in referees.items()}
    return Representation(
        probes=_probes(states["trained"], states["untrained"], referee),
        erasures=_erasures(model, states["trained"], referee),
        dictionaries=[row for name in states for row in _dictionaries(states[name], name, referee)],
        sparsity=[row for n, one in referees.items() for row in critical_sparsity(one.model, one, n, n == "trained")],
        lens=_lens(referees),
        provenance=provenance,
    )


def stream(model: Model, graphs: GraphBatch) -> Array:
    """Node states before every layer and after the last [L + 1, B, N, D]; 0 for absent objects."""
    recorder = Recorder(model, model.stream_names())
    parts = []
    for batch, _ in recorder.runs(graphs):
        states = torch.stack([recorder.kept[name][0] for name in model.stream_names()])
        parts.append((states * batch.mask[..., None]).cpu())
    return torch.cat(parts, 1).numpy()


def _probes(states: Array, null: Array, referee: Referee) -> list[Probe]:
    """Every observable from every layer and node type, beside the untrained network's states and the control task."""
    graphs, seed = referee.graphs, referee.seed
    weight, fitted, wanted = balanced_weight(graphs), halves(graphs, seed), targets(graphs)
    kinds = sorted({NODE_TYPES.index(name) for name in graphs.layout.types})
    found = []
    for layer, kind in track([(i, k) for i in range(len(states)) for k in kinds], "probes", len(states) * len(kinds)):
        event, slot = np.nonzero(graphs.mask.numpy() & (graphs.node_type.numpy() == kind))
        targets_here = {name: values[event] for name, values in wanted.items()}
        rows = (targets_here, weight[event], fitted[event], event, seed)
        scores, nulls = (probe(part[layer, event, slot].astype(np.float64), *rows) for part in (states, null))
        found += [
            Probe(layer, NODE_TYPES[kind], name, s.value, s.error, s.control, nulls[name].value)
            for name, s in scores.items()
            if name in nulls
        ]
    return found


def _erasures(model: Model, states: Array, referee: Referee) -> list[Erasure]:
    """Each observable erased from all nodes at each layer, and the same with its values permuted."""
    known = targets(referee.graphs)
    weight, rng = balanced_weight(referee.graphs), np.random.default_rng([referee.seed, 13])
    names = [name for name in ERASED if name in known]
    tried = [(layer, name) for layer in range(len(states)) for name in names]
    found = []
    for layer, name in track(tried, "erasures", len(tried)):
        there = np.isfinite(known[name])
        permuted = known[name].copy()
        permuted[there] = rng.permutation(permuted[there])
        delta, error, rank = erase(model, states[layer], known[name], weight, layer, referee)
        control = erase(model, states[layer], permuted, weight, layer, referee)[:2]
        readable = _readability(states[layer], known[name], weight, referee)
        found.append(Erasure(layer, name, rank, delta, error, *control, *readable))
    return found


def erase(
    model: Model, states: Array, values: Array, weight: Array, layer: int, referee: Referee
) -> tuple[float | None, float | None, int]:
    """ΔAUC, its error, and the largest rank, when an observable is erased from every slot at one layer."""
    mask, erasers = referee.graphs.mask.numpy(), {}
    for slot in range(mask.shape[1]):
        rows = mask[:, slot] & np.isfinite(values)
        if rows.sum() > states.shape[-1]:
            erasers[slot] = fit_eraser(states[rows, slot].astype(np.float64), concept(values[rows]), weight[rows])
    changed = erased(model, model.stream_names()[layer], erasers)
    return *referee.overall([referee.score(changed)]), max((one.rank for one in erasers.values()), default=0)


def _readability(states: Array, wanted: Array, weight: Array, referee: Referee) -> tuple[float | None, ...]:
    """R² of a probe of all nodes side by side on held-out events and its error, before and after an erasure fitted on
    the others; None where there are too few events."""
    flat, fitted = states.reshape(len(states), -1).astype(np.float64), halves(referee.graphs, referee.seed)
    event = np.arange(len(flat))
    rows = fitted & np.isfinite(wanted)
    before = probe(flat, {"it": wanted}, weight, fitted, event, referee.seed)
    if "it" not in before or rows.sum() <= flat.shape[1]:
        return (None,) * 4
    eraser = fit_eraser(flat[rows], concept(wanted[rows]), weight[rows])
    after = probe(eraser(flat), {"it": wanted}, weight, fitted, event, referee.seed)
    return before["it"].value, before["it"].error, after["it"].value, after["it"].error


def _dictionaries(states: Array, network: str, referee: Referee) -> list[Dictionary]:
    """One comparison per layer after the first, on the states of all present nodes."""
    graphs = referee.graphs
    event, slot = np.nonzero(graphs.mask.numpy())
    wanted = {name: values[event] for name, values in targets(graphs).items() if name in ERASED}
    fitted, weight = halves(graphs, referee.seed)[event], balanced_weight(graphs)[event]
    rows, found = Rows(weight, referee.counts[:, event], fitted, slot, wanted), []
    for layer in track(range(1, len(states)), f"dictionaries, {network}", len(states) - 1):
        here = states[layer, event, slot].astype(np.float64)
        found += dictionaries(here, rows, network, layer, ACTIVE, referee.seed)
    return found


def _lens(referees: Mapping[str, Referee]) -> list[Lens]:
    """AUC when the last reader gets the states of an earlier layer, of the trained and of null networks."""
    found = []
    for layer in range(len(referees["trained"].model.stream_names())):
        numbers: list[float | None] = []
        for name in ("trained", "untrained", "shuffled"):
            if referee := referees.get(name):
                auc, replicas = referee.auc(referee.score(early_exit(referee.model, layer)))
            numbers += [*finite(np.array([auc])), spread(replicas)] if referee else [None, None]
        found.append(Lens(layer, *numbers))
    return found


def early_exit(model: Model, layer: int) -> Model:
    """A copy whose reader of the last states gets those before `layer` instead; the last one changes nothing."""
    names, kept = model.stream_names(), {}

    def keep(h: Tensor, *rest: Any) -> tuple[Any, ...]:
        kept["h"] = h
        return h, *rest

    def replay(h: Tensor, *rest: Any) -> tuple[Any, ...]:
        del h
        return kept["h"], *rest

    if layer == len(names) - 1:
        return model
    return spliced(model, {names[layer]: keep, names[-1]: replay})
