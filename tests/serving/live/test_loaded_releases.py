"""Roles of the loaded releases, and that a release is freed with its last reader."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys import Release
from recsys.errors import ReleaseError
from recsys.retrieval.query import Query
from recsys.testing.releases import WriteRelease
from serving.live.live_release import LiveRelease
from serving.live.loaded_releases import LoadedReleases

ITEMS = [f"item {number:02}" for number in range(20)]


@pytest.fixture
def load(write_release: WriteRelease) -> Callable[[str], LiveRelease]:
    return lambda release_id: LiveRelease(Release.load(write_release(ITEMS, release_id=release_id)))


def test_champion_fails_before_a_release_is_loaded() -> None:
    with pytest.raises(ReleaseError, match="none yet"):
        _ = LoadedReleases(1).champion


def test_previous_champion_stays_loaded_for_keep_seconds(load: Callable[[str], LiveRelease]) -> None:
    now = 100.0
    releases = LoadedReleases(10, lambda: now)
    one, two, three = load("one"), load("two"), load("three")
    releases.replace(one)
    releases.replace(two)
    assert releases.champion is two
    assert releases.find("one") is one
    now += 9
    releases.replace(two, three)  # only the challenger is new
    releases.unload_expired()
    assert releases.roles.releases == [two, three, one]
    now += 1
    releases.unload_expired()
    assert releases.roles.releases == [two, three]
    releases.replace(three)
    assert releases.roles.releases == [three, two]
    releases.replace(two)
    assert releases.roles.releases == [two, three]


def test_release_is_freed_with_its_last_reader(load: Callable[[str], LiveRelease]) -> None:
    """Its files are unmapped then, and not before a running request ends."""
    releases = LoadedReleases(0)
    releases.replace(load("one"))
    running = releases.champion
    index, folder = weakref.ref(running.release.space("next").index), str(running.release.path)
    releases.replace(load("two"))
    releases.unload_expired()
    assert releases.find("one") is None
    assert running.search(Query.from_item(ITEMS[0])).release_id == "one"
    assert folder in Path("/proc/self/maps").read_text()
    del running
    gc.collect()
    assert index() is None
    assert folder not in Path("/proc/self/maps").read_text()
