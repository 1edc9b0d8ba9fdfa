"""One temporal filter per map ("depthwise"), with Keras' "same" padding.

Epochs are short and these filters long, so a product with a banded matrix is several times faster on a CPU than a
grouped convolution. Which of the two computes depends on sizes alone; they are the same sum.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LONGEST_MATRIX = 256
MOST_MATRIX_PER_TAP = 14


def same_padding(kernel: int) -> tuple[int, int]:
    """Zeros before and after that keep the length at stride 1; an even kernel gets the odd one after, as in Keras."""
    return (kernel - 1) // 2, kernel // 2


def filter_each(data: Tensor, taps: Tensor) -> Tensor:
    """Filter every map with its own taps; the length stays.

    Parameters
    ----------
    data : Tensor, (b, f, t), float32
    taps : Tensor, (f, k), float32
        Correlated with the signal, not flipped.

    Returns
    -------
    Tensor, (b, f, t), float32
    """
    n_maps, kernel = taps.shape
    n_times = data.shape[-1]
    if n_times <= min(LONGEST_MATRIX, MOST_MATRIX_PER_TAP * kernel):
        # (b, f, t) -> (f, b, t): one matrix product per map
        return torch.bmm(data.transpose(0, 1), _banded(taps, n_times).transpose(1, 2)).transpose(0, 1)
    return F.conv1d(F.pad(data, same_padding(kernel)), taps.unsqueeze(1), groups=n_maps)


def _banded(taps: Tensor, n_times: int) -> Tensor:
    """Return ``(f, t, t)`` with ``[t, u] = taps[u - t + left]``, zero outside the taps."""
    left, _ = same_padding(taps.shape[1])
    starts = n_times + left - torch.arange(n_times, device=taps.device)
    return F.pad(taps, (n_times, n_times)).unfold(-1, n_times, 1)[:, starts]
