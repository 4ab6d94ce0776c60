"""The router as a few cuts: a decision tree of depth 3 that predicts each node's first expert from its kinematics."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from hepx.graph import NODE_TYPES, RAW_FEATURES, GraphBatch
from hepx.interventions import balanced_weight
from hepx.metrics import weighted_mean
from hepx.results_network import Surrogate

Array = npt.NDArray[Any]
DEPTH, FEWEST = 3, 50  # levels; nodes in a leaf


def surrogate(gates: Float[Tensor, "B L N X"], graphs: GraphBatch, fitted: Array, seed: int) -> list[Surrogate]:
    """One tree per layer, fitted on the events in `fitted` [B] with |w|, judged on the others with signed ones."""
    mask, weight = graphs.mask.numpy(), balanced_weight(graphs)
    from sklearn.tree import export_text  # slow

    names, table = node_kinematics(graphs)
    event, slot = np.nonzero(mask)
    inputs, w, train = table[event, slot], weight[event], fitted[event]
    kinds = np.array([name.startswith("is ") for name in names])
    found = []
    for layer in range(gates.shape[1]):
        expert = gates[:, layer].argmax(-1).numpy()[event, slot]
        tree = _fit(inputs[train], expert[train], w[train], seed)
        by_type = _fit(inputs[train][:, kinds], expert[train], w[train], seed)
        right, rest = expert[~train], w[~train]
        fidelity, error = weighted_mean((tree.predict(inputs[~train]) == right).astype(float), rest)
        type_only, _ = weighted_mean((by_type.predict(inputs[~train][:, kinds]) == right).astype(float), rest)
        shares = np.bincount(right, rest)
        rules = export_text(tree, feature_names=names, class_names=[f"E{e + 1}" for e in tree.classes_], decimals=1)
        found.append(Surrogate(layer, fidelity, error, type_only, float(shares.max() / shares.sum()), rules))
    return found


def _fit(inputs: Array, expert: Array, weight: Array, seed: int) -> Any:
    from sklearn.tree import DecisionTreeClassifier  # slow

    tree = DecisionTreeClassifier(max_depth=DEPTH, min_samples_leaf=FEWEST, random_state=seed)
    return tree.fit(inputs, expert, sample_weight=np.abs(weight))


def node_kinematics(graphs: GraphBatch) -> tuple[list[str], Float[np.ndarray, "B N V"]]:
    """Names and values of what a physicist would cut on: node type, pt, η, mass, …, and the event's observables.

    φ is left out: it has no zero. An observable that no event has is left out; a missing one is NaN.
    """
    layout, shape = graphs.layout, graphs.mask.shape
    features = [i for i, name in enumerate(RAW_FEATURES) if name != "phi"]
    known = [i for i in range(len(layout.observables)) if bool(graphs.observables[:, i].isfinite().any())]
    names = [f"is {name}" for name in NODE_TYPES] + [list(RAW_FEATURES)[i] for i in features]
    names += [f"event {layout.observables[i]}" for i in known]
    kinds = graphs.node_type.numpy()[:, :, None] == np.arange(len(NODE_TYPES))
    values = graphs.observables[:, known].numpy()[:, None].repeat(shape[1], 1)
    return names, np.concatenate([kinds, graphs.x[:, :, features].numpy(), values], -1)
