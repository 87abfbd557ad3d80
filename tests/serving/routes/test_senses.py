"""Queries and item changes in each sense, with releases of one and of two embedding spaces."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from recsys import Release
from recsys.config.sections import ServeConfig
from recsys.config.senses import SENSES, Sense
from recsys.release.embedding_space import EmbeddingSpace
from recsys.testing.releases import WriteRelease
from serving.app import create_app
from serving.live.item_changes import START, ItemChange, ItemChanges
from serving.live.live_release import LiveRelease
from serving.live.loaded_releases import LoadedReleases
from serving.live.state import State, bucket
from serving.middleware import api_keys
from serving.middleware.api_keys import ApiKeys
from serving.middleware.metrics import Metrics
from tests.serving.asgi import asgi_client

ITEMS = [f"item {number:02}" for number in range(30)]
SIMILAR = "/v1/items/item%2003/similar"
SENT: dict[Sense, list[float]] = {"similar": [1.0, 2.0, 0.0, -1.0, 0.5], "next": [-1.0, 0.0, 3.0, 1.0, 1.0]}
"""Vectors of a new item, of any length."""


class App:
    """The application in this process, with item changes on disk.

    Args:
        folder: for the item changes and the keys.
        releases: champion and challenger.
        embed: embeds new items.
        settings: of the table `serve`.
    """

    def __init__(self, folder: Path, releases: Sequence[Path], embed: Any = None, **settings: Any) -> None:
        secret, key = api_keys.create_key("writer", "write")
        (folder / "keys.txt").write_text(key.line)
        self._headers = {"Authorization": f"Bearer {secret}"}
        self.item_changes = ItemChanges(folder / "item_changes.db")
        loaded = LoadedReleases(60)
        loaded.replace(*(LiveRelease(Release.load(release), embed) for release in releases))
        self.state = State(loaded, ServeConfig(**settings), Metrics(), self.item_changes, embed)
        self._app = create_app(self.state, ApiKeys(folder / "keys.txt"))

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with asgi_client(self._app) as client:
                headers = {**self._headers, **options.pop("headers", {})}
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(send())

    def put(self, item_id: str, **change: Any) -> httpx.Response:
        return self.send("PUT", f"/v1/items/{item_id}", json=change)

    def neighbors(self, sense: Sense, **query: Any) -> list[str]:
        """Return the ids of all neighbors of a query."""
        response = self.send("POST", "/v1/similar", json={"k": len(ITEMS) + 1, "sense": sense, **query})
        assert response.status_code == 200, response.text
        assert response.json()["sense"] == sense
        return [neighbor["item_id"] for neighbor in response.json()["neighbors"]]


Start = Callable[..., App]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the application; a second call is a restart with the same item changes."""
    apps: list[App] = []

    def started(*releases: Path, **options: Any) -> App:
        apps.append(App(tmp_path, releases, **options))
        return apps[-1]

    yield started
    for app in apps:
        app.item_changes.close()


@pytest.fixture
def two(write_release: WriteRelease) -> Path:
    return write_release(ITEMS, release_id="two", spaces=SENSES)


@pytest.fixture
def one(write_release: WriteRelease) -> Path:
    return write_release(ITEMS, release_id="one")


def vectors_of(folder: Path, sense: Sense) -> dict[str, NDArray[np.float64]]:
    """Return the embeddings of a sense by item id, from the files of a release."""
    path = folder / sense / "embeddings.npy"
    vectors = np.load(path if path.exists() else folder / "next" / "embeddings.npy")
    return dict(zip(ITEMS, vectors.astype(np.float64), strict=True))


def nearest(vectors: Mapping[str, NDArray[np.float64]], point: Any, *query_items: str) -> list[str]:
    """Return all other item ids by descending cosine with a point."""
    cosines = {item: vector @ point / np.linalg.norm(vector) for item, vector in vectors.items()}
    return sorted(cosines.keys() - set(query_items), key=lambda item: -cosines[item])


def embed(space: EmbeddingSpace, features: Mapping[str, Any]) -> NDArray[np.float32]:
    """Stand in for a tower: the embedding is that of an item of the space."""
    assert features == {}
    return np.array(space.vectors[7])


# --- queries


