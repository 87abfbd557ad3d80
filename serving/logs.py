"""Logs as lines of JSON: requests on standard output, the life of the server on standard error.

A line has the request's id. It has no path, since ids of items stand there, no body, and no header.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
FIELDS = ("method", "route", "status", "release", "ms", "key")


class Lines(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
        }
        line.update((name, getattr(record, name)) for name in FIELDS if hasattr(record, name))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value is not None})


def _to(stream: str) -> dict[str, Any]:
    return {"class": "logging.StreamHandler", "formatter": "lines", "stream": f"ext://sys.{stream}"}


CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"lines": {"()": Lines}},
    "handlers": {"requests": _to("stdout"), "life": _to("stderr")},
    "loggers": {
        "serving": {"handlers": ["life"], "level": "INFO", "propagate": False},
        "serving.requests": {"handlers": ["requests"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["life"], "level": "WARNING", "propagate": False},
    },
}
"""For `logging.config.dictConfig`."""
