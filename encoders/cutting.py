"""Cut a continuous recording into epochs at onsets given by the caller or found in the file."""

import logging
import re
from collections.abc import Sequence

import mne
import numpy as np
from numpy.typing import NDArray

from encoders.epochs import EpochsMismatch, SignalEpochs, known_kind
from encoders.modality import CHANNEL_KINDS
from encoders.part_bounds import at_most
from encoders.resample import FIR, HAMMING_WIDTH

MAX_BYTES = 2 * 1024**3
MAX_GAPS = 200
_NOT_AN_ONSET = re.compile(r"(?i)^\s*(bad|edge|boundary|new segment|recording (starts|ends)|start recording|sync)")
_GAP = re.compile(r"(?i)edge|bad_acq_skip")
_STIMULUS = re.compile(r"(?i)^stimulus/")
_COMMENT = re.compile(r"(?i)^comment/")
_TRIGGER_MASK = 0xFFFF
_logger = logging.getLogger(__name__)


def cut_epochs(
    raw: "mne.io.BaseRaw",
    onsets: Sequence[float] | None,
    tmin: float,
    tmax: float,
    l_freq: float | None,
    h_freq: float | None,
    max_onsets: int | None = None,
) -> SignalEpochs:
    """Band-pass a continuous recording and cut it.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        Continuous data; EEG and MEG channels that are not marked bad are used.
    onsets : sequence of float or None
        Seconds from the first sample of the file. None: annotations of the file, or else its
        stimulus channel; the annotation's text or the trigger value becomes the stimulus id.
    tmin, tmax : float
        Epoch limits in seconds relative to the onset.
    l_freq, h_freq : float or None
        Pass band in Hz, applied to the continuous data. An edge that the recording cannot carry
        (a high-pass longer than the recording, a low-pass above its Nyquist frequency) is left out.
    max_onsets : int or None
        Recordings with more onsets are refused before they are cut, which takes its time for each.

    Raises
    ------
    EpochsMismatch
        If there are no onsets or too many, no epoch fits, or the recording is too large.
    """
    events, event_id = _given_events(raw, onsets, tmin, tmax) if onsets is not None else found_events(raw)
    if max_onsets is not None and len(events) > max_onsets:
        raise EpochsMismatch(
            f"the recording holds {len(events)} onsets, at most {max_onsets} are cut; send it in several files, or "
            "give the onsets of some",
            too_many=True,
        )
    _check_gaps(raw)
    picks = signal_channels(raw)
    n_samples = round((tmax - tmin) * raw.info["sfreq"]) + 1
    _check_size("the recording", len(picks) * len(raw.times))
    _check_size("cut into epochs, the recording", len(events) * len(picks) * n_samples)
    raw = raw.copy().pick(picks, verbose="error").load_data(verbose="error")
    low, high = _possible_band(raw, l_freq, h_freq)
    if low is not None or high is not None:
        raw.filter(low, high, picks="all", **FIR, verbose="error")
    epochs = mne.Epochs(
        raw,
        events,
        event_id,
        tmin,
        tmax,
        baseline=None,
        proj=False,
        picks="all",
        preload=True,
        event_repeated="drop",
        verbose="error",
    )
    if len(epochs) == 0:
        raise EpochsMismatch(
            f"none of the {len(events)} onsets leaves room for {tmin:g} to {tmax:g} s inside the recording of "
            f"{raw.times[-1]:.1f} s; send a longer recording or other onsets"
        )
    return SignalEpochs.from_mne(epochs)


def _check_gaps(raw: "mne.io.BaseRaw") -> None:
    """Refuse many gaps: what lies between two is filtered on its own."""
    n_gaps = sum(bool(_GAP.match(str(text))) for text in raw.annotations.description)
    if n_gaps > (most := at_most(MAX_GAPS)):
        raise EpochsMismatch(f"the recording has {n_gaps} gaps, at most {most} are filtered around; send a part")


