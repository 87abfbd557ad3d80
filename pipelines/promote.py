"""promote: the night's release takes over from the champion, if the gate lets it.

The first release that passes becomes the champion; a later one if it is not worse on the same held-out
interactions. A refused release stays registered, and the champion stays in service.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipelines import prepare
from pipelines.night import Night, command, main
from pipelines.train import load_split
from recsys import gate
from recsys.catalogue import Catalogue
from recsys.errors import RefusedError
from recsys.release import CATALOGUE, Release

STAGE = "promote"
VERDICT_TAG = "recsys.gate"


def promote(night: Night) -> dict[str, Any]:
    """Ask the gate, once for each release, and move the alias.

    Raises:
        StageError: the release was not published.
        RefusedError: the gate says no, now or when it was asked before.
        ReleaseError: the champion cannot be loaded to be compared with.
    """
    with night.report.stage(STAGE) as advance:
        release = Release.load(night.releases / night.run.run_id)
        version = night.tracker.register(night.mlflow_run, release)
        verdict = night.tracker.version_tags(version).get(VERDICT_TAG)
        champion = night.tracker.champion()
        if verdict is None:
            in_service = Release.load(night.tracker.fetch(champion, night.releases)) if champion else None
            checks = _ask(night, release, in_service)
            passed = all(check.passed for check in checks)
            if passed and champion != version:
                night.tracker.promote(version, champion)
            verdict = json.dumps({"passed": passed, "checks": [str(check) for check in checks]})
            night.tracker.tag_version(version, {VERDICT_TAG: verdict})
        decision: dict[str, Any] = json.loads(verdict)
        reasons = "; ".join(decision["checks"])
        if not decision["passed"]:
            raise RefusedError(
                f"release {release.release_id} must pass every check to take over. Received: {reasons}. "
                f"The champion stays {champion.release_id if champion else 'nobody'}."
            )
        advance(1, 1, f"release {release.release_id} was let through: {reasons}")
    return decision


def _ask(night: Night, challenger: Release, champion: Release | None) -> list[gate.Check]:
    catalogue = Catalogue.load(night.run.path(prepare.STAGE, CATALOGUE))
    holdout = load_split(night).holdout("test", night.config.evaluate.users)
    questions = gate.Questions(
        [catalogue.item_ids[number] for number in holdout.queries],
        [catalogue.item_ids[number] for number in holdout.targets],
    )
    return gate.checks(
        challenger,
        champion,
        questions,
        recall_floor=night.config.index.recall_floor,
        tolerance=night.config.promote.tolerance,
    )


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The job by itself."""
    return command(STAGE, (__doc__ or "").splitlines()[0], promote, argv)


if __name__ == "__main__":
    main(run)
