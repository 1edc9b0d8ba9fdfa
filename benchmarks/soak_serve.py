"""Load the service and kill its processes, and see that every accepted job ends once: goals J1, J2, J9 and J10.

    python benchmarks/soak_serve.py --jobs 1000 --kills 30 --out out/soak-serve.json     # J1 at full length, 15 min

Clients hand jobs in with keys of their own and repeat what is refused or cut off. A picture of every seed is made
before the first fault, so each result is compared with what its own seed must give. `kill -9` goes to the ingress, the
proxy, the controller, the encoder, the generator, the jobs worker, and to all processes at once. The next kill of a
model or a worker waits until the jobs that the last one cut off have run again: who is cut off twice is quarantined by
design. Exits with 1 if a goal is missed.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
import psutil  # noqa: E402
import yaml  # noqa: E402

from generation.bundle import Bundle  # noqa: E402
from serving.cluster import free_port  # noqa: E402

ROLES = {
    "ingress": "ServeReplica:phosphene:Ingress",
    "generator": "ServeReplica:phosphene:Generator",
    "encoder": "ServeReplica:phosphene:Encoder",
    "jobs": "ServeReplica:phosphene:Jobs",
    "proxy": "ProxyActor",
    "controller": "ServeController",
    "stack": "",
}
BLAMING = ("generator", "encoder", "jobs")
N_SEEDS, N_CLIENTS, STEPS = 8, 4, "4"
N_RECENT = 60


class Service:
    """`phosphene serve` in a process tree of its own."""

    def __init__(self, bundle: Path, folder: Path, jobs: dict[str, Any]) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._settings = folder / "settings.yaml"
        self.temporary = folder / "tmp"  # its own, so that what it leaves there can be counted
        self.temporary.mkdir()
        settings = {"jobs": {"folder": str(folder / "jobs")} | jobs}
        self._settings.write_text(yaml.safe_dump(settings))
        self._log = open(folder / "service.log", "ab")
        self._command = [sys.executable, "-m", "serving.cli", "serve", "--bundle", str(bundle), "--port", str(port)]
        self._command += ["--settings", str(self._settings)]
        self._process: psutil.Popen | None = None

    def start(self) -> float:
        """Start and wait until ready; return how long it took, s."""
        started = time.monotonic()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        self._process = psutil.Popen(
            self._command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log, start_new_session=True
        )
        while not self.ready():
            if self._process.poll() is not None or time.monotonic() - started > 300.0:
                raise RuntimeError(f"the service did not start; see {self._log.name}")
            time.sleep(0.2)
        return time.monotonic() - started

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5.0, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def tree(self) -> list[psutil.Process]:
        assert self._process is not None
        return [self._process, *self._process.children(recursive=True)]

    def find(self, role: str) -> list[psutil.Process]:
        found = []
        for process in self.tree():
            try:
                if ROLES[role] in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, role: str) -> bool:
        """Send SIGKILL to one process of a role, or to all; False if there is none at the moment."""
        victims = self.find(role)
        for process in victims if role == "stack" else victims[:1]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        if role == "stack" and self._process is not None:
            self._process.wait()
            psutil.wait_procs(victims, timeout=10.0)
        return bool(victims)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            left = self.tree()
            self._process.send_signal(signal.SIGTERM)
            psutil.wait_procs([self._process], timeout=60.0)
            for process in left:
                if process.is_running():
                    process.kill()
        self._log.close()


@dataclass
class Ledger:
    """What clients handed in and were told; guarded by a lock, as several threads write."""

    recording: bytes
    url: str
    jobs: dict[str, tuple[str, int]] = field(default_factory=dict)  # id -> (key, seed)
    two_ids: int = 0
    n_ended: int = 0  # so many of the oldest have ended
    refused: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hand_in(self, http: httpx.Client, key: str, seed: int, patience_s: float = 240.0) -> str:
        """Repeat until accepted."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                response = http.post(
                    "/v1/jobs", files={"file": self.recording}, headers={"Idempotency-Key": key},
                    data={"seed": str(seed), "num_inference_steps": STEPS},
                )  # fmt: skip
                if response.status_code == 202:
                    job_id = str(response.json()["id"])
                    with self.lock:
                        earlier = [known for known, (its, _) in self.jobs.items() if its == key]
                        self.two_ids += bool(earlier and earlier != [job_id])
                        self.jobs[job_id] = (key, seed)
                    return job_id
                reason = str(response.status_code)
            except httpx.TransportError as error:
                reason = type(error).__name__
            with self.lock:
                self.refused[reason] = self.refused.get(reason, 0) + 1
            if time.monotonic() > deadline:
                raise RuntimeError(f"job {key} was not accepted within {patience_s:g} s, last answer {reason}")
            time.sleep(0.3)


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=30.0, trust_env=False)


