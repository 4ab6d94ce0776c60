"""Methods for edges against finite differences, torch_geometric's Explainer and models that are known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hepx.attribution import METHODS, Subject
from hepx.attribution.edge_knockout import EdgeKnockout
from hepx.attribution.edges import attention_shape, both_present
from hepx.attribution.gnn_explainer import GNNExplainer, learn_masks, starting_masks
from hepx.attribution.gradient_attention import GradientAttention
from hepx.errors import ConfigError
from hepx.graph import GraphBatch
from hepx.models import MODELS, Model, build_model, predict
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.results import Provenance


@pytest.fixture(scope="module")
def model(toys: GraphBatch) -> Model:
    settings = MoEGraphTransformerSettings(dim=16, expert_dim=8, num_experts=3, num_heads=2)
    model = build_model(settings, toys.layout, seed=2).eval()
    model.inputs.fit(toys, toys.weight)
    with torch.no_grad():
        model.head[-1].weight *= 20
    return model


def subject(model: Model, graphs: GraphBatch) -> Subject:
    return Subject(model, model, graphs, graphs, 1, 7)


def test_edge_knock_out_is_the_change_of_the_score(model: Model, toys: GraphBatch, provenance: Provenance) -> None:
    """One pair and one head, each done by hand; what is cut in every head is not the sum of the heads."""
    one = subject(model, toys[toys.mask.all(1)][:6])
    found = EdgeKnockout().explain(one, provenance)
    assert found.edges is not None
    assert found.edges.shape == (6, 2, 2, 5, 5)
    np.testing.assert_allclose(found.score, predict(model, one.graphs).numpy(), atol=1e-5)
    gain = torch.ones(6, 2, 2, 5, 5)
    gain[:, 1, 0, 0, 3] = gain[:, 1, 0, 3, 0] = 0
    for chosen, value in ((gain, found.edges[:, 1, 0, 0, 3]), (_everywhere(gain), found.values[:, 0, 3])):
        with torch.no_grad():
            logits = model(one.graphs.x, one.graphs.mask, one.graphs.node_type, gain=chosen).logits
        np.testing.assert_allclose(value, found.score - (logits[:, 1] - logits[:, 0]).numpy(), atol=1e-5)
    assert np.abs(found.edges.sum((1, 2)) - found.values).max() > 1e-3
    np.testing.assert_array_equal(found.values, found.values.transpose(0, 2, 1))
    assert np.abs(found.values.diagonal(axis1=1, axis2=2)).max() == 0


def _everywhere(gain: Tensor) -> Tensor:
    return gain.amin((1, 2), keepdim=True).expand_as(gain)


def test_a_network_whose_nodes_do_not_talk_has_no_edges(model: Model, toys: GraphBatch, provenance: Provenance) -> None:
    """Negative control: with the attention's output switched off every edge is worth nothing."""
    mute = build_model(MoEGraphTransformerSettings(dim=16, expert_dim=8, num_experts=3, num_heads=2), toys.layout, 2)
    mute.load_state_dict(model.state_dict())
    with torch.no_grad():
        for block in mute.eval().blocks:
            block.attention.out.weight.zero_()
    for name in ("edge_knockout", "gradient_attention"):
        result: Any = METHODS[name]().explain(subject(mute, toys[:10]), provenance)
        assert np.abs(result.values).max() < 1e-5


def test_attention_times_gradient_is_the_slope_in_the_gain(
    model: Model, toys: GraphBatch, provenance: Provenance
) -> None:
    """Oracle: central differences in the factor of one attention weight and its mirror."""
    one = subject(model, toys[toys.mask.all(1)][:4])
    found = GradientAttention().explain(one, provenance)
    assert found.edges is not None
    changes = []
    for step in (0.05, -0.05):
        gain = torch.ones(4, 2, 2, 5, 5)
        gain[:, 0, 1, 1, 4] += step
        gain[:, 0, 1, 4, 1] += step
        with torch.no_grad():
            logits = model(one.graphs.x, one.graphs.mask, one.graphs.node_type, gain=gain).logits
        changes.append(logits[:, 1] - logits[:, 0])
    slope = ((changes[0] - changes[1]) / 0.1).numpy()
    np.testing.assert_allclose(found.edges[:, 0, 1, 1, 4], slope, atol=0.02 * np.abs(found.edges).max())
    assert (found.values >= np.abs(found.edges).sum((1, 2)) - 1e-6).all()


