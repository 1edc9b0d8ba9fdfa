"""EEGProject, the plain projection of UBP and NeuroBridge: the whole epoch through one dense layer.

No convolution and no geometry, so it belongs in every comparison: what does not beat it is not worth its cost. Both
publications use the same layers in the same order; their checkpoints differ in a temperature that belongs to the loss.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from encoders.layers.residual_projection import ResidualProjection
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers


class EEGProjectConfig(BaseModel):
    """Sizes of `EEGProject`; the defaults are the published network."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Wu et al. 2025, CVPR (UBP); NeuroBridge, AAAI 2026"

    name: Literal["eeg_project"] = "eeg_project"
    dropout: float = Field(0.3, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person before the projection (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "EEGProject":
        """Build the untrained network."""
        return EEGProject(self, shape, embed_dim)


class EEGProject(nn.Module):
    """Flatten an epoch channel by channel, project it, refine it with a residual GELU layer.

    Parameters
    ----------
    config : EEGProjectConfig
    shape : SignalShape
        Channels and samples are fixed by the dense layer.
    embed_dim : int
        Width of the output.

    References
    ----------
    Wu et al. 2025, "Bridging the vision-brain gap with an uncertainty-aware blur prior", CVPR (EEGProjectLayer).
    """

    def __init__(self, config: EEGProjectConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        self.people = (
            SubjectLayers(shape.n_channels, shape.n_subjects, init="identity") if config.subject_layers else None
        )
        self.token_width = shape.n_channels
        self.head = ResidualProjection(shape.n_channels * shape.n_times, embed_dim, config.dropout)

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return one token per sample, all sensors at that time, (b, t, token_width)."""
        if self.people is not None:
            data = self.people(data, subject)
        return data.transpose(1, 2)  # (b, c, t) -> (b, t, c)

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
        if self.people is not None:
            data = self.people(data, subject)
        embeds: Tensor = self.head(data.flatten(1))
        return embeds
