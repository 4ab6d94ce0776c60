"""Hidden truths: as many as asked for, where they should be, and nothing else changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hepx.errors import DataError
from hepx.graph import GraphBatch, Layout
from hepx.influence import studies
from hepx.models.graph_transformer import MoEGraphTransformerSettings
from hepx.models.inputs import MET_SIGNIFICANCE, PHI, PT
from hepx.planted import MECHANISMS, plant, toy_graphs
from hepx.train import TrainSettings


@pytest.fixture(scope="module")
def planted() -> GraphBatch:
    return plant(toy_graphs(600, 4), MECHANISMS["mt"], 5)


def test_flipped_labels(planted: GraphBatch) -> None:
    found = studies.flipped(planted, 0.1, 1)
    assert found.hidden.sum() == 60
    assert torch.equal(found.events.y != planted.y, found.hidden)
    assert torch.equal(found.events.x, planted.x)
    assert not torch.equal(found.hidden, studies.flipped(planted, 0.1, 2).hidden)


def test_miscalibrated_jets_take_the_missing_momentum_along(planted: GraphBatch) -> None:
    """5 % more in the jets; the vector sum of jets and missing momentum stays; lepton and signal are as they were."""
    found = studies.miscalibrated(planted, 0.1, 1)
    assert found.hidden.sum() == round(0.1 * int((planted.y == 0).sum()))
    assert not (found.hidden & (planted.y == 1)).any()
    assert torch.equal(found.events.x[~found.hidden], planted.x[~found.hidden])
    before, after = planted.x[found.hidden], found.events.x[found.hidden]
    slots = planted.layout.slots
    jets, met, lepton = [slots.index(s) for s in ("b1", "b2", "j3")], slots.index("met"), slots.index("lepton")
    assert torch.allclose(after[:, jets, PT], 1.05 * before[:, jets, PT])
    sums = [torch.polar(x[:, [*jets, met], PT], x[:, [*jets, met], PHI]).sum(1) for x in (before, after)]
    assert torch.allclose(sums[0], sums[1], atol=1e-3)
    assert torch.equal(after[:, lepton], before[:, lepton])
    significance = after[:, met, MET_SIGNIFICANCE] / before[:, met, MET_SIGNIFICANCE]
    assert torch.allclose(significance, after[:, met, PT] / before[:, met, PT], rtol=1e-4)


def test_a_jet_that_is_two_nodes_counts_once(planted: GraphBatch) -> None:
    """Declared the same object as b1, j3 takes nothing more from the missing momentum."""
    both = planted[planted.mask.all(1)]
    index = both.object_index.clone()
    index[:, both.layout.slots.index("j3")] = index[:, both.layout.slots.index("b1")]
    met = both.layout.slots.index("met")
    once = studies.scaled_jets(replace(both, object_index=index), 1.05)[:, met]
    without = both.mask.clone()
    without[:, both.layout.slots.index("j3")] = False
    assert torch.allclose(once, studies.scaled_jets(replace(both, mask=without), 1.05)[:, met], rtol=1e-5)
    assert not torch.allclose(once, studies.scaled_jets(both, 1.05)[:, met], rtol=1e-3)


def with_points(graphs: GraphBatch, points: list[tuple[float, float]]) -> GraphBatch:
    layout = graphs.layout
    names = (*layout.observables, *studies.POINTS)
    values = torch.tensor(points, dtype=torch.float64)[torch.arange(len(graphs)) % len(points)]
    values[graphs.y == 0] = torch.nan
    more = Layout.from_dict(layout.to_dict() | {"observables": names, "observable_units": ["GeV"] * len(names)})
    return replace(graphs, observables=torch.cat([graphs.observables, values], 1), layout=more)


def test_wrong_mass_point_is_hidden_in_the_signal(planted: GraphBatch) -> None:
    pool = with_points(planted, [(200, 50), (200, 50), (300, 50), (700, 0)])
    pool = replace(pool, weight=torch.where(pool.observable("mass_chargino") == 700, 4.0, 1.0).double())
    found = studies.wrong_mass(pool, 200, 0.1, 1)
    assert found is not None
    mass = found.events.observable("mass_chargino")
    assert len(found.events) == 200
    assert (found.events.y == 1).sum() == 100
    assert set(mass[found.hidden].tolist()) == {700.0}
    assert found.hidden.sum() == 10
    assert set(mass[found.among & ~found.hidden].tolist()) == {200.0}
    assert len(set(found.events.event_id.tolist())) == 200
    assert (found.events.weight == 1).all(), "the weight must not tell"
    assert studies.wrong_mass(with_points(planted, [(200, 50)]), 200, 0.1, 1) is None


def test_twins_are_near_copies_in_place_of_others(planted: GraphBatch) -> None:
    events, queries = planted[:500], planted[500:520]
    found, place = studies.with_twins(events, queries, 1)
    assert len(found) == 500
    assert torch.equal(found.y[place], queries.y)
    rest = torch.ones(500, dtype=torch.bool)
    rest[place] = False
    assert torch.equal(found.x[rest], events.x[rest])
    ratio = (found.x[place][..., PT] / queries.x[..., PT])[queries.mask]
    assert 0.005 < float(ratio.std()) < 0.02
    assert float((ratio - 1).abs().max()) < 0.06
    assert torch.equal(found.mask[place], queries.mask)
    assert (found.x[place][~queries.mask] == 0).all()


def test_studies(planted: GraphBatch) -> None:
    train = TrainSettings(epochs=2)
    study = studies.planted_study("mix", 300, 50, train, 1)
    assert (len(study.events), len(study.queries)) == (300, 50)
    assert not set(study.events.event_id.tolist()) & set(study.queries.event_id.tolist())
    small = studies.stand_in(MoEGraphTransformerSettings(num_layers=3, pooling="mean"))
    assert small == MoEGraphTransformerSettings(
        num_layers=3, pooling="mean", dim=16, expert_dim=8, num_experts=4, dropout=0.0
    )
    run = studies.run_study("run", small, train, (planted[:400], planted[400:]), 200, 50, 1)
    assert set(run.queries.event_id.tolist()) <= set(planted[400:].event_id.tolist())
    assert np.ptp(run.events.event_id.numpy()) > 300, "drawn from all, not the first ones"
    with pytest.raises(DataError, match="needs 500 events of the run, but there are 400"):
        studies.run_study("run", small, train, (planted[:400], planted[400:]), 500, 50, 1)
