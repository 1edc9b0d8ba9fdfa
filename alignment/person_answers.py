"""What a model answers to one person's epochs, to what is put in their place, and to one time window of them alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alignment.brain_model import BrainModel
from alignment.phase_surrogates import phase_randomised
from encoders.epochs import SignalEpochs
from encoders.modality import combination
from encoders.preprocess import Preprocessor

RECORDING, NOISE = "recording", "white noise"
PHASES = {"phases random, the same for all channels": True, "phases random, channel by channel": False}
KINDS = (RECORDING, NOISE, *PHASES)
WINDOW_NOTE = (
    "time windows: the preprocessed signal outside is set to 0; the decoder was trained on whole epochs, one trained "
    "on the window alone would find more"
)
Float = NDArray[np.float32]
Ints = NDArray[np.int64]
Window = tuple[float, float]
Inputs = Callable[[str], Mapping[str, Float]]
"""Kind of `KINDS` -> preprocessed epochs (n, n_channels, n_times) of each modality, of the same presentations."""


@dataclass(frozen=True)
class PersonAnswers:
    """Answers to n epochs.

    Attributes
    ----------
    images : tuple of str, (n,)
        What was shown.
    embeds : mapping of str to ndarray, (n, d), float32
        Brain embeddings by kind of input, one of `KINDS`.
    similarity : mapping of str to ndarray, (n, m), float32
        Similarities to the gallery, by kind.
    windows : mapping of str to ndarray, (n, m), float32
        Similarities of the recording when only one window of it is left, by window.
    """

    images: tuple[str, ...]
    embeds: Mapping[str, Float]
    similarity: Mapping[str, Float]
    windows: Mapping[str, Float]


def stand_in(epochs: SignalEpochs, kind: str, seed: int) -> SignalEpochs:
    """Return the recording itself, or what has its spectrum or spread and no stimulus; see `KINDS`."""
    if kind == RECORDING:
        return epochs
    if kind == NOISE:
        return replace(epochs, data=white_noise(epochs.data, seed))
    generator = np.random.default_rng([seed, 7])
    return replace(epochs, data=phase_randomised(epochs.data, generator, shared=PHASES[kind]))


def white_noise(data: Float, seed: int) -> Float:
    """Return noise of the same shape in which every channel has the mean and spread of ``data``."""
    noise = np.random.default_rng([seed, 11]).standard_normal(data.shape, dtype=np.float32)
    noise *= data.std(axis=(0, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    noise += data.mean(axis=(0, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    return noise


def recording_inputs(model: BrainModel, parts: Mapping[str, SignalEpochs], seed: int) -> Inputs:
    """Preprocess recordings of the same presentations, one per modality, when a kind of them is asked for."""

    def inputs(kind: str) -> dict[str, Float]:
        return {
            name: model.preprocessors[name](stand_in(part, kind, seed + index)).data
            for index, (name, part) in enumerate(parts.items())
        }

    return inputs


def answer(
    model: BrainModel,
    inputs: Inputs,
    images: tuple[str, ...],
    subject: Ints,
    gallery: Float,
    combinations: Sequence[Sequence[str]],
    *,
    kinds: Sequence[str] = KINDS,
    windows: Sequence[Window] = (),
) -> dict[str, PersonAnswers]:
    """Decode epochs with every combination of modalities; each input is preprocessed once for all of them.

    Parameters
    ----------
    model : BrainModel
    inputs : callable
        See `Inputs`.
    images : tuple of str, (n,)
    subject : ndarray, (1, m) or (n, m), int64
        As `BrainModel.encode` takes it.
    gallery : ndarray, (k, d), float32
        Raw image embeddings.
    combinations : sequence of sequence of str
        Of the model's modalities.
    kinds : sequence of str
        Some of `KINDS`.
    windows : sequence of (float, float)
        Seconds after onset; the preprocessed signal outside is set to 0.

    Returns
    -------
    dict of str to PersonAnswers
        By combination (``"eeg"``, ``"eeg+meg"``).
    """
    names = {combination(list(one)): tuple(one) for one in combinations}
    embeds: dict[str, dict[str, Float]] = {key: {} for key in names}
    similarity: dict[str, dict[str, Float]] = {key: {} for key in names}
    occluded: dict[str, dict[str, Float]] = {key: {} for key in names}
    for kind in kinds:
        data = inputs(kind)
        for key, some in names.items():
            embeds[key][kind] = model.encode({name: data[name] for name in some}, subject)
            similarity[key][kind] = model.similarity(embeds[key][kind], gallery, some)
        if kind != RECORDING:
            continue
        for window in windows:
            inside = {name: one * in_window(model.preprocessors[name], window) for name, one in data.items()}
            for key, some in names.items():
                found = model.encode({name: inside[name] for name in some}, subject)
                occluded[key][window_name(window)] = model.similarity(found, gallery, some)
    return {key: PersonAnswers(images, embeds[key], similarity[key], occluded[key]) for key in names}


def in_window(preprocessor: Preprocessor, window: Window) -> Float:
    """Return 1 inside a window of seconds and 0 outside, (n_times,), on the preprocessed time axis."""
    config = preprocessor.config
    times = config.tmin + np.arange(config.n_times) / config.sfreq
    mask: Float = ((times >= window[0] - 1e-9) & (times < window[1] - 1e-9)).astype(np.float32)
    if not mask.any():
        raise ValueError(f"window {window} s holds no sample of {times[0]:g} to {times[-1]:g} s; choose another")
    return mask


def window_name(window: Window) -> str:
    return f"{window[0]:g} to {window[1]:g} s"


def time_windows(model: BrainModel, step: float = 0.1) -> tuple[Window, ...]:
    """Cut the time that all modalities see after onset into windows of ``step`` seconds, the last one shorter."""
    configs = [one.config for one in model.preprocessors.values()]
    start, stop = max(max(one.tmin for one in configs), 0.0), min(one.tmax + 1 / one.sfreq for one in configs)
    n = max(int(np.ceil((stop - start) / step - 1e-6)), 1)
    return tuple((round(start + step * i, 6), round(min(start + step * (i + 1), stop), 6)) for i in range(n))
