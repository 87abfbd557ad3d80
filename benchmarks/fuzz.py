"""The service under requests that nobody means well: generated from its description, and hostile by hand.

    python -m benchmarks.fuzz --json FILE [--requests N] [--seed N]

Two real workers with a journal. A part of the requests is what schemathesis makes of the OpenAPI, as it should be and
as it should not; the others are hostile ids, queries, headers, bodies and bytes on the wire. Nothing may end in a 500,
take longer than a request may, be answered otherwise than described, or stand in the log.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, quote_from_bytes, urlencode, urlsplit

import httpx
import hypothesis
import polars as pl
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from jsonschema import ValidationError
from schemathesis import GenerationMode
from schemathesis.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from schemathesis.core.failures import FailureGroup

from benchmarks import command
from tests.conftest import release_writer
from tests.serving.description import Description
from tests.serving.running import Service, until

ITEMS = [f"item {number:02}" for number in range(60)]
WORKERS = 2
TIMEOUT_S = 10.0
"""Of a request, by the service's own config; whoever asks does not wait much longer."""
GENERATED = 0.4
"""Share of the requests that schemathesis makes."""
MARK = "zqMARKqz"
"""Stands in everything hostile, and so in nothing that is logged."""
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
REQUEST_ID = "x-request-id"
"""Header of every answer of the application; what the HTTP server refuses by itself has none."""

TEXTS = [
    "", "/", "//", "..", "../../etc/passwd", ".", "%2F", "%252F", "%00", "\x00", "\x01\x1f\x7f", "\r\nX-A: b", "\n",
    "\t", "ä ö 漢字", "a\u0301\u0327" * 50, "\U0001f600\U0001f469\u200d\U0001f680", "\u202e\u2066\u05d0\ufeff",
    "\ud800", "\udfff\ud800", "\uffff\ufffe", "'; drop table entries; --", "{{7*7}}${7*7}", "%s%n%d", "<script>",
    "a?k=1#b&c=d", " ", "*", '"', "\\", "NaN", "null", "similar", "x" * 100_000, "漢" * 30_000,
]  # fmt: skip
"""Told after `MARK`, as ids and whatever else is a text."""
DEEP = 100_000
UNCODED = [b"%", b"%z", b"%zz", b"%u0041", b"%c0%af", b"%ff%fe", b"%ed%a0%80"]
"""Percents that encode nothing, or no text."""
FRAGMENTS = [
    "null", "true", "0", "-0", "-1", "1e308", "-1e308", "1e400", "-1e400", "1e-400", "NaN", "Infinity", "-Infinity",
    "9223372036854775808", "1" * 400, "1" * 5_000, "[]", "{}", "[[]]", '""', "[null]", '{"":null}', "[" * 60 + "]" * 60,
    "[" * 900 + "]" * 900, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[" * DEEP, "[1,]", "'x'", "",
    '{"item_id":"a","item_id":"b"}', '{"min":1,"max":NaN}', '{"min":1e400}', "[1" + ",1" * 5_000 + "]", "\ufeff1",
    '"\\ud800"', '{"\\ud800":1}', '{"min":"\\udfff"}', "[1e400]", '[true,1,"a"]', "1" * 1_100_000,
]  # fmt: skip
"""JSON, or nearly, in the place of some value of a good body."""
PLACE = "the place of a fragment"
QUESTION = {
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
    "diversity": {"lambda": 0.7, "at_most": {"genre": 5}},
    "on_unknown": "skip",
    "why": True,
}
CHANGE = {
    "title": "Put",
    "available": True,
    "features": {"genre": "drama", "tags": ["a", "b"], "year": 1999.0},
    "vector": [1, 0, 0.5, 0, 0],
}
OPTIONS = {
    "k": "5", "offset": "1", "min_similarity": "0.1", "min_probability": "0.1", "exclude": "item 07", "why": "true",
    "only_available": "true", "on_unknown": "skip", "balance": "0.5", "lambda": "0.5", "release": "fuzzed",
    "cursor": "",
}  # fmt: skip
HEADERS = [
    "Authorization", "Recsys-Release", "Recsys-Sticky-Key", "If-None-Match", "X-Request-Id", "Content-Type", "Accept",
    "Content-Encoding", "Accept-Encoding", "Range", "Cookie", "Host", "Expect", "Connection", "Origin", "traceparent",
    "Forwarded", "X-Forwarded-For", "X-HTTP-Method-Override", "Upgrade", "Content-Length", "Transfer-Encoding",
]  # fmt: skip
TYPES = [
    "text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
    "application/json; charset=utf-16", "application/json; charset=nothing", "application/merge-patch+json", "x", "",
]  # fmt: skip
METHODS = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "QUERY", MARK,
]  # fmt: skip
SIMILAR = "/v1/items/item%2000/similar"


