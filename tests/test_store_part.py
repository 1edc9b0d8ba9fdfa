"""What a part must be to become one of a store, and what is kept of it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from toy_recordings import ToyPart, ToySource, changed, toy_source

from encoders import store_part
from encoders.epoch_source import EpochMetadata
from encoders.epochs import SignalEpochs
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


def test_a_disagreement_stops_the_build_before_more_is_read_and_does_so_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    source = changed(toy_source(tmp_path / "in", 4, log=log), 1, sfreq=250.0)
    for _ in range(2):
        with pytest.raises(ValueError, match="part sub-02_ses-01 has sfreq"):
            build_store(source, tmp_path / "out")
        assert log.read_text().split() == ["sub-01_ses-01", "sub-02_ses-01"]


@dataclass(frozen=True)
class MixedPart(ToyPart):
    """Two toy parts in one, which may not fit together."""

    second: ToyPart | None = None

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        yield from super().blocks()
        assert self.second is not None
        yield from self.second.blocks()


def test_blocks_of_a_part_must_agree(tmp_path: Path) -> None:
    toy = toy_source(tmp_path / "in", 1).toy_parts[0]
    other = replace(toy, ch_names=("Cz", "Oz", "MLC11", "MEG0112"))
    mixed = MixedPart(toy.name, toy.file, 0, second=other)
    with pytest.raises(ValueError, match=r"part sub-01_ses-01: this block has 4 channels, the first block .*'Oz'"):
        build_store(ToySource((mixed,)), tmp_path / "out")
    fits = replace(mixed, second=replace(toy, seed=1))
    assert build_store(ToySource((fits,)), tmp_path / "out2").info.positions[0, 0] == np.float32(0.015)


def test_blocks_need_a_row_of_metadata_per_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = toy_source(tmp_path / "in", 1)
    monkeypatch.setattr(EpochMetadata, "__len__", lambda self: 3)
    with pytest.raises(ValueError, match="a block has 12 epochs, its metadata 3 rows"):
        build_store(source, tmp_path / "out")


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
