"""The whole service on a real Ray Serve cluster, with a tiny bundle of random weights."""

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from tiny_bundle import make_tiny_bundle, tiny_recording

from benchmarks.soak_steady import ALL, COLUMNS, Told, missed, summary
from serving.access_settings import EncryptionSettings
from serving.client import PhospheneClient, problem_of
from serving.cluster import free_port, local_service, reason
from serving.settings import ReplicaSettings, ServingSettings
from serving.stream_client import StreamClient
from serving.stream_schema import StreamEpoch, StreamOptions, StreamStart

STEPS = 2


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory."""
    with tempfile.TemporaryDirectory(prefix="ph-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = ServingSettings(
        bundle=make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle"),
        port=free_port(),
        max_in_flight=12,
        generator=ReplicaSettings(max_ongoing_requests=6, max_queued_requests=4),
    )
    with local_service(settings) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[PhospheneClient]:
    with PhospheneClient(url) as connected:
        yield connected


def test_a_started_service_is_ready_and_tells_its_bundle(client: PhospheneClient) -> None:
    assert client.ready()
    (bundle,) = client.bundles()
    assert set(bundle.modalities) == {"eeg", "meg"} and len(bundle.preprocessing_hash) == 64


def test_no_process_of_the_service_listens_beyond_this_machine(client: PhospheneClient) -> None:
    assert client.ready()
    listening = {
        (process.name(), *one.laddr)
        for process in psutil.Process().children(recursive=True)
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
    replicas = {entry for entry in listening if "Serve" in entry[0]}
    assert len(replicas) >= 3, listening
    assert not {entry for entry in listening if not ip_address(entry[1].removeprefix("::ffff:")).is_loopback}


def test_a_process_that_used_ray_before_takes_the_new_token() -> None:
    code = (
        "from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode\n"
        "assert get_authentication_mode() == AuthenticationMode.DISABLED\n"
        "from serving.cluster import prepare_environment\n"
        "for _ in range(2):\n"
        "    prepare_environment()\n"
        "    assert get_authentication_mode() == AuthenticationMode.TOKEN\n"
        "    found = AuthenticationTokenLoader.instance().get_raw_token()\n"
        "    assert found == __import__('os').environ['RAY_AUTH_TOKEN'], found\n"
    )
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run([sys.executable, "-c", code], env=outside, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


SPILL = """
import json, sys, time
from pathlib import Path
import numpy as np
from serving.access_settings import EncryptionSettings
from serving.cluster import _OBJECT_STORE_BYTES, _started_ray, prepare_environment

