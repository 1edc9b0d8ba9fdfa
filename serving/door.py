"""The door of the service: who gets in, and what is put on record about it.

Plain ASGI around everything else, so that a request without a key costs no parsing, and that no route can be
forgotten: only the two health routes and the files of the page are open. Without keys the door opens to this machine
alone, by address and by name of the host, whatever address the server listens on.
"""

import asyncio
import logging
import time
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import NOBODY, SCOPES, WEBSOCKET, Access
from serving.access_settings import AccessSettings, is_loopback
from serving.audit import AuditLog, Fact, read_audit_key
from serving.metrics import Metrics
from serving.page import PAGE_FILES
from serving.problems import problem_of, problem_response, refusal

logger = logging.getLogger(__name__)

OPEN = ("/healthz", "/readyz", *PAGE_FILES)
# Who is refused fills no disk: of the attempts one record a minute is written, with their number.
_REFUSALS_S = 60.0
_KEY_PROTOCOL = "key."
# What no page of another site gains anything by: browsers do not let it read the answer.
_ONLY_READ = ("GET", "HEAD", "OPTIONS")


class Door:
    """Admit requests to `app`.

    What is inside finds the `Caller` in ``request.state.caller``, and may add to ``request.state.record``, a dict whose
    entries go into the audit log.

    Parameters
    ----------
    app : ASGI application
    settings : AccessSettings
    metrics : Metrics
    page : Path
        The web page, which holds nothing secret: browsers without a key get it with status 401, to enter one.
    page_headers : dict of str to str
        Sent with it.
    """

    def __init__(
        self, app: ASGIApp, settings: AccessSettings, *, metrics: Metrics, page: Path, page_headers: dict[str, str]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._page, self._page_headers = page, page_headers
        self._open_network = settings.allow_open_network
        self._access = Access(settings) if settings.file else None
        self._audit: AuditLog | None = None
        if settings.audit_file:
            key = read_audit_key(Path(settings.audit_key_file)) if settings.audit_key_file else None
            self._audit = AuditLog(Path(settings.audit_file), key=key, max_bytes=int(settings.audit_max_mb * 2**20))
        self._refused: dict[str, tuple[int, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        path = _path(scope)
        state = scope.setdefault("state", {})
        state["caller"], state["record"], state["still_allowed"] = NOBODY, {}, _nothing
        if path in OPEN:
            await self._app(scope, receive, send)
            return
        try:
            self._admit(scope, path)
        except HTTPException as error:
            await self._refuse(error, scope, receive, send)
            return
        if self._audit is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._recorded_stream(scope, receive, send)
        else:
            await self._recorded(scope, receive, send)

    def _admit(self, scope: Scope, path: str) -> None:
        headers = Headers(scope=scope)
        if self._access is not None:
            given = headers.get("authorization", "") or _key_of_protocols(headers)
            caller = self._access.identify(given)
            scope["state"]["caller"] = caller
            access = self._access
            # what lasts asks again, so that a key that is taken away stops working
            scope["state"]["still_allowed"] = lambda: access.check(given, path)
            self._access.allow(caller, scope.get("method", WEBSOCKET), path)
            return
        _refuse_other_sites(scope, headers)
        if self._open_network:
            return
        client, host = scope.get("client"), headers.get("host", "")
        # a page of another site may not reach in through this machine's browser under a name of its own
        name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
        if (client is not None and not is_loopback(client[0])) or not is_loopback(name):
            raise refusal(
                "not_local",
                "no keys are set up, so only this machine is let in, as localhost; ask the operator",
            )

    async def _refuse(self, error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
        problem = problem_of(error)
        self._metrics.count_refusal(problem.code)
        route = _route(scope)
        self._metrics.requests.labels(route, str(problem.status)).inc()
        logger.info("%s %s %d at the door", scope.get("method", "GET"), route, problem.status)
        await self._record_refusal(scope, problem.code)
        if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": problem.code})
            return
        wants_page = scope.get("method") == "GET" and _path(scope) == "/"
        if problem.status == 401 and wants_page and "text/html" in Headers(scope=scope).get("accept", ""):
            headers = self._page_headers | dict(error.headers or {})
            await FileResponse(self._page, 401, headers=headers, media_type="text/html")(scope, receive, send)
            return
        await problem_response(problem, error.headers)(scope, receive, send)

    async def _recorded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; its answer leaves once it is on record, and a stream's end is recorded too."""
        streams = refused = False

        async def recording_send(message: Message) -> None:
            nonlocal streams, refused
            if message["type"] == "http.response.start":
                streams = b"text/event-stream" in dict(message.get("headers", [])).get(b"content-type", b"")
                try:
                    await self._record(scope, message["status"])
                except (OSError, ValueError) as error:
                    refused = True
                    logger.error("the audit log cannot be written: %s", type(error).__name__)
                    sorry = refusal(
                        "audit_failed", "the audit log cannot be written; ask the operator", retry_after_s=30
                    )
                    self._metrics.count_refusal("audit_failed")
                    await problem_response(problem_of(sorry), sorry.headers)(scope, receive, send)
            if not refused:
                await send(message)

        await self._app(scope, receive, recording_send)
        if streams and not refused:
            scope["state"]["record"].setdefault("outcome", "ended early")
            await self._record(scope, 200)

    async def _recorded_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a WebSocket on; nothing is said on it before it is on record, and its end is recorded too."""
        begun = False

        async def recording_send(message: Message) -> None:
            nonlocal begun
            if message["type"] == "websocket.send" and not begun:
                begun = True
                try:
                    await self._record(scope, 101)
                except (OSError, ValueError) as error:
                    logger.error("the audit log cannot be written: %s", type(error).__name__)
                    self._metrics.count_refusal("audit_failed")
                    await send({"type": "websocket.close", "code": 1011, "reason": "audit_failed"})
                    raise OSError("the audit log cannot be written") from None
            await send(message)

        await self._app(scope, receive, recording_send)
        if begun:
            scope["state"]["record"].setdefault("outcome", "ended early")
            await self._record(scope, 101)

    async def _record(self, scope: Scope, status: int) -> None:
        if self._audit is None:
            return
        caller = scope["state"]["caller"]
        facts: dict[str, Fact] = {"who": caller.name, "key": caller.key_id, "status": status}
        facts |= {"method": scope.get("method", "GET"), "route": _route(scope)} | scope["state"]["record"]
        await asyncio.to_thread(self._audit.append, facts)

    async def _record_refusal(self, scope: Scope, code: str) -> None:
        """Put attempts that were refused on record: one line a minute for each user, and one for all strangers."""
        caller = scope["state"]["caller"]
        n, at = self._refused.get(caller.name, (0, -_REFUSALS_S))
        if self._audit is None or time.monotonic() < at + _REFUSALS_S:
            self._refused[caller.name] = (n + 1, at)
            return
        self._refused[caller.name] = (0, time.monotonic())
        facts: dict[str, Fact] = {"who": caller.name, "key": caller.key_id, "refused": code, "attempts": n + 1}
        try:
            await asyncio.to_thread(self._audit.append, facts | {"route": _route(scope)})
        except (OSError, ValueError) as error:
            logger.error("the audit log cannot be written: %s", type(error).__name__)


def _nothing() -> None:
    return None


def _refuse_other_sites(scope: Scope, headers: Headers) -> None:
    """Refuse what another site's page sent and could gain by.

    A WebSocket browsers let it read; a request they let it send only, which is enough to hand in or erase a job.
    """
    origin = headers.get("origin", "")
    only_reads = scope["type"] == "http" and scope["method"] in _ONLY_READ
    if not only_reads and origin and origin.partition("://")[2].lower() != headers.get("host", "").lower():
        raise refusal("not_local", "no keys are set up, so no page of another site is let in; ask the operator")


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def _route(scope: Scope) -> str:
    """Name the route; never the address itself, which may hold what somebody typed."""
    known = getattr(scope.get("route"), "path", None)
    path = _path(scope)
    return str(known or next((one for one in (*SCOPES, "/") if path == one), "other"))


def _key_of_protocols(headers: Headers) -> str:
    """Find the key of a WebSocket of a browser, which can send no header: the protocols ``phosphene, key.phk_...``."""
    offered = [one.strip() for one in headers.get("sec-websocket-protocol", "").split(",")]
    return next((f"Bearer {one.removeprefix(_KEY_PROTOCOL)}" for one in offered if one.startswith(_KEY_PROTOCOL)), "")
