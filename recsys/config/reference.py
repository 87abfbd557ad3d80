"""The example config and the settings page of the documentation, generated from the models.

    python -m recsys.config.reference

writes `examples/nightly.toml` and `docs/reference/settings.md` below the current folder.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recsys.config.sections import Config, Span

EXAMPLE = Path("examples/nightly.toml")
PAGE = Path("docs/reference/settings.md")

INTRODUCTION = (
    "The config is one TOML file with these tables. Unknown keys are errors. Relative paths are relative to the file. "
    "`--set table.key=value` overrides a setting for one run."
)
WIDTH = 120
VALUES: dict[str, Any] = {
    "data.interactions": "interactions.parquet",
    "data.items": "items.parquet",
    "data.labeled_pairs": "labeled_pairs.csv",
    "data.alike": "item_groups.json",
    "data.feedback": "feedback/*.parquet",
    "data.warm_start": "workspace/releases/0123456789ab",
    "data.releases": "s3://bucket/releases",
    "items.title": "title",
    "items.available": "in_stock",
    "prepare.as_of": "2024-01-31",
    "prepare.session_gap_minutes": 30.0,
    "prepare.half_life_days": 90.0,
    "prepare.min_rating": 3.0,
    "export.min_similarity": 0.3,
    "promote.quality_floor": 0.05,
    "notify.webhook": "https://chat.example/hook",
    "tracking.uri": "https://mlflow.example",
    "serve.folder": "serving",
    "serve.keys": "keys.txt",
    "serve.rate": 100.0,
}
"""Examples of settings without a default."""
REQUIRED = "data.interactions"
"""The one setting that the example config sets."""


def tables() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the tables of the config in order, with their models."""
    for name, field in Config.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)  # noqa: S101 - the annotations of `Config` are classes
        yield name, model


def example_config() -> str:
    """Return the example config: every setting with its description, and its default commented out."""
    lines = [
        "# All settings with their defaults. Copy the ones to change.",
        "#",
        "# Relative paths are relative to this file. Override a setting for one run with --set:",
        "#     recsys nightly --config nightly.toml --set train.passes=5",
    ]
    for table, model in tables():
        lines += ["", f"[{table}]", *_comment(_one_line(model.__doc__))]
        for key, field in model.model_fields.items():
            lines += ["", *_comment(_one_line(field.description)), _assignment(table, key, field)]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Return the settings page of the documentation, in Markdown."""
    lines = [
        "# Settings",
        "",
        INTRODUCTION,
    ]
    for table, model in tables():
        lines += ["", f"## `[{table}]`", "", _one_line(model.__doc__), "", "| setting | default | description |"]
        lines += ["|---|---|---|"]
        for key, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            cell = "" if default is None else f"`{_toml(_plain(default))}`"
            lines.append(_row(f"`{key}`", cell, _one_line(field.description)))
        for nested in _nested(model):
            lines += ["", _one_line(nested.__doc__), "", "| rule | description |", "|---|---|"]
            lines += [_row(f"`{key}`", _one_line(field.description)) for key, field in nested.model_fields.items()]
    return "\n".join(lines) + "\n"


def _nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the model of the values of a table's dictionaries, once."""
    arguments = [argument for field in model.model_fields.values() for argument in get_args(field.annotation)]
    models = [each for each in arguments if isinstance(each, type) and issubclass(each, BaseModel) and each is not Span]
    yield from dict.fromkeys(models)


def _assignment(table: str, key: str, field: FieldInfo) -> str:
    name = f"{table}.{key}"
    default = field.get_default(call_default_factory=True)
    if name == REQUIRED:
        return f"{key} = {_toml(VALUES[name])}"
    if default is None:
        return f"# {key} has no default; for example: {_toml(VALUES[name])}"
    return f"#{key} = {_toml(_plain(default))}"


def _plain(value: Any) -> Any:
    """Return a default as TOML sees it."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _toml(value: Any) -> str:
    """Return a value as TOML: JSON but for dictionaries."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(each)}" for key, each in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").isalnum() else json.dumps(key)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False)]


def _row(*cells: str) -> str:
    return "".join(f"| {cell.replace('|', chr(92) + '|')} " for cell in cells) + "|"


def main() -> None:
    """Write both files."""
    EXAMPLE.write_text(example_config(), encoding="utf-8")
    PAGE.write_text(settings_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
