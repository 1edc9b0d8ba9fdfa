"""State dicts with the names and shapes of published checkpoints, and what their networks compute from them.

The computations are written on the raw tensors with `torch.nn.functional` in the published order of steps, so that they
share nothing with the networks that are compared with them.
"""

import math
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.epochs import SignalEpochs
from encoders.imported_encoder import CHANNELS_17

State = dict[str, Tensor]


def _affine(state: State, name: str, *shape: int) -> None:
    fan = math.prod(shape[1:])
    state[f"{name}.weight"] = torch.randn(*shape) / math.sqrt(fan)
    state[f"{name}.bias"] = 0.1 * torch.randn(shape[0])


def _norm(state: State, name: str, width: int, running: bool = False) -> None:
    state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width)
    state[f"{name}.bias"] = 0.1 * torch.randn(width)
    if running:
        state[f"{name}.running_mean"] = 0.1 * torch.randn(width)
        state[f"{name}.running_var"] = 0.5 + torch.rand(width)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def _convs(state: State, prefix: str, channels: int, mix: str | None) -> None:
    _affine(state, f"{prefix}.0", 40, 1, 1, 25)
    _norm(state, f"{prefix}.2", 40, running=True)
    _affine(state, f"{prefix}.4", 40, 40, channels, 1)
    _norm(state, f"{prefix}.5", 40, running=True)
    if mix:
        _affine(state, mix, 40, 40, 1, 1)


def _head(state: State, names: tuple[str, str, str], n_in: int, width: int) -> None:
    _affine(state, names[0], width, n_in)
    _affine(state, names[1], width, width)
    _norm(state, names[2], width)


NICE_HEAD = ("0", "1.fn.1", "2")
ATM_HEAD = ("proj_eeg.0", "proj_eeg.1.fn.1", "proj_eeg.2")
UBP_HEAD = ("project.1", "project.2.f.1", "project.3")
NEUROBRIDGE_HEAD = ("proj_eeg.0", "proj_eeg.1.f.1", "proj_eeg.2")
PROJECT_HEAD = ("model.0", "model.1.f.1", "model.2")


def atms(channels: int = 63, width: int = 1024, logit_scale: bool = True) -> State:
    """53 entries; 52 without the temperature."""
    state: State = OrderedDict()
    if logit_scale:
        state["logit_scale"] = torch.tensor(math.log(1 / 0.07))
    embedding, layer = "encoder.enc_embedding", "encoder.encoder.attn_layers.0"
    state[f"{embedding}.mask_token"] = torch.randn(1, 250)
    _affine(state, f"{embedding}.value_embedding", 250, 250)
    state[f"{embedding}.position_embedding.pe"] = torch.randn(1, 5000, 250)
    state[f"{embedding}.temporal_embedding.embed.weight"] = torch.randn(250, 4)
    state[f"{embedding}.subject_embedding.shared_embedding"] = torch.randn(1, 250)
    state[f"{embedding}.subject_embedding.mask_embedding"] = torch.randn(1, 250)
    state[f"{embedding}.subject_embedding.subject_embedding.weight"] = torch.randn(10, 250)
    for part in ("query", "key", "value"):
        _affine(state, f"{layer}.attention.{part}_projection", 248, 250)
    _affine(state, f"{layer}.attention.out_projection", 250, 248)
    _affine(state, f"{layer}.conv1", 256, 250, 1)
    _affine(state, f"{layer}.conv2", 250, 256, 1)
    _norm(state, f"{layer}.norm1", 250)
    _norm(state, f"{layer}.norm2", 250)
    _norm(state, "encoder.encoder.norm", 250)
    for k in range(2):
        _affine(state, f"subject_wise_linear.{k}", 250, 250)
    _convs(state, "enc_eeg.0.tsconv", channels, "enc_eeg.0.projection.0")
    _head(state, ATM_HEAD, 1440, width)
    return state


def atms_50(channels: int = 63, width: int = 1024) -> State:
    """50 entries."""
    state: State = OrderedDict(logit_scale=torch.tensor(math.log(1 / 0.07)))
    state["attention_model.pos_encoder.pe"] = published_time_code(5000, channels)
    for layer in ("attention_model.encoder_layer", "attention_model.transformer_encoder.layers.0"):
        state[f"{layer}.self_attn.in_proj_weight"] = torch.randn(3 * channels, channels) / math.sqrt(channels)
        state[f"{layer}.self_attn.in_proj_bias"] = 0.1 * torch.randn(3 * channels)
        _affine(state, f"{layer}.self_attn.out_proj", channels, channels)
        _affine(state, f"{layer}.linear1", 2048, channels)
        _affine(state, f"{layer}.linear2", channels, 2048)
        _norm(state, f"{layer}.norm1", channels)
        _norm(state, f"{layer}.norm2", channels)
    _affine(state, "subject_wise_linear.0", 250, 250)
    _convs(state, "enc_eeg.0.tsconv", channels, "enc_eeg.0.projection.0")
    _head(state, ATM_HEAD, 1440, width)
    return state


def nice(width: int = 768) -> tuple[State, State]:
    """16 and 6 entries."""
    convolutions: State = OrderedDict()
    projection: State = OrderedDict()
    _convs(convolutions, "0.tsconv", 63, "0.projection.0")
    _head(projection, NICE_HEAD, 1440, width)
    return convolutions, projection


def ubp_ts_conv(channels: int = 63, width: int = 1024) -> State:
    """21 entries."""
    state: State = OrderedDict(logit_scale=torch.tensor(math.log(1 / 0.07)))
    _convs(state, "backbone", channels, None)
    _head(state, UBP_HEAD, 1440, width)
    return state


