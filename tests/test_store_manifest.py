"""``store.json`` comes back as it was written, and not one of its bytes can change unnoticed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders import durable_files, store_manifest
from encoders.store_manifest import (
    BuildPlan,
    InputFile,
    PlannedPart,
    Shard,
    SignalDescription,
    StoredFile,
    StoreManifest,
    positions_from_json,
    positions_to_json,
    replace_durably,
    write_durably,
)

POSITIONS = np.asarray([[0.1, 0.2, -0.3], [np.nan, 0.0, 1 / 3]], dtype=np.float32)


def manifest(**changes: Any) -> StoreManifest:
    planned = PlannedPart(name="sub-01", inputs=(InputFile(path="a/b.fif", n_bytes=3, mtime_ns=1 << 60),))
    plan = BuildPlan(dataset="toy", settings="{}", dtype="float16", shard_bytes=100, parts=(planned,))
    given: dict[str, Any] = {
        "plan": plan,
        "signal": SignalDescription(sfreq=250.0, tmin=-0.1, n_times=4, ch_names=("A", "B"), ch_types=("eeg", "mag")),
        "scales": (1e-6, 1e-15),
        "metadata": StoredFile(file="epochs.parquet", n_bytes=9, sha256="0" * 64),
        "shards": (Shard(file="sub-01-0000.npy", n_bytes=9, sha256="1" * 64, n_epochs=7),),
        "part_epochs": (7,),
        "part_positions": (0,),
        "positions": (positions_to_json(POSITIONS),),
    }
    return StoreManifest(**{**given, **changes})


def test_round_trip() -> None:
    one = manifest()
    assert StoreManifest.from_text(one.to_text()) == one
    assert np.array_equal(positions_from_json(one.positions[0]), POSITIONS, equal_nan=True)
    assert (one.n_epochs, one.row_shape) == (7, (2, 4))


def test_every_flipped_bit_of_the_text_is_noticed() -> None:
    text = manifest().to_text()
    for place in range(len(text)):
        for bit in (1, 4, 32):
            changed = text[:place] + chr(ord(text[place]) ^ bit) + text[place + 1 :]
            with pytest.raises(ValueError, match=r"store\.json"):
                StoreManifest.from_text(changed)


@pytest.mark.parametrize("changed", ["", "[]", "3", "{}", '{"store": {}}', manifest().to_text()[:-40]])
def test_other_content_is_refused(changed: str) -> None:
    with pytest.raises(ValueError, match=r"store\.json"):
        StoreManifest.from_text(changed)


def test_a_field_of_a_later_version_is_refused_by_name() -> None:
    content = {**json.loads(manifest().to_text())["store"], "later": 1}
    with pytest.raises(ValueError, match=r"store\.json cannot be used: later"):
        StoreManifest.from_text(store_manifest._rendered(content))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"part_epochs": (6,)}, "parts hold 6 epochs, shards 7"),
        ({"part_epochs": (3, 4)}, "1 parts, but 2 counts"),
        ({"part_positions": (1,)}, "point outside 1 positions"),
        ({"scales": (1e-6,)}, "2 channel names"),
        ({"positions": (positions_to_json(POSITIONS[:1]),)}, "2 channel names"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        manifest(**changes)


@pytest.mark.parametrize("name", ["../evil.npy", "/etc/passwd", "a/b.npy", "", ".hidden"])
def test_a_file_name_cannot_leave_the_store(name: str) -> None:
    with pytest.raises(ValueError, match="file"):
        StoredFile(file=name, n_bytes=1, sha256="0" * 64)


def test_a_file_is_described_as_it_was_meant(tmp_path: Path) -> None:
    entry = write_durably(tmp_path / "a.npy", [b"ab", memoryview(np.arange(3, dtype=np.uint8))])
    assert (tmp_path / "a.npy").read_bytes() == b"ab\0\1\2"
    assert (entry.file, entry.n_bytes) == ("a.npy", 5)
    assert entry.sha256 == durable_files.file_sha256(tmp_path / "a.npy")


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_durably(tmp_path / "x", b"old", tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_manifest.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_durably(tmp_path / "x", b"new", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"
