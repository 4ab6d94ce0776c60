"""What the analyses of the network's inside write and the report reads: frozen, numpy only, saved without pickle.

Shape letters: L layers, H heads, X experts, N node slots, P samples (processes), T node types, R null networks, G rows
of a table, Q pair quantities. A null network is of the same settings: `untrained` (other initial weights), or
`shuffled` (trained on labels permuted among the events). What a null network shows too was not learned.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hepx import files
from hepx.errors import ResultError
from hepx.results import FORMAT, Provenance, load_npz, save_json, save_npz

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Effect:
    """What a change of the network does to the AUC (negative: worse), with its paired bootstrap error.

    kind: what was done, to part `index` (−1: all of them) of `layer`. where: all events, one background process
    against all signal, or a region; then `outside` is the change in the other events, and selectivity
    (Δ − Δ outside) / (|Δ| + |Δ outside|): 1 if AUC is lost in the region only. delta_z: change of the Asimov
    significance of the expected yields above the cut that keeps 70 % of the signal there. None where a number is not
    defined.
    """

    kind: str
    layer: int
    index: int
    where: str
    delta_auc: float | None
    error: float | None
    outside: float | None = None
    outside_error: float | None = None
    selectivity: float | None = None
    selectivity_error: float | None = None
    delta_z: float | None = None
    delta_z_error: float | None = None

    def significance(self) -> float:
        """AUC lost in units of its error; 0 where it is not defined."""
        return -self.delta_auc / self.error if self.delta_auc is not None and self.error else 0.0


@dataclass(frozen=True)
class AttentionMap:
    """Where the objects look. An observation, not an explanation; beside it null networks and interventions.

    Maps, weighted means over the events that have both objects: mean, error [P, L, H, N, N] (row looks at column);
    null, shuffled [P, L, H, N, N]: the same of one untrained and one shuffled network (NaN without one);
    value_norm [P, L, H, N, N]: mean length ‖A_ij W_o v_j‖ of what is carried (unit of the states); rollout
    [P, L, N, N]: attention through the layers up to this one; both with …_error, …_null and …_shuffled. num_events [P].

    Numbers per head [L, H], their nulls [R, L, H]: entropy H/ln n (1: looks everywhere alike) with its error, and
    slot_share: share of the variance of the weights that the slot pair alone explains (1: every event looks alike).

    Follows, [L, H, Q, N, N]: weighted rank correlation, inside slot pair and process, of the attention with pair
    quantities; correlation_error; correlation_null [R, Q]: the largest |correlation| in a null network.
    logit_shares [L, H, 4]: shares of the variance of the attention logit due to type × type, type × kinematics,
    kinematics × kinematics and pair bias (sum 1); their nulls [R, L, H, 4].

    sinks: rows of `Sink`; knock_out: effect of each head replaced by its mean output. sinks_null, knock_out_null [R]:
    the same rows of every null network, interventions (all events) in the first of each kind only: else no effect in a
    sink, and no rows. null_kinds [R]; null_auc [R].
    """

    mean: Array
    error: Array
    null: Array
    shuffled: Array
    value_norm: Array
    value_norm_error: Array
    value_norm_null: Array
    value_norm_shuffled: Array
    rollout: Array
    rollout_error: Array
    rollout_null: Array
    rollout_shuffled: Array
    num_events: Array
    entropy: Array
    entropy_error: Array
    entropy_null: Array
    slot_share: Array
    slot_share_null: Array
    quantities: tuple[str, ...]
    correlation: Array
    correlation_error: Array
    correlation_null: Array
    logit_parts: tuple[str, ...]
    logit_shares: Array
    logit_shares_null: Array
    sinks: tuple[Sink, ...]
    sinks_null: tuple[tuple[Sink, ...], ...]
    knock_out: tuple[Effect, ...]
    knock_out_null: tuple[tuple[Effect, ...], ...]
    null_kinds: tuple[str, ...]
    null_auc: Array
    slots: tuple[str, ...]
    sample_names: tuple[str, ...]
    provenance: Provenance

    def save(self, path: Path) -> None:
        """Write an .npz."""
        save_npz(self, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Inverse of `save`."""
        found = load_npz(cls, path)
        rows = {"sinks": Sink, "knock_out": Effect}
        tables = {name: tuple(kind(**row) for row in getattr(found, name)) for name, kind in rows.items()}
        nulls = {
            f"{name}_null": tuple(tuple(kind(**row) for row in one) for one in getattr(found, f"{name}_null"))
            for name, kind in rows.items()
        }
        return replace(found, **tables, **nulls)


