"""The outermost layer of the service: counts requests, limits how many are inside and how large their bodies are.

It is plain ASGI, so that a request is refused before its body is parsed and an oversized body is never stored. A
request takes a place inside once its body is there: clients that send slowly, or stall, keep nobody out, and are cut;
so are those that do not read their answer.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.early_refusal import FULL_HEADER, REFUSED_HEADER, takes_a_place
from serving.metrics import Metrics
from serving.problems import CODES, problem_of, problem_response, refusal

logger = logging.getLogger(__name__)

# Room for the form fields and part headers beside the files.
_FORM_MARGIN = 1 << 16
# Bodies that may be arriving at the same time; what arrives lies in temporary files, not in memory.
MAX_ARRIVING = 512
# Of a number in a header that is added to the metrics.
_MOST_DIGITS = 6
_CLIENT_GONE, _ = CODES["client_gone"]


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
    body_timeout_s : float
        How long a body may take to arrive; a slower one is answered 408.
    answer_timeout_s : float
        How long an answer may wait, in all, for a client that does not read it; then it is cut off.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        max_in_flight: int,
        max_upload_mb: float,
        body_timeout_s: float = 45.0,
        answer_timeout_s: float = 120.0,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._max_upload_mb = max_upload_mb
        self._max_bytes = int(max_upload_mb * 2**20) + _FORM_MARGIN
        self._body_timeout_s = body_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._in_flight = 0
        self._arriving = 0
        self._typical_s = 1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if takes_a_place(scope):  # never from those that the door lets in without a key
            self._count_refused_before(scope)
        status = 500
        started = time.monotonic()
        patience = self._answer_timeout_s
        finished = False

        async def counted_send(message: Message) -> None:
            nonlocal status, finished, patience
            finished = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                status = message["status"]
            asked = time.monotonic()
            _wait_at_most(waiting, patience)
            await send(message)
            _wait_at_most(waiting, None)
            patience -= time.monotonic() - asked

        try:
            async with asyncio.timeout(None) as waiting:
                if takes_a_place(scope):
                    await self._admit(scope, receive, counted_send)
                else:
                    await self._app(scope, receive, counted_send)
        except Exception:
            if waiting.expired():
                status = _CLIENT_GONE  # the answer is left unfinished, upon which the server closes the connection
            # a failure was logged and answered 500 further in; raising on would cut the client's connection
            elif not finished:
                raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            # routes only: a raw path or query could hold what somebody typed
            logger.info("%s %s %d %.0f ms", scope["method"], route, status, 1000.0 * (time.monotonic() - started))

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Take a place among those being worked on for something that did not come as a request of its own.

        Raises
        ------
        HTTPException
            429 if there is none.
        """
        visit = _Visit(self._enter, self._leave)
        visit.begin()
        try:
            yield
        finally:
            visit.end()

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_declared_size(scope)
            if self._in_flight >= self._max_in_flight or self._arriving >= MAX_ARRIVING:
                # without asking for the body: that would cost more than all else (the server in front takes it)
                raise self._busy()
        except HTTPException as error:
            problem = problem_of(error)
            self._metrics.count_refusal(problem.code)
            await problem_response(problem, error.headers)(scope, receive, send)
            return
        visit = _Visit(self._enter, self._leave)
        self._arriving += 1
        try:
            await self._app(scope, self._limited(receive, visit), send)
        finally:
            self._arriving -= 1
            visit.end()

    def _enter(self) -> None:
        if self._in_flight >= self._max_in_flight:
            raise self._busy()
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)

    def _leave(self, seconds: float) -> None:
        self._in_flight -= 1
        self._metrics.in_flight.set(self._in_flight)
        self._typical_s += 0.2 * (seconds - self._typical_s)

    def _busy(self) -> HTTPException:
        return refusal(
            "too_many_requests",
            f"{self._in_flight} requests are being worked on, at most {self._max_in_flight} at a time; "
            "try again after the seconds in Retry-After",
            retry_after_s=max(1, math.ceil(self._typical_s)),
            headers={FULL_HEADER: "1"},
        )

    def _count_refused_before(self, scope: Scope) -> None:
        """Count what the proxy refused in this gate's name."""
        told = Headers(scope=scope).get(REFUSED_HEADER, "")
        if told.isascii() and told.isdigit() and len(told) <= _MOST_DIGITS:
            self._metrics.refusals.labels("too_many_requests").inc(int(told))
            self._metrics.requests.labels("proxy", "429").inc(int(told))

    def _check_declared_size(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._max_bytes:
                raise self._too_large()

    def _limited(self, receive: Receive, visit: "_Visit") -> Receive:
        received = 0
        deadline = asyncio.get_running_loop().time() + self._body_timeout_s

        async def limited() -> Message:
            nonlocal received
            if visit.begun:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            if message["type"] == "http.request" and not message.get("more_body", False):
                visit.begin()
            return message

        return limited

    def _too_slow(self) -> HTTPException:
        return refusal(
            "upload_timed_out",
            f"the body did not arrive within {self._body_timeout_s:g} s; send it again over a faster connection",
        )

    def _too_large(self) -> HTTPException:
        return refusal(
            "upload_too_large",
            f"the body is larger than {self._max_upload_mb:g} MB, the most this service takes; "
            "send fewer epochs, fewer channels or a lower sampling rate",
        )


def _wait_at_most(waiting: asyncio.Timeout, seconds: float | None) -> None:
    if not waiting.expired():
        waiting.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


class _Visit:
    """One request's stay among those being worked on: it begins at most once, and what began ends."""

    def __init__(self, enter: Callable[[], None], leave: Callable[[float], None]) -> None:
        self._enter = enter
        self._leave = leave
        self._started = 0.0
        self.begun = False

    def begin(self) -> None:
        """Take a place; raises the refusal if there is none."""
        self._enter()
        self.begun = True
        self._started = time.monotonic()

    def end(self) -> None:
        """Give the place back, if one was taken."""
        if self.begun:
            self._leave(time.monotonic() - self._started)
