"""ATLAS Open Data: the catalogue (through atlasopenmagic), the files of some datasets, and a config for them.

The catalogue has cross-sections, file addresses and more, but neither sizes nor checksums of files: sizes come from
the server, checksums from a file index of the CERN Open Data portal or from a server that tells them.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hepx import files, remote
from hepx.config import write_yaml
from hepx.download import MEGABYTE, Checksum, Download, download
from hepx.errors import ConfigError, DataError, closest
from hepx.events import FACTORS
from hepx.remote import Url, locate
from hepx.schemas import load_schema

log = logging.getLogger(__name__)

RELEASE = "2025e-13tev-beta"
SCHEMAS = {"2020e-13tev": "atlas_open_2020", "2024r-pp": "physlite", "2025e-13tev-beta": "atlas_open_2025"}
LUMINOSITIES = {"2020e-13tev": 10.0, "2024r-pp": 36.1, "2025e-13tev-beta": 36.1}  # fb⁻¹, of the collision data released
HTTPS = re.compile(r"root://eospublic\.cern\.ch(:\d+)?/+")  # the same files are at https://opendata.cern.ch
CONNECTIONS = 8

Protocol = Literal["https", "root"]


@dataclass(frozen=True)
class Dataset:
    """A simulated sample (or `data`) of a release; what the catalogue does not say is None.

    xsec_pb: cross-section, pb; files: skim -> addresses, `noskim` for all events; filter_efficiency, kfactor,
    sum_of_weights (of all events that were generated): factors of the normalisation.
    """

    dsid: str
    name: str
    process: str
    generator: str
    description: str
    keywords: tuple[str, ...]
    xsec_pb: float | None
    filter_efficiency: float | None
    kfactor: float | None
    sum_of_weights: float | None
    num_events: int | None
    files: Mapping[str, tuple[str, ...]]


def catalogue(release: str, metadata: Path | None = None) -> dict[str, Dataset]:
    """All datasets of a release by their DSID, from the web service or from a JSON file that atlasopenmagic saved.

    Raises ConfigError if atlasopenmagic is not installed or does not know the release, DataError without an answer.
    """
    found = _ask_service(release) if metadata is None else _read_saved(release, metadata)
    return {key: _dataset(key, found[key]) for key in sorted(found) if key.isdigit() or key == "data"}


def _ask_service(release: str) -> dict[str, Any]:
    atom = _atlasopenmagic()
    if release not in atom.metadata.RELEASES_DESC:
        raise ConfigError(
            f"there is no release '{release}' of ATLAS Open Data; {closest(release, atom.metadata.RELEASES_DESC)}"
        )
    log.info("asking the catalogue for release %s; a large one takes a while", release)
    try:
        with redirect_stderr(io.StringIO()):  # its progress bar would also be in batch logs
            atom.set_release(release)
        return atom.get_all_metadata()
    except (OSError, ValueError, KeyError, TypeError) as error:  # requests' exceptions are OSErrors
        raise DataError(
            f"the catalogue of ATLAS Open Data at {atom.metadata.API_BASE_URL} gave no answer of use "
            f"({type(error).__name__}). Is there a network? Without one, save the catalogue elsewhere "
            "(atlasopenmagic.save_metadata('catalogue.json')) and give it: --metadata catalogue.json."
        ) from error


def _read_saved(release: str, path: Path) -> dict[str, Any]:
    atom = _atlasopenmagic()
    try:
        atom.read_metadata(str(path), release)
        return {key: dict(value) for key, value in atom.get_all_metadata().items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"'{path}' is not a catalogue that atlasopenmagic saved ({type(error).__name__}: {error}). Make one with "
            "atlasopenmagic.save_metadata('catalogue.json')."
        ) from error


def _atlasopenmagic() -> Any:
    try:
        import atlasopenmagic as atom
    except ImportError as error:
        raise ConfigError(
            f"hepx fetch needs the extra 'opendata' ({error}): in the hepx folder, pip install -e '.[opendata]'"
        ) from error
    logging.getLogger("atlasopenmagic").setLevel(logging.CRITICAL)  # failures are told here, in one sentence
    return atom


def _dataset(key: str, values: Mapping[str, Any]) -> Dataset:
    try:
        skims = {str(skim["skim_type"]): tuple(skim["file_list"] or ()) for skim in values.get("skims") or ()}
        every = {"noskim": tuple(values.get("file_list") or ()), **skims}
        return Dataset(
            dsid=key,
            name=str(values.get("physics_short") or key),
            process=str(values.get("process") or ""),
            generator=str(values.get("generator") or ""),
            description=str(values.get("description") or ""),
            keywords=tuple(str(word) for word in values.get("keywords") or ()),
            xsec_pb=_positive(values.get("cross_section_pb")),
            filter_efficiency=_positive(values.get("genFiltEff")),
            kfactor=_positive(values.get("kFactor")),
            sum_of_weights=_positive(values.get("sumOfWeights")),
            num_events=int(values["nEvents"]) if values.get("nEvents") else None,
            files={skim: addresses for skim, addresses in every.items() if addresses},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the catalogue says of dataset {key} what hepx does not understand ({type(error).__name__}: {error}). "
            "Update atlasopenmagic, or correct the file given as --metadata."
        ) from error


def _positive(value: Any) -> float | None:
    """A number, or None where the catalogue has none or one that cannot be."""
    return float(value) if value is not None and float(value) > 0 else None


def search(datasets: Mapping[str, Dataset], words: Iterable[str]) -> list[Dataset]:
    """The datasets that have every word in DSID, name, process, generator, description or keywords; capitals do not
    count."""
    wanted = [word.lower() for word in words]

    def text(one: Dataset) -> str:
        parts = (one.dsid, one.name, one.process, one.generator, one.description, *one.keywords)
        return "\n".join(parts).lower()

    return [one for one in datasets.values() if all(word in text(one) for word in wanted)]


def choose(datasets: Mapping[str, Dataset], wanted: Iterable[str]) -> list[Dataset]:
    """The datasets with these DSIDs or names, each once; ConfigError with near ones if there is none."""
    names = {one.name.lower(): one for one in datasets.values()}
    chosen: dict[str, Dataset] = {}
    for text in wanted:
        one = datasets.get(text) or names.get(text.lower())
        if one is None:
            near = closest(text, [*datasets, *(each.name for each in datasets.values())])
            raise ConfigError(
                f"there is no dataset '{text}' in this release; {near}. `hepx fetch --list {text}` searches."
            )
        chosen[one.dsid] = one
    return list(chosen.values())


def addresses(dataset: Dataset, skim: str, protocol: Protocol = "https", max_files: int | None = None) -> list[Url]:
    """Addresses of the files of a dataset in a skim; an empty skim means the only one there is."""
    skims = sorted(dataset.files)
    if not skims:
        raise DataError(f"dataset {dataset.dsid} ({dataset.name}) has no files in the catalogue. Choose another.")
    if not skim and len(skims) > 1:
        raise ConfigError(f"dataset {dataset.dsid} comes in several skims; choose one: --skim {' or '.join(skims)}.")
    chosen = skim or skims[0]
    if chosen not in dataset.files:
        raise ConfigError(f"dataset {dataset.dsid} has no skim '{chosen}'; {closest(chosen, skims)}.")
    texts = [
        text if protocol == "root" else HTTPS.sub("https://opendata.cern.ch/", text) for text in dataset.files[chosen]
    ]
    urls = [location for text in texts[:max_files] if isinstance(location := locate(text), Url)]
    if len(urls) < len(texts[:max_files]):
        raise DataError(f"the catalogue has a file of dataset {dataset.dsid} that is no address: {texts}.")
    return urls


def table(datasets: Sequence[Dataset], skim: str, sizes: Mapping[str, int] | None = None) -> list[str]:
    """The datasets as lines of text; `sizes` in bytes by DSID, where known."""
    header = ["DSID", "name", "process", "generator", "xsec_pb", "filter eff.", "k-factor", "events", "files", "size"]
    rows = [header] + [_row(one, skim, (sizes or {}).get(one.dsid)) for one in datasets]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    skims = sorted({name for one in datasets for name in one.files})
    return [*lines, f"datasets: {len(datasets)}; skims: {', '.join(skims) or 'none'}; - is not known"]


def _row(one: Dataset, skim: str, size: int | None) -> list[str]:
    def shown(value: float | None, form: str = "g") -> str:
        return "-" if value is None else format(value, form)

    counts = sorted({len(urls) for name, urls in one.files.items() if skim in ("", name)})
    return [
        one.dsid,
        one.name,
        _short(one.process),
        _short(one.generator),
        shown(one.xsec_pb, ".5g"),
        shown(one.filter_efficiency, ".4g"),
        shown(one.kfactor, ".4g"),
        shown(one.num_events),
        "–".join(str(count) for count in (counts[:1] + counts[1:][-1:])) or "none",
        "-" if size is None else f"{size / MEGABYTE:.1f} MB",
    ]


def _short(text: str, width: int = 40) -> str:
    return (text if len(text) <= width else text[: width - 1] + "…") or "-"


def total_sizes(datasets: Sequence[Dataset], skim: str, max_files: int | None = None) -> dict[str, int]:
    """Bytes of the files of each dataset, by DSID, as the server tells them; datasets without the skim are left out."""
    having = [one for one in datasets if skim in one.files or (not skim and len(one.files) == 1)]
    urls = {one.dsid: addresses(one, skim, max_files=max_files) for one in having}
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return {dsid: sum(pool.map(remote.size, some)) for dsid, some in urls.items()}


@dataclass(frozen=True)
class Order:
    """What to fetch and how to describe it in the config.

    signals: DSIDs (or names) with label 1, the others have 0; checksums: file name -> size and checksum, as
    `download.read_checksums` gives them; stream: write addresses of this kind into the config and fetch nothing.
    """

    datasets: tuple[Dataset, ...]
    release: str
    skim: str
    output: Path
    signals: frozenset[str]
    max_files: int | None = None
    config: Path | None = None
    schema: str = ""
    stream: Protocol | None = None
    checksums: Mapping[str, tuple[int | None, Checksum]] | None = None


def fetch(order: Order) -> list[str]:
    """Fetch the files of an order (unless it is to stream them) and write its config; returns what was done, as lines.

    The config is written only if there are signal and background; an existing one is never overwritten with another.
    """
    wanted = [one for dataset in order.datasets for one in _downloads(order, dataset)]
    text, target = "", order.config or order.output / "config.yaml"
    labels = {one.dsid in order.signals for one in order.datasets if one.dsid != "data"}
    if labels == {True, False}:
        text = config_text(order)
        _require_free(target, text)
    elif order.config or order.stream:
        raise ConfigError(
            "a config needs signal and background: say which datasets are signal, for example --signal "
            f"{order.datasets[0].dsid}, and fetch others beside them."
        )
    lines = []
    if order.stream is None:
        entries = download(wanted, order.output)
        megabytes = sum(entry.size for entry in entries.values()) / MEGABYTE
        unchecked = sum(entry.verified == "size" for entry in entries.values())
        lines.append(f"files: {len(entries)} in {order.output}, {megabytes:.1f} MB")
        if unchecked:
            lines.append(f"files of which only the size could be checked: {unchecked}; a file index helps: --checksums")
    if not text:
        return [*lines, "no config written: --signal DSID says which dataset is signal, the others are background"]
    files.write_text(target, text)
    return [*lines, f"config: {target}; look through it, then: hepx run {target}"]


def _downloads(order: Order, dataset: Dataset) -> list[Download]:
    known = order.checksums or {}
    wanted = []
    for url in addresses(dataset, order.skim, order.stream or "https", order.max_files):
        if url.scheme == "root" and order.stream is None:
            raise DataError(
                f"'{url}' has no https address, so it cannot be fetched; read it there (--stream root) or use xrdcp."
            )
        size, checksum = known.get(url.name, (None, None))
        wanted.append(Download(url, f"{dataset.dsid}/{url.name}", size, checksum))
    return wanted


def _require_free(target: Path, text: str) -> None:
    """Before anything is fetched: a config of the user's must not be in the way."""
    if target.exists() and target.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"'{target}' exists already and says something else; choose another --config, or move it away."
        )


