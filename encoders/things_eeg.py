"""The preprocessing paragraph of THINGS-EEG1, for continuous recordings."""

import mne
import numpy as np
from numpy.typing import NDArray

from encoders.epochs import SignalEpochs
from encoders.resample import FIR

L_FREQ, H_FREQ, SFREQ = 0.1, 100.0, 250.0
TMIN, TMAX = -0.1, 1.0


def things_eeg(raw: "mne.io.BaseRaw", events: NDArray[np.int64], *, drop_last_sample: bool = False) -> SignalEpochs:
    """Apply the preprocessing of THINGS-EEG1 to a continuous recording.

    Hamming FIR 0.1-100 Hz, average reference, 250 Hz, epochs from -0.1 to 1.0 s.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        Continuous EEG with more than 200 Hz; not changed.
    events : ndarray, (n_events, 3), int
        MNE events at the rate of ``raw``; the third column becomes the stimulus id.
    drop_last_sample : bool
        275 samples as EEGLAB's half-open window gives, instead of 276.

    Returns
    -------
    SignalEpochs
        At 250 Hz, volt.

    References
    ----------
    Grootswagers et al. 2022, Scientific Data 9, 3.
    """
    raw, events = continuous_things_eeg(raw, events)
    return cut_things_eeg(raw, events, drop_last_sample=drop_last_sample)


def continuous_things_eeg(
    raw: "mne.io.BaseRaw", events: NDArray[np.int64]
) -> tuple["mne.io.BaseRaw", NDArray[np.int64]]:
    """Do the part of `things_eeg` that needs the whole recording; return it and the events at 250 Hz."""
    raw = raw.copy().load_data(verbose="error").pick("eeg", verbose="error")
    raw.filter(L_FREQ, H_FREQ, **FIR, verbose="error")
    raw.set_eeg_reference("average", projection=False, verbose="error")
    return raw.resample(SFREQ, events=events, verbose="error")  # type: ignore[no-any-return]


def cut_things_eeg(raw: "mne.io.BaseRaw", events: NDArray[np.int64], *, drop_last_sample: bool = False) -> SignalEpochs:
    """Cut what `continuous_things_eeg` returned; any part of the events can be cut at a time."""
    tmax = TMAX - (1.0 / SFREQ if drop_last_sample else 0.0)
    return SignalEpochs.from_mne(
        mne.Epochs(raw, events, tmin=TMIN, tmax=tmax, baseline=None, proj=False, preload=True, verbose="error")
    )
