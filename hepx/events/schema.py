"""A `Schema` declares one layout: which tree, which branch holds what, in which unit and with which meaning.

How a branch is written, everywhere in a schema:

    jet_pt                 the branch of this name
    a|b                    a where the file has it, else b
    met_sig?               optional: the field is absent where the file has none of the names
    weights[0]             the element at a position of a list per event
    mpx[name=PVSoftTrk]    the element whose entry in the branch `name` is this text
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from hepx.config import Settings
from hepx.errors import ConfigError, closest

T = TypeVar("T", bound=Any)
POLAR, CARTESIAN = ("pt", "eta", "phi"), ("px", "py", "pz")
_BRANCH = re.compile(r"(?P<name>[^\[\]|?]+)(?:\[(?:(?P<position>\d+)|(?P<key>[^\[\]=]+)=(?P<text>[^\[\]]+))\])?")


@dataclass(frozen=True)
class Branch:
    """One name of a branch, and which element of its list per event is meant, if one is."""

    name: str
    position: int | None = None
    key: str | None = None
    text: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every branch that has to be read for it."""
        return (self.name,) if self.key is None else (self.name, self.key)


@dataclass(frozen=True)
class Choice:
    """What a schema says about one quantity: the branches that may hold it, best first."""

    branches: tuple[Branch, ...]
    optional: bool


@cache
def parse_branch(text: str) -> Choice:
    """Read how a schema names a branch; ValueError where it is not of the forms above.

    >>> parse_branch("a|b[0]?")
    Choice(branches=(Branch(name='a', position=None, key=None, text=None), \
Branch(name='b', position=0, key=None, text=None)), optional=True)
    """
    branches = []
    for part in text.removesuffix("?").split("|"):
        found = _BRANCH.fullmatch(part.strip())
        if not found:
            raise ValueError(f"'{text}' is not the name of a branch; write name, a|b, name?, name[0] or name[key=text]")
        position = found["position"]
        branches.append(Branch(found["name"], int(position) if position else None, found["key"], found["text"]))
    return Choice(tuple(branches), text.endswith("?"))


def _check(branches: Iterable[str]) -> None:
    for text in branches:
        parse_branch(text)


class ObjectSchema(Settings):
    """One kind of object: field -> branch, with derived fields and the default selection (GeV). The momentum is pt, eta
    and phi, or px, py and pz, which become those; with an energy or a mass, else the mass is 0.

    exists: an expression on the file's own values; where it is false the entry holds no object (a sentinel such as
    −99 in a table with fixed columns). `slot`: the branches hold one object per event instead of a list. derived:
    field -> expression on the fields, after they became GeV. select may also use delta_r_lepton and
    delta_r_electron, the distance of a jet to the nearest selected lepton or electron (flavour 11).
    """

    branches: dict[str, str]
    slot: bool = False
    exists: str | None = None
    derived: dict[str, str] = Field(default={})
    select: str | None = None

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        required = {name for name, branch in self.branches.items() if not branch.endswith("?")}
        missing = set(self.momentum) - required
        if missing:
            raise ValueError(
                "an object needs the fields pt, eta and phi (or px, py and pz); missing: " + ", ".join(sorted(missing))
            )
        _check(self.branches.values())
        return self

    @property
    def momentum(self) -> tuple[str, str, str]:
        """The fields that hold the momentum in the file."""
        return CARTESIAN if CARTESIAN[0] in self.branches else POLAR


class Tagger(Settings):
    """A b-tagger: its branches, one value per jet, and the score made of them. With edges the field `btag` of a jet
    becomes a quantile, 1 + the number of edges the score reaches; without, it is the score."""

    name: str
    branches: dict[str, str]
    score: str
    edges: tuple[float, ...] = ()


class MissingMomentum(Settings):
    """The missing transverse momentum: pt and phi, or px and py, as the file has them; or the soft term (soft_px,
    soft_py), to which hepx adds minus the sum of the selected objects. Without a branch for the significance it is
    computed."""

    pt: str | None = None
    phi: str | None = None
    px: str | None = None
    py: str | None = None
    soft_px: str | None = None
    soft_py: str | None = None
    significance: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = {name for name in ("pt", "phi", "px", "py", "soft_px", "soft_py") if getattr(self, name)}
        if given not in ({"pt", "phi"}, {"px", "py"}, {"soft_px", "soft_py"}):
            raise ValueError("the missing momentum needs either pt and phi, or px and py, or soft_px and soft_py")
        _check(self.branches().values())
        return self

    @property
    def built(self) -> bool:
        """Whether hepx builds it from the objects."""
        return self.soft_px is not None

    def branches(self) -> dict[str, str]:
        """Field -> branch, only those given."""
        return {name: branch for name, branch in self.model_dump().items() if branch}


