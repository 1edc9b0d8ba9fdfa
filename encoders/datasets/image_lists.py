"""Which picture has which number in THINGS-EEG2 and THINGS-MEG: from a metadata file, from folders or from a table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from encoders.datasets.stimulus_names import concept_of, image_id
from encoders.datasets.tables import read_table
from encoders.pickled_files import read_pickled_file

MEG_TEST_REPETITIONS = 12
_PICTURES = {".jpg", ".jpeg", ".png"}
_IMAGE_ROOTS = (
    "",
    "Image_set",
    "image_set",
    "images_set",
    "Image_set_Resize",
    "images",
    "..",
    "../Image_set",
    "../images_set",
)
_METADATA = "image_metadata.npy"
_FOLDERS = {"train": ("training_images", "train_images"), "test": ("test_images",)}


@dataclass(frozen=True)
class ImageLists:
    """Ids of pictures by condition number, which is 1-based: condition k is entry k - 1.

    Attributes
    ----------
    train, test : tuple of str
        Ids as `encoders.datasets.stimulus_names.image_id` gives them.
    source : str
        File or folder that the lists come from.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    source: str

    def of(self, split: str, n_conditions: int) -> tuple[str, ...]:
        """Return the list of ``train`` or ``test``, having checked that it has one entry per condition.

        Raises
        ------
        ValueError
            If it has not.
        """
        images = {"train": self.train, "test": self.test}[split]
        if len(images) != n_conditions:
            raise ValueError(
                f"the {split} data has {n_conditions} conditions, {self.source} lists {len(images)} pictures; give the "
                "image_metadata.npy or the picture folders that belong to this data set as 'images'"
            )
        return images


def find_image_lists(root: Path, images: Path | None = None) -> ImageLists:
    """Find the lists of pictures.

    Parameters
    ----------
    root : Path
        Folder of the data set; ``image_metadata.npy`` and picture folders are looked for here and nearby.
    images : Path, optional
        That file, the folder that holds ``training_images`` (or ``train_images``) and ``test_images``, or for MEG the
        table ``sample_attributes_P1.csv``.

    Raises
    ------
    ValueError
        If there are none, or they list a picture twice.
    """
    places = [images] if images is not None else [root / place for place in _IMAGE_ROOTS]
    for place in places:
        file = place if place.is_file() else place / _METADATA
        if file.is_file():
            return meg_image_lists(file) if file.suffix == ".csv" else _checked(_from_metadata(file))
        train, test = (
            next((place / name for name in _FOLDERS[split] if (place / name).is_dir()), None) for split in _FOLDERS
        )
        if train is not None and test is not None:
            return _checked(ImageLists(_listed(train), _listed(test), str(place)))
    raise ValueError(
        f"neither {_METADATA} nor the folders training_images and test_images lie in {[str(p) for p in places]}; "
        "the data files do not say which picture is which, so give either as 'images'"
    )


def meg_image_lists(attributes: Path) -> ImageLists:
    """Return the pictures of THINGS-MEG in the order of the published zero-shot arrays: by THINGS image number.

    Parameters
    ----------
    attributes : Path
        ``sourcedata/sample_attributes_P1.csv``; pictures that were shown 12 times are test, and training pictures of
        their concepts are left out.
    """
    rows = read_table(attributes, ("trial_type", "things_image_nr", "image_path"))
    shown = [(int(float(row["things_image_nr"])), row["image_path"]) for row in rows if row["trial_type"] != "catch"]
    images = {number: image_id(path) for number, path in shown}
    train, test = zero_shot_split([number for number, _ in shown], images)
    return _checked(
        ImageLists(tuple(images[n] for n in sorted(train)), tuple(images[n] for n in sorted(test)), str(attributes))
    )


def zero_shot_split(numbers: Sequence[int], images: dict[int, str]) -> tuple[set[int], set[int]]:
    """Split the picture numbers of one person: shown 12 times are test, and no training picture shares their concept.

    Returns
    -------
    train, test : set of int
        Numbers in neither are training pictures of tested concepts.
    """
    counts = Counter(numbers)
    test = {number for number, count in counts.items() if count == MEG_TEST_REPETITIONS}
    tested = {concept_of(images[number]) for number in test}
    return {number for number in counts if number not in test and concept_of(images[number]) not in tested}, test


def _from_metadata(file: Path) -> ImageLists:
    lists = read_pickled_file(file)
    keys = ("train_img_concepts", "train_img_files", "test_img_concepts", "test_img_files")
    if not isinstance(lists, dict) or any(key not in lists for key in keys):
        raise ValueError(f"{file} has no lists {list(keys)}; take the image_metadata.npy of THINGS-EEG2")
    train, test = (_joined(lists[f"{split}_img_concepts"], lists[f"{split}_img_files"]) for split in ("train", "test"))
    return ImageLists(train, test, str(file))


def _joined(concepts: Any, files: Any) -> tuple[str, ...]:
    pairs = zip(np.asarray(concepts).tolist(), np.asarray(files).tolist(), strict=True)
    return tuple(image_id(f"{concept}/{file}") for concept, file in pairs)


def _listed(folder: Path) -> tuple[str, ...]:
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in _PICTURES)
    return tuple(image_id(file.relative_to(folder.parent).as_posix()) for file in files)


def _checked(lists: ImageLists) -> ImageLists:
    twice = [image for image, count in Counter(lists.train + lists.test).items() if count > 1]
    if twice or not lists.train or not lists.test:
        raise ValueError(
            f"{lists.source} lists {len(lists.train)} training and {len(lists.test)} test pictures, {twice[:5]} more "
            "than once; expected different pictures in both"
        )
    return lists
