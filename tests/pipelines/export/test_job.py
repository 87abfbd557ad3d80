"""The export of a release: its rows equal the results of the service, and finished units are not repeated."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from pipelines.context.progress import Progress
from pipelines.export import job
from recsys import Release
from recsys.config.loading import parse_config
from recsys.config.sections import Config
from recsys.data import storage
from recsys.errors import ConfigError, InputError, StageError
from recsys.retrieval.query import Condition, TogetherQuery
from recsys.testing.releases import release_writer
from tests import GOLDEN_RELEASES, memory_mb

GOLDEN = GOLDEN_RELEASES / "v2"
ITEMS_PER_UNIT = 10


@pytest.fixture
def release() -> Release:
    return Release.load(GOLDEN)


class Exporter:
    """Exports with one workspace and records which units were searched."""

    def __init__(self, folder: Path, release: Release) -> None:
        self.folder, self.release = folder, release
        self.units: list[int] = []

    def config(self, beam: dict[str, Any] | None = None, **settings: Any) -> Config:
        defaults = {"k": 6, "to": str(self.folder / "out")}
        data = {"interactions": "none.csv", "workspace": str(self.folder / "workspace")}
        return parse_config(
            {
                "data": data,
                "beam": beam or {},
                "export": {**defaults, **settings},
                "resources": {"memory_mb": memory_mb(exported=ITEMS_PER_UNIT)},
            }
        )

    def __call__(self, **settings: Any) -> dict[str, Any]:
        self.units.clear()
        return job.export_neighbors(self.release, self.config(**settings), Progress(quiet=True))

    @property
    def rows(self) -> pl.DataFrame:
        manifest = json.loads((self.folder / "out" / "_MANIFEST.json").read_text())
        return pl.read_parquet([self.folder / "out" / name for name in manifest["files"]])

    @property
    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("workspace/export/*/part-*.parquet"))


@pytest.fixture
def export(tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> Exporter:
    exporter = Exporter(tmp_path, release)
    nearest = job.nearest

    def counting(catalog: Any, index: Any, numbers: range, *args: Any, **kwargs: Any) -> pl.DataFrame:
        exporter.units.append(numbers.start // ITEMS_PER_UNIT)
        return nearest(catalog, index, numbers, *args, **kwargs)

    monkeypatch.setattr(job, "nearest", counting)
    return exporter


@pytest.mark.beam
@pytest.mark.parametrize("profile", ["local", "local-threads"])
def test_exports_what_the_service_returns(export: Exporter, release: Release, profile: str) -> None:
    summary = export(beam={"profile": profile})
    expected = [
        (item, n.rank, n.item_id, n.similarity, n.probability)
        for item in release.catalog.item_ids
        for n in release.similar(item, 6).neighbors
    ]
    assert export.rows.rows() == expected
    export_id = summary.pop("export_id")
    assert export_id.startswith(f"{release.release_id}-")
    assert summary == {
        "release_id": release.release_id,
        "k": 6,
        "items": 49,
        "items_without_neighbors": 0,
        "rows": 49 * 6,
        "to": str(export.folder / "out"),
    }


@pytest.fixture(scope="module")
def current_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of the current format, with two embedding spaces."""
    write = release_writer(tmp_path_factory.mktemp("release"))
    columns = {"genre": pl.Series(["a", "b", "c"] * 8), "interactions": pl.Series(range(24))}
    return Release.load(write([f"item {n:02d}" for n in range(24)], spaces=("next", "similar"), **columns))


def test_exports_the_sense_next(current_release: Release, tmp_path: Path) -> None:
    exporter = Exporter(tmp_path, current_release)
    exporter(answer="next")
    assert exporter.rows.rows() == [
        (item, n.rank, n.item_id, n.similarity, n.probability)
        for item in current_release.catalog.item_ids
        for n in current_release.similar(item, 6, "next").neighbors
    ]


@pytest.mark.parametrize("filtered", [False, True])
def test_exports_items_used_together(current_release: Release, tmp_path: Path, *, filtered: bool) -> None:
    exporter = Exporter(tmp_path, current_release)
    summary = exporter(
        answer="together", **({"where": {"genre": ["a", "c"]}, "min_interactions": 5} if filtered else {})
    )
    where = (Condition("genre", any_of=("a", "c")), Condition("interactions", minimum=5)) if filtered else ()
    expected = [
        (item, n.rank, n.item_id, n.users, n.confidence, n.lift, n.score)
        for item in current_release.catalog.item_ids
        for n in current_release.search_together(TogetherQuery(item, k=6, where=where)).neighbors
    ]
    assert exporter.rows.rows() == expected
    assert summary["rows"] == len(expected) > 0


def test_together_requires_a_release_with_counts(export: Exporter) -> None:
    with pytest.raises(InputError, match="together requires a release of format 5"):
        export(answer="together")
    assert export.parts == []


def test_parts_have_types_that_other_readers_support(export: Exporter) -> None:
    export()
    assert len(export.parts) == 5
    for part in export.parts:
        assert pq.read_schema(part).types == [pa.string(), pa.int32(), pa.string(), pa.float64(), pa.float64()]


