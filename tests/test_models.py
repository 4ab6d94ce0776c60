"""Contract of every model in the registry: symmetries, robustness, one static formulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import vector
from torch.nn import functional

from hepx.errors import ConfigError
from hepx.graph import DEFINED, RAW_FEATURES, GraphBatch, GraphSettings, NodeSettings, make_layout
from hepx.models import MODELS, Model, build_model, predict
from hepx.models.boosted_trees import BoostedTrees, BoostedTreesSettings
from hepx.models.gcn import GCNSettings
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.inputs import Inputs, narrow_places, pair_kinematics, turned
from hepx.models.layers import GROUPED_FROM, MixtureOfExperts, masked_softmax
from hepx.models.paper import PaperMGTSettings
from hepx.planted import toy_graphs
from hepx.trees import Table

TOLERANCE = 2e-5  # float32: a few thousand roundings of relative size 6e-8 on logits of order one


ALL_PAIRS = ("ln_delta_r", "ln_kt", "ln_m2", "ln_mt2", "ln_mct2")
VARIANTS: dict[str, Any] = {
    **{name: settings() for name, (settings, _) in MODELS.items()},
    "mgt_class_post_margin_values": MoEGraphTransformerSettings(
        pooling="class", norm="post", gates="margin", pair_values=True
    ),
    "mgt_mean_soft_transverse": MoEGraphTransformerSettings(
        pooling="mean", gates="soft", self_loops=False, pair_features=ALL_PAIRS
    ),
    "mgt_values_alone_shared_untyped_noisy": MoEGraphTransformerSettings(
        pair_bias=False, pair_values=True, shared_experts=True, type_embedding=False, learned_noise=True
    ),
    "mgt_many_experts": MoEGraphTransformerSettings(num_experts=16, expert_dim=8),
    "paper_shared_coded": PaperMGTSettings(shared_experts=True, laplacian_pe="fixed", attention_scores="qv"),
    "gcn_without_self_loops": GCNSettings(self_loops=False),
    "boosted_trees": BoostedTreesSettings(max_trees=50),
    "boosted_trees_nodes": BoostedTreesSettings(max_trees=50, inputs="nodes"),
}
"""Every model with its defaults, and every option that changes the computation at least once."""
TREES = {"boosted_trees", "boosted_trees_nodes"}
NETWORKS = sorted(set(VARIANTS) - TREES)  # those with gradients


def ready(name: str, graphs: GraphBatch) -> Model:
    """Inputs scaled on the events; trees, constant otherwise, grown on others: a threshold may be a number of an event
    that they were grown on, and then rounding moves the score."""
    model = build_model(VARIANTS[name], graphs.layout, seed=3)
    if isinstance(model, BoostedTrees):
        others = toy_graphs(400, 2)
        y = np.random.default_rng(2).integers(0, 2, 400)
        table = Table(model.table(others.x, others.mask, others.node_type), y, None)
        model.grow(table, table, 3)
    else:
        model.inputs.fit(graphs, graphs.weight)
    return model.eval()


@pytest.fixture(params=sorted(VARIANTS))
def model(request: pytest.FixtureRequest, toys: GraphBatch) -> Model:
    return ready(request.param, toys)


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest, toys: GraphBatch) -> Model:
    return ready(request.param, toys)


def score(model: Model, graphs: GraphBatch) -> torch.Tensor:
    return predict(model, graphs)


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"boosted_trees_nodes"}))
def test_rotation_about_the_beam_changes_nothing(name: str, toys: GraphBatch) -> None:
    """The node table of the trees holds φ itself, as that of the reference trees; `flaws` says so."""
    model = ready(name, toys)
    torch.testing.assert_close(score(model, turned(toys, 2.1)), score(model, toys), atol=2e-4, rtol=0)


def test_a_real_change_changes_the_score(model: Model, toys: GraphBatch) -> None:
    x = toys.x.clone()
    x[:, 0, 0] *= 2
    assert (score(model, replace(toys, x=x)) - score(model, toys)).abs().mean() > 100 * TOLERANCE


def test_evaluation_is_deterministic_and_blind_to_the_rest_of_the_batch(model: Model, toys: GraphBatch) -> None:
    whole = score(model, toys)
    assert torch.equal(whole, score(model, toys))
    torch.testing.assert_close(whole[7:9], score(model, toys[7:9]), atol=TOLERANCE, rtol=0)


def test_padding_slots_change_nothing(model: Model, toys: GraphBatch) -> None:
    """What an absent third jet's slot holds must not matter."""
    absent = ~toys.mask[:, 2]
    x = toys.x.clone()
    x[absent, 2] = 17.0
    torch.testing.assert_close(score(model, replace(toys, x=x)), score(model, toys), atol=TOLERANCE, rtol=0)


