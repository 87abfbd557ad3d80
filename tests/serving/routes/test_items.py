"""Item changes: written by requests, stored, applied by all workers, and removed once a release contains them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys import Release
from recsys.config.senses import SENSES
from recsys.testing.releases import WriteRelease
from recsys.testing.service_process import Service, wait_until
from serving.live.item_changes import START, ItemChange, ItemChanges
from serving.live.live_release import LiveRelease
from serving.middleware import api_keys
from tests.serving.asgi import asgi_client

ITEMS = [f"item {number:02}" for number in range(40)]
COLORS = ["red", "green"] * 20
LATE = "2200-01-01T00:00:00+00:00"
"""Build time of a release that is later than all changes of a test."""
EVERY_SENSE = {"similar": "vector", "next": "vector"}
CHANGED_AT = 1_800_000_000.0


@pytest.fixture
def service(tmp_path: Path, write_release: WriteRelease) -> Iterator[Service]:
    """A service with two workers and the keys `reader` and `writer`, not started."""
    made = Service(tmp_path)
    made.set_releases(write_release(ITEMS, release_id="first", color=_series(COLORS)))
    made.add_key("reader", "read")
    made.add_key("writer", "write")
    made.configure(workers=2, keys="keys.txt")
    yield made
    made.close()


def _series(values: list[str]) -> Any:
    import polars as pl

    return pl.Series(values)


class ItemClient:
    """Client of a service with its keys. Each request opens a connection, so any worker may receive it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._headers = service.secrets

    def similar(self, item_id: str, **options: Any) -> httpx.Response:
        path = f"/v1/items/{quote(item_id, safe='')}/similar"
        return self._service.get(path, headers=self._headers["reader"], params={"k": 39, **options})

    def champions(self) -> set[str]:
        """Return the champions of the workers, by enough requests to reach all of them."""
        return {self.similar(ITEMS[0]).json()["release_id"] for _ in range(20)}

    def item(self, item_id: str) -> httpx.Response:
        return self._service.get(f"/v1/items/{quote(item_id, safe='')}", headers=self._headers["reader"])

    def neighbors(self, item_id: str, **options: Any) -> list[str]:
        result = self.similar(item_id, **options).raise_for_status().json()
        return [neighbor["item_id"] for neighbor in result["neighbors"]]

    def put(self, item_id: str, **change: Any) -> httpx.Response:
        url = f"{self._service.url}/v1/items/{quote(item_id, safe='')}"
        return httpx.put(url, json=change, headers=self._headers["writer"], timeout=60)

    def hide(self, item_id: str) -> httpx.Response:
        url = f"{self._service.url}/v1/items/{quote(item_id, safe='')}"
        return httpx.delete(url, headers=self._headers["writer"], timeout=60)


@pytest.mark.slow
def test_change_is_in_the_next_response_of_every_worker(service: Service) -> None:
    """Whichever worker wrote it."""
    service.start()
    client = ItemClient(service)
    for number in range(1, 20):
        assert client.hide(ITEMS[number]).status_code == 204
        for _ in range(4):
            assert set(client.neighbors(ITEMS[0])) == set(ITEMS[number + 1 :])
    assert client.similar(ITEMS[1]).status_code == 404
    assert client.put(ITEMS[1]).status_code == 200
    assert ITEMS[1] in client.neighbors(ITEMS[0])


def test_new_item_is_a_neighbor_by_its_vector(service: Service) -> None:
    service.start()
    client = ItemClient(service)
    release = Release.load(service.folder / "releases" / "first")
    vector = release.space("similar").vectors[7].tolist()
    assert client.similar("new").status_code == 404
    response = client.put("new", vector=vector, title="Just in", features={"color": "blue"})
    assert response.json() == {"item_id": "new", "release_id": "first", "embedding_source": EVERY_SENSE}
    assert client.neighbors(ITEMS[7])[0] == "new"
    assert client.neighbors("new")[0] == ITEMS[7]
    item = client.item("new").json()
    assert (item["title"], item["features"]) == ("Just in", {"color": "blue"})
    assert "a new item must have a vector" in client.put("without vector").json()["detail"]


