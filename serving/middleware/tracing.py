"""A span for each request, where OpenTelemetry is installed and told where to send it (`recsys[otel]`).

All settings are OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT turns it on, OTEL_SERVICE_NAME names the
service. A span has the route, the status and the release, and no id of anything else.
"""

from __future__ import annotations

import os
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.errors import ConfigError
from serving.middleware.metrics import RELEASE_HEADER, route_of

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def tracer() -> Any | None:
    """What makes spans; None where nobody wants them.

    Raises:
        ConfigError: they are wanted, and OpenTelemetry is not installed.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{ENDPOINTS[0]} needs {error.name}, which is not installed. Install recsys[otel], or unset it."
        ) from None
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("recsys")


class Traced:
    """ASGI middleware: one span a request, below the caller's where it sent one."""

    def __init__(self, app: ASGIApp, tracer: Any) -> None:
        self.app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from opentelemetry.propagate import extract  # noqa: PLC0415
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracer.start_as_current_span(
            scope["method"], context=extract(headers), kind=SpanKind.SERVER, record_exception=False
        ) as span:

            async def observed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    release = dict(message["headers"]).get(RELEASE_HEADER)
                    if release is not None:
                        span.set_attribute("recsys.release.bundle", release.decode("latin-1"))
                await send(message)

            await self.app(scope, receive, observed)
            route = route_of(scope)
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
