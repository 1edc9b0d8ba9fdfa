"""How much faster the wavelet packet layer is than PyWavelets on a whole batch.

    python benchmarks/wavelet_speed.py [--rounds N]

Both transform the same (256, 63, 100) float32 epochs two levels deep on one thread, in turn; PyWavelets transforms the
batch at once over its last two axes. Prints medians and exits with 1 if Haar is not three times as fast or another
wavelet is slower. A few seconds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pywt
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report_file import write_section  # noqa: E402
from encoders.wavelets import WaveletPacket2d  # noqa: E402

SHAPE = (256, 63, 100)
LEVELS = 2
GOALS = {"haar": 3.0, "db2": 1.0, "db4": 1.0, "sym5": 1.0, "coif3": 1.0, "bior4.4": 1.0}


def reference(data: NDArray[np.float32], wavelet: str) -> list[NDArray[np.float32]]:
    """Return all nodes of the last level in PyWavelets' order."""
    nodes = [data]
    for _ in range(LEVELS):
        split = (pywt.dwt2(node, wavelet, mode="periodization", axes=(1, 2)) for node in nodes)
        nodes = [node for a, (h, v, d) in split for node in (a, h, v, d)]
    return nodes


def milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def compare(wavelet: str, rounds: int) -> tuple[float, float]:
    """Return the median time of PyWavelets and of the layer, ms."""
    data = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    batch, packet = torch.from_numpy(data).unsqueeze(1), WaveletPacket2d(wavelet, LEVELS)
    theirs, ours = (lambda: reference(data, wavelet)), (lambda: packet(batch))
    assert np.allclose(np.stack(theirs(), axis=1), ours().numpy(), atol=1e-5)
    with torch.inference_mode():
        times = [(milliseconds(theirs), milliseconds(ours)) for _ in range(rounds)]
    first, second = zip(*times[2:], strict=True)
    return statistics.median(first), statistics.median(second)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows = [
        f"`python benchmarks/wavelet_speed.py`: wavelet packet of {SHAPE} float32, {LEVELS} levels, 1 thread, median "
        f"of {rounds} rounds, both in one run; torch {torch.__version__}, PyWavelets {pywt.__version__}.",
        "",
        "| wavelet | PyWavelets, ms | layer, ms | ratio | goal |",
        "|---|---|---|---|---|",
    ]
    missed = 0
    for wavelet, goal in GOALS.items():
        theirs, ours = compare(wavelet, rounds)
        missed += theirs / ours < goal
        rows.append(f"| {wavelet} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.1f} | {goal:g} |")
    write_section("Wavelet packets", "\n".join(rows))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
