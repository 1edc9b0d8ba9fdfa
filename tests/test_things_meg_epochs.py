"""THINGS-MEG from preprocessed epochs, in split files, with metadata or with the table."""

import re
from pathlib import Path

import mne
import numpy as np
import pandas
import pytest
import things_meg_layout as layout
from public_layouts import all_blocks

from encoders.datasets import things_meg_epochs as module
from encoders.datasets.things_meg_epochs import ThingsMegEpochs
from encoders.datasets.things_meg_sensors import things_meg_ch_names

N_SESSIONS = 3


def rows() -> list[dict[str, str]]:
    """Three sessions of 20 trials; each session tests a picture 12 times."""
    found = []
    for session in range(N_SESSIONS):
        for row in layout.trials(0) + layout.trials(1):
            changed = dict(row, session_nr=str(session + 1))
            if row["trial_type"] != "catch":
                changed["image_path"] = re.sub(
                    r"([a-z_]+)_(\d\d)", rf"\g<1>{session}x_\2", row["image_path"].split("/")[-1]
                )
                changed["image_path"] = row["image_path"].split("/")[0] + "/" + changed["image_path"]
                changed["things_image_nr"] = str(float(row["things_image_nr"]) + 1000 * session)
            found.append(changed)
    return found


def write(root: Path, with_metadata: bool = True, changed_event: int | None = None) -> np.ndarray:
    table = rows()
    folder = root / "derivatives" / "preprocessed"
    folder.mkdir(parents=True)
    names = [f"{name}-1609" for name in things_meg_ch_names()]
    data = np.random.default_rng(0).standard_normal((len(table), 271, 281)).astype(np.float32)
    numbers = np.array([int(float(row["things_image_nr"])) for row in table])
    if changed_event is not None:
        numbers[changed_event] += 1
    events = np.column_stack([np.arange(len(table)) * 300, np.zeros(len(table), int), numbers])
    metadata = pandas.DataFrame(table).astype({"things_image_nr": float, "session_nr": int, "run_nr": int})
    epochs = mne.EpochsArray(
        data, mne.create_info(names, 200.0, "mag"), events, -0.1, metadata=metadata if with_metadata else None,
        verbose="error",
    )  # fmt: skip
    epochs.save(folder / "preprocessed_P1-epo.fif", split_size="12MB", verbose="error")
    (root / "sourcedata").mkdir()
    lines = [",".join(table[0]), *(",".join(row.values()) for row in table)]
    (root / "sourcedata" / "sample_attributes_P1.csv").write_text("\n".join(lines))
    return data


@pytest.mark.parametrize("with_metadata", [True, False])
def test_sessions_of_split_files(tmp_path: Path, with_metadata: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path, with_metadata)
    assert len(list((tmp_path / "derivatives" / "preprocessed").glob("*.fif"))) >= 2
    monkeypatch.setattr(module, "BLOCK_EPOCHS", 5)
    read = all_blocks(ThingsMegEpochs(root=tmp_path).source())
    assert list(read) == [f"sub-BIGMEG1_ses-{i + 1:02d}" for i in range(N_SESSIONS)]
    table = rows()
    for session, (got, columns, blocks) in enumerate(read.values()):
        kept = [
            i
            for i, row in enumerate(table)
            if row["session_nr"] == str(session + 1)
            and row["trial_type"] != "catch"
            and not re.search(r"boat\dx_0", row["image_path"])
        ]
        np.testing.assert_allclose(got, data[kept] * 1e-14, rtol=1e-6)
        assert len(kept) == 14 and [epochs.n_epochs for epochs, _ in blocks] == [5, 5, 4]
        epochs = blocks[0][0]
        assert epochs.ch_names == things_meg_ch_names() and epochs.n_times == 281
        assert (epochs.sfreq, epochs.tmin) == (200.0, pytest.approx(-0.1))
        assert [Path(i).name for i in columns["image"]] == [Path(table[i]["image_path"]).name for i in kept]
        assert columns["split"].count("test") == 12 and columns["split"].count("train") == 2
    everything = ThingsMegEpochs(root=tmp_path, with_unassigned=True, subjects=("1",)).parts()
    assert sum(epochs.n_epochs for part in everything for epochs, _ in part.blocks()) == 60
    assert len(everything[0].inputs) >= 2


def test_events_that_differ_from_the_metadata_are_refused(tmp_path: Path) -> None:
    row = next(i for i, row in enumerate(rows()) if row["trial_type"] == "exp")
    write(tmp_path, changed_event=row)
    with pytest.raises(ValueError, match=f"1 of 60 events show another picture .*event {row}: "):
        ThingsMegEpochs(root=tmp_path).parts()


def test_a_wrong_unit_and_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has preprocessed_PX-epo.fif of \[\], expected some"):
        ThingsMegEpochs(root=tmp_path).parts()
    write(tmp_path)
    with pytest.raises(ValueError, match=r"of \['1'\], expected \['2'\]"):
        ThingsMegEpochs(root=tmp_path, subjects=("2",)).parts()
    with pytest.raises(ValueError, match="preprocessed_P1-epo.fif: values vary by 1 .* set unit to 'standard'"):
        list(ThingsMegEpochs(root=tmp_path, unit="SI").parts()[0].blocks())
