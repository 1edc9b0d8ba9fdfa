"""Refusals as problem-details JSON (RFC 9457), each with a stable code.

A refusal is a starlette `HTTPException` whose detail is a `Problem`, so routes raise it like any other.
"""

import logging
from collections.abc import Callable, Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from serving.failures import log_failure
from serving.schema import MAX_FILES, FieldError, Problem

logger = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"

CODES: dict[str, tuple[int, str]] = {
    "bad_field": (422, "A form field was refused"),
    "unknown_bundle": (422, "The bundle is not served here"),
    "no_key": (401, "A key is needed"),
    "unknown_key": (401, "The key is not known"),
    "not_allowed": (403, "The key does not allow this"),
    "not_local": (403, "Only this machine is let in without keys"),
    "over_quota": (429, "The quota is used up"),
    "access_broken": (503, "Nobody can be let in at the moment"),
    "audit_failed": (503, "The request could not be put on record"),
    "purpose_missing": (422, "A purpose must be named"),
    "purpose_refused": (422, "The service is not for this purpose"),
    "consent_missing": (422, "The recorded person's consent must be stated"),
    "bad_body": (400, "The body is not multipart form data"),
    "no_file": (422, "No recording was sent"),
    "too_many_files": (422, "Too many recordings were sent"),
    "epochs_mismatch": (422, "The recording cannot be used"),
    "reading_timed_out": (422, "Reading the recording took too long"),
    "reading_failed": (422, "The recording could not be read"),
    "too_many_epochs": (422, "The recording holds too many epochs"),
    "too_many_pictures": (422, "Too many pictures were asked for"),
    "upload_timed_out": (408, "The upload took too long to arrive"),
    "upload_too_large": (413, "The upload is too large"),
    "uploads_down": (503, "Uploads cannot be taken in"),
    "too_many_requests": (429, "The service is busy"),
    "queue_full": (503, "The queue of the models is full"),
    "not_ready": (503, "The models are still loading"),
    "jobs_full": (503, "Too many jobs wait already"),
    "store_down": (503, "The store of jobs cannot be used"),
    "key_reused": (422, "The Idempotency-Key belongs to another request"),
    "jobs_off": (404, "This service keeps no jobs"),
    "bundle_gone": (410, "The bundle of the job is served no more"),
    "upload_lost": (500, "The upload of the job was lost"),
    "quarantined": (500, "The processes that worked on the job were lost"),
    "replica_lost": (503, "The process that worked on the request was lost"),
    "timed_out": (504, "The request took too long"),
    "client_gone": (499, "The client left before the answer"),
    "not_found": (404, "There is nothing at this address"),
    "method_not_allowed": (405, "This address does not take this method"),
    "internal_error": (500, "The service failed"),
}
# Refusals of `/v1/stream`, with the code that the WebSocket is closed with; 0: it stays open.
STREAM_CODES: dict[str, tuple[int, str, int]] = {
    "bad_message": (422, "A message of the stream was refused", 1007),
    "no_start": (422, "The stream did not begin with a start", 1003),
    "message_too_large": (413, "A message of the stream is too large", 1009),
    "stream_too_fast": (429, "The stream is faster than it may be", 1008),
    "stream_idle": (408, "Nothing came for too long", 1008),
    "stream_too_long": (422, "The stream lasted too long", 1008),
    "too_many_streams": (429, "As many streams are open as there may be", 1013),
    "epoch_dropped": (429, "The epoch was dropped", 0),
    "epoch_cut_off": (422, "The recording ended inside the epoch", 0),
}
_BY_STATUS = {400: "bad_body", 404: "not_found", 405: "method_not_allowed", 413: "upload_too_large"}


def refusal(
    code: str,
    detail: str,
    *,
    retry_after_s: int | None = None,
    errors: tuple[FieldError, ...] = (),
    headers: Mapping[str, str] | None = None,
) -> HTTPException:
    """Build the exception that answers with `code`; the status and title follow from the code."""
    status, title = CODES[code] if code in CODES else STREAM_CODES[code][:2]
    problem = Problem(
        type=f"urn:phosphene:problem:{code}", title=title, status=status, detail=detail, code=code, errors=errors
    )
    more = dict(headers or {}) | ({} if retry_after_s is None else {"Retry-After": str(retry_after_s)})
    # starlette types detail as str; the handlers below unpack the model
    return HTTPException(status, detail=problem, headers=more)  # type: ignore[arg-type]


def problem_of(error: HTTPException) -> Problem:
    """Return the problem that an exception carries, or describe a bare one raised by the framework."""
    detail: object = error.detail
    if isinstance(detail, Problem):
        return detail
    code = _BY_STATUS.get(error.status_code, "internal_error" if error.status_code >= 500 else "bad_field")
    _, title = CODES[code]
    return Problem(
        type=f"urn:phosphene:problem:{code}", title=title, status=error.status_code, detail=str(detail), code=code
    )


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Encode a problem."""
    return Response(
        problem.model_dump_json(),
        status_code=problem.status,
        media_type=PROBLEM_TYPE,
        headers=dict(headers or {}),
    )


def add_handlers(app: FastAPI, count: Callable[[str], None]) -> None:
    """Answer every refusal and failure of `app` with problem details; a traceback goes to the log only.

    ``count(code)`` is called for each.
    """

    def answer(error: HTTPException) -> Response:
        problem = problem_of(error)
        count(problem.code)
        return problem_response(problem, error.headers)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(error)

    async def on_bad_fields(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        errors = tuple(
            FieldError(
                field=".".join(str(part) for part in item["loc"] if part not in ("body", "query")),
                message=item["msg"].removeprefix("Value error, "),
            )
            for item in error.errors()
        )
        kinds = {(item["loc"][-1], item["type"]) for item in error.errors()}
        if ("file", "missing") in kinds:
            return answer(refusal("no_file", "send one or two recordings as parts named 'file'", errors=errors))
        if ("file", "too_long") in kinds:
            sentence = f"at most {MAX_FILES} recordings are taken: one of EEG and one of MEG; send fewer parts"
            return answer(refusal("too_many_files", sentence, errors=errors))
        detail = "; ".join(f"{item.field}: {item.message}" for item in errors)
        return answer(refusal("bad_field", detail, errors=errors))

    async def on_failure(request: Request, error: Exception) -> Response:
        log_failure(logger, "request failed", error)
        return answer(refusal("internal_error", "the service failed; the log has the reason"))

    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_bad_fields)
    app.add_exception_handler(Exception, on_failure)
