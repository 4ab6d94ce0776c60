"""Gradient methods against captum, closed forms and finite differences; the gate; permutation importance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hepx import metrics
from hepx.attribution import METHODS, Subject, explain
from hepx.attribution.baselines import draw, patterns
from hepx.attribution.deeplift import DeepLift
from hepx.attribution.expected_gradients import ExpectedGradients
from hepx.attribution.gradient_shap import GradientShap
from hepx.attribution.gradients import Paths, fixed_routing, nearest_phi, score_function, spreads
from hepx.attribution.input_x_gradient import InputXGradient
from hepx.attribution.integrated_gradients import Course, IntegratedGradients, gauss_legendre, path_integral, samples
from hepx.attribution.permutation_importance import PermutationImportance, exchanged
from hepx.attribution.rescale import Rescale
from hepx.attribution.saliency import Saliency
from hepx.attribution.smooth_grad import SmoothGrad, noise
from hepx.cli import app
from hepx.config import load, parse
from hepx.errors import ConfigError, ResultError
from hepx.graph import GraphBatch
from hepx.models import MODELS, Model, Output, build_model
from hepx.models.base import empty_trace
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.inputs import Inputs
from hepx.results import Explanation, Provenance
from hepx.run import Run, RunSettings

ROOT = Path(__file__).parent.parent


class OfFeatures(Model):
    """A score that is any function of the raw features."""

    def __init__(self, layout: Any, function: Any) -> None:
        super().__init__()
        self.inputs = Inputs(layout, (), ())
        self.function, self.unused = function, nn.Parameter(torch.zeros(1))

    def forward(self, x, mask, node_type, routing=None, noise=None, gain=None, pair_terms=None):  # type: ignore[no-untyped-def]
        score = self.function(x * mask[..., None])
        return Output(torch.stack([torch.zeros_like(score), score], -1), empty_trace(mask, 0))


@pytest.fixture(scope="module")
def model(toys: GraphBatch) -> Model:
    """A small MGT with random weights, scaled inputs and a strong head."""
    settings = MoEGraphTransformerSettings(dim=16, expert_dim=8, num_experts=3, num_heads=2)
    model = build_model(settings, toys.layout, seed=2).eval()
    model.inputs.fit(toys, toys.weight)
    with torch.no_grad():
        model.head[-1].weight *= 20
    return model


@pytest.fixture(scope="module")
def full(toys: GraphBatch) -> GraphBatch:
    """Background events with all five objects."""
    chosen = toys[toys.mask.all(1)]
    return replace(chosen, y=torch.zeros_like(chosen.y))


def subject(model: Model, graphs: GraphBatch, baseline: GraphBatch) -> Subject:
    return Subject(model, model, graphs, baseline, 1, 7)


def inputs(model: Model, one: Subject, draws: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Events, their replacements and the other arguments of the score, row by row."""
    graphs = one.graphs
    donors = draw(next(patterns(graphs, one.baseline)), graphs, draws, one.seed, aligned=True)
    extra = (graphs.mask, graphs.node_type, *fixed_routing(model, graphs.x, graphs.mask, graphs.node_type))
    x = graphs.x[:, None].expand(donors.shape)
    rows = tuple(tensor.repeat_interleave(draws, 0) for tensor in extra)
    return x.flatten(0, 1), nearest_phi(donors, graphs.x[:, None]).flatten(0, 1), rows


def test_integrated_gradients_equal_captum(model: Model, full: GraphBatch, provenance: Provenance) -> None:
    """Oracle: captum with 1000 nodes on every path; the control has two."""
    one = subject(model, full[:3], full)
    x, start, extra = inputs(model, one, 2)
    exact = captum.attr.IntegratedGradients(score_function(model, 1)).attribute(
        x, start, additional_forward_args=extra, n_steps=1000, internal_batch_size=2000
    )
    mean = exact.detach().unflatten(0, (3, 2)).mean(1).numpy()
    found = IntegratedGradients(draws=2, steps=65536, tolerance=1e-4).explain(one, provenance)
    size = np.abs(mean).max()
    np.testing.assert_allclose(found.values, mean, atol=0.005 * size)  # captum's own error is 0.3 %
    rough = IntegratedGradients(draws=2, steps=2).explain(one, provenance)
    assert np.abs(rough.values - mean).max() > 0.02 * size


