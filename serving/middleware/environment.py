"""Environment variables of metrics and tracing, which the supervisor needs without the libraries."""

from __future__ import annotations

import os

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Folder of the files through which prometheus_client aggregates the metrics of several workers."""
TRACING_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of OpenTelemetry that enable tracing."""


def is_tracing() -> bool:
    """Return whether the environment enables tracing."""
    return any(os.environ.get(name) for name in TRACING_ENDPOINTS)
