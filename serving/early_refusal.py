"""Refusals for want of room, given in the proxy: the ingress is not asked again while its answer cannot have changed.

A request that Ray Serve's proxy hands to the ingress costs both some milliseconds, also if the gate there refuses it at
once. In an overload that takes the processors from the pictures that are being made.
"""

import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.bounded_protocols import bound_servers
from serving.failures import quiet_servers

# Marks the gate's refusal for want of room; no other refusal is repeated.
FULL_HEADER = "x-phosphene-full"
# Tells the gate, with work alone, how many requests were refused here since the last one handed on, for its metrics.
REFUSED_HEADER = "x-phosphene-refused-before"
# Orders to Ray Serve's proxy, which anybody could give: not to cancel the work of who left, to wait for ever, to look
# for a replica with some model. None is for clients, and bytes that are no UTF-8 would end a request in status 500.
_ORDERS = ("serve_multiplexed_model_id", "x_session_id", "x_request_timeout_seconds", "x_request_disconnect_disabled")
# Names that a request may bring along, in the log and in traces; of others the proxy makes its own.
_NAMES = ("x-request-id", "traceparent")
_NAME = re.compile(rb"[\w.:-]{1,128}", re.ASCII)
# What the proxy tells to everybody; as another address it is the door's to refuse.
_OPEN_ROUTES = "/-/routes"
# After so many seconds the ingress is asked again in any case: a replica more, or another proxy's request that ended.
_ASK_AGAIN_S = 1.0


def takes_a_place(scope: Scope) -> bool:
    """Tell whether an HTTP request is work that the gate admits, or only looked up and answered."""
    return bool(scope["method"] == "POST" and scope["path"].startswith("/v1/"))


class EarlyRefusal:
    """Repeat the gate's last refusal until a request that was handed on is answered, for a second at most.

    ASGI middleware for Ray Serve's proxy (one per node). A request that is refused here would have been refused by the
    ingress: since it said that it is full, no place was given back. With several proxies, or several replicas of the
    ingress, another's place may be free for up to that second; Retry-After is never shorter.

    Parameters
    ----------
    app : ASGI application
    clock : callable
        Seconds that never go back.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._refusal: tuple[Message, bytes] | None = None
        self._refused_at = 0.0
        self._not_told = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse it."""
        if scope["type"] in ("http", "websocket"):
            scope["headers"] = [(name, value) for name, value in scope["headers"] if _is_for_us(name, value)]
            if scope["path"] == _OPEN_ROUTES:
                scope["path"] += "/"
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        work = takes_a_place(scope)
        if work and self._refusal and self._clock() - self._refused_at < _ASK_AGAIN_S:
            self._not_told += 1
            await _repeat(*self._refusal, scope, send)
            return
        self._tell(scope, work)
        await self._app(scope, receive, self._watched(send) if work else send)

    def _tell(self, scope: Scope, work: bool) -> None:
        headers = MutableHeaders(scope=scope)
        # nobody else may tell
        del headers[REFUSED_HEADER]
        if work and self._not_told:
            headers[REFUSED_HEADER] = str(self._not_told)
            self._not_told = 0

    def _watched(self, send: Send) -> Send:
        start: Message = {}
        body = bytearray()

        async def watched(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body" and FULL_HEADER in Headers(raw=start.get("headers", ())):
                body.extend(message.get("body", b""))
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self._refusal = (start, bytes(body)) if body else None
                self._refused_at = self._clock()

        return watched


def _is_for_us(name: bytes, value: bytes) -> bool:
    known = name.decode("latin-1").lower()
    return known.replace("-", "_") not in _ORDERS and (known not in _NAMES or bool(_NAME.fullmatch(value)))


def middlewares() -> list[Middleware]:
    """Name this to Ray Serve as ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serving.early_refusal:middlewares``."""
    # of the server in the proxy, which nothing else of ours reaches
    quiet_servers()
    bound_servers()
    return [Middleware(EarlyRefusal)]


async def _repeat(start: Message, body: bytes, scope: Scope, send: Send) -> None:
    headers = MutableHeaders(raw=list(start["headers"]))
    headers["x-request-id"] = Headers(scope=scope).get("x-request-id") or str(uuid.uuid4())
    await send({**start, "headers": headers.raw})
    await send({"type": "http.response.body", "body": body})
