"""Loading of releases by a service process: promotion, rollback, damaged releases, restarts, challengers."""

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
from recsys.testing.service_process import Service, wait_until

pytestmark = pytest.mark.slow

ITEMS = [f"item {number:02}" for number in range(40)]
SIMILAR = "/v1/items/item%2000/similar"


def champion(service: Service) -> str:
    release_id: str = service.get(SIMILAR).raise_for_status().json()["release_id"]
    return release_id


@pytest.fixture
def service(tmp_path: Path, write_release: WriteRelease) -> Iterator[Service]:
    """A service with the champion `first`, not started."""
    made = Service(tmp_path)
    made.set_releases(write_release(ITEMS, release_id="first"))
    yield made
    made.close()


def test_every_worker_loads_a_promoted_release(service: Service, write_release: WriteRelease) -> None:
    """The pages of a query come from the release of its first page."""
    service.configure(workers=2)
    service.start_workers(2)
    page = service.get(SIMILAR, params={"k": 3}).json()
    assert page["release_id"] == "first"
    service.set_releases(write_release(ITEMS, release_id="second"))
    wait_until(lambda: {champion(service) for _ in range(20)} == {"second"})
    next_page = wait_until(lambda: service.get(SIMILAR, params={"k": 3, "cursor": page["next_cursor"]}))
    assert next_page.json()["release_id"] == "first"
    assert service.get(SIMILAR, params={"release": "first"}).json()["release_id"] == "first"
    assert service.get("/readyz").json()["loaded"] == ["second", "first"]


def test_previous_champion_is_unloaded_after_keep_seconds(service: Service, write_release: WriteRelease) -> None:
    """Its cursors are 410 then, and its files are unmapped."""
    service.configure(keep_seconds=0.5)
    first = service.folder / "releases" / "first"
    service.start()
    page = service.get(SIMILAR, params={"k": 3}).json()
    service.set_releases(write_release(ITEMS, release_id="second"))
    wait_until(lambda: service.get("/readyz").json()["loaded"] == ["second"])
    assert service.get(SIMILAR, params={"k": 3, "cursor": page["next_cursor"]}).status_code == 410
    assert service.get(SIMILAR, params={"release": "first"}).status_code == 404
    assert str(first) not in mapped_files(service)
    assert "second" in mapped_files(service)


def mapped_files(service: Service) -> str:
    """Return the names of all files that the workers map, as lines."""
    return "\n".join(Path(f"/proc/{pid}/maps").read_text() for pid in service.workers())


def test_damaged_release_is_reported_and_loaded_once_repaired(service: Service, write_release: WriteRelease) -> None:
    service.start()
    assert champion(service) == "first"
    second = write_release(ITEMS, release_id="second")
    embeddings = (second / "next" / "embeddings.npy").read_bytes()
    (second / "next" / "embeddings.npy").write_bytes(embeddings[:-1] + b"\x00")
    service.set_releases(second)
    messages = wait_until(lambda: service.get("/readyz").json()["errors"])
    assert "SHA-256 of next/embeddings.npy must be" in messages["champion"]
    assert service.get("/readyz").status_code == 200
    assert champion(service) == "first"
    assert service.metric("recsys_component_error", 'component="champion"') == 1
    assert service.metric("recsys_release_loads_total", 'outcome="failure"') >= 1
    (second / "next" / "embeddings.npy").write_bytes(embeddings)
    wait_until(lambda: champion(service) == "second")
    assert wait_until(lambda: service.get("/readyz").json()["errors"] == {})
    assert service.metric("recsys_component_error", 'component="champion"') == 0


def test_missing_source_is_reported_and_the_champion_stays(service: Service, write_release: WriteRelease) -> None:
    service.start()
    service.releases_file.unlink()
    assert "release must be a folder" in wait_until(lambda: service.get("/readyz").json()["errors"])["champion_watcher"]
    assert champion(service) == "first"
    service.set_releases(write_release(ITEMS, release_id="second"))
    wait_until(lambda: champion(service) == "second")
    wait_until(lambda: service.get("/readyz").json()["errors"] == {})


def test_restart_without_the_source_loads_the_last_champion(service: Service) -> None:
    service.start()
    assert champion(service) == "first"
    service.stop()
    service.releases_file.unlink()
    service.start()
    assert champion(service) == "first"
    assert "champion_watcher" in service.get("/readyz").json()["errors"]


def test_restart_on_a_damaged_release_loads_the_last_champion(service: Service, write_release: WriteRelease) -> None:
    service.start()
    assert champion(service) == "first"
    service.stop()
    second = write_release(ITEMS, release_id="second")
    (second / "catalog.parquet").write_bytes(b"")
    service.set_releases(second)
    service.start()
    assert champion(service) == "first"
    assert "bytes of catalog.parquet" in service.get("/readyz").json()["errors"]["champion"]


