import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_picture_files import write

from alignment import feature_store
from alignment.feature_store import FeatureStore, compute_features
from alignment.picture_files import find_pictures, read_picture


class Counting:
    """A space of pixel means that counts pictures and the most it held at once."""

    embed_dim = 6

    def __init__(self, digest: str = "0123456789abcdef-one") -> None:
        self.digest, self.n_pictures, self.most = digest, 0, 0

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        self.n_pictures += len(images)
        self.most = max(self.most, len(images))
        pixels = images.astype(np.float32)
        return np.concatenate([pixels.mean(axis=(1, 2)), pixels[:, 0, 0]], axis=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty pictures of two sizes, three of them copies of others."""
    for i in range(27):
        write(tmp_path / "pictures" / f"c{i % 4}" / f"{i:02}.png", seed=i, size=(12, 9) if i % 3 else (10, 10))
    for i in range(3):
        write(tmp_path / "pictures" / "copies" / f"{i}.png", seed=i, size=(12, 9) if i % 3 else (10, 10))
    return tmp_path / "pictures"


def expected(names: list[str], folder: Path) -> np.ndarray:
    return np.concatenate([Counting().encode_images(read_picture(folder / name)[None]) for name in names])


def test_rows_are_those_of_each_picture_alone(folder: Path, tmp_path: Path) -> None:
    space, pictures = Counting(), find_pictures(folder)
    features = compute_features(space, pictures, tmp_path / "store", shard_size=8, batch_size=5)
    names = [*reversed(pictures), "c0/00.png", "copies/0.png"]
    rows = features.rows(names)
    assert rows.dtype == np.float32 and np.array_equal(rows, expected(names, folder))
    assert space.n_pictures == 27 and space.most <= 5 and len(list((tmp_path / "store").rglob("*.safetensors"))) == 4


def test_nothing_is_computed_twice_and_only_changes_are(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    compute_features(Counting(), find_pictures(folder), store)
    again = Counting()
    compute_features(again, find_pictures(folder), store)
    assert again.n_pictures == 0
    write(folder / "c1" / "01.png", seed=99)
    (folder / "new.jpg").write_bytes(write(folder / "extra.jpg", seed=100).read_bytes())
    features = compute_features(again, find_pictures(folder), store)
    assert again.n_pictures == 2  # the changed one, and one of two equal new ones
    assert np.array_equal(features.rows(["c1/01.png"]), expected(["c1/01.png"], folder))
    other = Counting("0123456789abcdef-two")  # even one whose short folder name is the same
    compute_features(other, find_pictures(folder), store)
    assert other.n_pictures == 29  # the content that c1/01.png had is still that of its copy
    os.rename(folder, tmp_path / "moved")
    compute_features(again, find_pictures(tmp_path / "moved"), store)
    assert again.n_pictures == 2


def test_arrays_are_pictures_too(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    images[4] = images[0]
    space = Counting()
    features = compute_features(space, {str(i): image for i, image in enumerate(images)}, tmp_path)
    assert np.array_equal(features.rows(["4", "1"]), Counting().encode_images(images[[4, 1]]))
    assert space.n_pictures == 4


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_feature_store import Counting
from alignment.feature_store import compute_features
from alignment.picture_files import find_pictures

class Dying(Counting):
    def encode_images(self, images):
        if self.n_pictures >= 15:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_images(images)

compute_features(Dying(), find_pictures(Path(sys.argv[1])), sys.argv[2], shard_size=4, batch_size=2)
"""


def test_a_killed_run_goes_on(folder: Path, tmp_path: Path, project_root: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-c", KILLED, str(folder), str(store), str(project_root / "tests")]
    assert subprocess.run(command, cwd=project_root, timeout=120).returncode == -signal.SIGKILL
    done = len(FeatureStore(store, Counting().digest))
    assert done == 12
    space, pictures = Counting(), find_pictures(folder)
    features = compute_features(space, pictures, store, shard_size=4)
    assert space.n_pictures == 27 - done
    assert np.array_equal(features.rows(list(pictures)), expected(list(pictures), folder))


def test_a_kill_while_writing_leaves_no_half_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: the shard's bytes are half on the disk."""

    def dying(path: Path, content: bytes) -> None:
        path.with_name(f".{path.name}.1").write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "write_atomic", dying)
        with pytest.raises(KeyboardInterrupt):
            compute_features(Counting(), find_pictures(folder), tmp_path / "store")
    space = Counting()
    compute_features(space, find_pictures(folder), tmp_path / "store")
    assert space.n_pictures == 27


def test_a_damaged_shard_is_named_and_computed_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, pictures = tmp_path / "store", find_pictures(folder)
    compute_features(Counting(), pictures, store, shard_size=9)
    shard = sorted(store.rglob("*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    space = Counting()
    features = compute_features(space, pictures, store, shard_size=9)
    assert space.n_pictures == 9 and shard.name in caplog.text
    assert np.array_equal(features.rows(list(pictures)), expected(list(pictures), folder))


def test_a_broken_picture_is_named_and_finished_shards_stay(folder: Path, tmp_path: Path) -> None:
    (folder / "c3" / "19.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(ValueError, match=r"c3.19\.png cannot be read"):
        compute_features(Counting(), find_pictures(folder), tmp_path / "store", shard_size=5)
    assert len(FeatureStore(tmp_path / "store", Counting().digest)) >= 10


def test_missing_pictures_are_named(folder: Path, tmp_path: Path) -> None:
    features = compute_features(Counting(), find_pictures(folder), tmp_path / "store")
    with pytest.raises(ValueError, match=r"2 of 3 pictures have no embedding, the first \['absent.png', 'x'\]"):
        features.rows(["absent.png", "c0/00.png", "x", "x"])


def test_non_finite_rows_are_never_stored(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, "space")
    with pytest.raises(FloatingPointError, match="'b'"):
        store.add(["a", "b"], np.asarray([[1, 2], [3, np.nan]], np.float32))
    assert len(store) == 0 and not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match="one per row"):
        store.add(["a"], np.ones((2, 2), np.float32))


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded pictures alive at once never exceed a batch."""
    alive: list[int] = [0, 0]

    class Watched(np.ndarray):
        def __del__(self) -> None:
            alive[0] -= 1

    def watched(picture: Path, *, max_pixels: int) -> np.ndarray:
        alive[0] += 1
        alive[1] = max(alive)
        return read_picture(picture).view(Watched)

    for i in range(24):
        write(tmp_path / "p" / f"{i}.png", seed=i)
    monkeypatch.setattr(feature_store, "read_picture", watched)
    monkeypatch.setattr(feature_store.np, "stack", lambda images: np.asarray([np.array(one) for one in images]))
    compute_features(Counting(), find_pictures(tmp_path / "p"), tmp_path / "store", shard_size=12, batch_size=3)
    assert 3 <= alive[1] <= 6
