"""Cache of responses about items, and their ETags.

A response is determined by the release, the revision of the item changes, and the request. These are its key in the
cache, so a change or another release never needs to invalidate anything. The ETag is derived from the key and the
version of this library, because another version may add fields.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys import __version__
from recsys.errors import RecsysError
from serving.live.live_release import LiveRelease
from serving.live.state import ReleaseNotLoadedError, State
from serving.protocol import headers
from serving.protocol.requests import RequestedRelease

ITEMS_PREFIX = "/v1/items/"
CHOSEN_RELEASE = "recsys.live_release"
"""Key of the scope with the release that was chosen for the request."""
CACHEABLE = "recsys.cacheable"
"""Key of the scope that a route sets to true if its response may be cached."""
MAX_BYTES = 64 << 20
"""Memory of the cache; the least recently used responses are removed first. A response with ten neighbors takes about
3 kB."""
OVERHEAD_BYTES = 1_000
"""Memory of a response in addition to its request and its body. A test measures it."""
IF_NONE_MATCH = headers.encode(headers.IF_NONE_MATCH)

Key = tuple[str, str, str, bytes]
"""Release id, revision of the item changes, encoded path and query string."""
RawHeaders = list[tuple[bytes, bytes]]


class CachedResponse(NamedTuple):
    """A response with status 200."""

    route: object
    """The matched route, for metrics."""
    headers: RawHeaders
    body: bytes


class LruCache:
    """Cache of responses that is limited by their bytes and removes the least recently used ones."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._free_bytes = max_bytes
        self._responses: OrderedDict[Key, CachedResponse] = OrderedDict()

    def get(self, key: Key) -> CachedResponse | None:
        """Return the response of a key, or None."""
        response = self._responses.get(key)
        if response is not None:
            self._responses.move_to_end(key)
        return response

    def put(self, key: Key, response: CachedResponse) -> None:
        """Add a response, and remove the least recently used ones if there is no room."""
        self._remove(key)
        self._responses[key] = response
        self._free_bytes -= _num_bytes(key, response)
        while self._free_bytes < 0:
            self._remove(next(iter(self._responses)))

    def _remove(self, key: Key) -> None:
        response = self._responses.pop(key, None)
        if response is not None:
            self._free_bytes += _num_bytes(key, response)


class ResponseCacheMiddleware:
    """ASGI middleware that answers repeated requests about items from a cache, and revalidations with 304.

    It chooses the release of these requests and adds an ETag to their successful responses.

    Args:
        app: the application.
        state: chooses the release.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self._state = state
        self._cache = LruCache()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a cached response, or the response of the application."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith(ITEMS_PREFIX):
            await self.app(scope, receive, send)
            return
        try:
            release = self._state.choose_release(RequestedRelease.from_request(Request(scope)))
        except (RecsysError, ReleaseNotLoadedError):  # the route raises it again, inside the error handlers
            await self.app(scope, receive, send)
            return
        key = release.release_id, release.revision, scope["path"], scope["query_string"]
        received_etags = next(
            (value.decode("latin-1") for name, value in scope["headers"] if name == IF_NONE_MATCH), None
        )
        cached = self._cache.get(key) if self._state.shadow is None else None  # a shadow repeats every query
        if cached is not None:
            scope["route"] = cached.route
            await _send(send, cached.headers, cached.body, received_etags)
            return
        scope[CHOSEN_RELEASE] = release
        await self.app(scope, receive, _Recorder(self._cache, key, scope, send, received_etags))


class _Recorder:
    """Receives the response of the application, caches it if allowed, and sends it with an ETag."""

    def __init__(self, cache: LruCache, key: Key, scope: Scope, send: Send, received_etags: str | None) -> None:
        self._cache = cache
        self._key = key
        self._scope = scope
        self._send = send
        self._received_etags = received_etags
        self._headers: RawHeaders | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:  # noqa: PLR2004
            cache_headers = [(b"etag", etag(self._key).encode()), (b"cache-control", b"no-cache")]
            self._headers = [*message["headers"], *cache_headers]
        elif self._headers is None:
            await self._send(message)
        else:  # routes send their body in one message
            if self._scope.get(CACHEABLE):
                self._cache.put(self._key, CachedResponse(self._scope["route"], self._headers, message["body"]))
            await _send(self._send, self._headers, message["body"], self._received_etags)


async def _send(send: Send, sent_headers: RawHeaders, body: bytes, received_etags: str | None) -> None:
    """Send a response with status 200, or 304 without a body if the request has its ETag."""
    if received_etags is not None and matches(_value(sent_headers, b"etag"), received_etags):
        remaining_headers = [(name, value) for name, value in sent_headers if not name.startswith(b"content-")]
        await send({"type": "http.response.start", "status": 304, "headers": remaining_headers})
        await send({"type": "http.response.body", "body": b""})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": sent_headers})
        await send({"type": "http.response.body", "body": body})


def etag(key: Key) -> str:
    """Return the ETag of a response."""
    return f'"{hashlib.sha256(repr((__version__, key)).encode("utf-8", "surrogatepass")).hexdigest()[:32]}"'


def matches(tag: str, received_etags: str) -> bool:
    """Return whether the value of `If-None-Match` contains an ETag."""
    tags = {received.strip().removeprefix("W/") for received in received_etags.split(",")}
    return tag in tags or "*" in tags


def chosen_release(request: Request, state: State) -> LiveRelease:
    """Return the release that the cache chose for a request about an item; choose it if the cache did not."""
    release: LiveRelease | None = request.scope.get(CHOSEN_RELEASE)
    return state.choose_release(RequestedRelease.from_request(request)) if release is None else release


def _value(pairs: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return next(value.decode("latin-1") for header, value in pairs if header == name)


def _num_bytes(key: Key, response: CachedResponse) -> int:
    return len(key[2]) + len(key[3]) + len(response.body) + OVERHEAD_BYTES
