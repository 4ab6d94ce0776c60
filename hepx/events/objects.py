"""Columns -> jets, b-jets, leptons and missing momentum in GeV and rad, checked, selected, sorted by pt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hepx import expression, kinematics
from hepx.collection import Collection, join
from hepx.errors import DataError
from hepx.events.columns import Columns, Float64, require, require_finite
from hepx.events.schema import CARTESIAN, POLAR, ObjectSchema, Schema, Tagger
from hepx.events.settings import DataSettings

ENERGIES = ("pt", "energy", "mass", *CARTESIAN)
MAX_ETA, MAX_PT = 10.0, 1e5  # beyond any detector; 100 TeV is beyond any beam
MAX_ENERGY = MAX_PT * np.cosh(MAX_ETA)
POSSIBLE = {
    "pt": (0.0, np.finfo(np.float64).max),
    "eta": (-MAX_ETA, MAX_ETA),
    "phi": (-2 * np.pi - 1e-4, 2 * np.pi + 1e-4),
    "energy": (0.0, MAX_ENERGY),
    "mass": (-MAX_ENERGY, MAX_ENERGY),
    **dict.fromkeys(CARTESIAN, (-MAX_ENERGY, MAX_ENERGY)),
}
"""Ranges of what a file may hold; GeV and rad. That a pt is beyond any beam is told apart from that."""
SENTINEL = "If it marks an absent object, say so in the schema (exists: pt > 0)."
CHECK_UNIT = "Is energy_unit of the schema right?"
USUAL_JET_PT = (0.5, 5000.0)  # GeV: no detector has jets with a median outside
SAME = 1e-4  # relative in pt, absolute in eta and phi: far above float32 rounding, far below any resolution

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Found:
    """Jets and leptons as the file has them, checked, in GeV and rad, before any selection; one entry per part of the
    schema."""

    jets: tuple[Collection, ...]
    leptons: tuple[Collection, ...]


def read_objects(columns: Columns, schema: Schema, tagger: Tagger | None, data: DataSettings) -> dict[str, Collection]:
    """jet, bjet, lepton, and met with one object per event; jets carry `tagged`, met its `significance`."""
    objects = choose(find(columns, schema, tagger), schema, data)
    return objects | {"met": missing_momentum(columns, schema, objects)}


def find(columns: Columns, schema: Schema, tagger: Tagger | None) -> Found:
    """The jets and leptons of a file; DataError for values that cannot be."""
    leptons = _find(columns, schema, "lepton", None)
    return Found(_find(columns, schema, "jet", tagger), leptons)


def _find(columns: Columns, schema: Schema, name: str, tagger: Tagger | None) -> tuple[Collection, ...]:
    parts: Sequence[ObjectSchema] = getattr(schema, name)
    read = [_read_part(columns, part, _scale(schema), tagger) for part in parts]
    if name == "jet":
        _check_unit(read, schema, columns.where)
    for one in read:
        require(one["pt"] > MAX_PT, one["pt"], f"pt of {name}s of {columns.where}", "are above 100 TeV", CHECK_UNIT)
    return tuple(_without_repeated(read) if name in schema.repeated else read)


def _scale(schema: Schema) -> float:
    return 1e-3 if schema.energy_unit == "MeV" else 1.0


def choose(found: Found, schema: Schema, data: DataSettings) -> dict[str, Collection]:
    """jet, bjet and lepton: those that the selection keeps, by falling pt."""

    def chosen(name: str, parts: Sequence[Collection], select: str | None, leptons: Collection | None) -> Collection:
        cuts = [select or part.select for part in getattr(schema, name)]
        kept = [part.where(passes(part, cut, leptons)) if cut else part for part, cut in zip(parts, cuts, strict=True)]
        return join(kept).by_falling_pt()

    leptons = chosen("lepton", found.leptons, data.select_leptons, None)
    jets = chosen("jet", found.jets, data.select_jets, leptons)
    tagged = jets["btag"] >= btag_cut(schema, data)
    return {"jet": jets.with_fields(tagged=tagged), "bjet": jets.where(tagged), "lepton": leptons}


def btag_cut(schema: Schema, data: DataSettings) -> float:
    """From this value of btag on a jet is a b-jet."""
    return schema.btag_cut if data.btag_cut is None else data.btag_cut


def _read_part(columns: Columns, part: ObjectSchema, scale: float, tagger: Tagger | None) -> Collection:
    branches = part.branches | (tagger.branches if tagger else {})
    objects = columns.per_object(branches, part.slot)
    if part.exists:
        objects = objects.where(expression.evaluate(part.exists, objects.fields))
    fields = dict(objects.fields)
    for name in fields.keys() & POSSIBLE.keys():
        fields[name] = fields[name].astype(np.float64, copy=False)
        if name in ENERGIES and scale != 1:
            fields[name] = fields[name] * scale
    _check_values(fields, branches, columns.where)
    if part.momentum == CARTESIAN:
        fields |= _polar(*(fields.pop(name) for name in CARTESIAN))
        _check_values(fields, dict.fromkeys(POLAR, branches["px"]), columns.where)
    fields["phi"] = kinematics.wrap(fields["phi"])
    if tagger:
        fields["btag"] = _btag(fields, tagger)
        fields = {name: values for name, values in fields.items() if name not in tagger.branches}
    for name, text in part.derived.items():
        fields[name] = expression.evaluate(text, fields) + np.zeros(len(fields["pt"]))
    energy = fields.pop("energy", None)
    if "mass" not in fields:
        fields["mass"] = fields["pt"] * 0 if energy is None else _mass(energy, fields["pt"], fields["eta"])
    return Collection(fields, objects.offsets)


def _check_values(fields: Mapping[str, Array], branches: Mapping[str, str], where: str) -> None:
    """Every momentum is a possible one; the sentences tell the usual reasons why it is not."""

    def what(name: str) -> str:
        return f"branch {branches[name].rstrip('?')} of {where}"

    found = [name for name in POSSIBLE if name in fields and not _within(fields[name], *POSSIBLE[name])]
    for name in found:
        require_finite(fields[name], what(name))
    for name in found:
        values = fields[name]
        low, high = POSSIBLE[name]
        if name in ("energy", "mass", *CARTESIAN):
            if name == "energy":
                mend = "Find out what its writer means by it, or leave energy out of the schema."
                require(values < 0, values, what(name), "are negative; expected an energy", mend)
            require(abs(values) > high, values, what(name), "are beyond any collider", CHECK_UNIT)
        elif name == "pt":
            require(values < low, values, what(name), "are negative; expected pt ≥ 0 in GeV", SENTINEL)
        elif name == "eta":
            problem = f"exceed {MAX_ETA:g}; expected a pseudorapidity"
            require(abs(values) > high, values, what(name), problem, SENTINEL)
        else:
            problem = "are outside ±2π; expected an angle in rad"
            require(abs(values) > high, values, what(name), problem, "Is it in degrees?")


def _polar(px: Array, py: Array, pz: Array) -> dict[str, Array]:
    """pt, eta and phi of momenta; eta is infinite along the beam."""
    pt = np.hypot(px, py)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"pt": pt, "eta": np.arcsinh(pz / pt), "phi": np.arctan2(py, px)}


def _within(values: Array, low: float, high: float) -> bool:
    """Whether all values lie in the range; false if one is NaN."""
    return not len(values) or bool(values.min() >= low and values.max() <= high)


def _check_unit(parts: Sequence[Collection], schema: Schema, where: str) -> None:
    """A unit is declared, not guessed; a spectrum that it makes impossible is an error."""
    pt = np.concatenate([part["pt"] for part in parts])
    if len(pt) < 20:
        return  # the median of a few jets says nothing
    median, (low, high) = float(np.median(pt[:: 1 + len(pt) // 10_000])), USUAL_JET_PT
    if not low <= median <= high:
        other = "MeV" if schema.energy_unit == "GeV" else "GeV"
        raise DataError(
            f"{where}: the median pt of the jets is {median:.4g} GeV; expected {low:g} to {high:g} GeV. Schema "
            f"'{schema.name}' says that the file is in {schema.energy_unit}: is it in {other}? Set energy_unit."
        )


def _btag(fields: Mapping[str, Array], tagger: Tagger) -> Array:
    """The tagger's score per jet, or the quantile 1 + number of edges it reaches; a NaN score reaches none."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a probability of exactly 0 is a score of ±∞
        score: Array = expression.evaluate(tagger.score, fields)
    if not tagger.edges:
        return score
    quantile = np.ones(len(score))
    for edge in tagger.edges:
        quantile += score >= edge
    return quantile


