"""A brain without physics for tests: sensors mix the embedding linearly, noise is white, the observer is exact."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from alignment.pairs import TargetSplit, write_targets
from encoders.epochs import SignalEpochs
from encoders.sensors import standard_layout

EMBED_DIM = 16
LAYOUTS: Mapping[str, str] = {"eeg": "things_eeg2_63", "meg": "ctf275"}
UNITS = {"eeg": 1e-5, "meg": 2e-13}
N_TIMES, SFREQ, TMIN = 80, 100.0, -0.1


def toy_splits(n_train: int = 120, seed: int = 0) -> dict[str, TargetSplit]:
    """Draw embeddings with a common mean; concepts of the splits are disjoint."""
    generator = np.random.default_rng(seed)
    splits, first = {}, 0
    for name, n in (("train", n_train), ("val", 20), ("test", 20)):
        embeds = 3 * (2 + generator.standard_normal((n, EMBED_DIM))).astype(np.float32)
        splits[name] = TargetSplit(embeds, first + np.arange(n) // 2)
        first += n
    return splits


def write_toy_targets(path: Path) -> Path:
    write_targets(path, toy_splits(), {"clip_digest": "none"})
    return path


class ToyBrain:
    """A `Recorder` and `Observer`; every person mixes differently."""

    def __init__(self, noise: float = 1.0) -> None:
        self.noise = noise

    def _signal(self, image_embeds: np.ndarray, modality: str, layout: str, subject: int) -> np.ndarray:
        generator = np.random.default_rng([len(modality), subject, len(layout)])
        n_channels = standard_layout(layout).n_channels  # type: ignore[arg-type]
        mixing = generator.standard_normal((EMBED_DIM, n_channels, 3)) / EMBED_DIM**0.5
        courses = np.random.default_rng(9).standard_normal((3, N_TIMES))
        courses = np.apply_along_axis(lambda one: np.convolve(one, np.hanning(9), "same"), 1, courses)
        centred = image_embeds / 3 - 2
        return UNITS[modality] * np.einsum("nd,dck,kt->nct", centred, mixing, courses, optimize=True)

    def record(
        self,
        image_embeds: np.ndarray,
        *,
        modality: str,
        layout: str = "",
        subject: int,
        n_repetitions: int = 1,
        seed: int = 0,
        stimulus: Sequence[str] = (),
    ) -> SignalEpochs:
        layout = layout or LAYOUTS[modality]
        sensors = standard_layout(layout)  # type: ignore[arg-type]
        data = np.repeat(self._signal(image_embeds, modality, layout, subject), n_repetitions, axis=0)
        generator = np.random.default_rng([seed, subject, len(modality), 7])
        data += self.noise * UNITS[modality] * generator.standard_normal(data.shape)
        return SignalEpochs(
            data=data.astype(np.float32),
            sfreq=SFREQ,
            tmin=TMIN,
            ch_names=sensors.ch_names,
            ch_types=sensors.ch_types,
            positions=sensors.positions,
            subject=f"sim-{subject + 1:02d}",
            stimulus=tuple(np.repeat(np.asarray(stimulus), n_repetitions)) if stimulus else (),
        )

    def ideal_observer(
        self, epochs: SignalEpochs, candidates: np.ndarray, *, modality: str, layout: str, subject: int
    ) -> np.ndarray:
        expected = self._signal(candidates, modality, layout, subject).reshape(len(candidates), -1) / UNITS[modality]
        seen = epochs.data.reshape(epochs.n_epochs, -1) / UNITS[modality]
        distance = ((seen[:, None] - expected[None]) ** 2).sum(axis=2)
        return -0.5 * distance * np.asarray(epochs.n_averaged)[:, None] / self.noise**2
