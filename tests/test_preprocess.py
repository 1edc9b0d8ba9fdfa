import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.preprocess import PreprocessConfig, Preprocessor, check_signal, default_preprocess
from encoders.readers import read_epochs
from encoders.resample import window_matrix
from encoders.sensors import SensorLayout, standard_layout

LAYOUT = standard_layout("things_eeg2_63")
CONFIG = PreprocessConfig()


def noise(
    n_epochs: int = 30, sfreq: float = 250.0, tmin: float = -0.1, seconds: float = 1.1, seed: int = 0,
    layout: SensorLayout = LAYOUT, volt: float = 1e-5,
) -> SignalEpochs:  # fmt: skip
    """Pink-ish noise, spatially correlated, with different gains per channel."""
    rng = np.random.default_rng(seed)
    c, n_times = layout.n_channels, round(seconds * sfreq)
    gains = np.linspace(0.5, 2.0, c)[:, None]
    white = rng.standard_normal((n_epochs, c, n_times)) + rng.standard_normal((n_epochs, 1, n_times))
    data = volt * gains * (0.3 * white + rng.standard_normal((n_epochs, c, 1)) + white.cumsum(axis=2) / 15)
    return SignalEpochs(data, sfreq, tmin, layout.ch_names, layout.ch_types, layout.positions)


@pytest.fixture(scope="module")
def fitted() -> Preprocessor:
    return Preprocessor(CONFIG, LAYOUT).fit(noise(100))


def test_training_data_comes_out_unitless(fitted: Preprocessor) -> None:
    out = fitted(noise(100))
    assert out.data.shape == (100, 63, 64)
    assert out.data.dtype == np.float32
    low, middle, high = np.quantile(out.data, (0.25, 0.5, 0.75), axis=(0, 2))
    np.testing.assert_allclose(high - low, 1.0, atol=1e-4)
    np.testing.assert_allclose(middle, 0.0, atol=1e-4)
    assert out.report.interpolated == out.report.dropped == out.report.warnings == ()


def test_average_reference_has_no_mean() -> None:
    preprocessor = Preprocessor(CONFIG, LAYOUT).fit(noise(20))
    arrays = preprocessor.state()[1]
    volt = preprocessor(noise(20)).data * arrays["scale"][:, None] + arrays["centre"][:, None]
    assert np.abs(volt.mean(axis=1)).max() < 1e-6 * np.abs(volt).max()


def test_permuted_channels_give_identical_output(fitted: Preprocessor) -> None:
    epochs = noise(3)
    permuted = epochs.pick([LAYOUT.ch_names[i] for i in np.random.default_rng(0).permutation(63)])
    np.testing.assert_array_equal(fitted(permuted).data, fitted(epochs).data)


def test_epochs_do_not_influence_each_other(fitted: Preprocessor) -> None:
    epochs = noise(6)
    np.testing.assert_allclose(fitted(epochs.select([2])).data[0], fitted(epochs).data[2], atol=1e-5)


