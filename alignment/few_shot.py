"""Few-shot calibration: a map of a new person's embeddings, fitted on labelled epochs and held back towards identity.

How far it is held back is decided by cross-validation within the calibration's own pictures, by concept. No map at all
is one of the candidates, so a calibration that does not help leaves the person as they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from alignment.retrieval import cosine_similarity
from alignment.retrieval_metrics import own_ranks

Float = NDArray[np.float32]
Float64 = NDArray[np.float64]
Kind = Literal["affine", "orthogonal"]
MIN_PICTURES = 8


class FewShotConfig(BaseModel):
    """Candidates of a few-shot calibration and how one of them is chosen.

    Attributes
    ----------
    kinds
        ``orthogonal`` rotates (Procrustes); ``affine`` is a ridge regression that is drawn to the identity.
    penalties
        In units of the mean variance of the labelled embeddings.
    n_folds
        Of the calibration's concepts.
    seed
        Of the folds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[Kind, ...] = Field(default=("orthogonal", "affine"), min_length=1)
    penalties: tuple[float, ...] = Field(default=(100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03), min_length=1)
    n_folds: int = Field(default=5, ge=2)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class FewShotMap:
    """A fitted map ``(x - mean) @ matrix + offset``.

    Attributes
    ----------
    mean, offset : ndarray, (d,), float64
    matrix : ndarray, (d, d), float64
    kind : str
        ``affine``, ``orthogonal``, or ``identity`` where no map helped.
    penalty : float
    """

    mean: Float64
    matrix: Float64
    offset: Float64
    kind: str
    penalty: float

    def __call__(self, brain_embeds: NDArray[Any]) -> Float:
        """Map (n, d) brain embeddings."""
        return np.asarray((brain_embeds - self.mean) @ self.matrix + self.offset, dtype=np.float32)


def fit_map(brain_embeds: NDArray[Any], image_embeds: NDArray[Any], kind: Kind, penalty: float) -> FewShotMap:
    """Fit one map with a given penalty.

    Parameters
    ----------
    brain_embeds, image_embeds : ndarray, (n, d)
        Row by row of the same picture, in the space in which they are compared by cosine.
    kind : str
    penalty : float
        0 is plain least squares or Procrustes; infinity is the identity.

    Returns
    -------
    FewShotMap
        Its scale is that of the brain embeddings.
    """
    brain, image = np.asarray(brain_embeds, np.float64), np.asarray(image_embeds, np.float64)
    n, d = brain.shape
    if not penalty >= 0 or image.shape != (n, d):
        raise ValueError(
            f"a map got brain_embeds {brain.shape}, image_embeds {image.shape} and penalty {penalty}, expected two "
            "(n, d) and a penalty of at least 0"
        )
    if np.isinf(penalty):
        return FewShotMap(np.zeros(d), np.eye(d), np.zeros(d), "identity", penalty)
    x, y = brain - brain.mean(axis=0), image - image.mean(axis=0)
    scale = np.sqrt((x**2).mean() / (y**2).mean())
    y = scale * y
    weight = n / (n + penalty)  # of the offsets, which are held back as well
    mean, offset = weight * brain.mean(axis=0), weight * scale * image.mean(axis=0)
    held = penalty * (x**2).sum() / d
    if kind == "orthogonal":
        left, _, right = np.linalg.svd(x.T @ y + held * np.eye(d))
        matrix = left @ right
    else:
        gram = x.T @ x + held * np.eye(d)
        matrix = np.eye(d) + np.linalg.lstsq(gram, x.T @ (y - x), rcond=None)[0]
    return FewShotMap(mean, matrix, offset, kind, penalty)


def fit_few_shot(
    brain_embeds: NDArray[Any], image_embeds: NDArray[Any], concepts: Sequence[str], config: FewShotConfig
) -> FewShotMap:
    """Fit the kind of map and the penalty that find held-out pictures of the calibration best.

    Parameters
    ----------
    brain_embeds, image_embeds : ndarray, (n, d)
        As in `fit_map`; several epochs may show one picture.
    concepts : sequence of str
        Of each row; all epochs of a concept are held out together.
    config : FewShotConfig

    Returns
    -------
    FewShotMap
        Fitted on all rows. Of candidates that score alike the one nearest to the identity.

    Raises
    ------
    ValueError
        If there are fewer than 8 different pictures, or fewer concepts than folds.
    """
    pictures, picture = np.unique(image_embeds, axis=0, return_inverse=True)
    picture = picture.ravel()
    names, concept = np.unique(np.asarray(concepts), return_inverse=True)
    if len(concept) != len(brain_embeds) or len(pictures) < MIN_PICTURES or len(names) < 2 * config.n_folds:
        raise ValueError(
            f"a few-shot calibration got {len(brain_embeds)} epochs of {len(pictures)} pictures and {len(names)} "
            f"concepts, expected at least {MIN_PICTURES} pictures and {2 * config.n_folds} concepts; record more"
        )
    fold = np.random.default_rng(config.seed).permutation(np.arange(len(names)) % config.n_folds)[concept]
    candidates: list[tuple[Kind, float]] = [(config.kinds[0], float("inf"))]
    candidates += [(kind, penalty) for penalty in sorted(config.penalties, reverse=True) for kind in config.kinds]
    scores = [_held_out_score(brain_embeds, image_embeds, picture, fold, *one) for one in candidates]
    kind, penalty = candidates[int(np.argmax(scores))]
    return fit_map(brain_embeds, image_embeds, kind, penalty)


def _held_out_score(
    brain_embeds: NDArray[Any],
    image_embeds: NDArray[Any],
    picture: NDArray[Any],
    fold: NDArray[Any],
    kind: Kind,
    penalty: float,
) -> float:
    """Give the mean reciprocal rank of held-out epochs' pictures among the held-out pictures of their fold.

    Not among all: a map draws answers towards the pictures that it was fitted on, and those are not in the gallery when
    it is used.
    """
    found = []
    for name in np.unique(fold):
        train, test = np.flatnonzero(fold != name), np.flatnonzero(fold == name)
        fitted = fit_map(brain_embeds[train], image_embeds[train], kind, penalty)
        _, first, column = np.unique(picture[test], return_index=True, return_inverse=True)
        similarity = cosine_similarity(
            fitted(brain_embeds[test]), np.asarray(image_embeds[test][first], np.float32)
        )  # fmt: skip
        found.append(1 / own_ranks(similarity, column.ravel()))
    return float(np.concatenate(found).mean())
