"""`recsys rollback`, and what `recsys promote RELEASE` does: a user changes the champion."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.commands.options import CONFIG_DEFAULT, ConfigFile, Json, Reason, print_result

if TYPE_CHECKING:
    from recsys.release.history import Action, Event
    from recsys.release.mlflow_registry import Tracker
    from recsys.release.versions import Version


def rollback(
    to: Annotated[
        str | None, typer.Option("--to", metavar="RELEASE", help="A release id; by default the previous champion.")
    ] = None,
    *,
    reason: Reason = "",
    config: ConfigFile = CONFIG_DEFAULT,
    as_json: Json = False,
) -> None:
    """Make an earlier release the champion again.

    The release is fetched if it is not in the workspace, and must load and answer queries in another process. A
    release that was never the champion must have passed the gate. The current champion stays registered; repeating
    its run does not promote it again.
    """
    from recsys.errors import ReleaseError  # noqa: PLC0415

    def target(tracker: Tracker) -> Version:
        if to is not None:
            return registered_version(tracker, to)
        previous = tracker.previous()
        if previous is None:
            raise ReleaseError(
                f"model {tracker.model} must have a previous champion. Received: none. "
                "Name a release with --to; `recsys releases list` shows them."
            )
        return previous

    _print(_change("rollback", target, config, reason, forced=to is None), as_json)


def promote_release(release_id: str, config: Path, *, reason: str, forced: bool, as_json: bool) -> None:
    """Make a registered release the champion; one that did not pass the gate only by force."""

    def target(tracker: Tracker) -> Version:
        return registered_version(tracker, release_id)

    _print(_change("promote", target, config, reason, forced=forced), as_json)


def registered_version(tracker: Tracker, release_id: str) -> Version:
    """Return the model version of a release.

    Raises:
        ReleaseError: the release is not registered.
    """
    from recsys.errors import ReleaseError  # noqa: PLC0415

    version = tracker.version_of(release_id)
    if version is None:
        raise ReleaseError(
            f"release must be registered as a version of model {tracker.model}. Received: {release_id}, which is not "
            f"registered at {tracker.display_uri}. `recsys releases list` shows the releases of the workspace."
        )
    return version


def _change(
    action: Action, target: Callable[[Tracker], Version], config_file: Path, reason: str, *, forced: bool
) -> Event:
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.errors import RejectedError, ReleaseError  # noqa: PLC0415
    from recsys.release import promotion, smoke_test  # noqa: PLC0415
    from recsys.release.bundle import Release  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415
    from recsys.release.versions import VERDICT_TAG  # noqa: PLC0415

    config = load_config(config_file)
    tracker = Tracker(config)
    with promotion.locked(config.workspace):
        champion, version = tracker.champion(), target(tracker)
        if version == champion:
            raise ReleaseError(f"release {version.release_id} must not be the champion already. Received: it is.")
        verdict = json.loads(tracker.version_tags(version).get(VERDICT_TAG, "{}"))
        if action == "rollback":
            forced = forced or version.release_id in {event.after for event in promotion.events(tracker)}
        if not (forced or verdict.get("passed")):
            failed = [check["name"] for check in verdict.get("checks", []) if check["verdict"] == "failed"]
            raise RejectedError(
                f"release {version.release_id} must have passed the gate. Received: "
                f"{'failed ' + ', '.join(failed) if failed else 'the gate has not checked it'}. "
                f"`recsys promote {version.release_id} --force --reason …` promotes it anyway."
            )
        smoke_test.require_answers(Release.load(tracker.fetch(version, config.workspace / "releases")))
        return promotion.change_champion(
            tracker, version, champion, action=action, reason=reason or "by hand", checks=verdict.get("checks", [])
        )


def _print(event: Event, as_json: bool) -> None:
    replaced = f"in place of {event.before}" if event.before else "the first one"
    failed = f", although it failed {', '.join(event.failed)}" if event.failed else ""
    text = f"Release {event.after} is now the champion, {replaced}{failed}."
    print_result(event.to_dict(), as_json, lambda: typer.echo(text))
