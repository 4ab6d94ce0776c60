"""Columns -> jets, b-jets, leptons and missing momentum as momenta in GeV and rad, checked, selected, sorted by pt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import awkward as ak
import numpy as np
import vector

from hepx import expression, kinematics
from hepx.errors import DataError
from hepx.events.columns import Columns, require, require_finite
from hepx.events.schema import ObjectSchema, Schema, Tagger
from hepx.events.settings import DataSettings

vector.register_awkward()

ENERGIES = ("pt", "energy", "mass")
MAX_ETA, MAX_PT = 10.0, 1e5  # beyond any detector; 100 TeV is beyond any beam
MAX_ENERGY = MAX_PT * np.cosh(MAX_ETA)
CHECK_UNIT = "Is energy_unit of the schema right?"
USUAL_JET_PT = (0.5, 5000.0)  # GeV: no detector has jets with a median outside
SAME = 1e-4  # relative in pt, absolute in eta and phi: far above float32 rounding, far below any resolution


def read_objects(columns: Columns, schema: Schema, tagger: Tagger | None, data: DataSettings) -> dict[str, ak.Array]:
    """jet, bjet, lepton [B, var] and met [B]; jets carry `tagged`, met its `significance`."""
    scale = 1e-3 if schema.energy_unit == "MeV" else 1.0
    leptons = _collection(columns, schema, "lepton", data.select_leptons, scale)
    jets = _collection(columns, schema, "jet", data.select_jets, scale, tagger, leptons)
    tagged = jets["btag"] >= (schema.btag_cut if data.btag_cut is None else data.btag_cut)
    met = _met(columns, schema, scale, jets, leptons)
    return {"jet": ak.with_field(jets, tagged, "tagged"), "bjet": jets[tagged], "lepton": leptons, "met": met}


def _collection(
    columns: Columns,
    schema: Schema,
    name: str,
    select: str | None,
    scale: float,
    tagger: Tagger | None = None,
    leptons: ak.Array | None = None,
) -> ak.Array:
    """All parts of a collection, each checked and selected, joined and sorted by falling pt."""
    parts: Sequence[ObjectSchema] = getattr(schema, name)
    read = [_read_part(columns, part, scale, tagger) for part in parts]
    if name == "jet":
        _check_unit(read, schema, columns.where)
    for one in read:
        require(one["pt"] > MAX_PT, one["pt"], f"pt of {name}s of {columns.where}", "are above 100 TeV", CHECK_UNIT)
    momenta = _join([_select(one, select or part.select, leptons) for one, part in zip(read, parts, strict=True)])
    if name in schema.repeated:
        momenta = momenta[_first_of_its_kind(momenta)]
    return momenta[ak.argsort(momenta["pt"], axis=1, ascending=False, stable=True)]


def _read_part(columns: Columns, part: ObjectSchema, scale: float, tagger: Tagger | None) -> ak.Array:
    branches = part.branches | (tagger.branches if tagger else {})
    fields = columns.per_object(branches, part.slot)
    if part.exists:
        exists = expression.evaluate(part.exists, fields)
        fields = {name: values[exists] for name, values in fields.items()}
    for name in fields.keys() & {*ENERGIES, "eta", "phi"}:
        fields[name] = ak.values_astype(fields[name], np.float64) * (scale if name in ENERGIES else 1.0)
    _check_values(fields, branches, columns.where)
    fields["phi"] = (fields["phi"] + np.pi) % (2 * np.pi) - np.pi
    if tagger:
        fields["btag"] = _btag(fields, tagger)
        fields = {name: values for name, values in fields.items() if name not in tagger.branches}
    for name, text in part.derived.items():
        fields[name] = expression.evaluate(text, fields) + fields["pt"] * 0
    energy = fields.pop("energy", None)
    if "mass" not in fields:
        fields["mass"] = fields["pt"] * 0 if energy is None else _mass(energy, fields["pt"], fields["eta"])
    return ak.zip(fields, with_name="Momentum4D")


def _check_values(fields: dict[str, ak.Array], branches: dict[str, str], where: str) -> None:
    """Every momentum is a possible one; the sentences tell the usual reasons why it is not."""

    def what(name: str) -> str:
        return f"branch {branches[name].rstrip('?')} of {where}"

    for name in fields.keys() & {"pt", "eta", "phi", "energy", "mass"}:
        require_finite(fields[name], what(name))
    pt, eta, phi = fields["pt"], fields["eta"], fields["phi"]
    sentinel = "If it marks an absent object, say so in the schema (exists: pt > 0)."
    require(pt < 0, pt, what("pt"), "are negative; expected pt ≥ 0 in GeV", sentinel)
    require(abs(eta) > MAX_ETA, eta, what("eta"), f"exceed {MAX_ETA:g}; expected a pseudorapidity", sentinel)
    degrees = "Is it in degrees?"
    require(abs(phi) > 2 * np.pi + SAME, phi, what("phi"), "are outside ±2π; expected an angle in rad", degrees)
    if "energy" in fields:
        mend = "Find out what its writer means by it, or leave energy out of the schema."
        require(fields["energy"] < 0, fields["energy"], what("energy"), "are negative; expected an energy", mend)
    for name in fields.keys() & {"energy", "mass"}:
        require(abs(fields[name]) > MAX_ENERGY, fields[name], what(name), "are beyond any collider", CHECK_UNIT)


def _check_unit(parts: Sequence[ak.Array], schema: Schema, where: str) -> None:
    """A unit is declared, not guessed; a spectrum that it makes impossible is an error."""
    pt = np.concatenate([ak.to_numpy(ak.flatten(part["pt"])) for part in parts])
    if len(pt) < 20:
        return  # the median of a few jets says nothing
    median, (low, high) = float(np.median(pt)), USUAL_JET_PT
    if not low <= median <= high:
        other = "MeV" if schema.energy_unit == "GeV" else "GeV"
        raise DataError(
            f"{where}: the median pt of the jets is {median:.4g} GeV; expected {low:g} to {high:g} GeV. Schema "
            f"'{schema.name}' says that the file is in {schema.energy_unit}: is it in {other}? Set energy_unit."
        )


def _btag(fields: dict[str, ak.Array], tagger: Tagger) -> ak.Array:
    """The tagger's score [B, var], or the quantile 1 + number of edges it reaches; a NaN score reaches none."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a probability of exactly 0 is a score of ±∞
        score = expression.evaluate(tagger.score, fields)
    if not tagger.edges:
        return score
    quantile = fields["pt"] * 0 + 1
    for edge in tagger.edges:
        quantile = quantile + (score >= edge)
    return quantile


