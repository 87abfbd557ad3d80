"""Files of item groups."""

from pathlib import Path

import pytest

from pipelines.context.input_files import InputFiles
from pipelines.context.item_groups import read_groups
from recsys.config.sections import DataConfig
from recsys.errors import InputError


def test_groups_are_lists_of_item_ids_by_name(tmp_path: Path) -> None:
    (tmp_path / "groups.json").write_text('{"one": ["a", "b"], "two": ["c", "d", "e"]}')
    assert read_groups(str(tmp_path / "groups.json")) == {"one": ["a", "b"], "two": ["c", "d", "e"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[["a", "b"]]', "Input should be an object"),
        ('{"one": "ab"}', "Input should be a valid array"),
        ('{"one": [1, 2]}', "Input should be a valid string"),
        ("{", "Invalid JSON"),
        (None, "no such file"),
    ],
)
def test_error_names_the_file_the_rule_and_the_reason(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "groups.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=rf"data\.alike must be a JSON file .* Received .*groups\.json: {reason}"):
        read_groups(str(path))


def test_invalid_groups_are_rejected_before_a_run_and_valid_ones_are_part_of_the_snapshot(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n")
    (tmp_path / "groups.json").write_text("[]")
    config = DataConfig(interactions=str(tmp_path / "log.csv"), alike=str(tmp_path / "groups.json"))
    with pytest.raises(InputError, match=r"data\.alike"):
        InputFiles.find(config)
    (tmp_path / "groups.json").write_text("{}")
    assert InputFiles.find(config).by_role()["alike"] == [str(tmp_path / "groups.json")]
