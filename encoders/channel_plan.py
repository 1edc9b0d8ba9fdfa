"""Which layers of a network share which channels: the description that doubling and halving its width needs.

A *space* is a set of channels that must be kept or dropped together, for example everything on one residual stream.
Each planned layer reads one space and writes one; layers whose branches are added to each other write the same space.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from encoders.networks.brain_module import BrainModule

FIXED = ""
"""In place of a space: an input that is not doubled (the stem's), or an output that is averaged (the embedding)."""

POINTWISE = (
    nn.ELU, nn.GELU, nn.Hardswish, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Tanh,
)  # fmt: skip
LINEAR_OVER_TIME = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.Flatten, nn.Identity,
)  # fmt: skip
POOLS = (nn.MaxPool1d, nn.MaxPool2d)


@dataclass(frozen=True)
class PlannedLayer:
    """One layer with channels.

    Attributes
    ----------
    path : str
        A sub-module: `Linear`, `Conv1d`, `Conv2d` (not grouped), `SubjectLayers`; `BatchNorm1d`, `BatchNorm2d`; or a
        bare parameter whose first axis are the channels. Norms and bare parameters read and write the same space.
    reads, writes : str
        Names of spaces, or `FIXED`. A dense layer may read a flattened ``(channels, k)`` map.
    glu : bool
        The layer writes twice the channels, values and gates, which a GLU over the channels halves.
    """

    path: str
    reads: str
    writes: str
    glu: bool = False


Plan = Sequence[PlannedLayer]


def chain_plan(chain: nn.Sequential) -> list[PlannedLayer]:
    """Describe a chain of convolutions and dense layers, batch norms, pointwise activations, pooling and flattening.

    Parameters
    ----------
    chain : nn.Sequential
        May hold further sequentials. Behind the last layer with weights only linear steps are allowed, because there
        the two networks are averaged.

    Returns
    -------
    list of PlannedLayer

    Raises
    ------
    ValueError
        If the chain has another kind of layer: describe such a network by hand.
    """
    parts = list(_leaves(chain, ""))
    weighty = [i for i, (_, part) in enumerate(parts) if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d)]
    if len(weighty) < 2:
        raise ValueError(f"the chain has {len(weighty)} layers with weights, expected at least 2: there is no middle")
    plan: list[PlannedLayer] = []
    space = FIXED
    for i, (path, part) in enumerate(parts):
        behind_last = i > weighty[-1]
        if i in weighty:
            written = FIXED if i == weighty[-1] else f"after_{i}"
            plan.append(PlannedLayer(path, space, written))
            space = written
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and space != FIXED:
            plan.append(PlannedLayer(path, space, space))
        elif not isinstance(part, LINEAR_OVER_TIME if behind_last else (*POINTWISE, *LINEAR_OVER_TIME, *POOLS)):
            where = "behind the last layer with weights" if behind_last else "in a chain"
            raise ValueError(
                f"{path!r} is a {type(part).__name__}, expected Linear, Conv1d, Conv2d, a batch norm, a pointwise "
                f"activation or pooling {where}; write the plan by hand if its channels stay apart"
            )
    return plan


def brain_module_plan(network: BrainModule, prefix: str = "", own_stem: bool = False) -> list[PlannedLayer]:
    """Describe a `BrainModule`.

    Parameters
    ----------
    network : BrainModule
        With ``time_agg="mean"``, or equal time courses in both networks: they act on all channels alike.
    prefix : str
        Path of the network in a larger one, for example ``"networks.eeg."`` in a `SharedTrunk`.
    own_stem : bool
        Leave attention, mixing and people alone and merge from the first convolution on.

    Returns
    -------
    list of PlannedLayer

    Raises
    ------
    ValueError
        If channels do not stay apart: attention over time, or a residual around the first block with ``own_stem``.
    """
    if network.aggregate.score is not None:
        raise ValueError("time_agg='attention' mixes all channels, expected 'mean'; train the networks with that")
    plan, space = [], FIXED
    if not own_stem:
        plan = [
            PlannedLayer("attention.queries", "virtual", "virtual"),
            PlannedLayer("mix", "virtual", "mixed"),
            PlannedLayer("people", "mixed", "people"),
        ]
        space = "people"
    for i, block in enumerate(network.blocks):
        is_stream = block.is_residual or block.scale is not None
        if is_stream and space == FIXED:
            raise ValueError(
                "the first block adds the stem's channels to its own, expected width != n_virtual and init='published' "
                "with own_stem; merge the stem too"
            )
        # with a scale the gate stands inside the branch, otherwise behind the addition
        inner = space if is_stream and (block.scale is None or block.gate is None) else f"block_{i}"
        plan += [PlannedLayer(f"blocks.{i}.conv", space, inner), PlannedLayer(f"blocks.{i}.norm", inner, inner)]
        after = inner if block.gate is None else space if block.scale is not None else f"gate_{i}"
        if block.gate is not None:
            plan.append(PlannedLayer(f"blocks.{i}.gate", inner, after, glu=True))
        if block.scale is not None:
            plan.append(PlannedLayer(f"blocks.{i}.scale", space, space))
        space = after
    if network.hidden is not None:
        plan.append(PlannedLayer("hidden", space, "hidden"))
        space = "hidden"
    plan.append(PlannedLayer("head", space, FIXED))
    return [PlannedLayer(prefix + one.path, one.reads, one.writes, one.glu) for one in plan]


def _leaves(chain: nn.Sequential, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, part in chain.named_children():
        if isinstance(part, nn.Sequential):
            yield from _leaves(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part