def test_undefined_features_change_nothing(model: Model, toys: GraphBatch) -> None:
    """The missing momentum has no pseudorapidity, the lepton no mass, and so on: whatever a type lacks."""
    x, lacking = toys.x.clone(), 0
    for slot, kind in enumerate(toys.layout.types):
        for column, name in enumerate(RAW_FEATURES):
            if name not in DEFINED[kind]:
                x[:, slot, column], lacking = 5.0, lacking + 1
    assert lacking > 5
    torch.testing.assert_close(score(model, replace(toys, x=x)), score(model, toys), atol=TOLERANCE, rtol=0)


def test_gain_of_the_attention(model: Model, toys: GraphBatch) -> None:
    """Factors of 1 change nothing; a cut edge does, and only in events that have it; the trace stays the model's."""
    shape = model(toys.x, toys.mask, toys.node_type).trace.attention.shape
    one = torch.ones(shape)
    cut = one.clone()
    cut[..., 0, 2] = 0

    def run(gain: torch.Tensor | None) -> torch.Tensor:
        return model(toys.x, toys.mask, toys.node_type, gain=gain).logits.detach()

    plain, change = run(None), (run(cut) - run(None)).abs().sum(-1)
    assert torch.equal(run(one), plain)
    absent = ~toys.mask[:, 2]
    assert change[absent].max() == 0
    if 0 in shape:
        assert change.max() == 0
    else:
        assert change[~absent].mean() > 10 * TOLERANCE
        trace = model(toys.x, toys.mask, toys.node_type, gain=cut).trace
        assert torch.equal(trace.attention[:, 0], model(toys.x, toys.mask, toys.node_type).trace.attention[:, 0])


def test_no_nan_for_extreme_or_empty_events(model: Model, toys: GraphBatch) -> None:
    few = toys[:3]
    x, mask = few.x.clone(), few.mask.clone()
    x[0, :, 0] = 1e6
    mask[1] = False
    mask[2, 1:] = False
    x.requires_grad_(model.differentiable)
    logits, trace = model(x, mask, few.node_type)
    assert torch.isfinite(logits).all()
    if model.differentiable:
        logits.sum().backward()
        assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(part).all() for part in trace if part is not None)


