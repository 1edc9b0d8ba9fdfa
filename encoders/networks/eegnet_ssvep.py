"""EEGNet for steady-state visual evoked potentials: many long temporal filters with one spatial filter each.

The network is `encoders.networks.eegnet.EEGNet`; only the sizes differ, and the dense layer has no norm limit.
"""

from math import inf
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from encoders.layers.signal_shape import SignalShape
from encoders.networks.eegnet import EEGNet, EEGNetConfig


class EEGNetSSVEPConfig(BaseModel):
    """Sizes; the defaults are the published network."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Waytowich et al. 2018, J. Neural Eng. 15 066031, arXiv:1803.04566"

    name: Literal["eegnet_ssvep"] = "eegnet_ssvep"
    n_filters: int = Field(96, gt=0, description="temporal filters, each with one spatial filter")
    kernel: float = Field(1.0, gt=0, description="temporal kernel, s")
    pool: float = Field(1 / 64, gt=0, description="first mean pooling, s")
    separable_kernel: float = Field(0.25, gt=0, description="kernel of the separable convolution, s")
    second_pool: float = Field(0.125, gt=0, description="second mean pooling, s")
    dropout: float = Field(0.5, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person before the filters (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> EEGNet:
        """Build the untrained network."""
        sizes = EEGNetConfig(depth=1, dense_max_norm=inf, **self.model_dump(exclude={"name"}))
        return EEGNet(sizes, shape, embed_dim)