def look(http: httpx.Client, job_id: str, deadline: float) -> tuple[dict[str, Any], bytes]:
    """GET a job until the service answers; {} if it says that there is no such job."""
    while True:
        try:
            response = http.get(f"/v1/jobs/{job_id}")
            if response.status_code == 200:
                return response.json(), response.content
            if response.status_code == 404 and "problem+json" in response.headers["content-type"]:
                return {}, b""
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            return {}, b""
        time.sleep(0.3)


def wait_ended(http: httpx.Client, job_id: str, seconds: float) -> tuple[dict[str, Any], bytes]:
    deadline = time.monotonic() + seconds
    while True:
        status, content = look(http, job_id, deadline)
        if not status or status["status"] in ("finished", "failed") or time.monotonic() > deadline:
            return status, content
        time.sleep(0.1)


def pictures(status: dict[str, Any]) -> str:
    """Digest of all pictures of a result."""
    shown = [image for epoch in status["result"]["epochs"] for image in epoch["images"]]
    return hashlib.sha256("".join(shown).encode()).hexdigest()


def unfinished(http: httpx.Client, ledger: Ledger, n: int) -> dict[str, dict[str, Any]]:
    """Return up to `n` of the oldest jobs that have not ended, the first to be worked on, with their statuses."""
    found: dict[str, dict[str, Any]] = {}
    for job_id in list(ledger.jobs)[ledger.n_ended :]:
        status, _ = look(http, job_id, time.monotonic() + 20.0)
        if status and status["status"] in ("queued", "running"):
            found[job_id] = status
        elif not found:
            ledger.n_ended += 1
        if len(found) == n:
            break
    return found


def suspects(http: httpx.Client, ledger: Ledger) -> bool:
    """Tell whether a job that was cut off has not run again yet."""
    return any(
        status["attempts"] > (status["status"] == "running") for status in unfinished(http, ledger, N_RECENT).values()
    )


def back(http: httpx.Client, seconds: float = 120.0) -> float:
    """Wait until the interface answers again; return how long that took, s."""
    started = time.monotonic()
    n_good = 0
    while time.monotonic() - started < seconds:
        try:
            n_good = n_good + 1 if http.get("/healthz", timeout=2.0).status_code == 200 else 0
        except httpx.TransportError:
            n_good = 0
        if n_good == 2:
            return time.monotonic() - started
        time.sleep(0.1)
    return seconds


@dataclass
class Figures:
    """What is written down at the end."""

    jobs: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    finished: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    two_ids: int = 0
    wrong_picture: int = 0
    changed_after_restart: int = 0
    proxy_back_s: list[float] = field(default_factory=list)
    unfinished_go_on_s: list[float] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    left_uploads: int = 0
    seconds: float = 0.0

    def missed(self) -> list[str]:
        goals = {
            "J1 no job lost": self.lost == 0 and not self.failed and self.finished == self.jobs,
            "J1 one id per key": self.two_ids == 0,
            "J1, J10 every picture is that of its own seed, byte for byte": self.wrong_picture == 0,
            "J2 finished results byte-equal after a restart": self.changed_after_restart == 0,
            "J2 unfinished jobs go on within 30 s": max(self.unfinished_go_on_s, default=0.0) <= 30.0,
            "J9 proxy back within 15 s": max(self.proxy_back_s, default=0.0) <= 15.0,
            "P2 no upload left": self.left_uploads == 0,
        }
        return [goal for goal, met in goals.items() if not met]


def restart(service: Service, http: httpx.Client, ledger: Ledger, figures: Figures) -> None:
    """Kill everything, start again, and compare what was finished with what is read now."""
    finished = {}
    for job_id in random.Random(0).sample(sorted(ledger.jobs), min(10, len(ledger.jobs))):
        status, content = look(http, job_id, time.monotonic() + 10.0)
        if status and status["status"] == "finished":
            finished[job_id] = content
    # the oldest: those handed in last wait for all others, however soon work goes on
    waiting = unfinished(http, ledger, 8)
    service.kill("stack")
    service.start()
    ready = time.monotonic()
    while waiting and not any(
        look(http, job_id, ready + 60.0)[0].get("status") in ("finished", "failed") for job_id in waiting
    ):
        time.sleep(0.1)
    if waiting:
        figures.unfinished_go_on_s.append(round(time.monotonic() - ready, 1))
    for job_id, content in finished.items():
        figures.changed_after_restart += look(http, job_id, time.monotonic() + 30.0)[1] != content


