"""The numbers of attention, experts and node states as long tables: what the figures draw and the CSV files hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from hepx.report import derive
from hepx.report.saved import Saved
from hepx.report.tables import Table
from hepx.results import Array
from hepx.results_network import AttentionMap, ExpertReport, Probe, Representation

HEADLINE = ("mbb", "mt", "mct", "met_significance")
"""The observables that figures show, as far as they are there."""
QUANTITY_LABELS = {
    "delta_r": r"$\Delta R$",
    "delta_phi": r"$|\Delta\phi|$",
    "mass": r"$m$",
    "kt": r"$k_{T}$",
    "mt": r"$m_{T}$",
    "mct": r"$m_{CT}$",
}


# Attention --------------------------------------------------------------------------------------------------------


def attention_pairs(saved: Saved) -> Table:
    """The pair that looks at each other most (mean over heads, both directions) per layer and process, the same with
    the length of what is carried and through all layers so far, each beside the null networks, and the pair of largest
    interaction."""
    attention = _attention(saved)
    maps = {"": attention.mean, "untrained_": attention.null, "shuffled_": attention.shuffled}
    for name, field in (("carried_", "value_norm"), ("rollout_", "rollout")):
        ends = (("", ""), ("untrained_", "_null"), ("shuffled_", "_shuffled"))
        maps |= {f"{name}{kind}": getattr(attention, f"{field}{end}") for kind, end in ends}
    strongest = _strongest_pairs(saved)
    rows = []
    for sample, name in enumerate(attention.sample_names):
        for layer in range(attention.mean.shape[1] if attention.num_events[sample] else 0):
            found: list[Any] = []
            for values in maps.values():
                value, pair = _top_pair(values[sample, layer])
                found += ["–".join(attention.slots[i] for i in pair) if value > 0 else None, value]
            rows.append((layer + 1, name, *found, strongest.get(name)))
    names = [f"{kind}{column}" for kind in maps for column in ("pair", "attention")]
    return Table(("layer", "sample", *names, "interaction_pair"), tuple(rows))


def _top_pair(weights: Array) -> tuple[float, tuple[int, int]]:
    mean = np.nan_to_num(weights)  # NaN: a pair that never occurs
    mean = mean.mean(0) if mean.ndim == 3 else mean
    both = np.triu((mean + mean.T) / 2, 1)
    i, j = np.unravel_index(np.argmax(both), both.shape)
    return float(both[i, j]), (int(i), int(j))


def _strongest_pairs(saved: Saved) -> dict[str, str]:
    if saved.pairs is None:
        return {}
    table = derive.pair_means(saved.pairs)
    best = {}
    for name in saved.samples:
        rows = [row for row in table.where(sample=name).dicts() if np.isfinite(row["mean_abs"])]
        if rows:
            top = max(rows, key=lambda row: row["mean_abs"])
            best[name] = f"{top['object_1']}–{top['object_2']}"
    return best


def heads(saved: Saved) -> Table:
    """Every head: entropy, slot share, shares of the logit, knock-out and sink, each with the range that the heads of
    the null networks span in this layer; null_sinks: how many of them are sinks, out of null_heads."""
    attention = _attention(saved)
    parts = [f"logit_{name.replace(' × ', '_').replace(' ', '_')}" for name in attention.logit_parts]
    rows = []
    for layer, head in np.ndindex(attention.entropy.shape):
        change = next(e for e in attention.knock_out if (e.layer, e.index, e.where) == (layer, head, "all events"))
        sink = next(s for s in attention.sinks if (s.layer, s.head) == (layer, head))
        entropy, share = attention.entropy_null[:, layer], attention.slot_share_null[:, layer]
        sinks = [s for rows in attention.sinks_null for s in rows if s.layer == layer]
        knocked = [e.delta_auc for rows in attention.knock_out_null for e in rows if e.layer == layer]
        columns = [[getattr(s, name) for s in sinks] for name in ("ratio", "share", "value_ratio", "delta_auc")]
        rows.append(
            (
                layer + 1,
                head + 1,
                *(attention.entropy[layer, head], attention.entropy_error[layer, head], entropy.min(), entropy.max()),
                *(attention.slot_share[layer, head], share.min(), share.max()),
                *attention.logit_shares[layer, head],
                *attention.logit_shares_null[:, layer, head].mean(0),
                *(change.delta_auc, change.error, *_range(knocked)),
                *(sink.slot, sink.ratio, *_range(columns[0]), sink.share, *_range(columns[1])),
                *(sink.value_ratio, *_range(columns[2]), sink.is_sink, sum(s.is_sink for s in sinks), len(sinks)),
                *(sink.delta_auc, sink.error, *_range(columns[3])),
            )
        )
    names = (
        *("layer", "head", "entropy", "entropy_error", "entropy_null_low", "entropy_null_high", "slot_share"),
        *("slot_share_null_low", "slot_share_null_high", *parts, *(f"{part}_null" for part in parts)),
        *("knock_out", "knock_out_error", *_low_high("knock_out"), "column"),
        *(name for one in ("ratio", "share", "value_ratio") for name in (f"column_{one}", *_low_high(f"column_{one}"))),
        *("is_sink", "null_sinks", "null_heads", "hidden", "hidden_error", *_low_high("hidden")),
    )
    return Table(names, tuple(rows))


def _low_high(name: str) -> tuple[str, str]:
    return f"{name}_null_low", f"{name}_null_high"


def _range(values: list[float | None]) -> tuple[float | None, float | None]:
    """Smallest and largest of the numbers that are there."""
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else (None, None)


def followed(saved: Saved) -> Table:
    """For every pair quantity the head and pair whose attention follows it most, beside the most in a null network."""
    attention = _attention(saved)
    rows = []
    for q, name in enumerate(attention.quantities):
        size = np.abs(attention.correlation[:, :, q])
        if np.isfinite(size).any():
            at = np.unravel_index(np.nanargmax(size), size.shape)
            place: Any = (*at[:2], q, *at[2:])
            nulls = [_largest_of(attention, kind, q) for kind in ("untrained", "shuffled")]
            numbers = (float(attention.correlation[place]), float(attention.correlation_error[place]), *nulls)
            rows.append((name, int(at[0]) + 1, int(at[1]) + 1, *(attention.slots[i] for i in at[2:]), *numbers))
    columns = ("quantity", "layer", "head", "looks", "at", "correlation", "error", "untrained", "shuffled")
    return Table(columns, tuple(rows))


def _largest_of(attention: AttentionMap, kind: str, quantity: int) -> float | None:
    rows = [i for i, name in enumerate(attention.null_kinds) if name == kind]
    return float(attention.correlation_null[rows, quantity].max()) if rows else None


def _attention(saved: Saved) -> AttentionMap:
    assert saved.attention is not None
    return saved.attention


# Experts ----------------------------------------------------------------------------------------------------------


def interventions(saved: Saved) -> Table:
    """Every change of the experts, everywhere it was judged, with its significance |ΔAUC| / error."""
    rows = []
    for e in _experts(saved).effects:
        sigma = abs(e.delta_auc) / e.error if e.delta_auc is not None and e.error else None
        expert = e.index + 1 if e.index >= 0 else None
        rows.append(
            (
                *(e.kind, e.layer + 1, expert, e.where, e.delta_auc, e.error, sigma),
                *(e.outside, e.outside_error, e.selectivity, e.selectivity_error, e.delta_z, e.delta_z_error),
            )
        )
    columns = ("kind", "layer", "expert", "where", "delta_auc", "error", "significance", "outside", "outside_error")
    return Table((*columns, "selectivity", "selectivity_error", "delta_z", "delta_z_error"), tuple(rows))


def information(saved: Saved) -> Table:
    """What the choice of expert tells, with its nulls and the interval of the excess."""
    report = _experts(saved)
    rows = [
        (i.layer + 1, i.about, i.given, i.value, i.error, max(i.nulls), i.excess, i.low, i.high)
        for i in report.information
    ]
    columns = ("layer", "about", "given", "bits", "error", "largest_null", "excess", "low", "high")
    return Table(columns, tuple(rows))


def routing_tables(saved: Saved) -> Table:
    """Mean gate of every expert by every variable, with the untrained and the shuffled network."""
    rows = []
    for table in _experts(saved).tables:
        for layer, values in enumerate(table.gates):
            for row, name in enumerate(table.rows):
                for expert, value in enumerate(values[row]):
                    beside = [part[layer][row][expert] if part else None for part in (table.null, table.shuffled)]
                    error = table.error[layer][row][expert]
                    rows.append((layer + 1, table.by, name, expert + 1, value, error, *beside))
    return Table(("layer", "by", "row", "expert", "gate", "error", "untrained", "shuffled"), tuple(rows))


def expert_numbers(saved: Saved) -> Table:
    """Every expert: load, the most similar other, what it costs to lose it, and how well it can be read."""
    report = _experts(saved)
    rows = []
    for layer, load in enumerate(report.load):
        for expert, share in enumerate(load):
            likeness = [
                max((value for e, value in enumerate(part[layer][expert]) if e != expert), default=None)
                for part in (report.similarity, report.similarity_null)
            ]
            lost = [e for e in report.effects if (e.kind, e.layer, e.index) == ("knock_out", layer, expert)]
            whole = next((e for e in lost if e.where == "all events"), None)
            own = [p for p in report.probes if (p.layer, p.where) == (layer, f"expert {expert + 1}")]
            probes = {p.observable: (p.value, p.error, p.control, p.null) for p in own}
            change = (whole.delta_auc, whole.error) if whole else (None, None)
            read = [value for name in HEADLINE for value in probes.get(name, (None,) * 4)]
            dead = [layer, expert] in report.dead
            rows.append((layer + 1, expert + 1, share, dead, *likeness, *change, *read))
    columns = ("layer", "expert", "load", "dead", "most_similar", "most_similar_untrained", "knock_out")
    names = [f"r2_{name}{end}" for name in HEADLINE for end in ("", "_error", "_control", "_untrained")]
    return Table((*columns, "knock_out_error", *names), tuple(rows))


def _experts(saved: Saved) -> ExpertReport:
    assert saved.experts is not None
    return saved.experts


# Node states ------------------------------------------------------------------------------------------------------


def probes(saved: Saved) -> Table:
    """R² of every linear probe, of node states and of experts' answers."""
    rows = []
    groups = (("states", _states(saved).probes), ("experts", saved.experts.probes if saved.experts else []))
    for kind, group in groups:
        for p in group:
            shown = p.layer if kind == "states" else p.layer + 1
            rows.append((kind, shown, p.where, p.observable, p.value, p.error, p.control, p.null))
    columns = ("of", "layer", "where", "observable", "r2", "error", "control", "untrained")
    return Table(columns, tuple(rows))