def _mass(energy: Any, pt: Any, eta: Any) -> Any:
    """Mass from the energy; float32 rounding can make E² − p² slightly negative, which counts as zero."""
    squared = energy**2 - (pt * np.cosh(eta)) ** 2
    return np.sqrt(ak.where(squared > 0, squared, 0.0))


def _select(momenta: ak.Array, select: str | None, leptons: ak.Array | None) -> ak.Array:
    if not select:
        return momenta
    values = {name: momenta[name] for name in momenta.fields}
    used = expression.names(select) if leptons is not None else set()
    if "delta_r_lepton" in used:
        values["delta_r_lepton"] = _distance(momenta, leptons)
    if "delta_r_electron" in used and leptons is not None and "flavour" in leptons.fields:
        values["delta_r_electron"] = _distance(momenta, leptons[leptons["flavour"] == 11])
    return momenta[expression.evaluate(select, values)]


def _distance(momenta: ak.Array, leptons: ak.Array) -> ak.Array:
    """ΔR of each object to the nearest lepton [B, var]; infinite where there is none."""
    first, second = momenta[:, :, np.newaxis], leptons[:, np.newaxis, :]
    delta_phi = (first["phi"] - second["phi"] + np.pi) % (2 * np.pi) - np.pi
    distance = np.sqrt((first["eta"] - second["eta"]) ** 2 + delta_phi**2)
    return ak.fill_none(ak.min(distance, axis=2), np.inf)


