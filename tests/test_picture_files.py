from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignment.picture_files import find_pictures, picture_digest, picture_digests, read_picture


def write(path: Path, seed: int = 0, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_pictures_are_found_by_relative_path(tmp_path: Path) -> None:
    for name in ("b/two.PNG", "a/one.png", "three.jpg"):
        write(tmp_path / name)
    write(tmp_path / "a" / "._one.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert list(find_pictures(tmp_path)) == ["a/one.png", "b/two.PNG", "three.jpg"]
    with pytest.raises(ValueError, match="no folder of pictures"):
        find_pictures(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        find_pictures(tmp_path / "empty")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = read_picture(write(tmp_path / "one.png", mode=mode))
    assert image.shape == (9, 12, 3) and image.dtype == np.uint8
    expected = np.asarray(Image.open(tmp_path / "one.png").convert("RGB"))
    assert np.array_equal(image, expected)


def test_broken_pictures_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.jpg", size=(64, 64)).read_bytes()
    cases = {"cut.jpg": whole[: len(whole) // 2], "empty.png": b"", "text.png": b"hello", "script.jpg": b"%!PS-Adobe\n"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            read_picture(tmp_path / name)


def test_other_formats_are_refused_whatever_their_name(tmp_path: Path) -> None:
    for kind in ("TIFF", "GIF", "PPM"):
        Image.new("RGB", (4, 4)).save(tmp_path / "one.png", format=kind)
        with pytest.raises(ValueError, match=r"one\.png cannot be read"):
            read_picture(tmp_path / "one.png")


def test_large_pictures_are_refused_before_decoding(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    for limit in (10, 64_000_000):
        with pytest.raises(ValueError, match=r"bomb\.png cannot be read"):
            read_picture(tmp_path / "bomb.png", max_pixels=limit)
    with pytest.raises(ValueError, match="12 x 9 pixels, at most 100"):
        read_picture(write(tmp_path / "one.png"), max_pixels=100)


def test_digests(tmp_path: Path) -> None:
    one, copy = write(tmp_path / "one.png"), write(tmp_path / "copy.png")
    digests = picture_digests({"a": one, "b": copy, "c": write(tmp_path / "c.png", seed=1)})
    assert digests["a"] == digests["b"] != digests["c"]
    image = read_picture(one)
    assert picture_digest(image) == picture_digest(image[:, ::-1][:, ::-1])
    assert picture_digest(image) != picture_digest(image.reshape(12, 9, 3))
    with pytest.raises(ValueError, match="1 of 2 pictures have no file"):
        picture_digests({"a": one, "b": tmp_path / "absent.png"})
    with pytest.raises(ValueError, match=r"uint8 \(h, w, 3\)"):
        read_picture(image.astype(np.float32))
