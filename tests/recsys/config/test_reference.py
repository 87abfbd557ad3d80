"""The example config and the settings page are those of the models."""

import re
import tomllib

import pytest

from recsys.config import reference
from recsys.config.loading import parse_config
from tests import ROOT


@pytest.mark.parametrize(
    ("path", "generate"),
    [(reference.EXAMPLE, reference.example_config), (reference.PAGE, reference.settings_page)],
    ids=["example", "page"],
)
def test_generated_files_are_current(path, generate):
    """Otherwise run: make settings."""
    assert (ROOT / path).read_text(encoding="utf-8") == generate()


def test_example_with_defaults_uncommented_is_the_default_config():
    text = (ROOT / reference.EXAMPLE).read_text(encoding="utf-8")
    tables = tomllib.loads(re.sub(r'(?m)^#(?=[\w."]+ = )', "", text))
    assert tables == parse_config({"data": tables["data"]}).model_dump(mode="json", exclude_none=True)


def test_example_values_of_settings_without_a_default_are_valid():
    tables: dict = {}
    for name, value in reference.VALUES.items():
        table, key = name.split(".")
        tables.setdefault(table, {})[key] = value
    parse_config(tables)


def test_page_has_a_row_for_every_setting():
    page = (ROOT / reference.PAGE).read_text(encoding="utf-8")
    for table, model in reference.tables():
        section = page.partition(f"## `[{table}]`")[2].partition("\n## ")[0]
        assert re.findall(r"(?m)^\| `(\w+)` \|", section)[: len(model.model_fields)] == list(model.model_fields)