def _join(parts: list[ak.Array]) -> ak.Array:
    """Several lists of objects as one, with the fields that all of them have."""
    if len(parts) == 1:
        return parts[0]
    common = [name for name in parts[0].fields if all(name in part.fields for part in parts)]
    return ak.zip(
        {name: ak.concatenate([ak.values_astype(part[name], np.float64) for part in parts], axis=1) for name in common},
        with_name="Momentum4D",
    )


def _first_of_its_kind(momenta: ak.Array) -> ak.Array:
    """Mask [B, var]: no object before it in the list has the same pt, eta and phi."""
    one, other = momenta[:, :, np.newaxis], momenta[:, np.newaxis, :]
    delta_phi = (one["phi"] - other["phi"] + np.pi) % (2 * np.pi) - np.pi
    same = (abs(one["pt"] - other["pt"]) <= SAME * one["pt"]) & (abs(one["eta"] - other["eta"]) <= SAME)
    same = same & (abs(delta_phi) <= SAME)
    place = ak.local_index(momenta["pt"], axis=1)
    return ~ak.any(same & (place[:, :, np.newaxis] > place[:, np.newaxis, :]), axis=2)


def _met(columns: Columns, schema: Schema, scale: float, jets: ak.Array, leptons: ak.Array) -> ak.Array:
    """Missing momentum [B] with its significance, from the file or computed."""
    if schema.met.pt is not None:
        pt, phi = _met_of_file(columns, schema, scale)
    else:
        pt, phi = _met_of_objects(columns, schema, scale, jets, leptons)
    momentum = ak.zip({"pt": pt, "phi": phi}, with_name="Momentum2D")
    if schema.met.significance is not None and schema.met.significance in columns:
        significance = columns.per_event(schema.met.significance).astype(np.float64)
        require_finite(significance, f"branch {schema.met.significance} of {columns.where}")
    else:
        significance = kinematics.met_significance(momentum, jets, leptons)
    zero = np.zeros(columns.num_events)
    values = {"pt": pt, "eta": zero, "phi": phi, "mass": zero, "significance": significance}
    return ak.zip(values, with_name="Momentum4D")


def _met_of_file(columns: Columns, schema: Schema, scale: float) -> tuple[Any, Any]:
    pt = columns.per_event(str(schema.met.pt)).astype(np.float64) * scale
    phi = columns.per_event(str(schema.met.phi)).astype(np.float64)
    what = f"branch {schema.met.pt} of {columns.where}"
    require_finite(pt, what)
    require_finite(phi, f"branch {schema.met.phi} of {columns.where}")
    require(pt < 0, pt, what, "are negative; expected E_T^miss ≥ 0 in GeV", "Remove these events from the file.")
    require(pt > MAX_PT, pt, what, "are above 100 TeV", CHECK_UNIT)
    require(
        abs(phi) > 2 * np.pi + SAME,
        phi,
        f"branch {schema.met.phi} of {columns.where}",
        "are outside ±2π; expected an angle in rad",
        "Is it in degrees?",
    )
    return pt, (phi + np.pi) % (2 * np.pi) - np.pi


def _met_of_objects(
    columns: Columns, schema: Schema, scale: float, jets: ak.Array, leptons: ak.Array
) -> tuple[Any, Any]:
    """The soft term minus the vector sum of the selected jets and leptons."""
    total = []
    for branch, part in ((schema.met.soft_px, np.cos), (schema.met.soft_py, np.sin)):
        soft = columns.per_event(str(branch)).astype(np.float64) * scale
        require_finite(soft, f"branch {branch} of {columns.where}")
        hard = sum(ak.sum(momenta["pt"] * part(momenta["phi"]), axis=1) for momenta in (jets, leptons))
        total.append(soft - ak.to_numpy(hard))
    px, py = total
    return np.hypot(px, py), np.arctan2(py, px)
