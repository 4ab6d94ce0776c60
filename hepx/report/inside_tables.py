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
    """The pair that looks at each other most (mean over heads, both directions) per layer and process, beside the null
    networks, the same with the length of what is carried, and the pair of largest interaction."""
    attention = _attention(saved)
    strongest = _strongest_pairs(saved)
    rows = []
    for sample, name in enumerate(attention.sample_names):
        for layer in range(attention.mean.shape[1] if attention.num_events[sample] else 0):
            found: list[Any] = []
            for maps in (attention.mean, attention.null, attention.shuffled, attention.value_norm):
                value, pair = _top_pair(maps[sample, layer])
                found += ["–".join(attention.slots[i] for i in pair) if value > 0 else None, value]
            rows.append((layer + 1, name, *found, strongest.get(name)))
    kinds = ("", "untrained_", "shuffled_", "carried_")
    names = [f"{kind}{column}" for kind in kinds for column in ("pair", "attention")]
    return Table(("layer", "sample", *names, "interaction_pair"), tuple(rows))


def _top_pair(weights: Array) -> tuple[float, tuple[int, int]]:
    mean = np.nan_to_num(weights).mean(0)  # NaN: a pair that never occurs
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
    """Every head: entropy and slot share with the range of the null networks, shares of the logit, knock-out, sink."""
    attention = _attention(saved)
    parts = [f"logit_{name.replace(' × ', '_').replace(' ', '_')}" for name in attention.logit_parts]
    rows = []
    for layer, head in np.ndindex(attention.entropy.shape):
        change = next(e for e in attention.knock_out if (e.layer, e.index, e.where) == (layer, head, "all events"))
        sink = next(s for s in attention.sinks if (s.layer, s.head) == (layer, head))
        entropy, share = attention.entropy_null[:, layer], attention.slot_share_null[:, layer]
        rows.append(
            (
                layer + 1,
                head + 1,
                *(attention.entropy[layer, head], attention.entropy_error[layer, head], entropy.min(), entropy.max()),
                *(attention.slot_share[layer, head], share.min(), share.max()),
                *attention.logit_shares[layer, head],
                *attention.logit_shares_null[:, layer, head].mean(0),
                *(change.delta_auc, change.error),
                *(sink.slot, sink.ratio, sink.share, sink.value_ratio, sink.is_sink, sink.delta_auc, sink.error),
            )
        )
    columns = (
        *("layer", "head", "entropy", "entropy_error", "entropy_null_low", "entropy_null_high", "slot_share"),
        *("slot_share_null_low", "slot_share_null_high", *parts, *(f"{part}_null" for part in parts)),
        *("knock_out", "knock_out_error", "column", "column_ratio", "column_share", "column_value_ratio", "is_sink"),
        *("hidden", "hidden_error"),
    )
    return Table(columns, tuple(rows))


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
            others = [value for e, value in enumerate(report.similarity[layer][expert]) if e != expert]
            lost = [e for e in report.effects if (e.kind, e.layer, e.index) == ("knock_out", layer, expert)]
            whole = next((e for e in lost if e.where == "all events"), None)
            own = [p for p in report.probes if (p.layer, p.where) == (layer, f"expert {expert + 1}")]
            probes = {p.observable: p.value for p in own}
            change = (whole.delta_auc, whole.error) if whole else (None, None)
            read = [probes.get(name) for name in HEADLINE]
            dead = [layer, expert] in report.dead
            rows.append((layer + 1, expert + 1, share, dead, max(others, default=None), *change, *read))
    columns = ("layer", "expert", "load", "dead", "most_similar", "knock_out", "knock_out_error")
    return Table((*columns, *(f"r2_{name}" for name in HEADLINE)), tuple(rows))


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
        (e.layer, e.observable, e.rank, e.delta_auc, e.error, e.control, e.control_error, e.before, e.after)
        for e in _states(saved).erasures
    ]
    columns = ("layer", "observable", "rank", "delta_auc", "error", "control", "control_error", "r2_before", "r2_after")
    return Table(columns, tuple(rows))


def dictionaries(saved: Saved) -> Table:
    """Sparse dictionary, principal components and neurons at equal sparsity."""
    found = _states(saved).dictionaries
    names = [name for name in HEADLINE if any(name in d.readable for d in found)]
    rows = [
        (d.layer, d.kind, d.size, d.active, d.unexplained, d.dead, *(d.readable.get(name) for name in names))
        for d in found
    ]
    columns = ("layer", "kind", "size", "active", "unexplained", "dead", *(f"best_{name}" for name in names))
    return Table(columns, tuple(rows))


def sparsity(saved: Saved) -> Table:
    """Critical sparsity of every expert, beside units chosen at random."""
    rows = [
        (s.layer + 1, s.expert + 1 if s.expert >= 0 else None, s.critical, s.control) for s in _states(saved).sparsity
    ]
    return Table(("layer", "expert", "critical", "random"), tuple(rows))


def lens(saved: Saved) -> Table:
    """AUC when the states of a layer are read by the network's own head."""
    rows = [(one.layer, one.auc, one.error, one.null) for one in _states(saved).lens]
    return Table(("layer", "auc", "error", "untrained"), tuple(rows))


def _states(saved: Saved) -> Representation:
    assert saved.representation is not None
    return saved.representation
