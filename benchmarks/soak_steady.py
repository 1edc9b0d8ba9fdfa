"""Use the service in every way for hours, and see that it loses nothing and grows by nothing: goal J11.

    python benchmarks/soak_steady.py --hours 4 --out out/soak-steady.json
    python benchmarks/soak_steady.py --table out/soak-steady.json   # its section of BENCHMARKS.md; nothing is run

No process is killed, so that what a process gathers shows. Jobs that are polled, followed and cancelled, requests with
and without a stream of steps, connections that are broken off, EEG with MEG in FIF, hostile and unfit files, uploads
that stop half-way, live streams that end and that are dropped, the page. Results expire after ten minutes, before the
first measure counts. Each picture has to be that of its own seed, byte for byte. Exits with 1 if a goal is missed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402

from benchmarks.report_file import write_section  # noqa: E402
from benchmarks.soak_serve import ROLES, Service  # noqa: E402
from encoders.epochs import SignalEpochs  # noqa: E402
from serving.client import PhospheneClient  # noqa: E402
from serving.job_schema import JobStatus  # noqa: E402
from serving.schema import GenerationResponse, Progress  # noqa: E402
from serving.simulated import show_scenes  # noqa: E402
from serving.stream_client import StreamClient  # noqa: E402
from serving.stream_schema import StreamStart  # noqa: E402

N_SEEDS = 8
KEEP_S = 600.0
LASTS_H = 4.0
WARM_UP_S, MAX_MEASURES = 900.0, 240
MAX_DRIFT_MB, MAX_MORE_FILES = 100.0, 10
ALL = "all processes"
COLUMNS = ("rss_mb", "descriptors", "threads")


class _BrokenOff(Exception): ...  # ends a stream of steps from within


@dataclass
class Recordings:
    eeg: bytes
    both: tuple[bytes, bytes]
    unfit: tuple[bytes, ...]
    live: SignalEpochs


def make_recordings(bundle: Path, data: Path, folder: Path) -> Recordings:
    """Write simulated recordings of one scene, and files that no reader takes."""
    shown = show_scenes(bundle, data, n_scenes=1, n_repetitions=4, subject=0, seed=0)
    arrays = dict(zip(shown.recordings, shown.write(folder, "npz"), strict=True))
    fif = [file.read_bytes() for file in shown.write(folder, "fif")]
    eeg, epochs = arrays["eeg"].read_bytes(), shown.recordings["eeg"]
    noise = np.random.default_rng(0).bytes(50_000)
    unfit = (
        noise, eeg[: len(eeg) // 2], fif[0][: len(fif[0]) // 2], fif[0][:2000] + noise, b"", b"PK\x03\x04" + noise,
        epochs.pick(epochs.ch_names[:9]).to_bytes(),
    )  # fmt: skip
    return Recordings(eeg, (fif[0], fif[1]), unfit, epochs)


@dataclass
class Told:
    """What came back, from all threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    pictures: dict[tuple[str, int], str] = field(default_factory=dict)
    wrong_picture: int = 0
    accepted: int = 0
    ended: int = 0
    cancelled: int = 0

    def compare(self, kind: str, seed: int, answer: GenerationResponse) -> None:
        """Count a picture that is another one than this seed gave before."""
        shown = "".join(image for epoch in answer.epochs for image in epoch.images)
        digest = hashlib.sha256(shown.encode()).hexdigest()
        with self.lock:
            self.wrong_picture += self.pictures.setdefault((kind, seed), digest) != digest

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


