"""Which space do these brains follow? Ridge regressions to several spaces, compared on validation pictures.

A better space for retrieval is of no use to a generator that reads another one, so `fit_bridge` says how much of the
generator's space can be told from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignment.retrieval import RetrievalReport, retrieval_scores
from encoders.baselines import RidgeDecoder, fit_ridge

Float = NDArray[np.float32]
Ints = NDArray[np.int64]

BRIDGE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class SpaceScore:
    """How well one space is read.

    Attributes
    ----------
    space : str
    embed_dim : int
    retrieval : RetrievalReport
        On validation pictures, whose penalty was chosen on the same ones: for choosing among spaces, not for reporting
        how well a brain is decoded.
    r2 : float
        Share of the targets' variance that is predicted; 0 for the training mean.
    """

    space: str
    embed_dim: int
    retrieval: RetrievalReport
    r2: float


@dataclass(frozen=True)
class Bridge:
    """A linear map from one space to another, and what it explains of held-out pictures.

    Attributes
    ----------
    decoder : RidgeDecoder
        ``decoder.predict(source_embeds)``.
    r2 : float
        On held-out pictures; 0 for the training mean.
    """

    decoder: RidgeDecoder
    r2: float


def compare_targets(
    train_data: Float,
    val_data: Float,
    spaces: Mapping[str, tuple[Float, Float]],
    train_target: Ints,
    val_target: Ints,
    *,
    n_bootstrap: int = 1000,
) -> list[SpaceScore]:
    """Score every space on the same recordings.

    Parameters
    ----------
    train_data, val_data : ndarray, (n, c, t) and (m, c, t), float32
        Preprocessed epochs of training and of validation pictures; never test ones.
    spaces : mapping of str to (ndarray, ndarray)
        Per space the raw embeddings of the training pictures (p, d) and of the validation pictures (q, d).
    train_target, val_target : ndarray, (n,) and (m,), int64
        Picture of each epoch, a row of those embeddings.
    n_bootstrap : int
        For the interval of each report.

    Returns
    -------
    list of SpaceScore
        Best validation top-1 first, ties by top-5, then two-way.

    Raises
    ------
    ValueError
        If there are no spaces, or lengths disagree.
    """
    if not spaces:
        raise ValueError("no spaces to compare, got an empty mapping; give at least one")
    scores = []
    for name, (train_embeds, val_embeds) in spaces.items():
        train, gallery = _unit(train_embeds), _unit(val_embeds)
        decoder = fit_ridge(train_data, train[train_target], (val_data, gallery[val_target]))
        answers = decoder.predict(val_data)
        report = retrieval_scores(
            answers, gallery, val_target, centre=decoder.embed_mean, n_bootstrap=n_bootstrap
        )  # fmt: skip
        r2 = _r2(answers, gallery[val_target], decoder.embed_mean)
        scores.append(SpaceScore(name, train.shape[1], report, r2))
    return sorted(scores, key=lambda s: (-s.retrieval.top_1, -s.retrieval.top_5, -s.retrieval.two_way))


def fit_bridge(source: tuple[Float, Float], target: tuple[Float, Float]) -> Bridge:
    """Map one space of pictures to another by ridge regression.

    Parameters
    ----------
    source, target : (ndarray, ndarray)
        Raw embeddings of the same training pictures (n, d) and (n, e), and of the same held-out pictures. Half of the
        held-out ones choose the penalty, the other half gives ``r2``.

    Returns
    -------
    Bridge

    Raises
    ------
    ValueError
        If the numbers of pictures disagree, or fewer than four are held out.
    """
    counts = [len(part) for part in (*source, *target)]
    if counts[0] != counts[2] or counts[1] != counts[3] or counts[1] < 4:
        raise ValueError(
            f"source and target have {counts[:2]} and {counts[2:]} pictures, expected the same and at least 4 held out"
        )
    choose, judge = np.s_[::2], np.s_[1::2]
    decoder = fit_ridge(
        source[0], target[0], (source[1][choose], target[1][choose]), BRIDGE_PENALTIES
    )  # fmt: skip
    answers = decoder.predict(source[1][judge])
    return Bridge(decoder, _r2(answers, target[1][judge], decoder.embed_mean))


def comparison_table(scores: list[SpaceScore]) -> str:
    """Write the scores as a Markdown table with chance, n and interval."""
    lines = [
        "| space | width | top-1 (95 %) | top-5 | two-way | R2 | chance top-1 / top-5 | n / gallery |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in scores:
        r = one.retrieval
        low, high = r.interval_top_1
        lines.append(
            f"| {one.space} | {one.embed_dim} | {r.top_1:.3f} ({low:.3f}-{high:.3f}) | {r.top_5:.3f} | {r.two_way:.3f} "
            f"| {one.r2:.3f} | {r.chance_top_1:.3f} / {r.chance_top_5:.3f} | {r.n} / {r.n_gallery} |"
        )
    return "\n".join(lines)


def _r2(answers: Float, targets: Float, mean: Float) -> float:
    error = np.square((answers - targets).astype(np.float64)).sum()
    return float(1 - error / np.square((targets - mean).astype(np.float64)).sum())


def _unit(embeds: Float) -> Float:
    length = np.linalg.norm(embeds.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(embeds / np.maximum(length, 1e-12), dtype=np.float32)
