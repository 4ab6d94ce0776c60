"""Level 3: do the analyses of the experts tell the truth about mixtures whose experts are known?

They see the events of `mix` (m_bb where there is no third jet, m_T where there is one), or of `two`, where the same two
mechanisms belong to classes of events that look alike: no router can separate them, so whatever an expert does, the
choice of expert must not tell the class. (Its loss may cost more in one class: the labels know the class.) Adding one =
one entry in EXPERT_CASES: how the network is made, and what the analyses must find.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from hepx.experts import expert_report
from hepx.experts.changes import PARAMETERS
from hepx.experts.information import INTERVAL
from hepx.experts.routing import gates_of
from hepx.experts.stability import stability
from hepx.experts.surrogate import surrogate
from hepx.experts.verdict import SAME, SMALLEST_BITS, exceeding
from hepx.graph import GraphBatch, Layout
from hepx.interventions import Referee, mixtures, separated
from hepx.models import Model, Output, Trace
from hepx.models.inputs import Inputs
from hepx.models.layers import MixtureOfExperts, mean_pool
from hepx.nulls import Null
from hepx.planted.judge import Check, Criterion
from hepx.planted.mechanisms import CLASSES, MECHANISMS, hidden_class
from hepx.probes import halves
from hepx.representation.sparsity import critical_sparsity
from hepx.results import Array, Provenance
from hepx.results_network import ExpertReport

LEVEL = 3
PARTS = ("mbb", "mt")  # the mechanism without, and with a third jet
DEAD = (0, 0)  # layer and number of the expert that is never chosen
RANDOM_ORACLES = 4
FLAG = 0.05  # of a third jet; small beside the scores, so that a router with random weights hardly follows it
REGIONS = ("without j3", "with j3")
IDENTICAL, NOTHING = "experts identical", "no functional specialization"


class OracleNetwork(Model):
    """One layer, gates to one expert: expert 1 hands on the score of m_bb, expert 2 that of m_T, the third is never
    chosen; the router looks whether there is a third jet. A GELU expert is exactly linear: gelu(x) − gelu(−x) = x."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.inputs = Inputs(layout, (), ())
        self.slots = layout.slots
        self.mixture = MixtureOfExperts(3, 2, 3, 1, 0.0)
        self.last = nn.Identity()
        with torch.no_grad():
            self.mixture.router.weight.copy_(torch.tensor([[0.0, 0, -1], [0, 0, 1], [0, 0, 0]]) / FLAG)
            self.mixture.w1.zero_()
            self.mixture.w2.zero_()
            for expert in range(2):
                self.mixture.w1[expert, expert] = torch.tensor([1.0, -1.0])
                self.mixture.w2[expert, :, 0] = torch.tensor([1.0, -1.0])

    def stream_names(self) -> tuple[str, ...]:
        """See `Model.stream_names`."""
        return ("mixture", "last")

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        node_type: Tensor,
        routing: Tensor | None = None,
        noise: Tensor | None = None,
        gain: Tensor | None = None,
        pair_terms: tuple[Tensor, ...] | None = None,
    ) -> Output:
        """Logits 0 and the score of the mechanism at work."""
        parts = [MECHANISMS[name].score(x, node_type, self.slots) for name in PARTS]
        parts.append(FLAG * (2.0 * mask[:, self.slots.index("j3")] - 1))
        h = torch.stack(parts, -1)[:, None].expand(-1, x.shape[1], -1)
        out, router_logits, gates, _ = self.mixture(h, None if routing is None else routing[:, 0], None)
        score = mean_pool(self.last(out), mask)[:, 0]
        logits = torch.stack([torch.zeros_like(score), score], -1)
        attention = torch.zeros(len(x), 1, 0, x.shape[1], x.shape[1])
        return Output(logits, Trace(attention, router_logits[:, None], (gates * mask[..., None])[:, None]))


def random_oracles(layout: Layout, number: int = RANDOM_ORACLES) -> list[Null]:
    """The same network with random weights."""
    found = []
    for seed in range(number):
        model = OracleNetwork(layout)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.normal_()
        found.append(Null("untrained", model.eval()))
    return found


@dataclass(frozen=True)
class Setting:
    """What the cases are made of: events, the network trained on them, untrained ones and one trained on shuffled
    labels."""

    graphs: GraphBatch
    trained: Model
    untrained: Sequence[Model]
    shuffled: Model
    seed: int

    def nulls(self, but: Model) -> list[Null]:
        """Null networks for a network, without itself."""
        kinds = [*(("untrained", model) for model in self.untrained), ("shuffled", self.shuffled)]
        return [Null(kind, model) for kind, model in kinds if model is not but]


