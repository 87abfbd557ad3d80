"""Who is let in, and how much of it. A real server, a file of keys that changes, and hostile requests."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import httpx
import pytest

from recsys.testing.openapi import Description
from recsys.testing.program import run
from recsys.testing.releases import WriteRelease, release_writer
from recsys.testing.service_process import Service, until
from serving.client import AsyncClient, Client, ServiceError
from serving.middleware import api_keys

ITEMS = [f"item {number:02}" for number in range(40)]
SIMILAR = "/v1/items/item%2000/similar"
LARGEST = 1 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker that takes two requests a second of `slow`, ten thousand bytes, and half a second of waiting."""
    folder = tmp_path_factory.mktemp("guarded")
    made = Service(folder)
    made.want(release_writer(folder)(ITEMS, release_id="first"))
    file = folder / "keys.txt"
    for name, more in (("reader", []), ("writer", ["--write"])):
        done = run("keys", "new", name, "--file", file, *more)
        made.secrets[name] = {"Authorization": f"Bearer {done.stdout.strip()}"}
    made.set(keys=str(file), timeout_seconds=0.5, rate=1e6)
    made.start()
    yield made
    made.close()


@pytest.fixture
def described(service: Service) -> Description:
    return Description(service.get("/openapi.json").json())


def test_what_is_kept_of_a_key_is_not_the_key(service: Service) -> None:
    kept = (service.folder / "keys.txt").read_text()
    assert [line.split()[:2] for line in kept.splitlines()] == [["reader", "read"], ["writer", "write"]]
    for name in service.secrets:
        assert service.key(name) not in kept


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("GET", SIMILAR, None, 401),
        ("GET", SIMILAR, "reader", 200),
        ("GET", SIMILAR, "writer", 200),
        ("POST", "/v1/similar", None, 401),
        ("PUT", "/v1/items/item%2001", "reader", 403),
        ("DELETE", "/v1/items/x", "reader", 403),
        ("DELETE", "/v1/items/x", None, 401),
        ("DELETE", "/v1/items/x", "writer", 204),
        ("GET", "/livez", None, 200),
        ("GET", "/readyz", None, 200),
        ("GET", "/metrics", None, 200),
    ],
)
def test_a_key_is_asked_for_where_it_should_be(
    service: Service, described: Description, *, method: str, path: str, key: str | None, status: int
) -> None:
    headers = {} if key is None else service.secrets[key]
    answer = httpx.request(method, f"{service.url}{path}", headers=headers, timeout=60)
    assert answer.status_code == status
    described(answer)
    assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize("given", ["Bearer", "Bearer x", "Basic eDp5", "Bearer \xff\xfe", "bearer rk_" + "x" * 9_000])
def test_a_key_that_is_none_is_not_let_in(service: Service, given: str) -> None:
    assert service.get(SIMILAR, headers={"Authorization": given.encode("latin-1")}).status_code == 401


def test_keys_are_changed_while_it_runs(service: Service) -> None:
    """A new one is let in, then the old one is not; a file with an error changes nothing."""
    file = service.folder / "keys.txt"
    kept = file.read_text()
    secret, key = api_keys.create_key("another", "read")
    another = {"Authorization": f"Bearer {secret}"}
    assert service.get(SIMILAR, headers=another).status_code == 401
    file.write_text(f"# rotated\n\n{kept}{key.line}\n")
    until(lambda: service.get(SIMILAR, headers=another).status_code == 200)
    assert service.get(SIMILAR, headers=service.secrets["reader"]).status_code == 200
    file.write_text(f"{key.line}\n")
    until(lambda: service.get(SIMILAR, headers=service.secrets["reader"]).status_code == 401)
    file.write_text(kept)
    until(lambda: service.get(SIMILAR, headers=service.secrets["reader"]).status_code == 200)


def test_without_any_key_everybody_asks_and_nobody_writes(tmp_path: Path, write_release: WriteRelease) -> None:
    service = Service(tmp_path)
    service.want(write_release(ITEMS))
    service.start()
    assert service.get(SIMILAR).status_code == 200
    refused = httpx.delete(f"{service.url}/v1/items/x", timeout=60)
    assert refused.status_code == 403
    assert "recsys keys new NAME --write" in refused.json()["detail"]
    service.close()


