"""Simulated people look at scenes of a bundle's gallery: the recordings of the demo and of the evaluation.

The gallery holds scenes of concepts that nothing was trained on, so decoding them is zero-shot.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoders.epochs import SignalEpochs
from generation.bundle import Bundle
from generation.demo_scores import SceneRecorder

TARGETS = "targets.safetensors"


@dataclass(frozen=True)
class ShownScenes:
    """Scenes that were shown, (n, h, w, 3) uint8, and one recording per modality with every presentation apart."""

    images: NDArray[np.uint8] = field(repr=False)
    names: tuple[str, ...]
    captions: tuple[str, ...]
    recordings: dict[str, SignalEpochs]
    n_gallery: int

    def write(self, folder: Path, suffix: str) -> list[Path]:
        """Write one file per modality: ``eeg.npz`` or ``eeg-epo.fif``."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for modality, recording in self.recordings.items():
            file = folder / (f"{modality}.npz" if suffix == "npz" else f"{modality}-epo.fif")
            recording.save(file)
            files.append(file)
        return files


def recorder_of(bundle: Bundle, data: Path) -> SceneRecorder:
    """Rebuild the simulated people that a bundle was trained on.

    Raises
    ------
    ValueError
        If `data` lacks the targets of the training.
    """
    targets = data / TARGETS
    if not targets.is_file():
        raise ValueError(f"{targets} is missing, expected the targets the bundle was trained with; give their folder")
    settings = bundle.manifest.configs["brain"]
    assert isinstance(settings, dict)
    return SceneRecorder.from_settings(dict(settings), targets)


def show_scenes(
    bundle_folder: Path, data: Path, *, n_scenes: int, n_repetitions: int, subject: int, seed: int
) -> ShownScenes:
    """Show scenes drawn from the gallery to one simulated person.

    Parameters
    ----------
    bundle_folder, data : Path
        The bundle, and the folder with the targets it was trained with.
    n_scenes : int
        Different scenes, drawn by `seed`.
    n_repetitions : int
        Presentations of each.
    subject : int
        Index of the person.
    seed : int
        Of the choice and of the noise.

    Returns
    -------
    ShownScenes
    """
    bundle = Bundle.load(bundle_folder)
    gallery = bundle.gallery()
    recorder = recorder_of(bundle, data)
    n_people = len(bundle.manifest.subjects)
    if not 0 <= subject < n_people:
        raise ValueError(f"subject is {subject}, expected 0 to {n_people - 1}; the bundle knows {n_people} people")
    if not 1 <= n_scenes <= len(gallery.names):
        raise ValueError(f"scenes is {n_scenes}, expected 1 to {len(gallery.names)}, the size of the gallery")
    if n_repetitions < 1:
        raise ValueError(f"repetitions is {n_repetitions}, expected at least 1; each scene is shown so many times")
    rows = np.sort(np.random.default_rng([seed, 5]).choice(len(gallery.names), n_scenes, replace=False))
    names = tuple(gallery.names[row] for row in rows)
    recordings = {
        modality: recorder.simulator.record(
            gallery.image_embeds[rows],
            modality=modality,
            layout=layout,
            subject=subject,
            n_repetitions=n_repetitions,
            # far from the seeds of training, validation and scoring
            seed=1000 + seed,
            stimulus=names,
        )
        for modality, layout in recorder.layouts.items()
    }
    return ShownScenes(
        gallery.thumbs[rows], names, tuple(gallery.captions[row] for row in rows), recordings, len(gallery.names)
    )
