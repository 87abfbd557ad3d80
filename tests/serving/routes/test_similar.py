"""Queries to a server process over HTTP. Every response is checked against the OpenAPI."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import Release
from recsys.config.sections import ServeConfig
from recsys.release.embedding_space import EmbeddingSpace
from recsys.retrieval.query import Condition, Diversity, Query, WeightedItem
from recsys.testing.openapi import problem
from recsys.testing.releases import release_writer
from recsys.testing.service_process import Service, validated_client
from serving.app import create_app_for_release
from serving.protocol import pagination
from tests import GOLDEN_RELEASES
from tests.serving.asgi import asgi_client
from tests.serving.routes.conftest import MAX_K

GOLDEN = GOLDEN_RELEASES / "v2"
SIZE, MAX_ITEMS, MAX_BATCH = 60, 1_000, 100
GENRES = ["drama", "comedy", "crime"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    path = release_writer(tmp_path_factory.mktemp("release"))(
        [f"item/{n}" for n in range(SIZE)],
        genre=pl.Series([GENRES[n % 3] for n in range(SIZE)]),
        year=pl.Series([1990.0 + n % 30 for n in range(SIZE)]),
        available=pl.Series([n % 4 != 0 for n in range(SIZE)]),
        interactions=pl.Series(range(SIZE)),
    )
    return Release.load(path)


def as_json(release: Release, query: Query) -> dict[str, Any]:
    """Return the result of the library as the service sends it, without the cursor."""
    result = release.search(query)
    neighbors = [{**n._asdict(), "explanation": n.explanation and n.explanation._asdict()} for n in result.neighbors]
    decoded: dict[str, Any] = json.loads(json.dumps({**result._asdict(), "neighbors": neighbors}))
    return decoded


def without_cursor(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {name: value for name, value in response.json().items() if name != "next_cursor"}


def test_all_fields_of_a_query_can_be_combined(client: httpx.Client, release: Release) -> None:
    body = {
        "items": ["item/1", {"item_id": "item/2", "weight": 2}],
        "negatives": [{"item_id": "item/3"}],
        "history": ["item/4", "item/5"],
        "vector": [1, 0, 0.5, 0, 0],
        "k": 7,
        "offset": 2,
        "min_similarity": -0.5,
        "exclude": ["item/6", "unknown"],
        "allow": [f"item/{n}" for n in range(10, 30)],
        "where": {"genre": ["drama", "crime"], "year": {"min": 1990, "max": 2015}},
        "only_available": True,
        "diversity": {"mmr_lambda": 0.7, "max_per_value": {"genre": 5}},
        "on_unknown": "skip",
        "explain": True,
    }
    query = Query(
        items=(WeightedItem("item/1"), WeightedItem("item/2", 2)),
        negatives=(WeightedItem("item/3"),),
        history=("item/4", "item/5"),
        vector=(1, 0, 0.5, 0, 0),
        k=7,
        offset=2,
        min_similarity=-0.5,
        exclude=("item/6", "unknown"),
        allow=tuple(f"item/{n}" for n in range(10, 30)),
        where=(Condition("genre", any_of=("drama", "crime")), Condition("year", minimum=1990, maximum=2015)),
        only_available=True,
        diversity=Diversity(0.7, {"genre": 5}),
        on_unknown="skip",
        explain=True,
    )
    result = without_cursor(client.post("/v1/similar", json=body))
    assert result == as_json(release, query)
    assert result["unknown_item_ids"] == ["unknown"]
    assert len(result["neighbors"]) == 5  # the diversity rule leaves 7 and the offset skips 2


def test_parameters_of_get_equal_the_fields_of_a_query(client: httpx.Client, release: Release) -> None:
    options = {
        "k": 5,
        "offset": 1,
        "min_probability": 0.2,
        "exclude": ["item/2", "item/3"],
        "only_available": "true",
        "mmr_lambda": 0.5,
        "explain": "true",
    }
    query = Query(
        items=(WeightedItem("item/1"),),
        k=5,
        offset=1,
        min_probability=0.2,
        exclude=("item/2", "item/3"),
        only_available=True,
        diversity=Diversity(0.5),
        explain=True,
    )
    assert without_cursor(client.get("/v1/items/item%2F1/similar", params=options)) == as_json(release, query)


def test_get_and_post_return_the_same_result(client: httpx.Client) -> None:
    fetched = client.get("/v1/items/item%2F9/similar", params={"k": 3})
    posted = client.post("/v1/similar", json={"items": ["item/9"], "k": 3})
    assert fetched.content == posted.content


@pytest.mark.parametrize("value", ["drama", ["drama"], ["drama", "no such"]])
def test_condition_is_one_value_or_a_list(client: httpx.Client, value: Any) -> None:
    result = client.post("/v1/similar", json={"items": ["item/1"], "k": 40, "where": {"genre": value}}).json()
    assert {n["item_id"] for n in result["neighbors"]} == {f"item/{n}" for n in range(0, SIZE, 3)}
    assert (result["incomplete_reason"], result["next_cursor"]) == ("filters", None)


def test_fallback_returns_popular_items(client: httpx.Client) -> None:
    body = {"items": ["unknown"], "on_unknown": "fallback", "where": {"genre": "drama"}, "k": 3}
    result = client.post("/v1/similar", json=body).json()
    assert result["fallback"]
    assert result["unknown_item_ids"] == ["unknown"]
    assert [n["item_id"] for n in result["neighbors"]] == ["item/57", "item/54", "item/51"]
    assert {n["similarity"] for n in result["neighbors"]} == {None}


# --- pages


def test_pages_contain_each_neighbor_once(client: httpx.Client) -> None:
    body = {"items": ["item/1"], "k": 7, "exclude": ["item/2"]}
    expected = client.post("/v1/similar", json={**body, "k": MAX_K}).json()["neighbors"]
    pages: list[Any] = []
    cursor = None
    while True:
        result = client.post("/v1/similar", json={**body, "cursor": cursor}).json()
        pages += result["neighbors"]
        cursor = result["next_cursor"]
        if cursor is None:
            break
    assert pages == expected
    cursor = client.get("/v1/items/item%2F1/similar", params={"k": 5}).json()["next_cursor"]
    page = client.get("/v1/items/item%2F1/similar", params={"k": 5, "cursor": cursor}).json()
    assert page["neighbors"][0]["rank"] == 6


@pytest.mark.parametrize("cursor", ["", "x", "WyI", "%%%", "é", "W10", "WzEsMiwzXQ", "x" * 5_000])
def test_rejects_invalid_cursors(client: httpx.Client, cursor: str) -> None:
    detail = problem(client.post("/v1/similar", json={"items": ["item/1"], "cursor": cursor}), 422, "invalid-request")
    assert "cursor must be the unchanged `next_cursor`" in detail


def test_rejects_the_cursor_of_another_query_and_a_cursor_with_an_offset(client: httpx.Client) -> None:
    cursor = client.post("/v1/similar", json={"items": ["item/1"]}).json()["next_cursor"]
    other = {"items": ["item/2"], "cursor": cursor}
    assert "Received: another query" in problem(client.post("/v1/similar", json=other), 422, "invalid-request")
    both = {"items": ["item/1"], "cursor": cursor, "offset": 3}
    assert "a cursor or an offset" in problem(client.post("/v1/similar", json=both), 422, "invalid-request")


def test_rejects_a_forged_cursor_beyond_max_k(client: httpx.Client, release: Release) -> None:
    digest = pagination.query_digest(Query.from_item("item/1"))
    forged = pagination.encode_cursor(pagination.Cursor(release.release_id, digest, MAX_K))
    response = client.post("/v1/similar", json={"items": ["item/1"], "cursor": forged})
    assert "cursor must be the unchanged `next_cursor`" in problem(response, 422, "invalid-request")


def test_cursor_of_an_unloaded_release_is_410(client: httpx.Client) -> None:
    cursor = pagination.encode_cursor(
        pagination.Cursor("ffffffffffff", pagination.query_digest(Query.from_item("item/1")), 10)
    )
    detail = problem(
        client.post("/v1/similar", json={"items": ["item/1"], "cursor": cursor}), 410, "release-not-loaded"
    )
    assert "ffffffffffff" in detail


# --- releases and caches


def test_request_can_select_a_release(client: httpx.Client, release: Release) -> None:
    params = {"release": release.release_id}
    for response in (
        client.get("/v1/items/item%2F1/similar", params=params),
        client.get("/v1/items/item%2F1", params=params),
        client.get("/v1/items/item%2F1", headers={"Recsys-Release": release.release_id}),
        client.post("/v1/similar", json={"items": ["item/1"]}, params=params),
        client.post("/v1/similar/batch", json={"queries": [{"items": ["item/1"]}]}, params=params),
    ):
        assert response.status_code == 200


@pytest.mark.parametrize("selection", [{"params": {"release": "other"}}, {"headers": {"Recsys-Release": "other"}}])
def test_release_that_is_not_loaded_is_404(client: httpx.Client, release: Release, selection: Any) -> None:
    for response in (
        client.get("/v1/items/item%2F1/similar", **selection),
        client.get("/v1/items/item%2F1", **selection),
        client.post("/v1/similar", json={"items": ["item/1"]}, **selection),
        client.post("/v1/similar/batch", json={"queries": [{"items": ["item/1"]}]}, **selection),
    ):
        detail = problem(response, 404, "release-not-loaded")
        assert release.release_id in detail
        assert "'other'" in detail


def test_rejects_contradictory_releases(client: httpx.Client, release: Release) -> None:
    response = client.get(
        "/v1/items/item%2F1/similar", params={"release": release.release_id}, headers={"Recsys-Release": "other"}
    )
    assert "must agree" in problem(response, 422, "invalid-request")


@pytest.mark.parametrize("path", ["/v1/items/item%2F1/similar", "/v1/items/item%2F1"])
def test_matching_etag_is_304(client: httpx.Client, path: str) -> None:
    first = client.get(path)
    tag = first.headers["etag"]
    for etags in (tag, f'"other", W/{tag}', "*"):
        response = client.get(path, headers={"If-None-Match": etags})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", tag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).content == first.content


def test_etag_depends_on_every_parameter(client: httpx.Client) -> None:
    queries = [
        {},
        {"k": 3},
        {"offset": 1},
        {"explain": True},
        {"exclude": "item/5"},
        {"min_similarity": 0},
        {"mmr_lambda": 0.5},
        {"sense": "next"},
    ]
    tags = {client.get("/v1/items/item%2F1/similar", params=params).headers["etag"] for params in queries}
    assert len(tags) == len(queries)


# --- batches


def test_invalid_query_in_a_batch_fails_alone(client: httpx.Client) -> None:
    queries: list[Any] = [{"items": ["item/1"], "k": 2}, {"items": ["unknown"]}, {"itms": []}, 7]
    entries = client.post("/v1/similar/batch", json={"queries": queries}).json()["results"]
    assert [entry["status"] for entry in entries] == [200, 404, 422, 422]
    assert entries[0]["result"] == client.post("/v1/similar", json=queries[0]).json()
    assert [entry["problem"] is None for entry in entries] == [True, False, False, False]
    assert "'unknown'" in entries[1]["problem"]["detail"]
    assert "itms is not a known field" in entries[2]["problem"]["detail"]
    single = client.post("/v1/similar", json=queries[1]).json()
    assert {**entries[1]["problem"], "instance": None} == {**single, "instance": None}


query_bodies = st.fixed_dictionaries(
    {},
    optional={
        "items": st.lists(st.integers(0, SIZE).map("item/{}".format) | st.text(max_size=3), max_size=3),
        "history": st.lists(st.integers(0, SIZE).map("item/{}".format), max_size=3),
        "negatives": st.lists(st.integers(0, SIZE).map("item/{}".format), max_size=2),
        "vector": st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=6),
        "k": st.integers(-1, MAX_K + 1),
        "offset": st.integers(-1, MAX_K + 1),
        "cursor": st.none() | st.text(max_size=20),
        "where": st.dictionaries(
            st.sampled_from(["genre", "year", "other"]), st.sampled_from(["drama", 1990, {"min": 3}, {}, [], None])
        ),
        "exclude": st.lists(st.text(max_size=5), max_size=3),
        "allow": st.lists(st.integers(0, SIZE).map("item/{}".format), max_size=9),
        "min_similarity": st.floats(-1, 1),
        "on_unknown": st.sampled_from(["error", "skip", "fallback", "else"]),
        "diversity": st.fixed_dictionaries(
            {}, optional={"mmr_lambda": st.floats(-0.5, 1.5), "max_per_value": st.just({"genre": 1})}
        ),
        "sense": st.none() | st.sampled_from(["similar", "next", "else"]),
        "explain": st.booleans() | st.integers(),
    },
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(queries=st.lists(query_bodies, min_size=1, max_size=4))
def test_batch_returns_the_results_of_the_single_queries(client: httpx.Client, queries: list[Any]) -> None:
    """The queries may be invalid. Every response conforms to the OpenAPI, and none is a 500."""
    batch = client.post("/v1/similar/batch", json={"queries": queries})
    assert batch.status_code == 200, batch.text
    for query, entry in zip(queries, batch.json()["results"], strict=True):
        single = client.post("/v1/similar", json=query)
        assert single.status_code == entry["status"] < 500
        if entry["result"] is None:
            assert single.json()["detail"] == entry["problem"]["detail"]
        else:
            assert single.json() == entry["result"]


# --- limits and invalid queries


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"items": ["item/1"], "k": MAX_K + 1}, f"k must be at most {MAX_K}"),
        ({"items": ["item/1"], "k": MAX_K, "offset": 1}, f"k + offset must be at most {MAX_K}"),
        ({"items": ["item/1"] * (MAX_ITEMS + 1)}, f"items must have at most {MAX_ITEMS}"),
        ({"items": ["item/1"], "exclude": ["x"] * (MAX_ITEMS + 1)}, f"exclude must have at most {MAX_ITEMS}"),
        ({"items": ["item/1"], "where": {"genre": ["x"] * (MAX_ITEMS + 1)}}, "where.genre must have at most"),
        ({"items": ["item/1"], "where": {"genre": None}}, "where.genre must be a value"),
        ({"items": ["item/1"], "where": {"year": {"mni": 3}}}, "where.year must be a range"),
        ({"items": ["item/1"], "where": {"year": {"min": "x"}}}, "where.year must be a range"),
        ({"items": ["item/1"], "where": {"gnre": "x"}}, "Did you mean 'genre'"),
        ({"items": [{"item_id": "item/1", "weight": 0}]}, "items.0.weight: Input should be greater than 0"),
        ({"items": [3]}, "items.0 must be an object"),
        ({"items": ["item/1"], "k": 2.5}, "k: Input should be a valid integer"),
        ({"items": ["item/1"], "k": "2"}, "k: Input should be a valid integer"),
        ({"items": ["item/1"], "unknwon": 1}, "unknwon is not a known field"),
        ({"items": ["item/1"], "diversity": {"mmr_lambda": 2}}, "diversity.mmr_lambda"),
        ({"items": ["item/1"], "vector": [1.0]}, "vector must be of 5 finite numbers"),
        ({}, "a query must name items"),
        ([], "the body must be an object"),
        ({"features": {"genre": "drama"}}, "recsys serve --with-tower"),
        ({"features": {"genre": "drama"}, "vector": [1.0]}, "Received: both"),
    ],
)
def test_rejects_invalid_queries(client: httpx.Client, body: Any, message: str) -> None:
    assert message in problem(client.post("/v1/similar", json=body), 422, "invalid-request")


def test_rejects_a_body_that_is_not_json(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    truncated = client.post("/v1/similar", content=b'{"items": ["item/1"', headers=headers)
    assert "the body must be JSON" in problem(truncated, 422, "invalid-request")
    untyped = client.post("/v1/similar", content=b'{"items": ["item/1"]}')
    assert "Content-Type: application/json" in problem(untyped, 422, "invalid-request")
    empty = client.post("/v1/similar")
    assert "the body is required" in problem(empty, 422, "invalid-request")
    for surrogate in (b'{"items": ["\\ud800"]}', b'{"items": ["item/1"], "where": {"\\udfff": "x"}}'):
        detail = problem(client.post("/v1/similar", content=surrogate, headers=headers), 422, "invalid-request")
        assert "the body must be JSON" in detail
    nested = client.post("/v1/similar", content=b"[" * 100_000, headers=headers)
    assert "the body must be JSON" in problem(nested, 422, "invalid-request")


def test_rejects_a_batch_with_too_many_queries(client: httpx.Client) -> None:
    queries = [{"items": ["item/1"]}] * (MAX_BATCH + 1)
    detail = problem(client.post("/v1/similar/batch", json={"queries": queries}), 422, "invalid-request")
    assert f"queries must have at most {MAX_BATCH}" in detail


def test_rejects_an_unknown_parameter(client: httpx.Client) -> None:
    response = client.get("/v1/items/item%2F1/similar", params={"min_sim": 3})
    assert "min_sim is not a known field" in problem(response, 422, "invalid-request")


# --- items


def test_returns_an_item(client: httpx.Client, release: Release) -> None:
    assert client.get("/v1/items/item%2F4").json() == {
        "release_id": release.release_id,
        "item_id": "item/4",
        "title": "Title of item/4",
        "available": False,
        "interactions": 4,
        "features": {"genre": "comedy", "year": 1994.0},
    }
    problem(client.get("/v1/items/unknown"), 404, "unknown-item")


# --- queries by features


@pytest.mark.slow
def test_query_by_features_returns_items_with_the_same_features(tmp_path: Path) -> None:
    """The server embeds them with the tower."""
    with validated_client(Service.for_release(tmp_path, GOLDEN), "--with-tower") as client:
        result = client.post("/v1/similar", json={"features": {"genre": "genre-3"}, "k": 5}).json()
        unknown_column = client.post("/v1/similar", json={"features": {"gnre": "x"}})
        wrong_type = client.post("/v1/similar", json={"features": {"genre": 3}})
    assert all(n["item_id"].startswith("item-3-") for n in result["neighbors"])
    detail = problem(unknown_column, 422, "invalid-request")
    assert "features must be columns of the tower: genre. Received: 'gnre'" in detail
    assert "features.genre must be a string. Received: 3" in problem(wrong_type, 422, "invalid-request")


def test_features_are_embedded_with_the_tower_of_the_release(release: Release) -> None:
    calls = []

    def embed(space: EmbeddingSpace, features: Any) -> Any:
        calls.append((space.manifest.release_id, features))
        return space.vectors[7]

    async def send() -> httpx.Response:
        async with asgi_client(create_app_for_release(release, ServeConfig(), embed)) as client:
            return await client.post("/v1/similar", json={"features": {"genre": "crime"}, "k": 1})

    result = asyncio.run(send()).json()
    # before the first request, an item without features is embedded: this loads the tower
    assert calls == [(release.release_id, {}), (release.release_id, {"genre": "crime"})]
    assert result["neighbors"][0]["similarity"] == pytest.approx(1)


def test_batch_does_not_block_other_requests(release: Release) -> None:
    """A request that arrives during the first query of a batch is answered before the last."""
    events: list[str] = []

    async def send() -> None:
        requests: list[asyncio.Future[None]] = []

        def embed(space: EmbeddingSpace, features: Any) -> Any:
            if features and not requests:
                requests.append(asyncio.ensure_future(probe()))
            events.append("query")
            return space.vectors[7]

        async def probe() -> None:
            await client.get("/livez")
            events.append("probe")

        async with asgi_client(create_app_for_release(release, ServeConfig(), embed)) as client:
            await client.post("/v1/similar/batch", json={"queries": [{"features": {"genre": "crime"}}] * 50})
            await requests[0]

    asyncio.run(send())
    assert events.count("query") == 51  # one of them when the release was loaded
    assert events.index("probe") < 51
