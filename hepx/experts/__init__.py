"""What the experts of a mixture do: who is sent to whom, beside null networks; and what it costs to take them away.

Type-specialised routing needs no learning, because the node type is an input of the router (arXiv:2604.09780), so a
table without its null says nothing, and a verdict needs the interventions too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hepx import metrics
from hepx.experts import changes, routing
from hepx.experts.information import mutual_information
from hepx.experts.surrogate import surrogate
from hepx.experts.verdict import Facts, needed, verdict
from hepx.graph import NODE_TYPES, GraphBatch
from hepx.interventions import Referee, balanced_weight, mixture_names, mixtures
from hepx.models import Model
from hepx.nulls import Null
from hepx.probes import halves, probe, targets
from hepx.results import Provenance
from hepx.results_network import Carries, Effect, ExpertReport, Probe

__all__ = ["expert_report", "mutual_information"]

Array = npt.NDArray[Any]


def expert_report(model: Model, nulls: Sequence[Null], referee: Referee, provenance: Provenance) -> ExpertReport | None:
    """Tables, information and interventions on the referee's events; None for a model without experts.

    nulls: null networks, at least one of them untrained.
    """
    if not mixture_names(model):
        return None
    graphs, seed = referee.graphs, referee.seed
    gates, null_gates = routing.gates_of(model, graphs), [routing.gates_of(null.model, graphs) for null in nulls]
    kinds = [null.kind for null in nulls]
    beside = [null_gates[kinds.index(kind)] if kind in kinds else None for kind in ("untrained", "shuffled")]
    found = routing.variables(graphs, referee.reference, referee.regions)
    load = routing.load_of(gates, graphs)
    together, chance = routing.coactivation(gates, graphs)
    information = routing.information_table(found, gates, null_gates, graphs, seed)
    answers, event, node_gates = changes.outputs(model, graphs)
    null_answers, _, _ = changes.outputs(nulls[kinds.index("untrained")].model, graphs)
    weight = balanced_weight(graphs)[event]
    effects, knocked = changes.interventions(model, referee, _mean_outputs(answers, node_gates, weight))
    carries = _carries(referee, effects, knocked)
    similar = [changes.similarity(part, weight) for part in answers]
    distinct = [changes.distinct(mixture) for mixture in mixtures(model)]
    null_auc = max(abs(metrics.auc(referee.y, referee.score(null.model), referee.weight) - 0.5) for null in nulls)
    auc = metrics.auc(referee.y, referee.reference, referee.weight)
    smallest = [float(part.min()) for part in similar]
    return ExpertReport(
        routing=routing.per_process(gates, found[0], graphs).tolist(),
        routing_null=routing.per_process(null_gates[kinds.index("untrained")], found[0], graphs).tolist(),
        tables=[routing.routing_table(variable, (gates, beside[0], beside[1]), graphs) for variable in found],
        load=load.tolist(),
        load_entropy=routing.load_entropy(load),
        dead=routing.dead_experts(load),
        coactivation=together.tolist(),
        coactivation_chance=chance.tolist(),
        similarity=[part.tolist() for part in similar],
        similarity_null=[changes.similarity(part, weight).tolist() for part in null_answers],
        information=information,
        effects=effects,
        carries=carries,
        probes=_probes(answers, null_answers, node_gates, event, graphs, seed),
        surrogates=surrogate(gates, graphs, halves(graphs, seed), seed),
        distinct_experts=distinct,
        null_kinds=kinds,
        node_types=[NODE_TYPES[i] for i in sorted({NODE_TYPES.index(name) for name in graphs.layout.types})],
        sample_names=list(graphs.layout.samples),
        verdict=verdict(Facts(distinct, smallest, information, effects, carries, auc, null_auc)),
        provenance=provenance,
    )


def _mean_outputs(answers: Sequence[Array], gates: Sequence[Array], weight: Array) -> torch.Tensor:
    """Mean output of each expert over the nodes that use it [L, X, D], weighted with gate and |w|; over all nodes
    where nobody uses it."""
    means = []
    for answer, gate in zip(answers, gates, strict=True):
        w = np.abs(weight)[:, None] * gate
        w = np.where(w.sum(0) > 0, w, np.abs(weight)[:, None])
        means.append(np.einsum("nx,nxd->xd", w / w.sum(0), answer))
    return torch.from_numpy(np.stack(means))


def _carries(referee: Referee, effects: Sequence[Effect], knocked: Sequence[Array]) -> list[Carries]:
    """What every needed expert carries, in the region where it is needed."""
    order = list(dict.fromkeys((e.layer, e.index) for e in effects if e.kind == "knock_out"))
    wanted = needed(effects)
    scores = [knocked[order.index((effect.layer, effect.index))] for effect in wanted]
    return changes.carried(referee, wanted, scores, targets(referee.graphs))


def _probes(
    answers: Sequence[Array],
    null_answers: Sequence[Array],
    gates: Sequence[Array],
    event: Array,
    graphs: GraphBatch,
    seed: int,
) -> list[Probe]:
    """Linear probes of what each expert answers, on the nodes that use it; null: the untrained expert, same nodes."""
    wanted = {name: values[event] for name, values in targets(graphs).items()}
    weight, fitted = balanced_weight(graphs)[event], halves(graphs, seed)[event]
    found = []
    for layer, (answer, null) in enumerate(zip(answers, null_answers, strict=True)):
        for expert in range(answer.shape[1]):
            used = gates[layer][:, expert] > 0
            rows = (
                {name: values[used] for name, values in wanted.items()},
                weight[used],
                fitted[used],
                event[used],
                seed,
            )
            scores, nulls = (probe(part[used, expert].astype(np.float64), *rows) for part in (answer, null))
            found += [
                Probe(layer, f"expert {expert + 1}", name, s.value, s.error, s.control, nulls[name].value)
                for name, s in scores.items()
                if name in nulls
            ]
    return found
