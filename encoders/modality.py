"""What differs between EEG, magnetometers and gradiometers, as values in one table.

Code elsewhere looks a value up here and never branches on a modality's name, so that a new
kind of sensor is a new row.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class ChannelKind:
    """One kind of channel, named as MNE names its channel types.

    Attributes
    ----------
    name : str
        MNE channel type.
    modality : str
        Key of the modality it belongs to.
    unit : str
        SI unit at rest.
    display_unit, display_scale : str, float
        Unit to show to people and the factor from SI to it.
    plausible_spread : (float, float)
        Range, in SI units, of the median over channels of the standard deviation inside an
        epoch. Data outside has the wrong unit: the range is wide enough for averaged
        responses and noisy single epochs, and narrower than a factor of 1e6.
    name_pattern : str
        Regular expression of names that are surely of this kind ("" = none).
    referenced : bool
        Whether values are differences to a reference that can be changed afterwards.
    smooth : bool
        Whether neighbouring sensors measure nearly the same; gradiometers at one place are at right angles.
    """

    name: str
    modality: str
    unit: str
    display_unit: str
    display_scale: float
    plausible_spread: tuple[float, float]
    name_pattern: str
    referenced: bool
    smooth: bool


@dataclass(frozen=True)
class Modality:
    """One measuring method: its channel kinds and the defaults that go with it.

    Attributes
    ----------
    name : str
        Key in `MODALITIES`.
    kinds : tuple of str
        Channel kinds that it records.
    reference : str
        Default of `PreprocessConfig.reference`.
    helmets : tuple of str
        Names of MNE's canonical sensor definitions. Empty where electrodes sit on the head
        itself and positions alone describe the sensors; with a helmet, missing sensors are
        interpolated through its lead fields.
    """

    name: str
    kinds: tuple[str, ...]
    reference: str
    helmets: tuple[str, ...]


CHANNEL_KINDS: Mapping[str, ChannelKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            ChannelKind("eeg", "eeg", "V", "uV", 1e6, (5e-8, 2e-3), "", True, True),
            ChannelKind("mag", "meg", "T", "fT", 1e15, (2e-15, 1e-10), r"M[LRZ][CFOPT]\d\d|MEG ?\d{3}1", False, True),
            ChannelKind("grad", "meg", "T/m", "fT/cm", 1e13, (1e-13, 1e-8), r"MEG ?\d{3}[23]", False, False),
        )
    }
)

MODALITIES: Mapping[str, Modality] = MappingProxyType(
    {
        modality.name: modality
        for modality in (
            Modality("eeg", ("eeg",), "average", ()),
            Modality("meg", ("mag", "grad"), "none", ("ctf275", "neuromag")),
        )
    }
)

DEFAULT_KIND = "eeg"


def kind_of_name(ch_name: str) -> str:
    """Guess the channel kind from a name such as ``MLC11-1609`` or ``MEG 0113``; `DEFAULT_KIND` if unsure."""
    stem = re.sub(r"-\d+$", "", ch_name.strip())
    for kind in CHANNEL_KINDS.values():
        if kind.name_pattern and re.fullmatch(kind.name_pattern, stem, flags=re.IGNORECASE):
            return kind.name
    return DEFAULT_KIND


def modality_of(ch_types: tuple[str, ...]) -> Modality:
    """Return the one modality that all of ``ch_types`` belong to.

    Raises
    ------
    ValueError
        If the types belong to no modality or to several.
    """
    names = {CHANNEL_KINDS[ch_type].modality for ch_type in ch_types}
    if len(names) != 1:
        raise ValueError(f"expected channel types of one modality, got {sorted(set(ch_types))}; pick one kind first")
    return MODALITIES[names.pop()]


def combination(modalities: Sequence[str]) -> str:
    """Name a combination of modalities, whatever their order: ``"eeg"``, ``"eeg+meg"``."""
    return "+".join(sorted(set(modalities)))
