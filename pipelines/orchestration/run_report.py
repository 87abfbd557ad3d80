"""The report of a night: did it promote and why, what changed, how good it is; as JSON and as a page.

Written however the night ended, from what its stages left behind: what was not reached is not told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.context.run_context import RunContext
from pipelines.prepare import stage as prepare
from pipelines.reports import data_report as data_page
from pipelines.reports import feedback, plots
from pipelines.reports import html as page
from pipelines.stages import calibrate, embed, evaluate, index, train
from recsys.data.catalog import Catalog
from recsys.data.splits import Holdout
from recsys.data.storage import atomic_write
from recsys.errors import RecsysError, ReleaseError
from recsys.evaluation.baseline_search import QUERY_KINDS, QueryKind, make_queries
from recsys.evaluation.embedding_drift import aligned_cosines
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
from recsys.index.queries import Queries
from recsys.release import quality_gate
from recsys.release.bundle import Release
from recsys.release.formats import CATALOG

REPORT, PAGE = "night.json", "night.html"
FORMAT = 1

Outcome = Literal["promoted", "passed", "published", "refused", "failed"]
"""`passed`: the gate let it through, but another one was chosen since. `published`: the gate was not to be asked."""

NEAREST = quality_gate.OVERLAP_K
"""Neighbors that two releases are compared by."""
SHOWN = 6
"""Neighbors that the page names."""
ITEMS = 4
"""Items of each kind that the page shows with their neighbors."""
BINS = 40
MAPPED = 600
"""Items on the map."""
NIGHTS = 10
"""Earlier nights that are told."""


class End(NamedTuple):
    """How a night ended."""

    outcome: Outcome
    error: str | None = None
    """What went wrong, or which checks were not passed."""
    stage: str | None = None
    """The one that it ended in, if it did not come to its end."""
    seconds: Mapping[str, float] = {}
    """Stage -> how long it took, if it was done this time."""
    decision: Mapping[str, Any] | None = None
    """What the gate said: `champion` and `checks`."""


def write(context: RunContext, end: End) -> Path:
    """Write report and page into the folder of the run; where the page is.

    A night that is asked for again, and was over, is told as it was.
    """
    folder = context.run.folder
    earlier = read(folder)
    told = {"outcome": end.outcome, "error": end.error, "decision": dict(end.decision) if end.decision else None}
    seconds = {**(earlier["seconds"] if earlier else {}), **end.seconds}
    redone = set(end.seconds) - {"publish", "promote"}
    if earlier and not redone and {key: earlier[key] for key in told} == told and (folder / PAGE).exists():
        return folder / PAGE
    report = {**_known(context, end), **told, "seconds": seconds}
    with atomic_write(folder / PAGE) as draft:
        draft.write_text(render(report), encoding="utf-8")
    with atomic_write(folder / REPORT) as draft:  # after the page: what it tells is on it
        draft.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder / PAGE


def read(folder: Path) -> dict[str, Any] | None:
    """The report in the folder of a run, None where there is none that we read."""
    try:
        report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if report.get("format") == FORMAT else None


def earlier_nights(workspace: Path, but: str) -> list[dict[str, Any]]:
    """Reports of the other runs of a workspace, the newest first."""
    found = [read(path.parent) for path in (workspace / "runs").glob(f"*/{REPORT}")]
    others = [report for report in found if report and report["run_id"] != but]
    return sorted(others, key=lambda report: (report["when"], report["run_id"]), reverse=True)


def render(report: Mapping[str, Any]) -> str:
    """A report as one HTML page: no scripts, nothing that is loaded."""
    checks = (report["decision"] or {}).get("checks", [])
    order = ("failed", "passed", "skipped")
    return page.render(
        "night_page.html",
        report=report,
        checks=sorted(checks, key=lambda check: order.index(check["verdict"])),
        counts={verdict: sum(check["verdict"] == verdict for check in checks) for verdict in order},
        plots=plots.places(report),
    )


def _known(context: RunContext, end: End) -> dict[str, Any]:
    """All that the stages left behind."""
    run = context.run
    done = {
        stage.STAGE: run.manifest(stage.STAGE)
        for stage in (prepare, train, embed, index, evaluate, calibrate)
        if run.done(stage.STAGE)
    }
    challenger = _loaded(context, run.run_id)
    parent = challenger.manifest.parent_release if challenger else None
    champion = _loaded(context, end.decision["champion"] if end.decision else parent)
    if champion and champion.release_id == run.run_id:
        champion = None
    trained, indexed, evaluated = (done.get(stage.STAGE) for stage in (train, index, evaluate))
    return {
        "format": FORMAT,
        "run_id": run.run_id,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "as_of": context.config.prepare.as_of.isoformat() if context.config.prepare.as_of else None,
        "data_snapshot": run.data_snapshot,
        "code_version": run.code_version,
        "model": context.config.tracking.model,
        "champion": champion.release_id if champion else None,
        "stage": end.stage,
        "data": json.loads(run.path(prepare.STAGE, data_page.REPORT).read_text(encoding="utf-8"))
        if prepare.STAGE in done
        else None,
        "training": {key: trained[key] for key in ("passes", "curve")} if trained else None,
        "index": {**indexed, "target": context.config.index.recall_target, "k": context.config.index.recall_k}
        if indexed
        else None,
        "queries": evaluated["queries"] if evaluated else None,
        "quality": _quality(context, evaluated, champion) if evaluated and evaluated["queries"] else None,
        "similarity": _similarity(challenger, context.config.index.sample) if challenger else None,
        "exposure": _exposure(challenger, context.config.index.sample) if challenger else None,
        "map": _map(challenger) if challenger else None,
        **_compared(challenger, champion, context.config.index.sample),
        "online": _online(context),
        "settings": _settings(champion.manifest.config, context.config.shaping()) if champion else None,
        "nights": [
            {key: report[key] for key in ("run_id", "when", "outcome")} | {TARGET_METRIC: _reached(report)}
            for report in earlier_nights(context.config.workspace, run.run_id)[:NIGHTS]
        ],
    }


def _reached(report: Mapping[str, Any]) -> float | None:
    quality = report["quality"]
    return quality["last_item"]["tonight"][TARGET_METRIC] if quality else None


def _loaded(context: RunContext, release_id: str | None) -> Release | None:
    """A release of this machine, None where it is not here or of no use: that is for the gate to judge."""
    try:
        return Release.load(context.config.workspace / "releases" / release_id) if release_id else None
    except ReleaseError:
        return None


def _online(context: RunContext) -> dict[str, Any] | None:
    """What the feedback says, or why it says nothing; None without feedback."""
    pattern = context.config.data.feedback
    if pattern is None:
        return None
    try:
        return feedback.by_release(pattern, context.config.prepare.rows_per_unit)
    except RecsysError as error:
        return {"releases": [], "unusable": 0, "error": str(error)}


def _quality(context: RunContext, evaluated: Mapping[str, Any], champion: Release | None) -> dict[str, Any]:
    """Figures of tonight's release, of the champion on the same questions, and of the baselines; by look-up."""
    found: dict[str, Any] = {}
    holdout = train.load_split(context.run).holdout("test", context.config.evaluate.users) if champion else None
    catalog = Catalog.load(context.run.path(prepare.STAGE, CATALOG))
    for look_up in QUERY_KINDS:
        measured = evaluated if look_up == "last_item" else evaluated["history"]
        models = {"tonight": measured["model"]}
        if champion and holdout is not None:
            models["champion"] = _asked_today(champion, catalog, holdout, look_up)
        baselines = sorted(measured["baselines"].items(), key=lambda named: -named[1][TARGET_METRIC])
        found[look_up] = models | dict(baselines)
    return found


