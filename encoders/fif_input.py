"""FIF files: find out what is inside by walking the tags, then read epochs, averages or continuous data."""

from dataclasses import replace
from pathlib import Path

import mne
import numpy as np

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.fif_structure import blocks_of

FIF_MAGIC = bytes.fromhex("000000640000001f00000014")
_RAW_BLOCKS, _EVOKED, _EPOCHS = {102, 112, 119}, 104, 373
_BLOCK_NAMES = {355: "a covariance", 351: "a source space", 352: "a forward solution", 361: "events", 374: "an ICA"}


def read_fif(path: Path) -> "SignalEpochs | mne.io.BaseRaw":
    """Read a FIF file by its content.

    Returns
    -------
    SignalEpochs or mne.io.BaseRaw
        Epochs, or one epoch per averaged condition; continuous data is returned for cutting.

    Raises
    ------
    EpochsMismatch
        If the file holds no recording, is damaged, or goes on in a second file.
    """
    blocks = blocks_of(path)
    if _EPOCHS in blocks:
        return SignalEpochs.from_mne(mne.read_epochs(path, proj=False, preload=True, verbose="error"))
    if _EVOKED in blocks:
        return _read_averages(path)
    if blocks & _RAW_BLOCKS:
        return mne.io.read_raw_fif(path, allow_maxshield="yes", on_split_missing="ignore", verbose="error")
    found = [name for code, name in _BLOCK_NAMES.items() if code in blocks]
    raise EpochsMismatch(
        f"the FIF file holds {found[0] if found else 'no signal'}, expected epochs, averages or a continuous recording"
    )


def _read_averages(path: Path) -> SignalEpochs:
    averages = mne.read_evokeds(path, baseline=None, proj=False, verbose="error")
    averages = [average for average in averages if average.kind == "average"]
    if not averages:
        raise EpochsMismatch("the FIF file holds standard errors only, expected averages; save the averages")
    first = averages[0]
    if any(other.ch_names != first.ch_names or not np.array_equal(other.times, first.times) for other in averages):
        raise EpochsMismatch("the averages in the FIF file differ in channels or times; save them with one time axis")
    events = np.column_stack([np.arange(len(averages)), np.zeros(len(averages), int), np.arange(len(averages)) + 1])
    data = np.stack([average.data for average in averages])
    epochs = mne.EpochsArray(data, first.info, events, tmin=first.times[0], proj=False, verbose="error")
    return replace(
        SignalEpochs.from_mne(epochs),
        stimulus=tuple(str(average.comment or "") for average in averages),
        n_averaged=tuple(max(int(average.nave), 1) for average in averages),
    )
