"""Shared by the command lines of the benchmarks: options, a temporary folder, errors, JSON output."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.context.libraries import quiet_libraries
from recsys.config.loading import load_config
from recsys.config.sections import Config
from recsys.errors import RecsysError

CONFIG = argparse.ArgumentParser(add_help=False)
"""Options of benchmarks that use a config; see `load`."""
CONFIG.add_argument("--config", type=Path, required=True, metavar="FILE", help="the TOML config")
CONFIG.add_argument(
    "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="override a setting; repeatable"
)

FIGURES = argparse.ArgumentParser(add_help=False)
"""Option of benchmarks that write their figures; see `write`."""
FIGURES.add_argument("--json", type=Path, metavar="OUT", help="also write the figures to this file")


def parser(doc: str | None, *options: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return a parser with these options, described by the first line of a docstring."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0], parents=options)


def load(arguments: argparse.Namespace, workspace: Path, settings: list[str] | None = None) -> Config:
    """Load the config of the command line with a different workspace.

    Args:
        arguments: parsed by a parser with the options `CONFIG`.
        workspace: folder for the files of the stages.
        settings: further overrides, `TABLE.KEY=VALUE`.

    Raises:
        ConfigError: the file or a setting is invalid.
    """
    return load_config(arguments.config, [*arguments.set, *(settings or []), f"data.workspace={workspace}"])


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Provide a temporary folder. On an error of this library, print one line and exit, as `recsys` does."""
    quiet_libraries()
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except RecsysError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def write(figures: dict[str, Any], path: Path | None) -> str:
    """Return the figures as JSON, and write them to `path` unless it is None."""
    text = json.dumps(figures, indent=2)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
    return text
