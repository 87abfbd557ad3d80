"""Parameters that several routes share, and the OpenAPI description of models as parameters."""

from typing import Annotated, Any, cast

from fastapi import Depends, Header, Path, Query, Request
from pydantic import BaseModel

from serving.live.state import State
from serving.protocol import headers
from serving.protocol.requests import RequestedRelease

ITEM_ID = "Any item id, percent-encoded."
RELEASE = "Id of the release to answer from."
RELEASE_HEADER = "Same as the parameter `release`."
STICKY_KEY = (
    "Key of the caller's user. While the challenger is a canary, requests with the same key get the same release."
)
IF_NONE_MATCH = "ETag of an earlier response. If it is still valid, the status is 304."


async def state(request: Request) -> State:  # FastAPI would run a plain function in a thread
    """Return the state of the worker."""
    return cast("State", request.app.state.recsys)


async def requested_release(
    release: Annotated[str | None, Query(description=RELEASE)] = None,
    header: Annotated[str | None, Header(alias=headers.RELEASE, description=RELEASE_HEADER)] = None,
    sticky_key: Annotated[str | None, Header(alias=headers.STICKY_KEY, description=STICKY_KEY)] = None,
) -> RequestedRelease:
    """Return the release that a request selects."""
    return RequestedRelease(release, header, sticky_key)


WorkerState = Annotated[State, Depends(state)]
Requested = Annotated[RequestedRelease, Depends(requested_release)]
ItemId = Annotated[str, Path(description=ITEM_ID)]
IfNoneMatch = Annotated[str | None, Header(alias=headers.IF_NONE_MATCH, description=IF_NONE_MATCH)]


def openapi_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """Describe the parameters of a route about an item that parses its query string with a model."""
    text = {"type": "string"}
    return [
        _parameter("item_id", "path", text, ITEM_ID),
        *(
            _parameter(name, "query", schema, schema.get("description", ""))
            for name, schema in model.model_json_schema()["properties"].items()
        ),
        _parameter(headers.RELEASE, "header", text, RELEASE_HEADER),
        _parameter(headers.STICKY_KEY, "header", text, STICKY_KEY),
        _parameter(headers.IF_NONE_MATCH, "header", text, IF_NONE_MATCH),
    ]


def _parameter(name: str, location: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    required = location == "path"
    return {"name": name, "in": location, "required": required, "description": description, "schema": schema}