def test_what_lies_far_from_the_window_changes_nothing_and_makes_no_large_matrix(
    fitted: Preprocessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def recorded(sfreq: float, tmin: float, n_times: int, *more: Any) -> np.ndarray:
        asked.append(n_times)
        return window_matrix(sfreq, tmin, n_times, *more)

    monkeypatch.setattr("encoders.preprocess.window_matrix", recorded)
    long = noise(2, tmin=-20.0, seconds=60.0)
    start = round((20.0 - 0.6) * long.sfreq)
    cut = long.data[:, :, start : start + round(2.4 * long.sfreq)]
    short = replace(long, data=cut, tmin=float(long.times[start]))
    np.testing.assert_allclose(fitted(long).data, fitted(short).data, atol=1e-5)
    assert len(asked) == 4 and max(asked) < 2.0 * long.sfreq


def test_offsets_disappear_with_the_baseline(fitted: Preprocessor) -> None:
    epochs = noise(4)
    offset = np.linspace(-5e-3, 5e-3, 63)[None, :, None]
    np.testing.assert_allclose(fitted(replace(epochs, data=epochs.data + offset)).data, fitted(epochs).data, atol=2e-3)


def test_without_prestimulus_the_window_is_centred_and_says_so(fitted: Preprocessor) -> None:
    epochs = noise(4, tmin=0.0, seconds=0.7)
    out = fitted(epochs)
    assert any("no baseline" in warning for warning in out.report.warnings)
    volt = out.data * fitted.state()[1]["scale"][:, None] + fitted.state()[1]["centre"][:, None]
    assert np.abs(volt.mean(axis=2)).max() < 1e-3 * np.abs(volt).max()


@pytest.mark.parametrize("sfreq", [100.0, 128.0, 256.0, 1000.0, 1200.0])
def test_any_rate_gives_the_same_window(sfreq: float, fitted: Preprocessor) -> None:
    def slow(rate: float) -> SignalEpochs:
        times = -0.2 + np.arange(round(1.1 * rate)) / rate
        phase = np.linspace(0, 6, 63)[:, None]
        data = 1e-5 * (np.sin(2 * np.pi * 7 * times + phase) + np.sin(2 * np.pi * 2 * times - 3 * phase))[None]
        return SignalEpochs(data, rate, -0.2, LAYOUT.ch_names, LAYOUT.ch_types, LAYOUT.positions)

    np.testing.assert_allclose(fitted(slow(sfreq)).data, fitted(slow(500.0)).data, atol=0.06)


@pytest.mark.parametrize("factor", [1e-1, 10.0, 100.0])
def test_a_foreign_gain_is_corrected_and_reported(factor: float, fitted: Preprocessor) -> None:
    epochs = noise(10, seed=1)
    out = fitted(replace(epochs, data=epochs.data * np.float32(factor)))
    assert any("times as strong" in warning for warning in out.report.warnings)
    spread = np.subtract(*np.quantile(out.data, (0.75, 0.25)))
    assert 0.9 < spread < 1.1


def test_an_average_of_many_is_allowed_to_be_weaker(fitted: Preprocessor) -> None:
    epochs = noise(10, seed=1)
    weak = replace(epochs, data=epochs.data * np.float32(0.2))
    assert fitted(weak).report.warnings != ()
    assert fitted(replace(weak, n_averaged=(16,) * 10)).report.warnings == ()


def test_clamp(fitted: Preprocessor) -> None:
    epochs = noise(5)
    data = epochs.data.copy()
    data[2, 5, 100] += 1.5e-2
    out = fitted(replace(epochs, data=data)).data
    assert np.abs(out).max() == 20.0
    assert np.abs(out[[0, 1, 3, 4]]).max() < 20.0


def test_whitening_removes_correlation() -> None:
    train = noise(80)
    plain = Preprocessor(CONFIG, LAYOUT).fit(train)(train).data
    white = Preprocessor(PreprocessConfig(whiten=True), LAYOUT).fit(train)(train).data

    def off_diagonal(data: np.ndarray) -> float:
        correlation = np.corrcoef(data.transpose(1, 0, 2).reshape(63, -1))
        return float(np.abs(correlation - np.eye(63)).mean())

    assert off_diagonal(white) < 0.5 * off_diagonal(plain)


@pytest.mark.parametrize("whiten", [False, True])
def test_state_round_trip_is_exact(whiten: bool) -> None:
    original = Preprocessor(PreprocessConfig(whiten=whiten), LAYOUT).fit(noise(20))
    meta, arrays = original.state()
    again = Preprocessor.from_state(json.loads(json.dumps(meta)), arrays)
    assert again.digest == original.digest
    np.testing.assert_array_equal(again(noise(3)).data, original(noise(3)).data)


def test_digest_follows_statistics_and_configuration() -> None:
    digests = {
        Preprocessor(CONFIG, LAYOUT).fit(noise(10)).digest,
        Preprocessor(CONFIG, LAYOUT).fit(noise(10, seed=1)).digest,
        Preprocessor(PreprocessConfig(clamp=19.0), LAYOUT).fit(noise(10)).digest,
    }
    assert len(digests) == 3
    assert Preprocessor(CONFIG, LAYOUT).fit(noise(10)).digest in digests


def test_wrong_state_is_refused() -> None:
    meta, arrays = Preprocessor(CONFIG, LAYOUT).fit(noise(10)).state()
    with pytest.raises(ValueError, match="expected"):
        Preprocessor.from_state(meta, {"centre": arrays["centre"]})
    with pytest.raises(ValueError, match="fit"):
        Preprocessor(CONFIG, LAYOUT)(noise(2))


def test_missing_and_extra_channels_are_reported(fitted: Preprocessor) -> None:
    epochs = noise(3)
    names = tuple("EXG1" if name == "Oz" else name for name in epochs.ch_names)
    report = fitted(replace(epochs, ch_names=names)).report
    assert report.interpolated == ("Oz",)
    assert report.dropped == ("EXG1",)


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        (noise(2, volt=10.0), "eeg channels vary.*plausible.*not in uV"),
        (noise(2, volt=1e-11), "eeg channels vary.*plausible"),
        (noise(2, seconds=0.5), "span -0.100 to 0.396 s.*needs 0.000 to 0.630"),
        (noise(2, tmin=0.1), "span 0.100"),
        (noise(2, sfreq=10.0, seconds=2.0), "10 Hz"),
        (noise(1, sfreq=1e5, seconds=0.8, tmin=0.0), "100000 Hz"),
    ],
)
def test_check_signal_refuses(epochs: SignalEpochs, message: str) -> None:
    with pytest.raises(EpochsMismatch, match=message):
        check_signal(epochs, CONFIG)


