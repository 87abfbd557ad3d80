"""`recsys serve`: the service."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.commands.options import CONFIG_DEFAULT, ConfigFile, Overrides, ReleaseLocation, extras

if TYPE_CHECKING:
    from recsys.config.sections import Config
    from serving.live.live_release import Embed
    from serving.workers.champion_watcher import Source


def serve(
    release: ReleaseLocation = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; by default serve.host.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; by default serve.port.")
    ] = None,
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    *,
    with_tower: Annotated[
        bool,
        typer.Option(
            "--with-tower", help="Load the tower, to accept queries and item changes with the features of new items."
        ),
    ] = False,
) -> None:
    """Answer similarity queries over HTTP."""
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.config.sections import ServeConfig  # noqa: PLC0415

    with extras("the service", "serve"):
        from serving.workers.champion_watcher import source_from_location  # noqa: PLC0415
        from serving.workers.supervisor import run  # noqa: PLC0415
    changed = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    embed = _find_embedder() if with_tower else None
    if release is not None and not config.exists():
        run(source_from_location(release), ServeConfig().model_copy(update=changed), None, embed)
        return
    loaded_config = load_config(config, overrides or ())
    settings = loaded_config.serve.model_copy(update=changed)
    folder = Path(settings.folder) if settings.folder is not None else loaded_config.workspace / "serving"
    run(_champion_source(loaded_config) if release is None else source_from_location(release), settings, folder, embed)


def _champion_source(config: Config) -> Source:
    """Return a source of the champion of a model, and of its challenger if the service uses it."""
    from recsys.config.urls import Address  # noqa: PLC0415
    from recsys.errors import ReleaseError  # noqa: PLC0415
    from recsys.release import aliases  # noqa: PLC0415
    from recsys.release.versions import CHALLENGER, CHAMPION  # noqa: PLC0415
    from serving.workers.target import Target  # noqa: PLC0415

    def target() -> Target:
        champion = aliases.fetch(config, CHAMPION)
        if champion is None:
            raise ReleaseError(
                f"model {config.tracking.model} must have a champion. Received: none at "
                f"{Address(config.tracking_uri).shown}. Run: recsys nightly"
            )
        challenger = aliases.fetch(config, CHALLENGER) if config.serve.challenger != "none" else None
        return Target(
            champion=str(champion.resolve()), challenger=None if challenger is None else str(challenger.resolve())
        )

    return target


def _find_embedder() -> Embed:
    """Return the function that embeds new items. It imports TensorFlow when a worker loads a release.

    Raises:
        ConfigError: Keras or TensorFlow is not installed.
    """
    from recsys.release.new_item import embed  # noqa: PLC0415

    with extras("--with-tower", "train"):
        for module in ("keras", "tensorflow"):
            if find_spec(module) is None:
                raise ModuleNotFoundError(name=module)
    return embed
