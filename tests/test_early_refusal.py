"""Refusals that the proxy gives itself: only what the ingress would refuse, and never for long."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.early_refusal import REFUSED_HEADER, EarlyRefusal, middlewares
from serving.gate import Gate
from serving.metrics import Metrics

Headers = list[tuple[bytes, bytes]]


class Service:
    """A gate with one place, seen through the middleware; what is inside waits until it is let go."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.now = 0.0
        self.n_asked = 0
        self.inside = 0
        self.seen: list[dict[bytes, bytes]] = []
        self.leave = asyncio.Event()
        self.gate = Gate(self.work, metrics=self.metrics, max_in_flight=1, max_upload_mb=1.0)
        self.proxy = EarlyRefusal(self.asked, clock=lambda: self.now)

    async def asked(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.n_asked += 1
        self.seen.append(dict(scope["headers"]))
        await self.gate(scope, receive, send)

    async def work(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await receive()
            self.inside += 1
            await self.leave.wait()
            self.inside -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"picture"})

    async def call(
        self, method: str = "POST", path: str = "/v1/generations", headers: Headers | None = None
    ) -> list[Message]:
        answer: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"recording", "more_body": False}

        async def send(message: Message) -> None:
            answer.append(message)

        await self.proxy({"type": "http", "method": method, "path": path, "headers": headers or []}, receive, send)
        return answer

    async def fill(self) -> "asyncio.Task[list[Message]]":
        self.leave.clear()
        first = asyncio.create_task(self.call())
        while not self.inside:
            await asyncio.sleep(0)
        return first


def run(scene: Callable[[Service], Awaitable[None]]) -> None:
    async def whole() -> None:
        service = Service()
        await asyncio.wait_for(scene(service), 10.0)

    asyncio.run(whole())


def status(answer: list[Message]) -> int:
    return int(answer[0]["status"])


def counted(service: Service, name: str) -> float:
    lines = service.metrics.render().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_the_same_refusal_is_given_without_asking_again_and_is_counted() -> None:
    async def scene(service: Service) -> None:
        first = await service.fill()
        asked = await service.call(headers=[(b"x-request-id", b"one")])
        early = [await service.call(headers=[(b"x-request-id", b"two")]) for _ in range(5)]
        assert service.n_asked == 2
        for answer in early:
            mine, theirs = dict(answer[0]["headers"]), dict(asked[0]["headers"])
            assert status(answer) == status(asked) == 429 and answer[1]["body"] == asked[1]["body"]
            assert mine.pop(b"x-request-id") == b"two" and int(mine[b"retry-after"]) >= 1
            assert mine == {name: value for name, value in theirs.items() if name != b"x-request-id"}
        await service.call("GET", "/healthz")  # to which nobody needs a key
        assert counted(service, "phosphene_refusals_total") == 1.0
        service.now = 1.1
        await service.call()
        assert counted(service, "phosphene_refusals_total") == 7.0
        requests = 'phosphene_requests_total{route="%s",status="429"}'
        assert [counted(service, requests % who) for who in ("other", "proxy")] == [2.0, 5.0]
        service.leave.set()
        assert status(await first) == 200

    run(scene)


def test_a_place_that_is_given_back_is_seen_at_once() -> None:
    async def scene(service: Service) -> None:
        first = await service.fill()
        assert status(await service.call()) == status(await service.call()) == 429
        service.leave.set()
        await first
        assert status(await service.call()) == 200

    run(scene)


def test_the_ingress_is_asked_again_after_a_second() -> None:
    async def scene(service: Service) -> None:
        await service.fill()
        await service.call()
        service.now = 0.9
        await service.call()
        assert service.n_asked == 2
        service.now = 1.1
        await service.call()
        assert service.n_asked == 3
        service.leave.set()

    run(scene)


def test_what_takes_no_place_is_answered_in_an_overload() -> None:
    async def scene(service: Service) -> None:
        await service.fill()
        assert status(await service.call()) == 429
        assert status(await service.call("GET", "/healthz")) == status(await service.call("GET")) == 200
        service.leave.set()

    run(scene)


@pytest.mark.parametrize("headers", [[], [(b"retry-after", b"60")]])
def test_no_other_refusal_is_repeated(headers: Headers) -> None:
    """A person's quota is no reason to refuse the next person."""
    n_asked = 0

    async def over_quota(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal n_asked
        n_asked += 1
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": b"over quota"})

    async def scene(service: Service) -> None:
        service.proxy = EarlyRefusal(over_quota)
        await service.call()
        await service.call()
        assert n_asked == 2

    run(scene)


def test_only_the_proxy_tells_how_many_it_refused() -> None:
    async def scene(service: Service) -> None:
        service.leave.set()
        await service.call(headers=[(REFUSED_HEADER.encode(), b"7")])
        assert service.seen == [{}]
        told: list[tuple[str, str, bytes]] = [
            ("POST", "/v1/jobs", nonsense) for nonsense in (b"1e3", b"-1", b"9" * 7, "²".encode(), b"")
        ]
        told += [("GET", "/healthz", b"7"), ("POST", "/healthz", b"7"), ("GET", "/v1/jobs", b"7")]
        for method, path, number in told:
            headers = [(REFUSED_HEADER.encode(), number)]
            scope = {"type": "http", "method": method, "path": path, "headers": headers}
            await service.gate(scope, _nothing, _drop)
        assert counted(service, "phosphene_refusals_total") == 0.0

    run(scene)


def test_nobody_gives_orders_to_the_proxy_or_asks_it_for_its_routes() -> None:
    orders = ["Serve-Multiplexed-Model-Id", "serve_multiplexed_model_id", "X-Session-Id", "x_session_id"]
    orders += ["x-request-timeout-seconds", "X-Request-Disconnect-Disabled", "x_request-timeout_seconds"]
    sent: Headers = [(one.encode(), value) for one in orders for value in (b"1", b"?1", b"\xff")]
    names: Headers = [(b"x-request-id", b"one-2.3"), (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")]
    bad: Headers = [(name, value) for name, _ in names for value in (b"\xff", b"", b"a b", b"a" * 129)]
    others: Headers = [(b"accept", b"\xff"), (b"x-request-idle", b"a b")]
    seen: list[tuple[str, Headers]] = []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["path"], scope["headers"]))

    async def whole() -> None:
        for kind in ("http", "websocket"):
            for path in ("/-/routes", "/-/healthz", "/v1/stream"):
                scope = {"type": kind, "method": "GET", "path": path, "headers": [*sent, *names, *bad, *others]}
                await EarlyRefusal(inside)(scope, _nothing, _drop)

    asyncio.run(whole())
    assert seen == [(path, [*names, *others]) for path in ("/-/routes/", "/-/healthz", "/v1/stream")] * 2


def test_ray_serve_is_given_the_middleware_by_its_name_and_its_server_logs_no_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    servers = [logging.getLogger(name) for name in ("uvicorn.error", "websockets.server", "websockets.protocol")]
    for server, level in zip(servers, (logging.NOTSET, logging.NOTSET, logging.ERROR), strict=True):
        monkeypatch.setattr(server, "level", logging.NOTSET)
        server.setLevel(level)
    assert [one.cls for one in middlewares()] == [EarlyRefusal]
    assert [server.getEffectiveLevel() for server in servers] == [logging.WARNING, logging.WARNING, logging.ERROR]


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _drop(message: Message) -> None:
    return None