def _asked_today(champion: Release, catalog: Catalog, holdout: Holdout, look_up: QueryKind) -> dict[str, Any]:
    """What the champion answers to tonight's questions; one about items that it does not hold is a miss."""
    # tonight's number -> the champion's; padding, the last, stays padding
    numbers = np.append(champion.catalog.item_numbers(catalog.item_ids, missing=-1), np.int32(-1))
    asked = make_queries(holdout, look_up, champion.manifest.recency, PROTOCOL)
    items = numbers[asked.items]
    asked = Queries(items, np.where(items < 0, 0, asked.weights).astype(np.float32), numbers[asked.excluded])
    targets = numbers[holdout.targets]
    known = np.flatnonzero((asked.weights > 0).any(axis=1) & (targets >= 0))
    rank = np.full(len(targets), max(CUTS))
    rank[known] = target_ranks(champion.index, asked[known], targets[known])
    stratum = popularity_strata(catalog.frame["interactions"].to_numpy())[holdout.targets]
    return {
        **ranking_metrics(rank),
        "intervals": bootstrap_intervals(rank, PROTOCOL.resamples),
        "strata": {
            name: {"queries": int((stratum == number).sum()), **ranking_metrics(rank[stratum == number])}
            for number, name in enumerate(STRATA)
        },
    }


