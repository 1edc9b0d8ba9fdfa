"""The list of encoders as people see it: name, source, size and named variants, read from the union itself."""

from dataclasses import asdict, dataclass
from typing import Any, get_args

from encoders.build import PRESETS, AnyEncoderConfig, build_encoder
from encoders.layers.signal_shape import SignalShape

REFERENCE_SHAPE = SignalShape(n_channels=63, n_times=250, sfreq=250.0, n_subjects=1)
REFERENCE_WIDTH = 1024


@dataclass(frozen=True)
class CatalogueEntry:
    """One encoder of the union.

    Attributes
    ----------
    name : str
        Discriminator of its config, and the preset with its published (or default) sizes.
    n_parameters : int
        Trainable, for 63 channels x 250 samples, one person and 1024 outputs.
    source : str
        Where the design comes from.
    presets : tuple of str
        All named sizes, ``name`` first.
    """

    name: str
    n_parameters: int
    source: str
    presets: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def encoder_names() -> list[str]:
    """List the names of the union, sorted."""
    literals = [config.model_fields["name"].annotation for config in get_args(AnyEncoderConfig)]
    return sorted(name for literal in literals for name in get_args(literal))


def catalogue() -> list[CatalogueEntry]:
    """Describe every encoder of the union; builds each once to count its parameters."""
    entries = []
    for name in encoder_names():
        config = PRESETS[name]
        network = build_encoder(config, REFERENCE_SHAPE, REFERENCE_WIDTH)
        n_parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
        variants = sorted(preset for preset, one in PRESETS.items() if one.name == name and preset != name)
        entries.append(CatalogueEntry(name, n_parameters, config.source, (name, *variants)))
    return entries
