"""`recsys serve`: the look-up service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Overrides, ReleasePlace
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from serving.state import Embed


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    release: ReleasePlace = None,
    host: Annotated[str | None, typer.Option("--host", help="Address; by default serve.host.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port; by default serve.port.")] = None,
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    *,
    with_tower: Annotated[
        bool, typer.Option("--with-tower", help="Load the tower, for questions about new items by their features.")
    ] = False,
) -> None:
    """Answer "more like this" over HTTP."""
    from recsys import config as configuration  # noqa: PLC0415
    from recsys.cli.similar import open_release  # noqa: PLC0415

    try:
        from serving.app import run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"the service needs {error.name}, which is not installed. Install recsys[serve].") from None
    if release is not None and not config.exists():
        settings = configuration.ServeConfig()
    else:
        settings = configuration.load(config, overrides or ()).serve
    embed = _embedder() if with_tower else None
    changed = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    run(open_release(release, config), settings.model_copy(update=changed), embed)


def _embedder() -> Embed:
    """What embeds new items; TensorFlow is imported here and nowhere else in the server.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from recsys.newcomer import embed  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"--with-tower needs {error.name}, which is not installed. Install recsys[train].") from None
    return embed