def _similarity(release: Release, most: int) -> dict[str, Any]:
    """Histograms of how similar items are: to their nearest, and to any."""
    rng = np.random.default_rng(0)
    items = np.sort(rng.choice(len(release.catalog), min(most, len(release.catalog)), replace=False))
    k = min(NEAREST, len(release.catalog) - 1)
    found = release.index.neighbors(items.astype(np.int32), k)
    strangers = (items[:, None] + rng.integers(1, len(release.catalog), (len(items), k))) % len(release.catalog)
    edges = np.linspace(-1 if release.distance.unit_norm else 0, 1, BINS + 1)

    def shares(others: NDArray[np.integer[Any]]) -> list[float]:
        between = release.distance.between(release.vectors[items][:, None], release.vectors[others])
        similarities = np.clip(release.distance.similarity(between), edges[0], 1)
        counts: list[float] = (np.histogram(similarities, edges)[0] / others.size).tolist()
        return counts

    return {"edges": edges.tolist(), "nearest": shares(found), "any": shares(strangers)}


def _exposure(release: Release, most: int) -> dict[str, dict[str, float]]:
    """Shares of the interactions, of the items, and of the ten nearest of a sample of items, by stratum."""
    popularity = release.catalog.frame["interactions"].to_numpy()
    stratum = popularity_strata(popularity)
    items = np.random.default_rng(0).choice(len(stratum), min(most, len(stratum)), replace=False)
    found = release.index.neighbors(items.astype(np.int32), min(NEAREST, len(stratum) - 1))

    def shares(strata_of: NDArray[np.int8], weights: NDArray[np.int64] | None = None) -> dict[str, float]:
        counts = np.bincount(strata_of, weights, len(STRATA))
        return dict(zip(STRATA, (counts / max(counts.sum(), 1)).tolist(), strict=True))

    return {
        "interactions": shares(stratum, popularity),
        "items": shares(stratum),
        "neighbors": shares(stratum[found[found >= 0]]),
    }


def _map(release: Release) -> dict[str, Any]:
    """A sample of the embeddings on the two axes along which they differ most, and what these hold of all variance."""
    popularity = release.catalog.frame["interactions"].to_numpy()
    items = np.sort(np.random.default_rng(0).choice(len(popularity), min(MAPPED, len(popularity)), replace=False))
    vectors = release.vectors[items].astype(np.float64)
    left, lengths, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    places = (left * lengths)[:, :2]
    reach = np.abs(places).max() or 1.0
    stratum = popularity_strata(popularity)[items]
    return {
        "variance": float((lengths[:2] ** 2).sum() / max((lengths**2).sum(), np.finfo(float).tiny)),
        "items": [
            {"title": release.catalog.titles[item] or release.catalog.item_ids[item], "stratum": STRATA[s]}
            | {"x": round(50 + 48 * x / reach, 2), "y": round(50 - 48 * y / reach, 2)}
            for item, s, (x, y) in zip(items.tolist(), stratum.tolist(), places.tolist(), strict=True)
        ],
    }


