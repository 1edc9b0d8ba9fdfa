"""What the data decides about a network: sizes that arrive at build time, never in a config."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SignalShape:
    """Sizes of the preprocessed signal that a network will receive.

    Parameters
    ----------
    n_channels : int
        Sensors per epoch. Networks that read positions accept any number afterwards.
    n_times : int
        Samples per epoch.
    sfreq : float
        Sampling rate in Hz; kernels given in seconds are converted with it.
    n_subjects : int
        People in the training data. Index ``n_subjects`` then stands for an unknown person.
    positions : tuple of (float, float), optional
        Flat sensor map of the training montage, coordinates in [0, 1], x to the right and y to the front, one pair per
        channel; negative for an unknown place. Networks whose structure depends on the montage (channel order, graphs)
        read it when they are built and keep what they derive from it as buffers. Empty if unknown.

    Raises
    ------
    ValueError
        If a size is not positive, or there are not as many positions as channels.
    """

    n_channels: int
    n_times: int
    sfreq: float
    n_subjects: int
    positions: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for name in ("n_channels", "n_times", "sfreq", "n_subjects"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"SignalShape.{name} is {value}, expected a positive number; pass the training data's")
        if self.positions and len(self.positions) != self.n_channels:
            raise ValueError(
                f"SignalShape.positions has {len(self.positions)} places, expected one for each of {self.n_channels} "
                "channels; pass the map of the same montage"
            )
