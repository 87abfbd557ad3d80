"""What routes take: the state of the service, an item, a release, and what the caller has at hand."""

from typing import Annotated, Any, NamedTuple, cast, get_args

from fastapi import Depends, Header, Path, Query, Request

from serving.live.state import State
from serving.protocol import headers
from serving.protocol.requests import SimilarQuery


async def state(request: Request) -> State:  # a plain function would be run in a thread
    """What the application answers from."""
    return cast("State", request.app.state.recsys)


Serving = Annotated[State, Depends(state)]
ItemId = Annotated[str, Path(description="Any item id, URL-encoded.")]
Pinned = Annotated[str | None, Query(alias="release", description="Ask this release and no other.")]
PinnedByHeader = Annotated[str | None, Header(alias=headers.RELEASE, description="As `release`.")]
Sticky = Annotated[
    str | None,
    Header(alias=headers.STICKY, description="Whatever names the caller's user: the same one, the same release."),
]
Known = Annotated[str | None, Header(alias=headers.KNOWN, description="The ETag of an answer that is at hand.")]


class Wish(NamedTuple):
    """Which release is to answer, if that matters to who asks."""

    by_query: str | None
    by_header: str | None
    sticky: str | None


async def _wish(release: Pinned = None, pinned: PinnedByHeader = None, sticky: Sticky = None) -> Wish:
    return Wish(release, pinned, sticky)


Wished = Annotated[Wish, Depends(_wish)]


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    told = schema.get("description", "")
    return {"name": name, "in": place, "required": place == "path", "description": told, "schema": schema}


def _text(name: str, place: str, kind: Any) -> dict[str, Any]:
    return _parameter(name, place, {"type": "string", "description": get_args(kind)[1].description})


OF_SIMILAR = [
    _text("item_id", "path", ItemId),
    *(_parameter(name, "query", told) for name, told in SimilarQuery.model_json_schema()["properties"].items()),
    _text(headers.RELEASE, "header", PinnedByHeader),
    _text(headers.STICKY, "header", Sticky),
    _text(headers.KNOWN, "header", Known),
]
"""Described as FastAPI would, for the route that reads them by itself."""
