"""bfloat16 where it is harmless and nowhere else; compiled and eager training are the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hepx.graph import GraphBatch
from hepx.models import MODELS, build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.layers import GROUPED_FROM, in_float32, masked_softmax
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.train import TrainSettings, fit


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("name", [name for name, (_, model) in MODELS.items() if model.differentiable])
def test_inputs_and_router_stay_exact_under_autocast(name: str, toys: GraphBatch) -> None:
    """ln m² of light pairs would lose all its digits in 16 bit: the inputs are the same bits with and without. (Trees
    have no product that could be made in 16 bit.)"""
    model = build_model(MODELS[name][0](), toys.layout, 1).eval()
    model.inputs.fit(toys, toys.weight)
    exact = model(toys.x, toys.mask, toys.node_type)
    plain = model.inputs.nodes(toys.x, toys.mask, toys.node_type)
    pairs = model.inputs.pairs(toys.x, toys.mask, toys.node_type) if model.inputs.num_pair_features else plain
    with autocast():
        logits, trace = model(toys.x, toys.mask, toys.node_type)
        assert torch.equal(model.inputs.nodes(toys.x, toys.mask, toys.node_type), plain)
        if model.inputs.num_pair_features:
            assert torch.equal(model.inputs.pairs(toys.x, toys.mask, toys.node_type), pairs)
    assert trace.router_logits.dtype == trace.gates.dtype == torch.float32 or trace.gates.shape[-1] == 0
    torch.testing.assert_close(logits.float(), exact.logits, atol=0.05, rtol=0.05)  # a few times 2^-8
    assert not torch.equal(logits.float(), exact.logits)  # negative control: something was computed in 16 bit


def test_linear_maps_and_softmax_in_full_precision() -> None:
    generator = torch.Generator().manual_seed(1)
    layer, h = torch.nn.Linear(64, 6), torch.randn(50, 64, generator=generator)
    allowed = torch.ones(50, 6, dtype=torch.bool)
    with autocast():
        assert (
            torch.equal(in_float32(layer, h), torch.nn.functional.linear(h, layer.weight, layer.bias).float()) is False
        )
        rounded = layer(h)
        full = in_float32(layer, h)
        assert rounded.dtype == torch.bfloat16
        assert masked_softmax(rounded, allowed).dtype == torch.float32
    assert torch.equal(full, layer(h))
    assert torch.equal(in_float32(layer.double(), h.double()), layer(h.double()))


@pytest.mark.parametrize("num_experts", [6, GROUPED_FROM])
def test_training_in_bfloat16_learns_as_well(num_experts: int, tmp_path: Path) -> None:
    graphs = plant(toy_graphs(3000, 4), MECHANISMS["mt"], 5)
    settings = MoEGraphTransformerSettings(dim=16, expert_dim=8, num_heads=2, num_experts=num_experts)
    best, losses = [], []
    for precision in ("float32", "bfloat16"):
        options = TrainSettings(epochs=4, batch_size=128, lr=5e-3, precision=precision)  # type: ignore[arg-type]
        model = build_model(settings, graphs.layout, 1)
        history = fit(model, graphs[:2000], graphs[2000:], options, 1, tmp_path / precision)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        best.append(max(epoch.validation_auc for epoch in history))
        losses.append(history[0].loss)
    assert best[0] > 0.85
    assert best[1] == pytest.approx(best[0], abs=0.01)
    assert losses[0] != losses[1]  # negative control: the setting does something


COMPILED = """
import sys, torch
from pathlib import Path
from hepx.models import build_model
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.train import TrainSettings, fit
torch.set_num_threads(1)
graphs = plant(toy_graphs(700, 4), MECHANISMS["mt"], 5)
curves = []
for compile in (False, True):
    model = build_model(MoEGraphTransformerSettings(dim=8, expert_dim=4, num_heads=2, dropout=0.0), graphs.layout, 1)
    settings = TrainSettings(epochs=2, batch_size=128, compile=compile, ema=0.9)
    history = fit(model, graphs[:500], graphs[500:], settings, 1, Path(sys.argv[1]) / str(compile))
    curves.append(torch.tensor([list(vars(epoch).values()) for epoch in history]))
from torch._dynamo.utils import counters
print(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
torch.testing.assert_close(*curves, atol=1e-4, rtol=1e-4)
"""


@pytest.mark.slow
def test_compiled_training_is_the_eager_one(tmp_path: Path) -> None:
    """To rounding, in one graph without breaks."""
    done = subprocess.run([sys.executable, "-c", COMPILED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    graphs, breaks = map(int, done.stdout.split())
    assert graphs >= 1
    assert breaks == 0
