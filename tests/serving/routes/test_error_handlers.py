"""HTTP status of each exception of the library, and the response to an unexpected error."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from recsys import errors
from recsys.config.sections import ServeConfig
from recsys.testing.openapi import PROBLEM
from serving.app import create_app
from serving.live.loaded_releases import LoadedReleases
from serving.live.state import State
from serving.middleware.api_keys import ApiKeys
from serving.middleware.metrics import Metrics
from serving.routes.error_handlers import TABLE
from tests.serving.asgi import asgi_client


def test_every_exception_of_the_library_has_a_status() -> None:
    """A new exception without a row would get the status of its base class."""
    exceptions = {
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.RecsysError)
    }
    assert set(TABLE) == exceptions


def test_module_docstring_names_every_exception() -> None:
    docstring = errors.__doc__ or ""
    assert all(error.__name__ in docstring for error in TABLE)


def test_unexpected_error_is_500_without_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The response is counted and has a request id."""
    state = State(LoadedReleases(1), ServeConfig(), Metrics())

    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(state, "choose_release", fail)

    async def send() -> list[httpx.Response]:
        async with asgi_client(create_app(state, ApiKeys(None))) as client:
            return [await client.get("/v1/items/x"), await client.get("/metrics")]

    response, metrics = asyncio.run(send())
    assert (response.status_code, response.headers["content-type"]) == (500, PROBLEM)
    assert response.json()["type"] == "urn:recsys:internal-error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"]
    assert 'status="500"} 1.0' in metrics.text