def test_changed_columns_are_returned_and_filtered(service: Service) -> None:
    service.start()
    client = ItemClient(service)
    etag = client.item(ITEMS[3]).headers["etag"]
    assert client.put(ITEMS[3], title="Another", available=False, features={"color": "blue"}).status_code == 200
    response = client.item(ITEMS[3])
    assert response.headers["etag"] != etag
    assert (response.json()["title"], response.json()["available"]) == ("Another", False)
    assert ITEMS[3] in client.neighbors(ITEMS[0])
    assert ITEMS[3] not in client.neighbors(ITEMS[0], only_available=True)
    assert client.put(ITEMS[3], title="A third").status_code == 200
    assert client.item(ITEMS[3]).json()["features"] == {"color": "green"}, "the last change replaces the earlier one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vector": [1.0]}, "vector must be of 5 finite numbers"),
        ({"vector": [0.0] * 5}, "not all of them 0"),
        ({"features": {"shade": "red"}}, "features must be of the columns color. Received: 'shade'"),
        ({"features": {"color": 3}}, "features.color must be a string"),
        ({"titel": "x"}, "titel is not a known field"),
        ({"available": "yes"}, "available"),
    ],
)
def test_rejects_invalid_changes(tmp_path: Path, write_release: WriteRelease, change: Any, message: str) -> None:
    import asyncio

    from recsys.config.sections import ServeConfig
    from serving.app import create_app
    from serving.live.loaded_releases import LoadedReleases
    from serving.live.state import State
    from serving.middleware.api_keys import ApiKeys
    from serving.middleware.metrics import Metrics

    secret, key = api_keys.create_key("writer", "write")
    (tmp_path / "keys.txt").write_text(key.line)
    releases = LoadedReleases(1)
    releases.replace(LiveRelease(Release.load(write_release(ITEMS, color=_series(COLORS)))))
    item_changes = ItemChanges(tmp_path / "item_changes.db")
    app = create_app(State(releases, ServeConfig(), Metrics(), item_changes), ApiKeys(tmp_path / "keys.txt"))

    async def put() -> httpx.Response:
        async with asgi_client(app) as client:
            return await client.put("/v1/items/item%2003", json=change, headers={"Authorization": f"Bearer {secret}"})

    response = asyncio.run(put())
    assert response.status_code == 422
    assert message in response.json()["detail"]
    assert len(item_changes) == 0
    item_changes.close()


@pytest.mark.slow
def test_acknowledged_changes_survive_a_restart(service: Service) -> None:
    """After SIGTERM and after SIGKILL."""
    client = ItemClient(service)
    hidden: list[str] = []
    for signal_number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        service.start()
        for item_id in ITEMS[len(hidden) + 1 : len(hidden) + 6]:
            assert client.hide(item_id).status_code == 204
            hidden.append(item_id)
        service.stop(signal_number)
    service.start()
    assert set(client.neighbors(ITEMS[0])) == set(ITEMS[1:]) - set(hidden)


@pytest.mark.slow
def test_changes_are_removed_once_a_release_contains_them(service: Service, write_release: WriteRelease) -> None:
    """A hidden item stays hidden, also in a release that returns."""
    service.configure(workers=2, keys="keys.txt", keep_seconds=0.2)
    service.start()
    client = ItemClient(service)
    vector = Release.load(service.folder / "releases" / "first").space("similar").vectors[7].tolist()
    assert client.put("new", vector=vector, features={"color": "red"}).status_code == 200
    assert client.put(ITEMS[2], title="Changed").status_code == 200
    assert client.hide(ITEMS[1]).status_code == 204
    assert service.metric("recsys_stored_item_changes") == 3
    second = write_release([*ITEMS, "new"], release_id="second", created_at=LATE, color=_series([*COLORS, "red"]))
    service.set_releases(second)
    wait_until(lambda: service.metric("recsys_stored_item_changes") == 1)
    wait_until(lambda: client.champions() == {"second"})
    assert client.item(ITEMS[2]).json()["title"] == f"Title of {ITEMS[2]}", "a later release replaces a change"
    assert set(client.neighbors(ITEMS[0], k=100)) == {*ITEMS[2:], "new"}
    without = [item_id for item_id in ITEMS if item_id != ITEMS[1]]
    third = write_release(without, release_id="third", created_at=LATE, color=_series(COLORS[1:]))
    service.set_releases(third)
    wait_until(lambda: client.champions() == {"third"})
    service.set_releases(second)
    wait_until(lambda: client.champions() == {"second"})
    assert ITEMS[1] not in client.neighbors(ITEMS[0], k=100), "it is hidden in an older release too"