def test_a_body_that_is_too_large_is_refused_unread(service: Service, described: Description) -> None:
    question = {"items": [{"item_id": "item 00"}], "exclude": ["x" * LARGEST]}
    for content in (json.dumps(question).encode(), iter([json.dumps(question).encode()])):
        answer = httpx.post(f"{service.url}/v1/similar", content=content, headers=service.secrets["reader"], timeout=60)
        assert answer.status_code == 413
        described(answer)


def test_a_body_that_does_not_come_is_not_waited_for(service: Service) -> None:
    where = urlsplit(service.url)
    key = service.secrets["reader"]["Authorization"]
    with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
        connection.sendall(
            f"POST /v1/similar HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: 99\r\n\r\n{{".encode()
        )
        assert connection.recv(1_000).startswith(b"HTTP/1.1 503")


def test_a_request_has_an_id_of_its_own_or_the_callers(service: Service) -> None:
    given = service.get(SIMILAR, headers={**service.secrets["reader"], "X-Request-Id": "from-the-backend.1"})
    assert given.headers["x-request-id"] == "from-the-backend.1"
    made = {service.get("/livez", headers={"X-Request-Id": hostile}).headers["x-request-id"] for hostile in ("", 'a"b')}
    assert len(made) == 2
    assert all(len(one) == 32 for one in made)


def test_more_at_a_time_are_told_to_come_back(tmp_path: Path, write_release: WriteRelease) -> None:
    """At once, while those that were let in are answered; and each key at its rate."""
    service = Service(tmp_path)
    service.want(write_release(ITEMS))
    service.let_in("reader", "read")
    service.set(max_concurrent=2, keys="keys.txt", rate=3.0, timeout_seconds=60.0)
    service.start()
    headers = service.secrets["reader"]
    where = urlsplit(service.url)
    waiting = [socket.create_connection((where.hostname, where.port), timeout=60) for _ in range(2)]
    begun = f"POST /v1/similar HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['Authorization']}\r\n"
    for connection in waiting:
        connection.sendall(f"{begun}Content-Length: 9\r\n\r\n".encode())
    busy = until(lambda: next(filter(lambda a: a.status_code == 503, [service.get(SIMILAR)]), None))
    assert busy.json()["type"] == "urn:recsys:busy"
    assert int(busy.headers["retry-after"]) >= 1
    assert service.get("/readyz").status_code == 200
    for connection in waiting:
        connection.close()
    until(lambda: service.get(SIMILAR, headers=headers).status_code in (200, 429))
    answers = [service.get(SIMILAR, headers=headers) for _ in range(12)]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    with Client(service.url, key=service.key("reader")) as client:
        assert client.similar("item 00", k=2).release_id == "0123456789ab", "it comes back when it is told to"
    service.close()


HOSTILE = [
    "a/b", "/", "//", "..", "../../etc/passwd", "%2F", "ä ö 漢字", "\U0001f600", "\x00", "\x01\x1f\x7f", "\r\nX-A: b",
    "'; drop table entries; --", "{{7*7}}", "a?k=1#b", " ", "\u202e\ufeff", "x" * 50_000,
]  # fmt: skip


