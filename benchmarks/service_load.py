"""How the service answers 1, 8 and 32 clients and ten times too many requests, and what it has survived.

    python benchmarks/service_load.py [--seconds T] [--faults FILE] [--fuzz FILE]

Closed loop: each client asks again once it is answered, after the seconds of Retry-After if it was refused. Open loop:
requests come at ten times the rate the service has just shown, whether it answers or not (goal J4). Capacity is
measured before and after each of these, since the speed of a machine drifts. The very first call is timed too (J8). The
bare pipeline call, one after the other in this process with one thread, is what they are compared with. The other lines
repeat what ``make soak-serve`` and ``make fuzz`` wrote into ``out/`` (where there is nothing, what stands there),
and run the corpus of hostile files. About eleven minutes.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignment.runtime import Runtime  # noqa: E402
from benchmarks.report_file import standing_line, write_section  # noqa: E402
from encoders.readers import read_epochs  # noqa: E402
from generation.pipeline import ReconstructionPipeline  # noqa: E402
from serving.cluster import free_port, local_service  # noqa: E402
from serving.settings import ServingSettings  # noqa: E402
from serving.simulated import show_scenes  # noqa: E402

CLIENTS = (1, 8, 32)
OVERLOAD, OVERLOAD_S, N_OVERLOADS = 10, 60.0, 3
SECTION = "Load and faults"
FILLING_S = 5.0
MIN_GOODPUT, MAX_REFUSAL_S, MAX_RECOVERY_S = 0.9, 0.2, 10.0
MAX_FIRST_CALL = 1.5
REFUSALS = (429, 503)


@dataclass
class Tally:
    """Answers of one stretch of load, which lasts ``seconds``: how long each took, s, by status."""

    seconds: float
    started: float = field(default_factory=time.perf_counter)
    took: dict[int, list[float]] = field(default_factory=dict)
    good_at: list[float] = field(default_factory=list)
    without_retry_after: int = 0

    def add(self, status: int, seconds: float, headers: Mapping[str, str] | None = None) -> None:
        self.took.setdefault(status, []).append(seconds)
        if status == 200:
            self.good_at.append(time.perf_counter())
        self.without_retry_after += status in REFUSALS and "Retry-After" not in (headers or {})

    @property
    def good(self) -> list[float]:
        return self.took.get(200, [])

    @property
    def refused(self) -> list[float]:
        return [seconds for status in REFUSALS for seconds in self.took.get(status, [])]

    def rate(self) -> float:
        """Return pictures per second under load: not in the first seconds, nor of what is finished after the last."""
        begins = self.started + FILLING_S
        return sum(begins < at <= self.started + self.seconds for at in self.good_at) / (self.seconds - FILLING_S)

    def wrong(self) -> dict[int, int]:
        """Count what is neither an answer nor an orderly refusal; 0 is a broken connection."""
        return {status: len(took) for status, took in self.took.items() if status not in (200, *REFUSALS)}


class Load:
    """Requests for one picture of one recording, each with a seed of its own."""

    def __init__(self, url: str, content: bytes) -> None:
        self._url = f"{url}/v1/generations"
        self._content = content
        self._seed = 0
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Load":
        timeout = aiohttp.ClientTimeout(total=120.0)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._http is not None
        await self._http.close()

    async def ask(self, tally: Tally) -> float:
        """Send one request; return the seconds that the service asks to wait."""
        assert self._http is not None
        self._seed += 1
        form = aiohttp.FormData({"average": "true", "seed": str(self._seed)})
        form.add_field("file", self._content, filename="recording.npz")
        started = time.perf_counter()
        try:
            async with self._http.post(self._url, data=form) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            tally.add(0, time.perf_counter() - started)
            return 0.1
        tally.add(answer.status, time.perf_counter() - started, answer.headers)
        return float(answer.headers.get("Retry-After", 0.0)) if answer.status in REFUSALS else 0.0

    async def closed(self, n_clients: int, seconds: float) -> Tally:
        """Let ``n_clients`` ask, each again when it was answered."""
        tally = Tally(seconds)
        end = tally.started + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                wait = await self.ask(tally)
                await asyncio.sleep(min(wait, max(0.0, end - time.perf_counter())))

        await asyncio.gather(*(client() for _ in range(n_clients)))
        return tally

    async def open(self, per_s: float, seconds: float) -> Tally:
        """Send ``per_s`` requests a second whatever is answered; wait for the last answer."""
        tally, sent = Tally(seconds), set[asyncio.Task[float]]()
        for number in range(int(per_s * seconds)):
            await asyncio.sleep(max(0.0, tally.started + number / per_s - time.perf_counter()))
            sent.add(asyncio.create_task(self.ask(tally)))
        await asyncio.gather(*sent)
        return tally

    async def recovery(self, usual_s: float) -> float:
        """Return after how many seconds a single request takes no more than twice as long as usual again."""
        started = time.perf_counter()
        while time.perf_counter() - started < 60.0:
            one = Tally(0.0)
            await self.ask(one)
            if one.good and one.good[0] <= 2.0 * usual_s:
                return time.perf_counter() - started
        return float("inf")

    async def measure(self, seconds: float) -> tuple[float, dict[int, Tally], list["Overload"]]:
        """Go through all loads.

        Returns the very first call, s, the closed loops by number of clients, and the overloads.
        """
        async with self:
            first = Tally(0.0)
            await self.ask(first)
            await self.closed(2, 5.0)
            closed = {n: await self.closed(n, seconds) for n in CLIENTS}
            usual_s = statistics.median(closed[1].good)
            busiest = max(closed, key=lambda n: closed[n].rate())
            overloads = []
            before = await self.closed(busiest, seconds)
            for _ in range(N_OVERLOADS):
                load = await self.open(OVERLOAD * before.rate(), OVERLOAD_S)
                recovery_s = await self.recovery(usual_s)
                after = await self.closed(busiest, seconds)
                overloads.append(Overload(load, 0.5 * (before.rate() + after.rate()), recovery_s))
                before = after
            return first.good[0], closed, overloads


@dataclass
class Overload:
    """Ten times too many requests: what came of them, the capacity around that, 1/s, and the recovery after it, s."""

    load: Tally
    capacity: float
    recovery_s: float

    @property
    def goodput(self) -> float:
        """Share of the capacity."""
        return self.load.rate() / self.capacity


def bare_calls(bundle: Path, file: Path, seconds: float) -> Tally:
    """Call the pipeline in this process, one request after the other."""
    pipeline = ReconstructionPipeline(bundle, Runtime(device="cpu", threads=1))
    epochs, tally = read_epochs(file), Tally(seconds)
    while time.perf_counter() - tally.started < seconds:
        one = time.perf_counter()
        pipeline.generate(pipeline.embed([epochs], average=True).image_embeds, seed=len(tally.good))
        tally.add(200, time.perf_counter() - one)
    return tally


def quantiles(values: Sequence[float]) -> str:
    """Give p50, p95 and p99 in milliseconds as three cells."""
    ranked = sorted(values)
    return " | ".join(f"{1000 * ranked[min(int(q * len(ranked)), len(ranked) - 1)]:,.0f}" for q in (0.5, 0.95, 0.99))


def row(name: str, tally: Tally) -> str:
    refused = quantiles(tally.refused).split(" | ")[1] if tally.refused else "-"
    return (
        f"| {name} | {quantiles(tally.good)} | {tally.rate():.2f} | {len(tally.good)} "
        f"| {len(tally.refused)} | {refused} | {sum(tally.wrong().values())} |"
    )


def verdict(met: bool) -> str:
    return "kept" if met else "MISSED"


def overload_line(overloads: Sequence[Overload]) -> str:
    """Say of each part of J4 what was seen and whether it holds."""
    loads = [one.load for one in overloads]
    shares = [one.goodput for one in overloads]
    goodput, recovery_s = statistics.median(shares), max(one.recovery_s for one in overloads)
    refused = sorted(seconds for load in loads for seconds in load.refused)
    refusal_s = refused[int(0.95 * len(refused))] if refused else 0.0
    orderly = not any(load.wrong() or load.without_retry_after for load in loads)
    statuses: Counter[int] = Counter()
    for load in loads:
        statuses.update({status: len(took) for status, took in load.took.items()})
    capacity = statistics.median(one.capacity for one in overloads)
    return (
        f"J4, {len(loads)} times {OVERLOAD_S:.0f} s of {OVERLOAD} times the capacity ({capacity:.2f} pictures/s, "
        "measured before and after each), "
        + ", ".join(f"{count:,} x {status}" for status, count in sorted(statuses.items()))
        + f": goodput {goodput:.0%} of capacity (median of {', '.join(f'{share:.0%}' for share in shares)}; line "
        f"{MIN_GOODPUT:.0%}, {verdict(goodput >= MIN_GOODPUT)}); refusals within {1000 * refusal_s:.0f} ms, p95 (line "
        f"{1000 * MAX_REFUSAL_S:.0f}, {verdict(refusal_s <= MAX_REFUSAL_S)}), all with Retry-After and nothing else "
        f"({verdict(orderly)}); a single request back to at most twice its median after {recovery_s:.1f} s at most "
        f"(line {MAX_RECOVERY_S:.0f}, {verdict(recovery_s <= MAX_RECOVERY_S)})."
    )


def first_call_line(first_s: float, usual_s: float) -> str:
    """Say how long the first call after the start took (J8)."""
    ratio = first_s / usual_s
    return (
        f"J8, the first call once the service was ready: {1000 * first_s:,.0f} ms, {ratio:.2f} times the median of one "
        f"client (line {MAX_FIRST_CALL:g}, {verdict(ratio <= MAX_FIRST_CALL)})."
    )


def faults_line(found: dict[str, Any]) -> str:
    kills = ", ".join(f"{role} {count}" for role, count in found["kills"].items())
    failed = ", ".join(f"{code} {count}" for code, count in found["failed"].items())
    proxy_s, again_s = (max(found[name], default=0.0) for name in ("proxy_back_s", "unfinished_go_on_s"))
    return (
        f"Faults (`make soak-serve`, {found['seconds']:,.0f} s): {found['jobs']:,} accepted jobs, kill -9 of "
        f"{kills}; {found['finished']:,} finished, {found['lost']} lost, {found['wrong_picture']} with another "
        f"picture than their seed's, failed: {failed or 'none'}; proxy back after {proxy_s:.1f} s at most, "
        f"unfinished jobs go on {again_s:.1f} s after a full restart at most; goals missed: "
        f"{', '.join(found['missed']) or 'none'}."
    )


def fuzz_line(found: dict[str, Any]) -> str:
    return (
        f"Fuzz (`make fuzz N={found['mutants']}`): {found['mutants']:,} mutants in {len(found['formats'])} formats, "
        f"{found['broken']} answered 5xx, not at all or after 10 s; slowest {found['slowest_s']:.1f} s; "
        f"the reading process ended {found['deaths']} times."
    )


def survived(file: Path, line: Callable[[dict[str, Any]], str], begins: str) -> str:
    """Repeat what another script wrote; without its file, the line that stands in the table."""
    if file.is_file():
        return line(json.loads(file.read_text()))
    return standing_line(SECTION, f"- {begins} (").removeprefix("- ") or f"{begins}: not run."


def hostile_files() -> str:
    """Run the corpus of hostile files as the test that it is, and repeat what it printed."""
    command = [sys.executable, "-m", "pytest", "-m", "faults", "-k", "every_hostile_file", "-s", "-q"]
    done = subprocess.run(
        [*command, "tests/test_parse_server.py"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    said = re.search(r"\d+ files: memory.*MB", done.stdout)
    if done.returncode or said is None:
        return "FAILED or skipped; run it to see why"
    return f"all refused in time, nothing run, read or written elsewhere; {said.group()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "generation" / "demo_bundle")
    parser.add_argument("--data", type=Path, default=ROOT / "generation" / "demo_data")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each closed loop, and of the bare calls")
    parser.add_argument("--faults", type=Path, default=ROOT / "out" / "soak-serve.json")
    parser.add_argument("--fuzz", type=Path, default=ROOT / "out" / "fuzz.json")
    arguments = parser.parse_args()
    work = ROOT / "out" / "benchmark"
    work.mkdir(parents=True, exist_ok=True)
    shown = show_scenes(arguments.bundle, arguments.data, n_scenes=1, n_repetitions=4, subject=0, seed=0)
    file = shown.write(work, "npz")[0]
    bare = bare_calls(arguments.bundle, file, arguments.seconds)
    settings = ServingSettings(bundle=arguments.bundle, port=free_port())
    with local_service(settings) as url:
        first_s, closed, overloads = asyncio.run(Load(url, file.read_bytes()).measure(arguments.seconds))
    rows = [row("bare pipeline, one after the other", bare)]
    rows += [row(f"{n} client{'s' if n > 1 else ''}", tally) for n, tally in closed.items()]
    lines = [
        f"`python benchmarks/service_load.py`: one epoch, one picture per request, {arguments.seconds:.0f} s each; "
        f"one encoder and one generator replica with one thread each, batches of {settings.max_batch_size}, "
        f"{settings.max_in_flight} requests inside at most; the clients run on the same machine. Pictures/s: those "
        f"that came after the first {FILLING_S:g} s and before the load ended.",
        "",
        "| | p50, ms | p95, ms | p99, ms | pictures/s | answered 200 | refused 429, 503 | refusal p95, ms | else |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
        *(row(f"{OVERLOAD} x overload, {n}", one.load) for n, one in enumerate(overloads, start=1)),
        "",
        overload_line(overloads),
        "",
        first_call_line(first_s, statistics.median(closed[1].good)),
        "",
        f"- {survived(arguments.faults, faults_line, 'Faults')}",
        f"- {survived(arguments.fuzz, fuzz_line, 'Fuzz')}",
        f"- Hostile files (`pytest -m faults -k every_hostile_file`): {hostile_files()}.",
    ]
    write_section(SECTION, "\n".join(lines))


if __name__ == "__main__":
    main()
