"""The preprocessing of THINGS-MEG, for continuous CTF recordings."""

import mne
import numpy as np
from numpy.typing import NDArray

from encoders.datasets.standard_unit import standard_unit
from encoders.datasets.stimulus_names import bare_channel_name
from encoders.datasets.things_meg_sensors import BROKEN_SENSOR
from encoders.epochs import SignalEpochs, positions_of
from encoders.modality import DEFAULT_KIND, kind_of_name
from encoders.resample import FIR

L_FREQ, H_FREQ, SFREQ = 0.1, 40.0, 200.0
TMIN, TMAX = -0.1, 1.3
CLAMP = 100.0


def things_meg(raw: "mne.io.BaseRaw", events: NDArray[np.int64]) -> SignalEpochs:
    """Apply the preprocessing of THINGS-MEG to a continuous recording.

    Hamming FIR 0.1-40 Hz, epochs from -0.1 to 1.3 s, z-score of each epoch and sensor to its time before the onset,
    then every sixth sample (200 Hz, 281 samples), in this order.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        Continuous MEG at a multiple of 200 Hz (1200 Hz as recorded); not changed. Sensor MRO11 is left out.
    events : ndarray, (n_events, 3), int
        MNE events at the rate of ``raw``; the third column becomes the stimulus id.

    Returns
    -------
    SignalEpochs
        One standard deviation is written as `encoders.datasets.standard_unit` says (10 fT). A sensor that is quiet
        before an onset and not after it gets huge values, so they are clamped at 100 standard deviations.

    References
    ----------
    Hebart et al. 2023, eLife 12, e82580, and ViCCo-Group/THINGS-data.
    """
    return cut_things_meg(continuous_things_meg(raw), events)


def continuous_things_meg(raw: "mne.io.BaseRaw") -> "mne.io.BaseRaw":
    """Do the part of `things_meg` that needs the whole recording: choose sensors and filter."""
    sensors = [name for name in raw.ch_names if kind_of_name(name) != DEFAULT_KIND]
    names = [name for name in sensors if bare_channel_name(name) != BROKEN_SENSOR]
    if not names:
        raise ValueError(
            f"the recording has no sensors with names like MLC11, but {raw.ch_names[:10]}; expected CTF data"
        )
    raw = raw.copy().load_data(verbose="error").pick(names, verbose="error")
    return raw.filter(L_FREQ, H_FREQ, picks="all", **FIR, verbose="error")


def cut_things_meg(raw: "mne.io.BaseRaw", events: NDArray[np.int64]) -> SignalEpochs:
    """Cut what `continuous_things_meg` returned; any part of the events can be cut at a time."""
    step = raw.info["sfreq"] / SFREQ
    if step != round(step):
        raise ValueError(
            f"the recording has {raw.info['sfreq']:g} Hz, expected a multiple of {SFREQ:g}; resample it first"
        )
    epochs = mne.Epochs(
        raw, events, None, TMIN, TMAX, baseline=None, proj=False, picks="all", preload=True, verbose="error"
    )
    kinds = tuple(kind_of_name(name) for name in epochs.ch_names)
    units = np.asarray([standard_unit(kind) for kind in kinds])
    data = baseline_z_score(epochs.get_data(copy=False), epochs.times, epochs.ch_names)
    data = np.clip(data[:, :, :: round(step)], -CLAMP, CLAMP) * units[:, None]
    return SignalEpochs(
        data=data.astype(np.float32),
        sfreq=SFREQ,
        tmin=float(epochs.times[0]),
        ch_names=tuple(bare_channel_name(name) for name in epochs.ch_names),
        ch_types=kinds,
        positions=positions_of(epochs.info),
        stimulus=tuple(str(code) for code in epochs.events[:, 2]),
    )


def baseline_z_score(data: NDArray[np.float64], times: NDArray[np.float64], ch_names: list[str]) -> NDArray[np.float64]:
    """Subtract mean and divide by standard deviation of the samples up to the onset, per epoch and channel."""
    before = data[:, :, times <= 0.0]
    spread = before.std(axis=2, keepdims=True)
    if not spread.all():
        epoch, channel = np.argwhere(spread[:, :, 0] == 0.0)[0]
        raise ValueError(
            f"sensor {ch_names[channel]} is constant before event {epoch}, so it has no z-score; leave out this run"
        )
    return np.asarray((data - before.mean(axis=2, keepdims=True)) / spread)
