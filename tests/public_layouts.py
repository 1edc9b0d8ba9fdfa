"""Fixtures in the layouts of public data sets: true names, keys, types and traps, with fewer pictures and samples."""

import json
import pickle
from pathlib import Path

import numpy as np
import torch

CONCEPTS = ["aardvark", "bow1", "coat_rack", "dog", "eggplant", "fan"]
TEST_CONCEPTS = ["aircraft_carrier", "boat", "cat", "drum"]
TRAIN_IMAGES = [f"{concept}/{concept}_{i + 1:02d}{'bsn'[i]}.jpg" for concept in CONCEPTS for i in range(3)]
TEST_IMAGES = [f"{concept}/{concept}_06s.jpg" for concept in TEST_CONCEPTS]
EEG_17 = "Pz P3 P7 O1 Oz O2 P4 P8 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2".split()
TIMES_301 = np.linspace(-0.2, 1.0, 301)


def numbered(images: list[str]) -> list[tuple[str, str]]:
    """Folder and file as THINGS-EEG2 writes them: ``00001_aardvark``, ``aardvark_01b.jpg``."""
    concepts = list(dict.fromkeys(image.split("/")[0] for image in images))
    return [
        (f"{concepts.index(image.split('/')[0]) + 1:05d}_{image.split('/')[0]}", image.split("/")[1])
        for image in images
    ]


def write_image_metadata(folder: Path, train: list[str] = TRAIN_IMAGES, test: list[str] = TEST_IMAGES) -> Path:
    """Write ``image_metadata.npy``, a dictionary of four lists that numpy pickled."""
    lists = {}
    for split, images in (("train", train), ("test", test)):
        lists[f"{split}_img_concepts"] = [concept for concept, _ in numbered(images)]
        lists[f"{split}_img_files"] = [file for _, file in numbered(images)]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "image_metadata.npy", lists, allow_pickle=True)  # type: ignore[arg-type]
    return folder / "image_metadata.npy"


def write_image_folders(folder: Path, names: tuple[str, str] = ("training_images", "test_images")) -> Path:
    """Write empty pictures into numbered folders, and what file managers leave there."""
    for name, images in zip(names, (TRAIN_IMAGES, TEST_IMAGES), strict=True):
        for concept, file in reversed(numbered(images)):
            (folder / name / concept).mkdir(parents=True, exist_ok=True)
            (folder / name / concept / file).write_bytes(b"")
        (folder / name / concept / ".DS_Store").write_bytes(b"")
    return folder


def whitened(n_conditions: int, n_repetitions: int, n_channels: int, n_times: int, seed: int = 0) -> np.ndarray:
    """Float64 values of unit spread."""
    return np.random.default_rng(seed).standard_normal((n_conditions, n_repetitions, n_channels, n_times))


def condition_dicts(ch_names: list[str], times: np.ndarray, n_times: int, reps: tuple[int, int]) -> dict[str, dict]:
    """The dictionaries of training and test epochs."""
    sizes = {"training": (len(TRAIN_IMAGES), reps[0]), "test": (len(TEST_IMAGES), reps[1])}
    return {
        name: {
            "preprocessed_eeg_data": whitened(*size, len(ch_names), n_times, seed),
            "ch_names": list(ch_names),
            "times": times,
        }
        for seed, (name, size) in enumerate(sizes.items())
    }


def write_condition_dicts(folder: Path, contents: dict[str, dict], form: str) -> None:
    """Write them as numpy does (``numpy``) or as a bare pickle of protocol 4 with an ``.npy`` name (``pickle``)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        file = folder / f"preprocessed_eeg_{name}.npy"
        if form == "numpy":
            np.save(file, content, allow_pickle=True)  # type: ignore[arg-type]
        else:
            file.write_bytes(pickle.dumps(content, protocol=4))


def write_ubp_eeg(folder: Path, ch_names: list[str], times: np.ndarray = TIMES_301[:300]) -> dict[str, np.ndarray]:
    """Write ``train.pt`` and ``test.pt`` with 4 and 8 repetitions; return the float16 data."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {}
    for name, images, n in (("train", TRAIN_IMAGES, 4), ("test", TEST_IMAGES, 8)):
        paths = np.array([f"{name}_images/{concept}/{file}" for concept, file in numbered(images)])
        data[name] = whitened(len(images), n, len(ch_names), 250).astype(np.float16)
        content = {
            "eeg": data[name],
            "label": np.tile(np.arange(len(images))[:, None], (1, n)),
            "img": np.tile(paths[:, None], (1, n)),
            "text": np.tile(np.array([image.split("/")[0] for image in images])[:, None], (1, n)),
            "session": np.tile(np.repeat(np.arange(4.0), n // 4), (len(images), 1)),
            "ch_names": list(ch_names),
            "times": times,
        }
        torch.save(content, folder / f"{name}.pt", pickle_protocol=5)
    return data


def write_neurobridge(root: Path, ch_names: list[str], n_times: int, reps: tuple[int, int]) -> dict[str, np.ndarray]:
    """Write ``info.json`` and float32 arrays of five axes; return them."""
    (root / "sub-01").mkdir(parents=True)
    times = np.round(np.arange(n_times) / 250, 3).tolist()
    info = {"ch_names": ch_names, "times": times, "sfreq": 250, "normalization": "mvnn", "seed": 20200220}
    (root / "info.json").write_text(json.dumps(info))
    data = {
        "train": whitened(18, reps[0], len(ch_names), n_times).astype(np.float32).reshape(6, 3, reps[0], -1, n_times),
        "test": whitened(4, reps[1], len(ch_names), n_times).astype(np.float32).reshape(4, 1, reps[1], -1, n_times),
    }
    for name, array in data.items():
        np.save(root / "sub-01" / f"{name}.npy", array)
    return data


def all_blocks(source) -> dict[str, tuple[np.ndarray, dict, list]]:
    """Read every part: data in one array, metadata as columns, and the blocks themselves."""
    read = {}
    for part in source.parts():
        part = pickle.loads(pickle.dumps(part))  # parts travel to other processes
        blocks = list(part.blocks())
        columns = {
            name: [value for _, metadata in blocks for value in getattr(metadata, name)]
            for name in ("image", "concept", "split", "session", "run", "repetition")
        }
        for epochs, metadata in blocks:
            assert len(metadata) == epochs.n_epochs and epochs.stimulus == metadata.image
        assert part.name not in read and all(Path(path).exists() for path in part.inputs)
        read[part.name] = np.concatenate([epochs.data for epochs, _ in blocks]), columns, blocks
    return read
