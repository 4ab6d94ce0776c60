"""What a systematic variation does to the objects of events: branches read instead, momenta scaled and smeared.

The missing momentum follows: it loses what the objects gain, as vectors, so that their sum stays what it was. Every
object of the file counts for that, whatever the cuts on its momentum, but not one that the schema's selection drops for
another reason (identification, distance to a lepton). Where the variation names the missing momentum's own branches,
or the schema builds it from the objects, that is taken instead. A significance that is in the file is scaled by the
ratio of hepx's formula after and before, so that its definition stays the file's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hepx import expression, kinematics, random
from hepx.collection import Collection
from hepx.errors import DataError
from hepx.events import objects as reading
from hepx.events.columns import Columns, Float64, require
from hepx.events.objects import Found
from hepx.events.schema import CARTESIAN, ObjectSchema, Schema, Tagger
from hepx.events.settings import DataSettings, VariationSettings

MOMENTUM = {"pt", "eta", "phi", "mass", "energy"}


@dataclass(frozen=True)
class Origin:
    """Where objects come from: columns, and the schema and b-tagger that say what they mean."""

    columns: Columns
    schema: Schema
    tagger: Tagger | None

    def find(self) -> Found:
        """The objects before any selection."""
        return reading.find(self.columns, self.schema, self.tagger)


def vary(
    base: Origin, moved: Origin, data: DataSettings, variation: VariationSettings, event_id: npt.NDArray[np.int64]
) -> dict[str, Collection]:
    """The objects as `read_objects` gives them, varied; `moved` differs from `base` in the branches read instead."""
    before = base.find()
    nominal = reading.choose(before, base.schema, data)
    nominal["met"] = reading.missing_momentum(base.columns, base.schema, nominal)
    after = before if moved is base else _mass_follows(before, moved.find(), base.schema, moved.schema)
    mover = _Mover(variation, event_id, reading.btag_cut(moved.schema, data))
    after = Found(mover.all("jet", after.jets), mover.all("lepton", after.leptons))
    varied = reading.choose(after, moved.schema, data)
    pt, phi = _missing_momentum(base, moved, before, after, nominal, varied)
    (met,) = mover.all("met", (nominal["met"].with_fields(pt=pt, phi=phi),))
    significance = _significance(base, moved, nominal, varied, met)
    return varied | {"met": met.with_fields(significance=significance)}


@dataclass(frozen=True)
class _Mover:
    """Scales and smears objects. Random numbers belong to an event and to an object's place in it: neither the order
    of the events nor who reads them matters, and two variations move an object in the same direction."""

    variation: VariationSettings
    event_id: npt.NDArray[np.int64]
    btag_cut: float

    def all(self, name: str, parts: tuple[Collection, ...]) -> tuple[Collection, ...]:
        """All parts of a collection, moved."""
        return tuple(self._one(name, i, part) for i, part in enumerate(parts))

    def _one(self, name: str, number: int, part: Collection) -> Collection:
        for what, size in self.variation.scale.items():
            if what.startswith(f"{name}."):
                part = _times(part, what, self._value(part, size))
        for what, size in self.variation.smear.items():
            if what.startswith(f"{name}."):
                noise = self._noise(part, f"{what} {number}")
                part = _times(part, what, np.maximum(1 + self._value(part, size) * noise, 0.0))
        return part

    def _value(self, part: Collection, size: float | str) -> Any:
        if not isinstance(size, str):
            return size
        values = dict(part.fields)
        if "btag" in part:
            values["tagged"] = part["btag"] >= self.btag_cut
        return expression.evaluate(size, values)

    def _noise(self, part: Collection, what: str) -> Float64:
        """A standard normal number per object, by the method of Box and Muller."""
        uniform = random.uniform(self.variation.seed, self.event_id, f"smear {what}", 2 * part.most)
        radius, angle = (uniform[part.event, 2 * part.rank + i] for i in (0, 1))
        return np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)


def _times(part: Collection, what: str, factor: Any) -> Collection:
    """A field times a factor; with pt goes the mass, so that the whole momentum is scaled."""
    factor = np.broadcast_to(np.asarray(factor, dtype=np.float64), len(part["pt"]))
    mend = "Mend its expression."
    require(~np.isfinite(factor) | (factor < 0), factor, f"what moves {what}", "are negative or not finite", mend)
    field = what.partition(".")[2]
    names = ("pt", "mass") if field == "pt" else (field,)
    return part.with_fields(**{name: part[name] * factor for name in names})


def _mass_follows(before: Found, after: Found, base: Schema, moved: Schema) -> Found:
    """Where the momentum is read from other branches and neither energy nor mass is, the mass follows pt."""

    def one(old: Collection, new: Collection, was: ObjectSchema, now: ObjectSchema) -> Collection:
        masses = [name for name in ("energy", "mass") if name in was.branches]
        changed = {name for name in (*was.momentum, *masses) if was.branches[name] != now.branches[name]}
        first = was.momentum[0]
        if not masses or not changed & {"pt", *CARTESIAN} or changed & set(masses):
            return new
        if not np.array_equal(old.offsets, new.offsets):
            raise DataError(
                f"branch {now.branches[first]} has other objects than {was.branches[first]}, so the variation must "
                f"name a branch for {' and '.join(was.branches[name] for name in masses)} too."
            )
        ratio = np.divide(new["pt"], old["pt"], out=np.ones(len(old["pt"])), where=old["pt"] > 0)
        return new.with_fields(mass=old["mass"] * ratio)

    jets = zip(before.jets, after.jets, base.jet, moved.jet, strict=True)
    leptons = zip(before.leptons, after.leptons, base.lepton, moved.lepton, strict=True)
    return Found(tuple(one(*parts) for parts in jets), tuple(one(*parts) for parts in leptons))


def _missing_momentum(
    base: Origin,
    moved: Origin,
    before: Found,
    after: Found,
    nominal: Mapping[str, Collection],
    varied: Mapping[str, Collection],
) -> tuple[Float64, Float64]:
    """pt and phi of the varied missing momentum."""
    if moved.schema.met.built:
        return reading.met_of_objects(moved.columns, moved.schema, varied)
    now, was = (one.schema.met.model_dump(exclude={"significance"}) for one in (moved, base))
    if now != was:
        return reading.met_of_file(moved.columns, moved.schema)
    met = nominal["met"]
    shift = _total(after, moved.schema, nominal["lepton"]) - _total(before, base.schema, nominal["lepton"])
    px, py = (met["pt"] * part(met["phi"]) - along for part, along in zip((np.cos, np.sin), shift, strict=True))
    same = (shift == 0).all(axis=0)
    return np.where(same, met["pt"], np.hypot(px, py)), np.where(same, met["phi"], kinematics.wrap(np.arctan2(py, px)))


def _total(found: Found, schema: Schema, leptons: Collection) -> npt.NDArray[np.float64]:
    """Vector sum of the transverse momenta of the objects [2, B], GeV."""
    total = np.zeros((2, leptons.num_events))
    for parts, schemas, others in ((found.jets, schema.jet, leptons), (found.leptons, schema.lepton, None)):
        for part, declared in zip(parts, schemas, strict=True):
            for cut in expression.cuts(declared.select) if declared.select else []:
                if not expression.names(cut) & MOMENTUM:
                    part = part.where(reading.passes(part, cut, others))
            for entry, along in zip(total, (np.cos, np.sin), strict=True):
                entry += part.total(part["pt"] * along(part["phi"]))
    return total


def _significance(
    base: Origin, moved: Origin, nominal: Mapping[str, Collection], varied: Mapping[str, Collection], met: Collection
) -> Float64:
    """The significance of the varied missing momentum [B]."""
    if moved.schema.met.significance != base.schema.met.significance:
        found = reading.significance_of_file(moved.columns, moved.schema)
        if found is not None:
            return found
    was = nominal["met"]
    before = kinematics.met_significance(was["pt"], was["phi"], nominal["jet"], nominal["lepton"])
    after = kinematics.met_significance(met["pt"], met["phi"], varied["jet"], varied["lepton"])
    ratio = np.divide(after, before, out=np.ones(len(before)), where=before > 0)
    return np.where(before > 0, was["significance"] * ratio, after)
