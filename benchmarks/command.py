"""The command line that the benchmarks share: options, a folder to work in, errors, and where figures go."""

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
"""Options of a benchmark on a config, for `load`."""
CONFIG.add_argument("--config", type=Path, required=True, metavar="FILE", help="the TOML config")
CONFIG.add_argument(
    "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="override a setting; repeatable"
)

FIGURES = argparse.ArgumentParser(add_help=False)
"""Option of a benchmark that keeps its figures, for `write`."""
FIGURES.add_argument("--json", type=Path, metavar="OUT", help="where the figures go, beside the screen")


def parser(doc: str | None, *options: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """A parser of these options; the first line of a module's docstring says what it is for."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0], parents=options)


def load(asked: argparse.Namespace, workspace: Path, settings: list[str] | None = None) -> Config:
    """The config that was asked for, with a workspace of its own.

    Args:
        asked: parsed with `CONFIG`.
        workspace: folder of all that the stages write.
        settings: further `TABLE.KEY=VALUE`.

    Raises:
        ConfigError: the file or a setting is not as it must be.
    """
    return load_config(asked.config, [*asked.set, *(settings or []), f"data.workspace={workspace}"])


@contextmanager
def working() -> Iterator[Path]:
    """A folder to work in, which is removed; our errors end the program in one line, as they end `recsys`."""
    quiet_libraries()
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except RecsysError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def write(figures: dict[str, Any], path: Path | None) -> str:
    """Write the figures as JSON if there is a path, and return the text."""
    text = json.dumps(figures, indent=2)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
    return text
