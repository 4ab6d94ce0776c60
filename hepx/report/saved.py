"""Reads a run folder: everything the report is made of, as saved by the stages before it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as parquet

from hepx import files
from hepx.errors import ResultError
from hepx.report.tables import Table
from hepx.results import (
    Array,
    EventResult,
    Explanation,
    GroupExplanation,
    Importance,
    ObservableLink,
    PairExplanation,
    Provenance,
    ResponseCurve,
    Result,
    kind_of,
)
from hepx.results_closure import Closure, MeanAttribution, Usage
from hepx.results_influence import Influence
from hepx.results_network import AttentionMap, ExpertReport, Representation, Stability

T = TypeVar("T")
FEATURE_METHODS = ("integrated_gradients", "owen", "expected_gradients", "deeplift", "gradient_shap")
"""Methods for single features, the one to show first."""


@dataclass(frozen=True)
class Saved:
    """The results of a run; None (or empty) where a stage was not run or does not apply to the model.

    scores: column -> values [B] of the test events; explanations, group_values, edges, importances: name of the file ->
    result; responses: observable -> ResponseCurve; varied: METHOD@VARIATION -> Explanation under a variation;
    influences: score of training events -> result; suspects: the list of an audit, as text.
    """

    run: Path
    dataset: dict[str, Any]
    metrics: dict[str, Any]
    config: str | None
    provenance: dict[str, Any] | None
    history: Table | None
    scores: dict[str, Array] | None
    explanations: dict[str, Explanation]
    group_values: dict[str, GroupExplanation]
    edges: dict[str, PairExplanation]
    importances: dict[str, Importance]
    varied: dict[str, Explanation]
    responses: dict[str, ResponseCurve]
    links: tuple[ObservableLink, ...]
    links_provenance: Provenance | None
    attention: AttentionMap | None
    experts: ExpertReport | None
    representation: Representation | None
    stability: tuple[Stability, ...]
    validation: dict[str, Any] | None = None
    closure: Closure | None = None
    audit: dict[str, Any] | None = None
    suspects: Table | None = None
    distilled: dict[str, Any] | None = None
    influence_validation: dict[str, Any] | None = None
    influences: dict[str, Influence] = field(default_factory=dict)

    @property
    def samples(self) -> tuple[str, ...]:
        """Names of the samples, in the order of the config."""
        return tuple(self.dataset["layout"]["samples"])

    @property
    def labels(self) -> dict[str, int]:
        """Class of each sample: 1 is signal."""
        return dict(zip(self.samples, self.dataset["layout"]["labels"], strict=True))

    @property
    def luminosity(self) -> float:
        """Integrated luminosity the weights are scaled to, fb⁻¹."""
        return float(self.dataset["luminosity"])

    @property
    def variations(self) -> list[dict[str, Any]]:
        """What each systematic variation does to the measures."""
        return list(self.metrics.get("variations", []))

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Measures per process and signal point."""
        return list(self.metrics["groups"])

    @property
    def calibrated(self) -> dict[str, Any]:
        """Reliability of the model's score."""
        return dict(self.metrics["calibration"])

    @property
    def usage(self) -> list[Usage]:
        """What trees and network use."""
        return self.closure.usage if self.closure else []

    @property
    def means(self) -> list[MeanAttribution]:
        """Mean attributions in regions and under variations."""
        return self.closure.means if self.closure else []

    @property
    def displays(self) -> list[dict[str, Any]]:
        """The first suspicious training events."""
        return list(self.audit["displays"]) if self.audit else []

    @property
    def objects(self) -> Explanation | None:
        """The attribution to objects (values [B, N] that add up to the change of the score)."""
        return self._first(("shapley",), lambda e: e.values.ndim == 2 and e.completeness_error is not None)

    @property
    def features(self) -> Explanation | None:
        """The attribution to the features of the objects (values [B, N, F])."""
        return self._first(FEATURE_METHODS, lambda e: e.values.ndim == 3)

    @property
    def pairs(self) -> Explanation | None:
        """The attribution that has pair interactions [B, N, N]."""
        return self._first(("shapley",), lambda e: e.interactions is not None)

    @property
    def faith(self) -> Explanation | None:
        """The attribution that has Faith-Shap values [B, N, N]."""
        return self._first(("shapley",), lambda e: e.faith is not None)

    @property
    def others(self) -> dict[str, EventResult]:
        """The attributions that are neither `objects` nor `features`, by the name of the file."""
        found: dict[str, EventResult] = {**self.explanations, **self.group_values, **self.edges}
        return {name: one for name, one in found.items() if one is not self.objects and one is not self.features}

    def _first(self, order: tuple[str, ...], accept: Callable[[Explanation], bool]) -> Explanation | None:
        """The methods named first, then the others by name."""
        names = [*(name for name in order if name in self.explanations), *sorted(self.explanations)]
        return next((self.explanations[name] for name in names if accept(self.explanations[name])), None)

    def provenances(self) -> dict[str, Provenance]:
        """Provenance of every explanation result, by the file it is in."""
        attributions = self.explanations | self.group_values | self.edges | self.importances
        found = {f"explain/{name}.npz": result.provenance for name, result in attributions.items()}
        found |= {f"explain/response_{name}.npz": result.provenance for name, result in self.responses.items()}
        if self.validation:
            found["validate.json"] = Provenance(**self.validation["provenance"])
        if self.closure:
            found["closure.json"] = self.closure.provenance
        if self.audit:
            found["influence/audit.json"] = Provenance(**self.audit["provenance"])
        if self.distilled:
            found["influence/distill.json"] = Provenance(**self.distilled["provenance"])
        found |= {f"influence/scores/{name}.npz": one.provenance for name, one in self.influences.items()}
        if self.links_provenance:
            found["explain/links.json"] = self.links_provenance
        if self.attention:
            found["attention.npz"] = self.attention.provenance
        if self.experts:
            found["experts.json"] = self.experts.provenance
        if self.representation:
            found["representation.json"] = self.representation.provenance
        return found


