"""Heads of requests and unanswered pings have a bound; whatever is within it is answered as before."""

import base64
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from serving.bounded_protocols import BoundedHttp, BoundedWebSocket
from serving.cluster import free_port

MB = 1 << 20


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the length of the body; a WebSocket is left open."""
    message: Message = {}
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while message.get("type") != "websocket.disconnect":
            message = await receive()
        return
    n_bytes = 0
    while message.get("more_body", True):
        message = await receive()
        n_bytes += len(message.get("body", b""))
    body = b"%d" % n_bytes
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_port()
    bounds = {"http": BoundedHttp, "ws": BoundedWebSocket}
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=number, log_level="critical", lifespan="off", **bounds)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield number
    server.should_exit = True
    thread.join(timeout=10.0)


def sent(connection: socket.socket, piece: bytes, n_pieces: int) -> int:
    """Send a piece again and again; return how often before the other side cut the connection."""
    for n_sent in range(n_pieces):
        try:
            connection.sendall(piece)
        except OSError:
            return n_sent
    return n_pieces


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nX", b"GET / HTTP/1.1\r\n"])
def test_a_head_without_end_is_cut(port: int, begin: bytes) -> None:
    piece = b"X: y\r\n" * 10_000 if begin.endswith(b"\n") else b"y" * 60_000
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(begin)
        assert sent(connection, piece, 1000) < 500, "60 MB were taken"


def test_long_heads_bodies_and_requests_in_a_row_are_answered(port: int) -> None:
    post = b"POST / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\nContent-Length: %d\r\n\r\n"
    request = post % (3 * MB) + b"z" * (3 * MB)
    last = request.replace(b"\r\nX:", b"\r\nConnection: close\r\nX:")
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        sender = threading.Thread(target=connection.sendall, args=(request * 3 + last,))
        sender.start()
        while piece := connection.recv(65_536):
            answer += piece
        sender.join()
    assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b"\r\n\r\n%d" % (3 * MB)) == 4


@pytest.mark.parametrize("reads", [False, True])
def test_who_does_not_read_the_answers_to_pings_is_cut_off(port: int, reads: bool) -> None:
    upgrade = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    upgrade += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(b"k" * 16) + b"\r\n\r\n"
    pings = (b"\x89\xfd" + b"\0\0\0\0" + b"p" * 125) * 1000
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(upgrade)
        assert connection.recv(4096).startswith(b"HTTP/1.1 101")
        if reads:
            reader = threading.Thread(target=lambda: list(iter(lambda: connection.recv(MB), b"")))
            reader.start()
            assert sent(connection, pings, 100) == 100
            connection.sendall(b"\x88\x80" + bytes(4))  # closed by the service, whose end the reader waits for
            reader.join(timeout=20)
        else:
            assert sent(connection, pings, 500) < 500, "65 MB of answers were kept"