class Clients:
    """One method per way of using the service; each does it once, the `number`-th time."""

    def __init__(self, url: str, recordings: Recordings, told: Told) -> None:
        self._url, self._recordings, self._told = url, recordings, told

    def ways(self) -> dict[Callable[[PhospheneClient, int], None], float]:
        """Return all ways, and how long a client pauses after each, s."""
        return {
            self.polled_job: 1.0, self.followed_job: 2.0, self.request: 1.0, self.both_modalities: 4.0,
            self.steps: 2.0, self.embedding: 1.0, self.unfit_file: 0.5, self.half_upload: 1.0, self.live: 3.0,
            self.page: 1.0,
        }  # fmt: skip

    def polled_job(self, http: PhospheneClient, number: int) -> None:
        job = http.submit(self._recordings.eeg, average=True, seed=number % N_SEEDS)
        self._told.add(accepted=1)
        self._end(http.wait(job.id, timeout_s=300.0), number)

    def followed_job(self, http: PhospheneClient, number: int) -> None:
        job = http.submit(self._recordings.eeg, average=True, seed=number % N_SEEDS)
        self._told.add(accepted=1)
        last = job
        for event in http.events(job.id):
            if number % 5 == 0:
                http.cancel(job.id)
                self._told.add(cancelled=1)
                return
            last = event if isinstance(event, JobStatus) else last
        self._end(last, number)

    def request(self, http: PhospheneClient, number: int) -> None:
        answer = http.generate(self._recordings.eeg, average=True, seed=number % N_SEEDS)
        self._told.compare("eeg", number % N_SEEDS, answer)

    def both_modalities(self, http: PhospheneClient, number: int) -> None:
        answer = http.generate(*self._recordings.both, average=True, seed=number % N_SEEDS)
        self._told.compare("eeg and meg", number % N_SEEDS, answer)

    def steps(self, http: PhospheneClient, number: int) -> None:
        def on_progress(event: Progress) -> None:
            if number % 4 == 0 and event.stage == "generate" and event.step:
                raise _BrokenOff

        with contextlib.suppress(_BrokenOff):
            answer = http.generate(self._recordings.eeg, average=True, seed=number % N_SEEDS, on_progress=on_progress)
            self._told.compare("eeg", number % N_SEEDS, answer)

    def embedding(self, http: PhospheneClient, number: int) -> None:
        http.embed(self._recordings.eeg)

    def unfit_file(self, http: PhospheneClient, number: int) -> None:
        try:
            http.generate(self._recordings.unfit[number % len(self._recordings.unfit)])
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (400, 413, 415, 422):
                raise
        else:
            raise RuntimeError(f"file {number % len(self._recordings.unfit)} of those that are unfit was answered")

    def half_upload(self, http: PhospheneClient, number: int) -> None:
        host, port = self._url.removeprefix("http://").split(":")
        head = f"POST /v1/generations HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000\r\n"
        kind = "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        part = 'Content-Disposition: form-data; name="file"; filename="a.npz"\r\n\r\n'
        with socket.create_connection((host, int(port)), timeout=10.0) as connection:
            connection.sendall((head + kind + part).encode() + self._recordings.eeg[: 100 * (number % 300)])
            time.sleep(0.2)

    def live(self, http: PhospheneClient, number: int) -> None:
        epochs = self._recordings.live
        start = StreamStart(modality="eeg", ch_names=epochs.ch_names, sfreq=epochs.sfreq, when_busy="wait")
        data = np.concatenate([*epochs.data[:2], *epochs.data[:1]], axis=1)
        with StreamClient(self._url, start) as stream:
            stream.mark(int(0.5 * epochs.sfreq), "one")
            stream.push(data)
            if number % 3 == 0:
                return  # without a word
            answers = list(stream.finish())
        if len(answers) != 1:
            raise RuntimeError(f"{len(answers)} answers to one stimulus of a live stream")

    def page(self, http: PhospheneClient, number: int) -> None:
        with httpx.Client(base_url=self._url, trust_env=False, timeout=30.0) as browser:
            for path in ("/", "/metrics", "/readyz", "/v1/bundles"):
                browser.get(path).raise_for_status()

    def _end(self, status: JobStatus, number: int) -> None:
        if status.status != "finished" or status.result is None:
            code = status.problem.code if status.problem else ""
            raise RuntimeError(f"a job ended as {status.status} {code}")
        self._told.add(ended=1)
        self._told.compare("eeg", number % N_SEEDS, status.result)


def use(
    way: Callable[[PhospheneClient, int], None], pause_s: float, url: str, told: Told, over: threading.Event
) -> None:
    """Do one thing again and again until it is over."""
    number, name = 0, way.__name__
    with PhospheneClient(url, n_retries=8) as http:
        while not over.is_set():
            number += 1
            try:
                way(http, number)
            except Exception as error:  # each is counted, and told
                sentence = f"{name}: {type(error).__name__}: {error}"[:300]
                print(f"  {sentence}", file=sys.stderr, flush=True)
                with told.lock:
                    told.errors[sentence] += 1
            else:
                with told.lock:
                    told.done[name] += 1
            over.wait(pause_s)


