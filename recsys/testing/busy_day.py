"""A service under queries while releases are swapped and items are taken down and put, all at once."""

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
from recsys.testing.service_process import Service, until

ITEMS = 2_000
RELEASES = 5
CALLERS = 4
WORKERS = 2


class Day(NamedTuple):
    """What a day was like."""

    answers: int
    failed: list[str]
    """What was wrong with answers."""
    swaps: int
    take_downs: int
    puts: int
    memory_bytes: tuple[int, int]
    """Of the workers together, early and at the end."""
    open_files: tuple[int, int]


def day(folder: Path, requests: int, swaps: int, items: int = ITEMS) -> Day:
    """Questions, swaps, take-downs and puts, all at once, against two workers."""
    service, item_ids = service_over(folder, items)
    service.let_in("day", "write")
    service.set(workers=WORKERS, keys="keys.txt", keep_seconds=0.2)
    service.start()
    try:
        return _Day(service, item_ids, requests, swaps).run()
    finally:
        service.close()


def service_over(folder: Path, items: int) -> tuple[Service, list[str]]:
    """A service, and the item ids of its releases. Each title tells of which release it is."""
    item_ids = [f"item {number:05}" for number in range(items)]
    write = release_writer(folder)
    for number in range(RELEASES):
        release_id = f"release-{number}"
        write(item_ids, release_id=release_id, title=pl.Series([f"{release_id} {item_id}" for item_id in item_ids]))
    service = Service(folder)
    service.want(folder / "releases" / "release-0")
    return service, item_ids


class _Day:
    def __init__(self, service: Service, item_ids: list[str], requests: int, swaps: int) -> None:
        self._service = service
        self._item_ids = item_ids
        self._requests = requests
        self._swaps = swaps
        self._down: list[str] = []
        """Acknowledged take-downs, in their order."""
        self._puts = 0
        self._failed: list[str] = []
        self._asked = itertools.count()
        self._answered = self._swapped = 0
        self._done = threading.Event()

    def run(self) -> Day:
        with self._client() as client:
            client.get("/readyz").raise_for_status()
        callers = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        others = [threading.Thread(target=self._swap), threading.Thread(target=self._change)]
        for thread in (*callers, *others):
            thread.start()
        while self._answered < self._requests // 5 and any(thread.is_alive() for thread in callers):
            time.sleep(0.1)
        early = usage(self._service)
        for thread in callers:
            thread.join()
        self._done.set()
        for thread in others:
            thread.join()
        late = usage(self._service)
        memory, files = zip(early, late, strict=True)
        return Day(self._answered, self._failed, self._swapped, len(self._down), self._puts, memory, files)

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._service.url, headers=self._service.secrets["day"], timeout=60)

    def _call(self) -> None:
        """Ask until all questions are asked and all swaps are done; a new connection now and then."""
        while not self._over():
            with self._client() as client:
                for _ in range(50):
                    self._ask(client, next(self._asked))

    def _over(self) -> bool:
        return self._answered >= self._requests and self._swapped >= self._swaps

    def _ask(self, client: httpx.Client, number: int) -> None:
        down = len(self._down)
        item_id = self._item_ids[-1 - number % (len(self._item_ids) // 4)]  # never taken down
        try:
            response = client.get(f"/v1/items/{quote(item_id)}/similar", params={"k": 20})
            wrong = self._wrong(response, set(self._down[:down]))
        except httpx.HTTPError as error:
            wrong = repr(error)
        if wrong:
            self._failed.append(wrong)
        self._answered += 1

    def _wrong(self, response: httpx.Response, down: set[str]) -> str | None:
        if response.status_code != httpx.codes.OK:
            return f"{response.status_code}: {response.text[:200]}"
        answer = response.json()
        release_id = answer["release_id"]
        titles = [answer["title"], *(neighbor["title"] for neighbor in answer["neighbors"])]
        if not all(title.startswith((release_id, "put")) for title in titles):
            return f"mixed: {release_id} with {titles}"
        shown = down & {neighbor["item_id"] for neighbor in answer["neighbors"]}
        if shown or len(answer["neighbors"]) != 20:
            return f"{len(answer['neighbors'])} neighbors, taken down: {shown}"
        return None

    def _swap(self) -> None:
        """One release after the other, each seen before the next."""
        for number in range(1, self._swaps + 1):
            release_id = f"release-{number % RELEASES}"
            self._service.want(self._service.folder / "releases" / release_id)
            until(lambda wanted=release_id: {self._champion() for _ in range(2 * WORKERS)} == {wanted})  # type: ignore[misc]
            self._swapped = number

    def _champion(self) -> str:
        return str(self._service.get("/readyz").json()["release_id"])

    def _change(self) -> None:
        """Take items of the first half down, one by one, and put others."""
        vectors = Release.load(self._service.folder / "releases" / "release-0").vectors
        client = self._client()
        for number in range(len(self._item_ids) // 2):
            if self._done.is_set():
                break
            item_id = self._item_ids[number]
            if client.delete(f"/v1/items/{quote(item_id)}").status_code == httpx.codes.NO_CONTENT:
                self._down.append(item_id)
            else:
                self._failed.append("a take-down was refused")
            change = {"vector": vectors[number].tolist(), "title": f"put {number}"}
            self._puts += client.put(f"/v1/items/new%20{number % 50}", json=change).is_success
            self._done.wait(0.02)
        client.close()


def usage(service: Service) -> tuple[int, int]:
    """Memory and open files of the workers together; pages of files that they map and share are left out."""
    workers = [psutil.Process(pid) for pid in service.workers()]
    memory = sum(worker.memory_full_info().uss for worker in workers)
    return memory, sum(worker.num_fds() for worker in workers)
