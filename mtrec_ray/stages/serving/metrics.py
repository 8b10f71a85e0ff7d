"""What a service counts, for Prometheus: requests, their time, and what waits."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts of one replica; they name routes and scenarios, and no user."""

    def __init__(self, replica: str) -> None:
        self.registry = CollectorRegistry()
        common = {"registry": self.registry, "namespace": "mtrec"}
        names = ["replica", "route", "status"]
        self.requests = Counter("requests", "Requests by status.", names, **common)
        self.seconds = Histogram(
            "request_seconds", "Time of a request.", names[:2], buckets=SECONDS, **common
        )
        self.batch = Histogram(
            "batch_requests", "Requests of a call.", names[:1], buckets=SIZES, **common
        )
        self.waiting = Gauge("waiting_requests", "Requests that wait.", names[:1], **common)
        self.share = Gauge(
            "version_share", "Share of users of a version.", ["replica", "version"], **common
        )
        self.events = Counter("stored_events", "Events that were stored.", names[:1], **common)
        self.replica = replica

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(self.replica, route, str(status)).inc()
        self.seconds.labels(self.replica, route).observe(seconds)

    def batched(self, size: int) -> None:
        """Count a call of so many requests."""
        self.batch.labels(self.replica).observe(size)

    def text(self) -> bytes:
        """Returns all counts in Prometheus' text format."""
        return generate_latest(self.registry)
