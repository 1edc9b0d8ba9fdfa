"""A corpus of hostile files and requests against the service over HTTP: no code, no foreign file, no crash, in time."""

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hostile_files
import hostile_headers
import hostile_matlab
import hostile_parts
import hostile_vendors
import httpx
import numpy as np
import pytest
from hostile_files import Canary, Case
from hostile_requests import abuses

from benchmarks.sample_recordings import sample_recordings
from encoders.sensors import THINGS_EEG2_CHANNELS
from serving.cluster import free_port
from serving.landlock import landlock_version

ROOT = Path(__file__).resolve().parents[1]
ANSWER_S, SOON_S = 10.0, 4.0
WORKING_MB, KEPT_MB = 400, 50
LIMIT_MB, FLOOD_BYTES = 16, 300 << 20
CANARY = b"phosphene-canary-" * 20_000
_PATH = re.compile(r"(?<![\w.])/(tmp|etc|root|home|usr|work|proc|dev|var)\b|Traceback|File \"|\.py\b|phosphene-read")
_SERVE = """
import sys
from pathlib import Path
import uvicorn
from fake_service import FakeBackend
from serving.routes import create_app
from serving.sandbox import Sandbox
from serving.settings import ServingSettings
settings = ServingSettings(bundle=Path("unused"), max_in_flight=16, max_upload_mb=float(sys.argv[2]))
sandbox = Sandbox(settings.parse, max_epochs=settings.max_epochs)
uvicorn.run(create_app(settings, FakeBackend(), sandbox), host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""

needs_landlock = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")


@dataclass
class Service:
    """A service in its own process, what it printed, and what it must not touch."""

    url: str
    process: "subprocess.Popen[bytes]"
    canary: Canary
    peak_mb: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)

    def tree(self) -> list[int]:
        """List the process and its descendants."""
        found, left = [], [self.process.pid]
        while left:
            pid = left.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    left += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        return found

    def memory_mb(self) -> float:
        """Return what the tree holds for itself alone, in megabytes."""
        kilobytes = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                rolled = Path(f"/proc/{pid}/smaps_rollup").read_text()
                kilobytes += sum(map(int, re.findall(r"Private_(?:Clean|Dirty): +(\d+)", rolled)))
        return kilobytes / 1024

    def parser(self) -> int:
        """Return the process id of the parse server."""
        for pid in self.tree():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_text()
                parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
                if "serving.parse_server" in command and parent == self.process.pid:
                    return pid
        return 0

    def watch(self) -> None:
        """Keep the highest memory seen until stopped."""
        while not self.stopped.wait(0.1):
            self.peak_mb = max(self.peak_mb, self.memory_mb())


@pytest.fixture(scope="module")
def samples() -> dict[str, bytes]:
    return sample_recordings()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "canary").mkdir()
    (folder / "work").mkdir()
    canary = Canary(folder / "canary" / "secret", folder / "canary" / "mark")
    canary.secret.write_bytes(CANARY)
    port = free_port()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TMPDIR": str(folder / "work")}
    command = [sys.executable, "-c", _SERVE, str(port), str(LIMIT_MB)]
    process = subprocess.Popen(command, env=environment, cwd=folder / "work")
    service = Service(f"http://127.0.0.1:{port}", process, canary)
    try:
        deadline = time.monotonic() + 90.0
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{service.url}/readyz", trust_env=False).is_success:
                    break
            assert time.monotonic() < deadline and process.poll() is None, "the service did not start"
            time.sleep(0.1)
        yield service
    finally:
        service.stopped.set()
        process.terminate()
        process.wait(timeout=20.0)


def corpus(canary: Canary, samples: dict[str, bytes]) -> list[Case]:
    """Collect every hostile file."""
    return [
        *hostile_files.pickles(canary),
        *hostile_files.arrays(canary),
        *hostile_files.archives(canary, samples),
        *hostile_files.strangers(canary, samples),
        *hostile_headers.fif(canary, samples),
        *hostile_headers.edf(canary, samples),
        *hostile_headers.brainvision(canary, samples),
        *hostile_matlab.matlab5(canary, samples),
        *hostile_matlab.hdf5(canary, samples),
        *hostile_vendors.xdf(canary),
        *hostile_vendors.binary(canary),
        *hostile_vendors.folders(canary),
        *hostile_parts.parts(canary, samples),
    ]


@pytest.fixture(scope="module")
def cases(service: Service, samples: dict[str, bytes]) -> list[Case]:
    return corpus(service.canary, samples)


def fault_of(service: Service, client: httpx.Client, case: Case, *beside: bytes) -> str:
    """Post a case, and other files with it; return what is wrong with the answer, nothing if it is as it should be."""
    files = [("file", ("../../etc/passwd", content)) for content in (case.content, *beside)]
    started = time.monotonic()
    answer = client.post("/v1/embeddings", files=files, data={"preview": "true"})
    seconds = time.monotonic() - started
    if seconds > (SOON_S if case.hangs else ANSWER_S):
        return f"answered after {seconds:.1f} s"
    if b"phosphene-canary" in answer.content:
        return "the answer holds a foreign file"
    if answer.status_code == 200 and case.may_pass:
        return ""
    if not 400 <= answer.status_code < 500:
        return f"status {answer.status_code}"
    detail = answer.json()["detail"]
    says_too_much = _PATH.search(detail.replace(str(service.canary.secret), "")) or not detail.isprintable()
    if says_too_much or not 25 <= len(detail) <= 1000:
        return f"says {detail[:300]!r}"
    return ""


def untouched(service: Service) -> bool:
    """Return whether the canary is as it was and nothing appeared where payloads would write."""
    written = [path for folder in ("/tmp", "/", str(ROOT)) for path in Path(folder).glob("phosphene-hostile*")]
    same = service.canary.secret.read_bytes() == CANARY
    return same and os.listdir(service.canary.secret.parent) == ["secret"] and not written


def run_corpus(service: Service, cases: list[Case]) -> None:
    parser, before = service.parser(), service.memory_mb()
    service.peak_mb = before
    watch = threading.Thread(target=service.watch, daemon=True)
    watch.start()
    with httpx.Client(base_url=service.url, timeout=60.0, trust_env=False) as client:
        faults = {case.name: fault for case in cases if (fault := fault_of(service, client, case))}
        assert not faults, json.dumps(faults, indent=1)
    service.stopped.set()
    watch.join()
    assert untouched(service)
    assert service.process.poll() is None and service.parser() == parser != 0
    deadline, after = time.monotonic() + 15.0, float("inf")
    while after - before > KEPT_MB and time.monotonic() < deadline:  # what is kept is what time does not give back
        time.sleep(1.0)
        after = min(after, service.memory_mb())
    print(f"{len(cases)} files: memory before {before:.0f} MB, at most {service.peak_mb:.0f} MB, after {after:.0f} MB")
    assert service.peak_mb - before <= WORKING_MB and after - before <= KEPT_MB


def test_one_in_twelve_of_the_corpus_is_refused(service: Service, cases: list[Case]) -> None:
    names = [case.name for case in cases]
    assert len(names) == len(set(names)) >= 400
    run_corpus(service, cases[::12])


def test_files_made_to_take_for_ever_are_refused_soon(service: Service, cases: list[Case]) -> None:
    made = [case for case in cases if case.hangs]
    assert len(made) >= 40
    with httpx.Client(base_url=service.url, timeout=60.0, trust_env=False) as client:
        faults = {case.name: fault for case in made if (fault := fault_of(service, client, case))}
    assert not faults, json.dumps(faults, indent=1)


def test_names_that_shout_are_not_repeated(service: Service, cases: list[Case]) -> None:
    made = [case for case in cases if "channel named" in case.name or "that is a path" in case.name]
    assert len(made) >= 7
    with httpx.Client(base_url=service.url, timeout=60.0, trust_env=False) as client:
        faults = {case.name: fault for case in made if (fault := fault_of(service, client, case))}
    assert not faults, json.dumps(faults, indent=1)


@pytest.mark.parametrize("beside", ["a sound file", "itself"])
def test_pairs_with_a_hostile_file_are_refused_too(
    beside: str, service: Service, cases: list[Case], samples: dict[str, bytes]
) -> None:
    faults = {}
    with httpx.Client(base_url=service.url, timeout=60.0, trust_env=False) as client:
        for case in cases[5::24]:
            other = samples["FIF epochs"] if beside == "a sound file" else case.content
            if fault := fault_of(service, client, case, other):
                faults[case.name] = fault
    assert not faults, json.dumps(faults, indent=1)
    assert untouched(service)


@pytest.mark.faults
@needs_landlock
def test_every_hostile_file_is_refused_in_time(service: Service, cases: list[Case]) -> None:
    service.stopped.clear()
    run_corpus(service, cases)


def raw_answer(service: Service, raw: bytes) -> bytes:
    """Send bytes on a connection and return what comes back until it closes or says nothing for some seconds."""
    host, port = service.url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=20.0) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(raw)
        with contextlib.suppress(OSError):  # the service may have gone already, and that is told by no ConnectionError
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while chunk := connection.recv(1 << 16):
                answer += chunk
    return answer


def test_abused_requests_are_refused_and_the_service_lives(service: Service, samples: dict[str, bytes]) -> None:
    good = hostile_files.saved()
    faults = {}
    for abuse in abuses(good, b"no recording" * 10):
        started = time.monotonic()
        answer = raw_answer(service, abuse.raw)
        seconds = time.monotonic() - started
        answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
        if answer and not (400 <= status < 500 or (status == 200 and abuse.good)):
            faults[abuse.name] = f"status {status}: {answer[:200]!r}"
        elif seconds > ANSWER_S or b"root:" in answer or b"Traceback" in answer:
            faults[abuse.name] = f"{seconds:.1f} s, {answer[:200]!r}"
    assert not faults, json.dumps(faults, indent=1)
    assert service.process.poll() is None and untouched(service)


def flood(service: Service, *, declared: bool) -> tuple[bytes, float, float]:
    """Send up to 300 MB until an answer comes; return it, the MB sent, and the seconds since the limit was passed."""
    host, port = service.url.removeprefix("http://").split(":")
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    length = b"Content-Length: %d" % FLOOD_BYTES if declared else b"Transfer-Encoding: chunked"
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: %s\r\nContent-Type: multipart/form-data; boundary=x\r\n%s\r\n\r\n"
    piece = bytes(1 << 16)
    framed = piece if declared else b"%x\r\n%s\r\n" % (len(piece), piece)
    first = form if declared else b"%x\r\n%s\r\n" % (len(form), form)
    sent, passed = 0, time.monotonic()
    with socket.create_connection((host, int(port)), timeout=20.0) as connection:
        connection.sendall(head % (host.encode(), length) + first)
        while sent < FLOOD_BYTES and not select.select([connection], [], [], 0.0)[0]:
            if not declared and sent <= LIMIT_MB << 20:
                passed = time.monotonic()
            try:
                connection.sendall(framed)
            except ConnectionError:
                break
            sent += len(piece)
        select.select([connection], [], [], 20.0)
        seconds = time.monotonic() - passed
        with contextlib.suppress(ConnectionError):
            return connection.recv(1 << 16), sent / 2**20, seconds
    return b"", sent / 2**20, seconds


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused_early_and_held_nowhere(service: Service, declared: bool) -> None:
    before = service.memory_mb()
    service.peak_mb, service.stopped = before, threading.Event()
    watch = threading.Thread(target=service.watch, daemon=True)
    watch.start()
    answers = [flood(service, declared=declared) for _ in range(3)]
    service.stopped.set()
    watch.join()
    assert all(answer.startswith(b"HTTP/1.1 413") for answer, _, _ in answers), answers
    assert max(sent for _, sent, _ in answers) <= LIMIT_MB + 64
    assert min(seconds for _, _, seconds in answers) <= 1.0
    assert service.peak_mb - before <= 2 * LIMIT_MB + 64


def test_good_recordings_pass_all_checks_and_channels_go_by_name(service: Service, samples: dict[str, bytes]) -> None:
    order = np.random.default_rng(3).permutation(len(THINGS_EEG2_CHANNELS))
    others = sample_recordings(tuple(THINGS_EEG2_CHANNELS[index] for index in order))

    def embedding(client: httpx.Client, content: bytes) -> np.ndarray:
        answer = client.post("/v1/embeddings", files={"file": content})
        assert answer.status_code == 200, answer.text
        return np.asarray([epoch["embedding"] for epoch in answer.json()["epochs"]])

    with httpx.Client(base_url=service.url, timeout=60.0, trust_env=False) as client:
        from_npz = embedding(client, samples["npz"])
        for name, content in samples.items():
            values = embedding(client, content)
            np.testing.assert_allclose(values, from_npz, atol=3e-7, err_msg=name)
            np.testing.assert_array_equal(embedding(client, others[name]), values, err_msg=name)


@pytest.mark.faults
@needs_landlock
def test_mutants_of_recordings_break_nothing(tmp_path: Path) -> None:
    from benchmarks.fuzz_uploads import FORMATS, fuzz, table

    tallies, deaths = fuzz(2000, seed=0, n_clients=4, out=tmp_path)
    print(table(tallies))
    assert deaths == 0 and set(tallies) == set(FORMATS)
    assert not [fault for tally in tallies.values() for fault in tally.broken]
    # a fuzzer whose mutants are all refused at the door, or all read, tests nothing
    assert all(0 < tally.statuses[200] < tally.statuses.total() for tally in tallies.values())
