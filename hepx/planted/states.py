"""Level 4: do the analyses of node states and attention heads tell the truth about networks whose task is known?

The labels depend on one observable of a pair of objects, and not on another one: so it is known what the last states
must hold, and what a network cannot need. The same is asked of networks that have learned nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from hepx import metrics
from hepx.attention import attention_map, heads, observe, sinks
from hepx.graph import GraphBatch
from hepx.interventions import EVERYWHERE, Referee, attention_names, balanced_weight
from hepx.models import Model
from hepx.nulls import Null
from hepx.planted.bayes import MAX_AUC_LOSS
from hepx.planted.judge import Check, Criterion
from hepx.representation import erase, representation, stream
from hepx.results import Array, Provenance
from hepx.results_network import Effect, Erasure, Representation, Sink

LEVEL = 4
VARIABLES = {"mbb": ("mbb", "mt"), "mt": ("mt", "mbb")}
"""Mechanism -> the observable that decides, and one that does not."""
OF_HEADS = "mbb"  # hardly seen without attention, unlike m_T: φ counts from the lepton
HEAD = (0, 0)  # layer and number of the head that is left alone, or drawn to one object
DRAWN = 10.0  # added to its scores of this object: it looks at nothing else
LITTLE, NONE, SOME = Criterion(0.1, at_least=False), Criterion(0.0, at_least=False), Criterion(0.05)


@dataclass(frozen=True)
class Setting:
    """What is judged: events of a mechanism of VARIABLES with its log-odds [B], the network trained on them, and some
    that have learned nothing, two or more of them untrained and first."""

    name: str
    graphs: GraphBatch
    score: Array
    trained: Model
    ignorant: Sequence[Null]
    seed: int


@dataclass(frozen=True)
class Seen:
    """What the analyses say of one network. auc: its AUC; planted: the planted log-odds erased from the last states."""

    auc: float
    planted: Effect
    found: Representation

    def erasure(self, observable: str) -> Erasure:
        """The erasure of an observable from the last states."""
        return next(one for one in reversed(self.found.erasures) if one.observable == observable)


def state_checks(setting: Setting) -> Iterator[Check]:
    """Everything that is asked of a mechanism."""
    used, unused = VARIABLES[setting.name]
    for check in of_trained(used, unused, seen(setting.trained, setting.ignorant[0].model, setting)):
        yield replace(check, case=setting.name)
    for kind in dict.fromkeys(null.kind for null in setting.ignorant):
        null = next(null for null in setting.ignorant if null.kind == kind)
        other = next(one for one in setting.ignorant if one is not null)
        for check in of_ignorant(used, seen(null.model, other.model, setting)):
            yield replace(check, case=f"{setting.name}, {kind}")
    if setting.name == OF_HEADS:
        for check in (*_of_heads(setting), *of_sinks(drawn(setting.trained, setting.graphs))):
            yield replace(check, case=setting.name)


def seen(model: Model, untrained: Model, setting: Setting) -> Seen:
    """The analyses of the node states as a run makes them; and the erasure of what no run knows."""
    graphs, referee = setting.graphs, Referee(model, setting.graphs, 1, setting.seed)
    found = representation(model, [Null("untrained", untrained)], referee, _provenance(setting))
    assert found is not None
    last = len(model.stream_names()) - 1
    delta, error, _ = erase(model, stream(model, graphs)[last], setting.score, balanced_weight(graphs), last, referee)
    auc = metrics.auc(referee.y, referee.reference, referee.weight)
    return Seen(auc, Effect("erasure", last, -1, "", delta, error), found)


def _provenance(setting: Setting) -> Provenance:
    return Provenance("", {}, "", "", "", setting.seed, "", "", "cpu")


# What must be found -----------------------------------------------------------------------------------------------


def _answer(analysis: str, what: str, value: float, criterion: Criterion, error: float | None = None) -> Check:
    return Check(LEVEL, "", analysis, what, value, error, str(criterion), criterion.met(value))


def known(value: float | None) -> float:
    """A number that every network has on these events: both classes are there, and weights do not cancel."""
    assert value is not None
    return value


def of_trained(used: str, unused: str, seen: Seen) -> Iterator[Check]:
    """What was planted can be read from the last states, and decides; what was not planted is not needed."""
    beyond, own, other = seen.auc - 0.5, seen.erasure(used), seen.erasure(unused)
    for what, delta, error in (
        ("the planted score", seen.planted.delta_auc, seen.planted.error),
        (used, own.delta_auc, own.error),
    ):
        left = abs(1 + (delta or 0.0) / beyond)
        text = f"share of AUC − ½ that is left without {what} in the last states"
        yield _answer("erasure", text, left, LITTLE, (error or 0.0) / beyond)
    share, error = abs((own.control or 0.0) / beyond), (own.control_error or 0.0) / beyond
    yield _answer("erasure", f"share that the {used} of other events changes when erased", share, LITTLE, error)
    text = f"|ΔAUC| without {unused}, which decides nothing"
    yield _answer("erasure", text, abs(other.delta_auc or 0.0), Criterion(MAX_AUC_LOSS, at_least=False), other.error)
    yield _hidden(seen, used, Criterion(0.5, at_least=False))
    yield _hidden(seen, unused, Criterion(1.0))
    control = max(one.control for one in seen.found.probes)
    yield _answer("probes", "largest R² of a control task", control, Criterion(0.05, at_least=False))
    lens = [known(one.auc) for one in seen.found.lens]
    yield _answer("logit lens", "|AUC of the last layer − AUC|", abs(lens[-1] - seen.auc), NONE)
    step = min(after - before for before, after in pairwise(lens))
    yield _answer("logit lens", "smallest gain of AUC from layer to layer", step, Criterion(0.0))
    yield from _of_dictionary(used, seen)


def of_ignorant(used: str, seen: Seen) -> Iterator[Check]:
    """A random function of a few inputs follows the labels a little, and cannot lose more."""
    lost = abs(seen.planted.delta_auc or 0.0)
    yield _answer("erasure", "|ΔAUC| without the planted score", lost, LITTLE, seen.planted.error)
    yield _hidden(seen, used, Criterion(0.5))
    far = max(seen.found.lens, key=lambda one: abs(known(one.auc) - 0.5))
    yield _answer("logit lens", "largest |AUC − ½| of a layer", abs(known(far.auc) - 0.5), LITTLE, far.error)


def _hidden(seen: Seen, observable: str, criterion: Criterion) -> Check:
    """How much of a variable is not read from the last states, 1 − R², beside an untrained network."""
    last = [one for one in seen.found.probes if one.layer == seen.planted.layer and one.observable == observable]
    best, null = max(last, key=lambda one: one.value), max(one.null or 0.0 for one in last)
    text = f"1 − R² of {observable} in the last states, over that of an untrained network"
    found = _answer("probes", text, (1 - best.value) / (1 - null), criterion, best.error / (1 - null))
    return replace(found, text=f"R² {best.value:.3f} ({best.where}), untrained {null:.3f}")


def _of_dictionary(used: str, seen: Seen) -> Iterator[Check]:
    last = (one for one in seen.found.dictionaries if one.layer == seen.planted.layer and one.network == "trained")
    found = {one.kind: one for one in last}
    sparse, components = found.pop("dictionary"), found["principal components"]
    gain = sparse.readable[used] - max(one.readable[used] for one in found.values())
    text = f"|rank correlation| of its best direction with {used}, beyond principal components and neurons"
    yield _answer("dictionary", text, gain, Criterion(0.0))
    text = "unexplained variance of the last states, beyond that of as many principal components"
    yield _answer("dictionary", text, known(sparse.unexplained) - known(components.unexplained), NONE)


# Heads ------------------------------------------------------------------------------------------------------------


def alone(model: Model, graphs: GraphBatch) -> Model:
    """A copy in which one head says what it did, and every other one the same to all."""
    said, changed = observe(model, graphs, 1).head_output, model
    for layer, name in enumerate(attention_names(model)):
        for head in range(said.shape[1]):
            if (layer, head) != HEAD:
                changed = heads.without_head(changed, name, head, said[layer, head])
    return changed


def of_heads(single: Sequence[Effect], trained: Sequence[Effect], ignorant: Sequence[Effect]) -> Iterator[Check]:
    """Knock-outs of all heads: of the copy with one head that says something; of the network; of untrained ones."""
    (own,) = [effect for effect in single if (effect.layer, effect.index) == HEAD]
    rest = max(abs(effect.delta_auc or 0.0) for effect in single if effect is not own)
    yield _answer("heads", "AUC lost without the only head that is left", -(own.delta_auc or 0.0), SOME, own.error)
    yield _answer("heads", "largest |ΔAUC| without one that says the same to all", rest, NONE)
    most = min(trained, key=lambda effect: effect.delta_auc or 0.0)
    beside = max(abs(effect.delta_auc or 0.0) for effect in ignorant)
    text = "largest AUC lost without a head, beside the largest |ΔAUC| of untrained networks"
    yield _answer("heads", text, -(most.delta_auc or 0.0), Criterion(round(beside, 4)), most.error)


def _of_heads(setting: Setting) -> Iterator[Check]:
    untrained = [null for null in setting.ignorant if null.kind == "untrained"]
    models = (alone(setting.trained, setting.graphs), setting.trained, *(null.model for null in untrained))
    found = []
    for model in models:
        referee = Referee(model, setting.graphs, 1, setting.seed)
        map_ = attention_map(model, untrained[:1], referee, _provenance(setting))
        assert map_ is not None
        found.append([effect for effect in map_.knock_out if effect.where == EVERYWHERE])
    return of_heads(found[0], found[1], [effect for part in found[2:] for effect in part])


def drawn(model: Model, graphs: GraphBatch) -> list[Sink]:
    """What is said of one head when all objects look through it at one of them by hand; each object in turn."""
    found, (layer, head) = [], HEAD
    for slot in range(len(graphs.layout.slots)):
        changed = heads.drawn_to_column(model, attention_names(model)[layer], head, slot, DRAWN)
        said = sinks(changed, observe(changed, graphs, 1), graphs)
        found += [one for one in said if (one.layer, one.head) == HEAD]
    return found


def of_sinks(found: Sequence[Sink]) -> Iterator[Check]:
    """A sink is looked at by all and tells them little: the object with the least to tell is one, that with the most is
    none."""
    least, most = (choose(found, key=lambda sink: sink.value_ratio) for choose in (min, max))
    for which, sink, criterion in (("least", least, Criterion(1.0)), ("most", most, NONE)):
        what = f"the object with the {which} to tell, to which a head is drawn by hand, is called a sink"
        found_ = _answer("sinks", what, float(sink.is_sink), criterion)
        yield replace(found_, text=f"{sink.slot}: {sink.value_ratio:.2f} of the length of the others")
