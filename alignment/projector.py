"""From brain embeddings to raw image embeddings: a ridge regression per combination of modalities.

Least squares pulls uncertain answers towards the mean picture. Generators were trained on real embeddings, so the
deviation from the mean is stretched by one factor until its spread is that of the targets again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Projector:
    """Per combination ``"eeg"``, ``"eeg+meg"``: weight (d, d), input mean (d,), and the targets' mean (d,)."""

    weights: Mapping[str, Float]
    centres: Mapping[str, Float]
    mean: Float

    def __call__(self, brain_embeds: Float, key: str) -> Float:
        """Project brain embeddings.

        Parameters
        ----------
        brain_embeds : ndarray, (n, d), float32
        key : str
            Combination of modalities that they come from.

        Returns
        -------
        ndarray, (n, d), float32
            Raw image embeddings.
        """
        if key not in self.weights:
            raise ValueError(f"no projection for the modalities {key!r}, only for {sorted(self.weights)}; train it")
        return np.asarray((brain_embeds - self.centres[key]) @ self.weights[key] + self.mean, dtype=np.float32)

    def arrays(self) -> dict[str, Float]:
        return (
            {f"weights.{key}": value for key, value in self.weights.items()}
            | {f"centres.{key}": value for key, value in self.centres.items()}
            | {"mean": self.mean}
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Float]) -> "Projector":
        """Rebuild what `arrays` gave."""
        parts: dict[str, dict[str, Float]] = {"weights": {}, "centres": {}}
        for name, value in arrays.items():
            if name != "mean":
                part, key = name.split(".", 1)
                parts[part][key] = value
        return cls(parts["weights"], parts["centres"], arrays["mean"])


def fit_projection(
    brain_embeds: Float, image_embeds: Float, validation: tuple[Float, Float], mean: Float
) -> tuple[Float, Float]:
    """Fit one combination.

    Parameters
    ----------
    brain_embeds, image_embeds : ndarray, (n, d), float32
        Training answers and the raw embeddings of what was shown.
    validation : tuple of ndarray
        The same for validation pictures: chooses the penalty (smallest error) and the stretch.
    mean : ndarray, (d,), float32
        Mean of the raw training targets.

    Returns
    -------
    weight : ndarray, (d, d), float32
    centre : ndarray, (d,), float32
        Mean of the training answers.
    """
    centre = brain_embeds.mean(axis=0, dtype=np.float64)
    inputs, targets = brain_embeds - centre, image_embeds.astype(np.float64) - mean
    held_in, held_out = validation[0] - centre, validation[1].astype(np.float64) - mean
    gram, cross = inputs.T @ inputs, inputs.T @ targets
    unit = np.trace(gram) / len(gram)
    fits = [np.linalg.solve(gram + penalty * unit * np.eye(len(gram)), cross) for penalty in PENALTIES]
    weight = min(fits, key=lambda one: float(np.square(held_in @ one - held_out).mean()))
    stretch = np.sqrt(np.square(held_out).mean() / np.square(held_in @ weight).mean())
    return (stretch * weight).astype(np.float32), centre.astype(np.float32)