class Request(NamedTuple):
    """What is sent, byte for byte."""

    method: str
    target: bytes
    headers: list[tuple[str, bytes]]
    body: bytes | None = None
    """With its length; None where the headers say it, or there is none."""
    after: bytes = b""
    """Sent behind the headers as it is."""

    def text(self, host: str) -> bytes:
        """As it goes over the wire."""
        headers = [("Host", host.encode()), *self.headers]
        if not any(name == "Connection" for name, _ in headers):
            headers.append(("Connection", b"close"))
        if self.body is not None:
            headers.append(("Content-Length", str(len(self.body)).encode()))
        lines = [self.method.encode() + b" " + self.target + b" HTTP/1.1"]
        lines += [name.encode() + b": " + value for name, value in headers]
        return b"\r\n".join(lines) + b"\r\n\r\n" + (self.body or b"") + self.after


class Fuzzed(NamedTuple):
    """What came of it."""

    requests: int
    statuses: dict[str, int]
    """How many answers of each status; `closed`: the HTTP server hung up without one."""
    failed: list[str]
    """What was wrong with answers."""
    logged: list[str]
    """What stands in the log, or in the metrics, and should not."""
    survived: bool
    """Whether the workers are those of the start."""
    longest_s: float
    """Of an answer."""


def fuzz(folder: Path, requests: int, seed: int = 0) -> Fuzzed:
    """Send so many requests, the same ones for the same seed."""
    service = _service(folder)
    service.start()
    try:
        until(lambda: service.get("/readyz").is_success)
        run = _Fuzz(service, seed)
        before = service.workers()
        run.generated(round(GENERATED * requests))
        run.hostile(requests - run.sent)
        survived = service.workers() == before and service.get("/readyz").is_success
        metrics = service.get("/metrics").text
    finally:
        service.close()
    logged = _wrong_lines(service, metrics)
    return Fuzzed(run.sent, dict(run.statuses), run.failed, logged, survived, round(run.longest_s, 3))


def _service(folder: Path) -> Service:
    genres, tags = ["drama", "comedy", "crime"], [["a"], ["a", "b"], []]
    release = release_writer(folder)(
        ITEMS,
        release_id="fuzzed",
        genre=pl.Series([genres[n % 3] for n in range(len(ITEMS))]),
        tags=pl.Series([tags[n % 3] for n in range(len(ITEMS))], dtype=pl.List(pl.String)),
        year=pl.Series([1990.0 + n % 30 for n in range(len(ITEMS))]),
        available=pl.Series([n % 4 != 0 for n in range(len(ITEMS))]),
    )
    service = Service(folder)
    service.let_in("fuzz", "write")
    service.set(workers=WORKERS, keys="keys.txt", timeout_s=TIMEOUT_S)
    service.want(release)
    return service


def _wrong_lines(service: Service, metrics: str) -> list[str]:
    """What was logged and holds something that was sent, or tells of an error nobody foresaw."""
    secret = service.key("fuzz")
    lines = [*service.log.read_text(errors="replace").splitlines(), *service.said, *metrics.splitlines()]
    never = (MARK, secret, "Traceback", '"traceback"', "a worker ended")
    without_id = (re.sub(r'"request_id": ?"[^"]*"', "", line) for line in lines)  # which may be the caller's own
    return [line[-500:] for line in without_id if any(text in line for text in never)]