def test_each_sense_is_answered_by_its_own_vectors(start: Start, two: Path) -> None:
    """By every route; a query with a history is answered by `next` unless it names the other sense."""
    app = start(two)
    expected = {
        sense: nearest(vectors_of(two, sense), vectors_of(two, sense)["item 03"], "item 03") for sense in SENSES
    }
    assert expected["similar"] != expected["next"]
    queries: list[tuple[dict[str, Any], Sense]] = [
        ({"items": ["item 03"]}, "similar"),
        ({"items": ["item 03"], "sense": "next"}, "next"),
        ({"history": ["item 03"]}, "next"),
        ({"history": ["item 03"], "sense": "similar"}, "similar"),
    ]
    results = [app.send("POST", "/v1/similar", json={**query, "k": 29}).json() for query, _ in queries]
    batch = app.send("POST", "/v1/similar/batch", json={"queries": [{**query, "k": 29} for query, _ in queries]})
    assert [entry["result"] for entry in batch.json()["results"]] == results
    fetched = [app.send("GET", SIMILAR, params={"k": 29, **sense}).json() for sense in ({}, {"sense": "next"})]
    assert fetched == results[:2]
    for (_, sense), result in zip(queries, results, strict=True):
        assert result["sense"] == sense
        assert [neighbor["item_id"] for neighbor in result["neighbors"]] == expected[sense]


def test_single_space_answers_in_both_senses(start: Start, one: Path) -> None:
    app = start(one)
    vectors = vectors_of(one, "next")
    for sense in SENSES:
        assert app.neighbors(sense, items=["item 03"]) == nearest(vectors, vectors["item 03"], "item 03")


@pytest.mark.parametrize("sense", SENSES)
def test_vector_and_features_are_in_the_space_of_the_sense(start: Start, two: Path, sense: Sense) -> None:
    app = start(two, embed=embed)
    vectors = vectors_of(two, sense)
    assert app.neighbors(sense, vector=SENT[sense]) == nearest(vectors, np.array(SENT[sense]))
    assert app.neighbors(sense, features={}) == nearest(vectors, vectors["item 07"])


def test_features_with_a_history_are_embedded_for_the_next_item(start: Start, two: Path) -> None:
    app = start(two, embed=embed)
    vectors = vectors_of(two, "next")
    response = app.send("POST", "/v1/similar", json={"history": ["item 03"], "features": {}, "k": 29}).json()
    mean = vectors["item 03"] + vectors["item 07"]
    assert [n["item_id"] for n in response["neighbors"]] == nearest(vectors, mean, "item 03")


def test_cursor_belongs_to_the_sense_of_its_query(start: Start, two: Path) -> None:
    app = start(two)
    cursor = app.send("GET", SIMILAR, params={"k": 4}).json()["next_cursor"]
    for parameters in ({}, {"sense": "similar"}):
        page = app.send("GET", SIMILAR, params={"k": 25, "cursor": cursor, **parameters}).json()
        assert [n["item_id"] for n in page["neighbors"]] == app.neighbors("similar", items=["item 03"])[4:]
    rejected = app.send("GET", SIMILAR, params={"cursor": cursor, "sense": "next"})
    assert rejected.status_code == 422
    assert "Received: another query" in rejected.json()["detail"]


def test_warm_up_prepares_each_space(two: Path) -> None:
    release = LiveRelease(Release.load(two))
    release.warm_up()
    assert all("engine" in vars(space) for space in release.release.spaces.values())


def test_rejects_an_unknown_sense(start: Start, two: Path) -> None:
    app = start(two)
    for response in (
        app.send("GET", SIMILAR, params={"sense": "alike"}),
        app.send("POST", "/v1/similar", json={"items": ["item 03"], "sense": "alike"}),
    ):
        assert response.status_code == 422
        assert "sense" in response.json()["detail"]
        assert "alike" in response.json()["detail"]


# --- item changes


def test_new_item_has_a_vector_in_each_sense(start: Start, two: Path) -> None:
    app = start(two)
    response = app.put("new", vector=SENT["similar"], next_vector=SENT["next"], title="Just in")
    assert response.json()["embedding_source"] == {"similar": "vector", "next": "vector"}
    for app_after_restart in (app, start(two)):
        for sense in SENSES:
            vectors = {**vectors_of(two, sense), "new": np.array(SENT[sense])}
            neighbors = app_after_restart.neighbors(sense, items=["new"])
            assert neighbors == nearest(vectors, vectors["new"], "new")
            neighbors = app_after_restart.neighbors(sense, items=["item 03"])
            assert neighbors == nearest(vectors, vectors["item 03"], "item 03")


