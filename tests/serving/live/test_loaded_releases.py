"""What is loaded, and that it goes with its last reader."""

from __future__ import annotations

import gc
import json
import logging
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys import Release
from recsys.errors import ReleaseError
from recsys.retrieval.query import Query
from recsys.testing.releases import WriteRelease
from serving import openapi
from serving.live.live_release import Edition
from serving.live.loaded_releases import Shelf
from serving.middleware.logs import Lines
from serving.middleware.rate_limit import Rates
from tests import ROOT

ITEMS = [f"item {number:02}" for number in range(20)]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def edition(write_release: WriteRelease) -> Callable[[str], Edition]:
    return lambda release_id: Edition(Release.load(write_release(ITEMS, release_id=release_id)))


def test_an_empty_shelf_says_so() -> None:
    with pytest.raises(ReleaseError, match="none yet"):
        _ = Shelf(1).champion


def test_the_champion_before_stays_for_its_time(edition: Callable[[str], Edition]) -> None:
    clock = Clock()
    shelf = Shelf(10, clock)
    one, two, three = edition("one"), edition("two"), edition("three")
    shelf.put(one)
    shelf.put(two)
    assert shelf.champion is two
    assert shelf.loaded("one") is one
    clock.now += 9
    shelf.put(two, three)  # the challenger alone is new
    shelf.clear()
    assert shelf.standing.editions == [two, three, one]
    clock.now += 1
    shelf.clear()
    assert shelf.standing.editions == [two, three]
    shelf.put(three)
    assert shelf.standing.editions == [three, two]
    shelf.put(two)
    assert shelf.standing.editions == [two, three]


def test_a_release_goes_with_its_last_reader(edition: Callable[[str], Edition]) -> None:
    """And with it its files: an answer that was begun keeps them, and no longer."""
    shelf = Shelf(0)
    shelf.put(edition("one"))
    begun = shelf.champion
    index, folder = weakref.ref(begun.release.index), str(begun.release.path)
    shelf.put(edition("two"))
    shelf.clear()
    assert shelf.loaded("one") is None
    assert begun.ask(Query.from_item(ITEMS[0])).release_id == "one"
    assert folder in Path("/proc/self/maps").read_text()
    del begun
    gc.collect()
    assert index() is None
    assert folder not in Path("/proc/self/maps").read_text()


def test_a_key_has_its_rate_over_all_workers(tmp_path: Path) -> None:
    """A second's worth at once, then one for each share of a second; another key has its own."""
    clock = Clock()
    workers = [Rates(tmp_path / "rates", 4, clock) for _ in range(2)]
    assert [workers[n % 2].wait_s("a") for n in range(5)] == [0, 0, 0, 0, pytest.approx(0.25)]
    assert workers[0].wait_s("b") == 0
    clock.now += 0.25
    assert [workers[1].wait_s("a"), workers[0].wait_s("a")] == [0, pytest.approx(0.25)]
    clock.now -= 90  # the machine was started anew: the file is of another clock
    assert [workers[0].wait_s("a") for _ in range(3)] == [pytest.approx(0.25)] * 3
    clock.now += 1
    assert workers[0].wait_s("a") == 0
    for worker in workers:
        worker.close()


def test_a_line_of_the_log_is_json_whatever_is_told() -> None:
    try:
        int("line one\nline two")
    except ValueError:
        record = logging.LogRecord("serving", logging.ERROR, __file__, 1, 'a "%s"\n', ("b",), sys.exc_info())
    line = Lines().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert told["message"] == 'a "b"\n'
    assert "ValueError" in told["traceback"]


def test_the_description_in_the_docs_is_that_of_the_service() -> None:
    """Otherwise write it anew by: make openapi."""
    assert (ROOT / "docs" / "openapi.json").read_text(encoding="utf-8") == openapi.text()
