"""A continuous recording as plain numbers, to be replayed as if it were running."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoders.cutting import found_events, signal_channels
from encoders.epochs import EpochsMismatch, SignalEpochs, known_kind, positions_of
from encoders.part_bounds import own_files
from encoders.readers import opened_recording


@dataclass(frozen=True)
class ContinuousRecording:
    """EEG and MEG channels of one file.

    Attributes
    ----------
    data : ndarray, (n_channels, n_times), float32
        SI units.
    sfreq : float
        Hz.
    ch_names, ch_types : tuple of str
        Types are keys of `encoders.modality.CHANNEL_KINDS`.
    positions : ndarray, (n_channels, 3), float32
        Metres in the head frame; NaN where unknown.
    stimuli : tuple of (int, str)
        Sample and id of each stimulus, sorted.
    """

    data: NDArray[np.float32] = field(repr=False)
    sfreq: float
    ch_names: tuple[str, ...]
    ch_types: tuple[str, ...]
    positions: NDArray[np.float32] = field(repr=False)
    stimuli: tuple[tuple[int, str], ...]


def read_recording(path: Path, onsets: Sequence[float] | None = None) -> ContinuousRecording:
    """Read a continuous file of one's own in any of the formats of `encoders.formats`; nothing is filtered.

    Parameters
    ----------
    path : Path
    onsets : sequence of float, optional
        Stimulus onsets in seconds from the start; default: the file's events.

    Raises
    ------
    EpochsMismatch
        If the file cannot be read, holds epochs, or has no events and no onsets are given.
    """
    with own_files(), opened_recording(path) as (raw, kind):
        if isinstance(raw, SignalEpochs):
            raise EpochsMismatch(f"the {kind} file holds epochs, and only a continuous recording can be replayed")
        sfreq = float(raw.info["sfreq"])
        if onsets is None:
            events, ids = found_events(raw)
            names = {code: text for text, code in ids.items()}
            stimuli = [(int(sample) - raw.first_samp, names[int(code)]) for sample, _, code in events]
        else:
            stimuli = [(round(onset * sfreq), "") for onset in onsets]
        outside = [sample for sample, _ in stimuli if not 0 <= sample < len(raw.times)]
        if outside:
            raise EpochsMismatch(f"stimuli at samples {outside[:10]} lie outside the {len(raw.times)} of the file")
        raw = raw.copy().pick(signal_channels(raw), verbose="error").load_data(verbose="error")
        kinds = [known_kind(kind, name) for kind, name in zip(raw.get_channel_types(), raw.ch_names, strict=True)]
        return ContinuousRecording(
            raw.get_data().astype(np.float32),
            sfreq,
            tuple(raw.ch_names),
            tuple(kinds),
            positions_of(raw.info),
            tuple(sorted(stimuli)),
        )
