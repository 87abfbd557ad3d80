"""What may be changed between two nights, by every worker and through every kind of end. Real files and processes."""

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
from recsys.testing.releases import WriteRelease
from recsys.testing.service_process import Service, until
from serving.live.item_changes import START, ItemChange, ItemChanges
from serving.live.live_release import LiveRelease
from serving.middleware import api_keys
from tests.serving.asgi import asgi_client

ITEMS = [f"item {number:02}" for number in range(40)]
COLORS = ["red", "green"] * 20
LATE = "2200-01-01T00:00:00+00:00"
"""A release that was built after everything that happens in a test."""
SOON_AFTER = 1_800_000_000.0


@pytest.fixture
def service(tmp_path: Path, write_release: WriteRelease) -> Iterator[Service]:
    """Two workers, and keys `reader` and `writer`. Not started."""
    made = Service(tmp_path)
    made.want(write_release(ITEMS, release_id="first", color=_series(COLORS)))
    made.let_in("reader", "read")
    made.let_in("writer", "write")
    made.set(workers=2, keys="keys.txt")
    yield made
    made.close()


def _series(values: list[str]) -> Any:
    import polars as pl

    return pl.Series(values)


class Caller:
    """Asks and writes with the keys of a service, each time over a connection of its own."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._secrets = service.secrets

    def ask(self, item_id: str, **options: Any) -> httpx.Response:
        path = f"/v1/items/{quote(item_id, safe='')}/similar"
        return self._service.get(path, headers=self._secrets["reader"], params={"k": 39, **options})

    def answering(self) -> set[str]:
        """Releases that the workers answer from; so many questions that none is likely to be passed over."""
        return {self.ask(ITEMS[0]).json()["release_id"] for _ in range(20)}

    def item(self, item_id: str) -> httpx.Response:
        return self._service.get(f"/v1/items/{quote(item_id, safe='')}", headers=self._secrets["reader"])

    def neighbors(self, item_id: str, **options: Any) -> list[str]:
        answer = self.ask(item_id, **options).raise_for_status().json()
        return [neighbor["item_id"] for neighbor in answer["neighbors"]]

    def put(self, item_id: str, **change: Any) -> httpx.Response:
        url = f"{self._service.url}/v1/items/{quote(item_id, safe='')}"
        return httpx.put(url, json=change, headers=self._secrets["writer"], timeout=60)

    def take_down(self, item_id: str) -> httpx.Response:
        url = f"{self._service.url}/v1/items/{quote(item_id, safe='')}"
        return httpx.delete(url, headers=self._secrets["writer"], timeout=60)


def test_a_change_is_in_the_next_answer_of_every_worker(service: Service) -> None:
    """Whoever wrote it: each question goes to whichever worker takes it."""
    service.start()
    caller = Caller(service)
    for number in range(1, 20):
        assert caller.take_down(ITEMS[number]).status_code == 204
        for _ in range(4):
            assert set(caller.neighbors(ITEMS[0])) == set(ITEMS[number + 1 :])
    assert caller.ask(ITEMS[1]).status_code == 404
    assert caller.put(ITEMS[1]).status_code == 200
    assert ITEMS[1] in caller.neighbors(ITEMS[0])


def test_a_new_item_is_found_where_its_vector_says(service: Service) -> None:
    service.start()
    caller = Caller(service)
    release = Release.load(service.folder / "releases" / "first")
    at = release.vectors[7].tolist()
    assert caller.ask("new").status_code == 404
    written = caller.put("new", vector=at, title="Just in", features={"color": "blue"})
    assert written.json() == {"item_id": "new", "release_id": "first", "embedding_source": "vector"}
    assert caller.neighbors(ITEMS[7])[0] == "new"
    assert caller.neighbors("new")[0] == ITEMS[7]
    told = caller.item("new").json()
    assert (told["title"], told["features"]) == ("Just in", {"color": "blue"})
    assert "a new item must have a vector" in caller.put("newer").json()["detail"]


def test_changed_columns_are_told_and_filtered_by(service: Service) -> None:
    service.start()
    caller = Caller(service)
    etag = caller.item(ITEMS[3]).headers["etag"]
    assert caller.put(ITEMS[3], title="Another", available=False, features={"color": "blue"}).status_code == 200
    told = caller.item(ITEMS[3])
    assert told.headers["etag"] != etag
    assert (told.json()["title"], told.json()["available"]) == ("Another", False)
    assert ITEMS[3] in caller.neighbors(ITEMS[0])
    assert ITEMS[3] not in caller.neighbors(ITEMS[0], only_available=True)
    assert caller.put(ITEMS[3], title="A third").status_code == 200
    assert caller.item(ITEMS[3]).json()["features"] == {"color": "green"}, "the last change says all"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vector": [1.0]}, "vector must be of 5 finite numbers"),
        ({"vector": [0.0] * 5}, "not all of them 0"),
        ({"features": {"shade": "red"}}, "features must be of the columns color. Received: 'shade'"),
        ({"features": {"color": 3}}, "features.color must be a string"),
        ({"titel": "x"}, "titel is not a known field"),
        ({"available": "yes"}, "available"),
    ],
)
def test_a_change_that_cannot_be_is_told(tmp_path: Path, write_release: WriteRelease, change: Any, told: str) -> None:
    """Before anything is written."""
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
    journal = ItemChanges(tmp_path / "item_changes.db")
    app = create_app(State(releases, ServeConfig(), Metrics(), journal), ApiKeys(tmp_path / "keys.txt"))

    async def put() -> httpx.Response:
        async with asgi_client(app) as client:
            return await client.put("/v1/items/item%2003", json=change, headers={"Authorization": f"Bearer {secret}"})

    refused = asyncio.run(put())
    assert refused.status_code == 422
    assert told in refused.json()["detail"]
    assert len(journal) == 0
    journal.close()


def test_no_acknowledged_change_is_lost_however_it_ends(service: Service) -> None:
    """Killed while others are being written; the next start knows all that were acknowledged."""
    caller = Caller(service)
    down: list[str] = []
    for kill in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        service.start()
        for item_id in ITEMS[len(down) + 1 : len(down) + 6]:
            assert caller.take_down(item_id).status_code == 204
            down.append(item_id)
        service.end(kill)
    service.start()
    assert set(caller.neighbors(ITEMS[0])) == set(ITEMS[1:]) - set(down)


def test_a_release_that_contains_changes_takes_their_place(service: Service, write_release: WriteRelease) -> None:
    """Changed columns and a new item go once a release says the same; a take-down stays as long as the item does."""
    service.set(workers=2, keys="keys.txt", keep_seconds=0.2)
    service.start()
    caller = Caller(service)
    release = Release.load(service.folder / "releases" / "first")
    assert caller.put("new", vector=release.vectors[7].tolist(), features={"color": "red"}).status_code == 200
    assert caller.put(ITEMS[2], title="Changed").status_code == 200
    assert caller.take_down(ITEMS[1]).status_code == 204
    assert service.metric("recsys_stored_item_changes") == 3
    second = write_release([*ITEMS, "new"], release_id="second", created_at=LATE, color=_series([*COLORS, "red"]))
    service.want(second)
    until(lambda: service.metric("recsys_stored_item_changes") == 1)
    until(lambda: caller.answering() == {"second"})
    assert caller.item(ITEMS[2]).json()["title"] == f"Title of {ITEMS[2]}", "a later release stands above a change"
    assert set(caller.neighbors(ITEMS[0], k=100)) == {*ITEMS[2:], "new"}
    without = [item_id for item_id in ITEMS if item_id != ITEMS[1]]
    third = write_release(without, release_id="third", created_at=LATE, color=_series(COLORS[1:]))
    service.want(third)
    until(lambda: caller.answering() == {"third"})
    service.want(second)
    until(lambda: caller.answering() == {"second"})
    assert ITEMS[1] not in caller.neighbors(ITEMS[0], k=100), "an older release that comes back has it down too"


def test_a_vector_means_nothing_in_another_release(service: Service, write_release: WriteRelease) -> None:
    service.set(workers=2, keys="keys.txt", keep_seconds=600)
    service.start_all(2)
    caller = Caller(service)
    at = Release.load(service.folder / "releases" / "first").vectors[7].tolist()
    assert caller.put("new", vector=at).status_code == 200
    service.want(write_release(ITEMS, release_id="second", color=_series(COLORS)))
    until(lambda: caller.answering() == {"second"})
    assert caller.ask("new").status_code == 404
    assert caller.ask("new", release="first").status_code == 200


def test_a_server_without_a_folder_keeps_no_changes(tmp_path: Path, write_release: WriteRelease) -> None:
    service = Service(tmp_path)
    service.config = tmp_path / "no such config"
    secret, key = api_keys.create_key("writer", "write")
    service.source = ("--release", write_release(ITEMS))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(api_keys.VARIABLE, key.line)
        service.start()
    refused = httpx.delete(f"{service.url}/v1/items/x", headers={"Authorization": f"Bearer {secret}"}, timeout=60)
    assert refused.status_code == 403
    assert "changes require a folder" in refused.json()["detail"]
    service.close()


# --- the journal itself

texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
entries = st.builds(
    ItemChange,
    item_id=st.sampled_from(["a", "b", "c/ä", "d\x00e"]) | texts,
    changed_at=st.floats(0, 2e9),
    hidden=st.booleans(),
    columns=st.dictionaries(texts, texts | st.none() | st.booleans() | st.lists(texts), max_size=2),
    features=st.none() | st.dictionaries(texts, texts, max_size=2),
    vector=st.none() | st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2).map(lambda v: np.array(v, "<f4")),
    release_id=st.none() | texts,
)


def plain(entry: ItemChange) -> tuple[Any, ...]:
    vector = None if entry.vector is None else entry.vector.tolist()
    features = None if entry.features is None else dict(entry.features)
    return entry.item_id, entry.changed_at, entry.hidden, dict(entry.columns), features, vector, entry.release_id


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(entries, max_size=12), st.integers(0, 12))
def test_a_reader_that_goes_on_knows_what_one_that_begins_does(
    tmp_path_factory: pytest.TempPathFactory, written: list[ItemChange], begun: int
) -> None:
    """One entry an item, the last one; from any position, and from another process's view of the file."""
    folder = tmp_path_factory.mktemp("journal")
    writer, reader = ItemChanges(folder / "item_changes.db"), ItemChanges(folder / "item_changes.db")
    position, known = START, {}
    for number, entry in enumerate(written):
        before = reader.version()
        writer.write(entry)
        assert reader.version() != before
        if number == begun:
            position, _, found = reader.read_since(position)
            known |= {one.item_id: plain(one) for one in found}
    _, _, found = reader.read_since(position)
    known |= {one.item_id: plain(one) for one in found}
    assert known == {entry.item_id: plain(entry) for entry in written}
    assert known == {one.item_id: plain(one) for one in reader.read_since(START).changes}
    assert len(reader) == len(known)
    writer.close()
    reader.close()


def test_nothing_is_dropped_that_another_process_needs(tmp_path: Path) -> None:
    """Nor take-downs, while an older release may come back; a process that is gone needs nothing."""
    journal = ItemChanges(tmp_path / "item_changes.db")
    journal.write(ItemChange("changed", SOON_AFTER))
    journal.write(ItemChange("down", SOON_AFTER, hidden=True))
    journal.write(ItemChange("down long ago", 0.0, hidden=True))
    journal.write(ItemChange("needed", SOON_AFTER))
    journal.register_releases(["old", "new"])
    assert journal.compact(["new"], lambda _: True) == 0
    journal.register_releases(["new"])
    journal._writer.execute("INSERT INTO readers VALUES (?, ?)", (2**22 + 1, '["old"]'))  # beyond the largest id
    before = journal.read_since(START).position
    assert journal.compact(["new"], lambda entry: entry.item_id != "needed") == 2
    changes = journal.read_since(before)
    assert changes.is_complete
    assert [entry.item_id for entry in changes.changes] == ["down", "needed"]
    journal.close()
