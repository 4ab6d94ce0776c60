"""The compiled kernels compute what the plain formulas do, where they may, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from hepx.graph import GraphBatch
from hepx.models import Model, build_model, layers
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.layers import LayerNorm, MixtureOfExperts, SelfAttention, TypePool

numba = pytest.importorskip("numba", reason="the kernels need numba (extra `fast`)")
from hepx.models import fused  # noqa: E402 - not without numba

CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # sums of some dozens of float32 of order one


def plainly(work: Any, *arguments: Any, **options: Any) -> Any:
    """The same without the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "compiled_kernels", lambda: None)
        return work(*arguments, **options)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(1)
    with torch.inference_mode():
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel was called."""
    found: Counter[str] = Counter()

    def counted(name: str, work: Any) -> Any:
        def call(*arguments: Any) -> Any:
            found[name] += 1
            return work(*arguments)

        return call

    for name in ("attend", "gate", "mix", "norm", "pool"):
        monkeypatch.setattr(fused, name, counted(name, getattr(fused, name)))
    return found


def attention_case(batch: int, nodes: int, dim: int, heads: int) -> tuple[SelfAttention, list[torch.Tensor]]:
    """Layer, states, allowed pairs (some rows and one event without any), and a bias that is a view, as in models."""
    layer, h = SelfAttention(dim, heads), torch.randn(batch, nodes, dim)
    allowed = torch.rand(batch, nodes, nodes) < 0.7
    allowed[0], allowed[1, 0] = False, False
    terms = torch.randn(batch, nodes, nodes, 3 * heads)
    return layer, [h, allowed, terms.permute(0, 3, 1, 2).unflatten(1, (3, heads))[:, 1]]


@pytest.mark.parametrize("kind", ["plain", "bias", "qv", "huge", "full"])
@pytest.mark.parametrize("sizes", [(8, 3, 8, 1), (21, 7, 32, 4), (16, 15, 48, 3), (40, 8, 64, 4)])
def test_attention(sizes: tuple[int, int, int, int], kind: str, calls: Counter[str]) -> None:
    layer, (h, allowed, bias) = attention_case(*sizes)
    layer.score_of_values = kind == "qv"
    if kind == "huge":  # exp of what is left out underflows, and of a score itself would overflow
        bias = 1e4 * bias.sign()
    if kind == "full":
        allowed = torch.ones_like(allowed)
    given = bias if kind in ("bias", "huge") else None
    mixed, attention = layer(h, allowed, given)
    exact = plainly(layer, h, allowed, given)
    assert calls == {"attend": 1}
    rounding = {"rtol": 0, "atol": 4 * 2**-10} if kind == "huge" else CLOSE  # float32 near 1e4 are 2^-10 apart
    torch.testing.assert_close((mixed, attention), exact, **rounding)
    assert (attention[~allowed[:, None].expand_as(attention)] == 0).all()
    torch.testing.assert_close(attention.sum(-1), allowed.any(-1)[:, None].expand(attention.shape[:-1]).float())
    wrong = layer(h, allowed, bias.mT)  # negative controls: another bias and another mask are other results
    assert (wrong[1] - attention).abs().max() > 0.1
    assert kind == "full" or (layer(h, allowed.mT, given)[1] - attention).abs().max() > 0.1


@pytest.mark.parametrize("num_experts", [2, 6, 20])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(("dim", "width"), [(16, 16), (32, 48)])
def test_experts(num_experts: int, top_k: int, dim: int, width: int, calls: Counter[str]) -> None:
    mixture = MixtureOfExperts(dim, width, num_experts, top_k, 0.1).eval()
    for tensor in (mixture.b1, mixture.b2, mixture.selection_bias):
        nn.init.normal_(tensor)
    h = torch.randn(301, 5, dim)
    found = mixture(h, None, None)
    assert calls == {"gate": 1, "mix": 1}
    torch.testing.assert_close(found[:3], plainly(mixture, h, None, None)[:3], rtol=1e-5, atol=2e-6)
    assert ((found[2] > 0).sum(-1) == top_k).all()
    mixture.selection_bias.zero_()  # negative control: the bias of the choice matters, and so does that of the experts
    assert top_k == num_experts or (mixture(h, None, None)[2] != found[2]).any()
    replayed = mixture(h, found[2] > 0, None)
    torch.testing.assert_close(replayed[0], found[0], **CLOSE)
    mixture.b2 += 1
    assert not torch.allclose(mixture(h, found[2] > 0, None)[0], found[0], atol=1e-3)


def test_equal_scores_choose_as_many_experts() -> None:
    scores = torch.zeros(16, 6)
    gates = fused.gate(scores, scores, 2)
    assert ((gates == 0.5).sum(-1) == 2).all()


def test_layer_norm(calls: Counter[str]) -> None:
    norm, h = LayerNorm(24), 5 + 3 * torch.randn(11, 3, 24)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    torch.testing.assert_close(norm(h), plainly(norm, h), rtol=1e-5, atol=2e-6)
    assert calls == {"norm": 1}


def test_pool(calls: Counter[str]) -> None:
    """Absent objects are left out, a type without any gives zeros, and one that no slot has is nowhere."""
    pool, h, mask = TypePool(("jet", "bjet", "met")), torch.randn(20, 7, 16), torch.rand(20, 7) < 0.6
    mask[0] = False
    kinds = torch.randint(0, 4, (20, 7))
    found = pool(h, mask, kinds)
    torch.testing.assert_close(found, plainly(pool, h, mask, kinds), **CLOSE)
    assert calls == {"pool": 1}
    assert (found[0] == 0).all()
    assert (found - plainly(pool, h, mask, kinds.roll(1, 1))).abs().max() > 0.1


def test_exponential_and_gelu_are_exact() -> None:
    """Through the kernels that use them: softmax of two entries, and one expert that is nearly the identity."""
    gap = -torch.linspace(0, 100, 4001)
    gates = fused.gate(torch.stack([torch.zeros_like(gap), gap], -1), torch.zeros(len(gap), 2), 2)
    exact = torch.softmax(torch.stack([torch.zeros_like(gap), gap], -1).double(), -1)
    torch.testing.assert_close(gates.double(), exact, rtol=2e-7, atol=1e-37)
    x = torch.linspace(-12, 12, 16 * 500).reshape(500, 16)
    one, none = torch.eye(16)[None], torch.zeros(1, 16)
    found = fused.mix(x, torch.ones(500, 1), one, none, one, none).double()
    torch.testing.assert_close(found, nn.functional.gelu(x.double()), rtol=3e-7, atol=1e-6)


def test_what_is_no_number_stays_visible() -> None:
    layer, (h, allowed, bias) = attention_case(8, 5, 16, 2)
    mixture = MixtureOfExperts(16, 16, 4, 2, 0.0).eval()
    h[2, 3, 1] = torch.nan
    allowed[2] = True
    assert layer(h, allowed, bias)[0][2].isnan().any()
    assert mixture(h, None, None)[0][2, 3].isnan().all()
    assert not mixture(h, None, None)[0][[0, 1, 3]].isnan().any()


# The whole network ------------------------------------------------------------------------------------------------


@pytest.fixture
def network(toys: GraphBatch) -> Model:
    """Of the sizes of the default one, with inputs that are scaled."""
    with torch.inference_mode(False):  # its parameters can have gradients
        model = build_model(MoEGraphTransformerSettings(dim=32, expert_dim=16, pair_values=True), toys.layout, 1)
        model.inputs.fit(toys, toys.weight)
    return model.eval()


def test_network(network: Model, toys: GraphBatch, calls: Counter[str]) -> None:
    found = network(toys.x, toys.mask, toys.node_type)
    assert calls == {"attend": 2, "gate": 2, "mix": 2, "norm": 5, "pool": 1}
    exact = plainly(network, toys.x, toys.mask, toys.node_type)
    assert calls.total() == 12
    torch.testing.assert_close(found.logits, exact.logits, **CLOSE)
    torch.testing.assert_close(found.trace, exact.trace, rtol=1e-5, atol=5e-6)


def test_an_event_does_not_depend_on_its_company(toys: GraphBatch) -> None:
    """Bit by bit, whatever the number of events, their order and the number of threads."""
    layer, (h, allowed, bias) = attention_case(1101, 7, 32, 4)
    mixture, norm = MixtureOfExperts(32, 16, 6, 2, 0.0).eval(), LayerNorm(32)
    gates = fused.gate(torch.randn(1101, 7, 6), torch.randn(1101, 7, 6), 2)
    weights = (mixture.w1, mixture.b1, mixture.w2, mixture.b2)
    qkv, groups = layer.qkv(h), torch.randint(-1, 3, (1101, 7))

    def work(rows: torch.Tensor) -> list[torch.Tensor]:
        attended = fused.attend(qkv[rows], 4, bias[rows], allowed[rows], False)
        return [
            *attended,
            fused.mix(h[rows], gates[rows], *weights),
            fused.norm(h[rows], norm.weight, norm.bias, 1e-5),
            fused.pool(h[rows], groups[rows], 3),
        ]

    whole, before = work(torch.arange(1101)), torch.get_num_threads()
    assert all(map(torch.equal, work(torch.arange(1101).flip(0)), [v.flip(0) for v in whole]))
    assert all(map(torch.equal, work(torch.arange(500, 511)), [v[500:511] for v in whole]))
    try:
        torch.set_num_threads(2)
        assert all(map(torch.equal, work(torch.arange(1101)), whole))
    finally:
        torch.set_num_threads(before)
    with ThreadPoolExecutor(2) as pool:  # the caller's own threads
        parts = [torch.arange(0, 600), torch.arange(600, 1101)]
        found = [torch.cat(pair) for pair in zip(*pool.map(torch.inference_mode()(work), parts), strict=True)]
    assert all(map(torch.equal, found, whole))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's, in its jvp
def test_where_the_plain_formulas_compute(network: Model, toys: GraphBatch, calls: Counter[str]) -> None:
    """Gradients, other transforms, other precisions and interventions on attention; the last line shows they could."""
    arguments = (toys.x[:16], toys.mask[:16], toys.node_type[:16])
    with torch.inference_mode(False):
        parts = [tensor.clone() for tensor in arguments]
        x = parts[0].requires_grad_()
        network(x, *parts[1:]).logits.sum().backward()
        assert x.grad is not None
        with torch.no_grad():
            network(*parts)
            _, tangent = torch.func.jvp(lambda x: network(x, *parts[1:]).logits, (parts[0],), (torch.ones_like(x),))
            assert tangent.abs().max() > 0
    many = torch.func.vmap(lambda x: network(x, *arguments[1:]).logits)(arguments[0].expand(2, *arguments[0].shape))
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        network(*arguments)
    gain = torch.ones(16, 2, 4, *toys.mask.shape[1:], toys.mask.shape[1])
    assert not calls
    network(*arguments, gain=gain)
    assert not calls["attend"]
    calls.clear()
    network(*(tensor[:7] for tensor in arguments))
    network.double()(arguments[0].double(), *arguments[1:])
    assert not calls
    torch.testing.assert_close(network.float()(*arguments).logits, many[1], rtol=1e-4, atol=1e-5)
    assert calls.total() == 12


ALONE = """
import sys, torch
sys.modules[sys.argv[1]] = None  # cannot be imported
from hepx.models import layers
with torch.inference_mode():
    out = layers.MixtureOfExperts(16, 16, 4, 2, 0.0).eval()(torch.ones(8, 3, 16), None, None)[0]
