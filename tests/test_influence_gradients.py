"""Per-event gradients from one backward pass per batch are those of every event alone."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from hepx.graph import GraphBatch
from hepx.influence.gradients import Sketch, full, gradients, margins, taped
from hepx.models import MODELS, Model, build_model

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name, (_, model) in MODELS.items() if model.differentiable},
    "post_norm": {"name": "moe_graph_transformer", "norm": "post", "pair_values": True, "pooling": "class"},
    "soft": {"name": "moe_graph_transformer", "gates": "soft", "pooling": "mean", "type_embedding": False},
    "shared": {"name": "moe_graph_transformer", "shared_experts": True, "learned_noise": True},
    "grouped": {"name": "moe_graph_transformer", "num_experts": 16, "expert_dim": 4, "gates": "margin"},
    "code": {"name": "paper_mgt", "shared_experts": True, "laplacian_pe": "fixed", "attention_scores": "qv"},
}
"""Every model of the registry that has gradients, and the settings that change what is computed."""


def make(variant: str, graphs: GraphBatch) -> Model:
    wanted = dict(VARIANTS[variant])
    settings = MODELS[wanted["name"]][0]
    small = {"dim": 16, "num_heads": 2, "expert_dim": 8, "hidden_dim": 16}
    fitting = {name: value for name, value in small.items() if name in settings.model_fields}
    model = build_model(settings(**{**fitting, **wanted}), graphs.layout, 3)
    model.inputs.fit(graphs, torch.ones(len(graphs)))
    with torch.no_grad():  # no parameter at 0 or 1, where a wrong factor would not show
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.eval()


def alone(model: Model, graphs: GraphBatch, y: Tensor, loss: bool = False) -> dict[str, Tensor]:
    """The oracle: gradient of the margin (or of the loss) of each event by vmap, name -> [B, ...]."""

    def value(parameters: dict[str, Tensor], x: Tensor, mask: Tensor, node_type: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (x[None], mask[None], node_type[None])).logits
        return functional.cross_entropy(logits, label[None]) if loss else margins(logits, label[None])[0]

    parameters = {name: one.detach() for name, one in model.named_parameters()}
    return vmap(grad(value), (None, 0, 0, 0, 0))(parameters, graphs.x, graphs.mask, graphs.node_type, y)


def kernel(values: Tensor) -> Tensor:
    return values @ values.T


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_gradients_are_those_of_each_event_alone(variant: str, toys: GraphBatch) -> None:
    graphs = replace(toys[:24], x=toys.x[:24].double())  # so that rounding does not hide anything
    model = make(variant, toys).double()
    expected = alone(model, graphs, graphs.y)
    scale = float(sum(one.flatten(1).square().sum(1).max() for one in expected.values()))
    with taped(model, None) as tape:
        parts, margin = tape.run(graphs, graphs.y)
    named = [name for part in parts for name in part.names]
    assert sorted(named) == sorted(expected)  # every parameter, once
    for part in parts:
        own = torch.cat([expected[name].flatten(1) for name in part.names], 1)
        assert part.full().shape == own.shape
        torch.testing.assert_close(kernel(part.full()), kernel(own), rtol=1e-5, atol=1e-9 * scale)
        torch.testing.assert_close(part.squared_norm(), own.square().sum(1), rtol=1e-5, atol=1e-9 * scale)
    logits = model(graphs.x, graphs.mask, graphs.node_type).logits
    torch.testing.assert_close(
        functional.softplus(-margin), functional.cross_entropy(logits, graphs.y, reduction="none")
    )


def test_the_hooks_keep_the_values_of_each_parameter(toys: GraphBatch) -> None:
    """The kernels above do not see a rotation; here the entries themselves, for a linear map and the experts."""
    graphs = toys[:10]
    model = make("moe_graph_transformer", graphs)
    expected = alone(model, graphs, graphs.y)
    with taped(model, None) as tape:
        found = {part.names: part.full() for part in tape.run(graphs, graphs.y)[0]}
    weight = found["embed.weight", "embed.bias"].unflatten(1, (16, -1))
    torch.testing.assert_close(weight[..., :-1], expected["embed.weight"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight[..., -1], expected["embed.bias"], rtol=1e-4, atol=1e-5)
    name = "blocks.0.feed_forward"
    second = found[f"{name}.w2", f"{name}.b2"].unflatten(1, (16, -1))  # [B, D, X·h + X]
    torch.testing.assert_close(
        second[..., : 6 * 8], expected[f"{name}.w2"].flatten(1, 2).transpose(1, 2), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("variant", ["moe_graph_transformer", "mlp"])
def test_the_loss_gradient_is_the_margin_gradient_times_the_residual(variant: str, toys: GraphBatch) -> None:
    graphs = toys[:16]
    model = make(variant, graphs)
    expected = torch.cat([one.flatten(1) for one in alone(model, graphs, graphs.y, loss=True).values()], 1)
    with taped(model, None) as tape:
        found = gradients(tape, graphs, graphs.y, full)
    loss = -found.residual[:, None] * found.values
    scale = float(expected.square().sum(1).max())
    torch.testing.assert_close(kernel(loss), kernel(expected), rtol=1e-5, atol=1e-5 * scale)
    wrong = alone(model, graphs, 1 - graphs.y, loss=True)  # the control: other labels, other gradients
    other = torch.cat([one.flatten(1) for one in wrong.values()], 1)
    assert not torch.allclose(kernel(loss), kernel(other), rtol=1e-2)


def test_the_margin_of_many_classes_is_what_the_loss_needs() -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(50) % 4
    loss = functional.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(functional.softplus(-margins(logits, y)), loss)


def test_a_frozen_layer_has_no_gradient(toys: GraphBatch) -> None:
    model = make("deepsets", toys)
    model.embed.requires_grad_(False)
    with taped(model, None) as tape:
        parts, _ = tape.run(toys[:4], toys.y[:4])
    named = {name for part in parts for name in part.names}
    assert {name for name, _ in model.named_parameters()} - named == {"embed.weight", "embed.bias"}


def test_the_last_layer_is_the_one_that_gives_the_logits(toys: GraphBatch) -> None:
    model = make("moe_graph_transformer", toys)
    with taped(model, None, "last") as tape:
        (part,), _ = tape.run(toys[:4], toys.y[:4])
    assert part.names == ("head.2.weight", "head.2.bias")


def test_a_module_called_twice_is_right_too(toys: GraphBatch) -> None:
    """Layers that share their weights."""
    model = make("gcn", toys)
    model.convolutions[1] = model.convolutions[0]
    expected = alone(deepcopy(model), toys[:8], toys.y[:8])  # torch leaves tied weights wrapped
    with taped(model, None) as tape:
        parts, _ = tape.run(toys[:8], toys.y[:8])
    assert sorted(name for part in parts for name in part.names) == sorted(expected)
    whole, own = full(parts), torch.cat([one.flatten(1) for one in expected.values()], 1)
    torch.testing.assert_close(kernel(whole), kernel(own), rtol=1e-4, atol=1e-5)


def test_gradients_do_not_depend_on_the_pass(toys: GraphBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    model, graphs = make("moe_graph_transformer", toys), toys[:30]
    with taped(model, None) as tape:
        whole = gradients(tape, graphs, graphs.y, Sketch(64, 1))
        monkeypatch.setattr("hepx.influence.gradients.EVENTS_PER_PASS", 7)
        for a, b in zip(whole, gradients(tape, graphs, graphs.y, Sketch(64, 1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


def test_the_sketch_keeps_products_on_average_and_more_of_it_is_better(toys: GraphBatch) -> None:
    graphs = toys[:60]
    with taped(make("moe_graph_transformer", graphs), None) as tape:
        exact = kernel(gradients(tape, graphs, graphs.y, full).values)
        sketches = {
            dim: torch.stack(
                [kernel(gradients(tape, graphs, graphs.y, Sketch(dim, seed)).values) for seed in range(12)]
            )
            for dim in (32, 512)
        }
    scale = exact.diagonal().mean()
    spread = {dim: float(((found - exact) / scale).std(0).mean()) for dim, found in sketches.items()}
    assert spread[512] < spread[32] / 2  # 1/4 for independent signs
    bias = (sketches[512].mean(0) - exact) / scale
    assert float(bias.abs().mean()) < 2 * spread[512] / 12**0.5
    off = ~torch.eye(60, dtype=torch.bool)
    assert torch.corrcoef(torch.stack([sketches[512][0][off], exact[off]]))[0, 1] > 0.99
    shuffled = sketches[512][0][torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    assert torch.corrcoef(torch.stack([shuffled[off], exact[off]]))[0, 1] < 0.9  # the control
