"""Traces: the stages of a request in one tree, through Ray Serve's processes, and nothing personal in them."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from fake_service import FakeBackend, fake_service, make_epochs
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from tiny_bundle import make_tiny_bundle, tiny_recording

from serving.cluster import free_port, local_service
from serving.settings import ServingSettings
from serving.traces import RAY_ENVIRONMENT, DiscreetExporter, configured, span_processors

STAGES = {"read", "embed", "generate", "encode"}
CANARY = "anna-schmidt-1980"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(DiscreetExporter(exporter)))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def post(url: str, content: bytes, **fields: str) -> httpx.Response:
    files = {"file": (f"{CANARY}.npz", content)}
    return httpx.post(f"{url}/v1/generations?{CANARY}", files=files, data=fields, timeout=120.0, trust_env=False)


def wait_for(exporter: InMemorySpanExporter, n_requests: int) -> None:
    deadline = time.monotonic() + 10.0
    while sum(one.name == "request" for one in exporter.get_finished_spans()) < n_requests:
        assert time.monotonic() < deadline, "a request's span did not end"
        time.sleep(0.01)


def test_a_request_is_one_tree_of_its_stages(exported: InMemorySpanExporter) -> None:
    with fake_service(ServingSettings(bundle=Path("unused")), FakeBackend()) as url:
        assert post(url, make_epochs().to_bytes()).status_code == 200
        wait_for(exported, 1)
    spans = {one.name: one for one in exported.get_finished_spans()}
    assert set(spans) == STAGES | {"request", "upload"}
    whole = spans.pop("request")
    assert dict(whole.attributes or {}) == {"phosphene.route": "/v1/generations", "phosphene.status": 200}
    for one in spans.values():
        assert one.parent is not None and whole.context is not None
        assert (one.parent.span_id, one.parent.trace_id) == (whole.context.span_id, whole.context.trace_id)
    starts = [spans[name].start_time or 0 for name in ("upload", "read", "embed", "generate", "encode")]
    assert starts == sorted(starts)
    assert (spans["upload"].end_time or 0) <= starts[1]


def test_a_refusal_and_a_foreign_path_leave_neither_text_nor_path(exported: InMemorySpanExporter) -> None:
    with fake_service(ServingSettings(bundle=Path("unused")), FakeBackend()) as url:
        assert post(url, make_epochs(ch_names=("Fp1", CANARY)).to_bytes()).status_code == 422
        assert post(url, b"not a recording").status_code == 422
        assert httpx.get(f"{url}/{CANARY}", trust_env=False).status_code == 404
        wait_for(exported, 3)
    spans = exported.get_finished_spans()
    assert {one.name for one in spans} >= {"request", "upload", "read", "embed"}
    assert all(CANARY not in one.to_json() for one in spans)
    assert [one for one in spans if one.events] == []


def test_what_ray_adds_is_cut_down() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(DiscreetExporter(exporter)))
    with provider.get_tracer("ray").start_as_current_span(f"proxy_http_request Ingress GET /{CANARY}") as current:
        current.set_attributes({"http.route": f"/{CANARY}", "http.method": "GET", "http.status_code": 404})
        current.record_exception(ValueError(CANARY))
        current.set_status(StatusCode.ERROR, CANARY)
    (one,) = exporter.get_finished_spans()
    assert one.name == "proxy_http_request Ingress GET"
    assert dict(one.attributes or {}) == {"http.method": "GET", "http.status_code": 404}
    assert one.status.status_code is StatusCode.ERROR
    assert CANARY not in one.to_json()


def test_nothing_is_exported_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert not configured() and span_processors() == []
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    (processor,) = span_processors()
    processor.shutdown()


class Collector:
    """Takes OTLP/HTTP on loopback and keeps what came."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces" and self.headers.get("Content-Encoding", "") == "":
                    bodies.append(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in list(self.bodies)]
        return [
            one
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for one in scope.spans
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    stub = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", stub.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    yield stub
    stub.close()


def test_ray_is_told_where_the_exporter_is() -> None:
    path = RAY_ENVIRONMENT["RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"]
    assert path == f"{span_processors.__module__}:{span_processors.__name__}"
    assert float(RAY_ENVIRONMENT["RAY_SERVE_TRACING_SAMPLING_RATIO"]) == 1.0


@pytest.mark.slow
def test_a_trace_goes_through_proxy_ingress_and_replicas(collector: Collector, tmp_path: Path) -> None:
    settings = ServingSettings(bundle=make_tiny_bundle(tmp_path / "bundle"), port=free_port())
    with local_service(settings) as url:
        answer = post(url, tiny_recording("eeg", 1).to_bytes(), num_inference_steps="2")
        assert answer.status_code == 200, answer.text
        deadline = time.monotonic() + 20.0
        while not (ended := [one for one in collector.spans() if one.name.startswith("proxy_http_request")]):
            assert time.monotonic() < deadline, sorted({one.name for one in collector.spans()})
            time.sleep(0.2)
        time.sleep(2.0)
    (whole,) = [one for one in ended if "POST" in one.name]
    spans = {one.span_id: one for one in collector.spans() if one.trace_id == whole.trace_id}
    names = {one.name for one in spans.values()}
    assert names >= STAGES | {"request", "upload"}, names

    def ancestors(one: Span) -> list[str]:
        parent = spans.get(one.parent_span_id)
        return [] if parent is None else [parent.name, *ancestors(parent)]

    by_work = {"embed": "replica_handle_request Encoder embed", "generate": "replica_handle_request Generator generate"}
    for stage, work in by_work.items():
        (replica,) = [one for one in spans.values() if one.name == work]
        assert stage in ancestors(replica), (work, ancestors(replica))
        assert ancestors(replica)[-1] == whole.name, "the proxy's span is the root"
    assert all(CANARY.encode() not in body for body in collector.bodies)
