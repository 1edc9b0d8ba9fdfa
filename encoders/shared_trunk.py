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
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from encoders.weight_parts import State, matching_parts, select

BRAIN_MODULE_STEM = ("attention", "mix", "people")


class SharedTrunk(nn.Module):
    """One network per modality with its own stem, all with one and the same trunk.

    Parameters
    ----------
    networks : mapping of str to nn.Module
        Modality name to a network; copied, not changed.
    trunk : sequence of str
        Paths of the sub-modules (or parameters) that become common; shapes must agree.
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
        first = next(iter(copies.values()))
        first.load_state_dict({**first.state_dict(), **select(state, trunk)})
        for network in copies.values():
            for path in trunk:
                above, _, leaf = path.rpartition(".")
                setattr(network.get_submodule(above), leaf, getattr(first.get_submodule(above), leaf))
        self.trunk = tuple(trunk)
        self.networks = nn.ModuleDict(copies)

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
