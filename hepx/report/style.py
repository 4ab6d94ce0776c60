"""How the figures look: the ATLAS style of mplhep, one colour per process, physics labels, one way to draw a matrix.

The style borrows fonts and ticks; the stamp says hepx, because the results are not those of the collaboration.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import mplhep
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, NullLocator

from hepx.kinematics import OBSERVABLES
from hepx.report.saved import Saved
from hepx.report.tables import fixed
from hepx.results import Array

WIDTH = 9.0  # inches of a full-width figure; an inch is 100 px on the page
DPI = 150
SMALLEST_NUMBER = 6.5  # points
ENERGY = 13  # TeV, of every ROOT layout hepx reads
SIGNAL_COLORS = ("#d55e00", "#e69f00")  # Okabe and Ito (2008): told apart with any colour vision
BACKGROUND_COLORS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":")
DIVERGING, SEQUENTIAL, ATTENTION = "RdBu_r", "YlOrBr", "Greys"

_LOCK = threading.RLock()  # a figure of a page may be drawn as a notebook draws it
_OWN: dict[str, Any] = {
    "font.size": 11,
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "ytick.major.size": 7,
    "ytick.minor.size": 4,
    "xtick.major.size": 7,
    "xtick.minor.size": 4,
    "axes.labelpad": 5,
    "axes.unicode_minus": True,
    "axes.autolimit_mode": "data",
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.fontsize": 10.5,
    "legend.borderpad": 0.4,
    "mathtext.fallback": "stixsans",
    "pdf.fonttype": 3,
    "svg.fonttype": "path",
}
_SETTINGS: Any = {**mplhep.style.ATLAS, **_OWN}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this block. The settings of matplotlib are global, so one thread draws at a time."""
    with _LOCK, matplotlib.rc_context(_SETTINGS):
        yield


