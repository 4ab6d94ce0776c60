"""The tables of the page about attention, experts and node states."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape

from hepx.kinematics import OBSERVABLES
from hepx.report import style
from hepx.report.grid import Grid, object_html, observable_html, sample_html
from hepx.report.inside_tables import HEADLINE, QUANTITY_LABELS
from hepx.report.saved import Saved
from hepx.report.tables import Table, fixed, number, plus_minus

CHANGES = {
    "knock_out": "knock-out",
    "mean_ablation": "mean output",
    "forced": "all to it alone",
    "swap": "experts exchanged",
}
NULLS = ("untrained", "shuffled")
MANY = 10  # rows of a table on the page; the CSV has all


def inside_grids(saved: Saved, tables: dict[str, Table]) -> dict[str, Grid]:
    """Every table whose numbers are there."""
    makers = {
        "attention_pairs": _attention,
        "followed": _followed,
        "heads": _heads,
        "interventions": _interventions,
        "information": _information,
        "expert_numbers": _experts,
        "dictionaries": _dictionaries,
        "sparsity": _sparsity,
    }
    found = {name: make(tables[name]) for name, make in makers.items() if name in tables}
    if saved.experts:
        found["regions"] = _regions(tables["interventions"])
        found["surrogates"] = _surrogates(saved)
    if saved.stability:
        found["stability"] = _stability(saved)
    return found


def _attention(table: Table) -> Grid:
    kinds = ("", "untrained_", "shuffled_", "carried_", "carried_untrained_", "carried_shuffled_")
    rows = [
        (
            row["layer"],
            sample_html(row["sample"]),
            *(_weighted_pair(row[f"{kind}pair"], row[f"{kind}attention"]) for kind in kinds),
            _pair(row["interaction_pair"]) if row["interaction_pair"] else "–",
        )
        for row in table.dicts()
    ]
    head = ("Layer", "Process", "Weight", "untrained", "shuffled", "× length", "untrained", "shuffled", "Largest |I|")
    caption = (
        "The pair with the largest attention weight, and with the largest weight × length of what is carried, mean "
        "over the heads and both directions; each beside an untrained network and one on shuffled labels; and the pair "
        "with the largest interaction. Where the last differs, the map does not show the pair the score depends on "
        "most."
    )
    return Grid(head, tuple(rows), caption, "attention_pairs")


def _weighted_pair(names: str | None, value: float) -> Markup:
    return _pair(names) + f" ({value:.2f})" if names else Markup("–")


def _pair(names: str) -> Markup:
    return Markup("–").join(object_html(name) for name in names.split("–"))


def _followed(table: Table) -> Grid:
    rows = [
        (
            Markup(style.to_html(QUANTITY_LABELS[row["quantity"]])),
            f"{row['layer']}, {row['head']}",
            object_html(row["looks"]) + " at " + object_html(row["at"]),
            plus_minus(row["correlation"], row["error"], signed=True),
            number(row["untrained"], 2),
            number(row["shuffled"], 2),
        )
        for row in table.dicts()
    ]
    head = ("Quantity", "Layer, head", "Object looks", "Rank correlation", "Untrained, largest |r|", "Shuffled")
    caption = (
        "Which head follows which quantity of a pair most, from event to event, inside one pair of objects and "
        "process. The null networks are searched in the same way: below their largest value, nothing was learned."
    )
    return Grid(head, tuple(rows), caption, "followed")


def _heads(table: Table) -> Grid:
    rows = [
        (
            f"{row['layer']}, {row['head']}",
            object_html(row["column"]),
            _in_range(row, "column_ratio"),
            _in_range(row, "column_share", 100, 0, " %"),
            _in_range(row, "column_value_ratio"),
            _over("yes" if row["is_sink"] else "no", f"{row['null_sinks']} of {row['null_heads']}"),
            _beyond_range(row, "hidden"),
            _beyond_range(row, "knock_out"),
        )
        for row in table.dicts()
    ]
    looks = ("Layer, head", "Looks most at", "× chance", "Events above 2", "Carried, rel.", "Sink")
    head = (*looks, "ΔAUC when hidden [10⁻³]", "ΔAUC without head [10⁻³]")
    caption = (
        "A <i>sink</i> is an object that a head looks at for want of something better: more than twice its share in "
        "80 % of the events, while what it sends is shorter than average. The test: hide the object from this head. If "
        "that costs nothing, the attention there meant nothing. In brackets: range over all heads of the null networks "
        "in this layer (number of sinks among them); <b>bold</b>: outside that range, ΔAUC: larger by two errors than "
        "any of theirs. ΔAUC is that of the first untrained and the first shuffled network; these rank at random, so "
        "it has either sign and says how far the AUC moves where nothing was learned."
    )
    return Grid(head, tuple(rows), Markup(caption), "heads")


def _in_range(row: dict[str, Any], name: str, scale: float = 1.0, decimals: int = 2, unit: str = "") -> Markup:
    """A number and the range of the null networks; bold outside of that."""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_null_low", "_null_high"))
    beside = " … ".join(fixed(scale * limit, decimals) for limit in (low, high))
    return _over(_bold(fixed(scale * value, decimals) + unit, not low <= value <= high), beside)


def _beyond_range(row: dict[str, Any], name: str) -> Markup:
    """ΔAUC [10⁻³] and its range in the null networks; bold if it is larger by two errors than any of theirs."""
    value, error, low, high = (row[f"{name}{end}"] for end in ("", "_error", "_null_low", "_null_high"))
    if value is None or low is None or high is None:
        return Markup("–") if value is None else escape(plus_minus(1e3 * value, 1e3 * error, signed=True))
    beside = " … ".join(fixed(1e3 * limit, 1) for limit in (low, high))
    beyond = abs(value) - 2 * error > max(abs(low), abs(high))
    return _over(_bold(plus_minus(1e3 * value, 1e3 * error, signed=True), beyond), beside)


def _over(value: str, nulls: str) -> Markup:
    """A value, and below it that of null networks."""
    return Markup("{}<br><small>({})</small>").format(value, nulls)


def _bold(text: str, wanted: bool) -> Markup:
    return Markup("<b>{}</b>").format(text) if wanted else escape(text)


def _above(value: float | None, error: float | None, *nulls: float | None, decimals: int = 2) -> Markup:
    """A number and, in brackets, the same of null networks; bold if it exceeds them by two errors."""
    if value is None:
        return Markup("–")
    known = [null for null in nulls if null is not None]
    beyond = error is not None and bool(known) and value - 2 * error > max(known)
    beside = "; ".join("–" if null is None else fixed(null, decimals) for null in nulls)
    return _over(_bold(plus_minus(value, error), beyond), beside)


def _information(table: Table) -> Grid:
    """The largest excesses, and always type and process."""
    rows = sorted(table.dicts(), key=lambda row: -row["excess"])
    shown = rows[:MANY] + [row for row in rows[MANY:] if row["about"] in ("type", "process")]
    cells = [
        (
            row["layer"],
            _about(row["about"]) + (" | slot" if row["given"] else ""),
            plus_minus(row["bits"], row["error"]),
            number(row["largest_null"], 2),
            f"{row['excess']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]".replace("-", "−"),
        )
        for row in shown
    ]
    caption = (
        "What the choice of expert tells (bit, corrected for finite statistics), the most that any null network's "
        "choice tells, and the excess with its 95 % interval. The type is an input of the router, so some information "
        "about it needs no learning. “| slot”: at fixed object (b1, b2, …)."
    )
    head = ("Layer", "About", "I(expert; …) [bit]", "Largest null", "Excess")
    return Grid(head, tuple(cells), caption, "information")


def _about(name: str) -> Markup:
    return observable_html(name) if name in OBSERVABLES else escape(name.replace("_", " "))


def _interventions(table: Table) -> Grid:
    """In all events: one row per expert (and one for the swap), one column per layer and change."""
    everywhere = table.where(where="all events")
    layers = sorted(set(everywhere.column("layer")))
    experts = sorted({expert for expert in everywhere.column("expert") if expert is not None})
    kinds = [kind for kind in ("knock_out", "mean_ablation", "forced") if len(everywhere.where(kind=kind))]
    rows: list[tuple[Any, ...]] = [
        (f"expert {e}", *(_change(everywhere.where(layer=i, kind=k, expert=e)) for i in layers for k in kinds))
        for e in experts
    ]
    blank = ("",) * (len(kinds) - 1)
    swaps = [cell for i in layers for cell in (_change(everywhere.where(layer=i, kind="swap")), *blank)]
    rows.append(("exchanged", *swaps))
    caption = (
        "Change of the AUC [10⁻³] ± paired bootstrap error when one expert is taken away (the next best takes over), "
        "when it says the same to every object (its mean output), when all objects go to it alone; and when the "
        "experts trade places against their gates. Per process and region: the CSV file."
    )
    head = ("", *(f"Layer {i}: {CHANGES[k]}" for i in layers for k in kinds))
    return Grid(head, tuple(rows), caption, "interventions")


def _regions(table: Table) -> Grid:
    """The knock-outs and swaps that cost most somewhere, by their significance."""
    wanted = [row for kind in ("knock_out", "swap") for row in table.where(kind=kind).dicts()]
    lost = [row for row in wanted if row["delta_auc"] is not None and row["error"] and row["delta_auc"] < 0]
    lost = sorted(lost, key=lambda row: row["delta_auc"] / row["error"])[:MANY]
    rows = [
        (
            f"layer {row['layer']}: " + (f"without expert {row['expert']}" if row["expert"] else "exchanged"),
            sample_html(row["where"]),
            plus_minus(row["delta_auc"], row["error"], signed=True),
            plus_minus(row["outside"], row["outside_error"], signed=True),
            plus_minus(row["selectivity"], row["selectivity_error"], signed=True),
            plus_minus(row["delta_z"], row["delta_z_error"], signed=True),
        )
        for row in lost
    ]
    caption = (
        "Where taking experts away or exchanging them costs most: in all events, against one background, or in one "
        "region and outside it. Selectivity: 1 if only the region loses. ΔZ: change of the expected significance "
        "above the cut that keeps 70 % of the signal there. Of so many looks some are extreme by chance; the verdict "
        "allows for that."
    )
    return Grid(("Change", "Where", "ΔAUC", "ΔAUC outside", "Selectivity", "ΔZ"), tuple(rows), caption, "interventions")


def _change(table: Table) -> str:
    row = table.dicts()[0] if len(table) else None
    if row is None or row["delta_auc"] is None:
        return "–"
    return plus_minus(1e3 * row["delta_auc"], None if row["error"] is None else 1e3 * row["error"], signed=True)


def _experts(table: Table) -> Grid:
    names = [f"r2_{name}" for name in HEADLINE]
    rows = [
        (
            f"{row['layer']}, {row['expert']}",
            f"{row['load']:.2f}" + (" (dead)" if row["dead"] else ""),
            _over(number(row["most_similar"], 2), number(row["most_similar_untrained"], 2)),
            *(_above(*(row[name + end] for end in ("", "_error", "_untrained", "_control"))) for name in names),
        )
        for row in table.dicts()
    ]
    read = [Markup("R² of ") + observable_html(name.removeprefix("r2_")) for name in names]
    caption = (
        "Load: share of all gates. Likeness: linear CKA with the most similar other expert (1: the same answer up to "
        "rotation and scale; in brackets: untrained). R²: what a straight-line fit reads off the expert's answers, on "
        "events it was not fitted on; in brackets the same off the untrained expert for the same objects, and of fits "
        "to shuffled values (control task). <b>Bold</b>: two errors above both."
    )
    return Grid(("Layer, expert", "Load", "Likeness", *read), tuple(rows), Markup(caption), "expert_numbers")


def _surrogates(saved: Saved) -> Grid:
    assert saved.experts is not None
    rows = [
        (s.layer + 1, plus_minus(s.fidelity, s.error), f"{s.type_only:.3f}", f"{s.largest:.3f}")
        for s in saved.experts.surrogates
    ]
    caption = (
        "How well a few cuts imitate the router: share of objects whose first expert a decision tree of depth 3 "
        "predicts from pt, η, mass, … and the observables, on events it was not fitted on; beside a tree that sees "
        "the object type only, and always naming the most used expert."
    )
    return Grid(("Layer", "Tree", "Type only", "Most used"), tuple(rows), caption)


def _two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _stability(saved: Saved) -> Grid:
    rows = [
        (
            one.layer + 1,
            f"{one.ari:.2f} ± {one.spread:.2f} ({one.null:.2f})",
            f"{_two_digits(one.within)} ({_two_digits(one.null_within)})",
            f"{one.nmi:.2f}",
            f"{one.agreement:.2f}",
        )
        for one in saved.stability
    ]
    head = ("Layer", "Adjusted Rand index", "… at fixed object", "Mutual information", "Same expert")
    caption = (
        "How alike the expert choices of several trainings are, up to a renaming of the experts (1: the same, 0: "
        "chance; in brackets the untrained networks). Below 0.6 the number of an expert means nothing in another "
        "training."
    )
    return Grid(head, tuple(rows), caption)


def _dictionaries(table: Table) -> Grid:
    names = [name for name in table.columns if name.startswith("best_") and not name.endswith("_error")]
    rows = []
    for row in table.where(network="trained").dicts():
        nulls = [_null(table, network, layer=row["layer"], kind=row["kind"]) for network in NULLS]
        value, error = (None if row[name] is None else 100 * row[name] for name in ("unexplained", "error"))
        beside = "; ".join("–" if n.get("unexplained") is None else f"{100 * n['unexplained']:.1f}" for n in nulls)
        read = [_above(row[name], row[f"{name}_error"], *(n.get(name) for n in nulls)) for name in names]
        rows.append(
            (row["layer"], row["kind"], row["size"], _over(plus_minus(value, error), beside), row["dead"], *read)
        )
    active = table.column("active")[0] if len(table) else 0
    labels = [Markup("|r| with ") + observable_html(name.removeprefix("best_")) for name in names]
    caption = (
        f"A sparse dictionary writes each object's state with {active} of many directions; principal components and "
        "single neurons do the same with as many of theirs. Unexplained: variance that is missed, on events not "
        "fitted on. |r|: the largest rank correlation of a single direction with an observable. A dictionary that "
        "does not win both is of no use. Errors: bootstrap of the events. In brackets the same of an untrained "
        "network; of one on shuffled labels; <b>bold</b>: |r| two errors above both."
    )
    head = ("After layer", "Directions", "Number", "Unexplained [%]", "Never used", *labels)
    return Grid(head, tuple(rows), Markup(caption), "dictionaries")


def _null(table: Table, network: str, **values: Any) -> dict[str, Any]:
    """The row of a null network; empty if there is none."""
    return next(iter(table.where(network=network, **values).dicts()), {})


def _sparsity(table: Table) -> Grid:
    rows = []
    for row in table.where(network="trained").dicts():
        nulls = [_null(table, network, layer=row["layer"], expert=row["expert"]) for network in NULLS]
        rows.append((row["layer"], row["expert"] or "all", _share(row), *(_share(null) for null in nulls)))
    caption = (
        "Critical sparsity (arXiv:2509.00454): the largest share of an expert's hidden units that can be off, "
        "smallest first, with 99 % of the AUC left; in brackets the same with units chosen at random. 100 %: the "
        "classifier does without. Errors: bootstrap of the events, and the steps of the scan. Untrained, shuffled: all "
        "experts of the layer in a network that has learned nothing, where 99 % of the AUC is 99 % of chance."
    )
    head = ("Layer", "Expert", "Trained [%]", "Untrained [%]", "Shuffled labels [%]")
    return Grid(head, tuple(rows), caption, "sparsity")


def _share(row: dict[str, Any]) -> str:
    if not row:
        return "–"
    return f"{_percents(row['critical'], row['error'])} ({_percents(row['random'], row['random_error'])})"


def _percents(value: float, error: float) -> str:
    return f"{100 * value:.0f}" if error < 0.005 else f"{100 * value:.0f} ± {100 * error:.0f}"
