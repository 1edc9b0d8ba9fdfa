"""``/v1/stream``: a running recording comes in over a WebSocket, every stimulus in it is answered like an upload.

One task reads, since what a server behind a proxy does not read is stored without bounds; another cuts and answers. The
first to find a reason to stop ends the stream. Nothing of a signal, and no name in it, is logged.
"""

import asyncio
import logging
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from starlette.exceptions import HTTPException

from serving.access import caller_of
from serving.answers import Answers
from serving.failures import log_failure
from serving.forms import AT_THE_DOOR, refusals
from serving.gate import Gate
from serving.live_epochs import LiveEpochs
from serving.metrics import Metrics
from serving.problems import STREAM_CODES, problem_of, refusal
from serving.settings import ServingSettings
from serving.stream_inbox import Inbox
from serving.stream_schema import FROM_CLIENT, FROM_SERVER, PROTOCOL, StreamProblem

logger = logging.getLogger(__name__)

ROUTE = "/v1/stream"
_POLICY, _FAILED, _GONE = 1008, 1011, 1006
_CLOSE_TIMEOUT_S = 5.0


class StreamDesk:
    """Attends to the WebSockets of one ingress."""

    def __init__(self, answers: Answers, metrics: Metrics, settings: ServingSettings) -> None:
        self._answers = answers
        self._metrics = metrics
        self._settings = settings
        self._open: Counter[str] = Counter()

    async def attend(self, websocket: WebSocket) -> None:
        """Serve one connection from its acceptance to its end."""
        offered = [one.strip() for one in websocket.headers.get("sec-websocket-protocol", "").split(",")]
        await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
        owner, started = caller_of(websocket).owner, time.monotonic()
        self._open[owner] += 1
        self._metrics.streams_open.set(self._open.total())
        code = _FAILED
        try:
            code = await self._serve(websocket)
        except (WebSocketDisconnect, OSError):
            code = _GONE
        finally:
            self._open[owner] -= 1
            self._open += Counter()  # who has none open is forgotten
            self._metrics.streams_open.set(self._open.total())
            self._metrics.requests.labels(ROUTE, str(code)).inc()
            logger.info("WS %s %d %.0f s", ROUTE, code, time.monotonic() - started)

    async def _serve(self, websocket: WebSocket) -> int:
        """Let the stream run to its end; tell why if that is no good one; return the close code."""
        record = websocket.state.record
        try:
            ended = await self._run(websocket)
        except HTTPException as error:
            problem = problem_of(error)
        except (WebSocketDisconnect, OSError):
            raise
        except Exception as error:
            log_failure(logger, "a stream failed", error)
            problem = problem_of(refusal("internal_error", "the service failed; the log has the reason"))
        else:
            record["outcome"] = "ended" if ended else "client_gone"
            if not ended:
                return _GONE
            with suppress(WebSocketDisconnect, OSError):  # whoever has the summary may have left on it
                await websocket.close(1000, "end")
            return 1000
        self._metrics.count_refusal(problem.code)
        record["outcome"] = problem.code
        code = STREAM_CODES[problem.code][2] if problem.code in STREAM_CODES else _POLICY
        code = _FAILED if problem.status == 500 else code
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await websocket.send_text(StreamProblem(problem=problem).model_dump_json())
            await websocket.close(code, problem.code)
        return code

    async def _run(self, websocket: WebSocket) -> bool:
        """Return True after an `end`, False if the client left before it."""
        bounds = self._settings.streams
        owner = caller_of(websocket).owner
        if self._open.total() > bounds.max_streams or (owner and self._open[owner] > bounds.max_streams_per_user):
            raise refusal(
                "too_many_streams",
                f"{bounds.max_streams} streams are open, or {bounds.max_streams_per_user} of yours, the most this "
                "service keeps; end one, or try again later",
            )
        gate = websocket.app.state.gate
        assert isinstance(gate, Gate)
        inbox = Inbox(websocket, bounds)
        epochs = LiveEpochs(websocket, inbox, self._answers, gate, self._metrics, self._settings)
        reading, working = asyncio.ensure_future(inbox.fill()), asyncio.ensure_future(epochs.answer())
        try:
            done, _ = await asyncio.wait(
                {reading, working}, timeout=bounds.max_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if working in done:
                working.result()
                return True
            if reading in done:
                reading.result()
                return False
            raise refusal(
                "stream_too_long", f"a stream may last for {bounds.max_seconds:g} s; begin another one to go on"
            )
        finally:
            reading.cancel()
            working.cancel()
            await asyncio.gather(reading, working, return_exceptions=True)


def add_stream(app: FastAPI, desk: StreamDesk) -> None:
    """Add the route; ``app.state.gate`` must be the `Gate` around the application by the time it is called."""

    @app.get(
        ROUTE,
        responses=refusals(*AT_THE_DOOR),
        description="A WebSocket at this address takes a recording while it runs, and answers every stimulus as soon "
        "as its epoch is there. A GET returns the JSON schemas of what is sent, `client`, and of what comes back, "
        "`server`. Samples are binary messages: little-endian float32, (channels, samples) in row-major order.",
    )
    async def messages() -> dict[str, dict[str, Any]]:
        return {"client": FROM_CLIENT.json_schema(), "server": FROM_SERVER.json_schema()}

    @app.websocket(ROUTE)
    async def stream(websocket: WebSocket) -> None:
        await desk.attend(websocket)
