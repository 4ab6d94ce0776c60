"""The published model, rebuilt here naively from its description, gives the same numbers; and its flaws are shown."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hepx.config import load, parse
from hepx.graph import NODE_TYPES, GraphBatch, GraphSettings, make_layout
from hepx.models import Model, build_model, flaws, predict, symmetries
from hepx.models.gcn import GCNSettings
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.layers import MixtureOfExperts
from hepx.models.paper import PaperMGTSettings, laplacian_code
from hepx.train import TrainSettings, cv2_loss

CONFIGS = Path(__file__).parent.parent / "configs"
COLUMNS = ("pt", "eta", "phi", "btag", "bjet_mass", "linear_met_significance")


def settings_of(name: str, **changes: Any) -> PaperMGTSettings:
    return parse(PaperMGTSettings, {**load(CONFIGS / f"{name}.yaml")["model"], **changes}, name)


@pytest.fixture(scope="module")
def aliased(toys: GraphBatch) -> GraphBatch:
    """The toy events in the published table: j1 j2 j3, then the b-jets again, lepton, missing momentum."""
    layout = make_layout(parse(GraphSettings, load(CONFIGS / "paper_code.yaml")["graph"], "graph"), ["toy"], [0, 1])
    source = [0, 1, 2, 0, 1, 3, 4]
    types = torch.tensor([NODE_TYPES.index(name) for name in layout.types]).expand(len(toys), -1)
    fields = {name: getattr(toys, name)[:, source] for name in ("x", "mask", "object_index", "truth_parent")}
    return replace(toys, **fields, node_type=types, layout=layout)[:100]


def fitted(settings: Any, graphs: GraphBatch, seed: int = 1) -> Model:
    model = build_model(settings, graphs.layout, seed)
    model.inputs.fit(graphs, torch.ones(len(graphs)))
    return model.eval()


class Naive:
    """The published formulation: all nodes of a batch in one list, one dense adjacency for all of them, one pass per
    expert. Takes its weights from a PaperMGT and nothing else."""

    def __init__(self, model: Any) -> None:
        self.weights, self.settings = dict(model.state_dict()), model.settings

    def linear(self, h: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(h, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def normed(self, h: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(h, h.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def __call__(
        self, nodes: torch.Tensor, code: torch.Tensor, event: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and balance loss of nodes [M, 12] with positional code [M, 4] and event number [M]."""
        adjacency = (event[:, None] == event[None]) & ~torch.eye(len(event), dtype=torch.bool)
        h, losses = self.linear(nodes, "embed") + self.linear(code, "embed_code"), []
        for i in range(self.settings.num_layers):
            h = self.normed(h + self.attention(h, adjacency, f"layers.{i}.attention"), f"layers.{i}.norm1")
            out, loads = self.mixture(h, f"layers.{i}.experts", None if noise is None else noise[i])
            h = self.normed(h + out, f"layers.{i}.norm2")
            losses.append((torch.std(loads) / torch.mean(loads)) ** 2)
        h = torch.relu(self.linear(h, "cut"))
        pooled = torch.stack([h[event == e].mean(0) for e in range(int(event.max()) + 1)])
        return self.linear(pooled, "predict"), torch.stack(losses).mean()

    def attention(self, h: torch.Tensor, adjacency: torch.Tensor, name: str) -> torch.Tensor:
        query, key, value = self.linear(h, f"{name}.qkv").chunk(3, dim=-1)
        size, heads = h.shape[-1] // self.settings.num_heads, []
        for head in range(self.settings.num_heads):
            q, k, v = (part[:, head * size : (head + 1) * size] for part in (query, key, value))
            other = v if self.settings.attention_scores == "qv" else k
            scores = (q @ other.T / math.sqrt(size)).masked_fill(~adjacency, -1e9)
            heads.append(scores.softmax(-1) @ v)
        return self.linear(torch.cat(heads, -1), f"{name}.out")

    def mixture(self, h: torch.Tensor, name: str, noise: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        clean, width = self.linear(h, f"{name}.router"), functional.softplus(self.linear(h, f"{name}.noise_width"))
        noisy = clean if noise is None else clean + noise * width
        best, chosen = noisy.topk(self.settings.top_k)
        gates = best.softmax(-1)
        out, loads = torch.zeros_like(h), []
        for e in range(self.settings.num_experts):
            node, place = torch.where(chosen == e)
            out[node] += gates[node, place, None] * self.expert(h[node], name, e)
            others = noisy[:, [i for i in range(self.settings.num_experts) if i != e]]
            margin = clean[:, e] - others.topk(self.settings.top_k).values[:, -1]
            loads.append(torch.distributions.Normal(0.0, 1.0).cdf(margin / width[:, e]).sum())
        return out, torch.stack(loads)

    def expert(self, h: torch.Tensor, name: str, e: int) -> torch.Tensor:
        w1, b1, w2, b2 = (self.weights[f"{name}.{part}"] for part in ("w1", "b1", "w2", "b2"))
        e = 0 if len(w1) == 1 else e
        return functional.leaky_relu(h @ w1[e] + b1[e]) @ w2[e] + b2[e]


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("scores", ["qk", "qv"])
@pytest.mark.parametrize("name", ["paper_code", "paper"])
def test_logits_and_loss_equal_the_naive_formulation(name: str, scores: str, noisy: bool, aliased: GraphBatch) -> None:
    """Of both configs, with and without routing noise; 1e-5 is float32 rounding over two layers."""
    model = fitted(settings_of(name, attention_scores=scores, laplacian_pe="fixed"), aliased)
    with torch.no_grad():  # the width of the noise starts at zero weights; make it matter
        for moe in (module for module in model.modules() if isinstance(module, MixtureOfExperts)):
            torch.nn.init.normal_(moe.noise_width.weight, std=0.2)
            torch.nn.init.normal_(moe.b1, std=0.2)
            torch.nn.init.normal_(moe.b2, std=0.2)
    mask, batch_wide = aliased.mask, model.settings.batch_noise
    noise = torch.randn(len(aliased), 2, mask.shape[1], 6) if noisy else None
    output = model(aliased.x, mask, aliased.node_type, noise=noise)
    per_node = None
    if noise is not None:
        used = noise[:1, :, :1].expand_as(noise) if batch_wide else noise
        per_node = used.transpose(1, 2)[mask].transpose(0, 1)
    rows = torch.cat([torch.arange(int(n)) for n in mask.sum(1)])
    event = torch.arange(len(aliased)).repeat_interleave(mask.sum(1))
    code = torch.from_numpy(laplacian_code(mask.shape[1]))[mask.sum(1)[event], rows]
    nodes = model.inputs.nodes(aliased.x, mask, aliased.node_type)[mask]
    expected, loss = Naive(model)(nodes, code, event, per_node)
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(cv2_loss(output.trace, mask), loss, atol=1e-5, rtol=1e-4)


def test_inputs_are_twelve_columns_with_interleaved_flags(aliased: GraphBatch) -> None:
    model = fitted(settings_of("paper_code"), aliased)
    raw = {name: aliased.x[..., i].numpy() for i, name in enumerate(("pt", "eta", "phi", "mass", "btag", "met"))}
    types = np.array(NODE_TYPES)[aliased.node_type.numpy()]
    table = {
        "pt": (raw["pt"], ["jet", "bjet", "lepton", "met"]),
        "eta": (raw["eta"], ["jet", "bjet", "lepton"]),
        "phi": (raw["phi"], ["jet", "bjet", "lepton", "met"]),
        "btag": (raw["btag"], ["jet", "bjet"]),
        "mass": (raw["mass"], ["bjet"]),
        "significance": (raw["met"], ["met"]),
    }
    columns = []
    for values, has in table.values():
        known = np.isin(types, has)
        columns += [np.where(known, values, 0), (~known).astype(float)]
    nodes = np.stack(columns, -1)[aliased.mask.numpy()]
    spread = nodes.std(0)
    expected = (nodes - nodes.mean(0)) / np.where(spread > 0, spread, 1)
    found = model.inputs.nodes(aliased.x, aliased.mask, aliased.node_type)
    assert found.shape[-1] == 12
    np.testing.assert_allclose(found[aliased.mask].numpy(), expected, atol=1e-4)
    assert found[~aliased.mask].abs().max() == 0
    codes = {tuple(row) for row in nodes[:, 1::2]}
    assert len(codes) == 4  # the flags name the type


@pytest.mark.parametrize("n", [6, 7])
def test_positional_code_is_that_of_torch_geometric_and_degenerate(n: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it warns about torch.jit
        from torch_geometric.data import Data
        from torch_geometric.transforms import AddLaplacianEigenvectorPE
    edges = torch.tensor([[i, j] for i in range(n) for j in range(n) if i != j]).T
    theirs = AddLaplacianEigenvectorPE(k=4)(Data(edge_index=edges, num_nodes=n)).laplacian_eigenvector_pe
    ours = torch.from_numpy(laplacian_code(n))[n]
    signs = torch.sign((theirs * ours).sum(0))
    torch.testing.assert_close(ours * signs, theirs, atol=1e-5, rtol=0)
    laplacian = (n * torch.eye(n) - 1) / (n - 1)
    torch.testing.assert_close(laplacian @ ours, n / (n - 1) * ours, atol=1e-5, rtol=0)  # one eigenvalue for all


def test_public_training_settings_are_what_the_configs_say() -> None:
    for name in ("paper_code", "paper"):
        settings = parse(TrainSettings, load(CONFIGS / f"{name}.yaml")["train"], name)
        assert (settings.optimizer, settings.schedule, settings.balance) == ("adam", "step", "cv2")
        assert (settings.balance_weight, settings.router_noise, settings.epochs) == (1.0, 1.0, 60)
    assert settings_of("paper_code").features == COLUMNS


def test_shared_experts_are_one_network_and_independent_ones_are_not(aliased: GraphBatch) -> None:
    h = torch.randn(5, 7, 80)
    for shared in (True, False):
        moe = MixtureOfExperts(80, 20, 6, 2, 0.0, activation="leaky_relu", shared=shared, learned_noise=True)
        torch.nn.init.normal_(moe.b2)
        single = functional.leaky_relu(h @ moe.w1[0] + moe.b1[0]) @ moe.w2[0] + moe.b2[0]
        difference = (moe(h, None, torch.randn(5, 7, 6))[0] - single).abs().max()
        assert (difference < 1e-5) == shared


def router_share(model: Model, graphs: GraphBatch) -> float:
    """Norm of the task gradient at the routers over that of all parameters."""
    model.zero_grad()
    functional.cross_entropy(model(graphs.x, graphs.mask, graphs.node_type).logits, graphs.y).backward()
    norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    return max(norm for name, norm in norms.items() if "router" in name) / max(norms.values())


def test_only_independent_experts_give_the_router_a_task_gradient(aliased: GraphBatch) -> None:
    assert router_share(fitted(settings_of("paper_code", laplacian_pe="fixed"), aliased), aliased) < 1e-6
    assert router_share(fitted(settings_of("paper"), aliased), aliased) > 1e-3


def test_score_flickers_with_random_signs_only(aliased: GraphBatch) -> None:
    random, fixed = (fitted(settings_of(name), aliased) for name in ("paper_code", "paper"))
    spread = predict(random, aliased).std()
    assert (predict(random, aliased) - predict(random, aliased)).std() > 0.05 * spread
    assert torch.equal(predict(fixed, aliased), predict(fixed, aliased))


def test_flaws_are_named_and_a_sound_model_has_none(aliased: GraphBatch, toys: GraphBatch) -> None:
    found = flaws(fitted(settings_of("paper_code"), aliased), aliased)
    for words in (
        "identical experts in layer 1 and 2",
        "router of layer 1 and 2 no gradient",
        "differ by 0.",
        "no self-loops",
        "one draw of the routing noise for all nodes of a batch",
        "in another order",
        "looks at φ itself",
        "some objects stand in the graph twice",
    ):
        assert any(words in flaw for flaw in found), words
    assert len(found) == 8
    of_text = flaws(fitted(settings_of("paper"), aliased), aliased)
    for words in ("no self-loops", "in another order", "looks at φ itself", "stand in the graph twice"):
        assert any(words in flaw for flaw in of_text), words
    assert len(of_text) == 4
    of_keys = flaws(fitted(settings_of("paper", attention_scores="qv"), aliased), aliased)
    assert any("keys that the network learns are never used" in flaw for flaw in of_keys)
    moved = symmetries(fitted(settings_of("paper"), aliased), aliased)
    assert min(moved.values()) > 0.01
    model = fitted(MoEGraphTransformerSettings(), toys)
    moved = symmetries(model, toys)
    assert moved["rotation"] < 1e-4
    assert min(moved["phi_mirror"], moved["eta_mirror"]) > 0.01
    state = torch.get_rng_state()
    assert flaws(model, toys) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


def test_graph_convolution_with_self_loops_makes_all_nodes_equal(toys: GraphBatch) -> None:
    for self_loops in (True, False):
        model = fitted(GCNSettings(self_loops=self_loops), toys)
        h = model.nodes(toys.x, toys.mask, toys.node_type)
        difference = (h[:, 0] - h[:, 1]).abs().max()
        assert (difference < 1e-6) == self_loops
        assert any("degenerate graph convolution" in flaw for flaw in flaws(model, toys)) == self_loops
