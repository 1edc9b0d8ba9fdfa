"""The log names kinds and places and quotes nobody: 1,000 calls with a canary wherever a client can put something."""

import asyncio
import itertools
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fake_service import CH_NAMES, INFO, FakeBackend, make_epochs
from numpy.typing import NDArray

from serving.access_settings import AccessSettings
from serving.backend import NOBODY, PictureOrder, Pictures, ServedBundle, Watcher
from serving.failures import log_failure
from serving.job_desk import JobDesk
from serving.job_worker import JobWorker
from serving.routes import create_app
from serving.sandbox import Sandbox
from serving.schema import GenerationFields, GenerationResponse
from serving.settings import JobSettings, ParseLimits, ServingSettings
from serving.user_groups import AccessFile, GroupDescription, create_group, write_access_file

N_CALLS = 1000
WHO = "Canaria"
SAMPLE = np.float32(1.2345678e-5)
# the name however it is written, the samples as bytes, in volt and in microvolt
NEEDLES = (WHO, WHO.lower(), WHO.upper(), "1.23456", "12.3456", repr(SAMPLE.tobytes())[2:-1], SAMPLE.tobytes().hex())


class QuotingBackend(FakeBackend):
    """Fails at two of three, in the words that a library might find for it: those of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = itertools.count()

    async def generate(
        self, bundle: ServedBundle, image_embeds: NDArray[np.float32], order: PictureOrder, watcher: Watcher = NOBODY
    ) -> Pictures:
        if next(self.turn) % 3 < 2:
            try:
                float(f"{WHO}.edf")
            except ValueError as error:
                raise RuntimeError(f"cannot use {image_embeds} of {WHO}, {SAMPLE} V") from error
        return await super().generate(bundle, image_embeds, order, watcher)


async def quoting_answer(
    fields: GenerationFields, contents: Sequence[bytes], on_progress: object, on_preview: object, *, owner: str
) -> GenerationResponse:
    raise KeyError(f"{WHO} {SAMPLE}")


class _Everything(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(pathname)s %(message)s %(args)s"))
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@contextmanager
def everything_logged() -> Iterator[_Everything]:
    """Listen to every logger at DEBUG, also to those that keep to themselves, and to warnings."""
    handler = _Everything()
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    before = [(one, one.level, one.propagate, one.disabled) for one in loggers]
    level = logging.root.level
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    for one in loggers:
        one.setLevel(logging.DEBUG)
        one.propagate, one.disabled = True, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            yield handler
    finally:
        logging.captureWarnings(False)
        logging.root.removeHandler(handler)
        logging.root.setLevel(level)
        for one, old, propagate, disabled in before:
            one.setLevel(old)
            one.propagate, one.disabled = propagate, disabled


def recording(**changes: Any) -> bytes:
    epochs = make_epochs(2)
    data = epochs.data.copy()
    data[:, 3] = SAMPLE
    return replace(epochs, data=data, subject=WHO, **changes).to_bytes()


def calls(keys: dict[str, str]) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Yield (is the upload read, request) for ever: good and bad, the canary wherever there is room for it."""
    good, junk = recording(), SAMPLE.tobytes() * 100 + WHO.encode()
    other = recording(ch_names=tuple(f"{WHO} {name}" for name in CH_NAMES))
    named = (f"{WHO}_1987.edf", f"application/{WHO}")
    key = {"Authorization": f"Bearer {keys['anna']}"}

    def post(path: str, content: bytes = good, more: dict[str, str] | None = None, **fields: str) -> dict[str, Any]:
        files = [("file", (named[0], content, named[1]))]
        return {"method": "POST", "url": path, "files": files, "data": fields, "headers": key | (more or {})}

    stream, later = {"Accept": "text/event-stream"}, {"Prefer": "respond-async"}
    for turn in itertools.count():
        if turn % 8 == 0:
            for content, path in itertools.product((good, junk, other), ("/v1/generations", "/v1/embeddings")):
                yield True, post(path, content, preview="true")
            yield True, post("/v1/generations", good, stream)
        yield False, post("/v1/jobs", good, {"Idempotency-Key": f"{WHO} {turn % 7}"})
        yield False, post("/v1/generations", good, later | {"Idempotency-Key": WHO}, seed=str(turn % 3))
        yield False, post("/v1/generations", good, subject=WHO)
        yield False, post("/v1/generations", good, stream, subject=WHO)
        yield False, post("/v1/embeddings", good, onsets=f"{WHO},1.2345678e-5")
        yield False, post("/v1/embeddings", good, purpose=WHO, images=WHO, seed=WHO, average=WHO)
        yield False, post("/v1/generations", good, **{WHO: WHO})
        yield False, {"method": "POST", "url": "/v1/generations", "data": {"file": WHO}, "headers": key}
        broken = {"Content-Type": f"multipart/form-data; boundary={WHO}"} | key
        yield False, {"method": "POST", "url": "/v1/generations", "content": WHO.encode() * 9, "headers": broken}
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
            yield False, {"method": method, "url": f"/v1/jobs/{WHO}{path}?subject={WHO}", "headers": key}
        yield False, {"method": "PATCH", "url": f"/v1/bundles?{WHO}.fif", "headers": key}
        yield False, {"method": "GET", "url": "/v1/bundles", "headers": {"Authorization": f"Bearer phk_{WHO}"}}
        yield False, {"method": "GET", "url": "/metrics", "headers": key}


