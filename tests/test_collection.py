"""Flat columns against the same operations on nested lists in awkward and vector."""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import pytest
import vector

from hepx import kinematics
from hepx.collection import Collection, join

NUM_EVENTS = 400
NAMES = ("pt", "eta", "phi", "mass")


def make(seed: int, most: int = 5) -> Collection:
    """0 to `most` objects in each event, not sorted, some of equal pt and some of negative mass."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, most + 1, NUM_EVENTS))])
    number = offsets[-1]
    fields = {
        "pt": rng.integers(20, 60, number).astype(float),
        "eta": rng.normal(0, 1.2, number),
        "phi": rng.uniform(-np.pi, np.pi, number),
        "mass": rng.uniform(-1, 10, number),
    }
    return Collection({**fields, "flavour": rng.choice([11.0, 13.0], number)}, offsets)


@pytest.fixture(scope="module")
def objects() -> Collection:
    return make(1)


def same(found: Collection, wanted: ak.Array) -> None:
    for name in wanted.fields:
        assert ak.array_equal(ak.without_parameters(found.momenta()[name]), ak.without_parameters(wanted[name]))


def test_momenta_are_those_of_vector(objects: Collection) -> None:
    nested = objects.momenta()
    assert ak.num(nested).to_list() == objects.counts.tolist()
    assert ak.flatten(nested.px).to_numpy() == pytest.approx(objects["pt"] * np.cos(objects["phi"]))


def test_choosing_objects_and_events(objects: Collection) -> None:
    nested, high = objects.momenta(), objects["pt"] > 40
    same(objects.where(high), nested[nested.pt > 40])
    assert objects.where(objects["pt"] > 0) is objects
    positions = np.random.default_rng(2).permutation(NUM_EVENTS)[:50]
    mask = np.isin(np.arange(NUM_EVENTS), positions)
    for index in (slice(10, 60), mask, positions, positions[:0]):
        same(objects.events(index), nested[index])


def test_order_by_pt_is_stable(objects: Collection) -> None:
    nested = objects.momenta()
    order = ak.argsort(nested.pt, axis=1, ascending=False, stable=True)
    same(objects.by_falling_pt(), nested[order])
    ordered = objects.by_falling_pt()
    assert ordered.by_falling_pt() is ordered
    assert not ak.array_equal(objects.momenta().pt, ordered.momenta().pt)  # negative control: there is something to do


def test_join_puts_part_after_part(objects: Collection) -> None:
    other = make(7, most=3).without("flavour")
    joined = join([objects, other, objects])
    wanted = ak.concatenate([objects.momenta().pt, other.momenta().pt, objects.momenta().pt], axis=1)
    assert ak.array_equal(joined.momenta().pt, wanted)
    assert "flavour" not in joined


def test_sums_places_and_least(objects: Collection) -> None:
    nested = objects.momenta()
    np.testing.assert_allclose(objects.total(objects["pt"]), ak.sum(nested.pt, axis=1))
    for rank in range(7):
        wanted = ak.fill_none(ak.pad_none(nested.eta, rank + 1, axis=1)[:, rank], np.nan)
        np.testing.assert_array_equal(objects.take(objects.place(rank), "eta")[0], wanted)
    values = np.where(objects["mass"] < 0, np.nan, objects["pt"])  # equal values, and some that are no number
    jagged = ak.unflatten(values, objects.counts)
    wanted = ak.argmin(ak.where(np.isnan(jagged), np.inf, jagged), axis=1)
    some = ak.to_numpy(ak.fill_none(ak.any(~np.isnan(jagged), axis=1), False))
    found = objects.least(values)
    np.testing.assert_array_equal(found[~some], -1)
    np.testing.assert_array_equal((found - objects.offsets[:-1])[some], ak.to_numpy(ak.fill_none(wanted, -1))[some])


def test_no_event_and_no_object() -> None:
    for num_events in (0, 3):
        empty = Collection(dict.fromkeys(NAMES, np.zeros(0)), np.zeros(num_events + 1, dtype=np.int64))
        assert empty.by_falling_pt() is empty
        assert len(empty.total(empty["pt"])) == len(empty.least(empty["pt"])) == len(empty.momenta()) == num_events
        assert np.isnan(empty.take(empty.place(0), "pt")[0]).all()
        assert join([empty, empty]).num_events == empty.events(slice(None)).num_events == num_events


def vector_observables(objects: dict[str, Any]) -> dict[str, Any]:
    """Oracle: the observables on nested lists, in vector's own words."""
    b1, b2, lepton = (
        ak.pad_none(objects[name], 2, axis=1)[:, rank] for name, rank in (("bjet", 0), ("bjet", 1), ("lepton", 0))
    )
    met, bjets = objects["met"], objects["bjet"]
    near = bjets[ak.argmin(lepton.deltaR(bjets), axis=1, keepdims=True)]
    return {
        "mbb": (b1 + b2).mass,
        "pt_bb": (b1 + b2).pt,
        "mt": np.sqrt(2 * lepton.pt * met.pt * (1 - np.cos(lepton.deltaphi(met)))),
        "mct": np.sqrt(2 * b1.pt * b2.pt * (1 + np.cos(b1.deltaphi(b2)))),
        "met": met.pt,
        "met_significance": met["significance"],
        "delta_r_bb": b1.deltaR(b2),
        "delta_phi_bb": np.abs(b1.deltaphi(b2)),
        "mlb": (lepton + ak.firsts(near)).mass,
        "ht": ak.sum(objects["jet"].pt, axis=1),
        "n_jet": ak.num(objects["jet"]),
        "lepton_pt": lepton.pt,
        "b1_pt": b1.pt,
        "b2_pt": b2.pt,
        "delta_phi_lepton_met": np.abs(lepton.deltaphi(met)),
        "n_bjet": ak.num(bjets),
        "n_lepton": ak.num(objects["lepton"]),
    }


