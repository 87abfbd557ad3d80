"""Hostile HTTP requests: ids, queries, headers, bodies and raw bytes that no client sends by mistake."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, quote_from_bytes, urlencode

MARKER = "zqMARKqz"
"""Part of every hostile value, and so of nothing that a service may log."""

TEXTS = [
    "", "/", "//", "..", "../../etc/passwd", ".", "%2F", "%252F", "%00", "\x00", "\x01\x1f\x7f", "\r\nX-A: b", "\n",
    "\t", "ä ö 漢字", "a\u0301\u0327" * 50, "\U0001f600\U0001f469\u200d\U0001f680", "\u202e\u2066\u05d0\ufeff",
    "\ud800", "\udfff\ud800", "\uffff\ufffe", "'; drop table entries; --", "{{7*7}}${7*7}", "%s%n%d", "<script>",
    "a?k=1#b&c=d", " ", "*", '"', "\\", "NaN", "null", "similar", "x" * 100_000, "漢" * 30_000,
]  # fmt: skip
"""Texts for ids and other strings; they follow `MARKER`."""
INVALID_ENCODINGS = [b"%", b"%z", b"%zz", b"%u0041", b"%c0%af", b"%ff%fe", b"%ed%a0%80"]
"""Percent-encodings that are malformed or are not UTF-8."""
DEPTH = 100_000
FRAGMENTS = [
    "null", "true", "0", "-0", "-1", "1e308", "-1e308", "1e400", "-1e400", "1e-400", "NaN", "Infinity", "-Infinity",
    "9223372036854775808", "1" * 400, "1" * 5_000, "[]", "{}", "[[]]", '""', "[null]", '{"":null}', "[" * 60 + "]" * 60,
    "[" * 900 + "]" * 900, "[" * DEPTH + "]" * DEPTH, '{"a":' * DEPTH + "1" + "}" * DEPTH, "[" * DEPTH, "[1,]", "'x'",
    "", '{"item_id":"a","item_id":"b"}', '{"min":1,"max":NaN}', '{"min":1e400}', "[1" + ",1" * 5_000 + "]", "\ufeff1",
    '"\\ud800"', '{"\\ud800":1}', '{"min":"\\udfff"}', "[1e400]", '[true,1,"a"]', "1" * 1_100_000,
]  # fmt: skip
"""Valid and invalid JSON that replaces a value of a valid body."""
PLACEHOLDER = "placeholder of a fragment"
QUERY = {
    "items": ["item 01", {"item_id": "item 02", "weight": 2.0}],
    "negatives": [{"item_id": "item 03", "weight": 1.0}],
    "history": ["item 04", "item 05"],
    "vector": [1, 0, 0.5, 0, 0],
    "k": 7,
    "offset": 2,
    "min_similarity": -0.5,
    "exclude": ["item 06"],
    "allow": ["item 10", "item 11"],
    "where": {"genre": ["drama", "crime"], "tags": "a", "year": {"min": 1990, "max": 2015}, "available": True},
    "only_available": True,
    "diversity": {"mmr_lambda": 0.7, "max_per_value": {"genre": 5}},
    "on_unknown": "skip",
    "explain": True,
}
CHANGE = {
    "title": "Put",
    "available": True,
    "features": {"genre": "drama", "tags": ["a", "b"], "year": 1999.0},
    "vector": [1, 0, 0.5, 0, 0],
}
PARAMETERS = {
    "k": "5", "offset": "1", "min_similarity": "0.1", "min_probability": "0.1", "exclude": "item 07", "explain": "true",
    "only_available": "true", "on_unknown": "skip", "mmr_lambda": "0.5", "release": "fuzzed",
    "cursor": "",
}  # fmt: skip
HEADERS = [
    "Authorization", "Recsys-Release", "Recsys-Sticky-Key", "If-None-Match", "X-Request-Id", "Content-Type", "Accept",
    "Content-Encoding", "Accept-Encoding", "Range", "Cookie", "Host", "Expect", "Connection", "Origin", "traceparent",
    "Forwarded", "X-Forwarded-For", "X-HTTP-Method-Override", "Upgrade", "Content-Length", "Transfer-Encoding",
]  # fmt: skip
MEDIA_TYPES = [
    "text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
    "application/json; charset=utf-16", "application/json; charset=nothing", "application/merge-patch+json", "x", "",
]  # fmt: skip
METHODS = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "QUERY", MARKER,
]  # fmt: skip
SIMILAR = "/v1/items/item%2000/similar"


class Request(NamedTuple):
    """A request, byte for byte."""

    method: str
    target: bytes
    headers: list[tuple[str, bytes]]
    body: bytes | None = None
    """Sent with a Content-Length header; None to send none, or to set the header explicitly."""
    trailer: bytes = b""
    """Bytes sent after the headers as they are."""

    def to_bytes(self, host: str) -> bytes:
        """Return the bytes on the wire."""
        headers = [("Host", host.encode()), *self.headers]
        if not any(name == "Connection" for name, _ in headers):
            headers.append(("Connection", b"close"))
        if self.body is not None:
            headers.append(("Content-Length", str(len(self.body)).encode()))
        lines = [self.method.encode() + b" " + self.target + b" HTTP/1.1"]
        lines += [name.encode() + b": " + value for name, value in headers]
        return b"\r\n".join(lines) + b"\r\n\r\n" + (self.body or b"") + self.trailer


class HostileRequests:
    """Random hostile requests.

    Args:
        key: HTTP headers of a client that may write.
        seed: the same seed yields the same requests.
    """

    def __init__(self, key: dict[str, str], seed: int) -> None:
        self._key = key
        self._rng = random.Random(seed)

    def generate(self, count: int) -> Iterator[Request]:
        """Yield requests of all kinds in turn."""
        kinds = [self._path, self._query, self._header, self._body, self._batch, self._wire]
        for number in range(count):
            yield kinds[number % len(kinds)]()

    def _text(self) -> str:
        return MARKER + self._rng.choice(TEXTS)

    def _encoded_id(self) -> bytes:
        """Return a hostile id for a path, with a valid or invalid encoding."""
        plain = self._text().encode("utf-8", "surrogatepass")
        encoded = [
            quote_from_bytes(plain, safe="").encode(),
            quote_from_bytes(plain).encode(),
            plain,
            b"%" + plain.hex("%").encode(),
            MARKER.encode() + self._rng.choice(INVALID_ENCODINGS),
        ]
        return self._rng.choice(encoded)

    def _headers(self, *more: tuple[str, bytes]) -> list[tuple[str, bytes]]:
        return [*((name, value.encode()) for name, value in self._key.items()), *more]

    def _path(self) -> Request:
        method = self._rng.choice(["GET", "GET", "PUT", "DELETE"])
        ending = b"/similar" if method == "GET" and self._rng.random() < 0.5 else b""
        body = json.dumps(CHANGE).encode() if method == "PUT" else None
        headers = self._headers(("Content-Type", b"application/json"))
        return Request(method, b"/v1/items/" + self._encoded_id() + ending, headers, body)

    def _query(self) -> Request:
        names = self._rng.choices([*PARAMETERS, MARKER], k=self._rng.randint(1, 4))
        short = [fragment for fragment in FRAGMENTS if len(fragment) < DEPTH]
        pairs = [
            (name, self._rng.choice([PARAMETERS.get(name, ""), self._text(), self._rng.choice(short)]))
            for name in names
        ]
        query = urlencode([*pairs, *self._rng.choices(pairs, k=self._rng.randint(0, 2))], errors="surrogatepass")
        ending = self._rng.choice([b"", b"", b"&", b"&=", b"&%", b"&%ff=%fe", b";k=1", b"&k", b"?k=1", b"\xff"])
        return Request("GET", f"{SIMILAR}?{query}".encode() + ending, self._headers())

    def _header(self) -> Request:
        names = self._rng.choices(HEADERS, k=self._rng.randint(1, 3))
        values = [self._text().encode("utf-8", "surrogatepass"), MARKER.encode() + b"\xff\xfe", MARKER.encode(), b""]
        values = [value.replace(b"\r", b"").replace(b"\n", b"") for value in values]
        hostile = [(name, self._rng.choice(values)) for name in names]
        key = [] if self._rng.random() < 0.2 else self._headers()
        return Request("GET", SIMILAR.encode(), [*key, *hostile])

    def _body(self) -> Request:
        """Return a query or a change with one hostile value, in any media type, coding and framing."""
        is_change = self._rng.random() < 0.4
        body = self._damaged(CHANGE if is_change else QUERY)
        item_id = quote(self._text()[:300], safe="", errors="surrogatepass")
        target = f"/v1/items/{item_id}" if is_change else "/v1/similar"
        media_type = self._rng.choice(MEDIA_TYPES) if self._rng.random() < 0.15 else "application/json"
        headers = self._headers(("Content-Type", media_type.encode()))
        method = "PUT" if is_change else "POST"
        if self._rng.random() < 0.2:
            size = self._rng.choice([1, 7, 4_096])
            chunks = [body[start : start + size] for start in range(0, min(len(body), 500 * size), size)]
            framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
            return Request(method, target.encode(), [*headers, ("Transfer-Encoding", b"chunked")], trailer=framed)
        if self._rng.random() < 0.1:
            headers.append(("Content-Encoding", self._rng.choice([b"gzip", b"br", b"deflate, gzip"])))
        return Request(method, target.encode(), headers, body)

    def _batch(self) -> Request:
        queries = b",".join(self._damaged(QUERY) for _ in range(self._rng.randint(1, 3)))
        headers = self._headers(("Content-Type", b"application/json"))
        return Request("POST", b"/v1/similar/batch", headers, b'{"queries":[' + queries + b"]}")

    def _damaged(self, valid: dict[str, Any]) -> bytes:
        """Return the JSON of an object in which one value or one key is hostile."""
        body = json.loads(json.dumps(valid))
        while len(body) > 1 and self._rng.random() < 0.6:  # an absent value cannot hide the hostile one
            body.pop(self._rng.choice(list(body)))
        container, key = self._rng.choice(list(_values(body)))
        choice = self._rng.random()
        if choice < 0.15 and isinstance(container, dict):
            container[self._text()] = container[key] if self._rng.random() < 0.5 else container.pop(key)
        else:
            container[key] = self._text() if choice < 0.4 else PLACEHOLDER
        fragment = self._rng.choice(FRAGMENTS)
        return json.dumps(body).replace(f'"{PLACEHOLDER}"', fragment).encode()

    def _wire(self) -> Request:
        """Return a request that violates HTTP, or uses a part of it that no client of the service needs."""
        marker, key = MARKER.encode(), self._headers()
        json_headers = [*key, ("Content-Type", b"application/json")]

        def get(target: bytes, *more: tuple[str, bytes]) -> Request:
            return Request("GET", target, [*key, *more])

        def similar(*more: tuple[str, bytes]) -> Request:
            return get(SIMILAR.encode(), *more)

        def post(name: str, value: bytes, body: bytes | None = None, trailer: bytes = b"") -> Request:
            return Request("POST", b"/v1/similar", [*json_headers, (name, value)], body, trailer)

        return self._rng.choice(
            [
                Request(self._rng.choice(METHODS), SIMILAR.encode(), key),
                Request(self._rng.choice(METHODS), b"*", key),
                get(b"http://" + marker + b"/v1/release"),
                get(b"//" + marker),
                get(b"/v1/items/" + marker * 12_500),
                get(b"/v1/items//similar"),
                get(b"/" + marker + b"/../v1/release"),
                get(b"/v1/release#" + marker),
                get(b"/v1/release HTTP/9.9\r\nX: " + marker),
                get(b""),
                similar(("X-" + MARKER, marker * 12_500)),
                similar(*[(f"X-{number}", marker) for number in range(2_000)]),
                similar(*key, ("Authorization", marker)),
                similar(("Bad Name " + MARKER, marker)),
                similar(("X-Folded", marker + b"\r\n folded")),
                similar(("Upgrade", b"websocket"), ("Sec-WebSocket-Key", marker)),
                similar(("Connection", b"upgrade"), ("Upgrade", b"websocket"), ("Sec-WebSocket-Key", marker)),
                similar(("Upgrade", b"h2c"), ("HTTP2-Settings", marker)),
                Request("POST", b"/v1/similar", json_headers, trailer=marker),
                post("Content-Length", b"-1", trailer=marker),
                post("Content-Length", b"9" * 40, trailer=marker),
                post("Content-Length", b"9" * 18, trailer=marker),
                post("Content-Length", b"1e3", trailer=marker),
                post("Content-Length", b"5", marker),
                post("Transfer-Encoding", b"chunked", marker),
                post("Transfer-Encoding", b"chunked", trailer=b"zz\r\n" + marker),
                post("Transfer-Encoding", b"gzip, chunked", trailer=b"0\r\n\r\n"),
                post("Expect", b"100-continue", marker),
                Request(
                    "GET", b"/v1/release", [*json_headers, ("Transfer-Encoding", b"chunked")], trailer=b"0\r\n\r\n"
                ),
                Request("DELETE", b"/v1/items/" + marker, json_headers, marker * 1_000),
                Request("\x16\x03\x01" + MARKER, b"\x02\x00", []),
                Request("PRI", b"* HTTP/2.0\r\n\r\nSM\r\n\r\n" + marker, []),
            ]
        )


def _values(container: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (object or list, key or index) of every value in a JSON value."""
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _values(container[key])
