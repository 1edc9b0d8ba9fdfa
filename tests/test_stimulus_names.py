"""One picture has one id in every data set of THINGS."""

import csv
from pathlib import Path

import pytest

from encoders.datasets.stimulus_names import bare_channel_name, concept_of, image_id


@pytest.mark.parametrize(
    "path",
    [
        "training_images/00001_aardvark/aardvark_01b.jpg",
        "train_images/00001_aardvark/aardvark_01b.jpg",
        "00001_aardvark/aardvark_01b.jpg",
        "images_meg/aardvark/aardvark_01b.jpg",
        "images_test_meg/aardvark_01b.jpg",
        "stimuli\\aardvark\\aardvark_01b.jpg",
        "/data/Image_set_Resize/test_images/00012_aardvark/aardvark_01b.jpg",
        "aardvark/aardvark_01b.jpg",
        " aardvark_01b.jpg\n",
        "./images\\aardvark//aardvark_01b.jpg",
    ],
)
def test_every_layout_gives_one_id(path: str) -> None:
    assert image_id(path) == "aardvark/aardvark_01b.jpg"
    assert concept_of(image_id(path)) == "aardvark"
    assert image_id(image_id(path)) == image_id(path)


@pytest.mark.parametrize(
    ("path", "image", "concept"),
    [
        ("images_test_meg/coat_rack_13s.jpg", "coat_rack/coat_rack_13s.jpg", "coat_rack"),
        ("test_images/00002_bow1/bow1_06s.jpg", "bow1/bow1_06s.jpg", "bow1"),
        ("images_things/dog/dog_plus.jpg", "dog/dog_plus.jpg", "dog"),
        ("stimuli/images/00123.jpg", "00123.jpg", ""),
        ("images_catch_meg/catch047.jpg", "catch047.jpg", ""),
        ("faces/anna.png", "faces/anna.png", "faces"),
    ],
)
def test_other_names(path: str, image: str, concept: str) -> None:
    assert (image_id(path), concept_of(image_id(path))) == (image, concept)


def test_no_path_is_refused() -> None:
    with pytest.raises(ValueError, match="is no path of a picture"):
        image_id(" / ")


def test_serial_numbers_of_sensors_are_stripped() -> None:
    assert [bare_channel_name(name) for name in ("MLC11-1609", "MZP01", "O1", "UPPT001")] == [
        "MLC11",
        "MZP01",
        "O1",
        "UPPT001",
    ]


def test_real_events_of_things_eeg1_give_the_concepts_that_they_name(shared_data: Path) -> None:
    file = shared_data / "metadata" / "ds003825_things_eeg1" / "sub-02_task-rsvp_events_first4000.tsv"
    with file.open() as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    with (shared_data / "metadata" / "things_concepts.tsv").open(encoding="utf-8-sig") as lines:
        concepts = {row["uniqueID"] for row in csv.DictReader(lines, delimiter="\t")}
    assert len(rows) == 4000 and len(concepts) == 1854
    for row in rows:
        assert concept_of(image_id(row["stim"])) == row["object"] and row["object"] in concepts
        assert image_id(row["stim"]) == f"{row['object']}/{row['stimname']}"