def _compared(now: Release | None, before: Release | None, most: int) -> dict[str, Any]:
    """Neighbors side by side, and how far the embeddings moved."""
    if now is None:
        return {"neighbors": None, "drift": None}
    popularity = now.catalog.frame["interactions"].to_numpy()
    ranked = np.argsort(-popularity, kind="stable")
    if before is None:
        untouched = np.flatnonzero(popularity == 0)
        groups = {"popular": ranked, "new": untouched}
        return {"neighbors": _side_by_side(now, None, groups), "drift": None}
    numbers = before.catalog.item_numbers(now.catalog.item_ids, missing=-1)
    groups = {"popular": ranked, "new": ranked[numbers[ranked] < 0]}
    common, numbers_before, shared, k = quality_gate.neighbor_overlap(now, before, most)
    if not len(common):
        return {"neighbors": _side_by_side(now, before, groups), "drift": None}
    moved = aligned_cosines(before.vectors[numbers_before], now.vectors[common])
    changed = common[np.lexsort((common, -popularity[common], shared))]
    return {
        "neighbors": _side_by_side(now, before, {"changed": changed, **groups}),
        "drift": {
            "items": len(common),
            "k": k,
            "shared": np.bincount(shared, minlength=k + 1).tolist(),
            "overlap": float(shared.mean() / k),
            "alike": {
                "mean": float(moved.mean()),
                **{f"{share:.0%}": float(np.quantile(moved, share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)},
            },
            "moved": [
                {
                    "item_id": now.catalog.item_ids[common[row]],
                    "title": now.catalog.titles[common[row]],
                    "alike": float(moved[row]),
                }
                for row in np.argsort(moved, kind="stable")[:ITEMS]
            ],
        },
    }


def _side_by_side(
    now: Release, before: Release | None, groups: Mapping[str, NDArray[np.integer[Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """The first items of each group, each item once, with their neighbors of both releases."""
    taken: set[str] = set()
    found: dict[str, list[dict[str, Any]]] = {}
    for name, numbers in groups.items():
        ids = [now.catalog.item_ids[number] for number in numbers[: ITEMS + len(taken)]]
        chosen = [item_id for item_id in ids if item_id not in taken][:ITEMS]
        taken |= set(chosen)
        found[name] = [_neighbors(item_id, now, before) for item_id in chosen]
    return found


def _neighbors(item_id: str, now: Release, before: Release | None) -> dict[str, Any]:
    number = now.catalog.item_number(item_id)
    tonight = now.similar(item_id, NEAREST).neighbors
    there = before is not None and before.catalog.item_numbers([item_id], missing=-1)[0] >= 0
    earlier = before.similar(item_id, NEAREST).neighbors if before is not None and there else None
    ids = {neighbor.item_id for neighbor in tonight}
    ids_before = {neighbor.item_id for neighbor in earlier or ()}

    def told(found: list[Any], others: set[str]) -> list[dict[str, Any]]:
        return [
            {
                "item_id": each.item_id,
                "title": each.title,
                "similarity": each.similarity,
                "both": each.item_id in others,
            }
            for each in found[:SHOWN]
        ]

    return {
        "item_id": item_id,
        "title": now.catalog.titles[number],
        "interactions": int(now.catalog.frame["interactions"][number]),
        "shared": len(ids & ids_before) if earlier is not None else None,
        "of": len(tonight),
        "now": told(tonight, ids_before),
        "before": told(earlier, ids) if earlier is not None else None,
    }


def _settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings that are not the same; a table that one of them does not know is one setting."""
    flat = [
        {
            f"{table}.{key}": value
            for table, values in tables.items()
            for key, value in (values.items() if isinstance(values, dict) else [("", values)])
        }
        for tables in (before, now)
    ]
    names = sorted(flat[0].keys() | flat[1].keys())
    return [
        {"name": name, "champion": flat[0].get(name), "tonight": flat[1].get(name)}
        for name in names
        if flat[0].get(name) != flat[1].get(name)
    ]