Usage = dict[str, dict[str, float]]


def weigh(service: Service) -> tuple[Usage, dict[int, str]]:
    """Return what each kind of process uses, and which processes the deployments are."""
    usage: Usage = {}
    pids = {}
    for process in service.tree():
        try:
            line = " ".join(process.cmdline())
            role = next((name for name, mark in ROLES.items() if mark and mark in line), "")
            if role:
                pids[process.pid] = role
            else:
                role = "reading" if "parse_server" in line else "ray and the rest"
            with process.oneshot():
                found = (process.memory_info().rss / 2**20, process.num_fds(), process.num_threads())
        except psutil.Error:
            continue
        for name in (role, ALL):
            kind = usage.setdefault(name, dict.fromkeys(COLUMNS, 0.0))
            for column, value in zip(COLUMNS, found, strict=True):
                kind[column] += value
    return usage, pids


def files_in(folder: Path) -> int:
    """Count the files of a folder, whatever goes while it looks, which rglob does not bear."""
    return sum(len(names) for _, _, names in os.walk(folder))


@contextlib.contextmanager
def in_use(url: str, recordings: Recordings, told: Told) -> Iterator[None]:
    """Let all clients work."""
    over = threading.Event()
    ways = Clients(url, recordings, told).ways()
    people = [threading.Thread(target=use, args=(way, pause, url, told, over)) for way, pause in ways.items()]
    for person in people:
        person.start()
    try:
        yield
    finally:
        over.set()
        for person in people:
            person.join()


def soak(bundle: Path, data: Path, folder: Path, hours: float, every_s: float) -> dict[str, Any]:
    """Return what was counted and measured."""
    recordings = make_recordings(bundle, data, folder / "recordings")
    told, measures = Told(), []
    service = Service(bundle, folder, {"keep_s": KEEP_S})
    try:
        print(f"  ready after {service.start():.1f} s", file=sys.stderr, flush=True)
        first_pids = weigh(service)[1]
        started = time.monotonic()
        with in_use(service.url, recordings, told):
            while (passed := time.monotonic() - started) < 3600.0 * hours:
                time.sleep(min(every_s, max(0.0, 3600.0 * hours - passed)))
                usage, pids = weigh(service)
                temporary, jobs = files_in(service.temporary), files_in(folder / "jobs")
                measures.append({"s": time.monotonic() - started, "usage": usage, "temporary": temporary, "jobs": jobs})
                line = f"  {measures[-1]['s']:,.0f} s: {usage[ALL]['rss_mb']:,.0f} MB, {usage[ALL]['descriptors']:.0f}"
                line += f" descriptors, {temporary} temporary files, {sum(told.done.values()):,} done"
                print(f"{line}, {sum(told.errors.values())} errors", file=sys.stderr, flush=True)
        time.sleep(15.0)
        left_uploads = len(os.listdir(folder / "jobs" / "uploads"))
    finally:
        service.stop()
    return summary(told, measures) | {
        "replaced": sorted({first_pids[pid] for pid in set(first_pids) - set(pids)}),
        "left_uploads": left_uploads,
        "seconds": round(measures[-1]["s"], 1),
        "measures": measures,
    }


