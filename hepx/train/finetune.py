"""Fine-tuning: the run whose weights a training goes on from, and which parts of the model stay as they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from hepx import files
from hepx.config import Settings
from hepx.errors import ConfigError, closest
from hepx.graph import GraphSettings, make_layout

log = logging.getLogger(__name__)


def find_source(folder: str, noted: dict[str, str] | None) -> dict[str, str]:
    """The run in a folder and the digest of its best weights; as `noted` when it was used, if it has gone since.

    Raises ConfigError if there is no finished training.
    """
    weights, stages = Path(folder) / "checkpoints" / "best.safetensors", Path(folder) / "stages.json"
    if weights.exists() and stages.exists() and "train" in files.read_json(stages):
        return {"run": folder, "checkpoint": files.sha256(weights)[:16]}
    if noted and noted["run"] == folder:
        return noted
    raise ConfigError(
        f"train.from: '{folder}' is not the folder of a run whose training is finished. Train it first: hepx train …"
    )


def check_same_model(source: str, mine: Settings, theirs: Settings) -> None:
    """ConfigError if weights of the model of `source` do not fit this one. Dropout has no weights."""
    here, there = (one.model_dump(exclude={"dropout"}) for one in (mine, theirs))
    for name in ("name", *there, *here):
        if here.get(name) != there.get(name):
            raise ConfigError(
                f"train.from: the model of '{source}' has {name} {there.get(name)!r}, that of this config "
                f"{here.get(name)!r}; its weights fit the same model only."
            )


def check_same_nodes(source: str, mine: GraphSettings, theirs: GraphSettings) -> None:
    """ConfigError if the nodes of `source` are others."""
    here, there = (", ".join(make_layout(one, [], []).slots) for one in (mine, theirs))
    if here != there:
        raise ConfigError(
            f"train.from: the nodes of '{source}' are {there}, those of this config {here}; "
            "its weights fit the same graph.nodes only."
        )


def layers(model: nn.Module) -> list[str]:
    """The parts of a model that have weights, from the inputs to the logits; the members of a list of layers count one
    by one."""
    names = []
    for name, child in model.named_children():
        inner = [f"{name}.{i}" for i in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
        names += [one for one in inner if any(True for _ in model.get_submodule(one).parameters())]
    return names


def freeze(model: nn.Module, names: Sequence[str], trainable_layers: int | None) -> None:
    """Keep the named parts, or all but the last `trainable_layers` of `layers`, from being trained.

    Raises ConfigError if the model has no such part, or if nothing is left to train.
    """
    known = layers(model)
    if trainable_layers is not None:
        if trainable_layers > len(known):
            raise ConfigError(
                f"train.trainable_layers is {trainable_layers}, but the model has {len(known)}: {', '.join(known)}."
            )
        names = [*names, *known[: len(known) - trainable_layers]]
    parts = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in parts:
            raise ConfigError(
                f"train.freeze: the model has no part '{name}'; {closest(name, parts)}. Its layers: {', '.join(known)}."
            )
        model.get_submodule(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"train.freeze leaves nothing to train; leave out one of the layers: {', '.join(known)}.")
    if names:
        left = [name for name in known if any(p.requires_grad for p in model.get_submodule(name).parameters())]
        log.info("trained: %s; all else stays as it is", ", ".join(left))
