"""The metrics that Prometheus reads at `/metrics`."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        place: Any = {"namespace": "tpo_jax", "registry": self.registry}
        seconds: Any = place | {"buckets": SECONDS}
        sizes: Any = place | {"buckets": (1, 2, 4, 8, 16, 32, 64)}
        self.requests = Counter("requests", "Requests", ["path", "status"], **place)
        self.disconnected = Counter("disconnected", "Clients that left before the end", **place)
        self.tokens = Counter("generated_tokens", "Tokens of answers", **place)
        self.encoded = Counter("encoded_rows", "Videos, sets of images or texts encoded", **place)
        self.batches = Histogram("batch_questions", "Questions of a batch", **sizes)
        self.waiting = Gauge("waiting_questions", "Questions in the queue", **place)
        self.first = Histogram("first_token_seconds", "Until an answer begins", **seconds)
        self.seconds = Histogram("request_seconds", "Until an answer ends", **seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
