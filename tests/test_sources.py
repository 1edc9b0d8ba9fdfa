"""Sources: places, latencies, and who sees what."""

import numpy as np
import pytest

from encoders.sources import draw_person, draw_sources, time_courses

TIMES = -0.1 + np.arange(80) / 100.0


def people(n: int = 2, **changes: float):
    sources = draw_sources(64, 0.25, np.random.default_rng(0))
    spread = {"gain_spread": 0.2, "latency_jitter": 0.01, "source_shift": 0.04} | changes
    return sources, [draw_person(sources, TIMES, np.random.default_rng(1 + i), **spread) for i in range(n)]


def test_latencies_are_early_or_late() -> None:
    sources, _ = people()
    assert (~sources.late).sum() == sources.late.sum() == 32
    assert sources.latencies.min() >= 0.08
    assert sources.latencies.max() <= 0.48


def test_each_modality_misses_a_quarter_of_both_halves() -> None:
    sources, _ = people()
    for half in (sources.late, ~sources.late):
        for modality in ("eeg", "meg"):
            assert sources.visible[modality][half].mean() == 0.75
    assert (sources.visible["eeg"] | sources.visible["meg"]).all()


def test_what_meg_misses_is_radial_in_every_person() -> None:
    sources, found = people()
    assert (sources.radial == ~sources.visible["meg"]).all()
    for person in found:
        outwards = person.positions / np.linalg.norm(person.positions, axis=1, keepdims=True)
        along = np.abs((person.orientations * outwards).sum(axis=1))
        np.testing.assert_allclose(along[sources.radial], 1.0, atol=1e-9)
        np.testing.assert_allclose(along[~sources.radial], 0.0, atol=1e-9)


def test_people_differ_a_little() -> None:
    _, (one, other) = people()
    distance = np.linalg.norm(one.positions - other.positions, axis=1)
    assert 0.0 < np.median(distance) < 0.15
    correlation = np.corrcoef(one.time_courses.ravel(), other.time_courses.ravel())[0, 1]
    assert 0.8 < correlation < 1.0


def test_without_spread_people_are_equal() -> None:
    _, (one, other) = people(gain_spread=0.0, latency_jitter=0.0, source_shift=0.0)
    for name in ("positions", "orientations", "time_courses", "gains"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_positions_stay_in_the_brain() -> None:
    _, found = people(source_shift=0.3)
    assert all(np.linalg.norm(person.positions, axis=1).max() <= 0.85 for person in found)


@pytest.mark.parametrize("latency", [0.1, 0.48])
def test_time_course_peaks_at_its_latency_and_is_over_in_the_window(latency: float) -> None:
    course = time_courses(np.array([latency]), np.array([0.06 + 0.17 * latency]), np.array([1.0]), TIMES)[0]
    assert TIMES[course.argmax()] == pytest.approx(latency)
    assert course.max() == pytest.approx(1.0)
    assert (course[(TIMES < 0.0) | (TIMES >= 0.64)] == 0.0).all()
