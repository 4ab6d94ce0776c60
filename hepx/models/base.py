"""What every model is: raw events in, logits and a Trace out.

Shape letters: B events, N nodes, F raw features, C classes, L layers, H heads, X experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hepx.config import Settings
from hepx.errors import ConfigError
from hepx.graph import GraphBatch
from hepx.models.inputs import Inputs


class Trace(NamedTuple):
    """What happened inside: always returned, so that losses and analyses are plain functions of it.

    attention [B, L, H, N, N] (row: the node that looks); router_logits and gates [B, L, N, X]; the last axes have size
    0 in models without attention or experts. load [B, L, N, X]: probability that the node uses the expert if its noise
    were drawn again (arXiv:1701.06538, eq. 9); None where the router has no noise of its own.
    """

    attention: Float[Tensor, "B L H N N"]
    router_logits: Float[Tensor, "B L N X"]
    gates: Float[Tensor, "B L N X"]
    load: Float[Tensor, "B L N X"] | None = None


class Output(NamedTuple):
    """Logits [B, C] and the trace."""

    logits: Float[Tensor, "B C"]
    trace: Trace


class InputSettings(Settings):
    """Which node and pair features the network sees."""

    features: tuple[str, ...] = (
        "log_pt",
        "eta",
        "sin_dphi",
        "cos_dphi",
        "log_mass",
        "btag",
        "met_significance",
    )
    pair_features: tuple[str, ...] = ("ln_delta_r", "ln_kt", "ln_m2")


class Model(nn.Module, ABC):
    """Base of all models. A model is a pure function of its arguments: no noise, no state, unless `noise` is given.

    differentiable: its score has a gradient, in its inputs and its parameters.
    """

    differentiable: ClassVar[bool] = True
    inputs: Inputs

    @property
    def knows_places(self) -> bool:
        """Whether it knows objects by the slots they stand in."""
        return False

    @property
    def num_fitted(self) -> int:
        """How many numbers a training sets: the parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def shuffle(self, generator: torch.Generator) -> None:
        """Exchange the entries of each tensor of weights: nothing but their size is left of what was learned."""
        for parameter in self.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))

    @abstractmethod
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
        """Classify events.

        routing: the experts to use instead of the router's choice (replays a routing; ignored without experts);
        noise: added to the router logits when choosing (training only);
        gain: factors on the attention weights, an intervention: 0 cuts what a node receives from another and leaves the
        other weights as they are (ignored without attention). Its gradient at 1 is attention × gradient. The trace
        holds the weights before the factors.
        pair_terms: those of these events, if they are known already (see `pair_terms`).
        """

    def logits(
        self, x: Float[Tensor, "B N F"], mask: Bool[Tensor, "B N"], node_type: Int[Tensor, "B N"], **more: Any
    ) -> Float[Tensor, "B C"]:
        """The logits alone, from the arguments of `forward`: a model may leave out what only its trace needs."""
        return self(x, mask, node_type, **more).logits

    def stream_names(self) -> tuple[str, ...]:
        """Names of the submodules whose first argument is the node states [B, N, D]: the layers in order, then what
        reads the last states. Empty for a model that has none."""
        return ()

    def node_states(
        self, x: Float[Tensor, "B N F"], mask: Bool[Tensor, "B N"], node_type: Int[Tensor, "B N"]
    ) -> Float[Tensor, "B N D"] | None:
        """What the model computes of each object from this object and the direction of the one that φ counts from
        (`Inputs.reference`) alone, as `logits` takes it (`states`); None if it takes no such thing.

        Variants of an event share it, as `pair_terms`. N may be any number; φ counts from one of the first objects.
        """
        del x, mask, node_type
        return None

    def pair_terms(
        self, x: Float[Tensor, "B N F"], mask: Bool[Tensor, "B N"], node_type: Int[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B N N _"], ...]:
        """What the model computes of each pair from these two objects alone; () if nothing.

        Variants of an event share it, so an explanation computes it once for thousands of them. N may be any number.
        """
        del x, mask, node_type
        return ()


def require_gradients(model: Model, what: str) -> None:
    """ConfigError where `what` needs gradients and the model has none."""
    if not model.differentiable:
        raise ConfigError(
            f"{what}: expected a model with gradients, got {type(model).__name__}, whose score moves in steps. Use "
            "shapley, feature_groups, owen, occlusion, permutation_importance or response, which need none, or another "
            "model.name."
        )


def log_odds(logits: Float[Tensor, "*B C"], target: int) -> Float[Tensor, "*B"]:
    """Score of a class: its logit minus the log-sum-exp of the others; for two classes the log-odds."""
    others = torch.cat([logits[..., :target], logits[..., target + 1 :]], dim=-1)
    return logits[..., target] - torch.logsumexp(others, dim=-1)


def empty_trace(mask: Bool[Tensor, "B N"], num_layers: int) -> Trace:
    """The trace of a model without attention and experts."""
    batch, nodes = mask.shape
    attention = torch.zeros(batch, num_layers, 0, nodes, nodes, device=mask.device)
    routing = torch.zeros(batch, num_layers, nodes, 0, device=mask.device)
    return Trace(attention, routing, routing)


def batches(graphs: GraphBatch, batch_size: int = 2048) -> Iterator[GraphBatch]:
    """Consecutive slices of a data set."""
    for start in range(0, len(graphs), batch_size):
        yield graphs[start : start + batch_size]


@torch.inference_mode()
def predict(model: Model, graphs: GraphBatch, target: int = 1, batch_size: int = 2048) -> Float[Tensor, "B"]:
    """Scores (log-odds of `target`) of all events, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    scores = [
        log_odds(model(b.x, b.mask, b.node_type).logits, target).cpu()
        for b in (part.to(device) for part in batches(graphs, batch_size))
    ]
    return torch.cat(scores)