@pytest.mark.parametrize("item_id", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_ids_are_ids(service: Service, item_id: str) -> None:
    """Asked about, taken down, put and batched: known or not, and nothing breaks."""
    where = quote(item_id, safe="").replace(".", "%2E")
    writer = service.secrets["writer"]
    with httpx.Client(base_url=service.url, headers=writer, timeout=60) as client:
        assert client.get(f"/v1/items/{where}/similar").status_code == 404
        assert client.get(f"/v1/items/{where}").status_code == 404
        assert client.put(f"/v1/items/{where}", json={"vector": [1.0] * 5}).status_code in (200, 422)
        assert client.delete(f"/v1/items/{where}").status_code in (204, 422)
        assert client.get(f"/v1/items/{where}").status_code == 404
        answer = client.post("/v1/similar/batch", json={"queries": [{"items": [{"item_id": item_id[:1_000]}]}]})
        assert answer.json()["results"][0]["status"] == 404


def test_the_client_gives_typed_answers_and_the_librarys_errors(service: Service) -> None:
    from recsys.errors import InputError, UnknownItemError

    secret = service.key("writer")
    with Client(service.url, key=secret, timeout_s=60) as client:
        answer = client.similar("item 00", k=3)
        assert [neighbor.rank for neighbor in answer.neighbors] == [1, 2, 3]
        assert client.search({"items": [{"item_id": "item 00"}], "k": 3}).neighbors == answer.neighbors
        entries = client.search_batch(
            [{"items": [{"item_id": name}], "k": 3} for name in ("item 00", "absent")]
        ).results
        assert [entry.status for entry in entries] == [200, 404]
        with pytest.raises(UnknownItemError, match="'absent'"):
            client.similar("absent")
        with pytest.raises(InputError, match="k must be at most"):
            client.similar("item 00", k=100_000)
        assert client.put_item("a/new one", vector=[1.0, 0, 0, 0, 0], title="New").embedding_source == "vector"
        assert client.item("a/new one").title == "New"
        client.hide_item("a/new one")
        assert client.release().num_items == 40
    with Client(service.url, key="wrong", timeout_s=60) as client, pytest.raises(ServiceError) as caught:
        client.release()
    assert caught.value.problem is not None
    assert caught.value.problem.status == 401

    async def ask() -> Any:
        async with AsyncClient(service.url, key=secret, timeout_s=60) as client:
            return await client.similar("item 00", k=3), await client.hide_item("a/new one")

    assert asyncio.run(ask()) == (answer, None)


def test_the_log_tells_of_requests_and_not_of_ids_or_keys(service: Service) -> None:
    """Wherever they stood: in the path, a header, the query or the body."""
    secret = service.secrets["writer"]["Authorization"]
    headers = {"Authorization": secret, "X-Request-Id": "to-be-found", "Recsys-Sticky-Key": "private-user"}
    service.get("/v1/items/private-item/similar", headers=headers, params={"exclude": "private-other", "k": 3})
    body = {"items": [{"item_id": "private-item"}], "history": ["private-seen"]}
    httpx.post(f"{service.url}/v1/similar", json=body, headers=headers, timeout=60)
    service.get("/v1/items/x/similar", headers={"Authorization": "Bearer private-wrong-key"})
    log = until(lambda: text if (text := service.log.read_text()).count("to-be-found") >= 2 else "")
    lines = [json.loads(line) for line in log.splitlines()]
    told = next(line for line in lines if line["request_id"] == "to-be-found")
    assert told["route"] == "/v1/items/{item_id:encoded}/similar"
    assert (told["method"], told["status"], told["api_key"]) == ("GET", 404, "writer")
    assert told["duration_ms"] > 0
    assert "private" not in log
    assert secret.removeprefix("Bearer ") not in log


class Collector(BaseHTTPRequestHandler):
    """Takes spans."""

    taken: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.taken.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_spans_are_sent_where_they_are_wanted(tmp_path: Path, write_release: WriteRelease) -> None:
    """By route, below the caller's span, and without ids."""
    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    service = Service(tmp_path)
    service.want(write_release(ITEMS, release_id="traced"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        environment.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        service.start()
    trace = "0af7651916cd43dd8448eb211c80319c"
    service.get(SIMILAR, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    sent = until(lambda: next((spans for spans in Collector.taken if bytes.fromhex(trace) in spans), b""))
    assert b"GET /v1/items/{item_id:encoded}/similar" in sent
    assert b"traced" in sent
    assert b"item 00" not in sent
    service.close()
    collector.shutdown()
    thread.join()
    collector.server_close()


def test_the_client_gives_up_where_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}", max_attempts=2) as client,
        pytest.raises(ServiceError, match="must respond"),
    ):
        client.release()


def test_a_path_of_100_kb_is_answered(service: Service) -> None:
    """By a client that sends what it is told to."""
    where = urlsplit(service.url)
    connection = HTTPConnection(where.netloc, timeout=60)
    for method in ("GET", "PUT", "DELETE"):
        headers = {**service.secrets["writer"], "Content-Type": "application/json"}
        connection.request(method, f"/v1/items/{'x' * 100_000}", body="{}", headers=headers)
        answer = connection.getresponse()
        assert 400 <= answer.status < 500
        answer.read()
    connection.close()
