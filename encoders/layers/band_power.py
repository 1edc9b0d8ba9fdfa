"""Power of a signal in frequency bands by Welch's method, as a fixed linear map of the spectrum that trains through."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FLOOR = 1e-12  # keeps the logarithm of silence finite


class BandPower(nn.Module):
    """Integrate the power spectral density over bands.

    The density is Welch's: segments without their mean, under a periodic Hann window, half overlapping, averaged,
    one-sided. Between its frequencies it counts as linear (the trapezoidal rule where band edges fall on them), so that
    bands narrower than the resolution get their share instead of nothing.

    Parameters
    ----------
    sfreq : float
        Sampling rate in Hz.
    bands : sequence of (float, float)
        Lower and upper edge in Hz, within 0 and half the sampling rate.
    n_segment : int
        Samples per segment.

    Raises
    ------
    ValueError
        If a band is empty or leaves the spectrum, or a segment has fewer than 4 samples.

    References
    ----------
    Welch 1967, IEEE Trans. Audio Electroacoust. 15.
    """

    window: Tensor
    weights: Tensor

    def __init__(self, sfreq: float, bands: Sequence[tuple[float, float]], n_segment: int) -> None:
        super().__init__()
        if n_segment < 4:
            raise ValueError(
                f"band power from segments of {n_segment} samples at {sfreq:g} Hz is impossible, expected at least 4; "
                "lengthen the window"
            )
        for low, high in bands:
            if not 0 <= low < high <= sfreq / 2:
                raise ValueError(
                    f"band {low:g} to {high:g} Hz is impossible at {sfreq:g} Hz, expected rising edges between 0 and "
                    f"{sfreq / 2:g} Hz; change the band or record faster"
                )
        self.n_segment = n_segment
        window = torch.hann_window(n_segment, dtype=torch.float64)
        self.register_buffer("window", window.float(), persistent=False)
        frequencies = np.arange(n_segment // 2 + 1, dtype=np.float64) * sfreq / n_segment
        one_sided = np.full(len(frequencies), 2.0)
        one_sided[0] = 1.0
        if n_segment % 2 == 0:
            one_sided[-1] = 1.0
        density = one_sided / (sfreq * float(window.square().sum()))
        weights = np.stack([_integration_weights(frequencies, low, high) * density for low, high in bands], axis=1)
        self.register_buffer("weights", torch.from_numpy(weights).float(), persistent=False)

    def forward(self, data: Tensor) -> Tensor:
        """Compute band powers.

        Parameters
        ----------
        data : Tensor, (..., t), float32
            At least ``n_segment`` samples; those behind the last whole segment are left out.

        Returns
        -------
        Tensor, (..., n_bands), float32
            In the square of the signal's unit.
        """
        segments = data.unfold(-1, self.n_segment, self.n_segment - self.n_segment // 2)
        segments = (segments - segments.mean(dim=-1, keepdim=True)) * self.window
        spectrum = torch.fft.rfft(segments)
        power = (spectrum.real.square() + spectrum.imag.square()).mean(dim=-2)
        integrated: Tensor = power @ self.weights
        return integrated


def log_power(power: Tensor) -> Tensor:
    """Take the natural logarithm of a power, floored where there is none."""
    return (power + FLOOR).log()


def _integration_weights(frequencies: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Return the weight of each frequency in the integral from ``low`` to ``high`` of the piecewise linear spectrum."""
    inside = frequencies[(frequencies > low) & (frequencies < high)]
    nodes = np.concatenate([[low], inside, [high]])
    hats = np.stack([np.interp(nodes, frequencies, hat) for hat in np.eye(len(frequencies))])
    weights: NDArray[np.float64] = np.trapezoid(hats, nodes, axis=1)
    return weights