@pytest.mark.parametrize("name", ["edge_knockout", "gradient_attention", "gnn_explainer"])
@pytest.mark.parametrize("kind", ["particle_transformer", "paper_mgt", "mlp"])
def test_every_model_with_attention_is_served(name: str, kind: str, toys: GraphBatch, provenance: Provenance) -> None:
    model = build_model(MODELS[kind][0](), toys.layout, 1).eval()
    model.inputs.fit(toys, toys.weight)
    method = METHODS[name](**({"epochs": 3} if name == "gnn_explainer" else {}))
    if kind == "mlp":
        with pytest.raises(ConfigError, match="this model has no attention, so it has no edges to explain"):
            method.explain(subject(model, toys[:3]), provenance)
        return
    result: Any = method.explain(subject(model, toys[:3]), provenance)
    assert np.abs(result.values).max() > 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_gnn_explainer_equals_torch_geometric(model: Model, toys: GraphBatch) -> None:
    """Oracle: torch_geometric's GNNExplainer on one graph at a time, from the same masks, 30 steps."""
    from torch_geometric.explain import Explainer
    from torch_geometric.explain import GNNExplainer as Pyg
    from torch_geometric.nn import MessagePassing

    class Edges(MessagePassing):
        """Holds the edge weights that torch_geometric's explainers give a layer."""

        def masks(self, number: int) -> Tensor:
            return torch.ones(number) if self._edge_mask is None else self._edge_mask.sigmoid()

    class OneGraph(nn.Module):
        """The classifier as torch_geometric sees it: one graph, and edge weights that scale the attention."""

        def __init__(self, graph: GraphBatch) -> None:
            super().__init__()
            self.model, self.edges, self.graph = model, Edges(), graph

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            gain = torch.ones(5, 5).index_put(tuple(edge_index), self.edges.masks(edge_index.shape[1]))
            gain = gain.expand(1, *attention_shape(model, self.graph))
            return self.model(x[None], self.graph.mask, self.graph.node_type, gain=gain).logits

    class FromStart(Pyg):
        """torch_geometric's explainer from a given start."""

        start: Tensor

        def _initialize_masks(self, x: Any, edge_index: Any) -> None:
            super()._initialize_masks(x, edge_index)
            self.edge_mask = nn.Parameter(self.start[tuple(edge_index)].clone())

    graphs = toys[toys.mask.all(1)][:2]
    start = starting_masks(graphs, 2, 5)
    found, _ = learn_masks(model, graphs, start, both_present(subject(model, graphs)), (2, 2, 5, 5), 1, 30, 0.01)
    edge_index = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    for event, restart in itertools.product(range(2), range(2)):
        algorithm = FromStart(epochs=30, lr=0.01)
        algorithm.start = start[event, restart]
        explainer = Explainer(
            OneGraph(graphs[event : event + 1]).eval(),
            algorithm,
            explanation_type="model",
            edge_mask_type="object",
            model_config={"mode": "multiclass_classification", "task_level": "graph", "return_type": "raw"},
        )
        expected = explainer(graphs.x[event], edge_index).edge_mask
        np.testing.assert_allclose(found[event, restart][tuple(edge_index)], expected, atol=2e-4)
    before = start.sigmoid()[:, :, 0, 1]
    assert (found[:, :, 0, 1] - before).abs().max() > 0.02  # it did learn


def test_restarts_of_gnn_explainer_disagree_and_say_so(model: Model, toys: GraphBatch, provenance: Provenance) -> None:
    """The error is the spread of single runs: another seed's mean lies within it over √restarts."""
    one = subject(model, toys[:4])
    first, second = (
        GNNExplainer(restarts=16, epochs=20).explain(replace(one, seed=seed), provenance) for seed in (1, 2)
    )
    assert first.error is not None
    present = both_present(one).numpy()
    assert first.error[present].min() > 0.02
    pull = (first.values - second.values)[present] / (first.error[present] * (2 / 16) ** 0.5)
    assert 0.5 < np.sqrt((pull**2).mean()) < 1.5
    assert first.unit == "mask"
    assert first.values.max() <= 1
