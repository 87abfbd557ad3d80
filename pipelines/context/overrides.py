"""Settings by name, `train.temperature`: applied to a config, and written as TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from recsys.config.loading import parse_config
from recsys.config.sections import Config


def with_settings(config: Config, settings: Mapping[str, Any], source: str = "config") -> Config:
    """The config with some settings replaced, checked as if the file had them.

    Args:
        config: stays as it is.
        settings: `table.key` -> value; may be empty.
        source: what errors call the place that the settings are from.

    Raises:
        ConfigError: an unknown key, or a value that the config does not take.
    """
    tables = config.model_dump()
    for table, values in by_table(settings).items():
        tables.setdefault(table, {}).update(values)
    return parse_config(tables, source)


def by_table(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings as the tables of a config file."""
    tables: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        table, _, key = name.partition(".")
        tables.setdefault(table, {})[key] = value
    return tables


def as_toml(settings: Mapping[str, Any]) -> str:
    """Text, booleans and numbers as TOML, a table after the other; empty without settings."""
    tables = by_table(dict(sorted(settings.items())))
    # JSON writes these values as TOML does
    blocks = [
        "\n".join([f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())])
        for table, values in tables.items()
    ]
    return "\n\n".join(blocks) + "\n" if blocks else ""
