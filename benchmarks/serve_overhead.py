"""What HTTP, Ray Serve and the parsing process cost on top of the bare pipeline call, and what 32 clients get.

    python benchmarks/serve_overhead.py [--bundle DIR] [--data DIR] [--rounds N]

Service and bare call alternate in one run, both with one thread; one epoch, one picture, so batch 1. Writes its part
of ``BENCHMARKS.md``. About two minutes.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignment.runtime import Runtime  # noqa: E402
from benchmarks.report_file import write_section  # noqa: E402
from encoders.readers import read_epochs  # noqa: E402
from generation.pipeline import ReconstructionPipeline  # noqa: E402
from serving.client import PhospheneClient  # noqa: E402
from serving.cluster import free_port, local_service  # noqa: E402
from serving.settings import ServingSettings  # noqa: E402
from serving.simulated import show_scenes  # noqa: E402

N_CLIENTS = 32
REFUSALS_ALLOWED = {429, 503}


def post(url: str, file: Path) -> int:
    """Send one request and return its status; a refusal must carry Retry-After."""
    with file.open("rb") as stream:
        answer = httpx.post(f"{url}/v1/generations", files={"file": stream}, data={"average": "true"}, timeout=300)
    if answer.status_code in REFUSALS_ALLOWED:
        assert "retry-after" in answer.headers, "a refusal for load lacks Retry-After"
    return answer.status_code


def milliseconds(call: object, *arguments: object, **more: object) -> float:
    started = time.perf_counter()
    call(*arguments, **more)  # type: ignore[operator]
    return 1000 * (time.perf_counter() - started)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def measure(bundle: Path, data: Path, rounds: int, work: Path) -> str:
    """Return the benchmark's Markdown table."""
    work.mkdir(parents=True, exist_ok=True)
    shown = show_scenes(bundle, data, n_scenes=1, n_repetitions=4, subject=0, seed=0)
    file = shown.write(work, "npz")[0]
    pipeline = ReconstructionPipeline(bundle, Runtime(device="cpu", threads=1))
    epochs = read_epochs(file)

    def bare() -> None:
        embedding = pipeline.embed([epochs], average=True)
        pipeline.generate(embedding.image_embeds, seed=0)

    with local_service(ServingSettings(bundle=bundle, port=free_port())) as url:
        with PhospheneClient(url) as client:
            for _ in range(3):
                bare()
                client.generate(file, average=True)
            direct, served = [], []
            for _ in range(rounds):
                direct.append(milliseconds(bare))
                served.append(milliseconds(client.generate, file, average=True))
        with ThreadPoolExecutor(N_CLIENTS) as pool:
            started = time.perf_counter()
            statuses = Counter(pool.map(lambda _: post(url, file), range(2 * N_CLIENTS)))
            seconds = time.perf_counter() - started
    overhead = [one - other for one, other in zip(served, direct, strict=True)]
    wrong = sorted(set(statuses) - {200} - REFUSALS_ALLOWED)
    rows = {"bare pipeline call": direct, "POST /v1/generations": served, "overhead": overhead}
    lines = [
        f"`python benchmarks/serve_overhead.py`, {rounds} rounds, 1 epoch, 1 picture, 1 thread each.",
        "",
        "| | p50, ms | p95, ms |",
        "|---|---|---|",
        *(
            f"| {name} | {statistics.median(values):.0f} | {quantile(values, 0.95):.0f} |"
            for name, values in rows.items()
        ),
        "",
        f"{N_CLIENTS} clients at once, {2 * N_CLIENTS} requests, {seconds:.0f} s: "
        + ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
        + (f"; not allowed: {wrong}" if wrong else "; no other status") + ".",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "generation" / "demo_bundle")
    parser.add_argument("--data", type=Path, default=ROOT / "generation" / "demo_data")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    table = measure(arguments.bundle, arguments.data, arguments.rounds, ROOT / "out" / "benchmark")
    write_section("Service overhead at batch 1", table)


if __name__ == "__main__":
    main()
