"""What reading an upload in an isolated process costs against reading it in this one, per format.

    python benchmarks/upload_isolation.py [--rounds N]

Both read the same bytes in turn, in one run. The pass line is 60 ms at p95. Prints a table; about a minute.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.sample_recordings import sample_recordings  # noqa: E402
from encoders.epochs import SignalEpochs  # noqa: E402
from encoders.readers import read_epochs  # noqa: E402
from serving.sandbox import Sandbox  # noqa: E402
from serving.schema import CutWindow  # noqa: E402
from serving.settings import ParseLimits  # noqa: E402


async def measure(rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return, per format, the milliseconds of each reading in this process and in the isolated one."""
    sandbox = Sandbox(ParseLimits(), max_epochs=64)
    await sandbox.start()
    window = CutWindow()
    figures = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in sample_recordings().items():
                file = Path(folder) / "upload"
                direct, isolated = [], []
                for number in range(rounds + 3):
                    started = time.perf_counter()
                    file.write_bytes(content)
                    read_epochs(file, **window.model_dump())
                    between = time.perf_counter()
                    answer = await sandbox.read(content, window=window)
                    ended = time.perf_counter()
                    if not isinstance(answer, SignalEpochs):
                        raise RuntimeError(f"{name} was refused: {answer.detail}")
                    if number >= 3:
                        direct.append(1000 * (between - started))
                        isolated.append(1000 * (ended - between))
                    await asyncio.sleep(0.1)  # the next process is made ready meanwhile, as between two requests
                figures[name] = (direct, isolated)
    finally:
        sandbox.close()
    return figures


def p95(values: list[float]) -> float:
    return sorted(values)[min(int(0.95 * len(values)), len(values) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.rounds))
    print("| format | in process p50, ms | p95 | isolated p50, ms | p95 | cost p50, ms | p95 |")
    print("|---|---|---|---|---|---|---|")
    costs = []
    for name, (direct, isolated) in figures.items():
        cost = [one - other for one, other in zip(isolated, direct, strict=True)]
        costs += cost
        cells = [f"{f(values):.1f}" for values in (direct, isolated, cost) for f in (statistics.median, p95)]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"all formats: cost p50 {statistics.median(costs):.1f} ms, p95 {p95(costs):.1f} ms, n {len(costs)}")


if __name__ == "__main__":
    main()
