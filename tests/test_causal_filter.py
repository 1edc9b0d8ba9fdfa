from dataclasses import replace

import numpy as np
import pytest
from scipy import signal

from encoders.causal_filter import CausalBandPass, StreamingPreprocessor, compare_responses, filter_mismatch
from encoders.epochs import EpochsMismatch
from encoders.preprocess import Preprocessor, default_preprocess
from encoders.sensors import standard_layout
from encoders.simulated_stream import simulate_stream

LAYOUT = standard_layout("things_eeg2_63")


@pytest.fixture(scope="module")
def stream():
    return simulate_stream("eeg", n_onsets=12)


@pytest.fixture(scope="module")
def fitted(stream):
    return Preprocessor(default_preprocess("eeg"), LAYOUT).fit(stream.template)


def _window(fitted, stream, size, onset, data=None, **more):
    """Everything that comes out of one onset, and after how many samples each output came."""
    data = stream.data if data is None else data
    running = StreamingPreprocessor(fitted, stream.template, **more)
    running.push(data[:, onset - 1000 : onset])
    running.mark_onset()
    outputs, counts = [], []
    for start in range(onset, onset + 800, size):
        outputs.append(running.push(data[:, start : min(start + size, onset + 800)]))
        counts.append(outputs[-1].shape[1])
    return np.concatenate(outputs, axis=1), np.cumsum(counts)


def test_edges_agree_with_the_zero_phase_filter():
    band = CausalBandPass(1000.0, 0.1, 40.0, 100.0)
    _, response = signal.freqz_sos(band.sos, np.array([0.05, 5.0, 45.0]), fs=1000.0)
    np.testing.assert_allclose(np.abs(response), [0.5, 1.0, 0.5], atol=0.005)
    _, response = signal.freqz_sos(band.sos, np.array([9.9, 10.1]), fs=1000.0)
    slope = -np.diff(np.unwrap(np.angle(response)))[0] / (2 * np.pi * 0.2)
    assert abs(slope - band.delay) < 0.0005  # without the high-pass, which adds 0.1 ms there
    assert 0.008 < band.delay < 0.013


@pytest.mark.parametrize("size", [1, 7, 333])
def test_filtering_in_chunks_equals_one_pass_and_the_future_changes_nothing(size):
    data = np.random.default_rng(0).standard_normal((3, 1000))
    whole = CausalBandPass(500.0, 0.1, 40.0, 100.0).push(data)
    band = CausalBandPass(500.0, 0.1, 40.0, 100.0)
    chunks = [band.push(data[:, start : start + size]) for start in range(0, 1000, size)]
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, atol=1e-12)
    changed = data.copy()
    changed[:, 600:] = 1e3
    band.reset()
    assert np.abs(band.push(changed)[:, :600] - whole[:, :600]).max() == 0.0


def test_an_offset_makes_no_transient():
    band = CausalBandPass(500.0, 0.1, 40.0, 100.0)
    assert np.abs(band.push(np.full((2, 300), 5.0))).max() < 1e-9
    assert np.abs(CausalBandPass(500.0, None, 40.0, 100.0).push(np.full((2, 300), 5.0)) - 5.0).max() < 1e-9


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("size", [1, 20, 333])
def test_chunks_of_a_recording_equal_one_push(stream, size, whiten):
    fitted = Preprocessor(default_preprocess("eeg", whiten=whiten), LAYOUT).fit(stream.template)
    onset = stream.onsets[3]
    whole, _ = _window(fitted, stream, 800, onset)
    parts, _ = _window(fitted, stream, size, onset)
    assert whole.shape == (63, 64) and whole.dtype == np.float32
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_an_output_comes_after_the_filters_delay_and_depends_on_nothing_later(fitted, stream):
    onset = stream.onsets[3]
    whole, n_out = _window(fitted, stream, 1, onset)
    assert n_out[10] == 0 and n_out[11] == 1  # 11 ms of waiting: the sample that stands for the onset is the twelfth
    assert n_out[21] == 2 and n_out[11 + 630] == 64 and n_out[-1] == 64
    changed = stream.data.copy()
    changed[:, onset + 312 :] = 1e-4
    other, _ = _window(fitted, stream, 1, onset, changed)
    assert np.abs(other[:, :31] - whole[:, :31]).max() == 0.0 and not np.array_equal(other[:, 31], whole[:, 31])