def test_first_start_on_a_damaged_release_fails(service: Service) -> None:
    (service.folder / "releases" / "first" / "catalog.parquet").write_bytes(b"")
    with pytest.raises(AssertionError, match=r"bytes of catalog.parquet must be"):
        service.start()


def test_rollback_uses_the_loaded_release(service: Service, write_release: WriteRelease) -> None:
    first = service.folder / "releases" / "first"
    service.start()
    service.set_releases(write_release(ITEMS, release_id="second"))
    wait_until(lambda: champion(service) == "second")
    service.set_releases(first)
    wait_until(lambda: champion(service) == "first")
    assert service.metric("recsys_release_loads_total", 'outcome="success"') == 2
    assert service.get("/readyz").json()["loaded"] == ["first", "second"]


def test_newest_release_of_a_folder_is_the_champion(service: Service, write_release: WriteRelease) -> None:
    service.source = ("--release", service.folder / "releases")
    service.start()
    write_release(ITEMS, release_id="newer", created_at="2024-02-01T02:00:00+00:00")
    wait_until(lambda: champion(service) == "newer")


def test_follows_the_champion_of_mlflow(service: Service, write_release: WriteRelease) -> None:
    """A restart without MLflow loads the last champion."""
    from recsys import Release
    from recsys.config.loading import load_config
    from recsys.release.mlflow_registry import Tracker

    tracker = Tracker(load_config(service.config))
    folders = [write_release(ITEMS, release_id=release_id) for release_id in ("one", "two")]
    versions = [tracker.register(tracker.start_run(path.name, "0"), Release.load(path)) for path in folders]
    for path in folders:
        shutil.rmtree(path)  # the service downloads releases from MLflow
    service.source = ()
    tracker.promote(versions[0], None)
    service.start()
    assert champion(service) == "one"
    tracker.promote(versions[1], versions[0])
    wait_until(lambda: champion(service) == "two")
    service.stop()
    (service.folder / "workspace" / "mlflow.db").write_bytes(b"not a database")
    service.start()
    assert champion(service) == "two"
    assert "champion_watcher" in service.get("/readyz").json()["errors"]


def test_workers_end_when_the_supervisor_is_killed(service: Service) -> None:
    service.configure(workers=2)
    service.start()
    assert champion(service) == "first"
    assert service.stop(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(httpx.ConnectError):
        service.get("/livez")


def test_killed_worker_is_replaced(service: Service) -> None:
    service.start()
    assert champion(service) == "first"
    os.kill(service.workers()[0], signal.SIGKILL)
    assert wait_until(lambda: champion_or_none(service)) == "first"


def champion_or_none(service: Service) -> str | None:
    """Return the champion, or None if the request fails."""
    try:
        return champion(service)
    except httpx.HTTPError:
        return None


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2])
def test_restarts_after_a_kill_during_a_promotion(
    service: Service, write_release: WriteRelease, delay_s: float
) -> None:
    service.start()
    assert champion(service) == "first"
    service.set_releases(write_release(ITEMS, release_id="second"))
    threading.Event().wait(delay_s)
    service.stop(signal.SIGKILL)
    service.start()
    wait_until(lambda: champion(service) == "second")


def test_shadow_is_compared_and_its_results_are_not_returned(service: Service, write_release: WriteRelease) -> None:
    service.configure(challenger="shadow", challenger_share=1.0)
    service.set_releases(service.folder / "releases" / "first", write_release(ITEMS, release_id="second"))
    service.start()
    requests = 5
    for _ in range(requests):
        assert champion(service) == "first"
    wait_until(lambda: service.metric("recsys_shadow_overlap_ratio_count") == requests)
    overlap = service.metric("recsys_shadow_overlap_ratio_sum") / requests
    results = [service.get(SIMILAR, params={"release": release}).json() for release in ("first", "second")]
    first, second = ({neighbor["item_id"] for neighbor in result["neighbors"]} for result in results)
    assert overlap == pytest.approx(len(first & second) / len(first))


def test_canary_answers_its_share_of_the_sticky_keys(service: Service, write_release: WriteRelease) -> None:
    service.configure(challenger="canary", challenger_share=0.5)
    service.set_releases(service.folder / "releases" / "first", write_release(ITEMS, release_id="second"))
    service.start()

    def release_of(user: int) -> str:
        return str(service.get(SIMILAR, headers={"Recsys-Sticky-Key": f"user {user}"}).json()["release_id"])

    release_ids = [release_of(user) for user in range(40)]
    assert [release_of(user) for user in range(40)] == release_ids
    assert 8 <= release_ids.count("second") <= 32
    assert champion(service) == "first"


def test_champion_is_recorded_in_a_json_file(service: Service) -> None:
    service.start()
    assert champion(service) == "first"
    recorded = json.loads((service.folder / "workspace" / "serving" / "last_served.json").read_text())
    assert recorded["champion"] == str(service.folder / "releases" / "first")