def load_saved(run: Path) -> Saved:
    """Read a run folder; ResultError if it lacks what every report needs, or holds a broken file."""
    if not run.is_dir():
        raise ResultError(f"there is no run folder '{run}'. Give the folder that `hepx run CONFIG` made.")
    results = _load_results(run / "explain")
    found = {kind: {name: one for name, one in of.items() if "@" not in name} for kind, of in results.items()}
    responses = {name.removeprefix("response_"): curve for name, curve in found[ResponseCurve].items()}
    links, links_provenance = _load_links(run / "explain" / "links.json")
    return Saved(
        run=run,
        dataset=_required(run / "dataset" / "dataset.json", "hepx convert"),
        metrics=_required(run / "metrics.json", "hepx evaluate"),
        config=_optional(run / "config.yaml", lambda path: path.read_text(encoding="utf-8")),
        provenance=_optional(run / "provenance.json", _read_json),
        history=_optional(run / "history.csv", _read_history),
        scores=_optional(run / "scores.parquet", _read_scores),
        explanations=found[Explanation],
        group_values=found[GroupExplanation],
        edges=found[PairExplanation],
        importances=found[Importance],
        varied={name: one for name, one in results[Explanation].items() if "@" in name},
        responses=responses,
        links=links,
        links_provenance=links_provenance,
        attention=_optional(run / "attention.npz", AttentionMap.load),
        experts=_optional(run / "experts.json", ExpertReport.load_report),
        representation=_optional(run / "representation.json", Representation.load),
        stability=_load_stability(run / "stability.json"),
        validation=_optional(run / "validate.json", _read_validation),
        closure=_optional(run / "closure.json", Closure.load),
        audit=_optional(run / "influence" / "audit.json", _read_json),
        distilled=_optional(run / "influence" / "distill.json", _read_json),
        suspects=_optional(run / "influence" / "audit.csv", _read_table),
        influence_validation=_optional(run / "influence" / "validate.json", _read_json),
        influences={
            path.stem: Influence.load(path) for path in sorted((run / "influence" / "scores").glob("[!.]*.npz"))
        },
    )


def _required(path: Path, stage: str) -> dict[str, Any]:
    if not path.exists():
        raise ResultError(f"'{path}' is missing, and a report needs it. Run `{stage} {path.parents[0]}` first.")
    return _read_json(path)


def _optional(path: Path, read: Callable[[Path], T]) -> T | None:
    return read(path) if path.exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(files.read_json(path))
    except (TypeError, ValueError) as error:
        raise ResultError(f"'{path}' is not a JSON object ({error}). Delete it and run its stage again.") from error


def _read_validation(path: Path) -> dict[str, Any]:
    found = _read_json(path)
    if "shares" not in found:
        raise ResultError(f"'{path}' is of an earlier version. Delete it, or run `hepx validate {path.parent}` again.")
    return found


def _read_history(path: Path) -> Table | None:
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = list(csv.reader(file))
    rows = [tuple(float(value) for value in line) for line in lines if line]
    return Table(tuple(header), tuple(rows)) if rows else None


def _read_table(path: Path) -> Table:
    """A CSV file as text."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = list(csv.reader(file))
    return Table(tuple(header), tuple(map(tuple, lines)))


def _read_scores(path: Path) -> dict[str, Array]:
    table = parquet.read_table(path)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _load_results(folder: Path) -> dict[type[Result], dict[str, Any]]:
    """Every .npz in explain/, sorted by what it says it holds; other types are left alone."""
    known = {
        kind.__name__: kind for kind in (Explanation, GroupExplanation, PairExplanation, Importance, ResponseCurve)
    }
    found: dict[type[Result], dict[str, Any]] = {kind: {} for kind in known.values()}
    for path in sorted(folder.glob("[!.]*.npz")):
        kind = known.get(kind_of(path))
        if kind:
            found[kind][path.stem] = kind.load(path)
    return found


def _load_stability(path: Path) -> tuple[Stability, ...]:
    return tuple(Stability(**row) for row in _read_json(path)["layers"]) if path.exists() else ()


def _load_links(path: Path) -> tuple[tuple[ObservableLink, ...], Provenance | None]:
    if not path.exists():
        return (), None
    values = _read_json(path)
    links = tuple(ObservableLink(**{**link, "objects": tuple(link["objects"])}) for link in values["links"])
    provenance = values.get("provenance")
    return links, Provenance(**provenance) if provenance else None
