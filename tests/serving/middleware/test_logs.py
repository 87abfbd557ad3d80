"""Log lines are JSON."""

from __future__ import annotations

import json
import logging
import sys

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
