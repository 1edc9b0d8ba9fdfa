"""Connections within bounds, for Ray Serve's proxy: what uvicorn takes of a head, and keeps for who never reads.

uvicorn reads request lines and headers of any length and copies what it has of one with every packet, so that a single
client without a key holds up everybody. It answers pings of WebSockets whether or not the answers can be sent.
"""

from uvicorn.config import HTTP_PROTOCOLS, WS_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

# More than one packet, which may hold the body of a request and the head of the next.
_MOST_OF_A_HEAD = 1 << 19
_MOST_UNREAD = 1 << 20


class BoundedHttp(HttpToolsProtocol):
    """Refuses a request whose line and headers are too long."""

    _in_head = False
    _n_bytes = 0

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._in_head, self._n_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Count no more."""
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Take a packet."""
        super().data_received(data)
        self._n_bytes += len(data)
        if self._in_head and self._n_bytes > _MOST_OF_A_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """Cuts off who sends pings and does not read the answers."""

    def handle_ping(self) -> None:
        """Answer a ping."""
        if self.transport.get_write_buffer_size() > _MOST_UNREAD:
            self.transport.abort()
            return
        super().handle_ping()


def bound_servers() -> None:
    """Let every uvicorn that is started in this process from now on, and is told no protocol, use these."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHttp.__name__}"
    WS_PROTOCOLS["auto"] = f"{__name__}:{BoundedWebSocket.__name__}"
