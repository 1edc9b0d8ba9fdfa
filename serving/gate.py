"""The outermost layer of the service: counts requests, limits how many are inside and how large their bodies are.

It is plain ASGI, so that a request is refused before its body is parsed and an oversized body is never stored.
"""

import logging
import math
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import Metrics
from serving.problems import problem_of, problem_response, refusal

logger = logging.getLogger(__name__)

# Room for the form fields and part headers beside the files.
_FORM_MARGIN = 1 << 16


class Gate:
    """Admit work to `app` within limits.

    Parameters
    ----------
    app : ASGI application
    metrics : Metrics
    max_in_flight : int
        Requests to `/v1/` POST routes that may be inside; one more is answered 429 with Retry-After.
    max_upload_mb : float
        Largest body; a larger one is answered 413.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_in_flight: int, max_upload_mb: float) -> None:
        self._app = app
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._max_upload_mb = max_upload_mb
        self._max_bytes = int(max_upload_mb * 2**20) + _FORM_MARGIN
        self._in_flight = 0
        self._typical_s = 1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.monotonic()

        finished = False

        async def counted_send(message: Message) -> None:
            nonlocal status, finished
            finished = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope["method"] == "POST" and scope["path"].startswith("/v1/"):
                await self._admit(scope, receive, counted_send)
            else:
                await self._app(scope, receive, counted_send)
        except Exception:
            # a failure was logged and answered 500 further in; raising on would cut the client's connection
            if not finished:
                raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            # routes only: a raw path or query could hold what somebody typed
            logger.info("%s %s %d %.0f ms", scope["method"], route, status, 1000.0 * (time.monotonic() - started))

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_declared_size(scope)
            if self._in_flight >= self._max_in_flight:
                await _discard(receive, self._max_bytes)
                raise refusal(
                    "too_many_requests",
                    f"{self._in_flight} requests are being worked on, at most {self._max_in_flight} at a time; "
                    "try again after the seconds in Retry-After",
                    retry_after_s=max(1, math.ceil(self._typical_s)),
                )
        except HTTPException as error:
            problem = problem_of(error)
            self._metrics.count_refusal(problem.code)
            await problem_response(problem, error.headers)(scope, receive, send)
            return
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        started = time.monotonic()
        try:
            await self._app(scope, self._limited(receive), send)
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
            self._typical_s += 0.2 * (time.monotonic() - started - self._typical_s)

    def _check_declared_size(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._max_bytes:
                raise self._too_large()

    def _limited(self, receive: Receive) -> Receive:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> HTTPException:
        return refusal(
            "upload_too_large",
            f"the body is larger than {self._max_upload_mb:g} MB, the most this service takes; "
            "send fewer epochs, fewer channels or a lower sampling rate",
        )


async def _discard(receive: Receive, max_bytes: int) -> None:
    """Read a body to its end so that the client gets to read the answer; give up beyond `max_bytes`."""
    n_bytes = 0
    while n_bytes <= max_bytes:
        message = await receive()
        n_bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
