"""A real server on the golden release, asked over real HTTP."""

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
from recsys.testing.service_process import Service, described
from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES / "v1"
CALIBRATED = GOLDEN.parent / "v2"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    service = Service.of(tmp_path_factory.mktemp("service"), GOLDEN)
    service.config = tmp_path_factory.mktemp("no config here") / "recsys.toml"
    with described(service) as opened:
        yield opened


def test_ten_neighbors_by_default(client: httpx.Client) -> None:
    answer = client.get("/v1/items/item-0-0/similar").json()
    assert answer["item_id"] == "item-0-0"
    assert answer["title"] == "Title of item-0-0"
    assert len(answer["neighbors"]) == 10
    assert list(answer["neighbors"][0]) == ["item_id", "title", "similarity", "rank", "probability", "explanation"]
    assert {neighbor["probability"] for neighbor in answer["neighbors"]} == {None}


def test_a_calibrated_release_tells_probabilities(tmp_path: Path) -> None:
    """Larger where the similarity is, and those of the library."""
    with described(Service.of(tmp_path, CALIBRATED)) as client:
        answer = client.get("/v1/items/item-0-0/similar", params={"k": 40}).json()
    expected = Release.load(CALIBRATED).similar("item-0-0", 40)
    assert answer["neighbors"] == [neighbor._asdict() for neighbor in expected.neighbors]
    probabilities = [neighbor["probability"] for neighbor in answer["neighbors"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 <= probabilities[-1] < 0.5 < probabilities[0] <= 1


def test_larger_k_keeps_the_prefix(client: httpx.Client) -> None:
    few, many = (client.get("/v1/items/item-0-0/similar", params={"k": k}).json()["neighbors"] for k in (5, 40))
    assert many[:5] == few
    assert len(many) == 40


def test_an_id_with_a_slash_and_a_question_mark_is_found(client: httpx.Client) -> None:
    """`new/item 1?` is in the catalog."""
    answer = client.get(f"/v1/items/{quote('new/item 1?', safe='')}/similar")
    assert answer.json()["title"] == "Just out"


@pytest.mark.parametrize(
    "item_id",
    ["absent", "a/b", "a/similar", "..", "%2F", "ä ö 漢字", "'; drop table", "x" * 4_000, "\x00\x1f", "a?k=1#b"],
    ids=["plain", "slash", "route", "dots", "percent", "unicode", "sql", "long", "control", "query"],
)
def test_an_unknown_id_is_a_404_that_names_it(client: httpx.Client, item_id: str) -> None:
    response = client.get(f"/v1/items/{quote(item_id, safe='').replace('.', '%2E')}/similar")
    assert repr(item_id) in problem(response, 404, "unknown-item")


def test_bytes_that_are_no_text_are_an_unknown_id(client: httpx.Client) -> None:
    problem(client.get("/v1/items/%ff%fe/similar"), 404, "unknown-item")


@pytest.mark.parametrize(
    ("k", "told"),
    [
        ("0", "greater than or equal to 1"),
        ("-3", "greater than or equal to 1"),
        ("x", "integer"),
        ("1001", "at most 1000"),
    ],
)
def test_a_k_that_cannot_be_is_told(client: httpx.Client, k: str, told: str) -> None:
    detail = problem(client.get("/v1/items/item-0-0/similar", params={"k": k}), 422, "invalid-request")
    assert told in detail
    assert k in detail


def test_a_path_that_is_no_route_is_a_problem(client: httpx.Client) -> None:
    problem(client.get("/v1/nothing"), 404, "not-found")
    problem(client.get("/v1/items/item-0-0/"), 404, "not-found")  # what ends in a slash is no other item


def test_another_method_is_a_problem_that_says_which_are_allowed(client: httpx.Client) -> None:
    response = client.post("/v1/release")
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "GET"


def test_metrics_count_by_route_and_status(client: httpx.Client) -> None:
    """Ids are no labels: strangers could fill the memory with them."""

    def count(status: int) -> float:
        labels = ['route="/v1/items/{item_id:encoded}/similar"', f'status="{status}"']
        lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("recsys_http_requests")]
        return sum(float(line.split()[-1]) for line in lines if all(label in line for label in labels))

    good, missing = count(200), count(404)
    client.get("/v1/items/item-0-0/similar")
    client.get("/v1/items/counted-stranger/similar")
    assert (count(200), count(404)) == (good + 1, missing + 1)
    assert "counted-stranger" not in client.get("/metrics").text


def test_openapi_describes_what_is_served(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    items = {"/v1/items/{item_id}", "/v1/items/{item_id}/similar"}
    assert set(paths) == {*items, "/v1/similar", "/v1/similar/batch", "/v1/release", "/livez", "/readyz", "/metrics"}


def test_service_imports_neither_training_nor_jobs() -> None:
    """Loading a release and making the application pulls in none of them."""
    code = (
        "import json, sys; from recsys import Release; from recsys.config.sections import ServeConfig; "
        "from serving.app import create_app_for_release; "
        "create_app_for_release(Release.load(sys.argv[1]), ServeConfig()); "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code, GOLDEN], capture_output=True, text=True, check=True)
    heavy = {"keras", "tensorflow", "apache_beam", "mlflow", "scipy", "pandas"}
    assert not heavy & set(json.loads(done.stdout))


def test_without_a_release_the_server_does_not_start(tmp_path: Path) -> None:
    done = program.run("serve", "--release", tmp_path, "--port", 0)
    assert done.returncode == 1
    assert "release must be a folder with a manifest.json" in done.stderr
    assert "Traceback" not in done.stderr
