"""Log lines are JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime

import pytest

from serving.middleware import logs
from serving.middleware.logs import JsonFormatter


def test_line_is_json_whatever_the_message() -> None:
    try:
        int("line one\nline two")
    except ValueError:
        record = logging.LogRecord("serving", logging.ERROR, __file__, 1, 'a "%s"\n', ("b",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert fields["message"] == 'a "b"\n'
    assert "ValueError" in fields["traceback"]


def test_time_of_a_request_is_that_of_datetime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when only the milliseconds or only the seconds differ from the last line."""
    for nanoseconds in (1_700_000_000_999_999_999, 1_700_000_000_000_000_000, 1_700_000_001_007_000_000, 0):
        monkeypatch.setattr(time, "time_ns", lambda now=nanoseconds: now)
        expected = datetime.fromtimestamp(nanoseconds // 1_000_000 / 1_000, UTC)
        assert logs._now() == expected.isoformat(timespec="milliseconds")
