"""Tables of `hepx validate`: how faithful each method is, and how alike the methods are."""

from __future__ import annotations

from typing import Any

from hepx.report.grid import Grid
from hepx.report.grids import method_name, percent
from hepx.report.saved import Saved
from hepx.report.tables import fixed, number, plus_minus

MEASURES = {
    "order": "Order",
    "infidelity": "Infidelity",
    "correlation": "Set correlation",
    "fidelity_plus": "Fidelity⁺",
    "fidelity_minus": "Fidelity⁻",
    "unfaithfulness": "Unfaithfulness",
    "sensitivity": "Sensitivity",
}
LIKENESS = {
    "donors": "Other donors",
    "seeds": "Other seeds of the training",
    "untrained": "Untrained network",
    "shuffled": "Shuffled labels",
}


def validation_grids(saved: Saved) -> dict[str, Grid]:
    """Measures, repeats and agreement; empty without validate.json."""
    if saved.validation is None:
        return {}
    methods = saved.validation["methods"]
    rows = {**{method_name(name): row for name, row in methods.items()}, "random values": saved.validation["random"]}
    faithful = tuple((name, *(_cell(row.get(key)) for key in MEASURES)) for name, row in rows.items())
    repeats = tuple(
        (
            method_name(name),
            *(_cell(row["likeness"][key]) for key in LIKENESS),
            *("–" if row["spread"][key] is None else percent(row["spread"][key]) for key in ("donors", "seeds")),
        )
        for name, row in methods.items()
    )
    agreement = tuple(
        (method_name(name), *("–" if value is None else fixed(value, 2) for value in row))
        for name, row in zip(methods, saved.validation["agreement"], strict=True)
    )
    names = tuple(method_name(name) for name in methods)
    return {
        "faithful": Grid(("Method", *MEASURES.values()), faithful, FAITHFUL.format(saved.validation["events"])),
        "repeats": Grid(("Method", *LIKENESS.values(), "Spread: donors", "Spread: seeds"), repeats, REPEATS),
        "agreement": Grid(("", *names), agreement, AGREEMENT),
    }


def _cell(measured: dict[str, Any] | None) -> str:
    if measured is None or measured["value"] is None:
        return "–"
    value, error = measured["value"], measured["error"]
    return plus_minus(value, error) if error else number(value, 2)


FAITHFUL = (
    "Faithfulness on {} test events, without any truth: objects are replaced by those of background events. Order: how "
    "much of the score the objects named first carry, 1 the best order, 0 a random one. Infidelity: what the sums of "
    "attributions miss of the change when objects are replaced, 0 perfect, 1 as bad as zeros; interactions leave a "
    "floor. Set correlation: of the two, 1 is best. "
    "Fidelity⁺ (⁻): share of events whose decision changes without (with "
    "nothing but) the two objects that speak most for it. Unfaithfulness: 0 is best. Sensitivity: largest relative "
    "change when jets and leptons are measured again within the detector resolution. Errors: bootstrap of the events."
)
REPEATS = (
    "Rank correlation of the sizes of the objects’ attributions with a second explanation of the same events: high "
    "for other donors and other seeds of the training is stability; near 0 for an untrained network and one trained on "
    "shuffled labels says that the explanation shows what was learned. Spread: root mean square over repeats, relative "
    "to the size of the attributions. – where there was no such network."
)
AGREEMENT = "Agreement between methods: the same rank correlation."
