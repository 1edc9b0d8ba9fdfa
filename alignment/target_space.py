"""The coordinates in which brain and picture are compared: CLIP vectors of length 1, centred on the training mean.

CLIP embeddings share a large common part. It says nothing about the picture, but would dominate every cosine.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignment.retrieval import cosine_similarity

Float = NDArray[np.float32]


@dataclass(frozen=True)
class TargetSpace:
    """Statistics of the training targets.

    Attributes
    ----------
    centre : ndarray, (d,), float32
        Mean of the normalised embeddings.
    scale : ndarray, (1,), float32
        Root mean square of the centred, normalised embeddings.
    mean, std : ndarray, (d,), float32
        Of the raw embeddings.
    """

    centre: Float
    scale: Float
    mean: Float
    std: Float

    @classmethod
    def fit(cls, image_embeds: Float) -> "TargetSpace":
        """Learn the statistics from raw training embeddings (n, d)."""
        unit = _unit(image_embeds)
        centre = unit.mean(axis=0)
        scale = np.sqrt(np.square(unit - centre).mean(keepdims=True))[0]
        raw = image_embeds.astype(np.float64)
        mean, std = raw.mean(axis=0), raw.std(axis=0)
        return cls(*(np.asarray(one, dtype=np.float32) for one in (centre, scale, mean, std)))

    @property
    def embed_dim(self) -> int:
        return len(self.centre)

    def standardise(self, image_embeds: Float) -> Float:
        """Map raw embeddings (n, d) to training targets: normalised, centred, unit variance on average."""
        return np.asarray((_unit(image_embeds) - self.centre) / self.scale, dtype=np.float32)

    def similarity(self, brain_embeds: Float, image_embeds: Float) -> Float:
        """Compare brain embeddings (n, d) with raw image embeddings (m, d): cosines (n, m)."""
        return cosine_similarity(brain_embeds, self.standardise(image_embeds))

    def arrays(self) -> dict[str, Float]:
        return {"centre": self.centre, "scale": self.scale, "mean": self.mean, "std": self.std}


def _unit(image_embeds: Float) -> NDArray[np.float64]:
    raw = image_embeds.astype(np.float64)
    unit: NDArray[np.float64] = raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)
    return unit
