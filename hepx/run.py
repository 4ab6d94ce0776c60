"""One config, one run folder: every stage writes what the next one reads, and is skipped when it is done already."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch

import hepx
from hepx import evaluate, files, results, store, train
from hepx.attribution import METHODS, Method, Shard, Subject, explain_blocks, merge_blocks, subsample
from hepx.attribution.links import observable_links
from hepx.closure import closure
from hepx.config import load, parse, write_yaml
from hepx.errors import ConfigError, DataError, HepxError, ResultError, StoppedError, closest
from hepx.evaluate import SIGNAL
from hepx.events import find_files
from hepx.graph import GraphBatch
from hepx.insides import FILES, NULLS, STABILITY, Inside, describe
from hepx.models import Model, build_model, flaws, symmetries
from hepx.remote import Location, Url, differences, identity, identity_if_any
from hepx.results import Explanation, Provenance, is_result_of
from hepx.schemas import load_schema
from hepx.settings import RunSettings
from hepx.store import GraphStore
from hepx.train import Epoch, OnDisk, Ranks
from hepx.variations import Scored, compare_variations
from hepx.workers import Execution

log = logging.getLogger(__name__)

CLOSURE = "closure.json"
STAGES: dict[str, tuple[str, ...]] = {
    "convert": ("dataset",),
    "train": ("checkpoints", "history.csv", "history.jsonl"),
    "evaluate": ("metrics.json", "scores.parquet", "replicas.npz"),
    "explain": ("explain", *FILES.values(), NULLS, STABILITY, CLOSURE),
    "report": ("report.html", "figures", "tables"),
}
"""The stages in order, and what each writes."""
WAIT = "wait for it, or choose another name=…"
OPTIONAL = (*FILES.values(), NULLS, STABILITY, CLOSURE)  # not every model has attention or experts


class Run:
    """A run folder and its settings.

    A stage is done when `stages.json` holds its key, a digest of its settings and of the key of the stage before it,
    and what it writes is there. A changed config therefore repeats exactly the stages it concerns; what the stages
    after it had written goes first, so that no result is taken for one of the new config.
    """

    def __init__(self, folder: Path, settings: RunSettings) -> None:
        self.folder, self.settings = folder, settings
        self.execution, self.ranks = Execution(), Ranks()
        self._called = False  # the other processes of a training
        self._answers: dict[Url, list[Any]] = {}
        self._aside: files.Aside | None = None
        self._begun: set[str] = set()  # stages

    @classmethod
    def from_config(cls, path: Path, overrides: list[str], root: Path, methods: Sequence[str] = ()) -> Self:
        """The run of a config file (in `root`, under its name) or of an existing run folder.

        methods: explanation methods to add, with their default settings, where the config has none of the name.
        """
        if not path.is_dir():
            settings = parse(RunSettings, _with_methods(load(path, overrides), methods), f"config '{path}'")
            return cls(root / settings.name, settings)
        config = path / "config.yaml"
        if not config.exists():
            raise ConfigError(f"'{path}' is a folder without config.yaml; give a config file or a run folder.")
        name = load(config).get("name")
        settings = parse(RunSettings, _with_methods(load(config, overrides), methods), f"config '{config}'")
        if settings.name != name:
            raise ConfigError(
                f"'{path}' is the run '{name}'; its name cannot be changed. "
                f"Start another run from its config: hepx run {config} name={settings.name}"
            )
        return cls(path, settings)

    @property
    def device(self) -> torch.device:
        """Where the model runs: the GPU if there is one, unless the config says otherwise."""
        wanted = self.settings.device
        if wanted == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is 'cuda', but torch sees no GPU here; use device=auto or device=cpu.")
        if wanted == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.ranks.local_rank)

    def execute(self, last: str = "report") -> None:
        """Run all stages up to `last`, skipping what is done; ConfigError if another process works in the folder, or if
        the config names what the events will not have, before anything is done."""
        self.settings.refuse_unknown()
        self.folder.mkdir(parents=True, exist_ok=True)
        stages = list(STAGES)
        with files.locked(self.folder, WAIT), self._undone_if_refused():
            for stage in stages[: stages.index(last) + 1]:
                self._once(stage, self.key(stage), getattr(self, f"_{stage}"))

    @contextmanager
    def _undone_if_refused(self) -> Iterator[None]:
        """config.yaml of this run; if a stage fails before any but the conversion is done anew, what was there before
        comes back with its config. What a stage has finished is never taken back."""
        config = self.folder / "config.yaml"
        self.key("report")  # it may be refused at once
        before, noted = config.read_text(encoding="utf-8") if config.exists() else None, self._done()
        self._aside, self._begun = files.Aside(self.folder), set()
        files.write_text(config, write_yaml(self.settings.dump()))
        try:
            yield
        except Exception as error:
            if self._aside and before is not None and not isinstance(error, StoppedError):
                back = self._aside.restore()
                whole = {stage for stage, written in STAGES.items() if stage not in self._begun or written[0] in back}
                kept = {stage: note for stage, note in noted.items() if stage in whole}
                files.write_json(self.folder / "stages.json", kept)
                files.write_text(config, before)
            raise
        finally:
            self._keep()

    def _keep(self) -> None:
        """Results of the config before are not wanted any more."""
        if self._aside:
            self._aside.drop()
        self._aside = None

    def _set_aside(self, *names: str) -> None:
        """Results that are made anew: until that is sure, where a stage that fails can have them back."""
        if self._aside:
            self._aside.put(*names)
        else:
            files.remove(self.folder, *names)

    def explain_shard(self, shard: Shard) -> None:
        """Do one part of the explanations, while others do theirs; `execute("explain")` puts the parts together.

        ConfigError if the run is not evaluated yet, or with another config: the parts must be of one whole.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.locked(self.folder, WAIT, shared=True):
            if self._done().get("evaluate", {}).get("key") != self.key("evaluate") or self._saved() != self.settings:
                self._say_what_is_new()
                raise ConfigError(
                    f"'{self.folder}' is not evaluated with this config, so its explanation cannot be shared out. "
                    f"First: hepx explain {self.folder} --prepare, with the changes to the config; then the shards, "
                    "without any."
                )
            self._explain(shard)

    def _saved(self) -> RunSettings:
        """The settings in the run folder."""
        config = self.folder / "config.yaml"
        return parse(RunSettings, load(config), f"config '{config}'")

    @contextmanager
    def leading(self) -> Iterator[None]:
        """What the first process does goes inside. The others, which wait in `follow`, are let go at the end, if there
        was nothing to train or an error came first."""
        try:
            yield
        finally:
            if not self._called:
                self.ranks.from_first(False)

    def is_locked(self) -> bool:
        """Whether another process works in the folder now."""
        try:
            with files.locked(self.folder, WAIT):
                return False
        except ConfigError:
            return True

    def is_done(self, stage: str) -> bool:
        """Whether a stage is done for this config and what it writes is there."""
        present = all((self.folder / name).exists() for name in STAGES[stage] if name not in OPTIONAL)
        noted, snapshots = self._done().get(stage, {}), self.settings.train.snapshots
        if stage == "train" and snapshots not in (0, noted.get("snapshots", 0)):
            return False  # the training will be repeated to the same weights; what was made of them stays
        return present and noted.get("key") == self.key(stage)

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
        self._called = self.ranks.from_first(True)
        history = self._fit()
        train.write_history(self.folder, history)
        best = max(history, key=lambda epoch: epoch.validation_auc)
        log.info("best validation AUC %.4f in epoch %d of %d", best.validation_auc, best.epoch, len(history))

    def _fit(self) -> list[Epoch]:
        """Train, together with the other processes if there are any; the first one writes."""
        data, settings = self.store(), self.settings
        model = build_model(settings.model, data.layout, settings.seed).to(self.device)
        events, validation = OnDisk(data, "train"), OnDisk(data, "validation")
        checkpoints, source = self.folder / "checkpoints", None
        if settings.train.source is not None:
            source = Path(settings.train.source) / "checkpoints"
            config = Path(settings.train.source) / "config.yaml"
            other = parse(RunSettings, load(config), f"config '{config}'")
            train.check_same_model(settings.train.source, settings.model, other.model)
            train.check_same_nodes(settings.train.source, settings.graph, other.graph)
        if self.ranks.is_first:
            self._note_training_events(events, source)
        track = partial(train.tracked, self.folder, settings.train.track, self.folder.name, settings.dump())
        return train.fit(
            model, events, validation, settings.train, settings.seed, checkpoints, self.ranks, source, track
        )

    def _note_training_events(self, events: OnDisk, source: Path | None) -> None:
        """Those of this training, and those of the one it starts from."""
        ids: Iterator[Any] = (part.event_id.numpy() for part in train.parts(events))
        known = [] if source is None else [train.training_events(source)]
        number = int(events.counts.sum()) + sum(map(len, known))
        train.write_training_events(self.folder / "checkpoints", chain(ids, known), number)

    def _source(self) -> dict[str, str] | None:
        """The run that the training starts from and the digest of its weights."""
        wanted = self.settings.train.source
        return None if wanted is None else train.find_source(wanted, self._done().get("train", {}).get("source"))

    def check_resumable(self) -> None:
        """ConfigError if nothing with these settings was begun; a run that was stopped before its first checkpoint
        starts from the beginning."""
        key, owner, config = self.key("train"), self.folder / "checkpoints" / "key.txt", self.folder / "config.yaml"
        begun = owner.read_text() == key if owner.exists() else config.exists() and self._saved() == self.settings
        if begun and not (owner.parent / "last.pt").exists():
            log.info("--resume: '%s' has no checkpoint yet; its training starts from the beginning", self.folder)
        if not begun and self._done().get("train", {}).get("key") != key:
            self._say_what_is_new()
            raise ConfigError(
                f"--resume: '{self.folder}' holds no checkpoint of a training with these settings. "
                "Without --resume it starts from the beginning."
            )

    def follow(self) -> None:
        """What every process but the first does: wait until that one comes to the training, if it does, and help."""
        if self.ranks.from_first(False):
            self._fit()

    def _evaluate(self) -> None:
        data, settings, model = self.store(), self.settings, self.model()
        test = data.load("test")
        train.refuse_training_events(self.folder / "checkpoints", test.event_id.numpy())
        splits = evaluate.Splits(data.load("train"), data.load("validation"), test)
        found = evaluate.evaluate(model, splits, settings.evaluate, settings.seed)
        header = {"model": settings.model.name, "seed": settings.seed, "split": "test"}
        result = {**header, "luminosity": settings.data.luminosity, **found.metrics, "flaws": flaws(model, test)}
        result["symmetries"] = symmetries(model, test)
        if data.variations:
            nominal = Scored(test, found.scores["score"].to_numpy())
            varied = ((name, data.load("test", name)) for name in data.variations)
            efficiencies, factors = settings.evaluate.signal_efficiencies, result["yield_factors"]
            result["variations"] = compare_variations(model, nominal, varied, efficiencies, factors, settings.seed)
        evaluate.write_scores(self.folder / "scores.parquet", found.scores)
        found.measured.save(self.folder / "replicas.npz")
        files.write_json(self.folder / "metrics.json", result)

    def _explain(self, shard: Shard | None = None) -> None:
        """Run the methods whose result is not there yet; a refused one does not keep the others from running.

        One shard leaves its blocks of events in explain/shards; the whole stage does what is left and joins the blocks.
        """
        data, seed, part = self.store(), self.settings.seed, shard or Shard()
        model, untrained = self.model(), self.model(trained=False)
        test, baseline = data.load("test"), data.load("train")
        if part.has(0):  # one job: the analyses share their null networks
            self._describe(model, data, test)
        refused = []
        for number, method in enumerate(self.settings.explain):
            provenance = self.provenance(method.name, method.model_dump(mode="json"), method.variation)
            if is_result_of(self._result(method), provenance):
                log.info("%s: done already", method.result)
                continue
            chosen, dropout = subsample(test, method.events, seed), self.settings.train.node_dropout > 0
            if method.variation:  # the same events, as far as they still pass the selection
                varied = data.load("test", method.variation)
                chosen = varied[torch.isin(varied.event_id, chosen.event_id)]
            whole = sum(flow[-1]["weighted"] for flow in data.manifest["cutflow"].values())
            share = float(chosen.weight.sum()) / whole if whole > 0 else 1.0
            subject = Subject(model, untrained, chosen, baseline, SIGNAL, seed, dropout, share)
            try:
                if method.per_event:
                    explain_blocks(method, subject, provenance, self._blocks(method), part)
                elif part.has(number):
                    method.explain(subject, provenance).save(self._result(method))
                if method.per_event and shard is None:
                    merge_blocks(method, len(subject.graphs), self._blocks(method)).save(self._result(method))
            except ResultError as error:
                refused.append(error)
                self._result(method).unlink(missing_ok=True)
        if shard is None:
            self._link()
            self._compare(Subject(model, untrained, test, baseline, SIGNAL, seed), data.load("validation"))
        if refused:
            raise refused[0]

    def _result(self, method: Method) -> Path:
        return self.folder / "explain" / f"{method.result}.npz"

    def _blocks(self, method: Method) -> Path:
        return self.folder / "explain" / "shards" / method.result

    def _link(self) -> None:
        """Links to observables of the explanation of the objects. Blocks that are joined by now, and results of methods
        no longer wanted, are deleted."""
        folder = self.folder / "explain"
        folder.mkdir(exist_ok=True)
        wanted = {f"{method.result}.npz" for method in self.settings.explain}
        files.remove(self.folder, *(f"explain/{path.name}" for path in folder.iterdir() if path.name not in wanted))
        if (folder / "shapley.npz").exists():
            explanation = Explanation.load(folder / "shapley.npz")
            links = [asdict(link) for link in observable_links(explanation, self.settings.seed)]
            files.write_json(folder / "links.json", {"links": links, "provenance": asdict(explanation.provenance)})

    def _compare(self, subject: Subject, validation: GraphBatch) -> None:
        """Network beside gradient-boosted trees, and mean attributions in regions and under variations."""
        settings, path = self.settings, self.folder / CLOSURE
        methods = [one for one in settings.explain if one.name == "shapley"]
        explanations = {one.variation: self._result(one) for one in methods if self._result(one).exists()}
        used = settings.closure.model_copy(update={"regions": settings.closure.regions or settings.insides.regions})
        about = [one.model_dump(mode="json") for one in methods]
        provenance = self.provenance(
            "closure", {**used.model_dump(mode="json"), "trees": settings.evaluate.trees, "explain": about}
        )
        if is_result_of(path, provenance):
            log.info("closure: done already")
            return
        closure(
            subject,
            evaluate.Splits(subject.baseline, validation, subject.graphs),
            {name: Explanation.load(file) for name, file in explanations.items()},
            used,
            provenance,
            settings.evaluate.trees,
        ).save(path)

    def _describe(self, model: Model, data: GraphStore, test: GraphBatch) -> None:
        """Attention, experts and node states, where the model has them."""
        settings = self.settings
        inside = Inside(
            model=model,
            build=lambda seed: build_model(settings.model, data.layout, seed),
            test=test,
            training=lambda: (data.load("train"), data.load("validation")),
            train_settings=settings.train,
            target=SIGNAL,
            seed=settings.seed,
            yield_factors=files.read_json(self.folder / "metrics.json")["yield_factors"],
            background_uncertainty=settings.evaluate.background_uncertainty,
            key=self.key("train"),
        )
        describe(inside, settings.insides, self.folder, self.provenance)

    def _report(self) -> None:
        from hepx import report  # matplotlib is slow to import

        report.make_report(self.folder)

    def key(self, stage: str) -> str:
        """Digest of everything that a stage and those before it depend on."""
        settings = self.settings
        weights = (self._source() or {}).get("checkpoint")
        data = settings.data.model_dump(mode="json")
        variations = data.pop("variations")  # a new one does not change what was trained, nor explained without it
        used = {method.variation for method in settings.explain}
        of_stage = {"train": {}, "explain": {name: one for name, one in variations.items() if name in used}}
        parts: dict[str, Any] = {
            "convert": [
                store.FORMAT,
                data,
                load_schema(settings.data.schema_name).model_dump(mode="json"),
                settings.graph.model_dump(mode="json"),
                self._inputs(),
            ],
            "train": [settings.model.model_dump(mode="json"), settings.train.recipe(), settings.seed, weights],
            "evaluate": settings.evaluate.model_dump(mode="json"),
            "explain": [
                results.FORMAT,
                [method.model_dump(mode="json") for method in settings.explain],
                settings.insides.model_dump(mode="json"),
                settings.closure.model_dump(mode="json"),
            ],
            "report": hepx.__version__,
        }
        stages = list(STAGES)
        found = of_stage.get(stage, variations)
        return files.digest([parts[name] for name in stages[: stages.index(stage) + 1]] + ([found] if found else []))

    def _inputs(self) -> list[list[Any]]:
        """Size and UUID of the input files: a changed file is converted again. A run folder that was moved away from
        its files, or that cannot reach them, goes on with what was converted."""
        try:
            samples = self.settings.data.samples
            found = [path for name, sample in samples.items() for path in find_files(name, sample)]
            left_out = store.skipped(self.folder / "dataset")
            return [self._identity(path, self.execution.skip_bad_files or str(path) in left_out) for path in found]
        except DataError:
            if "convert" not in self._done():
                raise
            return self._done()["convert"]["inputs"]

    def _identity(self, file: Location, may_be_bad: bool) -> list[Any]:
        """A server is asked about its file once per run, not once per stage."""
        ask = identity_if_any if may_be_bad else identity
        if not isinstance(file, Url):
            return ask(file)
        if file not in self._answers:
            self._answers[file] = ask(file)
        return self._answers[file]

    def _say_what_is_new(self) -> None:
        """Which input files are others than those that were converted, and how."""
        changed = differences(self._done().get("convert", {}).get("inputs", self._inputs()), self._inputs())
        if changed:
            log.warning("input files changed since they were converted: %s", "; ".join(changed))

    def _done(self) -> dict[str, Any]:
        notes = self.folder / "stages.json"
        if not notes.exists():
            return {}
        with files.reading(notes):
            return dict(files.read_json(notes))

    def _once(self, stage: str, key: str, work: Callable[[], None]) -> None:
        """Do a stage if it is not done; what later stages had made of another config goes first."""
        if self.is_done(stage):
            log.info("%s: done already", stage)
            left_out = store.skipped(self.folder / "dataset") if stage == "convert" else {}
            if left_out:
                log.warning("left out, because they could not be read (--skip-bad-files): %s", ", ".join(left_out))
            return
        log.info("%s …", stage)
        if stage == "convert":
            self._say_what_is_new()
        start = time.monotonic()
        stages = list(STAGES)
        noted = self._done()
        later = [one for one in stages[stages.index(stage) + 1 :] if noted.get(one, {}).get("key") != self.key(one)]
        done = {name: note for name, note in noted.items() if name != stage and name not in later}
        files.write_json(self.folder / "stages.json", done)
        self._begun.add(stage)
        lost = [name for one in later for name in STAGES[one] if (self.folder / name).exists()]
        if lost:
            log.warning("made with another config or other files, and so made anew: %s", ", ".join(lost))
            self._set_aside(*lost)
        if stage in ("evaluate", "report"):
            self._set_aside(*STAGES[stage])
        elif stage == "train":
            self._claim_checkpoints(key)
        if stage != "report":
            files.write_json(self.folder / "provenance.json", self._versions())
        work()
        if stage != "convert":
            self._keep()
        done[stage] = {"key": key, "seconds": round(time.monotonic() - start, 2), "time": _now()}
        if stage == "convert":
            done[stage]["inputs"] = self._inputs()
        elif stage == "train":
            done[stage]["source"] = self._source()
            done[stage]["snapshots"] = self.settings.train.snapshots
        files.write_json(self.folder / "stages.json", done)
        log.info("%s: %.1f s", stage, done[stage]["seconds"])

    def _claim_checkpoints(self, key: str) -> None:
        """Checkpoints of another config must not be continued: they carry the key of the training they belong to."""
        owner = self.folder / "checkpoints" / "key.txt"
        if owner.exists() and owner.read_text() != key:
            self._set_aside(*STAGES["train"])
        files.write_text(owner, key)

    def provenance(self, method: str, settings: dict[str, Any], variation: str = "") -> Provenance:
        """Where a result of this run comes from that is made now."""
        return Provenance(
            method=method,
            settings=settings,
            config=files.digest(self.settings.dump()),
            checkpoint=files.sha256(self.folder / "checkpoints" / "best.safetensors")[:16],
            data=self.store().part(variation)["recipe"],
            seed=self.settings.seed,
            version=hepx.__version__,
            commit=_commit(),
            device=str(self.device),
        )

    def _versions(self) -> dict[str, Any]:
        packages = ["torch", "torch-geometric", "captum", "uproot", "awkward", "vector", "numpy", "scikit-learn"]
        packages += ["numba"] if importlib.util.find_spec("numba") else []  # it rounds otherwise than torch
        return {
            "config": files.digest(self.settings.dump()),
            "source": self._source(),
            "seed": self.settings.seed,
            "version": hepx.__version__,
            "commit": _commit(),
            "device": str(self.device),
            "time": _now(),
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in packages},
        }


@contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Log into log.txt of a run folder while the block runs; the sentence of an error too."""
    logger = logging.getLogger("hepx")
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(file)
    try:
        yield
    except HepxError as error:
        file.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, str(error), (), None))
        raise
    finally:
        logger.removeHandler(file)
        file.close()


def _with_methods(values: dict[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """A config with the explanation methods it lacks, by their default settings; ConfigError for an unknown one."""
    for name in methods:
        if name not in METHODS:
            raise ConfigError(f"unknown method '{name}'; {closest(name, METHODS)}")
    entries = values.get("explain") or []
    known = {entry.get("method") for entry in entries if isinstance(entry, dict)}
    return {**values, "explain": [*entries, *({"method": name} for name in methods if name not in known)]}


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
