import numpy as np
import pytest
from PIL import Image

from generation.pictures import PictureSet, split_folder, write_folder, write_scenes


@pytest.fixture
def photo_folder(tmp_path):
    source = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for concept in range(25):
        (source / f"thing_{concept}").mkdir(parents=True)
        for i in range(5):
            pixels = generator.integers(0, 255, (40, 50 + concept, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(source / f"thing_{concept}" / f"photo_{i}.png")
    return source


def test_scene_set_round_trip(tmp_path):
    factors = write_scenes(tmp_path / "set", "val", 300, seed=4)
    found = PictureSet.load(tmp_path / "set")
    assert len(found) == len(found.captions) == 300
    assert np.array_equal(found.concepts, factors.concept)
    assert not (tmp_path / "set" / "images.part.npy").exists()


def test_contrastive_rows_come_in_groups_of_look_alikes(tmp_path):
    write_scenes(tmp_path / "set", "train", 1500, seed=0)
    found = PictureSet.load(tmp_path / "set")
    rows = found.contrastive_rows(np.random.default_rng(0), 64)
    assert len(rows) == len(set(rows.tolist())) == 64
    _, counts = np.unique(found.groups[rows], return_counts=True)
    assert (counts >= 2).mean() > 0.8
    again = found.contrastive_rows(np.random.default_rng(0), 64)
    assert np.array_equal(rows, again)


def test_folder_captions_from_names_text_files_and_table(photo_folder, tmp_path):
    (photo_folder / "thing_0" / "photo_0.txt").write_text("a text beside it\n")
    (photo_folder / "captions.csv").write_text("file,caption\nthing_1/photo_1.png,from the table\n")
    assert write_folder(photo_folder, tmp_path / "set") == 125
    sentences = PictureSet.load(tmp_path / "set").captions
    assert sentences[0] == "a text beside it"
    assert "from the table" in sentences
    assert "thing 2 photo 3" in sentences


def test_folder_splits_share_no_concept(photo_folder, tmp_path):
    split_folder(photo_folder, tmp_path / "sets", 200)
    parts = {split: PictureSet.load(tmp_path / "sets" / split) for split in ("train", "val", "test")}
    members = [set(part.concepts.tolist()) for part in parts.values()]
    assert not members[0] & members[1] and not members[0] & members[2] and not members[1] & members[2]
    assert len(parts["test"]) == len(members[2]) == 5


def test_unreadable_picture_is_named(photo_folder, tmp_path):
    (photo_folder / "thing_3" / "photo_2.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"photo_2\.png"):
        write_folder(photo_folder, tmp_path / "set")


def test_too_few_pictures_are_refused(tmp_path):
    (tmp_path / "few").mkdir()
    with pytest.raises(ValueError, match="0 pictures, expected at least 100"):
        write_folder(tmp_path / "few", tmp_path / "set")