def shown_probes(group: list[Probe]) -> list[str]:
    """The observables a figure shows."""
    found = {probe.observable for probe in group}
    return [name for name in HEADLINE if name in found] or sorted(found)[:4]


def erasures(saved: Saved) -> Table:
    """ΔAUC of every erasure beside its control, and what a probe reads before and after."""
    rows = [
        (
            *(e.layer, e.observable, e.rank, e.delta_auc, e.error, e.control, e.control_error),
            *(e.before, e.before_error, e.after, e.after_error),
        )
        for e in _states(saved).erasures
    ]
    columns = ("layer", "observable", "rank", "delta_auc", "error", "control", "control_error")
    return Table((*columns, "r2_before", "r2_before_error", "r2_after", "r2_after_error"), tuple(rows))


def dictionaries(saved: Saved) -> Table:
    """Sparse dictionary, principal components and neurons at equal sparsity, of the trained and of null networks."""
    found = _states(saved).dictionaries
    names = [name for name in HEADLINE if any(name in d.readable for d in found)]
    rows = [
        (
            *(d.network, d.layer, d.kind, d.size, d.active, d.unexplained, d.error, d.dead),
            *(part.get(name) for name in names for part in (d.readable, d.readable_error)),
        )
        for d in found
    ]
    columns = ("network", "layer", "kind", "size", "active", "unexplained", "error", "dead")
    return Table((*columns, *(f"best_{name}{end}" for name in names for end in ("", "_error"))), tuple(rows))


def sparsity(saved: Saved) -> Table:
    """Critical sparsity of every expert, beside units chosen at random, and of all experts of null networks."""
    rows = [
        (
            *(s.network, s.layer + 1, s.expert + 1 if s.expert >= 0 else None),
            *(s.critical, s.error, s.control, s.control_error),
        )
        for s in _states(saved).sparsity
    ]
    return Table(("network", "layer", "expert", "critical", "error", "random", "random_error"), tuple(rows))


def lens(saved: Saved) -> Table:
    """AUC when the states of a layer are read by the network's own head."""
    rows = [
        (one.layer, one.auc, one.error, one.null, one.null_error, one.shuffled, one.shuffled_error)
        for one in _states(saved).lens
    ]
    columns = ("layer", "auc", "error", "untrained", "untrained_error", "shuffled", "shuffled_error")
    return Table(columns, tuple(rows))


def _states(saved: Saved) -> Representation:
    assert saved.representation is not None
    return saved.representation
