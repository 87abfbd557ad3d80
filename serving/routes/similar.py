"""What can be asked over HTTP.

GET  /v1/items/{item_id}/similar     the neighbors of an item
GET  /v1/items/{item_id}             what the release holds of it
POST /v1/similar                     the neighbors of whatever a rich question is about
POST /v1/similar/batch               many of those, each by itself
GET  /v1/release                     the release in service
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic_core import to_json

from recsys.errors import InputError, RecsysError
from recsys.retrieval.query import Query
from recsys.retrieval.results import SearchResult
from serving.live.live_release import Edition
from serving.live.response_cache import Given, is_known
from serving.live.state import State
from serving.protocol import headers
from serving.protocol import pagination as cursors
from serving.protocol.encoded_path import ENCODED
from serving.protocol.pagination import Cursor
from serving.protocol.problem import CONTENT
from serving.protocol.requests import BatchBody, QuestionBody, SimilarQuery, of_body, of_query
from serving.protocol.responses import AnswerBody, BatchAnswerBody, ItemBody, ReleaseBody
from serving.protocol.strict_json import BodyRoute
from serving.routes import dependencies as parameters
from serving.routes import error_handlers as problems
from serving.routes.dependencies import ItemId, Known, Serving, Wish, Wished
from serving.routes.error_handlers import NotLoadedError

ALWAYS_ASK = "no-cache"
"""What is cached is asked for again, which a 304 answers."""

router = APIRouter(route_class=BodyRoute)

TAGGED = {
    "ETag": {"description": "Of release and question.", "schema": {"type": "string"}},
    headers.RELEASE: {"description": "The release that answered.", "schema": {"type": "string"}},
}
Responses = dict[int | str, dict[str, Any]]
NOT_FOUND: Responses = {
    404: {"description": "The release does not hold the item, or is not loaded.", "content": CONTENT}
}
INVALID: Responses = {422: {"description": "The question is not valid.", "content": CONTENT}}
GONE: Responses = {410: {"description": "The release of the cursor is not loaded any more.", "content": CONTENT}}
UNCHANGED: Responses = {304: {"description": "The answer at hand is still right.", "headers": TAGGED}}
GOOD: Responses = {200: {"description": "The answer.", "headers": TAGGED}}


async def similar(request: Request) -> Response:
    """The items most like one item, nearest first; fewer than `k` only where there are no more."""
    serving, sent, query = await parameters.state(request), request.headers, _query(request)
    release = _release(serving, Wish(query.release, sent.get(headers.RELEASE), sent.get(headers.STICKY)), query.cursor)
    question = _at(of_query(request.path_params["item_id"], query, serving.config), query.cursor, serving)
    tag = _tag(release, question)
    unchanged = _unchanged(release, tag)
    if is_known(tag, sent.get(headers.KNOWN)):
        return unchanged
    answer = _answer(serving, release, question)
    whole = _answered(release, answer, tag)
    if not answer["unknown_item_ids"] and not answer["fallback"]:  # which are counted each time
        asked = request.scope["path"], request.scope["query_string"]
        release.answers.keep(asked, Given(request.scope["route"], tag, whole, unchanged))
    return whole


class _Bare(APIRoute):
    """A route that FastAPI describes, and has no other part in: it would look for what it could read all the same."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        return self.endpoint


router.add_api_route(
    f"/v1/items/{{item_id:{ENCODED}}}/similar",
    similar,
    response_model=AnswerBody,
    responses={**GOOD, **UNCHANGED, **NOT_FOUND, **GONE, **INVALID},
    openapi_extra={"parameters": parameters.OF_SIMILAR},
    route_class_override=_Bare,
)


def _query(request: Request) -> SimilarQuery:
    """The options in the query, as FastAPI would read them, in a tenth of its time."""
    given: dict[str, Any] = dict(request.query_params)
    if "exclude" in given:
        given["exclude"] = request.query_params.getlist("exclude")
    try:
        return SimilarQuery.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError([{**wrong, "loc": ("query", *wrong["loc"])} for wrong in error.errors()]) from None


@router.post("/v1/similar", response_model=AnswerBody, responses={**GOOD, **NOT_FOUND, **GONE, **INVALID})
async def ask(serving: Serving, body: QuestionBody, wish: Wished) -> Response:
    """The items nearest to whatever the question is about; fewer than `k` only where there are no more."""
    asked = _release(serving, wish, body.cursor)
    question = _question(serving, body, asked)
    return _answered(asked, _answer(serving, asked, question), _tag(asked, question))