@dataclass(frozen=True)
class Sink:
    """The column a head looks at most, and what it costs to hide it from this head.

    ratio: weighted mean of (attention received from another object) × (number of objects that one may look at): 1 is
    chance; share: weighted share of the events in which it exceeds 2; value_ratio: mean length of what the column
    carries over that of the other columns; is_sink: much looked at (share > 0.8) and little carried (value_ratio < 1).
    delta_auc: of hiding the column from the head, with its paired bootstrap error.
    """

    layer: int
    head: int
    slot: str
    ratio: float
    share: float
    value_ratio: float
    is_sink: bool
    delta_auc: float | None
    error: float | None


@dataclass(frozen=True)
class RoutingTable:
    """Mean gate of each expert [L, G, X] in the rows of a table, its error, and the same of null networks.

    by: what the rows are (type, slot, process, mass point, score, …); null: one untrained network; shuffled: one
    trained on shuffled labels, None without one.
    """

    by: str
    rows: list[str]
    gates: list[Any]
    error: list[Any]
    null: list[Any] | None
    shuffled: list[Any] | None


@dataclass(frozen=True)
class Information:
    """Mutual information of the expert choice of a layer and a variable, bit, corrected for finite statistics.

    about: the variable; given: what is fixed (`slot`, or nothing). nulls [R]: the same for every null network;
    null_limit: what another null network would exceed with 1 % probability, from the spread of these. excess: value −
    the largest null, with its 95 % bootstrap interval [low, high] (common replicas of the events).
    """

    layer: int
    about: str
    given: str
    value: float
    error: float
    nulls: list[float]
    null_limit: float
    excess: float
    low: float
    high: float


@dataclass(frozen=True)
class Probe:
    """R² of a linear probe on events it was not fitted on, and its controls.

    where: what the probe reads; observable: what it predicts (ln of it where the unit is GeV; `class`: AUC instead of
    R²); control: the same with the target permuted among the events (arXiv:1909.03368: a control task); null: the same
    on an untrained network, NaN as None.
    """

    layer: int
    where: str
    observable: str
    value: float
    error: float
    control: float
    null: float | None


@dataclass(frozen=True)
class Surrogate:
    """A decision tree of depth 3 that predicts the expert of each node from its kinematics.

    fidelity: weighted share of right predictions on events it was not fitted on; type_only: the same for a tree that
    sees the node type only; largest: share of the most used expert. rules: the tree in words.
    """

    layer: int
    fidelity: float
    error: float
    type_only: float
    largest: float
    rules: str


@dataclass(frozen=True)
class Carries:
    """What an expert adds to the score (score − score without it), and which observable it follows in a region.

    share: share of its variance that bins of the observable explain inside each process; error: bootstrap; null: 95th
    percentile with the observable shuffled inside each process; rivals: observables that cannot be told apart from it.
    """

    layer: int
    expert: int
    where: str
    observable: str
    share: float
    error: float
    null: float
    rivals: list[str]


@dataclass(frozen=True)
class ExpertReport:
    """What the experts do, each number beside its nulls.

    routing, routing_null [P, L, T, X]: mean gate of each expert for nodes of a type in a process (rows sum to 1) and
    in an untrained network; tables: the same by other variables. load [L, X]: share of all gates; load_entropy [L]:
    its entropy / ln X (1: all alike); dead: [layer, expert] of those with less than 1 % of an even share;
    coactivation [L, X, X]: share of the nodes that use both experts, and what two independent choices of this load
    would give; similarity, similarity_null [L, X, X]: linear CKA of the outputs on the same nodes (1: one network).
    distinct_experts [L]: number of experts with different weights. effects: knock_out (the next best takes over),
    mean_ablation (the output replaced by its mean), swap (experts permuted against their gates, mean over the cyclic
    shifts), forced (every node to this expert alone). verdict: what these numbers allow to say.
    """

    routing: list[Any]
    routing_null: list[Any]
    tables: list[RoutingTable]
    load: list[Any]
    load_entropy: list[float]
    dead: list[list[int]]
    coactivation: list[Any]
    coactivation_chance: list[Any]
    similarity: list[Any]
    similarity_null: list[Any]
    information: list[Information]
    effects: list[Effect]
    carries: list[Carries]
    probes: list[Probe]
    surrogates: list[Surrogate]
    distinct_experts: list[int]
    null_kinds: list[str]
    node_types: list[str]
    sample_names: list[str]
    verdict: str
    provenance: Provenance

    def save(self, path: Path) -> None:
        """Write JSON."""
        save_json(self, path)

    @classmethod
    def load_report(cls, path: Path) -> Self:
        """Inverse of `save`; ResultError if the file is of another kind or version."""
        return from_json(cls, path, _EXPERT_ROWS)

    def effect(self, kind: str, layer: int, index: int = -1, where: str = "all events") -> Effect:
        """One effect."""
        wanted = (kind, layer, index, where)
        return next(e for e in self.effects if (e.kind, e.layer, e.index, e.where) == wanted)


