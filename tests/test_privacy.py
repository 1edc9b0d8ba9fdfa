"""Nothing of a recording on a disk with encryption on, no name out of a header anywhere, and deletion that deletes."""

import asyncio
import base64
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import mne
import numpy as np
import pytest
from canary_search import CanarySearch
from fake_service import CH_NAMES, FakeBackend, fake_service
from identified_recordings import TRACES, WHO, annotated_recordings, identified_recordings
from identified_vendors import ONSETS, ctf, identified_vendors
from tiny_bundle import make_tiny_bundle, tiny_recording

from encoders.epochs import SignalEpochs
from generation.bundle import Bundle
from serving import parse_child
from serving.access_settings import AccessSettings, EncryptionSettings
from serving.backend import BundlePlace, EmbeddedEpochs, ServedBundle
from serving.job_blobs import open_blobs
from serving.landlock import landlock_version
from serving.sandbox import Sandbox
from serving.schema import CutWindow
from serving.settings import JobSettings, ParseLimits, ServingSettings
from serving.user_groups import (
    AccessFile,
    GroupDescription,
    add_user,
    create_group,
    read_access_file,
    write_access_file,
)
from serving.vault import KeyDestroyed, new_master_key

ROOT = Path(__file__).resolve().parents[1]
# Sixteen bytes that are four samples of about 12 uV, and a name in the answer.
SAMPLES, NAME = b"CAn7RYo7fSi7Gnl7", b"canary-stimulus"
WORDS = (SAMPLES, NAME, b'"traces"')
pytestmark = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


def recording() -> bytes:
    """Make a recording of 1.5 MB that has the canaries in it."""
    noise = tiny_recording("eeg", 60)
    data = noise.data.copy()
    data[:, 5, :40] = np.tile(np.frombuffer(SAMPLES, dtype="<f4"), 10)
    names = tuple(f"{NAME.decode()} {index % 2}" for index in range(60))
    content = SignalEpochs(data, noise.sfreq, noise.tmin, noise.ch_names, noise.ch_types, noise.positions, "", names)
    made = content.to_bytes()
    assert SAMPLES * 10 in made and len(made) > 1 << 20
    return made


@dataclass
class Place:
    """A service with jobs, a worker process to start, and a search over all that they write."""

    http: httpx.Client
    settings: ServingSettings
    search: CanarySearch
    environment: dict[str, str]

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    @contextmanager
    def worker(self) -> Iterator[None]:
        command = [sys.executable, str(ROOT / "tests" / "private_worker.py"), self.settings.model_dump_json()]
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        self.search.pids = (*self.search.pids, process.pid)
        try:
            yield
        finally:
            process.terminate()
            process.communicate()

    def submit(self, content: bytes, **fields: str) -> httpx.Response:
        """Hand a job in, with a look at the disk while most of the body is there and the end is not."""
        whole = self.http.build_request("POST", "/v1/jobs", files={"file": content}, data=fields)
        body = whole.read()

        def pieces() -> Iterator[bytes]:
            yield body[:-100]
            time.sleep(0.5)
            self.search.look()
            yield body[-100:]

        headers = {"content-type": whole.headers["content-type"]}
        return self.http.post("/v1/jobs", content=pieces(), headers=headers)


