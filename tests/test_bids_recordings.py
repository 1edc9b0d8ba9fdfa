"""BIDS data sets written by mne-bids are read back, with their events, types and labels."""

import builtins
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pytest
from public_layouts import all_blocks

from encoders.datasets.bids_recordings import (
    BidsRecordings,
    events_file,
    list_recordings,
    read_events,
    read_recording,
)

CH_NAMES, CH_TYPES = ["MEG0111", "MEG0121", "MEG0131", "EOG001", "STI101"], ["mag", "mag", "mag", "eog", "stim"]
EVENT_ID = {"face": 1, "house": 2, "answer": 3}
ONSETS = np.array([150, 400, 650, 900, 1150, 1400])


def recording(seed: int) -> mne.io.RawArray:
    data = 1e-12 * np.random.default_rng(seed).standard_normal((5, 2000))
    data[4] = 0
    raw = mne.io.RawArray(data, mne.create_info(CH_NAMES, 250.0, CH_TYPES), verbose="error")
    raw.info["line_freq"] = 50
    return raw


def write(root: Path, tmp: Path) -> dict[str, np.ndarray]:
    """Two people, two sessions, two runs; FIF in double precision, which mne-bids copies as it is."""
    written = {}
    for i, (subject, session, run) in enumerate(
        (s, e, r) for s in ("01", "02") for e in ("a", "b") for r in ("1", "2")
    ):
        codes = np.random.default_rng(i).permutation([1, 2, 1, 2, 3, 1])
        events = np.column_stack([ONSETS, np.zeros(6, int), codes])
        file = tmp / f"{i}_raw.fif"
        recording(i).save(file, fmt="double", verbose="error")
        raw = mne.io.read_raw_fif(file, verbose="error")
        raw.info["line_freq"] = 50
        path = mne_bids.BIDSPath(
            subject=subject, session=session, task="look", run=run, datatype="meg", root=root, suffix="meg"
        )
        mne_bids.write_raw_bids(raw, path, events=events, event_id=EVENT_ID, overwrite=True, verbose="error")
        written[f"sub-{subject}_ses-{session}_task-look_run-{run}"] = codes
    return written


def write_brainvision(root: Path) -> np.ndarray:
    data = 1e-5 * np.random.default_rng(0).standard_normal((3, 2000))
    raw = mne.io.RawArray(data, mne.create_info(["Fz", "O1", "Oz"], 250.0, "eeg"), verbose="error")
    raw.info["line_freq"] = 50
    events = np.column_stack([ONSETS, np.zeros(6, int), [1, 2, 1, 2, 3, 1]])
    path = mne_bids.BIDSPath(subject="01", task="look", datatype="eeg", root=root)
    mne_bids.write_raw_bids(
        raw, path, events=events, event_id=EVENT_ID, format="BrainVision", allow_preload=True, verbose="error"
    )
    return data


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    root = tmp_path_factory.mktemp("ds000001")
    return root, write(root, tmp_path_factory.mktemp("fif"))


