"""Mutants of true recordings in six formats, posted to the service over HTTP: what it answers, how fast, what breaks.

    python benchmarks/fuzz_uploads.py [--mutants N] [--seed S] [--clients N]

The service is the real interface with the demo bundle, without Ray. Every mutant must be answered with 200 or a 4xx
within ten seconds, and no process may end but those that read uploads. 2,000 mutants take about two minutes on four
cores. The exit status is 1 if anything broke; the mutants that did are written to out/fuzz, the
figures to out/fuzz.json.
"""

import argparse
import io
import json
import random
import sys
import threading
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import httpx
import uvicorn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.sample_recordings import sample_recordings, zipped  # noqa: E402
from serving.cluster import free_port  # noqa: E402
from serving.local_backend import LocalBackend  # noqa: E402
from serving.routes import create_app  # noqa: E402
from serving.sandbox import Sandbox  # noqa: E402
from serving.settings import ServingSettings  # noqa: E402

FORMATS = ("FIF", "EDF", "BDF", "BrainVision", "EEGLAB", "npz")
MAX_S = 10.0
_WORDS = (
    b"\x00" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"99999999",
    b"-1      ",
    b"nan     ",
    b"../",
)
_HEAD = 4096
_PART = 500


@dataclass
class Tally:
    """What happened to the mutants of one format."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    broken: list[str] = field(default_factory=list)


def mutant(content: bytes, rng: random.Random) -> bytes:
    """Return ``content`` with one to eight changes, most of them near its start, where headers stand."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        if not changed:
            break
        near = min(len(changed), _HEAD) if rng.random() < 0.7 else len(changed)
        at = rng.randrange(near)
        kind = rng.randrange(7)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            word = rng.choice(_WORDS)
            changed[at : at + len(word)] = word
        elif kind == 3:
            del changed[at : at + rng.randint(1, 64)]
        elif kind == 4:
            changed[at:at] = changed[at : at + rng.randint(1, 64)]
        elif kind == 5:
            source = rng.randrange(len(changed))
            n_bytes = rng.randint(1, 256)
            changed[at : at + n_bytes] = changed[source : source + n_bytes]
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def mutants(samples: dict[str, bytes], n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield format and bytes of ``n`` mutants; of a zip mostly one part is changed."""
    parts = {name: _parts(content) for name, content in samples.items() if content.startswith(b"PK")}
    for index in range(n):
        rng = random.Random(f"{seed}-{index}")
        name = FORMATS[index % len(FORMATS)]
        if name in parts and rng.random() < 0.8:
            changed = rng.choice(sorted(parts[name]))
            yield name, zipped(parts[name] | {changed: mutant(parts[name][changed], rng)})
        else:
            yield name, mutant(samples[name], rng)


@contextmanager
def service(settings: ServingSettings) -> Iterator[tuple[str, Sandbox]]:
    """Run the interface in a thread; yield its address and its sandbox."""
    sandbox = Sandbox(settings.parse, max_epochs=settings.max_epochs)
    app = create_app(settings, LocalBackend(settings), sandbox)
    server = uvicorn.Server(uvicorn.Config(app, host=settings.host, port=settings.port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 120.0
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise RuntimeError("the service did not start")
        time.sleep(0.05)
    try:
        yield f"http://{settings.host}:{settings.port}", sandbox
    finally:
        server.should_exit = True
        thread.join(timeout=20.0)


def fuzz(n_mutants: int, seed: int, n_clients: int, out: Path) -> tuple[dict[str, Tally], int]:
    """Post the mutants; return a tally per format and how often the parse server ended."""
    samples = sample_recordings(seconds=3.0)
    tallies: dict[str, Tally] = defaultdict(Tally)
    bundle = ROOT / "generation" / "demo_bundle"
    with service(ServingSettings(bundle=bundle, port=free_port())) as (url, sandbox):
        before = sandbox.reader_pid
        mutated = mutants(samples, n_mutants, seed)
        with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as client, ThreadPoolExecutor(n_clients) as pool:
            # pool.map reads all that it is given before the first answer, so it is given a part at a time.
            while part := list(islice(mutated, _PART)):
                for (name, content), (status, seconds) in zip(
                    part, pool.map(lambda one: _post(client, one[1]), part), strict=True
                ):
                    tally = tallies[name]
                    tally.statuses[status] += 1
                    tally.slowest_s = max(tally.slowest_s, seconds)
                    if status != 200 and not 400 <= status < 500 or seconds > MAX_S:
                        tally.broken.append(f"status {status} after {seconds:.1f} s")
                        print(f"{name}: {tally.broken[-1]}", file=sys.stderr, flush=True)
                        out.mkdir(parents=True, exist_ok=True)
                        (out / f"{name}-{len(tally.broken)}").write_bytes(content)
                done = sum(tally.statuses.total() for tally in tallies.values())
                broken = sum(len(tally.broken) for tally in tallies.values())
                print(f"{done} of {n_mutants}, broken {broken}", file=sys.stderr, flush=True)
        deaths = int(sandbox.reader_pid != before)
    return dict(tallies), deaths


def _parts(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def _post(client: httpx.Client, content: bytes) -> tuple[int, float]:
    started = time.monotonic()
    try:
        status = client.post("/v1/embeddings", files={"file": content}).status_code
    except httpx.TransportError:
        status = 0
    return status, time.monotonic() - started


def table(tallies: dict[str, Tally]) -> str:
    """Return the Markdown table of a run."""
    rows = [
        f"| {name} | {(n := tally.statuses.total())} | {tally.statuses[200]} | {n - tally.statuses[200]} | "
        f"{tally.slowest_s:.1f} | {len(tally.broken)} |"
        for name, tally in sorted(tallies.items())
    ]
    head = "| format | mutants | still read | refused | slowest, s | 5xx, no answer or over 10 s |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    started = time.monotonic()
    tallies, deaths = fuzz(arguments.mutants, arguments.seed, arguments.clients, ROOT / "out" / "fuzz")
    print(table(tallies))
    print(
        f"{arguments.mutants} mutants, seed {arguments.seed}, {time.monotonic() - started:.0f} s; "
        f"the parse server ended {deaths} times"
    )
    told = {
        "mutants": arguments.mutants,
        "seed": arguments.seed,
        "formats": sorted(tallies),
        "broken": sum(len(tally.broken) for tally in tallies.values()),
        "slowest_s": round(max(tally.slowest_s for tally in tallies.values()), 2),
        "deaths": deaths,
    }
    out = ROOT / "out" / "fuzz.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(told, indent=1) + "\n")
    return int(deaths > 0 or told["broken"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