class _Fuzz:
    def __init__(self, service: Service, seed: int) -> None:
        self._service = service
        self._where = urlsplit(service.url)
        self._spec = service.get("/openapi.json").json()
        self._described = Description(self._spec)
        self._key = service.secrets["fuzz"]
        self._seed = seed
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        self.sent = 0
        self.statuses = Counter[str]()
        self.failed: list[str] = []
        self.longest_s = 0.0

    def generated(self, count: int) -> None:
        """What schemathesis makes of the description, as it should be and as it should not, of each operation."""
        operations = [one.ok() for one in schemathesis.openapi.from_dict(_knowing(self._spec)).get_all_operations()]
        each = max(1, count // (len(operations) * len(GenerationMode)))
        for operation in operations:
            for mode in GenerationMode:

                @hypothesis.seed(self._seed)
                @settings(
                    max_examples=each,
                    phases=[Phase.generate],
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(generation_mode=mode))
                def ask(case: Any) -> None:
                    self._ask_case(case)

                with contextlib.suppress(Unsatisfiable):  # a probe takes nothing that could be wrong
                    ask()

    def _ask_case(self, case: Any) -> None:
        told = f"{case.method} {case.formatted_path}"
        try:
            response = case.call(base_url=self._service.url, headers=self._key, timeout=TIMEOUT_S + 1)
        except OSError as error:  # of which those of `requests` are
            self._seen(told, "none", TIMEOUT_S, repr(error))
            return
        try:
            wrong = None if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR else response.text[:300]
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as failed:
            wrong = "; ".join(map(str, failed.exceptions))[:500]
        self._seen(told, str(response.status_code), response.elapsed, wrong)

    def hostile(self, count: int) -> None:
        """What nobody would send by mistake."""
        kinds = [self._path, self._query, self._header, self._body, self._batch, self._wire]
        for number in range(count):
            self._ask(kinds[number % len(kinds)]())

    def _ask(self, request: Request) -> None:
        told = f"{request.method} {request.target[:200]!r} {str(request.headers)[:300]} {(request.body or b'')[:300]!r}"
        began = time.perf_counter()
        status, wrong = "closed", None
        with socket.create_connection((self._where.hostname, self._where.port), timeout=TIMEOUT_S + 1) as connection:
            try:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # answered before all was sent
                    connection.sendall(request.text(self._where.netloc))
                with HTTPResponse(connection, method=request.method) as response:
                    response.begin()
                    content, status = response.read(), str(response.status)
                    path = re.split(r"[?#\s]", request.target.decode("latin-1"))[0]
                    headers = httpx.Headers(response.getheaders())
                    wrong = self._wrong(request.method, path, response.status, headers, content)
            except (ConnectionResetError, HTTPException):
                pass
            except TimeoutError as error:
                wrong = repr(error)
        self._seen(told, status, time.perf_counter() - began, wrong)

    def _wrong(self, method: str, path: str, status: int, headers: httpx.Headers, content: bytes) -> str | None:
        """What is wrong with an answer."""
        if REQUEST_ID not in headers:  # not by the application
            return None if status == HTTPStatus.BAD_REQUEST else f"{status}: {content[:300]!r}"
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR and b"urn:recsys:timeout" not in content:
            return f"{status}: {content[:300]!r}"
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST and status != HTTPStatus.NOT_MODIFIED:
            return f"{status}: to {headers.get('location')}"
        try:
            self._described.check(method, path, status, headers, content)
        except (AssertionError, KeyError, ValueError, ValidationError) as error:
            return f"{status}: {type(error).__name__}: {str(error)[:300]}"
        return None

    def _seen(self, told: str, status: str, took_s: float, wrong: str | None) -> None:
        self.sent += 1
        self.statuses[status] += 1
        self.longest_s = max(self.longest_s, took_s)
        if wrong is not None:
            self.failed.append(f"{told}: {wrong}")

    def _text(self) -> str:
        return MARK + self._rng.choice(TEXTS)

    def _encoded(self) -> bytes:
        """A hostile id in a path, encoded well or badly."""
        plain = self._text().encode("utf-8", "surrogatepass")
        encoded = [
            quote_from_bytes(plain, safe="").encode(),
            quote_from_bytes(plain).encode(),
            plain,
            b"%" + plain.hex("%").encode(),
            MARK.encode() + self._rng.choice(UNCODED),
        ]
        return self._rng.choice(encoded)

    def _headers(self, *more: tuple[str, bytes]) -> list[tuple[str, bytes]]:
        return [*((name, value.encode()) for name, value in self._key.items()), *more]

    def _path(self) -> Request:
        method = self._rng.choice(["GET", "GET", "PUT", "DELETE"])
        ending = b"/similar" if method == "GET" and self._rng.random() < 0.5 else b""
        body = json.dumps(CHANGE).encode() if method == "PUT" else None
        headers = self._headers(("Content-Type", b"application/json"))
        return Request(method, b"/v1/items/" + self._encoded() + ending, headers, body)

    def _query(self) -> Request:
        names = self._rng.choices([*OPTIONS, MARK], k=self._rng.randint(1, 4))
        numbers = [fragment for fragment in FRAGMENTS if len(fragment) < DEEP]
        pairs = [
            (name, self._rng.choice([OPTIONS.get(name, ""), self._text(), self._rng.choice(numbers)])) for name in names
        ]
        query = urlencode([*pairs, *self._rng.choices(pairs, k=self._rng.randint(0, 2))], errors="surrogatepass")
        broken = self._rng.choice([b"", b"", b"&", b"&=", b"&%", b"&%ff=%fe", b";k=1", b"&k", b"?k=1", b"\xff"])
        return Request("GET", f"{SIMILAR}?{query}".encode() + broken, self._headers())

    def _header(self) -> Request:
        names = self._rng.choices(HEADERS, k=self._rng.randint(1, 3))
        values = [self._text().encode("utf-8", "surrogatepass"), MARK.encode() + b"\xff\xfe", MARK.encode(), b""]
        values = [value.replace(b"\r", b"").replace(b"\n", b"") for value in values]
        hostile = [(name, self._rng.choice(values)) for name in names]
        kept = [] if self._rng.random() < 0.2 else self._headers()
        return Request("GET", SIMILAR.encode(), [*kept, *hostile])

    def _body(self) -> Request:
        """A good question or change with one value replaced, sent as what it is or as something else."""
        change = self._rng.random() < 0.4
        body = self._spoilt(CHANGE if change else QUESTION)
        where = f"/v1/items/{quote(self._text()[:300], safe='', errors='surrogatepass')}" if change else "/v1/similar"
        kind = self._rng.choice(TYPES) if self._rng.random() < 0.15 else "application/json"
        headers = self._headers(("Content-Type", kind.encode()))
        method = "PUT" if change else "POST"
        if self._rng.random() < 0.2:
            size = self._rng.choice([1, 7, 4_096])
            chunks = [body[at : at + size] for at in range(0, min(len(body), 500 * size), size)]
            sent = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
            return Request(method, where.encode(), [*headers, ("Transfer-Encoding", b"chunked")], after=sent)
        if self._rng.random() < 0.1:
            headers.append(("Content-Encoding", self._rng.choice([b"gzip", b"br", b"deflate, gzip"])))
        return Request(method, where.encode(), headers, body)

    def _batch(self) -> Request:
        entries = b",".join(self._spoilt(QUESTION) for _ in range(self._rng.randint(1, 3)))
        headers = self._headers(("Content-Type", b"application/json"))
        return Request("POST", b"/v1/similar/batch", headers, b'{"questions":[' + entries + b"]}")

    def _spoilt(self, good: dict[str, Any]) -> bytes:
        """JSON of a good object in which one value, or one key, is something hostile."""
        body = json.loads(json.dumps(good))
        while len(body) > 1 and self._rng.random() < 0.6:  # what is left out cannot be wrong first
            body.pop(self._rng.choice(list(body)))
        at, key = self._rng.choice(list(_places(body)))
        how = self._rng.random()
        if how < 0.15 and isinstance(at, dict):
            at[self._text()] = at[key] if self._rng.random() < 0.5 else at.pop(key)
        else:
            at[key] = self._text() if how < 0.4 else PLACE
        fragment = self._rng.choice(FRAGMENTS)
        return json.dumps(body).replace(f'"{PLACE}"', fragment).encode()

    def _wire(self) -> Request:
        """What no client sends."""
        mark, key = MARK.encode(), self._headers()
        typed = [*key, ("Content-Type", b"application/json")]

        def get(target: bytes, *more: tuple[str, bytes]) -> Request:
            return Request("GET", target, [*key, *more])

        def similar(*more: tuple[str, bytes]) -> Request:
            return get(SIMILAR.encode(), *more)

        def post(name: str, value: bytes, body: bytes | None = None, after: bytes = b"") -> Request:
            return Request("POST", b"/v1/similar", [*typed, (name, value)], body, after)

        return self._rng.choice(
            [
                Request(self._rng.choice(METHODS), SIMILAR.encode(), key),
                Request(self._rng.choice(METHODS), b"*", key),
                get(b"http://" + mark + b"/v1/release"),
                get(b"//" + mark),
                get(b"/v1/items/" + mark * 12_500),
                get(b"/v1/items//similar"),
                get(b"/" + mark + b"/../v1/release"),
                get(b"/v1/release#" + mark),
                get(b"/v1/release HTTP/9.9\r\nX: " + mark),
                get(b""),
                similar(("X-" + MARK, mark * 12_500)),
                similar(*[(f"X-{number}", mark) for number in range(2_000)]),
                similar(*key, ("Authorization", mark)),
                similar(("Bad Name " + MARK, mark)),
                similar(("X-Folded", mark + b"\r\n folded")),
                similar(("Upgrade", b"websocket"), ("Sec-WebSocket-Key", mark)),
                similar(("Connection", b"upgrade"), ("Upgrade", b"websocket"), ("Sec-WebSocket-Key", mark)),
                similar(("Upgrade", b"h2c"), ("HTTP2-Settings", mark)),
                Request("POST", b"/v1/similar", typed, after=mark),
                post("Content-Length", b"-1", after=mark),
                post("Content-Length", b"9" * 40, after=mark),
                post("Content-Length", b"9" * 18, after=mark),
                post("Content-Length", b"1e3", after=mark),
                post("Content-Length", b"5", mark),
                post("Transfer-Encoding", b"chunked", mark),
                post("Transfer-Encoding", b"chunked", after=b"zz\r\n" + mark),
                post("Transfer-Encoding", b"gzip, chunked", after=b"0\r\n\r\n"),
                post("Expect", b"100-continue", mark),
                Request("GET", b"/v1/release", [*typed, ("Transfer-Encoding", b"chunked")], after=b"0\r\n\r\n"),
                Request("DELETE", b"/v1/items/" + mark, typed, mark * 1_000),
                Request("\x16\x03\x01" + MARK, b"\x02\x00", []),
                Request("PRI", b"* HTTP/2.0\r\n\r\nSM\r\n\r\n" + mark, []),
            ]
        )


def _places(within: Any) -> Iterator[tuple[Any, Any]]:
    """Everywhere in JSON where a value stands: an object or a list, and where in it."""
    for key in list(within) if isinstance(within, dict) else range(len(within)):
        yield within, key
        if isinstance(within[key], dict | list):
            yield from _places(within[key])


def _knowing(spec: dict[str, Any]) -> dict[str, Any]:
    """The description, from which half of the ids that are generated are some that the release holds."""
    told: dict[str, Any] = json.loads(json.dumps(spec))
    ids = {"anyOf": [{"enum": [*ITEMS[:5], MARK]}, {"type": "string"}]}
    for operations in told["paths"].values():
        for method in ("get", "put"):  # what is taken down is no good neighbor
            for parameter in operations.get(method, {}).get("parameters", []):
                if parameter["name"] == "item_id":
                    parameter["schema"] = ids
    question = told["components"]["schemas"]["QuestionBody"]["properties"]
    for name in ("history", "exclude"):
        question[name]["items"] = ids
    for name in ("items", "negatives"):
        question[name]["items"]["anyOf"].insert(0, ids)
    return told


def main() -> None:
    """Run, and write what came of it."""
    parser = command.parser(__doc__, command.FIGURES)
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="how many")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other requests for another one")
    asked = parser.parse_args()
    with command.working() as folder:
        done = fuzz(folder, asked.requests, asked.seed)
    print(command.write(done._asdict(), asked.json))
    sys.exit(bool(done.failed or done.logged or not done.survived))


if __name__ == "__main__":
    main()
