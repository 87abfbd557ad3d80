"""Where neighbors go, by the setting `neighbors.to`. Libraries are imported for the sink that needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path, PurePosixPath

from pipelines.export.sinks.base import Sink, require_writable
from pipelines.export.sinks.jsonlines import JsonLines
from pipelines.export.sinks.parquet import ParquetFolder
from recsys.config.urls import Address
from recsys.data import storage
from recsys.data.storage import LocalLocation, Location
from recsys.errors import ConfigError

SERVERS = {
    "sqlite": ("pipelines.export.sinks.sqlite", "Sqlite"),
    "postgresql": ("pipelines.export.sinks.postgresql", "Postgresql"),
    "postgres": ("pipelines.export.sinks.postgresql", "Postgresql"),
    "redis": ("pipelines.export.sinks.redis", "Redis"),
    "rediss": ("pipelines.export.sinks.redis", "Redis"),
}
"""Module and class by the scheme of the URL."""


def at(to: str) -> Sink:
    """The sink of a path or a URL; nothing is written yet, and no database is asked.

    Raises:
        ConfigError: no sink is called so, or its library is not installed.
        InputError: a file or a folder that we may not write to, or that is somebody else's; a store that refuses.
    """
    address = Address(to)
    if address.scheme is None or address.scheme in storage.EXTRAS:
        kinds: dict[str, Callable[[Location], Sink]] = {
            ".jsonl": JsonLines,
            ".parquet": ParquetFolder,
            "": ParquetFolder,
        }
        suffix = PurePosixPath(to).suffix
        if suffix in kinds:
            location = storage.locate(to)
            if isinstance(location, LocalLocation):
                require_writable(Path(to).parent if suffix == ".jsonl" else Path(to), to)
            return kinds[suffix](location)
    elif address.scheme in SERVERS:
        module, name = SERVERS[address.scheme]
        try:
            sink: Callable[[Address], Sink] = getattr(import_module(module), name)
        except ImportError as error:
            raise ConfigError(
                f"neighbors.to with {address.scheme}:// needs a library that cannot be imported: {error}. "
                "Install recsys[export]."
            ) from None
        return sink(address)
    raise ConfigError(
        "neighbors.to must be a folder (its name without an ending, or .parquet) or a file that ends in .jsonl, both "
        f"also in a store ({_schemes(storage.EXTRAS)}), or a server ({_schemes(SERVERS)}). Received: {address.shown}."
    )


def _schemes(names: Iterable[str]) -> str:
    return ", ".join(f"{name}://" for name in names)
