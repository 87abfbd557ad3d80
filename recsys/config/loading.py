"""How a config is read: one TOML file and `table.key=value` overrides, with an explanation of every mistake.

Relative paths in the file are relative to the file; those in an override to the current folder.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from recsys.config.column_rules import ColumnRules
from recsys.config.sections import Config, Span
from recsys.config.table import Table
from recsys.config.urls import Address
from recsys.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply `table.key=value` overrides, later ones last.

    Raises:
        ConfigError: no such file, no valid TOML, an unknown key, a value of the wrong type or range.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file must exist. Received: {path}. Start from examples/nightly.toml.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {path} must be valid TOML: {error}.") from None
    _anchor_paths(tables, path.parent.resolve())
    for override in overrides:
        _apply(tables, override)
    return parse_config(tables, source=str(path))


def parse_config(tables: dict[str, Any], source: str = "config") -> Config:
    """Check a nested dictionary of tables.

    Raises:
        ConfigError: naming each wrong key, the rule and what was received.
    """
    try:
        return Config.model_validate(tables)
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


PATHS = {
    "data": ("interactions", "items", "labeled_pairs", "alike", "feedback", "warm_start", "workspace", "releases"),
    "serve": ("folder", "keys"),
    "export": ("to",),
}
"""Table -> its keys that hold a path, or a URL."""
SECRET = {"export.to", "notify.webhook", "tracking.uri"}
"""Settings that may hold a password: no error shows them."""
SQLITE = "sqlite:///"


def _anchor_paths(tables: dict[str, Any], folder: Path) -> None:
    """Make the paths of a file relative to a folder, also those that are left out and have a default."""
    for table, keys in PATHS.items():
        given = tables.setdefault(table, {})
        if not isinstance(given, dict):
            continue  # the model reports it
        fields = cast("type[Table]", Config.model_fields[table].annotation).model_fields
        for key in keys:
            value = given.get(key, fields[key].default)
            if isinstance(value, str):
                given[key] = _anchored(table, value, folder)


def _anchored(table: str, name: str, folder: Path) -> str:
    """A path is relative to the folder, also that of an SQLite file to export to; a URL is not."""
    if table == "export" and name.startswith(SQLITE):
        return f"{SQLITE}{folder / name.removeprefix(SQLITE)}"
    return name if Address(name).scheme else str(folder / name)


def _apply(tables: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    table, dot, key = name.strip().partition(".")
    if not (equals and dot and table and key):
        raise ConfigError(
            f"--set must look like table.key=value. Received: {override!r}. For example: --set train.passes=5"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is text: --set items.title=name
    if isinstance(value, str) and key in PATHS.get(table, ()):
        value = _anchored(table, value, Path.cwd())
    target = tables.setdefault(table, {})
    if isinstance(target, dict):
        target[key] = value


def _explain(problem: dict[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location)
    value = problem.get("input")
    shown = repr(Address(value).shown if isinstance(value, str) else value)
    received = "not shown, since it may hold a password" if name in SECRET else shown
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name!r}.{_nearest(location)}"
    if problem["type"] == "missing":
        return f"{name} must be set."
    rule = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{name}: {rule}. Received: {received}."


NESTED: dict[str, type[Table]] = {"column_rules": ColumnRules, "tune": Span}
"""What lies in tables within these tables."""


def _nearest(location: list[str]) -> str:
    """The known key that looks most like the unknown one, by its own name: in its table, else in another."""
    tables = {name: cast("type[Table]", field.annotation) for name, field in Config.model_fields.items()}
    *owners, key = location
    if not owners:
        close = difflib.get_close_matches(key, tables, n=1)
        return f" Did you mean {close[0]!r}?" if close else f" Known tables: {', '.join(tables)}."
    table, owner = owners[0], ".".join(owners)
    own = (tables if owner == table else NESTED)[table].model_fields
    elsewhere = {other: name for name, model in tables.items() for other in model.model_fields}
    for known, names in ((own, dict.fromkeys(own, owner)), (elsewhere, elsewhere)):
        close = [key] if key in known else difflib.get_close_matches(key, known, n=1)
        if close:
            return f" Did you mean {names[close[0]] + '.' + close[0]!r}?"
    return f" Known keys of [{owner}]: {', '.join(own)}."
