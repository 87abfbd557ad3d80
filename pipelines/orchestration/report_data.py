"""Collect the data of a run report from the files of the finished stages, the release and the champion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.context.run_context import RunContext
from pipelines.orchestration.release_comparison import NEIGHBORS, SENSE, compare_releases, compare_settings
from pipelines.orchestration.report_files import earlier_reports
from pipelines.prepare import stage as prepare
from pipelines.reports import data_report, feedback
from pipelines.reports.figures import better_baselines, likeness_models
from pipelines.stages import calibrate, embed, evaluate, index, train
from recsys.data.catalog import Catalog
from recsys.data.splits import Holdout
from recsys.errors import RecsysError, ReleaseError
from recsys.evaluation.baseline_search import QUERY_KINDS, QueryKind, make_queries
from recsys.evaluation.metrics import (
    CUTS,
    STRATA,
    TARGET_METRIC,
    bootstrap_intervals,
    popularity_strata,
    ranking_metrics,
    target_ranks,
)
from recsys.evaluation.protocol import PROTOCOL
from recsys.index.annoy_index import RECALL_K
from recsys.index.queries import Queries
from recsys.index.recall import SAMPLE_SIZE
from recsys.release.bundle import Release
from recsys.release.embedding_space import EmbeddingSpace
from recsys.release.formats import CATALOG

HISTOGRAM_BINS = 40
MAP_ITEMS = 600
"""Maximum number of items on the map of the embeddings."""
EARLIER_RUNS = 10
"""Maximum number of earlier runs in the report."""


def collect(context: RunContext, *, compared_with: str | None, gate_decided: bool) -> dict[str, Any]:
    """Collect the data of a report; a part whose stage has not finished is None.

    Args:
        context: the run.
        compared_with: id of the release with which the gate compared this run's release.
        gate_decided: whether the gate has decided; if not, the release is compared with its parent.
    """
    run, config = context.run, context.config
    manifests = {
        stage.STAGE: run.manifest(stage.STAGE)
        for stage in (prepare, train, embed, index, evaluate, calibrate)
        if run.done(stage.STAGE)
    }
    challenger = _load_release(context, run.run_id)
    parent = challenger.manifest.parent_release if challenger else None
    champion = _load_release(context, compared_with if gate_decided else parent)
    if champion and champion.release_id == run.run_id:
        champion = None
    trained, indexed, evaluated = (manifests.get(stage.STAGE) for stage in (train, index, evaluate))
    data = None
    if prepare.STAGE in manifests:
        data = json.loads(run.path(prepare.STAGE, data_report.REPORT).read_text(encoding="utf-8"))
    target = {"target": config.index.recall_target, "k": RECALL_K}
    return {
        "run_id": run.run_id,
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "as_of": config.prepare.as_of.isoformat() if config.prepare.as_of else None,
        "data_snapshot": run.data_snapshot,
        "code_version": run.code_version,
        "model": config.tracking.model,
        "champion": champion.release_id if champion else None,
        "data": data,
        "training": {key: trained[key] for key in ("passes", "curve")} if trained else None,
        "index": {**indexed, **target} if indexed else None,
        "queries": evaluated["queries"] if evaluated else None,
        "quality": _quality(context, evaluated, champion) if evaluated and evaluated["queries"] else None,
        "likeness": _likeness(evaluated["likeness"]) if evaluated else None,
        "better_baselines": better_baselines(evaluated) if evaluated else [],
        "similarity": _similarity_histograms(challenger.space(SENSE), SAMPLE_SIZE) if challenger else None,
        "exposure": _exposure(challenger.space(SENSE), SAMPLE_SIZE) if challenger else None,
        "map": _map(challenger.space(SENSE)) if challenger else None,
        **compare_releases(challenger, champion, SAMPLE_SIZE),
        "online": _click_through(context),
        "settings": compare_settings(champion.manifest.config, config.shaping()) if champion else None,
        "earlier_runs": [
            {key: report[key] for key in ("run_id", "ended_at", "outcome")} | {TARGET_METRIC: _target_metric(report)}
            for report in earlier_reports(config.workspace, run.run_id)[:EARLIER_RUNS]
        ],
    }


def _target_metric(report: Mapping[str, Any]) -> float | None:
    quality = report["quality"]
    return quality["last_item"]["challenger"][TARGET_METRIC] if quality else None


def _load_release(context: RunContext, release_id: str | None) -> Release | None:
    """Load a release of the workspace; return None if it is missing or damaged, which the gate reports."""
    try:
        return Release.load(context.config.workspace / "releases" / release_id) if release_id else None
    except ReleaseError:
        return None


def _click_through(context: RunContext) -> dict[str, Any] | None:
    """Return the click-through rates of releases, or the error of reading them; None without feedback."""
    pattern = context.config.data.feedback
    if pattern is None:
        return None
    try:
        return feedback.by_release(pattern, context.config.resources.rows_per_unit)
    except RecsysError as error:
        return {"releases": [], "unusable": 0, "error": str(error)}


def _quality(context: RunContext, evaluated: Mapping[str, Any], champion: Release | None) -> dict[str, Any]:
    """Return the metrics of the challenger, the champion and the baselines on the same queries, by kind of query."""
    quality: dict[str, Any] = {}
    holdout = train.load_split(context.run).holdout("test", context.config.evaluate.users) if champion else None
    catalog = Catalog.load(context.run.path(prepare.STAGE, CATALOG))
    for kind in QUERY_KINDS:
        measured = evaluated if kind == "last_item" else evaluated["history"]
        models = {"challenger": measured["model"]}
        if champion and holdout is not None:
            models["champion"] = evaluate_champion(champion, catalog, holdout, kind)
        baselines = sorted(measured["baselines"].items(), key=lambda named: -named[1][TARGET_METRIC])
        quality[kind] = models | dict(baselines)
    return quality


def _likeness(likeness: Mapping[str, Any]) -> dict[str, Any]:
    return {"space": likeness["space"], "reason": likeness["reason"], "models": likeness_models(likeness)}


def evaluate_champion(champion: Release, catalog: Catalog, holdout: Holdout, kind: QueryKind) -> dict[str, Any]:
    """Evaluate the champion on the queries of this run; a query or target that it does not have is a miss."""
    # item number of this run -> item number of the champion; the last entry maps padding, -1, to itself
    champion_numbers = np.append(champion.catalog.item_numbers(catalog.item_ids, missing=-1), np.int32(-1))
    queries = make_queries(holdout, kind, champion.space("next").entry.recency, PROTOCOL)
    items = champion_numbers[queries.items]
    translated = Queries(
        items, np.where(items < 0, 0, queries.weights).astype(np.float32), champion_numbers[queries.excluded]
    )
    targets = champion_numbers[holdout.targets]
    answerable = np.flatnonzero((translated.weights > 0).any(axis=1) & (targets >= 0))
    rank = np.full(len(targets), max(CUTS))
    rank[answerable] = target_ranks(champion.space("next").index, translated[answerable], targets[answerable])
    stratum = popularity_strata(catalog.frame["interactions"].to_numpy())[holdout.targets]
    return {
        **ranking_metrics(rank),
        "intervals": bootstrap_intervals(rank, PROTOCOL.resamples),
        "strata": {
            name: {"queries": int((stratum == number).sum()), **ranking_metrics(rank[stratum == number])}
            for number, name in enumerate(STRATA)
        },
    }


def _similarity_histograms(space: EmbeddingSpace, max_items: int) -> dict[str, Any]:
    """Return histograms of the similarities of items to their nearest neighbors and to random items."""
    rng = np.random.default_rng(0)
    items = np.sort(rng.choice(len(space.catalog), min(max_items, len(space.catalog)), replace=False))
    k = min(NEIGHBORS, len(space.catalog) - 1)
    nearest = space.index.neighbors(items.astype(np.int32), k)
    random_items = (items[:, None] + rng.integers(1, len(space.catalog), (len(items), k))) % len(space.catalog)
    edges = np.linspace(-1 if space.distance.unit_norm else 0, 1, HISTOGRAM_BINS + 1)

    def shares(candidates: NDArray[np.integer[Any]]) -> list[float]:
        distances = space.distance.between(space.vectors[items][:, None], space.vectors[candidates])
        similarities = np.clip(space.distance.similarity(distances), edges[0], 1)
        counts: list[float] = (np.histogram(similarities, edges)[0] / candidates.size).tolist()
        return counts

    return {"edges": edges.tolist(), "nearest": shares(nearest), "any": shares(random_items)}


def _exposure(space: EmbeddingSpace, max_items: int) -> dict[str, dict[str, float]]:
    """Return the shares of interactions, of items, and of the neighbors of a sample of items, by stratum."""
    popularity = space.catalog.frame["interactions"].to_numpy()
    stratum = popularity_strata(popularity)
    items = np.random.default_rng(0).choice(len(stratum), min(max_items, len(stratum)), replace=False)
    nearest = space.index.neighbors(items.astype(np.int32), min(NEIGHBORS, len(stratum) - 1))

    def shares(members: NDArray[np.int8], weights: NDArray[np.int64] | None = None) -> dict[str, float]:
        counts = np.bincount(members, weights, len(STRATA))
        return dict(zip(STRATA, (counts / max(counts.sum(), 1)).tolist(), strict=True))

    return {
        "interactions": shares(stratum, popularity),
        "items": shares(stratum),
        "neighbors": shares(stratum[nearest[nearest >= 0]]),
    }


def _map(space: EmbeddingSpace) -> dict[str, Any]:
    """Project a sample of the embeddings to their first two principal components.

    Returns:
        `items` with their coordinates in percent, and `variance`: the share that the two components explain.
    """
    popularity = space.catalog.frame["interactions"].to_numpy()
    items = np.sort(np.random.default_rng(0).choice(len(popularity), min(MAP_ITEMS, len(popularity)), replace=False))
    vectors = space.vectors[items].astype(np.float64)
    left, lengths, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    coordinates = (left * lengths)[:, :2]
    extent = np.abs(coordinates).max() or 1.0
    stratum = popularity_strata(popularity)[items]
    return {
        "variance": float((lengths[:2] ** 2).sum() / max((lengths**2).sum(), np.finfo(float).tiny)),
        "items": [
            {"title": space.catalog.titles[item] or space.catalog.item_ids[item], "stratum": STRATA[s]}
            | {"x": round(50 + 48 * x / extent, 2), "y": round(50 - 48 * y / extent, 2)}
            for item, s, (x, y) in zip(items.tolist(), stratum.tolist(), coordinates.tolist(), strict=True)
        ],
    }
