"""FIGURES and TABLES: what the report can draw and write. Adding one = one function and one entry here."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.figure import Figure as Canvas

from hepx import files
from hepx.progress import track
from hepx.report import (
    audit,
    closure,
    derive,
    distill,
    explained,
    figures_events,
    figures_experts,
    figures_network,
    figures_objects,
    figures_performance,
    figures_states,
    influence,
    influence_validation,
    inside_tables,
    performance,
    style,
    validation,
    variations,
)
from hepx.report.saved import Saved
from hepx.report.tables import Table

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """A figure: its title, how to read it (HTML), the results it `needs` (attributes of Saved) and how it is drawn.

    `draw` returns suffix -> canvas: {"": canvas} for one figure, several suffixes for one per layer or event.
    """

    title: str
    caption: str
    needs: tuple[str, ...]
    draw: Callable[[Saved], dict[str, Canvas]]

    def available(self, saved: Saved) -> bool:
        """All it needs is there."""
        return all(getattr(saved, name) for name in self.needs)


@dataclass(frozen=True)
class Picture:
    """A drawn figure as the page shows it."""

    name: str
    title: str
    caption: str
    width: int
    data: str


@dataclass(frozen=True)
class Numbers:
    """A table written as CSV: the results it needs and how it is made."""

    needs: tuple[str, ...]
    make: Callable[[Saved], Table]


FIGURES: dict[str, Figure] = {
    "history": Figure(
        "Training history",
        "Cross entropy of the training and validation events and weighted AUC of the validation events after every "
        "epoch; both classes have equal total weight. The star marks the epoch whose weights are kept. Boosted trees "
        "have a point per tree and are all kept: they grow until the validation loss stops falling. Where experts "
        "exist, the balance loss says how evenly they are used (1: all alike).",
        ("history",),
        figures_performance.history,
    ),
    "roc": Figure(
        "Background rejection",
        "Background rejection 1/ε<sub>b</sub> against signal efficiency ε<sub>s</sub> of the weighted test events, for "
        "the model and for gradient-boosted trees trained on the same events. Bands: statistical error of "
        "ε<sub>b</sub> from the weights of the background that passes; neighbouring points share events. A curve ends "
        "where this error exceeds 70 %, that is, where about two background events are left. Below: ratio to the "
        "model; all classifiers see the same events, so the bands overstate the error of the ratio.",
        ("scores",),
        figures_performance.roc,
    ),
    "scores": Figure(
        "Score distribution",
        "Score of the weighted test events, each process scaled to unit area. Bars: statistical error √Σw². The "
        "outermost bins hold what lies beyond them.",
        ("scores",),
        figures_performance.scores,
    ),
    "calibration": Figure(
        "Is the score a probability?",
        "Observed share of signal against the predicted one, in bins of equal numbers of test events; error bars: "
        "statistical, of the difference. Left for classes of equal weight, as in the training: 1/(1 + e<sup>−s</sup>)"
        ". Right for the expected yields: the training knows nothing of them, so the log-odds of signal among the "
        "training events at their yields are added to the score. The calibration error is the weighted mean distance "
        "from the diagonal; in brackets what a perfect classifier would show on so many events. A score can rank well "
        "without being a probability; every threshold but 0 needs only the ranking.",
        ("calibrated",),
        figures_performance.calibration,
    ),
    "points": Figure(
        "Processes and signal points",
        "AUC of all signal against one background, and of one signal point against all background; right, the Asimov "
        "significance of one point with the background uncertainty above, by a cut on the score chosen on the "
        "validation events and counted on the test events at the luminosity and cross sections of this run. Errors: "
        "bootstrap of the test events, which the classifiers share.",
        ("groups",),
        figures_performance.points,
    ),
    "variations": Figure(
        "Systematic variations",
        "Change of the AUC, and of the weighted yields of signal and background, when the test events are varied; open "
        "symbols: above the cut on the score that keeps this share of the nominal signal. Error bars: statistical, of "
        "the difference between the same events. The classifier is the nominal one.",
        ("variations",),
        variations.draw,
    ),
    "waterfall": Figure(
        "From the baseline to the score, object by object",
        "Read from top to bottom: the mean score when every object is replaced by objects of baseline events, then "
        "what each object adds (red) or takes away (blue), then the mean score of the process. Weighted means over all "
        "explained events of the process (an absent object counts 0), so that the bars add up; error bars: standard "
        "error over the events.",
        ("objects",),
        figures_objects.waterfall,
    ),
    "features": Figure(
        "Features of the objects",
        "Weighted mean |attribution| of every feature of every object, from the gradient method; empty where the "
        "object has no such feature. For integrated gradients φ is counted from the lepton, whose own φ therefore gets "
        "none: only differences of azimuth reach the network.",
        ("features",),
        figures_objects.features,
    ),
    "pairs": Figure(
        "Pairs of objects",
        "Interaction I<sub>ij</sub>: what two objects add together beyond what they add one by one, measured by "
        "replacing them. Above: mean size; below: mean with sign (red: the pair speaks for signal). Weighted means "
        "over the events that have both objects.",
        ("pairs",),
        figures_objects.pairs,
    ),
    "faith": Figure(
        "Objects and pairs that add up",
        "Faith-Shap values of order two (arXiv:2203.00870): on the diagonal what each object adds alone, below what "
        "each pair adds beyond. Their sum is the score minus the baseline score; red speaks for signal. Weighted means "
        "over the events that have the object, or both.",
        ("faith",),
        explained.faith,
    ),
    "pair_profiles": Figure(
        "Do pairs follow the masses they carry?",
        "Weighted mean interaction of a pair in bins of the mass it carries, within one process; error bars: standard "
        "error of the mean. The points of the processes are shifted a little sideways. The legend gives the weighted "
        "rank correlation with its bootstrap error; it sees a steady rise or fall, not a peak.",
        ("pairs",),
        figures_objects.pair_profiles,
    ),
    "links": Figure(
        "Which observables do the attributions follow?",
        "For each observable: the summed attribution of the objects it is made of, averaged in bins of the observable "
        "inside each process; the bar is the spread of these averages (root mean square over the processes), with its "
        "bootstrap error. Orange: what the observable shuffled inside each process stays below 95 times out of 100. "
        "Grey bars do not exceed it. A link is a correlation: observables share objects.",
        ("links",),
        figures_objects.links,
    ),
    "response": Figure(
        "Response of the score",
        "Mean score when the observable is set to a value by moving one object (line; band: standard error over the "
        "events), beside the events as they are (points; bins of fewer than five events are left out) "
        "and the same experiment on an untrained model (dashed). Below: share of the events that can be moved there; "
        "the mean is over these. Where line and points differ, events at different values of the observable differ in "
        "other ways too.",
        ("responses",),
        figures_objects.responses,
    ),
    "methods": Figure(
        "Other methods",
        "Weighted means over the explained events of each process. Objects whose values add up: from the mean score "
        "of the replacements to the mean score of the events, as above. Features and pairs: mean size, for pairs "
        "beside an untrained model where the method has no error. Else bars: mean with its standard error over the "
        "events, red for signal. Only what has a small number in the table of completeness adds up to the score.",
        ("others",),
        explained.other_methods,
    ),
    "edges": Figure(
        "Pairs by layer and head",
        "Weighted mean size over all explained events that have both objects, for each layer and head of the "
        "attention.",
        ("edges",),
        explained.edges,
    ),
    "importance": Figure(
        "What the classifier loses without a group of features",
        "Change of the weighted AUC, and of the expected significance, when the features of a group are exchanged "
        "between the events (CSV: which features); the other features stay, so that events become impossible ones. "
        "Error bars: paired bootstrap of the events and spread of the repeats.",
        ("importances",),
        explained.importances,
    ),
    "usage": Figure(
        "What the trees use and what the network uses",
        "Left: Shapley values of the observables in gradient-boosted trees, and in trees that imitate the network’s "
        "score. Right: the same game of objects as above, played by the network and by the trees, whose observables "
        "follow the objects that are replaced: Shapley values of the objects, interactions of their pairs. Each is the "
        "share of the mean size, both classes of equal weight. Error bars: bootstrap of the events. Crosses: an "
        "untrained network.",
        ("usage",),
        closure.draw_usage,
    ),
    "means": Figure(
        "Mean attributions with their errors",
        "Weighted mean attribution of each object in all explained events of a process, and in regions with at least "
        "five of them. Thin bar: statistical error, of events and replacements. Wide bar: all errors that the figure "
        "names, in quadrature: the spread of other seeds of the training (<code>hepx validate RUN --beside</code>) and "
        "the shifts under the variations of the config, upward and downward ones apart. Ticks: the shifted means.",
        ("means",),
        closure.draw_means,
    ),
    "attention": Figure(
        "Attention",
        "Mean attention weight per head: the object in a row looks at that in a column, for every process; below, "
        "for an untrained network of the same settings and for one trained on shuffled labels (mean of the processes). "
        "Right: size of the pair interaction, from an intervention (own colour scale). Weighted means over the events "
        "that have both objects.",
        ("attention",),
        figures_network.attention,
    ),
    "carried": Figure(
        "What the attention carries",
        "Mean length ‖A<sub>ij</sub> W<sub>o</sub> v<sub>j</sub>‖ of what the object in a row receives from that in a "
        "column (arXiv:2004.10102): a large weight on an object whose value vector is short carries little. In the "
        "unit of the states; below, the same in null networks (mean of the processes).",
        ("attention",),
        figures_network.carried,
    ),
    "rollout": Figure(
        "Attention through all layers",
        "Attention rollout (arXiv:2005.00928): the share that each object of the event (column) would have in the last "
        "state of that in a row, if attention and the residual path were all that happens. An observation, too: right, "
        "the same in null networks (mean of the processes).",
        ("attention",),
        figures_network.rollout,
    ),
    "heads": Figure(
        "What the heads do",
        "From left to right, for every head: how evenly it looks (1: at all objects alike); which share of the "
        "variance of its weights is one fixed map, the same in every event (grey: range of the null networks); what "
        "its choice is made of: fixed by the two object types, by type and kinematics, by the kinematics of both, or "
        "by the pair features (thin and pale: mean of the null networks); and the change of the AUC when its output "
        "is replaced by its mean, with paired bootstrap error (grey: range over the heads of the first untrained and "
        "the first shuffled network; they rank at random, so it has either sign).",
        ("attention",),
        figures_network.heads,
    ),
    "experts": Figure(
        "What the experts know and what they do",
        "Left: what the choice of expert tells about an object's type, the process, or an observable (at fixed "
        "object), beside the most that a null network's choice tells; error bars: 95 % interval of the difference. "
        "Right: change of the AUC when one expert is taken away and the rest chosen anew (circles), and when the "
        "experts of a layer trade places against their gates (squares); error bars: paired bootstrap. Only a point "
        "left of zero by three errors or more (a dozen are looked at) says that the classifier needs the expert.",
        ("experts",),
        figures_experts.experts,
    ),
    "routing": Figure(
        "Routing",
        "Mean gate of each expert for the objects of one type; rows add up to 1. Above the trained, below an untrained "
        "router of the same settings: only a difference between the two is learned.",
        ("experts",),
        figures_experts.routing,
    ),
    "routing_by": Figure(
        "Routing by object, process, score and mass point",
        "Mean gate of each expert, 0.553(8) for 0.553 ± 0.008 (standard error, where there is room); rows add up to 1, "
        "all processes count alike. Score: quarters of the events; mass point: of chargino and lightest supersymmetric "
        "particle, signal only, at most 24 of them. Right: an untrained network and one on shuffled labels. Only what "
        "differs from both was learned. The CSV has every row, and tables by class, region and observable.",
        ("experts",),
        figures_experts.routing_by,
    ),
    "likeness": Figure(
        "How alike the experts are",
        "Left and middle: linear CKA of the answers of two experts to the same objects, trained and untrained; 1 "
        "means the same up to rotation and scale. Right: how often two experts are used together, over what "
        "independent choices of this load would give.",
        ("experts",),
        figures_experts.likeness,
    ),
    "probes": Figure(
        "What can be read off the objects' states",
        "Share of the variance of an observable (of its logarithm, if in GeV) that a straight-line fit to the state "
        "of one object explains, on events it was not fitted on. Layer 0 is the input of the object alone: what "
        "rises from there was brought in by attention. Dashed: the same off an untrained network, which mixes the "
        "inputs too; only what exceeds it was learned. Error bars: bootstrap. Fits to shuffled values (CSV) explain "
        "nothing.",
        ("representation",),
        figures_states.probes,
    ),
    "erasures": Figure(
        "What the classifier loses without an observable",
        "Left: change of the AUC when no straight line can read the observable (its trend and its curvature) off the "
        "states any more, erased after the given layer; hatched: when an observable shuffled among the events is "
        "erased with the same effort. A probe only reads; this intervenes. Right: AUC if the layers from there on "
        "are left out and the network's own head reads the states; dashed: null networks. Errors: bootstrap.",
        ("representation",),
        figures_states.erasures,
    ),
    "audit_rates": Figure(
        "What is odd about suspicious training events",
        "Share of the training events in a category: among the suspicious ones (filled) and among all (open), by "
        "weight in the loss, with 95 % intervals; triangles: none found, upper limit. A category is a property of the "
        "event, known from the truth or from observables (table); it does not make an event wrong.",
        ("audit",),
        audit.draw_rates,
    ),
    "suspects": Figure(
        "The most suspicious training events",
        "Transverse momenta seen along the beam (true parent of a jet in brackets where known; "
        "E<sub>T</sub><sup>miss</sup> dashed).",
        ("displays",),
        audit.draw_suspects,
    ),
    "distilled": Figure(
        "What a smaller training set costs",
        "AUC minus that of the full training, when events are dropped from the training set and the model is trained "
        "again: at random, by the highest or by the lowest score. Left for as many epochs, which are fewer steps "
        "(grey: all events for as few steps); right for as many steps as the full training. Error bars: seeds and "
        "test events, which all share, so what matters is the difference to random (table).",
        ("distilled",),
        distill.draw_costs,
    ),
    "shapes": Figure(
        "What dropping does to the training set",
        "Distributions of one class in the full training set and in the reduced ones, by weight, at unit area, for the "
        "largest share that was dropped; below, their ratio. The last bin holds what lies beyond. Error bars: "
        "statistical, of events drawn from the full set.",
        ("distilled",),
        distill.draw_shapes,
    ),
    "dropped": Figure(
        "The first events to go",
        "The training events that each score drops first, with their value. Transverse momenta seen along the beam "
        "(true parent of a jet in brackets where known; E<sub>T</sub><sup>miss</sup> dashed).",
        ("distilled",),
        distill.draw_dropped,
    ),
    "own_influence": Figure(
        "Scores of the training events, each alone",
        "Distribution over the training events of each process, every event once. Self-influence: learning rate times "
        "squared norm of the gradient of the weighted loss, summed over the snapshots. A large value says that an "
        "event is unusual or heavy, not that it is wrong. The outermost bins hold what lies beyond them.",
        ("influences",),
        influence.own_figures,
    ),
    "influence": Figure(
        "Which training events pushed the queries towards signal",
        "Predicted change of the score of the queries (mean over them) by having trained on the events of a group, as "
        "a share of the sum of the sizes over all training events; right of zero towards signal. Error bars: √Σ of "
        "squares over the training events. Diamonds: what as many training events of any kind add up to.",
        ("influences",),
        influence.group_figures,
    ),
    "event": Figure(
        "Event display",
        "Left: transverse momenta seen along the beam, length of the arrows ∝ p<sub>T</sub> "
        "(E<sub>T</sub><sup>miss</sup> dashed; true parent of a jet in brackets where known). Right: attribution of "
        "each object in logits with its error over the baseline draws. One colour scale for all displays: red speaks "
        "for signal, blue for background.",
        ("objects",),
        figures_events.displays,
    ),
    "validation": Figure(
        "Do the objects named first carry the score?",
        "Weighted mean score of the judged test events against the share of an event’s objects that are its own; the "
        "others are replaced by those of background events. Solid: the objects with the largest attributions are put "
        "in first; dashed, read from right to left: they are taken out first. The area between the two is the larger "
        "the better the order; values at random (grey) leave none. Bands: bootstrap of the events.",
        ("validation",),
        validation.draw_curves,
    ),
    "agreement": Figure(
        "Do the methods agree?",
        "Mean over the judged test events of the rank correlation of the sizes of the objects’ attributions by two "
        "methods. Methods that agree may be wrong together.",
        ("validation",),
        validation.draw_agreement,
    ),
    "influence_validation": Figure(
        "Do scores of training events predict retrainings?",
        "Linear datamodelling score: the network is trained again on random halves of the training events; rank "
        "correlation over the halves of the sum of a score's influences with the score (log-odds) of an event that was "
        "not trained on, mean over such events. Filled: influences averaged over trainings. Error bars: bootstrap of "
        "the halves, for one model with the spread of the trainings. Dashed: the most that is possible with so many "
        "seeds per half.",
        ("influence_validation",),
        influence_validation.figure_of,
    ),
}
"""Name -> figure, in the order of the report. The name is that of the files."""

TABLES: dict[str, Numbers] = {
    "cutflow": Numbers((), derive.efficiency),
    "roc": Numbers(("scores",), derive.roc_curves),
    "scores": Numbers(("scores",), derive.score_distributions),
    "measures": Numbers((), performance.measure_table),
    "groups": Numbers(("groups",), performance.group_table),
    "calibration": Numbers(("calibrated",), performance.calibration_table),
    "variations": Numbers(("variations",), variations.variation_table),
    "varied_objects": Numbers(("varied",), variations.attribution_table),
    "completeness": Numbers(("explanations",), derive.completeness),
    "waterfall": Numbers(("objects",), lambda saved: derive.waterfall(_some(saved.objects))),
    "objects": Numbers(("objects",), lambda saved: derive.object_means(_some(saved.objects))),
    "features": Numbers(("features",), lambda saved: derive.feature_means(_some(saved.features))),
    "pairs": Numbers(("pairs",), lambda saved: derive.pair_means(_some(saved.pairs))),
    "pair_profiles": Numbers(("pairs",), lambda saved: derive.pair_profiles(_some(saved.pairs))),
    "rank_correlations": Numbers(("pairs",), lambda saved: derive.rank_correlations(_some(saved.pairs))),
    "importance": Numbers(("importances",), explained.importance_table),
    "usage": Numbers(("usage",), closure.usage_table),
    "mean_attributions": Numbers(("means",), closure.mean_table),
    "attention_pairs": Numbers(("attention",), inside_tables.attention_pairs),
    "heads": Numbers(("attention",), inside_tables.heads),
    "followed": Numbers(("attention",), inside_tables.followed),
    "interventions": Numbers(("experts",), inside_tables.interventions),
    "information": Numbers(("experts",), inside_tables.information),
    "routing": Numbers(("experts",), inside_tables.routing_tables),
    "expert_numbers": Numbers(("experts",), inside_tables.expert_numbers),
    "probes": Numbers(("representation",), inside_tables.probes),
    "erasures": Numbers(("representation",), inside_tables.erasures),
    "dictionaries": Numbers(("representation",), inside_tables.dictionaries),
    "sparsity": Numbers(("representation",), inside_tables.sparsity),
    "lens": Numbers(("representation",), inside_tables.lens),
    "audit_rates": Numbers(("audit",), audit.rate_table),
    "distilled": Numbers(("distilled",), distill.distill_table),
    "composition": Numbers(("distilled",), distill.composition_table),
    "shapes": Numbers(("distilled",), distill.shape_table),
    "dropped_means": Numbers(("distilled",), distill.mean_table),
    "influence_groups": Numbers(("influences",), influence.group_table),
    "influence_extremes": Numbers(("influences",), influence.extreme_table),
    "events": Numbers(("objects",), derive.displayed_events),
    "validation": Numbers(("validation",), validation.curve_table),
}
"""Name -> numbers that are in the report but in no file of another stage."""


def _some(value: T | None) -> T:
    assert value is not None
    return value


def draw_figures(saved: Saved) -> dict[str, list[Picture]]:
    """Draw what can be drawn into `figures/` (png and pdf); returns name -> pictures for the page."""
    pictures: dict[str, list[Picture]] = {name: [] for name in FIGURES}
    with style.style():
        for name, figure in track(FIGURES.items(), "figures", len(FIGURES)):
            if figure.available(saved):
                pictures[name] = [_write(saved, name, s, figure, c) for s, c in figure.draw(saved).items()]
    return pictures


def _write(saved: Saved, name: str, suffix: str, figure: Figure, canvas: Canvas) -> Picture:
    full = f"{name}_{suffix}" if suffix else name
    rendered = style.render(canvas)
    for kind, content in rendered.items():
        with files.atomic(saved.run / "figures" / f"{full}.{kind}") as temporary:
            temporary.write_bytes(content)
    width = round(100 * canvas.get_figwidth())
    part = re.sub(r"(\D)(\d)", r"\1 \2", suffix).replace("_", " ")
    title = f"{figure.title} ({part})" if part else figure.title
    return Picture(full, title, figure.caption, width, base64.b64encode(rendered["png"]).decode())


def write_tables(saved: Saved) -> dict[str, Table]:
    """Write what can be made into `tables/`; returns name -> table for the page."""
    tables = {
        name: entry.make(saved)
        for name, entry in TABLES.items()
        if all(getattr(saved, attribute) for attribute in entry.needs)
    }
    for name, table in tables.items():
        files.write_text(saved.run / "tables" / f"{name}.csv", table.to_csv())
    return tables