def test_does_not_repeat_a_finished_export(export: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    first = export()
    assert sorted(export.units) == [0, 1, 2, 3, 4]
    before = {path: path.stat().st_mtime_ns for path in export.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(job.runner, "_import_beam", lambda: pytest.fail("Beam was started"))
    assert export() == first
    assert export.units == []
    assert {path: path.stat().st_mtime_ns for path in export.folder.rglob("*") if path.is_file()} == before


def test_writes_a_second_sink_from_the_same_parts(export: Exporter) -> None:
    export()
    export(to=str(export.folder / "more.jsonl"))
    assert export.units == []
    assert len((export.folder / "more.jsonl").read_text().splitlines()) == 49


@pytest.mark.parametrize("killed_at", range(5))
def test_searches_only_the_unfinished_units_after_a_kill(
    export: Exporter, killed_at: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uninterrupted = Exporter(tmp_path / "uninterrupted", export.release)
    uninterrupted()

    def kill(path: Path) -> AbstractContextManager[Path]:
        """Exit after a part is written and before it is marked as complete."""
        if path.name == f"part-{killed_at:05d}.json":
            raise SystemExit(9)
        return storage.atomic_write(path)

    monkeypatch.setattr(job, "atomic_write", kill)
    with pytest.raises((SystemExit, RuntimeError)):
        export()
    assert not (export.folder / "out").exists()
    monkeypatch.setattr(job, "atomic_write", storage.atomic_write)
    export()
    assert killed_at in export.units
    assert len(export.units) == 5 - killed_at
    assert [part.read_bytes() for part in export.parts] == [part.read_bytes() for part in uninterrupted.parts]


def test_searches_no_unit_again_after_a_kill_during_delivery(export: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "deliver", kill)
        with pytest.raises(KeyboardInterrupt):
            export()
    export()
    assert export.units == []
    assert export.rows.height == 49 * 6


@pytest.mark.parametrize(
    "changed", [{"k": 5}, {"min_similarity": 0.6}, {"where": {"genre": ["genre-1"]}}, {"min_interactions": 15}]
)
def test_export_with_other_settings_replaces_the_previous_one(export: Exporter, changed: dict[str, Any]) -> None:
    first = export()
    before = export.rows
    second = export(**changed)
    assert second["export_id"] != first["export_id"]
    assert second["rows"] == export.rows.height
    assert not export.rows.equals(before)
    assert len({part.parent for part in export.parts}) == 1
    assert len(list((export.folder / "out").glob("export-*"))) == 1


def test_export_id_does_not_depend_on_the_sink(export: Exporter) -> None:
    """No file of the workspace contains the address of the sink, which can include a password."""
    first = export()
    second = export(to=f"sqlite:///{export.folder}/secret.db")
    assert second["export_id"] == first["export_id"]
    for path in export.folder.glob("workspace/**/*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()


def test_applies_the_filters_to_every_unit(export: Exporter) -> None:
    summary = export(where={"genre": ["genre-2"]}, min_interactions=1)
    assert set(export.rows["neighbor_id"]) == {f"item-2-{position}" for position in range(8)}
    assert (summary["items"], summary["items_without_neighbors"]) == (49, 0)


def test_counts_items_without_neighbors(export: Exporter) -> None:
    summary = export(min_similarity=0.8)
    assert summary["items"] == export.rows["item_id"].n_unique()
    assert summary["items"] + summary["items_without_neighbors"] == 49
    assert min(summary["items"], summary["items_without_neighbors"]) > 0


def test_rejects_an_empty_export_and_keeps_the_previous_one(export: Exporter) -> None:
    first = export()
    with pytest.raises(StageError, match="Received: 49 items, none with a neighbor"):
        export(min_similarity=0.999999)
    assert export.rows.height == first["rows"]


def test_rejects_a_filter_that_does_not_fit_the_catalog(export: Exporter) -> None:
    with pytest.raises(InputError, match="Received: 'color'"):
        export(where={"color": ["red"]})
    assert [path for path in export.folder.rglob("*") if path.is_file() and path.name != ".lock"] == []


@pytest.mark.parametrize(
    ("to", "error"),
    [("mysql://host/db", ConfigError), ("redis://127.0.0.1:1", StageError), ("postgresql://127.0.0.1:1/x", StageError)],
)
def test_reports_an_unusable_sink_before_searching(export: Exporter, to: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        export(to=to)
    assert export.units == []
    assert export.parts == []


def test_rejects_a_second_export_process(export: Exporter) -> None:
    folder = export.folder / "workspace" / "export"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(StageError, match="Another process is already working on run"):
        export()


def test_worker_process_loads_the_release_once(
    export: Exporter, release: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = export.config(where={"genre": ["genre-3"]}).export
    loaded: list[Path] = []
    load = Release.load

    def counting(path: Path) -> Release:
        loaded.append(path)
        return load(path)

    monkeypatch.setattr(job, "_open_releases", {})
    monkeypatch.setattr(Release, "load", counting)
    (tmp_path / "abc").mkdir()
    run = job._export_run(release, export.config())
    search_job = job.Job.from_config(release, config, ITEMS_PER_UNIT, run)
    search_job.folder.mkdir()
    for unit in range(3):
        job.search_unit(search_job, unit)
    assert loaded == [GOLDEN.resolve()]
    rows = pl.concat([pl.read_parquet(search_job.part(unit)) for unit in range(3)])
    assert set(rows["neighbor_id"]) == {f"item-3-{position}" for position in range(8)}
