"""Targets where no picture is at hand: sentences about the label, or the mean of the concept's other pictures.

A label is a concept id such as ``aircraft_carrier``. THINGS numbers words of several meanings (``bat1``, ``bat2``):
without their own wording both would become "bat", so they are refused until ``words`` tells them apart.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

TEMPLATES = ("a photo of a {label}", "a picture of a {label}", "a close-up photo of a {label}", "an image of a {label}")


class TextSpace(Protocol):
    """Whatever embeds sentences; no picture is asked for."""

    def encode_texts(self, texts: Sequence[str]) -> Float: ...


def label_words(labels: Sequence[str], words: Mapping[str, str] | None = None) -> list[str]:
    """Turn concept ids into words.

    Parameters
    ----------
    labels : sequence of str
        Ids; underscores become spaces and a number at the end is dropped.
    words : mapping of str to str, optional
        Wording of some ids, for example ``{"bat1": "bat (animal)", "bat2": "baseball bat"}``.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If different ids would share one wording, or an id is empty.
    """
    given = words or {}
    plain = {label: given.get(label, re.sub(r"\d+$", "", label).replace("_", " ").strip()) for label in labels}
    empty = [label for label, text in plain.items() if not text]
    if empty:
        raise ValueError(f"labels {empty[:5]} have no words; give them in words")
    owners: dict[str, list[str]] = {}
    for label, text in plain.items():
        owners.setdefault(text.lower(), []).append(label)
    shared = [sorted(ids) for ids in owners.values() if len(ids) > 1]
    if shared:
        raise ValueError(
            f"labels {shared[:5]} would share one wording and so one target; tell them apart with "
            f"words={{{shared[0][0]!r}: '...'}}"
        )
    return [plain[label] for label in labels]


def label_targets(
    space: TextSpace,
    labels: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    words: Mapping[str, str] | None = None,
) -> Float:
    """Embed labels as the mean of several sentences about each.

    Parameters
    ----------
    space : TextSpace
        A `ClipSpace`, for example.
    labels : sequence of str
        Concept ids, one per row; a repeated one is encoded once.
    templates : sequence of str
        Sentences with ``{label}``.
    words : mapping of str to str, optional
        See `label_words`.

    Returns
    -------
    ndarray, (n, d), float32
        Mean of the normalised sentence embeddings, normalised again: length 1, unlike raw picture embeddings.

    Raises
    ------
    ValueError
        If a template lacks ``{label}``, or labels cannot be told apart.
    """
    wrong = [template for template in templates if "{label}" not in template]
    if wrong or not templates:
        raise ValueError(f"templates {wrong or list(templates)} must each hold '{{label}}'; give at least one")
    unique = list(dict.fromkeys(labels))
    texts = label_words(unique, words)
    sentences = [template.replace("{label}", text) for text in texts for template in templates]
    embeds = _unit(space.encode_texts(sentences).astype(np.float64)).reshape(len(unique), len(templates), -1)
    targets = _unit(embeds.mean(axis=1)).astype(np.float32)
    row = {label: i for i, label in enumerate(unique)}
    return np.asarray(targets[[row[label] for label in labels]], dtype=np.float32)


def concept_mean_targets(image_embeds: Float, concepts: Sequence[str], wanted: Sequence[str]) -> Float:
    """Give each wanted concept the mean embedding of its pictures.

    Parameters
    ----------
    image_embeds : ndarray, (n, d), float32
        Raw embeddings of training pictures.
    concepts : sequence of str
        Concept of each row.
    wanted : sequence of str
        One concept per row of the answer.

    Returns
    -------
    ndarray, (len(wanted), d), float32
        Raw: shorter than a single picture's embedding.

    Raises
    ------
    ValueError
        If a wanted concept has no picture, or lengths disagree.
    """
    if len(concepts) != len(image_embeds):
        raise ValueError(f"{len(concepts)} concepts for image_embeds {image_embeds.shape}; give one per row")
    names, index = np.unique(np.asarray(concepts, dtype=np.str_), return_inverse=True)
    place = {str(name): i for i, name in enumerate(names)}
    missing = sorted(set(wanted) - set(place))
    if missing:
        raise ValueError(f"concepts {missing[:5]} ({len(missing)} in all) have no picture; use label_targets for them")
    sums = np.zeros((len(names), image_embeds.shape[1]))
    np.add.at(sums, index, image_embeds.astype(np.float64))
    means = sums / np.bincount(index)[:, None]
    return np.asarray(means[[place[name] for name in wanted]], dtype=np.float32)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return unit
