"""THINGS-EEG1: onsets in samples, paths of Windows, a list without header, people with 127 channels."""

from pathlib import Path

import mne
import numpy as np
import pybv
import pytest
from public_layouts import all_blocks

from encoders.brainvision_header import MAX_LINES
from encoders.datasets.things_eeg1 import (
    THINGS_EEG1_CHANNELS,
    ThingsEeg1,
    onset_samples,
    pick_channels,
    read_rsvp_events,
)
from encoders.things_eeg import things_eeg

OTHER_64 = [f"X{i}" for i in range(64)]
IMAGES = [f"{concept}/{concept}_{i:02d}s.jpg" for concept in ("ham", "tuxedo", "volleyball", "beetle") for i in (1, 2)]
TESTED = ["beetle/beetle_13s.jpg", "tuxedo/tuxedo_13s.jpg"]
COLUMNS = "onset duration eventnumber isteststim object sequencenumber stim stimnumber stimname"


def events(n_test: int = 3) -> list[dict[str, object]]:
    shown = [(image, 0) for image in IMAGES] + [(image, 1) for image in TESTED * n_test]
    rows = []
    for i, (image, test) in enumerate(shown):
        concept, name = image.split("/")
        values = (38306 + 100 * i, 50, i, test, concept, i // 4, f"stimuli\\{concept}\\{name}", 1, name)
        rows.append(dict(zip(COLUMNS.split(), values, strict=True)))
    return rows


def write_events(file: Path, rows: list[dict[str, object]]) -> None:
    lines = ["\t".join(map(str, row)) for row in [list(rows[0]), *(list(row.values()) for row in rows)]]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write(root: Path, subject: str, ch_names: list[str], seed: int = 0, n_markers: int = 0) -> np.ndarray:
    folder = root / subject / "eeg"
    folder.mkdir(parents=True)
    data = 1e-5 * np.random.default_rng(seed).standard_normal((len(ch_names), 42_000))
    base, markers = f"{subject}_task-rsvp_eeg", np.column_stack([np.arange(n_markers), np.ones(n_markers, int)])
    pybv.write_brainvision(
        data=data, sfreq=1000, ch_names=ch_names, fname_base=base, folder_out=folder, events=markers
    )
    write_events(folder / f"{subject}_task-rsvp_events.tsv", events())
    return data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ds003825")
    write(root, "sub-01", list(THINGS_EEG1_CHANNELS))
    write(root, "sub-02", list(THINGS_EEG1_CHANNELS))
    mixed = [*THINGS_EEG1_CHANNELS, *OTHER_64]
    write(root, "sub-49", [mixed[i] for i in np.random.default_rng(1).permutation(127)])
    (root / "test_images.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(TESTED).encode() + b"\r\n")
    (root / "participants.tsv").write_text("participant_id\texclude\nsub-01\t1\nsub-02\t0\nsub-49\t0\n")
    return root


def test_people_channels_splits_and_signal(root: Path) -> None:
    source = ThingsEeg1(root=root).source()
    read = all_blocks(source)
    assert list(read) == ["sub-02", "sub-49"]  # sub-01 is excluded by the data set
    for name, (data, columns, blocks) in read.items():
        epochs = blocks[0][0]
        assert data.shape == (4 + 6, 63, 276) and epochs.ch_names == THINGS_EEG1_CHANNELS
        assert (epochs.sfreq, epochs.tmin, epochs.subject) == (250.0, pytest.approx(-0.1), name)
        assert np.abs(data.mean(axis=1)).max() < 1e-11
        assert columns["image"] == [*IMAGES[:2], *IMAGES[4:6], *TESTED * 3]
        assert columns["split"] == ["train"] * 4 + ["test"] * 6
        assert columns["repetition"] == [0] * 4 + [0, 0, 1, 1, 2, 2]
        train, test = (
            {c for c, s in zip(columns["concept"], columns["split"], strict=True) if s == split}
            for split in ("train", "test")
        )
        assert not train & test


def test_the_signal_is_that_of_the_published_preprocessing(root: Path) -> None:
    file = root / "sub-02" / "eeg" / "sub-02_task-rsvp_eeg.vhdr"
    raw = mne.io.read_raw_brainvision(file, verbose="error")
    samples = [38306 + 100 * i for i in range(14)]
    expected = things_eeg(raw, np.column_stack([samples, np.zeros(14, int), np.arange(14) + 1]), drop_last_sample=True)
    config = ThingsEeg1(root=root, subjects=("02",), with_unassigned=True, drop_last_sample=True)
    data, columns, _ = all_blocks(config)["sub-02"]
    np.testing.assert_array_equal(data, expected.data)
    assert columns["split"] == ["train"] * 2 + [""] * 2 + ["train"] * 2 + [""] * 2 + ["test"] * 6


def test_a_session_may_have_more_markers_than_an_upload(tmp_path: Path) -> None:
    write(tmp_path, "sub-03", list(THINGS_EEG1_CHANNELS), n_markers=MAX_LINES + 1)
    (tmp_path / "test_images.csv").write_text("\n".join(TESTED))
    data, _, _ = all_blocks(ThingsEeg1(root=tmp_path))["sub-03"]
    assert data.shape == (4 + 6, 63, 276)


def test_people_that_are_named_are_kept(root: Path) -> None:
    assert [part.name for part in ThingsEeg1(root=root, subjects=("01",)).parts()] == ["sub-01"]
    assert len(ThingsEeg1(root=root, with_excluded=True).parts()) == 3


def test_a_missing_channel_is_named() -> None:
    names = [name for name in THINGS_EEG1_CHANNELS if name != "FCz"]
    raw = mne.io.RawArray(np.zeros((62, 10)), mne.create_info(names, 1000.0, "eeg"), verbose="error")
    with pytest.raises(ValueError, match=r"lacks the channels \['FCz'\] of the 63"):
        pick_channels(raw, Path("sub-03_eeg.vhdr"))


def test_somebody_who_saw_no_test_picture_does_not_train_on_their_concepts(tmp_path: Path) -> None:
    write_events(tmp_path / "events.tsv", events(0))
    (tmp_path / "test_images.csv").write_text("\n".join(TESTED))
    _, metadata = read_rsvp_events(tmp_path / "events.tsv", tmp_path / "test_images.csv")
    assert [c for c, s in zip(metadata.concept, metadata.split, strict=True) if s] == ["ham"] * 2 + ["volleyball"] * 2


def test_tables_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    raw = mne.io.RawArray(np.zeros((1, 9000)), mne.create_info(["O1"], 1000.0, "eeg"), verbose="error")
    with pytest.raises(ValueError, match="not different whole numbers"):
        onset_samples(np.array([38.306, 38.406]), raw, tmp_path)
    with pytest.raises(ValueError, match="leave a recording of 9 s"):
        onset_samples(np.array([100.0, 9000.0]), raw, tmp_path)
    write_events(tmp_path / "events.tsv", events())
    (tmp_path / "test_images.csv").write_text(TESTED[0])
    with pytest.raises(ValueError, match=r"tests pictures \['tuxedo/tuxedo_13s.jpg'\]"):
        read_rsvp_events(tmp_path / "events.tsv", tmp_path / "test_images.csv")


def test_real_events(shared_data: Path) -> None:
    folder = shared_data / "metadata" / "ds003825_things_eeg1"
    onsets, metadata = read_rsvp_events(folder / "sub-02_task-rsvp_events_first4000.tsv", folder / "none.csv")
    assert len(onsets) == 4000 and onsets[0] == 38306 and metadata.image[0] == "volleyball/volleyball_08s.jpg"
    assert set(metadata.split) == {"train"} and set(metadata.repetition) == {0}
    raw = mne.io.RawArray(np.zeros((1, int(onsets.max()) + 1)), mne.create_info(["O1"], 1000.0, "eeg"), verbose="error")
    np.testing.assert_array_equal(onset_samples(onsets, raw, folder), onsets)


def test_real_channels_and_people(shared_data: Path) -> None:
    with np.load(shared_data / "things_eeg1" / "erp_by_category_36subjects.npz") as arrays:
        assert tuple(arrays["ch_names"].tolist()) == THINGS_EEG1_CHANNELS
