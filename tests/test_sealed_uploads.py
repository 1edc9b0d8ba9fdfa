"""Uploads that pass through the disk: nothing readable on it, and the same bytes come back."""

import asyncio
import errno
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, Form, UploadFile

from serving import sealed_uploads
from serving.problems import add_handlers
from serving.sealed_uploads import SealedFile, SealedRoute

CANARY = b"canary of a signal, "


def on_disk() -> list[bytes]:
    """Read every regular file that this process holds open and that has no name, as the system sees it."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if "(deleted)" in os.readlink(f"/proc/self/fd/{descriptor}"):
                found.append(Path(f"/proc/self/fd/{descriptor}").read_bytes())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("n_bytes", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
@pytest.mark.parametrize("chunk", [65_536, 10_000_000])
def test_what_is_written_in_pieces_is_read_again(n_bytes: int, chunk: int) -> None:
    content = os.urandom(n_bytes)
    file = SealedFile()
    for start in range(0, n_bytes, chunk):
        file.write(content[start : start + chunk])
    for _ in range(2):
        file.seek(0)
        pieces = [file.read(100_000), file.read(1), file.read()]
        assert b"".join(pieces) == content and file.read() == b""
    with pytest.raises(ValueError, match="from its start"):
        file.seek(5)
    file.close()


def test_a_form_gives_its_files_back_and_leaves_no_readable_byte_on_the_disk() -> None:
    app = FastAPI()
    app.router.route_class = SealedRoute
    seen: list[list[bytes]] = []

    @app.post("/")
    async def take(file: list[UploadFile]) -> list[Any]:
        seen.append(on_disk())
        return [[one.size, (await one.read()).hex()[-40:]] for one in file]

    small, large = CANARY, CANARY * 200_000

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            broken = {"content-type": "multipart/form-data; boundary=x"}
            assert (await client.post("/", content=b"--y\r\n", headers=broken)).status_code == 400
            return await client.post("/", files=[("file", ("a", small)), ("file", ("b", large))])

    answer = asyncio.run(post())
    assert answer.json() == [[len(one), one.hex()[-40:]] for one in (small, large)]
    (files,) = seen
    assert [len(content) for content in files if len(content) > 1 << 20] == [len(large)], (
        "the large file is on the disk"
    )
    assert not any(CANARY in content for content in files)
    assert not any(len(content) > 1 << 20 for content in on_disk()), "it is removed with the request"


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (b"\r\n--bound" * 20_000, True),
        (b"\r\n--boundaryX" * 90, True),
        (b"\r\n--boundaryX" * 20_000, False),
        (b"\r\n--boundary\rX" * 20_000, False),
        (b"x\r\n--boundary" + b" " * 100_000 + b"\r\n", False),
        (b"x\r\n--boundary\t\r\n", False),
    ],
    ids=["too short", "few", "many", "many with CR", "spaces", "a tab"],
)
@pytest.mark.parametrize("chunk", [1001, 7, 1 << 20])
def test_a_boundary_where_no_part_ends_is_not_gone_through_byte_by_byte(
    content: bytes, taken: bool, chunk: int
) -> None:
    """Half a minute for 60 MB."""
    app = FastAPI()
    app.router.route_class = SealedRoute
    add_handlers(app, lambda code: None)

    @app.post("/")
    async def take(file: UploadFile) -> str:
        return (await file.read()).hex()

    content = content if chunk > 7 else content[:5000]
    head = b'--boundary\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    form = head + content + b"\r\n--boundary--\r\n"

    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(form), chunk):
            yield form[start : start + chunk]

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post(
                "/", content=body(), headers={"content-type": "multipart/form-data; boundary=boundary"}
            )

    answer = asyncio.run(post())
    if taken:
        assert answer.json() == content.hex()
    else:
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_body")


@pytest.mark.parametrize(
    ("charset", "taken"),
    [("utf-8", True), ('"UTF8"', True), ("undefined", False), ("punycode", False), ("unicode_escape", False)],
)
def test_the_text_of_a_form_is_in_utf_8_and_not_in_a_codec_that_the_client_names(charset: str, taken: bool) -> None:
    """Punycode takes minutes for a megabyte, while nobody else is answered; undefined only fails."""
    app = FastAPI()
    app.router.route_class = SealedRoute
    add_handlers(app, lambda code: None)

    @app.post("/")
    async def take(subject: Annotated[str, Form()]) -> str:
        return subject

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
            text = "a" * 20_000 + "-" + "a" * 20_000
            body = f'--b\r\nContent-Disposition: form-data; name="subject"\r\n\r\n{text}\r\n--b--\r\n'
            return await client.post("/", content=body.encode(), headers=headers)

    answer = asyncio.run(post())
    assert answer.status_code == 200 if taken else (answer.status_code, answer.json()["code"]) == (400, "bad_body")


@pytest.mark.parametrize("sent_as", ["application/x-www-form-urlencoded", "application/json", "multipart/mixed", ""])
def test_a_body_that_is_no_multipart_form_is_refused_without_being_read(sent_as: str) -> None:
    app = FastAPI()
    app.router.route_class = SealedRoute
    add_handlers(app, lambda code: None)

    @app.post("/")
    async def take(file: list[UploadFile]) -> None:
        raise AssertionError("the form was taken")

    async def body() -> AsyncIterator[bytes]:
        yield b"&"
        raise AssertionError("the body was read on")

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post("/", content=body(), headers={"content-type": sent_as} if sent_as else {})

    answer = asyncio.run(post())
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_body")
    assert repr(sent_as) in answer.json()["detail"] and "expected multipart/form-data" in answer.json()["detail"]


@pytest.mark.parametrize("fails_at", ["opening", "writing", "rewinding"])
def test_an_upload_for_which_there_is_no_room_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """Buffered bytes fail late: when the file is rewound, and once more when it is closed."""

    def full(*_: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullDisk(io.BytesIO):
        write = full if fails_at == "writing" else io.BytesIO.write

        def seek(self, *_: int) -> int:
            return int(full())

        def close(self) -> None:
            super().close()
            full()

    app = FastAPI()
    app.router.route_class = SealedRoute
    add_handlers(app, lambda code: None)

    @app.post("/")
    async def take(file: list[UploadFile]) -> None:
        raise AssertionError("the form was taken")

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post("/", files=[("file", ("a", CANARY * 200_000))])

    monkeypatch.setattr(sealed_uploads, "TemporaryFile", full if fails_at == "opening" else FullDisk)
    answer = asyncio.run(post())
    assert (answer.status_code, answer.json()["code"]) == (503, "uploads_down")
    assert int(answer.headers["retry-after"]) >= 1
