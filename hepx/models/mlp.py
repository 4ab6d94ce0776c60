"""Multilayer perceptron on the flattened node table: the baseline that knows no graph."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from hepx.graph import Layout
from hepx.models.base import InputSettings, Model, Output, empty_trace
from hepx.models.inputs import Inputs


class MLPSettings(InputSettings):
    """Width and depth; the pair features are not used."""

    name: Literal["mlp"] = "mlp"
    pair_features: tuple[()] = ()
    hidden_dim: int = Field(default=128, ge=1)
    num_layers: int = Field(default=3, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)


class MLP(Model):
    """All standardised node features side by side; absent objects are zeros."""

    def __init__(self, settings: MLPSettings, layout: Layout, num_classes: int) -> None:
        super().__init__()
        self.inputs = Inputs(layout, settings.features, ())
        width = self.inputs.num_features * len(layout.slots)
        layers: list[nn.Module] = []
        for _ in range(settings.num_layers):
            layers += [nn.Linear(width, settings.hidden_dim), nn.GELU(), nn.Dropout(settings.dropout)]
            width = settings.hidden_dim
        self.net = nn.Sequential(*layers, nn.Linear(width, num_classes))

    @property
    def knows_places(self) -> bool:
        """See `Model`."""
        return True

    def forward(
        self,
        x: Float[Tensor, "B N F"],
        mask: Bool[Tensor, "B N"],
        node_type: Int[Tensor, "B N"],
        routing: Bool[Tensor, "B L N X"] | None = None,
        noise: Float[Tensor, "B L N X"] | None = None,
        gain: Float[Tensor, "B L H N N"] | None = None,
        pair_terms: tuple[Tensor, ...] | None = None,
    ) -> Output:
        """Classify events; there is no routing and no attention."""
        return Output(self.net(self.inputs.nodes(x, mask, node_type).flatten(1)), empty_trace(mask, 0))
