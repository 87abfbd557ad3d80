"""The export of a release: the ranking of the service, resumed after a kill, and nothing done twice."""

import json
import shutil
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
from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES / "v2"
ITEMS_PER_UNIT = 10


@pytest.fixture
def release() -> Release:
    return Release.load(GOLDEN)


class Exporter:
    """Exports into one workspace, and remembers which units were worked on."""

    def __init__(self, folder: Path, release: Release) -> None:
        self.folder, self.release = folder, release
        self.units: list[int] = []

    def config(self, beam: dict[str, Any] | None = None, **settings: Any) -> Config:
        defaults = {"items_per_unit": ITEMS_PER_UNIT, "k": 6, "to": str(self.folder / "out")}
        data = {"interactions": "none.csv", "workspace": str(self.folder / "workspace")}
        return parse_config({"data": data, "beam": beam or {}, "neighbors": {**defaults, **settings}})

    def __call__(self, **settings: Any) -> dict[str, Any]:
        self.units.clear()
        return job.neighbors(self.release, self.config(**settings), Progress(quiet=True))

    @property
    def rows(self) -> pl.DataFrame:
        manifest = json.loads((self.folder / "out" / "_MANIFEST.json").read_text())
        return pl.read_parquet([self.folder / "out" / name for name in manifest["files"]])

    @property
    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("workspace/neighbors/*/part-*.parquet"))


@pytest.fixture
def export(tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> Exporter:
    exporter = Exporter(tmp_path, release)
    ask = job.nearest

    def counting(catalog: Any, index: Any, numbers: range, *given: Any, **named: Any) -> pl.DataFrame:
        exporter.units.append(numbers.start // ITEMS_PER_UNIT)
        return ask(catalog, index, numbers, *given, **named)

    monkeypatch.setattr(job, "nearest", counting)
    return exporter


@pytest.mark.parametrize("profile", ["local", "local-threads"])
def test_every_item_has_the_answer_of_the_service(export: Exporter, release: Release, profile: str) -> None:
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


def test_parts_are_of_types_that_other_readers_know(export: Exporter) -> None:
    export()
    assert len(export.parts) == 5
    for part in export.parts:
        assert pq.read_schema(part).types == [pa.string(), pa.int32(), pa.string(), pa.float64(), pa.float64()]


def test_a_finished_export_does_nothing_again(export: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    first = export()
    assert sorted(export.units) == [0, 1, 2, 3, 4]
    before = {path: path.stat().st_mtime_ns for path in export.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(job.runner, "_beam", lambda: pytest.fail("seconds for nothing"))
    assert export() == first
    assert export.units == []
    assert {path: path.stat().st_mtime_ns for path in export.folder.rglob("*") if path.is_file()} == before


def test_a_second_sink_is_written_from_the_parts_that_are_there(export: Exporter) -> None:
    export()
    export(to=str(export.folder / "more.jsonl"))
    assert export.units == []
    assert len((export.folder / "more.jsonl").read_text().splitlines()) == 49


@pytest.mark.parametrize("killed_at", range(5))
def test_after_a_kill_only_what_is_missing_is_asked(
    export: Exporter, killed_at: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = Exporter(tmp_path / "undisturbed", export.release)
    whole()

    def kill(path: Path) -> AbstractContextManager[Path]:
        """After a part is written, and before it is known."""
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
    assert [part.read_bytes() for part in export.parts] == [part.read_bytes() for part in whole.parts]


def test_after_a_kill_while_delivering_no_item_is_asked_again(
    export: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_other_settings_are_another_export_and_take_the_place_of_the_first(
    export: Exporter, changed: dict[str, Any]
) -> None:
    first = export()
    before = export.rows
    second = export(**changed)
    assert second["export_id"] != first["export_id"]
    assert second["rows"] == export.rows.height
    assert not export.rows.equals(before)
    assert len({part.parent for part in export.parts}) == 1
    assert len(list((export.folder / "out").glob("export-*"))) == 1


def test_where_it_goes_makes_no_other_export(export: Exporter) -> None:
    """Nor may a password be found in any file."""
    first = export()
    second = export(to=f"sqlite:///{export.folder}/secret.db")
    assert second["export_id"] == first["export_id"]
    for path in export.folder.glob("workspace/**/*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()


def test_filters_of_the_config_reach_every_unit(export: Exporter) -> None:
    summary = export(where={"genre": ["genre-2"]}, min_interactions=1)
    assert set(export.rows["neighbor_id"]) == {f"item-2-{position}" for position in range(8)}
    assert (summary["items"], summary["items_without_neighbors"]) == (49, 0)


def test_items_without_neighbors_are_counted(export: Exporter) -> None:
    summary = export(min_similarity=0.8)
    assert summary["items"] == export.rows["item_id"].n_unique()
    assert summary["items"] + summary["items_without_neighbors"] == 49
    assert min(summary["items"], summary["items_without_neighbors"]) > 0


def test_an_export_of_nothing_is_refused_and_the_one_before_stays(export: Exporter) -> None:
    first = export()
    with pytest.raises(StageError, match="Received: 49 items, and no neighbor"):
        export(min_similarity=0.999999)
    assert export.rows.height == first["rows"]


def test_a_filter_that_does_not_fit_is_refused_and_nothing_is_written(export: Exporter) -> None:
    with pytest.raises(InputError, match="Received: 'color'"):
        export(where={"color": ["red"]})
    assert [path for path in export.folder.rglob("*") if path.is_file() and path.name != ".lock"] == []


@pytest.mark.parametrize(
    ("to", "error"),
    [("mysql://host/db", ConfigError), ("redis://127.0.0.1:1", StageError), ("postgresql://127.0.0.1:1/x", StageError)],
)
def test_a_sink_that_cannot_be_is_told_before_any_item_is_asked(
    export: Exporter, to: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        export(to=to)
    assert export.units == []
    assert export.parts == []


def test_one_process_exports_at_a_time(export: Exporter) -> None:
    folder = export.folder / "workspace" / "neighbors"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(StageError, match="one process at a time"):
        export()


def test_a_worker_of_another_process_opens_the_release_itself(
    export: Exporter, release: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once, verified, for all its units."""
    config = export.config(where={"genre": ["genre-3"]}).neighbors
    loaded: list[Path] = []
    load = Release.load

    def counting(path: Path) -> Release:
        loaded.append(path)
        return load(path)

    monkeypatch.setattr(job, "_held", {})
    monkeypatch.setattr(Release, "load", counting)
    (tmp_path / "abc").mkdir()
    run = job._run(release, export.config())
    made = job.Job.of(release, config, run)
    made.folder.mkdir()
    for unit in range(3):
        job.ask_unit(made, unit)
    assert loaded == [GOLDEN.resolve()]
    rows = pl.concat([pl.read_parquet(made.part(unit)) for unit in range(3)])
    assert set(rows["neighbor_id"]) == {f"item-3-{position}" for position in range(8)}


def test_the_job_by_itself_takes_a_config_and_a_release(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "release")
    (tmp_path / "recsys.toml").write_text('[data]\ninteractions = "none.csv"\n[neighbors]\nk = 3\n')
    done = job.run(
        [
            *("--config", str(tmp_path / "recsys.toml"), "--release", str(tmp_path / "release")),
            *("--set", f"neighbors.to=sqlite:///{tmp_path}/a.db"),
        ]
    )
    assert (done["rows"], done["to"]) == (49 * 3, f"sqlite:///{tmp_path}/a.db")