def cloned(model: Model) -> Model:
    """A copy in which every expert is the first of its layer."""
    changed = copy.deepcopy(model).eval()
    with torch.no_grad():
        for mixture in mixtures(changed):
            for name in PARAMETERS:
                parameter = getattr(separated(mixture), name)
                parameter.copy_(parameter[:1].clone().expand_as(parameter))
    return changed


def deadened(model: Model) -> Model:
    """A copy in which one expert is never chosen."""
    changed = copy.deepcopy(model).eval()
    layer, expert = DEAD
    mixtures(changed)[layer].selection_bias[expert] = -torch.inf
    return changed


# What must be found -----------------------------------------------------------------------------------------------

Answers = Iterator[Check]


def _answer(analysis: str, what: str, value: float | None, criterion: Criterion, error: float | None = None) -> Check:
    passed = value is not None and criterion.met(value)
    return Check(LEVEL, "", analysis, what, value, error, str(criterion), passed)


def _holds(analysis: str, wanted: str, passed: bool, text: str = "") -> Check:
    return Check(LEVEL, "", analysis, wanted, None, None, wanted, passed, text)


def _says(report: ExpertReport, words: Sequence[str]) -> Check:
    """All of the words are in the verdict."""
    passed = all(word in report.verdict for word in words)
    wanted = ", ".join(f"“{word}”" for word in words)
    return _holds("verdict", f"says {wanted}", passed, report.verdict)


def _swap(report: ExpertReport, criterion: Criterion) -> Check:
    swaps = [effect for effect in report.effects if effect.kind == "swap" and effect.where == "all events"]
    worst = max(swaps, key=lambda effect: abs(effect.delta_auc or 0.0))
    return _answer("swap", "largest |ΔAUC| of exchanged experts", abs(worst.delta_auc or 0.0), criterion, worst.error)


def _likeness(report: ExpertReport, criterion: Criterion) -> Check:
    smallest = min(float(np.min(table)) for table in report.similarity)
    return _answer("likeness", "smallest CKA of two experts", smallest, criterion)


def _information(report: ExpertReport, criterion: Criterion) -> Check:
    regions = (one for one in report.information if one.about in (*REGIONS, *CLASSES))
    best = max(regions, key=lambda one: one.excess)
    what = "I(expert; mechanism | slot) of the best layer beyond the nulls, bit"
    found = _answer("information", what, best.excess, criterion, (best.high - best.low) / (2 * INTERVAL))
    return replace(found, text=f"layer {best.layer + 1}: {best.value:.3f} bit, largest null {max(best.nulls):.3f}")


def _told(report: ExpertReport) -> Check:
    """Number of variables that the choice is said to tell beyond chance."""
    number = float(len(exceeding(report.information)))
    return _answer(
        "variables told", "observables that the choice tells beyond the nulls", number, Criterion(0.0, at_least=False)
    )


def _of_oracle(report: ExpertReport) -> Answers:
    table = next(table for table in report.tables if table.by in REGIONS)
    gates = np.asarray(table.gates, dtype=np.float64)[0]  # [not in the region, in it] × experts
    right = gates if table.by == "with j3" else gates[::-1]
    what = "smallest share of the nodes at the expert of the mechanism"
    yield _answer("routing", what, float(min(right[0, 0], right[1, 1])), Criterion(1 - 1e-9))
    lost = [report.effect("knock_out", 0, expert, where) for expert, where in enumerate(REGIONS)]
    worst = min(lost, key=lambda effect: effect.selectivity or 0.0)
    what = "smaller selectivity of the two experts in their events"
    yield _answer("knock-out", what, worst.selectivity, Criterion(0.9), worst.selectivity_error)
    yield _answer(
        "different weights", "experts with different weights", float(report.distinct_experts[0]), Criterion(3.0)
    )
    yield _holds("dead experts", "lists the third, and no other", report.dead == [[0, 2]])
    yield _swap(report, Criterion(0.1))
    yield _information(report, Criterion(0.8))
    yield from _forced(report)
    yield from _probed(report)
    carries = [f"expert {i + 1} of layer 1 carries {PARTS[i]} in events {where}" for i, where in enumerate(REGIONS)]
    yield _says(report, carries)


