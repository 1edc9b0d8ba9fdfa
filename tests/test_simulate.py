"""The simulated laboratory: seeds, units, blindness, and an observer nobody beats."""

import numpy as np
import pytest

from encoders.baselines import centred_cosine, fit_ridge, top_1
from encoders.simulate import N_TIMES, SFREQ, TMIN, BrainSimulator, SimulationConfig

D = 32
MODALITIES = ("eeg", "meg")


def embeddings(n: int, seed: int = 0) -> np.ndarray:
    spectrum = 1.0 / np.sqrt(1.0 + np.arange(D))
    return (np.random.default_rng(seed).standard_normal((n, D)) * spectrum).astype(np.float32)


def laboratory(eeg: float = 1.0, meg: float = 2.0, **changes: object) -> BrainSimulator:
    config = SimulationConfig(noise_scale={"eeg": eeg, "meg": meg}, n_subjects=2, **changes)
    return BrainSimulator(config, D, embeddings(400, seed=9))


@pytest.fixture(scope="module")
def normal() -> BrainSimulator:
    return laboratory()


def test_epochs_are_complete(normal: BrainSimulator) -> None:
    epochs = normal.record(embeddings(3), modality="eeg", subject=1, n_repetitions=2, stimulus=["a", "b", "c"])
    assert epochs.data.shape == (6, 63, N_TIMES)
    assert epochs.data.dtype == np.float32
    assert (epochs.sfreq, epochs.tmin, epochs.subject) == (SFREQ, TMIN, "sim-02")
    assert epochs.stimulus == ("a", "a", "b", "b", "c", "c")
    assert np.isfinite(epochs.positions).all()


@pytest.mark.parametrize(
    ("layout", "kind", "low", "high"),
    [
        ("things_eeg2_63", "eeg", 8e-6, 40e-6),
        ("ctf275", "mag", 200e-15, 2e-12),
        ("neuromag306", "mag", 200e-15, 2e-12),
        ("neuromag306", "grad", 5e-12, 1e-10),
    ],
)
def test_amplitudes_are_plausible(normal: BrainSimulator, layout: str, kind: str, low: float, high: float) -> None:
    modality = "eeg" if kind == "eeg" else "meg"
    epochs = normal.record(embeddings(20), modality=modality, layout=layout, subject=0)
    rows = [i for i, one in enumerate(epochs.ch_types) if one == kind]
    assert low < np.median(epochs.data[:, rows].std(axis=(0, 2))) < high


@pytest.mark.parametrize(("modality", "low", "high"), [("eeg", 1e-6, 30e-6), ("meg", 50e-15, 1e-12)])
def test_evoked_response_is_plausible_and_starts_after_onset(modality: str, low: float, high: float) -> None:
    epochs = laboratory(eeg=0.0, meg=0.0).record(embeddings(50), modality=modality, subject=0)
    times = TMIN + np.arange(N_TIMES) / SFREQ
    assert low < np.median(np.abs(epochs.data).max(axis=(1, 2))) < high
    assert np.abs(epochs.data[:, :, times < -0.01]).max() == 0.0


def test_same_seed_same_recording_other_seed_other_noise(normal: BrainSimulator) -> None:
    def record(simulator: BrainSimulator, seed: int) -> np.ndarray:
        return simulator.record(embeddings(4), modality="eeg", subject=0, seed=seed).data

    np.testing.assert_array_equal(record(normal, 5), record(laboratory(), 5))
    assert not np.array_equal(record(normal, 5), record(normal, 6))


def test_seed_of_the_configuration_changes_the_brain() -> None:
    one, other = (laboratory(eeg=0.0, seed=seed).record(embeddings(4), modality="eeg", subject=0) for seed in (0, 1))
    assert np.corrcoef(one.data.ravel(), other.data.ravel())[0, 1] < 0.9


def test_people_differ() -> None:
    simulator = laboratory(eeg=0.0)
    one, other = (simulator.record(embeddings(30), modality="eeg", subject=subject).data for subject in (0, 1))
    assert 0.3 < np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.98


def test_response_is_linear_in_the_normalised_embedding() -> None:
    simulator = laboratory(eeg=0.0)
    embeds = embeddings(2)
    unit = embeds / np.linalg.norm(embeds, axis=1, keepdims=True)
    between = unit.mean(axis=0, keepdims=True)
    first, second = simulator.record(embeds, modality="eeg", subject=0).data
    head = simulator.head("eeg", "", 0)
    amplitude = (between.astype(np.float64) - simulator.readouts.embed_mean) @ simulator.readouts.weights.T
    middle = np.tensordot(amplitude[0], head.patterns, axes=1) + head.evoked
    np.testing.assert_allclose((first + second) / 2, middle, atol=1e-4 * np.abs(middle).max())


