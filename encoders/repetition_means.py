"""The mean of the repetitions of each stimulus, while they come one by one.

The sums are kept in float64 and added in the order of coming, which is what `SignalEpochs.average_repetitions` computes
for all of them at once: the means are the same to the last bit.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from encoders.epochs import SignalEpochs


class RepetitionMeans:
    """Sums of the epochs of one running recording, by the name of the stimulus.

    Parameters
    ----------
    max_bytes : int
        What the sums may take together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._sums: dict[str, tuple[NDArray[np.float64], int]] = {}

    def has_room(self, epochs: SignalEpochs) -> bool:
        """Tell whether `add` may be called: always for a stimulus that was seen, and for one without a name."""
        (stimulus,) = epochs.stimulus
        needed = 0 if not stimulus or stimulus in self._sums else 8 * epochs.data.size
        return self._n_bytes + needed <= self._max_bytes

    def add(self, epochs: SignalEpochs) -> SignalEpochs:
        """Take one epoch and return the mean of all of its stimulus so far; one without a name stays alone.

        Parameters
        ----------
        epochs : SignalEpochs
            One epoch, of the same channels and length as all before.

        Returns
        -------
        SignalEpochs
            One epoch; ``n_averaged`` counts its presentations.
        """
        assert epochs.n_epochs == 1 and self.has_room(epochs)
        (stimulus,), (n_more,) = epochs.stimulus, epochs.n_averaged
        if not stimulus:
            return epochs
        weighted = n_more * epochs.data.astype(np.float64)
        if stimulus in self._sums:
            before, n_before = self._sums[stimulus]
            self._sums[stimulus] = before + weighted, n_before + n_more
        else:
            self._n_bytes += weighted.nbytes
            self._sums[stimulus] = weighted, n_more
        total, n_averaged = self._sums[stimulus]
        return replace(epochs, data=(total / n_averaged).astype(np.float32), n_averaged=(n_averaged,))
