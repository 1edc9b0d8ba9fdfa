"""Lists of pictures from a metadata file, from folders and from the table of THINGS-MEG agree and are checked."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from public_layouts import TEST_IMAGES, TRAIN_IMAGES, write_image_folders, write_image_metadata
from things_meg_layout import write_attributes

from encoders.datasets.image_lists import find_image_lists, meg_image_lists, zero_shot_split
from encoders.datasets.stimulus_names import concept_of, image_id


def test_metadata_and_folders_give_the_same_lists(tmp_path: Path) -> None:
    write_image_metadata(tmp_path / "a")
    write_image_folders(tmp_path / "b" / "Image_set")
    write_image_folders(tmp_path / "c", ("train_images", "test_images"))
    (tmp_path / "a" / "deeper").mkdir()
    for root, images in (
        ("a", None),
        ("a/deeper", None),
        ("b", None),
        ("c", None),
        ("x", tmp_path / "a/image_metadata.npy"),
    ):
        lists = find_image_lists(tmp_path / root, images)
        assert (list(lists.train), list(lists.test)) == (TRAIN_IMAGES, TEST_IMAGES)


def test_absent_and_faulty_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give either as 'images'"):
        find_image_lists(tmp_path)
    np.save(tmp_path / "image_metadata.npy", {"train_img_files": []}, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no lists"):
        find_image_lists(tmp_path)
    write_image_metadata(tmp_path, [*TRAIN_IMAGES, TRAIN_IMAGES[0]])
    with pytest.raises(ValueError, match=r"\['aardvark/aardvark_01b.jpg'\] more than once"):
        find_image_lists(tmp_path)
    write_image_metadata(tmp_path)
    with pytest.raises(ValueError, match="the train data has 17 conditions, .* lists 18 pictures"):
        find_image_lists(tmp_path).of("train", 17)


def test_things_meg_at_full_count(tmp_path: Path) -> None:
    file = tmp_path / "sourcedata" / "sample_attributes_P1.csv"
    rows = write_attributes(file)
    assert Counter(row["trial_type"] for row in rows) == {"exp": 22_248, "test": 2_400, "catch": 2_400}
    lists = meg_image_lists(file)
    assert len(lists.train) == 19_848 == 1654 * 12 and len(lists.test) == 200
    assert not {concept_of(image) for image in lists.train} & {concept_of(image) for image in lists.test}
    assert Counter(Counter(concept_of(image) for image in lists.train).values()) == {12: 1654}
    number = {image_id(row["image_path"]): row["things_image_nr"] for row in rows}
    for images in (lists.train, lists.test):
        numbers = [int(number[image]) for image in images]
        assert numbers == sorted(numbers)
    assert find_image_lists(tmp_path, file) == lists


def test_test_pictures_are_those_shown_twelve_times() -> None:
    images = {1: "a/a_01s.jpg", 2: "a/a_13s.jpg", 3: "b/b_01s.jpg", 4: "c/c_01s.jpg"}
    assert zero_shot_split([1, *[2] * 12, 3, 3, *[4] * 11], images) == ({3, 4}, {2})
