"""What one chunk of a running recording costs on one CPU thread, and what causal filters change.

    python benchmarks/streaming_latency.py [--epochs N]

Every epoch is 1 s at 100 Hz in chunks of 20 ms, pushed through `StreamingEncoder`; weights are untrained, which does
not change the time. The filters are compared on a simulated person's evoked response. Writes two parts of
``BENCHMARKS.md`` and ends with status 1 if the default causal encoder, ``brain_module_causal``, takes more than 5 ms at
the 95th percentile: measure on a machine with nothing else to do. About half a minute.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report_file import write_section  # noqa: E402
from encoders.build import PRESETS, SignalShape, build_encoder  # noqa: E402
from encoders.causal_filter import filter_mismatch  # noqa: E402
from encoders.preprocess import Preprocessor, default_preprocess  # noqa: E402
from encoders.sensors import standard_layout  # noqa: E402
from encoders.simulate import DEFAULT_LAYOUTS  # noqa: E402
from encoders.simulated_stream import simulate_stream  # noqa: E402
from encoders.streaming import StreamingEncoder  # noqa: E402

SFREQ, N_TIMES, CHUNK, EMBED_DIM = 100.0, 100, 0.02, 1024
DEFAULT, LIMIT_MS = "brain_module_causal", 5.0
MONTAGES = {"EEG": 63, "MEG": 271}


def causal_presets() -> list[str]:
    """Return the names of the presets that look back only."""
    return [name for name, config in PRESETS.items() if config.model_dump().get("causal")]


def chunk_times(preset: str, n_channels: int, n_epochs: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of every chunk of ``n_epochs`` epochs, and those of CPU time alone."""
    torch.manual_seed(0)
    positions = torch.rand(n_channels, 2)
    places = tuple((float(x), float(y)) for x, y in positions)
    shape = SignalShape(n_channels, N_TIMES, SFREQ, 1, places)
    stream = StreamingEncoder(build_encoder(PRESETS[preset], shape, EMBED_DIM).eval(), positions, 0)
    taken: list[float] = []
    used: list[float] = []
    for epoch in range(n_epochs + 1):
        for chunk in torch.randn(n_channels, N_TIMES).split(round(CHUNK * SFREQ), dim=1):
            started, used_before = time.perf_counter(), time.process_time()
            stream.push(chunk)
            if epoch:  # the first one warms up
                taken.append(1000 * (time.perf_counter() - started))
                used.append(1000 * (time.process_time() - used_before))
        stream.reset()
    return taken, used


def mismatch_rows() -> list[str]:
    """Return one row per modality, high-pass and wait: evoked responses after on-line and training preprocessing."""
    rows = []
    for modality in MONTAGES:
        stream = simulate_stream(modality.lower(), n_onsets=40)
        layout = standard_layout(DEFAULT_LAYOUTS[modality.lower()])
        fitted = Preprocessor(default_preprocess(modality.lower()), layout).fit(stream.template)
        for l_freq in (None, fitted.config.l_freq):
            for delay in (None, 0.0):
                found = filter_mismatch(fitted, stream.data, stream.template, stream.onsets, l_freq=l_freq, delay=delay)
                wait = "the low-pass's delay" if delay is None else "none"
                rows.append(
                    f"| {modality} | {'none' if l_freq is None else f'{l_freq:g} Hz'} | {wait} | "
                    f"{found.correlation:.3f} | {found.relative_rms:.2f} | {found.lag_ms:.1f} |"
                )
    return rows


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, slowest = [], 0.0
    for preset in causal_presets():
        for modality, n_channels in MONTAGES.items():
            taken, used = chunk_times(preset, n_channels, arguments.epochs)
            figures = [statistics.median(taken), quantile(taken, 0.95), max(taken), quantile(used, 0.95)]
            rows.append(f"| {preset} | {modality}, {n_channels} |" + "".join(f" {one:.2f} |" for one in figures))
            if preset == DEFAULT:
                slowest = max(slowest, quantile(taken, 0.95))
    verdict = "kept" if slowest <= LIMIT_MS else "NOT kept"
    body = [
        f"`python benchmarks/streaming_latency.py`: {1000 * CHUNK:.0f} ms of signal per chunk at {SFREQ:.0f} Hz, "
        f"{arguments.epochs} epochs of {N_TIMES / SFREQ:.0f} s, 1 thread, float32, embed_dim {EMBED_DIM}.",
        "",
        "| encoder | channels | p50, ms | p95, ms | longest, ms | CPU time, p95, ms |",
        "|---|---|---:|---:|---:|---:|",
        *rows,
        "",
        f"Limit for `{DEFAULT}`: p95 of {LIMIT_MS:.0f} ms, {verdict} ({slowest:.2f} ms).",
    ]
    write_section("Latency of a streaming chunk", "\n".join(body))
    body = [
        "`python benchmarks/streaming_latency.py`: default preprocessing (40 Hz low-pass, 1 kHz to 100 Hz) of a "
        "simulated person, 40 responses averaged; zero-phase FIR of training against Butterworth filters with state.",
        "",
        "| | high-pass | wait | correlation | relative rms difference | lag, ms |",
        "|---|---|---|---:|---:|---:|",
        *mismatch_rows(),
    ]
    write_section("Causal against zero-phase filtering", "\n".join(body))
    return 0 if slowest <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
