"""Settings of the training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from hepx.config import Settings

NEUTRAL = frozenset({"checkpoint_seconds", "checkpoint_steps", "keep", "memory_gb", "track", "source", "snapshots"})
"""Settings that decide nothing about the result: a training may go on with other ones. (Of the source it is the
weights that decide, not where they lie.)"""


class TrainSettings(Settings):
    """How a model is fitted. `weights: physics` keeps the relative weights of the processes inside each class, `sign`
    counts every event once with the sign of its weight; both classes get equal total weight either way. `none` counts
    every event once and leaves the classes as they are (what public code does that knows no weights).

    schedule: after the warm-up half a cosine to zero, or `step`, times `step_factor` every `step_epochs` epochs.
    balance: without it a few experts take all nodes and the others learn nothing (arXiv:1701.06538, section 4).
    `loss_free` moves the choice by steps of `balance_rate` and leaves the gradient to the task (arXiv:2408.15664);
    `switch` (arXiv:2101.03961) and `cv2` (arXiv:1701.06538) are losses times `balance_weight`. z_weight: of the squared
    log-sum-exp of the router logits, which keeps them small, so that gates do not saturate (arXiv:2202.08906).
    router_noise: standard deviation of the noise of the expert choice, drawn per node (1 for a router that scales it):
    experts that are nearly chosen are tried (arXiv:1701.06538).
    ema: decay per step of a running mean of the weights, which is what is evaluated and kept (0: off; arXiv:1803.05407
    for why a mean of weights is flatter). node_dropout: fraction of the training events in which a random subset of the
    objects is hidden, all subset sizes equally likely: the network then learns what is left to know without them, and
    removing an object by its mask is a fair question (arXiv:2107.07436). reflections: every time an event is used, the
    signs of all its η and of all its φ are drawn anew. Proton collisions look the same from both ends of the beam, and
    in a mirror that holds the beam up to CP violation and absorptive parts, so these are four events for one; not for a
    class that differs from the other by a sign of angles.

    checkpoint_seconds, checkpoint_steps: the state is saved when so much time has passed or so many steps are done
    since the last time (null: never for this reason), and at the end of every epoch. snapshots: weights of so many
    epochs, evenly spread, are kept in checkpoints/snapshots, from which `hepx influence` works; the last one included.

    keep: where the training events are: `device` if they fill at most half of its free memory, else `host` (page-locked
    copies run ahead), else `disk` (streamed; memory does not grow with the number of events). Their order, and so the
    result, does not depend on it. memory_gb: how much host memory they may take (null: half of what is free).
    validation_events: about so many events, in blocks drawn at random, are looked at after each epoch.

    precision: `bfloat16` computes the large matrix products of the training in 16 bit (autocast); inputs, router,
    softmax, loss and everything after the training stay in 32. compile: fuse the model's operations with torch.compile
    (takes a minute first; needs a C++ compiler; a restart then goes on to rounding, not bit for bit).

    from: the folder of a trained run to start from (fine-tuning): its best weights and its standardisation of the
    inputs. freeze: parts of the model that stay as they are then; trainable_layers: so many of the last ones do not.
    track: show the history in TensorBoard, MLflow and W&B too (extra `trackers`).
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=512, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = Field(default=1e-2, ge=0)
    schedule: Literal["cosine", "step"] = "cosine"
    step_epochs: int = Field(default=45, ge=1)
    step_factor: float = Field(default=0.1, gt=0, le=1)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    patience: int = Field(default=8, ge=1)
    grad_clip: float = Field(default=1.0, gt=0)
    weights: Literal["physics", "sign", "none"] = "physics"
    balance: Literal["loss_free", "switch", "cv2", "none"] = "loss_free"
    balance_rate: float = Field(default=1e-3, ge=0)
    balance_weight: float = Field(default=1e-2, ge=0)
    z_weight: float = Field(default=1e-3, ge=0)
    router_noise: float = Field(default=0.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    node_dropout: float = Field(default=0.0, ge=0, le=1)
    reflections: bool = False
    checkpoint_seconds: float | None = Field(default=60.0, ge=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    snapshots: int = Field(default=0, ge=0)
    keep: Literal["auto", "device", "host", "disk"] = "auto"
    memory_gb: float | None = Field(default=None, gt=0)
    validation_events: int = Field(default=500_000, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    source: str | None = Field(default=None, alias="from")
    freeze: tuple[str, ...] = ()
    trainable_layers: int | None = Field(default=None, ge=1)
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()

    @model_validator(mode="after")
    def _freezes_trained_weights(self) -> TrainSettings:
        if self.source is None and (self.freeze or self.trainable_layers is not None):
            raise ValueError("freeze and trainable_layers need `from`: layers with random weights would stay random")
        return self

    def recipe(self) -> dict[str, Any]:
        """The settings that decide about the result, as plain values."""
        return self.model_dump(mode="json", by_alias=True, exclude=set(NEUTRAL))
