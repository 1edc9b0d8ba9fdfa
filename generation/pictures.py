"""Sets of captioned pictures on disk: what the CLIP, the autoencoder and the generator are trained on.

A set is a folder with ``images.npy`` (memory-mapped), ``captions.json``, ``concepts.npy`` and ``groups.npy``. Scenes
and a user's own picture folder end in the same format, so every later stage is the same for both.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from generation.scenes import IMAGE_SIZE, SceneFactors, Split, captions, render, sample_scenes, sample_siblings

Ints = npt.NDArray[np.int64]
_CHUNK = 250
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class PictureSet:
    """Pictures with captions.

    ``images`` is uint8 (n, 64, 64, 3). ``concepts`` numbers what is shown; pictures of one concept never lie in two
    splits. Pictures that share a ``groups`` number look alike and make hard negatives for each other.
    """

    images: npt.NDArray[np.uint8]
    captions: list[str]
    concepts: Ints
    groups: Ints

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def load(cls, folder: Path) -> "PictureSet":
        """Open a set; the images stay on disk until they are used."""
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        concepts, groups = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("concepts", "groups"))
        return cls(images, json.loads((folder / "captions.json").read_text()), concepts, groups)

    def contrastive_rows(self, rng: np.random.Generator, n: int, group_size: int = 4) -> Ints:
        """Pick ``n`` rows of which each shares its group with up to ``group_size - 1`` others."""
        order = np.argsort(self.groups, kind="stable")
        keys, starts, counts = np.unique(self.groups[order], return_index=True, return_counts=True)
        if len(keys) * group_size < n:
            return rng.permutation(len(self))[:n]
        chosen = rng.permutation(len(keys))[: -(-n // group_size)]
        picks = [order[starts[k] + rng.choice(counts[k], min(group_size, counts[k]), replace=False)] for k in chosen]
        return np.concatenate(picks)[:n]


def write_scenes(folder: Path, split: Split, n: int, seed: int) -> SceneFactors:
    """Render ``n`` scenes of a split into a picture set and return their factors; training scenes come in families."""
    if split == "train":
        factors, groups = sample_siblings(split, n, seed)
    else:
        factors, groups = sample_scenes(split, n, seed), np.arange(n)
    chunks = (render(factors.take(np.arange(i, min(i + _CHUNK, n)))) for i in range(0, n, _CHUNK))
    _write(folder, chunks, n, captions(factors), factors.concept, groups)
    return factors


def write_folder(source: Path, folder: Path) -> int:
    """Turn a folder of pictures into a picture set and return its size.

    Captions come from ``captions.csv`` (columns ``file,caption``), else from ``NAME.txt`` beside ``NAME.jpg``, else
    from the folder and file name. The concept is the subfolder, or the picture itself when there is none.

    Raises
    ------
    ValueError
        If fewer than 100 pictures can be read, or one cannot be read; the file is named.
    """
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if len(files) < 100:
        kinds = ", ".join(sorted(_SUFFIXES))
        raise ValueError(f"{source} holds {len(files)} pictures, expected at least 100 ({kinds})")
    table: dict[str, str] = {}
    if (source / "captions.csv").exists():
        with (source / "captions.csv").open(newline="", encoding="utf-8-sig") as file:
            table = {row["file"]: row["caption"] for row in csv.DictReader(file)}
    sentences, names = [], []
    for path in files:
        beside = path.with_suffix(".txt")
        plain = f"{path.parent.name if path.parent != source else ''} {path.stem}".replace("_", " ").strip()
        caption = table.get(str(path.relative_to(source)), beside.read_text().strip() if beside.exists() else plain)
        sentences.append(caption)
        names.append(str(path.parent.relative_to(source)) if path.parent != source else path.stem)
    _, concepts = np.unique(names, return_inverse=True)
    chunks = (_read_square(path)[None] for path in files)
    _write(folder, chunks, len(files), sentences, concepts.astype(np.int64), np.arange(len(files)))
    return len(files)


def split_folder(source: Path, folder: Path, n_test: int) -> None:
    """Convert a folder of pictures and split it by concept into ``train``, ``val`` and ``test`` below ``folder``.

    A tenth of the concepts goes to validation and up to ``n_test``, at most a fifth, to the test; of a test concept
    one picture is kept, so that every test picture shows another concept.
    """
    write_folder(source, folder / "all")
    everything = PictureSet.load(folder / "all")
    concepts = np.random.default_rng(20_240_601).permutation(np.unique(everything.concepts))
    n_val, n_test = max(len(concepts) // 10, 1), max(min(n_test, len(concepts) // 5), 1)
    parts = {"test": concepts[:n_test], "val": concepts[n_test : n_test + n_val], "train": concepts[n_test + n_val :]}
    for split, members in parts.items():
        rows = np.flatnonzero(np.isin(everything.concepts, members))
        if split == "test":
            rows = rows[np.unique(everything.concepts[rows], return_index=True)[1]]
        sentences = [everything.captions[i] for i in rows]
        images = (everything.images[i : i + 1] for i in rows)
        _write(folder / split, images, len(rows), sentences, everything.concepts[rows], everything.groups[rows])


def _read_square(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a readable picture ({error}); remove it or convert it to PNG") from error
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    square = square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(square)


def _write(
    folder: Path, chunks: Iterable[npt.NDArray[np.uint8]], n: int, sentences: list[str], concepts: Ints, groups: Ints
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shape = (n, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = np.lib.format.open_memmap(folder / "images.part.npy", mode="w+", dtype=np.uint8, shape=shape)
    row = 0
    for chunk in tqdm(chunks, total=-(-n // _CHUNK), desc=f"pictures {folder.name}", mininterval=1.0):
        images[row : row + len(chunk)] = chunk
        row += len(chunk)
    images.flush()
    np.save(folder / "concepts.npy", concepts)
    np.save(folder / "groups.npy", groups)
    (folder / "captions.json").write_text(json.dumps(sentences))
    (folder / "images.part.npy").rename(folder / "images.npy")
