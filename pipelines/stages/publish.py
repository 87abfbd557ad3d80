"""publish: write the release folder from the finished stages, verify it, and register it in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.context.progress import Progress
from pipelines.context.run_tracking import RunTracking
from pipelines.prepare import stage as prepare
from pipelines.reports import data_report
from pipelines.reports.figures import likeness_models
from pipelines.stages import calibrate, embed, evaluate, train
from pipelines.stages import index as indexing
from pipelines.stages.train_similar import has_own_space
from recsys.config.sections import Config
from recsys.config.senses import Sense
from recsys.index.annoy_index import N_JOBS, RECALL_K, SEED
from recsys.index.distances import DISTANCES
from recsys.release import formats, remote
from recsys.release.bundle import Release
from recsys.release.manifest import SpaceEntry
from recsys.release.runs import MANIFEST, Run
from recsys.release.writer import write_release

STAGE = "publish"


def publish(config: Config, run: Run, progress: Progress, tracking: RunTracking) -> dict[str, Any]:
    """Write the release unless it exists, verify it, copy it to `data.releases`, and register it once.

    Raises:
        StageError: an earlier stage has not been run.
        ReleaseError: the release is invalid, or `data.releases` contains a different release with this id.
        InputError: `data.releases` cannot be reached or written.
        TrackingError: MLflow cannot be reached, or rejects the request.
    """
    with progress.stage(STAGE) as advance:
        release = Release.load(_write(config, run, tracking))
        advance(1, 3, f"release {release.release_id}")
        _log(run, tracking, release)
        advance(2, 3)
        target = config.data.releases
        upload = {} if target is None else {"released_to": remote.upload(release, target)}
        version = tracking.tracker.register(tracking.mlflow_run, release)
        advance(3, 3, f"release {release.release_id} is version {version.number} of {config.tracking.model}")
    return {
        "release_id": release.release_id,
        "path": str(release.path),
        "model": config.tracking.model,
        "version": version.number,
        "mlflow_run": tracking.mlflow_run,
        **upload,
    }


def _write(config: Config, run: Run, tracking: RunTracking) -> Path:
    final = config.workspace / "releases" / run.run_id
    if final.exists():
        return final
    sources = {name: run.path(prepare.STAGE, name) for name in (formats.CATALOG, formats.ITEM_USERS, formats.FOLLOWERS)}
    sources[formats.EVALUATION] = run.path(evaluate.STAGE, MANIFEST)
    senses: list[Sense] = ["next", "similar"] if has_own_space(run) else ["next"]
    spaces = {}
    for sense in senses:
        files, spaces[sense] = _space(config, run.of(sense))
        sources |= {f"{sense}/{name}": path for name, path in files.items()}
    champion = tracking.tracker.champion()
    manifest = {
        "release_id": run.run_id,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_items": run.manifest(prepare.STAGE)["num_items"],
        "dimension": config.tower.dimension,
        "metric": DISTANCES[config.tower.distance].metric,
        "distance": config.tower.distance,
        "n_trees": config.index.n_trees,
        "seed": SEED,
        "n_jobs": N_JOBS,
        "recall_k": RECALL_K,
        "spaces": spaces,
        "catalog_fingerprint": run.manifest(prepare.STAGE)["catalog_fingerprint"],
        "data_snapshot": run.data_snapshot,
        "code_version": run.code_version,
        "parent_release": champion.release_id if champion else None,
        "mlflow_run": tracking.mlflow_run,
        "config": config.shaping(),
    }
    return write_release(sources, manifest, final.parent)


def _space(config: Config, run: Run) -> tuple[dict[str, Path], SpaceEntry]:
    """Return the files of an embedding space by name, and its entry in the manifest."""
    shards, index = indexing.index_shards(config, run), run.manifest(indexing.STAGE)
    stage_of_file = {
        formats.TOWER: train.STAGE,
        formats.FEATURES: train.STAGE,
        formats.EMBEDDINGS: embed.STAGE,
        formats.CALIBRATION: calibrate.STAGE,
        formats.NEIGHBORS: indexing.STAGE,
        **{shard.file: indexing.STAGE for shard in shards},
    }
    entry = SpaceEntry(
        index=tuple(shards),
        search_k=index["search_k"],
        index_recall=index["recall"],
        neighbors_recall=index["neighbors_recall"],
        recency=run.of("next").manifest(train.STAGE).get("recency"),
    )
    return {name: run.path(stage, name) for name, stage in stage_of_file.items()}, entry


def _log(run: Run, tracking: RunTracking, release: Release) -> None:
    """Log metrics and row accounts, and tag the MLflow run with the release id and the space of `similar`."""
    evaluation = release.evaluation
    figures: dict[str, float] = {}
    for prefix, query_figures in (("", evaluation), ("history_", evaluation["history"])):
        figures |= {f"{prefix}{metric}": value for metric, value in _figures(query_figures["model"]).items()}
        for name, values in query_figures["baselines"].items():
            figures |= {f"{prefix}{name}_{metric}": value for metric, value in _figures(values).items()}
    for name, values in likeness_models(evaluation["likeness"]).items():
        figures |= {f"{name}_{metric}": value for metric, value in _figures(values).items()}
    account = run.manifest(prepare.STAGE)["account"]
    for table, rows in account.items():
        figures |= {f"{table}_{key}": rows[key] for key in ("read", "used")}
        figures |= {f"{table}_{key}": sum(rows[key].values()) for key in ("filtered", "dead_letters")}
    for sense, space in release.spaces.items():
        suffix = "" if sense == "next" else f"_{sense}"
        figures |= {f"index_recall{suffix}": space.entry.index_recall, f"search_k{suffix}": space.entry.search_k}
        if space.calibration:
            figures[f"expected_calibration_error{suffix}"] = space.calibration.expected_calibration_error.value
    tracking.metrics.send_queued()
    tracking.metrics.log(figures)
    tags = {"recsys.release_id": release.release_id, "recsys.similar_space": release.space_name("similar")}
    tracking.tracker.log_tags(tracking.mlflow_run, tags)
    log_data_report(run, tracking)


def log_data_report(run: Run, tracking: RunTracking) -> None:
    """Log the data report to the MLflow run, unless it was logged before.

    `run_nightly` calls this after prepare, so that a run that ends before publish has its report.

    Raises:
        StageError: prepare has not been run.
        TrackingError: MLflow cannot be reached, or rejects the request.
    """
    if not tracking.tracker.has_artifact(tracking.mlflow_run, f"{prepare.STAGE}/{data_report.PAGE}"):
        for name in (prepare.DEAD_LETTERS, MANIFEST, data_report.REPORT, data_report.PAGE):
            tracking.tracker.log_artifact(tracking.mlflow_run, run.path(prepare.STAGE, name), prepare.STAGE)


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an evaluation without intervals and strata."""
    return {name: value for name, value in values.items() if isinstance(value, float)}
