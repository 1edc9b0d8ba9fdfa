"""Similarities of one person's answers after an adaptation to that person: what each was allowed to see is said here.

No figure of these is inductive. Transductive ones are fitted on the evaluated epochs themselves, without their labels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alignment.calibration_comparison import LabelledEpochs, check_apart
from alignment.few_shot import FewShotConfig
from alignment.person_answers import NOISE, RECORDING, PersonAnswers
from alignment.person_map import LabelFreeConfig, PersonMap, fit_label_free, fit_labelled
from alignment.person_whitening import MIN_WINDOW

Float = NDArray[np.float32]
_WINDOW = "this person's epochs of validation pictures, what was shown not used"
_EVALUATED = "the evaluated epochs themselves, what was shown not used"
ADAPTATIONS: Mapping[str, tuple[str, bool]] = {
    "label_free": (f"whitening of the person's embeddings, fitted on {_WINDOW}", False),
    "label_free_transductive": (f"whitening of the person's embeddings, fitted on {_EVALUATED}", True),
    "csls": (f"similarities corrected for hubs (CSLS), fitted on {_WINDOW}", False),
    "csls_transductive": (f"similarities corrected for hubs (CSLS), fitted on {_EVALUATED}", True),
    "few_shot": ("map fitted on this person's labelled epochs of validation pictures, chosen within them", False),
}
"""What each adaptation uses of the person, and whether an answer depends on other evaluated epochs."""


@dataclass(frozen=True)
class AdaptationData:
    """What one person's adaptations may use.

    Attributes
    ----------
    evaluated : PersonAnswers
    gallery : ndarray, (m, d), float32
        Pictures in the coordinates of brain embeddings, in the order of the similarities' columns.
    window : LabelledEpochs
        Epochs of validation pictures, with labels that only ``few_shot`` reads.
    modality : str
    labels : LabelledEpochs
        Of the evaluated epochs, to check that pictures and concepts are others.
    """

    evaluated: PersonAnswers
    gallery: Float
    window: LabelledEpochs
    modality: str
    labels: LabelledEpochs


def adapted_answers(name: str, data: AdaptationData) -> PersonAnswers:
    """Decode a person's recordings, and noise, with one of `ADAPTATIONS`.

    Noise goes through the same map; what is fitted on the evaluated epochs is fitted on noise for noise.

    Raises
    ------
    ValueError
        If the adaptation is unknown, there is too little to fit on, or a picture or concept is on both sides.
    """
    if name not in ADAPTATIONS:
        raise ValueError(f"no adaptation {name!r}; allowed are {sorted(ADAPTATIONS)}")
    if len(data.window.images) < MIN_WINDOW:
        raise ValueError(
            f"{data.modality}: {name} has {len(data.window.images)} epochs of validation pictures of a person, "
            f"expected at least {MIN_WINDOW}; keep more concepts for the selection, or leave the adaptation out"
        )
    check_apart(data.window, data.labels)
    found = {}
    for kind in (RECORDING, NOISE):
        embeds = data.evaluated.embeds[kind]
        fitted = _FITS[name](embeds, data)
        found[kind] = fitted.similarity(embeds, data.gallery)
    return replace(data.evaluated, similarity=found, windows={})


def _whitened(embeds: Float, data: AdaptationData) -> PersonMap:
    return fit_label_free(data.window.brain_embeds, data.modality, LabelFreeConfig(n_neighbours=0))


def _whitened_by_itself(embeds: Float, data: AdaptationData) -> PersonMap:
    return fit_label_free(embeds, data.modality, LabelFreeConfig(n_neighbours=0))


def _corrected(embeds: Float, data: AdaptationData) -> PersonMap:
    return _hubs(data.window.brain_embeds, data.modality)


def _corrected_by_itself(embeds: Float, data: AdaptationData) -> PersonMap:
    return _hubs(embeds, data.modality)


def _few_shot(embeds: Float, data: AdaptationData) -> PersonMap:
    window = data.window
    return fit_labelled(window.brain_embeds, window.shown, window.concepts, data.modality, FewShotConfig())


def _hubs(window: Float, modality: str) -> PersonMap:
    """CSLS with no whitening before it."""
    d = window.shape[1]
    neighbours = min(LabelFreeConfig().n_neighbours, len(window))
    return PersonMap(
        "label-free", modality, np.zeros(d, np.float32), np.eye(d, dtype=np.float32), np.zeros(d, np.float32), window,
        neighbours, False, len(window), {},
    )  # fmt: skip


_FITS: Mapping[str, Callable[[Float, AdaptationData], PersonMap]] = {
    "label_free": _whitened,
    "label_free_transductive": _whitened_by_itself,
    "csls": _corrected,
    "csls_transductive": _corrected_by_itself,
    "few_shot": _few_shot,
}
