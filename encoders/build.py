"""From a config to a network: the union of known encoders and their named sizes."""

from typing import Annotated

from pydantic import Field
from torch import nn

from encoders.layers.signal_shape import SignalShape
from encoders.networks.atm import ATM50Config, ATMConfig
from encoders.networks.brain_module import BrainModuleConfig
from encoders.networks.deep_conv_net import DeepConvNetConfig
from encoders.networks.eeg_project import EEGProjectConfig
from encoders.networks.eegnet import EEGNetConfig
from encoders.networks.eegnet_ssvep import EEGNetSSVEPConfig
from encoders.networks.eegnet_v1 import EEGNetV1Config
from encoders.networks.hybrid import HybridConfig
from encoders.networks.lf_cnn import LFCNNConfig
from encoders.networks.lstm_cnn import LSTMCNNConfig
from encoders.networks.multi_path import MultiPathConfig
from encoders.networks.query_decoder import QueryDecoderConfig
from encoders.networks.shallow_conv_net import ShallowConvNetConfig
from encoders.networks.spatio_temporal_transformer import SpatioTemporalTransformerConfig
from encoders.networks.stgate import STGATEConfig
from encoders.networks.ts_conv import TSConvConfig
from encoders.networks.wavelet_cnn import WaveletCNNConfig

__all__ = ["PRESETS", "AnyEncoderConfig", "EncoderConfig", "SignalShape", "build_encoder"]

AnyEncoderConfig = (
    ATM50Config
    | ATMConfig
    | BrainModuleConfig
    | DeepConvNetConfig
    | EEGNetConfig
    | EEGNetSSVEPConfig
    | EEGNetV1Config
    | EEGProjectConfig
    | HybridConfig
    | LFCNNConfig
    | LSTMCNNConfig
    | MultiPathConfig
    | QueryDecoderConfig
    | ShallowConvNetConfig
    | SpatioTemporalTransformerConfig
    | STGATEConfig
    | TSConvConfig
    | WaveletCNNConfig
)  # fmt: skip
EncoderConfig = Annotated[AnyEncoderConfig, Field(discriminator="name")]

# brain_module_demo: the published front end (attention over positions, people) with a linear, wavelet-like read-out of
# time. 0.17 M parameters at embed_dim 128; a training step of 256 epochs of 63 x 64 takes about 25 ms on one thread.
# In simulated brains it is best after 8 to 12 passes at learning rate 3e-3, batch 256.
# *_embed: networks published for a few classes, given what an embedding of 128 or more numbers needs: more filters, a
# finer time grid in front of the dense layer, less dropout. deep_conv_net_embed has two blocks, for epochs of half a
# second.
PRESETS: dict[str, AnyEncoderConfig] = {
    "atm": ATMConfig(),
    "atm_50": ATM50Config(),
    "brain_module": BrainModuleConfig(),
    "brain_module_image": BrainModuleConfig(n_convs=4, time_agg="linear"),
    "brain_module_causal": BrainModuleConfig(n_convs=4, time_agg="linear", causal=True),
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
    "ts_conv_causal": TSConvConfig(causal=True),
    "ts_conv_people": TSConvConfig(subject_layers=True),
    "ts_conv_neurobridge": TSConvConfig(flatten="channel"),
    "ts_conv_ubp": TSConvConfig(mix=False, flatten="channel"),
    "eeg_project": EEGProjectConfig(),
    "eeg_project_people": EEGProjectConfig(subject_layers=True),
    "eegnet": EEGNetConfig(),
    "eegnet_embed": EEGNetConfig(n_filters=16, depth=4, second_pool=1 / 16, dropout=0.25, norm_momentum=0.1),
    "eegnet_ssvep": EEGNetSSVEPConfig(),
    "eegnet_v1": EEGNetV1Config(),
    "deep_conv_net": DeepConvNetConfig(),
    "deep_conv_net_embed": DeepConvNetConfig(n_filters=50, n_blocks=2, dropout=0.25),
    "shallow_conv_net": ShallowConvNetConfig(),
    "shallow_conv_net_original": ShallowConvNetConfig(kernel=0.1, pool=0.3, stride=0.06),
    "lf_cnn": LFCNNConfig(),
    "lf_cnn_embed": LFCNNConfig(n_latents=64, dropout=0.25, l1=1e-6),
    "var_cnn": LFCNNConfig(name="var_cnn"),
    "var_cnn_embed": LFCNNConfig(name="var_cnn", n_latents=64, dropout=0.25, l1=1e-6),
    "lstm_cnn": LSTMCNNConfig(),
    "lstm_cnn_causal": LSTMCNNConfig(causal=True),
    "cnn_lstm": LSTMCNNConfig(name="cnn_lstm"),
    "multi_path": MultiPathConfig(),
    "cnn_lstm_causal": LSTMCNNConfig(name="cnn_lstm", causal=True),
    "wavelet_cnn": WaveletCNNConfig(),
    "wavelet_cnn_people": WaveletCNNConfig(subject_layers=True),
    "gat": HybridConfig(name="gat"),
    "cnn_gat": HybridConfig(name="cnn_gat"),
    "transformer_gat": HybridConfig(name="transformer_gat"),
    "cnn_transformer": HybridConfig(name="cnn_transformer"),
    "cnn_transformer_causal": HybridConfig(name="cnn_transformer", causal=True),
    "cnn_transformer_published": HybridConfig(
        name="cnn_transformer", width=40, heads=10, layers=6, pool=0.3, stride=0.06, dropout=0.5
    ),
    "transformer_cnn": HybridConfig(name="transformer_cnn"),
    "cnn_transformer_gat": HybridConfig(name="cnn_transformer_gat"),
    "wavelet_cnn_gat": HybridConfig(name="wavelet_cnn_gat"),
    "spatio_temporal_transformer": SpatioTemporalTransformerConfig(),
    "spatio_temporal_transformer_bands": SpatioTemporalTransformerConfig(features="band_power", window=0.25),
    "stgate": STGATEConfig(),
    "stgate_people": STGATEConfig(subject_layers=True),
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
