"""What the service tells Prometheus about itself: requests by route and status, latencies, the release.

Names follow Prometheus's conventions: a prefix, base units, `_total` for counters.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
UNMATCHED = "unmatched"
"""Label of paths that are no route: a label a path would let strangers fill the memory."""


class Telemetry:
    """The metrics of one application, in a registry of their own."""

    def __init__(self, release_id: str, num_items: int) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("recsys_http_requests", "Requests.", ["route", "status"], registry=self.registry)
        self.latency = Histogram(
            "recsys_http_request_duration_seconds",
            "Time from the first byte of a request to the last one of its answer.",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        release = Gauge("recsys_release_items", "Items of the release.", ["release_id"], registry=self.registry)
        release.labels(release_id).set(num_items)

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class Measured:
    """ASGI middleware that counts and times every request."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        finally:
            route = getattr(scope.get("route"), "path", UNMATCHED)
            self.telemetry.requests.labels(route, status).inc()
            self.telemetry.latency.labels(route).observe(time.perf_counter() - started)
