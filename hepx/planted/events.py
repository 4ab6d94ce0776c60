"""The planted events: a toy sampler, and labels drawn from a mechanism."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hepx.graph import DEFINED, NODE_TYPES, RAW_FEATURES, GraphBatch, GraphSettings, make_layout
from hepx.planted.mechanisms import Mechanism, pair_mass


def toy_graphs(num_events: int, seed: int) -> GraphBatch:
    """Unlabelled events of independent objects: falling pt spectra, flat φ, a third jet in half of the events.

    Returns graphs in the default layout with unit weights; m_bb and m_T are their only filled observables.
    """
    rng = np.random.default_rng(seed)
    layout = make_layout(GraphSettings(), ["planted"], [0, 1])
    shape = (num_events, len(layout.slots))
    values = {
        "pt": 30 + rng.exponential(50, shape),
        "eta": np.clip(rng.normal(0, 1.1, shape), -2.5, 2.5),
        "phi": rng.uniform(-np.pi, np.pi, shape),
        "mass": rng.gamma(4, 2.5, shape),
        "btag": rng.integers(1, 6, shape),
        "met_significance": rng.gamma(9, 1, shape),
    }
    b1, b2 = layout.slots.index("b1"), layout.slots.index("b2")
    values["pt"][:, [b1, b2]] = -np.sort(-values["pt"][:, [b1, b2]], axis=1)
    mask = np.ones(shape, dtype=bool)
    mask[:, layout.slots.index("j3")] = rng.random(num_events) < 0.5
    x = np.stack([values[name] for name in RAW_FEATURES], axis=-1)
    defined = np.array([[name in DEFINED[kind] for name in RAW_FEATURES] for kind in layout.types])
    types = torch.tensor([NODE_TYPES.index(name) for name in layout.types]).expand(shape)
    graphs = GraphBatch(
        x=torch.from_numpy(x * defined * mask[..., None]).float(),
        mask=torch.from_numpy(mask),
        node_type=types,
        object_index=torch.where(torch.from_numpy(mask), torch.arange(shape[1]), -1).to(torch.int16),
        truth_parent=torch.zeros(shape, dtype=torch.int32),
        y=torch.zeros(num_events, dtype=torch.int64),
        weight=torch.ones(num_events, dtype=torch.float64),
        sample=torch.zeros(num_events, dtype=torch.int64),
        event_id=torch.arange(num_events),
        observables=torch.full((num_events, len(layout.observables)), torch.nan, dtype=torch.float64),
        layout=layout,
    )
    for name, pair in {"mbb": ("b1", "b2"), "mt": ("lepton", "met")}.items():
        graphs.observables[:, layout.observable_index(name)] = pair_mass(
            graphs.x, graphs.node_type, layout.slots, *pair
        ).double()
    return graphs


def plant(graphs: GraphBatch, mechanism: Mechanism, seed: int, shuffled: bool = False) -> GraphBatch:
    """The same events (changed as the mechanism asks) with labels drawn from it; `shuffled` permutes the labels: the
    negative control. Weights stay: the labels do not depend on them."""
    generator = torch.Generator().manual_seed(seed)
    if mechanism.prepare is not None:
        graphs = mechanism.prepare(graphs)
    probability = torch.sigmoid(mechanism.drawn(graphs))
    y = (torch.rand(len(graphs), generator=generator) < probability).to(torch.int64)
    if shuffled:
        y = y[torch.randperm(len(y), generator=generator)]
    planted = replace(graphs, y=y)
    return planted if mechanism.leak is None else mechanism.leak(planted, generator)
