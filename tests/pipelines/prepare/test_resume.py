"""A prepare stage that is killed resumes from its finished units and writes the same files."""

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

UNITS = 30
"""Units of interactions; there are nearly as many shards of users and of anchors."""


def write_many_units(folder: Path, seed: int = 3) -> Path:
    """Write the synthetic world and a config that divides it into many units; return the path of the config."""
    config = world.write(folder, seed)
    log = folder / "interactions.parquet"
    rows = pl.read_parquet(log)
    rows.write_parquet(log, row_group_size=rows.height // UNITS)
    config.write_text(f"{config.read_text()}\n[resources]\nmemory_mb = {memory_mb(rows=rows.height // UNITS)}\n")
    return config


def unfinished_stage(workspace: Path) -> Path | None:
    """Return the folder of a prepare stage that is not finished."""
    return next(workspace.glob("runs/*/.tmp-prepare.*"), None)


def count_finished_units(workspace: Path) -> int:
    return len([*workspace.glob("runs/*/.tmp-prepare.*/.work/*.json")])


def kill_after(config: Path, num_units: int) -> bool:
    """Kill a prepare job when this many units are finished; return whether it was still running."""
    command = [program.RECSYS, "prepare", "--config", config]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        while job.poll() is None:
            if count_finished_units(config.parent / "workspace") >= num_units:
                job.kill()
                break
    return job.returncode == -9


def output_files(config: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of all files of the finished prepare stage."""
    (stage,) = (config.parent / "workspace").glob("runs/*/prepare")
    for path in sorted(stage.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(stage)), path.read_bytes()


@pytest.mark.parametrize("seed", range(2))
def test_a_job_killed_several_times_writes_the_same_files(tmp_path: Path, seed: int) -> None:
    undisturbed = write_many_units(tmp_path / "undisturbed")
    STAGES["prepare"](RunContext.from_config(load_config(undisturbed)))
    config = write_many_units(tmp_path / "killed")
    workspace = config.parent / "workspace"
    rng = random.Random(seed)  # noqa: S311 - numbers of units
    stage_folders = set()
    for num_units in sorted(rng.sample(range(1, 3 * UNITS), 3)):
        assert kill_after(config, num_units)
        assert count_finished_units(workspace) >= num_units
        folder = unfinished_stage(workspace)
        assert folder is not None
        stage_folders.add(folder.stat().st_ino)
    STAGES["prepare"](RunContext.from_config(load_config(config)))
    assert dict(output_files(config)) == dict(output_files(undisturbed))
    (stage,) = workspace.glob("runs/*/prepare")
    assert stage_folders == {stage.stat().st_ino}
    assert not [*stage.glob(".*")]


def test_finished_units_are_not_repeated(tmp_path: Path) -> None:
    """A wrong number in the record of a finished unit is noticed only if the unit is not repeated."""
    config = write_many_units(tmp_path)
    assert kill_after(config, 5)
    folder = unfinished_stage(tmp_path / "workspace")
    assert folder is not None
    record = min((folder / ".work").glob("interactions-*.json"))
    record.write_text(record.read_text().replace('"read": ', '"read": 1'))
    with pytest.raises(Exception, match="must be accounted for"):
        STAGES["prepare"](RunContext.from_config(load_config(config)))
    assert unfinished_stage(tmp_path / "workspace") is None, "a failed stage must leave nothing behind"
