"""Results as pandas tables, one row per event, to be joined with other tables by event number. pandas stays here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hepx.errors import DataError
from hepx.results import Array, EventResult, Explanation, GroupExplanation
from hepx.results_influence import Influence


def to_pandas(result: EventResult) -> Any:
    """A pandas.DataFrame [B rows], see `EventResult.to_pandas`; DataError if pandas is not installed."""
    pandas = _pandas()
    events = result.events
    columns: dict[str, Any] = {
        "sample": np.array(events.sample_names, dtype=object)[events.sample],
        "label": events.y,
        "weight": events.weight,
    }
    columns |= {name: events.observable(name) for name in events.observable_names}
    columns["score"] = result.score
    baseline_score = getattr(result, "baseline_score", None)
    if baseline_score is not None:
        columns["baseline_score"] = baseline_score
    present, axes = _axes(result)
    for name, values in (("attribution", result.values), ("error", result.error)):
        columns |= _columns(name, values, present, axes)
    players = axes[:1] * 2
    joint = present if present.ndim == 2 else result.events.mask
    both = joint[:, :, None] & joint[:, None, :]
    columns |= _columns("interaction", getattr(result, "interactions", None), both, players)
    return pandas.DataFrame(columns, index=pandas.Index(events.event_id, name="event_id"))


def training_events(result: Influence) -> Any:
    """A pandas.DataFrame [B rows], see `Influence.to_pandas`; DataError if pandas is not installed."""
    pandas, columns = _pandas(), result.columns()
    return pandas.DataFrame(columns, index=pandas.Index(columns.pop("event_id"), name="event_id"))


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise DataError("to_pandas() needs pandas, which is not installed: pip install 'hepx[notebook]'") from error
    return pandas


def _axes(result: EventResult) -> tuple[Array, tuple[tuple[str, ...], ...]]:
    """Where the values say something [B, …], and the names along their axes after the events."""
    events = result.events
    if isinstance(result, GroupExplanation):
        return np.ones_like(result.values, dtype=bool), (result.players,)
    if result.values.ndim == 2:
        return events.mask, (events.slots,)
    if isinstance(result, Explanation):
        used = (result.values != 0).any(0) | (events.x != 0).any(0)
        return events.mask[..., None] & used, (events.slots, events.features)
    return events.mask[:, :, None] & events.mask[:, None, :], (events.slots, events.slots)


def _columns(name: str, values: Array | None, present: Array, axes: tuple[tuple[str, ...], ...]) -> dict[str, Array]:
    """name_axis(_axis) -> column, without features that no object has; of symmetric values each pair once."""
    if values is None:
        return {}
    return {column: np.where(here, value, np.nan) for column, value, here in _each(name, values, present, axes)}


def _each(
    name: str, values: Array, present: Array, axes: tuple[tuple[str, ...], ...]
) -> Iterator[tuple[str, Array, Array]]:
    of_pairs = len(axes) == 2 and axes[0] == axes[1]
    for place in np.ndindex(values.shape[1:]):
        index = (slice(None), *place)
        wanted = place[0] < place[1] if of_pairs else len(axes) == 1 or present[index].any()
        if wanted:
            names = (axis[number] for axis, number in zip(axes, place, strict=True))
            yield "_".join([name, *names]), values[index], present[index]
