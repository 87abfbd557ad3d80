"""API keys, limits, request ids, logs and traces of a server process, its client, and hostile item ids."""

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
from recsys.testing.service_process import Service, wait_until
from serving.client import AsyncClient, Client, ServiceError
from serving.middleware import api_keys

ITEMS = [f"item {number:02}" for number in range(40)]
SIMILAR = "/v1/items/item%2000/similar"
MAX_BODY_BYTES = 1 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the keys `reader` and `writer` and a timeout of half a second."""
    folder = tmp_path_factory.mktemp("guarded")
    made = Service(folder)
    made.set_releases(release_writer(folder)(ITEMS, release_id="first"))
    file = folder / "keys.txt"
    for name, options in (("reader", []), ("writer", ["--write"])):
        process = run("keys", "new", name, "--file", file, *options)
        made.secrets[name] = {"Authorization": f"Bearer {process.stdout.strip()}"}
    made.configure(keys=str(file), timeout_seconds=0.5, rate=1e6)
    made.start()
    yield made
    made.close()


@pytest.fixture
def described(service: Service) -> Description:
    return Description(service.get("/openapi.json").json())


def test_key_file_does_not_contain_the_secrets(service: Service) -> None:
    content = (service.folder / "keys.txt").read_text()
    assert [line.split()[:2] for line in content.splitlines()] == [["reader", "read"], ["writer", "write"]]
    for name in service.secrets:
        assert service.key(name) not in content


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
def test_routes_require_keys_and_rights(
    service: Service, described: Description, *, method: str, path: str, key: str | None, status: int
) -> None:
    headers = {} if key is None else service.secrets[key]
    response = httpx.request(method, f"{service.url}{path}", headers=headers, timeout=60)
    assert response.status_code == status
    described(response)
    assert ("www-authenticate" in response.headers) == (status == 401)


@pytest.mark.parametrize(
    "authorization", ["Bearer", "Bearer x", "Basic eDp5", "Bearer \xff\xfe", "bearer rk_" + "x" * 9_000]
)
def test_invalid_authorization_is_401(service: Service, authorization: str) -> None:
    assert service.get(SIMILAR, headers={"Authorization": authorization.encode("latin-1")}).status_code == 401


def test_key_file_is_reloaded_while_the_service_runs(service: Service) -> None:
    file = service.folder / "keys.txt"
    content = file.read_text()
    secret, key = api_keys.create_key("another", "read")
    another = {"Authorization": f"Bearer {secret}"}
    assert service.get(SIMILAR, headers=another).status_code == 401
    file.write_text(f"# rotated\n\n{content}{key.line}\n")
    wait_until(lambda: service.get(SIMILAR, headers=another).status_code == 200)
    assert service.get(SIMILAR, headers=service.secrets["reader"]).status_code == 200
    file.write_text(f"{key.line}\n")
    wait_until(lambda: service.get(SIMILAR, headers=service.secrets["reader"]).status_code == 401)
    file.write_text(content)
    wait_until(lambda: service.get(SIMILAR, headers=service.secrets["reader"]).status_code == 200)


def test_without_keys_reads_are_public_and_writes_are_forbidden(tmp_path: Path, write_release: WriteRelease) -> None:
    service = Service(tmp_path)
    service.set_releases(write_release(ITEMS))
    service.start()
    assert service.get(SIMILAR).status_code == 200
    response = httpx.delete(f"{service.url}/v1/items/x", timeout=60)
    assert response.status_code == 403
    assert "recsys keys new NAME --write" in response.json()["detail"]
    service.close()


def test_body_that_is_too_large_is_413(service: Service, described: Description) -> None:
    query = {"items": [{"item_id": "item 00"}], "exclude": ["x" * MAX_BODY_BYTES]}
    for content in (json.dumps(query).encode(), iter([json.dumps(query).encode()])):
        response = httpx.post(
            f"{service.url}/v1/similar", content=content, headers=service.secrets["reader"], timeout=60
        )
        assert response.status_code == 413
        described(response)


def test_incomplete_body_is_503_after_the_timeout(service: Service) -> None:
    url = urlsplit(service.url)
    key = service.secrets["reader"]["Authorization"]
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
        connection.sendall(
            f"POST /v1/similar HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: 99\r\n\r\n{{".encode()
        )
        assert connection.recv(1_000).startswith(b"HTTP/1.1 503")


def test_returns_a_valid_request_id_of_the_client(service: Service) -> None:
    response = service.get(SIMILAR, headers={**service.secrets["reader"], "X-Request-Id": "from-the-backend.1"})
    assert response.headers["x-request-id"] == "from-the-backend.1"
    new_ids = {
        service.get("/livez", headers={"X-Request-Id": invalid}).headers["x-request-id"] for invalid in ("", 'a"b')
    }
    assert len(new_ids) == 2
    assert all(len(request_id) == 32 for request_id in new_ids)


def test_requests_over_the_limits_get_retry_after(tmp_path: Path, write_release: WriteRelease) -> None:
    """Over the number of concurrent requests: 503. Over the rate of a key: 429, and the client retries."""
    service = Service(tmp_path)
    service.set_releases(write_release(ITEMS))
    service.add_key("reader", "read")
    service.configure(max_concurrent=2, keys="keys.txt", rate=3.0, timeout_seconds=60.0)
    service.start()
    headers = service.secrets["reader"]
    url = urlsplit(service.url)
    connections = [socket.create_connection((url.hostname, url.port), timeout=60) for _ in range(2)]
    request = f"POST /v1/similar HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['Authorization']}\r\n"
    for connection in connections:
        connection.sendall(f"{request}Content-Length: 9\r\n\r\n".encode())
    busy = wait_until(lambda: next(filter(lambda response: response.status_code == 503, [service.get(SIMILAR)]), None))
    assert busy.json()["type"] == "urn:recsys:busy"
    assert int(busy.headers["retry-after"]) >= 1
    assert service.get("/readyz").status_code == 200
    for connection in connections:
        connection.close()
    wait_until(lambda: service.get(SIMILAR, headers=headers).status_code in (200, 429))
    responses = [service.get(SIMILAR, headers=headers) for _ in range(12)]
    limited = next(response for response in responses if response.status_code == 429)
    assert int(limited.headers["retry-after"]) >= 1
    with Client(service.url, key=service.key("reader")) as client:
        assert client.similar("item 00", k=2).release_id == "0123456789ab", "the client retries"
    service.close()


HOSTILE = [
    "a/b", "/", "//", "..", "../../etc/passwd", "%2F", "ä ö 漢字", "\U0001f600", "\x00", "\x01\x1f\x7f", "\r\nX-A: b",
    "'; drop table entries; --", "{{7*7}}", "a?k=1#b", " ", "\u202e\ufeff", "x" * 50_000,
]  # fmt: skip


@pytest.mark.parametrize("item_id", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_item_ids_are_handled_as_ids(service: Service, item_id: str) -> None:
    """By queries, batches and item changes."""
    encoded_id = quote(item_id, safe="").replace(".", "%2E")
    writer = service.secrets["writer"]
    with httpx.Client(base_url=service.url, headers=writer, timeout=60) as client:
        assert client.get(f"/v1/items/{encoded_id}/similar").status_code == 404
        assert client.get(f"/v1/items/{encoded_id}").status_code == 404
        assert client.put(f"/v1/items/{encoded_id}", json={"vector": [1.0] * 5}).status_code in (200, 422)
        assert client.delete(f"/v1/items/{encoded_id}").status_code in (204, 422)
        assert client.get(f"/v1/items/{encoded_id}").status_code == 404
        response = client.post("/v1/similar/batch", json={"queries": [{"items": [{"item_id": item_id[:1_000]}]}]})
        assert response.json()["results"][0]["status"] == 404


def test_client_returns_typed_results_and_raises_errors_of_the_library(service: Service) -> None:
    from recsys.errors import InputError, UnknownItemError

    secret = service.key("writer")
    with Client(service.url, key=secret, timeout_s=60) as client:
        result = client.similar("item 00", k=3)
        assert [neighbor.rank for neighbor in result.neighbors] == [1, 2, 3]
        assert client.search({"items": [{"item_id": "item 00"}], "k": 3}).neighbors == result.neighbors
        entries = client.search_batch(
            [{"items": [{"item_id": name}], "k": 3} for name in ("item 00", "absent")]
        ).results
        assert [entry.status for entry in entries] == [200, 404]
        with pytest.raises(UnknownItemError, match="'absent'"):
            client.similar("absent")
        with pytest.raises(InputError, match="k must be at most"):
            client.similar("item 00", k=100_000)
        assert client.similar("item 00", k=3, sense="next").sense == "next"
        change = client.put_item("a/new one", vector=[1.0, 0, 0, 0, 0], title="New")
        assert change.embedding_source == {"similar": "vector", "next": "vector"}
        assert client.item("a/new one").title == "New"
        client.hide_item("a/new one")
        assert client.release().num_items == 40
    with Client(service.url, key="wrong", timeout_s=60) as client, pytest.raises(ServiceError) as error_info:
        client.release()
    assert error_info.value.problem is not None
    assert error_info.value.problem.status == 401

    async def send() -> Any:
        async with AsyncClient(service.url, key=secret, timeout_s=60) as client:
            return await client.similar("item 00", k=3), await client.hide_item("a/new one")

    assert asyncio.run(send()) == (result, None)


def test_request_log_contains_neither_item_ids_nor_keys(service: Service) -> None:
    """Whether they were sent in the path, a header, the query string or the body."""
    secret = service.secrets["writer"]["Authorization"]
    headers = {"Authorization": secret, "X-Request-Id": "logged-request", "Recsys-Sticky-Key": "private-user"}
    service.get("/v1/items/private-item/similar", headers=headers, params={"exclude": "private-other", "k": 3})
    body = {"items": [{"item_id": "private-item"}], "history": ["private-history"]}
    httpx.post(f"{service.url}/v1/similar", json=body, headers=headers, timeout=60)
    service.get("/v1/items/x/similar", headers={"Authorization": "Bearer private-wrong-key"})
    log = wait_until(lambda: text if (text := service.log.read_text()).count("logged-request") >= 2 else "")
    lines = [json.loads(line) for line in log.splitlines()]
    line = next(line for line in lines if line["request_id"] == "logged-request")
    assert line["route"] == "/v1/items/{item_id:encoded}/similar"
    assert (line["method"], line["status"], line["api_key"]) == ("GET", 404, "writer")
    assert line["duration_ms"] > 0
    assert "private" not in log
    assert secret.removeprefix("Bearer ") not in log


class Collector(BaseHTTPRequestHandler):
    """Records the spans that it receives."""

    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_spans_are_sent_to_the_otlp_endpoint(tmp_path: Path, write_release: WriteRelease) -> None:
    """They are named by route, belong to the trace of the client, and do not contain item ids."""
    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    service = Service(tmp_path)
    service.set_releases(write_release(ITEMS, release_id="traced"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        environment.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        service.start()
    trace = "0af7651916cd43dd8448eb211c80319c"
    service.get(SIMILAR, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    span = wait_until(lambda: next((spans for spans in Collector.received if bytes.fromhex(trace) in spans), b""))
    assert b"GET /v1/items/{item_id:encoded}/similar" in span
    assert b"traced" in span
    assert b"item 00" not in span
    service.close()
    collector.shutdown()
    thread.join()
    collector.server_close()


def test_client_fails_after_max_attempts_without_a_server() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}", max_attempts=2) as client,
        pytest.raises(ServiceError, match="must respond"),
    ):
        client.release()


def test_path_of_100_kb_is_a_client_error(service: Service) -> None:
    """`http.client` sends it; httpx rejects such a URL."""
    url = urlsplit(service.url)
    connection = HTTPConnection(url.netloc, timeout=60)
    for method in ("GET", "PUT", "DELETE"):
        headers = {**service.secrets["writer"], "Content-Type": "application/json"}
        connection.request(method, f"/v1/items/{'x' * 100_000}", body="{}", headers=headers)
        response = connection.getresponse()
        assert 400 <= response.status < 500
        response.read()
    connection.close()
