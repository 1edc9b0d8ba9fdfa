"""A running evoked template for slow drift: what the response to any picture looks like now.

Each epoch is seen relative to the template. An update moves the template towards the epoch, but only if a confidence
head takes the epoch for sound: always updating lets artefacts in, never updating lets drift in. If the template is ever
far off, sound epochs look foreign and nothing is let in any more: a stream that refuses everything needs calibration.
"""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from encoders.layers.query_decoder_pool import QueryDecoderPool


class TokenEncoder(Protocol):
    """What the confidence head asks of an encoder: token features and their width."""

    token_width: int

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor: ...


class TemplateMemory(nn.Module):
    """Keep the template and decide about each epoch in turn.

    Parameters
    ----------
    template : Tensor, (c, t), float32
        Mean of the calibration epochs.
    rate : float
        Share of a sound epoch in the new template, in (0, 1]; 0.1 follows within about 10 epochs.
    threshold : float
        Confidence from which an epoch counts as sound.

    Raises
    ------
    ValueError
        If ``rate`` or ``threshold`` is out of range.

    References
    ----------
    Yan et al. 2021, arXiv:2103.17154 (STARK): a dynamic template that is replaced when a score head says so. There it
    is replaced whole; here it is a running mean, because single epochs are mostly noise.
    """

    template: Tensor

    def __init__(self, template: Tensor, rate: float = 0.1, threshold: float = 0.5) -> None:
        super().__init__()
        if not 0 < rate <= 1 or not 0 <= threshold <= 1:
            raise ValueError(f"rate is {rate} and threshold {threshold}, expected (0, 1] and [0, 1]; use 0.1 and 0.5")
        self.rate, self.threshold = rate, threshold
        self.register_buffer("template", template.detach().clone())

    def forward(self, data: Tensor) -> Tensor:
        """Return epochs relative to the template, (b, c, t); a network in front of any encoder."""
        return data - self.template

    @torch.no_grad()
    def update(self, data: Tensor, confidence: Tensor) -> Tensor:
        """Move the template towards the sound epochs, one after another.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
            As measured, not relative to the template; in the order of time.
        confidence : Tensor, (b,), float32
            In [0, 1], from `ConfidenceHead`.

        Returns
        -------
        Tensor, (b,), bool
            Which epochs were let in.

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        if data.shape[1:] != self.template.shape or confidence.shape != data.shape[:1]:
            raise ValueError(
                f"data is {tuple(data.shape)} and confidence {tuple(confidence.shape)}, expected (b, "
                f"{', '.join(map(str, self.template.shape))}) and (b,); cut epochs as in calibration"
            )
        sound = confidence >= self.threshold
        for epoch in data[sound]:
            self.template.lerp_(epoch.to(self.template), self.rate)
        return sound


class ConfidenceHead(nn.Module):
    """Tell sound epochs from artefacts by the encoder's tokens of the epoch and of the template.

    The encoder is a frozen copy (parameters and running statistics), so training the head is a second stage that leaves
    the first one as it was.

    Parameters
    ----------
    encoder : TokenEncoder
        Trained; copied.
    hidden : int
        Width of the three-layer head.
    n_heads : int
        Of the pooling query; divides the encoder's token width.
    """

    def __init__(self, encoder: nn.Module, hidden: int = 64, n_heads: int = 4) -> None:
        super().__init__()
        width = getattr(encoder, "token_width", None)
        if not isinstance(width, int):
            raise ValueError(
                f"{type(encoder).__name__} has no tokens, expected an encoder with tokens() and token_width; use for "
                "example query_decoder"
            )
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.pool = QueryDecoderPool(width, n_heads, n_layers=1, feedforward=hidden, dropout=0.0, n_streams=2)
        self.score = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )

    def train(self, mode: bool = True) -> "ConfidenceHead":
        """Switch the head's mode; the encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, data: Tensor, template: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Score epochs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
            As measured.
        template : Tensor, (c, t), float32
            Of the moment.
        positions, subject
            As the encoder takes them.

        Returns
        -------
        Tensor, (b,), float32
            Logits; their sigmoid is the confidence that an epoch is sound.
        """
        encoder: TokenEncoder = self.encoder  # type: ignore[assignment]
        with torch.no_grad():
            now = encoder.tokens(data - template, positions, subject)
            usual = encoder.tokens(template.to(data).expand_as(data), positions, subject)
        logits: Tensor = self.score(self.pool(now, usual)).squeeze(-1)
        return logits