@pytest.mark.slow
def test_vector_applies_only_to_its_release(service: Service, write_release: WriteRelease) -> None:
    service.configure(workers=2, keys="keys.txt", keep_seconds=600)
    service.start_workers(2)
    client = ItemClient(service)
    vector = Release.load(service.folder / "releases" / "first").space("similar").vectors[7].tolist()
    assert client.put("new", vector=vector).status_code == 200
    service.set_releases(write_release(ITEMS, release_id="second", color=_series(COLORS)))
    wait_until(lambda: client.champions() == {"second"})
    assert client.similar("new").status_code == 404
    assert client.similar("new", release="first").status_code == 200


def test_service_without_a_folder_rejects_changes(tmp_path: Path, write_release: WriteRelease) -> None:
    service = Service(tmp_path)
    service.config = tmp_path / "missing.toml"
    secret, key = api_keys.create_key("writer", "write")
    service.source = ("--release", write_release(ITEMS))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(api_keys.VARIABLE, key.line)
        service.start()
    response = httpx.delete(f"{service.url}/v1/items/x", headers={"Authorization": f"Bearer {secret}"}, timeout=60)
    assert response.status_code == 403
    assert "changes require a folder" in response.json()["detail"]
    service.close()


# --- the stored changes alone

strings = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
single_changes = st.builds(
    ItemChange,
    item_id=st.sampled_from(["a", "b", "c/ä", "d\x00e"]) | strings,
    changed_at=st.floats(0, 2e9),
    hidden=st.booleans(),
    columns=st.dictionaries(strings, strings | st.none() | st.booleans() | st.lists(strings), max_size=2),
    features=st.none() | st.dictionaries(strings, strings, max_size=2),
    vectors=st.dictionaries(
        st.sampled_from(SENSES),
        st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2).map(lambda values: np.array(values, "<f4")),
    ),
    release_id=st.none() | strings,
)


def as_tuple(change: ItemChange) -> tuple[Any, ...]:
    """Return the fields of a change, which can be compared."""
    vectors = {space: vector.tolist() for space, vector in change.vectors.items()}
    features = None if change.features is None else dict(change.features)
    return change.item_id, change.changed_at, change.hidden, dict(change.columns), features, vectors, change.release_id


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(single_changes, max_size=12), st.integers(0, 12))
def test_incremental_reads_return_the_same_changes_as_a_full_read(
    tmp_path_factory: pytest.TempPathFactory, changes: list[ItemChange], first_read: int
) -> None:
    """The last change of each item, from any position and over another connection."""
    folder = tmp_path_factory.mktemp("item_changes")
    writer, reader = ItemChanges(folder / "item_changes.db"), ItemChanges(folder / "item_changes.db")
    position, by_item = START, {}
    for number, change in enumerate(changes):
        before = reader.version()
        writer.write(change)
        assert reader.version() != before
        if number == first_read:
            position, _, new_changes = reader.read_since(position)
            by_item |= {change.item_id: as_tuple(change) for change in new_changes}
    _, _, new_changes = reader.read_since(position)
    by_item |= {change.item_id: as_tuple(change) for change in new_changes}
    assert by_item == {change.item_id: as_tuple(change) for change in changes}
    assert by_item == {change.item_id: as_tuple(change) for change in reader.read_since(START).changes}
    assert len(reader) == len(by_item)
    writer.close()
    reader.close()


def test_compaction_keeps_changes_that_another_process_needs(tmp_path: Path) -> None:
    """Hidden items are kept while an older release may return. A process that has ended needs nothing."""
    item_changes = ItemChanges(tmp_path / "item_changes.db")
    item_changes.write(ItemChange("changed", CHANGED_AT))
    item_changes.write(ItemChange("hidden", CHANGED_AT, hidden=True))
    item_changes.write(ItemChange("hidden long ago", 0.0, hidden=True))
    item_changes.write(ItemChange("needed", CHANGED_AT))
    item_changes.register_releases(["old", "new"])
    assert item_changes.compact(["new"], lambda _: True) == 0
    item_changes.register_releases(["new"])
    ended_pid = 2**22 + 1  # larger than any process id
    item_changes._writer.execute("INSERT INTO readers VALUES (?, ?)", (ended_pid, '["old"]'))
    before = item_changes.read_since(START).position
    assert item_changes.compact(["new"], lambda change: change.item_id != "needed") == 2
    remaining = item_changes.read_since(before)
    assert remaining.is_complete
    assert [change.item_id for change in remaining.changes] == ["hidden", "needed"]
    item_changes.close()
