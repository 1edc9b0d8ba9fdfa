"""Take the layers of a planned network apart and put wider or narrower ones back, in place."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encoders.channel_plan import FIXED, PlannedLayer
from encoders.layers.subject_layers import SubjectLayers

MIXERS = (nn.Linear, nn.Conv1d, nn.Conv2d, SubjectLayers)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Factors = tuple[Tensor, Tensor | None]


def planned(network: nn.Module, layer: PlannedLayer) -> Any:
    above, _, leaf = layer.path.rpartition(".")
    try:
        return getattr(network.get_submodule(above), leaf)
    except AttributeError as error:
        known = [name for name, _ in network.named_children()]
        raise ValueError(f"the plan has {layer.path!r}, expected a path below {known}; correct the plan") from error


def factored(part: nn.Module, layer: PlannedLayer, widths: dict[str, int]) -> Factors:
    """View a weight as (glu halves, out channels, in channels, ...) and its bias as (glu halves, out channels)."""
    weight: Tensor = part.weight  # type: ignore[assignment]
    if isinstance(part, SubjectLayers):
        weight = weight.movedim(0, -1)
    n_in = weight.shape[1] if layer.reads == FIXED else widths[layer.reads]
    halves = 2 if layer.glu else 1
    weight = weight.reshape(halves, weight.shape[0] // halves, n_in, weight.shape[1] // n_in, *weight.shape[2:])
    bias: Tensor | None = getattr(part, "bias", None)
    return weight, None if bias is None else bias.reshape(halves, -1)


def side_by_side(first: Factors, second: Factors, layer: PlannedLayer) -> Factors:
    """Put two layers side by side: outputs stacked or averaged, inputs apart (off-diagonal blocks 0) or common."""
    (a, a_bias), (b, b_bias) = first, second
    if layer.reads != FIXED:
        a, b = torch.cat([a, torch.zeros_like(a)], dim=2), torch.cat([torch.zeros_like(b), b], dim=2)
    if layer.writes != FIXED:
        bias = None if a_bias is None or b_bias is None else torch.cat([a_bias, b_bias], dim=1)
        return torch.cat([a, b], dim=1), bias
    return (a + b) / 2, None if a_bias is None or b_bias is None else (a_bias + b_bias) / 2


def put_weight(part: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Put factored weights back and tell the layer its new sizes."""
    weight = weight.flatten(2, 3).flatten(0, 1)
    if isinstance(part, SubjectLayers):
        part.weight = nn.Parameter(weight.movedim(-1, 0).contiguous())
        return
    part.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        part.bias = nn.Parameter(bias.flatten().contiguous())
    if isinstance(part, nn.Linear):
        part.out_features, part.in_features = weight.shape
    elif isinstance(part, nn.Conv1d | nn.Conv2d):
        part.out_channels, part.in_channels = weight.shape[:2]


def per_channel(part: nn.Module | Tensor) -> dict[str, Tensor]:
    if isinstance(part, Tensor):
        return {"": part}
    return {name: value for name, value in part.state_dict().items() if value.ndim > 0}


def put_per_channel(network: nn.Module, layer: PlannedLayer, values: dict[str, Tensor]) -> None:
    above, _, leaf = layer.path.rpartition(".")
    if "" in values:
        setattr(network.get_submodule(above), leaf, nn.Parameter(values[""]))
        return
    norm = network.get_submodule(layer.path)
    learned = {name for name, _ in norm.named_parameters()}
    for name, value in values.items():
        setattr(norm, name, nn.Parameter(value) if name in learned else value)
    norm.num_features = len(next(iter(values.values())))  # type: ignore[assignment]


@dataclass(frozen=True)
class Sizes:
    reads: int
    writes: int


def sizes(part: Any, layer: PlannedLayer) -> Sizes:
    """Return channels in and out; the supported kinds of layer are decided here."""
    if isinstance(part, SubjectLayers):
        return Sizes(part.weight.shape[2], part.weight.shape[1])
    if isinstance(part, MIXERS) and getattr(part, "groups", 1) == 1:
        return Sizes(part.weight.shape[1], part.weight.shape[0] // (2 if layer.glu else 1))
    if isinstance(part, (*NORMS, nn.Parameter)) and layer.reads == layer.writes != FIXED:
        n = part.shape[0] if isinstance(part, nn.Parameter) else part.num_features
        return Sizes(n, n)
    raise ValueError(
        f"{layer.path!r} is a {type(part).__name__} that reads {layer.reads!r} and writes {layer.writes!r}, expected "
        "Linear, Conv1d, Conv2d without groups, SubjectLayers, or a batch norm or parameter within one space; leave it "
        "out or replace it"
    )


def tensors(module: nn.Module) -> dict[str, Tensor]:
    named = dict(module.named_parameters(remove_duplicate=False))
    return named | dict(module.named_buffers(remove_duplicate=False))