@router.post("/v1/similar/batch", response_model=BatchAnswerBody, responses={**NOT_FOUND, **INVALID})
async def ask_many(request: Request, serving: Serving, body: BatchBody, wish: Wished) -> Response:
    """Many questions, answered as they would be alone; one that fails fails only itself."""
    if len(body.questions) > serving.config.max_batch:
        raise InputError(
            f"questions must hold at most {serving.config.max_batch}. Received: {len(body.questions)}. Send several."
        )
    standing = _release(serving, wish)  # for all of them, whatever is put into service meanwhile
    entries = []
    for entry in body.questions:
        await asyncio.sleep(0)  # others are answered in between, and the time of the request can run out
        try:
            one = QuestionBody.model_validate(entry)
            asked = standing if one.cursor is None else _release(serving, wish, one.cursor)
            answer = _answer(serving, asked, _question(serving, one, asked))
            entries.append({"status": HTTPStatus.OK, "answer": answer, "problem": None})
        except (RecsysError, ValidationError, NotLoadedError) as error:
            problem = problems.body(request, error)
            entries.append({"status": problem.status, "answer": None, "problem": problem})
    return Response(to_json({"answers": entries}), media_type="application/json")


@router.get(
    f"/v1/items/{{item_id:{ENCODED}}}", response_model=ItemBody, responses={**GOOD, **UNCHANGED, **NOT_FOUND, **INVALID}
)
async def item(serving: Serving, item_id: ItemId, wish: Wished, known: Known = None) -> Response:
    """What the release holds of an item."""
    asked = _release(serving, wish)
    held = asked.item(item_id)
    tag = _tag(asked, item_id)
    return _unchanged(asked, tag) if is_known(tag, known) else _answered(asked, held._asdict(), tag)


@router.get("/v1/release")
async def release(serving: Serving) -> ReleaseBody:
    """The release in service."""
    return ReleaseBody(**serving.shelf.champion.release.manifest.model_dump(include=set(ReleaseBody.model_fields)))


def _question(serving: State, body: QuestionBody, release: Edition) -> Query:
    embed = None if serving.embed is None else partial(serving.embed, release.release)
    return _at(of_body(body, serving.config, embed), body.cursor, serving)


def _release(serving: State, wish: Wish, cursor: str | None = None) -> Edition:
    """The release that is asked: the one of the cursor, the pinned one, or the one in service."""
    by_query, by_header, sticky = wish
    if by_query is not None and by_header is not None and by_query != by_header:
        raise InputError(f"a question must pin one release. Received: {by_query!r} and, by header, {by_header!r}.")
    pinned = by_header if by_query is None else by_query
    if cursor is not None:
        of_cursor = cursors.decode(cursor, serving.config.max_k).release_id
        if pinned not in (None, of_cursor):
            raise InputError(f"cursor must be of the pinned release. Received: one of {of_cursor!r}, not {pinned!r}.")
        found = serving.take(of_cursor)
        if found is None:
            raise NotLoadedError(
                HTTPStatus.GONE, f"cursor is of release {of_cursor!r}, which is gone. Ask again from the first page."
            )
        return found
    found = serving.take(pinned, sticky)
    if found is None:
        loaded = ", ".join(edition.release_id for edition in serving.shelf.standing.editions)
        raise NotLoadedError(
            HTTPStatus.NOT_FOUND,
            f"release must be one that is loaded: {loaded}. Received: {pinned!r}.",
        )
    return found


def _at(question: Query, cursor: str | None, serving: State) -> Query:
    """The question at its cursor's page, which ends where no question may reach farther."""
    if cursor is None:
        return question
    reach = serving.config.max_k
    turned = cursors.turned(question, cursors.decode(cursor, reach))
    return replace(turned, k=min(turned.k, reach - turned.offset))


def _answer(serving: State, release: Edition, question: Query) -> dict[str, Any]:
    answer: SearchResult = serving.ask(release, question)
    reached = question.offset + question.k
    following = None
    if answer.has_more and reached < serving.config.max_k:
        following = cursors.encode(Cursor(release.release_id, cursors.digest(question), reached))
    return {**answer.to_dict(), "next": following}


def _answered(release: Edition, answer: dict[str, Any], tag: str) -> Response:
    return Response(to_json(answer), media_type="application/json", headers=_headers(release, tag))


def _unchanged(release: Edition, tag: str) -> Response:
    return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=_headers(release, tag))


def _headers(release: Edition, tag: str) -> dict[str, str]:
    return {"ETag": tag, "Cache-Control": ALWAYS_ASK, headers.RELEASE: release.release_id}


def _tag(release: Edition, asked: object) -> str:
    digest = hashlib.sha256(
        f"{release.release_id} {release.overlay.revision} {asked!r}".encode("utf-8", "surrogatepass")
    ).hexdigest()
    return f'"{digest[:32]}"'
