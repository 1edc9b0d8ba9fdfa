"""Traces of requests, sent over OTLP/HTTP to where OTEL_EXPORTER_OTLP_ENDPOINT points; without it nothing is sent.

Ray Serve makes the spans of proxy, router and replicas and carries the context between processes; the stages of a
request are ours. What leaves is cut down to names of deployments, routes, methods, codes and sizes: Ray puts the raw
path into its spans and the text of errors beside them, and either could hold what somebody typed or recorded.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, Status
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# What Ray is started with; every process of Ray Serve then asks `span_processors`.
RAY_ENVIRONMENT = {
    "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "serving.traces:span_processors",
    "RAY_SERVE_TRACING_SAMPLING_RATIO": "1",
    "OTEL_SERVICE_NAME": "phosphene",
}

_ATTRIBUTES = frozenset(
    {
        "phosphene.route",
        "phosphene.status",
        "phosphene.n_files",
        "phosphene.n_epochs",
        "phosphene.n_pictures",
        "phosphene.batch_size",
        "http.method",
        "http.status_code",
        "rpc.method",
        "rpc.service",
        "deployment",
        "app",
        "replica_id",
        "request_id",
    }
)


def configured() -> bool:
    """Tell whether the environment says where traces go."""
    return any(os.environ.get(name) for name in _ENDPOINTS)


def span_processors() -> list[SpanProcessor]:
    """Return what Ray Serve hands finished spans to: an exporter if one is configured, else nothing."""
    if not configured():
        return []
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return [BatchSpanProcessor(DiscreetExporter(OTLPSpanExporter()))]


@contextmanager
def span(name: str, **numbers: str | int) -> Iterator[Span]:
    """Make a span of the current request; `numbers` become attributes ``phosphene.<name>``. Errors leave no text."""
    attributes = {f"phosphene.{key}": value for key, value in numbers.items()}
    with trace.get_tracer("phosphene").start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        yield current


class TracedApp:
    """An ASGI application with a span of every request, named by route, and one of its body's arrival."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on inside its span."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with span("request") as whole:
            upload = trace.get_tracer("phosphene").start_span("upload")

            async def timed_receive() -> Message:
                message = await receive()
                if not message.get("more_body", False) and upload.is_recording():
                    upload.end()
                return message

            async def seen_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    whole.set_attribute("phosphene.status", message["status"])
                await send(message)

            try:
                await self._app(scope, timed_receive, seen_send)
            finally:
                if upload.is_recording():
                    upload.end()
                whole.set_attribute("phosphene.route", getattr(scope.get("route"), "path", "other"))


class DiscreetExporter(SpanExporter):
    """Hand spans on without what could identify a person: unlisted attributes, paths in names, events, error texts."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the reduced spans."""
        return self._exporter.export([_reduced(one) for one in spans])

    def shutdown(self) -> None:
        """Close the exporter behind."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the exporter behind."""
        return self._exporter.force_flush(timeout_millis)


def _reduced(full: ReadableSpan) -> ReadableSpan:
    attributes: Mapping[str, object] = full.attributes or {}
    return ReadableSpan(
        name=full.name.split(" /", 1)[0],
        context=full.get_span_context(),
        parent=full.parent,
        resource=full.resource,
        attributes={key: value for key, value in attributes.items() if key in _ATTRIBUTES},  # type: ignore[misc]
        kind=full.kind,
        status=Status(full.status.status_code),
        start_time=full.start_time,
        end_time=full.end_time,
        instrumentation_scope=full.instrumentation_scope,
    )