def test_kind_and_place_are_told_and_words_are_not(caplog: pytest.LogCaptureFixture) -> None:
    try:
        try:
            float(f"{WHO}")
        except ValueError as error:
            raise RuntimeError(f"cannot use {WHO}") from error
    except RuntimeError as error:
        log_failure(logging.getLogger("serving.planted"), "planted", error)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "planted: RuntimeError" in caplog.text
    assert "after ValueError" in caplog.text and f"{__file__}:" in caplog.text and WHO not in caplog.text


@pytest.mark.faults
def test_a_thousand_calls_leave_no_name_and_no_sample_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    access, keys = create_group(AccessFile(), GroupDescription(group="lab", users=("anna",)))
    group = access.groups["lab"]
    quota = group.quota.model_copy(update={"requests_per_minute": 10**6, "decodes_per_day": 10**6})
    quota = quota.model_copy(update={"group_decodes_per_day": 10**6})
    access = AccessFile(groups={"lab": group.model_copy(update={"quota": quota})})
    write_access_file(tmp_path / "access.yaml", access)
    settings = ServingSettings(
        bundle=Path("unused"),
        jobs=JobSettings(folder=str(tmp_path / "jobs"), max_unfinished=40),
        access=AccessSettings(file=str(tmp_path / "access.yaml"), audit_file=str(tmp_path / "audit.log")),
        parse=ParseLimits(n_processes=2),
    )
    statuses: Counter[int] = Counter()
    n_read = 0

    async def main() -> None:
        nonlocal n_read
        sandbox = Sandbox(settings.parse, max_epochs=settings.max_epochs)
        desk = JobDesk(settings.jobs)
        app = create_app(settings, QuotingBackend(), sandbox, desk=desk)
        worker = JobWorker(settings.jobs, quoting_answer, bundles=lambda: [INFO.id], stack="one")
        await sandbox.start()
        running = asyncio.create_task(worker.run())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60.0) as client:
            for is_read, call in itertools.islice(calls(keys), N_CALLS):
                response = await client.request(**call)
                statuses[response.status_code] += 1
                n_read += is_read
        while (await desk.counts()).get("queued"):
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        sandbox.close()
        desk.close()

    with everything_logged() as log:
        asyncio.run(main())
    assert sum(statuses.values()) == N_CALLS and n_read >= 50
    assert {200, 202, 400, 401, 404, 405, 422, 500} <= set(statuses), statuses
    # the client's own lines hold the addresses that it was given; they are not the service's
    service = [one for one in log.texts if not one.startswith(("httpx ", "httpcore"))]
    printed = capfd.readouterr()
    recorded = (tmp_path / "audit.log").read_text()
    for needle in NEEDLES:
        assert [one for one in service if needle in one] == []
        assert needle not in printed.out + printed.err and needle not in recorded
    text = "\n".join(log.texts)
    for sentence in ("request failed: RuntimeError", "streamed request failed", "a job failed: KeyError", " 422 "):
        assert sentence in text
    assert len(log.texts) > N_CALLS
    assert json.loads(recorded.splitlines()[0])["who"] == "lab/anna"
