"""Averages of fewer than all presentations, each presentation in one average only."""

from dataclasses import replace

import numpy as np

from encoders.epochs import SignalEpochs


def repetition_counts(most: int) -> tuple[int, ...]:
    """List 1, 2, 4, ... and the largest number itself: ``(1, 2, 4, 8, 16, 32, 64, 80)`` for 80."""
    if most < 1:
        raise ValueError(f"most is {most}, expected at least 1 presentation")
    doubled = [2**power for power in range(most.bit_length()) if 2**power < most]
    return (*doubled, most)


def average_blocks(epochs: SignalEpochs, n: int) -> SignalEpochs:
    """Average every n presentations of a picture, each presentation in one average only.

    Parameters
    ----------
    epochs : SignalEpochs
        Single presentations with stimulus ids.
    n : int
        Presentations left over at the end of a picture are dropped.

    Returns
    -------
    SignalEpochs
        ``n_averaged`` is n everywhere.

    Raises
    ------
    ValueError
        If an epoch is an average already or has no stimulus id, or no picture has n presentations.
    """
    if set(epochs.n_averaged) != {1} or not all(epochs.stimulus):
        raise ValueError("average_blocks needs single presentations with stimulus ids; give epochs before averaging")
    places: dict[str, list[int]] = {}
    for row, stimulus in enumerate(epochs.stimulus):
        places.setdefault(stimulus, []).append(row)
    blocks = [
        rows[start : start + n] for rows in places.values() for start in range(0, len(rows) - n + 1, n)
    ]
    if not blocks:
        raise ValueError(f"no picture has {n} presentations, at most {max(map(len, places.values()))}; ask for fewer")
    return replace(
        epochs,
        data=epochs.data[np.asarray(blocks)].mean(axis=1, dtype=np.float64).astype(np.float32),
        stimulus=tuple(epochs.stimulus[rows[0]] for rows in blocks),
        n_averaged=(n,) * len(blocks),
    )