def kill_all_kinds(service: Service, ledger: Ledger, figures: Figures, n_kills: int, until: threading.Event) -> None:
    """Kill processes in a fixed, mixed order while clients hand jobs in."""
    order = ["proxy", "ingress", "generator", "controller", "jobs", "stack", "encoder"]
    with client(service.url) as http:
        for number in range(n_kills):
            role = order[number % len(order)]
            if role in BLAMING:
                deadline = time.monotonic() + 60.0
                while suspects(http, ledger) and time.monotonic() < deadline:
                    time.sleep(0.2)
            if role == "stack":
                restart(service, http, ledger, figures)
            else:
                deadline = time.monotonic() + 60.0
                while not service.kill(role) and time.monotonic() < deadline:
                    time.sleep(0.2)
                away_s = back(http)
                if role == "proxy":
                    figures.proxy_back_s.append(round(away_s, 1))
            figures.kills[role] = figures.kills.get(role, 0) + 1
            print(f"  kill {number + 1}: {role}, {len(ledger.jobs)} jobs accepted", file=sys.stderr, flush=True)
            time.sleep(random.Random(number).uniform(0.5, 2.0))
    until.set()


def hand_in_all(ledger: Ledger, name: str, n_jobs: int, pace: threading.Event) -> None:
    """Hand jobs in, spread over the time of the kills."""
    with client(ledger.url) as http:
        for number in range(n_jobs):
            ledger.hand_in(http, f"{name}-{number}", number % N_SEEDS)
            pace.wait(timeout=0.4)


def settle(ledger: Ledger, expected: dict[int, str], figures: Figures) -> None:
    """Wait for every accepted job and compare it with what its seed gives."""
    with client(ledger.url) as http:
        for job_id, (_, seed) in ledger.jobs.items():
            status, _ = wait_ended(http, job_id, 120.0)
            if status.get("status") == "finished":
                figures.finished += 1
                figures.wrong_picture += pictures(status) != expected[seed]
            elif status.get("status") == "failed":
                code = status["problem"]["code"]
                figures.failed[code] = figures.failed.get(code, 0) + 1
            else:
                figures.lost += 1


def soak(bundle: Path, folder: Path, n_jobs: int, n_kills: int) -> Figures:
    figures = Figures()
    started = time.monotonic()
    example = Bundle.load(bundle).example
    assert example is not None, "the bundle has no example recording"
    service = Service(bundle, folder, {"max_unfinished": 400})
    ledger = Ledger(example.read_bytes(), service.url)
    try:
        print(f"  ready after {service.start():.1f} s", file=sys.stderr, flush=True)
        with client(service.url) as http:
            first = {seed: ledger.hand_in(http, f"reference-{seed}", seed) for seed in range(N_SEEDS)}
            expected = {seed: pictures(wait_ended(http, job_id, 120.0)[0]) for seed, job_id in first.items()}
        done = threading.Event()
        people = [
            threading.Thread(target=hand_in_all, args=(ledger, f"client-{n}", n_jobs // N_CLIENTS, done))
            for n in range(N_CLIENTS)
        ]
        for person in people:
            person.start()
        kill_all_kinds(service, ledger, figures, n_kills, done)
        for person in people:
            person.join()
        settle(ledger, expected, figures)
        time.sleep(12.0)
        figures.left_uploads = len(os.listdir(folder / "jobs" / "uploads"))
    finally:
        service.stop()
    figures.jobs, figures.two_ids, figures.refused = len(ledger.jobs), ledger.two_ids, ledger.refused
    figures.seconds = round(time.monotonic() - started, 1)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "generation" / "demo_bundle")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--out", type=Path, help="JSON with the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ph-soak-", dir="/tmp") as folder:
        figures = soak(arguments.bundle, Path(folder), arguments.jobs, arguments.kills)
    told = asdict(figures) | {"missed": figures.missed()}
    print(json.dumps(told, indent=1))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    return 1 if told["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
