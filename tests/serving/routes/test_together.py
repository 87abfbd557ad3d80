"""`together` of a server process over HTTP. Every response is checked against the OpenAPI."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest

from recsys import Release
from recsys.retrieval.query import Condition, TogetherQuery
from recsys.testing.openapi import problem
from recsys.testing.releases import release_writer
from recsys.testing.service_process import Service, validated_client
from serving.client import Client
from tests import GOLDEN_RELEASES
from tests.serving.routes.conftest import MAX_K

SIZE = 60


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    path = release_writer(tmp_path_factory.mktemp("release"))(
        [f"item/{n}" for n in range(SIZE)],
        spaces=("next", "similar"),
        genre=pl.Series([["drama", "comedy", "crime"][n % 3] for n in range(SIZE)]),
        available=pl.Series([n % 4 != 0 for n in range(SIZE)]),
    )
    return Release.load(path)


def as_json(release: Release, query: TogetherQuery) -> Any:
    """Return the result of the library as the service sends it."""
    return json.loads(json.dumps(release.search_together(query).to_dict()))


def test_returns_the_result_of_the_library(client: httpx.Client, release: Release) -> None:
    parameters = {"k": 7, "offset": 2, "min_users": 1, "exclude": ["item/3", "unknown"], "only_available": True}
    response = client.get("/v1/items/item%2F5/together", params=parameters)
    query = TogetherQuery("item/5", k=7, offset=2, min_users=1, exclude=("item/3", "unknown"), only_available=True)
    assert response.json() == as_json(release, query)
    assert client.get("/v1/items/item%2F5/together").json() == as_json(release, TogetherQuery("item/5"))


def test_body_accepts_all_filters(client: httpx.Client, release: Release) -> None:
    allow = [f"item/{n}" for n in range(40)]
    body = {
        "item_id": "item/5",
        "k": 20,
        "exclude": ["item/7"],
        "allow": allow,
        "where": {"genre": ["drama", "crime"], "interactions": {"max": 5}},
        "only_available": True,
    }
    query = TogetherQuery(
        "item/5",
        k=20,
        exclude=("item/7",),
        allow=tuple(allow),
        where=(Condition("genre", any_of=("drama", "crime")), Condition("interactions", maximum=5)),
        only_available=True,
    )
    result = client.post("/v1/together", json=body).json()
    assert result == as_json(release, query)
    assert 0 < len(result["neighbors"]) < 20
    assert result["incomplete_reason"] == "filters"


def test_unchanged_response_is_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/v1/items/item%2F8/together", params={"k": 3})
    again = client.get("/v1/items/item%2F8/together", params={"k": 3}, headers={"If-None-Match": first.headers["ETag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    other = client.get("/v1/items/item%2F8/together", params={"k": 4}, headers={"If-None-Match": first.headers["ETag"]})
    assert other.status_code == 200


def test_release_can_be_chosen(client: httpx.Client, release: Release) -> None:
    path = "/v1/items/item%2F8/together"
    chosen = client.get(path, params={"release": release.release_id})
    assert chosen.headers["Recsys-Release"] == chosen.json()["release_id"] == release.release_id
    problem(client.get(path, params={"release": "other"}), 404, "release-not-loaded")
    problem(client.get(path, headers={"Recsys-Release": "other"}), 404, "release-not-loaded")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 0}, "k"),
        ({"k": MAX_K + 1}, "k must be at most 50"),
        ({"min_users": -1}, "min_users"),
        ({"min_users": "many"}, "min_users"),
        ({"cursor": "x"}, "cursor"),
        ({"sense": "similar"}, "sense"),
    ],
)
def test_invalid_parameters_are_a_problem(client: httpx.Client, parameters: dict[str, Any], message: str) -> None:
    response = client.get("/v1/items/item%2F1/together", params=parameters)
    assert message in problem(response, 422, "invalid-request")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": {"color": "red"}}, "catalog column"),
        ({"where": {"genre": {"min": 1}}}, "numeric column"),
        ({"where": {"genre": []}}, "at least one value"),
        ({"allow": ["x"] * 1_001}, "at most 1000 elements"),
        ({"min_users": 1.5}, "min_users"),
        ({"history": ["item/1"]}, "history"),
    ],
)
def test_invalid_bodies_are_a_problem(client: httpx.Client, changes: dict[str, Any], message: str) -> None:
    response = client.post("/v1/together", json={"item_id": "item/1", **changes})
    assert message in problem(response, 422, "invalid-request")


def test_unknown_item_is_a_problem_unless_popular_items_are_requested(client: httpx.Client, release: Release) -> None:
    path = "/v1/items/nowhere/together"
    assert "'nowhere'" in problem(client.get(path), 404, "unknown-item")
    result = client.get(path, params={"on_unknown": "fallback", "k": 4}).json()
    assert result == as_json(release, TogetherQuery("nowhere", k=4, on_unknown="fallback"))
    assert (result["fallback"], result["unknown_item_ids"]) == (True, ["nowhere"])


def test_client_returns_the_response(client: httpx.Client, release: Release) -> None:
    number = int(np.argmax(np.diff(release.followers.offsets)))
    item_id = f"item/{number}"
    with Client(str(client.base_url)) as service:
        result = service.together(item_id, k=3, min_users=1)
        assert result.model_dump(mode="json") == as_json(release, TogetherQuery(item_id, k=3, min_users=1))
        same = service.search_together({"item_id": item_id, "k": 3, "min_users": 1})
    assert same == result
    assert result.neighbors[0].users > 0


@pytest.mark.parametrize("path", ["/v1/items/item-0-1/together", "/v1/together"])
def test_release_of_an_older_format_is_a_problem(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    service = Service.for_release(tmp_path_factory.mktemp("service"), GOLDEN_RELEASES / "v4")
    with validated_client(service) as client:
        method = "POST" if path == "/v1/together" else "GET"
        response = client.request(method, path, json={"item_id": "item-0-1"} if method == "POST" else None)
    assert "of format 4. Build a release with recsys nightly" in problem(response, 422, "invalid-request")
