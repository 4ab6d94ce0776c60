"""What a config says about events: samples with their normalisation, luminosity, selection, regions, split."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from hepx import expression, kinematics
from hepx.config import Settings
from hepx.errors import closest
from hepx.events.schema import parse_branch


class SampleSettings(Settings):
    """One process: its files and its class label; a given number replaces what the files say.

    `channel` identifies the sample's events where the files hold no number for it (ATLAS files have the DSID).
    """

    files: tuple[str, ...] = Field(min_length=1)
    label: int
    xsec_pb: float | None = Field(default=None, gt=0)
    kfactor: float | None = Field(default=None, gt=0)
    filter_efficiency: float | None = Field(default=None, gt=0)
    sum_of_weights: float | None = None
    channel: int | None = Field(default=None, gt=0, lt=9_000_000)

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


MOVABLE = ("jet.pt", "jet.mass", "lepton.pt", "met.pt")
"""What a variation may scale or smear. pt moves the whole momentum: the mass follows."""


class VariationSettings(Settings):
    """A systematic variation: the same events, measured a little differently.

    scale: what -> factor; smear: what -> relative width of a Gaussian; what is one of `MOVABLE`, and the value a number
    or an expression on the fields of the object in GeV, for example "1 + 0.02 * tagged" or "0.01 + 0.3 / pt".
    branches: branch of the schema -> branch to read instead, weights too; tree: another tree of the same files.
    samples: which samples it concerns (all); the others stay nominal. seed: another one smears differently.
    """

    scale: dict[str, float | str] = Field(default={})
    smear: dict[str, float | str] = Field(default={})
    branches: dict[str, str] = Field(default={})
    tree: str | None = None
    samples: tuple[str, ...] | None = Field(default=None, min_length=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("scale", "smear")
    @classmethod
    def _moves_what_can_move(cls, value: dict[str, float | str]) -> dict[str, float | str]:
        for what, size in value.items():
            if what not in MOVABLE:
                raise ValueError(f"a variation cannot move '{what}'; {closest(what, MOVABLE)}")
            if isinstance(size, str):
                expression.names(size)
            elif not 0 <= size < float("inf"):
                raise ValueError(f"'{what}' needs a number that is not negative, or an expression, not {size}")
        return value

    @field_validator("branches")
    @classmethod
    def _names_branches(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value.values():
            parse_branch(name)
        return value

    @model_validator(mode="after")
    def _changes_something(self) -> VariationSettings:
        if not (self.scale or self.smear or self.branches or self.tree):
            raise ValueError("a variation needs scale, smear, branches or tree")
        return self


class SplitSettings(Settings):
    """Fractions of train, validation and test; an event's place follows from its event number alone."""

    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("the three fractions must not be negative and must sum to 1")
        return value


class FoldSettings(Settings):
    """Cross-validation: of `folds` equal parts number `fold` is the test split, the next one the validation split and
    the others are for training. Over all values of `fold` every event is in the test split once."""

    folds: int = Field(ge=3)
    fold: int = Field(ge=0)

    @model_validator(mode="after")
    def _fold_exists(self) -> FoldSettings:
        if self.fold >= self.folds:
            raise ValueError(f"fold must be from 0 to {self.folds - 1}, got {self.fold}")
        return self


def _kind_of_split(value: Any) -> str:
    return "folds" if "folds" in (value if isinstance(value, dict) else vars(value)) else "fractions"


class DataSettings(Settings):
    """Which events: layout, samples, luminosity (fb⁻¹), selection, regions, split.

    regions: name -> expression; each becomes an observable of that name, 1 inside and 0 outside.
    negative_weights: `signed` keeps them, `abs` takes |w|, `drop` removes these events; the log says what it changes.
    variations: name -> systematic variation, converted beside the nominal events.
    """

    schema_name: str = Field(alias="schema", default="atlas_open_2025")
    samples: dict[str, SampleSettings] = Field(min_length=1)
    luminosity: float = Field(default=139.0, gt=0)
    select: str | None = None
    regions: dict[str, str] = Field(default={})
    select_jets: str | None = None
    select_leptons: str | None = None
    btag_cut: float | None = None
    negative_weights: Literal["signed", "abs", "drop"] = "signed"
    variations: dict[str, VariationSettings] = Field(default={})
    split: Annotated[
        Annotated[SplitSettings, Tag("fractions")] | Annotated[FoldSettings, Tag("folds")],
        Discriminator(_kind_of_split),
    ] = SplitSettings()

    @field_validator("regions")
    @classmethod
    def _named_like_observables(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not name.isidentifier() or name in kinematics.OBSERVABLES:
                raise ValueError(
                    f"'{name}' is not a possible name of a region: use letters, digits and _, and no "
                    "name of an observable"
                )
            expression.names(text)
        return value

    @model_validator(mode="after")
    def _variations_are_of_samples(self) -> DataSettings:
        for name, variation in self.variations.items():
            if not re.fullmatch(r"\w[\w.+-]*", name) or name == "nominal":
                raise ValueError(
                    f"'{name}' is not a possible name of a variation: use letters, digits and _ . + -, and not nominal"
                )
            for sample in variation.samples or ():
                if sample not in self.samples:
                    raise ValueError(f"variation '{name}': unknown sample '{sample}'; {closest(sample, self.samples)}")
        return self

    def varied(self, variation: str) -> VariationSettings | None:
        """The variation of this name, or None for the nominal events (an empty name)."""
        return self.variations[variation] if variation else None

    @model_validator(mode="after")
    def _labels_are_classes(self) -> DataSettings:
        labels = {sample.label for sample in self.samples.values()}
        if labels != {0, 1}:
            given = ", ".join(f"{name}: {sample.label}" for name, sample in self.samples.items())
            raise ValueError(
                f"the labels must be 0 (background) and 1 (signal), with a sample of each; the samples have {given}"
            )
        return self