def _mass(energy: Array, pt: Array, eta: Array) -> Array:
    """Mass from the energy; float32 rounding can make E² − p² slightly negative, which counts as zero."""
    momentum = np.cosh(eta)
    momentum *= pt
    squared = energy * energy
    squared -= momentum * momentum
    return np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared)


def passes(objects: Collection, select: str, leptons: Collection | None) -> Array:
    """Mask of the objects that a selection keeps; with the selected leptons it may use the distance to them."""
    values = dict(objects.fields)
    used = expression.names(select) if leptons is not None else set()
    if leptons is not None and "delta_r_lepton" in used:
        values["delta_r_lepton"] = _distance(objects, leptons)
    if leptons is not None and "delta_r_electron" in used and "flavour" in leptons:
        values["delta_r_electron"] = _distance(objects, leptons.where(leptons["flavour"] == 11))
    return np.broadcast_to(expression.evaluate(select, values), len(objects["pt"]))


def _distance(objects: Collection, leptons: Collection) -> Array:
    """ΔR of each object to the nearest lepton of its event; infinite where there is none."""
    nearest = np.full(len(objects["pt"]), np.inf)
    for rank in range(leptons.most):
        eta, phi = (values[objects.event] for values in leptons.take(leptons.place(rank), "eta", "phi"))
        delta_phi = kinematics.wrap(objects["phi"] - phi)
        nearest = np.fmin(nearest, np.sqrt((objects["eta"] - eta) ** 2 + delta_phi**2))
    return nearest


