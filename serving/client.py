"""Clients of the service, synchronous and asynchronous. They require `recsys[client]`.

    with Client("http://127.0.0.1:8000", key="rk_…") as client:
        for neighbor in client.similar("50", k=5).neighbors:
            print(neighbor.item_id, neighbor.title)

Searches are retried with exponential backoff if the connection fails or the service asks to retry later. Changes are
retried only if the service did not receive or accept them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from recsys.errors import InputError, RecsysError, UnknownItemError
from serving.protocol.responses import (
    BatchResponse,
    ItemChangeResponse,
    ItemResponse,
    Problem,
    ReleaseResponse,
    SearchResponse,
)
from serving.protocol.together import TogetherResponse
from serving.workers.backoff import backoff_delays

Body = TypeVar("Body")

FIRST_DELAY_S, MAX_DELAY_S = 0.1, 5.0
RETRY_STATUSES = {429, 503}
"""Statuses of requests that the service did not accept."""


class ServiceError(RecsysError):
    """The service did not respond, or responded with a problem; `problem` is None if it did not respond."""

    def __init__(self, message: str, problem: Problem | None = None) -> None:
        super().__init__(message)
        self.problem = problem


class _Call(NamedTuple, Generic[Body]):
    """One request, and how to parse its response."""

    method: str
    path: str
    parse: Callable[[bytes], Body]
    options: dict[str, Any]

    @property
    def is_read(self) -> bool:
        """Whether the call changes nothing."""
        return self.method in ("GET", "POST")


def _item_path(item_id: str) -> str:
    return f"/v1/items/{quote(item_id, safe='')}"


def _similar(item_id: str, parameters: Mapping[str, Any]) -> _Call[SearchResponse]:
    path = f"{_item_path(item_id)}/similar"
    return _Call("GET", path, SearchResponse.model_validate_json, {"params": dict(parameters)})


def _together(item_id: str, parameters: Mapping[str, Any]) -> _Call[TogetherResponse]:
    path = f"{_item_path(item_id)}/together"
    return _Call("GET", path, TogetherResponse.model_validate_json, {"params": dict(parameters)})


def _search_together(query: Mapping[str, Any]) -> _Call[TogetherResponse]:
    return _Call("POST", "/v1/together", TogetherResponse.model_validate_json, {"json": dict(query)})


def _search(query: Mapping[str, Any]) -> _Call[SearchResponse]:
    return _Call("POST", "/v1/similar", SearchResponse.model_validate_json, {"json": dict(query)})


def _search_batch(queries: Sequence[Mapping[str, Any]]) -> _Call[BatchResponse]:
    body = {"queries": [dict(query) for query in queries]}
    return _Call("POST", "/v1/similar/batch", BatchResponse.model_validate_json, {"json": body})


def _item(item_id: str) -> _Call[ItemResponse]:
    return _Call("GET", _item_path(item_id), ItemResponse.model_validate_json, {})


def _release() -> _Call[ReleaseResponse]:
    return _Call("GET", "/v1/release", ReleaseResponse.model_validate_json, {})


def _put_item(item_id: str, change: Mapping[str, Any]) -> _Call[ItemChangeResponse]:
    return _Call("PUT", _item_path(item_id), ItemChangeResponse.model_validate_json, {"json": dict(change)})


def _hide_item(item_id: str) -> _Call[None]:
    return _Call("DELETE", _item_path(item_id), lambda _: None, {})


class _Retries:
    """Decides whether and when a call is retried."""

    def __init__(self, call: _Call[Any], max_attempts: int) -> None:
        self._call = call
        self._delays: Iterator[float] = islice(backoff_delays(FIRST_DELAY_S, MAX_DELAY_S), max_attempts - 1)

    def after_error(self, error: httpx.TransportError) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            ServiceError: the call is not retried.
        """
        not_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        delay_s = next(self._delays, None) if self._call.is_read or not_sent else None
        if delay_s is None:
            raise ServiceError(f"the service must respond. Received: {error!r} for {self._call.method}.") from error
        return delay_s

    def after_response(self, response: httpx.Response) -> float | None:
        """Return the seconds to wait before the next attempt; None if the response is final."""
        delay_s = next(self._delays, None) if response.status_code in RETRY_STATUSES else None
        if delay_s is None:
            return None
        retry_after = response.headers.get("retry-after", "")
        return max(delay_s, float(retry_after)) if retry_after.isdecimal() else delay_s


def _parse(call: _Call[Body], response: httpx.Response) -> Body:
    """Return the body of a response.

    Raises:
        UnknownItemError, InputError, ServiceError: the response is a problem, or cannot be parsed.
    """
    try:
        if response.is_success:
            return call.parse(response.content)
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        raise ServiceError(
            "the service must respond as its OpenAPI describes. "
            f"Received: another body with status {response.status_code}."
        ) from None
    if problem.type == "urn:recsys:unknown-item":
        raise UnknownItemError(problem.detail)
    if problem.type == "urn:recsys:invalid-request":
        raise InputError(problem.detail)
    raise ServiceError(f"{problem.title}: {problem.detail}", problem)


