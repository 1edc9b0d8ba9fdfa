"""The coordinates in which brain and picture are compared.

CLIP vectors are brought to length 1, centred on the training mean (the large part that all pictures share says nothing
about one of them) and passed through a linear map. The map starts as the identity and is trained with the encoders: a
brain does not see all directions of the CLIP space equally well, and a plain cosine would count them as if it did.
It may also lead into a narrower space, and out of several layers or blur levels of a picture, side by side in one row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alignment.retrieval import cosine_similarity

Float = NDArray[np.float32]


@dataclass(frozen=True)
class TargetSpace:
    """Statistics of the training targets, and the map.

    Attributes
    ----------
    centre : ndarray, (d,), float32
        Mean of the normalised embeddings.
    scale : ndarray, (1,), float32
        Root mean square of the centred, normalised embeddings.
    mean, std : ndarray, (d,), float32
        Of the raw embeddings.
    basis : ndarray, (d, e), float32
        The map: ``standardised @ basis`` is compared with brain embeddings.
    n_members : int
        Layers or blur levels in one row, each of which is normalised by itself.
    """

    centre: Float
    scale: Float
    mean: Float
    std: Float
    basis: Float
    n_members: int = 1

    @classmethod
    def fit(cls, image_embeds: Float, n_members: int = 1) -> "TargetSpace":
        """Learn the statistics from raw training embeddings (n, d); the map is the identity, the mean of members."""
        unit = _unit(image_embeds, n_members)
        centre = unit.mean(axis=0)
        scale = np.sqrt(np.square(unit - centre).mean(keepdims=True))[0]
        raw = image_embeds.astype(np.float64)
        basis = np.tile(np.eye(len(centre) // n_members, dtype=np.float32), (n_members, 1)) / np.float32(n_members)
        parts = {"centre": centre, "scale": scale, "mean": raw.mean(axis=0), "std": raw.std(axis=0), "basis": basis}
        return cls(**{name: np.asarray(one, np.float32) for name, one in parts.items()}, n_members=n_members)

    def with_basis(self, basis: Float) -> "TargetSpace":
        """Return the same statistics with a trained map."""
        return replace(self, basis=np.ascontiguousarray(basis, dtype=np.float32))

    @property
    def target_dim(self) -> int:
        """Width of a raw image embedding."""
        return len(self.centre)

    @property
    def embed_dim(self) -> int:
        """Width in which brain and picture are compared."""
        return int(self.basis.shape[1])

    def standardise(self, image_embeds: Float) -> Float:
        """Map raw embeddings (n, d): normalised, centred, unit variance on average; before the linear map."""
        return np.asarray((_unit(image_embeds, self.n_members) - self.centre) / self.scale, dtype=np.float32)

    def similarity(self, brain_embeds: Float, image_embeds: Float) -> Float:
        """Compare brain embeddings (n, d) with raw image embeddings (m, d): cosines (n, m)."""
        return cosine_similarity(brain_embeds, self.standardise(image_embeds) @ self.basis)

    def arrays(self) -> dict[str, Float]:
        """Give what `from_arrays` reads."""
        arrays = {
            "centre": self.centre, "scale": self.scale, "mean": self.mean, "std": self.std, "basis": self.basis,
        }  # fmt: skip
        return arrays if self.n_members == 1 else {**arrays, "n_members": np.array([self.n_members], np.float32)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Float]) -> "TargetSpace":
        """Rebuild what `arrays` gave."""
        n_members = int(arrays["n_members"][0]) if "n_members" in arrays else 1
        return cls(**{name: one for name, one in arrays.items() if name != "n_members"}, n_members=n_members)


Spaces = TargetSpace | Mapping[str, TargetSpace]
"""One space for all answers, or one per combination of modalities: the same statistics, and each its own map."""
BASIS_OF = "basis."


def any_space(spaces: Spaces) -> TargetSpace:
    """Give a space for what all have in common, which is everything but the map."""
    return spaces if isinstance(spaces, TargetSpace) else next(iter(spaces.values()))


def space_for(spaces: Spaces, key: str) -> TargetSpace:
    """Give the space of a combination of modalities.

    Raises
    ------
    ValueError
        If there are several and none for it.
    """
    if isinstance(spaces, TargetSpace):
        return spaces
    if key not in spaces:
        raise ValueError(f"no target space for the modalities {key!r}, only for {sorted(spaces)}; train it")
    return spaces[key]


def spaces_arrays(spaces: Spaces) -> dict[str, Float]:
    """Give what `read_spaces` reads; with several spaces, ``basis.<combination>`` for each."""
    arrays = any_space(spaces).arrays()
    if isinstance(spaces, TargetSpace):
        return arrays
    del arrays["basis"]
    return arrays | {f"{BASIS_OF}{key}": space.basis for key, space in spaces.items()}


def read_spaces(arrays: Mapping[str, Float]) -> Spaces:
    """Rebuild what `spaces_arrays` gave."""
    if "basis" in arrays:
        return TargetSpace.from_arrays(arrays)
    bases = {key.removeprefix(BASIS_OF): value for key, value in arrays.items() if key.startswith(BASIS_OF)}
    rest = {key: value for key, value in arrays.items() if not key.startswith(BASIS_OF)}
    return {key: TargetSpace.from_arrays({**rest, "basis": basis}) for key, basis in bases.items()}


def _unit(image_embeds: Float, n_members: int) -> NDArray[np.float64]:
    n, width = image_embeds.shape
    if width % n_members:
        raise ValueError(f"embeddings of width {width} do not divide into {n_members} members; name as many as it has")
    raw = image_embeds.astype(np.float64).reshape(n, n_members, -1)
    unit: NDArray[np.float64] = raw / np.maximum(np.linalg.norm(raw, axis=2, keepdims=True), 1e-12)
    return unit.reshape(n, width)
