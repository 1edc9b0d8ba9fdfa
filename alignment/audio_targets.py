"""Targets for heard speech: log-mel frames, segments of them, and retrieval of the segment a brain followed.

A sideline of this project, tested on simulated brains only. Split by story: neighbouring segments share words, sentence
and speaker, so a random split would leak.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Float = NDArray[np.float32]


class LogMelConfig(BaseModel):
    """Filterbank; the defaults are usual for speech at 16 kHz."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sfreq_audio: float = Field(default=16000.0, gt=0, description="Hz")
    window: float = Field(default=0.025, gt=0, description="s, Hann")
    hop: float = Field(default=0.01, gt=0, description="s between frames; 1 / hop is the rate of the frames")
    n_mels: int = Field(default=40, gt=0)
    f_min: float = Field(default=20.0, ge=0, description="Hz")
    f_max: float = Field(default=8000.0, gt=0, description="Hz")
    floor: float = Field(default=1e-10, gt=0, description="smallest power before the logarithm")

    @model_validator(mode="after")
    def _within(self) -> "LogMelConfig":
        if not self.f_min < self.f_max <= self.sfreq_audio / 2:
            raise ValueError(
                f"f_min {self.f_min}, f_max {self.f_max} Hz must rise and stay below half of {self.sfreq_audio} Hz"
            )
        return self

    @property
    def n_window(self) -> int:
        return round(self.window * self.sfreq_audio)

    @property
    def n_hop(self) -> int:
        return round(self.hop * self.sfreq_audio)

    @property
    def n_fft(self) -> int:
        """Length of the transform: the next power of two."""
        return 1 << (self.n_window - 1).bit_length()


def mel_filterbank(config: LogMelConfig) -> NDArray[np.float64]:
    """Make triangular filters, evenly spaced on the mel scale ``2595 log10(1 + f / 700)``.

    Returns
    -------
    ndarray, (n_mels, n_fft / 2 + 1), float64
        Peaks of 1, not normalised by area.

    Raises
    ------
    ValueError
        If a filter is so narrow that it holds no frequency of the transform.
    """
    low, high = (2595 * np.log10(1 + f / 700) for f in (config.f_min, config.f_max))
    edges = 700 * (10 ** (np.linspace(low, high, config.n_mels + 2) / 2595) - 1)
    frequency = np.fft.rfftfreq(config.n_fft, 1 / config.sfreq_audio)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequency - left) / (centre - left)
    falling = (right - frequency) / (right - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling))
    empty = np.flatnonzero(filters.sum(axis=1) == 0)
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {config.n_mels} mel filters hold no frequency, the first {empty[0]}; use fewer filters "
            "or a longer window"
        )
    return np.asarray(filters, dtype=np.float64)


def log_mel(audio: Float, config: LogMelConfig | None = None) -> Float:
    """Compute log-mel frames of a waveform.

    Parameters
    ----------
    audio : ndarray, (n_samples,), float32
        Mono, at ``config.sfreq_audio``.
    config : LogMelConfig, optional

    Returns
    -------
    ndarray, (n_mels, n_frames), float32
        Natural logarithm of power. Frame ``i`` is centred at ``i * hop`` seconds; around the waveform is silence.

    Raises
    ------
    ValueError
        If the audio is not one finite channel.
    """
    config = config or LogMelConfig()
    if audio.ndim != 1 or not len(audio) or not np.isfinite(audio).all():
        raise ValueError(f"audio {audio.shape} must be (n_samples,), finite and not empty; mix channels to mono")
    n_window, n_hop = config.n_window, config.n_hop
    n_frames = 1 + (len(audio) - 1) // n_hop
    before = n_window // 2
    padded = np.zeros((n_frames - 1) * n_hop + n_window)
    kept = min(len(audio), len(padded) - before)
    padded[before : before + kept] = audio[:kept]
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_window)[::n_hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_window) / n_window)
    power = np.square(np.abs(np.fft.rfft(frames * window, config.n_fft)))
    return np.asarray(np.log(np.maximum(power @ mel_filterbank(config).T, config.floor)).T, dtype=np.float32)


def cut_segments(frames: Float, rate: float, onsets: Sequence[float], duration: float, lag: float = 0.0) -> Float:
    """Cut equally long segments out of a sequence.

    Parameters
    ----------
    frames : ndarray, (c, n_frames), float32
        Features of the audio, or the brain signal.
    rate : float
        Frames per second.
    onsets : sequence of float
        s.
    duration : float
        s; 3 in the paper.
    lag : float
        s; a brain that answers 0.15 s late is compared rightly when its segments are cut with ``lag=0.15`` and those of
        the audio without.

    Returns
    -------
    ndarray, (n, c, n_times), float32

    Raises
    ------
    ValueError
        If a segment leaves the sequence.
    """
    length = round(duration * rate)
    first = np.round((np.asarray(onsets, dtype=np.float64) + lag) * rate).astype(np.int64)
    outside = np.flatnonzero((first < 0) | (first + length > frames.shape[1]))
    if length < 1 or len(outside):
        raise ValueError(
            f"{len(outside)} of {len(first)} segments of {duration} s leave the {frames.shape[1] / rate:.2f} s of "
            f"frames (lag {lag} s); drop them"
        )
    return np.stack([frames[:, i : i + length] for i in first]).astype(np.float32)


def segment_similarity(brain_frames: Float, audio_frames: Float) -> Float:
    """Compare every brain segment with every audio segment.

    Parameters
    ----------
    brain_frames : ndarray, (n, c, t), float32
        Predicted features per time step.
    audio_frames : ndarray, (m, c, t), float32
        True ones.

    Returns
    -------
    ndarray, (n, m), float32
        Products summed over features and time, with each audio segment scaled to length 1, as the brain module's loss
        does; for `alignment.retrieval.report_similarity`.

    References
    ----------
    Defossez et al. 2023, Nature Machine Intelligence 5, arXiv:2208.12266.
    """
    if brain_frames.ndim != 3 or brain_frames.shape[1:] != audio_frames.shape[1:]:
        raise ValueError(
            f"brain {brain_frames.shape} and audio {audio_frames.shape} must be (n, c, t) and (m, c, t) with one c "
            "and t; cut both with the same duration and rate"
        )
    audio = audio_frames.reshape(len(audio_frames), -1).astype(np.float64)
    audio /= np.maximum(np.linalg.norm(audio, axis=1, keepdims=True), 1e-8)
    return np.asarray(brain_frames.reshape(len(brain_frames), -1).astype(np.float64) @ audio.T, dtype=np.float32)
