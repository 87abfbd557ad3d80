"""A server process with the golden releases, over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from recsys import Release
from recsys.testing import program
from recsys.testing.openapi import problem
from recsys.testing.service_process import Service, validated_client
from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES / "v1"
CALIBRATED = GOLDEN.parent / "v2"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    service = Service.for_release(tmp_path_factory.mktemp("service"), GOLDEN)
    service.config = tmp_path_factory.mktemp("no_config") / "recsys.toml"
    with validated_client(service) as http_client:
        yield http_client


def test_returns_ten_neighbors_by_default(client: httpx.Client) -> None:
    result = client.get("/v1/items/item-0-0/similar").json()
    assert result["item_id"] == "item-0-0"
    assert result["title"] == "Title of item-0-0"
    assert len(result["neighbors"]) == 10
    assert list(result["neighbors"][0]) == ["item_id", "title", "similarity", "rank", "probability", "explanation"]
    assert {neighbor["probability"] for neighbor in result["neighbors"]} == {None}


def test_calibrated_release_returns_the_probabilities_of_the_library(tmp_path: Path) -> None:
    """They decrease with the similarity."""
    with validated_client(Service.for_release(tmp_path, CALIBRATED)) as client:
        result = client.get("/v1/items/item-0-0/similar", params={"k": 40}).json()
    expected = Release.load(CALIBRATED).similar("item-0-0", 40)
    assert result["neighbors"] == [neighbor._asdict() for neighbor in expected.neighbors]
    probabilities = [neighbor["probability"] for neighbor in result["neighbors"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 <= probabilities[-1] < 0.5 < probabilities[0] <= 1


def test_results_of_a_smaller_k_are_a_prefix(client: httpx.Client) -> None:
    short, long = (client.get("/v1/items/item-0-0/similar", params={"k": k}).json()["neighbors"] for k in (5, 40))
    assert long[:5] == short
    assert len(long) == 40


def test_item_id_may_contain_a_slash_and_a_question_mark(client: httpx.Client) -> None:
    response = client.get(f"/v1/items/{quote('new/item 1?', safe='')}/similar")
    assert response.json()["title"] == "Just out"


@pytest.mark.parametrize(
    "item_id",
    ["absent", "a/b", "a/similar", "..", "%2F", "ä ö 漢字", "'; drop table", "x" * 4_000, "\x00\x1f", "a?k=1#b"],
    ids=["plain", "slash", "route", "dots", "percent", "unicode", "sql", "long", "control", "query"],
)
def test_unknown_item_is_404_with_its_id(client: httpx.Client, item_id: str) -> None:
    response = client.get(f"/v1/items/{quote(item_id, safe='').replace('.', '%2E')}/similar")
    assert repr(item_id) in problem(response, 404, "unknown-item")


def test_item_id_that_is_not_utf_8_is_unknown(client: httpx.Client) -> None:
    problem(client.get("/v1/items/%ff%fe/similar"), 404, "unknown-item")


@pytest.mark.parametrize(
    ("k", "message"),
    [
        ("0", "greater than or equal to 1"),
        ("-3", "greater than or equal to 1"),
        ("x", "integer"),
        ("1001", "at most 1000"),
    ],
)
def test_rejects_invalid_k(client: httpx.Client, k: str, message: str) -> None:
    detail = problem(client.get("/v1/items/item-0-0/similar", params={"k": k}), 422, "invalid-request")
    assert message in detail
    assert k in detail


def test_unknown_path_is_404(client: httpx.Client) -> None:
    problem(client.get("/v1/nothing"), 404, "not-found")
    problem(client.get("/v1/items/item-0-0/"), 404, "not-found")  # not the item with an empty id


def test_method_not_allowed_is_405_with_the_allowed_methods(client: httpx.Client) -> None:
    response = client.post("/v1/release")
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "GET"


def test_metrics_count_requests_by_route_and_status(client: httpx.Client) -> None:
    """Item ids are not labels, because clients could fill the memory with them."""

    def count(status: int) -> float:
        labels = ['route="/v1/items/{item_id:encoded}/similar"', f'status="{status}"']
        lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("recsys_http_requests")]
        return sum(float(line.split()[-1]) for line in lines if all(label in line for label in labels))

    successes, missing = count(200), count(404)
    client.get("/v1/items/item-0-0/similar")
    client.get("/v1/items/unknown-item-id/similar")
    assert (count(200), count(404)) == (successes + 1, missing + 1)
    assert "unknown-item-id" not in client.get("/metrics").text


def test_openapi_describes_every_route(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    items = {f"/v1/items/{{item_id}}{question}" for question in ("", "/similar", "/together")}
    queries = {"/v1/similar", "/v1/similar/batch", "/v1/together"}
    assert set(paths) == {*items, *queries, "/v1/release", "/livez", "/readyz", "/metrics"}


def test_service_imports_neither_training_nor_jobs() -> None:
    """Not even after it has loaded a release."""
    code = (
        "import json, sys; from recsys import Release; from recsys.config.sections import ServeConfig; "
        "from serving.app import create_app_for_release; "
        "create_app_for_release(Release.load(sys.argv[1]), ServeConfig()); "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    process = subprocess.run([sys.executable, "-c", code, GOLDEN], capture_output=True, text=True, check=True)
    heavy = {"keras", "tensorflow", "apache_beam", "mlflow", "scipy", "pandas"}
    assert not heavy & set(json.loads(process.stdout))


def test_server_does_not_start_without_a_release(tmp_path: Path) -> None:
    process = program.run("serve", "--release", tmp_path, "--port", 0)
    assert process.returncode == 1
    assert "release must be a folder with a manifest.json" in process.stderr
    assert "Traceback" not in process.stderr
