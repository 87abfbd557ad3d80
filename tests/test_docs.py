"""The docs name what there is: commands, their options, settings, programs and files."""

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
"""Endings of files that have the name of a table, as `index.ann`."""
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def codes(page: Path) -> list[str]:
    """What a page shows as code: lines of its blocks, and what stands between backticks."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*(line for block in blocks for line in block.splitlines()), *re.findall(r"`([^`\n]+)`", rest)]


def found(page: Path, pattern: str) -> Iterator[Any]:
    for code in codes(page):
        yield from re.findall(pattern, code)


def named(words: list[str]) -> set[tuple[str, ...]]:
    """What may be commands at the beginning of a line; several at once, as in `recsys releases list|show`."""
    return {(words[0],)} | {(words[0], each) for word in words[1:2] for each in word.split("|")}


def commands(group: Any, *before: str) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Every command with its options."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from commands(command, *before, name)
        else:
            yield (*before, name), {option for parameter in command.params for option in parameter.opts}


COMMANDS = dict(commands(typer.main.get_command(app)))
LINE = r"^(?:\$ )?(?:\.venv/bin/)?recsys ([a-z][^#]*)"


@every_page
def test_commands_and_their_options_are_those_of_the_program(page: Path) -> None:
    for line in found(page, LINE):
        words = re.sub(r"'.*?'|\".*?\"", "TEXT", line).split()
        options = [COMMANDS[command] for command in named(words) if command in COMMANDS]
        assert options, line
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= set[str]().union(*options), line


def test_every_command_is_told_of() -> None:
    told = {command for page in PAGES for line in found(page, LINE) for command in named(line.split())}
    told |= {(code,) for page in PAGES for code in codes(page)}  # `recsys prepare`, `train`
    assert COMMANDS.keys() <= told


@every_page
def test_options_by_themselves_are_those_of_a_program(page: Path) -> None:
    known = set[str]().union(*COMMANDS.values())
    for program in (*ROOT.glob("benchmarks/*.py"), *ROOT.glob("pipelines/commands/*.py")):
        known |= set(re.findall(r'"(--[a-z-]+)"', program.read_text()))
    assert set(found(page, r"^(--[a-z-]+)(?!\w)")) <= known


@every_page
def test_settings_are_those_of_the_config(page: Path) -> None:
    tables: dict[str, Any] = {name: field.annotation for name, field in Config.model_fields.items()}
    named = [*found(page, r"^([a-z]+)\.([a-z_]+)(?: = .*)?$"), *found(page, r"--set '?([a-z]+)\.([a-z_]+)=")]
    assert [
        f"{table}.{key}"
        for table, key in named
        if table in tables and key not in FILES and key not in tables[table].model_fields
    ] == []


@every_page
def test_programs_and_files_are_there(page: Path) -> None:
    modules = [name.replace(".", "/") for name in found(page, r"python -m ([\w.]+)")]
    ours = [name for name in modules if name.partition("/")[0] in FOLDERS]
    assert [n for n in ours if not ((ROOT / f"{n}.py").exists() or (ROOT / n / "__main__.py").exists())] == []
    files = [name for name in found(page, r"^([a-z]+/[\w./-]+)$") if name.partition("/")[0] in FOLDERS]
    assert [name for name in files if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\(([^)#\s:]+)[)#]", page.read_text())
    assert [name for name in links if not (page.parent / name).exists()] == []
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(found(page, r"^(?:\$ )?make ([a-z]+)")) <= targets
