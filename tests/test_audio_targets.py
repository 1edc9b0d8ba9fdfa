import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import signal

from alignment.audio_targets import LogMelConfig, cut_segments, log_mel, mel_filterbank, segment_similarity
from alignment.contrastive_losses import brain_module_loss
from alignment.retrieval import report_similarity


def speech(seconds: float = 2.0, sfreq: float = 16000.0, seed: int = 0) -> np.ndarray:
    """Noise with a slow envelope and a moving spectral peak."""
    generator = np.random.default_rng(seed)
    n = round(seconds * sfreq)
    times = np.arange(n) / sfreq
    envelope = np.interp(times, np.arange(0, seconds + 0.2, 0.1), generator.uniform(0, 1, round(seconds * 10) + 2))
    heights = generator.uniform(100, 3000, int(seconds * 5) + 2)
    pitch = np.cumsum(np.interp(times, 0.2 * np.arange(len(heights)), heights))
    return (envelope * (np.sin(2 * np.pi * pitch / sfreq) + 0.1 * generator.normal(size=n))).astype(np.float32)


def independent_log_mel(audio: np.ndarray, config: LogMelConfig) -> np.ndarray:
    """The same numbers frame by frame, with scipy's window and loops over filters written from the definition."""
    length, hop, n_fft = config.n_window, config.n_hop, config.n_fft
    window = signal.get_window("hann", length, fftbins=True)
    padded = np.concatenate([np.zeros(length // 2), audio.astype(float), np.zeros(length)])
    to_mel = lambda f: 1127.01048 * np.log(1 + f / 700)  # noqa: E731
    points = np.linspace(to_mel(config.f_min), to_mel(config.f_max), config.n_mels + 2)
    bins = to_mel(np.arange(n_fft // 2 + 1) * config.sfreq_audio / n_fft)
    hertz = 700 * np.expm1(points / 1127.01048)
    grid = 700 * np.expm1(bins / 1127.01048)
    columns = []
    for start in range(0, len(audio), hop):
        chunk = np.zeros(n_fft)
        chunk[:length] = padded[start : start + length] * window
        power = np.abs(np.fft.fft(chunk)[: n_fft // 2 + 1]) ** 2
        column = []
        for low, middle, high in zip(hertz, hertz[1:], hertz[2:], strict=False):
            weight = np.interp(grid, [low, middle, high], [0, 1, 0], left=0, right=0)
            column.append(max(float(weight @ power), config.floor))
        columns.append(np.log(column))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(
    "config", [LogMelConfig(), LogMelConfig(sfreq_audio=8000, f_max=3800, n_mels=24, hop=0.02, window=0.032)]
)
def test_log_mel_equals_an_independent_filterbank(config: LogMelConfig) -> None:
    audio = speech(0.5, config.sfreq_audio)
    frames = log_mel(audio, config)
    expected = independent_log_mel(audio, config)
    assert frames.shape == expected.shape == (config.n_mels, round(0.5 / config.hop)) and frames.dtype == np.float32
    assert np.abs(frames - expected).max() < 1e-4


def test_a_tone_is_loudest_in_its_own_filter_and_frames_are_centred() -> None:
    config = LogMelConfig()
    times = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 1000 * times).astype(np.float32)
    filters = mel_filterbank(config)
    assert int(log_mel(tone)[:, 50].argmax()) == int(filters[:, round(1000 / 16000 * config.n_fft)].argmax())
    click = np.zeros(16000, np.float32)
    click[4800] = 1  # 0.3 s
    assert int(log_mel(click).sum(axis=0).argmax()) == 30
    assert np.allclose(log_mel(np.zeros(1600, np.float32)), np.log(1e-10))


def test_scores_are_summed_over_time_as_the_loss_does() -> None:
    generator = np.random.default_rng(0)
    brain, audio = generator.normal(size=(2, 6, 4, 10)).astype(np.float32)
    scores = segment_similarity(brain, audio)
    by_hand = sum(brain[2, :, t] @ audio[3, :, t] for t in range(10)) / np.linalg.norm(audio[3])
    assert scores[2, 3] == pytest.approx(by_hand, abs=1e-4)
    flat = (torch.from_numpy(one.reshape(6, -1)) for one in (brain, audio))
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(scores), torch.arange(6))
    assert torch.allclose(brain_module_loss(*flat), expected, atol=1e-4)


def test_cutting() -> None:
    frames = np.arange(40, dtype=np.float32)[None].repeat(2, axis=0)
    segments = cut_segments(frames, 10.0, [0.0, 1.5], 1.0, lag=0.2)
    assert segments.shape == (2, 2, 10) and segments[0, 0, 0] == 2 and segments[1, 1, -1] == 26
    with pytest.raises(ValueError, match=r"1 of 2 segments of 1\.0 s leave the 4\.00 s"):
        cut_segments(frames, 10.0, [0.0, 3.5], 1.0)


def test_a_brain_that_follows_the_envelope_150_ms_late_is_found_with_the_lag() -> None:
    """Simulated; 100 segments of 3 s of an unheard story, one recording each, chance top-1 0.01."""
    rate, duration, late = 100.0, 3.0, 0.15
    stories = [log_mel(speech(300.0 if i else 600.0, seed=i)) for i in range(2)]
    mean, std = stories[0].mean(axis=1, keepdims=True), stories[0].std()
    stories = [(story - mean) / std for story in stories]
    generator = np.random.default_rng(0)
    field = generator.normal(size=20)
    brains = []
    for story in stories:
        heard = np.roll(story.mean(axis=0), round(late * rate))
        brains.append(field[:, None] * heard + 2.0 * generator.normal(size=(20, story.shape[1])))
    onsets = np.arange(100) * 2.9 + 1.0

    def top_1(lag: float) -> float:
        shift = round(lag * rate)
        n = stories[0].shape[1] - shift
        x, y = brains[0][:, shift : shift + n], stories[0][:, :n]
        weights = np.linalg.solve(x @ x.T + 1e-2 * np.trace(x @ x.T) / 20 * np.eye(20), x @ y.T)
        answers = cut_segments((weights.T @ brains[1]).astype(np.float32), rate, onsets, duration, lag)
        report = report_similarity(segment_similarity(answers, cut_segments(stories[1], rate, onsets, duration)))
        assert report.chance_top_1 == 0.01
        return report.top_1

    compensated, plain = top_1(late), top_1(0.0)
    assert compensated > plain and compensated > 0.5
    assert compensated >= max(top_1(0.0), top_1(0.3))


def test_refusals() -> None:
    with pytest.raises(ValidationError, match="half of"):
        LogMelConfig(f_max=9000)
    with pytest.raises(ValueError, match="hold no frequency"):
        mel_filterbank(LogMelConfig(n_mels=200))
    with pytest.raises(ValueError, match="mono"):
        log_mel(np.zeros((2, 100), np.float32))
    with pytest.raises(ValueError, match="one c and t"):
        segment_similarity(np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 5), np.float32))