def summary(told: Told, measures: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the first measures after the warm-up with the last ones, each as a median of up to ten."""
    warm_up_s = min(WARM_UP_S, 0.25 * measures[-1]["s"])
    warm = [one for one in measures if one["s"] >= warm_up_s]
    n = min(10, max(1, len(warm) // 3))

    def both(value: Callable[[dict[str, Any]], float]) -> list[float]:
        return [round(statistics.median(map(value, part)), 1) for part in (warm[:n], warm[-n:])]

    def both_of(kind: str, column: str) -> list[float]:
        return both(lambda one: one["usage"].get(kind, {}).get(column, 0.0))

    kinds = sorted({kind for one in warm for kind in one["usage"]})
    usage = {kind: {column: both_of(kind, column) for column in COLUMNS} for kind in kinds}
    return {
        "accepted": told.accepted,
        "finished": told.ended,
        "cancelled": told.cancelled,
        "wrong_picture": told.wrong_picture,
        "done": dict(told.done),
        "errors": dict(told.errors),
        "warm_up_s": round(warm_up_s),
        "usage": usage,
        "temporary_files": both(lambda one: one["temporary"]),
        "job_files": both(lambda one: one["jobs"]),
    }


def missed(figures: dict[str, Any]) -> list[str]:
    """Return the parts of J11 that do not hold."""

    def more(found: list[float]) -> float:
        return found[1] - found[0]

    everything = figures["usage"][ALL]
    goals = {
        f"J11 lasts {LASTS_H:g} h": figures["seconds"] >= 3600.0 * LASTS_H,
        "J11 no job lost": figures["accepted"] == figures["finished"] + figures["cancelled"],
        "J11 no error": not figures["errors"],
        f"J11 memory grows by {MAX_DRIFT_MB:g} MB at most": more(everything["rss_mb"]) <= MAX_DRIFT_MB,
        "J11 descriptors stay": more(everything["descriptors"]) <= MAX_MORE_FILES,
        "J11 temporary files stay": more(figures["temporary_files"]) <= MAX_MORE_FILES,
        "J11 no process was replaced": not figures["replaced"],
        "J10 every picture is that of its own seed, byte for byte": figures["wrong_picture"] == 0,
        "P2 no upload left": figures["left_uploads"] == 0,
    }
    return [goal for goal, met in goals.items() if not met]


def table(figures: dict[str, Any]) -> str:
    """Return the section of ``BENCHMARKS.md``."""

    def from_to(found: list[float]) -> str:
        return f"{found[0]:,.0f} to {found[1]:,.0f}"

    usage = sorted(figures["usage"].items(), key=lambda item: item[0] == ALL)
    done, errors = figures["done"], figures["errors"]
    return "\n".join(
        [
            f"`python benchmarks/soak_steady.py --hours {figures['seconds'] / 3600.0:.1f}`: no process killed, "
            f"{sum(done.values()):,} uses of {len(done)} kinds, {sum(errors.values())} errors; {figures['accepted']:,} "
            f"jobs accepted, {figures['finished']:,} finished, {figures['cancelled']:,} cancelled by their clients; "
            f"{figures['wrong_picture']} pictures other than their seed's; processes replaced: "
            f"{', '.join(figures['replaced']) or 'none'}; uploads left: {figures['left_uploads']}. Medians of ten "
            f"measures: from minute {figures['warm_up_s'] / 60.0:.0f} on, to the last ones. Shared pages count in "
            "every process.",
            "",
            "| | memory, MB | descriptors | threads |",
            "|---|---:|---:|---:|",
            *(f"| {kind} | {' | '.join(from_to(found[column]) for column in COLUMNS)} |" for kind, found in usage),
            "",
            f"Temporary files {from_to(figures['temporary_files'])}, files of jobs {from_to(figures['job_files'])} "
            f"(results are kept {KEEP_S / 60.0:.0f} minutes). Goals missed: {', '.join(figures['missed']) or 'none'}.",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "generation" / "demo_bundle")
    parser.add_argument("--data", type=Path, default=ROOT / "generation" / "demo_data")
    parser.add_argument("--hours", type=float, default=LASTS_H)
    parser.add_argument("--out", type=Path, help="JSON with the figures")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the figures of an earlier run as a table")
    arguments = parser.parse_args()
    if arguments.table is not None:
        write_section("Steady use", table(json.loads(arguments.table.read_text())))
        return 0
    every_s = max(2.0, 3600.0 * arguments.hours / MAX_MEASURES)
    with tempfile.TemporaryDirectory(prefix="ph-soak-", dir="/tmp") as folder:
        figures = soak(arguments.bundle, arguments.data, Path(folder), arguments.hours, every_s)
    figures["missed"] = missed(figures)
    print(json.dumps({name: value for name, value in figures.items() if name != "measures"}, indent=1))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