def test_permuted_and_missing_channels_are_treated_as_in_training(fitted, stream):
    order = np.random.default_rng(0).permutation(63)
    permuted = replace(
        stream, data=stream.data[order], template=stream.template.pick([LAYOUT.ch_names[i] for i in order])
    )
    onset = stream.onsets[2]
    expected, _ = _window(fitted, stream, 800, onset)
    np.testing.assert_allclose(_window(fitted, permuted, 800, onset)[0], expected, atol=1e-5)
    fewer = replace(stream, data=stream.data[1:], template=stream.template.pick(list(LAYOUT.ch_names[1:])))
    out, _ = _window(fitted, fewer, 800, onset)
    assert out.shape == (63, 64) and np.corrcoef(out[1:].ravel(), expected[1:].ravel())[0, 1] > 0.99
    with pytest.raises(EpochsMismatch):
        StreamingPreprocessor(fitted, stream.template.pick(list(LAYOUT.ch_names[:20])))


def test_a_slow_response_comes_out_as_in_training(fitted, stream):
    """Far inside the pass band causal and zero-phase filters agree, so everything after them must."""
    rng = np.random.default_rng(1)
    times = np.arange(4000) / 1000.0
    waves = 1e-5 * rng.standard_normal((63, 1)) * np.sin(2 * np.pi * 1.5 * times + rng.uniform(0, 6, (63, 1)))
    cut = waves[None, :, 1800:2900].astype(np.float32)
    expected = fitted(replace(stream.template, data=cut, tmin=-0.2, stimulus=(), n_averaged=())).data[0]
    found, _ = _window(fitted, stream, 50, 2000, waves)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("lag", [-30, 0, 7, 30])
def test_the_measured_lag_is_the_true_one(lag):
    times = np.arange(-200, 800) / 1000.0
    latencies = np.linspace(0.1, 0.5, 5)[:, None]

    def response(shift):
        late = times - latencies - shift / 1000.0
        return np.exp(-0.5 * (late / 0.03) ** 2) * np.cos(2 * np.pi * 8 * late)

    found = compare_responses(response(0)[:, ::10], response(lag)[:, ::10], 100.0)
    assert abs(found.lag_ms - lag) < 0.5
    assert (found.correlation > 0.999) == (lag == 0)


def test_the_measured_difference_is_the_true_one():
    reference = np.random.default_rng(0).standard_normal((4, 200))
    found = compare_responses(reference, 1.1 * reference, 100.0)
    assert abs(found.correlation - 1) < 1e-9 and abs(found.relative_rms - 0.1) < 1e-9 and abs(found.lag_ms) < 0.01
    with pytest.raises(ValueError, match="same channels and window"):
        compare_responses(reference, reference[:, 1:], 100.0)


@pytest.mark.parametrize("l_freq", [None, 0.1])
def test_mismatch_of_the_default_preprocessing(fitted, stream, l_freq):
    """With the wait the evoked response is nearly that of training; without it, it is the filter's delay late."""
    arguments = (fitted, stream.data, stream.template, stream.onsets)
    waited = filter_mismatch(*arguments, l_freq=l_freq)
    assert waited.correlation > 0.98 and waited.relative_rms < 0.2 and abs(waited.lag_ms) < 1.0, waited
    at_once = filter_mismatch(*arguments, l_freq=l_freq, delay=0.0)
    assert abs(at_once.lag_ms - 11.0) < 1.0 and at_once.correlation < waited.correlation, at_once
    too_long = filter_mismatch(*arguments, l_freq=l_freq, delay=0.031)
    assert abs(too_long.lag_ms + 20.0) < 1.0, too_long


def test_what_cannot_run_on_line_is_refused(fitted, stream):
    with pytest.raises(ValueError, match="statistics"):
        StreamingPreprocessor(Preprocessor(fitted.config, LAYOUT), stream.template)
    with pytest.raises(ValueError, match="multiple"):
        StreamingPreprocessor(fitted, replace(stream.template, sfreq=250.0))
    late = default_preprocess("eeg", baseline=(-0.1, 0.2))
    with pytest.raises(ValueError, match="baseline"):
        StreamingPreprocessor(Preprocessor(late, LAYOUT).fit(stream.template), stream.template)
    with pytest.raises(ValueError, match="record faster"):
        CausalBandPass(85.0, None, 40.0, 100.0)


def test_wrong_samples_are_refused(fitted, stream):
    running = StreamingPreprocessor(fitted, stream.template)
    with pytest.raises(ValueError, match="before"):
        running.mark_onset()
    with pytest.raises(ValueError, match="channels of"):
        running.push(np.zeros((62, 5), dtype=np.float32))
    with pytest.raises(ValueError, match="NaN"):
        running.push(np.full((63, 5), np.nan, dtype=np.float32))
    assert running.push(stream.data[:, :200].astype(np.float32)).shape == (63, 0)
    running.mark_onset()
