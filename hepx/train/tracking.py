"""The history of a training: always as CSV and JSON lines; on request also for TensorBoard, MLflow and W&B.

Nothing here needs a network: MLflow writes a database and W&B an offline run beside the results (unless MLflow's own
MLFLOW_TRACKING_URI names a server), which `mlflow ui` shows and `wandb sync` uploads.
"""

from __future__ import annotations

import csv
import importlib
import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hepx import files
from hepx.errors import ConfigError
from hepx.train.outcome import Epoch


def write_history(folder: Path, history: Sequence[Epoch]) -> None:
    """Write history.csv and history.jsonl, one line per epoch."""
    rows = [asdict(epoch) for epoch in history]
    with files.atomic(folder / "history.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    files.write_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


class Tracker(ABC):
    """Shows a training elsewhere. A training that goes on after `num_known` epochs goes on there too."""

    @abstractmethod
    def __init__(self, folder: Path, name: str, config: dict[str, Any], num_known: int) -> None: ...

    @abstractmethod
    def log(self, epoch: int, values: dict[str, float]) -> None:
        """Add the numbers of an epoch."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""


class TensorBoard(Tracker):
    """Event files; `tensorboard --logdir RUN/tracking/tensorboard` shows them."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], num_known: int) -> None:
        writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.writer = writer(str(folder / "tensorboard"), purge_step=num_known + 1)
        if num_known == 0:
            self.writer.add_text("config", f"    {json.dumps(config, indent=2)}".replace("\n", "\n    "))

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        """See `Tracker`."""
        self.writer.close()


class MLflow(Tracker):
    """A run of the experiment `hepx`; `mlflow ui --backend-store-uri sqlite:///RUN/tracking/mlflow.db` shows it."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], num_known: int) -> None:
        mlflow = _import("mlflow", "mlflow")
        _import("sqlalchemy", "mlflow")
        folder.mkdir(parents=True, exist_ok=True)
        uri = None if mlflow.is_tracking_uri_set() else f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        note = folder / "mlflow_run.txt"
        if note.exists() and num_known:
            self.run = note.read_text()
            self.client.set_terminated(self.run, "RUNNING")
            return
        experiment = self.client.get_experiment_by_name("hepx")
        number = experiment.experiment_id if experiment else self.client.create_experiment("hepx")
        self.run = self.client.create_run(number, run_name=name).info.run_id
        files.write_text(note, self.run)
        for key, value in _flat(config):
            self.client.log_param(self.run, key, str(value)[:500])

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=epoch)

    def close(self) -> None:
        """See `Tracker`."""
        self.client.set_terminated(self.run)


class WandB(Tracker):
    """An offline run of the project `hepx`; `wandb sync RUN/tracking/wandb/offline-run-*` uploads it."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], num_known: int) -> None:
        wandb = _import("wandb", "wandb")
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / "wandb_run.txt"
        if not (note.exists() and num_known):
            files.write_text(note, secrets.token_hex(4))
        self.run = wandb.init(
            project="hepx",
            name=name,
            id=note.read_text(),
            dir=str(folder),
            config=config,
            mode="offline",
            settings=wandb.Settings(silent=True),
        )

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """See `Tracker`."""
        self.run.log(values, step=epoch)

    def close(self) -> None:
        """See `Tracker`."""
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
"""Name in the config -> tracker."""


class History:
    """Writes the history into a run folder, and what each epoch adds to it to the trackers."""

    def __init__(self, folder: Path, trackers: Sequence[Tracker]) -> None:
        self.folder, self.trackers = folder, trackers

    def __call__(self, history: Sequence[Epoch]) -> None:
        """To be called after every epoch."""
        write_history(self.folder, history)
        values = asdict(history[-1])
        epoch = values.pop("epoch")
        for tracker in self.trackers:
            tracker.log(epoch, values)


@contextmanager
def tracked(folder: Path, names: Iterable[str], name: str, config: dict[str, Any], num_known: int) -> Iterator[History]:
    """What a training reports its history to; closed however it ends. ConfigError if a package is missing."""
    trackers: list[Tracker] = []
    try:
        for one in names:
            trackers.append(TRACKERS[one](folder / "tracking", name, config, num_known))  # noqa: PERF401 - closed below
        yield History(folder, trackers)
    finally:
        for tracker in trackers:
            tracker.close()


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        how = "in the hepx folder, pip install -e '.[trackers]'"
        raise ConfigError(
            f"train.track: '{package}' is not installed ({error}): {how}, or take it off the list."
        ) from error


def _flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """`{a: {b: 1}}` as `a.b`, 1."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