def test_no_nan_with_one_object_of_any_type_or_zero_parameters(model: Model, toys: GraphBatch) -> None:
    few = toys[:5]
    mask = torch.eye(5, dtype=torch.bool)
    for zero in (False, True):
        if zero:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
        model.zero_grad()
        logits, trace = model(few.x, mask, few.node_type)
        if model.differentiable:
            functional.cross_entropy(logits, torch.ones_like(few.y)).backward()  # one class is missing
        assert torch.isfinite(logits).all()
        assert all(torch.isfinite(part).all() for part in trace if part is not None)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_missing_number_is_not_passed_over_in_silence(model: Model, toys: GraphBatch) -> None:
    x = toys.x[:4].clone()
    x[1, 3, 0] = torch.nan
    logits = model(x, toys.mask[:4], toys.node_type[:4]).logits
    assert logits[1].isnan().all()
    assert torch.isfinite(logits[[0, 2, 3]]).all()


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"mlp", "boosted_trees_nodes", "paper_shared_coded"}))
def test_light_jets_may_change_places(name: str, toys: GraphBatch) -> None:
    """All but those on the flat table of nodes and the model with a code of the slot."""
    nodes = (("bjet", 2), ("jet", 2), ("lepton", 1), ("met", 1))
    layout = make_layout(
        GraphSettings(nodes=tuple(NodeSettings(type=kind, max=number) for kind, number in nodes)), ["toy"], [0, 1]
    )
    source = [0, 1, 2, 2, 3, 4]
    fields = {key: getattr(toys, key)[:, source] for key in ("x", "mask", "object_index", "truth_parent", "node_type")}
    fields["x"][:, 3, :4] = fields["x"][:, 3, :4] * 0.7
    graphs = replace(toys, **fields, layout=layout)
    model = ready(name, graphs)
    order = [0, 1, 3, 2, 4, 5]
    swapped = replace(graphs, x=graphs.x[:, order], mask=graphs.mask[:, order])
    torch.testing.assert_close(score(model, swapped), score(model, graphs), atol=TOLERANCE, rtol=0)


def test_vmap_gives_the_gradient_of_each_event(network: Model, toys: GraphBatch) -> None:
    model, few = network, toys[:4]
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], x, mask, node_type, y) -> torch.Tensor:  # type: ignore[no-untyped-def]
        output = torch.func.functional_call(model, parameters, (x[None], mask[None], node_type[None]))
        return functional.cross_entropy(output.logits, y[None])

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0, 0))
    per_event = gradient(parameters, few.x, few.mask, few.node_type, few.y)
    model.zero_grad()
    one = few[2:3]
    functional.cross_entropy(model(one.x, one.mask, one.node_type).logits, one.y).backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(per_event[name][2], expected, atol=1e-5, rtol=1e-3)


