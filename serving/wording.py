"""What answers say in words about their pictures and their confidence; imports nothing, as the client needs it."""

from typing import Literal

PictureKind = Literal["generated", "nearest", "category"]
NOTICE = (
    "These pictures are generated estimates from a brain recording, not photographs and not what a person saw. "
    "Read the confidence and the neighbours before drawing any conclusion."
)
RETRIEVED_NOTICE = (
    "These pictures were retrieved, not generated: the nearest ones of the bundle's gallery to a brain recording, "
    "whether or not anything like them was seen. Read the confidence before drawing any conclusion."
)
CATEGORY_NOTICE = (
    "What was decoded is one of a few categories. These pictures were retrieved, not generated: examples of the "
    "decoded category, not what a person saw. Read the confidence before drawing any conclusion."
)


def confidence_in_words(confidence: float) -> str:
    """Say in words what a percentile against recordings without signal means."""
    if confidence >= 0.99:
        return "clearly above noise: fewer than 1 in 100 recordings without signal look this certain"
    if confidence >= 0.95:
        return "above noise: fewer than 1 in 20 recordings without signal look this certain"
    if confidence >= 0.8:
        return "weak: up to 1 in 5 recordings without signal look this certain"
    return "no better than noise: do not read anything into this picture"


def category_in_words(probability: float, n_categories: int) -> str:
    """Say in words what the probability of a decoded category means."""
    guess = 1.0 / n_categories
    word = "little better than a guess" if probability < 2.0 * guess else "the chance that this category is right"
    return f"{word}, calibrated on people left out of the training; guessing gives {guess:.2f}"


def calibration_in_words(provenance: str) -> str:
    """Say what a calibration to one person changes, and what it leaves."""
    return (
        f"Decoded with a calibration to this person: {provenance}. Pictures and neighbours depend on it, so they are "
        "not comparable with those of people without one; confidence and noise floor are of the answer without it."
    )


def notice_of(pictures: PictureKind) -> str:
    """Say what a reader must know about the pictures of an answer."""
    return {"generated": NOTICE, "nearest": RETRIEVED_NOTICE, "category": CATEGORY_NOTICE}[pictures]
