"""Embeddings of picture files, computed once per content and kept in safetensors shards.

A shard holds the rows of some pictures in one space, knows their sha256, and is named after its own. There is no index
to get out of step: a run that was killed has lost the shard it was working on, a changed picture or another space is
simply not there yet, and a damaged shard is noticed because its name is wrong.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from alignment.clip_space import Embeds, ImageSpace
from alignment.picture_files import MAX_PIXELS, Images, Picture, picture_digests, read_picture
from encoders.durable_files import file_sha256, write_atomic

logger = logging.getLogger(__name__)

TENSOR = "image_embeds"


class FeatureStore:
    """The shards of one space in a folder.

    Parameters
    ----------
    folder : Path or str
        Made when missing; may hold the shards of several spaces.
    space_digest : str
        ``ImageSpace.digest``.
    """

    def __init__(self, folder: Path | str, space_digest: str) -> None:
        self.space_digest = space_digest
        self.folder = Path(folder) / space_digest[:16]
        self._place: dict[str, tuple[Path, int]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            self._list(path)

    def __contains__(self, digest: str) -> bool:
        return digest in self._place

    def __len__(self) -> int:
        return len(self._place)

    def add(self, digests: Sequence[str], embeds: Embeds) -> None:
        """Store rows (n, d), one per picture digest, as one new shard.

        Raises
        ------
        FloatingPointError
            If a value is not finite: such rows are never stored.
        """
        if embeds.ndim != 2 or len(digests) != len(embeds):
            raise ValueError(f"{len(digests)} digests for embeds {embeds.shape}; give one per row")
        bad = [digest for digest, row in zip(digests, embeds, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise FloatingPointError(f"embeddings of the pictures {bad[:3]} are not finite; nothing was stored")
        facts = {"space": self.space_digest, "pictures": json.dumps(list(digests))}
        content = save({TENSOR: np.ascontiguousarray(embeds, dtype=np.float32)}, metadata=facts)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        write_atomic(path, content)
        self._place |= {digest: (path, row) for row, digest in enumerate(digests)}

    def read(self, digests: Sequence[str]) -> Embeds:
        """Return the rows of pictures, (n, d) float32, by sha256.

        Raises
        ------
        KeyError
            If one is not stored.
        """
        by_shard: dict[Path, list[int]] = {}
        for i, digest in enumerate(digests):
            by_shard.setdefault(self._place[digest][0], []).append(i)
        out: Embeds | None = None
        for path, wanted in by_shard.items():
            with safe_open(path, framework="np") as file:
                rows: Embeds = file.get_tensor(TENSOR)[[self._place[digests[i]][1] for i in wanted]]
            if out is None:
                out = np.empty((len(digests), rows.shape[1]), np.float32)
            out[wanted] = rows
        if out is None:
            raise ValueError("no pictures were asked for; give at least one")
        return out

    def _list(self, path: Path) -> None:
        """Take in a shard that verifies; a damaged one is passed over by name and its pictures are computed again."""
        if file_sha256(path) != path.stem:
            logger.warning("feature shard %s does not match its sha256; its pictures count as missing", path)
            return
        try:
            with safe_open(path, framework="np") as file:
                facts = file.metadata()
        except SafetensorError:
            logger.warning("feature shard %s is no safetensors file; its pictures count as missing", path)
            return
        if facts["space"] == self.space_digest:
            self._place |= {digest: (path, row) for row, digest in enumerate(json.loads(facts["pictures"]))}


@dataclass(frozen=True)
class Features:
    """Embeddings of known pictures.

    Attributes
    ----------
    store : FeatureStore
    digests : mapping of str to str
        sha256 of each picture, by its id.
    """

    store: FeatureStore
    digests: Mapping[str, str]

    def rows(self, images: Sequence[str]) -> Embeds:
        """Return raw embeddings (n, d), float32, one row per image id.

        Raises
        ------
        ValueError
            If pictures are unknown or not computed; it names them.
        """
        missing = [name for name in dict.fromkeys(images) if self.digests.get(name, "") not in self.store]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(set(images))} pictures have no embedding, the first {missing[:5]}; the "
                f"{len(self.digests)} known ones are such as {next(iter(self.digests), '')!r}: check the ids, or run "
                "compute_features again"
            )
        return self.store.read([self.digests[name] for name in images])


def compute_features(
    space: ImageSpace,
    pictures: Mapping[str, Picture],
    folder: Path | str,
    *,
    shard_size: int = 512,
    batch_size: int = 32,
    max_pixels: int = MAX_PIXELS,
    progress: bool = False,
) -> Features:
    """Embed every picture that is not in the store yet.

    Parameters
    ----------
    space : ImageSpace
    pictures : mapping of str to Path or ndarray
        By image id; `alignment.picture_files.find_pictures` lists a folder. Equal files are embedded once.
    folder : Path or str
        Of the store. A run that was stopped goes on from its last finished shard.
    shard_size : int
        Pictures per shard, and so at most the work that a kill costs.
    batch_size : int
        Pictures that are decoded at once.
    max_pixels : int
        Limit of one picture.
    progress : bool
        Show progress bars.

    Returns
    -------
    Features

    Raises
    ------
    ValueError
        If a picture is missing or cannot be read; it names the picture. Finished shards stay.
    """
    if shard_size < 1 or batch_size < 1:
        raise ValueError(f"shard_size {shard_size} and batch_size {batch_size} must be at least 1")
    digests = picture_digests(pictures, progress=progress)
    store = FeatureStore(folder, space.digest)
    first = {digest: name for name, digest in reversed(digests.items())}
    todo = [(digest, first[digest]) for digest in dict.fromkeys(digests.values()) if digest not in store]
    bar = tqdm(total=len(first), initial=len(first) - len(todo), desc="features", disable=not progress, mininterval=1.0)
    for i in range(0, len(todo), shard_size):
        shard = todo[i : i + shard_size]
        parts = []
        for j in range(0, len(shard), batch_size):
            chosen = [pictures[name] for _, name in shard[j : j + batch_size]]
            parts.append(_embed(space, [read_picture(one, max_pixels=max_pixels) for one in chosen]))
            bar.update(len(chosen))
        store.add([digest for digest, _ in shard], np.concatenate(parts))
    bar.close()
    return Features(store, digests)


def _embed(space: ImageSpace, images: Sequence[Images]) -> Embeds:
    """Embed pictures of possibly different sizes, in their order."""
    out = np.empty((len(images), space.embed_dim), np.float32)
    for rows in _by_shape(images):
        out[rows] = space.encode_images(np.stack([images[row] for row in rows]))
    return out


def _by_shape(images: Sequence[Images]) -> Iterator[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        groups.setdefault(image.shape, []).append(row)
    yield from groups.values()