def test_pieces_are_more_exact_than_as_many_nodes_on_the_whole_path(model: Model, full: GraphBatch) -> None:
    """Oracle: the plain rule with 2048 nodes; the plain rule with 128 is further from it than pieces are."""
    one = subject(model, full[:20], full)
    method = IntegratedGradients(draws=2)
    paths = Paths(method, one, next(patterns(one.graphs, one.baseline)), one.graphs)
    end, starts = paths.ends()
    found = method._integrate(paths, starts.flatten(), end.repeat_interleave(2)).flatten(0, 1)
    exact, plain = (path_integral(paths, torch.arange(40), nodes) for nodes in (2048, 128))
    size = exact.square().mean().sqrt()
    wrong, wrong_plain = (float((v - exact).square().mean().sqrt() / size) for v in (found, plain))
    assert wrong < 0.02
    assert wrong < wrong_plain


def test_nodes_go_slowly_where_objects_pass_one_another(full: GraphBatch) -> None:
    """ln ΔR of the b-jets: ten times as exact on the worst path as evenly laid ones; t and α belong together."""

    def distance(x: Tensor) -> Tensor:
        eta, phi = (x[:, 0, i] - x[:, 1, i] for i in (1, 2))
        return 0.5 * torch.log(eta**2 + 2 * (1 - torch.cos(phi)) + 1e-4)

    network = OfFeatures(full.layout, distance)
    network.inputs = Inputs(full.layout, (), ("ln_delta_r",))
    one = subject(network, full, full)
    paths = Paths(IntegratedGradients(draws=2), one, next(patterns(full, full)), full)
    rows, course = torch.arange(2 * len(full)), Course(*paths.narrow_places())
    begin = torch.zeros(len(rows), dtype=torch.float64)
    exact = path_integral(paths, rows, 1024)
    rule, even = gauss_legendre(31), path_integral(paths, rows, 31)
    slow = rule.sum(samples(paths, course, rows, begin, 1.0, rule.places)[0])
    wrong, wrong_even = (float((v - exact).abs().max()) for v in (slow, even))
    assert wrong < 0.1 * wrong_even
    t = torch.linspace(0, 1, 43, dtype=torch.float64)[1:-1].expand(len(rows), -1)
    alpha, speed = course.nodes(t)
    whole = course.done(torch.ones(len(rows), 1, dtype=torch.float64))
    torch.testing.assert_close(course.done(alpha) / whole, t, atol=1e-6, rtol=0)
    torch.testing.assert_close(speed, whole / course.speed(alpha))
    assert bool((alpha.diff(dim=1) > 0).all())


def test_more_nodes_are_taken_only_where_a_path_needs_them(toys: GraphBatch, provenance: Provenance) -> None:
    """A cubic is exact with the first nodes; a kink is not, and gets two pieces of every length."""
    calls: list[int] = []

    def of(function: Any) -> Any:
        def counted(x: Tensor) -> Tensor:
            if x.requires_grad:
                calls.append(len(x))
            return function(x[:, 4, 0] / 100)

        return counted

    counts = {}
    background = replace(toys, y=torch.zeros_like(toys.y))
    for name, function in (("cubic", lambda pt: pt**3), ("kink", lambda pt: 5 * (pt - 1).relu())):
        calls.clear()
        method = IntegratedGradients(draws=2, steps=256, tolerance=1e-3)
        found = method.explain(subject(OfFeatures(toys.layout, of(function)), toys[:20], background), provenance)
        counts[name] = sum(calls)
        assert found.completeness_error is not None
        assert found.completeness_error.max() < (1e-4 if name == "cubic" else 0.02)
    assert counts["cubic"] == 20 * 2 * 16
    assert counts["cubic"] < counts["kink"] <= 20 * 2 * (2 * 16 + 3 * 2 * 2 * 16 + 2 * 16)


