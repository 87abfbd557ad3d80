"""Repeated requests get the cached response of their release, until a change or another release."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys import Release
from recsys.config.sections import ServeConfig
from recsys.retrieval.query import Query
from recsys.retrieval.results import SearchResult
from recsys.testing.releases import WriteRelease
from serving.app import create_app
from serving.live import response_cache
from serving.live.item_changes import ItemChange, ItemChanges
from serving.live.live_release import LiveRelease
from serving.live.loaded_releases import LoadedReleases
from serving.live.response_cache import CachedResponse, Key, LruCache, matches
from serving.live.state import State, bucket
from serving.middleware import api_keys
from serving.middleware.api_keys import ApiKeys
from serving.middleware.metrics import Metrics
from tests.serving.asgi import asgi_client

Make = Callable[..., tuple["CountingState", Any]]

ITEMS = [f"item {number}" for number in range(12)]
SIMILAR = "/v1/items/item%203/similar"


class CountingState(State):
    """Records the release of each search."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.searched: list[str] = []

    def search(self, release: LiveRelease, query: Query) -> SearchResult:
        self.searched.append(release.release_id)
        return super().search(release, query)


@pytest.fixture
def item_changes(tmp_path: Path) -> Iterator[ItemChanges]:
    changes = ItemChanges(tmp_path / "item_changes.db")
    yield changes
    changes.close()


@pytest.fixture
def make(write_release: WriteRelease, item_changes: ItemChanges) -> Make:
    def made(**settings: Any) -> tuple[CountingState, Any]:
        releases = LoadedReleases(60)
        releases.replace(
            *(LiveRelease(Release.load(write_release(ITEMS, release_id=name))) for name in ("first", "second"))
        )
        state = CountingState(releases, ServeConfig(**settings), Metrics(), item_changes)
        return state, create_app(state, ApiKeys(None if settings.get("keys") is None else Path(settings["keys"])))

    return made


def get(app: Any, *requests: tuple[str, dict[str, str]]) -> list[httpx.Response]:
    async def send() -> list[httpx.Response]:
        async with asgi_client(app) as client:
            return [await client.get(path, headers=headers) for path, headers in requests]

    return asyncio.run(send())


def test_second_response_is_the_cached_first(make: Make) -> None:
    state, app = make()
    first, second, shorter = get(app, (SIMILAR, {}), (SIMILAR, {}), (f"{SIMILAR}?k=3", {}))
    assert state.searched == ["first", "first"]
    assert second.content == first.content
    own = {"x-request-id"}
    assert {name: value for name, value in second.headers.items() if name not in own} == {
        name: value for name, value in first.headers.items() if name not in own
    }
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert shorter.json()["neighbors"] == first.json()["neighbors"][:3]


@pytest.mark.parametrize("path", [SIMILAR, "/v1/items/item%203"])
def test_matching_etag_gives_304(make: Make, path: str) -> None:
    """Whether or not the response is in the cache."""
    for requests_before in (0, 1):
        (first,) = get(make()[1], (path, {}))
        _, app = make()
        get(app, *[(path, {})] * requests_before)
        tag = first.headers["etag"]
        same, stale, star = get(app, *((path, {"If-None-Match": value}) for value in (tag, '"x"', "*")))
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
        assert same.headers["recsys-release"] == "first"
        assert "content-length" not in same.headers
        assert stale.content == first.content
        assert star.status_code == 304


