"""Facts about the files in data/: what README.md promises, and the physics that a reader may rely on."""

from __future__ import annotations

import re
from pathlib import Path

import awkward as ak
import numpy as np
import numpy.typing as npt
import pytest
import uproot
import vector

from hepx.files import sha256
from hepx.simulate import PROCESSES

DATA = Path(__file__).parent.parent / "data"
NAMES = ("signal", "ttbar", "singletop")
BEAUTY, HIGGS, TOP = 5, 25, 6

# channelNumber: (events that pass the selection and would have passed the generator filters, hard processes tried) of
# an independent generation with the filters only looking on (another seed). One selected event stands for 0.627.
UNFILTERED = {
    900_000: (620, 12_000),
    900_002: (1396, 12_000),
    900_006: (2416, 12_000),
    900_100: (596, 120_000),
    900_200: (212, 120_000),
    900_201: (226, 28_000),
}


@pytest.fixture(scope="module")
def sample() -> dict[str, ak.Array]:
    return {name: uproot.open(DATA / f"{name}.root")["analysis"].arrays() for name in NAMES}


def b_jets(events: ak.Array) -> ak.Array:
    """The two tagged jets `[B, 2]` as Lorentz vectors with their truth."""
    jets = vector.zip({"pt": events.jet_pt, "eta": events.jet_eta, "phi": events.jet_phi, "E": events.jet_e})
    jets = ak.with_field(ak.with_field(jets, events.jet_truthflav, "flavour"), events.jet_truth_parent, "parent")
    return jets[events.jet_btag_quantile >= 3]


def mbb(events: ak.Array) -> npt.NDArray[np.float64]:
    """Invariant mass of the tagged jets (GeV)."""
    jets = b_jets(events)
    return ak.to_numpy((jets[:, 0] + jets[:, 1]).mass)


def mct(events: ak.Array) -> npt.NDArray[np.float64]:
    """Contransverse mass of the tagged jets, massless (GeV): arXiv:0802.2879."""
    first, second = b_jets(events)[:, 0], b_jets(events)[:, 1]
    return ak.to_numpy(np.sqrt(2 * first.pt * second.pt * (1 + np.cos(first.deltaphi(second)))))


def core(values: npt.NDArray[np.float64]) -> float:
    """Middle of the half of the values that lies closest together: the peak, whatever the tails do."""
    ordered = np.sort(values)
    half = len(ordered) // 2
    start = int(np.argmin(ordered[half:] - ordered[: len(ordered) - half]))
    return float(ordered[start] + ordered[start + half]) / 2


def test_the_files_are_those_of_the_readme() -> None:
    promised = dict(re.findall(r"\| `(\w+\.root)` \|.*`([0-9a-f]{64})`", (DATA / "README.md").read_text()))
    assert promised == {path.name: sha256(path) for path in DATA.glob("*.root")}
    assert set(promised) == {f"{name}.root" for name in NAMES}


def test_the_sample_is_small_in_bytes_and_large_enough_to_train_on(sample: dict[str, ak.Array]) -> None:
    assert sum(path.stat().st_size for path in DATA.glob("*.root")) < 8e6
    for name, least in (("signal", 8000), ("ttbar", 8000), ("singletop", 2000)):
        assert len(sample[name]) >= least