def config_text(order: Order) -> str:
    """YAML text of a run on the datasets of an order: signal and background, their normalisation, a small model."""
    name = order.schema or SCHEMAS.get(order.release, "")
    if not name:
        raise ConfigError(
            f"hepx has no schema for the files of release '{order.release}'; give one with --schema (a name or a YAML "
            f"file). It knows those of: {', '.join(SCHEMAS)}."
        )
    per_event = isinstance(load_schema(name).normalization.xsec_pb, str)
    simulated = [one for one in order.datasets if one.dsid != "data"]
    samples = "\n".join(_sample_lines(order, one, per_event) for one in simulated)
    luminosity = LUMINOSITIES.get(order.release, 139.0)
    return TEMPLATE.format(
        release=order.release,
        skim=order.skim or "as released",
        run=_key(order.output.name) or "opendata",
        schema=name,
        luminosity=luminosity,
        samples=samples,
    )


def _sample_lines(order: Order, dataset: Dataset, per_event: bool) -> str:
    """The block of one sample, with the numbers of the catalogue where they make a whole."""
    every = addresses(dataset, order.skim)
    names = [_where(order, dataset, one) for one in _downloads(order, dataset)]
    values: dict[str, Any] = {"files": names, "label": int(dataset.dsid in order.signals)}
    comment = f"# {dataset.dsid}: {dataset.process or dataset.name}, {dataset.generator or 'generator not known'}"
    notes = [comment.replace("\n", " ")]
    known = {factor: value for factor in FACTORS if (value := getattr(dataset, factor)) is not None}
    missing = [factor for factor in FACTORS if factor not in known]
    if missing and per_event:  # the numbers in the files belong together (in 2020, xsec has the others in it)
        notes.append(f"# the catalogue lacks {', '.join(missing)}: the numbers in the files are used")
    else:
        values |= known
        notes += [f"# the catalogue lacks {factor}: fill it in" for factor in missing]
    notes += _scale(values, len(names), len(every))
    block = write_yaml({_key(dataset.name): values})
    return "\n".join(f"    {line}" for line in [*notes, *block.splitlines()])


