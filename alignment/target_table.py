"""A table of targets of real pictures: image id, embedding, concept and sha256 of the picture's file.

The hash travels with the target, so that copies of one picture under two names, or in two data sets, cannot end up on
both sides of a split.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from encoders.durable_files import write_atomic

Float = NDArray[np.float32]
COLUMNS = ("images", "concepts", "digests")


@dataclass(frozen=True)
class TargetTable:
    """One row per picture.

    Attributes
    ----------
    images : tuple of str
        Ids, unique.
    concepts : tuple of str
        Empty where unknown.
    digests : tuple of str
        sha256 of the picture's file; empty where there is no picture (targets from labels).
    embeds : ndarray, (n, d), float32
        Raw.
    space : str
        Digest of the space that made ``embeds``.
    spec : str
        JSON of what `alignment.image_spaces.open_space` takes to open that space; empty where it was not told.

    Raises
    ------
    ValueError
        If lengths differ, an id appears twice, a value is not finite, or equal pictures have different concepts.
    """

    images: tuple[str, ...]
    concepts: tuple[str, ...]
    digests: tuple[str, ...]
    embeds: Float
    space: str
    spec: str = ""

    def __post_init__(self) -> None:
        """Check that the columns belong together."""
        n = len(self.images)
        lengths = {name: len(getattr(self, name)) for name in COLUMNS}
        if n == 0 or self.embeds.ndim != 2 or {*lengths.values(), len(self.embeds)} != {n}:
            raise ValueError(f"columns {lengths} and embeds {self.embeds.shape} must have one length n > 0")
        if len(set(self.images)) != n:
            twice = sorted(name for name, times in Counter(self.images).items() if times > 1)[:5]
            raise ValueError(f"image ids {twice} appear more than once; give each picture one row")
        if not np.isfinite(self.embeds).all():
            raise ValueError(f"embeds {self.embeds.shape} have non-finite values; encode the pictures again")
        owner: dict[str, str] = {}
        for image, concept, digest in zip(self.images, self.concepts, self.digests, strict=True):
            if digest and owner.setdefault(digest, concept) != concept:
                raise ValueError(
                    f"the picture of {image!r} is also one of {owner[digest]!r}, its concept here is {concept!r}; "
                    "give equal files one concept"
                )

    def __len__(self) -> int:
        return len(self.images)

    def index(self, images: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each image id, (n,) int64.

        Raises
        ------
        ValueError
            If ids are not in the table; it names them.
        """
        row = {name: i for i, name in enumerate(self.images)}
        missing = [name for name in dict.fromkeys(images) if name not in row]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(set(images))} pictures are not among the {len(self)} targets, the first "
                f"{missing[:5]}; the table has ids such as {self.images[0]!r}"
            )
        return np.asarray([row[name] for name in images], dtype=np.int64)

    def check_disjoint(self, splits: Mapping[str, Sequence[str]], *, by_concept: bool = True) -> None:
        """Refuse splits that share a picture (by id or by content) or, with ``by_concept``, a concept.

        Parameters
        ----------
        splits : mapping of str to sequence of str
            Image ids of each split.
        by_concept : bool
            False for protocols that test known concepts on new pictures; say so beside the figure.

        Raises
        ------
        ValueError
            If there is an overlap, or a concept that has to be compared is unknown.
        """
        columns = {"image ids": self.images, "pictures (by sha256)": self.digests}
        if by_concept:
            columns["concepts"] = self.concepts
        seen: dict[str, dict[str, str]] = {what: {} for what in columns}
        for split, images in splits.items():
            rows = self.index(list(dict.fromkeys(images)))
            nameless = [self.images[row] for row in rows if by_concept and not self.concepts[row]]
            if nameless:
                raise ValueError(f"{split}: pictures {nameless[:5]} have no concept; name it or pass by_concept=False")
            for what, column in columns.items():
                values = {column[row] for row in rows} - {""}
                shared = sorted(value for value in values if seen[what].get(value, split) != split)
                if shared:
                    other = seen[what][shared[0]]
                    raise ValueError(
                        f"{len(shared)} {what} are in both {other} and {split}, the first {shared[:3]}; split anew"
                    )
                seen[what] |= dict.fromkeys(values, split)


def write_target_table(path: Path | str, table: TargetTable) -> None:
    """Write what `read_target_table` reads: one safetensors file."""
    facts = {name: json.dumps(getattr(table, name)) for name in COLUMNS}
    embeds = np.ascontiguousarray(table.embeds, dtype=np.float32)
    write_atomic(Path(path), save({"embeds": embeds}, metadata={**facts, "space": table.space, "spec": table.spec}))


def read_target_table(path: Path | str) -> TargetTable:
    """Read a table of targets and check it.

    Raises
    ------
    ValueError
        If the file is not such a table, or `TargetTable` refuses it.
    """
    with safe_open(path, framework="np") as file:
        facts = file.metadata() or {}
        missing = [name for name in (*COLUMNS, "space") if name not in facts]
        if missing or "embeds" not in file.keys():
            raise ValueError(f"{Path(path).name} lacks {missing or ['embeds']}; write it with write_target_table")
        embeds = file.get_tensor("embeds")
    columns = {name: tuple(str(value) for value in json.loads(facts[name])) for name in COLUMNS}
    return TargetTable(**columns, embeds=embeds, space=facts["space"], spec=facts.get("spec", ""))