def test_export_gives_the_same_logits_for_another_batch_size(
    network: Model, toys: GraphBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, few = network, toys[:8]
    batch = torch.export.Dim("batch", min=2, max=4096)
    shapes = ({0: batch}, {0: batch}, {0: batch})
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks would fix the symbolic batch size
    program = torch.export.export(model, (few.x, few.mask, few.node_type), dynamic_shapes=shapes)
    other = toys[:33]
    exported = program.module()(other.x, other.mask, other.node_type)
    expected = model(other.x, other.mask, other.node_type)
    torch.testing.assert_close(exported.logits, expected.logits, atol=TOLERANCE, rtol=0)


def test_same_seed_same_weights_and_the_callers_random_numbers_stay(toys: GraphBatch) -> None:
    settings = MoEGraphTransformerSettings()
    state = torch.get_rng_state()
    first, second = (build_model(settings, toys.layout, seed=5).state_dict() for _ in range(2))
    other = build_model(settings, toys.layout, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    assert torch.equal(state, torch.get_rng_state())


def test_mixture_equals_a_loop_over_its_experts() -> None:
    torch.manual_seed(0)
    moe = MixtureOfExperts(dim=8, expert_dim=5, num_experts=4, top_k=2, dropout=0.0)
    torch.nn.init.normal_(moe.b1)
    torch.nn.init.normal_(moe.b2)
    h = torch.randn(3, 6, 8)
    out, router_logits, gates, _ = moe(h, None, None)
    expected = torch.zeros_like(h)
    for e in range(4):
        hidden = functional.gelu(h @ moe.w1[e] + moe.b1[e])
        expected += gates[..., e : e + 1] * (hidden @ moe.w2[e] + moe.b2[e])
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    assert ((gates > 0).sum(-1) == 2).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(3, 6))
    assert torch.equal(gates.argmax(-1), router_logits.argmax(-1))


@pytest.mark.parametrize("gates", ["top_k", "margin"])
def test_each_expert_on_its_own_nodes_equals_all_on_all(gates: str) -> None:
    """Outputs and gradients, also where experts get no node; 1e-6 of float64."""
    torch.manual_seed(0)
    moe = MixtureOfExperts(8, 5, GROUPED_FROM, 2, 0.0, gates=gates).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(moe.b1)
    torch.nn.init.normal_(moe.b2)
    moe.selection_bias[3] = -torch.inf
    h = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    chosen = moe(h, None, None)[2]
    counts = moe._counts(chosen)
    assert counts is not None
    assert counts[3] == 0
    results = [
        (out, *torch.autograd.grad(out.square().sum(), (h, moe.w1, moe.b2), retain_graph=True))
        for out in (moe._grouped(h, chosen, counts), moe._dense(h, chosen), moe(h, None, None)[0])
    ]
    for found in results[1:]:
        for a, b in zip(results[0], found, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_margin_gates_do_not_jump_where_an_expert_is_exchanged_and_top_k_does() -> None:
    moes = {gates: MixtureOfExperts(4, 4, 4, 2, 0.0, gates=gates) for gates in ("top_k", "margin", "soft")}  # type: ignore[arg-type]
    for gates, moe in moes.items():
        logits = torch.tensor([[[2.0, 1.0, 1.0 + sign * 1e-5, 0.0]] for sign in (-1, 1)])
        found = moe.gate(logits, logits, moe.choose(logits))
        torch.testing.assert_close(found.sum(-1), torch.ones(2, 1))
        assert ((found[0] - found[1]).abs().max() > 0.1) == (gates == "top_k")


def test_pair_values_change_the_answer_and_need_pairs(toys: GraphBatch) -> None:
    model = build_model(MoEGraphTransformerSettings(pair_values=True), toys.layout, seed=1).eval()
    before = score(model, toys)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.pair_values.weight.zero_()
    assert (score(model, toys) - before).abs().mean() > 1e-3
    with pytest.raises(ValueError, match="pair_values needs at least one of pair_features"):
        MoEGraphTransformerSettings(pair_values=True, pair_features=())


def test_pair_values_and_pair_bias_are_two_things(toys: GraphBatch) -> None:
    """With values alone the attention does not know the pairs, with the bias alone it does; either moves the score."""
    x = toys.x.clone()
    x[:, 0, 2] += 1.0  # turn b1: with these features only pairs notice
    turned_b1 = replace(toys, x=x)
    for bias, values in ((True, False), (False, True), (False, False)):
        settings = MoEGraphTransformerSettings(pair_bias=bias, pair_values=values, features=("log_pt", "eta"))
        model = build_model(settings, toys.layout, seed=1).eval()
        model.inputs.fit(toys, toys.weight)
        first = [model(g.x, g.mask, g.node_type) for g in (toys, turned_b1)]
        attention = (first[0].trace.attention - first[1].trace.attention)[:, 0].abs().max()
        assert (attention > 1e-3) == bias
        assert ((first[0].logits - first[1].logits).abs().max() > 1e-3) == (bias or values)


def test_type_embedding_tells_types_apart_that_have_the_same_features(toys: GraphBatch) -> None:
    """A jet called b-jet has the same features; with the mean over all objects only the embedding sees it."""
    node_type = toys.node_type.clone()
    node_type[:, 2] = 1
    for embedded in (True, False):
        settings = MoEGraphTransformerSettings(type_embedding=embedded, pooling="mean")
        model = build_model(settings, toys.layout, seed=1).eval()
        model.inputs.fit(toys, toys.weight)
        change = (score(model, replace(toys, node_type=node_type)) - score(model, toys))[toys.mask[:, 2]].abs()
        assert (change.max() > 1e-3) == embedded


def test_azimuth_itself_is_an_input_that_a_rotation_changes(toys: GraphBatch) -> None:
    """Negative control of the rotation test."""
    for names, exact in ((("sin_dphi", "cos_dphi"), True), (("sin_phi", "cos_phi"), False), (("phi",), False)):
        model = build_model(MoEGraphTransformerSettings(features=("log_pt", *names)), toys.layout, seed=1).eval()
        model.inputs.fit(toys, toys.weight)
        change = (score(model, turned(toys, 2.1)) - score(model, toys)).abs().max()
        assert (change < 2e-4) == exact


def test_learned_noise_has_a_smooth_load_and_shared_experts_no_say(toys: GraphBatch) -> None:
    settings = MoEGraphTransformerSettings(learned_noise=True, shared_experts=True)
    model = build_model(settings, toys.layout, seed=1).eval()
    few = toys[:16]
    quiet = model(few.x, few.mask, few.node_type)
    assert quiet.trace.load is not None
    assert quiet.trace.load.shape == quiet.trace.gates.shape
    noise = torch.randn_like(quiet.trace.gates)
    noisy = model(few.x, few.mask, few.node_type, noise=noise)
    assert not torch.equal(noisy.trace.gates > 0, quiet.trace.gates > 0)
    torch.testing.assert_close(noisy.logits, quiet.logits, atol=TOLERANCE, rtol=0)  # one network, gates sum to 1
    apart = build_model(MoEGraphTransformerSettings(learned_noise=True), toys.layout, seed=1).eval()
    change = apart(few.x, few.mask, few.node_type, noise=noise).logits - apart(few.x, few.mask, few.node_type).logits
    assert change.abs().max() > 1e-3


def test_experts_are_independent_and_the_task_reaches_the_router(toys: GraphBatch) -> None:
    model = build_model(MoEGraphTransformerSettings(), toys.layout, seed=1)
    few = toys[:64]
    functional.cross_entropy(model(few.x, few.mask, few.node_type).logits, few.y).backward()
    moes = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    assert len(moes) == 2
    for moe in moes:
        assert len(torch.unique(moe.w1.flatten(1), dim=0)) == moe.num_experts
        assert moe.router.weight.grad.norm() > 1e-4


def test_replayed_routing_gives_the_same_output_and_another_one_does_not(toys: GraphBatch) -> None:
    model = build_model(MoEGraphTransformerSettings(), toys.layout, seed=1).eval()
    few = toys[:16]
    logits, trace = model(few.x, few.mask, few.node_type)
    routing = trace.gates > 0
    present = routing.any(-1, keepdim=True)
    replayed = model(few.x, few.mask, few.node_type, routing | ~present).logits
    torch.testing.assert_close(replayed, logits, atol=1e-6, rtol=0)
    other = model(few.x, few.mask, few.node_type, routing.roll(1, -1) | ~present).logits
    assert (other - logits).abs().max() > 1e-4


def test_noise_moves_the_choice_node_by_node(toys: GraphBatch) -> None:
    model = build_model(MoEGraphTransformerSettings(), toys.layout, seed=1).eval()
    few = toys[:8]
    quiet = model(few.x, few.mask, few.node_type).trace.gates
    noise = torch.zeros_like(quiet)
    noise[0, 0, 1] = torch.tensor([9.0, 9.0, 0, 0, 0, 0])
    noisy = model(few.x, few.mask, few.node_type, noise=noise).trace.gates
    assert set(torch.nonzero(noisy[0, 0, 1]).flatten().tolist()) == {0, 1}
    assert torch.equal(noisy[1:], quiet[1:])


def test_masked_softmax_has_no_nan_and_sums_to_one_where_something_is_allowed() -> None:
    allowed = torch.tensor([[True, True, False], [False, False, False]])
    result = masked_softmax(torch.tensor([[1.0, 2.0, 99.0], [1.0, 2.0, 3.0]]), allowed)
    torch.testing.assert_close(result.sum(-1), torch.tensor([1.0, 0.0]))
    assert result[0, 2] == 0


@pytest.mark.parametrize("width", [1, 6, 15, 16, 40])
def test_masked_softmax_is_that_of_torch(width: int) -> None:
    """Value and gradient, written out or not; also for scores whose exponential is beyond float32."""
    generator = torch.Generator().manual_seed(0)
    allowed = torch.rand(200, width, generator=generator) < 0.7
    allowed[:, 0] = True
    scores = (200 * torch.randn(200, width, generator=generator)).requires_grad_()
    kept = scores.masked_fill(~allowed, -torch.inf)
    first, second = masked_softmax(scores, allowed), torch.softmax(kept, -1)
    torch.testing.assert_close(first, second)
    weight = torch.arange(width, dtype=torch.float32)
    slopes = [torch.autograd.grad((v * weight).sum(), scores, retain_graph=True)[0] for v in (first, second)]
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-4, rtol=1e-4)


def test_pair_terms_can_be_given(model: Model, toys: GraphBatch) -> None:
    """The model computes them from the two objects alone: given, or as part of a larger graph, nothing changes."""
    few = toys[:20]
    terms = model.pair_terms(few.x, few.mask, few.node_type)
    plain = model(few.x, few.mask, few.node_type).logits
    again = model(few.x, few.mask, few.node_type, pair_terms=terms).logits
    torch.testing.assert_close(again, plain, atol=TOLERANCE, rtol=0)
    twice = [torch.cat([tensor, tensor.roll(1, 0)], 1) for tensor in (few.x, few.mask, few.node_type)]
    larger = model.pair_terms(*twice)
    for small, large in zip(terms, larger, strict=True):
        torch.testing.assert_close(large[:, :5, :5], small, atol=TOLERANCE, rtol=1e-4)
    if terms:
        other = model(few.x, few.mask, few.node_type, pair_terms=tuple(term.roll(1, 0) for term in terms)).logits
        assert (other - plain).abs().max() > 100 * TOLERANCE


def test_node_states_can_be_given(model: Model, toys: GraphBatch) -> None:
    """They are made of the object and of the direction that φ counts from: the first of several leptons' ."""
    few = toys[:20]
    states = model.node_states(few.x, few.mask, few.node_type)
    plain = model(few.x, few.mask, few.node_type).logits
    torch.testing.assert_close(model.logits(few.x, few.mask, few.node_type), plain)
    if states is None:
        return
    again = model.logits(few.x, few.mask, few.node_type, states=states)
    torch.testing.assert_close(again, plain, atol=TOLERANCE, rtol=0)
    twice = [torch.cat([tensor, tensor.roll(1, 0)], 1) for tensor in (few.x, few.mask, few.node_type)]
    larger = model.node_states(*twice)
    assert larger is not None
    torch.testing.assert_close(larger[:, :5], states, atol=TOLERANCE, rtol=1e-4)
    other = model.logits(few.x, few.mask, few.node_type, states=states.roll(1, 0))
    assert (other - plain).abs().max() > 100 * TOLERANCE


def test_attention_looks_at_present_objects_only(toys: GraphBatch) -> None:
    model = build_model(MoEGraphTransformerSettings(self_loops=False), toys.layout, seed=1).eval()
    attention = model(toys.x, toys.mask, toys.node_type).trace.attention
    absent = ~toys.mask
    assert attention.transpose(-1, -2)[absent[:, None, None].expand(attention.shape[:4])].abs().max() == 0
    assert attention.diagonal(dim1=-2, dim2=-1).abs().max() == 0


@pytest.mark.parametrize(("feature", "of"), [("ln_delta_r", "delta_r2"), ("ln_mt2", "mt2"), ("ln_mct2", "mct2")])
def test_narrow_places_are_where_pair_quantities_are_least(toys: GraphBatch, feature: str, of: str) -> None:
    """Oracle: 1001 points on every path. A half width away the quantity has doubled. Absent pairs have none."""
    start, end, kinds, mask = toys.x[:30].double(), toys.x[30:60].double(), toys.node_type[:30], toys.mask[:30]
    soft = 1e-4 if feature == "ln_delta_r" else 1e-2
    if feature != "ln_delta_r":  # a mass is a product with two pt, which are to be constant here
        start[..., 0] = end[..., 0] = 50.0
    one, other = torch.triu_indices(mask.shape[1], mask.shape[1], 1)
    pairs = torch.arange(len(one))

    def quantity(alpha: Tensor) -> Tensor:
        way = start[:, None] + alpha[..., None, None] * (end - start)[:, None]
        return getattr(pair_kinematics(way, kinds[:, None]), of)[..., one, other] + soft

    place, width = narrow_places((feature,), start, end, torch.ones_like(mask), kinds)
    moves = torch.isfinite(width)
    assert bool(moves.any())
    everywhere = quantity(torch.linspace(0, 1, 1001, dtype=torch.float64).expand(30, -1)).amin(1)
    least = quantity(place.clamp(0, 1))[:, pairs, pairs]
    assert bool((least <= everywhere * (1 + 1e-9))[moves].all())
    sharp = moves & (place - width > 0) & (place + width < 1) & (width < 0.1)
    assert int(sharp.sum()) > 5
    for away in (place - width, place + width):
        torch.testing.assert_close(quantity(away)[:, pairs, pairs][sharp], 2 * least[sharp], rtol=0.02, atol=0)
    there = narrow_places((feature,), start, end, mask, kinds)[1].isfinite()
    assert bool((there == (moves & mask[:, one] & mask[:, other])).all())
    assert narrow_places((), start, end, mask, kinds)[0].shape == (30, 0)


def test_pair_kinematics_against_vector(toys: GraphBatch) -> None:
    p = vector.array({name: toys.x[..., i].double().numpy() for i, name in enumerate(("pt", "eta", "phi", "mass"))})
    kinematics = pair_kinematics(toys.x.double(), toys.node_type)
    for i, j in ((0, 1), (1, 3)):
        mass2 = (p[:, i] + p[:, j]).mass2
        np.testing.assert_allclose(kinematics.mass2[:, i, j].numpy(), mass2, rtol=1e-6, atol=1e-3)
        np.testing.assert_allclose(kinematics.delta_r2[:, i, j].numpy() ** 0.5, p[:, i].deltaR(p[:, j]), rtol=1e-6)
    opposite = np.cos(p[:, 0].deltaphi(p[:, 1]))
    for found, sign in ((kinematics.mt2, -1), (kinematics.mct2, 1)):
        expected = 2 * p[:, 0].pt * p[:, 1].pt * (1 + sign * opposite)
        np.testing.assert_allclose(found[:, 0, 1].numpy(), expected, rtol=1e-6, atol=1e-3)
    transverse = 2 * p[:, 3].pt * p[:, 4].pt * (1 - np.cos(p[:, 3].deltaphi(p[:, 4])))
    np.testing.assert_allclose(kinematics.mass2[:, 3, 4].numpy(), transverse, rtol=1e-4, atol=1e-2)


def test_scaling_is_fitted_with_weights_and_ignores_absent_objects(toys: GraphBatch) -> None:
    inputs = Inputs(toys.layout, ("log_pt", "met_significance"), ())
    weight = torch.where(toys.x[:, 0, 0] > 80, 2.0, -0.5).double()
    inputs.fit(toys, weight)
    w = weight.abs()[:, None] * toys.mask
    expected = (w * toys.x[..., 0].clamp(min=1e-3).log()).sum() / w.sum()
    assert float(inputs.mean[0]) == pytest.approx(float(expected), rel=1e-5)
    nodes = inputs.nodes(toys.x, toys.mask, toys.node_type)
    assert nodes[~toys.mask].abs().max() == 0
    assert nodes[:, :4, 1].abs().max() == 0


def test_unknown_feature_is_refused_with_near_names() -> None:
    layout = make_layout(GraphSettings(), ["a"], [0])
    with pytest.raises(ConfigError, match="unknown node feature 'log_p'; closest: 'log_pt'"):
        Inputs(layout, ("log_p",), ())
