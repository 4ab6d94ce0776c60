"""Which training events deserve a second look, and what is odd about them.

Several criteria rank the training events: scores of `hepx.influence` (mean loss along the training, self-influence),
having a twin, an outlying weight. How far an event stands out by a criterion is its *tail*: the share of the training
events that stand out as much or more. An event is suspicious if its smallest tail is at most `share`.

What is found is said in rates: how frequent a category is among the suspicious events, in the whole training sample,
and the ratio, the enrichment, each with a 95 % interval, per process, mass point and region. As many events drawn at
random stand beside them. An enrichment is all that an audit can say. It never says that an event is wrong: even a
perfect list of mislabelled events would name many that only look so, because the classes overlap.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hepx import files, metrics, random
from hepx.config import Settings
from hepx.evaluate import SIGNAL, cross_scores, point_values
from hepx.events import EVENT_NUMBERS
from hepx.graph import RAW_FEATURES, GraphBatch
from hepx.influence.taxonomy import Category, TaxonomySettings, TruthMet, categorize, relative_weight
from hepx.influence.twins import Twins, find_twins
from hepx.interventions import regions_of
from hepx.metrics import Share
from hepx.results import Provenance

Array = npt.NDArray[Any]
ANY, RANDOM = "any", "random"  # sets of events: suspicious by any criterion, and drawn at random
TWIN, WEIGHT = "twin", "weight"  # criteria that are no scores
UNEXPLAINED = "none"  # the category of the events that are in no other
FILES = ("influence/audit.json", "influence/audit.csv")


class AuditSettings(Settings):
    """share: of the training events that are suspicious by one criterion; shown: events with a display."""

    share: float = Field(default=0.01, gt=0, lt=0.5)
    shown: int = Field(default=4, ge=0)
    taxonomy: TaxonomySettings = TaxonomySettings()


@dataclass(frozen=True)
class Stratum:
    """A part of the training sample: all, a process, a signal point, or a region."""

    kind: str
    name: str
    mask: Array


@dataclass(frozen=True)
class Rate:
    """How frequent a category is in a stratum: among the events of a set (any: suspicious; a criterion; random) and
    among all. events, found: number of events of the set, and of those in the category; shares by weight."""

    stratum: str
    name: str
    category: str
    chosen_by: str
    events: int
    found: int
    rate: Share
    rate_of_all: Share
    enrichment: Share


@dataclass(frozen=True)
class Suspects:
    """tail [B]: smallest tail of each event; reason [B]: number of the criterion that has it; order: rows of the
    suspicious events, the smallest tail first (equal ones by the first criterion)."""

    criteria: tuple[str, ...]
    tail: Array
    reason: Array
    order: Array


@dataclass(frozen=True)
class Audit:
    """What an audit found: the categories, the rates, the ranked suspicious events with their columns, and what a
    display of the first ones needs."""

    settings: AuditSettings
    num_events: int
    criteria: tuple[str, ...]
    categories: tuple[dict[str, Any], ...]
    rates: tuple[Rate, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    displays: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def save(self, folder: Path, provenance: Provenance) -> None:
        """Write influence/audit.json and, one line per suspicious event, influence/audit.csv into a run folder."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        files.write_text(folder / FILES[1], buffer.getvalue())
        values = {name: value for name, value in vars(self).items() if name not in ("columns", "rows")}
        values |= {"settings": self.settings.model_dump(), "suspicious": len(self.rows)}
        values |= {"rates": [asdict(rate) for rate in self.rates], "provenance": asdict(provenance)}
        files.write_json(folder / FILES[0], finite(values))


