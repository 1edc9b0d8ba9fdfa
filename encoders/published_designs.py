"""Published encoders one by one: the names and shapes of their tensors, and their translation into ours.

Every tensor is checked for its shape; a tensor that is missing or unknown is an error, except those that the published
code itself never uses. Nothing is re-ordered: the two orders in which the convolutional networks flatten their maps are
a setting of `TSConvConfig`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encoders.build import AnyEncoderConfig, SignalShape
from encoders.networks.atm import ATM50Config, ATMConfig, sinusoids
from encoders.networks.eeg_project import EEGProjectConfig
from encoders.networks.ts_conv import TSConvConfig

Table = dict[str, NDArray[Any]]

_EPOCH_SIZES = {4250: (17, 250), 15750: (63, 250), 54471: (271, 201), 54200: (271, 200)}
_KERNEL, _POOL, _STRIDE = 25, 51, 5
_N_HEADS = 4
_N_PEOPLE_NAMED = 10


class UnknownCheckpoint(ValueError):
    """The file holds no published encoder that is known here, or another one than was claimed."""


@dataclass(frozen=True)
class PublishedEncoder:
    """A published encoder in our names.

    Attributes
    ----------
    design : str
        Which published class it was.
    config, shape, embed_dim
        What builds our network.
    tensors : dict of str to ndarray
        Its state; brain and image projectors, where the file has them, are apart.
    subjects : dict of str to int
        Index of each person that has a token.
    logit_scale : float or None
        As stored; ``None`` where the file has none.
    """

    design: str
    config: AnyEncoderConfig
    shape: SignalShape
    embed_dim: int
    tensors: Table
    subjects: dict[str, int] = field(default_factory=dict)
    logit_scale: float | None = None
    brain_projector: Table = field(default_factory=dict)
    image_projector: Table = field(default_factory=dict)


@dataclass(frozen=True)
class Design:
    """One published class: who published it, the names that give it away, and its translation."""

    name: str
    kinds: tuple[str, ...]
    present: tuple[str, ...]
    absent: tuple[str, ...]
    translate: Callable[[Table, int | None], PublishedEncoder]

    def fits(self, table: Table) -> bool:
        return all(name in table for name in self.present) and not any(name in table for name in self.absent)


class _Reader:
    """Takes tensors out of a table by name and shape, and complains about what is left."""

    def __init__(self, design: str, table: Table) -> None:
        self.design, self.left = design, dict(table)

    def take(self, name: str, *shape: int) -> NDArray[Any]:
        value = self.left.pop(name, None)
        if value is None:
            raise UnknownCheckpoint(
                f"{self.design} needs tensor {name!r}, and the file lacks it; it is incomplete or of a changed network"
            )
        if value.shape != shape:
            raise UnknownCheckpoint(
                f"tensor {name!r} has shape {value.shape}, expected {shape} for {self.design}; "
                "the network was changed before training and cannot be imported"
            )
        return value

    def linear(self, name: str, ours: str, n_out: int, *n_in: int) -> Table:
        weight = self.take(f"{name}.weight", n_out, *n_in)
        return {f"{ours}.weight": weight, f"{ours}.bias": self.take(f"{name}.bias", n_out)}

    def norm(self, name: str, ours: str, width: int, running: bool = False) -> Table:
        parts = ("weight", "bias", "running_mean", "running_var") if running else ("weight", "bias")
        taken = {f"{ours}.{part}": self.take(f"{name}.{part}", width) for part in parts}
        if running:
            counted = self.left.pop(f"{name}.num_batches_tracked", np.zeros((), dtype=np.int64))
            taken[f"{ours}.num_batches_tracked"] = np.asarray(counted, dtype=np.int64).reshape(())
        return taken

    def logit_scale(self) -> float | None:
        return float(self.take("logit_scale")) if "logit_scale" in self.left else None

    def drop(self, *prefixes: str) -> None:
        """Forget what the published code never uses."""
        self.left = {name: value for name, value in self.left.items() if not name.startswith(prefixes)}

    def finish(self) -> None:
        if self.left:
            raise UnknownCheckpoint(
                f"the file has tensors that {self.design} does not have: {sorted(self.left)[:5]}; "
                "the network was changed before training and cannot be imported"
            )


def _size(table: Table, name: str, axis: int, n_axes: int) -> int:
    """Read a size from a tensor whose other sizes are checked later."""
    value = table.get(name)
    if value is None or value.ndim != n_axes:
        shape = "nothing" if value is None else str(value.shape)
        raise UnknownCheckpoint(f"tensor {name!r} should have {n_axes} axes, got {shape}; the file is no known encoder")
    return int(value.shape[axis])


def _projection(reader: _Reader, names: tuple[str, str, str], n_features: int, width: int) -> Table:
    first, second, third = names
    return {
        **reader.linear(first, "head.linear", width, n_features),
        **reader.linear(second, "head.residual.1", width, width),
        **reader.norm(third, "head.norm", width),
    }


def _convolutions(reader: _Reader, prefix: str, mix: str | None, n_channels: int, n: int, ours: str = "") -> Table:
    kernel = reader.take(f"{prefix}.0.weight", n, 1, 1, _KERNEL)
    return {
        f"{ours}temporal.weight": kernel[:, :, 0],
        f"{ours}temporal.bias": reader.take(f"{prefix}.0.bias", n),
        **reader.norm(f"{prefix}.2", f"{ours}temporal_norm", n, running=True),
        **reader.linear(f"{prefix}.4", f"{ours}spatial", n, n, n_channels, 1),
        **reader.norm(f"{prefix}.5", f"{ours}spatial_norm", n, running=True),
        **(reader.linear(mix, f"{ours}mix", n, n, 1, 1) if mix else {}),
    }


def ts_conv(
    design: str,
    prefix: str,
    mix: str | None,
    head: tuple[str, str, str],
    order: Literal["position", "channel"],
) -> Callable[[Table, int | None], PublishedEncoder]:
    def translate(table: Table, n_times: int | None) -> PublishedEncoder:
        reader = _Reader(design, table)
        n_filters = _size(table, f"{prefix}.4.weight", 0, 4)
        n_channels = _size(table, f"{prefix}.4.weight", 2, 4)
        embed_dim, n_features = _size(table, f"{head[0]}.weight", 0, 2), _size(table, f"{head[0]}.weight", 1, 2)
        if n_features % n_filters:
            raise UnknownCheckpoint(
                f"tensor {head[0] + '.weight'!r} has {n_features} columns, expected a multiple of {n_filters} filters; "
                "the network was changed before training and cannot be imported"
            )
        n_times = _epoch_length(n_features // n_filters, n_times)
        sfreq = _sampling_rate(n_channels)
        tensors = {
            **_convolutions(reader, prefix, mix, n_channels, n_filters),
            **_projection(reader, head, n_features, embed_dim),
        }
        scale = reader.logit_scale()
        reader.finish()
        config = TSConvConfig(
            n_filters=n_filters,
            kernel=_KERNEL / sfreq,
            pool=_POOL / sfreq,
            stride=_STRIDE / sfreq,
            mix=mix is not None,
            flatten=order,
        )
        shape = SignalShape(n_channels, n_times, sfreq, 1)
        return PublishedEncoder(design, config, shape, embed_dim, tensors, logit_scale=scale)

    return translate


def _eeg_project(design: str) -> Callable[[Table, int | None], PublishedEncoder]:
    def translate(table: Table, n_times: int | None) -> PublishedEncoder:
        reader = _Reader(design, table)
        embed_dim, n_features = _size(table, "model.0.weight", 0, 2), _size(table, "model.0.weight", 1, 2)
        if n_times is None and n_features not in _EPOCH_SIZES:
            raise UnknownCheckpoint(
                f"{design} stores only the product of channels and samples, {n_features}, which is not one of "
                f"{sorted(_EPOCH_SIZES)}; say how many samples an epoch has (--samples)"
            )
        n_channels, n_times = _EPOCH_SIZES[n_features] if n_times is None else (n_features // n_times, n_times)
        if n_channels * n_times != n_features or n_channels == 0:
            raise UnknownCheckpoint(f"{n_features} inputs are no multiple of {n_times} samples; check --samples")
        tensors = _projection(reader, ("model.0", "model.1.f.1", "model.2"), n_features, embed_dim)
        scale = reader.logit_scale()
        reader.finish()
        shape = SignalShape(n_channels, n_times, _sampling_rate(n_channels), 1)
        return PublishedEncoder(design, EEGProjectConfig(), shape, embed_dim, tensors, logit_scale=scale)

    return translate


def _attention_tail(reader: _Reader, table: Table, width: int) -> tuple[Table, int, int, int]:
    """Return convolutions and projection of both ATMs, with channels, filters and the output's width."""
    n_channels = _size(table, "enc_eeg.0.tsconv.4.weight", 2, 4)
    n_filters = _size(table, "enc_eeg.0.tsconv.4.weight", 0, 4)
    embed_dim = _size(table, "proj_eeg.0.weight", 0, 2)
    n_steps = (width - _KERNEL - _POOL + 1) // _STRIDE + 1
    tensors = {
        **_convolutions(reader, "enc_eeg.0.tsconv", "enc_eeg.0.projection.0", n_channels, n_filters, "convs."),
        **_projection(reader, ("proj_eeg.0", "proj_eeg.1.fn.1", "proj_eeg.2"), n_filters * n_steps, embed_dim),
    }
    return tensors, n_channels, n_filters, embed_dim


