"""Rich questions over HTTP, to a real server; every response is held against the OpenAPI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import Release
from recsys.config.sections import ServeConfig
from recsys.retrieval.query import Condition, Diversity, Query, WeightedItem
from recsys.testing.openapi import problem
from recsys.testing.releases import release_writer
from recsys.testing.service_process import Service, described
from serving.app import create_app_for_release
from serving.protocol import pagination
from tests import GOLDEN_RELEASES
from tests.serving.asgi import asgi_client

GOLDEN = GOLDEN_RELEASES / "v2"
SIZE, MAX_K, MAX_ITEMS, MAX_BATCH = 60, 50, 1_000, 100
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


@pytest.fixture(scope="module")
def client(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    service = Service.of(tmp_path_factory.mktemp("service"), release.path)
    service.set(max_k=MAX_K)
    with described(service) as opened:
        yield opened


def as_json(release: Release, question: Query) -> dict[str, Any]:
    """What the library answers, as a client would see it, but for the cursor."""
    answer = release.search(question)
    neighbors = [{**n._asdict(), "explanation": n.explanation and n.explanation._asdict()} for n in answer.neighbors]
    told: dict[str, Any] = json.loads(json.dumps({**answer._asdict(), "neighbors": neighbors}))
    return told


def without_cursor(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {name: value for name, value in response.json().items() if name != "next_cursor"}


def test_everything_can_be_asked_at_once(client: httpx.Client, release: Release) -> None:
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
    question = Query(
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
    answer = without_cursor(client.post("/v1/similar", json=body))
    assert answer == as_json(release, question)
    assert answer["unknown_item_ids"] == ["unknown"]
    assert len(answer["neighbors"]) == 5  # of the seven that the diversity lets through, two are skipped


def test_simple_options_are_query_parameters(client: httpx.Client, release: Release) -> None:
    options = {
        "k": 5,
        "offset": 1,
        "min_probability": 0.2,
        "exclude": ["item/2", "item/3"],
        "only_available": "true",
        "mmr_lambda": 0.5,
        "explain": "true",
    }
    question = Query(
        items=(WeightedItem("item/1"),),
        k=5,
        offset=1,
        min_probability=0.2,
        exclude=("item/2", "item/3"),
        only_available=True,
        diversity=Diversity(0.5),
        explain=True,
    )
    assert without_cursor(client.get("/v1/items/item%2F1/similar", params=options)) == as_json(release, question)


def test_one_item_is_the_same_question_by_both_routes(client: httpx.Client) -> None:
    got = client.get("/v1/items/item%2F9/similar", params={"k": 3})
    posted = client.post("/v1/similar", json={"items": ["item/9"], "k": 3})
    assert got.content == posted.content


@pytest.mark.parametrize("value", ["drama", ["drama"], ["drama", "no such"]])
def test_a_condition_is_a_value_or_several(client: httpx.Client, value: Any) -> None:
    answer = client.post("/v1/similar", json={"items": ["item/1"], "k": 40, "where": {"genre": value}}).json()
    assert {n["item_id"] for n in answer["neighbors"]} == {f"item/{n}" for n in range(0, SIZE, 3)}
    assert (answer["incomplete_reason"], answer["next_cursor"]) == ("filters", None)


def test_popular_items_stand_in_where_that_is_wanted(client: httpx.Client) -> None:
    body = {"items": ["nobody"], "on_unknown": "fallback", "where": {"genre": "drama"}, "k": 3}
    answer = client.post("/v1/similar", json=body).json()
    assert answer["fallback"]
    assert answer["unknown_item_ids"] == ["nobody"]
    assert [n["item_id"] for n in answer["neighbors"]] == ["item/57", "item/54", "item/51"]
    assert {n["similarity"] for n in answer["neighbors"]} == {None}


# --- pages


def test_page_after_page_gives_each_neighbor_once(client: httpx.Client) -> None:
    body = {"items": ["item/1"], "k": 7, "exclude": ["item/2"]}
    whole = client.post("/v1/similar", json={**body, "k": MAX_K}).json()["neighbors"]
    pages: list[Any] = []
    cursor = None
    while True:
        answer = client.post("/v1/similar", json={**body, "cursor": cursor}).json()
        pages += answer["neighbors"]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    assert pages == whole
    got = client.get("/v1/items/item%2F1/similar", params={"k": 5}).json()["next_cursor"]
    assert client.get("/v1/items/item%2F1/similar", params={"k": 5, "cursor": got}).json()["neighbors"][0]["rank"] == 6


@pytest.mark.parametrize("cursor", ["", "x", "WyI", "%%%", "é", "W10", "WzEsMiwzXQ", "x" * 5_000])
def test_a_broken_cursor_is_told(client: httpx.Client, cursor: str) -> None:
    told = problem(client.post("/v1/similar", json={"items": ["item/1"], "cursor": cursor}), 422, "invalid-request")
    assert "cursor must be the unchanged `next_cursor`" in told


def test_a_cursor_belongs_to_its_question(client: httpx.Client) -> None:
    cursor = client.post("/v1/similar", json={"items": ["item/1"]}).json()["next_cursor"]
    other = {"items": ["item/2"], "cursor": cursor}
    assert "Received: another query" in problem(client.post("/v1/similar", json=other), 422, "invalid-request")
    both = {"items": ["item/1"], "cursor": cursor, "offset": 3}
    assert "a cursor or an offset" in problem(client.post("/v1/similar", json=both), 422, "invalid-request")


def test_a_cursor_that_was_tampered_with_reaches_no_farther(client: httpx.Client, release: Release) -> None:
    digest = pagination.query_digest(Query.from_item("item/1"))
    far = pagination.encode_cursor(pagination.Cursor(release.release_id, digest, MAX_K))
    response = client.post("/v1/similar", json={"items": ["item/1"], "cursor": far})
    assert "cursor must be the unchanged `next_cursor`" in problem(response, 422, "invalid-request")


def test_a_cursor_of_a_release_that_is_gone_is_gone(client: httpx.Client) -> None:
    cursor = pagination.encode_cursor(
        pagination.Cursor("ffffffffffff", pagination.query_digest(Query.from_item("item/1")), 10)
    )
    told = problem(client.post("/v1/similar", json={"items": ["item/1"], "cursor": cursor}), 410, "release-not-loaded")
    assert "ffffffffffff" in told


# --- releases and caches


def test_a_release_can_be_pinned(client: httpx.Client, release: Release) -> None:
    here = {"release": release.release_id}
    for pinned in (
        client.get("/v1/items/item%2F1/similar", params=here),
        client.get("/v1/items/item%2F1", params=here),
        client.get("/v1/items/item%2F1", headers={"Recsys-Release": release.release_id}),
        client.post("/v1/similar", json={"items": ["item/1"]}, params=here),
        client.post("/v1/similar/batch", json={"queries": [{"items": ["item/1"]}]}, params=here),
    ):
        assert pinned.status_code == 200


@pytest.mark.parametrize("pin", [{"params": {"release": "other"}}, {"headers": {"Recsys-Release": "other"}}])
def test_a_release_that_is_not_loaded_is_told(client: httpx.Client, release: Release, pin: Any) -> None:
    for response in (
        client.get("/v1/items/item%2F1/similar", **pin),
        client.get("/v1/items/item%2F1", **pin),
        client.post("/v1/similar", json={"items": ["item/1"]}, **pin),
        client.post("/v1/similar/batch", json={"queries": [{"items": ["item/1"]}]}, **pin),
    ):
        told = problem(response, 404, "release-not-loaded")
        assert release.release_id in told
        assert "'other'" in told


def test_two_pins_must_agree(client: httpx.Client, release: Release) -> None:
    response = client.get(
        "/v1/items/item%2F1/similar", params={"release": release.release_id}, headers={"Recsys-Release": "other"}
    )
    assert "must agree" in problem(response, 422, "invalid-request")


@pytest.mark.parametrize("path", ["/v1/items/item%2F1/similar", "/v1/items/item%2F1"])
def test_what_is_at_hand_is_not_sent_again(client: httpx.Client, path: str) -> None:
    first = client.get(path)
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).content == first.content


def test_another_question_has_another_tag(client: httpx.Client) -> None:
    asked = [
        {},
        {"k": 3},
        {"offset": 1},
        {"explain": True},
        {"exclude": "item/5"},
        {"min_similarity": 0},
        {"mmr_lambda": 0.5},
    ]
    tags = {client.get("/v1/items/item%2F1/similar", params=options).headers["etag"] for options in asked}
    assert len(tags) == len(asked)


# --- batches


def test_one_bad_entry_fails_only_itself(client: httpx.Client) -> None:
    questions: list[Any] = [{"items": ["item/1"], "k": 2}, {"items": ["nobody"]}, {"itms": []}, 7]
    answers = client.post("/v1/similar/batch", json={"queries": questions}).json()["results"]
    assert [entry["status"] for entry in answers] == [200, 404, 422, 422]
    assert answers[0]["result"] == client.post("/v1/similar", json=questions[0]).json()
    assert [entry["problem"] is None for entry in answers] == [True, False, False, False]
    assert "'nobody'" in answers[1]["problem"]["detail"]
    assert "itms is not a known field" in answers[2]["problem"]["detail"]
    alone = client.post("/v1/similar", json=questions[1]).json()
    assert {**answers[1]["problem"], "instance": None} == {**alone, "instance": None}


bodies = st.fixed_dictionaries(
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
        "explain": st.booleans() | st.integers(),
    },
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(questions=st.lists(bodies, min_size=1, max_size=4))
def test_a_batch_is_its_single_questions(client: httpx.Client, questions: list[Any]) -> None:
    """Whatever they are; each response is described, and none is a 500."""
    batch = client.post("/v1/similar/batch", json={"queries": questions})
    assert batch.status_code == 200, batch.text
    for question, entry in zip(questions, batch.json()["results"], strict=True):
        alone = client.post("/v1/similar", json=question)
        assert alone.status_code == entry["status"] < 500
        if entry["result"] is None:
            assert alone.json()["detail"] == entry["problem"]["detail"]
        else:
            assert alone.json() == entry["result"]


# --- limits and mistakes


@pytest.mark.parametrize(
    ("body", "told"),
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
def test_mistakes_are_told(client: httpx.Client, body: Any, told: str) -> None:
    assert told in problem(client.post("/v1/similar", json=body), 422, "invalid-request")


def test_a_body_that_is_no_json_is_told(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    broken = client.post("/v1/similar", content=b'{"items": ["item/1"', headers=headers)
    assert "the body must be JSON" in problem(broken, 422, "invalid-request")
    unnamed = client.post("/v1/similar", content=b'{"items": ["item/1"]}')
    assert "Content-Type: application/json" in problem(unnamed, 422, "invalid-request")
    none = client.post("/v1/similar")
    assert "the body is required" in problem(none, 422, "invalid-request")
    for half in (b'{"items": ["\\ud800"]}', b'{"items": ["item/1"], "where": {"\\udfff": "x"}}'):
        told = problem(client.post("/v1/similar", content=half, headers=headers), 422, "invalid-request")
        assert "the body must be JSON" in told
    deep = client.post("/v1/similar", content=b"[" * 100_000, headers=headers)
    assert "the body must be JSON" in problem(deep, 422, "invalid-request")


def test_too_many_questions_are_refused(client: httpx.Client) -> None:
    questions = [{"items": ["item/1"]}] * (MAX_BATCH + 1)
    told = problem(client.post("/v1/similar/batch", json={"queries": questions}), 422, "invalid-request")
    assert f"queries must have at most {MAX_BATCH}" in told


def test_an_option_that_is_not_known_is_told(client: httpx.Client) -> None:
    response = client.get("/v1/items/item%2F1/similar", params={"min_sim": 3})
    assert "min_sim is not a known field" in problem(response, 422, "invalid-request")


# --- items


def test_an_item_is_told(client: httpx.Client, release: Release) -> None:
    assert client.get("/v1/items/item%2F4").json() == {
        "release_id": release.release_id,
        "item_id": "item/4",
        "title": "Title of item/4",
        "available": False,
        "interactions": 4,
        "features": {"genre": "comedy", "year": 1994.0},
    }
    problem(client.get("/v1/items/nobody"), 404, "unknown-item")


# --- new items by their features


def test_a_new_item_is_asked_about_by_its_features(tmp_path: Path) -> None:
    """With the tower the server embeds it; it finds its genre."""
    with described(Service.of(tmp_path, GOLDEN), "--with-tower") as client:
        answer = client.post("/v1/similar", json={"features": {"genre": "genre-3"}, "k": 5}).json()
        wrong = client.post("/v1/similar", json={"features": {"gnre": "x"}})
        typed = client.post("/v1/similar", json={"features": {"genre": 3}})
    assert all(n["item_id"].startswith("item-3-") for n in answer["neighbors"])
    assert "features must be columns of the tower: genre. Received: 'gnre'" in problem(wrong, 422, "invalid-request")
    assert "features.genre must be a string. Received: 3" in problem(typed, 422, "invalid-request")


def test_the_embedder_is_asked_for_the_release_that_answers(release: Release) -> None:
    asked = []

    def embed(of: Release, features: Any) -> Any:
        asked.append((of.release_id, features))
        return release.vectors[7]

    async def ask() -> httpx.Response:
        async with asgi_client(create_app_for_release(release, ServeConfig(), embed)) as client:
            return await client.post("/v1/similar", json={"features": {"genre": "crime"}, "k": 1})

    answer = asyncio.run(ask()).json()
    assert asked == [(release.release_id, {"genre": "crime"})]
    assert answer["neighbors"][0]["similarity"] == pytest.approx(1)


def test_others_are_answered_while_a_batch_is(release: Release) -> None:
    """Who asks during the first of its questions has the answer before the last."""
    happened: list[str] = []

    async def ask() -> None:
        others: list[asyncio.Future[None]] = []

        def embed(_: Release, __: Any) -> Any:
            if not others:
                others.append(asyncio.ensure_future(other()))
            happened.append("a question")
            return release.vectors[7]

        async def other() -> None:
            await client.get("/livez")
            happened.append("another")

        async with asgi_client(create_app_for_release(release, ServeConfig(), embed)) as client:
            await client.post("/v1/similar/batch", json={"queries": [{"features": {"genre": "crime"}}] * 50})
            await others[0]

    asyncio.run(ask())
    assert happened.count("a question") == 50
    assert happened.index("another") < 50
