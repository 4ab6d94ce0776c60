"""Training. `fit` trains a model; `TrainSettings` says how; the losses are functions of what a model returns."""

from hepx.train.boosting import refuse_settings
from hepx.train.events import OnDisk, parts
from hepx.train.finetune import check_same_model, check_same_nodes, find_source, freeze
from hepx.train.loop import fit
from hepx.train.losses import (
    balance_loss,
    cv2_loss,
    hide_objects,
    training_weights,
    update_selection_bias,
    z_loss,
)
from hepx.train.outcome import Epoch, load_weights
from hepx.train.ranks import Ranks, joined
from hepx.train.seen import refuse_training_events, training_events, write_training_events
from hepx.train.settings import TrainSettings
from hepx.train.tracking import tracked, write_history

__all__ = [
    "Epoch",
    "OnDisk",
    "Ranks",
    "TrainSettings",
    "balance_loss",
    "check_same_model",
    "check_same_nodes",
    "cv2_loss",
    "find_source",
    "fit",
    "freeze",
    "hide_objects",
    "joined",
    "load_weights",
    "parts",
    "refuse_settings",
    "refuse_training_events",
    "tracked",
    "training_events",
    "training_weights",
    "update_selection_bias",
    "write_history",
    "write_training_events",
    "z_loss",
]
