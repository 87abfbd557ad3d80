"""Commands, options, settings, modules and files that the documentation names exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from recsys.command_line import app
from recsys.config.sections import Config
from tests import ROOT

FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
FILES = {"ann", "csv", "html", "json", "jsonl", "keras", "npy", "parquet", "toml"}
"""Suffixes of files whose name begins like a setting, such as `index.ann`."""
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def code_spans(page: Path) -> list[str]:
    """Return the code of a page: lines of code blocks, and inline code."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*(line for block in blocks for line in block.splitlines()), *re.findall(r"`([^`\n]+)`", rest)]


def matches(page: Path, pattern: str) -> Iterator[Any]:
    """Yield the matches of a pattern in the code of a page."""
    for code in code_spans(page):
        yield from re.findall(pattern, code)


def possible_commands(words: list[str]) -> set[tuple[str, ...]]:
    """Return the commands that a line may name. `recsys releases list|show` names several."""
    return {(words[0],)} | {(words[0], name) for word in words[1:2] for name in word.split("|")}


def commands(group: Any, *before: str) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Yield each command with its options."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from commands(command, *before, name)
        else:
            yield (*before, name), {option for parameter in command.params for option in parameter.opts}


COMMANDS = dict(commands(typer.main.get_command(app)))
COMMAND_LINE = r"^(?:\$ )?(?:\.venv/bin/)?recsys ([a-z][^#]*)"


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for line in matches(page, COMMAND_LINE):
        words = re.sub(r"'.*?'|\".*?\"", "TEXT", line).split()
        options = [COMMANDS[command] for command in possible_commands(words) if command in COMMANDS]
        assert options, line
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= set[str]().union(*options), line


def test_every_command_is_documented() -> None:
    documented = {
        command for page in PAGES for line in matches(page, COMMAND_LINE) for command in possible_commands(line.split())
    }
    documented |= {(code,) for page in PAGES for code in code_spans(page)}  # `recsys prepare`, `train`
    assert COMMANDS.keys() <= documented


def test_reference_of_the_command_line_lists_every_option() -> None:
    page = (ROOT / "docs/reference/command-line.md").read_text()
    rows = re.findall(r"^\| `recsys ([^`]+)` \| .* \| (.*) \|$", page, re.MULTILINE)
    listed = {tuple(command.split()): set(re.findall(r"--[a-z-]+", options)) for command, options in rows}
    assert listed == {
        command: {option for option in options if option.startswith("--")} for command, options in COMMANDS.items()
    }


@each_page
def test_options_without_a_command_exist(page: Path) -> None:
    options = set[str]().union(*COMMANDS.values())
    for program in (*ROOT.glob("benchmarks/*.py"), *ROOT.glob("pipelines/commands/*.py")):
        options |= set(re.findall(r'"(--[a-z-]+)"', program.read_text()))
    assert set(matches(page, r"^(--[a-z-]+)(?!\w)")) <= options


@each_page
def test_settings_exist(page: Path) -> None:
    tables: dict[str, Any] = {name: field.annotation for name, field in Config.model_fields.items()}
    settings = [*matches(page, r"^([a-z]+)\.([a-z_]+)(?: = .*)?$"), *matches(page, r"--set '?([a-z]+)\.([a-z_]+)=")]
    assert [
        f"{table}.{key}"
        for table, key in settings
        if table in tables and key not in FILES and key not in tables[table].model_fields
    ] == []


@each_page
def test_modules_files_links_and_make_targets_exist(page: Path) -> None:
    modules = [name.replace(".", "/") for name in matches(page, r"python -m ([\w.]+)")]
    own_modules = [name for name in modules if name.partition("/")[0] in FOLDERS]
    assert [n for n in own_modules if not ((ROOT / f"{n}.py").exists() or (ROOT / n / "__main__.py").exists())] == []
    files = [name for name in matches(page, r"^([a-z]+/[\w./-]+)$") if name.partition("/")[0] in FOLDERS]
    assert [name for name in files if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\(([^)#\s:]+)[)#]", page.read_text())
    assert [name for name in links if not (page.parent / name).exists()] == []
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(matches(page, r"^(?:\$ )?make ([a-z]+)")) <= targets
