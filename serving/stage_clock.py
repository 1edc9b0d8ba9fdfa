"""How long each stage of a request takes, for its answer and for the metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from serving.metrics import Metrics
from serving.schema import Timings
from serving.traces import span


class StageClock:
    """Milliseconds per stage of one request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = time.perf_counter()
        self.ms = {"read": 0.0, "embed": 0.0, "generate": 0.0, "encode": 0.0}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage and trace it."""
        started = time.perf_counter()
        # a refused or cancelled stage leaves the queue too, and has no latency
        with self._metrics.stage_requests.labels(name).track_inprogress(), span(name):
            yield
        seconds = time.perf_counter() - started
        self.ms[name] = round(1000.0 * seconds, 2)
        self._metrics.stage_seconds.labels(name).observe(seconds)

    def timings(self, batch_size: int = 0) -> Timings:
        """Return what was measured, at the end of the request."""
        total = time.perf_counter() - self._started
        self._metrics.stage_seconds.labels("total").observe(total)
        return Timings(
            read_ms=self.ms["read"],
            embed_ms=self.ms["embed"],
            generate_ms=self.ms["generate"],
            encode_ms=self.ms["encode"],
            total_ms=round(1000.0 * total, 2),
            batch_size=batch_size,
        )
