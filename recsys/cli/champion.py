"""`recsys rollback` and what `recsys promote RELEASE` does: a person changes the champion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Json, show

if TYPE_CHECKING:
    from recsys.release.history import Action, Event
    from recsys.release.mlflow_registry import Tracker, Version

Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, for the history.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rollback")(rollback)


def rollback(
    to: Annotated[
        str | None, typer.Option("--to", metavar="RELEASE", help="A release id; without it, the one before.")
    ] = None,
    *,
    why: Why = "",
    config: ConfigFile = CONFIG_DEFAULT,
    as_json: Json = False,
) -> None:
    """Put an earlier release back into service.

    It is fetched if it is not here, and has to load and answer in another process first. One that was never in
    service must have passed the gate. The one that leaves stays registered; repeating its night does not put it back.
    """
    from recsys.errors import ReleaseError  # noqa: PLC0415

    def target(tracker: Tracker) -> Version:
        if to is not None:
            return known(tracker, to)
        previous = tracker.previous()
        if previous is None:
            raise ReleaseError(
                f"model {tracker.model} must have had another champion to go back to. Received: none. "
                "Name a release with --to; `recsys releases list` has them."
            )
        return previous

    _tell(_change("rollback", target, config, why, forced=to is None), as_json)


def promote(release: str, config: Path, *, why: str, forced: bool, as_json: bool) -> None:
    """Put a registered release into service; one that the gate did not let through only by force."""
    _tell(_change("promote", lambda tracker: known(tracker, release), config, why, forced=forced), as_json)


def known(tracker: Tracker, release_id: str) -> Version:
    """The version of a release.

    Raises:
        ReleaseError: it has none.
    """
    from recsys.errors import ReleaseError  # noqa: PLC0415

    version = tracker.version_of(release_id)
    if version is None:
        raise ReleaseError(
            f"release must be a version of model {tracker.model}. Received: {release_id}, which is none at "
            f"{tracker.shown_uri}. `recsys releases list` has those that are."
        )
    return version


def _change(action: Action, target: Any, config: Path, why: str, *, forced: bool) -> Event:
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.errors import RefusedError, ReleaseError  # noqa: PLC0415
    from recsys.release import promotion  # noqa: PLC0415
    from recsys.release.bundle import Release  # noqa: PLC0415
    from recsys.release.mlflow_registry import VERDICT_TAG, Tracker  # noqa: PLC0415

    checked = load_config(config)
    tracker = Tracker(checked)
    with promotion.locked(checked.workspace):
        champion, version = tracker.champion(), target(tracker)
        if version == champion:
            raise ReleaseError(f"release {version.release_id} must not be in service already. Received: it is.")
        verdict = json.loads(tracker.version_tags(version).get(VERDICT_TAG, "{}"))
        if action == "rollback":
            forced = forced or version.release_id in {event.after for event in promotion.events(tracker)}
        if not (forced or verdict.get("passed")):
            failed = [check["name"] for check in verdict.get("checks", []) if check["verdict"] == "failed"]
            raise RefusedError(
                f"release {version.release_id} must have passed the gate. Received: "
                f"{'failed ' + ', '.join(failed) if failed else 'it was not asked'}. "
                f"`recsys promote {version.release_id} --force --why …` puts it into service all the same."
            )
        promotion.require_answers(Release.load(tracker.fetch(version, checked.workspace / "releases")))
        return promotion.move(
            tracker, version, champion, action=action, why=why or "by hand", checks=verdict.get("checks", [])
        )


def _tell(event: Event, as_json: bool) -> None:
    overruled = f", though it failed {', '.join(event.failed)}" if event.failed else ""
    text = f"Release {event.after} is in service, in place of {event.before or 'nobody'}{overruled}."
    show(event.as_data(), as_json, lambda: typer.echo(text))