def _atms(table: Table, n_times: int | None) -> PublishedEncoder:
    reader = _Reader("ATMS", table)
    embedding, layer = "encoder.enc_embedding", "encoder.encoder.attn_layers.0"
    width, n_samples = (_size(table, f"{embedding}.value_embedding.weight", axis, 2) for axis in (0, 1))
    n_people = _size(table, f"{embedding}.subject_embedding.subject_embedding.weight", 0, 2)
    feedforward = _size(table, f"{layer}.conv1.weight", 0, 3)
    inner = width // _N_HEADS * _N_HEADS
    parts = [reader.linear(f"{layer}.attention.{part}_projection", part, inner, width) for part in _QKV]
    tail, n_channels, n_filters, embed_dim = _attention_tail(reader, table, width)
    expand = reader.linear(f"{layer}.conv1", "layer.expand", feedforward, width, 1)
    contract = reader.linear(f"{layer}.conv2", "layer.contract", width, feedforward, 1)
    people = reader.take(f"{embedding}.subject_embedding.subject_embedding.weight", n_people, width)
    shared = reader.take(f"{embedding}.subject_embedding.shared_embedding", 1, width)
    tensors = {
        **reader.linear(f"{embedding}.value_embedding", "embedding", width, n_samples),
        "people": np.concatenate([people, shared]),
        "layer.qkv.weight": np.concatenate([part[f"{name}.weight"] for name, part in zip(_QKV, parts, strict=True)]),
        "layer.qkv.bias": np.concatenate([part[f"{name}.bias"] for name, part in zip(_QKV, parts, strict=True)]),
        **reader.linear(f"{layer}.attention.out_projection", "layer.out", width, inner),
        **{name: value[:, :, 0] if value.ndim == 3 else value for name, value in {**expand, **contract}.items()},
        **reader.norm(f"{layer}.norm1", "layer.attended_norm", width),
        **reader.norm(f"{layer}.norm2", "layer.norm", width),
        **reader.norm("encoder.encoder.norm", "norm", width),
        **tail,
    }
    scale = reader.logit_scale()
    reader.drop(
        f"{embedding}.mask_token",
        f"{embedding}.temporal_embedding.",
        f"{embedding}.position_embedding.",
        f"{embedding}.subject_embedding.mask_embedding",
        "subject_wise_linear.",
    )
    reader.finish()
    config = ATMConfig(width=width, n_heads=_N_HEADS, feedforward=feedforward, n_filters=n_filters)
    shape = SignalShape(n_channels, _asked_for(n_times, n_samples), _sampling_rate(n_channels), n_people)
    # The published training numbers people from 1 and looks up row k for sub-k: row 0 is never trained, and the
    # number behind the last row is the shared token. So the row, not the position in a list of people, is our index.
    subjects = {f"sub-{k:02d}": min(k, n_people) for k in range(1, _N_PEOPLE_NAMED + 1)}
    return PublishedEncoder("ATMS", config, shape, embed_dim, tensors, subjects, scale)