def _forced(report: ExpertReport) -> Answers:
    """All nodes at one expert: nothing changes in its events, and nothing is told in the others, where the score of the
    other mechanism counts. The third expert answers 0 to all, so what it loses is the AUC beyond ½."""
    own = [abs(report.effect("forced", 0, i, where).delta_auc or 0.0) for i, where in enumerate(REGIONS)]
    what = "largest |ΔAUC| in the events of the expert that gets all nodes"
    yield _answer("forced routing", what, max(own), Criterion(0.0, at_least=False))
    there = [[report.effect("forced", 0, i, where) for i in (expert, 2)] for expert, where in enumerate(REGIONS[::-1])]
    left = [abs((one.delta_auc or 0.0) - (none.delta_auc or 0.0)) for one, none in there]
    error = max(one.error or 0.0 for one, _ in there)
    what = "largest |AUC − ½| in the other events"
    yield _answer("forced routing", what, max(left), Criterion(0.05, at_least=False), error)


def _probed(report: ExpertReport) -> Answers:
    """An expert hands on its own observable, not linearly, and nothing of the other."""
    found = {(one.where, one.observable): one for one in report.probes}
    own, other = ([found[f"expert {i + 1}", name] for i, name in enumerate(names)] for names in (PARTS, PARTS[::-1]))
    least, most = min(own, key=lambda one: one.value), max(other, key=lambda one: one.value)
    yield _answer("probes", "smaller R² of an expert's observable", least.value, Criterion(0.2), least.error)
    what = "larger R² of the other expert's observable"
    yield _answer("probes", what, most.value, Criterion(0.02, at_least=False), most.error)


def _beside_oracle(setting: Setting) -> Answers:
    """A tree that is told the number of jets is the router, and is none of a router that decides at random; of the two
    units of an expert the larger one is enough, as one of gelu(x) and gelu(−x) is nearly 0, and a random one is not."""
    graphs, model = setting.graphs, OracleNetwork(setting.graphs.layout).eval()
    observables = graphs.observables.clone()
    observables[:, graphs.layout.observable_index("n_jet")] = graphs.mask[:, graphs.layout.slots.index("j3")].double()
    told, gates = replace(graphs, observables=observables), gates_of(model, graphs)
    at_random = gates[torch.randperm(len(gates), generator=torch.Generator().manual_seed(setting.seed))]
    at_random = at_random * graphs.mask[:, None, :, None]
    fitted = halves(graphs, setting.seed)
    (tree,), (chance,) = (surrogate(choice, told, fitted, setting.seed) for choice in (gates, at_random))
    yield _answer("surrogate", "fidelity of the tree", tree.fidelity, Criterion(1 - 1e-9), tree.error)
    what = "fidelity to choices of other events, beyond the share of the largest expert"
    beyond = chance.fidelity - chance.largest
    yield _answer("surrogate", what, beyond, Criterion(0.02, at_least=False), chance.error)
    whole, *_, third = critical_sparsity(model, Referee(model, graphs, 1, setting.seed), "oracle")
    what = "|critical sparsity of all experts − ½|"
    yield _answer("sparsity", what, abs(whole.critical - 0.5), Criterion(0.0, at_least=False))
    what = "that of units taken at random"
    yield _answer("sparsity", what, whole.control, Criterion(0.0, at_least=False))
    yield _answer("sparsity", "that of the expert which is never chosen", third.critical, Criterion(1.0))


def renamed(model: Model) -> Model:
    """A copy in which the experts of every layer have other numbers; its score is the same."""
    changed = copy.deepcopy(model).eval()
    with torch.no_grad():
        for mixture in mixtures(changed):
            for parameter in [getattr(separated(mixture), name) for name in PARAMETERS]:
                parameter.copy_(parameter.roll(1, 0))
            for tensor in (mixture.router.weight, mixture.selection_bias):
                tensor.copy_(tensor.roll(1, 0))
    return changed


def _beside_mix(setting: Setting) -> Answers:
    """Routers are compared up to the numbers of the experts; choices made for other objects agree by chance only."""
    graphs = setting.graphs
    untrained = [gates_of(model, graphs) for model in setting.untrained[:2]]
    gates, copied = (gates_of(model, graphs) for model in (setting.trained, renamed(setting.trained)))
    event, slot = graphs.mask.nonzero(as_tuple=True)
    order = torch.randperm(len(event), generator=torch.Generator().manual_seed(setting.seed))
    other = torch.zeros_like(gates)
    other[event, :, slot] = gates[event[order], :, slot[order]]
    same, chance = (stability([gates, beside], untrained, graphs) for beside in (copied, other))
    what = "smallest adjusted Rand index with a copy whose experts have other numbers"
    yield _answer("stability", what, min(one.ari for one in same), Criterion(1 - 1e-9))
    what = "largest |adjusted Rand index| with the choices for other objects"
    yield _answer("stability", what, max(abs(one.ari) for one in chance), Criterion(0.02, at_least=False))


