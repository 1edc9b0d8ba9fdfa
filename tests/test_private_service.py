"""No byte of a signal outlives its job on the whole stack: job folder, temporary files, Ray's folder and its logs."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from canary_search import CanarySearch
from tiny_bundle import make_tiny_bundle, tiny_recording

from encoders.epochs import SignalEpochs
from serving.access_settings import EncryptionSettings
from serving.cluster import free_port, local_service
from serving.landlock import landlock_version
from serving.settings import JobSettings, ServingSettings
from serving.vault import new_master_key

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock"),
]
# sixteen bytes that are four samples of about 12 uV, a name in the answer, and the traces of a preview
SAMPLES, NAME = b"CAn7RYo7fSi7Gnl7", b"canary-stimulus"
WORDS = (SAMPLES, NAME, b'"traces"')
KEEP_S = 12.0


def recording() -> bytes:
    """Make a recording of 1.5 MB, more than a form keeps in memory, that has the canaries in it."""
    noise = tiny_recording("eeg", 60)
    data = noise.data.copy()
    data[:, 5, :40] = np.tile(np.frombuffer(SAMPLES, dtype="<f4"), 10)
    names = tuple(f"{NAME.decode()} {index % 2}" for index in range(60))
    content = SignalEpochs(data, noise.sfreq, noise.tmin, noise.ch_names, noise.ch_types, noise.positions, "", names)
    return content.to_bytes()


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where every process of the service keeps temporary files; its name is short, since sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="pt-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def wait(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_no_byte_of_a_signal_outlives_its_job(tmp_path: Path, temporary: Path, encrypted: bool) -> None:
    import ray

    encryption = EncryptionSettings()
    if encrypted:
        new_master_key(tmp_path / "master.key")
        encryption = EncryptionSettings(master_key_file=str(tmp_path / "master.key"), key_folder=str(tmp_path / "keys"))
    store = tmp_path / "jobs"
    settings = ServingSettings(
        bundle=make_tiny_bundle(tmp_path / "bundle"),
        port=free_port(),
        jobs=JobSettings(folder=str(store), beat_s=0.1, sweep_s=0.5, keep_s=KEEP_S, encryption=encryption),
    )
    with local_service(settings) as url, httpx.Client(base_url=url, timeout=90.0, trust_env=False) as http:
        of_ray = Path(ray._private.worker._global_node.get_session_dir_path())
        kept = CanarySearch(WORDS, [store, temporary])
        elsewhere = CanarySearch(WORDS, [of_ray], (os.getpid(),) if encrypted else ())
        with kept.always(), elsewhere.always():
            fields = {"preview": "true", "average": "true", "num_inference_steps": "20"}
            answer = http.post("/v1/jobs", files={"file": recording()}, data=fields)
            assert answer.status_code == 202, answer.text
            job = answer.headers["location"]
            wait(lambda: http.get(job).json()["status"] in ("finished", "failed"))
            told = http.get(job).json()
            assert told["result"]["epochs"][0]["stimulus"].startswith(NAME.decode()), told
            direct = http.post("/v1/generations", files={"file": recording()}, data=fields | {"preview": "false"})
            assert direct.status_code == 200, direct.text
            wait(lambda: http.get(job).status_code == 404, KEEP_S + 60.0)
            time.sleep(1.0)
        assert kept.n_read > 0 and elsewhere.n_read > 10, "the searches read nothing, so nothing was proven"
        assert elsewhere.hits == set(), "in Ray's folder and logs there never is anything"
        if encrypted:
            assert kept.hits == set(), "with encryption nothing is plain at any time"
        else:
            assert any(hit.startswith(str(store)) for hit in kept.hits), "the search finds what is there"
        after = CanarySearch(WORDS, [store, temporary, of_ray], (os.getpid(),))
        after.look()
        assert after.hits == set() and after.n_read > 10
        (of_ray / "logs" / "planted.log").write_bytes(b"x" + SAMPLES)
        after.look()
        assert after.hits == {str(of_ray / "logs" / "planted.log")}
