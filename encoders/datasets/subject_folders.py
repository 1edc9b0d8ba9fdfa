"""Folders ``sub-01``, ``sub-02`` ... of a data set, and the people that were asked for."""

import re
from collections.abc import Sequence
from pathlib import Path

_FOLDER = re.compile(r"sub-\w+")


def subject_folders(root: Path, subjects: Sequence[str], holds: str) -> list[Path]:
    """Return the folders of people, sorted.

    Parameters
    ----------
    root : Path
        Folder that holds them.
    subjects : sequence of str
        Labels that are wanted, with or without ``sub-``; empty for all.
    holds : str
        Pattern of a file that makes a folder one of this data set, for example ``train.pt``.

    Raises
    ------
    ValueError
        If there is no such folder, or one that was asked for is missing.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give the folder of the data set")
    folders = {
        folder.name: folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and _FOLDER.fullmatch(folder.name) and next(folder.glob(holds), None) is not None
    }
    if not folders:
        raise ValueError(
            f"{root} has no folders sub-XX with {holds}, it has {sorted(path.name for path in root.iterdir())[:10]}; "
            "give the folder that holds the people's folders, or another name of data set"
        )
    wanted = [subject if subject.startswith("sub-") else f"sub-{subject}" for subject in subjects]
    missing = [name for name in wanted if name not in folders]
    if missing:
        raise ValueError(f"people {missing} are not in {root}, it has {list(folders)}; leave them out or download them")
    return [folders[name] for name in wanted or folders]
