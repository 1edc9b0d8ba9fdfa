"""Gross faults of simulated recordings: nearly all refused or flagged, nearly no good epoch; real ones stay clear."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import resample

from alignment.calibrate import surrogates
from alignment.pairs import read_targets
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.preprocess import check_signal, default_preprocess
from encoders.readers import read_epochs
from encoders.sensors import SensorLayout, standard_layout
from encoders.signal_faults import clipped_share, evenness, inspect_signal, line_share, neighbour_agreement
from encoders.simulate import BrainSimulator, SimulationConfig

LAYOUTS = {"eeg": "things_eeg2_63", "meg": "ctf275"}
TARGETS = Path(__file__).resolve().parents[1] / "generation" / "demo_data" / "targets.safetensors"
N = 100


@pytest.fixture(scope="module")
def good() -> dict[str, SignalEpochs]:
    """Single epochs of test scenes, which no threshold was set on; the simulated people are those of validation."""
    targets = read_targets(TARGETS)
    simulator = BrainSimulator(SimulationConfig(), 128, targets["train"].embeds, targets["train"].concepts)
    shown = targets["test"].embeds[:N]
    return {name: simulator.record(shown, modality=name, subject=1, seed=4242) for name in LAYOUTS}


def faults(epochs: SignalEpochs, modality: str) -> set[int]:
    """Send every epoch alone, as a request would; return those that are refused or flagged."""
    layout, config = standard_layout(LAYOUTS[modality]), default_preprocess(modality)  # type: ignore[arg-type]
    found = set()
    for index in range(epochs.n_epochs):
        one = epochs.select([index])
        try:
            check_signal(one, config)
            if inspect_signal(one, layout, min_fraction=config.min_fraction):
                found.add(index)
        except EpochsMismatch:
            found.add(index)
    return found


def spread(epochs: SignalEpochs) -> np.ndarray:
    deviation: np.ndarray = epochs.data.std(axis=2, keepdims=True)
    return deviation


def flat(epochs: SignalEpochs) -> SignalEpochs:
    return replace(epochs, data=np.zeros_like(epochs.data))


def constant(epochs: SignalEpochs) -> SignalEpochs:
    return replace(epochs, data=np.broadcast_to(epochs.data.mean(axis=2, keepdims=True), epochs.data.shape))


def white(epochs: SignalEpochs) -> SignalEpochs:
    noise = np.random.default_rng(1).standard_normal(epochs.data.shape)
    return replace(epochs, data=(spread(epochs) * noise).astype(np.float32))


def white_with_steps(epochs: SignalEpochs) -> SignalEpochs:
    return surrogates(epochs, "white", 5)


def clipped(epochs: SignalEpochs) -> SignalEpochs:
    middle = epochs.data.mean(axis=2, keepdims=True)
    return replace(epochs, data=np.clip(epochs.data, middle - spread(epochs), middle + spread(epochs)))


def at_the_rail(epochs: SignalEpochs) -> SignalEpochs:
    data = epochs.data.copy()
    data[:, :, data.shape[2] // 2 :] = np.abs(data).max(axis=2, keepdims=True) * 3
    return replace(epochs, data=data)


def wrong_montage(epochs: SignalEpochs) -> SignalEpochs:
    rng = np.random.default_rng(2)
    return replace(epochs, data=np.stack([one[rng.permutation(len(one))] for one in epochs.data]))


def line(hertz: float, sfreq: float) -> Callable[[SignalEpochs], SignalEpochs]:
    def add(epochs: SignalEpochs) -> SignalEpochs:
        n_times = round(epochs.n_times * sfreq / epochs.sfreq)
        data = resample(epochs.data, n_times, axis=2)
        wave = np.sin(2 * np.pi * hertz * np.arange(n_times) / sfreq + 1.0)
        return replace(epochs, sfreq=sfreq, data=(data + 5 * spread(epochs) * wave).astype(np.float32))

    return add


def unit(factor: float) -> Callable[[SignalEpochs], SignalEpochs]:
    return lambda epochs: replace(epochs, data=epochs.data * np.float32(factor))


FAULTS: dict[str, Callable[[SignalEpochs], SignalEpochs]] = {
    "flat": flat,
    "constant": constant,
    "white": white,
    "white_with_steps": white_with_steps,
    "clipped": clipped,
    "at_the_rail": at_the_rail,
    "wrong_montage": wrong_montage,
    "line_50_at_250": line(50.0, 250.0),
    "line_60_at_500": line(60.0, 500.0),
    "line_60_folded_at_100": line(60.0, 100.0),
    "1e6_too_large": unit(1e6),
    "1e3_too_large": unit(1e3),
    "1e3_too_small": unit(1e-3),
    "1e6_too_small": unit(1e-6),
}


@pytest.mark.parametrize("modality", sorted(LAYOUTS))
@pytest.mark.parametrize("averaged", [False, True])
def test_good_epochs_of_test_scenes_pass(good: dict[str, SignalEpochs], modality: str, averaged: bool) -> None:
    epochs = good[modality]
    if averaged:
        pairs = tuple(str(index // 4) for index in range(epochs.n_epochs))
        epochs = replace(epochs, stimulus=pairs).average_repetitions()
    wrong = faults(epochs, modality)
    print(f"{modality} averaged={averaged}: {len(wrong)} of {epochs.n_epochs} good epochs refused or flagged")
    assert len(wrong) <= 0.05 * epochs.n_epochs


@pytest.mark.parametrize("modality", sorted(LAYOUTS))
@pytest.mark.parametrize("fault", FAULTS)
def test_gross_faults_are_refused_or_flagged(good: dict[str, SignalEpochs], modality: str, fault: str) -> None:
    found = faults(FAULTS[fault](good[modality]), modality)
    print(f"{modality} {fault}: {len(found)} of {N} refused or flagged")
    assert len(found) >= 0.99 * N


def test_flags_name_the_epochs(good: dict[str, SignalEpochs]) -> None:
    epochs, layout = good["eeg"], standard_layout("things_eeg2_63")
    data = epochs.data.copy()
    data[[3, 7]] = white(epochs).data[[3, 7]]
    data[5] = wrong_montage(epochs).data[5]
    data[9] = clipped(epochs).data[9]
    flags = inspect_signal(replace(epochs, data=data), layout, min_fraction=0.75)
    assert {flag.code: flag.epochs for flag in flags} == {
        "white_noise": (3, 7), "neighbours_disagree": (5,), "clipped": (9,),
    }  # fmt: skip
    assert "2 epochs (3, 7)" in next(flag.detail for flag in flags if flag.code == "white_noise")


def test_how_many_epochs_are_looked_at_together_changes_nothing(
    good: dict[str, SignalEpochs], monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs, layout = good["eeg"].select(range(6)), standard_layout("things_eeg2_63")
    data = epochs.data.copy()
    data[[1, 4]] = white(epochs).data[[1, 4]]
    mixed = replace(epochs, data=data)
    together = inspect_signal(mixed, layout, min_fraction=0.75)
    monkeypatch.setattr("encoders.signal_faults._CHUNK_VALUES", 1)
    assert inspect_signal(mixed, layout, min_fraction=0.75) == together != ()


def test_most_of_a_recording_being_distorted_refuses_it(good: dict[str, SignalEpochs]) -> None:
    layout = standard_layout("things_eeg2_63")
    with pytest.raises(EpochsMismatch, match="clipped: .* expected less than 12 %"):
        inspect_signal(clipped(good["eeg"]), layout, min_fraction=0.75)
    with pytest.raises(EpochsMismatch, match="line noise at 50 or 60 Hz"):
        inspect_signal(line(50.0, 250.0)(good["eeg"]), layout, min_fraction=0.75)


def test_the_numbers_depend_on_neither_unit_nor_strength_nor_offset(good: dict[str, SignalEpochs]) -> None:
    epochs = good["eeg"].select(range(4))
    changed = epochs.data.astype(np.float64) * 1e6 + 100.0
    positions = standard_layout("things_eeg2_63").positions
    for number in (clipped_share, lambda data: line_share(data, 100.0), lambda data: evenness(data, 100.0),
                   lambda data: neighbour_agreement(data, positions)):  # fmt: skip
        np.testing.assert_allclose(number(epochs.data), number(changed), rtol=1e-3)


def test_missing_and_extra_channels_are_not_judged(good: dict[str, SignalEpochs]) -> None:
    epochs, layout = good["eeg"].select(range(4)), standard_layout("things_eeg2_63")
    few = epochs.pick([name for index, name in enumerate(epochs.ch_names) if index % 5])
    assert inspect_signal(few, layout, min_fraction=0.75) == ()
    tiny = SensorLayout("tiny", layout.ch_names[:8], layout.ch_types[:8], layout.positions[:8])
    assert inspect_signal(white(epochs), tiny, min_fraction=0.75) == (), "8 sensors are too few to compare"


def test_real_recordings_stay_clear(shared_data: Path, tmp_path: Path) -> None:
    layout = standard_layout("things_eeg2_63")
    with np.load(shared_data / "uci_object_pictures" / "epochs_10subjects.npz", allow_pickle=False) as archive:
        data, names, conditions = archive["data_uV"] * 1e-6, archive["ch_names"], archive["condition"]
    np.savez(tmp_path / "uci.npz", data=data, sfreq=256.0, tmin=0.0, ch_names=names, stimulus=conditions)
    flags = inspect_signal(read_epochs(tmp_path / "uci.npz"), layout, min_fraction=0.75)
    flagged = {index for flag in flags for index in flag.epochs}
    print(f"{len(flagged)} of {len(data)} real single epochs flagged")
    assert len(flagged) <= 0.05 * len(data)
