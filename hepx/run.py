"""One config, one run folder: every stage writes what the next one reads, and is skipped when it is done already."""

from __future__ import annotations

import csv
import importlib.metadata
import logging
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

import torch
from pydantic import Field, field_validator

import hepx
from hepx import attention, evaluate, experts, files, report, store, train
from hepx.attribution import METHODS, Method, Subject, background_events, subsample
from hepx.attribution.links import observable_links
from hepx.config import Settings, load, parse, write_yaml
from hepx.errors import ConfigError, DataError
from hepx.evaluate import EvaluateSettings
from hepx.events import DataSettings, find_files
from hepx.graph import GraphBatch, GraphSettings
from hepx.models import MODELS, Model, build_model
from hepx.results import Explanation, Provenance
from hepx.store import Execution, GraphStore
from hepx.train import TrainSettings

log = logging.getLogger(__name__)

STAGES = ("convert", "train", "evaluate", "explain", "report")
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

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, value: str) -> str:
        if not value or value in (".", "..") or any(sign in value for sign in "\\\0"):
            raise ValueError("expected the name of a folder")
        return value

    def dump(self) -> dict[str, Any]:
        """The resolved config as plain values."""
        return self.model_dump(mode="json", by_alias=True)


class Run:
    """A run folder and its settings.

    A stage is done when `stages.json` holds its key: a digest of its settings and of the key of the stage before it. A
    changed config therefore repeats exactly the stages it concerns.
    """

    def __init__(self, folder: Path, settings: RunSettings) -> None:
        self.folder, self.settings = folder, settings
        self.execution = Execution()

    @classmethod
    def from_config(cls, path: Path, overrides: list[str], root: Path) -> Self:
        """The run of a config file (its folder is made) or of an existing run folder."""
        if path.is_dir():
            if not (path / "config.yaml").exists():
                raise ConfigError(f"'{path}' is a folder without config.yaml; give a config file or a run folder.")
            values, folder = load(path / "config.yaml", overrides), path
            settings = parse(RunSettings, values, f"config '{path / 'config.yaml'}'")
        else:
            settings = parse(RunSettings, load(path, overrides), f"config '{path}'")
            folder = root / settings.name
        return cls.create(folder, settings)

    @classmethod
    def create(cls, folder: Path, settings: RunSettings) -> Self:
        """The run in `folder`, with its resolved config and versions written down."""
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "config.yaml", write_yaml(settings.dump()))
        run = cls(folder, settings)
        files.write_json(folder / "provenance.json", run._versions())
        return run

    @property
    def device(self) -> torch.device:
        """Where the model runs: the GPU if there is one, unless the config says otherwise."""
        wanted = self.settings.device
        if wanted == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is 'cuda', but torch sees no GPU here; use device=auto or device=cpu.")
        return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")

    def execute(self, last: str = "report") -> None:
        """Run all stages up to `last`, skipping what is done."""
        for stage in STAGES[: STAGES.index(last) + 1]:
            self._once(stage, self._key(stage), getattr(self, f"_{stage}"))

    def store(self) -> GraphStore:
        """The converted data set."""
        return GraphStore(self.folder / "dataset")

    def model(self, trained: bool = True) -> Model:
        """The trained model, or the same one before training but with the same input scaling (the null)."""
        model = build_model(self.settings.model, self.store().layout, self.settings.seed)
        untrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train.load_weights(model, self.folder / "checkpoints")
        if not trained:
            inputs = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("inputs.")}
            model.load_state_dict({**untrained, **inputs})
        return model.to(self.device).eval()

    def _convert(self) -> None:
        settings = self.settings
        folder = self.folder / "dataset"
        data = store.convert(settings.data, settings.graph, folder, self.execution)
        for name, flow in data.manifest["cutflow"].items():
            log.info("%s: %d of %d events pass the selection", name, flow[-1]["events"], flow[0]["events"])

    def _train(self) -> None:
        data, settings = self.store(), self.settings
        model = build_model(settings.model, data.layout, settings.seed).to(self.device)
        train_events, validation = data.load("train"), data.load("validation")
        checkpoints = self.folder / "checkpoints"
        history = train.fit(model, train_events, validation, settings.train, settings.seed, checkpoints)
        with files.atomic(self.folder / "history.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(history[0])))
            writer.writeheader()
            writer.writerows(asdict(epoch) for epoch in history)
        best = max(history, key=lambda epoch: epoch.validation_auc)
        log.info("best validation AUC %.4f in epoch %d of %d", best.validation_auc, best.epoch, len(history))

    def _evaluate(self) -> None:
        data, settings = self.store(), self.settings
        result, table = evaluate.evaluate(
            self.model(), data.load("train"), data.load("test"), settings.evaluate, settings.seed
        )
        header = {"model": settings.model.name, "seed": settings.seed, "split": "test"}
        result = {**header, "luminosity": settings.data.luminosity, **result}
        evaluate.write_scores(self.folder / "scores.parquet", table)
        files.write_json(self.folder / "metrics.json", result)

    def _explain(self) -> None:
        self._remove("explain", "attention.npz", "experts.json")
        data, target, seed = self.store(), self.settings.evaluate.target, self.settings.seed
        model, untrained = self.model(), self.model(trained=False)
        test, baseline = data.load("test"), background_events(data.load("train"), target)
        for method in self.settings.explain:
            subject = Subject(model, untrained, subsample(test, method.events, seed), baseline, target, seed)
            result = method.explain(subject, self._provenance(method.name, method.model_dump(mode="json")))
            result.save(self.folder / "explain" / f"{method.name}.npz")
            if isinstance(result, Explanation) and result.interactions is not None:
                links = [asdict(link) for link in observable_links(result, seed)]
                value = {"links": links, "provenance": asdict(result.provenance)}
                files.write_json(self.folder / "explain" / "links.json", value)
        self._describe(model, untrained, test)

    def _describe(self, model: Model, untrained: Model, test: GraphBatch) -> None:
        """Attention maps and expert tables, where the model has them."""
        maps = attention.attention_map(model, untrained, test, self._provenance("attention", {}))
        if maps is not None:
            maps.save(self.folder / "attention.npz")
        settings = self.settings
        found = experts.expert_report(
            model, untrained, test, settings.evaluate.target, settings.seed, self._provenance("experts", {})
        )
        if found is not None:
            found.save(self.folder / "experts.json")

    def _report(self) -> None:
        self._remove("figures", "tables")
        report.make_report(self.folder)

    def _remove(self, *names: str) -> None:
        """Delete results of an earlier config, so that none of them is taken for a new one."""
        for path in (self.folder / name for name in names):
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)

    def _key(self, stage: str) -> str:
        settings = self.settings
        parts: dict[str, Any] = {
            "convert": [
                store.FORMAT,
                settings.data.model_dump(mode="json"),
                settings.graph.model_dump(mode="json"),
                self._inputs(),
            ],
            "train": [settings.model.model_dump(mode="json"), settings.train.model_dump(mode="json"), settings.seed],
            "evaluate": settings.evaluate.model_dump(mode="json"),
            "explain": [method.model_dump(mode="json") for method in settings.explain],
            "report": hepx.__version__,
        }
        before = STAGES[: STAGES.index(stage) + 1]
        return files.digest([parts[name] for name in before])

    def _inputs(self) -> list[list[Any]]:
        """Size and time of the input files: a changed file is converted again. A run folder that was moved away from
        its files goes on with what was converted."""
        try:
            samples = self.settings.data.samples
            found = [path for name, sample in samples.items() for path in find_files(name, sample)]
        except DataError:
            if "convert" not in self._done():
                raise
            return self._done()["convert"]["inputs"]
        return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in found]

    def _done(self) -> dict[str, Any]:
        notes = self.folder / "stages.json"
        return files.read_json(notes) if notes.exists() else {}

    def _once(self, stage: str, key: str, work: Callable[[], None]) -> None:
        if self._done().get(stage, {}).get("key") == key:
            log.info("%s: done already", stage)
            return
        log.info("%s …", stage)
        start = time.monotonic()
        # before a stage is repeated, it and the stages after it count as not done
        done = {name: note for name, note in self._done().items() if STAGES.index(name) < STAGES.index(stage)}
        files.write_json(self.folder / "stages.json", done)
        self._mark_started(stage, key)
        work()
        done[stage] = {"key": key, "seconds": round(time.monotonic() - start, 2), "time": _now()}
        if stage == "convert":
            done[stage]["inputs"] = self._inputs()
        files.write_json(self.folder / "stages.json", done)
        log.info("%s: %.1f s", stage, done[stage]["seconds"])

    def _mark_started(self, stage: str, key: str) -> None:
        """Checkpoints of another config must not be continued: they carry the key of the training they belong to."""
        if stage != "train":
            return
        owner = self.folder / "checkpoints" / "key.txt"
        if owner.exists() and owner.read_text() != key:
            shutil.rmtree(owner.parent)
        files.write_text(owner, key)

    def _provenance(self, method: str, settings: dict[str, Any]) -> Provenance:
        return Provenance(
            method=method,
            settings=settings,
            config=files.digest(self.settings.dump()),
            checkpoint=files.sha256(self.folder / "checkpoints" / "best.safetensors")[:16],
            data=self.store().manifest["recipe"],
            seed=self.settings.seed,
            version=hepx.__version__,
            commit=_commit(),
            device=str(self.device),
            time=_now(),
        )

    def _versions(self) -> dict[str, Any]:
        packages = ("torch", "torch-geometric", "captum", "uproot", "awkward", "vector", "numpy", "scikit-learn")
        return {
            "config": files.digest(self.settings.dump()),
            "seed": self.settings.seed,
            "version": hepx.__version__,
            "commit": _commit(),
            "device": str(self.device),
            "time": _now(),
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in packages},
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str:
    """Git commit of the hepx sources, with `-dirty` if they were changed; `unknown` outside a checkout."""
    folder = Path(hepx.__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
