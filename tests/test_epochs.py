from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import mne
import numpy as np
import pytest

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.sensors import standard_layout


def make_epochs(n_epochs: int = 5, layout_name: str = "things_eeg2_63", n_channels: int = 6) -> SignalEpochs:
    layout = standard_layout(layout_name)
    rng = np.random.default_rng(0)
    return SignalEpochs(
        data=rng.standard_normal((n_epochs, n_channels, 40)) * 1e-5,
        sfreq=200.0,
        tmin=-0.05,
        ch_names=layout.ch_names[:n_channels],
        ch_types=layout.ch_types[:n_channels],
        positions=layout.positions[:n_channels],
        subject="sub-01",
        stimulus=tuple(f"dog:{i % 2};a/b" for i in range(n_epochs)),
        n_averaged=tuple(range(1, n_epochs + 1)),
    )


def assert_same(a: SignalEpochs, b: SignalEpochs) -> None:
    np.testing.assert_array_equal(a.data, b.data)
    np.testing.assert_array_equal(a.positions, b.positions)
    for name in ("sfreq", "ch_names", "ch_types", "subject", "stimulus", "n_averaged"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.tmin == pytest.approx(b.tmin, abs=1e-9)


@pytest.mark.parametrize("name", ["x.npz", "x-epo.fif", "x-epo.fif.gz"])
@pytest.mark.parametrize("layout_name", ["things_eeg2_63", "ctf275", "neuromag306"])
def test_files_give_back_what_was_saved(tmp_path: Path, name: str, layout_name: str) -> None:
    epochs = make_epochs(layout_name=layout_name)
    epochs.save(tmp_path / name)
    assert_same(SignalEpochs.load(tmp_path / name), epochs)


def test_bytes_round_trip_keeps_unknown_positions() -> None:
    epochs = replace(make_epochs(), positions=np.full((6, 3), np.nan), stimulus=(), n_averaged=())
    assert_same(SignalEpochs.from_bytes(epochs.to_bytes()), epochs)


def test_shape_and_times() -> None:
    epochs = make_epochs()
    assert (epochs.n_epochs, epochs.n_channels, epochs.n_times) == (5, 6, 40)
    assert epochs.data.dtype == np.float32
    np.testing.assert_allclose(epochs.times[[0, 10]], [-0.05, 0.0], atol=1e-12)
    with pytest.raises(FrozenInstanceError):
        epochs.sfreq = 1.0  # type: ignore[misc]


def test_pick_follows_the_given_order() -> None:
    epochs = make_epochs()
    picked = epochs.pick(["AF3", "Fp1"])
    assert picked.ch_names == ("AF3", "Fp1")
    np.testing.assert_array_equal(picked.data[:, 1], epochs.data[:, 0])
    np.testing.assert_array_equal(picked.positions[1], epochs.positions[0])
    with pytest.raises(EpochsMismatch, match="Cz"):
        epochs.pick(["Cz"])


def test_pick_types() -> None:
    epochs = make_epochs(layout_name="neuromag306")
    assert set(epochs.pick_types("grad").ch_types) == {"grad"}
    with pytest.raises(EpochsMismatch, match="eeg"):
        epochs.pick_types("eeg")
    with pytest.raises(ValueError, match="unknown channel kinds"):
        epochs.pick_types("ecog")


def test_select_takes_indices_and_masks() -> None:
    epochs = make_epochs()
    assert epochs.select([3, 0]).n_averaged == (4, 1)
    assert_same(epochs.select(np.asarray([True, False, False, True, False])), epochs.select([0, 3]))


@pytest.mark.parametrize(("tmin", "tmax"), [(-0.02, 0.08), (0.0, 0.1), (-9.0, 0.05), (0.013, 9.0), (-9.0, 9.0)])
def test_crop_agrees_with_mne(tmin: float, tmax: float) -> None:
    epochs = make_epochs()
    inside = max(tmin, float(epochs.times[0])), min(tmax, float(epochs.times[-1]))
    oracle = epochs.to_mne().crop(*inside)
    cropped = epochs.crop(tmin, tmax)
    np.testing.assert_allclose(cropped.data, oracle.get_data(copy=True), rtol=1e-6)
    np.testing.assert_allclose(cropped.times, oracle.times, atol=1e-9)
    assert cropped.stimulus == epochs.stimulus and cropped.ch_names == epochs.ch_names


def test_crop_beside_the_epoch_leaves_a_sample() -> None:
    epochs = make_epochs()
    assert epochs.crop(5.0, 6.0).n_times == epochs.crop(-6.0, -5.0).n_times == 1


def test_average_repetitions_weights_by_count() -> None:
    data = np.asarray([1.0, 4.0, 7.0, 9.0])[:, None, None] * np.ones((4, 1, 3))
    epochs = SignalEpochs(
        data, 100.0, 0.0, ("Cz",), ("eeg",), np.zeros((1, 3)), stimulus=("b", "a", "b", "a"), n_averaged=(1, 1, 2, 1)
    )
    mean = epochs.average_repetitions()
    assert mean.stimulus == ("b", "a")
    assert mean.n_averaged == (3, 2)
    np.testing.assert_allclose(mean.data[:, 0, 0], [(1 + 14) / 3, 6.5])


def test_epochs_of_unknown_stimulus_stay_alone() -> None:
    epochs = replace(make_epochs(), stimulus=("", "a", "", "a", "b"))
    assert epochs.average_repetitions().stimulus == ("", "a", "", "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((5, 6))}, "shape"),
        ({"data": np.zeros((0, 6, 40))}, "none of them 0"),
        ({"data": np.zeros((5, 6, 40), dtype=complex)}, "complex"),
        ({"ch_names": ("a",)}, "ch_names"),
        ({"ch_names": ("a", "b", "c", "d", "e", "a")}, "more than once"),
        ({"ch_types": ("eeg",) * 5 + ("ecog",)}, "ecog"),
        ({"positions": np.zeros((5, 3))}, "positions"),
        ({"stimulus": ("a",)}, "stimulus"),
        ({"n_averaged": (0,) * 5}, "n_averaged"),
        ({"sfreq": 0.0}, "sfreq"),
        ({"tmin": np.nan}, "tmin"),
    ],
)
def test_construction_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(EpochsMismatch, match=message):
        replace(make_epochs(), **changes)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_located(value: float) -> None:
    data = make_epochs().data.astype(np.float64)
    data[3, 2, 7] = value
    with pytest.raises(EpochsMismatch, match="channel 2 'AF7' .* epoch 3"):
        replace(make_epochs(), data=data)


def test_saving_under_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="npz"):
        make_epochs().save(tmp_path / "x.edf")


def test_from_mne_keeps_brain_channels_only_and_event_names() -> None:
    info = mne.create_info(["Cz", "EOG", "MLC11-1609", "Pz", "STI"], 100.0, ["eeg", "eog", "misc", "eeg", "stim"])
    info["bads"] = ["Pz"]
    events = np.asarray([[0, 0, 5], [10, 0, 7], [20, 0, 5]])
    epochs = mne.EpochsArray(np.ones((3, 5, 4)), info, events, event_id={"cat": 5, "dog": 7}, verbose="error")
    signal = SignalEpochs.from_mne(epochs)
    assert signal.ch_names == ("Cz", "MLC11-1609")
    assert signal.ch_types == ("eeg", "mag")
    assert signal.stimulus == ("cat", "dog", "cat")


def test_positions_are_in_the_head_frame() -> None:
    layout = standard_layout("ctf275")
    from encoders.epochs import positions_of
    from encoders.sensors import layout_info

    np.testing.assert_allclose(positions_of(layout_info(layout, 100.0)), layout.positions, atol=1e-6)
