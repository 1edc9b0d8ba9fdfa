"""Figures with and without calibration stand apart, say what they used, and are not had from evaluated pictures."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ortho_group

from alignment.calibration_comparison import (
    LabelledEpochs,
    compare_calibrations,
    comparison_json,
    comparison_text,
)
from alignment.person_map import LabelFreeConfig

D = 16


def session(name: str, n: int, seed: int, *, turn: bool = False, drown: float = 0.0) -> LabelledEpochs:
    """Epochs of a person whose embeddings are turned, or drowned in a few loud directions and an offset."""
    generator = np.random.default_rng(seed)
    person = np.random.default_rng(99)
    rotation = ortho_group.rvs(D, random_state=3) if turn else np.eye(D)
    loud, offset = person.standard_normal((3, D)), person.standard_normal(D)
    shown = generator.standard_normal((n, D)).astype(np.float32)
    brain = shown @ rotation + 0.4 * generator.standard_normal((n, D))
    brain += drown * (generator.standard_normal((n, 3)) @ loud + 2 * offset)
    names = tuple(f"{name}-{i}" for i in range(n))
    return LabelledEpochs(brain.astype(np.float32), shown, names, tuple(f"concept of {one}" for one in names))


def top_1(evaluated: LabelledEpochs, first: LabelledEpochs) -> dict[str, float]:
    figures = compare_calibrations(evaluated, "eeg", window=first.brain_embeds, labelled=first)
    return {one.name: one.report.top_1 for one in figures}


def test_whitening_helps_a_drowned_person_and_labels_a_turned_one() -> None:
    drowned = top_1(session("test", 80, 1, drown=2.0), session("first", 100, 2, drown=2.0))
    assert drowned["label_free"] > drowned["inductive"] + 0.2
    assert drowned["label_free_transductive"] > drowned["inductive"] + 0.2
    turned = top_1(session("test", 80, 1, turn=True), session("first", 100, 2, turn=True))
    assert turned["inductive"] < 0.15 and turned["label_free"] < 0.15 and turned["few_shot"] > 0.8


def test_a_person_who_needs_nothing_loses_nothing_by_few_shot() -> None:
    plain = top_1(session("test", 80, 1), session("first", 60, 2))
    assert plain["few_shot"] >= plain["inductive"] - 0.02


def test_a_person_without_signal_stays_at_chance() -> None:
    evaluated, first = session("test", 100, 1), session("first", 100, 2)
    noise = np.random.default_rng(7).standard_normal((2, 100, D)).astype(np.float32)
    found = top_1(replace(evaluated, brain_embeds=noise[0]), replace(first, brain_embeds=noise[1]))
    assert set(found) == {"inductive", "label_free", "label_free_transductive", "few_shot"}
    assert max(found.values()) <= 0.05  # chance 0.01; 5 of 100 hits have a probability below 0.004


def test_every_figure_says_what_it_used() -> None:
    figures = compare_calibrations(session("test", 30, 1), "eeg", window=session("first", 40, 2).brain_embeds)
    by_name = {one.name: one for one in figures}
    assert list(by_name) == ["inductive", "label_free", "label_free_transductive"]
    assert [one.transductive for one in figures] == [False, False, True]
    assert "40 epochs without labels" in by_name["label_free"].uses
    assert "30 epochs without labels of this person: the evaluated ones" in by_name["label_free_transductive"].uses
    content = comparison_json(figures, subject="sub-08")
    assert content["subject"] == "sub-08" and set(content["figures"]) == set(by_name)
    one = content["figures"]["inductive"]
    assert one["chance_top_1"] == pytest.approx(1 / 30) and one["n"] == 30 and len(one["interval_top_1"]) == 2
    text = comparison_text(figures)
    assert text.count("chance 0.033") == 3 and text.count("n = 30") == 3 and "inductive: nothing known" in text


def test_evaluated_epochs_pictures_and_concepts_cannot_calibrate() -> None:
    evaluated, first = session("test", 30, 1), session("first", 40, 2)
    with pytest.raises(ValueError, match="1 evaluated epochs are in the label-free window"):
        compare_calibrations(evaluated, "eeg", window=np.concatenate([first.brain_embeds, evaluated.brain_embeds[:1]]))
    images = (*first.images[:-1], evaluated.images[0])
    with pytest.raises(ValueError, match="1 images are both in the calibration and evaluated"):
        compare_calibrations(evaluated, "eeg", labelled=replace(first, images=images))
    concepts = (*first.concepts[:-1], evaluated.concepts[0])
    with pytest.raises(ValueError, match="1 concepts are both"):
        compare_calibrations(evaluated, "eeg", labelled=replace(first, concepts=concepts))
    shown = np.concatenate([first.shown[:-1], evaluated.shown[:1]])
    with pytest.raises(ValueError, match="1 pictures are both .* under other names"):
        compare_calibrations(evaluated, "eeg", labelled=replace(first, shown=shown))
    with pytest.raises(ValueError, match="need a picture and a concept"):
        replace(first, concepts=("", *first.concepts[1:]))


def test_too_small_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 epochs"):
        compare_calibrations(session("test", 30, 1), "eeg", window=np.empty((0, D), np.float32))
    with pytest.raises(ValueError, match="expected at most"):
        compare_calibrations(session("test", 30, 1), "eeg", label_free=LabelFreeConfig(n_neighbours=31))