@contextmanager
def place(
    folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, encryption: EncryptionSettings
) -> Iterator[Place]:
    (folder / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    access, keys = create_group(AccessFile(), GroupDescription(group="lab", users=("anna", "ben")))
    write_access_file(folder / "access.yaml", access)
    settings = ServingSettings(
        bundle=bundle,
        jobs=JobSettings(folder=str(folder / "jobs"), beat_s=0.1, sweep_s=0.5, encryption=encryption),
        access=AccessSettings(file=str(folder / "access.yaml"), audit_file=str(folder / "audit.log")),
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")}
    search = CanarySearch(WORDS, [folder], (os.getpid(),))
    headers = {"Authorization": f"Bearer {keys['anna']}"}
    with fake_service(settings, FakeBackend(bundle_ids=[Bundle.load(bundle).id]), worker=False) as url:
        with httpx.Client(base_url=url, timeout=60.0, trust_env=False, headers=headers) as http:
            yield Place(http, settings, search, environment)


@pytest.fixture
def encryption(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> EncryptionSettings:
    master = tmp_path_factory.mktemp("master") / "master.key"
    new_master_key(master)
    return EncryptionSettings(master_key_file=str(master), key_folder=str(tmp_path / "keys"))


def test_with_encryption_no_plain_signal_is_ever_on_a_disk(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, encryption: EncryptionSettings
) -> None:
    with place(tmp_path, bundle, monkeypatch, encryption) as here:
        with here.search.always(), here.worker():
            answer = here.submit(recording(), preview="true", num_inference_steps="40", average="true")
            assert answer.status_code == 202, answer.text
            job = answer.headers["location"]
            shown = []
            with here.http.stream("GET", f"{job}/events") as events:
                shown = [line for line in events.iter_lines() if line.startswith("event: ")]
            assert "event: preview" in shown and "event: result" in shown
            here.wait(lambda: here.http.get(job).json()["status"] == "finished")
        result = here.http.get(job).json()["result"]
        assert result["epochs"][0]["stimulus"].startswith(NAME.decode()) and result["preview"][0]["traces"]
        here.search.look()
        assert here.search.n_large > 0, "the spooled upload was never seen, so nothing was proven"
        assert here.search.hits == set()
        (stored,) = (tmp_path / "jobs" / "results").iterdir()
        assert stored.read_bytes().startswith(b"phe1")


def test_who_asks_to_be_forgotten_leaves_neither_files_nor_rows_nor_a_key(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, encryption: EncryptionSettings
) -> None:
    with place(tmp_path, bundle, monkeypatch, encryption) as here:
        waiting = [here.submit(recording()).json()["id"] for _ in range(2)]
        backup = tmp_path / "backup"
        shutil.copytree(tmp_path / "jobs", backup)
        assert len(list((tmp_path / "keys").iterdir())) == 1
        assert here.http.delete("/v1/me").json() == {"n_jobs": 2}
        assert here.http.delete("/v1/me").json() == {"n_jobs": 0}
        assert {here.http.get(f"/v1/jobs/{job}").status_code for job in waiting} == {404}
        assert list((tmp_path / "keys").iterdir()) == []
        assert not [file for file in (tmp_path / "jobs").rglob("*") if file.is_file() and "sqlite" not in file.name]
        ids = [job.encode() for job in waiting]
        gone = CanarySearch([*WORDS, *ids, b"lab/anna"], [tmp_path / "jobs", tmp_path / "tmp"])
        gone.look()
        assert gone.hits == set() and gone.n_read > 0
        blobs = open_blobs(here.settings.jobs.model_copy(update={"folder": str(backup)}))
        with pytest.raises(KeyDestroyed):
            blobs.read("uploads", waiting[0], owner="lab/anna")


def test_only_the_own_things_are_forgotten_and_it_is_on_record(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place(tmp_path, bundle, monkeypatch, EncryptionSettings()) as here:
        mine = here.submit(recording()).headers["location"]
        here.search.look()
        assert here.search.hits, "without encryption the upload lies in the store, so the search finds what is there"
        after, key = add_user(read_access_file(tmp_path / "access.yaml"), "lab", "ben")
        write_access_file(tmp_path / "access.yaml", after)
        other = {"Authorization": f"Bearer {key}"}
        assert here.http.delete("/v1/me", headers=other).json() == {"n_jobs": 0}
        assert here.http.get(mine).status_code == 200
        assert here.http.delete("/v1/me").json() == {"n_jobs": 1}
        assert here.http.get(mine).status_code == 404
        here.search.hits.clear()
        here.search.look()
        assert here.search.hits == set()
        records = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
        forgotten = [(one["who"], one["erased"]) for one in records if one.get("route") == "/v1/me"]
        assert forgotten == [("lab/ben", 0), ("lab/anna", 1)]
        assert here.http.delete("/v1/me", headers={"Authorization": "Bearer phk_no"}).status_code == 401


@pytest.fixture(scope="module")
def identified() -> dict[str, bytes]:
    return identified_recordings(CH_NAMES)


def traces_in(content: bytes) -> list[str]:
    """Find traces of the identity, also in pictures that stand in the content as base64."""
    pictures = [base64.b64decode(one) for one in re.findall(rb'"(iVBOR[A-Za-z0-9+/=]+)"', content)]
    return [one for one in TRACES if any(one.encode() in text for text in (content, *pictures))]


def answers_of(
    files: dict[str, bytes],
    onsets: dict[str, str],
    backend: FakeBackend,
    folder: Path,
    cuts: tuple[bool, ...] = (False, True),
) -> dict[str, httpx.Response]:
    """Send each file, whole and cut short, directly and as a job; nothing identifies anybody in what is said or stored.

    Returns the answers to the whole ones.
    """
    jobs = JobSettings(folder=str(folder / "jobs"), beat_s=0.1, sweep_s=3600.0)
    patient = ParseLimits(wall_s=40.0, cpu_s=40)
    settings = ServingSettings(bundle=Path("unused"), jobs=jobs, parse=patient)
    answers: dict[str, bytes] = {}
    whole: dict[str, httpx.Response] = {}
    with fake_service(settings, backend) as url, httpx.Client(base_url=url, timeout=60.0) as http:
        for name, content in files.items():
            for cut in cuts:
                sent = content[: len(content) * 3 // 5] if cut else content
                fields = {"preview": "true", "average": "true", "onsets": onsets.get(name, "")}
                direct = http.post("/v1/generations", files={"file": sent}, data=fields)
                assert direct.status_code == (422 if cut else 200), (name, direct.text[:500])
                deadline = time.monotonic() + 30.0
                # 503 where the disk is slow at that moment
                while (handed_in := http.post("/v1/jobs", files={"file": sent}, data=fields)).status_code == 503:
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
                job = handed_in.headers["location"]
                while (status := http.get(job)).json()["status"] not in ("finished", "failed"):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                answers[f"{name} {cut}"] = direct.content + status.content + str(direct.headers).encode()
                if not cut:
                    whole[name] = direct
        assert {name: found for name, content in answers.items() if (found := traces_in(content))} == {}
        # an upload goes just after its job has ended (P2: within 60 s); nothing sweeps here
        deadline = time.monotonic() + 60.0
        while list((folder / "jobs" / "uploads").iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        stored = [file for file in (folder / "jobs").rglob("*") if file.is_file()]
        assert len([file for file in stored if file.parent.name == "results"]) == len(cuts) * len(files)
        assert {file.name: found for file in stored if (found := traces_in(file.read_bytes()))} == {}
    return whole


def names_in(answer: httpx.Response) -> set[str]:
    return {one["stimulus"].removeprefix("Trigger/") for one in answer.json()["epochs"]}


def test_identity_in_headers_reaches_neither_the_reader_nor_store_results_pictures_or_logs(
    identified: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for answer in answers_of(identified, {}, FakeBackend(), tmp_path).values():
        assert names_in(answer) == {"dog", "cat"}
    assert traces_in(caplog.text.encode()) == []


class AnyChannels(FakeBackend):
    """A backend that takes the first channels of any system, in a window that the shortest recording has room for."""

    async def describe(self, place: BundlePlace) -> ServedBundle:
        window = CutWindow(tmin=-0.004, tmax=0.004, l_freq=None, h_freq=None)
        served = await super().describe(place)
        return replace(served, info=served.info.model_copy(update={"window": window}))

    async def embed(
        self, bundle: ServedBundle, recordings: Sequence[SignalEpochs], **how: Any
    ) -> EmbeddedEpochs:
        few = recordings[0].pick(recordings[0].ch_names[: len(CH_NAMES)])
        return await super().embed(bundle, [replace(few, ch_names=CH_NAMES)], **how)


def test_identity_in_headers_of_vendors_reaches_nothing_either(
    shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    files = identified_vendors(shared_data / "formats")
    whole = answers_of(files, ONSETS, AnyChannels(), tmp_path)
    n_channels = {sum(len(one["ch_names"]) for one in answer.json()["preview"]) for answer in whole.values()}
    assert n_channels == {279, 157, 248, 252}, "these are the recordings of the four systems"
    assert traces_in(caplog.text.encode()) == []
    (tmp_path / "upload").write_bytes(files["CTF"])
    request = {"window": {"tmin": -0.004, "tmax": 0.004, "l_freq": None, "h_freq": None}, "onsets": [0.1]}
    assert parse_child.read(tmp_path / "upload", request | {"keep_subject": True}, max_epochs=8)[0]["code"] == "ok"
    assert mne.io.read_raw_ctf(unzipped(files["CTF"], tmp_path), verbose="error").info["subject_info"]["his_id"] == WHO


def unzipped(content: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return folder / f"{WHO}.ds"


def test_free_text_of_annotations_is_numbered_and_the_report_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    typed = ("dog", f"{WHO} moved her arm", "scene 2", "born 1987-06-05", f"{WHO} moved her arm")
    files = annotated_recordings(CH_NAMES, typed) | {
        "header knows": annotated_recordings(CH_NAMES, ("dog", WHO), person=WHO)["EDF"]
    }
    found = answers_of(files, {}, FakeBackend(), tmp_path, (False,))
    assert names_in(found.pop("header knows")) == {"dog", "free text 1"}
    for name, answer in found.items():
        told = answer.json()
        assert names_in(answer) == {"dog", "scene 2", "free text 1", "free text 2"}, name
        averaged = {one["stimulus"]: one["n_averaged"] for one in told["epochs"]}
        assert averaged["free text 1"] == 2, "the same text is still one stimulus"
        assert any("free text" in one for one in told["report"]["warnings"])
    assert traces_in(caplog.text.encode()) == []


def test_markers_of_ctf_are_free_text_too(tmp_path: Path, shared_data: Path) -> None:
    marked = ctf(shared_data / "formats" / "hostile" / "ctf_no_data.ds", f"{WHO} moved")
    (answer,) = answers_of({"CTF": marked}, {}, AnyChannels(), tmp_path, (False,)).values()
    assert names_in(answer) == {"free text 1"}


def test_who_somebody_is_says_the_request_alone(identified: dict[str, bytes], tmp_path: Path) -> None:
    """A service's reader gives no name on; the command line, which asks for it, still gets it."""
    names: dict[bool, dict[str, str]] = {}

    async def read(sandbox: Sandbox) -> dict[str, str]:
        await sandbox.start()
        return {name: (await sandbox.read(content)).subject for name, content in identified.items()}

    for keep in (False, True):
        sandbox = Sandbox(ParseLimits(), max_epochs=8, keep_subject=keep)
        try:
            names[keep] = asyncio.run(read(sandbox))
        finally:
            sandbox.close()
    assert set(names[False].values()) == {""}
    assert {name for name, who in names[True].items() if WHO in who} >= {"FIF", "FIF epochs", "EDF", "npz"}
    for name, content in identified.items():
        file = tmp_path / "upload"
        file.write_bytes(content)
        request = {"window": {}, "onsets": None, "keep_subject": False}
        head, parts = parse_child.read(file, request, max_epochs=8)
        assert head["code"] == "ok" and traces_in(json.dumps(head).encode()) == [], name
        assert not any(traces_in(bytes(part)) for part in parts)
