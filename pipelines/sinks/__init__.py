"""Where neighbours go, by the setting `neighbours.to`. Libraries are imported for the sink that needs them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from pipelines.sinks.address import Address
from pipelines.sinks.jsonlines import JsonLines
from pipelines.sinks.parquet import ParquetFolder
from pipelines.sinks.sink import Sink
from recsys.errors import ConfigError

SERVERS = {
    "sqlite": ("pipelines.sinks.sqlite", "Sqlite"),
    "postgresql": ("pipelines.sinks.postgresql", "Postgresql"),
    "postgres": ("pipelines.sinks.postgresql", "Postgresql"),
    "redis": ("pipelines.sinks.redis", "Redis"),
    "rediss": ("pipelines.sinks.redis", "Redis"),
}
"""Module and class by the scheme of the URL."""


def at(to: str) -> Sink:
    """The sink of a path or a URL; nothing is written yet, and no server is asked.

    Raises:
        ConfigError: no sink is called so, or its library is not installed.
        InputError: a file or a folder that we may not write to, or that is somebody else's.
    """
    address = Address(to)
    if address.scheme is None:
        path = Path(to)
        kinds: dict[str, Callable[[Path], Sink]] = {".jsonl": JsonLines, ".parquet": ParquetFolder, "": ParquetFolder}
        if path.suffix in kinds:
            return kinds[path.suffix](path)
    elif address.scheme in SERVERS:
        module, name = SERVERS[address.scheme]
        try:
            sink: Callable[[Address], Sink] = getattr(import_module(module), name)
        except ImportError as error:
            raise ConfigError(
                f"neighbours.to with {address.scheme}:// needs a library that cannot be imported: {error}. "
                "Install recsys[export]."
            ) from None
        return sink(address)
    raise ConfigError(
        "neighbours.to must be a folder (its name without an ending, or .parquet), a file that ends in .jsonl, or a "
        f"URL that begins with {', '.join(f'{scheme}://' for scheme in SERVERS)}. Received: {address.shown}."
    )
