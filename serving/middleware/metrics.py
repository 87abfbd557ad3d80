"""What the service tells Prometheus about itself, and the line it logs for each request.

Names follow Prometheus's conventions: a prefix, base units, `_total` for counters. Over several workers the figures
are added up by prometheus_client, in files that PROMETHEUS_MULTIPROC_DIR names. No item, no user and no key is a label.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.middleware import logs
from serving.middleware.logs import REQUEST_ID
from serving.protocol import headers
from serving.protocol.problem import problem, response

logger = logging.getLogger(__name__)

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
SHARE_BUCKETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
UNMATCHED = "unmatched"
"""Label of paths that are no route: a label a path would let strangers fill the memory."""
NONE = "none"
"""Label of answers that no release had a part in."""
RELEASE_HEADER = headers.raw(headers.RELEASE)
REQUEST_ID_HEADER = b"x-request-id"
REQUEST_ID_FORM = re.compile(rb"[\w.:-]{1,128}")
"""What we take over; anything else would let strangers write into our log."""


class Telemetry:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"recsys_{name}", told, labels, registry=self._registry)

        def gauge(name: str, told: str, *labels: str) -> Gauge:
            return Gauge(f"recsys_{name}", told, labels, registry=self._registry, multiprocess_mode="mostrecent")

        def histogram(name: str, told: str, *labels: str, buckets: Any = LATENCY_BUCKETS_S) -> Histogram:
            return Histogram(f"recsys_{name}", told, labels, registry=self._registry, buckets=buckets)

        self._requests = counter("http_requests", "Requests.", "route", "status", "release")
        self._latency = histogram(
            "http_request_duration_seconds", "Time from a request to the last byte of its answer.", "route"
        )
        self._refused = counter("refused", "Requests that were not let in.", "reason")
        self._fallbacks = counter("fallback_answers", "Answers with popular items, since no item was known.")
        self._unknown = counter("unknown_items", "Ids that the release did not hold.")
        self._loads = counter("release_loads", "Releases that were to be loaded.", "outcome")
        self._trouble = gauge("trouble", "1 while the service cannot serve what it should.", "doing")
        self._items = gauge("release_items", "Items of the release.", "role")
        self._age = gauge("release_age_seconds", "Time since the release was built.", "role")
        self._changes = counter("changes", "Items that were changed or taken down between two nights.", "kind")
        self._entries = gauge("journal_entries", "Items with an entry in the journal.")
        self._bytes = gauge("journal_bytes", "Size of the journal on the disk.")
        self._overlap = histogram(
            "shadow_overlap", "Share of the champion's neighbors that the shadow has too.", buckets=SHARE_BUCKETS
        )
        self._shadow = histogram("shadow_duration_seconds", "Time of the same questions, without HTTP.", "role")
        self._shadow_failed = counter("shadow_failures", "Questions that the shadow did not answer.")

    def answered(self, unknown: int, *, fallback: bool) -> None:
        """Count an answer's unknown ids, and whether it fell back."""
        if unknown:
            self._unknown.inc(unknown)
        if fallback:
            self._fallbacks.inc()

    def refused(self, reason: str) -> None:
        """Count a request that was not let in."""
        self._refused.labels(reason).inc()

    def changed(self, kind: str) -> None:
        """Count a change of an item."""
        self._changes.labels(kind).inc()

    def loaded(self, outcome: str) -> None:
        """Count a release that was loaded, or was not."""
        self._loads.labels(outcome).inc()

    def troubled(self, doing: str, *, now: bool) -> None:
        """Say whether something is wrong."""
        self._trouble.labels(doing).set(now)

    def shadowed(self, overlap: float, champion_s: float, shadow_s: float) -> None:
        """Tell how the shadow did beside the champion."""
        self._overlap.observe(overlap)
        self._shadow.labels("champion").observe(champion_s)
        self._shadow.labels("shadow").observe(shadow_s)

    def shadow_failed(self) -> None:
        """Count a question that the shadow did not answer."""
        self._shadow_failed.inc()

    def serving(self, role: str, num_items: int, created: float) -> None:
        """Tell what a release in service is like."""
        self._items.labels(role).set(num_items)
        self._age.labels(role).set(time.time() - created)

    def journal(self, entries: int, size: int) -> None:
        """Tell the size of the journal."""
        self._entries.set(entries)
        self._bytes.set(size)

    def requested(self, route: str, status: int, release: str, took_s: float) -> None:
        """Count and time a request."""
        self._requests.labels(route, status, release).inc()
        self._latency.labels(route).observe(took_s)

    def exposition(self) -> bytes:
        """The metrics of all workers in Prometheus's text format."""
        if MULTIPROCESS not in os.environ:
            return generate_latest(self._registry)
        added_up = CollectorRegistry()
        MultiProcessCollector(added_up)  # type: ignore[no-untyped-call]
        return generate_latest(added_up)


class Measured:
    """ASGI middleware: every request has an id, is counted, timed and logged, and ends in an answer."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        REQUEST_ID.set(request_id.decode())
        status, release, begun = 500, NONE, False

        async def observed(message: Message) -> None:
            nonlocal status, release, begun
            if message["type"] == "http.response.start":
                begun = True
                status = message["status"]
                sent = message["headers"]
                release = next((value.decode() for name, value in sent if name == RELEASE_HEADER), NONE)
                message = {**message, "headers": [*sent, (REQUEST_ID_HEADER, request_id)]}
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except Exception:
            logger.exception("a request failed")
            if not begun:
                failed = HTTPStatus.INTERNAL_SERVER_ERROR
                told = problem(scope, failed, "internal-error", failed.description)
                await response(told)(scope, receive, observed)
        finally:
            took_s = time.perf_counter() - started
            route = route_of(scope)
            self.telemetry.requested(route, status, release, took_s)
            logs.request(
                method=scope["method"],
                route=route,
                status=status,
                release=release,
                ms=round(1_000 * took_s, 3),
                key=scope.get("recsys.key"),
            )


def route_of(scope: Scope) -> str:
    """The path of the route that took a request, with names for what varies."""
    return getattr(scope.get("route"), "path", UNMATCHED)


def _request_id(scope: Scope) -> bytes:
    given = next((value for name, value in scope["headers"] if name == REQUEST_ID_HEADER), b"")
    return given if REQUEST_ID_FORM.fullmatch(given) else uuid.uuid4().hex.encode()
