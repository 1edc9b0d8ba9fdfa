"""The first release of THINGS-EEG2: 64 rows with a stimulus channel, 1-based conditions and targets."""

from pathlib import Path

import numpy as np
import pytest
from public_layouts import TRAIN_IMAGES, all_blocks, write_image_metadata

from encoders.datasets import things_eeg2_raw
from encoders.datasets.things_eeg2_raw import TARGET_EVENT, ThingsEeg2Raw
from encoders.sensors import THINGS_EEG2_CHANNELS

N_EVENTS, STEP = 24, 400


def recording(conditions: np.ndarray, seed: int) -> np.ndarray:
    """Volts: noise, and 150 ms after each picture a bump whose height is the picture's number."""
    n_samples = 2000 + STEP * len(conditions)
    rng = np.random.default_rng(seed)
    data = np.zeros((64, n_samples))
    data[:63] = 1e-7 * rng.standard_normal((63, n_samples)) + 1e-4 * rng.standard_normal((63, 1))
    for i, condition in enumerate(conditions):
        onset = 500 + STEP * i
        data[63, onset] = condition
        if condition != TARGET_EVENT:
            data[:63, onset + 100 : onset + 201] += 1e-6 * condition * np.hanning(101)
    return data


def write(root: Path) -> dict[str, np.ndarray]:
    events = {}
    for split, n_images in (("training", 18), ("test", 4)):
        for session in (1, 2):
            rng = np.random.default_rng(session)
            conditions = rng.permutation(np.resize(np.arange(1, n_images + 1), N_EVENTS))
            conditions[5] = TARGET_EVENT
            events[f"{split}{session}"] = conditions
            folder = root / "sub-01" / f"ses-{session:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            content = {
                "raw_eeg_data": recording(conditions, session),
                "ch_names": [*THINGS_EEG2_CHANNELS, "stim"],
                "ch_types": ["eeg"] * 63 + ["stim"],
                "sfreq": 1000,
                "highpass": 0.01,
                "lowpass": 100,
            }
            np.save(folder / f"raw_eeg_{split}.npy", content, allow_pickle=True)  # type: ignore[arg-type]
    write_image_metadata(root)
    return events


def test_epochs_events_and_repetitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = write(tmp_path)
    monkeypatch.setattr(things_eeg2_raw, "BLOCK_BYTES", 8 * 63 * 1200 * 7)
    read = all_blocks(ThingsEeg2Raw(root=tmp_path).source())
    assert list(read) == [f"sub-01_ses-{s}_{split}" for split in ("train", "test") for s in ("01", "02")]
    for session in (1, 2):
        data, columns, blocks = read[f"sub-01_ses-{session:02d}_train"]
        shown = events[f"training{session}"]
        shown = shown[shown != TARGET_EVENT]
        assert data.shape == (N_EVENTS - 1, 63, 300) and len(blocks) == 4
        assert columns["image"] == [TRAIN_IMAGES[k - 1] for k in shown]  # conditions count from 1
        epochs = blocks[0][0]
        assert (epochs.sfreq, epochs.tmin, epochs.ch_names) == (250.0, -0.2, THINGS_EEG2_CHANNELS)
        assert np.abs(data[:, :, :50].mean(axis=2)).max() < 2e-8  # the offset of 1e-4 V is gone
        peak = np.abs(epochs.times - 0.15) < 0.003
        np.testing.assert_allclose(data[:, :, peak].mean(axis=(1, 2)), shown * 1e-6, atol=1.5e-7)
    pairs = [
        (image, repetition)
        for name in ("sub-01_ses-01_train", "sub-01_ses-02_train")
        for image, repetition in zip(read[name][1]["image"], read[name][1]["repetition"], strict=True)
    ]
    assert len(set(pairs)) == len(pairs) == 2 * (N_EVENTS - 1)
    for image, repetition in pairs:
        assert repetition == 0 or (image, repetition - 1) in pairs


def test_resampling_keeps_the_shape_of_a_slow_wave(tmp_path: Path) -> None:
    write(tmp_path)
    part = ThingsEeg2Raw(root=tmp_path).parts()[0]
    times = np.arange(6000) / 1000
    signal = np.sin(2 * np.pi * 12.3 * times)[None]
    data = part._cut(signal, np.array([2001, 3003]), 1000.0, 300)  # type: ignore[attr-defined]
    for epoch, onset in zip(data, (2001, 3003), strict=True):
        baseline = signal[0, onset - 200 : onset + 1].mean()
        expected = np.sin(2 * np.pi * 12.3 * (onset / 1000 - 0.2 + np.arange(300) / 250)) - baseline
        np.testing.assert_allclose(epoch[0], expected, atol=2e-3)


def test_events_without_room_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path)
    file = tmp_path / "sub-01" / "ses-01" / "raw_eeg_training.npy"
    content = np.load(file, allow_pickle=True).item()
    content["raw_eeg_data"] = content["raw_eeg_data"][:, : 500 + STEP * (N_EVENTS - 1) + 900]
    np.save(file, content, allow_pickle=True)
    data = all_blocks(ThingsEeg2Raw(root=tmp_path))["sub-01_ses-01_train"][0]
    assert len(data) == N_EVENTS - 2 and "1 events lie too near" in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["raw_eeg_data"].__setitem__((63, 900), 19), r"has events \[.*19.*\], expected pictures 1 to 18"),
        (lambda c: c["raw_eeg_data"].__setitem__((63, 900), 1.5), "has events"),
        (lambda c: c["ch_names"].__setitem__(63, "trigger"), "has no channel 'stim'"),
        (lambda c: c.pop("sfreq"), r"lacks \['sfreq'\]"),
        (lambda c: c["ch_types"].pop(), "one name and type per channel"),
        (lambda c: c.update(raw_eeg_data=np.vstack([c["raw_eeg_data"][:63] * 1e6, c["raw_eeg_data"][63:]])), "vary by"),
    ],
)
def test_faults_are_named(tmp_path: Path, change, reason: str) -> None:
    write(tmp_path)
    file = tmp_path / "sub-01" / "ses-01" / "raw_eeg_training.npy"
    content = np.load(file, allow_pickle=True).item()
    change(content)
    np.save(file, content, allow_pickle=True)
    with pytest.raises(ValueError, match=reason):
        list(ThingsEeg2Raw(root=tmp_path).parts()[0].blocks())
