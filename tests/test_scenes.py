from dataclasses import fields

import numpy as np
import pytest

from generation.scenes import (
    COLOURS,
    N_CONCEPTS,
    SHAPES,
    SPLIT_SIZES,
    SceneFactors,
    captions,
    place_words,
    render,
    sample_factors,
    sample_scenes,
    sample_siblings,
    split_concepts,
)


def test_splits_are_disjoint_and_cover_all_concepts():
    parts = [split_concepts(split) for split in SPLIT_SIZES]
    assert [len(part) for part in parts] == list(SPLIT_SIZES.values())
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(N_CONCEPTS))


def test_every_shape_and_colour_occurs_in_training():
    factors = sample_scenes("train", 500, seed=3)
    pairs = {(int(s), int(c)) for s, c in zip(factors.shape, factors.colour, strict=True)}
    assert len(pairs) == len(SHAPES) * len(COLOURS)


def test_test_split_shows_each_concept_once_before_repeating():
    factors = sample_scenes("test", 200, seed=0)
    assert len(np.unique(factors.concept)) == 200
    assert set(factors.concept) == set(split_concepts("test"))


def test_siblings_differ_in_shape_or_texture_and_in_nothing_else():
    factors, family = sample_siblings("train", 301, seed=3)
    assert len(factors) == len(family) == 301
    assert set(factors.concept) <= set(split_concepts("train"))
    assert len(set(family[:8])) > 4, "the order is shuffled"
    for number in np.unique(family):
        members = factors.take(np.flatnonzero(family == number))
        assert 1 <= len(members) <= 4
        assert len(np.unique(members.concept)) == len(members)
        for field in fields(SceneFactors):
            if field.name not in ("shape", "texture"):
                assert len(np.unique(getattr(members, field.name))) == 1, field.name
    again, _ = sample_siblings("train", 301, seed=3)
    assert np.array_equal(render(again), render(factors))


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="'dev'"):
        split_concepts("dev")


def test_rendering_is_a_pure_function_of_the_factors():
    factors = sample_scenes("val", 20, seed=1)
    images = render(factors)
    assert images.shape == (20, 64, 64, 3) and images.dtype == np.uint8
    order = np.random.default_rng(0).permutation(20)
    assert np.array_equal(render(factors.take(order)), images[order])
    assert np.array_equal(render(sample_scenes("val", 20, seed=1)), images)
    assert not np.array_equal(render(sample_scenes("val", 20, seed=2)), images)


def test_each_captioned_factor_changes_the_picture():
    one = sample_factors(np.zeros(1, np.int64), np.random.default_rng(0))
    base = render(one).astype(int)
    for concept in (1, 2, 12, 96):  # texture, background, colour, shape
        other = sample_factors(np.array([concept]), np.random.default_rng(0))
        assert np.abs(render(other).astype(int) - base).mean() > 0.5


def test_objects_lie_inside_and_do_not_overlap():
    f = sample_scenes("train", 2000, seed=5)
    assert (f.x - f.radius >= 0).all() and (f.y + f.radius <= 63).all()
    both = f.second_shape >= 0
    assert 0.2 < both.mean() < 0.5
    apart = np.hypot(f.x - f.second_x, f.y - f.second_y)[both]
    assert (apart > (f.radius + f.second_radius)[both]).all()


def test_captions_name_every_factor():
    factors = sample_scenes("test", 50, seed=7)
    for i, sentence in enumerate(captions(factors)):
        assert SHAPES[factors.shape[i]] in sentence and COLOURS[factors.colour[i]] in sentence
        assert sentence.endswith("background")
        assert (" and a " in sentence) == (factors.second_shape[i] >= 0)


def test_places_have_25_names():
    names = {place_words(x, y) for x in np.linspace(0, 63.9, 20) for y in np.linspace(0, 63.9, 20)}
    assert len(names) == 25
    assert place_words(0, 0) == "top far left" and place_words(63, 63) == "bottom far right"