def test_observables_on_flat_columns_are_those_of_vector() -> None:
    jets, leptons = make(3, most=6).by_falling_pt(), make(4, most=2).by_falling_pt()
    met = make(5, most=1)
    every = np.arange(NUM_EVENTS + 1)
    rng = np.random.default_rng(6)
    fields = {"pt": rng.uniform(0, 200, NUM_EVENTS), "phi": rng.uniform(-np.pi, np.pi, NUM_EVENTS)}
    fields |= {"eta": np.zeros(NUM_EVENTS), "mass": np.zeros(NUM_EVENTS), "significance": rng.random(NUM_EVENTS)}
    met = Collection(fields, every)
    collections = {"jet": jets, "bjet": jets.where(jets["mass"] > 3), "lepton": leptons, "met": met}
    nested = {name: one.momenta() for name, one in collections.items()} | {"met": met.momenta()[:, 0]}
    found, wanted = kinematics.observables(collections), vector_observables(nested)
    assert set(found) == set(wanted) == set(kinematics.OBSERVABLES)
    for name, values in wanted.items():
        oracle = ak.to_numpy(ak.fill_none(ak.values_astype(values, np.float64), np.nan))
        np.testing.assert_allclose(found[name], oracle, rtol=1e-9, atol=1e-9, err_msg=name)
        assert np.isnan(found[name]).any() == (name not in EVERYWHERE)
    assert not np.allclose(found["mlb"], found["mbb"], equal_nan=True)  # negative control


EVERYWHERE = {"met", "met_significance", "ht", "n_jet", "n_bjet", "n_lepton"}  # defined in every event


def test_wrapped_angles() -> None:
    phi = np.array([0.0, 3.5, -3.5, np.pi, -np.pi, 20.0, -20.0, np.nan])
    found = kinematics.wrap(phi)
    np.testing.assert_allclose(np.exp(1j * found[:-1]), np.exp(1j * phi[:-1]), atol=1e-14)
    assert ((found[:-1] >= -np.pi) & (found[:-1] < np.pi)).all()
    assert np.isnan(found[-1])
    inside = np.linspace(-3.1, 3.1, 101)
    one, other = vector.arr({"rho": inside * 0 + 1, "phi": inside}), vector.arr({"rho": inside * 0 + 1, "phi": -inside})
    np.testing.assert_array_equal(kinematics.wrap(inside - -inside), one.deltaphi(other))
