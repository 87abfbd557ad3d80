"""Query strings, selected releases and cursors, compared with the general functions that they replace."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.datastructures import QueryParams

from recsys.config.sections import ServeConfig
from recsys.errors import InputError
from recsys.retrieval.query import Condition, Diversity, Query, WeightedItem
from serving.protocol.pagination import query_digest
from serving.protocol.requests import RequestedRelease, SimilarParameters, SimilarQueries, parse_query_string

PARTS = st.sampled_from(["k", "release", "rele%61se", "cursor", "a+b", "%ff", "é".encode().decode("latin-1"), "", "="])


@given(st.lists(st.tuples(PARTS, st.sampled_from(["=", "", "=="]), PARTS), max_size=4))
def test_query_string_is_parsed_as_by_starlette(parts: list[tuple[str, str, str]]) -> None:
    query_string = "&".join(map("".join, parts)).encode("latin-1")
    assert parse_query_string(query_string) == QueryParams(query_string).multi_items()


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        (b"", [], RequestedRelease()),
        (b"k=3", [], RequestedRelease()),
        (b"k=3&release=a&release=b", [], RequestedRelease("b")),
        (b"rele%61se=a%2B", [], RequestedRelease("a+")),
        (b"cursor=x", [], RequestedRelease(cursor="x")),
        (b"released=x", [(b"recsys-release", b"a"), (b"recsys-release", b"b")], RequestedRelease(None, "a")),
        (b"", [(b"recsys-sticky-key", b"\xe4")], RequestedRelease(sticky_key="ä")),
    ],
)
def test_request_selects_a_release(query: bytes, headers: list[Any], expected: RequestedRelease) -> None:
    """Of a repeated parameter the last applies, of a repeated header the first."""
    assert RequestedRelease.from_scope({"query_string": query, "headers": headers}) == expected


@pytest.mark.parametrize(
    "query",
    [
        Query.from_item("a"),
        Query.from_item("ä'\ud800\"", k=7, sense="next"),
        Query(history=("a", "b"), offset=3, explain=True, min_similarity=0.1),
        Query(
            items=(WeightedItem("a", 2.0),),
            negatives=(WeightedItem("b"),),
            vector=(1.0, -0.5),
            exclude=("c",),
            allow=(),
            where=(Condition("x", any_of=("y",)), Condition("z", minimum=1)),
            only_available=True,
            diversity=Diversity(0.5, {"x": 2}),
            on_unknown="skip",
        ),
    ],
)
def test_digest_is_that_of_the_first_page_as_text(query: Query) -> None:
    """Cursors of other versions of the service stay valid."""
    page = repr(replace(query, k=1, offset=0, explain=False, sense=query.answered_in))
    assert query_digest(query) == hashlib.sha256(page.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@pytest.mark.parametrize(
    "query_string", [b"", b"k=3&offset=2", b"exclude=b&exclude=c&min_similarity=0.1", b"mmr_lambda=0.5&sense=next"]
)
def test_query_string_that_was_parsed_before_gives_the_query_of_another_item(query_string: bytes) -> None:
    limits = ServeConfig()
    queries = SimilarQueries(limits)
    for item_id in ("a", "b", "a"):
        expected = SimilarParameters.from_query_string(query_string).to_query(item_id, limits)
        query, cursor = queries.query(item_id, query_string)
        assert (query, cursor) == (expected, None)
        assert query_digest(query) == query_digest(expected)


def test_invalid_query_string_is_rejected_each_time() -> None:
    queries = SimilarQueries(ServeConfig(max_k=10))
    for _ in range(2):
        with pytest.raises(InputError, match="k must be at most 10"):
            queries.query("a", b"k=11")
        with pytest.raises(ValidationError):
            queries.query("a", b"unknown=1")
    assert queries.query("a", b"cursor=x")[1] == "x"