@pytest.mark.parametrize(
    ("field", "sense", "other"), [("vector", "similar", "next"), ("next_vector", "next", "similar")]
)
def test_item_without_a_vector_in_a_sense_is_unknown_there(
    start: Start, two: Path, field: str, sense: Sense, other: Sense
) -> None:
    app = start(two)
    before = app.send("GET", SIMILAR, params={"sense": sense})
    assert app.put("new", title="Just in", **{field: SENT[sense]}).json()["embedding_source"] == {sense: "vector"}
    after = app.send("GET", SIMILAR, params={"sense": sense}, headers={"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200
    vectors = {**vectors_of(two, sense), "new": np.array(SENT[sense])}
    assert app.neighbors(sense, items=["item 03"]) == nearest(vectors, vectors["item 03"], "item 03")
    assert "new" not in app.neighbors(other, items=["item 03"])
    assert set(app.neighbors(other, items=["new"], on_unknown="fallback")) == set(ITEMS)
    unknown = app.send("POST", "/v1/similar", json={"items": ["new"], "sense": other})
    assert unknown.status_code == 404
    assert app.send("GET", "/v1/items/new").json()["title"] == "Just in"


def test_tower_embeds_what_is_not_sent(start: Start, two: Path) -> None:
    app = start(two, embed=embed)
    assert app.put("new").json()["embedding_source"] == {"similar": "features", "next": "features"}
    for sense in SENSES:
        assert app.neighbors(sense, items=["new"])[0] == "item 07"
    response = app.put("new", next_vector=SENT["next"])
    assert response.json()["embedding_source"] == {"similar": "features", "next": "vector"}
    assert app.neighbors("similar", items=["new"])[0] == "item 07"
    assert app.neighbors("next", items=["new"]) == nearest(vectors_of(two, "next"), np.array(SENT["next"]))


def test_item_of_the_release_may_move_in_one_sense(start: Start, two: Path) -> None:
    """Its columns change in both; the other sense keeps the embedding of the release."""
    app = start(two)
    response = app.put("item%2003", vector=SENT["similar"], title="Moved", available=False)
    assert response.json()["embedding_source"] == {"similar": "vector", "next": "release"}
    moved: dict[Sense, Any] = {"similar": np.array(SENT["similar"]), "next": vectors_of(two, "next")["item 03"]}
    for sense in SENSES:
        vectors = {**vectors_of(two, sense), "item 03": moved[sense]}
        assert app.neighbors(sense, items=["item 05"]) == nearest(vectors, vectors["item 05"], "item 05")
        assert "item 03" not in app.neighbors(sense, items=["item 05"], only_available=True)
        result = app.send("POST", "/v1/similar", json={"items": ["item 03"], "sense": sense}).json()
        assert result["title"] == "Moved"


def test_hidden_item_is_hidden_in_both_senses(start: Start, two: Path) -> None:
    app = start(two)
    app.put("new", vector=SENT["similar"], next_vector=SENT["next"])
    for item_id in ("new", "item%2005"):
        assert app.send("DELETE", f"/v1/items/{item_id}").status_code == 204
    for sense in SENSES:
        vectors = vectors_of(two, sense)
        assert app.neighbors(sense, items=["item 03"]) == nearest(vectors, vectors["item 03"], "item 03", "item 05")
    assert app.send("GET", "/v1/items/new").status_code == 404


def test_single_space_has_one_vector_for_both_senses(start: Start, one: Path) -> None:
    app = start(one)
    rejected = app.put("new", vector=SENT["similar"], next_vector=SENT["next"])
    assert rejected.status_code == 422
    assert (
        "next_vector requires a release with two embedding spaces. Received: next_vector" in rejected.json()["detail"]
    )
    assert len(app.item_changes) == 0
    response = app.put("new", vector=SENT["similar"])
    assert response.json()["embedding_source"] == {"similar": "vector", "next": "vector"}
    vectors = {**vectors_of(one, "next"), "new": np.array(SENT["similar"])}
    for sense in SENSES:
        assert app.neighbors(sense, items=["item 03"]) == nearest(vectors, vectors["item 03"], "item 03")


@pytest.mark.parametrize("field", ["vector", "next_vector"])
def test_rejects_an_invalid_vector_by_its_field(start: Start, two: Path, field: str) -> None:
    app = start(two)
    response = app.put("new", **{"vector": SENT["similar"], "next_vector": SENT["next"], field: [1.0]})
    assert response.status_code == 422
    assert response.json()["detail"].startswith(f"{field} must be of 5 finite numbers")
    assert len(app.item_changes) == 0


# --- releases with different numbers of spaces


@pytest.mark.parametrize("first", ["one", "two"])
def test_canary_answers_from_its_own_spaces(start: Start, one: Path, two: Path, first: str) -> None:
    champion, challenger = (one, two) if first == "one" else (two, one)
    app = start(champion, challenger, embed=embed, challenger="canary", challenger_share=0.5)
    assert app.put("new").status_code == 200
    user = next(f"user {number}" for number in range(20) if bucket(f"user {number}") < 0.5)
    for folder, headers in ((champion, {}), (challenger, {"Recsys-Sticky-Key": user})):
        for sense in SENSES:
            vectors = vectors_of(folder, sense)
            vectors["new"] = vectors["item 07"]
            for query in ({"items": ["item 03"]}, {"features": {}, "exclude": ["item 03"]}):
                body = {**query, "sense": sense, "k": 30}
                result = app.send("POST", "/v1/similar", json=body, headers=headers).json()
                assert result["release_id"] == folder.name
                point = vectors["item 03" if "items" in query else "item 07"]
                expected = nearest(vectors, point, "item 03")
                # the new item and item 07 are equally near
                assert [n["item_id"] for n in result["neighbors"] if n["item_id"] != "new"] == [
                    item for item in expected if item != "new"
                ]
                assert "new" in {n["item_id"] for n in result["neighbors"]}


@pytest.mark.parametrize("first", ["one", "two"])
def test_shadow_is_compared_in_the_same_sense(start: Start, one: Path, two: Path, first: str) -> None:
    champion, challenger = (one, two) if first == "one" else (two, one)
    app = start(champion, challenger, challenger="shadow", challenger_share=1.0)
    shares = []
    for sense in SENSES:
        first_ten, second_ten = (
            nearest(vectors_of(folder, sense), vectors_of(folder, sense)["item 03"], "item 03")[:10]
            for folder in (champion, challenger)
        )
        assert app.send("GET", SIMILAR, params={"sense": sense}).status_code == 200
        shares.append(len(set(first_ten) & set(second_ten)) / 10)
        vector = app.send("POST", "/v1/similar", json={"vector": SENT[sense], "sense": sense})
        assert vector.status_code == 200, "it is not compared: the embeddings of the releases are not comparable"
    assert app.state.shadow is not None
    app.state.shadow._executor.shutdown()  # wait for the comparisons
    metrics = app.send("GET", "/metrics").text
    assert "recsys_shadow_overlap_ratio_count 2.0" in metrics
    (line,) = (line for line in metrics.splitlines() if line.startswith("recsys_shadow_overlap_ratio_sum"))
    assert float(line.split()[1]) == pytest.approx(sum(shares))


# --- the file of item changes


def test_changes_of_an_earlier_version_are_kept(start: Start, tmp_path: Path, one: Path) -> None:
    """Their vectors are those of the space `next`, the only one of the releases of that version."""
    connection = sqlite3.connect(tmp_path / "item_changes.db")
    connection.executescript(
        "CREATE TABLE changes (sequence INTEGER PRIMARY KEY AUTOINCREMENT, item_id TEXT NOT NULL UNIQUE, "
        "changed_at REAL NOT NULL, hidden INTEGER NOT NULL, columns TEXT NOT NULL, features TEXT, vector BLOB, "
        "release_id TEXT);"
        "CREATE TABLE compactions (count INTEGER NOT NULL); INSERT INTO compactions VALUES (3);"
        "CREATE TABLE readers (pid INTEGER PRIMARY KEY, releases TEXT NOT NULL);"
    )
    vector = np.array(SENT["similar"], "<f4").tobytes()
    rows = [("new", 2e9, 0, '{"title": "Just in"}', None, vector, "one"), ("item 05", 2e9, 1, "{}", None, None, None)]
    connection.executemany(
        "INSERT INTO changes (item_id, changed_at, hidden, columns, features, vector, release_id) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    connection.commit()
    connection.close()
    for _ in range(2):  # the second start finds the column
        app = start(one)
        vectors = {**vectors_of(one, "next"), "new": np.array(SENT["similar"])}
        for sense in SENSES:
            expected = nearest(vectors, vectors["item 03"], "item 03", "item 05")
            assert app.neighbors(sense, items=["item 03"]) == expected
        assert app.send("GET", "/v1/items/new").json()["title"] == "Just in"
    both = {sense: np.array(SENT[sense], np.float32) for sense in SENSES}
    app.item_changes.write(ItemChange("both", 2e9, vectors=both, release_id="two"))
    stored = {change.item_id: change.vectors for change in app.item_changes.read_since(START).changes}
    assert {space: vector.tolist() for space, vector in stored["both"].items()} == SENT
    assert stored["new"].keys() == {"next"}