def test_the_gate_says_why_and_can_be_forced(model: Model, toys: GraphBatch, provenance: Provenance) -> None:
    """Free routing jumps where experts are exchanged, whatever the number of nodes; fixed routing does not."""
    background = replace(toys, y=torch.zeros_like(toys.y))
    one = subject(model, toys[:12], background)
    settings: dict[str, Any] = {"routing": "free", "draws": 2, "steps": 64, "max_completeness_error": 0.02}
    with pytest.raises(
        ResultError, match=r"miss the score change by .*: the score jumps wherever .* Use routing: fixed"
    ):
        explain(IntegratedGradients(**settings), one, provenance)
    forced = explain(IntegratedGradients(**settings, force=True), one, provenance)
    assert isinstance(forced, Explanation)
    assert "more than the allowed 2%" in forced.note
    assert "Kept because force is set" in forced.note
    fixed = explain(IntegratedGradients(**{**settings, "routing": "fixed", "steps": 256}), one, provenance)
    assert isinstance(fixed, Explanation)
    assert fixed.note == ""


def test_expected_gradients_of_a_quadratic_form(toys: GraphBatch, full: GraphBatch, provenance: Provenance) -> None:
    """For c · pt_0 · pt_4 the expectation is c Δpt_0 (pt_4 + pt′_4) / 2; the quoted error covers it."""
    quadratic = OfFeatures(toys.layout, lambda x: 2 * x[:, 0, 0] * x[:, 4, 0] / 1e4)
    one = subject(quadratic, full[:40], full[50:51])
    pt, other = full[:40].x[..., 0].double().numpy() / 100, full.x[50, :, 0].double().numpy() / 100
    expected = 2 * (pt[:, 0] - other[0]) * (pt[:, 4] + other[4]) / 2
    for method in (ExpectedGradients(draws=64), GradientShap(draws=256, noise=0.0)):
        found = method.explain(one, provenance)
        assert found.error is not None
        pull = (found.values[:, 0, 0] - expected) / found.error[:, 0, 0]
        assert np.abs(pull).max() < 4
        assert np.sqrt((pull**2).mean()) < (0.5 if isinstance(method, ExpectedGradients) else 1.4)  # slices help
        assert np.abs(found.values[..., 1:]).max() < 1e-6
    assert np.sqrt((pull**2).mean()) > 0.5


