"""Epochs come in blocks, and rows of metadata follow the epochs that fit."""

from collections import Counter

import mne
import numpy as np
import pytest

from encoders.datasets import recording_blocks as module
from encoders.datasets.recording_blocks import count_repetitions, plain_cut, recording_blocks, take_rows
from encoders.epoch_source import EpochMetadata


def metadata(n: int) -> EpochMetadata:
    texts = tuple(str(i) for i in range(n))
    return EpochMetadata(texts, texts, ("train",) * n, texts, texts, tuple(range(n)))


def raw(n_samples: int = 1000) -> mne.io.RawArray:
    data = np.arange(n_samples) * 1e-6 * np.ones((3, 1))
    info = mne.create_info(["O1", "Oz", "stim"], 100.0, ["eeg", "eeg", "stim"])
    return mne.io.RawArray(data, info, first_samp=50, verbose="error")


def test_blocks_and_rows(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "BLOCK_EPOCHS", 3)
    samples = np.array([60, 100, 200, 300, 400, 500, 600]) + 50
    samples[0] = 55  # no room before it
    blocks = list(recording_blocks(raw(), samples, metadata(7), "sub-07", plain_cut(-0.1, 0.2), "x.fif"))
    assert [epochs.n_epochs for epochs, _ in blocks] == [2, 3, 1]
    assert sum((meta.image for _, meta in blocks), ()) == tuple("123456")
    for epochs, meta in blocks:
        assert epochs.subject == "sub-07" and epochs.stimulus == meta.image and epochs.ch_names == ("O1", "Oz")
        for epoch, row in zip(epochs.data, meta.repetition, strict=True):
            assert epoch[0, 10] == pytest.approx((samples[row] - 50) * 1e-6, rel=1e-5)
    assert "x.fif: 1 of 7 epochs do not fit" in caplog.text


def test_onsets_and_rows_must_match() -> None:
    with pytest.raises(ValueError, match="x.fif: 2 onsets for 3 rows"):
        list(recording_blocks(raw(), [100, 200], metadata(3), "", plain_cut(0, 0.1), "x.fif"))


def test_rows_and_counts() -> None:
    assert take_rows(metadata(4), [3, 1]).run == ("3", "1")
    shown: Counter[str] = Counter()
    assert count_repetitions(["a", "b", "a", "", ""], shown) == (0, 0, 1, 0, 0)
    assert count_repetitions(["a", "c"], shown) == (2, 0)
