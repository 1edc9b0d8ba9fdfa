"""Wavelet packets of epochs as differentiable layers with fixed filters, equal to PyWavelets' node by node.

Haar is additions and subtractions of every second row and column. For every other wavelet all levels along one axis are
one matrix, built once per length by PyWavelets itself: epochs are short, and two dense products beat strided
convolutions there. Memory grows with the square of the length, so cut long recordings into epochs first.
"""

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import pywt
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Mode = Literal["periodization", "symmetric", "reflect", "zero"]
HAAR = ("haar", "db1")


class WaveletPacket(nn.Module):
    """What the packets along one and along two axes share: the wavelet, its levels and the matrices per length.

    Parameters
    ----------
    wavelet : str
        Any of ``pywt.wavelist(kind="discrete")``.
    levels : int
        How often every node is split.
    mode : {"periodization", "symmetric", "reflect", "zero"}
        What stands beyond the borders, as in PyWavelets. Only periodization gives ``ceil(n / 2)`` coefficients per
        level for every wavelet; an odd length is first prolonged by its last sample.

    Raises
    ------
    ValueError
        If the wavelet or the mode is unknown or ``levels`` is not positive.
    """

    def __init__(self, wavelet: str = "haar", levels: int = 2, mode: Mode = "periodization") -> None:
        super().__init__()
        if wavelet not in pywt.wavelist(kind="discrete"):
            raise ValueError(
                f"wavelet is {wavelet!r}, expected a discrete wavelet of PyWavelets such as 'haar', 'db4' or 'sym5'; "
                "pick one of pywt.wavelist(kind='discrete')"
            )
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {mode!r}, expected one of {get_args(Mode)}; 'periodization' suits every wavelet")
        if levels < 1:
            raise ValueError(f"levels is {levels}, expected at least 1; give 2 for sixteen maps")
        self.wavelet, self.levels, self.mode = wavelet, levels, mode
        self.is_haar = wavelet in HAAR
        self._cache: dict[tuple[int, torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def node_length(self, length: int) -> int:
        """Return the number of coefficients per node along an axis of ``length`` samples."""
        return _chain(self.wavelet, self.levels, self.mode, length)[-1]

    def _matrices(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return analysis (2**levels * m, length) and synthesis (length, 2**levels * m) in the dtype of ``like``."""
        key = (length, like.dtype, like.device)
        if key not in self._cache:
            with torch.inference_mode(False):  # kept for later calls, which may need gradients
                analysis, synthesis = packet_matrices(self.wavelet, self.levels, self.mode, length)
                self._cache[key] = (torch.from_numpy(analysis).to(like), torch.from_numpy(synthesis).to(like))
        return self._cache[key]

    def _check_length(self, length: int, axis: str) -> None:
        if length < 2**self.levels:
            raise ValueError(
                f"{self.levels} levels need at least {2**self.levels} {axis}, got {length}; use fewer levels"
            )

    def _check_nodes(self, nodes: Tensor, expected: tuple[int, ...], size: object) -> None:
        if tuple(nodes.shape[-len(expected) :]) != expected:
            raise ValueError(
                f"nodes of a signal of size {size} end in {expected}, got shape {tuple(nodes.shape)}; "
                "give the size of the signal that was transformed"
            )


class WaveletPacket1d(WaveletPacket):
    """Wavelet packet along time; see `WaveletPacket` for the parameters.

    Examples
    --------
    >>> WaveletPacket1d("haar", levels=2)(torch.zeros(1, 3, 100)).shape
    torch.Size([1, 3, 4, 25])
    """

    def forward(self, data: Tensor) -> Tensor:
        """Transform epochs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32

        Returns
        -------
        Tensor, (b, c, 2 ** levels, node_length(t)), float32
            Nodes in PyWavelets' natural order aa, ad, da, dd: by path, not by frequency.
        """
        n_epochs, n_channels, n_times = data.shape
        self._check_length(n_times, "samples")
        if self.is_haar:
            for _ in range(self.levels):
                even, odd = _halves(data, self.mode, rows=False)
                data = torch.stack((even + odd, even - odd), dim=2).flatten(1, 2)
            return data.mul_(2 ** (-self.levels / 2)).reshape(n_epochs, n_channels, 2**self.levels, -1)
        analysis, _ = self._matrices(n_times, data)
        return (data @ analysis.T).reshape(n_epochs, n_channels, 2**self.levels, -1)

    def inverse(self, nodes: Tensor, size: int) -> Tensor:
        """Return the signal of ``size`` samples whose nodes are ``nodes``.

        Parameters
        ----------
        nodes : Tensor, (b, c, 2 ** levels, node_length(size)), float32
        size : int
            Samples of the signal; several lengths share one number of coefficients.

        Returns
        -------
        Tensor, (b, c, size), float32

        Raises
        ------
        ValueError
            If the nodes do not belong to a signal of that size.
        """
        self._check_nodes(nodes, (2**self.levels, self.node_length(size)), size)
        if not self.is_haar:
            _, synthesis = self._matrices(size, nodes)
            return nodes.flatten(2) @ synthesis.T
        lengths = _chain(self.wavelet, self.levels, self.mode, size)
        data = nodes.flatten(1, 2) * 2 ** (-self.levels / 2)
        for length in reversed(lengths[:-1]):
            low, high = data.reshape(len(data), -1, 2, data.shape[-1]).unbind(2)
            data = _interleave(low + high, low - high, rows=False)[..., :length]
        return data


class WaveletPacket2d(WaveletPacket):
    """Wavelet packet over channels and time; see `WaveletPacket` for the parameters.

    Examples
    --------
    >>> WaveletPacket2d("haar", levels=2)(torch.zeros(1, 1, 63, 100)).shape
    torch.Size([1, 16, 16, 25])
    """

    def forward(self, data: Tensor) -> Tensor:
        """Transform maps.

        Parameters
        ----------
        data : Tensor, (b, k, h, w), float32
            ``k`` maps are transformed each by itself.

        Returns
        -------
        Tensor, (b, k * 4 ** levels, node_length(h), node_length(w)), float32
            Nodes of one map after the other, each in PyWavelets' order aa, ah, av, ad, ha, ...: h is detail across
            rows, v across columns.
        """
        n_epochs, n_maps, height, width = data.shape
        self._check_length(height, "rows")
        self._check_length(width, "columns")
        if self.is_haar:
            return self._haar(data)
        columns, _ = self._matrices(width, data)
        rows, _ = self._matrices(height, data)
        nodes = rows @ (data @ columns.T)
        split = (2,) * self.levels
        nodes = nodes.reshape(n_epochs, n_maps, *split, self.node_length(height), *split, self.node_length(width))
        nodes = nodes.permute(self._node_order())
        return nodes.reshape(n_epochs, n_maps * 4**self.levels, *nodes.shape[-2:])

    def inverse(self, nodes: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the maps of ``size`` whose nodes are ``nodes``.

        Parameters
        ----------
        nodes : Tensor, (b, k * 4 ** levels, node_length(h), node_length(w)), float32
        size : tuple of int
            ``(h, w)`` of the maps.

        Returns
        -------
        Tensor, (b, k, h, w), float32

        Raises
        ------
        ValueError
            If the nodes do not belong to maps of that size.
        """
        self._check_nodes(nodes, (self.node_length(size[0]), self.node_length(size[1])), size)
        if self.is_haar:
            return self._haar_inverse(nodes, size)
        _, rows = self._matrices(size[0], nodes)
        _, columns = self._matrices(size[1], nodes)
        nodes = nodes.reshape(len(nodes), -1, *(2,) * 2 * self.levels, *nodes.shape[-2:])
        nodes = nodes.permute(tuple(np.argsort(self._node_order()).tolist()))
        nodes = nodes.reshape(*nodes.shape[:2], rows.shape[1], columns.shape[1])
        return rows @ nodes @ columns.T

    def _node_order(self) -> tuple[int, ...]:
        """Return the order of axes from (b, k, row letters, h, column letters, w) to (b, k, letters, h, w)."""
        n = self.levels
        letters = [axis for level in range(n) for axis in (3 + n + level, 2 + level)]
        return (0, 1, *letters, 2 + n, 3 + 2 * n)

    def _haar(self, data: Tensor) -> Tensor:
        for _ in range(self.levels):
            even, odd = _halves(data, self.mode, rows=True)
            (low, low_next), (high, high_next) = (
                _halves(half, self.mode, rows=False) for half in (even + odd, even - odd)
            )
            nodes = (low + low_next, high + high_next, low - low_next, high - high_next)
            data = torch.stack(nodes, dim=2).flatten(1, 2)
        return data.mul_(0.5**self.levels)  # fresh from stack, so nobody else's

    def _haar_inverse(self, nodes: Tensor, size: tuple[int, int]) -> Tensor:
        heights, widths = (_chain(self.wavelet, self.levels, self.mode, length) for length in size)
        data = nodes * 0.5**self.levels
        for height, width in zip(reversed(heights[:-1]), reversed(widths[:-1]), strict=True):
            a, h, v, d = data.reshape(len(data), -1, 4, *data.shape[-2:]).unbind(2)
            low = _interleave(a + v, a - v, rows=False)[..., :width]
            high = _interleave(h + d, h - d, rows=False)[..., :width]
            data = _interleave(low + high, low - high, rows=True)[..., :height, :]
        return data


def _halves(data: Tensor, mode: str, *, rows: bool) -> tuple[Tensor, Tensor]:
    """Return the even and the odd rows or columns of ``(b, k, ..)``; the last odd one is made up if it is missing."""
    axis = -2 if rows else -1
    even, odd = (data[..., ::2, :], data[..., 1::2, :]) if rows else (data[..., ::2], data[..., 1::2])
    length = data.shape[axis]
    if length % 2:
        last = data.narrow(axis, length - 2 if mode == "reflect" else length - 1, 1)
        odd = torch.cat((odd, torch.zeros_like(last) if mode == "zero" else last), dim=axis)
    return even, odd


def _interleave(even: Tensor, odd: Tensor, *, rows: bool) -> Tensor:
    """Undo `_halves`."""
    return torch.stack((even, odd), dim=-2).flatten(-3, -2) if rows else torch.stack((even, odd), dim=-1).flatten(-2)


@lru_cache(maxsize=64)
def _chain(wavelet: str, levels: int, mode: str, length: int) -> tuple[int, ...]:
    """Return the length of a line and of its nodes at every level."""
    lengths = [length]
    for _ in range(levels):
        lengths.append(pywt.dwt_coeff_len(lengths[-1], pywt.Wavelet(wavelet).dec_len, mode))
    return tuple(lengths)


@lru_cache(maxsize=64)
def packet_matrices(
    wavelet: str, levels: int, mode: str, length: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Build the packet of one axis and its inverse as matrices, by transforming unit vectors.

    Parameters
    ----------
    wavelet, mode : str
        As in PyWavelets.
    levels : int
        Splits of every node.
    length : int
        Samples along the axis.

    Returns
    -------
    analysis : ndarray, (2 ** levels * m, length), float64
        Rows node by node, natural order.
    synthesis : ndarray, (length, 2 ** levels * m), float64
        ``synthesis @ analysis`` is the identity to 1e-10; PyWavelets' own inverse but for dmey.
    """
    lengths = _chain(wavelet, levels, mode, length)
    nodes = [np.eye(length)]
    for _ in range(levels):
        nodes = [half for node in nodes for half in pywt.dwt(node, wavelet, mode, axis=0)]
    n_out = 2**levels * lengths[-1]
    back = list(np.eye(n_out).reshape(2**levels, lengths[-1], n_out))
    for n in reversed(lengths[:-1]):
        pairs = zip(back[::2], back[1::2], strict=True)
        back = [pywt.idwt(low, high, wavelet, mode, axis=0)[:n] for low, high in pairs]
    analysis, synthesis = np.concatenate(nodes), back[0]
    if wavelet == "dmey":  # its taps are cut short and reconstruct to half a per cent only: Newton's iteration
        for _ in range(3):
            synthesis = 2 * synthesis - synthesis @ (analysis @ synthesis)
    return analysis, synthesis