def test_flat_signals_are_refused(fitted: Preprocessor) -> None:
    epochs = noise(4)
    channel, epoch = epochs.data.copy(), epochs.data.copy()
    channel[:, 7] = 3e-3
    epoch[2] = 0.0
    with pytest.raises(EpochsMismatch, match=r"\['F7'\] are flat"):
        fitted(replace(epochs, data=channel))
    with pytest.raises(EpochsMismatch, match=r"epochs \[2\] are flat"):
        fitted(replace(epochs, data=epoch))
    with pytest.raises(EpochsMismatch, match="flat"):
        fitted(replace(epochs, data=np.zeros_like(epoch)))
    without = epochs.pick([name for name in epochs.ch_names if name != "F7"])
    assert fitted(without).report.interpolated == ("F7",)


def test_a_low_rate_is_used_with_a_warning(fitted: Preprocessor) -> None:
    assert any("nothing above 25 Hz" in text for text in fitted(noise(3, sfreq=50.0)).report.warnings)


@pytest.mark.parametrize(
    "changes",
    [{"h_freq": 50.0}, {"l_freq": 41.0}, {"baseline": (0.0, -0.1)}, {"n_times": 0}, {"reference": "mastoid"}, {"x": 1}],
)
def test_configurations_that_cannot_work(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        PreprocessConfig(**changes)


def test_meg_has_no_reference() -> None:
    layout = standard_layout("ctf275")
    with pytest.raises(ValueError, match="'average' has no meaning"):
        Preprocessor(CONFIG, layout)
    meg = Preprocessor(default_preprocess("meg"), layout).fit(noise(10, layout=layout, volt=1e-13))
    assert np.isfinite(meg(noise(3, layout=layout, volt=1e-13)).data).all()
    with pytest.raises(EpochsMismatch, match="mag channels vary"):
        meg(noise(3, layout=layout, volt=1e-7))


def things_eeg1(shared_data: Path) -> SignalEpochs:
    with np.load(shared_data / "things_eeg1" / "erp_by_category_36subjects.npz", allow_pickle=False) as archive:
        complete = np.isfinite(archive["erp_uV"]).all(axis=(1, 2, 3))
        data, names, times = archive["erp_uV"][complete], archive["ch_names"], archive["times"]
        sfreq, categories = float(archive["sfreq"].ravel()[0]), archive["category"]
    return SignalEpochs(
        data=data.reshape(-1, *data.shape[2:]) * 1e-6,
        sfreq=sfreq,
        tmin=float(times[0]),
        ch_names=tuple(str(name) for name in names),
        ch_types=("eeg",) * len(names),
        positions=np.full((len(names), 3), np.nan),
        stimulus=tuple(str(category) for _ in range(len(data)) for category in categories),
    )


@pytest.mark.parametrize("name", ["erp.npz", "erp-epo.fif"])
def test_real_things_eeg1_responses_pass(name: str, shared_data: Path, tmp_path: Path, fitted: Preprocessor) -> None:
    things_eeg1(shared_data).save(tmp_path / name)
    epochs = read_epochs(tmp_path / name)
    out = fitted(epochs)
    assert out.data.shape == (170, 63, 64)  # two of 36 people have a channel of NaN
    assert out.report.interpolated == ("Cz",)
    assert out.report.dropped == ("Fz",)
    assert 0.3 < np.subtract(*np.quantile(out.data, (0.75, 0.25))) < 3.0
    assert (np.abs(out.data) == 20.0).mean() < 1e-3
    assert set(out.stimulus) == {"animal", "body part", "food", "tool", "vehicle"}
    assert len(epochs.average_repetitions().stimulus) == 5


def test_real_uci_recordings_pass(shared_data: Path, tmp_path: Path, fitted: Preprocessor) -> None:
    with np.load(shared_data / "uci_object_pictures" / "epochs_10subjects.npz", allow_pickle=False) as archive:
        data, names, conditions = archive["data_uV"] * 1e-6, archive["ch_names"], archive["condition"]
    np.savez(tmp_path / "uci.npz", data=data, sfreq=256.0, tmin=0.0, ch_names=names, stimulus=conditions)
    out = fitted(read_epochs(tmp_path / "uci.npz"))
    assert out.data.shape == (300, 63, 64)
    assert {"X", "Y", "nd"} < set(out.report.dropped)
    assert {"FT9", "TP9", "FT10", "TP10"} < set(out.report.interpolated)


def test_real_units_that_are_wrong_are_refused(shared_data: Path, fitted: Preprocessor) -> None:
    epochs = things_eeg1(shared_data)
    for factor in (1e6, 1e-6):
        with pytest.raises(EpochsMismatch, match="plausible"):
            fitted(replace(epochs, data=epochs.data * np.float32(factor)))
