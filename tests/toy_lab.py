"""Stores of a small laboratory: planted signals of two EEG and two other MEG people, and targets of the pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment.target_table import TargetTable, write_target_table
from encoders.epoch_source import EpochMetadata
from encoders.epochs import SignalEpochs
from encoders.store_build import build_store
from tests.toy_brain import EMBED_DIM, LAYOUTS, ToyBrain

N_CONCEPTS, PER_CONCEPT, N_TEST = 40, 3, 10
PEOPLE = {"eeg": (0, 1), "meg": (2, 3)}
NOISE = 0.3


def pictures() -> TargetTable:
    """40 training concepts with 3 pictures each and 10 test concepts with one."""
    generator = np.random.default_rng(0)
    names = [(f"c{c:02d}", p) for c in range(N_CONCEPTS) for p in range(PER_CONCEPT)]
    names += [(f"t{c:02d}", 0) for c in range(N_TEST)]
    images = tuple(f"{concept}/{concept}_{p:02d}.jpg" for concept, p in names)
    embeds = 3 * (2 + generator.standard_normal((len(images), EMBED_DIM))).astype(np.float32)
    digests = tuple(f"{i:064x}" for i in range(len(images)))
    return TargetTable(images, tuple(concept for concept, _ in names), digests, embeds, "toy space")


@dataclass(frozen=True)
class LabPart:
    """All epochs of one person: training pictures twice, test pictures four times; and a catch trial."""

    modality: str
    subject: int
    images: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"sim-{self.subject + 1:02d}"

    @property
    def inputs(self) -> list[str]:
        return []

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        table = pictures()
        for split, n in (("train", 2), ("test", 4)):
            shown = [i for i in self.images if i.startswith("t") == (split == "test")]
            epochs = ToyBrain(NOISE).record(
                table.embeds[table.index(shown)], modality=self.modality, subject=self.subject, n_repetitions=n, seed=n
            )
            images = np.repeat(shown, n).tolist()
            if split == "test":
                images[-1] = ""
            yield (
                epochs,
                EpochMetadata(
                    image=tuple(images),
                    concept=tuple(image.split("/")[0] for image in images),
                    split=tuple(split if image else "" for image in images),
                    session=("1",) * len(images),
                    run=("",) * len(images),
                    repetition=tuple(i % n for i in range(len(images))),
                ),
            )


@dataclass(frozen=True)
class LabSource:
    """One modality of the laboratory."""

    modality: str
    images: tuple[str, ...]
    dataset: str = "toy lab"

    def parts(self) -> list[LabPart]:
        return [LabPart(self.modality, person, self.images) for person in PEOPLE[self.modality]]


def build_lab(folder: Path) -> dict[str, Any]:
    """Write stores and targets; EEG lacks the last three training pictures, MEG the first three.

    Returns
    -------
    dict
        Settings of a training run, as in a config file.
    """
    table = pictures()
    write_target_table(folder / "targets.safetensors", table)
    n = N_CONCEPTS * PER_CONCEPT
    shown = {"eeg": table.images[: n - 3] + table.images[n:], "meg": table.images[3:]}
    for name, images in shown.items():
        build_store(LabSource(name, images), folder / f"{name}.store")
    encoder = {
        "name": "brain_module", "n_virtual": 16, "width": 16, "fourier_width": 32, "spatial_dropout": 0.0, "n_convs": 0,
        "init": "linear", "head_width": 0, "time_agg": "linear", "n_time_weights": 8,
    }  # fmt: skip
    layouts: dict[str, Any] = {"eeg": "recorded", "meg": LAYOUTS["meg"]}
    return {
        "targets": str(folder / "targets.safetensors"),
        "modalities": {name: {"layout": layouts[name], "encoder": encoder} for name in PEOPLE},
        "data": {
            "name": "recorded",
            "stores": {name: str(folder / f"{name}.store") for name in PEOPLE},
            "folder": str(folder / "prepared"),
            "n_val_concepts": 8,
            "n_fit_epochs": 100,
        },
        "fit": {"max_steps": 30, "lr": 0.005, "schedule": "onecycle", "validate_every": 15, "checkpoint_every": 5,
                "log_every": 1},
        "batch_size": 40,
        "threads": 1,
    }  # fmt: skip
