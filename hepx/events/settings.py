"""What a config says about events: samples with their normalisation, luminosity, selection, regions, split."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from hepx import expression, kinematics
from hepx.config import Settings


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
    def _labels_are_classes(self) -> DataSettings:
        labels = {sample.label for sample in self.samples.values()}
        if labels != {0, 1}:
            given = ", ".join(f"{name}: {sample.label}" for name, sample in self.samples.items())
            raise ValueError(
                f"the labels must be 0 (background) and 1 (signal), with a sample of each; the samples have {given}"
            )
        return self
