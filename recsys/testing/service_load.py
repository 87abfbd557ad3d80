"""Concurrent queries, promotions and item changes on a running service."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx
import polars as pl
import psutil

from recsys import Release
from recsys.testing.releases import release_writer
from recsys.testing.service_process import Service, wait_until

ITEMS = 2_000
RELEASES = 5
CLIENTS = 4
WORKERS = 2


class LoadReport(NamedTuple):
    """Counts and errors of a run under load."""

    answers: int
    failures: list[str]
    """Errors of responses."""
    swaps: int
    deletions: int
    puts: int
    memory_bytes: tuple[int, int]
    """Of all workers, after a fifth of the requests and at the end."""
    open_files: tuple[int, int]


def run_load(folder: Path, requests: int, swaps: int, items: int = ITEMS) -> LoadReport:
    """Send queries to a service with two workers, while releases are swapped and items are deleted and added."""
    service, item_ids = create_service(folder, items)
    service.add_key("load", "write")
    service.configure(workers=WORKERS, keys="keys.txt", keep_seconds=0.2)
    service.start()
    try:
        return _Load(service, item_ids, requests, swaps).run()
    finally:
        service.close()


def create_service(folder: Path, items: int, releases: int = RELEASES) -> tuple[Service, list[str]]:
    """Return a service and the item ids of its releases. Each title contains the release id."""
    item_ids = [f"item {number:05}" for number in range(items)]
    write = release_writer(folder)
    for number in range(releases):
        release_id = f"release-{number}"
        write(item_ids, release_id=release_id, title=pl.Series([f"{release_id} {item_id}" for item_id in item_ids]))
    service = Service(folder)
    service.set_releases(folder / "releases" / "release-0")
    return service, item_ids


class _Load:
    def __init__(self, service: Service, item_ids: list[str], requests: int, swaps: int) -> None:
        self._service = service
        self._item_ids = item_ids
        self._requests = requests
        self._swaps = swaps
        self._deleted: list[str] = []
        """Items whose deletion was acknowledged, in order."""
        self._puts = 0
        self._failures: list[str] = []
        self._request_numbers = itertools.count()
        self._num_responses = self._num_swaps = 0
        self._done = threading.Event()

    def run(self) -> LoadReport:
        with self._client() as client:
            client.get("/readyz").raise_for_status()
        clients = [threading.Thread(target=self._call) for _ in range(CLIENTS)]
        background = [threading.Thread(target=self._swap), threading.Thread(target=self._change)]
        for thread in (*clients, *background):
            thread.start()
        while self._num_responses < self._requests // 5 and any(thread.is_alive() for thread in clients):
            time.sleep(0.1)
        usage_early = usage(self._service)
        for thread in clients:
            thread.join()
        self._done.set()
        for thread in background:
            thread.join()
        usage_late = usage(self._service)
        memory, files = zip(usage_early, usage_late, strict=True)
        return LoadReport(
            self._num_responses, self._failures, self._num_swaps, len(self._deleted), self._puts, memory, files
        )

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._service.url, headers=self._service.secrets["load"], timeout=60)

    def _call(self) -> None:
        """Send queries until all queries and swaps are done, with a new connection every 50 queries."""
        while not self._is_finished():
            with self._client() as client:
                for _ in range(50):
                    self._query(client, next(self._request_numbers))

    def _is_finished(self) -> bool:
        return self._num_responses >= self._requests and self._num_swaps >= self._swaps

    def _query(self, client: httpx.Client, number: int) -> None:
        num_deleted = len(self._deleted)
        item_id = self._item_ids[-1 - number % (len(self._item_ids) // 4)]  # never deleted
        try:
            response = client.get(f"/v1/items/{quote(item_id)}/similar", params={"k": 20})
            failure = self._failure(response, set(self._deleted[:num_deleted]))
        except httpx.HTTPError as error:
            failure = repr(error)
        if failure:
            self._failures.append(failure)
        self._num_responses += 1

    def _failure(self, response: httpx.Response, deleted: set[str]) -> str | None:
        """Return what is wrong with a response, or None."""
        if response.status_code != httpx.codes.OK:
            return f"{response.status_code}: {response.text[:200]}"
        answer = response.json()
        release_id = answer["release_id"]
        titles = [answer["title"], *(neighbor["title"] for neighbor in answer["neighbors"])]
        if not all(title.startswith((release_id, "added")) for title in titles):
            return f"mixed releases: {release_id} with {titles}"
        returned = deleted & {neighbor["item_id"] for neighbor in answer["neighbors"]}
        if returned or len(answer["neighbors"]) != 20:
            return f"{len(answer['neighbors'])} neighbors, deleted: {returned}"
        return None

    def _swap(self) -> None:
        """Swap the releases in turn, each after all workers have loaded the previous one."""
        for number in range(1, self._swaps + 1):
            release_id = f"release-{number % RELEASES}"
            self._service.set_releases(self._service.folder / "releases" / release_id)
            wait_until(lambda expected=release_id: {self._champion() for _ in range(2 * WORKERS)} == {expected})  # type: ignore[misc]
            self._num_swaps = number

    def _champion(self) -> str:
        return str(self._service.get("/readyz").json()["release_id"])

    def _change(self) -> None:
        """Delete items of the first half one by one, and add other items."""
        vectors = Release.load(self._service.folder / "releases" / "release-0").space("next").vectors
        client = self._client()
        for number in range(len(self._item_ids) // 2):
            if self._done.is_set():
                break
            item_id = self._item_ids[number]
            if client.delete(f"/v1/items/{quote(item_id)}").status_code == httpx.codes.NO_CONTENT:
                self._deleted.append(item_id)
            else:
                self._failures.append("a deletion was rejected")
            change = {"vector": vectors[number].tolist(), "title": f"added {number}"}
            self._puts += client.put(f"/v1/items/new%20{number % 50}", json=change).is_success
            self._done.wait(0.02)
        client.close()


def usage(service: Service) -> tuple[int, int]:
    """Return memory and open files of all workers, without the pages of files that they share."""
    workers = [psutil.Process(pid) for pid in service.workers()]
    memory = sum(worker.memory_full_info().uss for worker in workers)
    return memory, sum(worker.num_fds() for worker in workers)
