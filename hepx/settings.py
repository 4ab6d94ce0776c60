"""Everything about one run: the settings of all stages, as a config file has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import Field, field_validator, model_validator

from hepx.attribution import METHODS, Method
from hepx.closure import ClosureSettings
from hepx.config import Settings
from hepx.errors import closest
from hepx.evaluate import EvaluateSettings
from hepx.events import DataSettings
from hepx.graph import GraphSettings
from hepx.insides import InsideSettings
from hepx.models import MODELS
from hepx.train import TrainSettings

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

    def dump(self) -> dict[str, Any]:
        """The resolved config as plain values."""
        return self.model_dump(mode="json", by_alias=True)
