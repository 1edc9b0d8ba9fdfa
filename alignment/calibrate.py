"""Confidence: how unusual an answer's best similarity is among answers to recordings without any picture in them.

The null comes from surrogates of real recordings that keep what noise has (spectra, spread, or sensor covariance) and
lose what a picture evokes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from alignment.phase_surrogates import phase_randomised
from encoders.epochs import SignalEpochs
from encoders.modality import combination

SurrogateKind = Literal["phase", "shuffle", "white"]
SURROGATE_KINDS: tuple[SurrogateKind, ...] = get_args(SurrogateKind)
MIN_NULL = 1000


def surrogates(epochs: SignalEpochs, kind: SurrogateKind, seed: int) -> SignalEpochs:
    """Destroy what a recording says about the stimulus.

    Parameters
    ----------
    epochs : SignalEpochs
    kind : "phase", "shuffle" or "white"
        Random Fourier phases, the same for all sensors of an epoch, so that spectra and the covariance between
        sensors stay; sensors in random order per epoch (within each kind of sensor); or white noise with each
        sensor's standard deviation. "phase" and "white" multiply the mean over the window by normal numbers.
    seed : int

    Returns
    -------
    SignalEpochs
        Same shape, names and stimuli; other ``data``.
    """
    generator = np.random.default_rng([seed, SURROGATE_KINDS.index(kind)])
    return replace(epochs, data=_MAKERS[kind](epochs, generator).astype(np.float32))


@dataclass(frozen=True)
class ConfidenceNull:
    """Sorted best similarities of surrogate inputs, per combination of modalities (``"eeg"``, ``"eeg+meg"``)."""

    scores: Mapping[str, NDArray[np.float32]]

    def percentile(self, best_similarity: NDArray[np.float32], modalities: Sequence[str]) -> NDArray[np.float32]:
        """Give the share of the null that lies below, ties counting half.

        Parameters
        ----------
        best_similarity : ndarray, (n,), float32
            Largest similarity of each answer to the gallery.
        modalities : sequence of str
            What the recording held.

        Returns
        -------
        ndarray, (n,), float32
            In [0, 1]; uniform, hence 0.5 on average, for noise.

        Raises
        ------
        ValueError
            If there is no null for this combination.
        """
        key = combination(modalities)
        if key not in self.scores:
            raise ValueError(f"no null for the modalities {key!r}, only for {sorted(self.scores)}; calibrate again")
        null = self.scores[key]
        below = np.searchsorted(null, best_similarity, side="left")
        not_above = np.searchsorted(null, best_similarity, side="right")
        share: NDArray[np.float32] = ((below + not_above) / (2 * len(null))).astype(np.float32)
        return share

    def floor(self, modalities: Sequence[str], share: float = 0.95) -> float:
        """Give the best similarity that ``share`` of the null stays below: the noise floor of an answer."""
        self.percentile(np.zeros(1, dtype=np.float32), modalities)  # refuses an unknown combination
        return float(np.quantile(self.scores[combination(modalities)], share))

    def save(self, path: Path) -> None:
        """Write one array per combination (safetensors)."""
        save_file({key: np.ascontiguousarray(values) for key, values in self.scores.items()}, path)

    @classmethod
    def load(cls, path: Path) -> "ConfidenceNull":
        return cls({key: np.sort(values.astype(np.float32)) for key, values in load_file(path).items()})


def build_null(
    best_similarity: Callable[[Sequence[SignalEpochs]], NDArray[np.float32]],
    recordings: Mapping[str, Sequence[SignalEpochs]],
    *,
    n: int = 3 * MIN_NULL,
    seed: int = 0,
) -> ConfidenceNull:
    """Score surrogates of recordings, the same number of every kind.

    Parameters
    ----------
    best_similarity : callable
        Recordings of the same stimuli -> largest gallery similarity (n_epochs,) of each answer.
    recordings : mapping of str to sequence of SignalEpochs
        Per combination of modalities, for example ``{"eeg+meg": [eeg, meg]}``.
    n : int
        Surrogate answers per combination, at least 1,000.
    seed : int

    Returns
    -------
    ConfidenceNull
    """
    if n < MIN_NULL:
        raise ValueError(f"n is {n}, expected at least {MIN_NULL} surrogates; a smaller null gives coarse percentiles")
    scores = {}
    for key, parts in recordings.items():
        found: list[NDArray[np.float32]] = []
        turn = 0
        while sum(map(len, found)) < n:
            for kind in SURROGATE_KINDS:
                changed = [surrogates(part, kind, seed + 1000 * turn + i) for i, part in enumerate(parts)]
                found.append(best_similarity(changed))
            turn += 1
        scores[combination(key.split("+"))] = np.sort(np.concatenate(found)).astype(np.float32)
    return ConfidenceNull(scores)


def _random_phases(epochs: SignalEpochs, generator: np.random.Generator) -> NDArray[np.float64]:
    mean = epochs.data.mean(axis=2, keepdims=True, dtype=np.float64)
    turned = phase_randomised(epochs.data - mean, generator)
    # the mean over the window is part of the response too: random strength, one for all sensors
    mean = mean * generator.standard_normal((epochs.n_epochs, 1, 1))
    changed: NDArray[np.float64] = turned + mean
    return changed


def _shuffled_sensors(epochs: SignalEpochs, generator: np.random.Generator) -> NDArray[np.float32]:
    changed = epochs.data.copy()
    kinds = np.asarray(epochs.ch_types)
    for kind in set(epochs.ch_types):
        members = np.flatnonzero(kinds == kind)
        for epoch in range(epochs.n_epochs):
            changed[epoch, members] = epochs.data[epoch, generator.permutation(members)]
    return changed


def _white_noise(epochs: SignalEpochs, generator: np.random.Generator) -> NDArray[np.float64]:
    mean = epochs.data.mean(axis=2, keepdims=True, dtype=np.float64)
    spread = epochs.data.std(axis=2, keepdims=True, dtype=np.float64)
    mean = mean * generator.standard_normal(mean.shape)
    noise: NDArray[np.float64] = mean + spread * generator.standard_normal(epochs.data.shape)
    return noise


_MAKERS: dict[SurrogateKind, Callable[[SignalEpochs, np.random.Generator], NDArray[Any]]] = {
    "phase": _random_phases,
    "shuffle": _shuffled_sensors,
    "white": _white_noise,
}
