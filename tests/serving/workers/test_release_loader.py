"""The life of a release: followed, swapped, kept, refused, remembered. Real processes, and releases on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from recsys.testing.releases import WriteRelease
from recsys.testing.service_process import Service, until

pytestmark = pytest.mark.slow

ITEMS = [f"item {number:02}" for number in range(40)]
SIMILAR = "/v1/items/item%2000/similar"


def answered_by(service: Service) -> str:
    answer: str = service.get(SIMILAR).raise_for_status().json()["release_id"]
    return answer


@pytest.fixture
def service(tmp_path: Path, write_release: WriteRelease) -> Iterator[Service]:
    """Not started, with `first` as the champion."""
    made = Service(tmp_path)
    made.want(write_release(ITEMS, release_id="first"))
    yield made
    made.close()


def test_a_swap_is_followed_by_every_worker(service: Service, write_release: WriteRelease) -> None:
    """And a page that was begun on the release before ends on it."""
    service.set(workers=2)
    service.start_all(2)
    page = service.get(SIMILAR, params={"k": 3}).json()
    assert page["release_id"] == "first"
    service.want(write_release(ITEMS, release_id="second"))
    until(lambda: {answered_by(service) for _ in range(20)} == {"second"})
    following = until(lambda: service.get(SIMILAR, params={"k": 3, "cursor": page["next_cursor"]}))
    assert following.json()["release_id"] == "first"
    assert service.get(SIMILAR, params={"release": "first"}).json()["release_id"] == "first"
    assert service.get("/readyz").json()["loaded"] == ["second", "first"]


def test_the_release_before_goes_after_its_time(service: Service, write_release: WriteRelease) -> None:
    """Then its pages are gone, and none of its files is mapped any more."""
    service.set(keep_seconds=0.5)
    first = service.folder / "releases" / "first"
    service.start()
    page = service.get(SIMILAR, params={"k": 3}).json()
    service.want(write_release(ITEMS, release_id="second"))
    until(lambda: service.get("/readyz").json()["loaded"] == ["second"])
    assert service.get(SIMILAR, params={"k": 3, "cursor": page["next_cursor"]}).status_code == 410
    assert service.get(SIMILAR, params={"release": "first"}).status_code == 404
    assert str(first) not in mapped(service)
    assert "second" in mapped(service)


def mapped(service: Service) -> str:
    """Names of all files that the workers map."""
    return "\n".join(Path(f"/proc/{pid}/maps").read_text() for pid in service.workers())


def test_a_damaged_release_is_refused_told_and_tried_again(service: Service, write_release: WriteRelease) -> None:
    service.start()
    assert answered_by(service) == "first"
    second = write_release(ITEMS, release_id="second")
    embeddings = (second / "embeddings.npy").read_bytes()
    (second / "embeddings.npy").write_bytes(embeddings[:-1] + b"\x00")
    service.want(second)
    told = until(lambda: service.get("/readyz").json()["errors"])
    assert "SHA-256 of embeddings.npy must be" in told["champion"]
    assert service.get("/readyz").status_code == 200
    assert answered_by(service) == "first"
    assert service.metric("recsys_component_error", 'component="champion"') == 1
    assert service.metric("recsys_release_loads_total", 'outcome="failure"') >= 1
    (second / "embeddings.npy").write_bytes(embeddings)
    until(lambda: answered_by(service) == "second")
    assert until(lambda: service.get("/readyz").json()["errors"] == {})
    assert service.metric("recsys_component_error", 'component="champion"') == 0


def test_a_source_that_is_gone_is_told_and_changes_nothing(service: Service, write_release: WriteRelease) -> None:
    service.start()
    service.wanted.unlink()
    assert "release must be a folder" in until(lambda: service.get("/readyz").json()["errors"])["champion_watcher"]
    assert answered_by(service) == "first"
    service.want(write_release(ITEMS, release_id="second"))
    until(lambda: answered_by(service) == "second")
    until(lambda: service.get("/readyz").json()["errors"] == {})


def test_a_start_without_its_source_goes_on_with_what_was_served(service: Service) -> None:
    service.start()
    assert answered_by(service) == "first"
    service.end()
    service.wanted.unlink()
    service.start()
    assert answered_by(service) == "first"
    assert "champion_watcher" in service.get("/readyz").json()["errors"]


def test_a_start_on_a_damaged_release_goes_on_with_the_one_before(
    service: Service, write_release: WriteRelease
) -> None:
    service.start()
    assert answered_by(service) == "first"
    service.end()
    second = write_release(ITEMS, release_id="second")
    (second / "catalog.parquet").write_bytes(b"")
    service.want(second)
    service.start()
    assert answered_by(service) == "first"
    assert "bytes of catalog.parquet" in service.get("/readyz").json()["errors"]["champion"]


def test_a_first_start_on_a_damaged_release_fails(service: Service) -> None:
    (service.folder / "releases" / "first" / "catalog.parquet").write_bytes(b"")
    with pytest.raises(AssertionError, match=r"bytes of catalog.parquet must be"):
        service.start()


def test_a_rollback_takes_what_is_loaded(service: Service, write_release: WriteRelease) -> None:
    first = service.folder / "releases" / "first"
    service.start()
    service.want(write_release(ITEMS, release_id="second"))
    until(lambda: answered_by(service) == "second")
    service.want(first)
    until(lambda: answered_by(service) == "first")
    assert service.metric("recsys_release_loads_total", 'outcome="success"') == 2
    assert service.get("/readyz").json()["loaded"] == ["first", "second"]


def test_a_folder_of_releases_gives_the_newest(service: Service, write_release: WriteRelease) -> None:
    service.source = ("--release", service.folder / "releases")
    service.start()
    write_release(ITEMS, release_id="a newer one", created_at="2024-02-01T02:00:00+00:00")
    until(lambda: answered_by(service) == "a newer one")


def test_the_champion_of_mlflow_is_followed_and_remembered(service: Service, write_release: WriteRelease) -> None:
    """Promoted while it is served, and away at the next start."""
    from recsys import Release
    from recsys.config.loading import load_config
    from recsys.release.mlflow_registry import Tracker

    tracker = Tracker(load_config(service.config))
    folders = [write_release(ITEMS, release_id=release_id) for release_id in ("one", "two")]
    versions = [tracker.register(tracker.start_run(path.name, "0"), Release.load(path)) for path in folders]
    for path in folders:
        shutil.rmtree(path)  # what is served comes from MLflow
    service.source = ()
    tracker.promote(versions[0], None)
    service.start()
    assert answered_by(service) == "one"
    tracker.promote(versions[1], versions[0])
    until(lambda: answered_by(service) == "two")
    service.end()
    (service.folder / "workspace" / "mlflow.db").write_bytes(b"this is no database")
    service.start()
    assert answered_by(service) == "two"
    assert "champion_watcher" in service.get("/readyz").json()["errors"]


def test_workers_end_with_the_first_process_however_it_ends(service: Service) -> None:
    service.set(workers=2)
    service.start()
    assert answered_by(service) == "first"
    assert service.end(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(httpx.ConnectError):
        service.get("/livez")


def test_a_worker_that_is_killed_is_replaced(service: Service) -> None:
    service.start()
    assert answered_by(service) == "first"
    os.kill(service.workers()[0], signal.SIGKILL)
    assert until(lambda: _answer(service)) == "first"


def _answer(service: Service) -> str | None:
    try:
        return answered_by(service)
    except httpx.HTTPError:
        return None


@pytest.mark.parametrize("later_s", [0.0, 0.05, 0.2])
def test_killed_in_the_middle_of_a_swap_it_starts_again(
    service: Service, write_release: WriteRelease, later_s: float
) -> None:
    """Between being told and serving the new release, wherever that is; a release is whole or not there."""
    service.start()
    assert answered_by(service) == "first"
    service.want(write_release(ITEMS, release_id="second"))
    threading.Event().wait(later_s)
    service.end(signal.SIGKILL)
    service.start()
    until(lambda: answered_by(service) == "second")


def test_a_challenger_in_the_shadow_is_compared_and_not_shown(service: Service, write_release: WriteRelease) -> None:
    service.set(challenger="shadow", challenger_share=1.0)
    service.want(service.folder / "releases" / "first", write_release(ITEMS, release_id="second"))
    service.start()
    asked = 5
    for _ in range(asked):
        assert answered_by(service) == "first"
    until(lambda: service.metric("recsys_shadow_overlap_ratio_count") == asked)
    overlap = service.metric("recsys_shadow_overlap_ratio_sum") / asked
    answers = [service.get(SIMILAR, params={"release": release}).json() for release in ("first", "second")]
    first, second = ({neighbor["item_id"] for neighbor in answer["neighbors"]} for answer in answers)
    assert overlap == pytest.approx(len(first & second) / len(first))


def test_a_canary_answers_its_share_and_sticks(service: Service, write_release: WriteRelease) -> None:
    service.set(challenger="canary", challenger_share=0.5)
    service.want(service.folder / "releases" / "first", write_release(ITEMS, release_id="second"))
    service.start()

    def told(sticky: int) -> str:
        return str(service.get(SIMILAR, headers={"Recsys-Sticky-Key": f"user {sticky}"}).json()["release_id"])

    once = [told(sticky) for sticky in range(40)]
    assert [told(sticky) for sticky in range(40)] == once
    assert 8 <= once.count("second") <= 32
    assert answered_by(service) == "first"


def test_what_is_remembered_is_a_plain_file(service: Service) -> None:
    """A person can read what is served, and write what is to be."""
    service.start()
    assert answered_by(service) == "first"
    served = json.loads((service.folder / "workspace" / "serving" / "last_served.json").read_text())
    assert served["champion"] == str(service.folder / "releases" / "first")