_EXPERT_ROWS: dict[str, type] = {
    "tables": RoutingTable,
    "information": Information,
    "effects": Effect,
    "carries": Carries,
    "probes": Probe,
    "surrogates": Surrogate,
}


@dataclass(frozen=True)
class Stability:
    """How alike the expert choices of a layer are in several trainings, mean over the pairs of runs.

    ari: adjusted Rand index of the first experts (1: the same up to a renaming, 0: chance), spread: its standard
    deviation over the pairs; within: ari inside each slot, where the type of the object cannot help, of those in which
    a router varies (None: in none); nmi: normalised mutual information; agreement: share of nodes with the same expert
    under the best renaming; null, null_within: ari and within of the untrained networks.
    """

    layer: int
    pairs: int
    ari: float
    spread: float
    within: float | None
    nmi: float
    agreement: float
    null: float
    null_within: float | None


@dataclass(frozen=True)
class Erasure:
    """A concept made unreadable for every linear probe at one layer (LEACE, arXiv:2306.03819).

    delta_auc: change of the AUC; control: the same when the concept's values are permuted among the events before (an
    erasure of equal rank). before, after: R² of a linear probe on other events, None where there are too few.
    """

    layer: int
    observable: str
    rank: int
    delta_auc: float | None
    error: float | None
    control: float | None
    control_error: float | None
    before: float | None
    before_error: float | None
    after: float | None
    after_error: float | None


@dataclass(frozen=True)
class Dictionary:
    """A sparse dictionary of node states beside PCA and the neurons at equal sparsity.

    network: whose states: trained, untrained or shuffled. unexplained: share of the variance not reconstructed from
    `active` coefficients, on events not fitted on, None where their weights cancel; readable: observable -> largest
    |rank correlation| of a single coefficient with it, inside a node slot. Errors: bootstrap of the events.
    """

    network: str
    layer: int
    kind: str
    size: int
    active: int
    unexplained: float | None
    error: float | None
    dead: int
    readable: dict[str, float]
    readable_error: dict[str, float | None]


@dataclass(frozen=True)
class Sparsity:
    """How many hidden units can be switched off, smallest first: the critical sparsity (arXiv:2509.00454).

    network: trained, untrained or shuffled. critical: the largest share of units set to 0 that keeps 99 % of the AUC, 1
    if none is needed; error: bootstrap of the events, and the steps of the scan; control: the same if the units are
    chosen at random. curve: [share, AUC, error] of what was tried. expert −1: all experts of the layer.
    """

    network: str
    layer: int
    expert: int
    critical: float
    error: float
    control: float
    control_error: float
    curve: list[list[float]]


@dataclass(frozen=True)
class Lens:
    """AUC if the layers from this one on are left out and the network's own head reads the states, with its bootstrap
    error; null, shuffled: the same of an untrained network and of one trained on shuffled labels (None without)."""

    layer: int
    auc: float | None
    error: float | None
    null: float | None
    null_error: float | None
    shuffled: float | None
    shuffled_error: float | None


@dataclass(frozen=True)
class Representation:
    """What the node states hold, layer by layer (layer 0: the embedded inputs), each number with its control."""

    probes: list[Probe]
    erasures: list[Erasure]
    dictionaries: list[Dictionary]
    sparsity: list[Sparsity]
    lens: list[Lens]
    provenance: Provenance

    def save(self, path: Path) -> None:
        """Write JSON."""
        save_json(self, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Inverse of `save`; ResultError if the file is of another kind or version."""
        rows = {"probes": Probe, "erasures": Erasure, "dictionaries": Dictionary, "sparsity": Sparsity, "lens": Lens}
        return from_json(cls, path, rows)


def from_json(cls: Any, path: Path, rows: dict[str, type]) -> Any:
    """A result that was saved as JSON, with tables of `rows`; ResultError if it is of another kind or version."""
    values = files.read_json(path)
    if values.pop("format", None) != FORMAT or set(values) != {field.name for field in fields(cls)}:
        raise ResultError(f"'{path}' does not hold a {cls.__name__} of this version. Run `hepx explain` again.")
    for name, kind in rows.items():
        values[name] = [kind(**row) for row in values[name]]
    return cls(**{**values, "provenance": Provenance(**values["provenance"])})


def finite(values: Array) -> list[Any]:
    """Nested lists with None for what is not a number, as JSON has it."""
    if values.ndim > 1:
        return [finite(part) for part in values]
    return [float(value) if np.isfinite(value) else None for value in values]
