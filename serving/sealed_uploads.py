"""Uploads while they arrive: small ones in memory, larger ones in a temporary file that only this process can read.

The web framework spools the files of a form, and what passes 1 MB lies in the temporary folder until the request is
done. Here it is encrypted with a key that exists in this object alone, so that nothing of a recording can be found on
the disk, also after a crash. Nobody else can write to the file, which has no name, so it is not authenticated.
"""

import io
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO, cast

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from fastapi import Request, Response
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from serving.problems import refusal

logger = logging.getLogger(__name__)

_IN_MEMORY = 1 << 20
_MULTIPART = "multipart/form-data"
_CHARSETS = (b"utf-8", b"utf8")
# Between two recordings and all fields there are some twenty.
_MOST_BOUNDARIES = 100
# Of a type that is told back to who sent it.
_LONGEST_TYPE = 100
_RETRY_S = 5


class SealedFile:
    """A temporary file whose part on disk is encrypted (AES-256-CTR): written once, then read from its start on.

    It has what `starlette.datastructures.UploadFile` uses of a `tempfile.SpooledTemporaryFile`.
    """

    _max_size = _IN_MEMORY

    def __init__(self) -> None:
        self._rolled = False
        self._file: IO[bytes] = io.BytesIO()
        self._cipher = Cipher(algorithms.AES(secrets.token_bytes(32)), modes.CTR(secrets.token_bytes(16)))
        self._writing = self._cipher.encryptor()
        self._reading = self._cipher.decryptor()

    def write(self, content: bytes) -> int:
        """Append bytes; the ones that are too many for the memory move all to the disk."""
        if not self._rolled and self._file.tell() + len(content) > _IN_MEMORY:
            memory, self._file, self._rolled = self._file, TemporaryFile(), True
            memory.seek(0)
            self._file.write(self._writing.update(memory.read()))
        self._file.write(self._writing.update(content) if self._rolled else content)
        return len(content)

    def read(self, size: int = -1) -> bytes:
        """Read on from where the last read ended."""
        content = self._file.read(size)
        return self._reading.update(content) if self._rolled else content

    def seek(self, offset: int) -> int:
        """Go to the start; there is no other place to go."""
        if offset != 0:
            raise ValueError(f"a sealed upload is read from its start, got seek({offset}); seek to 0")
        self._reading = self._cipher.decryptor()
        return self._file.seek(0)

    def tell(self) -> int:
        """Return how many bytes were written or read."""
        return self._file.tell()

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


class _SealingParser(MultiPartParser):
    """Parses a form whose files are sealed."""

    def on_headers_finished(self) -> None:
        """Give the part its file; what the framework made for it is still empty."""
        super().on_headers_finished()
        part = self._current_part
        if part.file is not None:
            part.file.file.close()
            sealed = SealedFile()
            self._files_to_close_on_error[-1] = cast(Any, sealed)
            part.file = UploadFile(
                cast(BinaryIO, sealed), size=0, filename=part.file.filename, headers=part.file.headers
            )


class _SealingRequest(Request):
    async def _get_form(self, **limits: Any) -> FormData:
        if self._form is None:
            boundary = _boundary(self.headers.get("content-type", ""))
            try:
                async with aclosing(_bounded(self.stream(), boundary)) as stream:
                    self._form = await _SealingParser(self.headers, stream, **limits).parse()
            except MultiPartException as error:
                raise HTTPException(400, detail=error.message) from None
            except OSError as error:  # no room, no folder, no descriptor: not the fault of the form
                logger.error("an upload could not be stored: %s", error.strerror or type(error).__name__)
                raise refusal(
                    "uploads_down",
                    "there is no room for the upload at the moment; send it again after the seconds in Retry-After",
                    retry_after_s=_RETRY_S,
                ) from None
        return self._form


def _boundary(content_type: str) -> bytes:
    """Return what stands between the parts of a form; refuse what the framework reads in ways that hold everybody up.

    That is other kinds of bodies, of which url-encoded ones are read byte by byte, and text in any codec of Python that
    the client names: some take minutes for a megabyte, some raise what nobody expects, and unknown names are kept.
    """
    got = content_type.partition(";")[0].strip().lower()
    if got != _MULTIPART:
        raise refusal(
            "bad_body",
            f"the body is of type {got[:_LONGEST_TYPE]!r}, expected {_MULTIPART}; "
            "send the recordings as its parts named 'file'",
        )
    _, parameters = parse_options_header(content_type)
    if parameters.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise refusal("bad_body", "the form names a charset, which forms have none of; leave it out and send UTF-8")
    return parameters.get(b"boundary", b"")


async def _bounded(chunks: AsyncGenerator[bytes, None], boundary: bytes) -> AsyncGenerator[bytes, None]:
    """Hand on a form unless its boundary stands in it more often than between parts, or with white space after it.

    The framework goes through such places byte by byte: a form full of them takes it half a minute.
    """
    delimiter, tail, n_found = b"\r\n--" + boundary, b"", 0
    async with aclosing(chunks):
        async for chunk in chunks:
            seen = tail + chunk
            n_found += seen.count(delimiter) - tail.count(delimiter)
            if n_found > _MOST_BOUNDARIES or delimiter + b" " in seen or delimiter + b"\t" in seen:
                raise MultiPartException(
                    f"The form has more than {_MOST_BOUNDARIES} parts, or its boundary stands inside one; "
                    "send at most two recordings, and choose a random boundary."
                )
            tail = seen[-len(delimiter) :]
            yield chunk


class SealedRoute(APIRoute):
    """A route whose uploads never lie on a disk as they are."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Handle requests whose form is parsed here."""
        handle = super().get_route_handler()

        async def sealed(request: Request) -> Response:
            return await handle(_SealingRequest(request.scope, request.receive))

        return sealed
