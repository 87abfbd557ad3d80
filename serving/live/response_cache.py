"""Cache of responses about items, and their ETags.

A response is determined by the release, the revision of the item changes, and the request. These are its key in the
cache, so a change or another release never needs to invalidate anything. The ETag is derived from the key and the
version of this library, because another version may add fields.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import NamedTuple

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
RawHeaders = tuple[tuple[bytes, bytes], ...]
"""A tuple of tuples of bytes, which the garbage collector does not visit."""


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
        release = self._choose_release(scope)
        if release is not None and self._state.shadow is None:  # a shadow repeats every query
            cached = self._cache.get(_key(release, scope))
            if cached is not None:
                scope["route"] = cached.route
                await _send(send, cached.headers, cached.body, headers.received(scope).get(IF_NONE_MATCH))
                return
        # searches do not yield to the event loop: without this, requests that arrive together would never be counted
        # as concurrent
        await asyncio.sleep(0)
        if release is not None:
            scope[CHOSEN_RELEASE] = release
            send = _Recorder(self._cache, release, scope, send)
        await self.app(scope, receive, send)

    def _choose_release(self, scope: Scope) -> LiveRelease | None:
        """Return the release of a request about an item; None for other requests, and if it cannot be chosen."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith(ITEMS_PREFIX):
            return None
        try:
            return self._state.choose_release(RequestedRelease.from_scope(scope))
        except (RecsysError, ReleaseNotLoadedError):  # the route raises it again, inside the error handlers
            return None


class _Recorder:
    """Receives the response of the application, caches it if allowed, and sends it with an ETag."""

    def __init__(self, cache: LruCache, release: LiveRelease, scope: Scope, send: Send) -> None:
        self._cache = cache
        self._key = _key(release, scope)
        self._scope = scope
        self._send = send
        self._headers: RawHeaders | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:  # noqa: PLR2004
            self._headers = (*message["headers"], (b"etag", etag(self._key)), (b"cache-control", b"no-cache"))
        elif self._headers is None:
            await self._send(message)
        else:  # routes send their body in one message
            if self._scope.get(CACHEABLE):
                self._cache.put(self._key, CachedResponse(self._scope["route"], self._headers, message["body"]))
            received_etags = headers.received(self._scope).get(IF_NONE_MATCH)
            await _send(self._send, self._headers, message["body"], received_etags)


async def _send(send: Send, sent_headers: RawHeaders, body: bytes, received_etags: bytes | None) -> None:
    """Send a response with status 200, or 304 without a body if the request has its ETag."""
    if received_etags is not None and matches(dict(sent_headers)[b"etag"], received_etags):
        remaining_headers = [(name, value) for name, value in sent_headers if not name.startswith(b"content-")]
        await send({"type": "http.response.start", "status": 304, "headers": remaining_headers})
        await send({"type": "http.response.body", "body": b""})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": sent_headers})
        await send({"type": "http.response.body", "body": body})


def _key(release: LiveRelease, scope: Scope) -> Key:
    return release.release_id, release.revision, scope["path"], scope["query_string"]


def etag(key: Key) -> bytes:
    """Return the ETag of a response."""
    return b'"%s"' % hashlib.sha256(repr((__version__, key)).encode("utf-8", "surrogatepass")).hexdigest()[:32].encode()


def matches(tag: bytes, received_etags: bytes) -> bool:
    """Return whether the value of `If-None-Match` contains an ETag."""
    tags = {received.strip().removeprefix(b"W/") for received in received_etags.split(b",")}
    return tag in tags or b"*" in tags


def chosen_release(scope: Scope, state: State) -> LiveRelease:
    """Return the release that the cache chose for a request about an item; choose it if the cache did not."""
    release: LiveRelease | None = scope.get(CHOSEN_RELEASE)
    return state.choose_release(RequestedRelease.from_scope(scope)) if release is None else release


def _num_bytes(key: Key, response: CachedResponse) -> int:
    return len(key[2]) + len(key[3]) + len(response.body) + OVERHEAD_BYTES
