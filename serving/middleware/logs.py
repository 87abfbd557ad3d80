"""Logs as lines of JSON: requests on standard output, the life of the server on standard error.

A line has the request's id. It has no path, since ids of items stand there, no body, and no header.
"""

from __future__ import annotations

import json
import logging
import os
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
STDOUT = 1


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
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value is not None})


def request(**told: str | float | None) -> None:
    """One line of a request. Not by `logging`, which takes longer than the rest of a request's account."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "request_id": REQUEST_ID.get(), **told}
    os.write(STDOUT, to_json(line) + b"\n")


CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"lines": {"()": Lines}},
    "handlers": {"life": {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.stderr"}},
    "loggers": {
        "serving": {"handlers": ["life"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["life"], "level": "WARNING", "propagate": False},
    },
}
"""For `logging.config.dictConfig`."""