class _Shown(Canvas):
    """A figure that a notebook shows as it is, without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with style():
            self.savefig(buffer, format="png", dpi=72)
        return buffer.getvalue()


def canvas(width: float, height: float) -> Canvas:
    """An empty figure that no global state knows, inches."""
    figure = _Shown(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def render(figure: Canvas) -> dict[str, bytes]:
    """The figure as png and pdf files, without a date: the same numbers give the same file.

    `savefig` would draw once more for each file, to find the places anew.
    """
    figure.set_dpi(DPI)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    png, pdf = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})  # type: ignore[no-untyped-call]
    FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None})  # type: ignore[no-untyped-call]
    FigureCanvasAgg(figure)  # as `canvas` made it
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}


def stamp(figure: Canvas, saved: Saved, note: str = "") -> None:
    """Who made it, what it is, energy and luminosity: one line above the figure."""
    right = rf"$\sqrt{{s}}$ = {ENERGY} TeV, {saved.luminosity:g} fb$^{{-1}}$"
    text = rf"$\mathbf{{hepx}}$  Simulation   {right}"
    figure.suptitle(f"{text}   {note}" if note else text, x=0.01, ha="left", fontsize=11.5)


# Labels -----------------------------------------------------------------------------------------------------------

_SAMPLE_LABELS = {
    "ttbar": r"$t\bar{t}$",
    "singletop": "single top",
    "single_top": "single top",
    "wt": r"$Wt$",
    "wjets": r"$W$+jets",
    "zjets": r"$Z$+jets",
    "wh": r"$Wh$",
}
_OBJECT_LABELS = {"lepton": r"$\ell$", "met": r"$E_{\mathrm{T}}^{\mathrm{miss}}$", "jet": "jet", "bjet": r"$b$-jet"}
_FEATURE_LABELS = {
    "pt": r"$p_{\mathrm{T}}$",
    "eta": r"$\eta$",
    "phi": r"$\varphi$",
    "mass": r"$m$",
    "btag": r"$b$-tag",
    "met_significance": "signif.",
}
_PARENTS = {6: r"$t$", -6: r"$\bar{t}$", 23: r"$Z$", 24: r"$W^+$", -24: r"$W^-$", 25: r"$h$", 21: r"$g$"}
_HTML = (("\\mathrm", ""), ("\\Delta", "Δ"), ("\\varphi", "φ"), ("\\phi", "φ"), ("\\ell", "ℓ"), ("\\eta", "η"))


def sample_label(name: str) -> str:
    """A process as in a paper."""
    return _SAMPLE_LABELS.get(name.lower(), name.replace("_", " "))


def object_label(name: str) -> str:
    """A node slot (b1, j3, lepton, met) or node type as in a paper."""
    if name in _OBJECT_LABELS:
        return _OBJECT_LABELS[name]
    match = re.fullmatch(r"([a-z]+?)_?(\d+)", name)
    if not match:
        return name.replace("_", " ")
    letter = {"lepton": r"\ell"}.get(match[1], match[1] if len(match[1]) == 1 else rf"\mathrm{{{match[1]}}}")
    return rf"${letter}_{{{match[2]}}}$"


def feature_label(name: str) -> str:
    """A raw feature as in a paper."""
    return _FEATURE_LABELS.get(name, name.replace("_", " "))


def observable_label(name: str) -> str:
    """An observable as in a paper, words and T of the transverse plane upright."""
    if name not in OBSERVABLES:
        return name.replace("_", " ")
    label = OBSERVABLES[name].label
    return re.sub(r"([_^])\{(T|CT|miss|jet|b-jet)\}", r"\1{\\mathrm{\2}}", label)


def parent_label(pdg_id: int) -> str:
    """The true parent of a jet; empty when unknown."""
    if pdg_id == 0:
        return ""
    return _PARENTS.get(pdg_id, _PARENTS.get(abs(pdg_id), str(pdg_id)))


def with_unit(label: str, unit: str) -> str:
    """An axis label with its unit in square brackets."""
    return f"{label}  [{unit}]" if unit else label


def to_html(label: str) -> str:
    r"""The small part of mathtext that labels use, as HTML.

    >>> to_html(r"$E_{\mathrm{T}}^{\mathrm{miss}}$ significance")
    'E<sub>T</sub><sup>miss</sup> significance'
    """
    text = re.sub(r"\\mathrm\{([^{}]*)\}", r"\1", label)
    text = re.sub(r"\\bar\{([^{}]*)\}", "\\1\u0304", text)
    for latex, plain in _HTML:
        text = text.replace(latex, plain)
    text = re.sub(r"_\{([^{}]*)\}|_(\w)", lambda m: f"<sub>{m[1] or m[2]}</sub>", _nested(text))
    return re.sub(r"\^\{([^{}]*)\}|\^(\w)", lambda m: f"<sup>{m[1] or m[2]}</sup>", text).replace("$", "")


def to_plain(label: str) -> str:
    r"""A label for a terminal.

    >>> to_plain(r"$m_{bb}$")
    'm_bb'
    """
    return re.sub(r"</\w+>", "", to_html(label).replace("<sub>", "_").replace("<sup>", "^"))


def _nested(text: str) -> str:
    """b_1 inside a superscript: written flat, HTML cannot stack it legibly."""
    return re.sub(r"\^\{(\w)_(\w)\}", r"^{\1\2}", text)


# Colours ----------------------------------------------------------------------------------------------------------


def colors(saved: Saved) -> dict[str, str]:
    """One colour per process, the same in every figure."""
    return class_colors(saved.labels)


def class_colors(labels: Mapping[str, int]) -> dict[str, str]:
    """Process -> colour: warm for signal (label 1), cool for background."""
    used = {True: 0, False: 0}
    chosen = {}
    for name, label in labels.items():
        palette = SIGNAL_COLORS if label == 1 else BACKGROUND_COLORS
        chosen[name] = palette[used[label == 1] % len(palette)]
        used[label == 1] += 1
    return chosen


def markers(saved: Saved) -> dict[str, str]:
    """One marker per process, so that colour is never the only difference."""
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(saved.samples)}


def lines(saved: Saved) -> dict[str, str]:
    """One line style per process."""
    return {name: LINES[i % len(LINES)] for i, name in enumerate(saved.samples)}


def symmetric(values: Array) -> Normalize:
    """A colour scale symmetric about zero."""
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    return TwoSlopeNorm(0.0, -largest, largest)


def positive(values: Array) -> Normalize:
    """A colour scale from zero to the largest value."""
    return Normalize(0.0, float(np.nanmax(values, initial=0.0)) or 1.0)


# Drawing ----------------------------------------------------------------------------------------------------------


def matrix(
    axes: Axes,
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    norm: Normalize,
    colormap: str,
    cell: float,
    decimals: int = 2,
    errors: Array | None = None,
) -> AxesImage:
    """A table of numbers as colours, the numbers written in where a cell of `cell` inches has room for them; with one
    decimal more and their errors where it has room for both: 0.553(8) is 0.553 ± 0.008.

    NaN cells stay empty; an empty list of labels leaves the axis without.
    """
    image = axes.imshow(np.ma.masked_invalid(values), norm=norm, cmap=colormap, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(values.shape[1]), list(columns) or [""] * values.shape[1])
    axes.set_yticks(range(values.shape[0]), list(rows) or [""] * values.shape[0])
    axes.tick_params(which="both", length=0, pad=4)
    axes.minorticks_off()
    written = {place: fixed(float(value), decimals) for place, value in np.ndenumerate(values) if np.isfinite(value)}
    if errors is not None:
        both = {place: _with_error(float(values[place]), float(errors[place]), decimals + 1) for place in written}
        written = both if number_size(both.values(), cell) else written
    size = number_size(written.values(), cell)
    if size is not None:
        _write(axes, written, values, norm, image.get_cmap(), size)
    return image


def _with_error(value: float, error: float, decimals: int) -> str:
    return f"{fixed(value, decimals)}({10**decimals * error:.0f})"


def number_size(texts: Iterable[str], cell: float) -> float | None:
    """Font size of texts that fit into cells so many inches wide; None if it would not be legible.

    >>> number_size(["1.00"], 0.5), number_size(["1.00"], 0.1)
    (10.0, None)
    """
    size = 72 * cell * 0.88 / (0.56 * max(map(len, texts), default=1))
    return None if size < SMALLEST_NUMBER else min(size, 10.0)


def _write(
    axes: Axes,
    texts: Mapping[tuple[int, ...], str],
    values: Array,
    norm: Normalize,
    colormap: Colormap,
    fontsize: float,
) -> None:
    for (row, column), text in texts.items():
        dark = _luminance(colormap(norm(values[row, column]))) < 0.5
        color = "white" if dark else "black"
        label = axes.text(column, row, text, ha="center", va="center", color=color, fontsize=fontsize)
        label.set_in_layout(False)  # it lies inside the panel: nothing to measure


def _luminance(color: Any) -> float:
    red, green, blue = color[:3]
    return float(0.299 * red + 0.587 * green + 0.114 * blue)


def decimals_for(values: Array) -> int:
    """Decimals that show two digits of the largest number.

    >>> decimals_for(np.array([1.3, 0.2])), decimals_for(np.array([0.03]))
    (2, 3)
    """
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    return 2 if largest == 0 else int(np.clip(1 - np.floor(np.log10(largest)) + (largest >= 1), 0, 4))


def integer_ticks(axes: Axes) -> None:
    """Whole numbers only on the x axis."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_minor_locator(NullLocator())
