"""What comes over a WebSocket, within bounds of size, speed and silence.

Everything is read at once, because a server behind a proxy cannot slow a client down by not reading: what it leaves is
stored without bounds in between. So whoever exceeds the bounds is sent away instead.
"""

import asyncio
import time

from fastapi import WebSocket
from starlette.types import Message

from serving.problems import refusal
from serving.settings import StreamSettings
from serving.stream_schema import MAX_MESSAGE_BYTES

# What may wait in memory before the start has said how large the stream's own window is.
_FIRST_BYTES = 2 * MAX_MESSAGE_BYTES


class Inbox:
    """What has come over one WebSocket and was not looked at yet.

    Parameters
    ----------
    websocket : WebSocket
        Accepted.
    settings : StreamSettings

    Attributes
    ----------
    max_bytes : int
        What may wait here.
    patient : bool
        Whether the service itself keeps the client waiting, so that silence is no fault.
    """

    def __init__(self, websocket: WebSocket, settings: StreamSettings) -> None:
        self._websocket = websocket
        self._settings = settings
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._n_bytes = 0
        self._allowance = 2.0 * settings.max_messages_per_s
        self._counted = time.monotonic()
        self.max_bytes = _FIRST_BYTES
        self.patient = False

    async def fill(self) -> None:
        """Read until the client leaves.

        Raises
        ------
        HTTPException
            If it sends too much, too fast, or nothing.
        """
        while True:
            try:
                async with asyncio.timeout(self._settings.idle_s):
                    message = await self._websocket.receive()
            except TimeoutError:
                if self.patient or not self._messages.empty():
                    continue
                raise refusal(
                    "stream_idle",
                    f"nothing came for {self._settings.idle_s:g} s; send samples all the time, and 'end' at the end",
                ) from None
            if message["type"] == "websocket.disconnect":
                return
            size = len(message.get("bytes") or b"") + len(message.get("text") or "")
            self._check(size)
            self._n_bytes += size
            self._messages.put_nowait(message)

    def interrupt(self) -> None:
        """Let `next` return a message of type "interrupt", because something else happened than a message."""
        self._messages.put_nowait({"type": "interrupt"})

    async def next(self) -> Message:
        """Return the oldest message."""
        message = await self._messages.get()
        self._n_bytes -= len(message.get("bytes") or b"") + len(message.get("text") or "")
        return message

    def _check(self, size: int) -> None:
        if size > MAX_MESSAGE_BYTES:
            raise refusal(
                "message_too_large", f"a message has {size} bytes, at most {MAX_MESSAGE_BYTES} are taken; send less"
            )
        now, rate = time.monotonic(), self._settings.max_messages_per_s
        self._allowance = min(2.0 * rate, self._allowance + rate * (now - self._counted)) - 1.0
        self._counted = now
        if self._allowance < 0.0:
            raise refusal("stream_too_fast", f"more than {rate:g} messages per second came; put more samples into each")
        if self._n_bytes + size > self.max_bytes:
            raise refusal(
                "stream_too_fast",
                "more samples came than may be ahead; wait for 'received' messages as 'ready' says in max_ahead",
            )
