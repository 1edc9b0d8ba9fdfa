"""Who is calibrated for a bundle, as far as a caller may know: the folder of one's own group of users, no other.

A person's name is personal data, so who may not know it gets the same answer as for a name that does not exist.
"""

from pathlib import Path

from generation.person_files import PersonFile, list_people


class People:
    """Look people up in a folder; new calibrations are there with the next request.

    Parameters
    ----------
    folder : str
        Empty: nobody is calibrated.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) if folder else None

    def known(self, bundle_id: str, owner: str) -> tuple[str, ...]:
        """Name the people that a caller may know; ``owner`` is that of `serving.access.Caller`, empty without keys."""
        return tuple(dict.fromkeys(file.subject for file in self._open(bundle_id, owner)))

    def files(self, bundle_id: str, owner: str, subject: str) -> tuple[PersonFile, ...]:
        """Find the calibrations of one person.

        Raises
        ------
        ValueError
            If without keys two groups have a person of this name.
        """
        found = tuple(file for file in self._open(bundle_id, owner) if file.subject == subject and subject)
        groups = sorted({file.group for file in found})
        if len(groups) > 1:
            raise ValueError(f"groups {groups} have calibrations of a person with this name each; rename one of them")
        return found

    def _open(self, bundle_id: str, owner: str) -> tuple[PersonFile, ...]:
        if self._folder is None:
            return ()
        group = owner.partition("/")[0]
        return tuple(file for file in list_people(self._folder, bundle_id) if group in ("", file.group))
