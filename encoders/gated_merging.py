"""Merge two networks channel by channel: a student of double width that learns which half of its channels to keep.

The student starts as the average of both networks, bit for bit up to rounding. One hard-concrete gate per channel
learns, from the task's own loss, which channels matter; then the better half is kept and the student has the size of
one network again. Gates stand in front of the layers that read a space. That is the same function as gating each layer
that writes it, residual branches included, and lets `compress` fold the gates into weights.

Networks that differ in their stems (EEG and MEG) are merged behind them: give both networks both stems::

    trunk = outside(eeg.state_dict(), BRAIN_MODULE_STEM)
    both = {"eeg": eeg, "meg": meg}
    first, second = (SharedTrunk(both, trunk, select(one.state_dict(), trunk)) for one in both.values())
    plan = [layer for name in both for layer in brain_module_plan(both[name], f"networks.{name}.", own_stem=True)]
    student = gated_merge(first, second, plan)
    # train with alignment.merge_training, then student.compress() is one trunk that reads both

From the first layer of common width on works for whole networks of two seeds as well: see `encoders.channel_plan`.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from encoders.channel_plan import FIXED, Plan
from encoders.channel_surgery import (
    MIXERS,
    factored,
    per_channel,
    planned,
    put_per_channel,
    put_weight,
    side_by_side,
    sizes,
    tensors,
)
from encoders.shared_trunk import tie, tied_names

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
EPSILON = 1e-6


class HardConcrete(nn.Module):
    """One gate in [0, 1] per channel, exactly 0 or 1 with a probability that is learned.

    Parameters
    ----------
    n_channels : int
    speed : float
        The gate's location is this factor times the stored parameter, so that an optimizer whose steps have the
        length of the learning rate (Adam) moves locations ``speed`` times as far as weights.

    References
    ----------
    Louizos et al. 2018, arXiv:1712.01312; start and stretch as in Pasen & Boza, arXiv:2204.09973.
    """

    def __init__(self, n_channels: int, speed: float = 1.0) -> None:
        super().__init__()
        self.speed = speed
        self.scaled_location = nn.Parameter((1 + 0.01 * torch.randn(n_channels)) / speed)

    @property
    def location(self) -> Tensor:
        """Logit of the gate before stretching, (n_channels,); its order is the order of importance."""
        return self.speed * self.scaled_location

    @torch.no_grad()
    def set_location(self, location: float | Tensor) -> None:
        """Set all locations; 5 and more is wide open."""
        self.scaled_location.copy_(torch.as_tensor(location) / self.speed)

    def open_probability(self) -> Tensor:
        """Return P(gate != 0) in training, (n_channels,)."""
        return torch.sigmoid(self.location - BETA * math.log(-GAMMA / ZETA))

    def forward(self) -> Tensor:
        """Draw the gates (n_channels,) in training; in eval mode return the value at the median of the noise."""
        logits = self.location
        if self.training:
            u = torch.rand(len(logits)).clamp(EPSILON, 1 - EPSILON)
            logits = logits + (u.log() - (1 - u).log()).to(logits)
        stretched = torch.sigmoid(logits / BETA) * (ZETA - GAMMA) + GAMMA
        return stretched.clamp(0, 1)


class GatedStudent(nn.Module):
    """A network of double width with one set of gates per space; made by `gated_merge`.

    Attributes
    ----------
    network : nn.Module
        The widened network.
    gates : nn.ModuleDict of HardConcrete
        By space.
    """

    def __init__(self, network: nn.Module, plan: Plan, widths: dict[str, int], gate_speed: float) -> None:
        super().__init__()
        self.network = network
        self.plan = tuple(plan)
        self.widths = dict(widths)
        self.gates = nn.ModuleDict({space: HardConcrete(2 * width, gate_speed) for space, width in widths.items()})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the widened network; takes and returns what the merged networks do. Gates are drawn once per call."""
        values = {space: gate() for space, gate in self.gates.items()}
        handles = []
        for layer in self.plan:
            part = planned(self.network, layer)
            if layer.reads != FIXED and isinstance(part, MIXERS):
                handles.append(part.register_forward_pre_hook(_gating(values[layer.reads], part)))
        try:
            return self.network(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def half_open_loss(self) -> Tensor:
        """Return what pulls each space to half of its channels, ``sum (mean P(gate != 0) - 1/2)^2``, ()."""
        means = torch.stack([_hard(gate).open_probability().mean() for gate in self.gates.values()])
        return (means - 0.5).square().sum()

    @torch.no_grad()
    def open_share(self) -> dict[str, float]:
        """Return the mean P(gate != 0) of each space."""
        return {space: float(_hard(gate).open_probability().mean()) for space, gate in self.gates.items()}

    @torch.no_grad()
    def compress(self) -> nn.Module:
        """Keep the more important half of every space and drop the gates.

        Returns
        -------
        nn.Module
            A new network with exactly the sizes of the merged ones, in the mode of the student. The gates' eval values
            are multiplied into the layers that read the channels, so nothing changes if the dropped gates were 0.
        """
        network = copy.deepcopy(self.network)
        kept, values = {}, {}
        for space, width in self.widths.items():
            gate = _hard(self.gates[space])
            kept[space] = gate.location.topk(width).indices.sort().values
            stretched = torch.sigmoid(gate.location / BETA) * (ZETA - GAMMA) + GAMMA
            values[space] = stretched.clamp(0, 1)[kept[space]]
        for layer in self.plan:
            part = planned(network, layer)
            if not isinstance(part, MIXERS):
                put_per_channel(network, layer, {k: v[kept[layer.writes]] for k, v in per_channel(part).items()})
                continue
            weight, bias = factored(part, layer, {space: 2 * width for space, width in self.widths.items()})
            if layer.writes != FIXED:
                weight, bias = weight[:, kept[layer.writes]], None if bias is None else bias[:, kept[layer.writes]]
            if layer.reads != FIXED:
                shape = (1, 1, -1, *([1] * (weight.ndim - 3)))
                weight = weight[:, :, kept[layer.reads]] * values[layer.reads].to(weight).view(shape)
            put_weight(part, weight, bias)
        tie(network, tied_names(self.network))
        return network


def half_open_weight(epoch: int, start: float = 0.05, growth: float = 0.05) -> float:
    """Return the weight alpha of `GatedStudent.half_open_loss`: ``alpha += growth * sqrt(alpha)`` after each epoch."""
    alpha = start
    for _ in range(epoch):
        alpha += growth * math.sqrt(alpha)
    return alpha


@torch.no_grad()
def gated_merge(a: nn.Module, b: nn.Module, plan: Plan, gate_speed: float = 1.0) -> GatedStudent:
    """Build the student of double width.

    Parameters
    ----------
    a, b : nn.Module
        Trained networks of one architecture; copied, not changed. Weights outside the plan must be equal in both.
    plan : sequence of PlannedLayer
        From `chain_plan`, `brain_module_plan`, or by hand.
    gate_speed : float
        See `HardConcrete`.

    Returns
    -------
    GatedStudent
        With gates open (`HardConcrete.set_location`) and in eval mode it computes the mean of both networks.

    Raises
    ------
    ValueError
        If the plan does not describe the networks, or they differ outside it.

    References
    ----------
    Pasen & Boza 2024, "Merging of neural networks", Neural Processing Letters, arXiv:2204.09973.
    """
    network = copy.deepcopy(a)
    widths = _check_plan(network, b, plan)
    for layer in plan:
        first, second = planned(network, layer), planned(b, layer)
        if isinstance(first, MIXERS):
            put_weight(first, *side_by_side(factored(first, layer, widths), factored(second, layer, widths), layer))
        else:
            other = per_channel(second)
            stacked = {name: torch.cat([value, other[name]]) for name, value in per_channel(first).items()}
            put_per_channel(network, layer, stacked)
    tie(network, tied_names(a))
    return GatedStudent(network, plan, widths, gate_speed)


def _hard(gate: nn.Module) -> HardConcrete:
    assert isinstance(gate, HardConcrete)
    return gate


def _gating(values: Tensor, part: nn.Module) -> Any:
    """Return a hook that multiplies the input's channels; a dense layer may read ``k`` features of each channel."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        gates = values.to(args[0])
        if isinstance(part, nn.Linear):
            gates = gates.repeat_interleave(part.in_features // len(gates))
        else:
            gates = gates.reshape(-1, *([1] * (2 if isinstance(part, nn.Conv2d) else 1)))
        return args[0] * gates, *args[1:]

    return before


def _check_plan(a: nn.Module, b: nn.Module, plan: Plan) -> dict[str, int]:
    """Check that the plan fits both networks and that nothing else differs; return the width of each space."""
    widths: dict[str, int] = {}
    parts = [(layer, planned(a, layer), planned(b, layer)) for layer in plan]
    for layer, first, second in parts:
        size = sizes(first, layer)
        if type(first) is not type(second) or _shapes(first) != _shapes(second):
            raise ValueError(f"{layer.path!r} differs between the networks, expected equal layers; build both alike")
        if layer.reads == layer.writes == FIXED:
            raise ValueError(f"{layer.path!r} neither reads nor writes a space, expected one; take it from the plan")
        if layer.writes != FIXED and widths.setdefault(layer.writes, size.writes) != size.writes:
            raise ValueError(
                f"{layer.path!r} writes {size.writes} channels to {layer.writes!r}, expected {widths[layer.writes]}; "
                "give it a space of its own"
            )
    for layer, first, _ in parts:
        width = widths.get(layer.reads, 0) if layer.reads != FIXED else 1
        if width == 0 or sizes(first, layer).reads % width:
            raise ValueError(
                f"{layer.path!r} reads {sizes(first, layer).reads} channels of {layer.reads!r}, expected a multiple "
                f"of the {width} that are written; correct the plan"
            )
    read = {layer.reads for layer, part, _ in parts if isinstance(part, MIXERS)}
    loose = sorted(set(widths) - read)
    if loose or not any(layer.writes == FIXED for layer in plan):
        raise ValueError(
            f"nothing reads the spaces {loose} or writes the output; add the layers behind them to the plan"
        )
    _check_rest(a, b, [first for _, first, _ in parts])
    return widths


def _shapes(part: Any) -> list[tuple[int, ...]]:
    return [tuple(one.shape) for one in ([part] if isinstance(part, Tensor) else tensors(part).values())]


def _check_rest(a: nn.Module, b: nn.Module, described: list[Any]) -> None:
    """Check that weights outside the plan are equal; tied layers count under all of their names."""
    inside = {id(one) for part in described for one in ([part] if isinstance(part, Tensor) else tensors(part).values())}
    first, second = tensors(a), tensors(b)
    odd = [
        name
        for name, value in first.items()
        if id(value) not in inside
        and (name not in second or second[name].shape != value.shape or not torch.equal(value, second[name].to(value)))
    ]
    if odd:
        raise ValueError(
            f"the networks differ in {odd[:5]}, which the plan does not have, expected equal weights there; plan these "
            "layers, or give both networks the same stem (encoders.shared_trunk)"
        )