def test_data_events_and_types_come_back(bids: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, written = bids
    paths = list_recordings(root)
    assert [path.basename.removesuffix("_meg.fif") for path in paths] == list(written)
    for i, path in enumerate(paths):
        raw = read_recording(path)
        original = recording(i)
        difference = np.abs(raw.get_data() - original.get_data()).max() / np.abs(original.get_data()).max()
        assert difference < 1e-9
        assert raw.ch_names == CH_NAMES and raw.get_channel_types() == CH_TYPES
        rows = read_events(path)
        codes = written[path.basename.removesuffix("_meg.fif")]
        assert [int(row["value"]) for row in rows] == codes.tolist()
        assert [int(row["sample"]) for row in rows] == ONSETS.tolist()
        assert [EVENT_ID[row["trial_type"]] for row in rows] == codes.tolist()
        np.testing.assert_allclose([float(row["onset"]) for row in rows], ONSETS / 250, rtol=1e-9)


def test_epochs_and_metadata(bids: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, written = bids
    source = BidsRecordings(root=root, trial_types=("face", "house"), tmin=-0.1, tmax=0.4).source()
    assert source.dataset == root.name
    read = all_blocks(source)
    shown: dict[str, list[int]] = {}
    for i, (name, (data, columns, blocks)) in enumerate(read.items()):
        kept = written[name] != 3
        expected = np.stack([recording(i).get_data()[:3, o - 25 : o + 101] for o in ONSETS[kept]])
        np.testing.assert_allclose(data, expected, rtol=1e-6)
        epochs = blocks[0][0]
        assert epochs.ch_names == tuple(CH_NAMES[:3]) and (epochs.sfreq, epochs.tmin) == (250.0, pytest.approx(-0.1))
        subject, session, _, run = name.split("_")
        assert epochs.subject == subject
        assert set(columns["session"]) == {session.removeprefix("ses-")}
        assert set(columns["run"]) == {run.removeprefix("run-")}
        assert [EVENT_ID[image] for image in columns["image"]] == written[name][kept].tolist()
        for image, repetition in zip(columns["image"], columns["repetition"], strict=True):
            shown.setdefault(f"{subject} {image}", []).append(repetition)
    assert all(numbers == list(range(len(numbers))) for numbers in shown.values())
    assert len(BidsRecordings(root=root, subjects=("sub-02",)).parts()) == 4


def test_filter_and_rate(bids: tuple[Path, dict[str, np.ndarray]]) -> None:
    config = BidsRecordings(root=bids[0], subjects=("01",), h_freq=40.0, sfreq=100.0, tmin=-0.1, tmax=0.4)
    epochs, _ = next(iter(config.parts()[0].blocks()))
    assert epochs.sfreq == 100.0 and epochs.data.shape == (6, 3, 51)
    with pytest.raises(ValueError, match="needs an h_freq below 50 Hz, got None"):
        BidsRecordings(root=bids[0], sfreq=100.0)
    with pytest.raises(ValueError, match="is not before tmax"):
        BidsRecordings(root=bids[0], tmin=1.0, tmax=0.0)


def test_brainvision(tmp_path: Path) -> None:
    data = write_brainvision(tmp_path)
    (path,) = list_recordings(tmp_path)
    np.testing.assert_allclose(read_recording(path).get_data(), data, atol=1e-12)
    ((got, columns, _),) = all_blocks(BidsRecordings(root=tmp_path, tmin=0.0, tmax=0.2)).values()
    np.testing.assert_allclose(got[0], data[:, 150:201], rtol=1e-5, atol=1e-11)
    assert columns["image"] == ["face", "house", "face", "house", "answer", "face"]


def test_a_stub_of_a_story_data_set_can_be_split_by_story(tmp_path: Path) -> None:
    """The sidecars of ds004078: MEG, one story per run; a column says which."""
    for run in range(1, 4):
        file = tmp_path / f"{run}_raw.fif"
        info = mne.create_info(["MEG0113", "MEG0112", "MEG0111", "MISC001"], 200.0, ["grad", "grad", "mag", "misc"])
        mne.io.RawArray(1e-12 * np.ones((4, 1000)), info, verbose="error").save(file, verbose="error")
        raw = mne.io.read_raw_fif(file, verbose="error")
        raw.info["line_freq"] = 50
        path = mne_bids.BIDSPath(subject="01", task="RDR", run=str(run), datatype="meg", root=tmp_path / "ds004078")
        events = np.array([[100, 0, 1], [300, 0, 2]])
        mne_bids.write_raw_bids(raw, path, events=events, event_id={"word": 1, "char": 2}, verbose="error")
        (path,) = [p for p in list_recordings(tmp_path / "ds004078") if p.run == str(run)]
        table = events_file(path)
        head, *lines = table.read_text(encoding="utf-8-sig").splitlines()
        table.write_text("\n".join([f"{head}\tstory", *(f"{line}\tstory_{run}" for line in lines)]) + "\n")
    config = BidsRecordings(
        root=tmp_path / "ds004078", stimulus_column="story", trial_types=("word",), tmin=0.0, tmax=1.0, tasks=("RDR",)
    )
    read = all_blocks(config)
    assert config.dataset == "ds004078" and len(read) == 3
    for run, (_, columns, blocks) in enumerate(read.values(), start=1):
        assert columns["run"] == [str(run)] and columns["image"] == [f"story_{run}"]
        assert blocks[0][0].ch_types == ("grad", "grad", "mag")


def test_faults_are_named(bids: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    root, _ = bids
    with pytest.raises(ValueError, match="has no dataset_description.json"):
        list_recordings(tmp_path)
    (tmp_path / "dataset_description.json").write_text("{}")
    with pytest.raises(ValueError, match="has no recording with a table of events"):
        list_recordings(tmp_path)
    with pytest.raises(ValueError, match=r"lacks the columns \['stim_file'\], it has \['onset'"):
        BidsRecordings(root=root, stimulus_column="stim_file").parts()
    with pytest.raises(ValueError, match="no event of .* counts"):
        BidsRecordings(root=root, trial_types=("dog",)).parts()
    with pytest.raises(ValueError, match="column 'trial_type' has .*, allowed are"):
        BidsRecordings(root=root, split_column="trial_type").parts()


def test_without_mne_bids_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name == "mne_bids":
            raise ImportError(name)
        return importing(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs mne-bids.*phosphene\[train\]"):
        list_recordings(tmp_path)
