"""A causal encoder on a running recording: push samples in chunks of any length, get the embedding of the epoch so far.

Non-causal networks are refused rather than fed a sliding window, because their output at an epoch's end was never
trained to mean anything before it.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class CausalNetwork(Protocol):
    """What `StreamingEncoder` needs of a network beside being an ``nn.Module``."""

    causal: bool

    def over_time(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed the epoch so far at every step, ``(b, c, t)`` to ``(b, n_steps, embed_dim)``, looking back only."""

    def start(self, positions: Tensor, subject: Tensor) -> Any:
        """Return the state at an epoch's beginning."""

    def step(self, chunk: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the next steps of `over_time`, ``(b, c, n)`` to ``(b, n_new, embed_dim)``, and the next state."""


class StreamingEncoder:
    """Embed one running epoch chunk by chunk; the outputs are those of ``network.over_time`` on the whole epoch.

    Parameters
    ----------
    network : nn.Module
        A causal encoder in evaluation mode.
    positions : Tensor, (c, 2), float32
        Layout coordinates, as for ``network.forward``.
    subject : int
        Index of the person; ``n_subjects`` for an unknown one.

    Raises
    ------
    ValueError
        If the network looks ahead or is in training mode, or the positions are not one pair per channel.
    """

    def __init__(self, network: nn.Module, positions: Tensor, subject: int) -> None:
        kind = type(network).__name__
        if not isinstance(network, CausalNetwork) or not network.causal:
            raise ValueError(
                f"streaming needs a causal network, got {kind} that looks ahead; build and train it with causal=True "
                "(brain_module, ts_conv)"
            )
        if network.training:
            raise ValueError(f"streaming needs {kind} in evaluation mode, got training mode; call network.eval()")
        if positions.ndim != 2 or positions.shape[1] != 2:
            raise ValueError(f"positions have shape {tuple(positions.shape)}, expected (c, 2); pass one montage's map")
        self._network: CausalNetwork = network
        self._n_channels = len(positions)
        with torch.inference_mode():
            person = torch.tensor([subject], device=positions.device)
            self._beginning = network.start(positions, person)
            # also the warm-up: the first call of a network is slower than the following ones
            self._none = network.step(positions.new_zeros(1, self._n_channels, 1), self._beginning)[0][0, :0]
        self._state = self._beginning

    def push(self, chunk: Tensor) -> Tensor:
        """Take the next samples.

        Parameters
        ----------
        chunk : Tensor, (c, n), float32
            Preprocessed samples (`StreamingPreprocessor`), any number of them.

        Returns
        -------
        Tensor, (n_steps, embed_dim), float32
            One embedding of the epoch so far per step that these samples complete, oldest first; maybe none.

        Raises
        ------
        ValueError
            If the chunk has other channels or values that are not finite, or the epoch is over for a network of
            fixed length. The state is then as before.
        """
        if chunk.ndim != 2 or len(chunk) != self._n_channels:
            raise ValueError(
                f"chunk has shape {tuple(chunk.shape)}, expected ({self._n_channels}, n_samples); push the channels "
                "of the positions, in their order"
            )
        if not bool(chunk.isfinite().all()):
            raise ValueError("chunk has NaN or infinite values, expected finite ones; interpolate the channel or reset")
        if chunk.shape[1] == 0:
            return self._none
        with torch.inference_mode():
            embeds, self._state = self._network.step(chunk[None], self._state)
        return embeds[0]

    def reset(self) -> None:
        """Begin a new epoch of the same person and montage."""
        self._state = self._beginning
