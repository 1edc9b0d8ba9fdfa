"""THINGS-MEG from continuous recordings: a FIF set of two runs, and a true CTF folder."""

import shutil
from pathlib import Path

import mne
import numpy as np
import pytest
import things_meg_layout as layout
from public_layouts import all_blocks

from encoders.datasets.standard_unit import standard_unit
from encoders.datasets.things_meg_raw import DROPOUTS, ThingsMegRaw, mend_dropout, read_meg_recording
from encoders.datasets.things_meg_sensors import things_meg_ch_names


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ds004212")
    layout.write(root)
    return root


def test_two_runs(root: Path) -> None:
    source = ThingsMegRaw(root=root).source()
    assert source.dataset == "things_meg"
    read = all_blocks(source)
    assert list(read) == ["sub-BIGMEG1_ses-01_run-01", "sub-BIGMEG1_ses-01_run-02"]
    repetitions = []
    for run, (data, columns, blocks) in enumerate(read.values()):
        epochs = blocks[0][0]
        assert data.shape == (7, 271, 281) and epochs.ch_names == things_meg_ch_names()
        assert set(epochs.ch_types) == {"mag"} and epochs.subject == "sub-BIGMEG1"
        shown = [
            row for row in layout.trials(run) if row["trial_type"] != "catch" and "boat_0" not in row["image_path"]
        ]
        assert [Path(image).name for image in columns["image"]] == [Path(row["image_path"]).name for row in shown]
        assert [split == "test" for split in columns["split"]] == [row["trial_type"] == "test" for row in shown]
        assert set(columns["run"]) == {f"{run + 1:02d}"} and set(columns["session"]) == {"01"}
        repetitions += [r for r, s in zip(columns["repetition"], columns["split"], strict=True) if s == "test"]
        z = data / standard_unit("mag")
        assert np.abs(z[:, :, :21].mean(axis=2)).max() < 2.0 and z[:, :, :21].std(axis=2).mean() == pytest.approx(
            1, abs=0.05
        )
        peak = epochs.times[np.abs(z.mean(axis=(0, 1))).argmax()]
        assert peak == pytest.approx(0.2, abs=0.006)  # from the optical sensor, not from the trigger 33 ms before it
    assert repetitions == list(range(12))
    train, test = (
        {
            c
            for _, columns, _ in read.values()
            for c, s in zip(columns["concept"], columns["split"], strict=True)
            if s == k
        }
        for k in ("train", "test")
    )
    assert train == {"aardvark", "coat_rack"} and test == {"boat"}


def test_all_trials_on_request(root: Path) -> None:
    part = ThingsMegRaw(root=root, with_unassigned=True, subjects=("BIGMEG1",)).parts()[0]
    ((epochs, metadata),) = part.blocks()
    assert epochs.n_epochs == 10 and metadata.split.count("") == 3 and metadata.image.count("") == 2


def copy(root: Path, target: Path) -> Path:
    shutil.copytree(root, target)
    return target


def test_tables_that_do_not_match_are_refused_with_counts(root: Path, tmp_path: Path) -> None:
    root = copy(root, tmp_path / "set")
    file = layout.stem(root, 0).with_name(layout.stem(root, 0).name + "_events.tsv")
    good = file.read_text()
    file.write_text("".join(good.splitlines(keepends=True)[:-1]))
    part = ThingsMegRaw(root=root).parts()[0]
    with pytest.raises(ValueError, match="'events': 9, 'rows of sample_attributes': 10, 'triggers 64': 10"):
        list(part.blocks())
    file.write_text(good.replace("777.0", "776.0"))
    with pytest.raises(ValueError, match="6 of 10 events show another picture"):
        list(part.blocks())
    (root / "sourcedata" / "sample_attributes_P1.csv").unlink()
    with pytest.raises(ValueError, match="sample_attributes_P1.csv does not exist"):
        ThingsMegRaw(root=root).parts()


def test_known_losses_of_signal_are_mended() -> None:
    noise = np.random.default_rng(0).standard_normal((2, 16_800))
    noise[:, 13_400:13_600] = 99.0
    raw = mne.io.RawArray(noise.copy(), mne.create_info(2, 1000.0, "mag"), verbose="error")
    mended = mend_dropout(raw, ("sub-BIGMEG1", "11", "05")).get_data()
    np.testing.assert_allclose(mended[:, 13_400:13_600], np.median(noise, axis=1, keepdims=True) * np.ones(200))
    np.testing.assert_array_equal(
        np.delete(mended, range(13_400, 13_600), 1), np.delete(noise, range(13_400, 13_600), 1)
    )
    np.testing.assert_array_equal(raw.get_data(), noise)
    assert mend_dropout(raw, ("sub-BIGMEG1", "11", "04")) is raw and len(DROPOUTS) == 2


def test_a_recording_without_triggers_is_refused(tmp_path: Path) -> None:
    info = mne.create_info(["MLC11-1609"], 1200.0, "mag")
    mne.io.RawArray(np.zeros((1, 2000)), info, verbose="error").save(tmp_path / "x_meg.fif", verbose="error")
    with pytest.raises(ValueError, match="has no channel UPPT001"):
        read_meg_recording(tmp_path / "x_meg.fif")


def test_a_ctf_folder(shared_data: Path, tmp_path: Path) -> None:
    """A real header, to which data is written in CTF's own form: big-endian integers, trial by trial."""
    source = shared_data / "formats" / "hostile" / "ctf_no_data.ds"
    n_trials, n_samples, n_channels, sfreq = 38, 2400, 340, 2400.0
    layout.write_tables(tmp_path, sfreq)
    folder = layout.stem(tmp_path, 0).with_name(layout.stem(tmp_path, 0).name + "_meg.ds")
    folder.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name.replace("ctf_no_data", folder.stem))
    rng = np.random.default_rng(0)
    trigger = np.zeros(n_trials * n_samples, dtype=">i4")
    for i in range(10):
        trigger[layout.onset(i, sfreq) - 80 : layout.onset(i, sfreq) + 40] = 64
    with (folder / f"{folder.stem}.meg4").open("wb") as data:
        data.write(b"MEG41CP\0")
        for trial in range(n_trials):
            block = rng.integers(-1000, 1000, (n_channels, n_samples), dtype=np.int32).astype(">i4")
            block[1] = trigger[trial * n_samples : (trial + 1) * n_samples]
            block[3] = 1 + np.arange(n_samples) + trial * n_samples  # the clock, which marks valid samples
            data.write(block.tobytes())
    (part, *_) = ThingsMegRaw(root=tmp_path).parts()
    ((epochs, metadata),) = part.blocks()
    assert epochs.data.shape == (7, 273, 281) and "MRO11" not in epochs.ch_names
    assert all("-" not in name for name in epochs.ch_names) and metadata.split.count("test") == 6
    assert np.isfinite(epochs.positions).all()
    z = epochs.data[:, :, :21] / standard_unit("mag")
    assert z.std(axis=2).mean() == pytest.approx(1.0, abs=0.1)
