"""What a part must be to become one of a store, and what is kept of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_recordings import ToySource, changed, toy_source

from encoders import store_part
from encoders.store_build import build_store


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sfreq": 250.0}, r"sfreq 250\.0, .* has 100\.0"),
        ({"tmin": 0.0}, r"tmin 0\.0, .* has -0\.1"),
        ({"n_times": 21}, r"n_times 21, .* has 20"),
        ({"ch_names": ("Cz", "Oz", "MLC11", "MEG0112")}, r"\['Oz'\], only the other \['Pz'\]"),
        ({"ch_names": ("Pz", "Cz", "MLC11", "MEG0112")}, r"channel 0 is Pz \(eeg\) and Cz \(eeg\)"),
        ({"ch_types": ("eeg", "eeg", "grad", "grad")}, r"channel 2 is MLC11 \(grad\) and MLC11 \(mag\)"),
    ],
)
def test_parts_that_disagree_are_both_named(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    source = changed(toy_source(tmp_path / "in"), 2, **changes)
    with pytest.raises(ValueError, match="part sub-03_ses-01 has .*, part sub-01_ses-01 has ") as caught:
        build_store(source, tmp_path / "out")
    assert caught.match(said)
    assert not (tmp_path / "out" / "store.json").exists()


def test_times_may_differ_by_rounding(tmp_path: Path) -> None:
    source = changed(toy_source(tmp_path / "in"), 2, tmin=-0.1 + 1e-12)
    assert build_store(source, tmp_path / "out").info.tmin == -0.1


def test_a_part_without_epochs_is_named(tmp_path: Path) -> None:
    source = changed(toy_source(tmp_path / "in"), 1, n_epochs=0)
    with pytest.raises(ValueError, match="part sub-02_ses-01: it gives no epochs"):
        build_store(source, tmp_path / "out")


def test_inputs_that_change_while_they_are_read_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = toy_source(tmp_path / "in")
    real = store_part.to_stored

    def meanwhile(*arguments: object) -> object:
        source.toy_parts[0].file.write_bytes(b"longer" * 50)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store_part, "to_stored", meanwhile)
    with pytest.raises(ValueError, match="part sub-01_ses-01: its input files changed while they were read"):
        build_store(source, tmp_path / "out")


def test_a_moved_data_set_is_the_same_and_folders_count_as_inputs(tmp_path: Path) -> None:
    source = toy_source(tmp_path / "in")
    folder = tmp_path / "in" / "run.ds"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "meg4").write_bytes(b"12345")
    source = changed(source, 0, file=folder)
    store = build_store(source, tmp_path / "out")
    state = store.manifest.plan.parts[0].inputs[0]
    assert (state.path, state.n_bytes) == ("run.ds", 5)
    shutil.move(tmp_path / "in", tmp_path / "elsewhere")
    moved = ToySource(tuple(replace(p, file=tmp_path / "elsewhere" / p.file.name) for p in source.toy_parts))
    build_store(moved, tmp_path / "out")


def test_positions_are_kept_per_part_and_averaged_over_the_whole(tmp_path: Path) -> None:
    store = build_store(toy_source(tmp_path / "in"), tmp_path / "out")
    assert np.allclose(store.info.positions, 0.02)
    assert np.allclose(store.epochs(slice(0, 5)).positions, 0.01)
    assert np.allclose(store.epochs(slice(50, 52)).positions, 0.03)


def test_an_epoch_larger_than_a_shard_has_one_to_itself(tmp_path: Path) -> None:
    store = build_store(toy_source(tmp_path / "in", 1, n_epochs=3), tmp_path / "out", shard_bytes=1)
    assert [shard.n_epochs for shard in store.manifest.shards] == [1, 1, 1]


def test_single_precision_takes_twice_the_space(tmp_path: Path) -> None:
    source = toy_source(tmp_path / "in")
    store = build_store(source, tmp_path / "out", dtype="float32")
    assert store.array().dtype == np.float32
    assert np.abs(store.read(slice(None)) / source.signal() - 1).max() < 2.0**-22
