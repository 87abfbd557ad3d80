"""promote: make the release of the run the champion if it passes every check of the gate.

The first release is checked alone; later releases are also compared with the champion on the same held-out queries. If
a release is rejected, it stays registered and the champion does not change.
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
from pipelines.reports.data_report import REPORT as DATA_REPORT
from pipelines.stages import embed, evaluate
from pipelines.stages.train import load_evidence, load_split
from recsys.config.sections import Config
from recsys.data import profile
from recsys.data.catalog import Catalog
from recsys.data.storage import atomic_write
from recsys.errors import RejectedError, ReleaseError
from recsys.evaluation.likeness import AGREEMENT
from recsys.evaluation.metrics import TARGET_METRIC, popularity_strata
from recsys.features.encoding import Features
from recsys.index.annoy_index import SEED
from recsys.index.embeddings import Vectors
from recsys.index.recall import SAMPLE_SIZE
from recsys.release import gate, promotion
from recsys.release.bundle import Release
from recsys.release.check import Check, at_least, skipped
from recsys.release.embedding_space import EmbeddingSpace
from recsys.release.formats import CATALOG, FEATURES, TOWER
from recsys.release.likeness_gate import UsersEvidence
from recsys.release.quality_gate import HeldOutQueries
from recsys.release.runs import Run
from recsys.release.versions import VERDICT_TAG, Version

STAGE = "promote"
REPORT = "gate.json"


def promote(config: Config, run: Run, progress: Progress, tracking: RunTracking) -> dict[str, Any]:
    """Check the release of the run, and make it the champion if it passes.

    The gate runs once for each combination of release, champion and limits. A release that was the champion before
    is not promoted again if its run is repeated, because it may have been rolled back.

    Returns:
        `passed`, `promoted` (whether the release is now the champion), `champion` (the release with which it was
        compared) and `checks`.

    Raises:
        StageError: the release was not published, or another process is promoting.
        RejectedError: the release failed a check, now or in an earlier run of the gate.
        ReleaseError: the release cannot be loaded.
    """
    with progress.stage(STAGE) as advance, promotion.locked(config.workspace):
        tracker = tracking.tracker
        release = Release.load(config.workspace / "releases" / run.run_id)
        version = tracker.register(tracking.mlflow_run, release)
        promotion.complete_history(tracker)
        champion = tracker.champion()
        decision = _decide(config, run, tracking, release, version=version, champion=champion)
        checks = [Check.from_dict(saved) for saved in decision["checks"]]
        if not decision["passed"]:
            failed = [str(check) for check in checks if not check.passed]
            raise RejectedError(
                f"release {release.release_id} must pass every check to be promoted. Received: {len(failed)} of "
                f"{len(checks)} checks failed: {'; '.join(failed)}. {_champion_stays(champion)}. "
                "See docs/explanation/promotion.md."
            )
        past_champions = {event.after for event in promotion.events(tracker)}
        if champion != version and release.release_id not in past_champions:
            reason = f"run {run.run_id} passed the gate"
            promotion.change_champion(
                tracker, version, champion, action="promote", reason=reason, checks=decision["checks"]
            )
            champion = version
        num_skipped = sum(check.verdict == "skipped" for check in checks)
        note = f"release {release.release_id} passed {len(checks) - num_skipped} checks, {num_skipped} were skipped"
        if champion != version:
            note += f"; it was the champion before. {_champion_stays(champion)}"
        advance(1, 1, note)
    return {**decision, "promoted": champion == version}


def _champion_stays(champion: Version | None) -> str:
    return f"The champion is still {champion.release_id}" if champion else "There is no champion yet"


def _decide(
    config: Config,
    run: Run,
    tracking: RunTracking,
    release: Release,
    *,
    version: Version,
    champion: Version | None,
) -> dict[str, Any]:
    """Run the gate, or return its earlier decision if release, champion and limits have not changed."""
    limits = hashlib.sha256(config.promote.model_dump_json().encode()).hexdigest()[:12]
    key = {"champion": champion.release_id if champion else None, "limits": limits}
    saved = tracking.tracker.version_tags(version).get(VERDICT_TAG)
    decision: dict[str, Any] = json.loads(saved) if saved else {}
    if champion == version or {name: decision.get(name) for name in key} == key:
        if decision:
            return decision
        key["champion"] = None  # the release is the champion, and its earlier decision is lost
        champion = None
    checks = gate.run_checks(_collect_evidence(config, run, tracking, release, champion))
    passed = all(check.passed for check in checks)
    decision = {**key, "passed": passed, "checks": [check.to_dict() for check in checks]}
    tracking.metrics.log({f"gate_{check.name}": check.value for check in checks if check.value is not None})
    report = run.folder / REPORT
    with atomic_write(report) as draft:
        draft.write_text(json.dumps(decision, indent=2) + "\n", encoding="utf-8")
    tracking.tracker.log_artifact(tracking.mlflow_run, report, "gate")
    tracking.tracker.tag_version(version, {VERDICT_TAG: json.dumps(decision)})
    return decision


def _collect_evidence(
    config: Config, run: Run, tracking: RunTracking, challenger: Release, champion_version: Version | None
) -> gate.Evidence:
    catalog = Catalog.load(run.path(prepare.STAGE, CATALOG))
    champion, champion_loads = _load_champion(config, tracking, champion_version)
    rng = np.random.default_rng([SEED, 1])  # not the items on which search_k was tuned
    num_items = len(challenger.catalog)
    sample = np.sort(rng.choice(num_items, min(SAMPLE_SIZE, num_items), False)).astype(np.int32)
    return gate.Evidence(
        config=config,
        now=datetime.now(UTC),
        challenger=challenger,
        champion=champion,
        champion_loads=champion_loads,
        catalog=catalog,
        data_report=json.loads(run.path(prepare.STAGE, DATA_REPORT).read_text(encoding="utf-8")),
        champion_data_report=_data_report_of(run, tracking, champion),
        copied_days=run.manifest(prepare.STAGE)["copied_days"],
        sample=sample,
        encoded_sample={sense: _encode(space, sample) for sense, space in challenger.spaces.items()},
        queries=_held_out_queries(config, run, catalog),
        quality_floor=_quality_floor(config, run),
        users=_users_evidence(run, catalog),
    )


def _load_champion(config: Config, tracking: RunTracking, champion: Version | None) -> tuple[Release | None, Check]:
    """Load the champion. If it cannot be loaded, the check fails: it must not be replaced without a comparison."""
    name = "champion_loads"
    if champion is None:
        return None, skipped(name, "no champion")
    try:
        return Release.load(tracking.tracker.fetch(champion, config.workspace / "releases")), at_least(name, 1, 1)
    except ReleaseError as error:
        return None, at_least(name, 0, 1, str(error))


def _data_report_of(run: Run, tracking: RunTracking, release: Release | None) -> dict[str, Any] | None:
    """Return the data report of a release, from the workspace or MLflow; None if it is lost or has other fields."""
    if release is None:
        return None
    path = run.folder.parent / release.release_id / prepare.STAGE / DATA_REPORT
    if path.exists():
        text: str | None = path.read_text(encoding="utf-8")
    else:
        mlflow_run = release.manifest.mlflow_run
        text = tracking.tracker.read_artifact(mlflow_run, f"{prepare.STAGE}/{DATA_REPORT}") if mlflow_run else None
    report = json.loads(text) if text else None
    return report if report and report["format"] == profile.FORMAT else None


def _held_out_queries(config: Config, run: Run, catalog: Catalog) -> HeldOutQueries:
    holdout = load_split(run).holdout("test", config.evaluate.users)
    ids = catalog.item_ids
    return HeldOutQueries(
        [ids[number] for number in holdout.queries],
        [ids[number] for number in holdout.targets],
        popularity_strata(catalog.frame["interactions"].to_numpy())[holdout.targets],
    )


def _quality_floor(config: Config, run: Run) -> float | None:
    """Return the minimum NDCG@20: by default that of the popularity baseline, or none with labeled pairs.

    Towers of labeled pairs are not trained to predict interactions.
    """
    if config.promote.quality_floor is not None or config.data.labeled_pairs is not None:
        return config.promote.quality_floor
    popularity = run.manifest(evaluate.STAGE)["baselines"]["popularity"]
    floor: float | None = popularity.get(TARGET_METRIC)
    return floor


def _users_evidence(run: Run, catalog: Catalog) -> UsersEvidence | None:
    """Return what the users held out of the run associate; None if the run has no such evidence."""
    evidence = load_evidence(run)
    if evidence is None:
        return None
    floor = run.manifest(evaluate.STAGE)["likeness"]["baselines"]["popularity"][AGREEMENT]
    return UsersEvidence(evidence, catalog, floor)


def _encode(space: EmbeddingSpace, sample: NDArray[np.int32]) -> Vectors:
    """Compute the embeddings of some items with the tower of a space, float32 [n, dimension]."""
    from recsys.model import tower  # noqa: PLC0415 - TensorFlow takes seconds

    features = Features.load(space.path / FEATURES)
    encode = tower.make_encoder(tower.load(space.path / TOWER), embed.BATCH_SIZE)
    return encode(features.transform(space.catalog.frame[sample]))
