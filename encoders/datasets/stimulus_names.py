"""One id per picture of THINGS, whatever folder a data set keeps it in.

EEG sets write ``training_images/00001_aardvark/aardvark_01b.jpg``, MEG sets ``images_meg/aardvark/aardvark_01b.jpg`` or
``images_test_meg/aardvark_13s.jpg``, tables of Windows ``stimuli\\aardvark\\aardvark_01b.jpg``. All become
``aardvark/aardvark_01b.jpg``, so that recordings of one picture can be joined.
"""

import re

_THINGS_FILE = re.compile(r"(?P<concept>.+)_(\d+[a-z]*|plus)\.(jpe?g|png)", re.IGNORECASE)
_NUMBERED = re.compile(r"\d+_")
_COLLECTIONS = re.compile(
    r"(?i)images?|stimuli|image_?sets?(_resize)?|images_?set|(training|train|test|validation)_images|"
    r"images_(test_|catch_)?meg|images_things|object_images"
)


def image_id(path: str) -> str:
    """Return the id of a picture from any path to it.

    Parameters
    ----------
    path : str
        Path as a data set writes it, with slashes or back-slashes.

    Returns
    -------
    str
        ``concept/file`` where a concept is known from the file's name or its folder, else the file's name alone.
    """
    parts = [part for part in re.split(r"[/\\]+", path.strip()) if part and part != "."]
    if not parts:
        raise ValueError(f"{path!r} is no path of a picture; give one like 'aardvark/aardvark_01b.jpg'")
    concept = _concept_of_file(parts[-1])
    if not concept and len(parts) > 1 and not _COLLECTIONS.fullmatch(parts[-2]):
        concept = _NUMBERED.sub("", parts[-2], count=1)
    return f"{concept}/{parts[-1]}" if concept else parts[-1]


def concept_of(image: str) -> str:
    """Return the concept of an id that `image_id` made: ``aardvark``; empty where there is none."""
    return image.rpartition("/")[0]


def bare_channel_name(ch_name: str) -> str:
    """Return a channel name without the serial number of a CTF system: ``MLC11-1609`` becomes ``MLC11``."""
    return re.sub(r"-\d+$", "", ch_name.strip())


def _concept_of_file(name: str) -> str:
    match = _THINGS_FILE.fullmatch(name)
    return match["concept"] if match else ""