def _nothing(setting: Setting) -> Answers:
    del setting
    return iter(())


def _of_clone(report: ExpertReport) -> Answers:
    number = float(max(report.distinct_experts))
    yield _answer("different weights", "experts with different weights", number, Criterion(1.0, at_least=False))
    yield _likeness(report, Criterion(SAME))
    yield _swap(report, Criterion(0.0, at_least=False))
    yield _says(report, [IDENTICAL])


def _of_dead(report: ExpertReport) -> Answers:
    layer, expert = DEAD
    yield _holds("dead experts", "lists the one that is never chosen", [layer, expert] in report.dead)
    lost = abs(report.effect("knock_out", layer, expert).delta_auc or 0.0)
    yield _answer("knock-out", "|ΔAUC| without the dead expert", lost, Criterion(0.0, at_least=False))
    named = f"expert {expert + 1} of layer {layer + 1} "
    yield _holds("verdict", f"does not name {named}", named not in report.verdict, report.verdict)


def _of_mix(report: ExpertReport) -> Answers:
    yield _information(report, Criterion(0.3))
    yield _holds("dead experts", "lists none", not report.dead)
    yield _says(report, ["differ in function"])


def _of_null(report: ExpertReport) -> Answers:
    yield _information(report, Criterion(0.05, at_least=False))
    yield _told(report)
    yield _says(report, [NOTHING])


def _of_hidden(report: ExpertReport) -> Answers:
    yield _information(report, Criterion(SMALLEST_BITS, at_least=False))
    told = {one.about for one in exceeding(report.information)}
    passed = bool(told & set(PARTS)) and not told & set(CLASSES)  # nor is the analysis blind
    yield _holds("variables told", "m_bb or m_T, not the hidden class", passed, ", ".join(sorted(told)))


def _third_jet(graphs: GraphBatch) -> dict[str, Array]:
    has_third = graphs.mask[:, graphs.layout.slots.index("j3")].numpy()
    return dict(zip(REGIONS, (~has_third, has_third), strict=True))


def _hidden(graphs: GraphBatch) -> dict[str, Array]:
    drawn = hidden_class(graphs).numpy()
    return {name: drawn == number for number, name in enumerate(CLASSES)}


@dataclass(frozen=True)
class ExpertCase:
    """A mixture whose experts are known. what: in words; make: the network; judge: what must be found; mechanism: whose
    events; regions: where which mechanism is at work, name -> events [B]; beside: what must be found by analyses
    outside of the report on experts."""

    what: str
    make: Callable[[Setting], Model]
    judge: Callable[[ExpertReport], Answers]
    mechanism: str = "mix"
    regions: Callable[[GraphBatch], dict[str, Array]] = _third_jet
    beside: Callable[[Setting], Answers] = _nothing

    def report(self, setting: Setting) -> ExpertReport:
        """The analyses of the experts, as a run makes them."""
        graphs, model = setting.graphs, self.make(setting)
        known = isinstance(model, OracleNetwork)
        nulls = random_oracles(graphs.layout) if known else setting.nulls(model)
        referee = Referee(model, graphs, 1, setting.seed, self.regions(graphs))
        found = expert_report(model, nulls, referee, Provenance("", {}, "", "", "", setting.seed, "", "", "cpu"))
        assert found is not None
        return found


EXPERT_CASES: dict[str, ExpertCase] = {
    "oracle": ExpertCase(
        "made by hand: the router knows the mechanism, one expert each, a third is never chosen",
        lambda setting: OracleNetwork(setting.graphs.layout).eval(),
        _of_oracle,
        beside=_beside_oracle,
    ),
    "mix": ExpertCase("trained on the mixture", lambda setting: setting.trained, _of_mix, beside=_beside_mix),
    "clone": ExpertCase(
        "the trained one with copies of its first expert", lambda setting: cloned(setting.trained), _of_clone
    ),
    "dead": ExpertCase(
        "the trained one, of which one expert is never chosen", lambda setting: deadened(setting.trained), _of_dead
    ),
    "untrained": ExpertCase("untrained", lambda setting: setting.untrained[0], _of_null),
    "shuffled": ExpertCase("trained on shuffled labels", lambda setting: setting.shuffled, _of_null),
    "two": ExpertCase(
        "trained on two classes that look alike", lambda setting: setting.trained, _of_hidden, "two", _hidden
    ),
}
"""Name -> mixture."""


def expert_checks(name: str, setting: Setting) -> list[Check]:
    """Everything that is asked of one mixture."""
    case = EXPERT_CASES[name]
    found = (*case.judge(case.report(setting)), *case.beside(setting))
    return [replace(check, case=name) for check in found]
