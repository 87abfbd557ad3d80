"""A client of the service, for programs that wait and for programs that do not.

    with Client("http://127.0.0.1:8000", key="rk_…") as client:
        for neighbor in client.similar("50", k=5).neighbors:
            print(neighbor.item_id, neighbor.title)

A question is repeated, later and later, where nobody answered or the server asked to come back. A change is repeated
only where the server certainly did not take it. Needs `recsys[client]`.
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
from serving.protocol.responses import AnswerBody, BatchAnswerBody, ChangedBody, ItemBody, ProblemBody, ReleaseBody
from serving.workers.backoff import delays

Body = TypeVar("Body")

FIRST_S, LONGEST_S = 0.1, 5.0
"""Between two tries."""
COME_BACK = {429, 503}
"""Statuses of a request that was not taken."""


class ServiceError(RecsysError):
    """The service did not answer, or answered with a problem; `problem` is None where it did not answer."""

    def __init__(self, told: str, problem: ProblemBody | None = None) -> None:
        super().__init__(told)
        self.problem = problem


class _Call(NamedTuple, Generic[Body]):
    """One request, and what its answer is."""

    method: str
    path: str
    read: Callable[[bytes], Body]
    options: dict[str, Any]

    @property
    def asks(self) -> bool:
        """Whether it changes nothing."""
        return self.method in ("GET", "POST")


def _similar(item_id: str, options: Mapping[str, Any]) -> _Call[AnswerBody]:
    return _Call(
        "GET", f"/v1/items/{quote(item_id, safe='')}/similar", AnswerBody.model_validate_json, {"params": dict(options)}
    )


def _ask(question: Mapping[str, Any]) -> _Call[AnswerBody]:
    return _Call("POST", "/v1/similar", AnswerBody.model_validate_json, {"json": dict(question)})


def _ask_many(questions: Sequence[Mapping[str, Any]]) -> _Call[BatchAnswerBody]:
    return _Call(
        "POST",
        "/v1/similar/batch",
        BatchAnswerBody.model_validate_json,
        {"json": {"questions": [dict(q) for q in questions]}},
    )


def _item(item_id: str) -> _Call[ItemBody]:
    return _Call("GET", f"/v1/items/{quote(item_id, safe='')}", ItemBody.model_validate_json, {})


def _release() -> _Call[ReleaseBody]:
    return _Call("GET", "/v1/release", ReleaseBody.model_validate_json, {})


def _put(item_id: str, change: Mapping[str, Any]) -> _Call[ChangedBody]:
    return _Call("PUT", f"/v1/items/{quote(item_id, safe='')}", ChangedBody.model_validate_json, {"json": dict(change)})


def _take_down(item_id: str) -> _Call[None]:
    return _Call("DELETE", f"/v1/items/{quote(item_id, safe='')}", lambda _: None, {})


class _Tries:
    """What of a call can be tried again, and when."""

    def __init__(self, call: _Call[Any], tries: int) -> None:
        self._call = call
        self._waits: Iterator[float] = islice(delays(FIRST_S, LONGEST_S), tries - 1)

    def after_error(self, error: httpx.TransportError) -> float:
        """Seconds to wait.

        Raises:
            ServiceError: it is not tried again.
        """
        not_taken = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        wait_s = next(self._waits, None) if self._call.asks or not_taken else None
        if wait_s is None:
            raise ServiceError(f"the service must answer. Received: {error!r} for {self._call.method}.") from error
        return wait_s

    def after_answer(self, response: httpx.Response) -> float | None:
        """Seconds to wait; None where the answer is the last one."""
        wait_s = next(self._waits, None) if response.status_code in COME_BACK else None
        if wait_s is None:
            return None
        asked = response.headers.get("retry-after", "")
        return max(wait_s, float(asked)) if asked.isdecimal() else wait_s


def _read(call: _Call[Body], response: httpx.Response) -> Body:
    """The answer.

    Raises:
        UnknownItemError, InputError, ServiceError: the answer is a problem, or not to be understood.
    """
    try:
        if response.is_success:
            return call.read(response.content)
        problem = ProblemBody.model_validate_json(response.content)
    except ValidationError:
        raise ServiceError(
            f"the service must answer as it describes. Received: another body with status {response.status_code}."
        ) from None
    if problem.type == "urn:recsys:unknown-item":
        raise UnknownItemError(problem.detail)
    if problem.type == "urn:recsys:invalid-question":
        raise InputError(problem.detail)
    raise ServiceError(f"{problem.title}: {problem.detail}", problem)


def _settings(url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return {"base_url": url, "headers": headers, "timeout": timeout_s}


class Client:
    """Asks a service, and waits for the answers. May be shared by threads.

    Every method raises `UnknownItemError` or `InputError` where the service says so, and `ServiceError` where it says
    anything else, or nothing.

    Args:
        url: of the service.
        key: API key.
        timeout_s: seconds that one try may take.
        tries: of one call.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 5.0, tries: int = 4) -> None:
        self._http = httpx.Client(**_settings(url, key, timeout_s))
        self._tries = tries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def similar(self, item_id: str, **options: Any) -> AnswerBody:
        """The items most like one item; options as `GET /v1/items/{item_id}/similar` has them."""
        return self._send(_similar(item_id, options))

    def ask(self, question: Mapping[str, Any]) -> AnswerBody:
        """Answer a question as `POST /v1/similar` takes it."""
        return self._send(_ask(question))

    def ask_many(self, questions: Sequence[Mapping[str, Any]]) -> BatchAnswerBody:
        """Answer many questions, each by itself."""
        return self._send(_ask_many(questions))

    def item(self, item_id: str) -> ItemBody:
        """What is known of an item."""
        return self._send(_item(item_id))

    def release(self) -> ReleaseBody:
        """The release in service."""
        return self._send(_release())

    def put(self, item_id: str, **change: Any) -> ChangedBody:
        """Change an item; `change` as `PUT /v1/items/{item_id}` takes it."""
        return self._send(_put(item_id, change))

    def take_down(self, item_id: str) -> None:
        """Take an item down."""
        self._send(_take_down(item_id))

    def _send(self, call: _Call[Body]) -> Body:
        tries = _Tries(call, self._tries)
        while True:
            try:
                response = self._http.request(call.method, call.path, **call.options)
            except httpx.TransportError as error:
                time.sleep(tries.after_error(error))
                continue
            wait_s = tries.after_answer(response)
            if wait_s is None:
                return _read(call, response)
            time.sleep(wait_s)


