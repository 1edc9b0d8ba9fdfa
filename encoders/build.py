"""From a config to a network: the union of known encoders and their named sizes."""

from typing import Annotated

from pydantic import Field
from torch import nn

from encoders.layers.signal_shape import SignalShape
from encoders.networks.brain_module import BrainModuleConfig
from encoders.networks.eeg_project import EEGProjectConfig
from encoders.networks.query_decoder import QueryDecoderConfig
from encoders.networks.ts_conv import TSConvConfig

__all__ = ["PRESETS", "AnyEncoderConfig", "EncoderConfig", "SignalShape", "build_encoder"]

AnyEncoderConfig = (
    BrainModuleConfig
    | EEGProjectConfig
    | QueryDecoderConfig
    | TSConvConfig
)  # fmt: skip
EncoderConfig = Annotated[AnyEncoderConfig, Field(discriminator="name")]

# brain_module_demo: the published front end (attention over positions, people) with a linear, wavelet-like read-out of
# time. 0.17 M parameters at embed_dim 128; a training step of 256 epochs of 63 x 64 takes about 25 ms on one thread.
# In simulated brains it is best after 8 to 12 passes at learning rate 3e-3, batch 256.
PRESETS: dict[str, AnyEncoderConfig] = {
    "brain_module": BrainModuleConfig(),
    "brain_module_image": BrainModuleConfig(n_convs=4, time_agg="linear"),
    "brain_module_demo": BrainModuleConfig(
        n_virtual=64,
        fourier_width=288,
        spatial_dropout=0.1,
        init="linear",
        width=64,
        n_convs=0,
        head_width=0,
        time_agg="linear",
        n_time_weights=16,
        dropout=0.1,
    ),
    "query_decoder": QueryDecoderConfig(),
    "query_decoder_people": QueryDecoderConfig(subject_layers=True),
    "ts_conv": TSConvConfig(),
    "ts_conv_people": TSConvConfig(subject_layers=True),
    "eeg_project": EEGProjectConfig(),
    "eeg_project_people": EEGProjectConfig(subject_layers=True),
}


def build_encoder(config: AnyEncoderConfig, shape: SignalShape, embed_dim: int) -> nn.Module:
    """Build an encoder.

    Parameters
    ----------
    config : EncoderConfig
        One member of the union, for example ``PRESETS["brain_module"]``.
    shape : SignalShape
        What the data decides.
    embed_dim : int
        Width of the target space.

    Returns
    -------
    nn.Module
        ``forward(data (b, c, t), positions (c, 2) | (b, c, 2), subject (b,)) -> (b, embed_dim)``, all float32 except
        ``subject`` (int64). Subject index ``shape.n_subjects`` means an unknown person.
    """
    network: nn.Module = config.build(shape, embed_dim)
    return network
