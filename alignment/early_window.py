"""How well a picture can be told when only the beginning of an epoch is known: the growing-window curve."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alignment.retrieval import RetrievalReport, retrieval_scores
from encoders.streaming import CausalNetwork


@dataclass(frozen=True)
class EarlyWindowScore:
    """Retrieval from the samples up to ``until`` seconds after the onset, that one included."""

    until: float
    scores: RetrievalReport


def early_window_curve(
    network: nn.Module,
    data: Tensor,
    positions: Tensor,
    subject: Tensor,
    image_embeds: NDArray[np.float32],
    target: NDArray[np.int64] | None = None,
    *,
    sfreq: float,
    tmin: float,
    until: Sequence[float],
    centre: NDArray[np.float32] | None = None,
) -> list[EarlyWindowScore]:
    """Score retrieval for windows that end earlier than the epochs.

    A causal network says at each time what it would say on-line. Any other gets the whole epoch with zeros, the typical
    value of scaled data, after the window's end.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode.
    data : Tensor, (n, c, t), float32
        Preprocessed epochs that were not trained on; baselines must not reach behind the first window's end.
    positions, subject : Tensor
        As for the network.
    image_embeds : ndarray, (m, d), float32
        The gallery.
    target : ndarray, (n,), int64, optional
        Column of each epoch's own picture; ``0 .. n-1`` by default.
    sfreq, tmin : float
        Hz, and time of the first sample in s.
    until : sequence of float
        Ends of the windows in s, ascending.
    centre : ndarray, (d,), optional
        As for `retrieval_scores`.

    Returns
    -------
    list of EarlyWindowScore
        One per end; each holds n, chance and intervals.

    Raises
    ------
    ValueError
        If the network is in training mode, the ends do not ascend inside the epoch, or a causal network has no output
        yet at the first of them.
    """
    if network.training:
        raise ValueError("early_window_curve got a network in training mode, expected evaluation; call network.eval()")
    lengths = [round((end - tmin) * sfreq) + 1 for end in until]
    if not lengths or lengths != sorted(set(lengths)) or lengths[0] < 1 or lengths[-1] > data.shape[2]:
        raise ValueError(
            f"windows end at {list(until)} s, expected ascending times from {tmin:g} to "
            f"{tmin + (data.shape[2] - 1) / sfreq:g} s, the epochs' limits; choose others"
        )
    with torch.inference_mode():
        if isinstance(network, CausalNetwork) and network.causal:
            embeds = _on_line(network, data, positions, subject, lengths)
        else:
            known = torch.arange(data.shape[2], device=data.device)
            embeds = [network(data * (known < length), positions, subject) for length in lengths]
    return [
        EarlyWindowScore(end, retrieval_scores(one.numpy(force=True), image_embeds, target, centre=centre))
        for end, one in zip(until, embeds, strict=True)
    ]


def _on_line(
    network: CausalNetwork, data: Tensor, positions: Tensor, subject: Tensor, lengths: Sequence[int]
) -> list[Tensor]:
    state, latest, done, embeds = network.start(positions, subject), None, 0, []
    for length in lengths:
        steps, state = network.step(data[:, :, done:length], state)
        latest = steps[:, -1] if steps.shape[1] else latest
        if latest is None:
            raise ValueError(
                f"{type(network).__name__} has no output after {length} samples, expected at least one step; end the "
                "first window later"
            )
        embeds.append(latest)
        done = length
    return embeds
