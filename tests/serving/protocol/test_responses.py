"""Responses are written from the results of the library; the models describe them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from recsys.retrieval.results import Explanation, Neighbor, SearchResult, TogetherNeighbor, TogetherResult
from serving.protocol.responses import ExplanationResponse, NeighborResponse, SearchResponse
from serving.protocol.together import TogetherNeighborResponse, TogetherResponse

NEIGHBOR = Neighbor("b", None, 0.5, 1, None, Explanation(2, {"genre": ["war"]}))
RESULT = SearchResult(
    "release", "similar", "a", "A", [NEIGHBOR, NEIGHBOR._replace(explanation=None)], [], False, True, None
)
TOGETHER_NEIGHBOR = TogetherNeighbor("b", None, 1, 3, 0.1, 0.2, 1.5, None)
TOGETHER = TogetherResult("release", "a", None, 4, [TOGETHER_NEIGHBOR], ["x"], False, False, "catalog")


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (SearchResponse, (*SearchResult._fields, "next_cursor")),
        (NeighborResponse, Neighbor._fields),
        (ExplanationResponse, Explanation._fields),
        (TogetherResponse, TogetherResult._fields),
        (TogetherNeighborResponse, TogetherNeighbor._fields),
    ],
)
def test_model_has_the_fields_of_the_result_in_their_order(model: type[BaseModel], fields: tuple[str, ...]) -> None:
    assert tuple(model.model_fields) == fields


@pytest.mark.parametrize(
    ("body", "model"),
    [({**RESULT.to_dict(), "next_cursor": None}, SearchResponse), (TOGETHER.to_dict(), TogetherResponse)],
)
def test_result_conforms_to_the_model(body: dict[str, Any], model: type[BaseModel]) -> None:
    assert model.model_validate(body, strict=True).model_dump() == body
