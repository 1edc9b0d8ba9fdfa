import numpy as np
import pytest
from scipy import signal

from encoders.running_filter import RunningFilter, high_pass_sections


@pytest.mark.parametrize("size", [1, 7, 333])
def test_chunks_give_the_very_bits_of_one_pass(size):
    data = np.random.default_rng(0).standard_normal((3, 1000)).cumsum(axis=1)
    sections = high_pass_sections(250.0, 0.1)
    whole = RunningFilter(sections).push(data)
    running = RunningFilter(sections)
    chunks = [running.push(data[:, start : start + size]) for start in range(0, 1000, size)]
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), whole)
    running.reset()
    np.testing.assert_array_equal(running.push(data), whole)


def test_the_high_pass_halves_where_the_zero_phase_filter_does_and_lets_an_offset_vanish():
    sections = high_pass_sections(500.0, 0.1)
    _, response = signal.freqz_sos(sections, np.array([0.05, 5.0]), fs=500.0)
    np.testing.assert_allclose(np.abs(response), [0.5, 1.0], atol=0.002)
    assert np.abs(RunningFilter(sections).push(np.full((2, 300), 5.0))).max() < 1e-9
