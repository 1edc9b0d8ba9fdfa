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

    Raises
    ------
    ValueError
        If a size is not positive.
    """

    n_channels: int
    n_times: int
    sfreq: float
    n_subjects: int

    def __post_init__(self) -> None:
        for name in ("n_channels", "n_times", "sfreq", "n_subjects"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"SignalShape.{name} is {value}, expected a positive number; pass the training data's")
