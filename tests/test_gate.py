"""Bodies that are too large, too slow or never end: refused in time, and nobody else waits for them."""

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_service import FakeBackend, fake_service, make_epochs, never_read
from starlette.types import Message, Receive, Scope, Send

from serving import routes
from serving.gate import Gate
from serving.metrics import Metrics
from serving.schema import Problem
from serving.settings import ParseLimits, ServingSettings

N_STALLED = 200
BODY_TIMEOUT_S = 6.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = ServingSettings(
        bundle=Path("unused"), max_in_flight=4, max_upload_mb=2.0, parse=ParseLimits(n_processes=2)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "Gate", functools.partial(Gate, body_timeout_s=BODY_TIMEOUT_S))
        with fake_service(settings, FakeBackend()) as url:
            yield url


def stalled_upload(url: str) -> socket.socket:
    """Begin an upload of a megabyte and send a hundred bytes of it."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30.0)
    head = (
        "POST /v1/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        "Content-Length: 1000000\r\n\r\n--b\r\n"
        'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    connection.sendall(head.encode() + b"x" * 100)
    return connection


def test_stalled_uploads_keep_nobody_out_and_are_cut(url: str) -> None:
    content = make_epochs(1).to_bytes()
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(contextlib.closing(stalled_upload(url))) for _ in range(N_STALLED)]
        time.sleep(0.5)
        seconds = []
        for _ in range(3):
            started = time.monotonic()
            answer = httpx.post(f"{url}/v1/generations", files={"file": content}, timeout=30.0, trust_env=False)
            seconds.append(time.monotonic() - started)
            assert answer.status_code == 200, answer.text
        assert min(seconds) <= 2.0, seconds
        answers = [connection.recv(4096) for connection in stalled]
        assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)
    assert httpx.post(f"{url}/v1/generations", files={"file": content}, timeout=30.0, trust_env=False).is_success


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused_before_it_is_all_sent(url: str, declared: bool) -> None:
    host, port = url.removeprefix("http://").split(":")
    total, sent, answer = 60 << 20, 0, b""
    size = f"Content-Length: {total}" if declared else "Transfer-Encoding: chunked"
    head = (
        "POST /v1/generations HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\n{size}\r\n\r\n"
    )
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    started = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=10.0) as connection:
        connection.sendall(head.encode())
        chunk = part + bytes(1 << 16)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < total and not answer:
                connection.sendall(chunk if declared else b"%x\r\n%s\r\n" % (len(chunk), chunk))
                sent += len(chunk)
                chunk = bytes(1 << 16)
                connection.settimeout(0.002)
                with contextlib.suppress(TimeoutError):
                    answer = connection.recv(4096)
                connection.settimeout(10.0)
        with contextlib.suppress(ConnectionResetError):
            answer = answer or connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413"), answer
    assert time.monotonic() - started < 5.0 and sent < 40 << 20
    problem = Problem.model_validate_json(answer[answer.index(b"{") :])
    assert problem.code == "upload_too_large" and "2 MB" in problem.detail


def test_what_is_refused_for_want_of_room_costs_no_fetching_of_its_body() -> None:
    """Ray Serve fetches a body by a call to another process, which would cost more than the whole refusal."""
    answered: list[Message] = []

    async def send(message: Message) -> None:
        answered.append(message)

    async def body() -> Message:
        return {"type": "http.request", "body": b"recording", "more_body": False}

    async def no_body() -> Message:
        raise AssertionError("the body was asked for")

    async def overload() -> None:
        leave, entered = asyncio.Event(), asyncio.Event()

        async def inside(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            entered.set()
            await leave.wait()

        gate = Gate(inside, metrics=Metrics(), max_in_flight=1, max_upload_mb=1.0)
        scope: Scope = {"type": "http", "method": "POST", "path": "/v1/generations", "headers": []}
        first = asyncio.create_task(gate(dict(scope), body, send))
        await entered.wait()
        await gate(dict(scope), no_body, send)
        leave.set()
        await first

    asyncio.run(overload())
    start = next(message for message in answered if message["type"] == "http.response.start")
    assert start["status"] == 429 and b"retry-after" in dict(start["headers"])


def test_who_does_not_read_the_answer_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "Gate", lambda app, **given: Gate(app, **{**given, "answer_timeout_s": 1.0}))
    settings = ServingSettings(bundle=Path("unused"), max_in_flight=1)
    with (
        fake_service(settings, FakeBackend()) as url,
        httpx.Client(base_url=url, timeout=30.0, trust_env=False) as http,
    ):
        files, wanted = {"file": make_epochs(64).to_bytes()}, {"Accept": "text/event-stream"}
        large = http.build_request("POST", "/v1/generations", files=files, data={"images": "8"}, headers=wanted)
        with contextlib.closing(never_read(url, large)):
            deadline = time.monotonic() + 60.0
            while 'route="/v1/generations",status="499"} 1.0' not in http.get("/metrics").text:
                assert time.monotonic() < deadline, "the answer waits for ever"
                time.sleep(0.1)
            assert http.post("/v1/embeddings", files={"file": make_epochs(1).to_bytes()}).status_code == 200


def test_an_answer_may_wait_for_its_reader_for_so_long_in_all() -> None:
    """A reader that takes a little now and then is cut off as well; how long the work takes is not counted."""
    cut: list[int] = []

    async def send(message: Message) -> None:
        await asyncio.sleep(0.1)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(0.5)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for _ in range(scope["n_parts"]):
                await send({"type": "http.response.body", "body": b"part", "more_body": True})
        except asyncio.CancelledError:
            cut.append(scope["n_parts"])
            raise
        await send({"type": "http.response.body", "body": b""})

    gate = Gate(work, metrics=Metrics(), max_in_flight=1, max_upload_mb=1.0, answer_timeout_s=0.45)
    for n_parts in (1, 100):
        scope = {"type": "http", "method": "POST", "path": "/v1/generations", "headers": [], "n_parts": n_parts}
        asyncio.run(asyncio.wait_for(gate(scope, receive, send), 5.0))
    assert cut == [100]
