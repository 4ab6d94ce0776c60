"""A finished run in a notebook: events and scores as arrays, and explanations of any selection of events.

    run = hepx.load("runs/quickstart")
    found = run.explain("shapley", events="score > 2.2 and sample == ttbar", draws=32)
    found.to_pandas()          # one row per event, index event_id
    found.plot()

Nothing is written into the run folder. Without a run, `explain` takes a model and graphs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hepx
from hepx import attribution, expression, files
from hepx.attribution import METHODS, Method, Subject, subsample
from hepx.closure import wheres
from hepx.config import parse
from hepx.errors import ConfigError, DataError, ResultError, closest
from hepx.evaluate import SIGNAL
from hepx.faithfulness import Kept, validate
from hepx.graph import GraphBatch
from hepx.influence import SCORES, Task, read_snapshots
from hepx.influence.audit import Audit, AuditSettings, audit, examine
from hepx.influence.distill import describe
from hepx.influence.dropped import first_dropped, losses
from hepx.influence.groups import Grouping, Question
from hepx.influence.reduced import DistillSettings, Study, execute
from hepx.influence.taxonomy import TaxonomySettings, TruthMet
from hepx.influence.truth import true_met
from hepx.insides import NULLS
from hepx.metrics import probability
from hepx.models import Model, build_model, predict, require_gradients
from hepx.results import (
    Array,
    Explanation,
    GroupExplanation,
    Importance,
    PairExplanation,
    Provenance,
    ResponseCurve,
    Result,
    kind_of,
)
from hepx.results_influence import Influence
from hepx.run import Run
from hepx.settings import RunSettings
from hepx.train import freeze, load_weights, refuse_training_events, training_weights

log = logging.getLogger(__name__)

KINDS: dict[str, type[Result]] = {
    kind.__name__: kind for kind in (Explanation, GroupExplanation, PairExplanation, Importance, ResponseCurve)
}
"""What explain/*.npz may hold."""
CONFUSED = "probability > 0.5 and label == 0"
"""Background events that look like signal."""
Selection = str | Array | torch.Tensor | GraphBatch | None
"""Which events: an expression, a mask [B] over all test events, event numbers, graphs, or None for all."""


@dataclass(frozen=True)
class Trained:
    """A run folder whose model is trained. What it holds is read when it is first asked for, and kept."""

    run: Run

    def __repr__(self) -> str:
        store, found = self.run.store(), sorted(path.stem for path in (self.run.folder / "explain").glob("*.npz"))
        events = sum(shard["events"] for shard in store.part()["shards"])
        return (
            f"run '{self.settings.name}' in {self.run.folder}: {self.settings.model.name}, "
            f"{events} events of {', '.join(store.layout.samples)}; explained: {', '.join(found) or 'nothing yet'}"
        )

    @property
    def settings(self) -> RunSettings:
        """The resolved config."""
        return self.run.settings

    @cached_property
    def model(self) -> Model:
        """The trained model, in evaluation mode."""
        return self.run.model()

    @cached_property
    def test(self) -> GraphBatch:
        """The test events, which neither the training nor a choice has seen."""
        return self.run.store().load("test")

    @cached_property
    def train(self) -> GraphBatch:
        """The training events, from which replacements are drawn."""
        return self.run.store().load("train")

    @cached_property
    def score(self) -> Array:
        """Log-odds of signal of the test events [B]."""
        return self.predict(self.test)

    def predict(self, graphs: GraphBatch) -> Array:
        """Log-odds of signal [B] of any graphs; ConfigError for anything else, or graphs of other objects."""
        if not isinstance(graphs, GraphBatch):
            raise ConfigError(
                f"predict: expected graphs, such as run.test or run.select('mbb > 100'), got {type(graphs).__name__}. "
                "hepx.graph.from_arrays makes graphs of arrays."
            )
        if len(graphs) == 0:
            return np.zeros(0, dtype=np.float32)
        known = self.run.store().layout.types
        if graphs.layout.types != known:
            wanted, got = (", ".join(types) for types in (known, graphs.layout.types))
            raise ConfigError(f"predict: expected graphs of {wanted}, as in the training, got {got}.")
        return predict(self.model, graphs).numpy()

    def select(self, events: Selection = None, variation: str = "") -> GraphBatch:
        """Some of the test events, nominal or under a systematic variation, in their order.

        An expression may use score (log-odds), probability, label, weight, every observable, and sample, which is
        compared with the name of a sample: "score > 2.2 and sample == ttbar and 100 < mbb < 140". Raises ConfigError
        for a wrong expression or mask, DataError if no event is selected or an event number is not among them.
        """
        if isinstance(events, GraphBatch):
            if len(events) == 0:
                raise DataError("events: these graphs hold no events.")
            return events
        graphs = self.run.store().load("test", variation) if variation else self.test
        if events is None:
            return graphs
        if isinstance(events, str):
            score = self.predict(graphs) if variation else self.score
            found = expression.condition(events, quantities(graphs, score), "events", "score > 2.2")
            found = np.broadcast_to(found, len(graphs))
        else:
            found = _mask(np.asarray(events), graphs.event_id.numpy())
        if not found.any():
            raise DataError(f"none of the {len(graphs)} test events is selected by events={events!r}.")
        return graphs[torch.from_numpy(np.flatnonzero(found))]

    def explain(self, method: str, events: Selection = None, limit: int = 1000, **settings: Any) -> Any:
        """The result of a method for selected test events: an `Explanation`, or what else the method returns.

        events: as in `select`; at most `limit` of them, chosen at random. settings: of the method, as in a config, for
        example draws=32. Raises ConfigError for an unknown method or setting, ResultError if the result is refused.
        """
        made = _method(method, {**settings, "events": limit})
        graphs = subsample(self.select(events, made.variation), limit, self.settings.seed)
        where = self.run.provenance(made.name, made.model_dump(mode="json"), made.variation)
        return attribution.explain(made, self._subject(graphs), where)

    def validate(
        self,
        methods: str | Sequence[str] = (),
        limit: int = 200,
        beside: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        keep: Path | None = None,
    ) -> dict[str, Any]:
        """How faithful the methods of the run's config, and `methods` with default settings, are: `hepx.faithfulness`.

        limit: test events, chosen at random; beside: folders of the same run with other seeds, whose networks must give
        like explanations; keep: a folder where each method is kept once it is judged, so that it goes on when it was
        stopped. A network of shuffled labels is used if the run has one (nulls/). Raises ConfigError if a run beside is
        of another layout, DataError if it was trained on these events.
        """
        if limit < 1:
            raise ConfigError(f"limit: expected a number not below 1, got {limit}")
        methods, beside = _several(methods), _several(beside)
        known = {one.result: one for one in self.settings.explain if not one.variation}
        known |= {name: _method(name, {}) for name in methods if name not in known}
        wanted = {name: one.model_copy(update={"events": limit}) for name, one in known.items()}
        graphs = subsample(self.test, limit, self.settings.seed)
        regions = self.settings.closure.regions or self.settings.insides.regions
        shuffled, seeds = self._shuffled(), self._beside(beside, graphs)
        where = self.run.provenance("validate", {"events": limit, "beside": [str(one) for one in beside]})
        networks = [files.digest([v.tolist() for v in one.state_dict().values()]) for one in (*shuffled, *seeds)]
        key = files.digest([where.checkpoint, where.data, where.seed, where.version, limit, networks, regions])
        found = validate(
            wanted,
            self._subject(graphs),
            self._where,
            shuffled,
            seeds,
            wheres(graphs, regions),
            kept=Kept(keep, key),
        )
        return {**found, "provenance": asdict(where)}

    def _where(self, method: Method) -> Provenance:
        return self.run.provenance(method.name, method.model_dump(mode="json"), method.variation)

    def _shuffled(self) -> list[Model]:
        """Networks trained on shuffled labels that `hepx explain` left for this training."""
        found, epochs = [], self.settings.insides.nulls.epochs
        for folder in sorted((self.run.folder / NULLS).glob("shuffled-*")):
            seed = int(folder.name.partition("-")[2])
            key, note = files.digest([self.run.key("train"), epochs, seed]), folder / "key.txt"
            if note.exists() and note.read_text() == key:
                model = build_model(self.settings.model, self.test.layout, seed)
                load_weights(model, folder)
                found.append(model.to(self.run.device).eval())
        return found

    def _beside(self, folders: Sequence[str | os.PathLike[str]], graphs: GraphBatch) -> list[Model]:
        return [other.model for other in self._runs_beside(folders, graphs)]

    def _runs_beside(self, folders: Sequence[str | os.PathLike[str]], graphs: GraphBatch) -> list[Trained]:
        """Runs of the same layout that were not trained on these events."""
        found = []
        for folder in folders:
            other = open_run(folder)
            if other.run.store().layout != graphs.layout:
                raise ConfigError(f"run '{folder}' has other objects or samples; give one of another seed.")
            refuse_training_events(other.run.folder / "checkpoints", graphs.event_id.numpy())
            weights = [run.folder / "checkpoints" / "best.safetensors" for run in (other.run, self.run)]
            if files.sha256(weights[0]) == files.sha256(weights[1]):
                raise ConfigError(f"'{folder}' holds the same training; give one of another seed.")
            found.append(other)
        return found

    def scores_of_training(self, names: str | Sequence[str] = ("loss", "tracin")) -> dict[str, Array]:
        """Scores of the training events [B] by name (`hepx.influence.SCORES`), with their default settings: larger for
        an event that is harder or does more to itself. ConfigError for an unknown one, or a run without snapshots."""
        names = _several(names)
        for name in names:
            if name not in SCORES:
                raise ConfigError(f"unknown score '{name}'; {closest(name, SCORES)}")
        task = self._task(self.run.store().load("validation"))  # a test event decides nothing about training events
        return {name: SCORES[name]().of_training(task).double().numpy() for name in names}

    def audit(self, scores: str | Sequence[str] = ("loss", "tracin"), **settings: Any) -> Audit:
        """Which training events stand out by these scores, twins or weights, and what is odd about them:
        `hepx.influence.audit`. settings: of `AuditSettings`, for example share=0.02."""
        made = parse(AuditSettings, settings, "audit")
        found = self.scores_of_training(scores)
        truth, notes = self._truth()
        return audit(
            graphs=self.train,
            weight=training_weights(self.train, self.settings.train.weights),
            scores=found,
            score=self.predict(self.train),
            settings=made,
            seed=self.settings.seed,
            points=self.settings.evaluate.points,
            truth=truth,
            paths=self.run.store().files_of(self.train.event_id.numpy()),
            notes=notes,
        )

    def distill(
        self, scores: str | Sequence[str] = ("tracin",), folder: Path | None = None, workers: int = 1, **settings: Any
    ) -> dict[str, Any]:
        """What smaller training sets cost, reduced by these scores and at random: `hepx.influence.distill`.

        folder: where finished trainings are kept, so that they are not done again; else influence/distill of the run.
        settings: of `DistillSettings`, for example fractions=(0.2, 0.5), seeds=(1, 2, 3).
        """
        made = parse(DistillSettings, settings, "distill")
        study = Study(
            model=self.settings.model,
            train=self.settings.train,
            events=self.train,
            test=self.test,
            scores=self.scores_of_training(scores),
            settings=made,
        )
        outcomes = execute(study, folder or self.run.folder / "influence" / "distill", workers)
        truth, notes = self._truth()
        _, _, categories = examine(self.train, self.settings.seed, TaxonomySettings(), truth)
        return {
            "settings": made.model_dump(),
            "scores": list(_several(scores)),
            "notes": notes,
            **describe(study, outcomes),
        } | {
            "dropped": losses(study, categories),
            "categories": [{"name": one.name, "what": one.what, "by": one.by} for one in categories],
            "displays": first_dropped(study, self.predict(self.train), 2),
        }

    def influence(self, score: str = "tracin", events: Selection = CONFUSED, **options: Any) -> Influence:
        """What a score says of the training events: each alone, and as causes of the scores of some test events.

        run.influence("trak", "score > 2.2 and sample == ttbar", ridge=0.1).to_pandas(). Arguments and errors as in
        `ask`; nothing is written.
        """
        return self.ask(score, events, **options).answer()

    def ask(
        self,
        score: str = "tracin",
        events: Selection = CONFUSED,
        limit: int = 200,
        beside: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        cache: Path | None = None,
        **settings: Any,
    ) -> Question:
        """What `influence` answers, before it is.

        events: as in `select`, by default background that looks like signal; at most `limit` of them, chosen at random.
        beside: folders of the same run with other seeds, for scores that average over trainings; cache: a folder in
        which gradients are kept. settings: of the score. Raises ConfigError for an unknown score or setting or a run
        beside of another layout, ResultError for a training without snapshots.
        """
        if score not in SCORES:
            raise ConfigError(f"unknown score '{score}'; {closest(score, SCORES)}")
        made, beside = parse(SCORES[score], settings, f"score '{score}'"), _several(beside)
        graphs = subsample(self.select(events), limit, self.settings.seed)
        query = events if isinstance(events, str) else "events chosen in a notebook"
        others = tuple(
            other.run.folder / "checkpoints" / "best.safetensors" for other in self._runs_beside(beside, graphs)
        )
        asked = {**made.model_dump(mode="json"), "query": query, "limit": limit, "beside": [str(one) for one in beside]}
        grouping = Grouping(self.settings.evaluate.points, tuple(self.settings.data.regions))
        return Question(made, self._task(graphs, others, cache), query, grouping, self.run.provenance(score, asked))

    def _task(self, query: GraphBatch, others: tuple[Path, ...] = (), cache: Path | None = None) -> Task:
        """The training of this run, asked about some events; what was frozen has learned nothing from any."""
        folder, model = self.run.folder / "checkpoints", self.run.model()
        require_gradients(model, "scores of training events")
        freeze(model, self.settings.train.freeze, self.settings.train.trainable_layers)
        return Task(
            model=model,
            trained=folder / "best.safetensors",
            snapshots=read_snapshots(folder),
            train=self.train,
            weight=training_weights(self.train, self.settings.train.weights),
            query=query,
            seed=self.settings.seed,
            others=others,
            cache=cache,
        )

    def _truth(self) -> tuple[TruthMet | None, list[str]]:
        """True missing momentum of the training events, and what to say where the files are not there any more."""
        try:
            return true_met(self.settings.data, self.train.event_id.numpy()), []
        except DataError as error:
            log.warning("no true missing momentum, rules instead: %s", error)
            return None, [f"The true missing momentum was not read, rules stand in for it ({error})"]

    def load(self, result: str) -> Result:
        """A result that the run folder holds, by the name of its file in explain/: "shapley"."""
        folder = self.run.folder / "explain"
        known = sorted(path.stem for path in folder.glob("*.npz"))
        if result not in known:
            hint = closest(result, known) if known else "there are none; run `hepx explain`"
            raise ResultError(f"'{folder}' has no result '{result}'; {hint}")
        path = folder / f"{result}.npz"
        return KINDS[kind_of(path)].load(path)

    def _subject(self, graphs: GraphBatch) -> Subject:
        whole = sum(flow[-1]["weighted"] for flow in self.run.store().manifest["cutflow"].values())
        return Subject(
            model=self.model,
            untrained=self.run.model(trained=False),
            graphs=graphs,
            baseline=self.train,
            target=SIGNAL,
            seed=self.settings.seed,
            node_dropout=self.settings.train.node_dropout > 0,
            share=float(graphs.weight.sum()) / whole if whole > 0 else 1.0,
        )


def open_run(folder: str | os.PathLike[str]) -> Trained:
    """The run in a folder; ConfigError if it is none, ResultError if its model is not trained."""
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError(f"there is no run folder '{path}'. Give the folder that `hepx run CONFIG` made.")
    run = Run.from_config(path, [], path.parent)
    if not (path / "checkpoints" / "best.safetensors").exists():
        raise ResultError(f"the model of '{path}' is not trained yet. Run `hepx train {path}` first.")
    return Trained(run)


def explain(
    model: Model, graphs: GraphBatch, baseline: GraphBatch, method: str = "shapley", seed: int = 0, **settings: Any
) -> Any:
    """Explain any model's score (log-odds of class 1) on any graphs, without a run.

    baseline: the events that replacements are drawn from. Methods that compare with a null are given the model with the
    entries of each of its weight tensors shuffled. Errors as in `Trained.explain`.
    """
    made = _method(method, settings)
    subject = Subject(model.eval(), _shuffled(model, seed), graphs, baseline, SIGNAL, seed)
    where = Provenance(made.name, made.model_dump(mode="json"), "", "", "", seed, hepx.__version__, "", "cpu")
    return attribution.explain(made, subject, where)


def quantities(graphs: GraphBatch, score: Array) -> dict[str, Any]:
    """What an expression over events may use: name -> array [B], or the number of a sample."""
    samples = {name: number for number, name in enumerate(graphs.layout.samples)}
    observables = {name: graphs.observable(name).numpy() for name in graphs.layout.observables}
    own = {
        "score": score,
        "probability": probability(score),
        "label": graphs.y.numpy(),
        "weight": graphs.weight.numpy(),
        "sample": graphs.sample.numpy(),
    }
    return {**samples, **observables, **own}


def _mask(chosen: Array, event_id: Array) -> Array:
    """Mask [B] from a mask or from event numbers."""
    if chosen.dtype == bool:
        if chosen.shape != event_id.shape:
            raise ConfigError(f"events: a mask of shape {chosen.shape} does not fit {len(event_id)} test events.")
        return chosen
    if not np.issubdtype(chosen.dtype, np.integer):
        raise ConfigError(f"events: expected an expression, a mask or event numbers, got type {chosen.dtype}.")
    missing = np.setdiff1d(chosen, event_id)
    if len(missing):
        raise DataError(
            f"events: {len(missing)} event numbers are not among the test events, e.g. {missing[0]}; the number of an "
            "event is that of its channel times 10¹² plus its eventNumber."
        )
    return np.isin(event_id, chosen)


def _several(given: Any) -> Sequence[Any]:
    """One name or path alone stands for a list of one."""
    return (given,) if isinstance(given, str | os.PathLike) else given


def _method(name: str, settings: dict[str, Any]) -> Method:
    if not isinstance(name, str):
        raise ConfigError(f"expected the name of a method, for example 'shapley', got {name!r}")
    if name not in METHODS:
        raise ConfigError(f"unknown method '{name}'; {closest(name, METHODS)}")
    return parse(METHODS[name], settings, f"method '{name}'")


def _shuffled(model: Model, seed: int) -> Model:
    """A copy that has learned nothing but the size of its weights; how inputs are scaled stays."""
    copy = deepcopy(model)
    copy.shuffle(torch.Generator().manual_seed(seed))
    return copy.eval()
