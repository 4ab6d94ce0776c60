"""Attention: every number against a case whose answer is known, and against the network's own arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from insides_models import mixed_graphs, small_network
from torch import Tensor

from hepx.attention import attention_map, heads, observe
from hepx.attention.observations import correlations, entropy, pair_quantities, rollout, slot_share, top_columns
from hepx.errors import ResultError
from hepx.graph import GraphBatch
from hepx.interventions import Referee, attention_names, balanced_weight
from hepx.models import MODELS, Model, build_model, predict
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.layers import masked_softmax
from hepx.models.paper import PaperMGTSettings
from hepx.nulls import Null
from hepx.results import Provenance
from hepx.results_network import AttentionMap

KINDS = {
    "mgt": MoEGraphTransformerSettings(dim=16, expert_dim=8, num_heads=2, pair_values=True),
    "post_norm": MoEGraphTransformerSettings(dim=16, expert_dim=8, num_heads=2, norm="post", pair_bias=False),
    "paper_qv": PaperMGTSettings(dim=16, attention_scores="qv"),
    "particle": MODELS["particle_transformer"][0](dim=16, num_heads=2),
}


@pytest.fixture(scope="module")
def mixed() -> GraphBatch:
    return mixed_graphs(900, 5)


@pytest.fixture(scope="module")
def network(mixed: GraphBatch) -> Model:
    return small_network(mixed, 2)


@pytest.fixture(scope="module")
def found(mixed: GraphBatch, network: Model, provenance: Provenance) -> AttentionMap:
    nulls = [Null("untrained", small_network(mixed, 3)), Null("shuffled", small_network(mixed, 4))]
    result = attention_map(network, nulls, Referee(network, mixed, 1, 1), provenance)
    assert result is not None
    return result


def fitted(mixed: GraphBatch, kind: str) -> Model:
    model = build_model(KINDS[kind], mixed.layout, 1).eval()
    model.inputs.fit(mixed, mixed.weight)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_layer_are_those_the_network_computes_with(mixed: GraphBatch, kind: str) -> None:
    """Scores from queries, keys and bias give the attention of the trace; messages give the output of the layer."""
    model = fitted(mixed, kind)
    for _, output, layers in heads.run_layers(model, mixed[:50]):
        for i, layer in enumerate(layers):
            scores = layer.scores(layer.project(layer.h, 0), layer.project(layer.h, layer.key_index))
            scores = scores if layer.bias is None else scores + layer.bias
            attention = masked_softmax(scores, layer.allowed[:, None])
            torch.testing.assert_close(attention, output.trace.attention[:, i], atol=1e-6, rtol=1e-4)
            mixed_in = torch.einsum("bhij,bhijd->bid", attention, layer.messages()) + layer.module.out.bias
            if kind != "particle":
                expected, _ = layer.module(layer.h, layer.allowed, layer.bias, layer.pairs)
                torch.testing.assert_close(mixed_in, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_replaced_by_what_it_always_says(mixed: GraphBatch, kind: str) -> None:
    """A head whose values do not depend on the object loses nothing; negative control: another head does."""
    model = fitted(mixed, kind)
    name = attention_names(model)[0]
    module = model.get_submodule(name)
    with torch.no_grad():
        dim = module.out.in_features
        module.qkv.weight[2 * dim : 2 * dim + dim // 2] = 0
        module.qkv.bias[2 * dim : 2 * dim + dim // 2] = 0.3
        if kind == "mgt":
            module.pair_values.weight[:, : module.pair_values.in_features // 2] = 0
    seen = observe(model, mixed, 1)
    before = predict(model, mixed)
    same = predict(heads.without_head(model, name, 0, seen.head_output[0, 0]), mixed)
    torch.testing.assert_close(same, before, atol=1e-5, rtol=1e-4)
    other = predict(heads.without_head(model, name, 1, seen.head_output[0, 1]), mixed)
    assert (other - before).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_hidden_column_gets_nothing_from_this_head(mixed: GraphBatch, kind: str) -> None:
    model = fitted(mixed, kind)
    changed = heads.without_column(model, attention_names(model)[0], 1, 4)
    few = mixed[:60]
    before, after = (m(few.x, few.mask, few.node_type).trace.attention[:, 0] for m in (model, changed))
    assert after[:, 1, :4, 4].abs().max() == 0
    assert torch.equal(after[:, 0], before[:, 0])
    assert before[:, 1, :4, 4].max() > 0.05
    torch.testing.assert_close(after[:, 1].sum(-1), before[:, 1].sum(-1))


def all_allowed(graphs: GraphBatch) -> Tensor:
    return graphs.mask[:, :, None] & graphs.mask[:, None, :]


def as_attention(values: Tensor, allowed: Tensor) -> Tensor:
    """One layer, one head."""
    values = values * allowed
    return (values / values.sum(-1, keepdim=True).clamp(min=1e-9))[:, None, None]


def test_entropy_of_even_and_of_single_looks(mixed: GraphBatch) -> None:
    allowed, weight = all_allowed(mixed), balanced_weight(mixed)
    even = as_attention(torch.ones(allowed.shape), allowed)
    one = as_attention(torch.eye(5).expand(allowed.shape), allowed)
    assert entropy(even, allowed, weight)[0].item() == pytest.approx(1)
    assert entropy(one, allowed, weight)[0].item() == pytest.approx(0)


def test_slot_share_of_a_fixed_map_and_of_chance(mixed: GraphBatch) -> None:
    full = mixed[mixed.mask.all(1)]
    allowed, weight = all_allowed(full), balanced_weight(full)
    generator = torch.Generator().manual_seed(0)
    fixed = torch.rand(5, 5, generator=generator).expand(allowed.shape)
    chance = torch.rand(allowed.shape, generator=generator)
    assert slot_share(as_attention(fixed, allowed), allowed, weight).item() == pytest.approx(1)
    assert slot_share(as_attention(chance, allowed), allowed, weight).item() < 0.1  # 25 cells of 450 events


def test_rollout_is_a_distribution_and_stays_where_every_layer_stays(mixed: GraphBatch) -> None:
    generator = torch.Generator().manual_seed(0)
    random = torch.softmax(torch.randn(6, 3, 2, 5, 5, generator=generator), -1)
    through = rollout(random)
    torch.testing.assert_close(through.sum(-1), torch.ones(6, 3, 5))
    stays = torch.eye(5).expand(6, 3, 2, 5, 5)
    assert torch.equal(rollout(stays), torch.eye(5).expand(6, 3, 5, 5))
    step = 0.5 * (random.mean(2) + torch.eye(5))
    torch.testing.assert_close(through[:, 2], step[:, 2] @ step[:, 1] @ step[:, 0])


def test_correlation_inside_slots_finds_what_the_attention_follows(mixed: GraphBatch) -> None:
    """A head that looks at heavy pairs: rank correlation 1 with the mass in every slot pair. Negative control: the same
    values shuffled among the events follow nothing, although the slots differ by orders of magnitude."""
    mass = pair_quantities(mixed)[..., 2]
    offset = torch.arange(25).reshape(5, 5) * 1e4
    follows = (mass.sqrt() + offset).float()[:, None, None]
    value, error = correlations(follows, mixed)
    off_diagonal = ~np.eye(5, dtype=bool)
    np.testing.assert_allclose(value[0, 0, 2][off_diagonal], 1, atol=2e-3)  # ties of float32 after the offset
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(1))
    shuffled, _ = correlations(follows[order], mixed)
    assert np.nanmax(np.abs(shuffled / error)) < 5


def test_top_column_is_the_most_looked_at(mixed: GraphBatch) -> None:
    allowed, weight = all_allowed(mixed), balanced_weight(mixed)
    even = top_columns(as_attention(torch.ones(allowed.shape), allowed), allowed, weight)[0][0]
    assert even.ratio == pytest.approx(1)
    assert even.share == 0
    values = torch.ones(allowed.shape)
    values[:, :, 3] = 1e3
    sink = top_columns(as_attention(values, allowed), allowed, weight)[0][0]
    assert sink.slot == 3
    assert sink.share == 1
    assert sink.ratio == pytest.approx(float(allowed.sum(-1).max(-1).values.double().mean()), rel=0.01)


def test_logit_shares_of_networks_that_use_one_part_only(mixed: GraphBatch) -> None:
    """Without queries and keys all is pair bias; without kinematics all is type × type; shares add up to one."""
    bias_only, types_only = small_network(mixed, 5), small_network(mixed, 5)
    with torch.no_grad():
        for name in attention_names(bias_only):
            bias_only.get_submodule(name).qkv.weight[: 2 * 16] = 0
            bias_only.get_submodule(name).qkv.bias[: 2 * 16] = 0
        types_only.embed.weight.zero_()
        types_only.pair_network[-1].weight.zero_()
        types_only.pair_network[-1].bias.zero_()
    np.testing.assert_allclose(observe(bias_only, mixed, 1).logit_shares[..., 3], 1, atol=1e-5)
    np.testing.assert_allclose(observe(types_only, mixed, 1).logit_shares[0, :, 0], 1, atol=1e-4)
    np.testing.assert_allclose(observe(small_network(mixed, 5), mixed, 1).logit_shares.sum(-1), 1, atol=1e-9)


def test_maps_are_weighted_means(mixed: GraphBatch, network: Model, provenance: Provenance) -> None:
    weight = torch.where(torch.arange(len(mixed)) % 3 == 0, -0.5, 1.0).double()
    graphs = replace(mixed, weight=weight)
    nulls = [Null("untrained", network)]
    result = attention_map(network, nulls, Referee(network, graphs, 1, 1), provenance)
    assert result is not None
    values = observe(network, graphs, 1).attention.double()
    expected = float((weight * values[:, 1, 0, 0, 1]).sum() / weight.sum())
    np.testing.assert_allclose(result.mean[0, 1, 0, 0, 1], expected, rtol=1e-9)
    both = graphs.mask[:, 2]
    expected = float((weight * values[:, 0, 1, 2, 4])[both].sum() / weight[both].sum())
    np.testing.assert_allclose(result.mean[0, 0, 1, 2, 4], expected, rtol=1e-9)
    np.testing.assert_array_equal(result.mean, result.null)  # the null is the network itself
    np.testing.assert_array_equal(result.entropy, result.entropy_null[0])
    assert np.isnan(result.shuffled).all()
    for name in ("value_norm", "rollout"):
        np.testing.assert_array_equal(getattr(result, name), getattr(result, f"{name}_null"))
        assert np.isnan(getattr(result, f"{name}_shuffled")).all()
    assert result.sinks_null == (result.sinks,)
    assert result.knock_out_null == (tuple(e for e in result.knock_out if e.where == "all events"),)


def test_a_null_network_is_judged_as_itself(found: AttentionMap, mixed: GraphBatch, provenance: Provenance) -> None:
    """Every number of a null network is that of the same network analysed as the trained one; the second of a kind is
    observed, but nothing is taken out of it. Negative control: the two networks differ in each number."""
    nulls = [Null("untrained", small_network(mixed, seed)) for seed in (3, 4)]
    result = attention_map(small_network(mixed, 2), nulls, Referee(small_network(mixed, 2), mixed, 1, 1), provenance)
    own = attention_map(nulls[0].model, nulls, Referee(nulls[0].model, mixed, 1, 1), provenance)
    assert result is not None
    assert own is not None
    for name in ("value_norm", "rollout"):
        np.testing.assert_array_equal(getattr(result, f"{name}_null"), getattr(own, name))
        assert np.nanmax(np.abs(getattr(result, name) - getattr(own, name))) > 0.01
        assert np.nanmin(getattr(result, f"{name}_error")) >= 0
    assert result.sinks_null[0] == own.sinks != result.sinks
    assert result.knock_out_null[0] == tuple(e for e in own.knock_out if e.where == "all events")
    assert all(e.delta_auc is not None for e in result.knock_out_null[0])
    assert [s.ratio for s in result.sinks_null[1]] == [s.ratio for s in found.sinks_null[1]]
    assert {s.delta_auc for s in result.sinks_null[1]} == {None}
    assert result.knock_out_null[1] == ()
    assert all(s.delta_auc is not None for s in found.sinks_null[1])  # there the first shuffled one


def test_result_survives_a_file_and_an_old_one_is_refused(found: AttentionMap, tmp_path: Path) -> None:
    found.save(tmp_path / "attention.npz")
    again = AttentionMap.load(tmp_path / "attention.npz")
    for name, value in vars(found).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(again, name))
        else:
            assert value == getattr(again, name)
    assert found.null_kinds == ("untrained", "shuffled")
    assert len(found.sinks) == found.entropy.size
    with np.load(tmp_path / "attention.npz") as file:
        np.savez(tmp_path / "old.npz", **{name: file[name] for name in file.files if name != "entropy"})
    with pytest.raises(ResultError, match=r"written by another version: AttentionMap lacks entropy\. Run"):
        AttentionMap.load(tmp_path / "old.npz")


def test_models_without_attention_have_no_such_result(mixed: GraphBatch, provenance: Provenance) -> None:
    model = build_model(MODELS["mlp"][0](), mixed.layout, 1)
    assert attention_map(model, [Null("untrained", model)], Referee(model, mixed, 1, 1), provenance) is None