def test_etag_of_another_version_does_not_match(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version may return more fields for the same release."""
    _, app = make()
    (before,) = get(app, (SIMILAR, {}))
    monkeypatch.setattr(response_cache, "__version__", "0.0.1")
    _, app = make()
    (after,) = get(app, (SIMILAR, {"If-None-Match": before.headers["etag"]}))
    assert after.status_code == 200
    assert after.headers["etag"] != before.headers["etag"]


def test_unknown_item_is_404_whatever_etag_is_sent(make: Make) -> None:
    _, app = make()
    responses = get(app, *(("/v1/items/x/similar", {"If-None-Match": value}) for value in ("*", '"x"')))
    assert [response.status_code for response in responses] == [404, 404]
    assert all("etag" not in response.headers for response in responses)


def test_each_release_has_its_own_responses(make: Make) -> None:
    state, app = make(challenger="canary", challenger_share=0.5)
    pinned = [{}, {"Recsys-Release": "second"}, {"Recsys-Release": "first"}]
    sticky = [{"Recsys-Sticky-Key": f"user {number}"} for number in range(20)]
    expected = ["second" if bucket(f"user {number}") < 0.5 else "first" for number in range(20)]
    for _ in range(2):
        responses = get(app, *((SIMILAR, headers) for headers in (*pinned, *sticky)))
        assert [response.json()["release_id"] for response in responses] == ["first", "second", "first", *expected]
    assert sorted(state.searched) == ["first", "second"]
    contradictory, unknown = get(app, (f"{SIMILAR}?release=first", pinned[1]), (SIMILAR, {"Recsys-Release": "none"}))
    assert (contradictory.status_code, unknown.status_code) == (422, 404)


def test_requested_release_and_cursor_are_cached_by_their_release(make: Make) -> None:
    """For any encoding of the parameter. Another champion does not change their ETags."""
    state, app = make()
    (page,) = get(app, (f"{SIMILAR}?k=3&release=second", {}))
    paths = [
        f"{SIMILAR}?k=3&release=second",
        f"{SIMILAR}?rele%61se=second",
        f"{SIMILAR}?cursor={page.json()['next_cursor']}",
    ]
    before = get(app, *((path, {}) for path in paths))
    assert {response.headers["recsys-release"] for response in before} == {"second"}
    state.releases.replace(state.releases.roles.releases[1], state.releases.roles.releases[0])
    after = get(app, *((path, {}) for path in paths))
    assert [response.headers["etag"] for response in after] == [response.headers["etag"] for response in before]
    assert [response.content for response in after] == [response.content for response in before]


def test_change_is_in_the_next_response(make: Make, item_changes: ItemChanges) -> None:
    state, app = make()
    (before,) = get(app, (SIMILAR, {}))
    hidden = before.json()["neighbors"][0]["item_id"]
    item_changes.write(ItemChange(hidden, 2e9, hidden=True))
    revalidated, after = get(app, (SIMILAR, {"If-None-Match": before.headers["etag"]}), (SIMILAR, {}))
    assert revalidated.status_code == 200
    assert hidden not in {neighbor["item_id"] for neighbor in revalidated.json()["neighbors"]}
    assert after.content == revalidated.content
    assert state.searched == ["first"] * 2


def test_promoted_release_answers_the_next_request(make: Make, write_release: WriteRelease) -> None:
    state, app = make()
    (before,) = get(app, (SIMILAR, {}))
    state.releases.replace(LiveRelease(Release.load(write_release(ITEMS, release_id="third"))))
    after, pinned = get(app, (SIMILAR, {}), (SIMILAR, {"Recsys-Release": "first"}))
    assert after.json()["release_id"] == "third"
    assert pinned.content == before.content


def test_batch_uses_one_release_whatever_is_promoted_meanwhile(make: Make, write_release: WriteRelease) -> None:
    state, app = make()
    third = LiveRelease(Release.load(write_release(ITEMS, release_id="third")))

    async def send() -> httpx.Response:
        async with asgi_client(app) as client:
            sending = asyncio.create_task(
                client.post("/v1/similar/batch", json={"queries": [{"items": ["item 1"]}] * 5})
            )
            while not state.searched:  # noqa: ASYNC110 - the service has no hook for this test
                await asyncio.sleep(0)
            state.releases.replace(third)
            return await sending

    release_ids = [entry["result"]["release_id"] for entry in asyncio.run(send()).json()["results"]]
    assert release_ids == ["first"] * 5
    assert state.releases.champion is third


def test_counted_results_are_not_cached(make: Make) -> None:
    """Results with unknown item ids or popular items."""
    state, app = make()
    path = f"{SIMILAR}?exclude=nothing"
    get(app, (path, {}), (path, {}), ("/v1/items/x/similar?on_unknown=fallback", {}))
    get(app, ("/v1/items/x/similar?on_unknown=fallback", {}), ("/metrics", {}))
    assert len(state.searched) == 4
    (metrics,) = get(app, ("/metrics", {}))
    assert "recsys_unknown_items_total 4.0" in metrics.text
    assert "recsys_fallback_results_total 2.0" in metrics.text


def test_cached_response_is_counted_by_its_route(make: Make) -> None:
    _, app = make()
    (first,) = get(app, (SIMILAR, {}))
    get(app, (SIMILAR, {}), (SIMILAR, {}), (SIMILAR, {"If-None-Match": first.headers["etag"]}))
    (metrics,) = get(app, ("/metrics", {}))
    for status, count in ((200, 3), (304, 1)):
        label = f'release="first",route="/v1/items/{{item_id:encoded}}/similar",status="{status}"'
        assert f"recsys_http_requests_total{{{label}}} {count}.0" in metrics.text


def test_cached_response_requires_an_api_key(make: Make, tmp_path: Path) -> None:
    secret, key = api_keys.create_key("reader", "read")
    (tmp_path / "keys.txt").write_text(key.line)
    _, app = make(keys=str(tmp_path / "keys.txt"))
    authorized = {"Authorization": f"Bearer {secret}"}
    responses = get(app, (SIMILAR, authorized), (SIMILAR, authorized), (SIMILAR, {}))
    assert [response.status_code for response in responses] == [200, 200, 401]


def test_shadow_searches_every_time(make: Make) -> None:
    state, app = make(challenger="shadow")
    get(app, (SIMILAR, {}), (SIMILAR, {}))
    assert state.searched == ["first", "first"]


def test_probes_depend_neither_on_release_nor_on_item_changes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    state, app = make()

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(state, "choose_release", fail)
    responses = get(app, *((path, {}) for path in ("/livez", "/readyz", "/metrics", "/openapi.json")), (SIMILAR, {}))
    assert [response.status_code for response in responses] == [200, 200, 200, 200, 500]


# --- the cache alone


def response_of(size: int) -> CachedResponse:
    return CachedResponse(None, ((b"etag", b"tag"),), b"x" * size)


def key_of(path: str, query: bytes = b"") -> Key:
    return "release", "", path, query


def cached(cache: LruCache, paths: str) -> str:
    return "".join(path for path in paths if cache.get(key_of(path)) is not None)


def test_removes_the_least_recently_used() -> None:
    cache = LruCache(2_500_000)
    for path in "ab":
        cache.put(key_of(path), response_of(1_000_000))
    assert cached(cache, "a") == "a"
    cache.put(key_of("c"), response_of(1_000_000))
    assert cached(cache, "abc") == "ac"


def test_large_response_replaces_several() -> None:
    cache = LruCache(4_500_000)
    for path in "abcd":
        cache.put(key_of(path), response_of(1_000_000))
    cache.put(key_of("e"), response_of(2_000_000))
    assert cached(cache, "abcde") == "cde"
    cache.put(key_of("f"), response_of(5_000_000))  # larger than the whole cache
    assert cached(cache, "abcdef") == ""


def test_replaced_response_counts_once() -> None:
    cache = LruCache(2_500_000)
    for path in "baaaa":
        cache.put(key_of(path), response_of(1_000_000))
    assert cached(cache, "ab") == "ab"


@pytest.mark.parametrize("size", [1, 2_000])
def test_uses_about_max_bytes_of_memory(size: int) -> None:
    max_bytes, count = 2 << 20, 4_000
    cache = LruCache(max_bytes)
    tracemalloc.start()
    for number in range(count):
        headers = tuple(
            (name, value.encode())
            for name, value in (
                (b"content-length", f"{size + number}"),
                (b"content-type", "application/json"),
                (b"recsys-release", f"release {number}"),
                (b"etag", f'"{number:032}"'),
                (b"cache-control", f"no-cache {number}"),
            )
        )
        key = f"release {number}", "", f"/v1/items/{number}/similar", f"min_similarity=0.{number}".encode()
        cache.put(key, CachedResponse(None, headers, bytes(size)))
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.8 * max_bytes < num_bytes < 1.2 * max_bytes


def test_query_string_is_part_of_the_key() -> None:
    cache = LruCache()
    cache.put(key_of("path", b"k=1"), response_of(1))
    assert cache.get(key_of("path", b"k=1")) is not None
    assert cache.get(key_of("path", b"k=2")) is None


def test_if_none_match_may_list_several_etags() -> None:
    assert matches(b'"a"', b'"b", W/"a"')
    assert matches(b'"a"', b"*")
    assert not matches(b'"a"', b'"b"')
