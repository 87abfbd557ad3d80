"""OpenTelemetry spans of requests (`recsys[otel]`).

Configured by the variables of OpenTelemetry: OTEL_EXPORTER_OTLP_ENDPOINT enables tracing, OTEL_SERVICE_NAME names the
service. A span has the route, the status and the release, and no ids of items or users.
"""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.errors import ConfigError
from serving.middleware.environment import TRACING_ENDPOINTS, is_tracing
from serving.middleware.metrics import RELEASE_HEADER, route_path


def create_tracer() -> Any | None:
    """Return a tracer, or None if the environment does not enable tracing.

    Raises:
        ConfigError: tracing is enabled, and OpenTelemetry is not installed.
    """
    if not is_tracing():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{TRACING_ENDPOINTS[0]} requires {error.name}, which is not installed. Install recsys[otel], or unset it."
        ) from None
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("recsys")


class TracingMiddleware:
    """ASGI middleware that records one span per request, as a child of the span of the client."""

    def __init__(self, app: ASGIApp, tracer: Any) -> None:
        self.app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request inside a span."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from opentelemetry.propagate import extract  # noqa: PLC0415
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracer.start_as_current_span(
            scope["method"], context=extract(headers), kind=SpanKind.SERVER, record_exception=False
        ) as span:

            async def send_and_record(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    release_id = dict(message["headers"]).get(RELEASE_HEADER)
                    if release_id is not None:
                        span.set_attribute("recsys.release_id", release_id.decode("latin-1"))
                await send(message)

            await self.app(scope, receive, send_and_record)
            route = route_path(scope)
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
