"""Prometheus metrics of the service, and the log line of each request.

Names follow the conventions of Prometheus: a prefix, base units, `_total` for counters. With several workers,
prometheus_client aggregates them through files in PROMETHEUS_MULTIPROC_DIR. Items, users and API keys are not labels.
"""

from __future__ import annotations

import logging
import os
import re
import time
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.middleware.environment import METRICS_FOLDER
from serving.middleware.logs import REQUEST_ID, log_request
from serving.protocol import headers
from serving.protocol.problem import create_problem, problem_response

logger = logging.getLogger(__name__)

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
RATIO_BUCKETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
UNMATCHED = "unmatched"
"""Route label of paths without a route. With the path as label, clients could fill the memory."""
NO_RELEASE = "none"
"""Release label of responses that do not depend on a release."""
RELEASE_HEADER = headers.encode(headers.RELEASE)
REQUEST_ID_HEADER = b"x-request-id"
REQUEST_ID_PATTERN = re.compile(rb"[\w.:-]{1,128}")
"""Request ids that are accepted from clients. Other ids could inject text into the log."""


class Metrics:
    """The metrics of one application, in their own registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, description: str, *labels: str) -> Counter:
            return Counter(f"recsys_{name}", description, labels, registry=self._registry)

        def gauge(name: str, description: str, *labels: str) -> Gauge:
            return Gauge(f"recsys_{name}", description, labels, registry=self._registry, multiprocess_mode="mostrecent")

        def histogram(name: str, description: str, *labels: str, buckets: Any = LATENCY_BUCKETS_S) -> Histogram:
            return Histogram(f"recsys_{name}", description, labels, registry=self._registry, buckets=buckets)

        self._requests = counter("http_requests", "HTTP requests.", "route", "status", "release")
        self._duration = histogram(
            "http_request_duration_seconds", "Time from a request to the last byte of its response.", "route"
        )
        self._request_series: dict[tuple[str, int, str], tuple[Counter, Histogram]] = {}
        """Route, status and release -> the series of these labels."""
        self._rejected = counter("rejected_requests", "Requests rejected by access control or limits.", "reason")
        self._fallbacks = counter("fallback_results", "Results with popular items, because no item was known.")
        self._unknown_items = counter("unknown_items", "Item ids in queries that the release does not contain.")
        self._loads = counter("release_loads", "Attempts to load a release.", "outcome")
        self._errors = gauge("component_error", "1 while a component has an error, otherwise 0.", "component")
        self._items = gauge("release_items", "Number of items of the release.", "role")
        self._age = gauge("release_age_seconds", "Time since the release was built.", "role")
        self._changes = counter("item_changes", "Item changes accepted since the start.", "kind")
        self._stored_changes = gauge("stored_item_changes", "Number of items with a stored change.")
        self._change_bytes = gauge("item_changes_file_bytes", "Size of the file of item changes.")
        self._overlap = histogram(
            "shadow_overlap_ratio",
            "Share of the champion's neighbors that the challenger returned too.",
            buckets=RATIO_BUCKETS,
        )
        self._shadow_duration = histogram(
            "shadow_search_duration_seconds", "Search time of champion and challenger on the same queries.", "role"
        )
        self._shadow_failures = counter("shadow_failures", "Queries that the challenger failed to answer.")

    def count_result(self, num_unknown: int, *, fallback: bool) -> None:
        """Count the unknown item ids of a query, and whether popular items were returned."""
        if num_unknown:
            self._unknown_items.inc(num_unknown)
        if fallback:
            self._fallbacks.inc()

    def count_rejected(self, reason: str) -> None:
        """Count a rejected request."""
        self._rejected.labels(reason).inc()

    def count_change(self, kind: str) -> None:
        """Count an item change: `put` or `hide`."""
        self._changes.labels(kind).inc()

    def count_load(self, outcome: str) -> None:
        """Count an attempt to load a release: `success` or `failure`."""
        self._loads.labels(outcome).inc()

    def set_error(self, component: str, *, active: bool) -> None:
        """Record whether a component has an error."""
        self._errors.labels(component).set(active)

    def observe_shadow(self, overlap: float, champion_s: float, challenger_s: float) -> None:
        """Record the comparison of one query between champion and challenger."""
        self._overlap.observe(overlap)
        self._shadow_duration.labels("champion").observe(champion_s)
        self._shadow_duration.labels("challenger").observe(challenger_s)

    def count_shadow_failure(self) -> None:
        """Count a query that the challenger failed to answer."""
        self._shadow_failures.inc()

    def set_release(self, role: str, num_items: int, created_at: float) -> None:
        """Record size and age of a loaded release; `created_at` in seconds since 1970."""
        self._items.labels(role).set(num_items)
        self._age.labels(role).set(time.time() - created_at)

    def set_item_changes(self, count: int, num_bytes: int) -> None:
        """Record the number of stored item changes and the size of their file."""
        self._stored_changes.set(count)
        self._change_bytes.set(num_bytes)

    def observe_request(self, route: str, status: int, release_id: str, duration_s: float) -> None:
        """Count a request, and record its duration."""
        series = self._request_series.get((route, status, release_id))
        if series is None:  # finding the series of labels takes longer than counting
            series = self._requests.labels(route, status, release_id), self._duration.labels(route)
            self._request_series[route, status, release_id] = series
        counter, histogram = series
        counter.inc()
        histogram.observe(duration_s)

    def render(self) -> bytes:
        """Return the metrics of all workers in the text format of Prometheus."""
        if METRICS_FOLDER not in os.environ:
            return generate_latest(self._registry)
        aggregated = CollectorRegistry()
        MultiProcessCollector(aggregated)  # type: ignore[no-untyped-call]
        return generate_latest(aggregated)


class MetricsMiddleware:
    """ASGI middleware that assigns an id to each request, measures and logs it, and responds to unexpected errors."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, then record its metrics."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_at = time.perf_counter()
        request_id = _request_id(scope)
        REQUEST_ID.set(request_id.decode())
        status, release_id, started = 500, NO_RELEASE, False

        async def send_with_request_id(message: Message) -> None:
            nonlocal status, release_id, started
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                raw_headers = message["headers"]
                release_id = next((value.decode() for name, value in raw_headers if name == RELEASE_HEADER), NO_RELEASE)
                message = {**message, "headers": [*raw_headers, (REQUEST_ID_HEADER, request_id)]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_request_id)
        except Exception:
            logger.exception("unexpected error in a request")
            if not started:
                error = HTTPStatus.INTERNAL_SERVER_ERROR
                problem = create_problem(scope, error, "internal-error", error.description)
                await problem_response(problem)(scope, receive, send_with_request_id)
        finally:
            duration_s = time.perf_counter() - started_at
            route = route_path(scope)
            self._metrics.observe_request(route, status, release_id, duration_s)
            log_request(
                method=scope["method"],
                route=route,
                status=status,
                release_id=release_id,
                duration_ms=round(1_000 * duration_s, 3),
                api_key=scope.get("recsys.api_key"),
            )


def route_path(scope: Scope) -> str:
    """Return the path template of the matched route."""
    return getattr(scope.get("route"), "path", UNMATCHED)


def _request_id(scope: Scope) -> bytes:
    received = headers.received(scope).get(REQUEST_ID_HEADER)
    if received is not None and REQUEST_ID_PATTERN.fullmatch(received):
        return received
    return os.urandom(16).hex().encode()
