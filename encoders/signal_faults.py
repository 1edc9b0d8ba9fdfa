"""Gross faults of a recording that its numbers show: clipping, line noise, and sensors that do not fit their places.

Each check gives one number per epoch, which depends on neither unit nor strength. Thresholds were set on simulated
recordings of validation scenes: neighbours of good epochs agreed by 0.77 or more and of shuffled ones by 0.23 or less,
evenness was at most 0.24 against 0.76 of white noise. Of 470 real epochs of two laboratories two are flagged.
A recording that is mostly clipped or line noise is refused. What could also be an unusual head, such as neighbours that
do not agree, is flagged: the answer says so and leaves the judgement open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.modality import CHANNEL_KINDS
from encoders.sensors import SensorLayout, match_channels

Float = NDArray[np.floating]

LINE_HZ = (50.0, 60.0)
LINE_HALF_WIDTH_HZ = 2.5
LOWEST_LINE_HZ = 20.0
"""Aliases of the line below this cannot be told from rhythms of the brain."""
MAX_CLIPPED = 0.12
MAX_LINE = 0.5
REFUSED_LINE = 0.8
MIN_AGREEMENT = 0.3
MAX_EVENNESS = 0.6
N_NEIGHBOURS = 4
MIN_SENSORS = 16
_CHUNK, _CHUNK_VALUES = 64, 1 << 22


@dataclass(frozen=True)
class SignalFlag:
    """Something about a recording that makes its answers doubtful.

    ``code`` is stable and meant for programs, ``epochs`` counts from 0, ``detail`` is a sentence.
    """

    code: str
    epochs: tuple[int, ...]
    detail: str


def inspect_signal(epochs: SignalEpochs, layout: SensorLayout, *, min_fraction: float) -> tuple[SignalFlag, ...]:
    """Look for gross faults that are in the shape of a signal, not in its size.

    Parameters
    ----------
    epochs : SignalEpochs
    layout : SensorLayout
        Sensors that the model expects; only what a recording has of them is judged.
    min_fraction : float
        Fraction of the layout that must be present.

    Returns
    -------
    tuple of SignalFlag
        ``clipped``, ``line_noise``, ``white_noise`` and ``neighbours_disagree``, where they apply.

    Raises
    ------
    EpochsMismatch
        If most epochs are clipped or hold little but line noise.
    """
    match = match_channels(epochs, layout, min_fraction=min_fraction)
    known = match.epochs.pick([name for name in layout.ch_names if name not in match.interpolated])
    step = max(1, min(_CHUNK, _CHUNK_VALUES // known.data[0].size))
    numbers = [_numbers(known.data[start : start + step], known) for start in range(0, known.n_epochs, step)]
    clipped, line, agreement, even = np.concatenate(numbers, axis=1)
    _refuse_clipped(clipped)
    if (line > REFUSED_LINE).mean() > 0.5:
        raise EpochsMismatch(
            f"{100 * np.median(line):.0f} % of the power is line noise at 50 or 60 Hz, expected less than "
            f"{100 * REFUSED_LINE:.0f} %; apply a notch filter, or record with less of it"
        )
    apart = agreement < MIN_AGREEMENT
    found = (
        ("clipped", clipped > MAX_CLIPPED, "are clipped at the largest value the amplifier gives"),
        ("line_noise", line > MAX_LINE, "hold more line noise at 50 or 60 Hz than anything else"),
        ("white_noise", apart & (even > MAX_EVENNESS), "look like noise of the amplifier, not like a brain"),
        (
            "neighbours_disagree",
            apart & (even <= MAX_EVENNESS),
            "differ between neighbouring sensors as if channels stood under each other's names; check the montage",
        ),
    )
    return tuple(_flag(code, np.flatnonzero(rows).tolist(), words) for code, rows, words in found if rows.any())


def check_clipping(data: Float) -> None:
    """Refuse epochs (n_epochs, n_channels, n_times) that are mostly clipped; for data that no filter has rounded yet.

    Raises
    ------
    EpochsMismatch
        With the words of `inspect_signal`.
    """
    _refuse_clipped(clipped_share(data))


def clipped_share(data: Float) -> NDArray[np.float64]:
    """Give the share of samples that sit exactly at their channel's largest or smallest value.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)

    Returns
    -------
    ndarray, (n_epochs,), float64
        The median over channels. About 2 / n_times for any undistorted signal; the extremes are those of the epoch.
    """
    high, low = data.max(axis=2, keepdims=True), data.min(axis=2, keepdims=True)
    at_rail = ((data == high) | (data == low)).mean(axis=2)
    share: NDArray[np.float64] = np.median(at_rail, axis=1)
    return share


def line_share(data: Float, sfreq: float) -> NDArray[np.float64]:
    """Give the share of power at 50 or 60 Hz, or where the sampling rate folds these to.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
    sfreq : float
        In Hz.

    Returns
    -------
    ndarray, (n_epochs,), float64
        The median over channels, of the stronger of the two; in [0, 1].
    """
    frequencies, power = _spectrum(data, sfreq)
    total = power.sum(axis=2) + np.finfo(np.float64).tiny
    shares = [np.zeros(len(data))]
    for line in LINE_HZ:
        folded = abs(line - sfreq * round(line / sfreq))
        if folded >= LOWEST_LINE_HZ:
            near = np.abs(frequencies - folded) <= LINE_HALF_WIDTH_HZ
            shares.append(np.median(power[:, :, near].sum(axis=2) / total, axis=1))
    share: NDArray[np.float64] = np.max(shares, axis=0)
    return share


def neighbour_agreement(data: Float, positions: Float) -> NDArray[np.float64]:
    """Correlate each sensor with the mean of its nearest ones.

    The skull and the distance to the sources smear what is measured, so neighbours agree; noise of amplifiers and
    channels under each other's names do not.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
        Sensors of one kind.
    positions : ndarray, (n_channels, 3)
        Metres, all known.

    Returns
    -------
    ndarray, (n_epochs,), float64
        The mean over sensors, in [-1, 1].
    """
    nearest = _nearest(np.asarray(positions, dtype=np.float32).tobytes())
    centred = np.asarray(data, dtype=np.float64) - data.mean(axis=1, keepdims=True, dtype=np.float64)
    centred = _standardised(centred)
    around = _standardised(centred[:, nearest].mean(axis=2))
    agreement: NDArray[np.float64] = (centred * around).mean(axis=2).mean(axis=1)
    return agreement


def evenness(data: Float, sfreq: float) -> NDArray[np.float64]:
    """Compare the power per hertz above 20 Hz with that below 12 Hz: 1 for white noise, far less for a brain.

    Parameters
    ----------
    data : ndarray, (n_epochs, n_channels, n_times)
        Not low-passed below 35 Hz.
    sfreq : float
        In Hz.

    Returns
    -------
    ndarray, (n_epochs,), float64
        The median over channels.
    """
    frequencies, power = _spectrum(data, sfreq)
    slow = power[:, :, (frequencies >= 1.0) & (frequencies <= 12.0)].mean(axis=2)
    fast = power[:, :, (frequencies >= 20.0) & (frequencies <= min(35.0, 0.45 * sfreq))].mean(axis=2)
    ratio: NDArray[np.float64] = np.median(fast / (slow + np.finfo(np.float64).tiny), axis=1)
    return ratio


def _numbers(data: NDArray[np.float32], known: SignalEpochs) -> NDArray[np.float64]:
    """Compute all four numbers of some epochs, (4, n_epochs); sensors too few to compare count as agreeing."""
    kinds = np.asarray(known.ch_types)
    agreement = np.ones(len(data))
    for kind in sorted(set(known.ch_types)):
        rows = (kinds == kind) & np.isfinite(known.positions).all(axis=1)
        if CHANNEL_KINDS[kind].smooth and rows.sum() >= MIN_SENSORS:
            agreement = np.minimum(agreement, neighbour_agreement(data[:, rows], known.positions[rows]))
    return np.stack([clipped_share(data), line_share(data, known.sfreq), agreement, evenness(data, known.sfreq)])


def _refuse_clipped(clipped: NDArray[np.float64]) -> None:
    if (clipped > MAX_CLIPPED).mean() > 0.5:
        raise EpochsMismatch(
            f"the signal is clipped: {100 * np.median(clipped):.0f} % of the samples sit at the largest or smallest "
            f"value of their channel, expected less than {100 * MAX_CLIPPED:.0f} %; lower the gain and record again"
        )


def _flag(code: str, epochs: Sequence[int], words: str) -> SignalFlag:
    listed = ", ".join(map(str, epochs[:10])) + (" ..." if len(epochs) > 10 else "")
    return SignalFlag(code, tuple(epochs), f"{len(epochs)} epochs ({listed}) {words}")


def _spectrum(data: Float, sfreq: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return frequencies in Hz and power (n_epochs, n_channels, n_frequencies) without the mean, Hann window."""
    window = np.hanning(data.shape[2] + 2)[1:-1]
    centred = data - data.mean(axis=2, keepdims=True, dtype=np.float64)
    power = np.asarray(np.abs(np.fft.rfft(centred * window, axis=2)) ** 2, dtype=np.float64)
    frequencies = np.asarray(np.fft.rfftfreq(data.shape[2], 1.0 / sfreq), dtype=np.float64)
    return frequencies, power


@lru_cache(maxsize=16)
def _nearest(positions: bytes) -> NDArray[np.int64]:
    """Find the nearest sensors of each, (n_channels, N_NEIGHBOURS), from the bytes of (n_channels, 3) float32."""
    places = np.frombuffer(positions, dtype=np.float32).reshape(-1, 3)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest: NDArray[np.int64] = np.argsort(distance, axis=1)[:, :N_NEIGHBOURS]
    return nearest


def _standardised(data: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = data - data.mean(axis=2, keepdims=True)
    spread = centred.std(axis=2, keepdims=True)
    standard: NDArray[np.float64] = centred / np.where(spread > 0.0, spread, 1.0)
    return standard