def test_each_modality_is_blind_to_sources_of_the_other(normal: BrainSimulator) -> None:
    power = {name: (normal.head(name, "", 0).patterns ** 2).sum(axis=(1, 2)) for name in MODALITIES}
    silent = {name: power[name] < 1e-12 * power[name].max() for name in MODALITIES}
    assert silent["eeg"].mean() == silent["meg"].mean() == 0.25
    assert not (silent["eeg"] & silent["meg"]).any()


@pytest.mark.parametrize("modality", MODALITIES)
def test_observer_without_noise_is_always_right(modality: str) -> None:
    simulator = laboratory(eeg=0.0, meg=0.0)
    images = embeddings(100)
    epochs = simulator.record(images, modality=modality, subject=0)
    assert top_1(simulator.ideal_observer(epochs, images, modality=modality, subject=0)) == 1.0


@pytest.mark.parametrize("modality", MODALITIES)
def test_observer_in_pure_noise_is_at_chance(modality: str) -> None:
    simulator = laboratory(eeg=1e3, meg=1e3)
    images = embeddings(50)
    epochs = simulator.record(images, modality=modality, subject=0, n_repetitions=20)
    found = top_1(simulator.ideal_observer(epochs, images, modality=modality, subject=0))
    assert abs(found - 0.02) < 0.02


def test_averaging_and_fusion_help(normal: BrainSimulator) -> None:
    images = embeddings(200, seed=3)
    ids = [str(i) for i in range(200)]
    averaged, single = {}, {}
    recordings = {}
    for name in MODALITIES:
        epochs = normal.record(images, modality=name, subject=0, n_repetitions=4, stimulus=ids)
        recordings[name] = epochs.average_repetitions()
        single[name] = top_1(normal.ideal_observer(epochs, images, modality=name, subject=0))
        averaged[name] = normal.ideal_observer(recordings[name], images, modality=name, subject=0)
        assert top_1(averaged[name]) > single[name] + 0.1
    fused = top_1(averaged["eeg"] + averaged["meg"])
    assert fused > max(top_1(one) for one in averaged.values())
    # an answer in the embedding space can only lose information
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    mean = normal.readouts.embed_mean.astype(np.float32)
    embeds = normal.ideal_embeds(recordings, subject=0).astype(np.float32)
    assert 0.1 < top_1(centred_cosine(embeds, unit, mean)) <= fused


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_ridge_never_beats_the_observer(noise: float) -> None:
    simulator = laboratory(eeg=noise)
    train, images = embeddings(600, seed=1), embeddings(100, seed=2)
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    data = simulator.record(train, modality="eeg", subject=0, seed=1).data * 1e5
    targets = train / np.linalg.norm(train, axis=1, keepdims=True)
    fitted = fit_ridge(data, targets, penalties=(0.3,))
    epochs = simulator.record(images, modality="eeg", subject=0, seed=2)
    ridge = top_1(centred_cosine(fitted.predict(epochs.data * 1e5), unit, fitted.embed_mean))
    observer = top_1(simulator.ideal_observer(epochs, images, modality="eeg", subject=0))
    assert 0.01 < ridge <= observer


def test_refusals(normal: BrainSimulator) -> None:
    images = embeddings(2)
    with pytest.raises(ValueError, match="unknown modality 'fmri'; allowed are"):
        normal.record(images, modality="fmri", subject=0)
    with pytest.raises(ValueError, match="subject 2 does not exist; give 0 to 1"):
        normal.record(images, modality="eeg", subject=2)
    with pytest.raises(ValueError, match="does not record eeg"):
        normal.record(images, modality="eeg", layout="ctf275", subject=0)
    with pytest.raises(ValueError, match="1 stimulus ids for 2 images"):
        normal.record(images, modality="eeg", subject=0, stimulus=["a"])
    mixed = normal.record(images, modality="eeg", subject=0, n_repetitions=3, stimulus=["a", "b"]).select(range(5))
    with pytest.raises(ValueError, match=r"average \[2, 3\] presentations"):
        normal.ideal_embeds({"eeg": mixed.average_repetitions()}, subject=0)
