"""Sink for a Redis hash with one field per item."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import polars as pl
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipelines.export.answers import Answer
from pipelines.export.sinks.base import Export, group_by_item
from recsys.config.urls import Address
from recsys.errors import StageError

CONNECT_S, RESPONSE_S = 10, 60
FIELDS = 500
"""Number of items per command. Redis executes one command at a time, so a large one would block readers."""
UNFINISHED_S = 24 * 60 * 60
"""Seconds until the rows of a killed process expire."""


class RedisSink:
    """Writes a new hash and renames it when it is complete, so no command of a reader mixes two exports."""

    def __init__(self, address: Address, answer: Answer) -> None:
        self.current = f"recsys:{answer.name}"
        self.metadata, self.previous = f"{self.current}:about", f"{self.current}:old"
        self.address = address
        self._unpublished: str | None = None

    def current_export_id(self) -> str | None:
        """Return the export id in the metadata."""
        with self._translated_errors():
            export_id = self._client.hget(self.metadata, "export_id")
            return None if export_id is None else str(export_id)

    def write(self, export: Export, part: Path) -> None:
        """Write the fields of an unpublished hash."""
        items = group_by_item(part).select("item_id", pl.struct("neighbors").struct.json_encode().alias("value"))
        with self._translated_errors():
            if self._unpublished is None:
                self._unpublished = f"{self.current}:{export.export_id}"
                self._client.unlink(self._unpublished)  # left by a killed process
            pipeline = self._client.pipeline(transaction=False)
            for chunk in items.iter_slices(FIELDS):
                pipeline.hset(self._unpublished, mapping=dict(chunk.iter_rows()))
            pipeline.expire(self._unpublished, UNFINISHED_S)
            pipeline.execute()

    def publish(self, export: Export) -> None:
        """Rename the hash and write the metadata in one transaction."""
        unpublished = f"{self.current}:{export.export_id}"
        with self._translated_errors(), self._client.pipeline() as pipeline:
            pipeline.watch(self.current, unpublished)  # type: ignore[no-untyped-call]
            num_items = pipeline.hlen(unpublished)
            if num_items != export.items:
                raise StageError(
                    f"{self.address.shown} must be written by one process at a time. Received: {num_items} of "
                    f"{export.items} items after writing all parts. Retry when the other process has finished."
                )
            has_previous = pipeline.exists(self.current)
            pipeline.multi()
            if has_previous:
                pipeline.rename(self.current, self.previous)
            pipeline.rename(unpublished, self.current)
            pipeline.persist(self.current)
            pipeline.hset(self.metadata, mapping={name: str(value) for name, value in export.metadata.items()})
            pipeline.execute()
            self._unpublished = None

    def remove_previous(self, export: Export) -> None:  # noqa: ARG002 - there is one previous hash
        """Unlink the previous hash; Redis frees its memory in the background."""
        with self._translated_errors():
            self._client.unlink(self.previous)

    def close(self) -> None:
        """Unlink an unpublished hash. If the server is not reachable, the hash expires."""
        if self._unpublished is not None:
            with suppress(redis.RedisError):
                self._client.unlink(self._unpublished)
        if "_client" in self.__dict__:
            self._client.close()

    @cached_property
    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(
            self.address.url,
            decode_responses=True,
            socket_connect_timeout=CONNECT_S,
            socket_timeout=RESPONSE_S,
            retry=Retry(NoBackoff(), 1),
        )

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, ValueError) as error:  # ValueError: an invalid URL
            text = self.address.without_secret(str(error)).rstrip(".")
            raise StageError(
                f"neighbors cannot be written to Redis at {self.address.shown}. Received: {text}. "
                "Check export.to, or start the server."
            ) from None  # the original message can contain the password
