"""The table from the library's exceptions to HTTP, and what is in no table."""

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
    """A new exception without a row would be answered as its parent: say so on purpose."""
    tree = {
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.RecsysError)
    }
    assert set(TABLE) == tree


def test_the_drawn_tree_names_every_exception() -> None:
    """The outline in the docstring is what people read."""
    drawn = errors.__doc__ or ""
    assert all(error.__name__ in drawn for error in TABLE)


def test_an_error_that_nobody_foresaw_is_a_problem_that_tells_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted as every answer, and has an id that the log has too."""
    state = State(LoadedReleases(1), ServeConfig(), Metrics())

    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(state, "choose_release", fail)

    async def ask() -> list[httpx.Response]:
        async with asgi_client(create_app(state, ApiKeys(None))) as client:
            return [await client.get("/v1/items/x"), await client.get("/metrics")]

    answer, figures = asyncio.run(ask())
    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM)
    assert answer.json()["type"] == "urn:recsys:internal-error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]
    assert 'status="500"} 1.0' in figures.text