class AsyncClient:
    """As `Client`, for programs with an event loop.

    Args:
        url: of the service.
        key: API key.
        timeout_s: seconds that one try may take.
        tries: of one call.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 5.0, tries: int = 4) -> None:
        self._http = httpx.AsyncClient(**_settings(url, key, timeout_s))
        self._tries = tries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def similar(self, item_id: str, **options: Any) -> AnswerBody:
        """The items most like one item; options as `GET /v1/items/{item_id}/similar` has them."""
        return await self._send(_similar(item_id, options))

    async def ask(self, question: Mapping[str, Any]) -> AnswerBody:
        """Answer a question as `POST /v1/similar` takes it."""
        return await self._send(_ask(question))

    async def ask_many(self, questions: Sequence[Mapping[str, Any]]) -> BatchAnswerBody:
        """Answer many questions, each by itself."""
        return await self._send(_ask_many(questions))

    async def item(self, item_id: str) -> ItemBody:
        """What is known of an item."""
        return await self._send(_item(item_id))

    async def release(self) -> ReleaseBody:
        """The release in service."""
        return await self._send(_release())

    async def put(self, item_id: str, **change: Any) -> ChangedBody:
        """Change an item; `change` as `PUT /v1/items/{item_id}` takes it."""
        return await self._send(_put(item_id, change))

    async def take_down(self, item_id: str) -> None:
        """Take an item down."""
        await self._send(_take_down(item_id))

    async def _send(self, call: _Call[Body]) -> Body:
        tries = _Tries(call, self._tries)
        while True:
            try:
                response = await self._http.request(call.method, call.path, **call.options)
            except httpx.TransportError as error:
                await asyncio.sleep(tries.after_error(error))
                continue
            wait_s = tries.after_answer(response)
            if wait_s is None:
                return _read(call, response)
            await asyncio.sleep(wait_s)
