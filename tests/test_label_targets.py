import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from test_clip_space import transformers_folder  # noqa: F401  (fixture)
from torch import nn

from alignment.clip_space import transformers_space
from alignment.contrastive_losses import multi_positive_info_nce
from alignment.label_targets import TEMPLATES, concept_mean_targets, label_targets, label_words
from alignment.retrieval import retrieval_scores


class Hashed:
    """A text space of fixed random vectors that counts sentences and has no way to read a picture."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=12) * (1 + seed % 5) for seed in seeds]).astype("f4")


def test_targets_are_the_mean_of_normalised_sentences() -> None:
    space = Hashed()
    targets = label_targets(space, ["dog", "aircraft_carrier", "dog"])
    assert len(space.seen) == 2 * len(TEMPLATES) and "a photo of a aircraft carrier" in space.seen
    sentences = Hashed().encode_texts([template.format(label="dog") for template in TEMPLATES])
    mean = (sentences / np.linalg.norm(sentences, axis=1, keepdims=True)).mean(axis=0)
    assert np.allclose(targets[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.array_equal(targets[0], targets[2]) and targets.dtype == np.float32 and targets.shape == (3, 12)


def test_a_clip_space_gives_label_targets(transformers_folder) -> None:  # noqa: F811
    targets = label_targets(transformers_space(transformers_folder), ["red_circle", "square"])
    assert targets.shape == (2, 16) and np.allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-5)


def test_words_of_several_meanings_are_refused_until_told_apart() -> None:
    with pytest.raises(ValueError, match=r"\['bat1', 'bat2'\]"):
        label_targets(Hashed(), ["bat1", "bat2", "cat"])
    words = {"bat1": "bat (animal)", "bat2": "baseball bat"}
    assert label_words(["bat1", "bat2", "jar2", "top_hat"], words) == ["bat (animal)", "baseball bat", "jar", "top hat"]
    with pytest.raises(ValueError, match="have no words"):
        label_words(["123"])
    with pytest.raises(ValueError, match="label"):
        label_targets(Hashed(), ["cat"], ["a photo"])


def test_things_concepts_need_words_only_where_numbered(shared_data: Path) -> None:
    table = shared_data / "metadata" / "things_item_names.tsv"
    if not table.is_file():
        pytest.skip(f"no {table}")
    with table.open(encoding="utf-8-sig", newline="") as file:
        ids = [line["uniqueID"] for line in csv.DictReader(file, delimiter="\t")]
    assert len(ids) == 1854
    with pytest.raises(ValueError, match="would share one wording"):
        label_words(ids)
    numbered = {label: f"{label} (wording)" for label in ids if label[-1].isdigit()}
    assert 0 < len(numbered) < 100 and len(set(label_words(ids, numbered))) == 1854


def test_concept_means() -> None:
    embeds = np.arange(12, dtype=np.float32).reshape(4, 3)
    means = concept_mean_targets(embeds, ["a", "b", "a", "a"], ["b", "a", "b"])
    assert np.allclose(means, [embeds[1], embeds[[0, 2, 3]].mean(axis=0), embeds[1]])
    with pytest.raises(ValueError, match=r"\['c'\]"):
        concept_mean_targets(embeds, ["a", "b", "a", "a"], ["c"])
    with pytest.raises(ValueError, match="one per row"):
        concept_mean_targets(embeds, ["a"], ["a"])


def small_world() -> dict[str, torch.Tensor]:
    """Concepts with 6 pictures each, a noisy linear brain, and texts near the concept beyond a gap."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    concepts = draw(300, 24)
    pictures = concepts.repeat_interleave(6, dim=0) + 0.5 * draw(1800, 24)
    return {
        "concept": torch.arange(300).repeat_interleave(6),
        "image": pictures,
        "text": concepts + 0.5 * draw(300, 24) + 2.0,
        "brain": pictures @ draw(24, 60) / 5 + draw(1800, 60),
    }


def train(world: dict[str, torch.Tensor], has_image: torch.Tensor) -> float:
    """Top-5 among pictures of 50 unseen concepts, one each, after training on the first 250 concepts."""
    rows = torch.arange(1500)
    text = world["text"] - world["text"][:250].mean(dim=0)
    image = world["image"] - world["image"][:1500].mean(dim=0)
    label = world["concept"][rows]
    target = torch.where(has_image[:, None], image[rows], text[label])
    stimulus = torch.where(has_image, rows, 10_000 + label)
    torch.manual_seed(0)
    encoder = nn.Linear(60, 24)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(400):
        batch = torch.randint(0, 1500, (256,))
        brain = encoder(world["brain"][batch])
        loss = multi_positive_info_nce(brain, target[batch], torch.tensor(14.0), stimulus[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shown = torch.arange(1500, 1800, 6)
    with torch.no_grad():
        answers = encoder(world["brain"][shown]).numpy()
    report = retrieval_scores(answers, image[shown].numpy(), n_bootstrap=1)
    assert report.chance_top_5 == 0.1
    return report.top_5


def test_label_only_training_reaches_most_of_what_pictures_give() -> None:
    """Simulated; 50 unseen concepts, one row each, chance 0.10: labels alone >= 60 % of the pictures' top-5."""
    world = small_world()
    everywhere = torch.ones(1500, dtype=torch.bool)
    pictures, labels, mixed = (train(world, mask) for mask in (everywhere, ~everywhere, torch.arange(1500) % 2 == 0))
    assert pictures > 0.5
    assert labels >= 0.6 * pictures
    assert mixed >= 0.6 * pictures