def neurobridge_ts_conv(channels: int = 63, width: int = 1024) -> State:
    """22 entries."""
    state: State = OrderedDict()
    _convs(state, "tsconv", channels, "projection")
    _head(state, NEUROBRIDGE_HEAD, 1440, width)
    return state


def eeg_project(n_inputs: int = 4250, width: int = 1024, logit_scale: bool = False) -> State:
    """6 entries as of NeuroBridge; 7 as of UBP, with the temperature."""
    state: State = OrderedDict()
    _head(state, PROJECT_HEAD, n_inputs, width)
    if logit_scale:
        state["logit_scale"] = torch.tensor(math.log(1 / 0.07))
    return state


def published_time_code(n_steps: int, width: int) -> Tensor:
    """Sines and cosines, one number at a time."""
    rows = [[0.0] * width for _ in range(n_steps)]
    for step in range(n_steps):
        for column in range(width):
            angle = step * math.exp(-(column - column % 2) * math.log(10_000.0) / width)
            rows[step][column] = math.cos(angle) if column % 2 else math.sin(angle)
    return torch.tensor(rows)


def run_ts_conv(state: State, data: Tensor, prefix: str, mix: str | None, order: str) -> Tensor:
    """Return flattened maps, (b, 1440)."""

    def normed(maps: Tensor, name: str) -> Tensor:
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(maps, *parts)

    maps = F.conv2d(data.unsqueeze(1), state[f"{prefix}.0.weight"], state[f"{prefix}.0.bias"])
    maps = F.elu(normed(F.avg_pool2d(maps, (1, 51), (1, 5)), f"{prefix}.2"))
    maps = F.elu(normed(F.conv2d(maps, state[f"{prefix}.4.weight"], state[f"{prefix}.4.bias"]), f"{prefix}.5"))
    if mix:
        maps = F.conv2d(maps, state[f"{mix}.weight"], state[f"{mix}.bias"])
    return maps.flatten(1) if order == "channel" else maps.squeeze(2).transpose(1, 2).flatten(1)


def run_head(state: State, features: Tensor, names: tuple[str, str, str]) -> Tensor:
    first, second, third = ((state[f"{name}.weight"], state[f"{name}.bias"]) for name in names)
    hidden = F.linear(features, *first)
    return F.layer_norm(hidden + F.linear(F.gelu(hidden), *second), hidden.shape[-1:], *third)


def run_atms(state: State, data: Tensor, ids: Tensor) -> Tensor:
    """Run with the published rule for people: one id of 10 or more gives the whole batch the shared token."""
    embedding, layer = "encoder.enc_embedding", "encoder.encoder.attn_layers.0"

    def affine(name: str, values: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.linear(values, weight[..., 0] if weight.ndim == 3 else weight, state[f"{name}.bias"])

    def normed(name: str, values: Tensor) -> Tensor:
        return F.layer_norm(values, values.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    people = state[f"{embedding}.subject_embedding.subject_embedding.weight"]
    if (ids >= len(people)).any():
        person = state[f"{embedding}.subject_embedding.shared_embedding"].expand(len(data), -1)
    else:
        person = people[ids]
    tokens = torch.cat([person.unsqueeze(1), affine(f"{embedding}.value_embedding", data)], dim=1)
    b, n, _ = tokens.shape
    parts = ("query", "key", "value")
    query, key, value = (affine(f"{layer}.attention.{p}_projection", tokens).view(b, n, 4, 62) for p in parts)
    weights = torch.softmax(torch.einsum("blhe,bshe->bhls", query, key) / math.sqrt(62), dim=-1)
    mixed = torch.einsum("bhls,bshd->blhd", weights, value).reshape(b, n, 248)
    tokens = normed(f"{layer}.norm1", tokens + affine(f"{layer}.attention.out_projection", mixed))
    changed = affine(f"{layer}.conv2", F.gelu(affine(f"{layer}.conv1", tokens)))
    tokens = normed("encoder.encoder.norm", normed(f"{layer}.norm2", tokens + changed))
    kept = tokens[:, : data.shape[1]]  # the person's token and all channels but the last
    maps = run_ts_conv(state, kept, "enc_eeg.0.tsconv", "enc_eeg.0.projection.0", "position")
    return run_head(state, maps, ATM_HEAD)


def run_atms_50(state: State, data: Tensor) -> Tensor:
    channels = data.shape[1]
    layer = torch.nn.TransformerEncoderLayer(channels, nhead=1).eval()  # time comes first here, as published
    prefix = "attention_model.transformer_encoder.layers.0."
    layer.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    source = data.permute(2, 0, 1) + state["attention_model.pos_encoder.pe"][: data.shape[2]].unsqueeze(1)
    with torch.no_grad():
        attended = layer(source).permute(1, 2, 0)
    timed = F.linear(attended, state["subject_wise_linear.0.weight"], state["subject_wise_linear.0.bias"])
    maps = run_ts_conv(state, timed, "enc_eeg.0.tsconv", "enc_eeg.0.projection.0", "position")
    return run_head(state, maps, ATM_HEAD)


def recording(
    n: int = 3,
    ch_names: tuple[str, ...] = CHANNELS_17,
    n_times: int = 250,
    tmin: float = 0.0,
    sfreq: float = 250.0,
    scale: float = 1.0,
) -> SignalEpochs:
    """Return white noise with the montage of the publications, as a whitened recording looks."""
    rng = np.random.default_rng(0)
    return SignalEpochs(
        data=(scale * rng.standard_normal((n, len(ch_names), n_times))).astype(np.float32),
        sfreq=sfreq,
        tmin=tmin,
        ch_names=ch_names,
        ch_types=("eeg",) * len(ch_names),
        positions=np.full((len(ch_names), 3), np.nan),
        stimulus=tuple(f"image {i}" for i in range(n)),
    )
