"""Prometheus metrics of one ingress process, shown at /metrics.

Queues are counted here and not in the replicas: a request counts from when its stage is asked for until the answer, so
waiting is inside. `deploy/grafana` and `deploy/prometheus` name every metric of this file; a test keeps them together.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Requests, refusals, live recordings, queues, latency per stage, batch sizes and confidence.

    Each has its own registry, so several apps can live together.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "phosphene_requests", "Requests by route and status", ["route", "status"], registry=self._registry
        )
        self.refusals = Counter("phosphene_refusals", "Refusals by code", ["code"], registry=self._registry)
        self.jobs = Counter("phosphene_jobs", "Jobs handed in, by outcome", ["outcome"], registry=self._registry)
        self.jobs_state = Gauge(
            "phosphene_jobs_state", "Jobs in the store by state", ["state"], registry=self._registry
        )
        self.in_flight = Gauge("phosphene_in_flight", "Requests inside the service", registry=self._registry)
        self.streams_open = Gauge("phosphene_streams_open", "Live recordings that are open", registry=self._registry)
        self.bundles_rejected = Gauge(
            "phosphene_bundles_rejected",
            "1 while the list of bundles that was given last cannot be served, and the one before is",
            registry=self._registry,
        )
        self.stage_seconds = Histogram(
            "phosphene_stage_seconds", "Seconds per stage", ["stage"], buckets=_SECONDS, registry=self._registry
        )
        self.stage_requests = Gauge(
            "phosphene_stage_requests",
            "Requests waiting for a stage or worked on in it",
            ["stage"],
            registry=self._registry,
        )
        self.queued_pictures = Gauge(
            "phosphene_queued_pictures", "Pictures ordered and not made yet", registry=self._registry
        )
        self.batch_size = Histogram(
            "phosphene_batch_size", "Pictures denoised together", buckets=(1, 2, 4, 8, 16, 32), registry=self._registry
        )
        self.confidence = Histogram(
            "phosphene_confidence",
            "Confidence of decoded epochs",
            buckets=tuple(step / 10.0 for step in range(1, 11)),
            registry=self._registry,
        )
        self.pictures = Counter("phosphene_pictures", "Pictures returned", registry=self._registry)

    def count_refusal(self, code: str) -> None:
        """Count one refusal."""
        self.refusals.labels(code).inc()

    def render(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self._registry)
