"""A client of ``/v1/stream``; it imports neither torch nor ray."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import connect

from serving.stream_schema import (
    FROM_SERVER,
    ServerMessage,
    StreamEnd,
    StreamEpoch,
    StreamMarker,
    StreamProblem,
    StreamReady,
    StreamReceived,
    StreamRefused,
    StreamStart,
    StreamSummary,
)

Samples = NDArray[np.float32]

_ROUTE = "/v1/stream"
_MAX_ANSWER_BYTES = 64 << 20
_REFUSED = {
    401: "it asks for a key, and was given none that it knows",
    403: "the key has not the scope 'stream', or the service has no keys and takes in its own machine only",
    429: "the quota is used up",
    503: "it is not ready, or nobody can be let in at the moment; try again",
}


class StreamClient:
    """Push a running recording, and take what its stimuli were decoded to.

    Parameters
    ----------
    base_url : str
        For instance ``http://127.0.0.1:8000``.
    start : StreamStart
        What is recorded.
    api_key : str
        Key for a service that asks for one.
    timeout_s : float
        Longest wait for the service.

    Raises
    ------
    ValueError
        If the service refuses the stream, here or later; the message is its sentence.
    OSError
        If it cannot be reached, or is lost later.
    """

    def __init__(self, base_url: str, start: StreamStart, *, api_key: str = "", timeout_s: float = 180.0) -> None:
        self._timeout_s = timeout_s
        self._n_rows = start.n_rows
        self._sent = self._received = 0
        self._n_messages, self._began = 0, time.monotonic()
        self._answers: deque[StreamEpoch | StreamRefused] = deque()
        self.summary: StreamSummary | None = None
        address = base_url.rstrip("/").replace("http", "ws", 1) + _ROUTE
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._open = ExitStack()
        try:
            self._socket = self._open.enter_context(
                connect(address, additional_headers=headers, max_size=_MAX_ANSWER_BYTES, proxy=None)
            )
        except InvalidStatus as error:
            status = error.response.status_code
            reason = _REFUSED.get(status, f"see whether {base_url} is the address of one")
            raise ValueError(f"the service refused the stream (HTTP {status}): {reason}") from None
        except InvalidURI:
            raise ValueError(f"{base_url!r} is no address, expected one like http://127.0.0.1:8000") from None
        except InvalidHandshake as error:
            raise ConnectionError(f"what answers at {base_url} is no service of this kind ({error})") from None
        with ExitStack() as failing:
            failing.callback(self.close)
            self.ready = self._begin(start)
            failing.pop_all()

    def __enter__(self) -> "StreamClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, whatever is still being worked on."""
        self._open.close()

    @property
    def n_sent(self) -> int:
        """Samples pushed so far: the index of the next one."""
        return self._sent

    def push(self, data: Samples) -> None:
        """Send the next samples, (n_rows, n) float32, in the unit of the start; waits where the service lags behind."""
        if data.ndim != 2 or len(data) != self._n_rows:
            raise ValueError(f"data has shape {data.shape}, expected ({self._n_rows}, n); push every channel")
        for first in range(0, data.shape[1], self.ready.max_chunk):
            part = data[:, first : first + self.ready.max_chunk]
            while self._sent + part.shape[1] - self._received > self.ready.max_ahead:
                self._sort(self._receive(self._timeout_s))
            self._send(np.ascontiguousarray(part, dtype="<f4").tobytes())
            self._sent += part.shape[1]

    def mark(self, sample: int, stimulus: str = "") -> None:
        """Say that a stimulus began at a sample, as early as it is known."""
        self._send(StreamMarker(sample=sample, stimulus=stimulus).model_dump_json())

    def answers(self) -> Iterator[StreamEpoch | StreamRefused]:
        """Yield what has come back by now, without waiting."""
        self._drain()
        while self._answers:
            yield self._answers.popleft()

    def finish(self) -> Iterator[StreamEpoch | StreamRefused]:
        """End the recording and yield what still comes; `summary` is there afterwards."""
        self._send(StreamEnd().model_dump_json())
        while True:
            while self._answers:
                yield self._answers.popleft()
            if self.summary is not None:
                break
            self._sort(self._receive(self._timeout_s))
        with suppress(ConnectionError):
            self._receive(self._timeout_s)  # the service closes after its summary

    def _begin(self, start: StreamStart) -> StreamReady:
        with suppress(ConnectionClosed):  # refused before anything was sent; the reason is there to be received
            self._socket.send(start.model_dump_json())
        ready = self._receive(self._timeout_s)
        if not isinstance(ready, StreamReady):
            raise ConnectionError("the service did not begin with 'ready'; its version is another one")
        return ready

    def _send(self, content: str | bytes) -> None:
        self._drain()
        self._n_messages += 1
        # the service lets twice its rate pass at once; a client that keeps below the rate is never too fast
        rate = 0.9 * self.ready.max_messages_per_s
        ahead = (self._n_messages - rate) / rate - (time.monotonic() - self._began)
        if ahead > 0.0:
            time.sleep(ahead)
        try:
            self._socket.send(content)
        except ConnectionClosed:
            self._explain()

    def _drain(self) -> None:
        while True:
            try:
                self._sort(self._receive(0.0))
            except TimeoutError:
                return

    def _sort(self, message: ServerMessage) -> None:
        if isinstance(message, StreamReceived):
            self._received = message.samples
        elif isinstance(message, StreamEpoch | StreamRefused):
            self._answers.append(message)
        elif isinstance(message, StreamSummary):
            self.summary = message

    def _receive(self, timeout_s: float) -> ServerMessage:
        try:
            message = FROM_SERVER.validate_json(self._socket.recv(timeout=timeout_s))
        except ConnectionClosed as error:
            raise ConnectionError(f"the service closed the stream ({error})") from None
        if isinstance(message, StreamProblem):
            raise ValueError(f"{message.problem.code}: {message.problem.detail}")
        return message

    def _explain(self) -> None:
        """Find the service's last words on a connection that it has closed."""
        while True:
            self._sort(self._receive(self._timeout_s))
