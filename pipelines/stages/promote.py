"""promote: the night's release takes over from the champion, if the gate lets it.

The first release that passes every check becomes the champion; a later one if it also bears comparison with the
champion, who is asked the same held-out questions now. A refused release stays registered, and the champion stays
in service. Every check is kept with its value, limit and verdict.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.context.progress import Progress
from pipelines.context.run_tracking import RunTracking
from pipelines.prepare import stage as prepare
from pipelines.reports import data_report as data_page
from pipelines.stages import evaluate
from pipelines.stages.train import load_split
from recsys.config.sections import Config
from recsys.data.catalog import Catalog
from recsys.data.storage import atomic_write
from recsys.errors import RefusedError, ReleaseError
from recsys.evaluation.metrics import TARGET_METRIC, popularity_strata
from recsys.evaluation.protocol import PROTOCOL
from recsys.features.encoding import Features
from recsys.index.embeddings import Vectors
from recsys.release import data_gate as data_checks
from recsys.release import gate, promotion
from recsys.release.bundle import Release
from recsys.release.check import Check, at_least, from_data, skipped
from recsys.release.formats import CATALOG, FEATURES, TOWER
from recsys.release.mlflow_registry import VERDICT_TAG, Version
from recsys.release.runs import Run

STAGE = "promote"
REPORT = "gate.json"


def promote(config: Config, run: Run, progress: Progress, tracking: RunTracking) -> dict[str, Any]:
    """Ask the gate, once for each release, champion and limits, and move the alias.

    A release that was in service before is not put there again by repeating its night: somebody rolled it back.

    Returns:
        `passed`, `promoted` (whether it is in service now), `champion` (the release that it was compared with) and
        `checks`.

    Raises:
        StageError: the release was not published, or another process is at it.
        RefusedError: the gate says no, now or when it was asked before.
        ReleaseError: the release cannot be loaded.
    """
    with progress.stage(STAGE) as advance, promotion.locked(config.workspace):
        release = Release.load(config.workspace / "releases" / run.run_id)
        version = tracking.tracker.register(tracking.mlflow_run, release)
        promotion.complete(tracking.tracker)
        champion = tracking.tracker.champion()
        decision = _decision(config, run, tracking, release, version=version, champion=champion)
        checks = [from_data(saved) for saved in decision["checks"]]
        if not decision["passed"]:
            failed = [str(check) for check in checks if not check.passed]
            raise RefusedError(
                f"release {release.release_id} must pass every check to take over. Received: {len(failed)} of "
                f"{len(checks)} failed: {'; '.join(failed)}. The champion stays "
                f"{champion.release_id if champion else 'nobody'}. See docs/explanation/promotion.md."
            )
        served = {event.after for event in promotion.events(tracking.tracker)}
        if champion != version and release.release_id not in served:
            why = f"night {run.run_id} passed the gate"
            promotion.move(tracking.tracker, version, champion, action="promote", why=why, checks=decision["checks"])
            champion = version
        left_out = sum(check.verdict == "skipped" for check in checks)
        note = f"release {release.release_id} passed {len(checks) - left_out} checks, {left_out} were skipped"
        if champion != version:
            note += f"; it was in service before, {champion.release_id if champion else 'nobody'} stays"
        advance(1, 1, note)
    return {**decision, "promoted": champion == version}


def _decision(
    config: Config,
    run: Run,
    tracking: RunTracking,
    release: Release,
    *,
    version: Version,
    champion: Version | None,
) -> dict[str, Any]:
    """What the gate says of a release; what it said, where nothing that it looks at has changed."""
    limits = hashlib.sha256(config.promote.model_dump_json().encode()).hexdigest()[:12]
    asked = {"champion": champion.release_id if champion else None, "limits": limits}
    known = tracking.tracker.version_tags(version).get(VERDICT_TAG)
    decision: dict[str, Any] = json.loads(known) if known else {}
    if champion == version or {key: decision.get(key) for key in asked} == asked:
        if decision:
            return decision
        asked["champion"] = None  # it is in service, and nothing is left of what it was compared with
        champion = None
    checks = _ask(config, run, tracking, release, champion)
    passed = all(check.passed for check in checks)
    decision = {**asked, "passed": passed, "checks": [check.as_data() for check in checks]}
    tracking.metrics.log({f"gate_{check.name}": check.value for check in checks if check.value is not None})
    report = run.folder / REPORT
    with atomic_write(report) as draft:
        draft.write_text(json.dumps(decision, indent=2) + "\n", encoding="utf-8")
    tracking.tracker.log_artifact(tracking.mlflow_run, report, "gate")
    tracking.tracker.tag_version(version, {VERDICT_TAG: json.dumps(decision)})
    return decision


def _ask(config: Config, run: Run, tracking: RunTracking, challenger: Release, champion: Version | None) -> list[Check]:
    """Every check there is, in the order in which a night comes about."""
    limits, data_limits = config.promote, data_checks.LIMITS[config.promote.data_sensitivity]
    catalog = Catalog.load(run.path(prepare.STAGE, CATALOG))
    in_service, loaded = _in_service(config, tracking, champion)
    report = json.loads(run.path(prepare.STAGE, data_page.REPORT).read_text(encoding="utf-8"))
    copies = run.manifest(prepare.STAGE)["copied_days"]
    rng = np.random.default_rng([config.index.seed, 1])  # not the items that the index was tuned by
    items = np.sort(rng.choice(len(challenger.catalog), min(config.index.sample, len(challenger.catalog)), False))
    sample = items.astype(np.int32)
    return [
        *data_checks.account_checks(report, config.prepare.max_dead_letter_ratio),
        *data_checks.day_checks(report, copies, datetime.now(UTC), data_limits),
        *data_checks.column_checks(catalog, config.items, data_limits),
        *data_checks.champion_checks(
            report,
            catalog,
            _report_of(run, tracking, in_service),
            in_service.catalog if in_service else None,
            config.items,
            limits=data_limits,
        ),
        *gate.embedding_checks(challenger, catalog),
        gate.tower_check(challenger, sample, _embedded(config, challenger, sample)),
        *gate.index_checks(challenger, sample, config.index.recall_floor),
        promotion.answers_check(challenger),
        loaded,
        *gate.quality_checks(
            challenger,
            in_service,
            _questions(config, run, catalog),
            floor=_floor(config, run),
            config=limits,
            resamples=PROTOCOL.resamples,
        ),
        gate.overlap_check(challenger, in_service, limits, sample=config.index.sample),
        gate.latency_check(challenger, in_service, limits),
    ]


def _in_service(config: Config, tracking: RunTracking, champion: Version | None) -> tuple[Release | None, Check]:
    """The champion to compare with. One that this program cannot read is no reason to replace it unseen."""
    name = "champion_loads"
    if champion is None:
        return None, skipped(name, "no champion")
    try:
        return Release.load(tracking.tracker.fetch(champion, config.workspace / "releases")), at_least(name, 1, 1)
    except ReleaseError as error:
        return None, at_least(name, 0, 1, str(error))


def _report_of(run: Run, tracking: RunTracking, release: Release | None) -> dict[str, Any] | None:
    """The data report of a release's night: of this workspace, else from MLflow; None where it is lost."""
    if release is None:
        return None
    here = run.folder.parent / release.release_id / prepare.STAGE / data_page.REPORT
    if here.exists():
        text: str | None = here.read_text(encoding="utf-8")
    else:
        kept = release.manifest.mlflow_run
        text = tracking.tracker.read_artifact(kept, f"{prepare.STAGE}/{data_page.REPORT}") if kept else None
    return json.loads(text) if text else None


def _questions(config: Config, run: Run, catalog: Catalog) -> gate.Questions:
    holdout = load_split(run).holdout("test", config.evaluate.users)
    ids = catalog.item_ids
    return gate.Questions(
        [ids[number] for number in holdout.queries],
        [ids[number] for number in holdout.targets],
        popularity_strata(catalog.frame["interactions"].to_numpy())[holdout.targets],
    )


def _floor(config: Config, run: Run) -> float | None:
    """What the quality may not fall below; a tower of judged pairs need not foretell what users touch."""
    if config.promote.quality_floor is not None or config.data.labeled_pairs is not None:
        return config.promote.quality_floor
    popularity = run.manifest(evaluate.STAGE)["baselines"]["popularity"]
    floor: float | None = popularity.get(TARGET_METRIC)
    return floor


def _embedded(config: Config, release: Release, sample: NDArray[np.int32]) -> Vectors:
    """Some items through the release's own tower."""
    from recsys.model import tower  # noqa: PLC0415 - TensorFlow takes seconds

    features = Features.load(release.path / FEATURES)
    encode = tower.make_encoder(tower.load(release.path / TOWER), config.embed.batch_size)
    return encode(features.transform(release.catalog.frame[sample]))
