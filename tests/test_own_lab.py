"""A folder of a laboratory's own epochs files, with a table of metadata in each."""

from pathlib import Path

import mne
import numpy as np
import pandas
import pytest
from public_layouts import all_blocks

from encoders.datasets import own_lab as module
from encoders.datasets.own_lab import OwnLab

CH_NAMES = ["FCz", "O1", "Oz"]
PICTURES = ["images\\aardvark\\aardvark_01b.jpg", "dog/dog_02s.jpg", "dog/dog_02s.jpg", ""]


def write(file: Path, ch_names: list[str] = CH_NAMES, subject: str = "", **columns: list[object]) -> np.ndarray:
    file.parent.mkdir(parents=True, exist_ok=True)
    data = 1e-5 * np.random.default_rng(len(file.name)).standard_normal((4, len(ch_names), 30))
    info = mne.create_info(ch_names, 100.0, "eeg")
    if subject:
        info["subject_info"] = {"his_id": subject}
    metadata = pandas.DataFrame({"picture": [p or None for p in PICTURES], **columns}) if columns else None
    events = np.column_stack([np.arange(4) * 40, np.zeros(4, int), np.ones(4, int)])
    mne.EpochsArray(data, info, events, -0.1, metadata=metadata, verbose="error").save(file, verbose="error")
    return data


def lab(root: Path, **changes: object) -> OwnLab:
    return OwnLab(root=root, **({"stimulus_column": "picture"} | changes))  # type: ignore[arg-type]


COLUMNS = {
    "object": ["a", "d", "d", ""],
    "set": ["train", "test", "test", ""],
    "day": [1, 1, 2, 2],
    "block": list("1234"),
}
NAMED = {"concept_column": "object", "split_column": "set", "session_column": "day", "run_column": "block"}


def test_columns_and_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "anna-epo.fif", **COLUMNS)
    write(tmp_path / "more" / "ben-epo.fif", subject="B7", **COLUMNS)
    monkeypatch.setattr(module, "BLOCK_EPOCHS", 3)
    source = lab(tmp_path, **NAMED).source()
    assert source.dataset == tmp_path.name and lab(tmp_path, name="ours").dataset == "ours"
    read = all_blocks(source)
    assert list(read) == ["anna", "more_ben"]
    got, columns, blocks = read["anna"]
    np.testing.assert_allclose(got, data, rtol=1e-6)
    assert [epochs.n_epochs for epochs, _ in blocks] == [3, 1]
    assert columns["image"] == ["images/aardvark/aardvark_01b.jpg", "dog/dog_02s.jpg", "dog/dog_02s.jpg", ""]
    assert columns["concept"] == ["a", "d", "d", ""] and columns["split"] == ["train", "test", "test", ""]
    assert columns["session"] == ["1", "1", "2", "2"] and columns["run"] == list("1234")
    assert columns["repetition"] == [0, 0, 1, 0]
    assert blocks[0][0].subject == "anna" and read["more_ben"][2][0][0].subject == "B7"
    assert blocks[0][0].tmin == pytest.approx(-0.1)


def test_pictures_of_things_get_the_ids_of_the_public_sets(tmp_path: Path) -> None:
    write(tmp_path / "anna-epo.fif", **COLUMNS)
    _, columns, _ = all_blocks(lab(tmp_path, things_names=True))["anna"]
    assert columns["image"] == ["aardvark/aardvark_01b.jpg", "dog/dog_02s.jpg", "dog/dog_02s.jpg", ""]
    assert columns["concept"] == ["aardvark", "dog", "dog", ""] and set(columns["split"]) == {""}
    with pytest.raises(ValueError, match="concept_column has no effect"):
        lab(tmp_path, things_names=True, concept_column="object").parts()


def test_channels_that_differ_are_named_and_can_be_chosen(tmp_path: Path) -> None:
    write(tmp_path / "anna-epo.fif", **COLUMNS)
    write(tmp_path / "ben-epo.fif", ["O1", "Oz", "Pz"], **COLUMNS)
    with pytest.raises(ValueError, match=r"ben-epo.fif are not those of .*lacks \['FCz'\] and has \['Pz'\] besides"):
        lab(tmp_path).parts()
    for _, _, blocks in all_blocks(lab(tmp_path, ch_names=("Oz", "O1"))).values():
        assert blocks[0][0].ch_names == ("Oz", "O1")
    with pytest.raises(ValueError, match=r"no channels \['FCz'\]"):
        list(lab(tmp_path, ch_names=("FCz",)).parts()[1].blocks())
    (tmp_path / "ben-epo.fif").unlink()
    write(tmp_path / "ben-epo.fif", CH_NAMES[::-1], **COLUMNS)
    with pytest.raises(ValueError, match="has the same in another order"):
        lab(tmp_path).parts()


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no files whose names end in -epo.fif"):
        lab(tmp_path).parts()
    write(tmp_path / "anna-epo.fif", **COLUMNS)
    with pytest.raises(ValueError, match=r"lacks the columns \['stimulus'\], it has \['picture', 'object'"):
        OwnLab(root=tmp_path).parts()
    with pytest.raises(ValueError, match=r"column 'object' has \['a', 'd'\], allowed are"):
        lab(tmp_path, split_column="object").parts()
    write(tmp_path / "ben-epo.fif", subject="anna", **COLUMNS)
    with pytest.raises(ValueError, match=r"people \['anna'\] have several files"):
        lab(tmp_path).parts()
    write(tmp_path / "carl-epo.fif")
    with pytest.raises(ValueError, match="carl-epo.fif has no metadata; set epochs.metadata"):
        lab(tmp_path).parts()


def test_a_real_file(shared_data: Path) -> None:
    """200 epochs of word pairs; the column of the word is not called stimulus."""
    folder = shared_data / "formats" / "fif_epochs"
    with pytest.raises(ValueError, match=r"lacks the columns \['stimulus'\]"):
        OwnLab(root=folder).parts()
    columns = mne.read_epochs(folder / "n400_32ch-epo.fif", preload=False, verbose="error").metadata.columns
    ((data, read, _),) = all_blocks(OwnLab(root=folder, stimulus_column=str(columns[0]))).values()
    assert len(data) == 200 and len(set(read["image"])) > 1
