"""Pictures that do not depend on how many are made together, to the last bit.

Matrix products and convolutions are computed by kernels that are chosen by shape, so a row's last digits can depend on
how many rows there are, though never on what the others hold. Which layers do that is a matter of the machine, so it is
measured: their rows are filled up to a number from which on the results agree, all other layers compute what they are
given. What is left over after that (functions that are no layers) is met by filling whole batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Pixels = Callable[[int], np.ndarray]
"""Samples so many pictures, always the first of the same ones; returns them unrounded, (n, h, w, 3)."""


class FixedRows:
    """Let a layer see at least ``n_rows`` rows: missing ones are copies of the last, and are dropped again.

    Parameters
    ----------
    layer : nn.Module
        Takes one tensor and returns one, row by row.
    n_rows : int
    """

    def __init__(self, layer: nn.Module, n_rows: int) -> None:
        self.n_rows = n_rows
        self._n_given = 0
        layer.register_forward_pre_hook(self._fill)
        layer.register_forward_hook(self._drop)

    def _fill(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self._n_given = len(arguments[0])
        return (filled(arguments[0], self.n_rows),)

    def _drop(self, layer: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> Tensor:
        return result[: self._n_given]


def filled(rows: Tensor, n_rows: int) -> Tensor:
    """Append copies of the last row, up to ``n_rows`` rows."""
    n_missing = n_rows - len(rows)
    return rows if n_missing <= 0 else torch.cat([rows, rows[-1:].expand(n_missing, *rows.shape[1:])])


def settle_layers(networks: Sequence[nn.Module], pixels: Pixels, max_batch: int) -> int:
    """Fill the rows of those layers whose results depend on their number; return how many layers that were.

    Parameters
    ----------
    networks : sequence of nn.Module
        What samples the pictures, in evaluation mode.
    pixels : callable
        Runs them.
    max_batch : int
        Most pictures made together.
    """
    needed: dict[nn.Module, int] = {}

    def measure(layer: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        if len(arguments) != 1 or not isinstance(arguments[0], Tensor) or not isinstance(result, Tensor):
            return
        per_picture, rest = divmod(len(arguments[0]), max_batch)
        if rest or len(arguments[0]) != len(result):
            return
        for n_rows in range(len(result) - per_picture, 0, -per_picture):
            # from both ends: with guidance the first class labels are zeros, which agree whatever computes them
            for rows in (slice(None, n_rows), slice(-n_rows, None)):
                if not torch.equal(layer.forward(arguments[0][rows].clone()), result[rows]):
                    needed[layer] = max(needed.get(layer, 0), n_rows + per_picture)
                    return

    with _hooked([layer for network in networks for layer in network.modules() if not list(layer.children())], measure):
        pixels(max_batch)
    for layer, n_rows in needed.items():
        FixedRows(layer, n_rows)
    return len(needed)


def steady_from(pixels: Pixels, max_batch: int) -> int:
    """Return the least batch size from which on no picture depends on the size, by not one bit."""
    whole = pixels(max_batch)
    for n in range(max_batch - 1, 0, -1):
        if not np.array_equal(pixels(n), whole[:n]):
            return n + 1
    return 1


@contextmanager
def _hooked(layers: Sequence[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