def _given_events(
    raw: "mne.io.BaseRaw", onsets: Sequence[float], tmin: float, tmax: float
) -> tuple[NDArray[np.int64], dict[str, int]]:
    times = np.asarray(onsets, dtype=np.float64)
    end = float(raw.times[-1])
    if times.ndim != 1 or not times.size or not np.isfinite(times).all():
        raise EpochsMismatch("onsets must be a list of numbers, seconds from the start of the file; got none usable")
    half = 0.5 / raw.info["sfreq"]
    outside = times[(times + tmin < -half) | (times + tmax > end + half)]
    if outside.size:
        raise EpochsMismatch(
            f"onsets {outside[:10].tolist()} leave no room for {tmin:g} to {tmax:g} s in the recording of {end:.2f} s; "
            "give onsets in seconds from the start of the file"
        )
    samples = np.round(times * raw.info["sfreq"]).astype(np.int64) + raw.first_samp
    return np.column_stack([samples, np.zeros_like(samples), np.ones_like(samples)]), {"": 1}


def found_events(raw: "mne.io.BaseRaw") -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return the events of a file as MNE's array, and the code of each stimulus id.

    Raises
    ------
    EpochsMismatch
        If it has none.
    """
    texts = {str(text) for text in raw.annotations.description if not _NOT_AN_ONSET.match(str(text))}
    # what somebody typed may name a person; it counts where there is nothing else, because MNE exports events like that
    texts = {text for text in texts if _STIMULUS.match(text)} or {t for t in texts if not _COMMENT.match(t)} or texts
    if texts:
        wanted = {text: code for code, text in enumerate(sorted(texts), start=1)}
        events, event_id = mne.events_from_annotations(raw, wanted, verbose="error")
        if len(events):
            return events, event_id
    for name, kind in zip(raw.ch_names, raw.get_channel_types(), strict=True):
        if kind == "stim":
            events = _trigger_events(raw, name)
            if len(events):
                return events, {str(code): int(code) for code in np.unique(events[:, 2])}
    raise EpochsMismatch(
        "the recording is continuous and has no events, neither annotations nor a stimulus channel; "
        "give onsets in seconds, or send epochs"
    )


def _trigger_events(raw: "mne.io.BaseRaw", stim_channel: str) -> NDArray[np.int64]:
    events: NDArray[np.int64] = mne.find_events(
        raw,
        stim_channel,
        consecutive="increasing",
        shortest_event=1,
        mask=_TRIGGER_MASK,
        mask_type="and",
        verbose="error",
    )
    return events


def signal_channels(raw: "mne.io.BaseRaw") -> list[str]:
    """Name the EEG and MEG channels that are not marked bad; EpochsMismatch if there are none."""
    types = raw.get_channel_types()
    bad = set(raw.info["bads"])
    known = [known_kind(kind, name) in CHANNEL_KINDS for kind, name in zip(types, raw.ch_names, strict=True)]
    picks = [name for name, keep in zip(raw.ch_names, known, strict=True) if keep and name not in bad]
    if not picks:
        raise EpochsMismatch(f"no usable EEG or MEG channel; the file has {sorted(set(types))}, {len(bad)} marked bad")
    return picks


def _possible_band(
    raw: "mne.io.BaseRaw", l_freq: float | None, h_freq: float | None
) -> tuple[float | None, float | None]:
    sfreq, duration = float(raw.info["sfreq"]), float(raw.times[-1])
    if l_freq is not None and duration < HAMMING_WIDTH / min(max(0.25 * l_freq, 2.0), l_freq):
        _logger.warning("recording of %.1f s is shorter than a %g Hz high-pass; left out", duration, l_freq)
        l_freq = None
    if h_freq is not None and h_freq >= sfreq / 2.0:
        h_freq = None
    return l_freq, h_freq


def _check_size(what: str, n_values: int) -> None:
    if n_values * 8 > MAX_BYTES:
        raise EpochsMismatch(f"{what} needs {n_values * 8} bytes of memory, at most {MAX_BYTES} are allowed; send less")