class Normalization(Settings):
    """Normalisation of a simulated sample: a branch, a number that holds for the whole layout, or None where neither
    the files nor the layout say and the config must."""

    xsec_pb: str | float | None = None
    kfactor: str | float | None = None
    filter_efficiency: str | float | None = None
    sum_of_weights: str | float | None = None


class Schema(Settings):
    """One layout. Branch names are as in the file; `energy_unit` is the file's unit of energy.

    trees: names of the tree, the first that the file has is read (`*`: whatever single tree it has).
    rntuple_separator: what stands in an RNTuple's names where a TTree's have a dot.
    btag_meaning: what the field btag is: a pseudo-continuous quantile, a score, or a yes/no flag; a jet counts as a
    b-jet from btag_cut on. taggers: the first one that the file has makes btag.
    repeated: collections that list an object more than once; it is kept once, where it comes first.
    weights: branches whose product is the event weight; one that is optional and absent counts as 1.
    columns: further masses of an event, such as the mass point of a signal; name -> branch.
    """

    name: str
    description: str = ""
    trees: tuple[str, ...] = Field(min_length=1)
    rntuple_separator: str = "."
    energy_unit: Literal["GeV", "MeV"]
    run_number: str | None = None
    event_number: str
    channel_number: str | None = None
    jet: tuple[ObjectSchema, ...] = Field(min_length=1)
    lepton: tuple[ObjectSchema, ...] = Field(min_length=1)
    met: MissingMomentum
    btag_meaning: Literal["quantile", "score", "flag"]
    btag_cut: float
    taggers: tuple[Tagger, ...] = ()
    repeated: tuple[Literal["jet", "lepton"], ...] = ()
    weights: tuple[str, ...] = ()
    normalization: Normalization = Normalization()
    columns: dict[str, str] = Field(default={})

    @field_validator("jet", "lepton", "trees", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else (value,)

    @model_validator(mode="after")
    def _jets_have_a_btag(self) -> Self:
        if not self.taggers and not all("btag" in part.branches or "btag" in part.derived for part in self.jet):
            raise ValueError("jets need the field btag, or the schema a list of taggers that make it")
        _check(self.branches())
        return self

    def branches(self) -> list[str]:
        """Every branch the schema names, as it names it; those of the taggers are apart, because one of them is
        enough."""
        norm = [value for value in self.normalization.model_dump().values() if isinstance(value, str)]
        ids = [name for name in (self.run_number, self.event_number, self.channel_number) if name]
        objects = [branch for part in (*self.jet, *self.lepton) for branch in part.branches.values()]
        met = self.met.branches().values()
        return list(dict.fromkeys([*ids, *objects, *met, *self.weights, *norm, *self.columns.values()]))

    def varied(self, tree: str | None, branches: Mapping[str, str]) -> Schema:
        """The same layout read from another tree, and with other branches: name in the file -> name to read instead.

        A branch that is named must be there: it is no longer optional, and has no alternative. ConfigError for a branch
        that the schema does not read.
        """
        taggers = [branch for tagger in self.taggers for branch in tagger.branches.values()]
        choices = [parse_branch(text) for text in (*self.branches(), *taggers)]
        known = {name for choice in choices for one in choice.branches for name in one.names}
        for name in branches:
            if name not in known:
                raise ConfigError(f"schema '{self.name}' reads no branch '{name}'; {closest(name, sorted(known))}")

        def new(texts: Mapping[str, Any]) -> dict[str, Any]:
            return {
                key: _replace_branch(text, branches) if isinstance(text, str) else text for key, text in texts.items()
            }

        def parts(which: Iterable[T]) -> tuple[T, ...]:
            return tuple(one.model_copy(update={"branches": new(one.branches)}) for one in which)

        numbers = new({name: getattr(self, name) for name in ("run_number", "event_number", "channel_number")})
        changed = {
            **numbers,
            "trees": (tree,) if tree else self.trees,
            "jet": parts(self.jet),
            "lepton": parts(self.lepton),
            "taggers": parts(self.taggers),
            "met": self.met.model_copy(update=new(self.met.model_dump())),
            "weights": tuple(_replace_branch(text, branches) for text in self.weights),
            "normalization": self.normalization.model_copy(update=new(self.normalization.model_dump())),
            "columns": new(self.columns),
        }
        return self.model_copy(update=changed)


def _replace_branch(text: str, branches: Mapping[str, str]) -> str:
    """What a schema says about a quantity, with the names of the branches replaced; its other names are left out.

    >>> _replace_branch("a|b[0]?", {"b": "b_up"}), _replace_branch("a?", {"b": "c"})
    ('b_up[0]', 'a?')
    """
    parts = [part.strip().partition("[") for part in text.removesuffix("?").split("|")]
    return "|".join(branches[name] + bracket + rest for name, bracket, rest in parts if name in branches) or text