def test_gradient_shap_equals_captum(model: Model, full: GraphBatch, provenance: Provenance) -> None:
    """Oracle: captum's GradientShap with the same single donor; equal within the errors of 2000 draws each."""
    one = subject(model, full[:2], full[50:51])
    found = GradientShap(draws=2000, noise=0.0).explain(one, provenance)
    x, start, extra = inputs(model, one, 1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - captum draws from it
    exact = captum.attr.GradientShap(score_function(model, 1)).attribute(
        x, start[:1], n_samples=2000, stdevs=0.0, additional_forward_args=extra
    )
    assert found.error is not None
    first = slice(0, 1)  # captum's baseline is that of the first event: donors are turned per event
    pull = (found.values[first] - exact.detach().numpy()[first]) / (1.5 * found.error[first] + 1e-5)
    assert np.abs(pull).max() < 4


def test_input_x_gradient_is_the_linear_change(model: Model, full: GraphBatch, provenance: Provenance) -> None:
    """Central differences along each feature, and exactness for a linear score."""
    one = subject(model, full[:2], full)
    x, start, extra = inputs(model, one, 2)
    found = InputXGradient(draws=2).explain(one, provenance)
    score = score_function(model, 1)
    step = torch.zeros_like(x)
    step[:, 0, 0] = 0.5
    with torch.no_grad():
        slope = (score(x + step, *extra) - score(x - step, *extra)) / 1.0
    expected = (slope * (x - start)[:, 0, 0]).unflatten(0, (2, 2)).mean(1)
    np.testing.assert_allclose(found.values[:, 0, 0], expected.numpy(), rtol=0.02)
    linear = subject(OfFeatures(full.layout, lambda x: x[..., 0].sum(1) / 100), full[:5], full)
    assert InputXGradient(draws=2).explain(linear, provenance).relative_completeness_error == pytest.approx(0, abs=1e-5)


def test_saliency_is_the_gradient_in_units_of_the_spread(
    model: Model, full: GraphBatch, provenance: Provenance
) -> None:
    one = subject(model, full[:4], full)
    found = Saliency().explain(one, provenance)
    x = one.graphs.x.clone().requires_grad_()
    score_function(model, 1)(x, one.graphs.mask, one.graphs.node_type).sum().backward()
    assert x.grad is not None
    unit = spreads(full)
    np.testing.assert_allclose(found.values, (x.grad.abs() * unit).numpy(), atol=1e-5)
    assert float(unit[0, 0]) == pytest.approx(float(full.x[:, 0, 0].std(correction=0)), rel=1e-4)
    assert float(unit[4, 1]) == 0  # the missing momentum has no pseudorapidity
    assert found.completeness_error is None
    assert found.null is not None


def test_smooth_grad_equals_captum(model: Model, full: GraphBatch, provenance: Provenance) -> None:
    """Oracle: captum's NoiseTunnel over Saliency, in inputs divided by their spread so that one width serves all."""
    one = subject(model, full[:2], full)
    found = SmoothGrad(draws=400, noise=0.1).explain(one, provenance)
    unit = spreads(full).clamp(min=1e-6)
    score, extra = score_function(model, 1), inputs(model, one, 1)[2]
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(lambda z, *rest: score(z * unit, *rest)))
    torch.manual_seed(0)
    exact = tunnel.attribute(
        one.graphs.x / unit, nt_type="smoothgrad", nt_samples=400, stdevs=0.1, additional_forward_args=extra
    )
    assert found.error is not None
    pull = (found.values - exact.detach().numpy()) / (1.5 * found.error + 1e-4)
    assert np.abs(pull).max() < 4.5
    numbers = noise(full, 20, 1)
    assert float(numbers.mean()) == pytest.approx(0, abs=5 / numbers.numel() ** 0.5)
    assert float(numbers.std()) == pytest.approx(1, abs=5 / (2 * numbers.numel()) ** 0.5)


