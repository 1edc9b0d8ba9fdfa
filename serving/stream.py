"""``/v1/stream``: a running recording comes in over a WebSocket, every stimulus in it is answered like an upload.

One task reads, since what a server behind a proxy does not read is stored without bounds; another cuts and answers. The
first to find a reason to stop ends the stream. Nothing of a signal, and no name in it, is logged.
"""

import asyncio
import logging
import time

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from starlette.exceptions import HTTPException

from serving.answers import Answers
from serving.gate import Gate
from serving.live_epochs import LiveEpochs
from serving.metrics import Metrics
from serving.problems import STREAM_CODES, problem_of, refusal
from serving.settings import ServingSettings
from serving.stream_inbox import Inbox
from serving.stream_schema import PROTOCOL, StreamProblem

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
        self._n_open = 0

    async def attend(self, websocket: WebSocket) -> None:
        """Serve one connection from its acceptance to its end."""
        offered = [one.strip() for one in websocket.headers.get("sec-websocket-protocol", "").split(",")]
        await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
        started, self._n_open = time.monotonic(), self._n_open + 1
        code = _FAILED
        try:
            code = await self._serve(websocket)
        except (WebSocketDisconnect, OSError):
            code = _GONE
        finally:
            self._n_open -= 1
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
            logger.error("a stream failed", exc_info=error)
            problem = problem_of(refusal("internal_error", "the service failed; the log has the reason"))
        else:
            record["outcome"] = "ended" if ended else "client_gone"
            if not ended:
                return _GONE
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
        if self._n_open > bounds.max_streams:
            raise refusal(
                "too_many_streams",
                f"{bounds.max_streams} streams are open, the most this service keeps; try again later",
                retry_after_s=10,
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

    @app.websocket(ROUTE)
    async def stream(websocket: WebSocket) -> None:
        await desk.attend(websocket)
