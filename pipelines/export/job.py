"""neighbors: the nearest of every item of a release -> Parquet, JSON lines, SQLite, PostgreSQL or Redis.

No stage of a night: it asks a release that is published, as the service does. A unit is a range of items, and
writes one part. Parts stay in the workspace until the next export, so a job that was killed goes on where it
was; from the parts, the sink is written (`pipelines.export.sinks`).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.beam import runner
from pipelines.context.libraries import quiet_libraries
from pipelines.context.progress import Advance, Progress
from pipelines.export import sinks
from pipelines.export.sinks.base import Export, deliver
from recsys.config.sections import Config, NeighborsConfig
from recsys.config.urls import Address
from recsys.data.storage import atomic_write, sha256
from recsys.errors import StageError
from recsys.release.bundle import Release
from recsys.release.formats import MANIFEST as RELEASE_MANIFEST
from recsys.release.runs import MANIFEST, Run, code_version
from recsys.retrieval.bulk import NeighborFilter, nearest

NAME = "neighbors"
"""Of the job, and of its folder in the workspace."""


@dataclass(frozen=True)
class Job:
    """What the units of one export share; travels to the workers. Where it goes is none of their business."""

    release: Path
    k: int
    neighbor_filter: NeighborFilter
    items_per_unit: int
    folder: Path

    @classmethod
    def of(cls, release: Release, config: NeighborsConfig, run: Run) -> Job:
        """The export of a release by a config."""
        neighbor_filter = NeighborFilter(config.min_similarity, config.min_interactions, config.where, config.reach)
        return cls(release.path.resolve(), config.k, neighbor_filter, config.items_per_unit, run.folder / run.run_id)

    def part(self, unit: int) -> Path:
        """Rows of a unit, of `recsys.retrieval.bulk.SCHEMA`."""
        return self.folder / f"part-{unit:05d}.parquet"

    def entry(self, unit: int) -> Path:
        """The file that says that a unit's part is there, and what is in it."""
        return self.folder / f"part-{unit:05d}.json"


def neighbors(release: Release, config: Config, progress: Progress) -> dict[str, Any]:
    """Export the neighbors of every item, unless the sink has this very export.

    Args:
        release: verified; the library that the service answers with asks it.
        config: its table `neighbors` says what, and where to; the others only how.
        progress: where progress is shown.

    Returns:
        Ready for JSON: `export_id`, `release_id`, `k`; `items` with neighbors, `items_without_neighbors`, and
        `rows` of all; `to`, without a password.

    Raises:
        ConfigError: no sink has this name, or its library is not installed.
        InputError: a filter that does not fit the catalog, or a file that we may not write.
        StageError: nothing is left to export, the sink is away, or another process is at it.
    """
    quiet_libraries()
    to = config.neighbors.to
    run = _run(release, config)
    with closing(sinks.at(to)) as sink:  # before the work, not after it
        delivered = sink.current() == run.run_id
    job = Job.of(release, config.neighbors, run)
    with run.locked():
        if not run.done(run.run_id):
            with progress.stage("nearest") as advance:
                _ask(job, release, config, advance)
        manifest = run.manifest(run.run_id)
        export = _export(manifest, job)
        with closing(sinks.at(to)) as sink:
            if delivered:
                sink.clean(export)  # if it was killed before that
            else:
                with progress.stage("deliver") as advance:
                    deliver(export, sink, advance)
                    advance(1, 1, f"{export.rows:,} rows to {Address(to).shown}")
        for folder in run.folder.iterdir():  # the next night exports another release
            if folder.is_dir() and folder != job.folder:
                shutil.rmtree(folder)
    return {**manifest, "to": Address(to).shown}


def _run(release: Release, config: Config) -> Run:
    """The folder of all exports, and the id of this one: the same id is the same rows."""
    folder = config.workspace / NAME
    folder.mkdir(parents=True, exist_ok=True)
    code = code_version()
    settings = config.neighbors.model_dump(mode="json", exclude={"to"})
    shaping = [sha256(release.path / RELEASE_MANIFEST), json.dumps(settings, sort_keys=True), code]
    export_id = f"{release.release_id}-{hashlib.sha256(' '.join(shaping).encode()).hexdigest()[:8]}"
    return Run(export_id, folder, release.manifest.data_snapshot, code)


def _ask(job: Job, release: Release, config: Config, advance: Advance) -> None:
    """All items, unit by unit, over Beam; then the manifest."""
    hold(job, release)
    units = list(range(math.ceil(len(release.catalog) / job.items_per_unit)))
    job.folder.mkdir(exist_ok=True)
    runner.run([runner.Phase(NAME, units, partial(ask_unit, job), job.entry)], config.beam, advance)
    entries = [json.loads(job.entry(unit).read_text()) for unit in units]
    items, rows = (sum(entry[name] for entry in entries) for name in ("items", "rows"))
    without = len(release.catalog) - items
    if rows == 0:
        raise StageError(
            f"at least one item must have a neighbor. Received: {without:,} items, and no neighbor that "
            "neighbors.min_similarity, neighbors.min_interactions and neighbors.where let through. Ask for less."
        )
    manifest = {
        "export_id": job.folder.name,
        "release_id": release.release_id,
        "k": job.k,
        "items": items,
        "items_without_neighbors": without,
        "rows": rows,
    }
    with atomic_write(job.folder / MANIFEST) as draft:
        draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    advance(1, 1, f"{rows:,} neighbors of {items:,} items, {without:,} items without")


def ask_unit(job: Job, unit: int) -> None:
    """The neighbors of one range of items."""
    release, mask = _opened(job)
    start = unit * job.items_per_unit
    numbers = range(start, min(start + job.items_per_unit, len(release.catalog)))
    rows = nearest(
        release.catalog,
        release.engine.searcher,
        numbers,
        job.k,
        calibration=release.calibration,
        neighbor_filter=job.neighbor_filter,
        mask=mask,
    )
    _write_part(rows, job.part(unit))
    with atomic_write(job.entry(unit)) as draft:
        draft.write_text(json.dumps({"items": rows["item_id"].n_unique(), "rows": rows.height}))


def hold(job: Job, release: Release) -> None:
    """Let this process's units ask a release that is loaded and verified, instead of loading it again."""
    _held.clear()
    _held[job.folder] = _Opened(release, job.neighbor_filter.mask(release.catalog))


class _Opened(NamedTuple):
    """A release, and which of its items may be neighbors."""

    release: Release
    mask: NDArray[np.bool_] | None


_held: dict[Path, _Opened] = {}
"""What this process asks, by the folder of the export: opening takes longer than a unit."""
_opening = threading.Lock()


def _opened(job: Job) -> _Opened:
    with _opening:
        if job.folder not in _held:
            release = Release.load(job.release)
            _held[job.folder] = _Opened(release, job.neighbor_filter.mask(release.catalog))
        return _held[job.folder]


def _export(manifest: dict[str, Any], job: Job) -> Export:
    parts = tuple(sorted(job.folder.glob("part-*.parquet")))
    about = {name: manifest[name] for name in ("export_id", "release_id", "k", "items", "rows")}
    return Export(**about, parts=parts)


def _write_part(rows: pl.DataFrame, path: Path) -> None:
    import pyarrow as pa  # noqa: PLC0415 - only jobs have it
    import pyarrow.parquet as pq  # noqa: PLC0415

    # plain strings: Polars' own kind is unknown to older readers
    table = rows.to_arrow()
    plain = [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in table.schema]
    with atomic_write(path) as draft:
        pq.write_table(table.cast(pa.schema(plain)), draft)
