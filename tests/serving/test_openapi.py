"""`docs/openapi.json` is the OpenAPI description of the application."""

from __future__ import annotations

from serving import openapi
from tests import ROOT


def test_documented_openapi_is_current() -> None:
    """If this fails, run `make openapi`."""
    assert (ROOT / "docs" / "openapi.json").read_text(encoding="utf-8") == openapi.openapi_json()