def _atms_50(table: Table, n_times: int | None) -> PublishedEncoder:
    reader = _Reader("ATMS_50", table)
    layer = "attention_model.transformer_encoder.layers.0"
    width, n_samples = (_size(table, "subject_wise_linear.0.weight", axis, 2) for axis in (0, 1))
    n = _size(table, f"{layer}.self_attn.out_proj.weight", 0, 2)
    feedforward = _size(table, f"{layer}.linear1.weight", 0, 2)
    tail, n_channels, n_filters, embed_dim = _attention_tail(reader, table, width)
    code = reader.take("attention_model.pos_encoder.pe", _size(table, "attention_model.pos_encoder.pe", 0, 2), n)
    if not np.allclose(code[:n_samples], sinusoids(n_samples, n).numpy(), atol=1e-3):
        raise UnknownCheckpoint("the time code of the file is not the published one; it cannot be imported")
    tensors = {
        "layer.qkv.weight": reader.take(f"{layer}.self_attn.in_proj_weight", 3 * n_channels, n_channels),
        "layer.qkv.bias": reader.take(f"{layer}.self_attn.in_proj_bias", 3 * n_channels),
        **reader.linear(f"{layer}.self_attn.out_proj", "layer.out", n_channels, n_channels),
        **reader.linear(f"{layer}.linear1", "layer.expand", feedforward, n_channels),
        **reader.linear(f"{layer}.linear2", "layer.contract", n_channels, feedforward),
        **reader.norm(f"{layer}.norm1", "layer.attended_norm", n_channels),
        **reader.norm(f"{layer}.norm2", "layer.norm", n_channels),
        **reader.linear("subject_wise_linear.0", "time", width, n_samples),
        **tail,
    }
    scale = reader.logit_scale()
    reader.drop("attention_model.encoder_layer.", *(f"subject_wise_linear.{k}." for k in range(1, 100)))
    reader.finish()
    config = ATM50Config(width=width, feedforward=feedforward, n_filters=n_filters)
    shape = SignalShape(n_channels, _asked_for(n_times, n_samples), _sampling_rate(n_channels), 1)
    return PublishedEncoder("ATMS_50", config, shape, embed_dim, tensors, logit_scale=scale)


