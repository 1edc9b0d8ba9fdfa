"""Scaling before half precision, and shards that are checked once and named when they are wrong."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from toy_recordings import SPREAD, toy_signal

from encoders import store_shards
from encoders.modality import CHANNEL_KINDS
from encoders.store_manifest import Shard, StoredFile
from encoders.store_shards import (
    ROUND_TRIP_FLOOR,
    ROUND_TRIP_RELATIVE,
    ShardFiles,
    from_stored,
    scales_of,
    to_stored,
    write_shard,
)

TYPES = ("eeg", "mag", "grad")
NAMES = ("Cz", "MLC11", "MEG0112")


class InFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, entry: StoredFile) -> Path:
        return self.folder / entry.file


def written(folder: Path, n_shards: int = 2) -> ShardFiles:
    shards = []
    for i in range(n_shards):
        stored = to_stored(toy_signal(5, i, TYPES), NAMES, TYPES, "float16")
        shards.append(write_shard(folder / f"s-{i:04d}.npy", stored))
    return ShardFiles(shards, (3, 20), "float16", InFolder(folder))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("kind", list(CHANNEL_KINDS))
def test_float16_of_raw_si_loses_meg_and_ours_keeps_every_kind(kind: str) -> None:
    data = toy_signal(200, 0, (kind,), 50)
    back = from_stored(to_stored(data, ("C",), (kind,), "float16"), scales_of((kind,)))
    floor = ROUND_TRIP_FLOOR / CHANNEL_KINDS[kind].display_scale
    assert (np.abs(back - data) <= ROUND_TRIP_RELATIVE * np.abs(data) + floor).all()
    raw = data.astype(np.float16).astype(np.float32)
    assert (np.abs(raw - data) > ROUND_TRIP_RELATIVE * np.abs(data) + floor).mean() > 0.5
    assert raw.any() == (SPREAD[kind] > 1e-6)  # volts keep a few bits, tesla underflow to 0


def test_values_from_a_femtotesla_fraction_to_the_largest_survive() -> None:
    decades = np.logspace(-17, np.log10(6.5e-11), 4000).astype(np.float32)
    data = decades[:, None, None] * np.asarray([1, -1, 0.5, -0.5], np.float32)
    back = from_stored(to_stored(data, ("M",), ("mag",), "float16"), scales_of(("mag",)))
    assert (np.abs(back - data) <= 2.0**-10 * np.abs(data) + 2.0**-24 * 1e-15).all()
    assert (back != 0).all()


def test_float32_is_kept_to_its_last_bits_and_half_precision_is_stable() -> None:
    data = toy_signal(50, 1, TYPES)
    full = from_stored(to_stored(data, NAMES, TYPES, "float32"), scales_of(TYPES))
    assert np.abs(full / data - 1).max() <= 2.0**-22
    half = to_stored(data, NAMES, TYPES, "float16")
    again = to_stored(from_stored(half, scales_of(TYPES)), NAMES, TYPES, "float16")
    assert np.array_equal(half, again)


@pytest.mark.parametrize("value", [1e-10, -1e-10, np.inf, np.nan])
def test_what_does_not_fit_is_an_error_that_names_epoch_and_channel(value: float) -> None:
    data = toy_signal(4, 0, TYPES)
    data[2, 1, 7] = value
    with pytest.raises(ValueError, match=r"epoch 12, channel MLC11: .* fT cannot be stored, .* at most 65504 fT"):
        to_stored(data, NAMES, TYPES, "float16", first_epoch=10)


def test_an_overflow_of_half_precision_fits_single_precision() -> None:
    data = toy_signal(4, 0, TYPES)
    data[2, 1, 7] = 1e-10
    assert np.isfinite(to_stored(data, NAMES, TYPES, "float32")).all()


def test_an_offset_that_would_drown_the_signal_in_rounding_is_refused() -> None:
    data = toy_signal(4, 0, TYPES)
    data[:, 0] += 0.02  # 20 mV of electrode offset: steps of 16 uV
    with pytest.raises(ValueError, match=r"channel Cz: values around 2e\+04 uV .* remove the offset"):
        to_stored(data, NAMES, TYPES, "float16")
    to_stored(data, NAMES, TYPES, "float32")


def test_flat_channels_and_numerical_dust_are_stored() -> None:
    data = toy_signal(4, 0, TYPES)
    data[:, 0] = 0
    data[:, 1] *= 1e-12
    assert not to_stored(data, NAMES, TYPES, "float16")[:, :2].any()


def test_a_shard_is_a_plain_npy(tmp_path: Path) -> None:
    written(tmp_path, 1)
    plain = np.load(tmp_path / "s-0000.npy", allow_pickle=False)
    assert plain.dtype == np.float16 and plain.shape == (5, 3, 20)
    np.save(tmp_path / "numpy.npy", plain)
    assert (tmp_path / "numpy.npy").read_bytes() == (tmp_path / "s-0000.npy").read_bytes()


def test_maps_are_read_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        written(tmp_path)[0][0] = 0


def test_any_flipped_byte_is_named(tmp_path: Path) -> None:
    files = written(tmp_path)
    path = tmp_path / "s-0001.npy"
    size = path.stat().st_size
    for place in [*range(0, 128, 9), *range(128, size, 37), size - 1]:
        flip(path, place)
        fresh = ShardFiles(files.shards, (3, 20), "float16", InFolder(tmp_path))
        assert fresh[0].shape == (5, 3, 20)
        with pytest.raises(ValueError, match=r"shard s-0001\.npy does not match its sha256"):
            fresh[1]
        flip(path, place)


def test_truncated_grown_and_missing_shards_are_named(tmp_path: Path) -> None:
    files = written(tmp_path)
    content = (tmp_path / "s-0000.npy").read_bytes()
    for wrong in (content[:-1], content[:100], b"", content + b"\0"):
        (tmp_path / "s-0000.npy").write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"shard s-0000\.npy has {len(wrong)} bytes, store.json says"):
            files[0]
    (tmp_path / "s-0000.npy").unlink()
    with pytest.raises(ValueError, match=r"shard s-0000\.npy is missing"):
        files[0]


def test_a_shard_of_another_shape_or_of_objects_is_named(tmp_path: Path) -> None:
    files = written(tmp_path)
    with pytest.raises(ValueError, match=r"holds \(5, 3, 20\) of float16, store.json says \(5, 20, 3\)"):
        ShardFiles(files.shards, (20, 3), "float16", InFolder(tmp_path))[0]
    np.save(tmp_path / "o.npy", np.asarray([{}, None], dtype=object), allow_pickle=True)
    entry = Shard(
        file="o.npy", n_bytes=(tmp_path / "o.npy").stat().st_size, sha256=_sha(tmp_path / "o.npy"), n_epochs=2
    )
    with pytest.raises(ValueError, match=r"shard o\.npy is no plain array"):
        ShardFiles([entry], (3, 20), "float16", InFolder(tmp_path))[0]


def test_each_shard_is_hashed_once_per_process_and_not_again_by_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(store_shards, "file_sha256", lambda path: hashed.append(path.name) or _sha(path))
    files = written(tmp_path)
    assert hashed == []
    for index in (1, 1, 0, 1, 0):
        files[index]
    assert hashed == ["s-0001.npy", "s-0000.npy"]
    worker = pickle.loads(pickle.dumps(files))
    assert np.array_equal(worker[0], files[0])
    assert len(hashed) == 2
    content = (tmp_path / "s-0000.npy").read_bytes()
    (tmp_path / "s-0000.npy").unlink()
    (tmp_path / "s-0000.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="does not match"):  # another file than the parent checked: hashed anew
        pickle.loads(pickle.dumps(files))[0]


def test_no_more_maps_are_open_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_shards, "MAX_OPEN", 3)
    files = written(tmp_path, 6)
    first = [np.array(files[i]) for i in range(6)]
    assert len(files._open) == 3
    assert all(np.array_equal(files[i], first[i]) for i in range(6))


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
