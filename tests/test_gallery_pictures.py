"""Galleries of picture files: square thumbnails, captions, categories that begin with pictures of different things."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generation.gallery_pictures import category_gallery, picture_gallery, picture_thumb

CLASSES = ("animal", "tool")
PATTERNS = {"animal": ["ant_*.png", "dog_*.png"], "tool": ["saw_*.png"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("ant_1", "ant_2", "dog_1", "dog_2", "saw_1"):
        picture = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (tmp_path / "dog_1.txt").write_text("a dog\n")
    return tmp_path


def test_the_middle_square_is_kept(root: Path) -> None:
    thumb = picture_thumb(root / "ant_1.png", 20)
    with Image.open(root / "ant_1.png") as whole:
        assert np.array_equal(thumb, np.asarray(whole)[:, 5:25])


def test_captions_come_from_a_text_or_the_name(root: Path) -> None:
    files = {"dogs/dog_1.png": root / "dog_1.png", "dogs/dog_2.png": root / "dog_2.png"}
    gallery = picture_gallery(files, np.eye(2, dtype=np.float32), size=16)
    assert gallery.captions == ("a dog", "dogs, dog 2") and gallery.thumbs.shape == (2, 16, 16, 3)


def test_a_category_begins_with_different_things(root: Path) -> None:
    gallery = category_gallery(root, PATTERNS, CLASSES, size=16)
    assert gallery.names == ("ant_1.png", "dog_1.png", "ant_2.png", "dog_2.png", "saw_1.png")
    assert gallery.captions == ("animal",) * 4 + ("tool",)
    assert gallery.image_embeds.tolist() == [[1.0, 0.0]] * 4 + [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ({"animal": ["ant_*.png"]}, "expected .'animal', 'tool'."),
        ({"animal": ["cow_*.png"], "tool": ["saw_*.png"]}, "matches 'cow_"),
        ({"animal": ["dog_*.txt"], "tool": ["saw_*.png"]}, "matches 'dog_"),
        ({"animal": ["*.png"], "tool": ["saw_*.png"]}, "saw_1.png is of 'animal' and of 'tool'"),
    ],
)
def test_galleries_that_do_not_fit_are_refused(root: Path, patterns: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        category_gallery(root, patterns, CLASSES)
