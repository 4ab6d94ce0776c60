"""Events whose true explanation is known: the label is drawn from a known function of one observable.

y ~ Bernoulli(σ(g(v(x)))): the objects, the pair and the shape that explain the label are exactly those of v, the
Bayes-optimal score is g(v), and its AUC is the best any classifier can reach. The events come from a toy sampler or are
a user's own graphs, whose labels are replaced ("label planting").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hepx.graph import DEFINED, NODE_TYPES, RAW_FEATURES, GraphBatch, GraphSettings, make_layout
from hepx.models.inputs import PHI, PT, pair_kinematics


@dataclass(frozen=True)
class Mechanism:
    """A planted truth: the slots that matter, and the Bayes-optimal score [B] as a function of x [B, N, F], node types
    [B, N] and slot names."""

    slots: tuple[str, ...]
    score: Callable[[Tensor, Tensor, tuple[str, ...]], Tensor]


def pair_mass(
    x: Float[Tensor, "B N F"], node_type: Int[Tensor, "B N"], slots: tuple[str, ...], first: str, second: str
) -> Float[Tensor, "B"]:
    """Invariant mass of two slots, transverse if one is the missing momentum, GeV."""
    mass2 = pair_kinematics(x, node_type).mass2[:, slots.index(first), slots.index(second)]
    return mass2.clamp(min=0).sqrt()


MECHANISMS: dict[str, Mechanism] = {
    "mbb": Mechanism(
        ("b1", "b2"), lambda x, types, slots: 3.0 - ((pair_mass(x, types, slots, "b1", "b2") - 120) / 30).abs()
    ),
    "mt": Mechanism(
        ("lepton", "met"), lambda x, types, slots: (pair_mass(x, types, slots, "lepton", "met") - 110) / 20
    ),
}
"""Name -> planted truth. m_bb is a peak (not monotone), m_T a threshold."""


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
    """The same events with labels drawn from the mechanism; `shuffled` permutes them: the negative control."""
    generator = torch.Generator().manual_seed(seed)
    probability = torch.sigmoid(mechanism.score(graphs.x, graphs.node_type, graphs.layout.slots))
    y = (torch.rand(len(graphs), generator=generator) < probability).to(torch.int64)
    if shuffled:
        y = y[torch.randperm(len(y), generator=generator)]
    return replace(graphs, y=y)


def turned(graphs: GraphBatch, angle: float) -> GraphBatch:
    """The same events rotated about the beam by an angle (rad): nothing physical changes."""
    x = graphs.x.clone()
    x[..., PHI] = torch.where(
        graphs.mask, torch.remainder(x[..., PHI] + angle + torch.pi, 2 * torch.pi) - torch.pi, 0.0
    )
    return replace(graphs, x=torch.where((x[..., PT] > 0)[..., None], x, graphs.x))
