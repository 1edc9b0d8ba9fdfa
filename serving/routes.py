"""The HTTP interface over a `Backend`: routes decode, call and encode.

`create_app` needs no Ray, so the interface is tested in one process; `serving.app` puts it behind Ray Serve.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Form, Header, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from serving.access import caller_of
from serving.answers import Answers
from serving.backend import Backend
from serving.door import Door
from serving.failures import log_failure, quiet_servers
from serving.forms import AT_THE_DOOR, EmbeddingForm, GenerationForm, refusals, responses_with, stream_of_events
from serving.gate import Gate
from serving.job_desk import JobDesk
from serving.job_routes import IdempotencyKey, JobCounter, add_jobs
from serving.job_schema import JobStatus
from serving.metrics import CONTENT_TYPE, Metrics
from serving.page import PAGE, PAGE_HEADERS, add_page
from serving.people import People
from serving.problems import add_handlers, problem_of, refusal
from serving.provenance import Marker
from serving.purpose import check_use
from serving.sandbox import Sandbox
from serving.schema import (
    EXAMPLE_EMBEDDING,
    EXAMPLE_GENERATION,
    BundleList,
    EmbeddingResponse,
    GenerationResponse,
    Problem,
    Progress,
)
from serving.sealed_uploads import SealedRoute
from serving.settings import ServingSettings
from serving.stream import StreamDesk, add_stream
from serving.traces import TracedApp

logger = logging.getLogger(__name__)
Value = TypeVar("Value")


def create_app(
    settings: ServingSettings,
    backend: Backend,
    sandbox: Sandbox,
    example: Callable[[], Path | None] = lambda: None,
    desk: JobDesk | None = None,
) -> ASGIApp:
    """Build the ASGI application.

    Parameters
    ----------
    settings : ServingSettings
    backend : Backend
        Embeds and generates.
    sandbox : Sandbox
        Reads uploads; started and closed with the application.
    example : callable () -> Path or None, optional
        Gives the recording that the web page offers to try.
    desk : JobDesk, optional
        Where jobs are handed in; closed with the application. Without it the routes of jobs refuse.
    """
    quiet_servers()
    metrics = Metrics()
    metrics.bundles_rejected.set_function(lambda: float(backend.rejects()))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await sandbox.start()
        yield
        sandbox.close()
        if desk is not None:
            desk.close()

    app = FastAPI(
        title="phosphene",
        summary="POST an epoch file of EEG or MEG, receive generated pictures and how far to trust them.",
        lifespan=lifespan,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        telemetry={"tracing": False},  # its spans start a trace of their own and hold the raw path
    )
    app.router.route_class = SealedRoute
    app.state.access = settings.access
    add_handlers(app, metrics.count_refusal)
    counter = JobCounter(desk, metrics, settings, backend.places)
    people = People(settings.people_folder)
    answers = Answers(backend, sandbox, metrics, Marker(settings.pictures), people)
    _add_work(app, answers, counter, metrics, settings.request_timeout_s)
    add_jobs(app, counter)
    _add_state(app, backend, counter, metrics, people)
    add_stream(app, StreamDesk(answers, metrics, settings))
    add_page(app, example)
    gate = app.state.gate = Gate(
        app,
        metrics=metrics,
        max_in_flight=settings.max_in_flight,
        max_upload_mb=settings.max_upload_mb,
        answer_timeout_s=settings.request_timeout_s,
    )
    door = Door(gate, settings.access, metrics=metrics, page=PAGE, page_headers=PAGE_HEADERS)
    return TracedApp(door)


def _add_work(app: FastAPI, answers: Answers, counter: JobCounter, metrics: Metrics, timeout_s: float) -> None:
    answers_documented = responses_with(EXAMPLE_GENERATION)
    answers_documented[200]["content"] |= stream_of_events("")["content"]
    answers_documented[202] = {"model": JobStatus, "description": "A job, with `Prefer: respond-async`."}

    @app.post(
        "/v1/generations",
        response_model=GenerationResponse,
        responses=answers_documented,
        description="With `Accept: text/event-stream` the answer is a stream of `progress` events (stage, step, "
        "n_steps) and one `result` or `problem` event. With `Prefer: respond-async` the answer is that of "
        "`POST /v1/jobs`.",
    )
    async def generations(
        request: Request,
        form: Annotated[GenerationForm, Form(media_type="multipart/form-data")],
        prefer: Annotated[str, Header()] = "",  # documented here; there may be several
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        check_use(request, form)
        if "respond-async" in _preferences(request):
            return await counter.accept(request, form, idempotency_key, preferred=True)
        contents = [await part.read() for part in form.file]
        if "text/event-stream" in request.headers.get("accept", ""):
            return StreamingResponse(
                _events(request, answers, form, contents, metrics, timeout_s),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        answer = await _finish(request, answers.generation(form, contents, owner=caller_of(request).owner), timeout_s)
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.post("/v1/embeddings", response_model=EmbeddingResponse, responses=responses_with(EXAMPLE_EMBEDDING))
    async def embeddings(
        request: Request, form: Annotated[EmbeddingForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        check_use(request, form)
        contents = [await part.read() for part in form.file]
        answer = await _finish(request, answers.embedding(form, contents, owner=caller_of(request).owner), timeout_s)
        return Response(answer.model_dump_json(), media_type="application/json")


def _preferences(request: Request) -> set[str]:
    """Name the preferences of all Prefer headers, without values and parameters (RFC 7240)."""
    listed = ",".join(request.headers.getlist("prefer")).split(",")
    return {preference.partition(";")[0].partition("=")[0].strip().lower() for preference in listed}


def _add_state(app: FastAPI, backend: Backend, counter: JobCounter, metrics: Metrics, people: People) -> None:
    @app.get("/v1/bundles", responses=refusals(*AT_THE_DOOR))
    async def bundles(request: Request) -> BundleList:
        await _require_ready(backend)
        owner, listed = caller_of(request).owner, []
        for number, place in enumerate(backend.places()):
            info = (await backend.describe(place)).info
            known = people.known(place.id, owner)
            listed.append(info.model_copy(update={"default": not number, "calibrated": known}))
        access = request.app.state.access
        return BundleList(
            bundles=tuple(listed),
            purposes=access.purposes,
            purpose_required=access.require_purpose,
            consent_required=access.require_consent,
        )

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", responses=refusals(503))
    async def readyz() -> dict[str, str]:
        await _require_ready(backend)
        return {"status": "ready"}

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", response_class=Response, responses={**text, **refusals(*AT_THE_DOOR)})
    async def prometheus() -> Response:
        await counter.measure()
        return Response(metrics.render(), media_type=CONTENT_TYPE)


async def _require_ready(backend: Backend) -> None:
    if not await backend.ready():
        raise refusal("not_ready", "the models are still loading; try again in a few seconds", retry_after_s=3)


async def _finish(request: Request, work: Coroutine[Any, Any, Value], timeout_s: float) -> Value:
    """Await `work`, and cancel it when the time is up or the client has left."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if gone in done:
            raise refusal("client_gone", "the client left; the work was cancelled")
        raise refusal("timed_out", f"the request took longer than {timeout_s:g} s; ask for fewer pictures or steps")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    request: Request,
    answers: Answers,
    form: GenerationForm,
    contents: list[bytes],
    metrics: Metrics,
    timeout_s: float,
) -> AsyncIterator[str]:
    """Yield server-sent events: progress, then one result or problem."""
    queue: asyncio.Queue[Progress | None] = asyncio.Queue()

    async def work() -> GenerationResponse | Problem:
        try:
            answer = answers.generation(form, contents, queue.put_nowait, owner=caller_of(request).owner)
            return await _finish(request, answer, timeout_s)
        except HTTPException as error:
            return problem_of(error)
        except Exception as error:
            log_failure(logger, "streamed request failed", error)
            return problem_of(refusal("internal_error", "the service failed; the log has the reason"))
        finally:
            queue.put_nowait(None)

    task = asyncio.ensure_future(work())
    try:
        try:
            while (progress := await queue.get()) is not None:
                request.state.still_allowed()
                yield f"event: progress\ndata: {progress.model_dump_json()}\n\n"
            request.state.still_allowed()
            answer = await task
        except HTTPException as error:  # the key was taken away
            answer = problem_of(error)
        request.state.record["outcome"] = answer.code if isinstance(answer, Problem) else "result"
        if isinstance(answer, Problem):
            metrics.count_refusal(answer.code)
        name = "problem" if isinstance(answer, Problem) else "result"
        yield f"event: {name}\ndata: {answer.model_dump_json()}\n\n"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
