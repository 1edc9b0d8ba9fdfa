"""One trunk for all modalities, each with its own stem: what merging experts by their weights is for.

Two `BrainModule` of the same sizes, one trained on EEG and one on MEG, have equal shapes everywhere, because spatial
attention reads any montage. Attention, mixing and people stay with their modality (`BRAIN_MODULE_STEM`)::

    trunk = outside(eeg.state_dict(), BRAIN_MODULE_STEM)
    merged = interpolate(eeg.state_dict(), meg.state_dict(), parts=trunk)
    shared = SharedTrunk({"eeg": eeg, "meg": meg}, trunk, merged)
    reestimate_statistics(shared, [("eeg", data, positions, subject), ("meg", ...)])
    fusion = LateFusion(dict(shared.networks.items()), embed_dim, LateFusionConfig())

With another encoder, pass the paths of its own trunk, for example ``("layers",)`` of a transformer. EEG and MEG
networks that fix their numbers of channels differ in their first layers only, which belong to the stem then.

Running statistics of batch norms stay with the modality although the weights are one: in training each batch comes
from one modality and is normalised by itself, so a common average would fit neither.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from encoders.weight_parts import State, matching_parts, select

BRAIN_MODULE_STEM = ("attention", "mix", "people")


def select_parameters(network: nn.Module, parts: Sequence[str]) -> list[tuple[str, nn.Parameter]]:
    """Return the named parameters under the paths ``parts``."""
    chosen = select(network.state_dict(), parts)
    return [(name, parameter) for name, parameter in network.named_parameters() if name in chosen]


def tied_names(module: nn.Module) -> list[list[str]]:
    """Return the groups of names that stand for one and the same parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def tie(module: nn.Module, groups: Sequence[Sequence[str]]) -> None:
    """Let all names of a group stand for the parameter that the first one stands for."""
    for first, *others in groups:
        parameter = module.get_parameter(first)
        for name in others:
            above, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(above), leaf, parameter)


class SharedTrunk(nn.Module):
    """One network per modality with its own stem, all with one and the same trunk (buffers excepted).

    Parameters
    ----------
    networks : mapping of str to nn.Module
        Modality name to a network; copied, not changed.
    trunk : sequence of str
        Paths of the sub-modules (or parameters) whose parameters become common; shapes must agree.
    state : mapping of str to Tensor
        Weights of the trunk, from `interpolate` and the like, or one expert's ``select(state, trunk)``.

    Raises
    ------
    ValueError
        If the networks have no such trunk, or its shapes differ.
    """

    def __init__(self, networks: Mapping[str, nn.Module], trunk: Sequence[str], state: State) -> None:
        super().__init__()
        if not networks:
            raise ValueError("a shared trunk got no networks, expected at least one; pass {'eeg': network, ...}")
        copies = {name: copy.deepcopy(network) for name, network in networks.items()}
        matching_parts([*(network.state_dict() for network in copies.values()), state], trunk)
        for network in copies.values():
            network.load_state_dict({**network.state_dict(), **select(state, trunk)})
        self.trunk = tuple(trunk)
        self.networks = nn.ModuleDict(copies)
        learned = [name for name, _ in select_parameters(next(iter(copies.values())), trunk)]
        tie(self, [[f"networks.{modality}.{name}" for modality in copies] for name in learned])

    def forward(self, modality: str, *args: Any) -> Any:
        """Run the network of one modality.

        Parameters
        ----------
        modality : str
            A key of ``networks``.
        *args
            What the network takes: data (b, c, t), positions and subject for the encoders of this project.

        Raises
        ------
        ValueError
            If there is no such network.
        """
        if modality not in self.networks:
            raise ValueError(f"modality is {modality!r}, expected one of {list(self.networks)}; name the recording's")
        return self.networks[modality](*args)
