"""Everything about one run: the settings of all stages, as a config file has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

import numpy as np
from pydantic import Field, field_validator, model_validator

from hepx import kinematics
from hepx.attribution import METHODS, Method
from hepx.closure import ClosureSettings
from hepx.config import Settings
from hepx.errors import ConfigError, closest
from hepx.evaluate import CHANNEL, EvaluateSettings
from hepx.events import DataSettings, extra_observables
from hepx.expression import condition, cuts
from hepx.graph import GraphSettings, make_layout
from hepx.insides import InsideSettings
from hepx.models import MODELS, build_model
from hepx.schemas import load_schema
from hepx.train import TrainSettings, refuse_settings

if TYPE_CHECKING:
    AnyModel = Any
    AnyMethod = Method
else:
    AnyModel = Union[tuple(settings for settings, _ in MODELS.values())]  # noqa: UP007
    AnyMethod = Union[tuple(METHODS.values())]  # noqa: UP007


class RunSettings(Settings):
    """Everything about one run; see configs/quickstart.yaml for an example with every key explained."""

    name: str
    seed: int = Field(default=42, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataSettings
    graph: GraphSettings = GraphSettings()
    model: Annotated[AnyModel, Field(discriminator="name")]
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    explain: tuple[Annotated[AnyMethod, Field(discriminator="method")], ...] = ()
    insides: InsideSettings = InsideSettings()
    closure: ClosureSettings = ClosureSettings()

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, value: str) -> str:
        if not value or value in (".", "..") or any(sign in value for sign in "\\\0"):
            raise ValueError("expected the name of a folder")
        return value

    @model_validator(mode="after")
    def _variations_exist(self) -> Self:
        for name in (method.variation for method in self.explain if method.variation):
            if name not in self.data.variations:
                raise ValueError(f"explain: unknown variation '{name}'; {closest(name, self.data.variations)}")
        return self

    @model_validator(mode="after")
    def _results_have_names(self) -> Self:
        names = [method.result for method in self.explain]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"explain: two methods would write explain/{twice[0]}.npz; keep one, or make them differ")
        return self

    def refuse_unknown(self) -> None:
        """ConfigError for a name that the converted events will not have: in an expression, in `evaluate.points`, as a
        feature of the model, or in a method; or for what the model cannot do: a number of classes, a setting of the
        training, a method. It needs no events, so it can be asked before any work."""
        data, schema = self.data, load_schema(self.data.schema_name)
        of_file = {name: np.full(1, np.nan) for name in (*kinematics.OBSERVABLES, *schema.columns)}
        for name, text in data.regions.items():
            of_file[name] = condition(text, of_file, f"data.regions.{name}").astype(float)
        for text in cuts(data.select) if data.select else []:
            condition(text, of_file, "data.select")
        for stage, regions in (("insides", self.insides.regions), ("closure", self.closure.regions)):
            for name, text in regions.items():
                condition(text, of_file, f"{stage}.regions.{name}")
        for name in self.evaluate.points:
            if name != CHANNEL and name not in of_file:
                raise ConfigError(f"evaluate.points: unknown observable '{name}'; {closest(name, [*of_file, CHANNEL])}")
        labels = [sample.label for sample in data.samples.values()]
        layout = make_layout(self.graph, list(data.samples), labels, extra_observables(schema, data))
        model = build_model(self.model, layout, self.seed)
        refuse_settings(model, self.train)
        for number, method in enumerate(self.explain):
            try:
                method.refuse_unknown(layout)
                method.refuse_model(model)
            except ConfigError as error:
                raise ConfigError(f"explain.{number}: {error}") from error

    def dump(self) -> dict[str, Any]:
        """The resolved config as plain values."""
        return self.model_dump(mode="json", by_alias=True)