def _where(order: Order, dataset: Dataset, one: Download) -> str:
    return str(one.url) if order.stream else str(order.output / one.name)


def _scale(values: dict[str, Any], num_files: int, num_every: int) -> list[str]:
    """With a part of the files, the sum of weights of that part, as far as it can be known."""
    if num_files == num_every:
        return []
    if "sum_of_weights" not in values:
        return [f"# {num_files} of {num_every} files: give sum_of_weights of that share, or the yield is too small"]
    whole = values["sum_of_weights"]
    values["sum_of_weights"] = whole * num_files / num_every
    return [
        f"# {num_files} of {num_every} files: sum_of_weights is their share of {whole:.10g}, as if all were equally big"
    ]


def _key(name: str) -> str:
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")


TEMPLATE = """\
# ATLAS Open Data, release {release}, skim: {skim}. Written by hepx fetch.
# It runs as it stands; every key is yours to change: first of all the selection, and the nodes that make sense with it.
name: {run:<26}# the run folder is runs/<name>
seed: 42                        # initial weights, order of events, donors, bootstrap
device: auto                    # auto: a GPU where there is one; cpu; cuda

data:
  schema: {schema:<22}# layout of the files
  luminosity: {luminosity:<18}# fb^-1; all yields are for this luminosity
  samples:                      # name: files, label (0 background, 1 signal), normalisation from the catalogue
{samples}
  select: "n_lepton >= 1 and n_jet >= 2"                  # on observables, GeV
  split: {{fractions: [0.6, 0.2, 0.2]}}                     # train, validation, test; by event number

graph:
  # The nodes, in this order, each object once; what an event does not have is left out.
  nodes: [{{type: bjet, max: 2}}, {{type: jet, max: 2}}, {{type: lepton, max: 2}}, {{type: met}}]

model:
  name: moe_graph_transformer
  features: [log_pt, eta, sin_dphi, cos_dphi, log_mass, btag, met_significance]
  pair_features: [ln_delta_r, ln_kt, ln_m2]
  dim: 64
  num_layers: 2
  num_heads: 4
  num_experts: 6                # independent networks per layer
  expert_dim: 32                # hidden width of one expert
  top_k: 2                      # experts used per node
  pair_bias: true               # pair features move the attention
  self_loops: true
  pooling: type                 # mean per node type, side by side
  dropout: 0.1

train:
  epochs: 24
  batch_size: 512
  lr: 1e-3
  weight_decay: 1e-2
  patience: 8                   # epochs without a better validation AUC
  weights: physics              # relative weights of processes inside a class; the classes count equally
  balance: loss_free            # keeps the experts evenly loaded by moving the choice, not the loss
  z_weight: 1e-3                # keeps router logits small

evaluate: {{signal_efficiencies: [0.3, 0.5, 0.7, 0.9], trees: true}}

explain:
  - {{method: shapley, baseline: background, draws: 32, events: 1000}}   # objects and pairs -> explain/shapley.npz
  - {{method: integrated_gradients, routing: fixed, draws: 4, steps: 256, events: 500}}   # features
"""
