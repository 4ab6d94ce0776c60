"""Training. `fit` trains a model; `TrainSettings` says how; the losses are functions of what a model returns."""

from hepx.train.loop import Epoch, fit, load_weights
from hepx.train.losses import (
    balance_loss,
    cv2_loss,
    hide_objects,
    training_weights,
    update_selection_bias,
    z_loss,
)
from hepx.train.settings import TrainSettings

__all__ = [
    "Epoch",
    "TrainSettings",
    "balance_loss",
    "cv2_loss",
    "fit",
    "hide_objects",
    "load_weights",
    "training_weights",
    "update_selection_bias",
    "z_loss",
]
