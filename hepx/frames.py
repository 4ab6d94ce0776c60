"""Results as pandas tables, one row per event, to be joined with other tables by event number. pandas stays here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hepx.errors import DataError
from hepx.results import Array, EventResult, Explanation, GroupExplanation, Importance, ResponseCurve, Result
from hepx.results_influence import Influence


def to_pandas(result: Result) -> Any:
    """A pandas.DataFrame, see `Result.to_pandas`; DataError if pandas is not installed."""
    pandas = _pandas()
    if isinstance(result, EventResult):
        index = pandas.Index(result.events.event_id, name="event_id")
        frame = pandas.DataFrame(_of_events(result), index=index)
        frame.attrs |= {"method": result.provenance.method, "unit": result.unit}
        return frame
    if isinstance(result, Importance):
        return pandas.DataFrame(_of_groups(result), index=pandas.Index(result.players, name="group"))
    assert isinstance(result, ResponseCurve)
    return pandas.DataFrame(_of_points(result))


def _of_events(result: EventResult) -> dict[str, Array]:
    events = result.events
    columns: dict[str, Any] = {
        "sample": np.array(events.sample_names, dtype=object)[events.sample],
        "label": events.y,
        "weight": events.weight,
    }
    columns |= {name: events.observable(name) for name in events.observable_names}
    columns["score"] = result.score
    present, axes = _axes(result)
    for name, values in (("attribution", result.values), ("error", result.error)):
        columns |= _columns(name, values, present, axes)
    for name in ("baseline_score", "completeness_error"):
        values = getattr(result, name, None)
        columns |= {} if values is None else {name: values}
    joint = present if present.ndim == 2 else events.mask
    both, pairs = joint[:, :, None] & joint[:, None, :], axes[:1] * 2
    columns |= _columns("interaction", getattr(result, "interactions", None), both, pairs)
    faith = getattr(result, "faith", None)
    if faith is not None:
        columns |= _columns("faith", np.diagonal(faith, axis1=1, axis2=2), joint, axes[:1])
        columns |= _columns("faith", faith, both, pairs)
    return columns


def _of_groups(result: Importance) -> dict[str, Any]:
    columns = {name: getattr(result, name) for name in ("members", "delta_auc", "error", "delta_z", "delta_z_error")}
    return {name: values for name, values in columns.items() if values is not None}


def _of_points(result: ResponseCurve) -> dict[str, Any]:
    names, points = np.array(result.sample_names, dtype=object), result.points
    columns = {"sample": np.repeat(names, len(points)), result.observable: np.tile(points, len(names))}
    fields = ("mean", "error", "reached", "observed", "observed_error", "null")
    return columns | {name: getattr(result, name).ravel() for name in fields}


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
