"""Epochs of a continuous recording, some hundred at a time, with the metadata rows that belong to them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import mne
import numpy as np
from numpy.typing import NDArray

from encoders.datasets.stimulus_names import bare_channel_name
from encoders.epoch_source import EpochMetadata
from encoders.epochs import SignalEpochs

BLOCK_EPOCHS = 256
Cut = Callable[["mne.io.BaseRaw", NDArray[np.int64]], SignalEpochs]
_COLUMNS = ("image", "concept", "split", "session", "run", "repetition")
_logger = logging.getLogger(__name__)


def recording_blocks(
    raw: "mne.io.BaseRaw",
    samples: Sequence[int] | NDArray[np.int64],
    metadata: EpochMetadata,
    subject: str,
    cut: Cut,
    where: str,
) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
    """Cut a recording in blocks.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        Continuous recording, filtered already.
    samples : sequence of int
        Onset of each event, as MNE counts (``raw.first_samp`` included).
    metadata : EpochMetadata
        One row per event.
    subject : str
        Whose recording.
    cut : callable
        Makes epochs of ``raw`` and MNE events, whose third column must become the stimulus id.
    where : str
        File to name in messages.

    Raises
    ------
    ValueError
        If there are not as many events as rows.
    """
    if len(samples) != len(metadata):
        raise ValueError(
            f"{where}: {len(samples)} onsets for {len(metadata)} rows of metadata; the tables do not match"
        )
    codes = np.arange(1, len(samples) + 1)
    events = np.column_stack([np.asarray(samples, dtype=np.int64), np.zeros_like(codes), codes])
    n_cut = 0
    for start in range(0, len(events), BLOCK_EPOCHS):
        epochs = cut(raw, events[start : start + BLOCK_EPOCHS])
        rows = [int(code) - 1 for code in epochs.stimulus]
        n_cut += len(rows)
        names = tuple(bare_channel_name(name) for name in epochs.ch_names)
        part = take_rows(metadata, rows)
        yield replace(epochs, subject=subject, ch_names=names, stimulus=part.image), part
    if n_cut < len(events):
        _logger.warning("%s: %d of %d epochs do not fit into the recording", where, len(events) - n_cut, len(events))


def take_rows(metadata: EpochMetadata, rows: Sequence[int]) -> EpochMetadata:
    """Return the given rows of a table of metadata."""
    columns = {name: getattr(metadata, name) for name in _COLUMNS}
    return EpochMetadata(**{name: tuple(column[row] for row in rows) for name, column in columns.items()})


def plain_cut(tmin: float, tmax: float) -> Cut:
    """Return a cut without baseline; channels marked bad stay out."""

    def cut(raw: "mne.io.BaseRaw", events: NDArray[np.int64]) -> SignalEpochs:
        epochs = mne.Epochs(
            raw, events, None, tmin, tmax, baseline=None, proj=False, picks="all", preload=True, verbose="error"
        )
        return SignalEpochs.from_mne(epochs)

    return cut


def count_repetitions(images: Sequence[str], shown: Counter[str]) -> tuple[int, ...]:
    """Return which presentation each epoch is, and count on in ``shown``; epochs without a picture are 0."""
    numbers = []
    for image in images:
        numbers.append(shown[image] if image else 0)
        shown[image] += 1
    return tuple(numbers)
