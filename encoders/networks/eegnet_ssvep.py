"""EEGNet for steady-state responses: many long temporal filters, one spatial filter each, no norm on the dense layer.

The network is `encoders.networks.eegnet.EEGNet`; only the sizes differ.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from encoders.layers.signal_shape import SignalShape
from encoders.networks.eegnet import EEGNet, EEGNetConfig


class EEGNetSSVEPConfig(BaseModel):
    """Sizes; the defaults are published for 256 Hz, where the kernel has 256 samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Waytowich et al. 2018, J. Neural Eng., arXiv:1803.04566"

    name: Literal["eegnet_ssvep"] = "eegnet_ssvep"
    n_filters: int = Field(96, gt=0, description="temporal filters, and maps of the separable convolution")
    kernel: float = Field(1.0, gt=0, description="temporal kernel, s")
    separable_kernel: float = Field(0.25, gt=0, description="kernel of the separable convolution, s")
    dropout: float = Field(0.5, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person before the filters (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> EEGNet:
        """Build the untrained network."""
        sizes = EEGNetConfig(
            n_temporal=self.n_filters,
            depth=1,
            n_pointwise=self.n_filters,
            kernel=self.kernel,
            separable_kernel=self.separable_kernel,
            dropout=self.dropout,
            head_norm=float("inf"),
            subject_layers=self.subject_layers,
        )
        return EEGNet(sizes, shape, embed_dim)
