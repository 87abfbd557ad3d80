"""Settings by name, such as `train.temperature`: apply them to a config, or format them as TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from recsys.config.loading import parse_config
from recsys.config.sections import Config


def with_settings(config: Config, settings: Mapping[str, Any], source: str = "config") -> Config:
    """Return a copy of the config with some settings replaced, validated like a config file.

    Args:
        config: the config, which is not modified.
        settings: values by name, `table.key`; may be empty.
        source: origin of the settings, for messages.

    Raises:
        ConfigError: a key is unknown, or a value is not valid.
    """
    tables = config.model_dump()
    for table, values in by_table(settings).items():
        tables.setdefault(table, {}).update(values)
    return parse_config(tables, source)


def by_table(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group settings by the tables of a config file."""
    tables: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        table, _, key = name.partition(".")
        tables.setdefault(table, {})[key] = value
    return tables


def as_toml(settings: Mapping[str, Any]) -> str:
    """Format settings as TOML, "" if there are none. The values must be strings, booleans or numbers."""
    tables = by_table(dict(sorted(settings.items())))
    # JSON and TOML have the same syntax for these values
    blocks = [
        "\n".join([f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())])
        for table, values in tables.items()
    ]
    return "\n\n".join(blocks) + "\n" if blocks else ""