print("hepx.models.fused" in sys.modules, bool(out.isfinite().all()))
"""


@pytest.mark.parametrize(("absent", "loaded"), [("none", "True"), ("numba", "False")])
def test_without_numba_all_works(absent: str, loaded: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", ALONE, absent], capture_output=True, text=True)
    assert done.stdout.split() == [loaded, "True"], done.stderr


def test_kernels_are_kept_for_the_next_process(tmp_path: Path) -> None:
    code = "from hepx.models import fused\nimport torch\nfused.gate(torch.ones(8, 2), torch.ones(8, 2), 1)\n"
    code += "print(sum(fused._gate.stats.cache_hits.values()))"
    environment, hits = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment
        )
        hits.append(done.stdout.strip() or done.stderr)
    assert hits == ["0", "1"]


def test_kernels_that_cannot_be_kept_are_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def njit(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")  # as numba says it
        return numba.njit(**options)

    monkeypatch.setattr(fused, "njit", njit)
    for kernel in (fused._gate, fused._norm):
        assert fused._compiled(kernel.py_func).py_func is kernel.py_func
    assert caplog.text.count("the compiled kernels are not kept") == 1
    assert "set NUMBA_CACHE_DIR" in caplog.text


def test_a_numba_that_cannot_work_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Installed, but not what it should be: the plain formulas, and a warning."""
    monkeypatch.delattr("hepx.models.fused")
    monkeypatch.delitem(sys.modules, "hepx.models.fused")
    monkeypatch.setitem(sys.modules, "numba", ModuleType("numba"))
    assert layers.compiled_kernels.__wrapped__() is None
    assert "no compiled kernels, PyTorch's operations are used instead: cannot import name 'njit'" in caplog.text
