"""The command line `recsys`. Commands import what they need when they run, so that `--help` is quick.

Exit 0 done, 1 the work failed or was refused, 2 the input or the command is wrong.
"""

from __future__ import annotations

import sys

import typer

from recsys.cli import champion, data, doctor, keys, neighbors, releases, serve, similar, stages, tune, verify
from recsys.errors import RecsysError

app = typer.Typer(
    name="recsys",
    help="More like this: train a siamese tower every night, answer look-ups all day.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(data.app, name="data")
app.add_typer(releases.app, name="releases")
app.add_typer(keys.app, name="keys")
for command in (stages, champion, tune, similar, verify, neighbors, serve, doctor):
    command.register(app)


def main() -> None:
    """Run a command; errors that we know are one message, not a traceback."""
    try:
        app()
    except RecsysError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a file that went away: the machine's word is the message
        print(f"error: {error}", file=sys.stderr)
        sys.exit(RecsysError.exit_code)
