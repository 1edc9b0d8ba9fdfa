"""LSTM and convolution in both orders: convolve and remember, or remember and convolve.

The row's source leaves the sizes open; those of ``cnn_lstm`` follow mneflow's LF-CNN-LSTM (32 latent sources, 7 taps,
pooling by 2), the rest is ours. What a unidirectional network says of a moment depends on the past alone if it is built
with ``causal=True``.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.causal import RunningSum, running_dense
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers


class LSTMCNNConfig(BaseModel):
    """Sizes of `LSTMCNN`; the name decides the order."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "ours, in the sizes of Zubarev et al. 2019 (LF-CNN-LSTM)"

    name: Literal["lstm_cnn", "cnn_lstm"] = "lstm_cnn"
    hidden: int = Field(128, gt=0, description="width of the LSTM")
    layers: int = Field(2, gt=0, description="layers of the LSTM")
    bidirectional: bool = False
    n_latent: int = Field(32, gt=0, description="maps of the convolution")
    taps: int = Field(7, gt=0, description="temporal kernel, samples")
    pooling: Literal["steps", "attention", "last"] = Field("steps", description="a dense layer over all steps, or one")
    pool: int = Field(2, gt=0, description="samples per step")
    dropout: float = Field(0.2, ge=0, lt=1)
    causal: bool = Field(False, description="no output looks ahead; see `LSTMCNN.over_time`")
    subject_layers: bool = Field(False, description="one channel mixing per person before everything (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "LSTMCNN":
        """Build the untrained network."""
        return LSTMCNN(self, shape, embed_dim)


@dataclass(frozen=True)
class LSTMCNNState:
    """What a running epoch leaves behind: matrix of the person, LSTM, samples still needed, and the dense layer's sum.

    ``tail`` (b, n_latent, taps - 1) are inputs of the convolution, ``rest`` (b, n_latent, fewer than pool) its outputs.
    """

    mixing: Tensor | None
    memory: tuple[Tensor, Tensor] | None
    tail: Tensor
    rest: Tensor
    read_out: RunningSum | None


class LSTMCNN(nn.Module):
    """Spatial mixing and a temporal convolution before (``cnn_lstm``) or after (``lstm_cnn``) an LSTM.

    Parameters
    ----------
    config : LSTMCNNConfig
    shape : SignalShape
    embed_dim : int
        Width of the output.

    Raises
    ------
    ValueError
        If a causal network is asked to be bidirectional or to pool by attention, or the epoch is shorter than one
        pooled step.
    """

    def __init__(self, config: LSTMCNNConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        if config.causal and (config.bidirectional or config.pooling == "attention"):
            raise ValueError(
                f"{config.name} got causal=True with bidirectional={config.bidirectional} and pooling="
                f"'{config.pooling}', expected nothing that reads the future; set bidirectional=False and "
                "pooling='steps' or 'last'"
            )
        if shape.n_times < config.pool:
            raise ValueError(
                f"{config.name} needs epochs of at least {config.pool} samples, got {shape.n_times}; "
                "lengthen the window"
            )
        self.is_conv_first, self.causal = config.name == "cnn_lstm", config.causal
        self.pooling, self.pool = config.pooling, config.pool
        self.n_steps = shape.n_times // config.pool
        n, width = config.n_latent, config.hidden * (2 if config.bidirectional else 1)
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.mix = nn.Conv1d(shape.n_channels if self.is_conv_first else width, n, 1)
        self.temporal = nn.Conv1d(n, n, config.taps, groups=n if self.is_conv_first else 1)
        self.memory = nn.LSTM(
            n if self.is_conv_first else shape.n_channels, config.hidden, config.layers, batch_first=True,
            bidirectional=config.bidirectional, dropout=config.dropout if config.layers > 1 else 0.0,
        )  # fmt: skip
        _remember_at_first(self.memory)
        self.dropout = nn.Dropout(config.dropout)
        self.token_width = width if self.is_conv_first else n
        self.score = nn.Linear(self.token_width, 1) if config.pooling == "attention" else None
        n_features = self.token_width * (self.n_steps if config.pooling == "steps" else 1)
        self.head = nn.Linear(n_features, embed_dim)

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the feature of each step, (b, n_steps, token_width); arguments as in `forward`."""
        data = self.dropout(data if self.people is None else self.people(data, subject))
        if self.is_conv_first:
            steps = F.avg_pool1d(F.elu(self._convolved(self.mix(data))), self.pool)
            # (b, n, s) -> (b, s, n) for the LSTM
            found: Tensor = self.memory(steps.transpose(1, 2))[0]
            return self.dropout(found)  # type: ignore[no-any-return]
        # (b, c, t) -> (b, t, c) -> (b, h, t)
        remembered = self.memory(data.transpose(1, 2))[0].transpose(1, 2)
        steps = F.avg_pool1d(F.elu(self._convolved(self.mix(remembered))), self.pool)
        return torch.transpose(self.dropout(steps), 1, 2)

    def _convolved(self, data: Tensor) -> Tensor:
        taps = self.temporal.kernel_size[0]
        left = taps - 1 if self.causal else (taps - 1) // 2
        convolved: Tensor = self.temporal(F.pad(data, (left, taps - 1 - left)))
        return convolved

    def over_time(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed what is known at the end of every step.

        Parameters
        ----------
        data, positions, subject
            As in `forward`.

        Returns
        -------
        Tensor, (b, n_steps, embed_dim), float32
            The last step equals `forward`; with ``pooling="steps"`` steps to come count as zero.

        Raises
        ------
        ValueError
            If the network is not causal.
        """
        self._refuse_unless_causal()
        return self._read_out(self.tokens(data, positions, subject), None)[0]

    def start(self, positions: Tensor, subject: Tensor) -> LSTMCNNState:
        """Begin epochs of known people, (b,), for `step`; positions are not used."""
        self._refuse_unless_causal()
        mixing = None if self.people is None else self.people.matrices(subject)
        n_latent, taps = self.temporal.out_channels, self.temporal.kernel_size[0]
        silence = self.temporal.weight.new_zeros(len(subject), n_latent, taps - 1)
        return LSTMCNNState(mixing, None, silence, silence[:, :, :0], None)

    def step(self, chunk: Tensor, state: LSTMCNNState) -> tuple[Tensor, LSTMCNNState]:
        """Continue epochs by a chunk, ``(b, c, n)``; returns the steps of `over_time` that it completes."""
        memory = state.memory
        if state.mixing is not None:
            chunk = state.mixing @ chunk
        if not self.is_conv_first:
            # (b, c, n) -> (b, n, c) -> (b, h, n)
            remembered, memory = self.memory(chunk.transpose(1, 2), memory)
            chunk = remembered.transpose(1, 2)
        seen = torch.cat([state.tail, self.mix(chunk)], dim=2)
        maps = torch.cat([state.rest, F.elu(self.temporal(seen))], dim=2)
        tail, n_used = seen[:, :, chunk.shape[2] :], maps.shape[2] // self.pool * self.pool
        if n_used == 0:
            none = chunk.new_empty(len(chunk), 0, self.head.out_features)
            return none, LSTMCNNState(state.mixing, memory, tail, maps, state.read_out)
        # (b, n, s) -> (b, s, n)
        tokens = F.avg_pool1d(maps[:, :, :n_used], self.pool).transpose(1, 2)
        if self.is_conv_first:
            tokens, memory = self.memory(tokens, memory)
        embeds, read_out = self._read_out(self.dropout(tokens), state.read_out)
        return embeds, LSTMCNNState(state.mixing, memory, tail, maps[:, :, n_used:], read_out)

    def _refuse_unless_causal(self) -> None:
        if not self.causal:
            raise ValueError("an LSTM-CNN that looks ahead has no output over time, expected causal=True; build it so")

    def _read_out(self, tokens: Tensor, state: RunningSum | None) -> tuple[Tensor, RunningSum | None]:
        if self.pooling == "steps":
            weight = self.head.weight.view(-1, self.n_steps, self.token_width)
            sums, state = running_dense(tokens, weight, state)
            return sums + self.head.bias, state
        embeds: Tensor = self.head(tokens)
        return embeds, state

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed epochs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
            Preprocessed, unitless.
        positions : Tensor, (c, 2) or (b, c, 2), float32
            Not used.
        subject : Tensor, (b,), int64
            Used only with ``subject_layers``.

        Returns
        -------
        Tensor, (b, embed_dim), float32
        """
        tokens = self.tokens(data, positions, subject)
        if self.pooling == "steps":
            embeds: Tensor = self.head(tokens.flatten(1))
            return embeds
        if self.score is not None:
            return self.head((self.score(tokens).softmax(dim=1) * tokens).sum(dim=1))  # type: ignore[no-any-return]
        return self.head(tokens[:, -1])  # type: ignore[no-any-return]


def _remember_at_first(memory: nn.LSTM) -> None:
    """Set the forget gates' bias to 1, so that gradients reach far back from the first step on."""
    for name, parameter in memory.named_parameters():
        if name.startswith("bias_ih"):
            with torch.no_grad():
                parameter[memory.hidden_size : 2 * memory.hidden_size].fill_(1.0)
        elif name.startswith("bias_hh"):
            with torch.no_grad():
                parameter[memory.hidden_size : 2 * memory.hidden_size].zero_()
