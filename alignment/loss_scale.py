"""A loss scale that adapts, for gradients in float16, as a plain number that a checkpoint can hold.

Torch's scaler decides on each process by itself; with sharded gradients one process may overflow and another not, so
the loop decides for all of them at once and tells this.
"""

from dataclasses import dataclass

GROWTH_INTERVAL = 2000
"""Sound steps after which the scale is doubled."""


@dataclass
class LossScale:
    """The factor of the loss before the backward pass; 1 stays 1 and is no scaling.

    Attributes
    ----------
    value : float
    n_sound : int
        Steps since it changed.
    """

    value: float = 1.0
    n_sound: int = 0

    @property
    def can_shrink(self) -> bool:
        """Whether gradients that overflow may be the scale's fault."""
        return self.value > 1

    def shrink(self) -> None:
        """Halve the scale after gradients that overflowed."""
        self.value, self.n_sound = max(self.value / 2, 1.0), 0

    def note_sound_step(self) -> None:
        """Count a step that was taken, and double a scale that has been safe for long."""
        self.n_sound += 1
        if self.value > 1 and self.n_sound >= GROWTH_INTERVAL:
            self.value, self.n_sound = self.value * 2, 0