def audit(
    graphs: GraphBatch,
    weight: Float[Tensor, "B"],
    scores: Mapping[str, Array],
    score: Array,
    settings: AuditSettings,
    seed: int,
    points: Sequence[str] = (),
    truth: TruthMet | None = None,
    paths: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Audit:
    """Audit training events, whose signed weights in the loss are `weight`.

    scores: name -> one number per event [B], larger for one that stands out; score [B]: the model's log-odds of
    signal, to be shown; points: columns that tell signal points apart; paths [B]: the file of each event.
    """
    twins, against, found = examine(graphs, seed, settings.taxonomy, truth)
    criteria = _criteria(graphs, scores, twins, settings)
    suspects = rank(criteria, settings.share)
    chosen = _sets(graphs, suspects, criteria, settings.share, seed)
    rates = [
        rate(stratum, category, name, mask, weight.numpy())
        for stratum in strata(graphs, points)
        for category in found
        for name, mask in chosen.items()
        if (stratum.mask & category.known).any()
    ]
    columns = _columns(graphs, scores, score, against, twins, found, suspects, paths)
    rows = tuple(zip(*(_take(values, suspects.order) for values in columns.values()), strict=True))
    categories = [{**_about(one), **_counts(one)} for one in found]
    displays = [
        {"rank": n + 1, "reason": suspects.criteria[suspects.reason[i]], "model_score": float(score[i])}
        | {"categories": [one.name for one in found if one.found[i]], **picture(graphs, i)}
        for n, i in enumerate(suspects.order[: settings.shown].tolist())
    ]
    return Audit(
        settings=settings,
        num_events=len(graphs),
        criteria=suspects.criteria,
        categories=tuple(categories),
        rates=tuple(rates),
        columns=tuple(columns),
        rows=rows,
        displays=tuple(displays),
        notes=tuple(notes),
    )


def examine(
    graphs: GraphBatch, seed: int, settings: TaxonomySettings, truth: TruthMet | None
) -> tuple[Twins, Array, list[Category]]:
    """Twins, log-odds of the other class by independent trees [B], and categories of some events."""
    twins = find_twins(graphs, settings.tolerance)
    against = np.where(graphs.y.numpy() == SIGNAL, -1, 1) * cross_scores(graphs, seed)
    found = categorize(graphs, against, twins, truth, settings)
    return twins, against, [*found, _unexplained(found)]


# Who is suspicious --------------------------------------------------------------------------------------------------


def tails(values: Array) -> Array:
    """Share of the events [B] that have at least this value. Equal values share a tail, so nothing stands out where all
    are equal. An event without a value (NaN) does not stand out.

    >>> tails(np.array([3.0, 1.0, 1.0, 2.0])).tolist()
    [0.25, 1.0, 1.0, 0.5]
    """
    known = np.where(np.isnan(values), -np.inf, values)
    return 1 - np.searchsorted(np.sort(known), known, side="left") / max(1, len(known))


def rank(criteria: Mapping[str, Array], share: float) -> Suspects:
    """Events whose smallest tail is at most `share`, ranked by it."""
    each = np.stack([tails(values) for values in criteria.values()])
    tail, reason = each.min(0), each.argmin(0)
    first = next(iter(criteria.values()))
    order = np.lexsort((-first, tail))
    return Suspects(tuple(criteria), tail, reason, order[tail[order] <= share])


def _criteria(
    graphs: GraphBatch, scores: Mapping[str, Array], twins: Twins, settings: AuditSettings
) -> dict[str, Array]:
    """The scores, whether there is a twin, and the weight, as far as it is negative or huge."""
    size, weight = relative_weight(graphs), graphs.weight.numpy()
    huge = np.where((size > settings.taxonomy.huge) | (weight < 0), size, 0.0)
    return {**scores, TWIN: twins.found.astype(np.float64), WEIGHT: huge}


def _sets(
    graphs: GraphBatch, suspects: Suspects, criteria: Mapping[str, Array], share: float, seed: int
) -> dict[str, Array]:
    """Name -> mask [B]: the suspicious events, those of each criterion that finds any, and as many random ones as a
    score finds."""
    found = {ANY: suspects.tail <= share}
    found |= {name: tails(values) <= share for name, values in criteria.items()}
    drawn = random.uniform(seed, graphs.event_id.numpy(), "audit", 1)[:, 0]
    found[RANDOM] = tails(drawn) <= share
    return {name: mask for name, mask in found.items() if mask.any()}


def summary(found: Audit) -> list[str]:
    """What is enriched among the suspicious events of all processes together: lower end of the interval above 1."""
    share = 100 * found.settings.share
    lines = [f"{len(found.rows)} of {found.num_events} training events stand out ({share:g} % by each score)"]
    rates = [one for one in found.rates if (one.stratum, one.chosen_by) == ("all", ANY) and one.enrichment.low > 1]
    for one in sorted(rates, key=lambda one: -one.enrichment.value):
        factor = one.enrichment
        lines.append(
            f"{one.category.replace('_', ' ')}: {one.found} of {one.events}, enriched by a factor {factor.value:.2g} "
            f"[{factor.low:.2g}, {factor.high:.2g}]"
        )
    return lines if rates else [*lines, "no category is enriched among them"]


# Rates --------------------------------------------------------------------------------------------------------------


def strata(graphs: GraphBatch, points: Sequence[str]) -> Iterator[Stratum]:
    """All events, each process, each signal point, and the regions of the config (without any: events with and without
    each optional object)."""
    layout, sample = graphs.layout, graphs.sample.numpy()
    yield Stratum("all", "", np.ones(len(graphs), dtype=bool))
    for number, name in enumerate(layout.samples):
        yield Stratum("process", name, sample == number)
    if points:
        values, signal = point_values(graphs, tuple(points)), graphs.y.numpy() == SIGNAL
        for point in np.unique(values[signal & np.isfinite(values).all(1)], axis=0):
            name = ", ".join(f"{name} {value:g}" for name, value in zip(points, point, strict=True))
            yield Stratum("point", name, signal & (values == point).all(1))
    for name, mask in regions_of(graphs, {}).items():
        yield Stratum("region", name, mask)


def rate(stratum: Stratum, category: Category, chosen_by: str, chosen: Array, weight: Array) -> Rate:
    """Rate of a category in a stratum, among the chosen events and among all of which it can be said."""
    known = stratum.mask & category.known
    found, part, w = category.found[known], chosen[known], weight[known]
    return Rate(
        stratum=stratum.kind,
        name=stratum.name,
        category=category.name,
        chosen_by=chosen_by,
        events=int(part.sum()),
        found=int((part & found).sum()),
        rate=metrics.share(found[part], w[part]),
        rate_of_all=metrics.share(found, w),
        enrichment=metrics.enrichment(found, part, w),
    )


def _unexplained(found: Sequence[Category]) -> Category:
    """Events in no category."""
    explained = np.any([one.found for one in found], axis=0)
    return Category(UNEXPLAINED, "in no other category", "rule", ~explained, np.ones(len(explained), dtype=bool))


def _about(category: Category) -> dict[str, Any]:
    return {"name": category.name, "what": category.what, "by": category.by}


def _counts(category: Category) -> dict[str, int]:
    return {"known": int(category.known.sum()), "found": int(category.found.sum())}


# The list -----------------------------------------------------------------------------------------------------------


def _columns(
    graphs: GraphBatch,
    scores: Mapping[str, Array],
    score: Array,
    against: Array,
    twins: Twins,
    found: Sequence[Category],
    suspects: Suspects,
    paths: Sequence[str],
) -> dict[str, Array]:
    """Everything about every event [B] that the list of the suspicious ones shows."""
    event_id, layout = graphs.event_id.numpy(), graphs.layout
    place = np.empty(len(graphs), dtype=np.int64)
    place[suspects.order] = np.arange(len(suspects.order)) + 1
    named = np.array([one.name for one in found], dtype=object)
    inside = np.stack([one.found for one in found], 1)
    return {
        "rank": place,
        "event_id": event_id,
        "channel": event_id // EVENT_NUMBERS,
        "event": event_id % EVENT_NUMBERS,
        "file": np.array(list(paths) or [""] * len(graphs), dtype=object),
        "sample": np.array(layout.samples, dtype=object)[graphs.sample.numpy()],
        "label": graphs.y.numpy(),
        "weight": graphs.weight.numpy(),
        "tail": suspects.tail,
        "reason": np.array(suspects.criteria, dtype=object)[suspects.reason],
        "categories": np.array(["; ".join(named[row]) for row in inside], dtype=object),
        "score": score,
        **scores,
        "trees_against": against,
        "twin": np.where(twins.found, event_id[twins.partner], -1),
        **{name: graphs.observables[:, i].numpy() for i, name in enumerate(layout.observables)},
    }


def _take(values: Array, order: Array) -> list[Any]:
    """Some of the values, as plain numbers; empty where there is none."""
    taken = values[order].tolist()
    return ["" if isinstance(value, float) and not np.isfinite(value) else value for value in taken]


def picture(graphs: GraphBatch, i: int) -> dict[str, Any]:
    """What a picture of an event needs: its objects, its observables, and what it is."""
    layout, event_id = graphs.layout, int(graphs.event_id[i])
    objects = [
        {
            "slot": layout.slots[slot],
            "type": layout.types[slot],
            "truth_parent": int(graphs.truth_parent[i, slot]),
            **dict(zip(RAW_FEATURES, graphs.x[i, slot].tolist(), strict=True)),
        }
        for slot in np.flatnonzero(graphs.mask[i].numpy())
    ]
    observables = dict(zip(layout.observables, graphs.observables[i].tolist(), strict=True))
    return {
        "channel": event_id // EVENT_NUMBERS,
        "event": event_id % EVENT_NUMBERS,
        "sample": layout.samples[int(graphs.sample[i])],
        "objects": objects,
        "observables": observables,
    }


def finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON does not have: null stands for them."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