def _http_options(url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return {"base_url": url, "headers": headers, "timeout": timeout_s}


class Client:
    """Synchronous client. Threads may share it.

    Every method raises `UnknownItemError` or `InputError` if the service responds with such a problem, and
    `ServiceError` if it responds with any other problem or not at all.

    Args:
        url: URL of the service.
        key: API key.
        timeout_s: seconds that one attempt may take.
        max_attempts: maximum number of attempts of one call.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 5.0, max_attempts: int = 4) -> None:
        self._http = httpx.Client(**_http_options(url, key, timeout_s))
        self._max_attempts = max_attempts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def similar(self, item_id: str, **parameters: Any) -> SearchResponse:
        """Return the neighbors of an item; parameters as of `GET /v1/items/{item_id}/similar`."""
        return self._send(_similar(item_id, parameters))

    def search(self, query: Mapping[str, Any]) -> SearchResponse:
        """Return the neighbors of a query, a body of `POST /v1/similar`."""
        return self._send(_search(query))

    def search_batch(self, queries: Sequence[Mapping[str, Any]]) -> BatchResponse:
        """Return the neighbors of several queries."""
        return self._send(_search_batch(queries))

    def together(self, item_id: str, **parameters: Any) -> TogetherResponse:
        """Return the items after an item; parameters as of `GET /v1/items/{item_id}/together`."""
        return self._send(_together(item_id, parameters))

    def search_together(self, query: Mapping[str, Any]) -> TogetherResponse:
        """Return the items after an item by a query, a body of `POST /v1/together`."""
        return self._send(_search_together(query))

    def item(self, item_id: str) -> ItemResponse:
        """Return the details of an item."""
        return self._send(_item(item_id))

    def release(self) -> ReleaseResponse:
        """Return the champion release."""
        return self._send(_release())

    def put_item(self, item_id: str, **change: Any) -> ItemChangeResponse:
        """Add or change an item; `change` is a body of `PUT /v1/items/{item_id}`."""
        return self._send(_put_item(item_id, change))

    def hide_item(self, item_id: str) -> None:
        """Hide an item from all results."""
        self._send(_hide_item(item_id))

    def _send(self, call: _Call[Body]) -> Body:
        retries = _Retries(call, self._max_attempts)
        while True:
            try:
                response = self._http.request(call.method, call.path, **call.options)
            except httpx.TransportError as error:
                time.sleep(retries.after_error(error))
                continue
            delay_s = retries.after_response(response)
            if delay_s is None:
                return _parse(call, response)
            time.sleep(delay_s)


class AsyncClient:
    """Asynchronous client with the methods and errors of `Client`.

    Args:
        url: URL of the service.
        key: API key.
        timeout_s: seconds that one attempt may take.
        max_attempts: maximum number of attempts of one call.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 5.0, max_attempts: int = 4) -> None:
        self._http = httpx.AsyncClient(**_http_options(url, key, timeout_s))
        self._max_attempts = max_attempts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def similar(self, item_id: str, **parameters: Any) -> SearchResponse:
        """Return the neighbors of an item; parameters as of `GET /v1/items/{item_id}/similar`."""
        return await self._send(_similar(item_id, parameters))

    async def search(self, query: Mapping[str, Any]) -> SearchResponse:
        """Return the neighbors of a query, a body of `POST /v1/similar`."""
        return await self._send(_search(query))

    async def search_batch(self, queries: Sequence[Mapping[str, Any]]) -> BatchResponse:
        """Return the neighbors of several queries."""
        return await self._send(_search_batch(queries))

    async def together(self, item_id: str, **parameters: Any) -> TogetherResponse:
        """Return the items after an item; parameters as of `GET /v1/items/{item_id}/together`."""
        return await self._send(_together(item_id, parameters))

    async def search_together(self, query: Mapping[str, Any]) -> TogetherResponse:
        """Return the items after an item by a query, a body of `POST /v1/together`."""
        return await self._send(_search_together(query))

    async def item(self, item_id: str) -> ItemResponse:
        """Return the details of an item."""
        return await self._send(_item(item_id))

    async def release(self) -> ReleaseResponse:
        """Return the champion release."""
        return await self._send(_release())

    async def put_item(self, item_id: str, **change: Any) -> ItemChangeResponse:
        """Add or change an item; `change` is a body of `PUT /v1/items/{item_id}`."""
        return await self._send(_put_item(item_id, change))

    async def hide_item(self, item_id: str) -> None:
        """Hide an item from all results."""
        await self._send(_hide_item(item_id))

    async def _send(self, call: _Call[Body]) -> Body:
        retries = _Retries(call, self._max_attempts)
        while True:
            try:
                response = await self._http.request(call.method, call.path, **call.options)
            except httpx.TransportError as error:
                await asyncio.sleep(retries.after_error(error))
                continue
            delay_s = retries.after_response(response)
            if delay_s is None:
                return _parse(call, response)
            await asyncio.sleep(delay_s)