def test_event_numbers_are_unique_and_channels_mixed(sample: dict[str, ak.Array]) -> None:
    for events in sample.values():
        assert len(np.unique(events.eventNumber)) == len(events)
        channels, counts = np.unique(events.channelNumber, return_counts=True)
        _, in_first_half = np.unique(events.channelNumber[: len(events) // 2], return_counts=True)
        assert len(in_first_half) == len(channels)
        # A fair half: 5 sigma of the binomial.
        assert np.all(np.abs(in_first_half - counts / 2) < 2.5 * np.sqrt(counts))


def test_the_mass_points_are_equally_frequent_and_up_to_500_gev(sample: dict[str, ak.Array]) -> None:
    events = sample["signal"]
    masses = np.stack([ak.to_numpy(events[name]) for name in ("susy_mC1N2", "susy_mN1")], axis=1)
    points, counts = np.unique(masses, axis=0, return_counts=True)
    assert points.tolist() == sorted(list(channel.masses or ()) for channel in PROCESSES["signal"].channels)
    assert points[:, 0].max() <= 500
    assert np.ptp(counts) <= 1
    assert not ak.any(sample["ttbar"].susy_mC1N2)


def test_every_event_passes_the_preselection_and_is_finite(sample: dict[str, ak.Array]) -> None:
    for events in sample.values():
        assert ak.all(events.met > 100)
        assert ak.all(events.lep_n == 1)
        assert set(np.unique(events.jet_n)) == {2, 3}
        assert ak.all(ak.num(b_jets(events)) == 2)
        assert all(np.all(np.isfinite(ak.to_numpy(ak.flatten(events[name], axis=None)))) for name in events.fields)


def test_mbb_peaks_at_the_higgs_in_the_signal_only(sample: dict[str, ak.Array]) -> None:
    # Below 125 GeV, because neutrinos and muons of b decays are not in the jets.
    def near_peak(name: str) -> float:
        return float(np.mean(np.abs(mbb(sample[name]) - 117) < 20))

    assert core(mbb(sample["signal"])) == pytest.approx(117, abs=10)
    assert near_peak("signal") > 0.6
    assert near_peak("ttbar") < 0.3
    assert near_peak("singletop") < 0.3


def test_mct_has_its_end_point_in_ttbar_and_a_tail_in_the_signal(sample: dict[str, ak.Array]) -> None:
    # Two b quarks from two tops: m_CT < (m_t^2 - m_W^2) / m_t = 135 GeV, up to resolution and wrong tags.
    tail = {name: float(np.mean(mct(sample[name]) > 180)) for name in NAMES}
    assert tail["ttbar"] < 0.05
    assert tail["signal"] > 5 * tail["ttbar"]


def test_truth_flavour_and_parent_of_the_tagged_jets(sample: dict[str, ak.Array]) -> None:
    def both_b(name: str) -> float:
        return float(ak.mean(ak.all(b_jets(sample[name]).flavour == BEAUTY, axis=1)))

    def b_from(name: str, parent: int) -> float:
        jets = b_jets(sample[name])
        return float(ak.mean(jets.parent[jets.flavour == BEAUTY] == parent))

    assert both_b("signal") > 0.95
    assert both_b("ttbar") > 0.85
    assert b_from("signal", HIGGS) > 0.95
    assert b_from("ttbar", TOP) > 0.9
    # One b from the top, the other from the shower (t-channel) or the W* (s-channel).
    assert 0.4 < b_from("singletop", TOP) < 0.65
    assert b_from("ttbar", HIGGS) == b_from("singletop", HIGGS) == b_from("signal", TOP) == 0


def test_weights_add_up_to_cross_section_times_acceptance(sample: dict[str, ak.Array]) -> None:
    luminosity = 139e3
    channels = {channel.number: channel for process in PROCESSES.values() for channel in process.channels}
    events = ak.concatenate([sample[name] for name in NAMES])
    weight = luminosity * events.xsec * events.kfac * events.filteff * events.mcWeight / events.sum_of_weights
    for number, (selected, tried) in UNFILTERED.items():
        of_channel = events.channelNumber == number
        produced = luminosity * channels[number].xsec * channels[number].filteff
        acceptance, expected = float(ak.sum(weight[of_channel])) / produced, 0.66 * 0.95 * selected / tried
        sigma = expected * np.sqrt(1 / selected + 1 / int(ak.sum(of_channel)))
        assert abs(acceptance - expected) < 3 * sigma, channels[number]
    assert abs(2 * acceptance - expected) > 3 * sigma  # negative control: a factor of two would show


def test_phi_has_no_preferred_direction(sample: dict[str, ak.Array]) -> None:
    for events in sample.values():
        for phi in (events.met_phi, events.lep_phi[:, 0], events.jet_phi[:, 0]):
            # The mean unit vector of n random directions has a length of about 1/sqrt(n).
            assert abs(np.mean(np.exp(1j * ak.to_numpy(phi)))) < 3.5 / np.sqrt(len(events))