class Plain(nn.Module):
    """A network captum's DeepLift has rules for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.Softplus(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")
def test_deeplift_equals_captum_where_captum_has_rules() -> None:
    torch.manual_seed(1)
    net, x, start = Plain(), torch.randn(50, 6), torch.randn(50, 6)
    exact = captum.attr.DeepLift(net).attribute(x.clone().requires_grad_(), start).detach()
    net.requires_grad_(False)
    both = torch.cat([x, start]).requires_grad_()
    with Rescale():
        value = net(both).sum()
    slope = torch.autograd.grad(value, both)[0][:50]
    torch.testing.assert_close(slope * (x - start), exact, atol=2e-5, rtol=1e-4)
    plain = torch.autograd.grad(net(both).sum(), both)[0][:50]
    assert not torch.allclose(plain * (x - start), exact, atol=0.05)  # the control: gradients are something else


@pytest.mark.parametrize("name", sorted(name for name, (_, model) in MODELS.items() if model.differentiable))
def test_deeplift_adds_up_on_every_model(name: str, toys: GraphBatch, provenance: Provenance) -> None:
    """Attention, products, norms and experts included; the gradient alone does not add up (control)."""
    model = build_model(MODELS[name][0](), toys.layout, 2).eval()
    model.inputs.fit(toys, toys.weight)
    one = subject(model, toys[:6], replace(toys, y=torch.zeros_like(toys.y)))
    error = DeepLift(draws=2).explain(one, provenance).relative_completeness_error
    assert error is not None
    assert error < 1e-4
    control = InputXGradient(draws=2).explain(one, provenance).relative_completeness_error
    assert control is not None
    assert control > 0.2


def test_deeplift_is_refused_where_it_does_not_add_up(toys: GraphBatch, provenance: Provenance) -> None:
    """A maximum over objects has no rule; the score depends on it, so the attributions are not kept."""
    strange = OfFeatures(toys.layout, lambda x: x[..., 0].amax(1) / 100)
    one = subject(strange, toys[:10], replace(toys, y=torch.zeros_like(toys.y)))
    with pytest.raises(
        ResultError, match=r"deeplift: the attributions miss the score change by .* rescale rule does not"
    ):
        explain(DeepLift(draws=2), one, provenance)


def test_permutation_importance_of_a_known_score(toys: GraphBatch, provenance: Provenance) -> None:
    """A score that is MET alone: exchanging MET leaves a coin toss, exchanging anything else changes nothing at all."""
    graphs = replace(toys, y=(toys.x[:, 4, 0] + 20 * torch.randn(400) > 80).long())
    one = subject(OfFeatures(toys.layout, lambda x: x[:, 4, 0] / 100), graphs, graphs)
    found = PermutationImportance(repeats=4, replicas=40).explain(one, provenance)
    before = metrics.auc(graphs.y.numpy(), graphs.x[:, 4, 0].numpy(), np.ones(400))
    assert found.auc == pytest.approx(before)
    met = found.players.index("met.pt")
    assert found.delta_auc[met] == pytest.approx(0.5 - before, abs=4 * found.error[met])
    assert found.error[met] < 0.1
    others = np.arange(len(found.players)) != met
    assert np.abs(found.delta_auc[others]).max() == 0
    assert found.error[others].max() == 0
    assert found.delta_z is not None
    assert found.delta_z_error is not None
    assert found.delta_z[met] < -2 * found.delta_z_error[met]
    assert np.abs(found.delta_z[others]).max() == 0


def test_exchanged_features_are_those_of_another_event(toys: GraphBatch) -> None:
    """The multiset of values is kept inside events of the same objects; Δφ to the lepton travels with the object."""
    groups = list(patterns(toys, toys))
    players = {"met": ("met",)}
    x = exchanged(toys, groups, 0, players, seed=1)
    assert torch.equal(x[:, :4], toys.x[:, :4])
    assert torch.equal(x[:, 4, 0].sort().values, toys.x[:, 4, 0].sort().values)
    assert (x[:, 4, 0] != toys.x[:, 4, 0]).double().mean() > 0.9
    theirs, mine = (torch.remainder(t[:, 4, 2] - t[:, 3, 2], 2 * torch.pi).sort().values for t in (x, toys.x))
    torch.testing.assert_close(theirs, mine, atol=1e-4, rtol=0)


def test_every_method_is_named_where_a_user_looks() -> None:
    """In the registry by its own name, in configs/explain_all.yaml, and in the help of `hepx explain`."""
    assert all(method.model_fields["method"].default == name for name, method in METHODS.items())
    settings = parse(RunSettings, load(ROOT / "configs" / "explain_all.yaml"), "explain_all")
    assert {method.model_dump()["method"] for method in settings.explain} == set(METHODS)
    epilog = next(
        command.epilog
        for command in app.registered_commands
        if command.name == "explain" or (command.callback is not None and command.callback.__name__ == "explain")
    )
    assert epilog is not None
    assert all(name in epilog for name in METHODS)


def test_a_method_can_be_added_by_name(tmp_path: Path) -> None:
    """With its default settings and without touching those of the config; two results of one name are refused."""
    config = ROOT / "configs" / "quickstart.yaml"
    plain, more = (Run.from_config(config, [], tmp_path, methods).settings for methods in ((), ("owen", "shapley")))
    assert more.explain == (*plain.explain, METHODS["owen"]())
    with pytest.raises(ConfigError, match="unknown method 'owne'; closest: 'owen'"):
        Run.from_config(config, [], tmp_path, ("owne",))
    with pytest.raises(ConfigError, match=r"two methods would write explain/shapley.npz"):
        Run.from_config(config, ["explain.1={method: shapley}"], tmp_path)
