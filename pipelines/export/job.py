"""Export of the nearest neighbors of all items to Parquet, JSON lines, SQLite, PostgreSQL or Redis.

The job searches a published release in the same way as the service. A unit is a range of items and writes one part.
The sink is written from the parts (`pipelines.export.sinks`), which stay in the workspace until the next export, so an
interrupted job resumes.
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

import polars as pl

from pipelines.beam import runner
from pipelines.context.libraries import quiet_libraries
from pipelines.context.progress import Advance, Progress
from pipelines.export.answers import ANSWERS
from pipelines.export.sinks.base import Export, deliver
from pipelines.export.sinks.registry import open_sink
from recsys.config.sections import Config, ExportConfig, ExportedAnswer
from recsys.config.urls import Address
from recsys.data.storage import atomic_write, sha256
from recsys.errors import StageError
from recsys.release.bundle import Release
from recsys.release.formats import MANIFEST as RELEASE_MANIFEST
from recsys.release.runs import MANIFEST, Run, code_version
from recsys.retrieval.bulk import NeighborFilter, nearest
from recsys.retrieval.filters import Mask
from recsys.retrieval.together import search_items

NAME = "export"
"""Name of the job and of its folder in the workspace."""


@dataclass(frozen=True)
class Job:
    """The parameters of all units of an export, which are sent to the workers. They do not depend on the sink."""

    release: Path
    answer: ExportedAnswer
    k: int
    neighbor_filter: NeighborFilter
    items_per_unit: int
    folder: Path

    @classmethod
    def from_config(cls, release: Release, config: ExportConfig, items_per_unit: int, run: Run) -> Job:
        """Return the job that exports a release."""
        neighbor_filter = NeighborFilter(config.min_similarity, config.min_interactions, config.where)
        folder = run.folder / run.run_id
        return cls(release.path.resolve(), config.answer, config.k, neighbor_filter, items_per_unit, folder)

    def part(self, unit: int) -> Path:
        """Return the path of the file with the rows of a unit; the columns are those of the answer."""
        return self.folder / f"part-{unit:05d}.parquet"

    def entry(self, unit: int) -> Path:
        """Return the path of the file that marks a unit as complete and contains its counts."""
        return self.folder / f"part-{unit:05d}.json"


def export_neighbors(release: Release, config: Config, progress: Progress) -> dict[str, Any]:
    """Export the neighbors of all items, unless the sink already contains this export.

    Args:
        release: a verified release.
        config: the table `export` determines the rows and the sink; other tables determine how the job runs.
        progress: receives the progress.

    Returns:
        A JSON-serializable dictionary: `export_id`, `release_id`, `k`; the numbers of `items` with neighbors,
        `items_without_neighbors` and `rows`; `to`, without a password.

    Raises:
        ConfigError: there is no such sink, or its library is not installed.
        InputError: a filter does not match the columns of the catalog, or a file cannot be written.
        StageError: no neighbor passes the filter, the sink is not reachable, or another process is exporting.
    """
    quiet_libraries()
    to, answer = config.export.to, ANSWERS[config.export.answer]
    if config.export.answer == "together":
        release.require_followers()
    run = _export_run(release, config)
    with closing(open_sink(to, answer)) as sink:  # an unreachable sink must fail before the search
        is_current = sink.current_export_id() == run.run_id
    job = Job.from_config(release, config.export, config.resources.exported_items, run)
    with run.locked():
        if not run.done(run.run_id):
            with progress.stage("search") as advance:
                _search_all(job, release, config, advance)
        manifest = run.manifest(run.run_id)
        export = _to_export(manifest, job)
        with closing(open_sink(to, answer)) as sink:
            if is_current:
                sink.remove_previous(export)  # the process that published may have been killed before this step
            else:
                with progress.stage("deliver") as advance:
                    deliver(export, sink, advance)
                    advance(1, 1, f"{export.rows:,} rows to {Address(to).shown}")
        for folder in run.folder.iterdir():  # parts of earlier exports
            if folder.is_dir() and folder != job.folder:
                shutil.rmtree(folder)
    return {**manifest, "to": Address(to).shown}


def _export_run(release: Release, config: Config) -> Run:
    """Return the run of this export. Exports with equal ids have equal rows."""
    folder = config.workspace / NAME
    folder.mkdir(parents=True, exist_ok=True)
    code = code_version()
    settings = config.export.model_dump(mode="json", exclude={"to"})
    identity = [sha256(release.path / RELEASE_MANIFEST), json.dumps(settings, sort_keys=True), code]
    export_id = f"{release.release_id}-{hashlib.sha256(' '.join(identity).encode()).hexdigest()[:8]}"
    return Run(export_id, folder, release.manifest.data_snapshot, code)


def _search_all(job: Job, release: Release, config: Config, advance: Advance) -> None:
    """Search the neighbors of all items in units on Beam, then write the manifest."""
    cache_release(job, release)
    units = list(range(math.ceil(len(release.catalog) / job.items_per_unit)))
    job.folder.mkdir(exist_ok=True)
    runner.run([runner.Phase(NAME, units, partial(search_unit, job), job.entry)], config.beam, advance)
    entries = [json.loads(job.entry(unit).read_text()) for unit in units]
    items, rows = (sum(entry[name] for entry in entries) for name in ("items", "rows"))
    items_without_neighbors = len(release.catalog) - items
    if rows == 0:
        raise StageError(
            "at least one item must have a neighbor. "
            f"Received: {items_without_neighbors:,} items, none with a neighbor "
            "that passes export.min_similarity, export.min_interactions and export.where. Relax these settings."
        )
    manifest = {
        "export_id": job.folder.name,
        "release_id": release.release_id,
        "k": job.k,
        "items": items,
        "items_without_neighbors": items_without_neighbors,
        "rows": rows,
    }
    with atomic_write(job.folder / MANIFEST) as draft:
        draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    advance(1, 1, f"{rows:,} neighbors of {items:,} items, {items_without_neighbors:,} items without")


def search_unit(job: Job, unit: int) -> None:
    """Search the neighbors of a range of items and write them as a part."""
    release, mask = _open_release(job)
    start = unit * job.items_per_unit
    item_numbers = range(start, min(start + job.items_per_unit, len(release.catalog)))
    if job.answer == "together":
        rows = search_items(release.spaces["next"].engine, release.require_followers(), item_numbers, job.k, mask)
    else:
        space = release.space(job.answer)
        rows = nearest(
            release.catalog,
            space.engine.searcher,
            item_numbers,
            job.k,
            calibration=space.calibration,
            neighbor_filter=job.neighbor_filter,
            mask=mask,
        )
    _write_part(rows, job.part(unit))
    with atomic_write(job.entry(unit)) as draft:
        draft.write_text(json.dumps({"items": rows["item_id"].n_unique(), "rows": rows.height}))


class _OpenRelease(NamedTuple):
    """A release and the mask of the items that pass the filter."""

    release: Release
    mask: Mask | None


_open_releases: dict[Path, _OpenRelease] = {}
"""The release by folder of the export; cached per process, because loading takes longer than a unit."""
_loading = threading.Lock()


def cache_release(job: Job, release: Release) -> None:
    """Cache a loaded release for the units that run in this process."""
    _open_releases.clear()
    _open_releases[job.folder] = _OpenRelease(release, job.neighbor_filter.mask(release.catalog))


def _open_release(job: Job) -> _OpenRelease:
    with _loading:
        if job.folder not in _open_releases:
            release = Release.load(job.release)
            _open_releases[job.folder] = _OpenRelease(release, job.neighbor_filter.mask(release.catalog))
        return _open_releases[job.folder]


def _to_export(manifest: dict[str, Any], job: Job) -> Export:
    parts = tuple(sorted(job.folder.glob("part-*.parquet")))
    metadata = {name: manifest[name] for name in ("export_id", "release_id", "k", "items", "rows")}
    return Export(**metadata, parts=parts)


def _write_part(rows: pl.DataFrame, path: Path) -> None:
    import pyarrow as pa  # noqa: PLC0415 - installed with the extra of the jobs
    import pyarrow.parquet as pq  # noqa: PLC0415

    # some readers do not support the large strings of Polars
    table = rows.to_arrow()
    fields = [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in table.schema]
    with atomic_write(path) as draft:
        pq.write_table(table.cast(pa.schema(fields)), draft)
