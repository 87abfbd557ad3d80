"""`recsys serve`: the look-up service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Overrides, ReleasePlace
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.config.sections import Config
    from serving.live.live_release import Embed
    from serving.workers.champion_watcher import Source


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
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.config.sections import ServeConfig  # noqa: PLC0415

    try:
        from serving.workers.champion_watcher import of_place  # noqa: PLC0415
        from serving.workers.supervisor import run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"the service needs {error.name}, which is not installed. Install recsys[serve].") from None
    changed = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    embed = _embedder() if with_tower else None
    if release is not None and not config.exists():
        run(of_place(release), ServeConfig().model_copy(update=changed), None, embed)
        return
    checked = load_config(config, overrides or ())
    settings = checked.serve.model_copy(update=changed)
    folder = Path(settings.folder) if settings.folder is not None else checked.workspace / "serving"
    run(_champion(checked) if release is None else of_place(release), settings, folder, embed)


def _champion(config: Config) -> Source:
    """The champion of a config's model, and its challenger where the service has a use for one."""
    from recsys.errors import ReleaseError  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415
    from serving.workers.target import Wanted  # noqa: PLC0415

    releases = config.workspace / "releases"

    def told() -> Wanted:
        tracker = Tracker(config)
        champion = tracker.champion()
        if champion is None:
            raise ReleaseError(
                f"model {config.tracking.model} must have a champion. Received: none at {tracker.shown_uri}. "
                "Run: recsys nightly"
            )
        challenger = tracker.challenger() if config.serve.challenger != "none" else None
        return Wanted(
            champion=str(tracker.fetch(champion, releases).resolve()),
            challenger=None if challenger is None else str(tracker.fetch(challenger, releases).resolve()),
        )

    return told


def _embedder() -> Embed:
    """What embeds new items; TensorFlow is imported here and nowhere else in the server.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from recsys.release.new_item import embed  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"--with-tower needs {error.name}, which is not installed. Install recsys[train].") from None
    return embed
