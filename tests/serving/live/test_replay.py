"""An answer that was given is sent again as it was, by the release that gave it, and only while nothing changed."""

from __future__ import annotations

import asyncio
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
from serving.app import over
from serving.live.item_changes import Entry, Journal
from serving.live.live_release import Edition
from serving.live.loaded_releases import Shelf
from serving.live.state import State, share
from serving.middleware import api_keys as keys
from serving.middleware.api_keys import Keys
from serving.middleware.metrics import Telemetry
from tests.serving.inside import inside

Make = Callable[..., tuple["Counted", Any]]

ITEMS = [f"item {number}" for number in range(12)]
SIMILAR = "/v1/items/item%203/similar"


class Counted(State):
    """Counts the questions that were really asked, by release."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.asked: list[str] = []

    def ask(self, edition: Edition, question: Query) -> SearchResult:
        self.asked.append(edition.release_id)
        return super().ask(edition, question)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.db")
    yield opened
    opened.close()


@pytest.fixture
def make(write_release: WriteRelease, journal: Journal) -> Make:
    def made(**settings: Any) -> tuple[Counted, Any]:
        shelf = Shelf(60)
        editions = [Edition(Release.load(write_release(ITEMS, release_id=name))) for name in ("first", "second")]
        shelf.put(*editions)
        state = Counted(shelf, ServeConfig(**settings), Telemetry(), journal)
        return state, over(state, Keys(None if settings.get("keys") is None else Path(settings["keys"])))

    return made


def get(app: Any, *requests: tuple[str, dict[str, str]]) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        async with inside(app) as client:
            return [await client.get(path, headers=sent) for path, sent in requests]

    return asyncio.run(ask())


def test_the_second_answer_is_the_first_one(make: Make) -> None:
    state, app = make()
    one, two, other = get(app, (SIMILAR, {}), (SIMILAR, {}), (f"{SIMILAR}?k=3", {}))
    assert state.asked == ["first", "first"]
    assert two.content == one.content
    own = {"x-request-id"}
    assert {n: v for n, v in two.headers.items() if n not in own} == {
        n: v for n, v in one.headers.items() if n not in own
    }
    assert one.headers["x-request-id"] != two.headers["x-request-id"]
    assert other.json()["neighbors"] == one.json()["neighbors"][:3]


def test_who_has_it_is_told_so(make: Make) -> None:
    _, app = make()
    (one,) = get(app, (SIMILAR, {}))
    same, stale = get(app, (SIMILAR, {"If-None-Match": one.headers["etag"]}), (SIMILAR, {"If-None-Match": '"x"'}))
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", one.headers["etag"])
    assert stale.content == one.content


def test_each_release_gives_its_own(make: Make) -> None:
    state, app = make(challenger="canary", challenger_share=0.5)
    pinned = [{}, {"Recsys-Release": "second"}, {"Recsys-Release": "first"}]
    sticky = [{"Recsys-Sticky-Key": f"user {n}"} for n in range(20)]
    for _ in range(2):
        answers = get(app, *((SIMILAR, sent) for sent in (*pinned, *sticky)))
        by_key = ["second" if share(f"user {n}") < 0.5 else "first" for n in range(20)]
        assert [answer.json()["release_id"] for answer in answers] == ["first", "second", "first", *by_key]
    assert sorted(state.asked) == ["first", "second"]
    both, gone = get(app, (f"{SIMILAR}?release=first", pinned[1]), (SIMILAR, {"Recsys-Release": "none"}))
    assert (both.status_code, gone.status_code) == (422, 404)


def test_a_change_is_in_the_next_answer(make: Make, journal: Journal) -> None:
    state, app = make()
    (one,) = get(app, (SIMILAR, {}))
    down = one.json()["neighbors"][0]["item_id"]
    journal.write(Entry(down, 2e9, hidden=True))
    two, three = get(app, (SIMILAR, {"If-None-Match": one.headers["etag"]}), (SIMILAR, {}))
    assert two.status_code == 200
    assert down not in {neighbor["item_id"] for neighbor in two.json()["neighbors"]}
    assert three.content == two.content
    assert state.asked == ["first"] * 2


def test_a_swap_is_in_the_next_answer(make: Make, write_release: WriteRelease) -> None:
    state, app = make()
    (one,) = get(app, (SIMILAR, {}))
    state.shelf.put(Edition(Release.load(write_release(ITEMS, release_id="third"))))
    two, page = get(app, (SIMILAR, {}), (SIMILAR, {"Recsys-Release": "first"}))
    assert two.json()["release_id"] == "third"
    assert page.content == one.content


def test_a_batch_is_of_one_release_whatever_is_swapped_meanwhile(make: Make, write_release: WriteRelease) -> None:
    state, app = make()
    third = Edition(Release.load(write_release(ITEMS, release_id="third")))

    async def ask() -> httpx.Response:
        async with inside(app) as client:
            asking = asyncio.create_task(
                client.post("/v1/similar/batch", json={"questions": [{"items": ["item 1"]}] * 5})
            )
            while not state.asked:  # noqa: ASYNC110 - the service is not to know of the test
                await asyncio.sleep(0)
            state.shelf.put(third)
            return await asking

    answers = [entry["answer"]["release_id"] for entry in asyncio.run(ask()).json()["answers"]]
    assert answers == ["first"] * 5
    assert state.shelf.champion is third


def test_what_is_counted_is_asked_each_time(make: Make) -> None:
    state, app = make()
    path = f"{SIMILAR}?exclude=nothing"
    get(app, (path, {}), (path, {}), ("/v1/items/x/similar?on_unknown=fallback", {}))
    get(app, ("/v1/items/x/similar?on_unknown=fallback", {}), ("/metrics", {}))
    assert len(state.asked) == 4
    (figures,) = get(app, ("/metrics", {}))
    assert "recsys_unknown_items_total 4.0" in figures.text
    assert "recsys_fallback_answers_total 2.0" in figures.text


def test_an_answer_that_is_sent_again_is_counted(make: Make) -> None:
    _, app = make()
    get(app, (SIMILAR, {}), (SIMILAR, {}), (SIMILAR, {}))
    (figures,) = get(app, ("/metrics", {}))
    label = 'release="first",route="/v1/items/{item_id:encoded}/similar",status="200"'
    assert f"recsys_http_requests_total{{{label}}} 3.0" in figures.text


def test_nobody_is_let_in_for_it(make: Make, tmp_path: Path) -> None:
    secret, key = keys.new("reader", "read")
    (tmp_path / "keys.txt").write_text(key.line)
    _, app = make(keys=str(tmp_path / "keys.txt"))
    known = {"Authorization": f"Bearer {secret}"}
    first, again, stranger = get(app, (SIMILAR, known), (SIMILAR, known), (SIMILAR, {}))
    assert [answer.status_code for answer in (first, again, stranger)] == [200, 200, 401]


def test_a_shadow_is_asked_each_time(make: Make) -> None:
    state, app = make(challenger="shadow")
    get(app, (SIMILAR, {}), (SIMILAR, {}))
    assert state.asked == ["first", "first"]


def test_probes_depend_on_no_release_and_no_journal(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    state, app = make()

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(state, "take", fail)
    answers = get(app, *((path, {}) for path in ("/livez", "/readyz", "/metrics", "/openapi.json")), (SIMILAR, {}))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 500]