def _half_of_nice(table: Table, n_times: int | None) -> PublishedEncoder:
    raise AssertionError("the halves of NICE are joined before they are translated")


def _epoch_length(n_steps: int, n_times: int | None) -> int:
    """Return samples per epoch; up to ``stride - 1`` at its end are not read, so several lengths fit."""
    shortest = _KERNEL + _POOL - 1 + (n_steps - 1) * _STRIDE
    fitting = range(shortest, shortest + _STRIDE)
    if n_times is None:
        return next((usual for usual in (250, 201) if usual in fitting), shortest)
    if n_times not in fitting:
        raise UnknownCheckpoint(
            f"the file was trained on {fitting[0]} to {fitting[-1]} samples, but {n_times} were given; check --samples"
        )
    return n_times


def _asked_for(n_times: int | None, stored: int) -> int:
    if n_times is not None and n_times != stored:
        raise UnknownCheckpoint(f"the file was trained on {stored} samples, but {n_times} were given; check --samples")
    return stored


def _sampling_rate(n_channels: int) -> float:
    """Return the rate in Hz: the published MEG set has 271 sensors at 200 Hz, the EEG sets have 250 Hz."""
    return 200.0 if n_channels == 271 else 250.0


_QKV = ("query", "key", "value")
NICE_CONVOLUTIONS, NICE_PROJECTION = "NICE Enc_eeg", "NICE Proj_eeg"
_UBP_HEAD = ("project.1", "project.2.f.1", "project.3")
_NEUROBRIDGE_HEAD = ("proj_eeg.0", "proj_eeg.1.f.1", "proj_eeg.2")
DESIGNS = (
    Design("ATMS", ("atm", "neurobridge"), ("encoder.enc_embedding.value_embedding.weight",), (), _atms),
    Design("ATMS_50", ("atm",), ("attention_model.pos_encoder.pe",), (), _atms_50),
    Design(NICE_CONVOLUTIONS, ("nice",), ("0.tsconv.0.weight",), (), _half_of_nice),
    Design(NICE_PROJECTION, ("nice",), ("0.weight", "1.fn.1.weight", "2.weight"), (), _half_of_nice),
    Design(
        "UBP TSconv",
        ("ubp",),
        ("backbone.0.weight", "project.1.weight"),
        (),
        ts_conv("UBP TSconv", "backbone", None, _UBP_HEAD, "channel"),
    ),
    Design(
        "UBP EEGProjectLayer", ("ubp",), ("model.0.weight", "logit_scale"), (), _eeg_project("UBP EEGProjectLayer")
    ),
    Design(
        "NeuroBridge TSConv",
        ("neurobridge",),
        ("tsconv.0.weight", "proj_eeg.0.weight"),
        (),
        ts_conv("NeuroBridge TSConv", "tsconv", "projection", _NEUROBRIDGE_HEAD, "channel"),
    ),
    Design(
        "NeuroBridge EEGProject",
        ("neurobridge",),
        ("model.0.weight",),
        ("logit_scale",),
        _eeg_project("NeuroBridge EEGProject"),
    ),
)