def _without_repeated(parts: Sequence[Collection]) -> list[Collection]:
    """Of objects with the same pt, eta and phi only the first, part after part."""
    return [part.where(~_is_repeated(part, parts[:i])) for i, part in enumerate(parts)]


def _is_repeated(part: Collection, earlier: Sequence[Collection]) -> Array:
    """Whether an object [M] is one that stands in an earlier part, or earlier in its own."""
    again = np.zeros(len(part["pt"]), dtype=bool)
    for other in (*earlier, part):
        for rank in range(other.most - (other is part)):
            place = other.place(rank)[part.event]
            near = np.abs(part["pt"] - other["pt"][place]) <= SAME * part["pt"]
            near &= part.rank > rank if other is part else place >= 0
            mine = np.flatnonzero(near)  # few are left for the angles
            its = place[mine]
            same = np.abs(part["eta"][mine] - other["eta"][its]) <= SAME
            same &= np.abs(kinematics.wrap(part["phi"][mine] - other["phi"][its])) <= SAME
            again[mine[same]] = True
    return again


def missing_momentum(columns: Columns, schema: Schema, objects: Mapping[str, Collection]) -> Collection:
    """Missing momentum, one per event, with its significance, from the file or computed from the selected objects."""
    pt, phi = met_of_objects(columns, schema, objects) if schema.met.built else met_of_file(columns, schema)
    found = significance_of_file(columns, schema)
    if found is None:
        found = kinematics.met_significance(pt, phi, objects["jet"], objects["lepton"])
    zero = np.zeros(columns.num_events)
    fields = {"pt": pt, "eta": zero, "phi": phi, "mass": zero, "significance": found}
    return Collection(fields, np.arange(columns.num_events + 1))


def significance_of_file(columns: Columns, schema: Schema) -> Float64 | None:
    """The significance of the missing momentum [B], or None where the file does not have it."""
    if schema.met.significance is None or schema.met.significance not in columns:
        return None
    significance = columns.per_event(schema.met.significance).astype(np.float64)
    require_finite(significance, f"branch {schema.met.significance} of {columns.where}")
    return significance


def met_of_file(columns: Columns, schema: Schema) -> tuple[Float64, Float64]:
    """pt and phi of the missing momentum, as the file has them."""
    if schema.met.px is not None:
        px, py = (_component(columns, schema, branch) for branch in (schema.met.px, schema.met.py))
        return np.hypot(px, py), kinematics.wrap(np.arctan2(py, px))
    pt = columns.per_event(str(schema.met.pt)).astype(np.float64) * _scale(schema)
    phi = columns.per_event(str(schema.met.phi)).astype(np.float64)
    what = f"branch {schema.met.pt} of {columns.where}"
    require_finite(pt, what)
    require_finite(phi, f"branch {schema.met.phi} of {columns.where}")
    require(pt < 0, pt, what, "are negative; expected E_T^miss ≥ 0 in GeV", "Remove these events from the file.")
    require(pt > MAX_PT, pt, what, "are above 100 TeV", CHECK_UNIT)
    require(
        abs(phi) > POSSIBLE["phi"][1],
        phi,
        f"branch {schema.met.phi} of {columns.where}",
        "are outside ±2π; expected an angle in rad",
        "Is it in degrees?",
    )
    return pt, kinematics.wrap(phi)


def met_of_objects(columns: Columns, schema: Schema, objects: Mapping[str, Collection]) -> tuple[Float64, Float64]:
    """The soft term minus the vector sum of the selected jets and leptons."""
    total = []
    for branch, part in ((schema.met.soft_px, np.cos), (schema.met.soft_py, np.sin)):
        soft = _component(columns, schema, branch)
        hard = (one.total(one["pt"] * part(one["phi"])) for one in (objects["jet"], objects["lepton"]))
        total.append(soft - sum(hard))
    px, py = total
    return np.hypot(px, py), np.arctan2(py, px)


def _component(columns: Columns, schema: Schema, branch: str | None) -> Float64:
    """A component of a transverse momentum, GeV [B]."""
    values = columns.per_event(str(branch)).astype(np.float64) * _scale(schema)
    what = f"branch {branch} of {columns.where}"
    require_finite(values, what)
    require(abs(values) > MAX_PT, values, what, "are above 100 TeV", CHECK_UNIT)
    return values
