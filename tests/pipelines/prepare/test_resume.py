"""A job that is killed goes on with what it finished, and comes to the same files."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from recsys.config.loading import load_config
from recsys.testing import program, world
from tests import memory_mb

pytestmark = pytest.mark.slow

UNITS = 90
"""Of the interactions; nearly as many shards of users and of anchors."""


def of_many_units(folder: Path, seed: int = 3) -> Path:
    """The world in row groups of ten, and a config that makes each a unit of work."""
    config = world.write(folder, seed)
    log = folder / "interactions.parquet"
    rows = pl.read_parquet(log)
    rows.write_parquet(log, row_group_size=rows.height // UNITS)
    config.write_text(f"{config.read_text()}\n[resources]\nmemory_mb = {memory_mb(rows=rows.height // UNITS)}\n")
    return config


def begun(workspace: Path) -> Path | None:
    """Folder of a prepare stage that is not finished."""
    return next(workspace.glob("runs/*/.tmp-prepare-*"), None)


def finished_units(workspace: Path) -> int:
    """Units of all phases whose entry is there."""
    return len([*workspace.glob("runs/*/.tmp-prepare-*/.work/*.json")])


def kill_after(config: Path, units: int) -> bool:
    """Kill a prepare job once so many units are finished; whether it was still at work."""
    command = [program.RECSYS, "prepare", "--config", config]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        while job.poll() is None:
            if finished_units(config.parent / "workspace") >= units:
                job.kill()
                break
    return job.returncode == -9


def files_of(config: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of all that a finished prepare stage wrote."""
    (stage,) = (config.parent / "workspace").glob("runs/*/prepare")
    for path in sorted(stage.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(stage)), path.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    config = of_many_units(tmp_path_factory.mktemp("undisturbed"))
    STAGES["prepare"](RunContext.from_config(load_config(config)))
    return dict(files_of(config))


@pytest.mark.parametrize("seed", range(3))
def test_a_job_that_is_killed_again_and_again_ends_with_the_same_files(
    tmp_path: Path, undisturbed: dict[str, bytes], seed: int
) -> None:
    config = of_many_units(tmp_path)
    rng = random.Random(seed)  # noqa: S311 - moments to be killed at
    moments = sorted(rng.sample(range(1, 3 * UNITS), 3))
    folders = set()
    for moment in moments:
        assert kill_after(config, moment)
        assert finished_units(tmp_path / "workspace") >= moment
        folder = begun(tmp_path / "workspace")
        assert folder is not None
        folders.add(folder.stat().st_ino)
    STAGES["prepare"](RunContext.from_config(load_config(config)))
    assert dict(files_of(config)) == undisturbed
    (stage,) = (tmp_path / "workspace").glob("runs/*/prepare")
    assert folders == {stage.stat().st_ino}
    assert not [*stage.glob(".*")]


def test_what_was_finished_is_not_done_again(tmp_path: Path) -> None:
    """What a finished unit counted is changed: who did it again would set it right."""
    config = of_many_units(tmp_path)
    assert kill_after(config, 5)
    folder = begun(tmp_path / "workspace")
    assert folder is not None
    entry = min((folder / ".work").glob("interactions-*.json"))
    entry.write_text(entry.read_text().replace('"without_event_weight": 0', '"without_event_weight": 1'))
    with pytest.raises(Exception, match="must be accounted for"):
        STAGES["prepare"](RunContext.from_config(load_config(config)))
    assert begun(tmp_path / "workspace") is None, "an error leaves nothing behind"
