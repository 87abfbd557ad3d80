"""Sinks by path or URL. To add a sink, implement `pipelines.export.sinks.base.Sink` and register it here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path, PurePosixPath

from pipelines.export.answers import ANSWERS, Answer
from pipelines.export.sinks.base import Sink, require_writable
from pipelines.export.sinks.jsonlines import JsonLinesSink
from pipelines.export.sinks.parquet import ParquetSink
from recsys.config.urls import Address
from recsys.data import storage
from recsys.data.storage import LocalLocation, Location
from recsys.errors import ConfigError

SERVERS = {
    "sqlite": ("pipelines.export.sinks.sqlite", "SqliteSink"),
    "postgresql": ("pipelines.export.sinks.postgresql", "PostgresqlSink"),
    "postgres": ("pipelines.export.sinks.postgresql", "PostgresqlSink"),
    "redis": ("pipelines.export.sinks.redis", "RedisSink"),
    "rediss": ("pipelines.export.sinks.redis", "RedisSink"),
}
"""Module and class by URL scheme. Modules are imported on first use, because their libraries are optional."""


def open_sink(to: str, answer: Answer = ANSWERS["similar"]) -> Sink:
    """Return the sink of an answer for a path or URL; does not write or connect to a database.

    Raises:
        ConfigError: there is no sink for this path or URL, or its library is not installed.
        InputError: a file or folder cannot be written or has other content, or an object store is not reachable.
    """
    address = Address(to)
    if address.scheme is None or address.scheme in storage.EXTRAS:
        sink_of_suffix: dict[str, Callable[[Location], Sink]] = {
            ".jsonl": JsonLinesSink,
            ".parquet": ParquetSink,
            "": ParquetSink,
        }
        suffix = PurePosixPath(to).suffix
        if suffix in sink_of_suffix:
            location = storage.locate(to)
            if isinstance(location, LocalLocation):
                require_writable(Path(to).parent if suffix == ".jsonl" else Path(to), to)
            return sink_of_suffix[suffix](location)
    elif address.scheme in SERVERS:
        module, name = SERVERS[address.scheme]
        try:
            sink: Callable[[Address, Answer], Sink] = getattr(import_module(module), name)
        except ImportError as error:
            raise ConfigError(
                f"export.to with {address.scheme}:// needs a library that cannot be imported: {error}. "
                "Install recsys[export]."
            ) from None
        return sink(address, answer)
    raise ConfigError(
        "export.to must be a folder (without a file extension, or .parquet) or a .jsonl file, both "
        f"also in an object store ({_schemes(storage.EXTRAS)}), or a database ({_schemes(SERVERS)}). "
        f"Received: {address.shown}."
    )


def _schemes(names: Iterable[str]) -> str:
    return ", ".join(f"{name}://" for name in names)
