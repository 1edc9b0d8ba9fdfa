"""Requests that are wrong outside the file: bodies, headers and forms, as raw bytes for a socket.

Each has a name and bytes; an empty answer (the connection is closed) is always allowed, a status 500 never.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass

ROUTE = "/v1/embeddings"


@dataclass(frozen=True)
class Abuse:
    """One raw request; ``good`` marks those that a lenient server may answer with 200."""

    name: str
    raw: bytes
    good: bool = False


def request(body: bytes, *headers: str, method: str = "POST", path: str = ROUTE, length: int | None = -1) -> bytes:
    """Return a request; ``length`` None leaves Content-Length out, -1 tells the truth."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


MULTIPART = "Content-Type: multipart/form-data; boundary=b"


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="a.edf"', more: str = "") -> bytes:
    return (
        f"--b\r\nContent-Disposition: {disposition}\r\n{more}\r\n".encode("utf-8", "surrogatepass") + content + b"\r\n"
    )


END = b"--b--\r\n"


def abuses(good_file: bytes, bad_file: bytes) -> Iterator[Abuse]:
    """Yield requests around a readable file and an unreadable one."""
    whole = part(good_file) + END
    bad = part(bad_file) + END
    for name in (
        "../../../../etc/passwd",
        "/etc/passwd",
        "a" * 60_000,
        "a\x00b",
        "%00",
        "a\\..\\b",
        "con",
        "\u202egnp",
        "",
    ):
        disposition = f'form-data; name="file"; filename="{name}"'
        yield Abuse(f"file name {name[:20]!r}", request(part(good_file, disposition) + END, MULTIPART), good=True)
    yield Abuse("no file name", request(part(good_file, 'form-data; name="file"') + END, MULTIPART))
    yield Abuse("no boundary", request(whole, "Content-Type: multipart/form-data"))
    yield Abuse("another boundary", request(whole, "Content-Type: multipart/form-data; boundary=c"))
    yield Abuse(
        "boundary of 10000 letters", request(whole, f"Content-Type: multipart/form-data; boundary={'b' * 10_000}")
    )
    yield Abuse("no end", request(part(good_file), MULTIPART), good=True)
    yield Abuse("an empty body", request(b"", MULTIPART))
    yield Abuse("only the end", request(END, MULTIPART))
    yield Abuse("json", request(b'{"file": "/etc/passwd"}', "Content-Type: application/json"))
    yield Abuse("urlencoded", request(b"file=/etc/passwd", "Content-Type: application/x-www-form-urlencoded"))
    yield Abuse("no type", request(whole))
    yield Abuse("multipart of another kind", request(whole, "Content-Type: multipart/byteranges; boundary=b"))
    yield Abuse("type of junk", request(whole, "Content-Type: \xff\xfe; =;;=;"))
    yield Abuse("body in gzip", request(gzip.compress(whole), MULTIPART, "Content-Encoding: gzip"))
    yield Abuse("5000 fields", request(part(b"x", 'form-data; name="seed"') * 5000 + END, MULTIPART))
    yield Abuse("2000 files", request(part(b"x") * 2000 + END, MULTIPART))
    yield Abuse("three files", request(part(bad_file) * 3 + END, MULTIPART))
    yield Abuse("a field of a megabyte", request(part(b"9" * (2 << 20), 'form-data; name="seed"') + whole, MULTIPART))
    yield Abuse("a part with 5000 headers", request(part(b"x", more="X: y\r\n" * 5000) + END, MULTIPART))
    yield Abuse("a part header without end", request(b"--b\r\nContent-Disposition: " + b"a" * 1_000_000, MULTIPART))
    yield Abuse("a part without headers", request(b"--b\r\n\r\nx\r\n" + END, MULTIPART))
    yield Abuse("a form in a form", request(part(whole, more=MULTIPART.replace("=b", "=d") + "\r\n") + END, MULTIPART))
    yield Abuse("a file that refers to a URL", request(
        part(b"http://127.0.0.1:9/x", more="Content-Type: message/external-body\r\n") + END, MULTIPART))  # fmt: skip
    for field, value in {
        "seed": "-1", "images": "1e9", "onsets": "nan", "subject": "../../etc/passwd", "average": "maybe",
        "num_inference_steps": "99999999", "unknown": "x" * 1000,
    }.items():  # fmt: skip
        form = part(value.encode(), f'form-data; name="{field}"') + bad
        yield Abuse(f"field {field} {value[:10]!r}", request(form, MULTIPART))
    yield Abuse("100000 onsets", request(part(b"0.5," * 100_000, 'form-data; name="onsets"') + bad, MULTIPART))
    yield Abuse("length negative", request(whole, MULTIPART, length=-5))
    yield Abuse("length of letters", request(whole, MULTIPART, "Content-Length: abc", length=None))
    yield Abuse("length of 40 digits", request(whole, MULTIPART, "Content-Length: " + "9" * 40, length=None))
    yield Abuse("two lengths", request(whole, MULTIPART, "Content-Length: 5"))
    yield Abuse("length too short", request(whole, MULTIPART, length=100))
    yield Abuse("length and chunks", request(b"5\r\nhello\r\n0\r\n\r\n", MULTIPART, "Transfer-Encoding: chunked"))
    chunked = "Transfer-Encoding: chunked"
    yield Abuse("chunk of a negative size", request(b"-5\r\nhello\r\n0\r\n\r\n", MULTIPART, chunked, length=None))
    yield Abuse("chunk of a huge size", request(b"ffffffffffffffffff\r\n", MULTIPART, chunked, length=None))
    yield Abuse("chunks of junk", request(b"zz\r\n" * 1000, MULTIPART, chunked, length=None))
    yield Abuse(
        "20000 chunks of a byte", request(b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n", MULTIPART, chunked, length=None)
    )
    yield Abuse("unknown transfer coding", request(whole, MULTIPART, "Transfer-Encoding: cow", length=None))
    yield Abuse("header of a megabyte", request(whole, MULTIPART, "X: " + "y" * (1 << 20)))
    yield Abuse("10000 headers", request(whole, MULTIPART, *["X: y"] * 10_000))
    yield Abuse("a header over two lines", request(whole, MULTIPART, "X: y\r\n z"), good=True)
    yield Abuse("path of dots", request(whole, MULTIPART, path="/v1/../../../etc/passwd"))
    yield Abuse("path in percents", request(b"", method="GET", path="/%2e%2e/%2e%2e/etc/passwd", length=None))
    yield Abuse("path with a null", request(b"", method="GET", path="/%00", length=None))
    yield Abuse("path of 100000 letters", request(b"", method="GET", path="/" + "a" * 100_000, length=None))
    yield Abuse("another method", request(whole, MULTIPART, method="PUT"))
    yield Abuse("no method at all", request(whole, MULTIPART, method="\x00\x01"))
    yield Abuse("another protocol", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600))
    yield Abuse("junk", bytes(range(256)) * 100)
    yield Abuse("nothing", b"\r\n\r\n")
    yield Abuse("asks first", request(b"", MULTIPART, "Expect: 100-continue", length=1000))
    yield Abuse("asks for a web socket", request(
        b"", "Upgrade: websocket", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13", method="GET", length=None,
    ))  # fmt: skip
    yield Abuse("accepts only a picture", request(bad, MULTIPART, "Accept: image/png"))