keys = EncryptionSettings.model_validate_json(sys.argv[1])
canary = b"canary of a recording " * 500_000
prepare_environment()
with _started_ray(1, keys):
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    held = [ray.put(np.frombuffer(canary, dtype=np.uint8)) for _ in range(2 * _OBJECT_STORE_BYTES // len(canary))]
    found = []
    deadline = time.monotonic() + 60.0
    while not found and time.monotonic() < deadline:
        for place in (session, *map(Path, sys.argv[2:])):
            for file in place.rglob("*"):
                if file.is_file() and file.stat().st_size and canary[:1000] in file.read_bytes():
                    found.append(str(file))
        time.sleep(0.2)
    assert all(bytes(ray.get(one)[:1000]) == canary[:1000] for one in held)
print(json.dumps({"session": str(session), "found": found}))
"""


@pytest.mark.faults
@pytest.mark.parametrize("encrypted", [False, True])
def test_what_ray_has_no_room_for_goes_to_memory_when_jobs_are_encrypted(
    encrypted: bool, tmp_path: Path, memory: Path
) -> None:
    files = {"master_key_file": str(tmp_path / "key"), "key_folder": str(tmp_path), "memory_folder": str(memory)}
    keys = EncryptionSettings.model_validate(files if encrypted else {})
    command = [sys.executable, "-c", SPILL, keys.model_dump_json(), str(memory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    place = memory if encrypted else Path(told["session"])
    assert told["found"] and all(Path(file).is_relative_to(place) for file in told["found"])
    assert not list(memory.iterdir()), "what was spilled is still there"


def test_what_clients_send_is_no_order_to_the_proxy(url: str) -> None:
    """Ray Serve takes some from headers, and fails with status 500 if they are no UTF-8."""
    with httpx.Client(base_url=url, timeout=30.0, trust_env=False) as http:
        for name in ("serve_multiplexed_model_id", "x-session-id", "x-request-id", "x-request-timeout-seconds",
                     "x-request-disconnect-disabled"):  # fmt: skip
            for value in (b"\xff", b"0.001"):
                answer = http.get("/v1/bundles", headers=[(name.encode(), value)])
                assert answer.status_code == 200, (name, value, answer.text)
        answer = http.get("/-/routes")
        assert answer.status_code == 404 and answer.json()["code"] == "not_found"
        assert http.get("/-/healthz").status_code == 200


def test_same_seed_same_pictures(client: PhospheneClient) -> None:
    content = tiny_recording("eeg", 2).to_bytes()
    first, again, other = (
        client.generate(content, images=2, seed=seed, num_inference_steps=STEPS) for seed in (1, 1, 2)
    )
    assert first.epochs == again.epochs
    assert first.epochs[0].images[0] != other.epochs[0].images[0]
    assert len({image for epoch in first.epochs for image in epoch.images}) == 4
    assert first.epochs[0].neighbours[0].thumbnail


def test_the_order_of_channels_does_not_matter(client: PhospheneClient) -> None:
    epochs = tiny_recording("eeg", 2)
    order = np.random.default_rng(0).permutation(epochs.ch_names).tolist()
    straight, shuffled = (
        client.generate(item.to_bytes(), seed=3, num_inference_steps=STEPS) for item in (epochs, epochs.pick(order))
    )
    assert straight.epochs == shuffled.epochs


def test_two_recordings_are_fused(client: PhospheneClient) -> None:
    both = [tiny_recording(kind, 2).to_bytes() for kind in ("eeg", "meg")]
    answer = client.generate(*both, num_inference_steps=STEPS)
    assert set(answer.report.modalities) == {"eeg", "meg"} and len(answer.epochs) == 2


def test_a_recording_that_does_not_fit_is_refused_with_its_sentence(client: PhospheneClient) -> None:
    few = tiny_recording("eeg", 1)
    with pytest.raises(httpx.HTTPStatusError, match="channels") as caught:
        client.generate(few.pick(few.ch_names[:20]).to_bytes())
    problem = problem_of(caught.value)
    assert problem is not None and problem.code == "epochs_mismatch" and "Traceback" not in problem.detail


def test_steps_are_streamed_through_the_deployments(client: PhospheneClient) -> None:
    steps: list[tuple[int, int]] = []
    client.generate(
        tiny_recording("eeg", 1).to_bytes(),
        num_inference_steps=4,
        on_progress=lambda event: steps.append((event.step, event.n_steps)) if event.stage == "generate" else None,
    )
    assert steps[1:] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_running_recording_is_answered_through_serve(url: str) -> None:
    epochs = tiny_recording("eeg", 3)
    start = StreamStart(
        modality="eeg", ch_names=epochs.ch_names, sfreq=100.0, when_busy="wait",
        options=StreamOptions(num_inference_steps=1),
    )  # fmt: skip
    with StreamClient(url, start) as stream:
        stream.mark(100, "seen")
        stream.push(np.concatenate(list(epochs.data), axis=1))
        (found,) = stream.finish()
    assert isinstance(found, StreamEpoch) and found.answer.epochs[0].images[0] and stream.summary is not None
    with pytest.raises(ValueError, match="bad_message"):
        StreamClient(url, start.model_copy(update={"unit": "fT"}))


def test_many_clients_get_an_answer_or_are_told_to_come_back(url: str) -> None:
    content = tiny_recording("eeg", 1).to_bytes()

    async def one(http: httpx.AsyncClient, seed: int) -> httpx.Response:
        fields = {"seed": str(seed), "num_inference_steps": "4"}
        return await http.post("/v1/generations", data=fields, files={"file": content})

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as http:
            return list(await asyncio.gather(*(one(http, seed) for seed in range(32))))

    responses = asyncio.run(flood())
    counts = Counter(response.status_code for response in responses)
    assert set(counts) <= {200, 429, 503} and counts[200] >= 6, counts
    assert all(int(response.headers["Retry-After"]) >= 1 for response in responses if response.status_code != 200)


def test_while_the_service_is_full_the_proxy_refuses(url: str) -> None:
    content = tiny_recording("eeg", 8).to_bytes()

    def by_the_proxy() -> float:
        lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
        found = [line for line in lines if line.startswith('phosphene_requests_total{route="proxy",status="429"}')]
        return float(found[0].split()[-1]) if found else 0.0

    async def flood() -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as http:

            async def one(steps: int) -> int:
                fields = {"num_inference_steps": str(steps)}
                return (await http.post("/v1/generations", data=fields, files={"file": content})).status_code

            inside = [asyncio.create_task(one(25)) for _ in range(32)]
            await asyncio.wait(inside, return_when=asyncio.FIRST_COMPLETED)
            for _ in range(60):  # one after the other: what comes at once is all asked about
                inside.append(asyncio.create_task(one(25)))
                await asyncio.sleep(0.02)
            assert (await http.get("/healthz")).status_code == 200
            return list(await asyncio.gather(*inside))

    before = by_the_proxy()
    statuses = asyncio.run(flood())
    assert 429 in statuses and 200 in statuses and set(statuses) <= {200, 429, 503}
    assert 10 <= by_the_proxy() - before <= statuses.count(429)


def test_work_ends_when_the_client_leaves(client: PhospheneClient, url: str) -> None:
    content = tiny_recording("eeg", 64).to_bytes()
    fields = {"images": "8", "num_inference_steps": "100"}
    with httpx.Client(base_url=url, trust_env=False) as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/generations", data=fields, files={"file": content}, timeout=httpx.Timeout(60.0, read=3.0))
    started = time.monotonic()
    client.generate(tiny_recording("eeg", 1).to_bytes(), num_inference_steps=1)
    # the abandoned work would have kept the only decoder busy for minutes
    assert time.monotonic() - started < 20.0


def answer_or_reason(client: PhospheneClient, recording: Path | bytes, what: str) -> int:
    """POST a recording; return how many epochs came back, 0 for a refusal that gives its reason."""
    try:
        answer = client.generate(recording, num_inference_steps=1)
    except httpx.HTTPStatusError as error:
        problem = problem_of(error)
        assert problem is not None and 400 <= problem.status < 500 and len(problem.detail) > 20, what
        return 0
    assert answer.epochs and all(epoch.images for epoch in answer.epochs), what
    return len(answer.epochs)


def zipped_sets(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Pack every header with the files that its format names beside it."""
    for header in sorted([*folder.rglob("*.vhdr"), *folder.rglob("eeglab_data.set")]):
        named = re.findall(r"^(?:DataFile|MarkerFile)=(.+?)\s*$", header.read_text("latin-1"), flags=re.MULTILINE)
        names = [name.replace("$b", header.stem) for name in named] or [f"{header.stem}.fdt"]
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for path in (header, *(header.parent / name for name in names)):
                if path.is_file():
                    archive.write(path, path.name)
        yield header.name, packed.getvalue()


def microvolts(data: np.ndarray, ch_names: list[str], sfreq: float, tmin: float, person: str) -> bytes:
    """Put real epochs (n, c, t) in microvolts, NaN and all, into an npz as the README lays it out."""
    packed = io.BytesIO()
    np.savez(packed, data=data * 1e-6, sfreq=sfreq, ch_names=ch_names, tmin=tmin, subject=person)
    return packed.getvalue()


@pytest.mark.slow
def test_mixed_use_for_a_while_loses_nothing(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "soak_steady.py"
    command = [sys.executable, str(script), "--hours", "0.01", "--out", str(tmp_path / "figures.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["missed"] == ["J11 lasts 4 h"], done.stderr[-2000:]
    assert len(figures["done"]) == 10 and figures["accepted"] > 2


@pytest.mark.parametrize(
    ("column", "per_measure", "goal"),
    [("rss_mb", 1.0, "J11 memory"), ("descriptors", 0.1, "J11 descriptors"), ("threads", 0.0, "")],
)
def test_the_long_soak_finds_what_grows(column: str, per_measure: float, goal: str) -> None:
    noise = np.random.default_rng(0).uniform(-5.0, 5.0, 240)
    measures = [
        {
            "s": 60.0 * (n + 1),
            "usage": {ALL: dict.fromkeys(COLUMNS, 1000.0) | {column: 1000.0 + per_measure * n + noise[n]}},
            "temporary": 20,
            "jobs": 90,
        }
        for n in range(240)
    ]
    figures = summary(Told(), measures) | {"replaced": [], "left_uploads": 0, "seconds": measures[-1]["s"]}
    found = missed(figures)
    assert len(found) == bool(goal) and all(one.startswith(goal) for one in found)


@pytest.mark.slow
def test_real_files_come_back_as_pictures_or_with_a_reason(client: PhospheneClient, shared_data: Path) -> None:
    formats = shared_data / "formats"
    answered = {
        path.name: answer_or_reason(client, path, path.name)
        for path in sorted(formats.rglob("*"))
        if path.is_file()
    }
    answered |= {f"{name}.zip": answer_or_reason(client, content, name) for name, content in zipped_sets(formats)}
    print({name: n for name, n in answered.items() if n})
    assert client.ready()


@pytest.mark.slow
def test_every_real_person_is_answered_or_told_why(client: PhospheneClient, shared_data: Path) -> None:
    with np.load(shared_data / "things_eeg1" / "erp_by_category_36subjects.npz", allow_pickle=False) as stored:
        erps, sfreq, tmin = stored["erp_uV"], float(stored["sfreq"]), float(stored["times"][0])
        names = stored["ch_names"].tolist()
    people = [
        answer_or_reason(client, microvolts(erps[i], names, sfreq, tmin, f"person-{i}"), f"THINGS-EEG1 {i}")
        for i in range(len(erps))
    ]
    complete = [bool(np.isfinite(one).all()) for one in erps]
    assert [n > 0 for n in people] == complete and sum(complete) >= 30
    with np.load(shared_data / "uci_object_pictures" / "epochs_10subjects.npz", allow_pickle=False) as stored:
        data, names = stored["data_uV"], stored["ch_names"].tolist()
    assert answer_or_reason(client, microvolts(data[:20], names, 256.0, 0.0, "uci"), "UCI") == 20
    assert client.ready()


def test_real_erps_of_63_channels_come_back_as_pictures(client: PhospheneClient, shared_data: Path) -> None:
    with np.load(shared_data / "things_eeg1" / "erp_by_category_36subjects.npz", allow_pickle=False) as stored:
        erps, sfreq, tmin = stored["erp_uV"], float(stored["sfreq"]), float(stored["times"][0])
        names = stored["ch_names"].tolist()
    answer = client.generate(microvolts(erps[0], names, sfreq, tmin, ""), num_inference_steps=STEPS)
    assert len(answer.epochs) == 5 and answer.report.modalities == ("eeg",)


def test_a_refusal_of_a_replica_is_told_without_the_traceback_around_it() -> None:
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'
    assert reason(f"{trace}ValueError: pictures.safety is 'required'; add weights\n") == (
        "pictures.safety is 'required'; add weights"
    )
    assert reason(f"{trace}generation.bundle.BundleError: a file is missing") == "a file is missing"
    assert reason(f"{trace}RuntimeError: broken") == f"{trace}RuntimeError: broken"
    assert reason("Deployment has no room: 2 CPUs") == "Deployment has no room: 2 CPUs"
