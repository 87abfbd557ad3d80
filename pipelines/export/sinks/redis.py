"""Neighbors in Redis: one hash, a field an item, which is renamed when it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import polars as pl
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipelines.export.sinks.base import Export, by_item
from recsys.config.urls import Address
from recsys.errors import StageError

CURRENT, ABOUT, OLD = "recsys:neighbors", "recsys:neighbors:about", "recsys:neighbors:old"

CONNECT_S, ANSWER_S = 10, 60
FIELDS = 500
"""Items a command: Redis does nothing else meanwhile."""
UNFINISHED_S = 24 * 60 * 60
"""How long Redis keeps what a killed process wrote."""


class Redis:
    """Readers ask for one field of one hash, and so never for two exports."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._unseen: str | None = None

    def current(self) -> str | None:
        """From the hash that tells about the other one."""
        with self._told():
            known = self._client.hget(ABOUT, "export_id")
            return None if known is None else str(known)

    def write(self, export: Export, part: Path) -> None:
        """Fields of a hash of its own."""
        items = by_item(part).select("item_id", pl.struct("neighbors").struct.json_encode().alias("answer"))
        with self._told():
            if self._unseen is None:
                self._unseen = f"{CURRENT}:{export.export_id}"
                self._client.unlink(self._unseen)  # of a process that was killed
            pipeline = self._client.pipeline(transaction=False)
            for chunk in items.iter_slices(FIELDS):
                pipeline.hset(self._unseen, mapping=dict(chunk.iter_rows()))
            pipeline.expire(self._unseen, UNFINISHED_S)
            pipeline.execute()

    def switch(self, export: Export) -> None:
        """Rename the hash, and tell about it, in one transaction."""
        unseen = f"{CURRENT}:{export.export_id}"
        with self._told(), self._client.pipeline() as pipeline:
            pipeline.watch(CURRENT, unseen)  # type: ignore[no-untyped-call]
            there = pipeline.hlen(unseen)
            if there != export.items:
                raise StageError(
                    f"{self.address.shown} must be written by one process at a time. Received: {there} of "
                    f"{export.items} items were there after the last was written. Run it again."
                )
            replacing = pipeline.exists(CURRENT)
            pipeline.multi()
            if replacing:
                pipeline.rename(CURRENT, OLD)
            pipeline.rename(unseen, CURRENT)
            pipeline.persist(CURRENT)
            pipeline.hset(ABOUT, mapping={name: str(value) for name, value in export.about.items()})
            pipeline.execute()
            self._unseen = None

    def clean(self, export: Export) -> None:  # noqa: ARG002 - whatever it is, it was replaced
        """Let go of the hash before; Redis frees it beside its work."""
        with self._told():
            self._client.unlink(OLD)

    def close(self) -> None:
        """What a rename did not make visible goes now, or by itself where the server is away."""
        if self._unseen is not None:
            with suppress(redis.RedisError):
                self._client.unlink(self._unseen)
        if "_client" in self.__dict__:
            self._client.close()

    @cached_property
    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(
            self.address.url,
            decode_responses=True,
            socket_connect_timeout=CONNECT_S,
            socket_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 1),
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, ValueError) as error:  # ValueError: a URL that is none
            text = self.address.without_secret(str(error)).rstrip(".")
            raise StageError(
                f"Redis at {self.address.shown} must take the neighbors. Received: {text}. "
                "Check neighbors.to, or start the server."
            ) from None  # its own text may hold the password
